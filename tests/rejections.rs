//! Who was turned away is told, and not a line for each.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr},
};

use serde_json::Value;

use crate::support::{
    Backend, Gate, Process, SOON,
    client::{connect, connect_from, read_all, try_connect_from},
    full,
    gate::{pool, tcp, word},
    wait_until,
};

fn source(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(0x7f40_0000 + number).into()
}

/// A visit of each source, which is closed without a byte.
#[track_caller]
fn visit_all(gate: &Gate, sources: u32) {
    for number in 0..sources {
        assert_eq!(connect_from(source(number), gate.address("tcp")).read(&mut [0]).unwrap(), 0);
    }
}

fn rejected(gate: &Gate, outcome: &str) -> Vec<Value> {
    gate.records().into_iter().filter(|record| record["outcome"] == outcome).collect()
}

/// What the summaries say, in all.
fn summed(gate: &Gate, key: &str) -> u64 {
    let messages = gate.process.messages();
    messages.iter().filter(|one| one["message"] == "turned away").filter_map(|one| one[key].as_u64()).sum()
}

/// The stop tells what the last minute brought.
#[track_caller]
fn stop(gate: &mut Gate) {
    gate.wait_quiet();
    gate.process.stop();
}

#[test]
fn f7_each_source_is_told_once_and_the_rest_in_a_summary() {
    let (sources, visits) = if full() { (10_000, 10) } else { (300, 6) };
    let backend = Backend::named("welcome");
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny = \"127.64.0.0/16\" }]\n";
    let mut gate = Gate::start(&[&tcp(""), &pool("", &[backend.address]), rules].concat());
    visit_all(&gate, sources);
    let first = u64::from(sources);
    gate.wait_outcome("denied", first);
    wait_until(SOON, "a record of each source", || rejected(&gate, "denied").len() == sources as usize);
    (1..visits).for_each(|_| visit_all(&gate, sources));
    let all = first * visits;
    let metrics = gate.wait_outcome("denied", all);
    let labels = [("rule", "bad"), ("action", "deny")];
    assert_eq!(metrics.count("sluicegate_firewall_connections_total", &labels), all, "exact");
    let record = &rejected(&gate, "denied")[0];
    assert_eq!(
        (word(record, "rule"), word(record, "listener"), record["attempts"].as_u64()),
        ("bad".into(), "tcp".into(), Some(0))
    );
    stop(&mut gate);
    let records = rejected(&gate, "denied").len();
    println!("F7: {all} denied connections of {sources} sources: {records} records");
    assert_eq!(records, sources as usize);
    assert!(gate.process.stdout.all().len() + gate.process.stderr.all().len() <= 20_000.min(2 * sources as usize));
    let told = ["connections", "denied", "recorded"].map(|key| summed(&gate, key));
    println!("{}", gate.process.stderr.text());
    assert_eq!(told[0], told[1]);
    assert!(told[0] >= all - first && told[0] <= all, "{told:?}");
    let summary = gate.process.messages().into_iter().find(|one| one["message"] == "turned away").unwrap();
    assert!(word(&summary, "rules").starts_with("bad "), "{summary}");
    let busiest = word(&summary, "busiest");
    assert!(busiest.starts_with("127.64.") && busiest.contains(" denied "), "{summary}");
    // The log can be judged again.
    let log: Vec<_> = gate.records().iter().map(|record| format!("{record}\n")).collect();
    std::fs::write(gate.directory.path().join("access.log"), log.concat()).unwrap();
    let config = std::fs::read_to_string(gate.directory.path().join("sluicegate.toml")).unwrap();
    std::fs::write(gate.directory.path().join("new.toml"), config.replace("127.64.0.0/16", "127.64.0.0/32")).unwrap();
    let arguments = ["firewall", "replay", "access.log", "--config", "new.toml"];
    let replayed = Process::run(&arguments, gate.directory.path(), SOON);
    assert!(
        replayed.stdout.contains(&format!("newly denied: 0, newly allowed: {}", records - 1)),
        "{}",
        replayed.stdout
    );
    gate.ended();
}

#[test]
fn f7_a_full_listener_is_told_too_and_without_a_log_the_summary_alone() {
    for access in ["stdout", "off"] {
        let backend = Backend::echo();
        let log = format!("[log]\naccess = \"{access}\"\n");
        let mut gate =
            Gate::start(&[&*tcp("max_connections = 1"), &pool("", &[backend.address]), log.as_str()].concat());
        let mut held = connect(gate.address("tcp"));
        crate::support::client::exchange(&mut held, b"hello");
        for _ in 0..5 {
            drop(read_all(&mut connect(gate.address("tcp"))));
        }
        gate.wait_outcome("max_connections", 5);
        drop(held);
        stop(&mut gate);
        let records = usize::from(access == "stdout");
        assert_eq!(rejected(&gate, "max_connections").len(), records);
        assert_eq!(["max_connections", "denied", "recorded"].map(|key| summed(&gate, key)), [5, 0, records as u64]);
        gate.ended();
    }
}

/// Which source it was, and at which limit, has to be known without a log too.
#[test]
fn f7_without_a_log_the_summary_names_who_was_limited_and_by_what() {
    let backend = Backend::greeting(b"hi");
    let rest = "[log]\naccess = \"off\"\n[firewall.limits]\nconnections = 1\n";
    let mut gate = Gate::start(&[&*tcp(""), &pool("", &[backend.address]), rest].concat());
    let mut held = connect_from(source(9), gate.address("tcp"));
    held.read_exact(&mut [0; 2]).unwrap();
    for _ in 0..3 {
        let stream = try_connect_from(source(9), gate.address("tcp"));
        assert!(stream.is_none_or(|mut stream| stream.read(&mut [0]).is_err()), "reset");
    }
    gate.wait_outcome("limited", 3);
    drop(held);
    stop(&mut gate);
    let told: Vec<_> = gate.process.messages().into_iter().filter(|one| one["message"] == "turned away").collect();
    let said = |key| told.iter().map(|one| word(one, key)).collect::<Vec<_>>();
    assert_eq!((said("busiest"), said("limits")), (vec!["127.64.0.9 limited 3".into()], vec!["connections 3".into()]));
    assert_eq!(summed(&gate, "limited"), 3);
    gate.ended();
}

/// The sources are those of the limits, also those that a reload brings.
#[test]
fn f8_a_network_that_is_one_source_has_one_record() {
    const CLIENTS: u32 = 8;
    let backend = Backend::named("welcome");
    let rest =
        "[firewall]\nrules = [{ name = \"bad\", deny = \"127.64.0.0/16\" }]\n[firewall.limits]\nipv4_prefix = 24\n";
    let toml = [&*tcp(""), &pool("", &[backend.address]), rest].concat();
    let gate = Gate::plan(&toml).admin("socket = \"admin.sock\"").global("watch = false").start();
    let records = |expected: u32| {
        wait_until(SOON, "the records", || rejected(&gate, "denied").len() == expected as usize);
    };
    visit_all(&gate, CLIENTS);
    gate.wait_outcome("denied", CLIENTS.into());
    records(1);
    let path = gate.directory.path().join("sluicegate.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("ipv4_prefix = 24", "ipv4_prefix = 32")).unwrap();
    let ended = Process::run(&["reload", "--config", "sluicegate.toml"], gate.directory.path(), SOON);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    visit_all(&gate, CLIENTS);
    gate.wait_outcome("denied", (2 * CLIENTS).into());
    records(1 + CLIENTS);
    gate.finish();
}
