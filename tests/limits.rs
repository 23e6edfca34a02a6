//! Limits are of the process: exact over two workers.

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
};

use crate::support::{
    Backend, Gate, Process, SOON, Variant, client,
    gate::{pool, tcp},
    tags::End,
    wait_until,
};

/// Opens this many, one after the other: those that are served, and how many were reset.
fn open(address: SocketAddr, count: usize) -> (Vec<TcpStream>, usize) {
    let mut reset = 0;
    let mut served = Vec::new();
    for _ in 0..count {
        let mut stream = client::connect(address);
        let mut greeting = [0; 2];
        match stream.read_exact(&mut greeting) {
            Ok(()) => served.push(stream),
            Err(error) => {
                assert_eq!(End::of(&error), End::Reset, "the newest is reset: {error}");
                reset += 1;
            }
        }
    }
    (served, reset)
}

fn the_listener_limit_is_exact(variant: Variant) {
    let backend = Backend::greeting(b"hi");
    let gate = Gate::plan(&(tcp("max_connections = 10") + &pool("", &[backend.address]))).variant(variant).start();
    let (mut served, reset) = open(gate.address("tcp"), 25);
    assert_eq!((served.len(), reset), (10, 15));
    let metrics = gate.wait_outcome("max_connections", 15);
    assert_eq!(metrics.count("sluicegate_listener_connections", &[("listener", "tcp")]), 10);
    assert_eq!(metrics.count("sluicegate_listener_connections_limit", &[("listener", "tcp")]), 10);
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[("listener", "tcp")]), 25);
    for stream in &mut served {
        client::exchange(stream, b"not disturbed");
    }
    served.truncate(7);
    gate.wait_metrics("three places", |m| m.count("sluicegate_listener_connections", &[]) == 7);
    let (more, reset) = open(gate.address("tcp"), 5);
    assert_eq!((more.len(), reset), (3, 2));
    assert_eq!(backend.accepted(), 13, "who is over the limit touches no backend");
    drop((served, more));
    gate.finish();
}

#[test]
fn a3_f9_a_listeners_limit_is_exact_over_two_workers() {
    the_listener_limit_is_exact(Variant::chosen());
}

#[test]
fn a3_f9_a_listeners_limit_is_exact_over_one_shared_socket() {
    the_listener_limit_is_exact(Variant::SHARED_SOCKET);
}

#[test]
fn a3_the_limit_of_the_process_counts_every_listener() {
    let backend = Backend::greeting(b"hi");
    let second = "[listener.other]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n";
    let toml = [&tcp(""), second, &pool("", &[backend.address])].concat();
    let gate = Gate::plan(&toml).global("max_connections = 8").start();
    let (first, none) = open(gate.address("tcp"), 5);
    let (second, reset) = open(gate.address("other"), 9);
    assert_eq!((first.len(), none, second.len(), reset), (5, 0, 3, 6));
    let metrics = gate.wait_outcome("max_connections", 6);
    assert_eq!(metrics.count("sluicegate_connections_closed_total", &[("listener", "other")]), 6);
    drop((first, second));
    gate.finish();
}

/// What `run` would refuse on this host, `check` refuses too.
#[test]
fn a3_l4_more_connections_than_descriptors_allow_are_refused_by_check_and_run() {
    let backends = pool("", &["127.0.0.1:1".parse().unwrap()]);
    let plan = Gate::plan(&(tcp("") + &backends)).global("max_connections = 1000");
    plan.write();
    for arguments in [&["check"][..], &["run"], &["check", "--json"]] {
        let arguments = [arguments, &["--config", "sluicegate.toml"]].concat();
        let refused = Process::start_after("ulimit -n 1000", &arguments, plan.path()).ended(SOON);
        assert_eq!(refused.code, Some(1), "{arguments:?}: {}{}", refused.stdout, refused.stderr);
        let said = refused.stdout + &refused.stderr;
        assert!(said.contains("E109") && said.contains("1000 descriptors allow"), "{arguments:?}: {said}");
    }
    let enough = Process::start_after("ulimit -n 4000", &["check", "--config", "sluicegate.toml"], plan.path());
    assert_eq!(enough.ended(SOON).code, Some(0));
}

/// Clients that come and go while the limit holds never make it leak a place.
#[test]
fn f10_a_limit_does_not_leak() {
    let backend = Backend::greeting(b"hi");
    let gate = Gate::start(&(tcp("max_connections = 4") + &pool("", &[backend.address])));
    for round in 0..10 {
        let (mut served, reset) = open(gate.address("tcp"), 6);
        assert_eq!((served.len(), reset), (4, 2), "round {round}");
        for (index, stream) in served.drain(..).enumerate() {
            end_in_some_way(stream, index);
        }
        wait_until(SOON, "an empty gate", || gate.metrics().count("sluicegate_listener_connections", &[]) == 0);
    }
    gate.wait_outcome("max_connections", 20);
}

fn end_in_some_way(mut stream: TcpStream, which: usize) {
    match which {
        0 => drop(stream),
        1 => client::reset(stream),
        2 => {
            stream.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(client::read_all(&mut stream), (Vec::new(), End::Eof));
        }
        _ => stream.write_all(b"and gone").unwrap(),
    }
}
