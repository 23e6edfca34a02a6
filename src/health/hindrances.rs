//! Checks that proved nothing, because this host or this process was to blame: when to say so.

use crate::metrics::CheckResult;

/// Checks in a row that proved nothing.
#[derive(Debug, Default)]
pub struct Hindrances {
    count: u32,
    is_told: bool,
}

impl Hindrances {
    /// Whether this one is to be told.
    pub fn note(&mut self, result: CheckResult) -> bool {
        self.count = self.count.saturating_add(1);
        let is_news = !self.is_told && (result != CheckResult::Stalled || self.count > 1);
        self.is_told |= is_news;
        is_news
    }

    /// Whether one of them was told.
    pub fn is_told(&self) -> bool {
        self.is_told
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a6_checks_that_this_host_spoils_are_told_once() {
        let told = |results: &[CheckResult]| {
            let mut hindrances = Hindrances::default();
            results.iter().map(|result| hindrances.note(*result)).collect::<Vec<_>>()
        };
        assert_eq!(told(&[CheckResult::Local; 3]), [true, false, false]);
        assert_eq!(told(&[CheckResult::Stalled; 3]), [false, true, false]);
        assert_eq!(told(&[CheckResult::Stalled, CheckResult::Local, CheckResult::Stalled]), [false, true, false]);
    }
}
