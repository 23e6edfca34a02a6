//! Bans of an operator: in force at once, for as long as is said, and over reloads, upgrades and restarts.

use std::{
    fmt::Write as _,
    time::{Duration, Instant},
};

use super::{bans, edit, is_alive, is_served, json, open, plan, run, source, text, wait_empty};
use crate::support::{
    Backend, Gate, LATE, Lineage, Process, SOON,
    client::{connect_from, read_all},
    gate::{Plan, pool, tcp, word},
    patient, wait_until,
};

const FILE: &str = "[firewall]\nbans_file = \"bans.jsonl\"\n";

fn denied(gate: &Gate) -> u64 {
    gate.metrics().count("sluicegate_firewall_connections_total", &[("rule", "ban"), ("action", "deny")])
}

fn saved(gate: &Gate) -> String {
    std::fs::read_to_string(gate.directory.path().join("bans.jsonl")).unwrap()
}

/// Starts again in the same folder.
#[track_caller]
fn restart(mut gate: Gate) -> Gate {
    gate.wait_quiet();
    gate.process.stop();
    let directory = std::mem::replace(&mut gate.directory, tempfile::TempDir::new().unwrap());
    gate.ended();
    let process = Process::start(&["run", "--config", "sluicegate.toml"], directory.path());
    Gate::over(process, directory, LATE)
}

fn line(network: &str, until: &str) -> String {
    format!("{{\"network\":\"{network}\",\"kind\":\"manual\",\"since\":\"2026-01-01T00:00:00Z\",\"until\":{until}}}\n")
}

#[test]
fn who_is_banned_gets_no_byte_until_the_ban_is_ended() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "[firewall]\nrules = [{ name = \"all\", allow = \"127.0.0.0/8\" }]\n").start();
    let address = gate.address("tcp");
    assert_eq!((denied(&gate), bans(&gate.metrics(), "manual")), (0, 0), "there from the start");
    assert_eq!(text(&gate, &["bans"]).trim(), "nobody is banned");
    let (held, _) = open(source(9), address, 1);
    let said = text(&gate, &["ban", "127.0.0.9", "--for", "1h", "--reason", "it \u{1b}[31m knocks"]);
    assert!(said.starts_with("127.0.0.9/32 is banned until 20"), "{said}");
    assert!(text(&gate, &["ban", "127.0.0.16/28", "2001:db8::/32"]).starts_with("2 networks are banned until it is"));
    assert_eq!([9, 16, 31, 10, 32].map(|last| is_served(source(last), address)), [false, false, false, true, true]);
    assert_eq!((denied(&gate), bans(&gate.metrics(), "manual")), (3, 3));
    gate.wait_outcome("denied", 3);
    assert_eq!(gate.metrics().count("sluicegate_bans_total", &[("kind", "manual")]), 3);
    assert_eq!(backend.accepted(), 3, "who is banned touches no backend");
    let list = json(&gate, &["bans"]);
    let first = &list["bans"][0];
    assert_eq!((&*word(first, "network"), &*word(first, "kind")), ("127.0.0.9/32", "manual"));
    assert!(first["seconds_left"].as_f64().is_some_and(|left| (3_500.0..=3_600.0).contains(&left)), "{first}");
    let table = text(&gate, &["bans"]);
    assert!(table.starts_with("NETWORK ") && table.contains("it \\u{1b}[31m knocks"), "{table}");
    for (words, code, reason) in [
        (&["unban", "127.0.0.17"][..], 1, "127.0.0.17/32 is not banned; 127.0.0.16/28 around it is"),
        (&["unban", "127.0.0.9", "127.0.0.200"], 1, "127.0.0.200/32 is not banned"),
        (&["ban", "127.0.0.5/8"], 1, "bits are set beyond the prefix"),
        (&["ban", "example.com"], 1, "`example.com` is no address"),
        (&["ban", "127.0.0.5", "--for", "5"], 64, "30m"),
        (&["ban", "127.0.0.5", "--for", "0s"], 64, "longer than zero"),
        (&["ban"], 64, "required"),
        (&["unban"], 64, "required"),
    ] {
        let ended = run(&gate, words);
        assert_eq!(ended.code, Some(code), "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{words:?}: {}", ended.stderr);
    }
    assert_eq!(text(&gate, &["unban", "127.0.0.9"]).trim(), "127.0.0.9/32 is not banned any more");
    assert!(is_served(source(9), address) && !is_served(source(16), address));
    text(&gate, &["unban", "--all"]);
    assert!(is_served(source(16), address));
    let audit = |what: &str| gate.process.messages().into_iter().filter(|m| m["message"] == what).count();
    assert_eq!((audit("operator: banned"), audit("operator: ban ended")), (2, 2));
    drop(held);
    gate.finish();
}

