//! A named set of backends with one balance policy: active ones, and backups for when no active one is left.
//!
//! A connection looks for a backend among the active ones that are well, then among the backups that are well, then
//! among those that real traffic has found wanting, and at last, when no check finds anything up, among all.

mod lease;
mod mode;
mod queue;
mod search;
#[cfg(test)]
mod tests;
mod tier;

use std::{
    collections::HashMap,
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

pub use lease::Lease;
pub use mode::Mode;
pub use queue::Turn;
pub use search::{Pick, Search};

use crate::{
    backend::{Backend, Health},
    balance::{Balance, Request},
    config::{self, OnAllDown, OnDown, Outlier, SendProxy},
    metrics::{PerWorker, PoolCells, Registry},
    moment::Moment,
};
use queue::Queue;
use tier::{Policy, Tier};

/// A pool, shared by every worker.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    pub balance: Balance,
    /// Other backends of the same role tried while no client byte was forwarded.
    pub retries: u32,
    /// One connect attempt.
    pub connect_timeout: Duration,
    pub cells: Arc<PerWorker<PoolCells>>,
    /// All connect attempts of one client: one `connect_timeout` for each of the first role, and one more for a backup.
    pub patience: Duration,
    /// Whether connections to a backend end when it goes down.
    pub closes_on_down: bool,
    /// What backends are told of the client.
    pub send_proxy: SendProxy,
    /// How long a client may wait for a backend with room.
    pub queue_timeout: Duration,
    active: Tier,
    backup: Tier,
    hash_key: [u8; 16],
    rules: Rules,
    /// Who waits for room. Shared with the pools of the same name before and after this one.
    queue: Arc<Queue>,
    /// Some backend has a limit, so somebody may have to wait.
    has_limits: bool,
    /// Held while it is decided whether one more may be ejected.
    ejecting: Mutex<()>,
    /// What backends are asked; if nothing, every one counts as up.
    check: Option<config::Check>,
    /// As it was last told.
    told: Mutex<Mode>,
}

/// What happens when backends fail or are full.
#[derive(Debug, Clone)]
struct Rules {
    outlier: Option<Outlier>,
    slow_start: Duration,
    on_all_down: OnAllDown,
    /// Percent of the active backends that have to be up for checks to be believed.
    panic_threshold: u8,
    /// Most clients that wait.
    max_queued: usize,
}

impl Pool {
    /// Builds the pool. Counters are found by name, so they survive; so do the backends of `old`, the pool it is to replace,
    /// that have the same name and address: their live connections, their health, their ejection and their slow start,
    /// whatever they are asked from now on. Nothing of `old` changes until `adopt`: the configuration may still be refused.
    pub fn new(
        config: &config::Pool,
        hash_key: &[u8; 16],
        registry: &Registry,
        old: Option<&Self>,
        now: Moment,
    ) -> Self {
        let shares = old.into_iter().flat_map(Self::all_shares);
        let known: HashMap<_, _> = shares.map(|share| ((&*share.0.name, share.0.address), share)).collect();
        let known = |member: &config::Backend| known.get(&(&*member.name, member.address)).copied();
        let backend = |member: &config::Backend| {
            if let Some((backend, ..)) = known(member) {
                return Arc::clone(backend);
            }
            let health = if config.check.is_some() { Health::Unknown } else { Health::Up };
            let backend = Backend::new(member, health, registry.backend(&config.name, &member.name));
            if old.is_some() {
                backend.join(now);
            }
            Arc::new(backend)
        };
        // An operator's weight holds while the written one stays the same.
        let weight = |member: &config::Backend| {
            let share = known(member).filter(|(.., written)| *written == member.weight);
            share.map_or(member.weight, |(_, weight, _)| weight)
        };
        let tier = |role| {
            let members: Vec<_> = config.backends.iter().filter(|backend| backend.role == role).collect();
            Tier::new(
                members.iter().map(|member| backend(member)).collect(),
                members.iter().map(|member| weight(member)).collect(),
                members.iter().map(|member| member.weight).collect(),
                members.iter().map(|member| member.max_connections).collect(),
                Policy { balance: config.balance, hash_key },
            )
        };
        let backups = u32::from(config.backends.iter().any(|backend| backend.role == config::Role::Backup));
        Self {
            name: config.name.as_str().into(),
            balance: config.balance,
            retries: config.retries,
            connect_timeout: config.connect_timeout,
            cells: registry.pool(&config.name),
            patience: config.connect_timeout.saturating_mul(config.retries.saturating_add(1 + backups)),
            closes_on_down: config.on_down == OnDown::Close,
            send_proxy: config.send_proxy,
            queue_timeout: config.queue,
            active: tier(config::Role::Active),
            backup: tier(config::Role::Backup),
            hash_key: *hash_key,
            rules: Rules {
                outlier: config.outlier,
                slow_start: config.slow_start,
                on_all_down: config.on_all_down,
                panic_threshold: config.panic_threshold,
                max_queued: config.max_queued.get(),
            },
            queue: old.map(|old| Arc::clone(&old.queue)).unwrap_or_default(),
            has_limits: config.backends.iter().any(|backend| backend.max_connections.is_some()),
            ejecting: Mutex::default(),
            check: config.check.clone(),
            told: Mutex::new(old.map(Self::told).unwrap_or_default()),
        }
    }

