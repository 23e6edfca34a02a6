//! R2, R7, B14: an end that cuts is never taken for a clean one, whoever was writing when it came.

use std::{
    ops::RangeInclusive,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread,
    time::Duration,
};

use serde_json::Value;
use socket2::SockRef;

use super::{gate, resets::until_delivered};
use crate::support::{
    Backend, Busy, Gate, LATE, SOON, Variant,
    client::{self, PLAIN_AND_TLS, Stream},
    gate::{https, pool, tcp, word},
    tags::{self, End, Received},
};

const SENT: u64 = 100_000;

/// More than all buffers on the way hold.
const ENDLESS: u64 = 48 << 20;

/// How often a race gets its chance.
const TIMES: u64 = 20;

/// The backend resets after its bytes have reached us, while the client uploads: a write may meet the reset first.
fn a_backend_resets_a_busy_client(variant: Variant, listener: &str) {
    let backend = Backend::start(|mut stream, number| {
        tags::send(&mut stream, 3, SENT).unwrap();
        // Half of them take a part, so that the reset meets a write that runs and one that waits.
        if number.is_multiple_of(2) {
            tags::receive(&mut stream, 4, 2 * SENT, None);
        }
        until_delivered(stream);
        client::reset_on_close(stream);
    });
    let gate = gate(variant, &backend);
    for _ in 0..TIMES {
        let mut client = Busy::open(&gate, listener, 4);
        let received = tags::receive(&mut client, 3, u64::MAX, None);
        received.assert_is(SENT, tags::hash(3, SENT), End::Reset);
    }
    gate.wait_outcome("backend_reset", TIMES);
    gate.finish();
}

#[test]
fn r7_a_backends_reset_is_a_reset_for_a_client_that_uploads() {
    a_backend_resets_a_busy_client(Variant::chosen(), "tcp");
}

#[test]
fn r7_a_backends_reset_is_a_reset_for_a_client_that_uploads_by_splice() {
    a_backend_resets_a_busy_client(Variant::SPLICE, "tcp");
}

#[test]
fn r7_a_backends_reset_is_a_reset_for_a_client_that_uploads_by_copy() {
    a_backend_resets_a_busy_client(Variant::COPY, "tcp");
}

#[test]
fn r7_a_backends_reset_is_no_close_notify_for_a_client_that_uploads() {
    a_backend_resets_a_busy_client(Variant::chosen(), "https");
}

#[test]
fn r7_a_backends_reset_reaches_a_client_that_uploads_through_tls_by_rustls_alone() {
    a_backend_resets_a_busy_client(Variant::RUSTLS, "https");
}

/// Uploads until nothing moves for a moment: then the gate has the rest parked.
fn upload_until_parked(client: &mut Box<dyn Stream>) {
    SockRef::from(client.socket()).set_send_buffer_size(64 << 10).unwrap();
    client.socket().set_write_timeout(Some(Duration::from_millis(200))).unwrap();
    tags::send(client, 4, ENDLESS).expect_err("a backend that does not read");
}

/// Says a byte now and then until every client has reset, and for a while after: one of those writes of the gate
/// meets the reset. Only then does it read.
fn trickling(all_reset: &Arc<AtomicBool>, heard: mpsc::Sender<Received>) -> Backend {
    let all_reset = Arc::clone(all_reset);
    Backend::start(move |mut stream, _| {
        SockRef::from(stream).set_recv_buffer_size(64 << 10).unwrap();
        let mut after = 0;
        for _ in 0..SOON.as_millis() {
            let _ = std::io::Write::write_all(&mut stream, b"y");
            thread::sleep(Duration::from_millis(1));
            after += u32::from(all_reset.load(Ordering::SeqCst));
            if after > 100 {
                break;
            }
        }
        let _ = heard.send(tags::receive(&mut stream, 4, u64::MAX, None));
    })
}

fn clients_reset_with_a_parked_upload(variant: Variant, listener: &str) {
    const CLIENTS: u64 = 10;
    let (heard, received) = mpsc::channel();
    let all_reset = Arc::new(AtomicBool::new(false));
    let backend = trickling(&all_reset, heard);
    let gate = gate(variant, &backend);
    thread::scope(|scope| {
        for _ in 0..CLIENTS {
            scope.spawn(|| {
                let mut client = client::open(&gate, listener);
                upload_until_parked(&mut client);
                client::reset_on_close(client.socket());
            });
        }
    });
    all_reset.store(true, Ordering::SeqCst);
    for _ in 0..CLIENTS {
        let received = received.recv_timeout(LATE).expect("an end at the backend");
        assert_eq!((received.foreign, received.end), (None, End::Reset));
        assert!(received.bytes > 0);
    }
    gate.wait_outcome("client_reset", CLIENTS);
    gate.finish();
}

#[test]
fn r7_a_clients_reset_is_a_reset_while_its_upload_is_parked() {
    clients_reset_with_a_parked_upload(Variant::chosen(), "tcp");
}

#[test]
fn r7_a_clients_reset_is_a_reset_while_its_upload_is_parked_by_copy() {
    clients_reset_with_a_parked_upload(Variant::COPY, "tcp");
}

#[test]
fn r7_a_clients_reset_is_a_reset_while_its_upload_is_parked_behind_tls() {
    clients_reset_with_a_parked_upload(Variant::chosen(), "https");
}

#[test]
fn r7_a_tls_client_that_resets_a_download_is_recorded_as_that() {
    let backend = Backend::start(|mut stream, _| drop(tags::send(&mut stream, 5, ENDLESS)));
    let gate = gate(Variant::chosen(), &backend);
    for number in 0..2 * TIMES {
        let mut client = client::connect_tls(gate.address("https"));
        tags::receive(&mut client, 5, 5 * SENT, None).assert_is(5 * SENT, tags::hash(5, 5 * SENT), End::Complete);
        // The other half leave unread input behind, and the kernel resets for them.
        if number % 2 == 0 {
            client::reset_on_close(client.socket());
        }
    }
    gate.wait_outcome("client_reset", 2 * TIMES);
    gate.finish();
}

