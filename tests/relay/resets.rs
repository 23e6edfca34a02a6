//! R6, R7: an abortive end is passed on as abortive, after everything that reached us.

use std::{
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    sync::mpsc,
    thread,
    time::Duration,
};

use super::gate;
use crate::support::{
    Backend, Gate, SOON, Variant,
    client::{self, PLAIN_AND_TLS, read_all},
    tags::{self, End},
    wait_until,
};

const SENT: u64 = 100_000;
const SLOW: Option<Duration> = Some(Duration::from_millis(2));

pub(super) fn until_delivered(stream: &TcpStream) {
    wait_until(SOON, "an empty send queue", || client::send_queue(stream) == Some(0));
}

fn a_backend_resets(variant: Variant) {
    let backend = Backend::start(|mut stream, _| {
        tags::send(&mut stream, 3, SENT).unwrap();
        until_delivered(stream);
        client::reset_on_close(stream);
    });
    let gate = gate(variant, &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        let received = tags::receive(&mut client, 3, u64::MAX, SLOW);
        received.assert_is(SENT, tags::hash(3, SENT), End::Reset);
    }
    gate.wait_outcome("backend_reset", 2);
    gate.finish();
}

#[test]
fn r7_a_backends_reset_comes_after_what_it_sent() {
    a_backend_resets(Variant::chosen());
}

#[test]
fn r7_a_backends_reset_comes_after_what_it_sent_by_splice() {
    a_backend_resets(Variant::SPLICE);
}

#[test]
fn r7_a_backends_reset_comes_after_what_it_sent_by_copy() {
    a_backend_resets(Variant::COPY);
}

#[test]
fn r7_a_reset_of_a_quiet_backend_is_a_reset() {
    let backend = Backend::start(|mut stream, _| {
        tags::send(&mut stream, 3, SENT).unwrap();
        let _ = stream.read_exact(&mut [0]); // the client has everything
        client::reset_on_close(stream);
    });
    let gate = gate(Variant::chosen(), &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        tags::receive(&mut client, 3, SENT, None).assert_is(SENT, tags::hash(3, SENT), End::Complete);
        client.write_all(b"!").unwrap();
        assert_eq!(read_all(&mut client), (Vec::new(), End::Reset), "{listener}");
    }
    gate.wait_outcome("backend_reset", 2);
}

fn a_client_resets(variant: Variant) {
    let (heard, received) = mpsc::channel();
    let backend = Backend::start(move |mut stream, _| {
        let _ = heard.send(tags::receive(&mut stream, 4, u64::MAX, SLOW));
    });
    let gate = gate(variant, &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        let hash = tags::send(&mut client, 4, SENT).unwrap();
        until_delivered(client.socket());
        client::reset_on_close(client.socket());
        drop(client);
        received.recv_timeout(SOON).expect("an end at the backend").assert_is(SENT, hash, End::Reset);
    }
    gate.wait_outcome("client_reset", 2);
    gate.finish();
}

#[test]
fn r7_a_clients_reset_comes_after_what_it_sent() {
    a_client_resets(Variant::chosen());
}

#[test]
fn r7_a_clients_reset_comes_after_what_it_sent_by_splice() {
    a_client_resets(Variant::SPLICE);
}

/// The backend closes with unread input, which resets our socket to it, while the client is far behind.
#[test]
fn r6_unread_input_does_not_destroy_what_was_delivered() {
    const ANSWER: u64 = 1_000_000;
    for variant in [Variant::COPY, Variant::SPLICE] {
        let backend = Backend::start(|mut stream, _| {
            tags::send(&mut stream, 6, ANSWER).unwrap();
            until_delivered(stream);
        });
        let gate = gate(variant, &backend);
        let mut client = client::connect(gate.address("tcp"));
        thread::scope(|scope| {
            let mut writer = client.try_clone().unwrap();
            scope.spawn(move || while writer.write_all(&[b'x'; 1024]).is_ok() {});
            let received = tags::receive(&mut client, 6, ANSWER, SLOW);
            received.assert_is(ANSWER, tags::hash(6, ANSWER), End::Complete);
            let (rest, _) = read_all(&mut client);
            assert!(rest.is_empty());
            let _ = client.shutdown(Shutdown::Both);
        });
        drop(client);
        gate.finish();
    }
}

/// A request that nobody reads, an answer, and a close: what an HTTP backend does with a body that is too large.
#[test]
fn r6_an_answer_before_the_end_of_the_request_arrives() {
    let backend = Backend::start(|mut stream, _| {
        let _ = stream.write_all(b"413 too large");
        let _ = stream.shutdown(Shutdown::Write);
        let _ = std::io::copy(&mut stream, &mut std::io::sink());
    });
    let gate = gate(Variant::chosen(), &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        tags::send(&mut client, 1, 2 << 20).unwrap();
        client.finish_sending();
        assert_eq!(read_all(&mut client), (b"413 too large".to_vec(), End::Eof), "{listener}");
    }
    gate.finish();
}

/// A stopped gate is an end like any other: said, counted, and at once.
#[test]
fn connections_end_with_the_process_and_are_recorded() {
    let backend = Backend::echo();
    let mut gate: Gate = gate(Variant::chosen(), &backend);
    let mut clients: Vec<_> = PLAIN_AND_TLS.iter().map(|listener| client::open(&gate, listener)).collect();
    for client in &mut clients {
        client::exchange(client, b"alive");
    }
    gate.stop_now();
    for client in &mut clients {
        assert!(read_all(client).0.is_empty());
    }
    let outcomes: Vec<_> = gate.records().iter().map(|r| crate::support::gate::word(r, "outcome")).collect();
    assert_eq!(outcomes, ["drained", "drained"]);
}
