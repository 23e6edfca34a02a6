//! `firewall replay`: the log of a process, judged by another configuration.

use std::{fs, io::Write, net::IpAddr, path::Path};

use rustix::fs::{CWD, FileType, Mode, mknodat};
use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Backend, Gate, LATE, Process, client,
    gate::{pool, tcp},
    process::Ended,
};

const LISTENER: &str = "[listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"p\"\n[pool.p]\nbackends = \"127.0.0.1:1\"\n";

fn site(firewall: &str) -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("new.toml"), format!("[firewall]\n{firewall}\n{LISTENER}")).unwrap();
    directory
}

fn replay(directory: &Path, more: &[&str]) -> Ended {
    Process::run(&[&["firewall", "replay", "--config", "new.toml"], more].concat(), directory, LATE)
}

fn json(directory: &Path, more: &[&str]) -> Value {
    let ended = replay(directory, &[&["--json"], more].concat());
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stdout))
}

fn record(client: &str, outcome: &str) -> String {
    format!("{{\"event\":\"connection\",\"listener\":\"tcp\",\"client\":\"{client}\",\"outcome\":\"{outcome}\"}}\n")
}

/// Both formats as the process itself writes them.
#[test]
fn a_log_of_ours_is_judged_by_another_configuration() {
    let backend = Backend::named("welcome");
    for format in ["json", "text"] {
        let log = format!("[log]\naccess = \"./access.log\"\nformat = \"{format}\"\n");
        let mut gate = Gate::start(&[&tcp(""), &pool("", &[backend.address]), log.as_str()].concat());
        for last in [1, 1, 1, 2, 3] {
            let source: IpAddr = std::net::Ipv4Addr::new(127, 0, 0, last).into();
            client::read_all(&mut client::connect_from(source, gate.address("tcp")));
        }
        gate.stop_now();
        let rules = "rules = [\n{ name = \"try\", deny = \"127.0.0.3\", shadow = true },\n\
            { name = \"two\", deny = [\"127.0.0.1\", \"127.0.0.2\"] } ]";
        let new = format!("[firewall]\n{rules}\n{LISTENER}");
        fs::write(gate.directory.path().join("new.toml"), new).unwrap();
        let told = json(gate.directory.path(), &["access.log"]);
        let counts = ["connections", "denied_before", "denied", "newly_denied", "newly_allowed", "bad_lines"];
        assert_eq!(counts.map(|key| told[key].as_u64()), [5, 0, 4, 4, 0, 0].map(Some), "{format}: {told}");
        let rules = told["rules"].as_array().unwrap();
        let rules: Vec<_> = rules.iter().map(|rule| (&rule["rule"], rule["connections"].as_u64().unwrap())).collect();
        assert_eq!(rules, [(&"try".into(), 1), (&"two".into(), 4), (&"default".into(), 1)]);
        assert_eq!(told["newly_denied_sources"]["first"][0]["client"], "127.0.0.1");
        assert_eq!(told["newly_denied_sources"]["first"][0]["connections"], 3);
    }
}

