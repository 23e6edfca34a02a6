//! The connections of one worker, and how they are told to end: without a lock or a channel for each of them.

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
};

use crate::backend::Id;

/// One worker's connections, and its switch for all of them.
#[derive(Debug, Default)]
pub struct Drain {
    on: Cell<bool>,
    /// How often somebody was told something. Who has seen the last time need not look again.
    told: Cell<u64>,
    table: RefCell<Table>,
}

/// A connection's place in the table.
#[derive(Debug)]
pub struct Watcher {
    drain: Rc<Drain>,
    place: Cell<Option<usize>>,
    seen: Cell<u64>,
    /// Its waker is in the table.
    listens: Cell<bool>,
}

/// Why a connection has to end.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// The process stops.
    Drained,
    /// Its backend went down.
    BackendDown,
}

/// Places of connections; free ones are reused, so the table is as long as the most connections ever were.
#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<usize>,
}

/// What is known of one connection.
#[derive(Debug, Default)]
struct Entry {
    waker: Option<Waker>,
    /// Where it is relayed to.
    backend: Option<Id>,
    ended: Option<Reason>,
}

impl Drain {
    /// Throws the switch: every connection ends, and each that comes later.
    pub fn trigger(&self) {
        self.on.set(true);
        self.end(|_| true, Reason::Drained);
    }

    /// Ends the connections that are relayed to this backend now.
    pub fn end_backend(&self, backend: Id) {
        self.end(|entry| entry.backend == Some(backend), Reason::BackendDown);
    }

    /// A watcher that is not yet listening.
    pub fn watcher(self: &Rc<Self>) -> Watcher {
        Watcher { drain: Rc::clone(self), place: Cell::new(None), seen: Cell::new(0), listens: Cell::new(false) }
    }

    fn end(&self, chosen: impl Fn(&Entry) -> bool, reason: Reason) {
        self.told.set(self.told.get() + 1);
        let mut table = self.table.borrow_mut();
        let chosen = table.entries.iter_mut().filter(|entry| chosen(entry)).filter_map(|entry| {
            entry.ended.get_or_insert(reason);
            entry.waker.take()
        });
        let wakers: Vec<Waker> = chosen.collect();
        drop(table);
        wakers.into_iter().for_each(Waker::wake);
    }
}

impl Watcher {
    /// Why this task has to end, if it has to; otherwise it is woken when that changes. A watcher belongs to one task for
    /// life.
    pub fn poll_ended(&self, cx: &Context<'_>) -> Option<Reason> {
        let told = self.drain.told.get();
        if self.seen.get() != told {
            if let Some(reason) = self.look() {
                return Some(reason);
            }
            self.seen.set(told);
        }
        if !self.listens.replace(true) {
            self.change(|entry| entry.waker = Some(cx.waker().clone()));
        }
        None
    }

    /// Notes where this connection is relayed to from now on.
    pub fn serves(&self, backend: Option<Id>) {
        self.change(|entry| entry.backend = backend);
    }

    /// `future`, or why it had to end before it was done.
    pub async fn unless_ended<F: Future>(&self, future: F) -> Result<F::Output, Reason> {
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match self.poll_ended(cx) {
            Some(reason) => Poll::Ready(Err(reason)),
            None => future.as_mut().poll(cx).map(Ok),
        })
        .await
    }

    fn look(&self) -> Option<Reason> {
        if self.drain.on.get() {
            return Some(Reason::Drained);
        }
        let table = self.drain.table.borrow();
        table.entries.get(self.place.get()?)?.ended
    }

    /// Changes what is known of it. The first time it gets its place.
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut table = self.drain.table.borrow_mut();
        let place = self.place.get().unwrap_or_else(|| table.occupy());
        self.place.set(Some(place));
        if let Some(entry) = table.entries.get_mut(place) {
            change(entry);
        }
    }
}

impl Drop for Watcher {
    fn drop(&mut self) {
        if let Some(place) = self.place.get() {
            self.drain.table.borrow_mut().leave(place);
        }
    }
}

impl Table {
    fn occupy(&mut self) -> usize {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            self.entries.len() - 1
        })
    }

    fn leave(&mut self, place: usize) {
        if let Some(entry) = self.entries.get_mut(place) {
            *entry = Entry::default();
            self.free.push(place);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        backend::{Backend, Health},
        config,
        metrics::PerWorker,
    };

    #[tokio::test(flavor = "current_thread")]
    async fn a_trigger_ends_what_waits_and_what_comes_later() {
        let drain = Rc::new(Drain::default());
        let watcher = drain.watcher();
        let waiting = watcher.unless_ended(std::future::pending::<()>());
        let (ended, ()) = tokio::join!(waiting, async { drain.trigger() });
        assert_eq!(ended, Err(Reason::Drained));
        assert_eq!(drain.watcher().unless_ended(std::future::pending::<()>()).await, Err(Reason::Drained));
    }

    #[tokio::test(flavor = "current_thread")]
    async fn places_are_used_again() {
        let drain = Rc::new(Drain::default());
        for _ in 0..100 {
            let watcher = drain.watcher();
            assert_eq!(watcher.unless_ended(async { 7 }).await, Ok(7));
        }
        assert_eq!(drain.table.borrow().entries.len(), 1);
    }

    fn id() -> Id {
        let config = config::Backend {
            name: "b".to_owned(),
            address: ([127, 0, 0, 1], 80).into(),
            weight: 1,
            role: config::Role::Active,
            max_connections: None,
        };
        Backend::new(&config, Health::Up, std::sync::Arc::new(PerWorker::new(1))).id
    }

    #[tokio::test(flavor = "current_thread")]
    async fn b8_only_the_connections_of_the_backend_end_and_those_that_come_later_stay() {
        let drain = Rc::new(Drain::default());
        let (down, other) = (id(), id());
        let [first, second, third] = [(); 3].map(|()| drain.watcher());
        let wait = async |watcher: &Watcher, backend| {
            watcher.serves(Some(backend));
            let ends = watcher.unless_ended(std::future::pending::<()>());
            tokio::time::timeout(std::time::Duration::from_millis(50), ends).await.ok()
        };
        let (one, two, ()) = tokio::join!(wait(&first, down), wait(&second, other), async { drain.end_backend(down) });
        assert_eq!((one, two), (Some(Err(Reason::BackendDown)), None));
        assert_eq!(wait(&third, down).await, None, "it was dialled after that");
        drop((first, second, third));
        assert_eq!(wait(&drain.watcher(), down).await, None, "a place keeps nothing of the one before");
        assert_eq!(drain.table.borrow().entries.len(), 3);
    }
}
