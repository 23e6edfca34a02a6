//! The compiled table against a matcher that is too simple to be wrong.

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers are cut to size on purpose")]

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use super::*;
use crate::{cidr::Cidr, random::Random};

/// Rules that own their networks.
struct Rule {
    networks: Vec<Cidr>,
    action: Action,
    shadow: bool,
}

fn table(rules: &[Rule], default: Action) -> Table {
    let sets: Vec<_> =
        rules.iter().map(|r| RuleSet { networks: &r.networks, action: r.action, shadow: r.shadow }).collect();
    Table::build(&sets, default)
}

fn rule(action: Action, networks: &[&str]) -> Rule {
    Rule { networks: networks.iter().map(|text| text.parse().unwrap()).collect(), action, shadow: false }
}

/// An address or a network as family, bits and mask: no code shared with what is tested.
fn bits(ip: IpAddr) -> (bool, u128) {
    match ip {
        IpAddr::V4(ip) => (true, u128::from(u32::from_be_bytes(ip.octets()))),
        IpAddr::V6(ip) => {
            let bits = u128::from_be_bytes(ip.octets());
            if bits >> 32 == 0xffff { (true, bits & 0xffff_ffff) } else { (false, bits) }
        }
    }
}

/// Whether it is IPv4, the first address, and how many bits are free.
type Network = (bool, u128, u32);

struct Linear {
    /// Networks, action, shadow.
    rules: Vec<(Vec<Network>, Action, bool)>,
    default: Action,
}

impl Linear {
    fn new(rules: &[Rule], default: Action) -> Self {
        let net = |cidr: &Cidr| {
            let (v4, first) = bits(cidr.network());
            (v4, first, if v4 { 32 } else { 128 } - u32::from(cidr.prefix_len()))
        };
        let rules = rules.iter().map(|r| (r.networks.iter().map(net).collect(), r.action, r.shadow)).collect();
        Self { rules, default }
    }

    fn verdict(&self, ip: IpAddr) -> (Action, Option<u16>, Vec<u16>) {
        let (v4, ip) = bits(ip);
        let mut shadows = Vec::new();
        for ((networks, action, shadow), index) in self.rules.iter().zip(0..) {
            let same = |a: u128, b: u128, host: u32| (a ^ b).checked_shr(host).unwrap_or(0) == 0;
            if networks.iter().any(|(family, first, host)| *family == v4 && same(*first, ip, *host)) {
                if !shadow {
                    return (*action, Some(index), shadows);
                }
                shadows.push(index);
            }
        }
        (self.default, None, shadows)
    }
}

impl Random {
    /// Few distinct bits at both ends, so that networks nest, touch and repeat.
    fn address(&mut self) -> IpAddr {
        let (high, low): (u32, u32) = (self.below(8), self.below(8));
        let middle = if self.below(2) == 0 { 0 } else { self.draw() as u32 & 0x00ff_ff00 };
        match self.below(4) {
            0 | 1 => IpAddr::V4(Ipv4Addr::from_bits(high << 29 | middle | low)),
            2 => IpAddr::V6(Ipv4Addr::from_bits(high << 29 | middle | low).to_ipv6_mapped()),
            _ => IpAddr::V6(Ipv6Addr::from_bits(u128::from(high) << 125 | u128::from(middle) << 40 | u128::from(low))),
        }
    }

    fn network(&mut self, seen: &[Cidr]) -> Cidr {
        let base = if !seen.is_empty() && self.below(2) == 0 { self.near_one(seen) } else { self.address() };
        let max = if base.is_ipv4() { 32 } else { 128 };
        let prefix = match self.below(6) {
            0 => 0,
            1 => max,
            2 => self.below(4),
            3 => max - self.below(4),
            _ => self.below(max + 1),
        };
        Cidr::truncated(base, prefix).unwrap().0
    }

    fn near_one(&mut self, of: &[Cidr]) -> IpAddr {
        let index = self.below(of.len());
        self.near(of[index])
    }

