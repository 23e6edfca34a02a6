//! A process in the place of another: this one after the one before, and the next one after this one.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use tokio::task::JoinHandle as Task;
use tracing::{info, warn};

use super::{Servants, cannot_start, govern::Governor};
use crate::{
    admin::{self, answers::Upgraded, control::UpgradeOrder},
    config::Diagnostic,
    metrics::Registry,
    ports, service,
    upgrade::{Estate, Inheritance, Predecessor, Successor},
};

/// How often a process that drains tells its successor what it counts.
const REPORTS: Duration = Duration::from_millis(250);

/// What those may take that are still at the admin listeners when there is a successor.
const LAST_ANSWERS: Duration = Duration::from_secs(1);

/// Tells the process before this one that only workers are missing, and waits until they are wanted.
pub(super) async fn succeed(
    heir: Option<Inheritance>,
    registry: &Registry,
) -> Result<Option<Predecessor>, Vec<Diagnostic>> {
    let Some(heir) = heir else { return Ok(None) };
    let broken = |error| vec![cannot_start("the upgrade broke off", &error)];
    let (before, totals) = heir.prepared().await.map_err(broken)?;
    registry.inherit(&totals);
    Ok(Some(before))
}

/// Says that this one accepts, also to the process before, and counts what that one still counts.
pub(super) async fn begin_to_serve(
    before: Option<Predecessor>,
    registry: &Arc<Registry>,
    admin: &admin::State,
) -> Result<Option<Task<()>>, Vec<Diagnostic>> {
    admin.ready.store(true, Ordering::Relaxed);
    admin.doors.send_replace(admin::Doors::Open);
    let Some(before) = before else { return Ok(None) };
    before.serving().await.map_err(|error| vec![cannot_start("the upgrade broke off", &error)])?;
    let registry = Arc::clone(registry);
    Ok(Some(tokio::spawn(async move { before.count(&registry).await })))
}

impl Governor {
    /// Has a new process serve, and tells who asked for it. While this goes on, and if it fails or is dropped, this one
    /// serves as ever.
    pub(super) async fn upgrade(&self, reply: UpgradeOrder) -> Option<Successor> {
        let result = self.try_upgrade().await;
        let answer = match &result {
            Ok(successor) => {
                let (pid, release) = (successor.pid(), successor.release());
                info!(pid, release, "another process has taken the place of this one");
                Ok(Upgraded { pid, version: release.to_owned(), before: std::process::id() })
            }
            Err(reason) => {
                warn!(reason, "upgrade refused: this process goes on");
                Err(reason.clone())
            }
        };
        // Who asked may have lost patience.
        let _ = reply.send(answer);
        result.ok()
    }

    async fn try_upgrade(&self) -> Result<Successor, String> {
        let launch = self.launch.as_ref();
        let launch = launch.map_err(|error| format!("this process does not know how it was started: {error}"))?;
        let running = self.live.running();
        let offload = self.offload.table().await;
        let estate =
            Estate { ports: &self.ports, passed: &self.passed, doors: &self.doors, site: &running.site, offload };
        let mut successor = Successor::prepare(launch, &estate).await?;
        // From here on scrapes wait for the one whose counters go on.
        self.admin.shut().await;
        self.offload.hand_over().await;
        let served = successor.go(self.registry.totals()).await;
        if let Err(reason) = served {
            drop(successor);
            self.offload.take_back().await;
            self.admin.doors.send_replace(admin::Doors::Open);
            return Err(reason);
        }
        Ok(successor)
    }

    /// Closes the sockets that nobody else has, and leaves the others alone: those are the ports that are told.
    pub(super) fn part(
        &mut self,
        connections: u64,
        drain: Duration,
        servants: &Servants,
    ) -> (Arc<[ports::Id]>, Option<Successor>) {
        let taken = self.successor.as_ref().map(Successor::taken).cloned().unwrap_or_default();
        if let Some(successor) = &self.successor {
            servants.watching.iter().for_each(Task::abort);
            service::succeeded(successor.pid());
            self.admin.doors.send_replace(admin::Doors::Left);
        } else {
            service::stopping(connections, drain);
            self.admin.doors.send_replace(admin::Doors::Open);
        }
        if taken.socket {
            self.doors.leave_file();
        }
        // Workers hold duplicates: the last of a socket closes when its queue is empty.
        let mut given = Vec::new();
        for (place, port) in self.ports.drain(..).enumerate() {
            if taken.ports.contains(&place) {
                given.push(port.id);
            } else {
                port.turn_away();
            }
        }
        (given.into(), self.successor.take())
    }
}

/// Tells the successor what is counted, without end.
pub(super) async fn report(successor: Option<&Successor>, registry: &Registry) {
    let Some(successor) = successor else { return std::future::pending().await };
    loop {
        tokio::time::sleep(REPORTS).await;
        successor.report(registry.totals()).await;
    }
}

/// Ends the admin servers. With a successor, who is inside still gets an answer: the one who wanted the upgrade is.
pub(super) async fn end_admin(tasks: Vec<Task<()>>, has_successor: bool) {
    for task in tasks {
        if !has_successor {
            task.abort();
        }
        let _ = tokio::time::timeout(LAST_ANSWERS, task).await;
    }
}
