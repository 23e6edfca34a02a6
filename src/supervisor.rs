//! The process: binds, starts the workers, answers the admin listener, stops.

mod succession;

use std::{
    hash::{BuildHasher, RandomState},
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc,
    },
    thread::JoinHandle,
    time::Duration,
};

use rustls::crypto::CryptoProvider;
use tokio::task::JoinHandle as Task;

use tracing::{info, warn};

use crate::{
    access_log::{self, AccessLog},
    admin::{
        self,
        control::{Control, UpgradeOrder},
    },
    config::{self, Auto, Config, Diagnostic, ZeroCopy, code::CANNOT_START},
    crew::{self, Command, Crew, Inbox},
    doors::{self, Doors},
    health::{Checkers, Watch},
    load::Loaded,
    metrics::{Registry, render},
    ports::{self, Port},
    service,
    site::Site,
    sys::{host, probe},
    upgrade::{Inheritance, Successor},
    worker::{self, Assignment},
};
use succession::{begin_to_serve, report, succeed};

/// Descriptors kept for the admin listener, log files and reading configurations.
const RESERVED_DESCRIPTORS: usize = 64;

/// How long clients wait for the first verdicts of checks (traps B3).
const WARM_UP: Duration = Duration::from_secs(2);

/// What those may take that are still at the admin listeners when there is a successor.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Off switches that only the command line has.
#[derive(Debug, Clone, Copy)]
pub struct Options {
    /// One socket of each bind for every worker (`SO_REUSEPORT`); otherwise they share one.
    pub reuseport: bool,
    /// TLS records by rustls and tokio-rustls, one at a time, instead of our own batched record layer.
    pub rustls_records: bool,
}

impl Default for Options {
    fn default() -> Self {
        Self { reuseport: true, rustls_records: false }
    }
}

/// A running balancer.
#[derive(Debug)]
pub struct Gate {
    pub limits: Limits,
    /// How long connections may take to end by themselves when the process stops.
    drain: Duration,
    /// Sockets belong to the process: a member of a reuseport group that closes takes its queue with it (traps A5).
    ports: Vec<Port>,
    workers: Workers,
    /// To its end, because clients of the accept queues still need backends that are well.
    _checkers: Arc<Checkers>,
    admin: Arc<admin::State>,
    admin_tasks: Vec<Task<()>>,
    doors: Doors,
    registry: Arc<Registry>,
    site: Arc<Site>,
    /// Upgrades that are asked for.
    orders: tokio::sync::mpsc::Receiver<UpgradeOrder>,
    /// Ends when the process before this one has.
    predecessor: Option<Task<()>>,
    /// Tells the service manager that the process is alive.
    alive: Task<()>,
    log: Option<access_log::Guard>,
}

/// The worker threads. When this is dropped they are told to stop, and not waited for.
#[derive(Debug)]
struct Workers {
    crew: Arc<Crew>,
    threads: Vec<JoinHandle<()>>,
}

/// What the process allows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub workers: usize,
    pub descriptors: usize,
    pub connections: usize,
    /// Pipes of all workers together.
    pub pipes: usize,
}

/// Tries the fast paths and tells in one line what is used. A path that does not work is not used.
fn tried_paths(wanted: ZeroCopy, options: Options) -> ZeroCopy {
    let tls = if options.rustls_records { "rustls records" } else { "own records" };
    if wanted == ZeroCopy::Off {
        info!(plain = "copy (splice is switched off)", tls, "paths");
        return wanted;
    }
    match probe::try_splice() {
        Ok(pipe_bytes) => {
            info!(plain = "copy and splice (tried)", pipe_bytes, tls, "paths");
            wanted
        }
        Err(error) => {
            warn!(plain = "copy", %error, tls, "paths: splice does not work here");
            ZeroCopy::Off
        }
    }
}

