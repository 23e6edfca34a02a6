//! 100 MiB each way by hash, over each path, and with a reader that is slower than the sender.

use std::{io::Write, thread, time::Duration};

use super::gate;
use crate::support::{
    Backend, LATE, Metrics, Variant,
    backend::{answer_id, transfer_header},
    client,
    tags::{self, End},
    wait_until,
};

const BULK: u64 = 100 << 20;
const HEADER: u64 = 24;
const SLOW: Option<Duration> = Some(Duration::from_millis(1));

/// Both directions at the same time; the metrics at the end.
fn plain_transfer(variant: Variant, pause: Option<Duration>) -> Metrics {
    let backend = Backend::tagged();
    let gate = gate(variant, &backend);
    let mut stream = client::connect(gate.address("tcp"));
    stream.write_all(&transfer_header(1, BULK, BULK)).unwrap();
    let (sent, received) = thread::scope(|scope| {
        let mut writer = stream.try_clone().unwrap();
        let sent = scope.spawn(move || tags::send(&mut writer, 1, BULK).unwrap());
        let received = tags::receive(&mut stream, answer_id(1), BULK, pause);
        (sent.join().unwrap(), received)
    });
    received.assert_is(BULK, tags::hash(answer_id(1), BULK), End::Complete);
    drop(stream);
    wait_until(LATE, "the upload", || backend.upload(1).is_some());
    backend.upload(1).unwrap().assert_is(BULK, sent, End::Complete);
    let metrics = gate.wait_outcome("client_closed", 1);
    assert_eq!(relayed(&metrics, "", "client_to_backend"), BULK + HEADER);
    assert_eq!(relayed(&metrics, "", "backend_to_client"), BULK);
    assert_eq!(metrics.count("sluicegate_listener_received_bytes_total", &[("listener", "tcp")]), BULK + HEADER);
    assert_eq!(metrics.count("sluicegate_listener_sent_bytes_total", &[("listener", "tcp")]), BULK);
    gate.finish();
    metrics
}

/// Bytes of one path, or of all.
fn relayed(metrics: &Metrics, path: &str, direction: &str) -> u64 {
    let labels = [("direction", direction), ("path", path)];
    metrics.count("sluicegate_relay_bytes_total", if path.is_empty() { &labels[..1] } else { &labels })
}

fn spliced(metrics: &Metrics) -> [u64; 2] {
    ["client_to_backend", "backend_to_client"].map(|direction| relayed(metrics, "splice", direction))
}

#[test]
fn r11_100_mib_each_way_by_splice_are_spliced() {
    let metrics = plain_transfer(Variant::SPLICE, None);
    for bytes in spliced(&metrics) {
        assert!(bytes >= BULK / 100 * 99, "{bytes} by splice");
    }
}

#[test]
fn r11_100_mib_each_way_with_splice_off_are_copied() {
    let metrics = plain_transfer(Variant::COPY, None);
    assert_eq!(spliced(&metrics), [0, 0]);
    assert_eq!(relayed(&metrics, "copy", "backend_to_client"), BULK);
}

#[test]
fn r11_bulk_is_spliced_without_being_told() {
    let metrics = plain_transfer(Variant::AUTO, None);
    for bytes in spliced(&metrics) {
        assert!(bytes >= BULK / 2, "{bytes} by splice");
    }
}

#[test]
fn a_slow_reader_gets_100_mib_by_splice() {
    plain_transfer(Variant::SPLICE, SLOW);
}

#[test]
fn a_slow_reader_gets_100_mib_by_copy() {
    plain_transfer(Variant::COPY, SLOW);
}

/// The download waits behind the upload, so the gate has to hold back one side while the other moves.
fn tls_transfer(variant: Variant, pause: Option<Duration>) {
    let backend = Backend::tagged();
    let gate = gate(variant, &backend);
    let mut stream = client::connect_tls(gate.address("https"));
    stream.write_all(&transfer_header(1, BULK, BULK)).unwrap();
    let sent = tags::send(&mut stream, 1, BULK).unwrap();
    let received = tags::receive(&mut stream, answer_id(1), BULK, pause);
    received.assert_is(BULK, tags::hash(answer_id(1), BULK), End::Complete);
    client::Stream::finish_sending(&mut stream);
    wait_until(LATE, "the upload", || backend.upload(1).is_some());
    backend.upload(1).unwrap().assert_is(BULK, sent, End::Complete);
    drop(stream);
    let metrics = gate.wait_outcome("client_closed", 1);
    assert_eq!(relayed(&metrics, "tls", "client_to_backend"), BULK + HEADER);
    assert_eq!(relayed(&metrics, "tls", "backend_to_client"), BULK);
    gate.finish();
}

#[test]
fn t8_100_mib_each_way_through_tls() {
    tls_transfer(Variant::chosen(), None);
}

#[test]
fn t8_100_mib_each_way_through_tls_by_rustls_alone() {
    tls_transfer(Variant::RUSTLS, None);
}

#[test]
fn t8_a_slow_reader_gets_100_mib_through_tls() {
    tls_transfer(Variant::ONE_WORKER, SLOW);
}
