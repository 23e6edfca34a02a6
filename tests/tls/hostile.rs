//! T1, T6, T7, T16: hellos in pieces, hellos that never come, and bytes that are no hello.

use std::{
    io::Write,
    net::TcpStream,
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Gate,
    client::{self, read_all},
    gate::{https, pool, word},
    hello::{CLOSE_NOTIFY, Hello},
    patient,
};

fn gate(backend: &Backend, handshake: &str) -> Gate {
    let timeouts = format!("[timeouts]\nhandshake = \"{handshake}\"\n");
    Gate::start(&[https(""), pool("", &[backend.address]), timeouts].concat())
}

fn hello() -> Hello {
    Hello::new("foobar.com", Arc::new(client::config(rustls::ALL_VERSIONS)))
}

/// The rest of the handshake, a few bytes, a clean end.
#[track_caller]
fn goes_on(hello: Hello, stream: TcpStream) {
    let mut stream = hello.finish(stream).expect("a handshake");
    client::exchange(&mut stream, b"in one piece");
    client::Stream::finish_sending(&mut stream);
    assert!(read_all(&mut stream).0.is_empty());
}

#[test]
fn t1_a_hello_in_two_records_cut_inside_the_name() {
    let backend = Backend::echo();
    let gate = gate(&backend, "10s");
    let (hello, mut stream) = (hello(), client::connect(gate.address("https")));
    stream.write_all(&hello.records(&[hello.inside_the_name()])).unwrap();
    goes_on(hello, stream);
    let record = &gate.wait_records(1)[0];
    assert_eq!(record["sni"], "foobar.com", "{record}");
    gate.wait_outcome("client_closed", 1);
    gate.finish();
}

#[test]
fn t1_a_hello_with_one_byte_per_segment() {
    let backend = Backend::echo();
    let gate = gate(&backend, "30s");
    let (hello, mut stream) = (hello(), client::connect(gate.address("https")));
    for byte in hello.whole() {
        stream.write_all(&[byte]).unwrap();
    }
    goes_on(hello, stream);
    gate.wait_outcome("client_closed", 1);
    gate.finish();
}

/// Every byte in a record of its own: a handshake or a clean refusal, never a panic.
#[test]
fn t1_a_hello_in_records_of_one_byte() {
    let backend = Backend::echo();
    let gate = gate(&backend, "10s");
    let (hello, mut stream) = (hello(), client::connect(gate.address("https")));
    stream.write_all(&hello.crumbs()).unwrap();
    if let Ok(mut stream) = hello.finish(stream) {
        client::exchange(&mut stream, b"from crumbs");
    }
    gate.wait_records(1);
    gate.finish();
}

/// A refusal used to show rustls an empty buffer where it still had a place in ours: it panicked.
#[test]
fn t1_a_hello_with_a_changed_byte_is_refused_without_a_panic() {
    let backend = Backend::echo();
    let gate = gate(&backend, "10s");
    let whole = hello().whole();
    let mut ended = 0;
    // Every byte of what can be understood; the keys behind it are only bytes. Then some of those.
    for at in (5..whole.len().min(300)).chain((300..whole.len()).step_by(40)) {
        let mut changed = whole.clone();
        changed[at] ^= 0xff;
        let mut stream = client::connect(gate.address("https"));
        stream.write_all(&changed).unwrap();
        stream.shutdown(std::net::Shutdown::Write).unwrap();
        read_all(&mut stream);
        ended += 1;
    }
    let metrics = gate.wait_metrics("all", |m| m.count("sluicegate_connections_closed_total", &[]) == ended);
    println!("{ended} changed hellos, {} refused", metrics.outcome("tls_error"));
    assert_eq!((metrics.outcome("internal"), metrics.count("sluicegate_panics_total", &[])), (0, 0));
    assert!(metrics.outcome("tls_error") > 10);
    gate.finish();
}

/// It used to loop for ever in a library; here it is gone at the deadline at the latest, and costs nothing until then.
#[test]
fn t1_close_notify_after_the_hello_ends_the_handshake() {
    let backend = Backend::echo();
    let gate = gate(&backend, "1s");
    let (start, before) = (Instant::now(), gate.process.processor_time());
    for pieces in [vec![], vec![1], vec![40]] {
        let mut stream = client::connect(gate.address("https"));
        stream.write_all(&[hello().records(&pieces), CLOSE_NOTIFY.to_vec()].concat()).unwrap();
        read_all(&mut stream);
    }
    assert!(start.elapsed() < patient(Duration::from_secs(8)), "{:?}", start.elapsed());
    let spent = gate.process.processor_time().saturating_sub(before);
    assert!(spent < Duration::from_millis(500), "{spent:?} of processor time");
    assert_eq!(backend.accepted(), 0);
    gate.finish();
}

/// 65,000 bytes are announced, and a little more than is taken comes: nobody waits for the rest.
#[test]
fn t7_a_hello_that_does_not_end_is_refused() {
    const ROOM: usize = 16 << 10;
    let backend = Backend::echo();
    let gate = gate(&backend, "20s");
    let start = Instant::now();
    let message = [&[1, 0, 0xfd, 0xe8, 3, 3][..], &vec![b'a'; ROOM + 1000]].concat();
    let records = message.chunks(ROOM).flat_map(|piece| {
        let length = (piece.len() as u16).to_be_bytes();
        [&[22, 3, 1][..], &length, piece].concat()
    });
    let mut stream = client::connect(gate.address("https"));
    let _ = stream.write_all(&records.collect::<Vec<u8>>());
    assert!(read_all(&mut stream).0.is_empty());
    assert!(start.elapsed() < patient(Duration::from_secs(10)), "not by the deadline of the handshake");
    gate.wait_outcome("tls_error", 1);
    assert_eq!(backend.accepted(), 0);
    gate.finish();
}

