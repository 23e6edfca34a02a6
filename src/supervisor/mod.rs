//! The process: binds, starts the workers, answers the admin listener, replaces the configuration, stops.

mod govern;
mod limits;
mod log;
mod reload;
mod succession;
mod workers;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::{Path, PathBuf},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use tokio::{
    sync::{mpsc, oneshot, watch},
    task::JoinHandle as Task,
    time::Instant,
};
use tracing::{info, warn};

use crate::{
    access_log,
    admin::{self, control::Control},
    backend::Backend,
    config::{self, Config, Diagnostic, code::CANNOT_START},
    crew::{self, Command, Crew, Departing},
    doors::{self, Doors},
    expiry,
    health::{Checkers, FirstVerdicts, Watch, Watched},
    ledger::Ledger,
    load::Loaded,
    metrics::{Registry, render},
    offence::{self, Culprits},
    offload::Offload,
    ports::{self, Passed, Port},
    rejections::{Rejections, Teller},
    running::{Counter, Live, Running},
    service,
    site::Site,
    upgrade::{Inheritance, Launch},
    warden::{self, Warden},
    watch::watch,
};
use govern::{Desk, Governor};
pub use limits::Limits;
use log::start_log;
use succession::{begin_to_serve, end_admin, report, succeed};
use workers::{Template, Workers, start_workers, tried_paths};

/// How long clients wait for the first verdicts of checks (traps B3).
const WARM_UP: Duration = Duration::from_secs(2);

/// What a stop waits for the packet filter.
const LAST_RULES: Duration = Duration::from_secs(5);

/// What only the command line says.
#[derive(Debug, Clone)]
pub struct Options {
    /// One socket of each bind for every worker (`SO_REUSEPORT`); otherwise they share one.
    pub reuseport: bool,
    /// TLS records by rustls and tokio-rustls, one at a time, instead of our own batched record layer.
    pub rustls_records: bool,
    /// Where a reload reads the configuration; `None`: there is nothing to reload.
    pub config: Option<PathBuf>,
    /// Just before it was read the first time.
    pub read_at: SystemTime,
    /// The admin socket of a configuration that names none.
    pub usual_socket: Option<PathBuf>,
}

impl Default for Options {
    fn default() -> Self {
        Self { reuseport: true, rustls_records: false, config: None, read_at: SystemTime::now(), usual_socket: None }
    }
}

/// A running balancer.
#[derive(Debug)]
pub struct Gate {
    pub limits: Limits,
    admin_address: SocketAddr,
    live: Arc<Live>,
    counter: Counter,
    /// Carries out orders until it is told to retire; then it gives back what it had in hand.
    governing: Task<Governor>,
    retire: oneshot::Sender<()>,
    /// Told when another process has taken the place of this one.
    is_replaced: oneshot::Receiver<()>,
    workers: Workers,
    admin: Arc<admin::State>,
    registry: Arc<Registry>,
    servants: Servants,
    log: Option<access_log::Guard>,
}

/// Tasks that go on while the process drains.
#[derive(Debug)]
struct Servants {
    /// The admin servers.
    admin: Vec<Task<()>>,
    /// Those that the next process has too.
    watching: Vec<Task<()>>,
    /// Counts what the process before still counts, to its end.
    predecessor: Option<Task<()>>,
    offload: Arc<Offload>,
}

