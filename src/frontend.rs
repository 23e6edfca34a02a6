//! The immutable policy that a listener applies: the single place where configuration becomes runtime.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    time::Duration,
};

use arc_swap::{ArcSwap, ArcSwapOption};

use crate::{
    bans::Bans,
    config::{self, BAN, DenyAction, ListenerLimits},
    firewall::{Action, Table},
    ledger::Ledger,
    limits::{SourceLimits, Sources},
    load::Materials,
    metrics::{Generation, ListenerCells, PerWorker, Registry, RuleAction, RuleCells},
    offence::Watch,
    pool::Pool,
    relay::Timeouts,
    tls::{acceptor::Policy, crowd::Shortage},
};

/// What a connection is measured by from its first moment to its last.
#[derive(Debug)]
pub struct Frontend {
    pub name: Arc<str>,
    pub firewall: Firewall,
    pub bans: Arc<Bans>,
    /// `None`: its clients may come as they like.
    pub sources: Option<SourceLimits>,
    /// `None`: nobody is banned for what he does here.
    pub watch: Option<Watch>,
    /// The limit of the process, then the listener's.
    pub limits: [Arc<Limit>; 2],
    pub tls: Option<Policy>,
    /// `None`: clients come themselves.
    pub proxy_protocol: Option<config::ProxyProtocol>,
    /// The whole handshake.
    pub handshake: Duration,
    pub pool: Arc<Pool>,
    pub timeouts: Timeouts,
    pub cells: Arc<PerWorker<ListenerCells>>,
    /// The limit of the listener, from when this policy is in force.
    most: usize,
    /// Whether nobody else counts by its table of sources.
    has_own_sources: bool,
    /// What it was built with; alive as long as a connection keeps it.
    _generation: Arc<Generation>,
}

/// What the frontends of one configuration have in common.
#[derive(Debug)]
pub struct Common<'a> {
    /// The limit of the process.
    pub process: &'a Arc<Limit>,
    pub registry: &'a Registry,
    pub generation: &'a Arc<Generation>,
    pub firewall: &'a config::Firewall,
    pub ledger: &'a Ledger,
}

/// The firewall of one listener.
#[derive(Debug)]
pub struct Firewall {
    /// One place for the policies of all configurations. A connection keeps the policy that it began under, and would keep a
    /// list of a million networks with it (traps L1).
    rules: Arc<ArcSwap<Rules>>,
    /// Its own, until they are in force.
    next: ArcSwapOption<Rules>,
    ban: CountedRule,
    pub deny_action: DenyAction,
}

/// The rules of one listener with their counters.
#[derive(Debug)]
struct Rules {
    table: Arc<Table>,
    /// By the numbers that the table uses.
    counted: Vec<CountedRule>,
    default: CountedRule,
}

#[derive(Debug)]
struct CountedRule {
    name: Arc<str>,
    cells: Arc<PerWorker<RuleCells>>,
}

/// How many connections there may be at once; exact over all workers.
#[derive(Debug)]
pub struct Limit {
    most: AtomicUsize,
    taken: AtomicUsize,
}

/// A place under a [`Limit`], given back when dropped.
#[derive(Debug)]
pub struct Place(Arc<Limit>);

impl Frontend {
    /// Joins a listener's configuration with what was loaded for it. The connections of `old`, the policy that it is to
    /// replace, count under its limit too.
    pub fn new(
        listener: &config::Listener,
        firewall: Firewall,
        tls: Option<Policy>,
        pool: Arc<Pool>,
        common: &Common<'_>,
        old: Option<&Self>,
    ) -> Self {
        let timeouts = &listener.timeouts;
        let most = listener.max_connections.map_or(usize::MAX, std::num::NonZero::get);
        let own = old.map_or_else(|| Limit::new(most), |old| Arc::clone(&old.limits[1]));
        let Common { firewall: rules, ledger, .. } = *common;
        Self {
            name: listener.name.as_str().into(),
            firewall,
            bans: Arc::clone(&ledger.bans),
            sources: ledger.limits(&listener.limits, rules, old.and_then(Self::own_sources)),
            watch: ledger.watch(&listener.limits, rules),
            limits: [Arc::clone(common.process), own],
            tls,
            proxy_protocol: listener.proxy_protocol.clone(),
            handshake: timeouts.handshake,
            pool,
            timeouts: Timeouts {
                idle: timeouts.idle,
                half_closed: timeouts.half_closed,
                max_age: Some(timeouts.max_age).filter(|age| !age.is_zero()),
            },
            cells: common.registry.listener(&listener.name),
            most,
            has_own_sources: matches!(listener.limits, ListenerLimits::Own(_)),
            _generation: Arc::clone(common.generation),
        }
    }

    /// Puts its limit and its rules in force, once it has taken its place.
    pub fn adopt(&self) {
        self.limits[1].set_most(self.most);
        if let Some(rules) = self.firewall.next.swap(None) {
            self.firewall.rules.store(rules);
        }
    }

    fn own_sources(&self) -> Option<&Arc<Sources>> {
        self.sources.as_ref().filter(|_| self.has_own_sources).map(SourceLimits::sources)
    }
}

