//! The connections of one worker, and how they are told to end or asked who they are: without a lock or a channel for each
//! of them.

pub mod fade;
pub mod inquiry;

use std::{
    cell::{Cell, RefCell},
    rc::Rc,
    task::{Context, Poll, Waker},
    time::{Duration, Instant},
};

use crate::backend::Id;
use inquiry::{Answers, Inquiry};

/// How long the connections of a worker have to answer. All of them are awake, so it takes no longer than a turn of each.
const ANSWER: Duration = Duration::from_secs(1);

/// One worker's connections, and its switch for all of them.
#[derive(Debug, Default)]
pub struct Drain {
    on: Cell<bool>,
    /// How often somebody was told something. Who has seen the last time need not look again.
    told: Cell<u32>,
    /// How often something was asked.
    asked: Cell<u32>,
    inquiry: RefCell<Option<Rc<Inquiry>>>,
    table: RefCell<Table>,
}

/// A connection's place in the table.
#[derive(Debug)]
pub struct Watcher {
    drain: Rc<Drain>,
    place: Cell<Option<u32>>,
    seen: Cell<u32>,
    answered: Cell<u32>,
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
    /// The operator ended it.
    Killed,
}

/// Places of connections; free ones are reused, so the table is as long as the most connections ever were.
#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<u32>,
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
        Watcher {
            drain: Rc::clone(self),
            place: Cell::new(None),
            seen: Cell::new(0),
            answered: Cell::new(self.asked.get()),
            listens: Cell::new(false),
        }
    }

    /// Whether everyone was told to end.
    pub fn is_triggered(&self) -> bool {
        self.on.get()
    }

    /// Connections that nobody told to end.
    pub fn staying(&self) -> usize {
        self.table.borrow().entries.iter().filter(|entry| entry.stays()).count()
    }

    /// Ends all but `keep` of those that nobody told to end.
    pub fn thin_out(&self, keep: usize) {
        let mut left = keep;
        let surplus = |entry: &Entry| {
            let stays = entry.stays();
            let kept = stays && left > 0;
            left -= usize::from(kept);
            stays && !kept
        };
        self.end(surplus, Reason::Drained);
    }

    /// Puts a question to every connection and waits until all have answered.
    pub async fn ask(&self, inquiry: Inquiry) -> Answers {
        let inquiry = Rc::new(inquiry);
        self.asked.set(self.asked.get().wrapping_add(1));
        self.inquiry.replace(Some(Rc::clone(&inquiry)));
        let asked = self.wake_all();
        let begin = Instant::now();
        while inquiry.answered() < asked && begin.elapsed() < ANSWER {
            tokio::task::yield_now().await;
        }
        self.inquiry.replace(None);
        inquiry.take_answers()
    }

    /// How many there were to wake.
    fn wake_all(&self) -> usize {
        let table = self.table.borrow();
        let wakers = table.entries.iter().filter_map(|entry| entry.waker.as_ref());
        wakers.inspect(|waker| waker.wake_by_ref()).count()
    }

    /// Waking only queues a task, so nothing comes back to the table meanwhile.
    fn end(&self, mut chosen: impl FnMut(&Entry) -> bool, reason: Reason) {
        self.told.set(self.told.get().wrapping_add(1));
        for entry in self.table.borrow_mut().entries.iter_mut().filter(|entry| chosen(entry)) {
            entry.ended.get_or_insert(reason);
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
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

    /// What this connection is asked and has not answered yet.
    pub fn inquiry(&self) -> Option<Rc<Inquiry>> {
        let asked = self.drain.asked.get();
        if self.answered.get() == asked {
            return None;
        }
        self.answered.set(asked);
        self.drain.inquiry.borrow().clone()
    }

    /// Ends this connection.
    pub fn end(&self, reason: Reason) {
        self.drain.told.set(self.drain.told.get().wrapping_add(1));
        self.change(|entry| {
            entry.ended.get_or_insert(reason);
        });
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
        table.entries.get(self.place.get()? as usize)?.ended
    }

    /// Changes what is known of it. The first time it gets its place.
    fn change(&self, change: impl FnOnce(&mut Entry)) {
        let mut table = self.drain.table.borrow_mut();
        let place = self.place.get().unwrap_or_else(|| table.occupy());
        self.place.set(Some(place));
        if let Some(entry) = table.entries.get_mut(place as usize) {
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

impl Entry {
    fn stays(&self) -> bool {
        self.waker.is_some() && self.ended.is_none()
    }
}

impl Table {
    fn occupy(&mut self) -> u32 {
        self.free.pop().unwrap_or_else(|| {
            self.entries.push(Entry::default());
            // Descriptors run out long before.
            u32::try_from(self.entries.len() - 1).unwrap_or(u32::MAX)
        })
    }

    fn leave(&mut self, place: u32) {
        if let Some(entry) = self.entries.get_mut(place as usize) {
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

    #[tokio::test(flavor = "current_thread")]
    async fn l8_all_but_some_are_told_to_end() {
        let drain = Rc::new(Drain::default());
        let watchers = [(); 10].map(|()| drain.watcher());
        let ended =
            |watcher: &Watcher| watcher.poll_ended(&Context::from_waker(Waker::noop())) == Some(Reason::Drained);
        assert_eq!(watchers.iter().filter(|watcher| ended(watcher)).count(), 0);
        assert_eq!(drain.staying(), 10);
        for keep in [10, 7, 7, 9, 0] {
            drain.thin_out(keep);
            assert_eq!(drain.staying(), keep.min(drain.staying()));
        }
        assert_eq!(watchers.iter().filter(|watcher| ended(watcher)).count(), 10);
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