/// Binds every address or takes it from `heir`, asks every backend once, starts every thread and returns when all of them
/// accept.
///
/// Must be called on the control runtime, which then serves the admin listener, the checks and the reloads.
pub async fn start(
    loaded: Loaded,
    options: Options,
    provider: &Arc<CryptoProvider>,
    mut heir: Option<Inheritance>,
) -> Result<Gate, Vec<Diagnostic>> {
    let config = &loaded.config;
    let limits = Limits::of(config)?;
    let registry = Arc::new(Registry::new(limits.workers));
    let (site, culprits) = build(&loaded, &limits, provider, &registry, heir.as_ref())?;
    let sockets = if options.reuseport { limits.workers } else { 1 };
    let (ports, passed, doors) = open(config, sockets, options.usual_socket.as_deref(), heir.as_mut())?;
    let (template, log) = template(config, &options, &registry)?;
    let (crew, inboxes) = crew(&limits, &registry);
    let (checkers, first) = watch_backends(&loaded, &site, (&registry, &crew), None);
    let running = Running { addresses: addresses(&ports), loaded, site, checkers, needs_restart: Vec::new() };
    let live = Arc::new(Live::new(running, options.config));
    let admin = Arc::new(admin_state(&live, &registry, heir.is_some()));
    let no_admin = |error| vec![cannot_start("the admin server does not start", &error)];
    let mut admin_tasks = vec![doors.serve_tcp(&admin).map_err(no_admin)?];
    // Clients wait in the queues of the bound sockets meanwhile: none is sent to a backend that was never asked.
    wait_for(first).await;
    let ((counter, orders), (upgrade, upgrades)) = (Counter::new(), mpsc::channel(1));
    let warden = Arc::new(Warden::new(&live, &registry));
    let offload = Arc::new(Offload::new(&registry, heir.as_mut().and_then(|heir| heir.offload.take())));
    let control = Control::new(&admin, &crew, &live, (&warden, &offload), (counter.clone(), upgrade));
    admin_tasks.extend(doors.serve_unix(Arc::new(control)).map_err(no_admin)?);
    let before = succeed(heir, &registry).await?;
    let workers = start_workers(&limits, &live.running().site, &ports, &template, (Arc::clone(&crew), inboxes))
        .map_err(|error| vec![cannot_start("a worker does not start", &error)])?;
    let predecessor = begin_to_serve(before, &registry, &admin).await?;
    let teller = Teller::new(Arc::clone(&template.rejections), Arc::clone(&registry));
    let watching = watching(&live, (&crew, &admin, &offload), (&warden, culprits), &counter, teller, options.read_at);
    let ((retire, retired), (replaced, is_replaced)) = (oneshot::channel(), oneshot::channel());
    let admin_address = doors.address;
    let governor = Governor {
        live: Arc::clone(&live),
        started: live.running().loaded.config.clone(),
        ports,
        swapped: Arc::default(),
        passed,
        sockets,
        limits,
        provider: Arc::clone(provider),
        registry: Arc::clone(&registry),
        crew,
        admin: Arc::clone(&admin),
        warden,
        rejections: template.rejections,
        doors,
        offload: Arc::clone(&offload),
        launch: Launch::of_this_process().map_err(|error| error.to_string()),
        successor: None,
    };
    let governing = tokio::spawn(governor.govern(Desk { orders, upgrades, replaced, retired }));
    Ok(Gate {
        limits,
        admin_address,
        live,
        counter,
        governing,
        retire,
        is_replaced,
        workers,
        admin,
        registry,
        servants: Servants { admin: admin_tasks, watching, predecessor, offload },
        log,
    })
}

/// The site of a process that begins, with what is known already, and where those come out who are to be banned.
fn build(
    loaded: &Loaded,
    limits: &Limits,
    provider: &Arc<CryptoProvider>,
    registry: &Registry,
    heir: Option<&Inheritance>,
) -> Result<(Site, Culprits), Vec<Diagnostic>> {
    let (report, culprits) = offence::line();
    let ledger = Ledger::new(report);
    let site = Site::build(loaded, limits.connections, provider, registry, &ledger, None)
        .map_err(|error| vec![cannot_start("TLS cannot be set up", &error)])?;
    // What the process before has in force is newer than what any file says.
    if heir.is_none_or(|heir| !heir.recall(&site)) {
        warden::recall(&site.ledger.bans, loaded.bans.clone());
    }
    Ok((site, culprits))
}

