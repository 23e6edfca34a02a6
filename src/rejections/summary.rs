//! One message a minute about all who were turned away.

use std::{collections::HashMap, sync::Arc, time::Duration};

use tracing::info;

use super::{Noted, OUTCOMES, Rejections};
use crate::{
    address::{Prefixes, Source},
    metrics::{Label, LimitReason, Registry, RuleAction},
};

/// Between two summaries.
const MINUTE: Duration = Duration::from_mins(1);

/// Sources and rules that a summary names.
const NAMED: usize = 5;

/// Tells once a minute what was not told one by one.
#[derive(Debug)]
pub struct Teller {
    rejections: Arc<Rejections>,
    registry: Arc<Registry>,
    before: Counts,
}

/// What the metrics say.
#[derive(Debug, Default)]
struct Counts {
    /// In the order of [`OUTCOMES`].
    outcomes: [u64; OUTCOMES.len()],
    /// Connections that a rule denied.
    rules: HashMap<String, u64>,
    /// Connections that were over a limit of their source, by which.
    limits: [u64; LimitReason::ALL.len()],
}

impl Teller {
    /// Counts from now on.
    pub fn new(rejections: Arc<Rejections>, registry: Arc<Registry>) -> Self {
        let before = Counts::of(&registry);
        Self { rejections, registry, before }
    }

    /// Tells every minute, without end.
    pub async fn tell_every_minute(mut self) {
        loop {
            tokio::time::sleep(MINUTE).await;
            self.tell();
        }
    }

    /// One message, if there were more than have a record.
    fn tell(&mut self) {
        let (now, noted) = (Counts::of(&self.registry), self.rejections.take());
        let before = std::mem::replace(&mut self.before, now);
        let now = &self.before;
        let [denied, limited, max_connections] = since(now.outcomes, before.outcomes);
        let connections = denied + limited + max_connections;
        let Noted { prefixes, sources, recorded } = noted;
        if connections <= recorded {
            return;
        }
        let rules = now.rules.iter();
        let rules = rules.map(|(rule, now)| (rule, now.saturating_sub(before.rules.get(rule).copied().unwrap_or(0))));
        let limits = LimitReason::ALL.iter().map(|limit| limit.as_str()).zip(since(now.limits, before.limits));
        let count = sources.len();
        let sources = sources.into_iter().map(|source| (source, source.1.iter().map(|count| u64::from(*count)).sum()));
        let (rules, limits, sources) = (rules.collect(), limits.collect(), sources.collect());
        info!(
            connections,
            recorded,
            denied,
            limited,
            max_connections,
            rules = named(rules, |rule, count| format!("{rule} {count}")),
            limits = named(limits, |limit, count| format!("{limit} {count}")),
            sources = count,
            busiest = named(sources, |source, _| text(source, prefixes)),
            "turned away"
        );
    }
}

impl Drop for Teller {
    /// What the last minute brought.
    fn drop(&mut self) {
        self.tell();
    }
}

impl Counts {
    fn of(registry: &Registry) -> Self {
        let mut counts = Self::default();
        for (_, cells) in registry.listeners() {
            for (count, outcome) in counts.outcomes.iter_mut().zip(OUTCOMES) {
                *count += cells.sum(|cells| cells.closed.at(outcome).value());
            }
            for (count, limit) in counts.limits.iter_mut().zip(LimitReason::ALL) {
                *count += cells.sum(|cells| cells.limited.at(*limit).value());
            }
        }
        for ((rule, action), cells) in registry.rules() {
            if action == RuleAction::Deny {
                counts.rules.insert(rule, cells.sum(|cells| cells.connections.value()));
            }
        }
        counts
    }
}

fn since<const N: usize>(mut now: [u64; N], before: [u64; N]) -> [u64; N] {
    now.iter_mut().zip(before).for_each(|(now, before)| *now = now.saturating_sub(before));
    now
}

/// The first few with the largest numbers, and how many there are beside.
fn named<T>(mut counts: Vec<(T, u64)>, text: impl Fn(&T, u64) -> String) -> String {
    counts.retain(|(_, count)| *count > 0);
    counts.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = counts.len().saturating_sub(NAMED);
    let mut texts: Vec<_> = counts.iter().take(NAMED).map(|(one, count)| text(one, *count)).collect();
    texts.extend((more > 0).then(|| format!("{more} more")));
    texts.join(", ")
}

/// Who it is, and how often it was turned away for what.
fn text((source, counts): &(Source, [u32; OUTCOMES.len()]), prefixes: Prefixes) -> String {
    let counts = OUTCOMES.iter().zip(counts).filter(|(_, count)| **count > 0);
    let counts = counts.map(|(outcome, count)| format!("{} {count}", outcome.as_str()));
    [prefixes.name_of(*source)].into_iter().chain(counts).collect::<Vec<_>>().join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_busiest_are_named_first() {
        let named = |counts: &[(&str, u64)]| named(counts.to_vec(), |one, count| format!("{one} {count}"));
        assert_eq!(named(&[("a", 1), ("b", 0), ("c", 7)]), "c 7, a 1");
        let many = ["a", "b", "c", "d", "e", "f", "g", "h"].into_iter().zip(1..);
        assert_eq!(named(&many.collect::<Vec<_>>()), "h 8, g 7, f 6, e 5, d 4, 3 more");
        assert_eq!(named(&[]), "");
    }

    #[test]
    fn a_source_is_told_with_what_it_was_turned_away_for() {
        let told = |client: &str, counts| {
            text(&(Prefixes::DEFAULT.source_of(client.parse().unwrap()), counts), Prefixes::DEFAULT)
        };
        assert_eq!(told("192.0.2.7", [9, 0, 0]), "192.0.2.7 denied 9");
        assert_eq!(told("2001:db8::7", [0, 3, 2]), "2001:db8::/64 limited 3 max_connections 2");
    }
}
