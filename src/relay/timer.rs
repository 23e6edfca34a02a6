//! The one timer of a connection. Activity is a coarse time stamp; the timer looks at it when it fires.

use std::{
    task::{Context, Poll},
    time::Duration,
};

use super::{End, PATIENCE};
use crate::alarm::{Alarm, TICK};
use crate::sys::{
    clock::{self, Moment},
    socket::Socket,
};

/// A relay that is older than this is worth the calls that make the kernel look for vanished peers (traps R9).
const YOUNG: Duration = Duration::from_mins(1);

/// The kernel ends nobody to whom we are about to say goodbye.
const SLACK: Duration = Duration::from_secs(1);

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

/// When a relay has been silent or alive for too long. Nothing is armed or disarmed per read: the alarm is set to
/// the earliest moment at which a limit can be reached, and set again when it goes off too early.
#[derive(Debug)]
pub(super) struct Timer<'a> {
    timeouts: &'a Timeouts,
    half_closed: bool,
    last: Moment,
    born: Moment,
    /// What the kernel held when half of the allowed silence was over: a slow reader lets us write again only when a third
    /// of its buffer is free, and is not silent meanwhile.
    held: Option<usize>,
    /// When the alarm goes off; not moved by activity.
    set: Option<Moment>,
    /// The kernel was told how long a peer may be gone.
    expects: bool,
}

impl<'a> Timer<'a> {
    pub(super) fn start(timeouts: &'a Timeouts, now: Moment) -> Self {
        Self { timeouts, half_closed: false, last: now, born: now, held: None, set: None, expects: false }
    }

    /// Notes what happened in this poll, and ends the relay if a limit is reached. `sockets` are asked what the kernel still
    /// holds only when the relay seems silent.
    pub(super) fn poll_expired(
        &mut self,
        cx: &Context<'_>,
        alarm: &Alarm,
        state: State,
        sockets: [&Socket; 2],
    ) -> Poll<End> {
        if state.moved {
            self.touch(alarm.now());
        }
        if state.half_closed != self.half_closed {
            // The silence that counts is shorter now, so the alarm is set too late.
            self.half_closed = state.half_closed;
            self.touch(alarm.now());
            self.set = None;
        }
        loop {
            let due = self.set.unwrap_or_else(|| self.last.after(self.next(self.last)));
            self.set = Some(due);
            if alarm.poll_at(cx, due).is_pending() {
                return Poll::Pending;
            }
            if !self.expects {
                self.expects = true;
                // Who does not read for so long is ended by us, and still gets what the kernel holds for it.
                let silence = self.timeouts.idle + PATIENCE + SLACK;
                for socket in sockets {
                    socket.expect_presence(silence);
                }
            }
            let unconfirmed = sockets.iter().filter_map(|socket| socket.unconfirmed().ok()).sum();
            if let Err(end) = self.look(clock::coarse(), unconfirmed) {
                return Poll::Ready(end);
            }
            let now = clock::coarse();
            self.set = Some(now.after(self.next(now)));
        }
    }

    fn touch(&mut self, now: Moment) {
        self.last = now;
        self.held = None;
    }

    /// Judges the moment `now`, at which the kernel holds `held` bytes for the two ends.
    fn look(&mut self, now: Moment, held: usize) -> Result<(), End> {
        if self.timeouts.max_age.is_some_and(|age| now.since(self.born) >= age) {
            return Err(End::MaxAge);
        }
        let (limit, end) = self.silence();
        let quiet = now.since(self.last);
        match self.held {
            None if quiet >= limit / 2 => self.held = Some(held),
            // Somebody has read since half of the time was over.
            Some(before) if quiet >= limit && held < before => {
                self.last = now;
                self.held = None;
            }
            Some(_) if quiet >= limit => return Err(end),
            _ => {}
        }
        Ok(())
    }

    /// How long until there is something to look at.
    fn next(&self, now: Moment) -> Duration {
        let (limit, _) = self.silence();
        let at = if self.held.is_some() { limit } else { limit / 2 };
        let at = if self.expects { at } else { at.min(YOUNG) };
        let silence = at.saturating_sub(now.since(self.last));
        let age = self.timeouts.max_age.map(|age| age.saturating_sub(now.since(self.born)));
        age.map_or(silence, |age| age.min(silence)).max(Duration::from_millis(1))
    }

    /// The silence that is allowed now, and what it is called.
    fn silence(&self) -> (Duration, End) {
        let &Timeouts { idle, half_closed, .. } = self.timeouts;
        let (limit, end) =
            if self.half_closed { (half_closed.min(idle), End::HalfClosedTimeout) } else { (idle, End::IdleTimeout) };
        // Activity is stamped with the time of the last tick, so it may be younger than it looks.
        (limit.saturating_add(TICK), end)
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
        let idle = limit.checked_sub(TICK).unwrap();
        let timeouts = Timeouts { idle, half_closed: idle, max_age: None };
        let start = clock::coarse();
        let mut timer = Timer {
            timeouts: &timeouts,
            half_closed: false,
            last: start,
            born: start,
            held: None,
            set: None,
            expects: true,
        };
        let at = |seconds| start.after(Duration::from_secs(seconds));
        assert_eq!(timer.next(start), limit / 2);
        assert_eq!(timer.look(at(4), 1000), Ok(()));
        assert_eq!(timer.next(at(4)), limit / 2);
        assert_eq!(timer.look(at(8), 900), Ok(()), "it has read");
        assert_eq!(timer.look(at(12), 900), Ok(()));
        assert_eq!(timer.look(at(16), 900), Err(End::IdleTimeout), "it has not");
    }
}
