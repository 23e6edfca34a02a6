//! Deadlines of connections, on one coarse tick for each worker.
//!
//! A timer of the runtime costs a lock and, when it is due before the runtime's next wake-up, a write to the runtime's
//! own eventfd and a wake-up more: that was two of each for every short connection. A deadline here is a number in a
//! table of the worker. A tick looks through the table every [`TICK`]; while the table is empty nothing ticks.
//!
//! So the runtime of a worker has no timers at all, and its wake-ups do not look at the clock. The few tasks of a worker
//! that sleep do it here too, and then it ticks as often as they need.

use std::{
    cell::{Cell, RefCell},
    io,
    rc::Rc,
    task::{Context, Poll, Waker},
    time::Duration,
};

use tokio::sync::Notify;

use crate::sys::{
    clock::{self, Moment},
    timer::Timer,
};

/// How late a deadline may be noticed. Looking through ten thousand deadlines takes some ten microseconds.
pub const TICK: Duration = Duration::from_millis(25);

/// The deadlines of one worker.
#[derive(Debug)]
pub struct Alarms {
    table: RefCell<Table>,
    /// The table is no longer empty.
    set: Notify,
    /// Somebody has begun to sleep.
    hurry: Notify,
    /// When the clock was last read.
    now: Cell<Moment>,
}

/// One connection's deadline; it may be moved, and is forgotten when dropped.
#[derive(Debug)]
pub struct Alarm {
    owner: Rc<Alarms>,
    place: usize,
    due: Cell<Option<Moment>>,
}

/// What makes an alarm go off at once. It is good for as long as the alarm is set.
#[derive(Debug)]
pub struct Bell(usize);

#[derive(Debug, Default)]
struct Table {
    entries: Vec<Entry>,
    free: Vec<usize>,
    used: usize,
}

#[derive(Debug, Default)]
struct Entry {
    due: Option<Moment>,
    waker: Option<Waker>,
    /// Not a tick late.
    prompt: bool,
}

impl Default for Alarms {
    fn default() -> Self {
        Self { table: RefCell::default(), set: Notify::new(), hurry: Notify::new(), now: Cell::new(clock::coarse()) }
    }
}

impl Alarms {
    /// Ticks for as long as it is polled, or until `timer` fails.
    pub async fn tick(&self, timer: &Timer) -> io::Error {
        loop {
            if self.table.borrow().used == 0 {
                self.set.notified().await;
            }
            tokio::select! {
                biased;
                failed = timer.wait(self.until_next()) => if let Err(error) = failed { return error },
                () = self.hurry.notified() => {}
            }
            self.wake_due();
        }
    }

    /// Ready after this time, as exactly as the coarse clock is.
    pub async fn sleep(self: &Rc<Self>, time: Duration) {
        let alarm = self.alarm();
        let due = clock::coarse().after(time);
        std::future::poll_fn(|cx| {
            let polled = alarm.poll_at(cx, due);
            if polled.is_pending() {
                alarm.be_prompt();
            }
            polled
        })
        .await;
    }

    fn until_next(&self) -> Duration {
        // The coarse clock takes a few of these steps at once.
        const STEP: Duration = Duration::from_millis(1);
        let table = self.table.borrow();
        let prompt = table.entries.iter().filter(|entry| entry.prompt).filter_map(|entry| entry.due).min();
        prompt.map_or(TICK, |due| due.since(clock::coarse()).clamp(STEP, TICK))
    }

    /// An alarm that is not set yet.
    pub fn alarm(self: &Rc<Self>) -> Alarm {
        self.now.set(clock::coarse());
        let mut table = self.table.borrow_mut();
        table.used += 1;
        if table.used == 1 {
            self.set.notify_one();
        }
        let place = table.free.pop().unwrap_or_else(|| {
            table.entries.push(Entry::default());
            table.entries.len() - 1
        });
        Alarm { owner: Rc::clone(self), place, due: Cell::new(None) }
    }

    fn wake_due(&self) {
        let now = clock::coarse();
        self.now.set(now);
        for entry in &mut self.table.borrow_mut().entries {
            if entry.due.is_some_and(|due| due <= now) {
                entry.due = None;
                // Waking only queues the task, so nothing comes back to this table meanwhile.
                if let Some(waker) = &entry.waker {
                    waker.wake_by_ref();
                }
            }
        }
    }
}

