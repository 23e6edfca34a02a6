//! R14 and the budget of memory: what an idle connection and a stalled one cost.

use std::{
    io::{ErrorKind, Read, Write},
    net::Shutdown,
};

use super::{Pair, Receiver, Sender, drain_from, turn};
use crate::support::{LATE, Stand, Variant, client::Stream, raise_descriptor_limit, tags::Tag, wait_until};

/// A connection that has said something once.
fn idle(stand: &Stand, listener: &str) -> Pair {
    let (mut client, mut backend) = stand.join(listener);
    client.write_all(b"question").unwrap();
    client.flush().unwrap();
    backend.read_exact(&mut [0; 8]).unwrap();
    backend.write_all(b"answer").unwrap();
    client.read_exact(&mut [0; 6]).unwrap();
    (client, backend)
}

/// Bytes of memory for each further idle connection, over the steps.
fn idle_slopes(listener: &str, steps: [usize; 3]) -> [u64; 2] {
    let _turn = turn();
    raise_descriptor_limit();
    let stand = Stand::start(Variant::AUTO);
    let mut pairs = Vec::new();
    let memory = steps.map(|step| {
        pairs.extend((pairs.len()..step).map(|_| idle(&stand, listener)));
        stand.gate.process.memory()
    });
    let slopes = [0, 1].map(|at| memory[at + 1].saturating_sub(memory[at]) / (steps[at + 1] - steps[at]) as u64);
    println!("{listener}: {memory:?} bytes with {steps:?} idle connections, {slopes:?} for each more");
    assert_eq!(super::pipes_in_use(&stand), 0);
    drop(pairs);
    stand.gate.finish();
    slopes
}

/// The target of a release build is 2.5 KiB.
#[test]
fn s9_an_idle_connection_is_small() {
    const AT_MOST: u64 = 4 << 10;
    let slopes = idle_slopes("tcp", [500, 1500, 3500]);
    assert!(slopes[1] <= AT_MOST, "{slopes:?}");
}

/// The target of a release build is 8 KiB.
#[test]
fn s10_an_idle_tls_connection_is_small() {
    const AT_MOST: u64 = 12 << 10;
    let slopes = idle_slopes("https", [500, 1500, 3500]);
    assert!(slopes[1] <= AT_MOST, "{slopes:?}");
}

/// Most bytes of memory for each client that does not read, and for each backend: what is parked there is opened records
/// and the beginning of one more.
const STALLED_CLIENT: u64 = 128 << 10;
const STALLED_BACKEND: u64 = 128 << 10;

/// Clients that do not read what they are sent: the sender waits, and our memory does not grow. In between they read a
/// little now and then, so that much waits for us in the kernel and reads are as large as they get.
fn stalled(listener: &str, variant: Variant, small_segments: bool, connections: usize) {
    let _turn = turn();
    raise_descriptor_limit();
    let stand = if small_segments { Stand::in_small_segments(variant) } else { Stand::start(variant) };
    let mut pairs: Vec<_> = (0..connections).map(|_| idle(&stand, listener)).collect();
    let before = stand.gate.process.memory();
    let mut senders = Sender::of(&pairs);
    let mut receivers = Receiver::of(&pairs);
    let mut full = || {
        wait_until(LATE, "senders that wait", || senders.iter_mut().map(Sender::push).sum::<u64>() == 0);
        stand.gate.process.memory()
    };
    let first = full();
    let later = (0..20).map(|_| full()).max().unwrap_or(first);
    let slow = (0..5).map(|_| {
        for ((client, _), receiver) in pairs.iter_mut().zip(&mut receivers) {
            assert!(!receiver.pull_some(&mut **client, 256 << 10), "an end");
        }
        full()
    });
    let slow = slow.max().unwrap_or(first);
    let each = |memory: u64| memory.saturating_sub(before) / connections as u64;
    let figures = [first, later, slow].map(each);
    println!("{listener} {variant:?}: {figures:?} bytes for each stalled reader: first, later, between slow reads");
    assert!(figures.iter().all(|figure| *figure <= STALLED_CLIENT), "{listener} {variant:?}: {figures:?}");
    assert!(each(later) <= each(first) + (4 << 10), "it grows: {first} {later}");
    drain_from(&mut pairs, &senders, receivers);
    for (client, backend) in &mut pairs {
        backend.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "nothing but the end is left");
    }
    drop((pairs, senders));
    stand.gate.finish();
}

/// The other direction: backends that do not read what clients upload through TLS.
#[test]
fn r14_a_stalled_backend_costs_a_bounded_amount_behind_tls() {
    const CONNECTIONS: usize = 100;
    let _turn = turn();
    raise_descriptor_limit();
    let stand = Stand::start(Variant::AUTO);
    let mut pairs: Vec<_> = (0..CONNECTIONS).map(|_| idle(&stand, "https")).collect();
    let before = stand.gate.process.memory();
    let mut sent = vec![0; CONNECTIONS];
    let mut receivers = Receiver::of(&pairs);
    let mut most = 0;
    for _ in 0..5 {
        wait_until(LATE, "clients that wait", || {
            let each = pairs.iter_mut().zip(&mut sent).enumerate();
            each.map(|(id, ((client, _), sent))| upload(&mut **client, id as u64, sent)).sum::<u64>() == 0
        });
        most = most.max(stand.gate.process.memory().saturating_sub(before) / CONNECTIONS as u64);
        for ((_, backend), receiver) in pairs.iter_mut().zip(&mut receivers) {
            assert!(!receiver.pull_some(backend, 256 << 10), "an end");
        }
    }
    println!("{most} bytes for each stalled backend");
    assert!(most <= STALLED_BACKEND, "{most} bytes for each stalled backend");
    wait_until(LATE, "every byte that was sent", || {
        let each = pairs.iter_mut().zip(&mut receivers).zip(&sent);
        each.map(|(((client, backend), receiver), sent)| {
            // What rustls keeps of it has to go as well.
            let _ = client.flush();
            receiver.pull(backend);
            sent - receiver.received
        })
        .sum::<u64>()
            == 0
    });
    drop(pairs);
    stand.gate.finish();
}

/// Sends tagged bytes as far as they are taken; how many were.
fn upload(client: &mut dyn Stream, id: u64, sent: &mut u64) -> u64 {
    let (tag, before, mut buffer) = (Tag::new(id), *sent, [0; 16 << 10]);
    client.socket().set_nonblocking(true).unwrap();
    loop {
        tag.fill(*sent, &mut buffer);
        match client.write(&buffer) {
            Ok(0) => break,
            Ok(count) => *sent += count as u64,
            Err(error) if error.kind() == ErrorKind::WouldBlock => break,
            Err(error) => panic!("after {sent} bytes: {error}"),
        }
    }
    *sent - before
}

#[test]
fn r14_a_stalled_reader_costs_a_bounded_amount_by_copy() {
    stalled("tcp", Variant::COPY, true, 300);
}

#[test]
fn r14_a_stalled_reader_costs_a_bounded_amount_by_splice() {
    stalled("tcp", Variant::SPLICE, true, 300);
}

#[test]
fn r14_a_stalled_tls_reader_costs_a_bounded_amount() {
    stalled("https", Variant::AUTO, true, 300);
}

#[test]
fn r14_a_stalled_tls_reader_behind_large_buffers_costs_a_bounded_amount() {
    stalled("https", Variant::AUTO, false, 40);
}
