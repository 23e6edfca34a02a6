//! What is done about sources of clients: limits, bans, and what becomes of others meanwhile.

mod automatic;
mod bans;
mod limits;
mod storm;

use std::{
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
};

use serde_json::Value;

use crate::support::{
    Backend, Gate, LATE, Metrics, Process,
    client::{self, try_connect_from},
    gate::{Plan, pool, tcp},
    process::Ended,
    tags::End,
    wait_until,
};

/// A plain listener in front of one backend, with an admin socket; `firewall` is the rest of the configuration.
fn plan(backend: &Backend, firewall: &str) -> Plan {
    let toml = [&tcp(""), &pool("", &[backend.address]), firewall].concat();
    Gate::plan(&toml).admin("socket = \"admin.sock\"").global("watch = false")
}

fn source(last: u8) -> IpAddr {
    Ipv4Addr::new(127, 0, 0, last).into()
}

/// Opens this many from one source, one after the other: those that are served, and how many were reset. The backend speaks
/// first.
#[track_caller]
fn open(from: IpAddr, to: SocketAddr, count: usize) -> (Vec<TcpStream>, usize) {
    let (mut served, mut reset) = (Vec::new(), 0);
    for _ in 0..count {
        let Some(mut stream) = try_connect_from(from, to) else {
            reset += 1;
            continue;
        };
        match stream.read_exact(&mut [0; 2]) {
            Ok(()) => served.push(stream),
            Err(error) => {
                assert_eq!(End::of(&error), End::Reset, "who is over the limit is reset: {error}");
                reset += 1;
            }
        }
    }
    (served, reset)
}

/// Whether a client of this source is served. Who is banned gets no byte and a close.
#[track_caller]
fn is_served(from: IpAddr, to: SocketAddr) -> bool {
    let Some(mut stream) = try_connect_from(from, to) else { return false };
    match stream.read_exact(&mut [0; 2]) {
        Ok(()) => true,
        Err(error) => {
            assert!(matches!(error.kind(), ErrorKind::UnexpectedEof | ErrorKind::ConnectionReset), "{error}");
            false
        }
    }
}

fn limited(metrics: &Metrics, reason: &str) -> u64 {
    metrics.count("sluicegate_limited_connections_total", &[("reason", reason)])
}

fn bans(metrics: &Metrics, kind: &str) -> u64 {
    metrics.count("sluicegate_bans_in_force", &[("kind", kind)])
}

fn run(gate: &Gate, words: &[&str]) -> Ended {
    Process::run(&[words, &["--config", "sluicegate.toml"]].concat(), gate.directory.path(), LATE)
}

/// What a verb says that does its work.
#[track_caller]
fn text(gate: &Gate, words: &[&str]) -> String {
    let ended = run(gate, words);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{words:?}: {}", ended.stdout);
    ended.stdout
}

#[track_caller]
fn json(gate: &Gate, words: &[&str]) -> Value {
    serde_json::from_str(&text(gate, &[words, &["--json"]].concat())).unwrap()
}

#[track_caller]
fn edit(gate: &Gate, from: &str, to: &str) {
    let path = gate.directory.path().join("sluicegate.toml");
    let written = std::fs::read_to_string(&path).unwrap();
    assert!(written.contains(from), "no `{from}` in\n{written}");
    std::fs::write(&path, written.replace(from, to)).unwrap();
}

/// Until nobody is connected any more.
#[track_caller]
fn wait_empty(gate: &Gate) {
    wait_until(LATE, "an empty gate", || gate.metrics().count("sluicegate_listener_connections", &[]) == 0);
}

/// Sends something to an echo and gets it back.
fn is_alive(stream: &mut TcpStream) {
    client::exchange(stream, b"still here");
}
