//! What has been counted, as numbers under names: one process writes them down, the next one goes on from there, so that an
//! upgrade makes no counter smaller (traps L2).
//!
//! Numbers that only one of two versions knows are left out by the other.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{
    cells::{
        BackendCells, BanCells, CheckCells, Counter, Family, ListenerCells, OffloadCells, PerWorker, PoolCells,
        RuleCells, WorkerCells,
    },
    histogram::{Histogram, Sum},
    labels::{Direction, Label, RelayPath, Resumption, RuleAction},
    registry::{Named, Registry},
};
use crate::{config::TlsVersion, outcome::Outcome};

/// Everything that a process and those before it have counted.
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
pub struct Totals {
    /// Of the process and not of a part of it.
    house: Numbers,
    listeners: BTreeMap<String, Numbers>,
    /// By rule, and by what it does.
    rules: BTreeMap<String, BTreeMap<String, Numbers>>,
    pools: BTreeMap<String, Numbers>,
    /// By pool, and by backend.
    backends: BTreeMap<String, BTreeMap<String, Numbers>>,
    checks: BTreeMap<String, BTreeMap<String, Numbers>>,
    /// By rule.
    #[serde(default)]
    offloaded: BTreeMap<String, Numbers>,
}

/// Those that are not 0. Sums of durations are whole nanoseconds.
type Numbers = BTreeMap<String, u64>;

const DROPPED: &str = "log_records_dropped";
const APPLIED: &str = "reloads_applied";
const REFUSED: &str = "reloads_refused";
const PANICS: &str = "panics";

/// A cell that is written down.
enum Cell<'c> {
    Counter(&'c Counter),
    Sum(&'c Sum),
}

/// A block of cells whose names are the same in every process.
trait Cells {
    /// Shows each cell under its name, always in the same order.
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>));
}

impl Registry {
    /// What was counted up to now, here and in the processes before.
    pub fn totals(&self) -> Totals {
        let mut house = summed(self.workers());
        house.extend(summed(self.bans()));
        let reloads = self.reloads();
        for (name, value) in [
            (DROPPED, self.records_dropped()),
            (APPLIED, reloads.applied),
            (REFUSED, reloads.refused),
            (PANICS, self.panics()),
        ] {
            house.extend((value > 0).then(|| (name.to_owned(), value)));
        }
        let mut rules = BTreeMap::<_, BTreeMap<_, _>>::new();
        for ((rule, action), cells) in self.rules() {
            rules.entry(rule).or_default().insert(action.as_str().to_owned(), summed(&cells));
        }
        Totals {
            house,
            listeners: self.listeners().into_iter().map(|(name, cells)| (name, summed(&cells))).collect(),
            rules,
            pools: self.pools().into_iter().map(|(name, cells)| (name, summed(&cells))).collect(),
            backends: by_pool(self.backends().into_iter().map(|(name, cells)| (name, summed(&cells)))),
            offloaded: self.all_offloaded().into_iter().map(|(rule, cells)| (rule, summed(&cells))).collect(),
            checks: by_pool(self.all_checks().into_iter().map(|(name, cells)| (name, summed(&cells)))),
        }
    }

    /// Goes on from what another process has counted, and then from what it still counts: each time from all of it. On the
    /// control thread alone.
    pub fn inherit(&self, totals: &Totals) {
        let house = |name: &str| totals.house.get(name).copied().unwrap_or_default();
        self.set_before(house(DROPPED), (house(APPLIED), house(REFUSED)), house(PANICS));
        raise(self.workers().before(), &totals.house);
        raise(self.bans().before(), &totals.house);
        for (name, numbers) in &totals.listeners {
            raise_known(&self.listeners, name, numbers);
        }
        for (rule, numbers) in &totals.rules {
            for action in RuleAction::ALL {
                if let Some(numbers) = numbers.get(action.as_str()) {
                    raise_known(&self.rules, &(rule.clone(), *action), numbers);
                }
            }
        }
        for (rule, numbers) in &totals.offloaded {
            raise_known(&self.offloaded, rule, numbers);
        }
        for (name, numbers) in &totals.pools {
            raise_known(&self.pools, name, numbers);
        }
        for (pool, backends) in &totals.backends {
            for (backend, numbers) in backends {
                raise_known(&self.backends, &(pool.clone(), backend.clone()), numbers);
            }
        }
        for (pool, backends) in &totals.checks {
            for (backend, numbers) in backends {
                raise_known(&self.checks, &(pool.clone(), backend.clone()), numbers);
            }
        }
    }

    /// The process before is gone: what it had not counted as ended has ended with it.
    pub fn end_before(&self) {
        for (_, cells) in self.listeners() {
            let before = cells.before();
            let closed = Outcome::ALL.iter().map(|outcome| before.closed.at(*outcome).value());
            let left = before.accepted.value().saturating_sub(closed.sum());
            before.closed.at(Outcome::Drained).add(left);
        }
    }
}

