//! What is known of sources of clients: who is banned, who has how many connections, who did wrong. It outlives
//! configurations, which only say what follows from it.

use std::{
    hash::{BuildHasher, RandomState},
    sync::Arc,
};

use crate::{
    bans::{Bans, Strikes},
    config::{self, Config, ListenerLimits, SourceLimits as Numbers},
    limits::{Exempt, SourceLimits, Sources},
    offence::{Report, Watch},
};

/// What there is under one configuration.
#[derive(Debug, Clone)]
pub struct Ledger {
    pub bans: Arc<Bans>,
    report: Report,
    /// Those that count at every listener without limits of its own.
    sources: Option<Arc<Sources>>,
    strikes: Option<Arc<Strikes>>,
    /// Sources that each table has room for.
    room: usize,
}

impl Ledger {
    /// An empty one. Who should be banned is told by `report`.
    pub fn new(report: Report) -> Self {
        Self { bans: Arc::default(), report, sources: None, strikes: None, room: 0 }
    }

    /// The one for a configuration that follows, of a process that has at most so many connections. What is known stays, as
    /// long as the same addresses are one source.
    #[must_use]
    pub fn under(&self, config: &Config, connections: usize) -> Self {
        // Two sources for each connection, so that those with connections never fill the table.
        const LEAST: usize = 1 << 17;
        let firewall = &config.firewall;
        let prefixes = firewall.limits.prefixes;
        let room = connections.saturating_mul(2).max(LEAST);
        let is_shared = config.listeners.iter().any(|listener| listener.limits == ListenerLimits::Shared);
        let sources = self.sources.as_ref().filter(|known| known.prefixes() == prefixes).map(Arc::clone);
        let strikes = self.strikes.as_ref().filter(|known| known.prefixes() == prefixes).map(Arc::clone);
        let new_sources = || Sources::new(prefixes, room, key());
        let new_strikes = || Arc::new(Strikes::new(prefixes, key()));
        Self {
            sources: (is_shared && limits_anything(&firewall.limits)).then(|| sources.unwrap_or_else(new_sources)),
            strikes: firewall.auto_ban.as_ref().map(|_| strikes.unwrap_or_else(new_strikes)),
            bans: Arc::clone(&self.bans),
            report: self.report.clone(),
            room,
        }
    }

    /// The limits of a listener's sources. Those of its own go on from `own`, what is known under them so far.
    pub fn limits(
        &self,
        limits: &ListenerLimits,
        firewall: &config::Firewall,
        own: Option<&Arc<Sources>>,
    ) -> Option<SourceLimits> {
        match limits {
            ListenerLimits::Off => None,
            ListenerLimits::Shared => {
                self.sources.as_ref().map(|sources| SourceLimits::new(&firewall.limits, Arc::clone(sources)))
            }
            ListenerLimits::Own(numbers) => limits_anything(numbers).then(|| {
                let known = own.filter(|known| known.prefixes() == numbers.prefixes).map(Arc::clone);
                SourceLimits::new(numbers, known.unwrap_or_else(|| Sources::new(numbers.prefixes, self.room, key())))
            }),
        }
    }

    /// What is noted of the clients of a listener.
    pub fn watch(&self, limits: &ListenerLimits, firewall: &config::Firewall) -> Option<Watch> {
        let (config, strikes) = (firewall.auto_ban.as_ref()?, self.strikes.as_ref()?);
        let exempt = match limits {
            ListenerLimits::Own(own) => &own.exempt,
            ListenerLimits::Shared | ListenerLimits::Off => &firewall.limits.exempt,
        };
        Some(Watch::new(config, Exempt::new(exempt), Arc::clone(strikes), self.report.clone()))
    }
}

/// Sources that are known under any of these limits, each table once.
pub fn known<'l>(all: impl Iterator<Item = &'l SourceLimits>) -> usize {
    let mut tables: Vec<&Arc<Sources>> = Vec::new();
    for sources in all.map(SourceLimits::sources) {
        if !tables.iter().any(|known| Arc::ptr_eq(known, sources)) {
            tables.push(sources);
        }
    }
    tables.iter().map(|sources| sources.known()).sum()
}

fn limits_anything(numbers: &Numbers) -> bool {
    numbers.connections.is_some() || numbers.rate.is_some()
}

/// For a hash that no client can foresee.
pub fn key() -> [u8; 16] {
    let random = RandomState::new();
    (u128::from(random.hash_one(0)) << 64 | u128::from(random.hash_one(1))).to_ne_bytes()
}
