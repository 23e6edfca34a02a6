//! Where the cells live: by name, so that they survive a reload.

use std::{
    collections::BTreeMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
};

use super::{
    cells::{
        BackendCells, BanCells, CheckCells, ListenerCells, OffloadCells, PerWorker, PoolCells, RuleCells, WorkerCells,
    },
    labels::{Label, RuleAction},
    panics::panics,
};

/// Every cell of the process. Taking a handle locks and allocates: do it when a frontend is built, not per connection.
#[derive(Debug)]
pub struct Registry {
    workers: PerWorker<WorkerCells>,
    pub(super) listeners: Named<String, ListenerCells>,
    pub(super) rules: Named<(String, RuleAction), RuleCells>,
    pub(super) pools: Named<String, PoolCells>,
    /// By pool and backend.
    pub(super) backends: Named<(String, String), BackendCells>,
    /// By pool and backend; the control thread alone writes them.
    pub(super) checks: Named<(String, String), CheckCells>,
    /// The control thread alone writes them.
    bans: PerWorker<BanCells>,
    /// By rule; the control thread alone writes them.
    pub(super) offloaded: Named<String, OffloadCells>,
    offload_up: AtomicBool,
    log_records_dropped: Arc<AtomicU64>,
    reloads: Mutex<Reloads>,
    generations: Arc<AtomicU64>,
    before: Mutex<Before>,
}

/// What the processes before this one counted and no block of cells holds.
#[derive(Debug, Clone, Copy, Default)]
struct Before {
    dropped: u64,
    applied: u64,
    refused: u64,
    panics: u64,
}

/// A configuration that was put to work, counted until the last connection that keeps it has ended (traps L1).
#[derive(Debug)]
pub struct Generation(Arc<AtomicU64>);

/// Every block under its name, in the order of the names.
pub type All<K, T> = Vec<(K, Arc<PerWorker<T>>)>;

/// What happened to the configurations after the first.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Reloads {
    pub applied: u64,
    pub refused: u64,
    /// The start counts as a success.
    pub last_successful: bool,
}

#[derive(Debug)]
pub(super) struct Named<K, T> {
    workers: usize,
    cells: Mutex<BTreeMap<K, Arc<PerWorker<T>>>>,
}

impl Registry {
    pub fn new(workers: usize) -> Self {
        Self {
            workers: PerWorker::new(workers),
            listeners: Named::new(workers),
            rules: Named::new(workers),
            pools: Named::new(workers),
            backends: Named::new(workers),
            checks: Named::new(1),
            bans: PerWorker::new(1),
            offloaded: Named::new(1),
            offload_up: AtomicBool::new(false),
            log_records_dropped: Arc::default(),
            reloads: Mutex::new(Reloads { applied: 0, refused: 0, last_successful: true }),
            generations: Arc::default(),
            before: Mutex::default(),
        }
    }

    pub fn workers(&self) -> &PerWorker<WorkerCells> {
        &self.workers
    }

    /// The cells of a listener; asking makes its series appear, at 0.
    pub fn listener(&self, name: &str) -> Arc<PerWorker<ListenerCells>> {
        self.listeners.cells(name.to_owned())
    }

    /// The cells of a firewall rule, or of `default`, under what it does: a rule that a reload turns from shadow to deny
    /// keeps both series.
    pub fn rule(&self, name: &str, action: RuleAction) -> Arc<PerWorker<RuleCells>> {
        self.rules.cells((name.to_owned(), action))
    }

    /// Those of a rule's name that there are, under whatever it has done so far.
    pub fn rules_of(&self, name: &str) -> impl Iterator<Item = Arc<PerWorker<RuleCells>>> {
        RuleAction::ALL.iter().filter_map(|action| self.rules.find(&(name.to_owned(), *action)))
    }

    pub fn pool(&self, name: &str) -> Arc<PerWorker<PoolCells>> {
        self.pools.cells(name.to_owned())
    }

    pub fn backend(&self, pool: &str, backend: &str) -> Arc<PerWorker<BackendCells>> {
        self.backends.cells((pool.to_owned(), backend.to_owned()))
    }

    /// The cells of a backend's checks, for the control thread.
    pub fn checks(&self, pool: &str, backend: &str) -> Arc<PerWorker<CheckCells>> {
        self.checks.cells((pool.to_owned(), backend.to_owned()))
    }

    pub fn bans(&self) -> &PerWorker<BanCells> {
        &self.bans
    }

    /// The cells of a rule in the kernel, for the control thread.
    pub fn offloaded(&self, rule: &str) -> Arc<PerWorker<OffloadCells>> {
        self.offloaded.cells(rule.to_owned())
    }

    /// Whether the kernel denies what the firewall denies.
    pub fn offload_is_up(&self) -> bool {
        self.offload_up.load(Ordering::Relaxed)
    }

    pub fn set_offload_up(&self, is_up: bool) {
        self.offload_up.store(is_up, Ordering::Relaxed);
    }

    /// Drops the cells that nobody holds any more, and their series with them: for after a reload, and after each scrape,
    /// because the cells of a removed name stay while a connection of its time still counts.
    pub fn forget_unused(&self) {
        self.listeners.forget_unused();
        self.rules.forget_unused();
        self.pools.forget_unused();
        self.backends.forget_unused();
        self.checks.forget_unused();
        self.offloaded.forget_unused();
    }

