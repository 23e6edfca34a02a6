//! The cells of the data path: one block per worker, written by that worker alone.

use std::{
    array,
    marker::PhantomData,
    ops::Deref,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::{
    histogram::{CONNECTION_BOUNDS, Histogram, SETUP_BOUNDS, Snapshot},
    labels::{
        AcceptError, CheckResult, ConnectFailure, Direction, Fallback, HandshakeFailure, Label, RelayPath, Resumption,
        Transition,
    },
    sources::{BanKind, LimitReason},
};
use crate::{
    config::TlsVersion,
    outcome::Outcome,
    proxy_protocol::{self, Version},
};

/// A number that only grows, with **one writer**: the worker whose block it is in. Two threads adding at once would lose
/// counts (not memory safety). Any thread may read.
#[derive(Debug, Default)]
pub struct Counter(AtomicU64);

/// A number that is set by its one writer.
#[derive(Debug, Default)]
pub struct Level(AtomicU64);

/// One counter for each value of a closed set; `N` is `L::ALL.len()`.
#[derive(Debug)]
pub struct Family<L, const N: usize> {
    counters: [Counter; N],
    label: PhantomData<fn(L)>,
}

/// Keeps neighbours apart: 128 bytes, because x86 fetches cache lines in pairs.
#[derive(Debug, Default)]
#[repr(align(128))]
pub struct Padded<T>(T);

/// One `T` for each worker, and one for the processes before this one.
#[derive(Debug)]
pub struct PerWorker<T>(Box<[Padded<T>]>, Padded<T>);

/// What one worker counts for one listener.
#[derive(Debug)]
pub struct ListenerCells {
    /// Every connection `accept` returned, the denied ones too.
    pub accepted: Counter,
    /// Each accepted connection once, when it is over. Added after everything else about it, and never before `accepted`.
    pub closed: Family<Outcome, { Outcome::ALL.len() }>,
    /// Bytes from clients, plaintext side.
    pub received_bytes: Counter,
    /// Bytes to clients, plaintext side.
    pub sent_bytes: Counter,
    pub accept_errors: Family<AcceptError, { AcceptError::ALL.len() }>,
    /// Clients turned away for what their source does.
    pub limited: Family<LimitReason, { LimitReason::ALL.len() }>,
    /// Idle sources forgotten to make room for one of its clients.
    pub limits_evictions: Counter,
    /// Clients that no limit counts, because there was no room for their source.
    pub limits_uncounted: Counter,
    /// Accept to close.
    pub duration: Histogram<14>,
    tls_handshakes: [Family<Resumption, { Resumption::ALL.len() }>; TlsVersion::ALL.len()],
    pub tls_failures: Family<HandshakeFailure, { HandshakeFailure::ALL.len() }>,
    pub tls_in_progress: Level,
    pub proxy_headers: Family<Version, { Version::ALL.len() }>,
    pub proxy_failures: Family<proxy_protocol::Failure, { proxy_protocol::Failure::ALL.len() }>,
    pub proxy_in_progress: Level,
    /// First byte expected to handshake complete.
    pub tls_duration: Histogram<16>,
}

/// What one worker counts for one firewall rule under one action.
#[derive(Debug, Default)]
pub struct RuleCells {
    /// Connections it decided, or would have decided when the action is a shadow one.
    pub connections: Counter,
}

/// What the control thread counts for one firewall rule that the kernel has; there is one block of it.
#[derive(Debug, Default)]
pub struct OffloadCells {
    /// Packets that the kernel has denied by it.
    pub packets: Counter,
}

/// What one worker counts for itself.
#[derive(Debug, Default)]
pub struct WorkerCells {
    /// Connections this worker serves.
    pub connections: Level,
    /// TLS handshakes and PROXY headers of any listener that are not complete.
    pub handshakes: Level,
    relay_bytes: [Family<Direction, { Direction::ALL.len() }>; RelayPath::ALL.len()],
    /// Relays that wanted to splice and copied.
    pub fallbacks: Family<Fallback, { Fallback::ALL.len() }>,
    /// Pipes lent to a relay.
    pub pipes_in_use: Level,
    /// Empty pipes kept for the next relay.
    pub pipes_pooled: Level,
}

/// What one worker counts for one pool.
#[derive(Debug)]
pub struct PoolCells {
    /// Further backends tried after a failed connect.
    pub retries: Counter,
    /// Successful connects only: a failed one has its reason instead.
    pub connect_duration: Histogram<16>,
}

/// What one worker counts for one backend.
#[derive(Debug, Default)]
pub struct BackendCells {
    /// Successful connects.
    pub connections: Counter,
    pub connect_failures: Family<ConnectFailure, { ConnectFailure::ALL.len() }>,
}

/// What the control thread counts for one backend; there is one block of it.
#[derive(Debug, Default)]
pub struct CheckCells {
    pub checks: Family<CheckResult, { CheckResult::ALL.len() }>,
    pub transitions: Family<Transition, { Transition::ALL.len() }>,
}

/// What the control thread counts of bans; there is one block of it.
#[derive(Debug, Default)]
pub struct BanCells {
    pub bans: Family<BanKind, { BanKind::ALL.len() }>,
}

/// The connections of a listener at one moment: `accepted` is always `closed` and `live` together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Connections {
    pub accepted: u64,
    /// In the order of `Outcome::ALL`.
    pub closed: [u64; Outcome::ALL.len()],
    pub live: u64,
}