impl Alarm {
    /// Ready from `due` on, at most a tick late. One task owns an alarm for life.
    pub fn poll_at(&self, cx: &Context<'_>, due: Moment) -> Poll<()> {
        let mut table = self.owner.table.borrow_mut();
        let Some(entry) = table.entries.get_mut(self.place) else { return Poll::Ready(()) };
        let over = if self.due.get() == Some(due) {
            // The tick has read the clock for everyone.
            entry.due.is_none()
        } else {
            entry.due = Some(due);
            entry.waker.get_or_insert_with(|| cx.waker().clone());
            self.due.set(Some(due));
            clock::coarse() >= due
        };
        if over {
            self.due.set(None);
            return Poll::Ready(());
        }
        Poll::Pending
    }

    fn be_prompt(&self) {
        if let Some(entry) = self.owner.table.borrow_mut().entries.get_mut(self.place)
            && !std::mem::replace(&mut entry.prompt, true)
        {
            self.owner.hurry.notify_one();
        }
    }

    /// One more for the same task.
    #[must_use]
    pub fn another(&self) -> Self {
        self.owner.alarm()
    }

    /// Ready after this time, as [`Alarms::sleep`]; the alarm itself is left as it is.
    pub async fn sleep(&self, time: Duration) {
        self.owner.sleep(time).await;
    }

    /// The time, at most a tick ago, without asking for it.
    pub fn now(&self) -> Moment {
        self.owner.now.get()
    }

    /// For others, who may end this alarm's wait.
    pub fn bell(&self) -> Bell {
        Bell(self.place)
    }

    /// Makes another alarm of this worker go off, whatever is left of its time. It has to be set.
    pub fn ring(&self, bell: &Bell) {
        if let Some(entry) = self.owner.table.borrow_mut().entries.get_mut(bell.0) {
            entry.due = None;
            if let Some(waker) = &entry.waker {
                waker.wake_by_ref();
            }
        }
    }

    /// `future`, or `None` if it takes longer than `limit`.
    pub async fn within<F: Future>(&self, limit: Duration, future: F) -> Option<F::Output> {
        let due = clock::coarse().after(limit);
        let mut future = std::pin::pin!(future);
        std::future::poll_fn(|cx| match future.as_mut().poll(cx) {
            Poll::Ready(output) => Poll::Ready(Some(output)),
            Poll::Pending => self.poll_at(cx, due).map(|()| None),
        })
        .await
    }
}

impl Drop for Alarm {
    fn drop(&mut self) {
        let mut table = self.owner.table.borrow_mut();
        if let Some(entry) = table.entries.get_mut(self.place) {
            *entry = Entry::default();
        }
        table.free.push(self.place);
        table.used -= 1;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a_deadline_ends_what_takes_longer_and_nothing_else() {
        let alarms = Rc::new(Alarms::default());
        let alarm = alarms.alarm();
        let limit = Duration::from_millis(120);
        let waiting = async {
            let begin = std::time::Instant::now();
            assert_eq!(alarm.within(Duration::from_secs(5), async { 7 }).await, Some(7));
            assert_eq!(alarm.within(limit, std::future::pending::<()>()).await, None);
            begin.elapsed()
        };
        let timer = Timer::new().unwrap();
        tokio::select! {
            error = alarms.tick(&timer) => panic!("{error}"),
            took = waiting => assert!((limit.mul_f32(0.9)..limit * 10).contains(&took), "{took:?}"),
        }
    }

    #[test]
    fn who_sleeps_beside_deadlines_wakes_in_time() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let (alarms, timer) = (Rc::new(Alarms::default()), Timer::new().unwrap());
            let alarm = alarms.alarm();
            let sleeping = async {
                let begin = std::time::Instant::now();
                for _ in 0..10 {
                    alarm.sleep(Duration::from_millis(2)).await;
                }
                begin.elapsed()
            };
            tokio::select! {
                error = alarms.tick(&timer) => panic!("{error}"),
                _ = alarm.within(Duration::from_secs(5), std::future::pending::<()>()) => panic!("too early"),
                took = sleeping => {
                    // On a tick each they would take 250 ms.
                    assert!((Duration::from_millis(5)..Duration::from_millis(200)).contains(&took), "{took:?}");
                }
            }
        });
    }

    #[test]
    fn places_are_used_again() {
        let alarms = Rc::new(Alarms::default());
        for _ in 0..100 {
            let _pair = (alarms.alarm(), alarms.alarm());
        }
        let table = alarms.table.borrow();
        assert_eq!((table.entries.len(), table.used), (2, 0));
    }
}
