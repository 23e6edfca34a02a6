//! One backend of a pool: an address, and how it is doing.
//!
//! Health (what checks found), ejection (what real traffic found), draining (what the operator wants) and slow start are
//! separate: none of them overwrites another. All are read without a lock and written rarely.

use std::{
    net::SocketAddr,
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU8, AtomicU32, AtomicU64, Ordering},
    },
    time::Duration,
};

use serde::{Deserialize, Serialize};

use crate::{
    config,
    metrics::{BackendCells, PerWorker},
    moment::Moment,
};

/// Which backend it is: no two of a process ever share one, not even one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(u64);

/// What checks found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[repr(u8)]
pub enum Health {
    /// Not checked yet.
    Unknown,
    Up,
    Down,
}

/// An address that takes connections. Shared by every worker.
#[derive(Debug)]
pub struct Backend {
    pub id: Id,
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub cells: Arc<PerWorker<BackendCells>>,
    /// Most connections at once; 0 is no limit.
    cap: AtomicU32,
    live: AtomicU32,
    health: AtomicU8,
    /// Changes from up to down so far.
    downs: AtomicU32,
    draining: AtomicBool,
    ejected_until: Stamp,
    /// When slow start began.
    warm_since: Stamp,
    /// It joined a pool that was already working, so its first time up is a slow start too.
    newcomer: AtomicBool,
    /// Failed connects of real traffic in a row.
    failures: AtomicU32,
    /// It was ejected, and no connect has succeeded since.
    was_ejected: AtomicBool,
}

/// The moments of a backend as milliseconds of the monotonic clock, 0 for none: what a process tells the next one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Stamps {
    ejected_until: u64,
    warm_since: u64,
    was_ejected: bool,
}

/// How much of its share a backend takes that has just begun, in parts of `u32::MAX`.
const FIRST_SHARE: u64 = u32::MAX as u64 / 20;

/// A moment that may not have come.
#[derive(Debug, Default)]
struct Stamp(AtomicU64);

impl Backend {
    /// `health` is `Up` where nothing checks it.
    pub fn new(config: &config::Backend, health: Health, cells: Arc<PerWorker<BackendCells>>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        let backend = Self {
            id: Id(NEXT.fetch_add(1, Ordering::Relaxed)),
            name: config.name.as_str().into(),
            address: config.address,
            cells,
            cap: AtomicU32::new(0),
            live: AtomicU32::new(0),
            health: AtomicU8::new(health as u8),
            downs: AtomicU32::new(0),
            draining: AtomicBool::new(false),
            ejected_until: Stamp::default(),
            warm_since: Stamp::default(),
            newcomer: AtomicBool::new(false),
            failures: AtomicU32::new(0),
            was_ejected: AtomicBool::new(false),
        };
        backend.set_cap(config.max_connections);
        backend
    }

    pub fn health(&self) -> Health {
        match self.health.load(Ordering::Acquire) {
            0 => Health::Unknown,
            1 => Health::Up,
            _ => Health::Down,
        }
    }

    /// Sets what checks found; there is one writer, its checker. From `Down` to `Up` begins the slow start and ends an
    /// ejection. The first `Up` after the start is no recovery, unless the backend is new in a pool that works.
    pub fn set_health(&self, health: Health, now: Moment) {
        let before = self.health();
        if health == Health::Up && (before == Health::Down || (before == Health::Unknown && self.is_newcomer())) {
            self.newcomer.store(false, Ordering::Relaxed);
            self.failures.store(0, Ordering::Relaxed);
            self.ejected_until.clear();
            self.was_ejected.store(false, Ordering::Relaxed);
            self.warm_since.set(now);
        }
        self.health.store(health as u8, Ordering::Release);
        // After the state: who reads this number and then the state does not take the one for newer than the other.
        if health == Health::Down && before != Health::Down {
            self.downs.fetch_add(1, Ordering::AcqRel);
        }
    }

    /// How often it went down: a connection that began before the last time is not to be kept by one that has to end.
    pub fn downs(&self) -> u32 {
        self.downs.load(Ordering::Acquire)
    }

    /// Whether it takes no new connections because the operator said so.
    pub fn is_draining(&self) -> bool {
        self.draining.load(Ordering::Relaxed)
    }

