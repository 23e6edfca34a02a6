//! Sources that were turned away lately, in a table that never grows.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{address::canonical_ip, moment::Moment, outcome::Outcome};

/// Places that one source may have: a cache line or three.
const WAYS: usize = 8;

/// Sets of so many places in one shard.
const SETS: usize = 128;

/// How long a source is not told again.
const WINDOW: u64 = 3_600;

/// Who counts as one (traps F8): an IPv4 address, or an IPv6 network of 64 bits.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Source {
    V4(u32),
    V6(u64),
}

/// A part of the table. It takes no memory until somebody is turned away.
#[derive(Debug, Default)]
pub struct Shard(Vec<Option<Entry>>);

/// A source as it was told, in seconds of the clock.
#[derive(Debug, Clone, Copy)]
struct Entry {
    source: Source,
    outcome: Outcome,
    /// Since the last summary.
    count: u32,
    /// `None`: it had no record yet.
    recorded: Option<u32>,
    last: u32,
}

impl Source {
    pub fn of(client: IpAddr) -> Self {
        match canonical_ip(client) {
            IpAddr::V4(ip) => Self::V4(ip.to_bits()),
            IpAddr::V6(ip) => Self::V6((ip.to_bits() >> 64) as u64),
        }
    }
}

impl std::fmt::Display for Source {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::V4(bits) => Ipv4Addr::from_bits(*bits).fmt(f),
            Self::V6(bits) => write!(f, "{}/64", Ipv6Addr::from_bits(u128::from(*bits) << 64)),
        }
    }
}

impl Shard {
    /// Counts a connection. True if it is the first of its source in this while and `may_record`: then it is to have a record.
    /// Where there is no place, the one that was seen longest ago goes.
    pub fn note(&mut self, hash: u64, source: Source, outcome: Outcome, now: Moment, may_record: bool) -> bool {
        if self.0.is_empty() {
            self.0 = vec![None; SETS * WAYS];
        }
        let now = seconds(now);
        let set = usize::try_from(hash % SETS as u64).unwrap_or_default() * WAYS;
        let ways = self.0.get_mut(set..set + WAYS).unwrap_or_default();
        let is_own = |entry: &Option<Entry>| entry.is_some_and(|one| (one.source, one.outcome) == (source, outcome));
        let own = ways.iter().position(is_own);
        let oldest = || (0..ways.len()).min_by_key(|&way| ways.get(way).copied().flatten().map(|entry| entry.last));
        let Some(way) = own.or_else(oldest).and_then(|way| ways.get_mut(way)) else { return false };
        let known = way.filter(|_| own.is_some());
        let (count, recorded) = known.map_or((0, None), |entry| (entry.count, entry.recorded));
        let is_first = recorded.is_none_or(|at| u64::from(now.saturating_sub(at)) >= WINDOW);
        let recorded = if is_first && may_record { Some(now) } else { recorded };
        *way = Some(Entry { source, outcome, count: count.saturating_add(1), recorded, last: now });
        is_first && may_record
    }

    /// Who was counted since the last time, and how often at least.
    pub fn take_counts(&mut self) -> impl Iterator<Item = (Source, Outcome, u32)> {
        let counted = self.0.iter_mut().flatten().filter(|entry| entry.count > 0);
        counted.map(|entry| (entry.source, entry.outcome, std::mem::take(&mut entry.count)))
    }
}

/// A clock that began 136 years ago stands still.
fn seconds(now: Moment) -> u32 {
    u32::try_from(now.as_millis() / 1_000).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_millis(seconds * 1_000)
    }

    fn source(text: &str) -> Source {
        Source::of(text.parse().unwrap())
    }

    #[test]
    fn f8_a_source_is_an_address_or_64_bits() {
        assert_eq!(source("192.0.2.7"), source("::ffff:192.0.2.7"));
        assert_ne!(source("192.0.2.7"), source("192.0.2.8"));
        assert_eq!(source("2001:db8:1:2::1"), source("2001:db8:1:2:ffff::2"));
        assert_ne!(source("2001:db8:1:2::1"), source("2001:db8:1:3::1"));
        assert_eq!(source("2001:db8:1:2::1").to_string(), "2001:db8:1:2::/64");
        assert_eq!(source("192.0.2.7").to_string(), "192.0.2.7");
    }

    #[test]
    fn f7_a_source_is_told_once_in_a_while_and_for_each_outcome() {
        let (mut shard, one) = (Shard::default(), source("192.0.2.7"));
        let mut note = |outcome, seconds, may| shard.note(7, one, outcome, at(seconds), may);
        assert!(!note(Outcome::Denied, 100, false), "not while records are used up");
        assert!(note(Outcome::Denied, 101, true));
        assert!(!note(Outcome::Denied, 101 + WINDOW - 1, true));
        assert!(note(Outcome::MaxConnections, 102, true));
        assert!(note(Outcome::Denied, 101 + WINDOW, true));
        let mut counts: Vec<_> = shard.take_counts().map(|(_, outcome, count)| (outcome.as_str(), count)).collect();
        counts.sort_unstable();
        assert_eq!(counts, [("denied", 4), ("max_connections", 1)]);
        assert_eq!(shard.take_counts().count(), 0);
    }

    #[test]
    fn f7_a_full_set_forgets_the_one_that_was_quiet_longest() {
        let mut shard = Shard::default();
        let mut note = |number: u32, seconds| shard.note(3, Source::V4(number), Outcome::Denied, at(seconds), true);
        for number in 0..8 {
            assert!(note(number, 10 + u64::from(number)));
        }
        assert!(!note(0, 30), "it is back");
        assert!(note(8, 31), "in the place of 1");
        assert!(!note(0, 32));
        assert!(note(1, 33));
        assert_eq!(shard.0.len(), SETS * WAYS);
        assert!(size_of::<Option<Entry>>() <= 40, "{}", size_of::<Option<Entry>>());
    }
}
