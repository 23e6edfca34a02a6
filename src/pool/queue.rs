//! Who waits for a backend with room, first come, first served.
//!
//! Everyone who comes to the pool draws a ticket, and keeps it: who comes back because a backend failed stands where it
//! stood. Whoever makes room, or joins the queue, serves it in the order of the tickets: what becomes free goes to the first
//! who may have it, as a lease that waits for its owner. Nobody passes the queue, because a pick finds nothing while
//! somebody waits.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering, fence},
    },
    task::{Context, Poll, Waker},
};

use super::{Lease, Pick, Pool, Search};
use crate::moment::Moment;

/// The queue of a pool.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// One more for each client of the pool, whether it will have to wait or not (traps B13).
    tickets: AtomicU64,
    /// How many wait; changed under the lock, read without it.
    waiting: AtomicUsize,
    /// The time, as it was last known: who gives a place back has no clock.
    now: AtomicU64,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    /// Few: one for those who have tried nothing, one for those who have, and as many for each older configuration.
    rows: Vec<Row>,
    /// What became of those whose turn came and who have not looked yet.
    served: HashMap<u64, Served>,
}

/// Those of one pool, in the order of their tickets.
#[derive(Debug)]
struct Row {
    pool: Arc<Pool>,
    /// They have tried nothing, so all of them ask the same: what the first does not get, the others do not get either.
    fresh: bool,
    waiters: VecDeque<Waiter>,
    /// Who is looked at next.
    at: usize,
}

#[derive(Debug)]
struct Waiter {
    search: Search,
    waker: Option<Waker>,
}

/// The search goes on from where it was, with a lease unless nothing is left to wait for.
pub type Served = (Search, Option<Lease>);

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<Queue>,
    ticket: u64,
    /// It has come.
    done: bool,
}

impl Pool {
    /// Waits for a backend with room, behind everyone who came to the pool earlier. `None` when as many wait as may; who
    /// was given a backend before, which failed, is not sent away for that.
    pub fn wait(self: &Arc<Self>, search: Search, now: Moment) -> Option<Turn> {
        let queue = &self.queue;
        let mut line = queue.lock();
        let is_full = line.len() >= self.rules.max_queued && !search.has_failed();
        if self.queue_timeout.is_zero() || is_full {
            return None;
        }
        queue.note_time(now);
        let ticket = search.ticket();
        line.join(self, search);
        // Said before looking for room; who makes room looks here after that. The look itself is a relaxed one, so without
        // the fence it could come first, and neither would see the other.
        queue.waiting.store(line.len(), Ordering::SeqCst);
        fence(Ordering::SeqCst);
        queue.serve(line, now);
        Some(Turn { queue: Arc::clone(queue), ticket, done: false })
    }

    /// For one who waits with this ticket, from time to time: nobody tells when an ejection is over. Only the first looks
    /// for all; the others would find the same.
    pub fn look_around(&self, ticket: u64, now: Moment) {
        self.queue.note_time(now);
        let line = self.queue.lock();
        if line.first() == Some(ticket) {
            self.queue.serve(line, now);
        }
    }

    /// Looks whether those who wait can be served: for when backends came back, or are gone.
    pub fn serve_waiting(&self, now: Moment) {
        self.queue.note_time(now);
        self.queue.note_room();
    }

    /// Clients that wait.
    pub fn waiting(&self) -> usize {
        self.queue.waiting.load(Ordering::SeqCst)
    }

    pub(super) fn limits(&self) -> Option<&Arc<Queue>> {
        self.has_limits.then_some(&self.queue)
    }
}

impl Queue {
    pub(super) fn is_empty(&self) -> bool {
        self.waiting.load(Ordering::SeqCst) == 0
    }

    pub(super) fn note_time(&self, now: Moment) {
        // Mostly it is the same, and the line stays shared between the workers.
        if self.now.load(Ordering::Relaxed) < now.as_millis() {
            self.now.store(now.as_millis(), Ordering::Relaxed);
        }
    }

    pub(super) fn note_room(&self) {
        if !self.is_empty() {
            self.serve(self.lock(), Moment::from_millis(self.now.load(Ordering::Relaxed)));
        }
    }

