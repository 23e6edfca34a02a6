//! How the connections of a worker end when it is told to leave: by themselves at first, the rest spread over time.
//!
//! Whoever is cut off connects again, to somebody else. Cut off all at once, they arrive there all at once (traps L8).

use std::time::Duration;

/// The plan for one drain.
#[derive(Debug, Clone, Copy)]
pub struct Fade {
    /// Until then nobody is told to end.
    quiet: Duration,
    /// From then on nobody stays.
    over: Duration,
}

impl Fade {
    /// The last third of `patience` belongs to those that stay, and of that the end to their goodbyes.
    pub fn within(patience: Duration) -> Self {
        Self { quiet: patience * 2 / 3, over: patience * 9 / 10 }
    }

    /// Whether it is time to tell somebody.
    pub fn has_begun(&self, elapsed: Duration) -> bool {
        elapsed >= self.quiet
    }

    /// When the last one is told.
    pub fn over(&self) -> Duration {
        self.over
    }

    /// How many may stay of the `count` that were there when it began. `luck`, in parts of `u32::MAX`, decides when
    /// between two even steps the next one goes.
    pub fn keep(&self, elapsed: Duration, count: usize, luck: u32) -> usize {
        if elapsed >= self.over {
            return 0;
        }
        let span = self.over.saturating_sub(self.quiet);
        let share = elapsed.saturating_sub(self.quiet).as_secs_f64() / span.as_secs_f64();
        let gone = share * count as f64 + f64::from(luck) / f64::from(u32::MAX);
        #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "at most `count` + 1")]
        let gone = gone as usize;
        count.saturating_sub(gone)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn l8_nobody_is_told_before_the_last_third_and_then_everyone_evenly() {
        let fade = Fade::within(Duration::from_secs(30));
        assert!(!fade.has_begun(Duration::from_millis(19_999)) && fade.has_begun(Duration::from_secs(20)));
        assert_eq!(fade.keep(Duration::from_secs(10), 1000, u32::MAX / 2), 1000);
        let mut kept = 1000;
        for tenth in 200..=270 {
            let keep = fade.keep(Duration::from_millis(tenth * 100), 1000, u32::MAX / 2);
            assert!(kept - keep <= 16, "{} at once", kept - keep);
            kept = keep;
        }
        assert_eq!((kept, fade.over()), (0, Duration::from_secs(27)));
    }

    #[test]
    fn l8_a_lonely_connection_goes_at_a_time_of_its_own() {
        let fade = Fade::within(Duration::from_secs(30));
        let goes_at = |luck| (0..=30_000).find(|ms| fade.keep(Duration::from_millis(*ms), 1, luck) == 0).unwrap();
        assert!(goes_at(u32::MAX / 10 * 9) < 21_000);
        assert!(goes_at(u32::MAX / 10) > 26_000);
    }

    #[test]
    fn without_patience_all_go_at_once() {
        assert_eq!(Fade::within(Duration::ZERO).keep(Duration::ZERO, 7, 0), 0);
    }
}