/// The workers to come, and where each will hear what it is told.
fn crew(limits: &Limits, registry: &Arc<Registry>) -> (Arc<Crew>, Vec<crew::Inbox>) {
    let (handles, inboxes) = (0..limits.workers).map(|_| crew::channel()).unzip();
    (Arc::new(Crew::new(handles, Arc::clone(registry))), inboxes)
}

/// What every worker gets, and the access log's writer.
fn template(
    config: &Config,
    options: &Options,
    registry: &Arc<Registry>,
) -> Result<(Template, Option<access_log::Guard>), Vec<Diagnostic>> {
    let (log, guard) = start_log(&config.log, registry)?.unzip();
    let zero_copy = tried_paths(config.global.zero_copy, options);
    let rejections = Arc::new(Rejections::new(config.firewall.limits.prefixes));
    let (rustls_records, registry) = (options.rustls_records, Arc::clone(registry));
    Ok((Template { zero_copy, rustls_records, registry, rejections, log }, guard))
}

/// The listening sockets of clients and those of the admin server.
fn open(
    config: &Config,
    sockets: usize,
    usual_socket: Option<&Path>,
    mut heir: Option<&mut Inheritance>,
) -> Result<(Vec<Port>, Passed, Doors), Vec<Diagnostic>> {
    let passed = heir.as_mut().map_or_else(Passed::take, |heir| std::mem::take(&mut heir.passed));
    let (mut no_ports, mut no_doors) = (Vec::new(), doors::Inherited::default());
    let (inherited, inherited_doors) =
        heir.map_or((&mut no_ports, &mut no_doors), |heir| (&mut heir.ports, &mut heir.doors));
    let ports = ports::bind(config, sockets, &passed, inherited)?;
    let socket = config.admin.socket.as_deref().or(usual_socket);
    Ok((ports, passed, Doors::open(config.admin.bind, socket, inherited_doors)?))
}

/// What the admin listener answers from.
fn admin_state(live: &Arc<Live>, registry: &Arc<Registry>, is_shut: bool) -> admin::State {
    let allow = live.running().loaded.config.admin.allow.clone();
    let (live, registry) = (Arc::clone(live), Arc::clone(registry));
    admin::State {
        allow: ArcSwap::from_pointee(allow),
        hosts: Vec::new(),
        ready: AtomicBool::new(false),
        metrics: Box::new(move |format| {
            let text = render(&registry, &live.running().site.gauges(), format);
            // What the last connection of a removed name has counted is shown once before it goes.
            registry.forget_unused();
            text
        }),
        // The process before this one answers until it knows that this one can.
        doors: watch::channel(if is_shut { admin::Doors::Shut } else { admin::Doors::Open }).0,
        seats: admin::seats(),
    }
}

/// What looks after the process and its files.
fn watching(
    live: &Arc<Live>,
    (crew, admin, offload): (&Arc<Crew>, &Arc<admin::State>, &Arc<Offload>),
    (warden, culprits): (&Arc<Warden>, Culprits),
    counter: &Counter,
    teller: Teller,
    read_at: SystemTime,
) -> Vec<Task<()>> {
    let warden = Arc::clone(warden);
    vec![
        tokio::spawn(async move { warden.watch(culprits).await }),
        tokio::spawn(service::watch(Arc::clone(crew), Arc::clone(admin))),
        tokio::spawn(expiry::watch(Arc::clone(live))),
        tokio::spawn(teller.tell_every_minute()),
        tokio::spawn(Arc::clone(offload).watch(Arc::clone(live))),
        tokio::spawn(watch(Arc::clone(live), counter.clone(), read_at)),
    ]
}