    /// `Pool::set_draining` also serves those who wait and says what it came to.
    pub fn set_draining(&self, draining: bool) {
        self.draining.store(draining, Ordering::Relaxed);
    }

    /// Whether failed connects of real traffic keep it out now.
    pub fn is_ejected(&self, now: Moment) -> bool {
        self.ejected_until.read().is_some_and(|until| now < until)
    }

    pub fn stamps(&self) -> Stamps {
        Stamps {
            ejected_until: self.ejected_until.read().map_or(0, Moment::as_millis),
            warm_since: self.warm_since.read().map_or(0, Moment::as_millis),
            was_ejected: self.was_ejected.load(Ordering::Relaxed),
        }
    }

    /// Goes on with an ejection and a slow start that began in the process before this one.
    pub fn recall(&self, stamps: Stamps) {
        self.ejected_until.0.store(stamps.ejected_until, Ordering::Relaxed);
        self.warm_since.0.store(stamps.warm_since, Ordering::Relaxed);
        self.was_ejected.store(stamps.was_ejected, Ordering::Relaxed);
    }

    /// Connections that are relayed or being made.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }

    /// Most connections at once; 0 is no limit.
    pub fn cap(&self) -> u32 {
        self.cap.load(Ordering::Relaxed)
    }

    /// Whether one more connection is allowed.
    pub fn has_room(&self) -> bool {
        let cap = self.cap();
        cap == 0 || self.live() < cap
    }

    /// How much of its share it takes, in parts of `u32::MAX`: less than all of it during slow start.
    pub fn warmth(&self, now: Moment, slow_start: Duration) -> u32 {
        // It comes back from an ejection as from a failed check.
        let since = self.warm_since.read().max(self.ejected_until.read().filter(|until| *until <= now));
        let Some(since) = since else { return u32::MAX };
        let elapsed = now.since(since);
        if elapsed >= slow_start {
            self.warm_since.forget(now, slow_start);
            self.ejected_until.forget(now, slow_start);
            return u32::MAX;
        }
        let ramp = elapsed.as_millis() * u128::from(u32::MAX) / slow_start.as_millis().max(1);
        u32::try_from(ramp.max(FIRST_SHARE.into())).unwrap_or(u32::MAX)
    }

    /// Changes the limit. Those above it stay.
    pub(crate) fn set_cap(&self, cap: Option<NonZeroU32>) {
        self.cap.store(cap.map_or(0, NonZeroU32::get), Ordering::Relaxed);
    }

    /// Notes that the pool it joins works already.
    pub(crate) fn join(&self, now: Moment) {
        if self.health() == Health::Up {
            self.warm_since.set(now);
        } else {
            self.newcomer.store(true, Ordering::Relaxed);
        }
    }

    /// Counts one more connection unless that would be one too many.
    pub(crate) fn take(&self) -> bool {
        let cap = self.cap();
        if cap == 0 {
            self.live.fetch_add(1, Ordering::Relaxed);
            return true;
        }
        let one_more = |live| (live < cap).then_some(live + 1);
        self.live.fetch_update(Ordering::SeqCst, Ordering::SeqCst, one_more).is_ok()
    }

    /// Gives back what `take` took. Sequentially consistent: who leaves looks for waiters after this, and who waits looks
    /// for room after it has said so and a fence, so that one of them sees the other.
    pub(crate) fn give_back(&self) {
        self.live.fetch_sub(1, Ordering::SeqCst);
    }

    /// Counts a failed connect; true when there are `limit` in a row, and then counting begins anew.
    pub(crate) fn note_failure(&self, limit: u32) -> bool {
        let reached = self.failures.fetch_add(1, Ordering::Relaxed).saturating_add(1) >= limit;
        if reached {
            self.failures.store(0, Ordering::Relaxed);
        }
        reached
    }

    /// True for the first success after an ejection.
    pub(crate) fn note_success(&self, now: Moment) -> bool {
        // Nearly always it is 0 already, and the line stays shared between the workers.
        if self.failures.load(Ordering::Relaxed) != 0 {
            self.failures.store(0, Ordering::Relaxed);
        }
        let is_back = self.was_ejected.load(Ordering::Relaxed) && !self.is_ejected(now);
        is_back && self.was_ejected.swap(false, Ordering::Relaxed)
    }

