//! Who was turned away before it was served, told without a flood (traps F7).
//!
//! Each is counted by the metrics, exactly. Here it is decided who has a record of its own in the access log: the first
//! connection of a source in an hour, for each outcome, and at most 10,000 a minute. The others are told together, in one
//! message a minute. Nothing here grows, whoever comes.

mod table;

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::IpAddr,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use tracing::info;

use self::table::{Shard, Source};
use crate::{
    metrics::{Registry, RuleAction},
    moment::Moment,
    outcome::Outcome,
};

/// Outcomes of clients that are turned away before anything is done for them.
pub const OUTCOMES: [Outcome; 3] = [Outcome::Denied, Outcome::Limited, Outcome::MaxConnections];

/// Parts of the table with a lock of their own: workers seldom meet in one.
const SHARDS: usize = 64;

/// Records in a minute; who comes when they are used up is told later, or only counted.
const RECORDS: u64 = 10_000;

/// Between two summaries.
const MINUTE: Duration = Duration::from_mins(1);

/// Sources and rules that a summary names.
const NAMED: usize = 5;

/// Who was turned away lately, for all workers.
#[derive(Debug)]
pub struct Rejections {
    keys: RandomState,
    shards: Box<[Mutex<Shard>]>,
    /// Of this minute.
    records: AtomicU64,
}

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
}

impl Default for Rejections {
    fn default() -> Self {
        let shards = (0..SHARDS).map(|_| Mutex::default()).collect();
        Self { keys: RandomState::new(), shards, records: AtomicU64::new(0) }
    }
}

impl Rejections {
    /// Notes a client that is turned away, and says whether it is to have a record, where there is a `log`. Some tens of
    /// nanoseconds, no system call.
    pub fn note(&self, client: IpAddr, outcome: Outcome, now: Moment, log: bool) -> bool {
        let source = Source::of(client);
        let hash = self.keys.hash_one((source, outcome));
        let may_record = log && self.records.load(Ordering::Relaxed) < RECORDS;
        let (shard, rest) = (hash % SHARDS as u64, hash / SHARDS as u64);
        let Some(shard) = usize::try_from(shard).ok().and_then(|shard| self.shards.get(shard)) else { return false };
        let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
        let is_first = shard.note(rest, source, outcome, now, may_record);
        drop(shard);
        if is_first {
            self.records.fetch_add(1, Ordering::Relaxed);
        }
        is_first
    }

    /// The busiest sources since the last time, and how many records they had together.
    fn take(&self) -> (Vec<(Source, u64)>, u64) {
        let mut counts: HashMap<_, u64> = HashMap::new();
        for shard in &self.shards {
            let mut shard = shard.lock().unwrap_or_else(PoisonError::into_inner);
            for (source, _, count) in shard.take_counts() {
                *counts.entry(source).or_default() += u64::from(count);
            }
        }
        (counts.into_iter().collect(), self.records.swap(0, Ordering::Relaxed))
    }
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
        let (now, (sources, recorded)) = (Counts::of(&self.registry), self.rejections.take());
        let before = std::mem::replace(&mut self.before, now);
        let since = |now: u64, before: u64| now.saturating_sub(before);
        let [denied, limited, max_connections] =
            std::array::from_fn(|index| match (self.before.outcomes.get(index), before.outcomes.get(index)) {
                (Some(now), Some(before)) => since(*now, *before),
                _ => 0,
            });
        let connections = denied + limited + max_connections;
        if connections <= recorded {
            return;
        }
        let rules = self.before.rules.iter();
        let rules = rules.map(|(rule, now)| (rule, since(*now, before.rules.get(rule).copied().unwrap_or_default())));
        let (rules, count) = (named(rules.collect()), sources.len());
        let sources_named = named(sources);
        info!(
            connections,
            recorded,
            denied,
            limited,
            max_connections,
            rules,
            sources = count,
            busiest = sources_named,
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
        }
        for ((rule, action), cells) in registry.rules() {
            if action == RuleAction::Deny {
                counts.rules.insert(rule, cells.sum(|cells| cells.connections.value()));
            }
        }
        counts
    }
}

/// The first few with the largest numbers, and how many there are beside.
fn named<T: ToString>(mut counts: Vec<(T, u64)>) -> String {
    counts.retain(|(_, count)| *count > 0);
    counts.sort_unstable_by_key(|(_, count)| std::cmp::Reverse(*count));
    let more = counts.len().saturating_sub(NAMED);
    let mut texts: Vec<_> =
        counts.iter().take(NAMED).map(|(name, count)| format!("{} {count}", name.to_string())).collect();
    texts.extend((more > 0).then(|| format!("{more} more")));
    texts.join(", ")
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x7f00_0000 + number).into()
    }

    #[test]
    fn f7_ten_thousand_sources_are_told_once_each_by_any_number_of_workers() {
        let (rejections, now) = (Rejections::default(), Moment::from_millis(5_000));
        let told: usize = std::thread::scope(|scope| {
            let work = |_| {
                let visits = (0..100_000).map(|visit| address(visit % 10_000));
                visits.filter(|client| rejections.note(*client, Outcome::Denied, now, true)).count()
            };
            let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        // A set may have one source too many.
        assert!((9_990..=10_004).contains(&told), "{told}");
        let (sources, recorded) = rejections.take();
        assert_eq!(recorded, told as u64);
        assert!((9_990..=10_000).contains(&sources.len()), "{}", sources.len());
        assert!(sources.iter().filter(|(_, count)| *count == 40).count() > 9_900);
    }

    #[test]
    fn f7_a_million_sources_have_ten_thousand_records_in_a_minute_and_the_table_does_not_grow() {
        let (rejections, now) = (Rejections::default(), Moment::from_millis(5_000));
        let told =
            (0..1_000_000).filter(|number| rejections.note(address(*number), Outcome::Denied, now, true)).count();
        assert_eq!(told, 10_000);
        let (sources, _) = rejections.take();
        assert!(sources.len() <= SHARDS * 1_024, "{}", sources.len());
        assert!(rejections.note(address(2_000_000), Outcome::Denied, now, true), "the next minute");
    }

    #[test]
    fn the_busiest_are_named_first() {
        assert_eq!(named(vec![("a", 1), ("b", 0), ("c", 7)]), "c 7, a 1");
        let many: Vec<_> = (1..=8).map(|n| (n, n)).collect();
        assert_eq!(named(many), "8 8, 7 7, 6 6, 5 5, 4 4, 3 more");
        assert_eq!(named::<&str>(Vec::new()), "");
    }
}
