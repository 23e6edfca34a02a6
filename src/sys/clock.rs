//! A clock that is cheap enough to be read at every poll.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

/// Milliseconds of the monotonic clock, in steps of a timer tick (1 to 10 ms).
///
/// Read from the vDSO without a system call; an activity stamp needs no more precision.
#[must_use]
pub fn coarse() -> Moment {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let millis = now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000;
    Moment(millis)
}

/// A moment of the coarse clock.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub struct Moment(u64);

impl Moment {
    /// The moment so much later.
    #[must_use]
    pub fn after(self, later: Duration) -> Self {
        Self(self.0.saturating_add(u64::try_from(later.as_millis()).unwrap_or(u64::MAX)))
    }

    /// How long ago `earlier` was; zero if it is later than `self`.
    #[must_use]
    pub fn since(self, earlier: Self) -> Duration {
        Duration::from_millis(self.0.saturating_sub(earlier.0))
    }
}
