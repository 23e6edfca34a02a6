//! T6, T7, S13: handshakes that are slow, never come, or are too big cost only those who make them.

use std::{
    io::{ErrorKind, Read, Write},
    net::TcpStream,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use super::{full, p99, repeat_for};
use crate::support::{
    Backend, Gate, LATE, SOON,
    client::{self, connect_tls, exchange},
    gate::{https, pool},
    hello::Hello,
    raise_descriptor_limit, turn, wait_until,
};

fn hello() -> Vec<u8> {
    Hello::new("foobar.com", Arc::new(client::config(rustls::ALL_VERSIONS))).whole()
}

/// A crowd that never completes a handshake: a third says nothing, a third half a hello, a third a byte a second.
struct Slow {
    quiet: Vec<TcpStream>,
    trickling: Vec<TcpStream>,
    hello: Vec<u8>,
    said: usize,
}

impl Slow {
    fn connect(gate: &Gate, count: usize) -> Self {
        let hello = hello();
        let (mut quiet, mut trickling) = (Vec::new(), Vec::new());
        for number in 0..count {
            let mut stream = client::connect(gate.address("https"));
            if number % 3 == 1 {
                stream.write_all(&hello[..hello.len() / 2]).unwrap();
            }
            stream.set_nonblocking(true).unwrap();
            (if number % 3 == 2 { &mut trickling } else { &mut quiet }).push(stream);
        }
        Self { quiet, trickling, hello, said: 0 }
    }

    /// One byte more from each that trickles.
    fn trickle(&mut self) {
        let byte = self.hello[self.said];
        self.said += 1;
        for stream in &mut self.trickling {
            // One that was ended shows when it is read.
            let _ = stream.write(&[byte]);
        }
    }

    /// Lets those go that have ended; whether that were all.
    fn have_ended(&mut self) -> bool {
        let open = |stream: &mut TcpStream| stream.read(&mut [0; 64]).is_err_and(|e| e.kind() == ErrorKind::WouldBlock);
        self.quiet.retain_mut(open);
        self.trickling.retain_mut(open);
        self.quiet.is_empty() && self.trickling.is_empty()
    }
}

fn in_progress(gate: &Gate) -> u64 {
    gate.metrics().count("sluicegate_tls_handshakes_in_progress", &[])
}

/// Whole handshakes and an exchange, one after the other.
fn legitimate(gate: &Gate, time: Duration) -> (usize, Duration) {
    let taken = repeat_for(time, || exchange(&mut connect_tls(gate.address("https")), b"legitimate"));
    (taken.len(), p99(taken))
}

#[test]
fn t6_s13_slow_handshakes_cost_only_themselves() {
    const MEMORY: u64 = 100 << 20;
    let (count, limit) = if full() { (8_000, Duration::from_secs(20)) } else { (1_500, Duration::from_secs(6)) };
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::echo();
    let timeouts = format!("[timeouts]\nhandshake = \"{}s\"\n[log]\naccess = \"off\"\n", limit.as_secs());
    let gate = Gate::start(&[https(""), pool("", &[backend.address]), timeouts].concat());
    let time = limit / 3;
    let (_, control) = legitimate(&gate, time);
    let before = gate.process.memory();
    let stop = AtomicBool::new(false);
    let begin = Instant::now();
    let mut slow = Slow::connect(&gate, count);
    gate.wait_metrics("all of them", |m| m.count("sluicegate_tls_handshakes_in_progress", &[]) == count as u64);
    let held = gate.process.memory().saturating_sub(before);
    let (served, beside) = thread::scope(|scope| {
        let crowd = scope.spawn(|| {
            while !stop.load(Ordering::SeqCst) {
                slow.trickle();
                thread::sleep(Duration::from_secs(1));
            }
        });
        let beside = legitimate(&gate, time);
        stop.store(true, Ordering::SeqCst);
        crowd.join().unwrap();
        beside
    });
    println!(
        "S13: {count} slow handshakes, {} KiB each, {} MiB in all; {served} legitimate ones beside them, 0 failed, p99 \
         {beside:?}, without {control:?}",
        held / 1024 / count as u64,
        held >> 20
    );
    assert!(held <= MEMORY, "{held}");
    // In a short run on a busy machine one percent are a few, and the crowd's own thread takes its share.
    let allowed = if full() { control.mul_f64(1.1) } else { control * 3 + Duration::from_millis(20) };
    assert!(beside <= allowed, "{beside:?} beside, {control:?} without");
    wait_until(LATE, "the deadline", || slow.have_ended());
    let gone = begin.elapsed();
    println!("the last of them gone {gone:?} after the first came, {limit:?} are given");
    assert_eq!(in_progress(&gate), 0);
    gate.wait_outcome("handshake_timeout", count as u64);
    gate.finish();
}

/// At the limit the oldest handshakes make room: who comes is served, and relays are not touched.
#[test]
fn t6_silent_clients_do_not_take_the_places_of_others() {
    const LIMIT: usize = 160;
    const RELAYS: usize = 40;
    let _turn = turn();
    let backend = Backend::echo();
    let timeouts = "[timeouts]\nhandshake = \"1m\"\n";
    let gate = Gate::plan(&[&https(""), &pool("", &[backend.address]), timeouts].concat())
        .global(&format!("max_connections = {LIMIT}"))
        .start();
    let mut relays: Vec<_> = (0..RELAYS).map(|_| connect_tls(gate.address("https"))).collect();
    // Silent, or with half a hello; ten times as many as there are places.
    let (mut slow, hello) = (Vec::new(), hello());
    for number in 0..10 * LIMIT {
        let mut stream = client::connect(gate.address("https"));
        if number % 2 == 0 {
            // It may have been ended already.
            let _ = stream.write_all(&hello[..100]);
        }
        slow.push(stream);
        if number % 40 == 39 {
            exchange(&mut connect_tls(gate.address("https")), b"served beside");
        }
    }
    for relay in &mut relays {
        exchange(relay, b"still here");
    }
    let metrics = gate.metrics();
    let (ended, waiting) = (metrics.outcome("handshake_timeout"), in_progress(&gate));
    println!(
        "T6: {} silent clients at a limit of {LIMIT} with {RELAYS} relays: {ended} made room, {waiting} wait, {} refused",
        slow.len(),
        metrics.outcome("max_connections")
    );
    assert!(ended > 0 && (waiting as usize) < LIMIT - RELAYS, "{ended} {waiting}");
    assert_eq!(metrics.outcome("max_connections"), 0);
    drop((slow, relays));
    gate.finish();
}

/// 60 KB of an unfinished hello from each.
#[test]
fn t7_hellos_that_do_not_end_are_refused_at_16_kib_and_leave_nothing() {
    const ROOM: usize = 16 << 10;
    const EACH: u64 = 24 << 10;
    let count = if full() { 5_000 } else { 600 };
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::echo();
    let toml = [&https(""), &pool("", &[backend.address]), "[timeouts]\nhandshake = \"1m\"\n[log]\naccess = \"off\"\n"];
    let gate = Gate::start(&toml.concat());
    exchange(&mut connect_tls(gate.address("https")), b"warm");
    let message = [&[1, 0, 0xea, 0x60, 3, 3][..], &vec![b'a'; 60_000]].concat();
    let record = |piece: &[u8]| [&[22, 3, 1][..], &(piece.len() as u16).to_be_bytes(), piece].concat();
    let records: Vec<u8> = message.chunks(ROOM).flat_map(record).collect();
    let before = gate.process.memory();
    // As much as is taken, and then nothing more for a while.
    let mut streams: Vec<_> = (0..count).map(|_| client::connect(gate.address("https"))).collect();
    for stream in &mut streams {
        stream.write_all(&records[..ROOM - 100]).unwrap();
    }
    gate.wait_metrics("all", |m| m.count("sluicegate_tls_handshakes_in_progress", &[]) == count);
    let held = gate.process.memory().saturating_sub(before) / count;
    for stream in &mut streams {
        // Refused while it is written.
        let _ = stream.write_all(&records[ROOM - 100..]);
    }
    gate.wait_outcome("tls_error", count);
    drop(streams);
    wait_until(SOON, "the end of all", || in_progress(&gate) == 0);
    let after = gate.process.memory().saturating_sub(before) / count;
    println!("T7: {count} hellos of 60 KB: {held} bytes each while they last, {after} afterwards");
    assert!(held <= EACH, "{held}");
    gate.finish();
}

/// Floods of half-open connections and of resets in every phase of a handshake.
#[test]
fn t6_resets_in_every_phase_leave_nothing() {
    let rounds = if full() { 2_000 } else { 200 };
    let backend = Backend::echo();
    let gate = Gate::start(&[https(""), pool("", &[backend.address])].concat());
    let hello = hello();
    for round in 0..rounds {
        let mut stream = client::connect(gate.address("https"));
        let cut = [0, 1, 5, 6, 100, hello.len() - 1, hello.len()][round % 7];
        // The reset may overtake an answer.
        let _ = stream.write_all(&hello[..cut]);
        if round % 3 == 0 && cut == hello.len() {
            let _ = stream.read(&mut [0; 1]);
        }
        client::reset(stream);
        let whole = connect_tls(gate.address("https"));
        client::reset(whole.sock);
    }
    gate.wait_metrics("all ended", |m| {
        m.count("sluicegate_connections_closed_total", &[]) == 2 * rounds as u64
            && m.count("sluicegate_tls_handshakes_in_progress", &[]) == 0
    });
    assert_eq!(gate.metrics().count("sluicegate_panics_total", &[]), 0);
    gate.finish();
}
