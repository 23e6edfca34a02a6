//! One task for each backend that is checked, on the control runtime.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{info, warn};

use super::{
    attempt::verdict,
    pace::Pace,
    probe::{Failure, Probe, Progress},
};
use crate::{
    backend::{Backend, Health},
    config,
    load::CheckMaterials,
    metrics::{CheckCells, CheckResult, PerWorker, Registry, Transition},
    pool::{Mode, Pool},
    sys::clock,
    threshold::{Change, Threshold},
};

/// Called with each backend that goes down and whose connections have to end.
pub type Close = Arc<dyn Fn(&Backend) + Send + Sync>;

/// What is to be watched.
pub struct Watch<'a> {
    /// With the configuration and the materials of each.
    pub pools: Vec<(Arc<Pool>, &'a config::Pool, &'a CheckMaterials)>,
    pub registry: &'a Registry,
    pub close: Close,
}

/// The running checks; dropping it ends them.
#[derive(Debug)]
pub struct Checkers {
    _tasks: JoinSet<()>,
    /// Of every backend, also of those that nobody checks: their series stay.
    _cells: Vec<Arc<PerWorker<CheckCells>>>,
    reports: Vec<Arc<Mutex<Report>>>,
    /// Ends when the last backend has its first verdict.
    first: mpsc::Receiver<()>,
}

/// What the last checks of a backend found.
#[derive(Debug, Clone)]
pub struct Report {
    pub pool: Arc<str>,
    pub backend: Arc<str>,
    /// Where it is asked, and what kind of question.
    pub target: SocketAddr,
    pub kind: &'static str,
    /// `None` before the first verdict.
    pub last: Option<Result<(), Failure>>,
    /// Why the last check proved nothing, if it did not: this host or this process was to blame.
    pub hindrance: Option<Failure>,
    /// When its state last changed.
    pub since: Option<SystemTime>,
}

/// Everything that one task owns.
struct Checker {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    probe: Arc<Probe>,
    timeout: Duration,
    pace: Pace,
    threshold: Threshold,
    closes: bool,
    cells: Arc<PerWorker<CheckCells>>,
    report: Arc<Mutex<Report>>,
    hindrances: Hindrances,
    close: Close,
    /// Dropped with the first verdict.
    first: Option<mpsc::Sender<()>>,
}

/// Checks in a row that proved nothing.
#[derive(Debug, Default)]
struct Hindrances {
    count: u32,
    is_told: bool,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watch").field("pools", &self.pools.len()).finish_non_exhaustive()
    }
}

impl Checkers {
    /// Begins to check; the first questions are asked at once. Needs the control runtime.
    pub fn start(watch: &Watch) -> Self {
        let random = RandomState::new();
        let shift = f64::from(u32::try_from(random.hash_one("shift") >> 32).unwrap_or_default()) / f64::from(u32::MAX);
        let (first_sender, first) = mpsc::channel(1);
        let (mut tasks, mut reports, mut all_cells) = (JoinSet::new(), Vec::new(), Vec::new());
        let begin = Instant::now();
        let mut number = 0;
        for (pool, config, materials) in &watch.pools {
            for backend in pool.backends() {
                let cells = watch.registry.checks(&pool.name, &backend.name);
                all_cells.push(Arc::clone(&cells));
                let Some(check) = &config.check else { continue };
                let probe = Arc::new(Probe::new(check, materials, backend.address));
                let report = Arc::new(Mutex::new(Report {
                    pool: Arc::clone(&pool.name),
                    backend: Arc::clone(&backend.name),
                    target: probe.target(),
                    kind: check.kind.as_str(),
                    last: None,
                    hindrance: None,
                    since: None,
                }));
                reports.push(Arc::clone(&report));
                let checker = Checker {
                    pool: Arc::clone(pool),
                    backend: Arc::clone(backend),
                    probe,
                    timeout: check.timeout,
                    pace: Pace::new(check.every, number, shift),
                    threshold: match backend.health() {
                        Health::Unknown => Threshold::new(check.rise, check.fall),
                        health => Threshold::known(check.rise, check.fall, health == Health::Up),
                    },
                    closes: config.on_down == config::OnDown::Close,
                    cells,
                    report,
                    hindrances: Hindrances::default(),
                    close: Arc::clone(&watch.close),
                    // Where something is known already, nobody has to wait.
                    first: (backend.health() == Health::Unknown).then(|| first_sender.clone()),
                };
                let seed = RandomState::new();
                tasks.spawn(checker.run(begin, seed));
                number += 1;
            }
        }
        Self { _tasks: tasks, _cells: all_cells, reports, first }
    }

