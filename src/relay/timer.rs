//! The one timer of a connection. Activity is a coarse time stamp; the timer looks at it when it fires.

use std::{
    pin::Pin,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, Sleep, sleep_until};

use super::End;
use crate::sys::clock::{self, Tick};

/// Limits on silence and age.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Timeouts {
    /// No byte in either direction.
    pub idle: Duration,
    /// Silence after one side has finished sending; never longer than `idle`.
    pub half_closed: Duration,
    /// The whole relay; `None` is no limit.
    pub max_age: Option<Duration>,
}

/// When a relay has been silent or alive for too long. Nothing is armed or disarmed per read: the sleep is set to the
/// earliest moment at which a limit can be reached, and set again when it fires too early.
#[derive(Debug)]
pub(super) struct Timer {
    timeouts: Timeouts,
    half_closed: bool,
    last: Tick,
    born: Tick,
}

impl Timer {
    /// A timer and the sleep that drives it.
    pub(super) fn start(timeouts: Timeouts) -> (Self, Sleep) {
        let now = clock::coarse();
        let first = timeouts.max_age.map_or(timeouts.idle, |age| age.min(timeouts.idle));
        (Self { timeouts, half_closed: false, last: now, born: now }, sleep_until(Instant::now() + first))
    }

    /// Notes whether something moved in this poll, and ends the relay if a limit is reached.
    pub(super) fn poll_expired(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
        moved: bool,
        half_closed: bool,
    ) -> Poll<End> {
        if moved {
            self.last = clock::coarse();
        }
        if half_closed != self.half_closed {
            // The silence that counts is shorter now, so the sleep may be set too late.
            self.half_closed = half_closed;
            self.last = clock::coarse();
            let left = self.left(self.last).unwrap_or_default();
            sleep.as_mut().reset(Instant::now() + left);
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            match self.left(clock::coarse()) {
                Ok(left) => sleep.as_mut().reset(Instant::now() + left),
                Err(end) => return Poll::Ready(end),
            }
        }
    }

    /// How long until a limit can be reached at the earliest, or which one is reached now.
    fn left(&self, now: Tick) -> Result<Duration, End> {
        let Timeouts { idle, half_closed, max_age } = self.timeouts;
        let (silence, end) =
            if self.half_closed { (half_closed.min(idle), End::HalfClosedTimeout) } else { (idle, End::IdleTimeout) };
        let silence = silence.checked_sub(now.since(self.last)).filter(|left| !left.is_zero()).ok_or(end)?;
        let Some(max_age) = max_age else { return Ok(silence) };
        let age = max_age.checked_sub(now.since(self.born)).filter(|left| !left.is_zero()).ok_or(End::MaxAge)?;
        Ok(silence.min(age))
    }
}
