//! One task for each backend that is checked, on the control runtime.

use std::{
    collections::HashMap,
    hash::{BuildHasher, RandomState},
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError, atomic::Ordering},
    time::{Duration, SystemTime},
};

use tokio::{sync::mpsc, task::AbortHandle, time::Instant};
use tracing::{info, warn};

use super::{
    attempt::verdict,
    hindrances::Hindrances,
    pace::Pace,
    post::Post,
    probe::{Failure, Probe, Progress, RESERVED},
};
use crate::{
    backend::{Backend, Health, Id},
    config,
    load::CheckMaterials,
    metrics::{CheckCells, CheckResult, PerWorker, Registry, Transition},
    pool::{Mode, Pool},
    sys::{clock, reserve::Reserve},
    threshold::{Change, Threshold},
};

/// Called with each backend that goes down and whose connections have to end.
pub type Close = Arc<dyn Fn(&Backend) + Send + Sync>;

/// What is to be watched.
pub struct Watch<'a> {
    pub pools: Vec<Watched<'a>>,
    pub registry: &'a Registry,
    pub close: Close,
}

/// A pool whose backends are to be watched.
#[derive(Debug)]
pub struct Watched<'a> {
    pub pool: Arc<Pool>,
    pub config: &'a config::Pool,
    pub materials: &'a CheckMaterials,
    /// Backends are asked the same as before: the checks of those that stay go on.
    pub is_same: bool,
}

/// The running checks; dropping it ends them.
#[derive(Debug)]
pub struct Checkers {
    /// One for each backend that is checked, in the order of the configuration.
    checks: Vec<Arc<Running>>,
    /// Of every backend, also of those that nobody checks: their series stay.
    cells: HashMap<Id, Arc<PerWorker<CheckCells>>>,
    rhythm: Rhythm,
    reserve: Arc<Reserve>,
}

/// Ends when the last of the backends that are new has its first verdict.
#[derive(Debug)]
pub struct FirstVerdicts(mpsc::Receiver<()>);

/// By which the checks of a process take turns.
#[derive(Debug, Clone, Copy)]
struct Rhythm {
    begin: Instant,
    shift: f64,
    /// Of the next backend.
    number: u32,
}

/// A backend that is being checked.
#[derive(Debug)]
struct Running {
    backend: Arc<Backend>,
    report: Arc<Mutex<Report>>,
    post: Arc<Post>,
    /// Ends with this, unless connections of a configuration that is gone still depend on it.
    task: AbortHandle,
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
    post: Arc<Post>,
    pool_name: Arc<str>,
    backend: Arc<Backend>,
    probe: Arc<Probe>,
    timeout: Duration,
    pace: Pace,
    threshold: Threshold,
    cells: Arc<PerWorker<CheckCells>>,
    report: Arc<Mutex<Report>>,
    hindrances: Hindrances,
    close: Close,
    prior: Prior,
    /// Dropped with the first verdict.
    first: Option<mpsc::Sender<()>>,
}

/// What there was before a checker begins.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Prior {
    /// Nobody knows the backend.
    Nothing,
    /// It was a member already, and nobody checked it.
    Unchecked,
    /// It was checked otherwise.
    Checked,
}

impl std::fmt::Debug for Watch<'_> {
    fn fmt(&self, formatter: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        formatter.debug_struct("Watch").field("pools", &self.pools.len()).finish_non_exhaustive()
    }
}

