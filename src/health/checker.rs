//! One task for each backend that is checked, on the control runtime.

use std::{
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    pin::pin,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::JoinSet, time::Instant};
use tracing::{info, warn};

use super::{
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

/// A verdict later than this was delayed by ourselves: it proves nothing about the backend (traps R18).
const STALL: Duration = Duration::from_secs(1);

/// How often a running check looks whether we are stalled.
const TICK: Duration = Duration::from_millis(250);

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
    /// When its state last changed.
    pub since: Option<SystemTime>,
}

/// Everything that one task owns.
struct Checker {
    pool: Arc<Pool>,
    backend: Arc<Backend>,
    probe: Probe,
    timeout: Duration,
    pace: Pace,
    threshold: Threshold,
    closes: bool,
    cells: Arc<PerWorker<CheckCells>>,
    report: Arc<Mutex<Report>>,
    close: Close,
    /// Dropped with the first verdict.
    first: Option<mpsc::Sender<()>>,
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
        let (mut tasks, mut reports) = (JoinSet::new(), Vec::new());
        let begin = Instant::now();
        let mut number = 0;
        for (pool, config, materials) in &watch.pools {
            for backend in pool.backends() {
                let cells = watch.registry.checks(&pool.name, &backend.name);
                let Some(check) = &config.check else { continue };
                let probe = Probe::new(check, materials, backend.address);
                let report = Arc::new(Mutex::new(Report {
                    pool: Arc::clone(&pool.name),
                    backend: Arc::clone(&backend.name),
                    target: probe.target(),
                    kind: check.kind.as_str(),
                    last: None,
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
                    close: Arc::clone(&watch.close),
                    first: Some(first_sender.clone()),
                };
                let seed = RandomState::new();
                tasks.spawn(checker.run(begin, seed));
                number += 1;
            }
        }
        Self { _tasks: tasks, reports, first }
    }

    /// Waits until every backend has its first verdict, and tells how many have none when the time is over.
    pub async fn first_verdicts(&mut self, patience: Duration) -> usize {
        // Nobody sends anything: the channel ends with its last sender.
        let _ = tokio::time::timeout(patience, self.first.recv()).await;
        self.reports().filter(|report| report.last.is_none()).count()
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
        let progress = Progress::default();
        let mut probe = pin!(self.probe.ask(&progress));
        let end = Instant::now() + self.timeout;
        let mut stalled = false;
        loop {
            let tick = end.min(Instant::now() + TICK);
            let verdict = tokio::time::timeout_at(tick, &mut probe).await;
            stalled |= tick.elapsed() > STALL;
            match verdict {
                Ok(Ok(())) => return Ok(()),
                Ok(Err(_)) if stalled => return Err(late()),
                Ok(Err(failure)) => return Err(failure),
                Err(_) if Instant::now() < end => {}
                Err(_) if stalled => return Err(late()),
                Err(_) => {
                    let what = if progress.is_connected() { "connected, but no answer" } else { "no answer" };
                    return Err(Failure::new(CheckResult::Timeout, format!("{what} within {:?}", self.timeout)));
                }
            }
        }
    }

    fn judge(&mut self, verdict: Result<(), Failure>) {
        let blameless = |failure: &Failure| matches!(failure.result, CheckResult::Local | CheckResult::Stalled);
        if verdict.as_ref().is_err_and(blameless) {
            return;
        }
        let change = self.threshold.take(verdict.is_ok());
        if let Some(change) = change {
            self.change(change, verdict.as_ref().err());
        }
        let mut report = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        report.last = Some(verdict);
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
        // That a backend is well at the start is what everybody expects.
        if change != (Change::First { up: true }) {
            let to = if up { Transition::Up } else { Transition::Down };
            self.cells.at(0).transitions.at(to).add(1);
            self.tell(up, failure);
        }
        if let Some(mode) = mode {
            tell_mode(&self.pool, mode);
        }
        if !up && self.closes {
            (self.close)(&self.backend);
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

/// Tells where the connections of a pool go from now on.
pub fn tell_mode(pool: &Pool, mode: Mode) {
    let (pool, message) = (&*pool.name, mode.message());
    match mode {
        Mode::Checked => info!(pool, "{message}"),
        Mode::Panic | Mode::Open | Mode::Closed => warn!(pool, "{message}"),
    }
}

fn late() -> Failure {
    Failure::new(CheckResult::Stalled, "this process was stopped meanwhile")
}