    /// An end of the network, or the address before or after it, sometimes mapped.
    fn near(&mut self, cidr: Cidr) -> IpAddr {
        let end = if self.below(2) == 0 { cidr.network() } else { cidr.last() };
        let by = [0, 1, u128::MAX][self.below(3_usize)];
        match end {
            IpAddr::V4(ip) => {
                let ip = Ipv4Addr::from_bits(ip.to_bits().wrapping_add(by as u32));
                if self.below(3) == 0 { IpAddr::V6(ip.to_ipv6_mapped()) } else { IpAddr::V4(ip) }
            }
            IpAddr::V6(ip) => IpAddr::V6(Ipv6Addr::from_bits(ip.to_bits().wrapping_add(by))),
        }
    }

    fn action(&mut self) -> Action {
        if self.below(2) == 0 { Action::Allow } else { Action::Deny }
    }

    /// Up to eight rules of up to five networks, and all of these networks.
    fn rules(&mut self) -> (Vec<Rule>, Vec<Cidr>) {
        let (mut rules, mut seen) = (Vec::new(), Vec::new());
        for _ in 0..self.below(9) {
            let from = seen.len();
            for _ in 0..self.below(6) {
                seen.push(self.network(&seen));
            }
            rules.push(Rule { networks: seen[from..].to_vec(), action: self.action(), shadow: self.below(3) == 0 });
        }
        (rules, seen)
    }

    /// Mostly one that the networks are about.
    fn asked(&mut self, seen: &[Cidr]) -> IpAddr {
        if !seen.is_empty() && self.below(4) > 0 { self.near_one(seen) } else { self.address() }
    }
}

#[test]
fn f3_the_table_agrees_with_the_linear_matcher() {
    let mut random = Random(3);
    let mut asked = 0;
    let (mut decided, mut shadowed) = (0, 0);
    for _ in 0..2_000 {
        let (rules, seen) = random.rules();
        let default = random.action();
        let (fast, slow) = (table(&rules, default), Linear::new(&rules, default));
        for _ in 0..500 {
            let ip = random.asked(&seen);
            let (action, rule, shadows) = slow.verdict(ip);
            let expected = Verdict { action, rule, shadows: &shadows };
            assert_eq!(fast.verdict(ip), expected, "{ip} in {seen:?}");
            asked += 1;
            decided += usize::from(rule.is_some());
            shadowed += usize::from(!shadows.is_empty());
        }
    }
    assert_eq!(asked, 1_000_000);
    assert!(decided > asked / 4 && decided < asked * 9 / 10, "{decided}: the cases are one-sided");
    assert!(shadowed > asked / 20, "{shadowed}: too few shadows");
}

#[test]
fn f3_tables_of_many_blocks_agree_with_the_linear_matcher() {
    let mut random = Random(4);
    let mut networks = || -> Vec<Cidr> {
        let v4 = |r: u64| IpAddr::V4(Ipv4Addr::from_bits(r as u32));
        let v6 = |r: u64| IpAddr::V6(Ipv6Addr::from_bits(u128::from(r) << 64));
        (0..1_000)
            .map(|_| (random.draw(), 8 + random.below(25)))
            .map(|(r, prefix)| Cidr::truncated(if r % 3 == 0 { v6(r) } else { v4(r) }, prefix).unwrap().0)
            .collect()
    };
    let rules = [
        Rule { networks: networks(), action: Action::Deny, shadow: true },
        Rule { networks: networks(), action: Action::Deny, shadow: false },
        Rule { networks: networks(), action: Action::Allow, shadow: false },
    ];
    let (fast, slow) = (table(&rules, Action::Allow), Linear::new(&rules, Action::Allow));
    assert!(fast.entries() > 2_000);
    for cidr in rules.iter().flat_map(|rule| [&rule.networks; 3]).flatten() {
        let ip = random.near(*cidr);
        let (action, rule, shadows) = slow.verdict(ip);
        assert_eq!(fast.verdict(ip), Verdict { action, rule, shadows: &shadows }, "{ip}");
    }
}

