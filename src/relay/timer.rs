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

/// What one poll of the relay came to.
#[derive(Debug, Clone, Copy)]
pub(super) struct State {
    /// Some byte was read or written.
    pub(super) moved: bool,
    /// One direction is over.
    pub(super) half_closed: bool,
}

/// When a relay has been silent or alive for too long. Nothing is armed or disarmed per read: the sleep is set to the
/// earliest moment at which a limit can be reached, and set again when it fires too early.
#[derive(Debug)]
pub(super) struct Timer {
    timeouts: Timeouts,
    half_closed: bool,
    last: Tick,
    born: Tick,
    /// What the kernel held when silence was first seen: a slow reader lets us write again only when a third of its
    /// buffer is free, and is not silent meanwhile.
    held: Option<usize>,
}

impl Timer {
    /// A timer and the sleep that drives it.
    pub(super) fn start(timeouts: Timeouts) -> (Self, Sleep) {
        let now = clock::coarse();
        let first = timeouts.max_age.map_or(timeouts.idle, |age| age.min(timeouts.idle));
        let timer = Self { timeouts, half_closed: false, last: now, born: now, held: None };
        (timer, sleep_until(Instant::now() + first))
    }

    /// Notes what happened in this poll, and ends the relay if a limit is reached. `unconfirmed` tells what the kernel
    /// still holds; it is asked only when the relay seems silent.
    pub(super) fn poll_expired(
        &mut self,
        cx: &mut Context<'_>,
        mut sleep: Pin<&mut Sleep>,
        state: State,
        unconfirmed: impl Fn() -> usize,
    ) -> Poll<End> {
        if state.moved {
            self.touch();
        }
        if state.half_closed != self.half_closed {
            // The silence that counts is shorter now, so the sleep may be set too late.
            self.half_closed = state.half_closed;
            self.touch();
            let left = self.left(self.last).unwrap_or_default();
            sleep.as_mut().reset(Instant::now() + left);
        }
        loop {
            if sleep.as_mut().poll(cx).is_pending() {
                return Poll::Pending;
            }
            let left = match self.left(clock::coarse()) {
                Ok(left) => left,
                Err(End::MaxAge) => return Poll::Ready(End::MaxAge),
                Err(end) => match self.second_look(unconfirmed()) {
                    Some(again) => again,
                    None => return Poll::Ready(end),
                },
            };
            sleep.as_mut().reset(Instant::now() + left);
        }
    }

    fn touch(&mut self) {
        self.last = clock::coarse();
        self.held = None;
    }

    /// The kernel may still be delivering: when to look again, or `None` if nobody reads.
    fn second_look(&mut self, held: usize) -> Option<Duration> {
        const SHORTEST: Duration = Duration::from_millis(50);
        const LONGEST: Duration = Duration::from_secs(1);
        match self.held {
            Some(before) if held < before => {
                self.touch();
                self.left(self.last).ok()
            }
            None if held > 0 => {
                self.held = Some(held);
                Some((self.silence().0 / 4).clamp(SHORTEST, LONGEST))
            }
            _ => None,
        }
    }

    /// The silence that is allowed now, and what it is called.
    fn silence(&self) -> (Duration, End) {
        let Timeouts { idle, half_closed, .. } = self.timeouts;
        if self.half_closed { (half_closed.min(idle), End::HalfClosedTimeout) } else { (idle, End::IdleTimeout) }
    }

    /// How long until a limit can be reached at the earliest, or which one is reached now.
    fn left(&self, now: Tick) -> Result<Duration, End> {
        let age = match self.timeouts.max_age {
            Some(most) => most.checked_sub(now.since(self.born)).filter(|left| !left.is_zero()).ok_or(End::MaxAge)?,
            None => Duration::MAX,
        };
        let (silence, end) = self.silence();
        let silence = silence.checked_sub(now.since(self.last)).filter(|left| !left.is_zero()).ok_or(end)?;
        Ok(silence.min(age))
    }
}

impl Timeouts {
    /// The same with up to a tenth taken off `max_age`, so that connections of one moment do not end in one moment
    /// (traps B14). `random` is 64 fresh bits.
    #[must_use]
    pub fn jittered(self, random: u64) -> Self {
        let share = u32::try_from(random >> 48).unwrap_or(0);
        let max_age = self.max_age.map(|age| age.saturating_sub(age / 10 / (1 << 16) * share));
        Self { max_age, ..self }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b14_jitter_takes_off_a_tenth_at_most() {
        let age = Duration::from_secs(100);
        let timeouts = Timeouts { idle: age, half_closed: age, max_age: Some(age) };
        assert_eq!(timeouts.jittered(0).max_age, Some(age));
        let least = timeouts.jittered(u64::MAX).max_age.unwrap();
        assert!((Duration::from_secs(90)..Duration::from_millis(90_010)).contains(&least), "{least:?}");
    }

    #[test]
    fn a_slow_reader_is_not_silent_and_a_stalled_one_is() {
        let limit = Duration::from_secs(8);
        let timeouts = Timeouts { idle: limit, half_closed: limit, max_age: None };
        let now = clock::coarse();
        let mut timer = Timer { timeouts, half_closed: false, last: now, born: now, held: None };
        assert_eq!(timer.second_look(1000), Some(Duration::from_secs(1)));
        assert!(timer.second_look(900).is_some());
        assert_eq!(timer.second_look(900), Some(Duration::from_secs(1)));
        assert_eq!(timer.second_look(900), None);
        timer.touch();
        assert_eq!(timer.second_look(0), None);
    }
}