#[test]
fn live_connections_stay_unless_they_are_killed() {
    let backend = Backend::echo();
    let gate = plan(&backend, "").start();
    let address = gate.address("tcp");
    let [mut one, mut two, mut other] = [9, 9, 10].map(|last| connect_from(source(last), address));
    for stream in [&mut one, &mut two, &mut other] {
        is_alive(stream);
    }
    text(&gate, &["ban", "127.0.0.9"]);
    is_alive(&mut one);
    let said = text(&gate, &["ban", "127.0.0.8/31", "--kill", "--for", "1h"]);
    assert!(said.contains("; 2 connections ended"), "{said}");
    assert_eq!((read_all(&mut one).0.len(), read_all(&mut two).0.len()), (0, 0));
    is_alive(&mut other);
    drop((one, two, other));
    gate.wait_outcome("killed", 2);
    gate.finish();
}

#[test]
fn a_ban_ends_by_itself() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, FILE).start();
    let address = gate.address("tcp");
    text(&gate, &["ban", "127.0.0.9"]);
    let begin = Instant::now();
    text(&gate, &["ban", "127.0.0.0/24", "--for", "700ms"]);
    // A busy host may be late for this.
    if !is_served(source(10), address) {
        wait_until(SOON, "the end of the ban", || is_served(source(10), address));
        assert!(begin.elapsed() >= Duration::from_millis(600), "{:?}", begin.elapsed());
    }
    assert!(!is_served(source(9), address), "the other one lasts");
    let list = json(&gate, &["bans"]);
    assert_eq!(list["bans"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(bans(&gate.metrics(), "manual"), 1);
    gate.finish();
}

#[test]
fn what_is_large_or_exempt_is_banned_only_by_who_insists() {
    let backend = Backend::greeting(b"hi");
    let limits = "[firewall.limits]\nconnections = 50\nexempt = [\"127.0.0.32/28\"]\n";
    let gate = plan(&backend, limits).start();
    for (network, reason) in [
        ("0.0.0.0/0", "large part of the internet"),
        ("::/0", "large part of the internet"),
        ("126.0.0.0/7", "large part of the internet"),
        ("127.0.0.40", "127.0.0.40/32 meets 127.0.0.32/28, which is `exempt`"),
        ("127.0.0.0/24", "which is `exempt`"),
    ] {
        let ended = run(&gate, &["ban", network]);
        assert_eq!(ended.code, Some(3), "{network}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason) && ended.stderr.contains("--force"), "{network}: {}", ended.stderr);
    }
    assert!(is_served(source(40), gate.address("tcp")));
    text(&gate, &["ban", "0.0.0.0/0", "--force"]);
    assert!(!is_served(source(40), gate.address("tcp")));
    text(&gate, &["unban", "0.0.0.0/0"]);
    wait_empty(&gate);
    gate.finish();
}

#[test]
fn l6_bans_survive_reload_and_restart() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "").start();
    let said = text(&gate, &["ban", "127.0.0.9"]);
    assert!(said.contains("or the process ends"), "{said}");
    // A file that is named later gets what is in force, and what it says comes into force.
    std::fs::write(gate.directory.path().join("bans.jsonl"), line("127.0.0.11", "null")).unwrap();
    edit(&gate, "[pool.web]", &format!("{FILE}[pool.web]"));
    assert!(text(&gate, &["reload"]).contains("section [firewall]: bans_file"));
    wait_until(SOON, "a file with both", || saved(&gate).contains("127.0.0.9/32"));
    assert_eq!([9, 11, 10].map(|last| is_served(source(last), gate.address("tcp"))), [false, false, true]);
    text(&gate, &["ban", "127.0.0.12", "--for", "1h", "--reason", "three"]);
    text(&gate, &["unban", "127.0.0.11"]);
    // The file is the process's own: what somebody writes there while it runs is nobody's ban.
    assert_eq!(saved(&gate).lines().count(), 3, "{}", saved(&gate));
    let gate = restart(gate);
    assert_eq!([9, 11, 12].map(|last| is_served(source(last), gate.address("tcp"))), [false, true, false]);
    let list = json(&gate, &["bans"]);
    assert_eq!(word(&list["bans"][1], "reason"), "three");
    assert!(list["bans"][1]["seconds_left"].as_f64().is_some_and(|left| (3_500.0..=3_601.0).contains(&left)));
    assert_eq!(list["bans"][0]["until"], serde_json::Value::Null);
    gate.finish();
}