impl Frontend {
    /// Whether there are few places left, so that who only takes one up has to make room. `handshakes` are those of all
    /// workers and all listeners, with the PROXY headers that are awaited.
    pub fn shortage(&self, handshakes: impl Fn() -> u64) -> Shortage {
        let [process, listener] = &self.limits;
        let share = |limit: &Limit, handshakes| limit.room_for(handshakes) / self.cells.own().count().max(1);
        if process.is_nearly_full() {
            Shortage::OfProcess(share(process, handshakes()))
        } else if listener.is_nearly_full() {
            let awaited = |cells: &ListenerCells| cells.tls_in_progress.value() + cells.proxy_in_progress.value();
            Shortage::OfListener(share(listener, self.cells.sum(awaited)))
        } else {
            Shortage::None
        }
    }
}

impl Firewall {
    /// The rules that apply to one listener, counted by name. Where `old` is replaced they wait for [`Frontend::adopt`], and
    /// then who comes under `old` is judged by them too.
    pub fn new(config: &config::Firewall, materials: &Materials, registry: &Registry, old: Option<&Self>) -> Self {
        let rules = materials.rules.iter().filter_map(|&index| config.rules.get(index)).map(|rule| {
            let action = match (rule.shadow, rule.action) {
                (true, Action::Deny) => RuleAction::ShadowDeny,
                (true, Action::Allow) => RuleAction::ShadowAllow,
                (false, Action::Deny) => RuleAction::Deny,
                (false, Action::Allow) => RuleAction::Allow,
            };
            CountedRule { name: rule.name.as_str().into(), cells: registry.rule(&rule.name, action) }
        });
        let default = match config.default {
            Action::Allow => RuleAction::Allow,
            Action::Deny => RuleAction::Deny,
        };
        let rules = Arc::new(Rules {
            table: Arc::clone(&materials.table),
            counted: rules.collect(),
            default: CountedRule { name: "default".into(), cells: registry.rule("default", default) },
        });
        let (rules, next) = match old {
            Some(old) => (Arc::clone(&old.rules), Some(rules)),
            None => (Arc::new(ArcSwap::new(rules)), None),
        };
        Self {
            rules,
            next: ArcSwapOption::new(next),
            ban: CountedRule { name: BAN.into(), cells: registry.rule(BAN, RuleAction::Deny) },
            deny_action: config.deny_action,
        }
    }

    /// Judges a client and counts the verdict. The second part is the name of the deciding rule.
    pub fn judge(&self, client: IpAddr, worker: usize) -> (Action, Arc<str>) {
        let rules = self.rules.load();
        let verdict = rules.table.verdict(client);
        let rule = |index: u16| rules.counted.get(usize::from(index));
        for shadow in verdict.shadows.iter().filter_map(|&index| rule(index)) {
            shadow.cells.at(worker).connections.add(1);
        }
        let decided = verdict.rule.and_then(rule).unwrap_or(&rules.default);
        decided.cells.at(worker).connections.add(1);
        (verdict.action, Arc::clone(&decided.name))
    }

    /// Counts a client that is banned, and gives the name that stands for its rule.
    pub fn count_ban(&self, worker: usize) -> Arc<str> {
        self.ban.cells.at(worker).connections.add(1);
        Arc::clone(&self.ban.name)
    }
}

impl Limit {
    pub fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most: AtomicUsize::new(most), taken: AtomicUsize::new(0) })
    }

    /// The limit itself; `usize::MAX` is none.
    pub fn most(&self) -> usize {
        self.most.load(Ordering::Relaxed)
    }

    /// Changes it. Those above it stay.
    pub fn set_most(&self, most: usize) {
        self.most.store(most, Ordering::Relaxed);
    }

    /// Connections under it now.
    pub fn taken(&self) -> usize {
        self.taken.load(Ordering::Relaxed)
    }

    /// Places that handshakes may not keep: an eighth, or of few a quarter. They are for who comes while the oldest
    /// handshakes are being ended.
    fn kept_free(&self) -> usize {
        const FEW: usize = 64;
        (self.most() / 8).max(FEW.min(self.most() / 4))
    }

    fn is_nearly_full(&self) -> bool {
        self.taken() > self.most() - self.kept_free()
    }

    /// How many of these `handshakes` have room beside everyone else.
    fn room_for(&self, handshakes: u64) -> usize {
        let others = self.taken().saturating_sub(usize::try_from(handshakes).unwrap_or(usize::MAX));
        (self.most() - self.kept_free()).saturating_sub(others)
    }

    /// A place, if one is free.
    pub fn take(self: &Arc<Self>) -> Option<Place> {
        let most = self.most();
        let one_more = |taken| (taken < most).then_some(taken + 1);
        self.taken.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).ok()?;
        Some(Place(Arc::clone(self)))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.0.taken.fetch_sub(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f9_a_limit_is_exact_whoever_asks() {
        let limit = Limit::new(100);
        let places: Vec<_> = std::thread::scope(|scope| {
            let threads: Vec<_> =
                (0..8).map(|_| scope.spawn(|| (0..100).filter_map(|_| limit.take()).collect::<Vec<_>>())).collect();
            threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(places.len(), 100);
        drop(places);
        assert_eq!(limit.taken.load(Ordering::Relaxed), 0);
    }
}
