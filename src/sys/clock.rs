//! A clock that is cheap enough to be read at every poll.

use std::time::Duration;

use rustix::time::{ClockId, clock_gettime};

pub use crate::moment::Moment;

/// Milliseconds of the monotonic clock, in steps of a timer tick (1 to 10 ms).
///
/// Read from the vDSO without a system call; an activity stamp needs no more precision.
#[must_use]
pub fn coarse() -> Moment {
    let now = clock_gettime(ClockId::MonotonicCoarse);
    let millis = now.tv_sec.unsigned_abs() * 1_000 + now.tv_nsec.unsigned_abs() / 1_000_000;
    Moment::from_millis(millis)
}

/// The same clock to the nanosecond, since it began. Some 20 ns, also from the vDSO.
#[must_use]
pub fn fine() -> Duration {
    let now = clock_gettime(ClockId::Monotonic);
    Duration::from_secs(now.tv_sec.unsigned_abs()) + Duration::from_nanos(now.tv_nsec.unsigned_abs())
}
