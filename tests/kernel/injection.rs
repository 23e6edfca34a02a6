//! R3: splice fails in every way it may, and the content is the same.

use std::{io::Read, net::Shutdown, thread, time::Duration};

use crate::support::{
    Metrics, Stand, Strace, Variant,
    tags::{self, End, Received},
};

const LENGTH: u64 = 24 << 20;

/// A relay that stands still is given up after this time.
const PATIENCE: Duration = Duration::from_secs(3);

/// The length that the gate asks of every fill; an emptying asks for what is in the pipe.
const FILL: &str = ", 1048576, ";

/// An upload under strace: what arrived, the calls of splice, and the metrics at the end.
fn transfer_with(error: &str) -> Option<(Received, Vec<String>, Metrics)> {
    let stand = Stand::start(Variant { workers: 1, ..Variant::SPLICE });
    let (mut client, mut backend) = stand.join_plain();
    for stream in [&client, &backend] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let inject = format!("inject=splice:error={error}:when=3+7");
    let strace = Strace::attach(&stand.gate.process, &["-e", "trace=splice", "-e", &inject])?;
    let received = thread::scope(|scope| {
        scope.spawn(move || {
            // A relay that ends early shows at the other end.
            let _ = tags::send(&mut client, 1, LENGTH);
            let _ = client.shutdown(Shutdown::Write);
            let _ = client.read(&mut [0]);
        });
        let received = tags::receive(&mut backend, 1, u64::MAX, None);
        drop(backend);
        received
    });
    let report = strace.detach();
    let calls = report.lines().filter(|line| line.contains("splice(")).map(str::to_owned).collect();
    let metrics = stand.gate.metrics();
    stand.gate.finish();
    Some((received, calls, metrics))
}

/// As above, once the errors fell on fills alone: on the way out of a pipe the kernel does not say these words without
/// a reason, and which call is hit is a matter of timing.
fn fills_fail_with(error: &str) -> Option<(Received, Vec<String>, Metrics)> {
    for attempt in 1..=10 {
        let (received, calls, metrics) = transfer_with(error)?;
        let mut injected = calls.iter().filter(|call| call.contains("(INJECTED)"));
        if injected.clone().count() > 0 && injected.all(|call| call.contains(FILL)) {
            println!("{error}: attempt {attempt}");
            return Some((received, calls, metrics));
        }
    }
    panic!("{error} never fell on fills alone");
}

/// The content is the same and nothing spins.
fn content_survives(error: &str) -> Option<Metrics> {
    /// A pipe of 16 slots of at least a page, one call to fill it and one to empty it, and as much again.
    const CALLS_PER_MIB: u64 = 64;
    let (received, calls, metrics) = if error == "EINTR" { transfer_with(error)? } else { fills_fail_with(error)? };
    received.assert_is(LENGTH, tags::hash(1, LENGTH), End::Eof);
    let injected = calls.iter().filter(|call| call.contains("(INJECTED)")).count();
    let per_mib = calls.len() as u64 / (LENGTH >> 20);
    println!("{error}: {injected} of {} calls of splice failed, {per_mib} per MiB", calls.len());
    assert!(injected > 0, "{error}: no call failed");
    assert!(per_mib <= CALLS_PER_MIB, "{error}: {per_mib} calls of splice per MiB");
    Some(metrics)
}

fn fallbacks(metrics: &Metrics, reason: &str) -> u64 {
    metrics.count("sluicegate_relay_fallbacks_total", &[("reason", reason)])
}

#[test]
fn r3_would_block_without_a_reason_harms_nothing() {
    content_survives("EAGAIN");
}

#[test]
fn r3_an_interrupted_splice_is_made_again() {
    content_survives("EINTR");
}

#[test]
fn r3_r11_einval_leaves_a_copy_and_a_reason() {
    let Some(metrics) = content_survives("EINVAL") else { return };
    assert_eq!(fallbacks(&metrics, "einval"), 1, "this direction copies for good");
    let copied = metrics.count("sluicegate_relay_bytes_total", &[("path", "copy"), ("direction", "client_to_backend")]);
    assert!(copied > LENGTH / 2, "{copied} bytes were copied");
}

#[test]
fn r3_without_memory_a_round_is_copied() {
    let Some(metrics) = content_survives("ENOMEM") else { return };
    assert!(fallbacks(&metrics, "no_memory") > 0);
    let spliced =
        metrics.count("sluicegate_relay_bytes_total", &[("path", "splice"), ("direction", "client_to_backend")]);
    assert!(spliced > LENGTH / 4, "{spliced} bytes by splice: one round is no reason to give it up");
}