#[test]
fn the_verdicts_in_a_network_are_those_of_its_addresses() {
    let mut random = Random(5);
    let (mut one, mut several) = (0, 0);
    for _ in 0..300 {
        // All in the same 4,096 addresses, and enough of them for several blocks.
        let mut network = |most_free: u64| {
            let (low, free) = (random.below(4_096_u32), random.below(most_free + 1) as u8);
            let (ip, width) = match random.below(2) {
                0 => (IpAddr::V4(Ipv4Addr::from_bits(0x0a00_0000 | low)), 32),
                _ => (IpAddr::V6(Ipv6Addr::from_bits(0x2001 << 112 | u128::from(low))), 128),
            };
            Cidr::truncated(ip, width - free).unwrap().0
        };
        let mut rules: Vec<_> = (0..3).map(|_| (0..20).map(|_| network(7)).collect()).collect();
        let asked: Vec<Cidr> = (0..20).map(|_| network(12)).collect();
        let mut rule = |shadow| Rule { networks: rules.pop().unwrap(), action: random.action(), shadow };
        let table = table(&[rule(false), rule(true), rule(false)], Action::Allow);
        for network in asked {
            let (v4, first) = bits(network.network());
            let verdict = |ip: u128| {
                let (four, six) = (Ipv4Addr::from_bits(ip as u32), Ipv6Addr::from_bits(ip));
                table.verdict(if v4 { four.into() } else { six.into() })
            };
            let mut expected: Vec<_> =
                (first..=bits(network.last()).1).map(verdict).map(|v| (v.rule, v.shadows)).collect();
            let mut told: Vec<_> = table.verdicts_in(&network).map(|v| (v.rule, v.shadows)).collect();
            for verdicts in [&mut expected, &mut told] {
                verdicts.sort_unstable();
                verdicts.dedup();
            }
            assert_eq!(told, expected, "{network}");
            if told.len() == 1 { one += 1 } else { several += 1 }
        }
    }
    assert!(one > 1_000 && several > 1_000, "{one} {several}: the cases are one-sided");
    let all = Table::build(&[], Action::Deny);
    for network in ["0.0.0.0/0", "::/0", "255.255.255.255", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
        assert_eq!(all.verdicts_in(&network.parse().unwrap()).count(), 1);
    }
}

#[test]
fn f2_overlapping_rules_are_decided_by_the_first() {
    let rules = [
        rule(Action::Allow, &["10.1.2.3"]),
        rule(Action::Deny, &["10.0.0.0/8", "2001:db8::/32"]),
        Rule { shadow: true, ..rule(Action::Deny, &["192.0.2.0/24", "10.1.2.3"]) },
        rule(Action::Allow, &["10.1.0.0/16", "192.0.2.0/25"]),
        Rule { shadow: true, ..rule(Action::Allow, &["0.0.0.0/0"]) },
    ];
    let table = table(&rules, Action::Deny);
    let expected: [(&str, Action, Option<u16>, &[u16]); 8] = [
        ("10.1.2.3", Action::Allow, Some(0), &[]),
        ("10.1.2.4", Action::Deny, Some(1), &[]),
        ("2001:db8::5", Action::Deny, Some(1), &[]),
        ("192.0.2.5", Action::Allow, Some(3), &[2]),
        ("192.0.2.200", Action::Deny, None, &[2, 4]),
        ("9.255.255.255", Action::Deny, None, &[4]),
        ("11.0.0.0", Action::Deny, None, &[4]),
        ("2001:db9::", Action::Deny, None, &[]),
    ];
    for (ip, action, rule, shadows) in expected {
        assert_eq!(table.verdict(ip.parse().unwrap()), Verdict { action, rule, shadows }, "{ip}");
    }
}

