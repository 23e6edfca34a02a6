//! The worker threads: how they begin and how they end.

use std::{
    hash::{BuildHasher, RandomState},
    io,
    os::fd::OwnedFd,
    sync::{Arc, mpsc},
    thread::JoinHandle,
};

use tracing::{info, warn};

use super::{Limits, Options};
use crate::{
    access_log::AccessLog,
    config::ZeroCopy,
    crew::{Command, Crew, Inbox},
    frontend::Frontend,
    metrics::Registry,
    ports::{self, Port},
    rejections::Rejections,
    site::Site,
    sys::probe,
    worker::{self, Assignment},
};

/// The worker threads. When this is dropped they are told to stop, and not waited for.
#[derive(Debug)]
pub(super) struct Workers {
    pub(super) crew: Arc<Crew>,
    threads: Vec<JoinHandle<()>>,
}

/// What every worker gets alike.
pub(super) struct Template {
    pub(super) zero_copy: ZeroCopy,
    pub(super) rustls_records: bool,
    pub(super) registry: Arc<Registry>,
    pub(super) rejections: Arc<Rejections>,
    pub(super) log: Option<AccessLog>,
}

/// Tries the fast paths and tells in one line what is used. A path that does not work is not used.
pub(super) fn tried_paths(wanted: ZeroCopy, options: &Options) -> ZeroCopy {
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

impl Workers {
    /// Waits until they have ended; somebody has told them.
    pub(super) fn join(mut self) {
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

pub(super) fn start_workers(
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
        let policies = policies(site, ports);
        let policy = |port| policies.iter().find(|(id, _)| *id == port).map(|(_, frontend)| Arc::clone(frontend));
        let sockets = duplicates((index, limits.workers), ports)?.into_iter();
        let sockets = sockets.filter_map(|(port, fd)| Some((port, fd, policy(port)?))).collect();
        let assignment = Assignment {
            index,
            sockets,
            pipes: limits.pipes / limits.workers,
            zero_copy: template.zero_copy,
            rustls_records: template.rustls_records,
            registry: Arc::clone(&template.registry),
            rejections: Arc::clone(&template.rejections),
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

/// The sockets of one of so many workers: one of each port, or more where the process before had more workers.
pub(super) fn duplicates<'a>(
    (worker, workers): (usize, usize),
    ports: impl IntoIterator<Item = &'a Port>,
) -> io::Result<Vec<(ports::Id, OwnedFd)>> {
    let sockets =
        ports.into_iter().flat_map(|port| port.sockets_of(worker, workers).map(move |socket| (port.id, socket)));
    sockets.map(|(port, socket)| Ok((port, socket.duplicate()?))).collect()
}

/// The policy of each port.
pub(super) fn policies(site: &Site, ports: &[Port]) -> Vec<(ports::Id, Arc<Frontend>)> {
    let policies = ports.iter().filter_map(|port| Some((port.id, Arc::clone(site.frontend(&port.listener)?))));
    policies.collect()
}