#[test]
fn l6_bans_survive_an_upgrade_and_counters_do_not_fall() {
    let backend = Backend::greeting(b"hi");
    let toml = [&tcp(""), &*pool("", &[backend.address]), "[timeouts]\ndrain = \"8s\"\n"].concat();
    let mut lineage = Lineage::start(Gate::plan(&toml));
    let verb = |lineage: &Lineage, words: &[&str]| {
        let ended = Process::run(&[words, &["--socket", "admin.sock"]].concat(), lineage.directory(), SOON);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    verb(&lineage, &["ban", "127.0.0.9", "--for", "1h"]);
    verb(&lineage, &["ban", "127.0.0.10"]);
    for _ in 0..2 {
        lineage.upgrade();
        let address = lineage.gate.address("tcp");
        assert_eq!([9, 10, 11].map(|last| is_served(source(last), address)), [false, false, true]);
        lineage.wait_alone(SOON);
    }
    assert_eq!(lineage.gate.metrics().count("sluicegate_bans_total", &[("kind", "manual")]), 2);
    assert_eq!(bans(&lineage.gate.metrics(), "manual"), 2);
    verb(&lineage, &["unban", "--all"]);
    assert!(is_served(source(9), lineage.gate.address("tcp")));
    lineage.finish();
}

/// Starts with this file.
fn with_file(backend: &Backend, content: &str) -> Plan {
    plan(backend, FILE).file("bans.jsonl", content)
}

#[test]
fn a_damaged_file_of_bans_is_refused_with_its_line() {
    let backend = Backend::greeting(b"hi");
    let good = line("127.0.0.9", "null");
    for bad in ["127.0.0.1\n", &line("127.0.0.1/8", "null"), &line("127.0.0.1", "\"soon\""), &good[..50]] {
        let plan = with_file(&backend, &format!("# mine\n\n{good}{bad}"));
        plan.write();
        for verb in ["check", "run"] {
            let ended = Process::run(&[verb, "--config", "sluicegate.toml"], plan.path(), SOON);
            assert_eq!(ended.code, Some(1), "{verb} {bad}: {}", ended.stderr);
            assert!(ended.stderr.contains("E130") && ended.stderr.contains("bans.jsonl:4:1"), "{}", ended.stderr);
        }
    }
    let plan = with_file(&backend, "");
    plan.write();
    std::fs::remove_file(plan.path().join("bans.jsonl")).unwrap();
    std::fs::create_dir(plan.path().join("bans.jsonl")).unwrap();
    let ended = Process::run(&["check", "--config", "sluicegate.toml"], plan.path(), SOON);
    assert!(ended.code == Some(1) && ended.stderr.contains("it is a directory"), "{}", ended.stderr);
}

#[test]
fn bans_that_are_over_are_not_taken_from_the_file() {
    let backend = Backend::greeting(b"hi");
    let lines = [line("127.0.0.9", "\"2026-01-02T00:00:00Z\""), line("127.0.0.10", "\"2999-01-01T00:00:00+01:00\"")];
    let gate = with_file(&backend, &lines.concat()).start();
    assert_eq!([9, 10].map(|last| is_served(source(last), gate.address("tcp"))), [true, false]);
    assert_eq!(bans(&gate.metrics(), "manual"), 1);
    gate.finish();
}

#[test]
fn a_file_that_cannot_be_written_is_told_and_the_ban_holds() {
    let backend = Backend::greeting(b"hi");
    let gate = plan(&backend, "[firewall]\nbans_file = \"gone/bans.jsonl\"\n").start();
    let said = text(&gate, &["ban", "127.0.0.9"]);
    assert!(said.contains("but a restart does not know it: cannot write"), "{said}");
    assert!(!is_served(source(9), gate.address("tcp")));
    gate.finish();
}

/// F6: a hundred thousand bans, and one more is no work to speak of.
#[test]
fn f6_a_hundred_thousand_bans_are_fine() {
    const BANS: u32 = 100_000;
    let backend = Backend::greeting(b"hi");
    let mut lines = String::new();
    for number in 0..BANS {
        let network = std::net::Ipv4Addr::from_bits(0x0a00_0000 + number * 5);
        write!(lines, "{}", line(&network.to_string(), "\"2999-01-01T00:00:00Z\"")).unwrap();
    }
    let gate = with_file(&backend, &lines).deadline(LATE).start();
    assert_eq!(bans(&gate.metrics(), "manual"), u64::from(BANS));
    let begin = Instant::now();
    text(&gate, &["ban", "127.0.0.9"]);
    println!("one more than {BANS}: {:?}, with the file of {} bytes", begin.elapsed(), lines.len());
    assert!(begin.elapsed() < patient(Duration::from_secs(10)), "{:?}", begin.elapsed());
    assert!(!is_served(source(9), gate.address("tcp")) && is_served(source(10), gate.address("tcp")));
    assert_eq!(saved(&gate).lines().count(), BANS as usize + 2);
    gate.finish();
}