    /// Waits until every backend has its first verdict, and tells how many have none when the time is over.
    pub async fn first_verdicts(&mut self, patience: Duration) -> usize {
        // Nobody sends anything: the channel ends with its last sender.
        match tokio::time::timeout(patience, self.first.recv()).await {
            Ok(_) => 0,
            Err(_) => self.reports().filter(|report| report.last.is_none()).count(),
        }
    }

    /// What is known of each backend that is checked, in the order of the configuration.
    pub fn reports(&self) -> impl Iterator<Item = Report> {
        self.reports.iter().map(|report| report.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl Checker {
    async fn run(mut self, begin: Instant, random: RandomState) {
        for count in 0_u64.. {
            let begun = begin.elapsed();
            let verdict = self.ask().await;
            self.cells.at(0).checks.at(verdict.as_ref().err().map_or(CheckResult::Ok, |failure| failure.result)).add(1);
            self.judge(verdict);
            let next = self.pace.next(begun, random.hash_one(count));
            tokio::time::sleep_until(begin + next).await;
        }
    }

    /// One check, from its first packet to its verdict or the end of its time.
    async fn ask(&self) -> Result<(), Failure> {
        let progress = Arc::new(Progress::default());
        let (probe, told) = (Arc::clone(&self.probe), Arc::clone(&progress));
        verdict(async move { probe.ask(&told).await }, &progress, self.timeout).await
    }

    fn judge(&mut self, verdict: Result<(), Failure>) {
        if let Err(failure) = &verdict
            && failure.is_ours()
        {
            self.hinder(failure);
            return;
        }
        self.unhinder();
        let change = self.threshold.take(verdict.is_ok());
        if let Some(change) = change {
            self.change(change, verdict.as_ref().err());
        }
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        (report.last, report.hindrance) = (Some(verdict), None);
        if change.is_some() {
            report.since = Some(SystemTime::now());
        }
        drop(report);
        self.first = None;
    }

    fn change(&self, change: Change, failure: Option<&Failure>) {
        let (Change::First { up } | Change::Turned { up }) = change;
        let health = if up { Health::Up } else { Health::Down };
        let mode = self.pool.set_health(&self.backend, health, clock::coarse());
        // First of all what clients notice, then the words.
        if !up && self.closes {
            (self.close)(&self.backend);
        }
        // That a backend is well at the start is what everybody expects.
        if change != (Change::First { up: true }) {
            let to = if up { Transition::Up } else { Transition::Down };
            self.cells.at(0).transitions.at(to).add(1);
            self.tell(up, failure);
        }
        if let Some(mode) = mode {
            tell_mode(&self.pool, mode);
        }
    }

    /// What proves nothing leaves the backend as it is, and that must not go on in silence. One check that was late is
    /// no news, two are.
    fn hinder(&mut self, failure: &Failure) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).hindrance = Some(failure.clone());
        if self.hindrances.note(failure.result) {
            let (pool, backend, check) = (&*self.pool.name, &*self.backend.name, self.probe.target());
            let reason = &*failure.reason;
            warn!(pool, backend, %check, reason, "backend cannot be checked from here: it stays as it is");
        }
    }

    fn unhinder(&mut self) {
        if std::mem::take(&mut self.hindrances).is_told {
            let (pool, backend, check) = (&*self.pool.name, &*self.backend.name, self.probe.target());
            info!(pool, backend, %check, "backend can be checked again");
        }
    }

    fn tell(&self, up: bool, failure: Option<&Failure>) {
        let (pool, backend, check) = (&*self.pool.name, &*self.backend.name, self.probe.target());
        if up {
            info!(pool, backend, %check, "backend is up");
            return;
        }
        let reason = failure.map_or("", |failure| &failure.reason);
        warn!(pool, backend, %check, reason, "backend is down");
    }
}

impl Hindrances {
    /// Whether this one is to be told.
    fn note(&mut self, result: CheckResult) -> bool {
        self.count = self.count.saturating_add(1);
        let is_news = !self.is_told && (result != CheckResult::Stalled || self.count > 1);
        self.is_told |= is_news;
        is_news
    }
}

/// Tells where the connections of a pool go from now on.
pub fn tell_mode(pool: &Pool, mode: Mode) {
    let (pool, message) = (&*pool.name, mode.message());
    match mode {
        Mode::Checked => info!(pool, "{message}"),
        Mode::Panic | Mode::Open | Mode::Closed => warn!(pool, "{message}"),
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