/// What every worker gets alike.
struct Template {
    zero_copy: ZeroCopy,
    rustls_records: bool,
    registry: Arc<Registry>,
    log: Option<AccessLog>,
}

/// Binds every address or takes it from `heir`, asks every backend once, starts every thread and returns when all of them
/// accept.
///
/// Must be called on the control runtime, which then serves the admin listener and the checks.
pub async fn start(
    loaded: &Loaded,
    options: Options,
    provider: &Arc<CryptoProvider>,
    mut heir: Option<Inheritance>,
) -> Result<Gate, Vec<Diagnostic>> {
    let config = &loaded.config;
    let limits = Limits::of(config)?;
    let registry = Arc::new(Registry::new(limits.workers));
    let site = Site::build(loaded, limits.connections, provider, &registry)
        .map_err(|error| vec![cannot_start("TLS cannot be set up", &error)])?;
    let site = Arc::new(site);
    let (ports, doors) = open(config, &limits, options, heir.as_mut())?;
    let (log, guard) = start_log(&config.log, &registry)?;
    let template = Template {
        zero_copy: tried_paths(config.global.zero_copy, options),
        rustls_records: options.rustls_records,
        registry: Arc::clone(&registry),
        log,
    };
    let admin = admin_state(config, &registry, &site, heir.is_some());
    let no_admin = |error| vec![cannot_start("the admin server does not start", &error)];
    let mut admin_tasks = vec![doors.serve_tcp(&admin).map_err(no_admin)?];
    let (handles, inboxes): (Vec<_>, Vec<_>) = (0..limits.workers).map(|_| crew::channel()).unzip();
    let crew = Arc::new(Crew::new(handles, Arc::clone(&registry)));
    if let Some(heir) = &heir {
        heir.recall(&site);
    }
    let checkers = Arc::new(watch_backends(loaded, &site, &registry, &crew).await);
    let (sender, orders) = tokio::sync::mpsc::channel(1);
    let control = Arc::new(Control::new(&admin, &crew, &site, &ports, (&checkers, sender)));
    admin_tasks.extend(doors.serve_unix(control).map_err(no_admin)?);
    let before = match heir {
        Some(heir) => Some(succeed(heir, &registry).await?),
        None => None,
    };
    let workers = start_workers(&limits, &site, &ports, &template, (crew, inboxes))
        .map_err(|error| vec![cannot_start("a worker does not start", &error)])?;
    admin.ready.store(true, Ordering::Relaxed);
    admin.doors.send_replace(admin::Doors::Open);
    let predecessor = match before {
        Some(before) => Some(begin_to_serve(before, &registry).await?),
        None => None,
    };
    let alive = tokio::spawn(service::watch(Arc::clone(&workers.crew), Arc::clone(&admin)));
    Ok(Gate {
        limits,
        drain: config.drain,
        ports,
        workers,
        _checkers: checkers,
        admin,
        admin_tasks,
        doors,
        registry,
        site,
        orders,
        predecessor,
        alive,
        log: guard,
    })
}

/// The listening sockets of clients and those of the admin listener.
fn open(
    config: &Config,
    limits: &Limits,
    options: Options,
    heir: Option<&mut Inheritance>,
) -> Result<(Vec<Port>, Doors), Vec<Diagnostic>> {
    let shared = options.reuseport && limits.workers > 1;
    let (mut no_ports, mut no_doors) = (Vec::new(), doors::Inherited::default());
    let (inherited, inherited_doors) =
        heir.map_or((&mut no_ports, &mut no_doors), |heir| (&mut heir.ports, &mut heir.doors));
    let ports = ports::bind(config, if shared { limits.workers } else { 1 }, ports::passed(), inherited)?;
    Ok((ports, Doors::open(config, inherited_doors)?))
}

