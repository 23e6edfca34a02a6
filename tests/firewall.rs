//! Who may come in: by address, in written order, before anything else happens.

use std::{
    fmt::Write,
    net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr},
};

use crate::support::{
    Backend, Gate, LATE, Metrics, Process, SOON,
    client::{self, read_all},
    gate::{Plan, pool, tcp},
    tags::End,
};

fn plan(firewall: &str, backend: &Backend) -> Plan {
    Gate::plan(&[&tcp(""), &pool("", &[backend.address]), "[firewall]\n", firewall].concat())
}

fn source(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// What a client from this source gets: the greeting and its end.
fn visit(source: IpAddr, address: SocketAddr) -> (String, End) {
    let (bytes, end) = read_all(&mut client::connect_from(source, address));
    (String::from_utf8(bytes).unwrap(), end)
}

#[track_caller]
fn assert_admitted(source: IpAddr, address: SocketAddr) {
    assert_eq!(visit(source, address), ("welcome".to_owned(), End::Eof), "from {source}");
}

/// No byte and a close.
#[track_caller]
fn assert_dropped(source: IpAddr, address: SocketAddr) {
    assert_eq!(visit(source, address), (String::new(), End::Eof), "from {source}");
}

fn verdicts(metrics: &Metrics, rule: &str, action: &str) -> u64 {
    metrics.count("sluicegate_firewall_connections_total", &[("rule", rule), ("action", action)])
}

#[test]
fn f5_a_denied_client_gets_no_byte_and_touches_no_backend() {
    let backend = Backend::named("welcome");
    let gate = plan("rules = [{ name = \"bad\", deny = \"127.0.0.9/32\" }]", &backend).start();
    for _ in 0..3 {
        assert_dropped(source(9), gate.address("tcp"));
    }
    assert_admitted(source(8), gate.address("tcp"));
    let metrics = gate.wait_outcome("denied", 3);
    assert_eq!((verdicts(&metrics, "bad", "deny"), verdicts(&metrics, "default", "allow")), (3, 1));
    assert_eq!(metrics.count("sluicegate_listener_sent_bytes_total", &[]), 7);
    assert_eq!(backend.accepted(), 1);
    gate.finish();
}

#[test]
fn f5_deny_action_reset_resets() {
    let backend = Backend::named("welcome");
    let gate = plan("deny_action = \"reset\"\nrules = [{ name = \"bad\", deny = \"127.0.0.9\" }]", &backend).start();
    let (text, end) = visit(source(9), gate.address("tcp"));
    assert_eq!((text.as_str(), end), ("", End::Reset));
    gate.wait_outcome("denied", 1);
    assert_eq!(backend.accepted(), 0);
}

#[test]
fn f5_a_denied_client_sees_no_handshake() {
    let backend = Backend::named("welcome");
    let listener = crate::support::gate::https("");
    let firewall = "[firewall]\nrules = [{ name = \"bad\", deny = \"127.0.0.9\" }]\n";
    let gate = Gate::start(&[&listener, &pool("", &[backend.address]), firewall].concat());
    assert_dropped(source(9), gate.address("https"));
    let metrics = gate.wait_outcome("denied", 1);
    assert_eq!(metrics.count("sluicegate_tls_handshake_failures_total", &[]), 0);
}

#[test]
fn an_allow_list_denies_the_rest() {
    let backend = Backend::named("welcome");
    let rules = "default = \"deny\"\nrules = [{ name = \"office\", allow = [\"127.0.0.4/31\", \"127.0.0.20\"] }]";
    let gate = plan(rules, &backend).start();
    for last in [4, 5, 20] {
        assert_admitted(source(last), gate.address("tcp"));
    }
    for last in [3, 6, 19, 21] {
        assert_dropped(source(last), gate.address("tcp"));
    }
    let metrics = gate.wait_outcome("denied", 4);
    assert_eq!((verdicts(&metrics, "office", "allow"), verdicts(&metrics, "default", "deny")), (3, 4));
}

#[test]
fn f2_the_first_rule_that_matches_decides() {
    let backend = Backend::named("welcome");
    let rules = "rules = [ { name = \"one\", allow = \"127.0.0.5\" }, { name = \"net\", deny = \"127.0.0.0/28\" },\n\
                 { name = \"late\", allow = \"127.0.0.6\" } ]";
    let gate = plan(rules, &backend).start();
    assert_admitted(source(5), gate.address("tcp"));
    assert_dropped(source(6), gate.address("tcp"));
    assert_admitted(source(16), gate.address("tcp"));
    let metrics = gate.wait_outcome("denied", 1);
    let counts = ["one", "net", "late", "default"]
        .map(|rule| metrics.count("sluicegate_firewall_connections_total", &[("rule", rule)]));
    assert_eq!(counts, [1, 1, 0, 1]);
}

#[test]
fn a_rule_for_one_listener_leaves_the_other_alone() {
    let backend = Backend::named("welcome");
    let second = "[listener.other]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n";
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny = \"127.0.0.9\", listeners = [\"other\"] }]\n";
    let gate = Gate::start(&[&tcp(""), second, &pool("", &[backend.address]), rules].concat());
    assert_admitted(source(9), gate.address("tcp"));
    assert_dropped(source(9), gate.address("other"));
    let metrics = gate.wait_outcome("denied", 1);
    let denied = metrics.count("sluicegate_connections_closed_total", &[("outcome", "denied"), ("listener", "other")]);
    assert_eq!(denied, 1);
}

#[test]
fn a_shadow_rule_counts_and_does_not_enforce() {
    let backend = Backend::named("welcome");
    let rules = "rules = [ { name = \"try\", deny = \"127.0.0.9\", shadow = true }, { name = \"bad\", deny = \"127.0.0.10\" } ]";
    let gate = plan(rules, &backend).start();
    assert_admitted(source(9), gate.address("tcp"));
    assert_dropped(source(10), gate.address("tcp"));
    let metrics = gate.wait_outcome("denied", 1);
    assert_eq!((verdicts(&metrics, "try", "shadow_deny"), verdicts(&metrics, "bad", "deny")), (1, 1));
    assert_eq!(verdicts(&metrics, "default", "allow"), 1, "a shadow rule does not end the search");
}

#[test]
fn f1_ipv4_through_an_ipv6_listener_meets_the_ipv4_rule() {
    let Some(backend) = ipv6_host() else { return };
    let listener = "[listener.tcp]\nbind = \"[::]:0\"\npool = \"web\"\n";
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny = \"127.0.0.9\" }, { name = \"six\", deny = \"::/0\" }]\n";
    let gate = Gate::start(&[listener, &pool("", &[backend.address]), rules].concat());
    let port = gate.address("tcp").port();
    assert_dropped(source(9), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    assert_admitted(source(8), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port));
    let mapped = Ipv4Addr::new(127, 0, 0, 9).to_ipv6_mapped();
    assert_dropped(mapped.into(), SocketAddr::new(Ipv4Addr::LOCALHOST.to_ipv6_mapped().into(), port));
    assert_dropped(Ipv6Addr::LOCALHOST.into(), SocketAddr::new(Ipv6Addr::LOCALHOST.into(), port));
    let metrics = gate.wait_outcome("denied", 3);
    assert_eq!((verdicts(&metrics, "bad", "deny"), verdicts(&metrics, "six", "deny")), (2, 1));
    for record in gate.wait_records(1) {
        assert!(!record["client"].as_str().unwrap().contains("ffff"), "{record}");
    }
}

#[test]
fn ipv6_clients_reach_ipv6_backends() {
    let Some(backend) = ipv6_host() else { return };
    let listener = "[listener.tcp]\nbind = \"[::1]:0\"\npool = \"web\"\n";
    let rules = "[firewall]\ndefault = \"deny\"\nrules = [{ name = \"self\", allow = \"::1/128\" }]\n";
    let gate = Gate::start(&[listener, &pool("", &[backend.address]), rules].concat());
    assert_admitted(Ipv6Addr::LOCALHOST.into(), gate.address("tcp"));
    let record = &gate.wait_records(1)[0];
    assert!(record["client"].as_str().unwrap().starts_with("[::1]:"), "{record}");
}

/// A backend on `::1`, on hosts that have it.
fn ipv6_host() -> Option<Backend> {
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        println!("skipped: this host has no IPv6 loopback: sysctl net.ipv6.conf.lo.disable_ipv6=0");
        return None;
    }
    Some(Backend::start_on("[::1]:0".parse().unwrap(), |mut stream, _| {
        let _ = std::io::Write::write_all(&mut stream, b"welcome");
    }))
}