impl Checkers {
    /// Begins to check; the first questions are asked at once. What `old` checks already it goes on checking; a member of
    /// `old` that is to be asked something else is asked from [`Self::adopt`] on. Needs the control runtime.
    pub fn start(watch: &Watch, old: Option<&Self>) -> (Self, FirstVerdicts) {
        let (first_sender, first) = mpsc::channel(1);
        let mut rhythm = old.map_or_else(Rhythm::new, |old| old.rhythm);
        let reserve = old.map_or_else(|| Reserve::watched(RESERVED), |old| Arc::clone(&old.reserve));
        let checked = old.map(Self::by_backend).unwrap_or_default();
        let (mut checks, mut all_cells) = (Vec::new(), HashMap::new());
        for watched in &watch.pools {
            for backend in watched.pool.backends() {
                let cells = watch.registry.checks(&watched.pool.name, &backend.name);
                all_cells.insert(backend.id, Arc::clone(&cells));
                let Some(check) = &watched.config.check else { continue };
                let known = checked.get(&backend.id);
                if let Some(known) = known.filter(|_| watched.is_same) {
                    checks.push(Arc::clone(known));
                    continue;
                }
                let was_member = old.is_some_and(|old| old.cells.contains_key(&backend.id));
                let prior = match (known, was_member) {
                    (Some(_), _) => Prior::Checked,
                    (None, true) => Prior::Unchecked,
                    (None, false) => Prior::Nothing,
                };
                let begin = (&mut rhythm, &reserve);
                checks.push(Arc::new(Running::start(
                    watch,
                    watched,
                    (backend, check),
                    begin,
                    (cells, prior, &first_sender),
                )));
            }
        }
        (Self { checks, cells: all_cells, rhythm, reserve }, FirstVerdicts(first))
    }

    /// Takes the place of `old`: what is found from now on is for these pools. What `old` alone checks it checks no more,
    /// except for connections that have to end with their backend.
    pub fn adopt(&self, old: &Self, pools: &[Arc<Pool>]) {
        let pools: HashMap<_, _> = pools.iter().map(|pool| (&*pool.name, pool)).collect();
        let checked = self.by_backend();
        for check in &old.checks {
            let next = checked.get(&check.backend.id);
            if next.is_some_and(|next| Arc::ptr_eq(next, check)) {
                continue;
            }
            if let Some(next) = next {
                next.succeed(check);
            }
            check.post.is_left.store(true, Ordering::Relaxed);
            // A backend has one checker, or none that says how it is.
            if self.cells.contains_key(&check.backend.id) || !check.post.is_needed(&check.backend) {
                check.task.abort();
            }
        }
        for check in &self.checks {
            check.post.join(&pools);
        }
    }

    fn by_backend(&self) -> HashMap<Id, &Arc<Running>> {
        self.checks.iter().map(|check| (check.backend.id, check)).collect()
    }

    /// What is known of each backend that is checked, in the order of the configuration.
    pub fn reports(&self) -> impl Iterator<Item = Report> {
        self.checks.iter().map(|check| check.report.lock().unwrap_or_else(PoisonError::into_inner).clone())
    }
}

impl FirstVerdicts {
    /// Waits until every new backend has its first verdict. False: some have none when the time is over.
    pub async fn wait(mut self, patience: Duration) -> bool {
        // Nobody sends anything: the channel ends with its last sender.
        tokio::time::timeout(patience, self.0.recv()).await.is_ok()
    }
}

impl Rhythm {
    fn new() -> Self {
        let random = RandomState::new().hash_one("shift") >> 32;
        let shift = f64::from(u32::try_from(random).unwrap_or_default()) / f64::from(u32::MAX);
        Self { begin: Instant::now(), shift, number: 0 }
    }
}

