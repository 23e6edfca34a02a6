//! When checks come. Pure: times are durations since a common beginning.

use std::time::Duration;

/// The moments of one backend's checks: never two further apart than the interval, and spread so that the backends of
/// a process take turns (traps B7).
#[derive(Debug, Clone, Copy)]
pub struct Pace {
    period: Duration,
    offset: Duration,
    jitter: Duration,
}

impl Pace {
    /// For the backend with this number; `shift` is any fraction (0 to 1) of the process, so that two balancers with the
    /// same configuration do not ask at the same moments.
    pub fn new(every: Duration, number: u32, shift: f64) -> Self {
        // Multiples of the golden section lie evenly apart, however many there are.
        let turn = (f64::from(number) * 0.618_033_988_749_894_9 + shift).fract();
        // A little more often than asked for, so that `fall` intervals and a timeout are never exceeded.
        let (jitter, period) = (every / 100, every * 95 / 100);
        Self { period, offset: period.mul_f64(turn), jitter }
    }

    /// When to ask again after a check that began at `begun`; `random` moves it by up to a hundredth of the interval. It
    /// may be over already: then at once.
    pub fn next(&self, begun: Duration, random: u64) -> Duration {
        let period = self.period.as_nanos().max(1);
        let turns = (begun + self.period).saturating_sub(self.offset).as_nanos() / period;
        let planned = self.offset + self.period * u32::try_from(turns).unwrap_or(u32::MAX);
        planned + self.jitter.mul_f64((random >> 11) as f64 / (1_u64 << 53) as f64)
    }
}

#[cfg(test)]
mod tests {
    use siphasher::sip::SipHasher13;
    use std::hash::{Hash, Hasher};

    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    fn random(a: u32, b: usize) -> u64 {
        let mut hasher = SipHasher13::new();
        (a, b).hash(&mut hasher);
        hasher.finish()
    }

    /// The first moments of a backend's checks, each of which takes no time.
    fn moments(number: u32, shift: f64, count: usize) -> Vec<Duration> {
        let pace = Pace::new(SECOND, number, shift);
        let next = |begun: &Duration| Some(pace.next(*begun, random(number, begun.subsec_nanos() as usize)));
        std::iter::successors(Some(Duration::ZERO), next).take(count).collect()
    }

    #[test]
    fn checks_are_never_further_apart_than_the_interval() {
        for number in 0..100 {
            for pair in moments(number, 0.37, 50).windows(2) {
                assert!(pair[1] > pair[0] && pair[1] <= pair[0] + SECOND, "{pair:?}");
            }
        }
    }

    #[test]
    fn b7_no_tenth_of_a_second_has_twice_its_share() {
        for (count, shift) in [(10, 0.0), (10, 0.9), (20, 0.4), (50, 0.123), (100, 0.5), (1000, 0.77)] {
            let mut all: Vec<_> = (0..count).flat_map(|number| moments(number, shift, 12)).collect();
            all.retain(|at| (SECOND..10 * SECOND).contains(at));
            all.sort_unstable();
            let most = all.iter().enumerate().map(|(index, begin)| {
                all[index..].iter().take_while(|at| **at < *begin + Duration::from_millis(100)).count()
            });
            let most = most.max().unwrap();
            assert!(most <= 2 * count as usize / 10, "{count} backends: {most} checks in 100 ms");
        }
    }

    #[test]
    fn after_a_pause_the_turns_are_as_before() {
        let pace = Pace::new(SECOND, 3, 0.2);
        let late = Duration::from_secs(100);
        let next = pace.next(late, 0);
        assert!(next >= late && next <= late + SECOND);
    }
}