    pub(crate) fn eject(&self, until: Moment) {
        self.ejected_until.set(until);
        self.was_ejected.store(true, Ordering::Relaxed);
    }

    fn is_newcomer(&self) -> bool {
        self.newcomer.load(Ordering::Relaxed)
    }
}

impl Stamp {
    fn read(&self) -> Option<Moment> {
        Some(self.0.load(Ordering::Relaxed)).filter(|millis| *millis > 0).map(Moment::from_millis)
    }

    fn set(&self, moment: Moment) {
        self.0.store(moment.as_millis().max(1), Ordering::Relaxed);
    }

    fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Clears it if it is so long ago, and is not being set to something else meanwhile.
    fn forget(&self, now: Moment, age: Duration) {
        if let Some(at) = self.read().filter(|at| *at <= now && now.since(*at) >= age) {
            let _ = self.0.compare_exchange(at.as_millis(), 0, Ordering::Relaxed, Ordering::Relaxed);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SLOW: Duration = Duration::from_secs(10);

    fn backend(health: Health) -> Backend {
        let config = config::Backend {
            name: "b".to_owned(),
            address: ([127, 0, 0, 1], 80).into(),
            weight: 1,
            role: config::Role::Active,
            max_connections: NonZeroU32::new(10),
        };
        Backend::new(&config, health, Arc::new(PerWorker::new(1)))
    }

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(1_000_000 + seconds * 1_000)
    }

    #[test]
    fn b7_a_recovery_begins_slowly_and_the_start_does_not() {
        let backend = backend(Health::Unknown);
        backend.set_health(Health::Up, at(0));
        assert_eq!(backend.warmth(at(0), SLOW), u32::MAX, "it was never down");
        backend.set_health(Health::Down, at(1));
        backend.set_health(Health::Up, at(5));
        let share = |seconds| f64::from(backend.warmth(at(seconds), SLOW)) / f64::from(u32::MAX);
        assert!((share(5) - 0.05).abs() < 1e-6, "{}", share(5));
        assert!((share(10) - 0.5).abs() < 1e-6, "{}", share(10));
        assert!((share(15) - 1.0).abs() < 1e-6, "{}", share(15));
        assert_eq!(backend.warm_since.read(), None, "what is over is forgotten");
    }

    #[test]
    fn b7_who_joins_a_working_pool_begins_slowly() {
        for health in [Health::Unknown, Health::Up] {
            let backend = backend(health);
            backend.join(at(0));
            backend.set_health(Health::Up, at(0));
            assert!(backend.warmth(at(1), SLOW) < u32::MAX / 5, "{health:?}");
        }
    }

    #[test]
    fn an_ejection_ends_by_time_and_by_a_recovery_and_then_begins_slowly() {
        let backend = backend(Health::Up);
        backend.eject(at(30));
        assert!(backend.is_ejected(at(29)) && !backend.is_ejected(at(30)));
        assert_eq!(backend.warmth(at(29), SLOW), u32::MAX, "it takes nothing, so there is nothing to ramp");
        assert!(backend.warmth(at(31), SLOW) < u32::MAX / 5);
        assert_eq!(backend.warmth(at(40), SLOW), u32::MAX);
        backend.eject(at(90));
        backend.set_health(Health::Up, at(50));
        assert!(backend.is_ejected(at(50)), "a check that goes another way than traffic does not end it (B4)");
        backend.set_health(Health::Down, at(51));
        backend.set_health(Health::Up, at(52));
        assert!(!backend.is_ejected(at(52)));
    }

    #[test]
    fn b15_the_cap_is_exact_whoever_asks() {
        let backend = backend(Health::Up);
        let taken: usize = std::thread::scope(|scope| {
            let threads: Vec<_> = (0..8).map(|_| scope.spawn(|| (0..100).filter(|_| backend.take()).count())).collect();
            threads.into_iter().map(|thread| thread.join().unwrap()).sum()
        });
        assert_eq!((taken, backend.live(), backend.has_room()), (10, 10, false));
    }
}