impl Counter {
    /// Adds by load and store: no locked instruction, which is why there is one writer.
    pub fn add(&self, n: u64) {
        // Release costs nothing on x86; it lets a reader who sees this addition see every earlier one of this worker.
        self.0.store(self.0.load(Ordering::Relaxed).wrapping_add(n), Ordering::Release);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Acquire)
    }
}

impl Level {
    pub fn set(&self, n: u64) {
        self.0.store(n, Ordering::Relaxed);
    }

    pub fn value(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

impl<L: Label, const N: usize> Family<L, N> {
    /// The counter of one label value.
    #[expect(clippy::indexing_slicing, reason = "N is L::ALL.len(), checked when compiled, and labels are below it")]
    pub fn at(&self, label: L) -> &Counter {
        const { assert!(N == L::ALL.len(), "one counter for each label") };
        &self.counters[label.index()]
    }
}

impl<L, const N: usize> Default for Family<L, N> {
    fn default() -> Self {
        Self { counters: array::from_fn(|_| Counter::default()), label: PhantomData }
    }
}

impl<T> Deref for Padded<T> {
    type Target = T;

    fn deref(&self) -> &T {
        &self.0
    }
}

impl<T: Default> PerWorker<T> {
    pub fn new(workers: usize) -> Self {
        Self((0..workers).map(|_| Padded::default()).collect(), Padded::default())
    }
}

impl<T> PerWorker<T> {
    /// The block of one worker, which alone may write to it. Workers are numbered from 0.
    #[expect(clippy::indexing_slicing, reason = "the registry and the workers are made from the same number")]
    pub fn at(&self, worker: usize) -> &T {
        &self.0[worker]
    }

    /// What the processes before this one counted; the control thread alone writes to it.
    pub(super) fn before(&self) -> &T {
        &self.1
    }

    /// The blocks of the workers of this process.
    pub fn own(&self) -> impl Iterator<Item = &T> {
        self.0.iter().map(Deref::deref)
    }

    /// The blocks of the workers, and the one of the processes before.
    pub fn iter(&self) -> impl Iterator<Item = &T> {
        self.own().chain([&*self.1])
    }

    /// The same number of every worker, added.
    pub fn sum(&self, number: impl Fn(&T) -> u64) -> u64 {
        self.iter().map(number).fold(0, u64::wrapping_add)
    }

    pub(super) fn merged<const N: usize>(&self, histogram: impl Fn(&T) -> &Histogram<N>) -> Option<Snapshot<N>> {
        self.iter().map(|cells| histogram(cells).snapshot()).reduce(|mut sum, more| {
            sum.merge(&more);
            sum
        })
    }
}

impl PerWorker<ListenerCells> {
    /// Reads `closed` before `accepted` (traps O10): a connection that ends in between is still live here, never negative.
    pub fn connections(&self) -> Connections {
        let closed = array::from_fn(|index| {
            let outcome = Outcome::ALL.get(index).copied().unwrap_or(Outcome::Internal);
            self.sum(|cells| cells.closed.at(outcome).value())
        });
        let accepted = self.sum(|cells| cells.accepted.value());
        let live = accepted.wrapping_sub(closed.iter().copied().fold(0, u64::wrapping_add));
        Connections { accepted, closed, live }
    }
}

impl ListenerCells {
    /// Counts the end of a connection. The last thing done for it.
    pub fn close(&self, outcome: Outcome, duration: Duration) {
        self.duration.observe(duration);
        self.closed.at(outcome).add(1);
    }

    /// The counter of completed handshakes of this kind.
    #[expect(clippy::indexing_slicing, reason = "the array has one place for each version")]
    pub fn tls_handshakes(&self, version: TlsVersion, resumption: Resumption) -> &Counter {
        self.tls_handshakes[version.index()].at(resumption)
    }
}

impl Default for ListenerCells {
    fn default() -> Self {
        Self {
            accepted: Counter::default(),
            closed: Family::default(),
            received_bytes: Counter::default(),
            sent_bytes: Counter::default(),
            accept_errors: Family::default(),
            limited: Family::default(),
            limits_evictions: Counter::default(),
            limits_uncounted: Counter::default(),
            duration: Histogram::new(&CONNECTION_BOUNDS),
            tls_handshakes: array::from_fn(|_| Family::default()),
            tls_failures: Family::default(),
            tls_in_progress: Level::default(),
            proxy_headers: Family::default(),
            proxy_failures: Family::default(),
            proxy_in_progress: Level::default(),
            tls_duration: Histogram::new(&SETUP_BOUNDS),
        }
    }
}

impl WorkerCells {
    /// The counter of bytes written to the far end on this path.
    #[expect(clippy::indexing_slicing, reason = "the array has one place for each path")]
    pub fn relay_bytes(&self, path: RelayPath, direction: Direction) -> &Counter {
        self.relay_bytes[path.index()].at(direction)
    }
}

impl Default for PoolCells {
    fn default() -> Self {
        Self { retries: Counter::default(), connect_duration: Histogram::new(&SETUP_BOUNDS) }
    }
}

#[cfg(test)]
mod tests {
    use std::thread;

    use super::*;

    #[test]
    fn blocks_of_workers_share_no_cache_line() {
        let cells = PerWorker::<RuleCells>::new(2);
        let places: Vec<_> = cells.iter().map(|cell| std::ptr::from_ref(cell).addr()).collect();
        assert_eq!(places[0] % 128, 0);
        assert_eq!(places[1] - places[0], 128);
    }

    #[test]
    fn sums_over_workers_are_exact() {
        let cells = PerWorker::<WorkerCells>::new(4);
        thread::scope(|scope| {
            for worker in 0..4 {
                let cells = &cells;
                scope.spawn(move || {
                    for n in 0..100_000 {
                        cells.at(worker).relay_bytes(RelayPath::Splice, Direction::BackendToClient).add(n % 3);
                    }
                });
            }
        });
        let bytes = |path, direction| cells.sum(|cell| cell.relay_bytes(path, direction).value());
        assert_eq!(bytes(RelayPath::Splice, Direction::BackendToClient), 4 * 99_999);
        assert_eq!(bytes(RelayPath::Splice, Direction::ClientToBackend), 0);
        assert_eq!(bytes(RelayPath::Copy, Direction::BackendToClient), 0);
    }

    #[test]
    fn o10_accepted_is_closed_and_live_at_every_moment() {
        let cells = PerWorker::<ListenerCells>::new(2);
        thread::scope(|scope| {
            for worker in 0..2 {
                let cells = &cells;
                scope.spawn(move || {
                    for n in 0..200_000 {
                        cells.at(worker).accepted.add(1);
                        cells.at(worker).close(Outcome::ALL[n % Outcome::ALL.len()], Duration::from_millis(3));
                    }
                });
            }
            for _ in 0..20_000 {
                let seen = cells.connections();
                assert_eq!(seen.accepted, seen.live + seen.closed.iter().sum::<u64>());
                // Each worker holds one connection; more may pass between the readings, but never fewer than none.
                assert!(seen.live <= 400_000, "{seen:?}");
            }
        });
        let seen = cells.connections();
        assert_eq!((seen.accepted, seen.live), (400_000, 0));
        assert_eq!(cells.merged(|cell| &cell.duration).unwrap().count(), 400_000);
    }
}