/// A timeout that cuts, on a path.
#[derive(Debug, Clone, Copy)]
struct Cut {
    timeouts: &'static str,
    outcome: &'static str,
    listener: &'static str,
    variant: Variant,
}

impl Cut {
    fn each() -> impl Iterator<Item = Self> {
        let cuts = [
            ("max_age = \"1s\"", "max_age", Variant::SPLICE),
            ("idle = \"1s\"", "idle_timeout", Variant::COPY),
            ("half_closed = \"1s\"", "half_closed_timeout", Variant::chosen()),
        ];
        cuts.into_iter().flat_map(|(timeouts, outcome, variant)| {
            PLAIN_AND_TLS.map(|listener| Self { timeouts, outcome, listener, variant })
        })
    }

    fn gate(&self, backend: &Backend) -> Gate {
        let toml = [&tcp(""), &https(""), &pool("", &[backend.address]), "[timeouts]\n", self.timeouts].concat();
        Gate::plan(&toml).variant(self.variant).start()
    }

    fn is_half_closed(&self) -> bool {
        self.outcome == "half_closed_timeout"
    }

    /// The record of the one connection.
    #[track_caller]
    fn record(&self, gate: &Gate) -> Value {
        gate.wait_outcome(self.outcome, 1);
        let record = gate.wait_records(1).remove(0);
        assert_eq!(word(&record, "outcome"), self.outcome, "{self:?}: {record}");
        record
    }

    /// The client takes nothing until long after the cut, and then what the kernel holds for it.
    fn a_download(self) {
        let backend = Backend::start(|mut stream, _| drop(tags::send(&mut stream, 9, ENDLESS)));
        let gate = self.gate(&backend);
        let mut client = client::open(&gate, self.listener);
        if self.is_half_closed() {
            client.finish_sending();
        }
        thread::sleep(Duration::from_millis(2500));
        let received = tags::receive(&mut client, 9, u64::MAX, None);
        assert_eq!((&received.foreign, received.end), (&None, End::Reset), "{self:?}");
        drop(client);
        let sent = self.record(&gate)["sent_bytes"].as_u64().unwrap();
        // TLS counts a batch when all of it is sent; the last one may have arrived in part.
        let most = if self.listener == "https" { sent + (256 << 10) } else { sent };
        assert!((sent..=most).contains(&received.bytes), "{self:?}: {} arrived, {sent} recorded", received.bytes);
        gate.finish();
    }

    /// The backend takes nothing until the client was told the end.
    fn an_upload(self) {
        let ((told, cut), (heard, words)) = (mpsc::channel(), mpsc::channel());
        let cut = std::sync::Mutex::new(cut);
        let backend = Backend::start(move |mut stream, _| {
            let _ = cut.lock().unwrap().recv_timeout(SOON);
            let _ = heard.send(tags::receive(&mut stream, 9, u64::MAX, None));
        });
        let gate = self.gate(&backend);
        let mut client = Busy::open(&gate, self.listener, 9);
        // Nothing is missing in this direction.
        tags::receive(&mut client, 1, u64::MAX, None).assert_is(0, tags::hash(1, 0), End::Eof);
        told.send(()).unwrap();
        let received = words.recv_timeout(SOON).expect("an end at the backend");
        let pushed = client.pushed();
        drop(client);
        assert_eq!((&received.foreign, received.end), (&None, End::Reset), "{self:?}");
        let taken = self.record(&gate)["received_bytes"].as_u64().unwrap();
        assert!(received.bytes < taken && taken <= pushed, "{self:?}: {received:?} of {taken} of {pushed}");
        let relayed = gate.metrics().count("sluicegate_relay_bytes_total", &[("direction", "client_to_backend")]);
        assert_eq!(relayed, received.bytes, "{self:?}");
        gate.finish();
    }
}

#[test]
fn r2_a_client_that_misses_bytes_after_a_timeout_sees_a_reset() {
    thread::scope(|scope| Cut::each().for_each(|cut| drop(scope.spawn(move || cut.a_download()))));
}

#[test]
fn r2_a_backend_that_misses_bytes_after_a_timeout_sees_a_reset() {
    let cuts = Cut::each().filter(|cut| !cut.is_half_closed());
    thread::scope(|scope| cuts.for_each(|cut| drop(scope.spawn(move || cut.an_upload()))));
}

#[test]
fn b14_connections_of_one_moment_do_not_reach_their_age_in_one_moment() {
    const CLIENTS: usize = 40;
    const AGES: RangeInclusive<f64> = 1.78..=2.3;
    let backend = Backend::echo();
    let timeouts = "[timeouts]\nmax_age = \"2s\"\n";
    let gate = Gate::start(&[&tcp(""), &pool("", &[backend.address]), timeouts].concat());
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| client::connect(gate.address("tcp"))).collect();
    for client in &mut clients {
        client::exchange(client, b"young");
    }
    for client in &mut clients {
        assert_eq!(client::read_all(client), (Vec::new(), End::Eof));
    }
    let records = gate.wait_records(CLIENTS);
    let mut ages: Vec<f64> = records.iter().map(|record| record["seconds"]["total"].as_f64().unwrap()).collect();
    ages.sort_by(f64::total_cmp);
    assert!(ages.iter().all(|age| AGES.contains(age)), "{ages:?}");
    assert!(ages[CLIENTS - 1] - ages[0] > 0.02, "{ages:?}");
    gate.wait_outcome("max_age", CLIENTS as u64);
}
