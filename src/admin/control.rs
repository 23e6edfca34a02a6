//! What an operator sees of the running process, and changes in it.

use std::{
    fmt,
    net::SocketAddr,
    path::{self, Path},
    process,
    sync::{Arc, atomic::Ordering},
    time::Instant,
};

use jiff::Timestamp;
use tokio::sync::{Semaphore, mpsc, oneshot};

use super::{
    State,
    answers::{self, Changed, Connections, Upgraded, Which},
    api::Peer,
    names::{filter, find, known},
};
use crate::{
    backend::{Backend, Health},
    config::{Role, diagnostic},
    crew::Crew,
    drain::inquiry::Answers,
    frontend::Frontend,
    health::{Report, checker::tell_mode},
    moment::Moment,
    offload::Offload,
    pool::{Mode, Pool},
    running::{Counter, LastReload, Live, Running, Task, Verdict, Who},
    sys::clock,
    warden::Warden,
};

/// Orders that wait or are carried out.
const MOST_ORDERS: usize = 8;

/// Connections that are described unless a limit is given, and at most.
const DESCRIBED: usize = 1_000;
const MOST_DESCRIBED: usize = 100_000;

/// The hand of the operator on the process.
pub struct Control {
    pub state: Arc<State>,
    crew: Arc<Crew>,
    live: Arc<Live>,
    pub(super) warden: Arc<Warden>,
    pub(super) offload: Arc<Offload>,
    counter: Counter,
    upgrades: mpsc::Sender<UpgradeOrder>,
    /// One at a time.
    pub(super) upgrading: Semaphore,
    /// Fewer than the connections of the socket: who waits for a reload keeps nobody else out.
    orders: Semaphore,
    started: Instant,
}

/// Why something is not done.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Refused {
    /// There is no such thing here.
    Unknown(String),
    /// The request makes no sense.
    Invalid(String),
    /// The process is stopping, so nothing is changed any more.
    Stopping,
    /// So many orders wait already.
    Busy(usize),
    /// It was tried, or is not possible now: everything is as it was.
    Kept(String),
}

/// An upgrade that an operator wants, to be answered.
pub type UpgradeOrder = oneshot::Sender<Result<Upgraded, String>>;

impl Control {
    pub fn new(
        state: &Arc<State>,
        crew: &Arc<Crew>,
        live: &Arc<Live>,
        (warden, offload): (&Arc<Warden>, &Arc<Offload>),
        (counter, upgrades): (Counter, mpsc::Sender<UpgradeOrder>),
    ) -> Self {
        let (state, crew, live) = (Arc::clone(state), Arc::clone(crew), Arc::clone(live));
        Self {
            state,
            crew,
            live,
            warden: Arc::clone(warden),
            offload: Arc::clone(offload),
            counter,
            upgrades,
            upgrading: Semaphore::new(1),
            orders: Semaphore::new(MOST_ORDERS),
            started: Instant::now(),
        }
    }

    pub fn status(&self) -> answers::Status {
        let running = self.live.running();
        let Running { site, addresses, checkers, needs_restart, .. } = &*running;
        let checks: Vec<_> = checkers.reports().collect();
        let now = clock::coarse();
        answers::Status {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            pid: process::id(),
            ready: self.state.ready.load(Ordering::Relaxed),
            uptime_seconds: self.started.elapsed().as_secs_f64(),
            workers: self.crew.handles().len(),
            connections: self.crew.connections(),
            connections_limit: site.connections_limit() as u64,
            config: self.live.config.as_deref().map(absolute),
            last_reload: self.live.last().map(last_reload),
            needs_restart: needs_restart.clone(),
            listeners: site.frontends.iter().map(|frontend| listener(frontend, addresses)).collect(),
            pools: site.pools.iter().map(|pool| pool_status(pool, &checks, now)).collect(),
        }
    }

    /// Has the configuration read again, or told what that would do.
    pub async fn order(&self, peer: Peer, task: Task, styled: bool) -> Result<answers::Reloaded, Refused> {
        let Ok(_seat) = self.orders.try_acquire() else { return Err(Refused::Busy(MOST_ORDERS)) };
        let who = Who::Operator { uid: peer.uid, pid: peer.pid };
        let is_plan = matches!(task, Task::Plan { .. });
        let verdict = self.counter.order(who, task).await;
        let verdict = verdict.map_err(|_| Refused::Stopping)?;
        let Verdict { accepted, differences, needs_restart, diagnostics, source } = verdict;
        let result = match (accepted, is_plan) {
            (false, _) => "refused",
            (true, true) => "possible",
            (true, false) => "applied",
        };
        Ok(answers::Reloaded {
            result: result.to_owned(),
            config: absolute(&source.path),
            differences,
            needs_restart,
            diagnostics: diagnostic::to_json(&diagnostics, &source.path, &source.text),
            rendered: if diagnostics.is_empty() {
                String::new()
            } else {
                diagnostic::render(&diagnostics, &source.path, &source.text, styled)
            },
        })
    }

