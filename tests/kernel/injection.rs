//! R3: splice fails in every way it may, and the content is the same.

use std::{
    io::{Read, Write},
    net::Shutdown,
    thread,
    time::Duration,
};

use crate::support::{Metrics, Stand, Strace, Variant, tags::Tag};

const LENGTH: usize = 8 << 20;

/// A relay that stands still is given up after this time.
const PATIENCE: Duration = Duration::from_secs(2);

/// The length that the gate asks of every fill; an emptying asks for what is in the pipe.
const FILL: &str = ", 1048576, ";

/// What an upload under strace came to.
struct Transfer {
    whole: bool,
    /// What arrived is how the payload begins.
    is_beginning: bool,
    received: usize,
    /// Each call of splice, as strace tells it.
    calls: Vec<String>,
    metrics: Metrics,
}

impl Transfer {
    fn injected(&self) -> impl Iterator<Item = &String> {
        self.calls.iter().filter(|call| call.contains("(INJECTED)"))
    }
}

/// An upload under strace: what arrived, the calls of splice, and the metrics at the end.
fn transfer_with(error: &str) -> Option<Transfer> {
    let stand = Stand::start(Variant { workers: 1, ..Variant::SPLICE });
    let (mut client, mut backend) = stand.join_plain();
    for stream in [&client, &backend] {
        stream.set_read_timeout(Some(PATIENCE)).unwrap();
        stream.set_write_timeout(Some(PATIENCE)).unwrap();
    }
    let inject = format!("inject=splice:error={error}:when=3+7");
    let strace = Strace::attach(&stand.gate.process, &["-e", "trace=splice", "-e", &inject])?;
    // Made beforehand: the source should never be empty, so that fills and emptyings alternate.
    let payload = Tag::new(1).bytes(LENGTH);
    let mut received = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            // A relay that ends early shows at the other end.
            let _ = client.write_all(&payload);
            let _ = client.shutdown(Shutdown::Write);
            let _ = client.read(&mut [0]);
        });
        // What it came to shows in what was received.
        let _ = backend.read_to_end(&mut received);
        drop(backend);
    });
    let report = strace.detach();
    let calls = report.lines().filter(|line| line.contains("splice(")).map(str::to_owned).collect();
    let metrics = stand.gate.metrics();
    stand.gate.finish();
    let (whole, is_beginning) = (received == payload, payload.starts_with(&received));
    Some(Transfer { whole, is_beginning, received: received.len(), calls, metrics })
}

/// As above, once the errors fell on fills alone: on the way out of a pipe the kernel does not say these words without
/// a reason, and which call is hit is a matter of timing. A lie that the socket is empty, told when everything that the
/// window has room for is there, has no wake-up behind it and stands still: the kernel does not tell it (rule 9).
fn fills_fail_with(error: &str) -> Option<Transfer> {
    for attempt in 1..=20 {
        let transfer = transfer_with(error)?;
        assert!(transfer.is_beginning, "{error}: other bytes arrived than were sent");
        let stands_still = error == "EAGAIN" && !transfer.whole;
        if transfer.injected().all(|call| call.contains(FILL)) && !stands_still {
            println!("{error}: attempt {attempt}");
            return Some(transfer);
        }
    }
    panic!("{error} never fell on fills alone");
}

/// The content is the same and nothing spins.
fn content_survives(error: &str) -> Option<Metrics> {
    /// A pipe of 16 slots of at least a page, one call to fill it and one to empty it, and as much again.
    const CALLS_PER_MIB: usize = 64;
    let transfer = if error == "EINTR" { transfer_with(error)? } else { fills_fail_with(error)? };
    assert!(transfer.whole, "{error}: {} bytes arrived, {LENGTH} were sent", transfer.received);
    let (calls, injected) = (transfer.calls.len(), transfer.injected().count());
    let per_mib = calls / (LENGTH >> 20);
    println!("{error}: {injected} of {calls} calls of splice failed, {per_mib} per MiB");
    assert!(injected > 0, "{error}: no call failed");
    assert!(per_mib <= CALLS_PER_MIB, "{error}: {per_mib} calls of splice per MiB");
    Some(transfer.metrics)
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
    assert!(copied > LENGTH as u64 / 2, "{copied} bytes were copied");
}

#[test]
fn r3_without_memory_a_round_is_copied() {
    let Some(metrics) = content_survives("ENOMEM") else { return };
    assert!(fallbacks(&metrics, "no_memory") > 0);
    let spliced =
        metrics.count("sluicegate_relay_bytes_total", &[("path", "splice"), ("direction", "client_to_backend")]);
    assert!(spliced > LENGTH as u64 / 4, "{spliced} bytes by splice: one round is no reason to give it up");
}