fn admin_state(config: &Config, registry: &Arc<Registry>, site: &Arc<Site>, shut: bool) -> Arc<admin::State> {
    Arc::new(admin::State {
        allow: config.admin.allow.clone(),
        hosts: Vec::new(),
        ready: AtomicBool::new(false),
        metrics: Box::new({
            let (registry, site) = (Arc::clone(registry), Arc::clone(site));
            move |format| render(&registry, &site.gauges(), format)
        }),
        // The process before this one answers until it knows that this one can.
        doors: tokio::sync::watch::channel(if shut { admin::Doors::Shut } else { admin::Doors::Open }).0,
        seats: admin::seats(),
    })
}

/// Starts the checks and waits for the first verdict of each backend: no client is sent to one that was never asked
/// (traps B3). Meanwhile clients wait in the queues of the bound sockets.
async fn watch_backends(loaded: &Loaded, site: &Site, registry: &Registry, crew: &Arc<Crew>) -> Checkers {
    let pools = site.pools.iter().zip(&loaded.config.pools).zip(&loaded.checks);
    let crew = Arc::clone(crew);
    let watch = Watch {
        pools: pools.map(|((pool, config), materials)| (Arc::clone(pool), config, materials)).collect(),
        registry,
        close: Arc::new(move |backend| crew.tell(|| Command::EndBackend(backend.id))),
    };
    let mut checkers = Checkers::start(&watch);
    let silent = checkers.first_verdicts(WARM_UP).await;
    if silent > 0 {
        let waited = WARM_UP.as_secs();
        warn!(silent, "serving without the first verdict of every check, after {waited} s");
    }
    checkers
}

impl Gate {
    /// Every address that takes connections, with the real ports: the listeners' and `admin`.
    pub fn listening(&self) -> impl Iterator<Item = (&str, SocketAddr)> {
        self.ports.iter().map(|port| (&*port.name, port.address)).chain([("admin", self.doors.address)])
    }

    /// Takes no new connections and leaves the live ones the time that the configuration gives them; when `hurry` is ready,
    /// they end at once. Then ends every thread and writes the log out. `successor` has taken this process's place.
    pub async fn leave(mut self, successor: Option<Successor>, hurry: impl Future<Output = ()>) {
        self.admin.ready.store(false, Ordering::Relaxed);
        let crew = Arc::clone(&self.workers.crew);
        let connections = crew.connections();
        info!(connections, seconds = self.drain.as_secs_f64(), "draining");
        self.part(successor.as_ref(), connections);
        crew.tell(|| Command::Drain(self.drain));
        // On another thread, so that the admin listener says "not ready" meanwhile.
        let mut ended = tokio::task::spawn_blocking(|| self.workers.join());
        let end = tokio::time::Instant::now() + self.drain;
        let last = async {
            let _ = (&mut ended).await;
            // What the process before still counts would be lost with this one.
            if let (Some(before), Some(_)) = (self.predecessor, &successor) {
                let _ = tokio::time::timeout_at(end, before).await;
            }
        };
        tokio::select! {
            () = last => {}
            () = report(successor.as_ref(), &self.registry) => {}
            () = hurry => {
                crew.tell(|| Command::Stop);
                let _ = ended.await;
            }
        }
        if successor.is_none() {
            self.admin_tasks.iter().for_each(Task::abort);
        }
        for task in self.admin_tasks {
            // The answer to who wanted the upgrade has to get out.
            let _ = tokio::time::timeout(LAST_ANSWERS, task).await;
        }
        self.alive.abort();
        drop(self.log);
        if let Some(successor) = successor {
            successor.take_leave(self.registry.totals()).await;
        }
    }
}

impl Workers {
    /// Waits until they have ended; somebody has told them.
    fn join(mut self) {
        for thread in self.threads.drain(..) {
            // A worker that panicked has said so already.
            let _ = thread.join();
        }
    }
}

impl Drop for Workers {
    fn drop(&mut self) {
        self.crew.tell(|| Command::Stop);
    }
}