    pub fn certificates(&self) -> answers::Certificates {
        let now = Timestamp::now().as_second();
        let running = self.live.running();
        let certificates = running.site.served_certificates().map(|served| answers::Certificate {
            listener: served.listener.clone(),
            file: served.file.clone(),
            names: served.names.clone(),
            not_before: date(served.not_before),
            not_after: date(served.not_after),
            days_left: (served.not_after - now).div_euclid(24 * 60 * 60),
        });
        answers::Certificates { certificates: certificates.collect() }
    }

    /// The connections that are meant, the oldest first.
    pub async fn connections(&self, which: &Which) -> Result<Connections, Refused> {
        let most = which.limit.unwrap_or(DESCRIBED).min(MOST_DESCRIBED);
        let mut answers = self.ask(which, false, most).await?;
        answers.sights.sort_by(|a, b| b.age_seconds.total_cmp(&a.age_seconds));
        Ok(Connections { total: answers.matched, connections: answers.sights })
    }

    /// Ends the connections that are meant and says how many those are.
    pub async fn kill(&self, which: &Which) -> Result<usize, Refused> {
        if which.id.is_none() && which.listener.is_none() && which.client.is_none() && which.backend.is_none() {
            return Err(Refused::Invalid(
                "which connections? give an id, a listener, a client or a backend".to_owned(),
            ));
        }
        let ended = self.ask(which, true, 0).await?.matched;
        match &which.id {
            Some(id) if ended == 0 => Err(Refused::Unknown(format!("no connection has the id `{id}`"))),
            _ => Ok(ended),
        }
    }

    /// Takes a backend out: it gets no new connections, and live ones stay.
    pub fn drain(&self, backend: &str) -> Result<Changed, Refused> {
        self.change(backend, |pool, backend, now| pool.set_draining(backend, true, now))
    }

    /// Takes a backend in again that was drained.
    pub fn enable(&self, backend: &str) -> Result<Changed, Refused> {
        self.change(backend, |pool, backend, now| pool.set_draining(backend, false, now))
    }

    pub fn set_weight(&self, backend: &str, weight: Option<u16>) -> Result<Changed, Refused> {
        const MOST: u16 = 256;
        match weight {
            Some(weight) if weight <= MOST => {
                self.change(backend, |pool, backend, now| pool.set_weight(backend, weight, now))
            }
            _ => Err(Refused::Invalid(format!("a weight is a number from 0 to {MOST}"))),
        }
    }

    /// Has a new process take the place of this one.
    pub async fn upgrade(&self) -> Result<Upgraded, Refused> {
        let kept = |reason: &str| Refused::Kept(reason.to_owned());
        let Ok(_alone) = self.upgrading.try_acquire() else { return Err(kept("an upgrade is under way")) };
        let leaving = || kept("this process stops, or another has taken its place");
        if !self.state.ready.load(Ordering::Relaxed) {
            return Err(leaving());
        }
        let (order, answer) = oneshot::channel();
        self.upgrades.send(order).await.map_err(|_| leaving())?;
        answer.await.map_err(|_| leaving())?.map_err(Refused::Kept)
    }

    fn change(
        &self,
        name: &str,
        change: impl FnOnce(&Pool, &Backend, Moment) -> Option<Mode>,
    ) -> Result<Changed, Refused> {
        let running = self.live.running();
        let checks: Vec<_> = running.checkers.reports().collect();
        let (pool, backend) = find(&running.site, name)?;
        let now = clock::coarse();
        if let Some(mode) = change(pool, backend, now) {
            tell_mode(pool, mode);
        }
        let backends = backends(pool, &checks, now);
        let gone = || Refused::Unknown(format!("`{name}` is gone"));
        let backend = backends.into_iter().find(|known| *known.name == *backend.name).ok_or_else(gone)?;
        Ok(Changed { pool: pool.name.to_string(), backend })
    }

    /// Asks those that are meant. A name that the configuration does not have is still one while somebody has it.
    async fn ask(&self, which: &Which, ends: bool, most: usize) -> Result<Answers, Refused> {
        let filter = filter(which)?;
        let answers = self.crew.ask(&filter, ends, most).await;
        if answers.matched == 0 {
            known(&self.live.running().site, which)?;
        }
        Ok(answers)
    }
}