/// Starts the checks; those of `old` that are the same go on.
fn watch_backends(
    loaded: &Loaded,
    site: &Site,
    (registry, crew): (&Registry, &Arc<Crew>),
    old: Option<&Running>,
) -> (Checkers, FirstVerdicts) {
    let crew = Arc::clone(crew);
    let before: HashMap<_, _> =
        old.iter().flat_map(|old| &old.loaded.config.pools).map(|one| (&*one.name, one)).collect();
    let pools = site.pools.iter().zip(&loaded.config.pools).zip(&loaded.checks);
    let pools = pools.map(|((pool, config), materials)| {
        let mut files = config.check.iter().flat_map(config::Check::files);
        let is_same = before
            .get(&*config.name)
            .is_some_and(|before| before.check == config.check && before.send_proxy == config.send_proxy)
            && old.is_some_and(|old| files.all(|file| old.loaded.has_same_file(loaded, file)));
        Watched { pool: Arc::clone(pool), config, materials, is_same }
    });
    let close = Arc::new(move |backend: &Backend| crew.tell(|| Command::EndBackend(backend.id)));
    Checkers::start(&Watch { pools: pools.collect(), registry, close }, old.map(|old| &old.checkers))
}

/// No client is sent to a backend that was never asked (traps B3).
async fn wait_for(first: FirstVerdicts) {
    if !first.wait(WARM_UP).await {
        let waited = WARM_UP.as_secs();
        warn!("serving without the first verdict of every check, after {waited} s");
    }
}

fn addresses(ports: &[Port]) -> Vec<(Arc<str>, SocketAddr)> {
    ports.iter().map(|port| (Arc::clone(&port.listener), port.address)).collect()
}

impl Gate {
    /// Every address that takes connections, with the real ports: the listeners' and `admin`.
    pub fn listening(&self) -> Vec<(Arc<str>, SocketAddr)> {
        let mut addresses = self.live.running().addresses.clone();
        addresses.push(("admin".into(), self.admin_address));
        addresses
    }

    /// Has the configuration read again, soon. What becomes of it stands in the messages.
    pub fn hang_up(&self) {
        self.counter.hang_up();
    }

    /// Waits until another process has taken the place of this one.
    pub async fn replaced(&mut self) {
        if (&mut self.is_replaced).await.is_err() {
            std::future::pending::<()>().await;
        }
    }

    /// Takes no new connections and leaves the live ones the time that the configuration gives them; when `hurry` is ready,
    /// they end at once. Then ends every thread and writes the log out.
    pub async fn leave(self, hurry: impl Future<Output = ()>) {
        self.admin.ready.store(false, Ordering::Relaxed);
        let _ = self.retire.send(());
        let (mut governor, servants) = (self.governing.await.ok(), self.servants);
        let drain = self.live.running().loaded.config.drain;
        let crew = Arc::clone(&self.workers.crew);
        let connections = crew.connections();
        info!(connections, seconds = drain.as_secs_f64(), "draining");
        let part = governor.as_mut().map(|governor| governor.part(connections, drain, &servants));
        let (given, successor) = part.unwrap_or_default();
        // From now on: whoever takes the addresses next may have a table of the same name.
        let offload = Arc::clone(&servants.offload);
        let removing = successor.is_none().then(|| tokio::spawn(async move { offload.remove().await }));
        crew.tell(|| Command::Drain(Departing { patience: drain, given: Arc::clone(&given) }));
        // On another thread, so that the admin listener says "not ready" meanwhile.
        let mut ended = tokio::task::spawn_blocking(|| self.workers.join());
        let end = Instant::now() + drain;
        let last = async {
            let _ = (&mut ended).await;
            // What the process before still counts would be lost with this one.
            if let (Some(before), Some(_)) = (servants.predecessor, &successor) {
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
        servants.watching.iter().for_each(Task::abort);
        end_admin(servants.admin, successor.is_some()).await;
        if let Some(removing) = removing {
            let _ = tokio::time::timeout(LAST_RULES, removing).await;
        }
        drop((governor, self.log));
        if let Some(successor) = successor {
            successor.take_leave(self.registry.totals()).await;
        }
    }
}

fn cannot_start(what: &str, error: &dyn std::error::Error) -> Diagnostic {
    Diagnostic::error(CANNOT_START, format!("{what}: {error}"))
}