impl Limits {
    /// `connections` is what the descriptor limit allows: two for each, less those of pipes, listeners and a reserve
    /// (traps A3). A configured number above it is refused.
    pub fn of(config: &Config) -> Result<Self, Vec<Diagnostic>> {
        let descriptors = usize::try_from(host::raise_descriptor_limit()).unwrap_or(usize::MAX);
        let workers = match config.global.workers {
            Auto::Auto => host::cores(),
            Auto::Fixed(workers) => workers.get(),
        };
        let binds: usize = config.listeners.iter().map(|listener| listener.binds.len()).sum();
        let pipes = match config.global.zero_copy {
            ZeroCopy::Off => 0,
            _ => host::pipe_budget().min(descriptors / 16).max(workers),
        };
        // Each check has one, and each worker has a duplicate of each listening socket, and its runtime a handful of its own.
        let checked = config.pools.iter().filter(|pool| pool.check.is_some()).map(|pool| pool.backends.len());
        let fixed = RESERVED_DESCRIPTORS + checked.sum::<usize>() + workers * (2 * binds + 8);
        let possible = descriptors.saturating_sub(fixed + 2 * pipes) / 2;
        let connections = match config.global.max_connections {
            Auto::Auto => possible,
            Auto::Fixed(most) => most.get(),
        };
        if connections > possible || possible == 0 {
            let message =
                format!("{descriptors} descriptors allow {possible} connections, and {connections} are asked for");
            let error = Diagnostic::error(CANNOT_START, message).help(format!(
                "raise the limit (`ulimit -Hn {}`, LimitNOFILE= in a unit file) or lower [global] max_connections",
                connections.max(1) * 2 + fixed + 2 * pipes
            ));
            return Err(vec![error]);
        }
        Ok(Self { workers, descriptors, connections, pipes })
    }
}

fn start_workers(
    limits: &Limits,
    site: &Site,
    ports: &[Port],
    template: &Template,
    (crew, inboxes): (Arc<Crew>, Vec<Inbox>),
) -> io::Result<Workers> {
    let seeds = RandomState::new();
    let (ready, started) = mpsc::channel();
    let mut workers = Workers { crew: Arc::clone(&crew), threads: Vec::new() };
    for (index, inbox) in inboxes.into_iter().enumerate() {
        let mut sockets = Vec::new();
        for port in ports {
            let Some(frontend) = site.frontends.get(port.listener) else { continue };
            for socket in port.sockets_of(index, limits.workers) {
                sockets.push((socket.duplicate()?, Arc::clone(frontend)));
            }
        }
        let assignment = Assignment {
            index,
            sockets,
            pipes: limits.pipes / limits.workers,
            zero_copy: template.zero_copy,
            rustls_records: template.rustls_records,
            registry: Arc::clone(&template.registry),
            crew: Arc::clone(&crew),
            log: template.log.clone(),
            seed: seeds.hash_one(index),
        };
        workers.threads.push(worker::start(assignment, inbox, ready.clone())?);
    }
    drop(ready);
    let started = started.iter().collect::<io::Result<Vec<()>>>()?.len();
    if started < workers.threads.len() {
        return Err(io::Error::other("it ended before it accepted anything"));
    }
    Ok(workers)
}

fn start_log(
    log: &config::Log,
    registry: &Registry,
) -> Result<(Option<AccessLog>, Option<access_log::Guard>), Vec<Diagnostic>> {
    if log.access == config::AccessLog::Off {
        return Ok((None, None));
    }
    match AccessLog::start(&log.access, log.format, Arc::clone(registry.log_records_dropped())) {
        Ok((log, guard)) => Ok((Some(log), Some(guard))),
        Err(error) => Err(vec![cannot_start("the access log cannot be opened", &error).note("this is [log] access")]),
    }
}

fn cannot_start(what: &str, error: &dyn std::error::Error) -> Diagnostic {
    Diagnostic::error(CANNOT_START, format!("{what}: {error}"))
}