fn by_pool(all: impl Iterator<Item = ((String, String), Numbers)>) -> BTreeMap<String, BTreeMap<String, Numbers>> {
    let mut pools = BTreeMap::<_, BTreeMap<_, _>>::new();
    for ((pool, backend), numbers) in all {
        pools.entry(pool).or_default().insert(backend, numbers);
    }
    pools
}

fn summed<T: Cells>(cells: &PerWorker<T>) -> Numbers {
    let (mut counts, mut sums) = (Numbers::new(), BTreeMap::<String, f64>::new());
    for block in cells.iter() {
        block.each(&mut |name, cell| match cell {
            Cell::Counter(counter) => *counts.entry(name).or_default() += counter.value(),
            Cell::Sum(sum) => *sums.entry(name).or_default() += sum.value(),
        });
    }
    counts.extend(sums.into_iter().map(|(name, nanos)| (name, whole(nanos))));
    counts.retain(|_, value| *value > 0);
    counts
}

fn raise_known<K: Ord + Clone, T: Cells + Default>(all: &Named<K, T>, key: &K, numbers: &Numbers) {
    if let Some(cells) = all.find(key) {
        raise(cells.before(), numbers);
    }
}

/// Lets each number grow to what it is now; none shrinks.
fn raise<T: Cells>(block: &T, numbers: &Numbers) {
    block.each(&mut |name, cell| {
        let Some(&total) = numbers.get(&name) else { return };
        match cell {
            Cell::Counter(counter) => counter.add(total.saturating_sub(counter.value())),
            Cell::Sum(sum) => sum.add((total as f64 - sum.value()).max(0.0)),
        }
    });
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a sum of durations, saturating")]
fn whole(nanos: f64) -> u64 {
    nanos as u64
}

fn family<'c, L: Label, const N: usize>(name: &str, family: &'c Family<L, N>, visit: &mut dyn FnMut(String, Cell<'c>)) {
    for label in L::ALL {
        visit(format!("{name} {}", label.as_str()), Cell::Counter(family.at(*label)));
    }
}

fn histogram<'c, const N: usize>(name: &str, histogram: &'c Histogram<N>, visit: &mut dyn FnMut(String, Cell<'c>)) {
    for (bound, counter) in histogram.buckets() {
        visit(format!("{name} {bound}"), Cell::Counter(counter));
    }
    visit(format!("{name} sum"), Cell::Sum(histogram.sum()));
}

impl Cells for ListenerCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        visit("accepted".to_owned(), Cell::Counter(&self.accepted));
        visit("received_bytes".to_owned(), Cell::Counter(&self.received_bytes));
        visit("sent_bytes".to_owned(), Cell::Counter(&self.sent_bytes));
        family("closed", &self.closed, visit);
        family("accept_errors", &self.accept_errors, visit);
        family("tls_failures", &self.tls_failures, visit);
        family("proxy_headers", &self.proxy_headers, visit);
        family("proxy_failures", &self.proxy_failures, visit);
        family("limited", &self.limited, visit);
        visit("limits_evictions".to_owned(), Cell::Counter(&self.limits_evictions));
        visit("limits_uncounted".to_owned(), Cell::Counter(&self.limits_uncounted));
        for version in TlsVersion::ALL {
            for resumption in Resumption::ALL {
                let name = format!("tls_handshakes {} {}", version.as_str(), resumption.as_str());
                visit(name, Cell::Counter(self.tls_handshakes(*version, *resumption)));
            }
        }
        histogram("duration", &self.duration, visit);
        histogram("tls_duration", &self.tls_duration, visit);
    }
}

impl Cells for RuleCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        visit("connections".to_owned(), Cell::Counter(&self.connections));
    }
}

impl Cells for OffloadCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        visit("packets".to_owned(), Cell::Counter(&self.packets));
    }
}

impl Cells for WorkerCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        for path in RelayPath::ALL {
            for direction in Direction::ALL {
                let name = format!("relay_bytes {} {}", path.as_str(), direction.as_str());
                visit(name, Cell::Counter(self.relay_bytes(*path, *direction)));
            }
        }
        family("fallbacks", &self.fallbacks, visit);
    }
}

impl Cells for BanCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        family("bans", &self.bans, visit);
    }
}

impl Cells for PoolCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        visit("retries".to_owned(), Cell::Counter(&self.retries));
        histogram("connect_duration", &self.connect_duration, visit);
    }
}

impl Cells for BackendCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        visit("connections".to_owned(), Cell::Counter(&self.connections));
        family("connect_failures", &self.connect_failures, visit);
    }
}

impl Cells for CheckCells {
    fn each<'c>(&'c self, visit: &mut dyn FnMut(String, Cell<'c>)) {
        family("checks", &self.checks, visit);
        family("transitions", &self.transitions, visit);
    }
}
