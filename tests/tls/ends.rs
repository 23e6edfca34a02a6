//! T11: a truncation never passes for a clean end, and ours is never a truncation.

use std::{
    io::Write,
    net::Shutdown,
    net::TcpStream,
    sync::{Arc, mpsc},
    time::{Duration, Instant},
};

use rustls::{
    ProtocolVersion, SupportedProtocolVersion,
    version::{TLS12, TLS13},
};

use crate::support::{
    Backend, Gate, SOON,
    client::{self, Stream, Tls, read_all},
    gate::{https, pool},
    patient,
    tags::End,
};

const VERSIONS: [&SupportedProtocolVersion; 2] = [&TLS12, &TLS13];

/// A backend that tells what it heard and how that ended, and then says goodbye.
fn listening(heard: mpsc::Sender<(Vec<u8>, End)>) -> Backend {
    Backend::start(move |mut stream: &TcpStream, _| {
        let _ = heard.send(read_all(&mut stream));
        let _ = stream.write_all(b"goodbye");
    })
}

fn gate(backend: &Backend) -> Gate {
    Gate::start(&(https("") + &pool("", &[backend.address])))
}

#[track_caller]
fn open(gate: &Gate, version: &'static SupportedProtocolVersion) -> Tls {
    let stream = client::connect(gate.address("https"));
    client::handshake(stream, "foobar.com", Arc::new(client::config(&[version]))).unwrap()
}

#[test]
fn t11_a_fin_without_close_notify_is_no_clean_end() {
    let (heard, words) = mpsc::channel();
    let backend = listening(heard);
    let gate = gate(&backend);
    for version in VERSIONS {
        let mut stream = open(&gate, version);
        stream.write_all(b"transfer 100").unwrap();
        stream.flush().unwrap();
        stream.sock.shutdown(Shutdown::Write).unwrap();
        let heard = words.recv_timeout(SOON).expect("an end at the backend");
        assert_eq!(heard, (b"transfer 100".to_vec(), End::Reset), "{version:?}");
    }
    gate.finish();
}

#[test]
fn t11_a_close_notify_is_a_clean_end_with_or_without_fin() {
    let (heard, words) = mpsc::channel();
    let backend = listening(heard);
    let gate = gate(&backend);
    for version in VERSIONS {
        for fin in [false, true] {
            let mut stream = open(&gate, version);
            stream.write_all(b"transfer 100").unwrap();
            stream.finish_sending();
            if fin {
                stream.sock.shutdown(Shutdown::Write).unwrap();
            }
            let heard = words.recv_timeout(SOON).expect("an end at the backend");
            assert_eq!(heard, (b"transfer 100".to_vec(), End::Eof), "{version:?} {fin}");
            assert_eq!(read_all(&mut stream), (b"goodbye".to_vec(), End::Eof), "{version:?} {fin}");
        }
    }
    gate.wait_outcome("client_closed", 4);
    gate.finish();
}

/// rustls reads a FIN without `close_notify` as an error, so a clean end is the alert.
#[test]
fn t11_our_close_notify_comes_before_our_fin() {
    let backend = Backend::named("all there is");
    let gate = gate(&backend);
    for (version, expected) in VERSIONS.into_iter().zip([ProtocolVersion::TLSv1_2, ProtocolVersion::TLSv1_3]) {
        let mut stream = open(&gate, version);
        assert_eq!(read_all(&mut stream), (b"all there is".to_vec(), End::Eof));
        assert_eq!(stream.conn.protocol_version(), Some(expected));
        stream.finish_sending();
    }
    gate.wait_outcome("backend_closed", 2);
    gate.finish();
}

#[test]
fn t11_a_client_that_vanishes_in_the_handshake_is_no_error_of_ours() {
    let backend = Backend::echo();
    let gate = gate(&backend);
    for _ in 0..20 {
        drop(client::connect(gate.address("https")));
        client::reset(client::connect(gate.address("https")));
    }
    gate.wait_metrics("all of them", |m| m.count("sluicegate_connections_closed_total", &[]) == 40);
    assert_eq!(backend.accepted(), 0);
    gate.finish();
}

#[test]
fn a_client_with_nagles_algorithm_does_not_wait_for_a_delayed_acknowledgement() {
    let backend = Backend::echo();
    let gate = Gate::start(&(https("") + &pool("", &[backend.address])));
    let mut took: Vec<Duration> = (0..9)
        .map(|_| {
            let mut client = client::connect_tls(gate.address("https"));
            client.sock.set_nodelay(false).unwrap();
            let begin = Instant::now();
            client::exchange(&mut client, b"hello");
            begin.elapsed()
        })
        .collect();
    took.sort();
    // The kernel delays an acknowledgement by 40 ms.
    assert!(took[4] < patient(Duration::from_millis(30)), "{took:?}");
    gate.finish();
}
