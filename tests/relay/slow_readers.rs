//! R6, R11, R16: a slow reader is no silent one, loses nothing to a stop, and is spliced to.

use std::{
    io::{self, Read, Write},
    sync::mpsc,
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use socket2::SockRef;

use super::gate;
use crate::support::{
    Backend, Gate, Metrics, SOON, Variant,
    client::{self, PLAIN_AND_TLS, Stream},
    gate::{https, pool, tcp, word},
    tags::{self, End},
    wait_until,
};

/// Reads so many bytes a second, a little at a time.
struct Slowly<'a> {
    client: &'a mut Box<dyn Stream>,
    rate: u64,
    /// Says something after each read.
    talks: bool,
    taken: u64,
    since: Instant,
}

impl<'a> Slowly<'a> {
    fn new(client: &'a mut Box<dyn Stream>, rate: u64, talks: bool) -> Self {
        Self { client, rate, talks, taken: 0, since: Instant::now() }
    }
}

impl Read for Slowly<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let room = buffer.len().min(8 << 10);
        let count = self.client.read(&mut buffer[..room])?;
        self.taken += count as u64;
        if self.talks {
            let _ = self.client.write_all(b"u");
        }
        let due = Duration::from_millis(self.taken * 1000 / self.rate);
        thread::sleep(due.saturating_sub(self.since.elapsed()));
        Ok(count)
    }
}

/// A client of the listener that has room for this many bytes, so that the rest stays with us.
fn small_client(gate: &Gate, listener: &str, room: usize) -> Box<dyn Stream> {
    let socket = client::connect(gate.address(listener));
    SockRef::from(&socket).set_recv_buffer_size(room).unwrap();
    if listener == "https" {
        Box::new(client::handshake(socket, "foobar.com", client::config_with(|_| ())).unwrap())
    } else {
        Box::new(socket)
    }
}

/// The kernel takes more from us only when a third of its send buffer was read, which takes seconds here. The client has
/// a small buffer and so confirms often: the second look of such a short limit comes after a quarter of a second, and
/// does not see who confirms more rarely (docs/relay.md, "Timers").
#[test]
fn r16_a_reader_that_is_slow_is_not_silent() {
    const SIZE: u64 = 5 << 20;
    const RATE: u64 = 500_000;
    let backend = Backend::start(|mut stream, _| {
        tags::send(&mut stream, 1, SIZE).unwrap();
        let _ = io::copy(&mut stream, &mut io::sink()); // the client ends first
    });
    let timeouts = "[timeouts]\nidle = \"1s\"\nhalf_closed = \"1s\"\n";
    let gate = Gate::start(&[&tcp(""), &https(""), &pool("", &[backend.address]), timeouts].concat());
    let expected = tags::hash(1, SIZE);
    thread::scope(|scope| {
        for (listener, half_closed) in PLAIN_AND_TLS.into_iter().flat_map(|l| [(l, false), (l, true)]) {
            let gate = &gate;
            scope.spawn(move || {
                let mut client = small_client(gate, listener, 16 << 10);
                if half_closed {
                    client.finish_sending();
                }
                let received = tags::receive(&mut Slowly::new(&mut client, RATE, false), 1, SIZE, None);
                received.assert_is(SIZE, expected, End::Complete);
                if !half_closed {
                    client.finish_sending();
                }
            });
        }
    });
    gate.wait_outcome("client_closed", 4);
    gate.finish();
}

/// The kernel took the whole answer, the client has read little of it and goes on talking.
#[test]
fn r6_a_stop_leaves_a_slow_client_what_the_kernel_took_for_it() {
    const ANSWER: u64 = 600_000;
    for listener in PLAIN_AND_TLS {
        let backend = Backend::start(|mut stream, _| {
            tags::send(&mut stream, 6, ANSWER).unwrap();
            let _ = io::copy(&mut stream, &mut io::sink());
        });
        let mut gate = gate(Variant::chosen(), &backend);
        let mut client = small_client(&gate, listener, 32 << 10);
        let sent = |m: &Metrics| m.count("sluicegate_listener_sent_bytes_total", &[]);
        gate.wait_metrics("an answer that the kernel has", |m| sent(m) == ANSWER);
        gate.process.signal(Signal::TERM);
        let received = tags::receive(&mut Slowly::new(&mut client, 800_000, true), 6, u64::MAX, None);
        received.assert_is(ANSWER, tags::hash(6, ANSWER), End::Eof);
        drop(client);
        gate.stop_now();
        let record = &gate.records()[0];
        assert_eq!((word(record, "outcome"), &record["sent_bytes"]), ("drained".to_owned(), &ANSWER.into()));
    }
}

/// A backend that closes at once makes every read look like the last one of a burst.
#[test]
fn r11_what_a_backend_sent_before_it_closed_is_spliced() {
    const BULK: u64 = 100 << 20;
    let (sent, hash) = mpsc::channel();
    let backend = Backend::start(move |mut stream, _| {
        let _ = sent.send(tags::send(&mut stream, 11, BULK));
    });
    let gate = gate(Variant::AUTO, &backend);
    let mut client = client::connect(gate.address("tcp"));
    let received = tags::receive(&mut client, 11, u64::MAX, Some(Duration::from_micros(200)));
    received.assert_is(BULK, hash.recv().unwrap().unwrap(), End::Eof);
    drop(client);
    wait_until(SOON, "an end", || gate.metrics().outcome("backend_closed") == 1);
    let labels = [("direction", "backend_to_client"), ("path", "splice")];
    let spliced = gate.metrics().count("sluicegate_relay_bytes_total", &labels);
    assert!(spliced >= BULK / 100 * 99, "{spliced} of {BULK} by splice");
    gate.finish();
}
