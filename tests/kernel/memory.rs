//! R14 and the budget of memory: what an idle connection and a stalled one cost.

use std::{
    io::{Read, Write},
    net::Shutdown,
};

use super::{Pair, Sender, drain, turn};
use crate::support::{LATE, Stand, Variant, raise_descriptor_limit, wait_until};

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

/// Clients that do not read what they are sent: the sender waits, and our memory does not grow.
fn stalled(listener: &str, variant: Variant, small_segments: bool, connections: usize) {
    // What is parked is at most 64 KiB; through TLS it is a batch of 256 KiB and its records. The aim is 128 KiB for both.
    let at_most = if listener == "https" { 288 << 10 } else { 96 << 10 };
    let _turn = turn();
    raise_descriptor_limit();
    let stand = if small_segments { Stand::in_small_segments(variant) } else { Stand::start(variant) };
    let mut pairs: Vec<_> = (0..connections).map(|_| idle(&stand, listener)).collect();
    let before = stand.gate.process.memory();
    let mut senders = Sender::of(&pairs);
    let mut full = || {
        wait_until(LATE, "senders that wait", || senders.iter_mut().map(Sender::push).sum::<u64>() == 0);
        stand.gate.process.memory()
    };
    let first = full();
    let later = (0..20).map(|_| full()).max().unwrap_or(first);
    let each = |memory: u64| memory.saturating_sub(before) / connections as u64;
    println!("{listener} {variant:?}: {} bytes for each stalled reader, later {}", each(first), each(later));
    assert!(each(later) <= at_most, "{listener} {variant:?}: {} bytes for each stalled reader", each(later));
    assert!(each(later) <= each(first) + (4 << 10), "it grows: {first} {later}");
    drain(&mut pairs, &senders);
    for (client, backend) in &mut pairs {
        backend.shutdown(Shutdown::Write).unwrap();
        assert_eq!(client.read(&mut [0]).unwrap(), 0, "nothing but the end is left");
    }
    drop((pairs, senders));
    stand.gate.finish();
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