    /// The next ticket.
    pub(super) fn ticket(&self) -> u64 {
        self.tickets.fetch_add(1, Ordering::Relaxed)
    }

    /// Serves in the order of the tickets until there is nothing to give.
    fn serve(&self, mut line: MutexGuard<'_, Line>, now: Moment) {
        let mut wakers = Vec::new();
        let Line { rows, served } = &mut *line;
        for row in rows.iter_mut() {
            row.at = 0;
        }
        while let Some(row) = rows.iter_mut().filter(|row| row.next().is_some()).min_by_key(|row| row.next()) {
            let Some(waiter) = row.waiters.get_mut(row.at) else { break };
            let lease = match row.pool.pick_past_queue(&mut waiter.search, now) {
                Pick::Full => {
                    row.at = if row.fresh { row.waiters.len() } else { row.at + 1 };
                    continue;
                }
                Pick::Lease(lease) => Some(lease),
                Pick::Nothing => None,
            };
            if let Some(Waiter { search, waker }) = row.waiters.remove(row.at) {
                served.insert(search.ticket(), (search, lease));
                wakers.extend(waker);
            }
        }
        rows.retain(|row| !row.waiters.is_empty());
        self.waiting.store(line.len(), Ordering::SeqCst);
        drop(line);
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Line {
    fn len(&self) -> usize {
        self.rows.iter().map(|row| row.waiters.len()).sum()
    }

    /// The lowest ticket.
    fn first(&self) -> Option<u64> {
        self.rows.iter().filter_map(|row| Some(row.waiters.front()?.search.ticket())).min()
    }

    fn join(&mut self, pool: &Arc<Pool>, search: Search) {
        let fresh = !search.has_failed();
        let place = self.rows.iter().position(|row| row.fresh == fresh && Arc::ptr_eq(&row.pool, pool));
        let place = place.unwrap_or_else(|| {
            self.rows.push(Row { pool: Arc::clone(pool), fresh, waiters: VecDeque::new(), at: 0 });
            self.rows.len() - 1
        });
        if let Some(Row { waiters, .. }) = self.rows.get_mut(place) {
            let before = waiters.partition_point(|other| other.search.ticket() < search.ticket());
            waiters.insert(before, Waiter { search, waker: None });
        }
    }

    fn find(&mut self, ticket: u64) -> Option<(&mut Row, usize)> {
        self.rows.iter_mut().find_map(|row| {
            let place = row.waiters.binary_search_by_key(&ticket, |waiter| waiter.search.ticket()).ok()?;
            Some((row, place))
        })
    }

    fn remove(&mut self, ticket: u64) -> Option<Waiter> {
        let (row, place) = self.find(ticket)?;
        let waiter = row.waiters.remove(place);
        self.rows.retain(|row| !row.waiters.is_empty());
        waiter
    }
}

impl Row {
    /// The ticket of the one that is looked at next.
    fn next(&self) -> Option<u64> {
        self.waiters.get(self.at).map(|waiter| waiter.search.ticket())
    }
}

impl Turn {
    /// What `look_around` knows it by.
    pub fn ticket(&self) -> u64 {
        self.ticket
    }
}

impl Future for Turn {
    type Output = Served;

    fn poll(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Served> {
        let mut line = self.queue.lock();
        if let Some(served) = line.served.remove(&self.ticket) {
            drop(line);
            self.done = true;
            return Poll::Ready(served);
        }
        let waiter = line.find(self.ticket).and_then(|(row, place)| row.waiters.get_mut(place));
        match waiter.map(|waiter| &mut waiter.waker) {
            Some(Some(waker)) => waker.clone_from(cx.waker()),
            Some(empty) => *empty = Some(cx.waker().clone()),
            None => {}
        }
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        // The search may be waiting again, in another turn with the same ticket.
        if self.done {
            return;
        }
        let mut line = self.queue.lock();
        let waiter = line.remove(self.ticket);
        self.queue.waiting.store(line.len(), Ordering::SeqCst);
        let served = line.served.remove(&self.ticket);
        drop(line);
        // Not under the lock: a lease that nobody wants serves the next.
        drop((waiter, served));
    }
}