#[test]
fn f1_no_spelling_of_an_address_walks_round_a_rule() {
    let denied = table(&[rule(Action::Deny, &["127.0.0.1/32"])], Action::Allow);
    for spelling in ["127.0.0.1", "::ffff:127.0.0.1", "::ffff:7f00:1", "0:0:0:0:0:ffff:7f00:0001"] {
        assert_eq!(denied.verdict(spelling.parse().unwrap()).action, Action::Deny, "{spelling}");
    }
    let mapped_rule = table(&[rule(Action::Deny, &["::ffff:127.0.0.0/104"])], Action::Allow);
    assert_eq!(mapped_rule.verdict("127.0.0.1".parse().unwrap()).rule, Some(0));
    let all_v6 = table(&[rule(Action::Allow, &["::/0"])], Action::Deny);
    assert_eq!(all_v6.verdict("127.0.0.1".parse().unwrap()).rule, None);
    assert_eq!(all_v6.verdict("::ffff:127.0.0.1".parse().unwrap()).rule, None);
    assert_eq!(all_v6.verdict("::1".parse().unwrap()).rule, Some(0));
}

#[test]
fn no_rules_is_the_default() {
    for default in [Action::Allow, Action::Deny] {
        let empty = Table::build(&[], default);
        assert_eq!(empty.entries(), 2);
        for ip in ["0.0.0.0", "255.255.255.255", "::", "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff"] {
            let expected = Verdict { action: default, rule: None, shadows: &[] };
            assert_eq!(empty.verdict(ip.parse().unwrap()), expected);
        }
    }
}

#[test]
fn neighbours_of_one_rule_are_one_range() {
    let halves = table(&[rule(Action::Deny, &["10.0.0.0/9", "10.128.0.0/9", "10.3.0.0/16"])], Action::Allow);
    assert_eq!(halves.entries(), 3 + 1);
    let all = table(&[rule(Action::Deny, &["0.0.0.0/1", "128.0.0.0/1"])], Action::Allow);
    assert_eq!(all.entries(), 1 + 1);
}

#[test]
fn f6_s8_a_network_costs_at_most_17_bytes_for_ipv4_and_43_for_ipv6() {
    let spread = |index: u32| index.wrapping_mul(0x9e37_79b9);
    let v4 = |index| Cidr::from(IpAddr::V4(Ipv4Addr::from_bits(spread(index))));
    let v6 = |index| Cidr::truncated(IpAddr::V6(Ipv6Addr::from_bits(u128::from(spread(index)) << 96)), 48).unwrap().0;
    let bytes = |networks: Vec<Cidr>| {
        let set = RuleSet { networks: &networks, action: Action::Deny, shadow: false };
        Table::build(&[set], Action::Allow).heap_bytes() as f64 / networks.len() as f64
    };
    assert!(bytes((0..100_000).map(v4).collect()) <= 17.0);
    assert!(bytes((0..100_000).map(v6).collect()) <= 43.0);
}

#[test]
fn a_table_can_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Table>();
}

/// What is given to the kernel is exactly what would be denied, and by the same rule.
#[test]
fn f3_the_denied_ranges_are_those_that_the_linear_matcher_denies() {
    let mut random = Random(5);
    for _ in 0..300 {
        let (rules, seen) = random.rules();
        let default = random.action();
        let (table, slow) = (table(&rules, default), Linear::new(&rules, default));
        let denied: Vec<_> = table.denied().collect();
        for _ in 0..200 {
            let ip = random.asked(&seen);
            let holds = |range| match (range, ip.to_canonical()) {
                (Range::V4(first, last), IpAddr::V4(ip)) => (first..=last).contains(&ip.to_bits()),
                (Range::V6(first, last), IpAddr::V6(ip)) => (first..=last).contains(&ip.to_bits()),
                _ => false,
            };
            let found: Vec<_> = denied.iter().filter(|denied| holds(denied.range)).map(|denied| denied.rule).collect();
            let (action, rule, shadows) = slow.verdict(ip);
            let expected = (action == Action::Deny && shadows.is_empty()).then_some(rule);
            assert_eq!(found, expected.into_iter().collect::<Vec<_>>(), "{ip} in {seen:?}");
        }
    }
}