    /// The weights that an operator gave to backends of `old`, the pool before, since this one was built from it.
    pub fn catch_up(&self, old: &Self) {
        let shares: HashMap<_, _> = self.all_shares().map(|share| (share.0.id, share)).collect();
        for (before, by_hand, written) in old.all_shares() {
            let Some((backend, weight, now_written)) = shares.get(&before.id) else { continue };
            if written == *now_written && *weight != by_hand {
                for tier in [&self.active, &self.backup] {
                    tier.set_weight(backend, by_hand, Policy { balance: self.balance, hash_key: &self.hash_key });
                }
            }
        }
    }

    /// Puts in force what this configuration says of the backends it shares with the one before: called once, when it has
    /// taken its place. What changed is to be told.
    pub fn adopt(&self, now: Moment) -> Option<Mode> {
        for tier in [&self.active, &self.backup] {
            tier.backends.iter().zip(&tier.caps).for_each(|(backend, cap)| backend.set_cap(*cap));
        }
        // What a check found that is no more asked would never be found otherwise.
        for backend in self.backends().filter(|backend| self.check.is_none() && backend.health() != Health::Up) {
            backend.set_health(Health::Up, now);
        }
        self.serve_waiting(now);
        self.news()
    }

    /// Begins the search for one client. `random` is 64 fresh bits.
    pub fn search(&self, source: IpAddr, random: u64) -> Search {
        let ticket = self.queue.ticket();
        Search::new(Request { source, ticket, random }, self.retries.saturating_add(1))
    }

    /// What its backends are asked, as text: the same text is the same question. `None`: nothing.
    pub fn question(&self) -> Option<String> {
        self.check.as_ref().map(|check| match self.send_proxy {
            SendProxy::Off => format!("{check:?}"),
            version => format!("{version:?} {check:?}"),
        })
    }

    /// Every backend, active ones first.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.active.backends.iter().chain(&self.backup.backends)
    }

    /// Every backend with its share of the traffic, active ones first.
    pub fn members(&self) -> impl Iterator<Item = (&Arc<Backend>, u16)> {
        self.active.members().chain(self.backup.members())
    }

    /// The active backends, or the backups, each with its weight and the one that the configuration has for it.
    pub fn shares(&self, role: config::Role) -> impl Iterator<Item = (&Arc<Backend>, u16, u16)> {
        match role {
            config::Role::Active => self.active.shares(),
            config::Role::Backup => self.backup.shares(),
        }
    }

    /// Gives a backend another weight, until the configuration has a new one. When that changes where connections go, it is
    /// to be told.
    pub fn set_weight(&self, backend: &Backend, weight: u16, now: Moment) -> Option<Mode> {
        for tier in [&self.active, &self.backup] {
            tier.set_weight(backend, weight, Policy { balance: self.balance, hash_key: &self.hash_key });
        }
        self.serve_waiting(now);
        self.news()
    }

    /// A connect of real traffic failed through no fault of this host. True if that ejects the backend.
    pub fn connect_failed(&self, backend: &Backend, now: Moment) -> bool {
        let Some(outlier) = &self.rules.outlier else { return false };
        if !backend.note_failure(outlier.connect_failures) {
            return false;
        }
        let tier = if self.backup.has(backend) { &self.backup } else { &self.active };
        // The only lock of a pool's data path, taken once in `connect_failures` failed connects.
        let _one_at_a_time = self.ejecting.lock().unwrap_or_else(PoisonError::into_inner);
        let ejected = tier.backends.iter().filter(|other| other.is_ejected(now)).count();
        let most = tier.backends.len() * usize::from(outlier.max_ejected) / 100;
        if backend.is_ejected(now) || ejected >= most.max(1) {
            return false;
        }
        backend.eject(now.after(outlier.eject));
        true
    }

    /// A connect of real traffic succeeded. True if that shows that an ejection is over.
    pub fn connect_succeeded(&self, backend: &Backend, now: Moment) -> bool {
        backend.note_success(now)
    }

    /// Every backend with its weight and the one that the configuration has for it.
    fn all_shares(&self) -> impl Iterator<Item = (&Arc<Backend>, u16, u16)> {
        self.active.shares().chain(self.backup.shares())
    }
}
