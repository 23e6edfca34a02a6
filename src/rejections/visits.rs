//! What is remembered of a source that was turned away.

use super::OUTCOMES;
use crate::{moment::Moment, outcome::Outcome};

/// How long a source is not told again, in seconds.
const WINDOW: u32 = 3_600;

/// What came of one source.
#[derive(Debug, Clone, Copy, Default)]
pub struct Visits {
    /// In the order of [`OUTCOMES`].
    kinds: [Kind; OUTCOMES.len()],
    /// When the last of them was, as [`seconds`].
    last: u32,
}

/// Those that had one outcome.
#[derive(Debug, Clone, Copy, Default)]
struct Kind {
    /// Since the last summary.
    count: u32,
    /// As [`seconds`]; 0: none had a record yet.
    recorded: u32,
}

impl Visits {
    /// Counts a connection. True if it is to have a record: if it is the first with this outcome in a while, and `may_record`,
    /// which is asked only then.
    pub fn note(&mut self, outcome: Outcome, now: Moment, may_record: impl FnOnce() -> bool) -> bool {
        let now = seconds(now);
        self.last = now;
        let mut kinds = OUTCOMES.iter().zip(&mut self.kinds);
        let Some((_, kind)) = kinds.find(|(one, _)| **one == outcome) else { return false };
        kind.count = kind.count.saturating_add(1);
        let is_first = kind.recorded == 0 || now.saturating_sub(kind.recorded) >= WINDOW;
        let is_told = is_first && may_record();
        if is_told {
            kind.recorded = now;
        }
        is_told
    }

    /// Any of them may go; the one that was quiet for the longest goes first.
    #[expect(clippy::unnecessary_wraps, reason = "a table asks who may go at all")]
    pub fn age(&self) -> Option<u64> {
        Some(self.last.into())
    }

    /// What was counted since the last time, in the order of [`OUTCOMES`].
    pub fn take_counts(&mut self) -> [u32; OUTCOMES.len()] {
        self.kinds.each_mut().map(|kind| std::mem::take(&mut kind.count))
    }
}

/// Of the clock, from 1. A clock that began 136 years ago stands still.
fn seconds(now: Moment) -> u32 {
    u32::try_from(now.as_millis() / 1_000 + 1).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f7_a_source_is_told_once_in_a_while_and_for_each_outcome() {
        let (mut visits, window) = (Visits::default(), u64::from(WINDOW));
        let mut note = |outcome, seconds: u64, may| visits.note(outcome, Moment::from_millis(seconds * 1_000), || may);
        assert!(!note(Outcome::Denied, 0, false), "not while records are used up");
        assert!(note(Outcome::Denied, 0, true));
        assert!(!note(Outcome::Denied, window - 1, true));
        assert!(note(Outcome::MaxConnections, 1, true));
        assert!(note(Outcome::Denied, window, true));
        assert!(!note(Outcome::ClientClosed, window, true), "it was not turned away");
        assert_eq!(visits.take_counts(), [4, 0, 1]);
        assert_eq!(visits.take_counts(), [0; 3]);
    }
}