#[test]
fn a_list_file_is_a_rule() {
    let backend = Backend::named("welcome");
    let list = "# bad ones\n127.0.0.9\n\n127.0.0.32/30   # four\n2001:db8::/32\n";
    let gate = plan("rules = [{ name = \"bad\", deny_file = \"deny.txt\" }]", &backend).file("deny.txt", list).start();
    for (last, denied) in [(9, true), (31, false), (32, true), (35, true), (36, false)] {
        let check = if denied { assert_dropped } else { assert_admitted };
        check(source(last), gate.address("tcp"));
    }
    let metrics = gate.wait_outcome("denied", 3);
    assert_eq!(metrics.count("sluicegate_firewall_prefixes", &[("rule", "bad")]), 3);
}

#[test]
fn f6_a_list_of_a_million_lines_loads_and_works() {
    let backend = Backend::named("welcome");
    let mut list = String::with_capacity(20_000_000);
    for n in 0..1_000_000_u32 {
        writeln!(list, "{}", Ipv4Addr::from(0x1000_0000 + n * 3)).unwrap();
    }
    list += "127.0.0.9\n";
    let plan = plan("rules = [{ name = \"bad\", deny_file = \"deny.txt\" }]", &backend);
    let gate = plan.file("deny.txt", list).deadline(LATE).start();
    assert_dropped(source(9), gate.address("tcp"));
    assert_admitted(source(8), gate.address("tcp"));
    let metrics = gate.wait_outcome("denied", 1);
    assert_eq!(metrics.count("sluicegate_firewall_prefixes", &[("rule", "bad")]), 1_000_001);
}

#[test]
fn f2_a_bad_list_line_names_file_and_line() {
    let backend = Backend::named("welcome");
    for bad in ["10.1/16", "010.0.0.1", "10.0.0.1/33", "fe80::1%eth0", "example.com", "\u{0}"] {
        let list = format!("{}{bad}\n192.0.2.1\n", "198.51.100.0/24\n".repeat(41));
        let plan = plan("rules = [{ name = \"bad\", deny_file = \"deny.txt\" }]", &backend).file("deny.txt", list);
        plan.write();
        let ended = Process::run(&["run", "--config", "sluicegate.toml"], plan.path(), SOON);
        assert_eq!(ended.code, Some(1), "{bad}: {}", ended.stderr);
        assert!(ended.stderr.contains("deny.txt:42"), "{bad}: {}", ended.stderr);
    }
}

/// The rules are in force from the first connection on.
#[test]
fn f4_no_moment_without_rules() {
    let backend = Backend::named("welcome");
    let gate = plan("rules = [{ name = \"bad\", deny = \"127.0.0.0/8\" }]", &backend).start();
    assert_dropped(source(1), gate.address("tcp"));
    gate.wait_outcome("denied", 1);
    assert_eq!(backend.accepted(), 0);
}