#[test]
fn t7_a_hello_of_15_kb_is_taken() {
    let backend = Backend::echo();
    let gate = gate(&backend, "20s");
    // Nothing is asked for on the other side, so what is offered is only long.
    let long = client::config_with(|config| config.alpn_protocols = vec![vec![b'x'; 255]; 54]);
    let hello = Hello::new("foobar.com", long);
    let mut stream = client::connect(gate.address("https"));
    let whole = hello.whole();
    assert!((14_500..16_000).contains(&whole.len()), "{}", whole.len());
    stream.write_all(&whole).unwrap();
    goes_on(hello, stream);
    gate.wait_outcome("client_closed", 1);
    gate.finish();
}

/// Gone at the deadline of the whole handshake, whatever trickles in.
#[track_caller]
fn gone_at_the_deadline(gate: &Gate, mut stream: TcpStream, since: Instant) {
    read_all(&mut stream);
    let after = since.elapsed();
    assert!(after > Duration::from_millis(750) && after < patient(Duration::from_secs(4)), "after {after:?}");
    drop(stream);
    let record = gate.wait_records(1).pop().unwrap();
    assert_eq!(word(&record, "outcome"), "handshake_timeout", "{record}");
}

#[test]
fn t6_a_silent_client_is_gone_at_the_deadline() {
    let backend = Backend::echo();
    let gate = gate(&backend, "800ms");
    let (since, stream) = (Instant::now(), client::connect(gate.address("https")));
    gone_at_the_deadline(&gate, stream, since);
    gate.wait_outcome("handshake_timeout", 1);
    assert_eq!(backend.accepted(), 0);
    gate.finish();
}

#[test]
fn t6_half_a_hello_is_gone_at_the_deadline() {
    let backend = Backend::echo();
    let gate = gate(&backend, "800ms");
    let (since, mut stream) = (Instant::now(), client::connect(gate.address("https")));
    stream.write_all(&hello().whole()[..200]).unwrap();
    gone_at_the_deadline(&gate, stream, since);
    gate.finish();
}

/// The deadline is total: a byte now and then does not move it.
#[test]
fn t6_a_trickling_client_is_gone_at_the_same_deadline() {
    let backend = Backend::echo();
    let gate = gate(&backend, "800ms");
    let (since, stream) = (Instant::now(), client::connect(gate.address("https")));
    thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        scope.spawn(move || {
            for byte in hello().whole().into_iter().take(100) {
                if writer.write_all(&[byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(50));
            }
        });
        gone_at_the_deadline(&gate, stream, since);
    });
    gate.finish();
}

/// Silent clients beside: the others do not wait for them.
#[test]
fn t6_silent_clients_hold_up_nobody() {
    let backend = Backend::echo();
    let gate = gate(&backend, "30s");
    let silent: Vec<TcpStream> = (0..50).map(|_| client::connect(gate.address("https"))).collect();
    let start = Instant::now();
    for _ in 0..10 {
        let mut stream = client::connect_tls(gate.address("https"));
        client::exchange(&mut stream, b"quick");
    }
    assert!(start.elapsed() < patient(Duration::from_secs(10)), "{:?}", start.elapsed());
    drop(silent);
    gate.finish();
}

#[test]
fn t16_what_is_no_tls_is_said_so() {
    let backend = Backend::echo();
    let gate = gate(&backend, "20s");
    let start = Instant::now();
    let words: [&[u8]; 6] = [
        b"GET / HTTP/1.1\r\nHost: foobar.com\r\n\r\n",
        b"POST /form HTTP/1.1\r\nContent-Length: 3\r\n\r\na=b",
        b"SSH-2.0-OpenSSH_9.2p1 Debian-2\r\n",
        b"\x20\x00\x00\x01\x85\xa6\xff\x01\x00\x00\x00\x01\x21\x00\x00\x00",
        &[0; 64],
        &[0xff; 64],
    ];
    for word in words {
        let mut stream = client::connect(gate.address("https"));
        stream.write_all(word).unwrap();
        read_all(&mut stream);
    }
    assert!(start.elapsed() < patient(Duration::from_secs(15)), "not by the deadline of the handshake");
    let metrics = gate.wait_outcome("not_tls", 6);
    assert_eq!(metrics.count("sluicegate_tls_handshake_failures_total", &[("listener", "https")]), 6);
    assert_eq!(backend.accepted(), 0);
    gate.finish();
}

#[test]
fn garbage_after_the_handshake_ends_the_connection() {
    let backend = Backend::echo();
    let gate = gate(&backend, "10s");
    let mut stream = client::connect_tls(gate.address("https"));
    client::exchange(&mut stream, b"hello");
    let mut record = vec![23, 3, 3, 0, 64];
    record.extend([0xab; 64]);
    stream.sock.write_all(&record).unwrap();
    read_all(&mut stream.sock);
    gate.wait_outcome("tls_error", 1);
    drop(stream);
    gate.finish();
}
