//! R16: which timeout wins, and when.

use std::{
    io::Write,
    ops::Range,
    thread,
    time::{Duration, Instant},
};

use super::plan;
use crate::support::{
    Backend, Gate, Variant,
    client::{self, PLAIN_AND_TLS, Stream, read_all},
    gate::{https, pool, tcp, word},
    tags::End,
};

fn timed(timeouts: &str, backend: &Backend) -> Gate {
    Gate::start(&[&tcp(""), &https(""), &pool("", &[backend.address]), "[timeouts]\n", timeouts].concat())
}

/// Waits for the end; it has to come in this range of milliseconds after the last thing that happened.
#[track_caller]
fn ends_within(client: &mut Box<dyn Stream>, since: Instant, range: Range<u128>) {
    let (bytes, end) = read_all(client);
    let after = since.elapsed().as_millis();
    assert!(bytes.is_empty(), "{bytes:?}");
    assert!(range.contains(&after), "{end:?} after {after} ms, not in {range:?}");
}

#[track_caller]
fn every_outcome_is(gate: &Gate, outcome: &str, count: usize) {
    gate.wait_outcome(outcome, count as u64);
    for record in gate.wait_records(count) {
        assert_eq!(word(&record, "outcome"), outcome, "{record}");
    }
}

#[test]
fn r16_idle_ends_a_silent_connection() {
    let backend = Backend::echo();
    let gate = timed("idle = \"400ms\"", &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        client::exchange(&mut client, b"hello");
        ends_within(&mut client, Instant::now(), 350..2400);
    }
    every_outcome_is(&gate, "idle_timeout", 2);
}

#[test]
fn r16_idle_spares_a_connection_with_traffic_in_one_direction() {
    let backend = Backend::stall();
    let gate = timed("idle = \"600ms\"", &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        for _ in 0..12 {
            client.write_all(b"tick").unwrap();
            client.flush().unwrap();
            thread::sleep(Duration::from_millis(100));
        }
        ends_within(&mut client, Instant::now(), 400..2600);
    }
    every_outcome_is(&gate, "idle_timeout", 2);
    for record in gate.records() {
        assert_eq!(record["received_bytes"], 48, "every tick was relayed: {record}");
    }
}

#[test]
fn r16_half_closed_ends_silence_after_an_end() {
    let backend = Backend::start(|mut stream, _| {
        let _ = read_all(&mut stream);
        let _ = stream.set_read_timeout(Some(Duration::from_secs(10)));
        thread::sleep(Duration::from_secs(2)); // says nothing and does not end
    });
    let gate = timed("half_closed = \"400ms\"\nidle = \"1m\"", &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        client.write_all(b"hello").unwrap();
        client.finish_sending();
        ends_within(&mut client, Instant::now(), 350..1900);
    }
    every_outcome_is(&gate, "half_closed_timeout", 2);
}

#[test]
fn r16_max_age_ends_a_busy_connection() {
    let backend = Backend::echo();
    let gate = timed("max_age = \"1s\"", &backend);
    for listener in PLAIN_AND_TLS {
        let start = Instant::now();
        let mut client = client::open(&gate, listener);
        let gone = (0..400).find(|_| {
            let failed = client.write_all(b"tick").and_then(|()| client.flush()).is_err()
                || client.read(&mut [0; 64]).is_ok_and(|n| n == 0);
            thread::sleep(Duration::from_millis(10));
            failed || start.elapsed() > Duration::from_secs(4)
        });
        assert!(gone.is_some(), "an end");
        let age = start.elapsed().as_millis();
        assert!((850..3000).contains(&age), "{listener}: {age} ms");
    }
    every_outcome_is(&gate, "max_age", 2);
}

#[test]
fn r16_a_listeners_timeout_wins_over_the_general_one() {
    let backend = Backend::echo();
    let toml = [
        &tcp(""),
        "[listener.tcp.timeouts]\nidle = \"300ms\"\n[timeouts]\nidle = \"1m\"\n",
        &pool("", &[backend.address]),
    ];
    let gate = Gate::start(&toml.concat());
    let mut client = client::open(&gate, "tcp");
    client::exchange(&mut client, b"hello");
    ends_within(&mut client, Instant::now(), 250..2300);
    every_outcome_is(&gate, "idle_timeout", 1);
}

#[test]
fn no_timeout_fires_on_its_own() {
    let backend = Backend::echo();
    let gate = plan(Variant::chosen(), &backend).start();
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        client::exchange(&mut client, b"hello");
        thread::sleep(Duration::from_millis(300));
        client::exchange(&mut client, b"still here");
        client.finish_sending();
        assert_eq!(read_all(&mut client).1, End::Eof);
    }
    gate.wait_outcome("client_closed", 2);
}
