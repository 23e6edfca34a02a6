//! A process in the place of another: this one after the one before, and the next one after this one.

use std::{sync::Arc, time::Duration};

use tokio::task::JoinHandle as Task;

use super::{Gate, cannot_start};
use crate::{
    admin::{self, control::UpgradeOrder},
    config::Diagnostic,
    metrics::Registry,
    service,
    upgrade::{Estate, Inheritance, Launch, Predecessor, Successor},
};

/// How often a process that drains tells its successor what it counts.
const REPORTS: Duration = Duration::from_millis(250);

/// Tells the process before this one that only workers are missing, and waits until they are wanted.
pub(super) async fn succeed(heir: Inheritance, registry: &Registry) -> Result<Predecessor, Vec<Diagnostic>> {
    let (before, totals) =
        heir.prepared().await.map_err(|error| vec![cannot_start("the upgrade broke off", &error)])?;
    registry.inherit(&totals);
    Ok(before)
}

/// Tells it that this one accepts, and counts what it still counts.
pub(super) async fn begin_to_serve(before: Predecessor, registry: &Arc<Registry>) -> Result<Task<()>, Vec<Diagnostic>> {
    before.serving().await.map_err(|error| vec![cannot_start("the upgrade broke off", &error)])?;
    let registry = Arc::clone(registry);
    Ok(tokio::spawn(async move { before.count(&registry).await }))
}

impl Gate {
    /// The next upgrade that is asked for.
    pub async fn next_order(&mut self) -> Option<UpgradeOrder> {
        self.orders.recv().await
    }

    /// Has a new process serve. While this goes on, and if it fails or is dropped, this one serves as ever.
    pub async fn upgrade(&self, launch: &Launch) -> Result<Successor, String> {
        let estate = Estate { ports: &self.ports, doors: &self.doors, site: &self.site };
        let mut successor = Successor::prepare(launch, &estate).await?;
        // From here on scrapes wait for the one whose counters go on.
        self.admin.shut().await;
        let served = successor.go(self.registry.totals()).await;
        if let Err(reason) = served {
            drop(successor);
            self.admin.doors.send_replace(admin::Doors::Open);
            return Err(reason);
        }
        Ok(successor)
    }

    /// Closes the sockets that nobody else has, and leaves the others alone.
    pub(super) fn part(&mut self, successor: Option<&Successor>, connections: u64) {
        let taken = successor.map(Successor::taken).cloned().unwrap_or_default();
        if let Some(successor) = successor {
            self.alive.abort();
            service::succeeded(successor.pid());
            self.admin.doors.send_replace(admin::Doors::Left);
        } else {
            service::stopping(connections, self.drain);
            self.admin.doors.send_replace(admin::Doors::Open);
        }
        if taken.socket {
            self.doors.leave_file();
        }
        // Workers hold duplicates: the last of a socket closes when its queue is empty.
        for (place, port) in self.ports.drain(..).enumerate() {
            if !taken.ports.contains(&place) {
                port.turn_away();
            }
        }
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
