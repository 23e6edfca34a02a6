//! R2, R5: an end comes after every byte before it, and the other direction lives on.

use std::{net::TcpStream, sync::mpsc, thread, time::Duration};

use super::gate;
use crate::support::{
    Backend, SOON, Variant,
    client::{self, PLAIN_AND_TLS, read_all},
    tags::{self, End, Received},
};

const SIZES: [u64; 5] = [1, 65_535, 65_536, 65_537, 4 << 20];
const SLOW: Option<Duration> = Some(Duration::from_millis(1));

/// Reads late and slowly to the end, and only then says what it got.
fn reporting() -> Backend {
    Backend::start(|mut stream, number| {
        thread::sleep(Duration::from_millis(20));
        let received = tags::receive(&mut stream, number as u64, u64::MAX, SLOW);
        let _ = std::io::Write::write_all(&mut stream, format!("{received:?}").as_bytes());
    })
}

fn the_client_ends_first(variant: Variant) {
    let backend = reporting();
    let gate = gate(variant, &backend);
    for listener in PLAIN_AND_TLS {
        for size in SIZES {
            let id = backend.accepted() as u64;
            let mut client = client::open(&gate, listener);
            let hash = tags::send(&mut client, id, size).unwrap();
            client.finish_sending();
            let (report, end) = read_all(&mut client);
            let expected = Received { bytes: size, hash, foreign: None, end: End::Eof };
            assert_eq!(String::from_utf8_lossy(&report), format!("{expected:?}"), "{listener} {size} {variant:?}");
            assert_eq!(end, End::Eof, "{listener} {size} {variant:?}");
        }
    }
    gate.wait_outcome("client_closed", 2 * SIZES.len() as u64);
    gate.finish();
}

#[test]
fn r2_r5_a_clients_end_comes_after_its_bytes_and_the_answer_is_whole() {
    the_client_ends_first(Variant::chosen());
}

#[test]
fn r2_r5_a_clients_end_comes_after_its_bytes_by_copy() {
    the_client_ends_first(Variant::COPY);
}

#[test]
fn r2_r5_a_clients_end_comes_after_its_bytes_by_splice() {
    the_client_ends_first(Variant::SPLICE);
}

/// The backend sends and ends; then it collects what the client still says.
fn ending(size: u64, heard: mpsc::Sender<(Vec<u8>, End)>) -> Backend {
    Backend::start(move |mut stream: &TcpStream, _| {
        tags::send(&mut stream, size, size).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        let _ = heard.send(read_all(&mut stream));
    })
}

fn the_backend_ends_first(variant: Variant) {
    for size in SIZES {
        let (heard, words) = mpsc::channel();
        let backend = ending(size, heard);
        let gate = gate(variant, &backend);
        for listener in PLAIN_AND_TLS {
            let mut client = client::open(&gate, listener);
            let received = tags::receive(&mut client, size, u64::MAX, SLOW);
            received.assert_is(size, tags::hash(size, size), End::Eof);
            client.write_all(b"still here").unwrap();
            client.finish_sending();
            let heard = words.recv_timeout(SOON).expect("the client's words");
            assert_eq!(heard, (b"still here".to_vec(), End::Eof), "{listener} {size} {variant:?}");
        }
        gate.wait_outcome("backend_closed", 2);
        gate.finish();
    }
}

#[test]
fn r2_r5_a_backends_end_comes_after_its_bytes_and_the_client_may_still_write() {
    the_backend_ends_first(Variant::chosen());
}

#[test]
fn r2_r5_a_backends_end_comes_after_its_bytes_by_splice() {
    the_backend_ends_first(Variant::SPLICE);
}

#[test]
fn r5_an_answer_that_takes_its_time_is_not_cut() {
    let backend = Backend::start(|mut stream, _| {
        let (question, _) = read_all(&mut stream);
        thread::sleep(Duration::from_millis(700));
        let _ = std::io::Write::write_all(&mut stream, &question);
    });
    let gate = gate(Variant::chosen(), &backend);
    for listener in PLAIN_AND_TLS {
        let mut client = client::open(&gate, listener);
        client.write_all(b"take your time").unwrap();
        client.finish_sending();
        assert_eq!(read_all(&mut client), (b"take your time".to_vec(), End::Eof), "{listener}");
    }
    gate.wait_outcome("client_closed", 2);
}
