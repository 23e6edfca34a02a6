//! The process: binds, starts the workers, answers the admin listener, replaces the configuration, stops.

mod bind;
mod govern;
mod limits;
mod reload;
mod workers;

use std::{
    collections::HashMap,
    net::SocketAddr,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::{Duration, SystemTime},
};

use arc_swap::ArcSwap;
use rustls::crypto::CryptoProvider;
use tokio::{sync::oneshot, task::JoinHandle as Task};
use tracing::{info, warn};

use crate::{
    access_log,
    admin::{self, control::Control},
    backend::Backend,
    config::{self, Diagnostic, code::CANNOT_START},
    crew::{self, Command, Crew},
    expiry,
    health::{Checkers, FirstVerdicts, Watch, Watched},
    load::Loaded,
    metrics::{Registry, render},
    ports::{self, Passed, Port},
    running::{Counter, Live, Running},
    service,
    site::Site,
    watch::watch,
};
use bind::{SocketFile, bind_admin, bind_socket, start_log};
use govern::Governor;
pub use limits::Limits;
use workers::{Template, Workers, start_workers, tried_paths};

/// How long clients wait for the first verdicts of checks (traps B3).
const WARM_UP: Duration = Duration::from_secs(2);

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
}

impl Default for Options {
    fn default() -> Self {
        Self { reuseport: true, rustls_records: false, config: None, read_at: SystemTime::now() }
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
    workers: Workers,
    admin: Arc<admin::State>,
    admin_tasks: Vec<Task<()>>,
    /// Removed when this is dropped.
    _admin_socket: Option<SocketFile>,
    log: Option<access_log::Guard>,
}

/// Binds every address, asks every backend once, starts every thread and returns when all of them accept.
///
/// Must be called on the control runtime, which then serves the admin listener, the checks and the reloads.
pub async fn start(loaded: Loaded, options: Options, provider: &Arc<CryptoProvider>) -> Result<Gate, Vec<Diagnostic>> {
    let config = &loaded.config;
    let limits = Limits::of(config)?;
    let registry = Arc::new(Registry::new(limits.workers));
    let site = Site::build(&loaded, limits.connections, provider, &registry, None)
        .map_err(|error| vec![cannot_start("TLS cannot be set up", &error)])?;
    let sockets = if options.reuseport { limits.workers } else { 1 };
    let passed = Passed::take();
    let ports = ports::bind(config, sockets, &passed)?;
    let (admin_listener, admin_address) = bind_admin(config)?;
    let admin_socket = bind_socket(config)?;
    let (log, guard) = start_log(&config.log, &registry)?;
    let template = Template {
        zero_copy: tried_paths(config.global.zero_copy, &options),
        rustls_records: options.rustls_records,
        registry: Arc::clone(&registry),
        log,
    };
    let (handles, inboxes) = (0..limits.workers).map(|_| crew::channel()).unzip();
    let crew = Arc::new(Crew::new(handles, Arc::clone(&registry)));
    let (checkers, first) = watch_backends(&loaded, &site, (&registry, &crew), None);
    let started = config.clone();
    let running = Running { addresses: addresses(&ports), loaded, site, checkers, needs_restart: Vec::new() };
    let live = Arc::new(Live::new(running, options.config));
    let admin = Arc::new(admin_state(&live, &registry));
    let mut admin_tasks = vec![tokio::spawn(admin::serve(admin_listener, Arc::clone(&admin)))];
    // Clients wait in the queues of the bound sockets meanwhile: none is sent to a backend that was never asked.
    wait_for(first).await;
    let (counter, orders) = Counter::new();
    let control = Arc::new(Control::new(&admin, &crew, &live, counter.clone()));
    let admin_socket = admin_socket.map(|(listener, file)| {
        admin_tasks.push(tokio::spawn(admin::serve_unix(listener, control)));
        file
    });
    let workers = start_workers(&limits, &live.running().site, &ports, &template, (Arc::clone(&crew), inboxes))
        .map_err(|error| vec![cannot_start("a worker does not start", &error)])?;
    admin.ready.store(true, Ordering::Relaxed);
    admin_tasks.push(tokio::spawn(service::watch(Arc::clone(&crew), Arc::clone(&admin))));
    admin_tasks.push(tokio::spawn(expiry::watch(Arc::clone(&live))));
    admin_tasks.push(tokio::spawn(watch(Arc::clone(&live), counter.clone(), options.read_at)));
    let (retire, retired) = oneshot::channel();
    let (live_, provider) = (Arc::clone(&live), Arc::clone(provider));
    let governor = Governor {
        live: live_,
        started,
        ports,
        swapped: Arc::default(),
        passed,
        sockets,
        limits,
        provider,
        registry,
        crew,
        admin: Arc::clone(&admin),
    };
    let governing = tokio::spawn(governor.govern(orders, retired));
    Ok(Gate {
        limits,
        admin_address,
        live,
        counter,
        governing,
        retire,
        workers,
        admin,
        admin_tasks,
        _admin_socket: admin_socket,
        log: guard,
    })
}

/// What the admin listener answers from.
fn admin_state(live: &Arc<Live>, registry: &Arc<Registry>) -> admin::State {
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
    }
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
        let is_same = before.get(&*config.name).is_some_and(|before| before.check == config.check)
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

    /// Takes no new connections and leaves the live ones the time that the configuration gives them; when `hurry` is ready,
    /// they end at once. Then ends every thread and writes the log out.
    pub async fn leave(self, hurry: impl Future<Output = ()>) {
        self.admin.ready.store(false, Ordering::Relaxed);
        let _ = self.retire.send(());
        let governor = self.governing.await;
        let drain = self.live.running().loaded.config.drain;
        let crew = Arc::clone(&self.workers.crew);
        let connections = crew.connections();
        info!(connections, seconds = drain.as_secs_f64(), "draining");
        service::stopping(connections, drain);
        // Workers hold duplicates: the last of a socket closes when its queue is empty.
        if let Ok(governor) = governor {
            governor.ports.iter().for_each(Port::turn_away);
        }
        crew.tell(|| Command::Drain(drain));
        // On another thread, so that the admin listener says "not ready" meanwhile.
        let mut ended = tokio::task::spawn_blocking(|| self.workers.join());
        tokio::select! {
            _ = &mut ended => {}
            () = hurry => {
                crew.tell(|| Command::Stop);
                let _ = ended.await;
            }
        }
        self.admin_tasks.iter().for_each(Task::abort);
        drop(self.log);
    }
}

fn cannot_start(what: &str, error: &dyn std::error::Error) -> Diagnostic {
    Diagnostic::error(CANNOT_START, format!("{what}: {error}"))
}
