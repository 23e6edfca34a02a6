//! R19: an urgent byte stays where it is in the stream, stops nothing, and does not make the gate spin.

use std::{
    io::{ErrorKind, Read, Write},
    net::{Shutdown, TcpStream},
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use crate::support::{
    Stand, Variant,
    client::Stream,
    tags::{self, End, Tag},
};

/// The bytes are asked for within 100 ms; a debug build beside other tests gets more.
const PROMPT: Duration = Duration::from_millis(500);

/// How long nothing happens, and what the gate may work in that time.
const SILENCE: Duration = Duration::from_millis(200);
const IDLE: Duration = Duration::from_millis(50);

/// `abcdefg` with an urgent `d`, then silence.
fn seven_bytes(stand: &Stand, mut from: &TcpStream, to: &mut dyn Stream, what: &str) {
    let start = Instant::now();
    from.write_all(b"abc").unwrap();
    SockRef::from(from).send_out_of_band(b"d").unwrap();
    from.write_all(b"efg").unwrap();
    let mut received = [0; 7];
    to.read_exact(&mut received).unwrap();
    assert_eq!(&received, b"abcdefg", "{what}");
    assert!(start.elapsed() < PROMPT, "{what}: all of it after {:?}", start.elapsed());
    let before = stand.gate.process.processor_time();
    to.socket().set_read_timeout(Some(SILENCE)).unwrap();
    let silence = to.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(silence, Err(ErrorKind::WouldBlock)), "{what}: {silence:?}");
    let worked = stand.gate.process.processor_time().saturating_sub(before);
    assert!(worked <= IDLE, "{what}: the gate worked {worked:?} in {SILENCE:?} of silence");
    to.socket().set_read_timeout(Some(Duration::from_mins(1))).unwrap();
}

/// Enough that the direction moves by splice, if it may.
fn bulk(mut from: &TcpStream, to: &mut TcpStream) {
    const BULK: u64 = 1 << 20;
    let received = thread::scope(|scope| {
        scope.spawn(move || tags::send(&mut from, 1, BULK).unwrap());
        tags::receive(to, 1, BULK, None)
    });
    received.assert_is(BULK, tags::hash(1, BULK), End::Complete);
}

fn seven_bytes_each_way(variant: Variant) {
    let stand = Stand::start(variant);
    for after_bulk in [false, true] {
        let (mut client, mut backend) = stand.join_plain();
        let what = |to: &str| format!("to the {to}, after bulk: {after_bulk}, {variant:?}");
        if after_bulk {
            bulk(&client, &mut backend);
            bulk(&backend, &mut client);
        }
        seven_bytes(&stand, &client, &mut backend, &what("backend"));
        seven_bytes(&stand, &backend, &mut client, &what("client"));
        client.shutdown(Shutdown::Write).unwrap();
        assert_eq!(backend.read(&mut [0]).unwrap(), 0, "an end behind the bytes");
        backend.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "an end behind the bytes");
    }
    stand.gate.wait_outcome("client_closed", 2);
    stand.gate.finish();
}

#[test]
fn r19_seven_bytes_with_an_urgent_one_arrive_without_further_traffic() {
    seven_bytes_each_way(Variant::AUTO);
}

#[test]
fn r19_seven_bytes_with_an_urgent_one_arrive_by_copy() {
    seven_bytes_each_way(Variant::COPY);
}

#[test]
fn r19_seven_bytes_with_an_urgent_one_arrive_by_splice() {
    seven_bytes_each_way(Variant::SPLICE);
}

#[test]
fn r19_seven_bytes_with_an_urgent_one_reach_a_tls_client() {
    let stand = Stand::start(Variant::AUTO);
    let (mut client, backend) = stand.join("https");
    for _ in 0..2 {
        seven_bytes(&stand, &backend, &mut *client, "to a TLS client");
    }
    backend.shutdown(Shutdown::Write).unwrap();
    assert_eq!(client.read(&mut [0]).unwrap(), 0, "an end behind the bytes");
    drop(client);
    stand.gate.finish();
}

/// The end comes straight behind an urgent mark: where splice says 0 with bytes unread.
fn an_end_behind_a_mark(variant: Variant) {
    const ROUNDS: usize = 200;
    let stand = Stand::start(variant);
    for round in 0..ROUNDS {
        let (client, backend) = stand.join_plain();
        let (mut from, mut to) = if round % 2 == 0 { (client, backend) } else { (backend, client) };
        from.write_all(b"abc").unwrap();
        SockRef::from(&from).send_out_of_band(b"d").unwrap();
        from.write_all(b"efg").unwrap();
        from.shutdown(Shutdown::Write).unwrap();
        let received = crate::support::client::read_all(&mut to);
        assert_eq!(received, (b"abcdefg".to_vec(), End::Eof), "round {round}, {variant:?}");
    }
    stand.gate.finish();
}

#[test]
fn r19_an_end_behind_an_urgent_mark_cuts_nothing() {
    for variant in [Variant::AUTO, Variant::COPY, Variant::SPLICE] {
        an_end_behind_a_mark(variant);
    }
}

/// 1 MB with an urgent byte in every 1,000.
fn send_with_marks(mut to: &TcpStream, id: u64) -> u64 {
    const TOTAL: u64 = 1_000_000;
    let tag = Tag::new(id);
    let mut part = [0; 1000];
    for offset in (0..TOTAL).step_by(part.len()) {
        tag.fill(offset, &mut part);
        to.write_all(&part[..part.len() - 1]).unwrap();
        // One byte: the call has sent it or failed.
        assert_eq!(SockRef::from(to).send_out_of_band(&part[part.len() - 1..]).unwrap(), 1);
    }
    to.shutdown(Shutdown::Write).unwrap();
    TOTAL
}

fn a_thousand_marks(variant: Variant) {
    let stand = Stand::start(variant);
    let (mut client, mut backend) = stand.join_plain();
    thread::scope(|scope| {
        let (from, back) = (client.try_clone().unwrap(), backend.try_clone().unwrap());
        let up = scope.spawn(move || send_with_marks(&from, 1));
        let down = scope.spawn(move || send_with_marks(&back, 2));
        let upload = scope.spawn(move || tags::receive(&mut backend, 1, u64::MAX, None));
        let download = tags::receive(&mut client, 2, u64::MAX, None);
        let (up, down) = (up.join().unwrap(), down.join().unwrap());
        upload.join().unwrap().assert_is(up, tags::hash(1, up), End::Eof);
        download.assert_is(down, tags::hash(2, down), End::Eof);
    });
    stand.gate.finish();
}

#[test]
fn r19_a_thousand_urgent_bytes_in_a_megabyte_stay_in_their_places() {
    for variant in [Variant::AUTO, Variant::COPY, Variant::SPLICE] {
        a_thousand_marks(variant);
    }
}
