//! Fixed-bucket histograms of durations, written by one worker.

use std::{
    array,
    sync::atomic::{AtomicU64, Ordering},
    time::Duration,
};

use super::cells::Counter;

/// Buckets of a connection's life: 1 ms to 1 h.
pub static CONNECTION_BOUNDS: [Duration; 14] = [
    Duration::from_millis(1),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_secs(5),
    Duration::from_secs(10),
    Duration::from_secs(30),
    Duration::from_mins(1),
    Duration::from_mins(5),
    Duration::from_mins(15),
    Duration::from_hours(1),
];

/// Buckets of a handshake or a connect: 100 µs to 10 s.
pub static SETUP_BOUNDS: [Duration; 16] = [
    Duration::from_micros(100),
    Duration::from_micros(250),
    Duration::from_micros(500),
    Duration::from_millis(1),
    Duration::from_micros(2500),
    Duration::from_millis(5),
    Duration::from_millis(10),
    Duration::from_millis(25),
    Duration::from_millis(50),
    Duration::from_millis(100),
    Duration::from_millis(250),
    Duration::from_millis(500),
    Duration::from_secs(1),
    Duration::from_millis(2500),
    Duration::from_secs(5),
    Duration::from_secs(10),
];

/// One worker's histogram. Single writer, as [`Counter`].
#[derive(Debug)]
pub struct Histogram<const N: usize> {
    /// Upper bounds, inclusive, rising.
    bounds: &'static [Duration; N],
    counts: [Counter; N],
    /// Longer than the last bound.
    over: Counter,
    sum: Sum,
}

/// Nanoseconds as the bits of an `f64`: exact up to 2^53 ns (104 days) and to 16 digits after that. A `u64` would be
/// exact for longer and then wrap, after two days with 100,000 connections a worker.
#[derive(Debug)]
pub(super) struct Sum(AtomicU64);

/// What a histogram held when it was read; workers' snapshots add up.
#[derive(Debug, Clone, PartialEq)]
pub struct Snapshot<const N: usize> {
    bounds: &'static [Duration; N],
    counts: [u64; N],
    over: u64,
    sum_nanos: f64,
}

impl<const N: usize> Histogram<N> {
    pub(super) fn new(bounds: &'static [Duration; N]) -> Self {
        Self {
            bounds,
            counts: array::from_fn(|_| Counter::default()),
            over: Counter::default(),
            sum: Sum(AtomicU64::new(0.0_f64.to_bits())),
        }
    }

    /// Counts one duration.
    pub fn observe(&self, duration: Duration) {
        self.sum.add(duration.as_nanos() as f64);
        let reached = self.bounds.iter().position(|bound| duration <= *bound);
        reached.and_then(|index| self.counts.get(index)).unwrap_or(&self.over).add(1);
    }

    /// Every bucket under its name: its upper bound in nanoseconds, or `over`.
    pub(super) fn buckets(&self) -> impl Iterator<Item = (String, &Counter)> {
        let bounded = self.bounds.iter().map(|bound| bound.as_nanos().to_string()).zip(&self.counts);
        bounded.chain([("over".to_owned(), &self.over)])
    }

    pub(super) fn sum(&self) -> &Sum {
        &self.sum
    }

    pub fn snapshot(&self) -> Snapshot<N> {
        Snapshot {
            bounds: self.bounds,
            counts: array::from_fn(|index| self.counts.get(index).map_or(0, Counter::value)),
            over: self.over.value(),
            sum_nanos: self.sum.value(),
        }
    }
}

impl Sum {
    pub(super) fn add(&self, nanos: f64) {
        let sum = self.value() + nanos;
        self.0.store(sum.to_bits(), Ordering::Relaxed);
    }

    pub(super) fn value(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

impl<const N: usize> Snapshot<N> {
    /// Adds what another worker counted.
    pub fn merge(&mut self, other: &Self) {
        for (count, more) in self.counts.iter_mut().zip(other.counts) {
            *count += more;
        }
        self.over += other.over;
        self.sum_nanos += other.sum_nanos;
    }

    /// Upper bound and how many were not longer.
    pub fn cumulative(&self) -> impl Iterator<Item = (Duration, u64)> {
        self.bounds.iter().zip(self.counts).scan(0, |total, (bound, count)| {
            *total += count;
            Some((*bound, *total))
        })
    }

    /// Always the sum of the buckets, so no scrape shows a count that the `+Inf` bucket lacks.
    pub fn count(&self) -> u64 {
        self.counts.iter().sum::<u64>() + self.over
    }

    pub fn sum_seconds(&self) -> f64 {
        self.sum_nanos / 1e9
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bound_belongs_to_its_own_bucket() {
        let histogram = Histogram::new(&SETUP_BOUNDS);
        histogram.observe(Duration::ZERO);
        histogram.observe(Duration::from_micros(100));
        histogram.observe(Duration::from_nanos(100_001));
        histogram.observe(Duration::from_secs(10));
        histogram.observe(Duration::from_secs(11));
        let snapshot = histogram.snapshot();
        let cumulative: Vec<_> = snapshot.cumulative().collect();
        assert_eq!(cumulative[0], (Duration::from_micros(100), 2));
        assert_eq!(cumulative[1], (Duration::from_micros(250), 3));
        assert_eq!(cumulative[15], (Duration::from_secs(10), 4));
        assert_eq!(snapshot.count(), 5);
        assert!((snapshot.sum_seconds() - 21.000_200_001).abs() < 1e-12);
    }

    #[test]
    fn bounds_rise() {
        assert!(CONNECTION_BOUNDS.is_sorted_by(|a, b| a < b));
        assert!(SETUP_BOUNDS.is_sorted_by(|a, b| a < b));
    }

    #[test]
    fn a_sum_never_wraps() {
        let histogram = Histogram::new(&CONNECTION_BOUNDS);
        for _ in 0..2000 {
            histogram.observe(Duration::from_hours(365 * 24));
        }
        let years = histogram.snapshot().sum_seconds() / (365.0 * 86_400.0);
        assert!((years - 2000.0).abs() < 1e-6, "{years}");
    }

    #[test]
    fn workers_add_up() {
        let (one, two) = (Histogram::new(&SETUP_BOUNDS), Histogram::new(&SETUP_BOUNDS));
        one.observe(Duration::from_millis(1));
        two.observe(Duration::from_millis(1));
        two.observe(Duration::from_mins(1));
        let mut sum = one.snapshot();
        sum.merge(&two.snapshot());
        assert_eq!(sum.count(), 3);
        assert_eq!(sum.cumulative().last(), Some((Duration::from_secs(10), 2)));
    }
}
