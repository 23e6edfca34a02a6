//! Lists as large as they come (S8), and the table against an implementation of networks that is not ours (F3).

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
};

use sluicegate::{
    cidr::Cidr,
    firewall::{Action, RuleSet, Table},
};

use crate::support::{
    Gate, LATE, Random,
    gate::{pool, tcp},
    programs::{self, require},
};

impl Random {
    /// Few distinct bits at the front, so that networks and addresses meet; IPv4, IPv6 and mapped.
    fn address(&mut self) -> IpAddr {
        let (kind, front, rest) = (self.below(4), self.below(8), self.draw());
        let four = Ipv4Addr::from_bits(front << 29 | (rest as u32) >> 3);
        match kind {
            0 => Ipv6Addr::from_bits(u128::from(front) << 125 | u128::from(rest) << 40).into(),
            1 => IpAddr::V6(four.to_ipv6_mapped()),
            _ => four.into(),
        }
    }
}

/// Rules are lines of networks, then come addresses with what was said of them; the answer is the number of differences.
const PYTHON: &str = r#"
import ipaddress, sys
rules, pairs, wrong = [], 0, 0
for line in sys.stdin:
    kind, *words = line.split()
    if kind == "rules":
        rules = []
    elif kind == "rule":
        rules.append([ipaddress.ip_network(word) for word in words])
    else:
        ip = ipaddress.ip_address(words[0])
        ip = getattr(ip, "ipv4_mapped", None) or ip
        expected = next((str(n) for n, nets in enumerate(rules) if any(ip in net for net in nets)), "-")
        pairs += 1
        if expected != words[1]:
            wrong += 1
            print("differs:", line.strip(), "expected", expected)
print(pairs, wrong)
"#;

#[test]
fn f3_the_table_agrees_with_pythons_ipaddress() {
    const PAIRS: usize = 1_000_000;
    const ASKED: usize = 1_000;
    let Some(python) = require("python3") else { return };
    let mut random = Random(33);
    let mut input = String::new();
    let mut matched = 0;
    for _ in 0..PAIRS / ASKED {
        input += "rules\n";
        let mut rules: Vec<Vec<Cidr>> = Vec::new();
        for _ in 0..random.below(5) {
            let network = |random: &mut Random| {
                let ip = random.address().to_canonical();
                let most = if ip.is_ipv4() { 32 } else { 128 };
                Cidr::truncated(ip, 1 + random.below(most / 2)).unwrap().0
            };
            let networks: Vec<_> = (0..=random.below(3)).map(|_| network(&mut random)).collect();
            input += "rule";
            for network in &networks {
                write!(input, " {network}").unwrap();
            }
            input += "\n";
            rules.push(networks);
        }
        let sets: Vec<_> =
            rules.iter().map(|networks| RuleSet { networks, action: Action::Deny, shadow: false }).collect();
        let table = Table::build(&sets, Action::Allow);
        for _ in 0..ASKED {
            let ip = random.address();
            let rule = table.verdict(ip).rule;
            matched += usize::from(rule.is_some());
            writeln!(input, "ip {ip} {}", rule.map_or("-".to_owned(), |rule| rule.to_string())).unwrap();
        }
    }
    assert!(matched > PAIRS / 20 && matched < PAIRS * 19 / 20, "{matched}: the cases are one-sided");
    let output = programs::run(&python, &["-c", PYTHON], std::path::Path::new("."), input.as_bytes());
    println!("{matched} of {PAIRS} matched a rule; pairs and differences: {}", output.stdout.trim());
    assert_eq!(output.stdout.trim(), format!("{PAIRS} 0"), "{}", output.stderr);
}

/// `VmHWM` and `VmRSS` without what is mapped from files, in bytes.
fn memory(gate: &Gate) -> (u64, u64) {
    let status = std::fs::read_to_string(format!("/proc/{}/status", gate.process.pid())).unwrap();
    let field = |name: &str| {
        let line = status.lines().find_map(|line| line.strip_prefix(name)).expect("a line of the kernel's");
        line.trim_matches([':', ' ', '\t']).trim_end_matches(" kB").parse::<u64>().unwrap() * 1024
    };
    (field("VmHWM") - field("RssFile"), field("RssAnon"))
}

#[test]
fn f6_s8_a_million_networks_take_a_hundred_bytes_each_and_twice_that_for_a_moment() {
    const NETWORKS: u32 = 1_000_000;
    let gate = |list: String| {
        let rules = "[firewall]\nrules = [{ name = \"bad\", deny_file = \"deny.txt\" }]\n";
        let toml = [&tcp(""), &pool("", &["127.0.0.1:1".parse().unwrap()]), rules].concat();
        Gate::plan(&toml).file("deny.txt", list).deadline(LATE).start()
    };
    let small = memory(&gate("192.0.2.1\n".to_owned()));
    let mut list = String::from("# mixed\r\n\n");
    for n in 0..NETWORKS {
        let bits = n.wrapping_mul(0x9e37_79b9);
        match n % 4 {
            0 => writeln!(list, "{}/64  # six", Ipv6Addr::from_bits(u128::from(bits) << 64 | 1 << 125)).unwrap(),
            _ => writeln!(list, "{}", Ipv4Addr::from_bits(bits)).unwrap(),
        }
    }
    let big = memory(&gate(list));
    let each = (big.1 - small.1) / u64::from(NETWORKS);
    let mib = |bytes: u64| bytes >> 20;
    println!("{NETWORKS} networks: {each} bytes each; {} MiB, at most {} MiB", mib(big.1), mib(big.0));
    assert!(each <= 100, "{each} bytes for each network");
    // The peak has what a start without a list takes, too.
    let most = 2 * big.1 + small.1;
    assert!(big.0 <= most, "{} MiB for a moment, {} MiB then, {} without", mib(big.0), mib(big.1), mib(small.1));
}
