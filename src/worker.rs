//! A data-plane thread: one runtime, its own listening sockets, one scratch buffer, its own counters. Nothing crosses
//! threads once a client is served.

use std::{
    io,
    os::fd::OwnedFd,
    rc::Rc,
    sync::{Arc, mpsc},
    thread::JoinHandle,
    time::Duration,
};

use tokio::{runtime, time::Instant};

use crate::{
    access_log::AccessLog,
    config::ZeroCopy,
    connection::Connection,
    crew::{Command, Crew, Inbox},
    frontend::Frontend,
    listener,
    local::Local,
    metrics::Registry,
    relay::{self, Resources},
    sys::listen::Acceptor,
};

/// What a worker is made from.
#[derive(Debug)]
pub struct Assignment {
    pub index: usize,
    /// A duplicate of one listening socket of each bind, and its policy.
    pub sockets: Vec<(OwnedFd, Arc<Frontend>)>,
    /// Most pipes lent at once.
    pub pipes: usize,
    pub zero_copy: ZeroCopy,
    /// TLS records by rustls instead of our own record layer.
    pub rustls_records: bool,
    pub registry: Arc<Registry>,
    pub crew: Arc<Crew>,
    /// `None`: no access log.
    pub log: Option<AccessLog>,
    /// Any number; two workers should not have the same.
    pub seed: u64,
}

/// How long connections may take to say goodbye when the process stops.
const GOODBYE: Duration = relay::PATIENCE.saturating_add(Duration::from_millis(500));

/// Starts the thread, which does what it finds in `inbox`. It says through `ready` when it accepts, or why it does not.
pub fn start(assignment: Assignment, inbox: Inbox, ready: mpsc::Sender<io::Result<()>>) -> io::Result<JoinHandle<()>> {
    std::thread::Builder::new().name(format!("worker-{}", assignment.index)).spawn(move || {
        let runtime = runtime::Builder::new_current_thread().enable_all().build_local(runtime::LocalOptions::default());
        match runtime {
            Ok(runtime) => runtime.block_on(work(assignment, inbox, ready)),
            Err(error) => drop(ready.send(Err(error))),
        }
    })
}

async fn work(assignment: Assignment, mut inbox: Inbox, ready: mpsc::Sender<io::Result<()>>) {
    let Assignment { index, sockets, pipes, zero_copy, rustls_records, registry, crew, log, seed } = assignment;
    let resources = Resources::new(index, pipes, zero_copy, Arc::clone(&registry));
    let local = Rc::new(Local::new(index, resources, registry, log, rustls_records, seed));
    let alarms = Rc::clone(&local.alarms);
    let ticking = tokio::task::spawn_local(async move { alarms.tick().await });
    for (fd, frontend) in sockets {
        match Acceptor::new(fd) {
            Ok(acceptor) => {
                tokio::task::spawn_local(listener::accept(acceptor, frontend, Rc::clone(&local), Arc::clone(&crew)));
            }
            Err(error) => {
                let _ = ready.send(Err(error));
                return;
            }
        }
    }
    let _ = ready.send(Ok(()));
    drop(ready);
    obey(&mut inbox, &local).await;
    local.drain.trigger();
    let deadline = Instant::now() + GOODBYE;
    // Each task holds it: when we are alone, everyone has ended.
    while Rc::strong_count(&local) > 1 && Instant::now() < deadline {
        tokio::time::sleep(Duration::from_millis(2)).await;
    }
    ticking.abort();
}

/// Does what it is told until it is told to stop. What was sent before the others knew is still done: a client that
/// comes so ends as the rest of ours do.
async fn obey(inbox: &mut Inbox, local: &Rc<Local>) {
    while let Some(command) = inbox.next().await {
        match command {
            Command::Stop => {
                local.drain.trigger();
                inbox.close();
            }
            Command::EndBackend(backend) => local.drain.end_backend(backend),
            Command::Adopt { client, waiting } => {
                Connection::begin(client, local);
                drop(waiting);
            }
        }
    }
}
