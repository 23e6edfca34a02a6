//! Limits per source of clients: how many connections it has at once, and how fast it makes them. Exact over all workers,
//! in memory of a fixed size (traps F8, F9).
//!
//! [`SourceLimits`] are the numbers of one policy, [`Sources`] what is known of everybody: the first goes with a
//! configuration, the second stays. Time and the key of the hash are given.

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use crate::{
    address::Prefixes,
    config::{self, Action},
    firewall::{RuleSet, Table as Networks},
    metrics::LimitReason,
    sources::{Found, Slot, Table},
};

/// What each source may do, by one policy.
#[derive(Debug)]
pub struct SourceLimits {
    connections: u32,
    rate: Option<Rate>,
    exempt: Exempt,
    sources: Arc<Sources>,
}

/// Sources that no limit is for.
#[derive(Debug)]
pub struct Exempt(Option<Networks>);

/// What is known of the sources that share a limit.
#[derive(Debug)]
pub struct Sources {
    prefixes: Prefixes,
    table: Table<Entry>,
}

/// A connection of a source, counted until dropped.
#[derive(Debug)]
pub struct SourcePlace {
    sources: Arc<Sources>,
    slot: Slot,
}

/// What a policy says to one more connection.
#[derive(Debug)]
pub enum Answer {
    /// It counts until the place is dropped.
    Place {
        place: SourcePlace,
        evicted: bool,
    },
    /// No limit is for this source.
    Exempt,
    /// There is no room for its source: every source of its bucket has connections.
    Uncounted,
    Limited(LimitReason),
}

/// How fast connections may come: a bucket of `burst` tokens, filled with one every `interval`.
#[derive(Debug, Clone, Copy)]
struct Rate {
    /// Nanoseconds.
    interval: u64,
    /// Nanoseconds that the bucket, less one token, takes to fill.
    tolerance: u64,
}

/// One source. The bucket of tokens is the one number of the generic cell rate algorithm (ITU-T I.371, annex A).
#[derive(Debug, Clone, Copy, Default)]
struct Entry {
    /// When the bucket is full again, or was: nanoseconds of the clock. Never before the last visit.
    full_at: u64,
    live: u32,
}

impl SourceLimits {
    pub fn new(config: &config::SourceLimits, sources: Arc<Sources>) -> Self {
        Self {
            connections: config.connections.map_or(u32::MAX, NonZeroU32::get),
            rate: config.rate.map(|rate| Rate::new(rate.new_per_second, rate.burst)),
            exempt: Exempt::new(&config.exempt),
            sources,
        }
    }

    /// Asks for one more connection of this client, at a moment of the monotonic clock. What is refused takes no token.
    pub fn take(&self, client: IpAddr, now: Duration) -> Answer {
        if self.exempt.contains(client) {
            return Answer::Exempt;
        }
        let sources = &self.sources;
        let now = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        let source = sources.prefixes.source_of(client);
        match sources.table.with(source, Entry::idle_since, |entry| entry.take(self.connections, self.rate, now)) {
            None => Answer::Uncounted,
            Some(Found { result: Err(reason), .. }) => Answer::Limited(reason),
            Some(Found { result: Ok(()), slot, evicted }) => {
                Answer::Place { place: SourcePlace { sources: Arc::clone(sources), slot }, evicted }
            }
        }
    }

    pub fn sources(&self) -> &Arc<Sources> {
        &self.sources
    }
}

impl Exempt {
    pub fn new(networks: &[crate::cidr::Cidr]) -> Self {
        let set = RuleSet { networks, action: Action::Allow, shadow: false };
        Self((!networks.is_empty()).then(|| Networks::build(&[set], Action::Deny)))
    }

    pub fn contains(&self, client: IpAddr) -> bool {
        self.0.as_ref().is_some_and(|networks| networks.verdict(client).action == Action::Allow)
    }
}

impl Sources {
    /// Room for at least so many sources.
    pub fn new(prefixes: Prefixes, room: usize, key: [u8; 16]) -> Arc<Self> {
        Arc::new(Self { prefixes, table: Table::new(room, key) })
    }

    pub fn prefixes(&self) -> Prefixes {
        self.prefixes
    }

    /// How many are known.
    pub fn known(&self) -> usize {
        self.table.used()
    }

    /// How many fit.
    pub fn room(&self) -> usize {
        self.table.room()
    }

    /// Memory held on the heap; it never changes.
    pub fn heap_bytes(&self) -> usize {
        self.table.heap_bytes()
    }
}

impl Drop for SourcePlace {
    fn drop(&mut self) {
        self.sources.table.at(self.slot, |entry| entry.live = entry.live.saturating_sub(1));
    }
}

impl Rate {
    fn new(new_per_second: NonZeroU32, burst: NonZeroU32) -> Self {
        const SECOND: u64 = 1_000_000_000;
        let interval = SECOND / u64::from(new_per_second.get());
        Self { interval, tolerance: interval * u64::from(burst.get() - 1) }
    }
}

impl Entry {
    /// One with connections has to stay: its count would be lost.
    fn idle_since(&self) -> Option<u64> {
        (self.live == 0).then_some(self.full_at)
    }

    fn take(&mut self, most: u32, rate: Option<Rate>, now: u64) -> Result<(), LimitReason> {
        if self.live >= most {
            return Err(LimitReason::Connections);
        }
        let full_at = self.full_at.max(now);
        self.full_at = match rate {
            Some(Rate { tolerance, .. }) if full_at - now > tolerance => return Err(LimitReason::Rate),
            Some(Rate { interval, .. }) => full_at + interval,
            // Another policy may have left a bucket that is not full.
            None => full_at,
        };
        self.live += 1;
        Ok(())
    }
}

#[cfg(test)]
mod tests;
