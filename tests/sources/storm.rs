//! S16: one address opens ten thousand connections, and nobody else notices.

use std::{io::ErrorKind, net::TcpStream, time::Instant};

use super::{limited, source};
use crate::support::{
    Gate, Load, SOON, WebServer,
    client::try_connect_from,
    gate::{pool, tcp},
    load::faults,
    raise_descriptor_limit, turn, wait_until,
};

const ATTEMPTS: usize = 10_000;
const LIMIT: usize = 100;
const BATCH: usize = 200;

/// What has not been ended yet.
fn alive(streams: Vec<TcpStream>) -> Vec<TcpStream> {
    let waits = |stream: &TcpStream| {
        stream.set_nonblocking(true).unwrap();
        matches!(stream.peek(&mut [0]), Err(error) if error.kind() == ErrorKind::WouldBlock)
    };
    streams.into_iter().filter(waits).collect()
}

#[test]
fn s16_one_address_opens_ten_thousand_connections_and_no_other_fails() {
    let _turn = turn();
    raise_descriptor_limit();
    let Some(server) = WebServer::start() else { return };
    let limits = format!("[firewall.limits]\nconnections = {LIMIT}\n[log]\naccess = \"off\"\n");
    let gate = Gate::start(&[tcp(""), pool("", &[server.address]), limits].concat());
    let address = gate.address("tcp");
    let load = Load::start(address, 200, 20);
    wait_until(SOON, "some load", || load.count() > 50);
    let (mut held, begin, before) = (Vec::new(), Instant::now(), gate.metrics());
    let ended = |m: &crate::support::Metrics| m.outcome("limited") - before.outcome("limited");
    for batch in 0..ATTEMPTS / BATCH {
        held.extend((0..BATCH).filter_map(|_| try_connect_from(source(66), address)));
        let refused = (batch + 1) * BATCH - LIMIT;
        gate.wait_metrics("a verdict about everyone", |m| ended(m) >= refused as u64);
        held = alive(held);
        assert_eq!(held.len(), LIMIT, "after {} attempts", (batch + 1) * BATCH);
    }
    let took = begin.elapsed();
    let visits = load.finish();
    let (failed, during) = (faults(&visits), visits.iter().filter(|visit| visit.begun >= begin).count());
    println!("S16: {ATTEMPTS} in {took:?}: {LIMIT} served; {} of {during} visits of others failed", failed.len());
    assert!(failed.is_empty(), "{failed:?}");
    assert!(during > 50, "{during}: too few to tell");
    let metrics = gate.metrics();
    assert_eq!(limited(&metrics, "connections"), (ATTEMPTS - LIMIT) as u64);
    drop(held);
    gate.finish();
}