fn listener(frontend: &Frontend, addresses: &[(Arc<str>, SocketAddr)]) -> answers::Listener {
    let own = addresses.iter().filter(|(name, _)| *name == frontend.name);
    answers::Listener {
        name: frontend.name.to_string(),
        addresses: own.map(|(_, address)| *address).collect(),
        tls: frontend.tls.is_some(),
        pool: frontend.pool.name.to_string(),
        connections: frontend.cells.connections().live,
        connections_limit: frontend.limits.iter().map(|limit| limit.most()).min().unwrap_or_default() as u64,
    }
}

fn pool_status(pool: &Pool, checks: &[Report], now: Moment) -> answers::Pool {
    let takes = |role| pool.shares(role).any(|(backend, weight, _)| state(backend, now) == "up" && weight > 0);
    let serving = match pool.mode() {
        Mode::Panic | Mode::Open => "all",
        Mode::Closed => "none",
        Mode::Checked if takes(Role::Active) => "active",
        Mode::Checked if takes(Role::Backup) => "backup",
        // Those that real traffic found wanting are better than none.
        Mode::Checked => "ejected",
    };
    let is_passive = pool.shares(Role::Backup).next().is_some();
    answers::Pool {
        name: pool.name.to_string(),
        balance: pool.balance.as_str().to_owned(),
        mode: if is_passive { "active-passive" } else { "active-active" }.to_owned(),
        serving: serving.to_owned(),
        queued: pool.waiting() as u64,
        backends: backends(pool, checks, now),
    }
}

fn backends(pool: &Pool, checks: &[Report], now: Moment) -> Vec<answers::Backend> {
    let roles = [(Role::Active, "active"), (Role::Backup, "backup")];
    let shares = roles.into_iter().flat_map(|(role, word)| pool.shares(role).map(move |share| (word, share)));
    let backends = shares.map(|(role, (backend, weight, written))| {
        let check = checks.iter().find(|check| check.pool == pool.name && check.backend == backend.name);
        let state = state(backend, now);
        let mut drift = Vec::new();
        if backend.is_draining() {
            drift.push("draining".to_owned());
        }
        if weight != written {
            drift.push(format!("weight {weight} (the file says {written})"));
        }
        answers::Backend {
            name: backend.name.to_string(),
            address: backend.address,
            role: role.to_owned(),
            state: state.to_owned(),
            reason: reason(state, weight, check),
            since: check.and_then(|check| check.since).and_then(|at| Timestamp::try_from(at).ok()).map(rfc3339),
            check: check.map(|check| format!("{} {}", check.kind, check.target)),
            weight,
            connections: backend.live(),
            max_connections: Some(backend.cap()).filter(|cap| *cap > 0),
            drift,
        }
    });
    backends.collect()
}

/// Why a backend is not up, or takes nothing.
fn reason(state: &str, weight: u16, check: Option<&Report>) -> Option<String> {
    let failure = check.and_then(|check| check.last.as_ref()).and_then(|last| last.as_ref().err());
    match state {
        "draining" => Some("the operator drains it".to_owned()),
        "ejected" => Some("too many connects of clients failed in a row".to_owned()),
        "unknown" => Some("no check has answered yet".to_owned()),
        // The last check may have been a good one, and one more has to be.
        "down" => Some(failure.map_or_else(|| "the last check was good".to_owned(), |failure| failure.reason.clone())),
        _ if weight == 0 => Some("its weight is 0".to_owned()),
        _ => None,
    }
}

/// The strongest reason why it takes nothing, or `up`.
fn state(backend: &Backend, now: Moment) -> &'static str {
    match backend.health() {
        _ if backend.is_draining() => "draining",
        Health::Unknown => "unknown",
        Health::Down => "down",
        Health::Up if backend.is_ejected(now) => "ejected",
        Health::Up => "up",
    }
}

fn last_reload(last: LastReload) -> answers::LastReload {
    let LastReload { at, by, error } = last;
    answers::LastReload {
        at: Timestamp::try_from(at).map(rfc3339).unwrap_or_default(),
        by: by.as_str().to_owned(),
        result: if error.is_none() { "applied" } else { "refused" }.to_owned(),
        error,
    }
}

/// Who asks may stand in another folder.
fn absolute(path: &Path) -> String {
    path::absolute(path).as_deref().unwrap_or(path).display().to_string()
}

/// Seconds since 1970 as a date.
fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), rfc3339)
}

pub(super) fn rfc3339(at: Timestamp) -> String {
    format!("{at:.0}")
}

impl fmt::Debug for Control {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Control").field("state", &self.state).finish_non_exhaustive()
    }
}
