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
        let mut search = pool.search(self.client().ip(), self.local.random());
        let preface = self.preface(client);
        let mut patience = Patience { each: pool.connect_timeout, left: pool.patience };
        while let Some(limit) = patience.limit() {
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
            match dial::connect(backend.address, &preface, limit, alarm).await {
                Ok((socket, took)) => {
                    backend.cells.at(index).connections.add(1);
                    if pool.connect_succeeded(backend, alarm.now()) {
                        tell_return(pool, backend);
                    }
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
                Err(DialError::Exhausted) => return Err(self.out_of_resources()),
                Err(DialError::Failed(reason)) => {
                    backend.cells.at(index).connect_failures.at(reason).add(1);
                    if patience.blames(limit, reason) && pool.connect_failed(backend, clock::coarse()) {
                        tell_ejection(pool, backend, reason);
                    }
                    search.failed(backend);
                }
            }
            patience.spend(limit, clock::coarse().since(began));
        }
        Err(if search.has_failed() { Outcome::ConnectFailed } else { Outcome::NoBackend })
    }

    /// Waits for a backend with room. A client that leaves meanwhile leaves the queue.
    async fn wait(&self, search: Search, client: &Client, alarm: &Alarm) -> Result<(Search, Option<Lease>), Outcome> {
        let pool = &self.frontend.pool;
        // One who comes back has waited before.
        let waited = self.notes.borrow().queue;
        let mut turn = pool.wait(search, clock::coarse()).ok_or(Outcome::QueueFull)?;
        let ticket = turn.ticket();
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
            let left = pool.queue_timeout.saturating_sub(waited + began.elapsed());
            match alarm.within(left.min(LOOK), &mut waiting).await {
                Some(result) => break result,
                None if left <= LOOK => break Err(Outcome::QueueTimeout),
                None => pool.look_around(ticket, clock::coarse()),
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

/// The time that is left for connect attempts.
struct Patience {
    /// One attempt.
    each: Duration,
    left: Duration,
}

impl Patience {
    /// How long the next attempt may take; `None` when the time is over.
    fn limit(&self) -> Option<Duration> {
        Some(self.each.min(self.left)).filter(|limit| !limit.is_zero())
    }

    /// An alarm may ring late: an attempt costs no more than it was given, so those behind it keep their time.
    fn spend(&mut self, limit: Duration, took: Duration) {
        self.left = self.left.saturating_sub(took.min(limit));
    }

    /// Whether such a failure is the backend's. No port left for it is a fault of this host (traps A6), and a backend that
    /// was given less time than others need not have answered.
    fn blames(&self, limit: Duration, reason: ConnectFailure) -> bool {
        match reason {
            ConnectFailure::NoPorts => false,
            ConnectFailure::Timeout => limit >= self.each,
            _ => true,
        }
    }
}

fn tell_return(pool: &Pool, backend: &Backend) {
    tracing::info!(pool = &*pool.name, backend = &*backend.name, "takes connections again: its ejection is over");
}

fn tell_ejection(pool: &Pool, backend: &Backend, reason: ConnectFailure) {
    let (pool, backend, last) = (&*pool.name, &*backend.name, reason.as_str());
    tracing::warn!(pool, backend, last, "ejected for a while: too many failed connects in a row");
}

#[cfg(test)]
mod tests {
    use super::*;

    const EACH: Duration = Duration::from_millis(200);

    #[test]
    fn b1_a_late_alarm_costs_the_attempts_behind_it_nothing() {
        let mut patience = Patience { each: EACH, left: EACH * 4 };
        let limits = std::iter::from_fn(|| {
            let limit = patience.limit()?;
            patience.spend(limit, limit + Duration::from_millis(49));
            Some(limit)
        });
        assert_eq!(limits.collect::<Vec<_>>(), [EACH; 4]);
    }

    #[test]
    fn b4_an_attempt_that_was_cut_short_by_us_is_not_the_backends_fault() {
        let mut patience = Patience { each: EACH, left: EACH * 2 };
        patience.spend(EACH, EACH / 2);
        patience.spend(EACH, EACH);
        let limit = patience.limit().unwrap();
        assert_eq!(limit, EACH / 2);
        assert!(!patience.blames(limit, ConnectFailure::Timeout));
        assert!(patience.blames(limit, ConnectFailure::Refused) && patience.blames(EACH, ConnectFailure::Timeout));
        assert!(!patience.blames(EACH, ConnectFailure::NoPorts));
        patience.spend(limit, limit);
        assert_eq!(patience.limit(), None);
    }
}
