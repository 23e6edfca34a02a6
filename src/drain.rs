//! Telling the connections of one worker to end, without a lock or a channel for each of them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

/// One worker's switch, thrown once.
#[derive(Debug, Default)]
pub struct Drain {
    on: Cell<bool>,
    watchers: RefCell<Watchers>,
}

/// A connection that will be woken when the switch is thrown.
#[derive(Debug)]
pub struct Watcher {
    drain: Rc<Drain>,
    place: Cell<Option<usize>>,
}

/// Wakers by place; free places are reused, so the table is as long as the most connections ever were.
#[derive(Debug, Default)]
struct Watchers {
    wakers: Vec<Option<Waker>>,
    free: Vec<usize>,
}

impl Drain {
    /// Throws the switch and wakes everyone who watches it.
    pub fn trigger(&self) {
        self.on.set(true);
        let wakers: Vec<Waker> = self.watchers.borrow_mut().wakers.iter_mut().filter_map(Option::take).collect();
        wakers.into_iter().for_each(Waker::wake);
    }

    /// Whether the switch was thrown.
    pub fn is_on(&self) -> bool {
        self.on.get()
    }

    /// A watcher that is not yet listening.
    pub fn watcher(self: &Rc<Self>) -> Watcher {
        Watcher { drain: Rc::clone(self), place: Cell::new(None) }
    }
}

impl Watcher {
    /// Whether the switch was thrown; otherwise this task is woken when it is. A watcher belongs to one task for life.
    pub fn poll_on(&self, cx: &Context<'_>) -> bool {
        if self.drain.is_on() {
            return true;
        }
        if self.place.get().is_none() {
            let mut watchers = self.drain.watchers.borrow_mut();
            self.place.set(Some(watchers.insert(cx.waker().clone())));
        }
        false
    }

    /// `future`, or `None` as soon as the switch is thrown.
    pub async fn unless_on<F: Future>(&self, future: F) -> Option<F::Output> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| {
            if self.poll_on(cx) {
                return Poll::Ready(None);
            }
            future.as_mut().poll(cx).map(Some)
        })
        .await
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(place) = self.place.get() {
            self.drain.watchers.borrow_mut().remove(place);
        }
    }
}

impl Watchers {
    fn insert(&mut self, waker: Waker) -> usize {
        let Some(place) = self.free.pop() else {
            self.wakers.push(Some(waker));
            return self.wakers.len() - 1;
        };
        if let Some(free) = self.wakers.get_mut(place) {
            *free = Some(waker);
        }
        place
    }

    fn remove(&mut self, place: usize) {
        if let Some(taken) = self.wakers.get_mut(place) {
            *taken = None;
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_trigger_ends_what_waits_and_what_comes_later() {
        let drain = Rc::new(Drain::default());
        let watcher = drain.watcher();
        let waiting = watcher.unless_on(std::future::pending::<()>());
        let (ended, ()) = tokio::join!(waiting, async { drain.trigger() });
        assert_eq!(ended, None);
        assert_eq!(drain.watcher().unless_on(std::future::pending::<()>()).await, None);
    }

    #[tokio::test(flavor = "current_thread")]
    async fn places_are_used_again() {
        let drain = Rc::new(Drain::default());
        for _ in 0..100 {
            let watcher = drain.watcher();
            assert_eq!(watcher.unless_on(async { 7 }).await, Some(7));
        }
        assert_eq!(drain.watchers.borrow().wakers.len(), 1);
    }
}
