//! From a configuration that was read to one that runs: first everything that can fail, then the change, which cannot.

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    addresses, cannot_start,
    govern::Governor,
    wait_for, watch_backends,
    workers::{duplicates, policies},
};
use crate::{
    config::Diagnostic,
    crew::{Arrangement, Command},
    health::{Checkers, tell_mode},
    load::Loaded,
    ports::{self, Port},
    running::{Running, Verdict},
    site::Site,
    sys::clock,
};

/// How long a worker may take to do as it is told; one that closes a door takes a second at most.
const SETTLED: Duration = Duration::from_secs(3);

/// A configuration of which nothing can fail any more.
pub(super) struct Prepared {
    loaded: Loaded,
    site: Site,
    ports: Vec<Port>,
    /// For each worker, of the ports that are new.
    sockets: Vec<Vec<(ports::Id, OwnedFd)>>,
    checkers: Checkers,
}

impl Governor {
    /// Nothing of what runs is changed here; what this makes goes when it is dropped.
    pub(super) async fn prepare(&self, loaded: Loaded) -> Result<Prepared, Vec<Diagnostic>> {
        let old = self.live.running();
        let limits = self.limits.after(&loaded.config)?;
        let site =
            Site::build(&loaded, limits.connections, &self.provider, &self.registry, &old.site.ledger, Some(&old.site))
                .map_err(|error| vec![cannot_start("TLS cannot be set up", &error)])?;
        // What is refused is refused at once.
        ports::try_more(&loaded.config, &self.ports, &self.passed)?;
        let (checkers, first) = watch_backends(&loaded, &site, (&self.registry, &self.crew), Some(&old));
        wait_for(first).await;
        // From here on to the change there is no pause: who came to a new address while one waits, and the process stops,
        // would be reset.
        let ports = ports::bind_more(&loaded.config, self.sockets, &self.ports, &self.passed)?;
        let is_new = |port: &&Port| self.ports.iter().all(|old| old.id != port.id);
        let workers = self.limits.workers;
        let sockets = (0..workers).map(|worker| duplicates((worker, workers), ports.iter().filter(is_new)));
        let sockets = sockets
            .collect::<io::Result<Vec<_>>>()
            .map_err(|error| vec![cannot_start("a new listening socket cannot be given to the workers", &error)])?;
        Ok(Prepared { loaded, site, ports, sockets, checkers })
    }

    /// Puts a configuration in the place of the one that runs, and waits until every worker has done so.
    pub(super) async fn swap(&mut self, prepared: Prepared, verdict: &Verdict) {
        let (settled, waiting) = mpsc::channel(1);
        let had = self.live.running().loaded.config.firewall.bans_file.as_ref().map(|file| file.value.clone());
        let bans = prepared.loaded.bans.clone();
        self.swap_now(prepared, verdict, &settled);
        self.swapped.store(true, Ordering::Relaxed);
        drop(settled);
        self.warden.take_over(bans, had.as_deref()).await;
        settle(waiting).await;
        // After user space: it never allows anybody who is denied now, and who is allowed now is let in at once.
        self.offload.follow(&self.live).await;
        // Workers have let go of what is gone; what connections still count by goes after them, with a scrape.
        self.registry.forget_unused();
    }

    /// Without a pause in which somebody could see one half of it.
    fn swap_now(&mut self, prepared: Prepared, verdict: &Verdict, settled: &mpsc::Sender<()>) {
        let Prepared { loaded, site, ports, sockets, checkers } = prepared;
        let old = self.live.running();
        let (gone, kept) = split(std::mem::take(&mut self.ports), &ports);
        // A client that comes now to an address that is given up is refused by the kernel, not reset by us.
        gone.iter().for_each(Port::turn_away);
        for (pool, mode) in site.adopt(&old.site, clock::coarse()) {
            tell_mode(pool, mode);
        }
        checkers.adopt(&old.checkers, &site.pools);
        for (handle, open) in self.crew.handles().iter().zip(sockets) {
            let arrangement = Arrangement { open, frontends: policies(&site, &ports), settled: settled.clone() };
            // A worker that has ended needs no telling.
            let _ = handle.send(Command::Arrange(Box::new(arrangement)));
        }
        tell(&gone, ports.iter().filter(|port| !kept.contains(&port.id)));
        self.rejections.follow(loaded.config.firewall.limits.prefixes);
        self.admin.allow.store(Arc::new(loaded.config.admin.allow.clone()));
        let needs_restart = verdict.needs_restart.clone();
        self.live.replace(Running { addresses: addresses(&ports), loaded, site, checkers, needs_restart });
        self.ports = ports;
    }
}

/// What is not among the next ports, and the ids of what is.
fn split(old: Vec<Port>, next: &[Port]) -> (Vec<Port>, Vec<ports::Id>) {
    let (kept, gone): (Vec<_>, Vec<_>) = old.into_iter().partition(|port| next.iter().any(|other| other.id == port.id));
    (gone, kept.iter().map(|port| port.id).collect())
}

fn tell<'a>(gone: &[Port], new: impl Iterator<Item = &'a Port>) {
    for Port { listener, address, .. } in gone {
        info!(listener = &**listener, %address, "no longer listening");
    }
    for Port { listener, address, .. } in new {
        info!(listener = &**listener, %address, "listening");
    }
}

/// Until every worker does as it is told, and an address that was given up is free for the next configuration.
async fn settle(mut waiting: mpsc::Receiver<()>) {
    // Nobody sends anything: the channel ends with its last sender.
    if tokio::time::timeout(SETTLED, waiting.recv()).await.is_err() {
        warn!("a worker does not answer: it may go on with the configuration before");
    }
}