impl Running {
    fn start(
        watch: &Watch,
        watched: &Watched,
        (backend, check): (&Arc<Backend>, &config::Check),
        (rhythm, reserve): (&mut Rhythm, &Arc<Reserve>),
        (cells, prior, first): (Arc<PerWorker<CheckCells>>, Prior, &mpsc::Sender<()>),
    ) -> Self {
        let header = watched.config.send_proxy;
        let probe = Arc::new(Probe::new(check, header, watched.materials, backend.address, reserve));
        let report = Arc::new(Mutex::new(Report {
            pool: Arc::clone(&watched.pool.name),
            backend: Arc::clone(&backend.name),
            target: probe.target(),
            kind: check.kind.as_str(),
            last: None,
            hindrance: None,
            since: None,
        }));
        let post = Arc::new(Post::new(&watched.pool));
        let checker = Checker {
            post: Arc::clone(&post),
            pool_name: Arc::clone(&watched.pool.name),
            backend: Arc::clone(backend),
            probe,
            timeout: check.timeout,
            pace: Pace::new(check.every, rhythm.number, rhythm.shift),
            threshold: Threshold::new(check.rise, check.fall),
            cells,
            report: Arc::clone(&report),
            hindrances: Hindrances::default(),
            close: Arc::clone(&watch.close),
            prior,
            // Who is known already, here or to the process before, takes no client's patience.
            first: (prior == Prior::Nothing && backend.health() == Health::Unknown).then(|| first.clone()),
        };
        rhythm.number = rhythm.number.wrapping_add(1);
        let task = tokio::spawn(checker.run(rhythm.begin, RandomState::new())).abort_handle();
        Self { backend: Arc::clone(backend), report, post, task }
    }
}

impl Running {
    /// Takes the place of another checker of the same backend.
    fn succeed(&self, before: &Self) {
        let report = |of: &Self| of.report.lock().unwrap_or_else(PoisonError::into_inner).clone();
        let Report { last, since, .. } = report(before);
        let mut own = self.report.lock().unwrap_or_else(PoisonError::into_inner);
        (own.last, own.since) = (last, since);
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if !self.post.is_needed(&self.backend) {
            self.task.abort();
        }
    }
}

impl Checker {
    async fn run(mut self, begin: Instant, random: RandomState) {
        if self.prior != Prior::Nothing {
            // Until then somebody else says how it is.
            self.post.joined.notified().await;
        }
        if self.prior != Prior::Unchecked && self.backend.health() != Health::Unknown {
            self.threshold = self.threshold.knowing(self.backend.health() == Health::Up);
        }
        for count in 0_u64.. {
            let begun = begin.elapsed();
            let verdict = self.ask().await;
            self.cells.at(0).checks.at(verdict.as_ref().err().map_or(CheckResult::Ok, |failure| failure.result)).add(1);
            self.judge(verdict);
            if self.post.is_left.load(Ordering::Relaxed) && !self.post.is_needed(&self.backend) {
                return;
            }
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
        let pool = self.post.pool();
        let mode = pool.set_health(&self.backend, health, clock::coarse());
        // First of all what clients notice, then the words.
        if !up && pool.closes_on_down {
            (self.close)(&self.backend);
        }
        // That a backend is well at the start is what everybody expects.
        if change != (Change::First { up: true }) {
            let to = if up { Transition::Up } else { Transition::Down };
            self.cells.at(0).transitions.at(to).add(1);
            self.tell(up, failure);
        }
        if let Some(mode) = mode.filter(|_| !self.post.is_left.load(Ordering::Relaxed)) {
            tell_mode(&pool, mode);
        }
    }

    /// What proves nothing leaves the backend as it is, and that must not go on in silence. One check that was late is
    /// no news, two are.
    fn hinder(&mut self, failure: &Failure) {
        self.report.lock().unwrap_or_else(PoisonError::into_inner).hindrance = Some(failure.clone());
        if self.hindrances.note(failure.result) {
            let (pool, backend, check) = self.names();
            let reason = &*failure.reason;
            warn!(pool, backend, %check, reason, "backend cannot be checked from here: it stays as it is");
        }
    }

    fn unhinder(&mut self) {
        if std::mem::take(&mut self.hindrances).is_told() {
            let (pool, backend, check) = self.names();
            info!(pool, backend, %check, "backend can be checked again");
        }
    }

    /// What messages name.
    fn names(&self) -> (&str, &str, SocketAddr) {
        (&self.pool_name, &self.backend.name, self.probe.target())
    }

    fn tell(&self, up: bool, failure: Option<&Failure>) {
        let (pool, backend, check) = self.names();
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
