//! Reload and plan: the configuration of a running process is replaced as a whole, or not at all.

mod knowledge;
mod listeners;
mod lists;
mod load;
mod passed;
mod plan;
mod refused;
mod verdicts;
mod watch;

use std::{net::SocketAddr, path::PathBuf};

use serde_json::Value;

use crate::support::{
    Backend, Gate, LATE, Process,
    gate::{Plan, tcp},
    process::Ended,
};

/// A gate with an admin socket, that reloads when it is told to.
fn plan(toml: &str) -> Plan {
    Gate::plan(toml).admin("socket = \"admin.sock\"").global("watch = false")
}

fn start(toml: &str) -> Gate {
    plan(toml).start()
}

/// A plain listener `tcp` in front of named backends.
fn site(backends: &[(&str, &Backend)]) -> String {
    let named = backends.iter().map(|(name, backend)| member(name, backend.address));
    tcp("") + "[pool.web]\n" + &named.collect::<String>()
}

fn member(name: &str, address: SocketAddr) -> String {
    crate::support::gate::backend(name, address, "")
}

fn path(gate: &Gate) -> PathBuf {
    gate.directory.path().join("sluicegate.toml")
}

/// Changes the configuration file; something has to change.
#[track_caller]
fn edit(gate: &Gate, from: &str, to: &str) {
    let text = std::fs::read_to_string(path(gate)).unwrap();
    assert!(text.contains(from), "no `{from}` in\n{text}");
    std::fs::write(path(gate), text.replace(from, to)).unwrap();
}

fn append(gate: &Gate, more: &str) {
    let text = std::fs::read_to_string(path(gate)).unwrap();
    std::fs::write(path(gate), text + more).unwrap();
}

fn run(gate: &Gate, words: &[&str]) -> Ended {
    Process::run(&[words, &["--config", "sluicegate.toml"]].concat(), gate.directory.path(), LATE)
}

/// A reload that is applied; what it says.
#[track_caller]
fn reload(gate: &Gate) -> String {
    let ended = run(gate, &["reload"]);
    assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
    ended.stdout
}

/// A reload that is refused; what it says.
#[track_caller]
fn refused(gate: &Gate) -> String {
    let ended = run(gate, &["reload"]);
    assert_eq!(ended.code, Some(3), "{}{}", ended.stdout, ended.stderr);
    ended.stderr
}

#[track_caller]
fn json(gate: &Gate, words: &[&str]) -> Value {
    let ended = run(gate, &[words, &["--json"]].concat());
    serde_json::from_str(&ended.stdout).unwrap_or_else(|error| panic!("{error}: {}{}", ended.stdout, ended.stderr))
}

fn reloads(gate: &Gate, result: &str) -> u64 {
    gate.metrics().count("sluicegate_config_reloads_total", &[("result", result)])
}

/// The addresses of a listener as they are now.
fn addresses(gate: &Gate, listener: &str) -> Vec<SocketAddr> {
    let status = json(gate, &["status"]);
    let listeners = status["listeners"].as_array().unwrap();
    let found = listeners.iter().find(|one| one["name"] == listener).map(|one| one["addresses"].as_array().unwrap());
    found.into_iter().flatten().map(|address| address.as_str().unwrap().parse().unwrap()).collect()
}

/// How often something is done: a shorter run unless `SLUICEGATE_FULL=1`.
fn times(short: usize, full: usize) -> usize {
    if crate::health::full() { full } else { short }
}

fn messages(gate: &Gate, message: &str) -> Vec<Value> {
    gate.process.messages().into_iter().filter(|one| one["message"] == message).collect()
}