#[test]
fn text_tells_what_would_change_and_what_could_not_be_read() {
    let directory =
        site("default = \"deny\"\nrules = [ { name = \"in\", allow = [\"10.0.0.0/8\", \"2001:db8::/32\"] } ]");
    let mut log = record("10.0.0.1:1", "client_closed") + &record("192.0.2.7:2", "denied");
    log += &(record("192.0.2.8:3", "client_closed").repeat(2) + "cut{\n" + &record("[2001:db8::1]:4", "denied"));
    log += &(record("[::ffff:10.9.9.9]:4", "denied") + &record("10.0.0.1:1", "x").replace("tcp", "old"));
    log += "{\"message\":\"ready\"}\n{\"event\":\"connection\",\"listen";
    fs::write(directory.path().join("log"), log).unwrap();
    let ended = replay(directory.path(), &["log"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let told = "\
10 lines: 6 connections, 1 other line, 2 bad lines (the first is line 5: it is no record of the access log)
before: 3 allowed, 3 denied
by the configuration: 3 allowed, 3 denied
newly denied: 2, newly allowed: 2
note: 1 connection of listener `old`, which is not configured: not judged

rule     action  connections  newly denied  newly allowed
in       allow   3            0             2
default  deny    3            2             0

newly denied, in the order of the log:
  192.0.2.8  2 connections  rule `default` at listener `tcp`

newly allowed, in the order of the log:
  2001:db8::1  1 connection  rule `in` at listener `tcp`
  10.9.9.9     1 connection  rule `in` at listener `tcp`";
    assert_eq!(ended.stdout, told);
}

#[test]
fn what_is_no_log_is_refused() {
    let directory = site("");
    fs::write(directory.path().join("nonsense"), "a\nb\n").unwrap();
    fs::write(directory.path().join("binary"), b"\xff\x00\xfe".repeat(1_000_000)).unwrap();
    fs::write(directory.path().join("empty"), "").unwrap();
    for (log, code, told) in [
        ("nonsense", 1, "no access log of sluicegate: line 1"),
        ("binary", 1, "longer than any record"),
        ("none", 1, "cannot open `none`"),
        (".", 1, "cannot read `.`"),
        ("empty", 0, ""),
    ] {
        let ended = replay(directory.path(), &[log]);
        assert_eq!(ended.code, Some(code), "{log}: {}", ended.stderr);
        assert!(ended.stderr.contains(told), "{log}: {}", ended.stderr);
    }
    let ended = Process::run(&["firewall", "replay", "--config", "new.toml"], directory.path(), LATE);
    assert_eq!(ended.code, Some(64), "{}", ended.stderr);
}

/// A log far larger than the memory it may take, through a FIFO, with more sources than are named.
#[test]
fn a_log_is_read_in_bounded_memory() {
    let megabytes = if std::env::var_os("SLUICEGATE_FULL").is_some() { 1024 } else { 48 };
    let directory = site("rules = [ { name = \"half\", deny = \"0.0.0.0/1\" } ]");
    let fifo = directory.path().join("log");
    mknodat(CWD, &fifo, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).unwrap();
    let words = ["firewall", "replay", "--config", "new.toml", "--json", "--sources", "5", "log"];
    let process = Process::start(&words, directory.path());
    let mut feeder = fs::OpenOptions::new().write(true).open(&fifo).unwrap();
    let (mut sent, mut bytes, mut memory) = (0_u32, 0, 0);
    let pad = "x".repeat(300);
    while bytes < megabytes << 20 {
        let mut chunk = String::new();
        for _ in 0..2000 {
            let client = std::net::Ipv4Addr::from_bits(sent.wrapping_mul(0x9e37_79b9));
            chunk +=
                &record(&format!("{client}:1"), "client_closed").replace("}\n", &format!(",\"sni\":\"{pad}\"}}\n"));
            sent += 1;
        }
        feeder.write_all(chunk.as_bytes()).unwrap();
        bytes += chunk.len();
        if sent == 20_000 {
            memory = process.memory();
        }
    }
    let grown = process.memory().saturating_sub(memory);
    drop(feeder);
    let ended = process.ended(LATE);
    let told: Value = serde_json::from_str(&ended.stdout).unwrap_or_else(|_| panic!("{}", ended.stderr));
    assert_eq!(told["connections"], sent);
    let (denied, sources) = (told["newly_denied"].as_u64().unwrap(), &told["newly_denied_sources"]);
    assert_eq!(sources["first"].as_array().unwrap().len(), 5);
    assert_eq!(sources["other_connections"].as_u64(), Some(denied - 5), "each source comes once");
    println!("{sent} records, {} MiB: grown by {grown} bytes behind the first 20,000", bytes >> 20);
    assert!(grown < 1 << 20, "grown by {grown} bytes");
}
