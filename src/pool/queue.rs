//! Who waits for a backend with room, first come, first served.
//!
//! Whoever makes room, or joins the queue, serves it from the front: what becomes free goes to the first who may have it,
//! as a lease that waits for its owner. Nobody passes the queue, because a pick finds nothing while somebody waits.

use std::{
    collections::{HashMap, VecDeque},
    pin::Pin,
    sync::{
        Arc, Mutex, MutexGuard, PoisonError,
        atomic::{AtomicU64, AtomicUsize, Ordering},
    },
    task::{Context, Poll, Waker},
};

use super::{Lease, Pick, Pool, Search};
use crate::moment::Moment;

/// The queue of a pool.
#[derive(Debug, Default)]
pub(super) struct Queue {
    /// How many wait; changed under the lock, read without it.
    waiting: AtomicUsize,
    /// The time, as it was last known: who gives a place back has no clock.
    now: AtomicU64,
    line: Mutex<Line>,
}

#[derive(Debug, Default)]
struct Line {
    next: u64,
    waiters: VecDeque<Waiter>,
    /// What became of those whose turn came and who have not looked yet.
    served: HashMap<u64, Served>,
}

#[derive(Debug)]
struct Waiter {
    number: u64,
    pool: Arc<Pool>,
    search: Search,
    waker: Option<Waker>,
}

/// The search goes on from where it was, with a lease unless nothing is left to wait for.
pub type Served = (Search, Option<Lease>);

/// A place in the queue, given up when dropped.
#[derive(Debug)]
pub struct Turn {
    queue: Arc<Queue>,
    number: u64,
}

impl Pool {
    /// Waits for a backend with room, behind everyone who waits already. `None` when as many wait as may.
    pub fn wait(self: &Arc<Self>, search: Search, now: Moment) -> Option<Turn> {
        let queue = &self.queue;
        let mut line = queue.lock();
        if self.queue_timeout.is_zero() || line.waiters.len() >= self.rules.max_queued {
            return None;
        }
        queue.note_time(now);
        let number = line.next;
        line.next += 1;
        // Who has been served a backend that failed was first before.
        let again = search.has_failed();
        let waiter = Waiter { number, pool: Arc::clone(self), search, waker: None };
        if again {
            line.waiters.push_front(waiter);
        } else {
            line.waiters.push_back(waiter);
        }
        // Said before looking for room; who makes room looks here after that.
        queue.waiting.store(line.waiters.len(), Ordering::SeqCst);
        queue.serve(line, now);
        Some(Turn { queue: Arc::clone(queue), number })
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

    /// Serves from the front until there is nothing to give.
    fn serve(&self, mut line: MutexGuard<'_, Line>, now: Moment) {
        let mut wakers = Vec::new();
        let mut index = 0;
        let last = line.waiters.back().map(|waiter| Arc::clone(&waiter.pool));
        while let Some(waiter) = line.waiters.get_mut(index) {
            let lease = match waiter.pool.pick_past_queue(&mut waiter.search, now) {
                // Who has tried nothing would have taken anything. Those who tried some stand before it, and those behind
                // ask the same of the same pool, unless a new configuration came between them.
                Pick::Full
                    if !waiter.search.has_failed()
                        && last.as_ref().is_some_and(|last| Arc::ptr_eq(last, &waiter.pool)) =>
                {
                    break;
                }
                Pick::Full => {
                    index += 1;
                    continue;
                }
                Pick::Lease(lease) => Some(lease),
                Pick::Nothing => None,
            };
            if let Some(Waiter { number, search, waker, .. }) = line.waiters.remove(index) {
                line.served.insert(number, (search, lease));
                wakers.extend(waker);
            }
        }
        self.waiting.store(line.waiters.len(), Ordering::SeqCst);
        drop((line, last));
        wakers.into_iter().for_each(Waker::wake);
    }

    fn lock(&self) -> MutexGuard<'_, Line> {
        self.line.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Future for Turn {
    type Output = Served;

    fn poll(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<Served> {
        let mut line = self.queue.lock();
        if let Some(served) = line.served.remove(&self.number) {
            return Poll::Ready(served);
        }
        if let Some(waiter) = line.waiters.iter_mut().find(|waiter| waiter.number == self.number) {
            match &mut waiter.waker {
                Some(waker) => waker.clone_from(cx.waker()),
                empty => *empty = Some(cx.waker().clone()),
            }
        }
        Poll::Pending
    }
}

impl Drop for Turn {
    fn drop(&mut self) {
        let mut line = self.queue.lock();
        let place = line.waiters.iter().position(|waiter| waiter.number == self.number);
        let waiter = place.and_then(|place| line.waiters.remove(place));
        self.queue.waiting.store(line.waiters.len(), Ordering::SeqCst);
        let served = line.served.remove(&self.number);
        drop(line);
        // Not under the lock: a lease that nobody wants serves the next.
        drop((waiter, served));
    }
}
