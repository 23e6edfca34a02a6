//! Clients and backends that misbehave.

use std::{
    io::{Read, Write},
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Gate, Variant,
    backend::{Refusing, answer_id, transfer_header},
    client::{self, PLAIN_AND_TLS, read_all},
    gate::{https, pool, tcp},
    patient,
    tags::{self, End, Tag},
};

fn both(backends: &[std::net::SocketAddr]) -> Gate {
    Gate::start(&[tcp(""), https(""), pool("", backends)].concat())
}

#[test]
fn garbage_is_relayed_as_it_is() {
    let backend = Backend::echo();
    let gate = both(&[backend.address]);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        for garbage in [&b"\0\0\0\0"[..], b"\xff\xfe\xfd", b"GET \r\n\r\n\r\n", &Tag::new(9).bytes(5000)] {
            client::exchange(&mut client, garbage);
        }
        client.finish_sending();
        assert_eq!(read_all(&mut client), (Vec::new(), End::Eof));
    }
    gate.wait_outcome("client_closed", 2);
    gate.finish();
}

#[test]
fn one_byte_writes_arrive_in_order() {
    const BYTES: u64 = 3000;
    for variant in [Variant::AUTO, Variant::COPY, Variant::SPLICE] {
        let backend = Backend::tagged();
        let toml = [tcp(""), https(""), pool("", &[backend.address])].concat();
        let gate = Gate::plan(&toml).variant(variant).start();
        for (id, listener) in (1..).zip(PLAIN_AND_TLS) {
            let mut client = client::open(&gate, listener);
            for byte in [transfer_header(id, BYTES, 10), Tag::new(id).bytes(BYTES as usize)].concat() {
                client.write_all(&[byte]).unwrap();
                client.flush().unwrap();
            }
            tags::receive(&mut client, answer_id(id), 10, None).assert_is(
                10,
                tags::hash(answer_id(id), 10),
                End::Complete,
            );
            client.finish_sending();
            assert_eq!(client.read(&mut [0]).unwrap(), 0);
            backend.upload(id).unwrap().assert_is(BYTES, tags::hash(id, BYTES), End::Complete);
        }
        gate.finish();
    }
}

#[test]
fn o8_clients_that_connect_and_leave_are_counted() {
    let backend = Backend::echo();
    let gate = both(&[backend.address]);
    for _ in 0..50 {
        drop(client::connect(gate.address("tcp")));
        client::reset(client::connect(gate.address("tcp")));
    }
    gate.wait_metrics("all of them", |m| {
        m.count("sluicegate_connections_closed_total", &[]) == 100
            && m.count("sluicegate_listener_accepted_total", &[]) == 100
    });
    gate.finish();
}

#[test]
fn a_pool_that_refuses_ends_the_connection_and_is_said() {
    let down = Refusing::new();
    let gate = both(&[down.address]);
    for listener in PLAIN_AND_TLS {
        let mut client = if listener == "tcp" { client::open(&gate, listener) } else { late_tls(&gate) };
        let (bytes, end) = read_all(&mut client);
        assert!(bytes.is_empty() && end != End::Complete, "{end:?}");
    }
    let records = gate.wait_records(2);
    assert!(records.iter().all(|r| r["outcome"] == "connect_failed"), "{records:?}");
    gate.wait_outcome("connect_failed", 2);
    gate.finish();
}

/// A TLS client whose handshake may already meet the refusal.
fn late_tls(gate: &Gate) -> Box<dyn client::Stream> {
    let stream = client::connect(gate.address("https"));
    let spare = stream.try_clone().unwrap();
    match client::handshake(stream, "foobar.com", client::config_with(|_| ())) {
        Ok(tls) => Box::new(tls),
        Err(_) => Box::new(spare),
    }
}

#[test]
fn a_backend_that_resets_at_accept_is_a_reset() {
    let backend = Backend::reset();
    let gate = both(&[backend.address]);
    let mut client = client::connect(gate.address("tcp"));
    assert_eq!(read_all(&mut client), (Vec::new(), End::Reset));
    drop(client);
    gate.wait_records(1);
    let metrics = gate.metrics();
    let ends = ["backend_reset", "connect_failed"].map(|outcome| metrics.outcome(outcome));
    assert_eq!(ends.iter().sum::<u64>(), 1, "{ends:?}");
    gate.finish();
}

#[test]
fn a_silent_backend_ends_at_idle() {
    let backend = Backend::stall();
    let timeouts = "[timeouts]\nidle = \"500ms\"\n";
    let gate = Gate::start(&[&tcp(""), &https(""), &pool("", &[backend.address]), timeouts].concat());
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        client.write_all(b"anybody there?").unwrap();
        client.flush().unwrap();
        let start = Instant::now();
        assert!(read_all(&mut client).0.is_empty());
        assert!(start.elapsed() < patient(Duration::from_secs(4)), "{:?}", start.elapsed());
    }
    gate.wait_outcome("idle_timeout", 2);
    gate.finish();
}

#[test]
fn a_silent_client_on_a_plain_listener_ends_at_idle() {
    let backend = Backend::stall();
    let timeouts = "[timeouts]\nidle = \"500ms\"\n";
    let gate = Gate::start(&[&tcp(""), &pool("", &[backend.address]), timeouts].concat());
    let mut client = client::connect(gate.address("tcp"));
    assert!(read_all(&mut client).0.is_empty());
    gate.wait_outcome("idle_timeout", 1);
    gate.finish();
}

/// F10: a connection that ends in each possible way leaves nothing behind.
#[test]
fn f10_every_kind_of_end_leaves_the_gauges_at_zero() {
    let backend = Backend::echo();
    let gate = both(&[backend.address]);
    for _ in 0..10 {
        for listener in PLAIN_AND_TLS {
            let mut client = client::open(&gate, listener);
            client::exchange(&mut client, b"hello");
            client::reset_on_close(client.socket());
            drop(client);
            let mut client = client::open(&gate, listener);
            client.write_all(&vec![0; 100_000]).unwrap();
            drop(client);
            let mut client = client::open(&gate, listener);
            client.finish_sending();
            assert_eq!(read_all(&mut client), (Vec::new(), End::Eof));
        }
    }
    gate.wait_metrics("all ended", |m| m.count("sluicegate_connections_closed_total", &[]) == 60);
    gate.finish();
}