    /// Access log records that nobody will read; many threads add to it, rarely.
    pub fn log_records_dropped(&self) -> &Arc<AtomicU64> {
        &self.log_records_dropped
    }

    pub fn records_dropped(&self) -> u64 {
        self.log_records_dropped.load(Ordering::Relaxed) + self.before().dropped
    }

    pub fn count_reload(&self, applied: bool) {
        let mut reloads = self.reloads.lock().unwrap_or_else(PoisonError::into_inner);
        reloads.last_successful = applied;
        if applied {
            reloads.applied += 1;
        } else {
            reloads.refused += 1;
        }
    }

    pub fn reloads(&self) -> Reloads {
        let (own, before) = (*self.reloads.lock().unwrap_or_else(PoisonError::into_inner), self.before());
        Reloads { applied: own.applied + before.applied, refused: own.refused + before.refused, ..own }
    }

    /// What the processes before counted; none of it shrinks.
    pub(super) fn set_before(&self, dropped: u64, (applied, refused): (u64, u64), panics: u64) {
        let mut before = self.before.lock().unwrap_or_else(PoisonError::into_inner);
        before.dropped = before.dropped.max(dropped);
        before.applied = before.applied.max(applied);
        before.refused = before.refused.max(refused);
        before.panics = before.panics.max(panics);
    }

    /// Bugs of ours that ended what they happened in.
    pub(super) fn panics(&self) -> u64 {
        panics() + self.before().panics
    }

    fn before(&self) -> Before {
        *self.before.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// For a configuration that is to be put to work.
    pub fn generation(&self) -> Arc<Generation> {
        self.generations.fetch_add(1, Ordering::Relaxed);
        Arc::new(Generation(Arc::clone(&self.generations)))
    }

    /// How many there are.
    pub fn generations(&self) -> u64 {
        self.generations.load(Ordering::Relaxed)
    }

    pub fn listeners(&self) -> All<String, ListenerCells> {
        self.listeners.all()
    }

    pub fn rules(&self) -> All<(String, RuleAction), RuleCells> {
        self.rules.all()
    }

    pub fn pools(&self) -> All<String, PoolCells> {
        self.pools.all()
    }

    pub fn backends(&self) -> All<(String, String), BackendCells> {
        self.backends.all()
    }

    pub fn all_offloaded(&self) -> All<String, OffloadCells> {
        self.offloaded.all()
    }

    pub fn all_checks(&self) -> All<(String, String), CheckCells> {
        self.checks.all()
    }
}

impl Drop for Generation {
    fn drop(&mut self) {
        self.0.fetch_sub(1, Ordering::Relaxed);
    }
}

impl<K: Ord + Clone, T: Default> Named<K, T> {
    fn new(workers: usize) -> Self {
        Self { workers, cells: Mutex::default() }
    }

    fn cells(&self, key: K) -> Arc<PerWorker<T>> {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(cells.entry(key).or_insert_with(|| Arc::new(PerWorker::new(self.workers))))
    }

    /// The cells of a name, if anybody has asked for them.
    pub(super) fn find(&self, key: &K) -> Option<Arc<PerWorker<T>>> {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.get(key).map(Arc::clone)
    }

    fn forget_unused(&self) {
        let mut cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.retain(|_, cells| Arc::strong_count(cells) > 1);
    }

    fn all(&self) -> All<K, T> {
        let cells = self.cells.lock().unwrap_or_else(PoisonError::into_inner);
        cells.iter().map(|(key, cells)| (key.clone(), Arc::clone(cells))).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_same_name_is_the_same_cells() {
        let registry = Registry::new(2);
        registry.listener("https").at(1).accepted.add(7);
        assert_eq!(registry.listener("https").sum(|cells| cells.accepted.value()), 7);
        assert_eq!(registry.listener("mysql").sum(|cells| cells.accepted.value()), 0);
        registry.rule("geo", RuleAction::ShadowDeny).at(0).connections.add(1);
        assert_eq!(registry.rule("geo", RuleAction::Deny).at(0).connections.value(), 0);
        assert_eq!((registry.rules_of("geo").count(), registry.rules_of("gone").count()), (2, 0));
    }

    #[test]
    fn cells_live_as_long_as_somebody_holds_them() {
        let registry = Registry::new(1);
        let kept = registry.listener("kept");
        registry.listener("gone");
        registry.backend("web", "gone");
        registry.forget_unused();
        let names: Vec<_> = registry.listeners().into_iter().map(|(name, _)| name).collect();
        assert_eq!((names, registry.backends().len()), (vec!["kept".to_owned()], 0));
        drop(kept);
    }

    #[test]
    fn the_start_counts_as_a_success_and_not_as_a_reload() {
        let registry = Registry::new(1);
        assert_eq!(registry.reloads(), Reloads { applied: 0, refused: 0, last_successful: true });
        registry.count_reload(false);
        assert_eq!(registry.reloads(), Reloads { applied: 0, refused: 1, last_successful: false });
        registry.count_reload(true);
        assert_eq!(registry.reloads(), Reloads { applied: 1, refused: 1, last_successful: true });
    }
}
