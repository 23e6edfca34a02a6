//! Finding a backend: pick, wait for room, dial, and on to another one while no client byte was forwarded.

use std::{
    future::poll_fn,
    pin::pin,
    sync::Arc,
    task::Poll,
    time::{Duration, Instant},
};

use super::Connection;
use crate::{
    alarm::Alarm,
    backend::Backend,
    dial::{self, DialError},
    drain::Watcher,
    metrics::{ConnectFailure, Label},
    outcome::Outcome,
    pool::{Lease, Pick, Pool, Search},
    relay::Client,
    sys::{
        clock,
        socket::{Left, Socket},
    },
};

/// How often one that waits for room looks by itself: a backend may be allowed again without anyone noticing.
const LOOK: Duration = Duration::from_secs(1);

impl Connection {
    /// Connects a backend. As no client byte was forwarded yet, a failure moves on to another one (traps B1), until
    /// `patience` is over.
    pub(super) async fn dial(
        &self,
        client: &Client,
        drain: &Watcher,
        alarm: &Alarm,
    ) -> Result<(Lease, Socket), Outcome> {
        let pool = &*self.frontend.pool;
        let index = self.local.index;
        let mut search = pool.search(self.client.ip(), self.local.random());
        let mut limit = pool.connect_timeout;
        let mut spent = Duration::ZERO;
        loop {
            let lease = match pool.pick(&mut search, alarm.now()) {
                Pick::Lease(lease) => lease,
                Pick::Nothing => break,
                Pick::Full => match Box::pin(self.wait(search, client, alarm)).await? {
                    (went_on, Some(lease)) => {
                        search = went_on;
                        lease
                    }
                    (went_on, None) => {
                        search = went_on;
                        break;
                    }
                },
            };
            if search.has_failed() {
                pool.cells.at(index).retries.add(1);
            }
            self.note_attempt(&lease);
            let backend = lease.backend();
            let began = clock::coarse();
            match dial::connect(backend.address, limit, alarm).await {
                Ok((socket, took)) => {
                    backend.cells.at(index).connections.add(1);
                    pool.connect_succeeded(backend);
                    pool.cells.at(index).connect_duration.observe(took);
                    drain.serves(Some(backend.id));
                    // From here on it is told when it has to end. Whether that was while it was dialled is asked now.
                    if !(pool.closes_on_down && lease.is_outdated()) {
                        self.notes.borrow_mut().connect = Some(took);
                        return Ok((lease, socket));
                    }
                    drain.serves(None);
                    search.failed(backend);
                }
                Err(DialError::Exhausted) => return Err(Outcome::OutOfResources),
                Err(DialError::Failed(reason)) => {
                    backend.cells.at(index).connect_failures.at(reason).add(1);
                    // No port left for it is a fault of this host (traps A6).
                    if reason != ConnectFailure::NoPorts && pool.connect_failed(backend, clock::coarse()) {
                        tell_ejection(pool, backend, reason);
                    }
                    search.failed(backend);
                }
            }
            spent += clock::coarse().since(began);
            limit = pool.connect_timeout.min(pool.patience.saturating_sub(spent));
            if limit.is_zero() {
                break;
            }
        }
        Err(if search.has_failed() { Outcome::ConnectFailed } else { Outcome::NoBackend })
    }

    /// Waits for a backend with room. A client that leaves meanwhile leaves the queue.
    async fn wait(&self, search: Search, client: &Client, alarm: &Alarm) -> Result<(Search, Option<Lease>), Outcome> {
        let pool = &self.frontend.pool;
        let mut turn = pool.wait(search, clock::coarse()).ok_or(Outcome::QueueFull)?;
        let began = Instant::now();
        let mut left = pin!(client.left());
        let mut waiting = poll_fn(|cx| {
            // First of all: a place is not for one that has left.
            if let Poll::Ready(left) = left.as_mut().poll(cx) {
                return Poll::Ready(Err(match left {
                    Left::Closed => Outcome::ClientClosed,
                    Left::Reset => Outcome::ClientReset,
                }));
            }
            pin!(&mut turn).poll(cx).map(Ok)
        });
        let result = loop {
            let left = pool.queue_timeout.saturating_sub(began.elapsed());
            match alarm.within(left.min(LOOK), &mut waiting).await {
                Some(result) => break result,
                None if left <= LOOK => break Err(Outcome::QueueTimeout),
                None => pool.serve_waiting(clock::coarse()),
            }
        };
        self.notes.borrow_mut().queue += began.elapsed();
        result
    }

    fn note_attempt(&self, lease: &Lease) {
        let mut notes = self.notes.borrow_mut();
        notes.attempts += 1;
        notes.backend = Some(Arc::clone(&lease.backend().name));
    }
}

fn tell_ejection(pool: &Pool, backend: &Backend, reason: ConnectFailure) {
    let (pool, backend, last) = (&*pool.name, &*backend.name, reason.as_str());
    tracing::warn!(pool, backend, last, "ejected for a while: too many failed connects in a row");
}
