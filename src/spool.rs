//! What a thread of its own writes down, so that nobody else waits for a destination (traps O9).
//!
//! An entry goes into a bounded queue or is dropped and counted. At the end what is in the queue is written, as far as that
//! goes within two seconds.

use std::{
    io,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

/// What the end waits for a destination that takes nothing.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// Between tries at a destination that somebody made non-blocking.
const RETRY: Duration = Duration::from_millis(10);

/// Where entries are left for the writer. Clones are cheap.
#[derive(Debug)]
pub struct Spool<T> {
    queue: SyncSender<Message<T>>,
    dropped: Arc<AtomicU64>,
}

/// What the writer takes entries from.
#[derive(Debug)]
pub struct Entries<T> {
    queue: Receiver<Message<T>>,
    stopping: Arc<AtomicBool>,
}

/// Keeps the writer; dropped, it has the rest of the queue written and waits for that, at most two seconds.
#[derive(Debug)]
#[must_use = "without it the last entries are lost"]
pub struct Guard<T> {
    queue: SyncSender<Message<T>>,
    stopping: Arc<AtomicBool>,
    /// Disconnected when the writer is done.
    done: Receiver<()>,
    thread: Option<JoinHandle<()>>,
}

/// An entry, or nothing: look at `stopping`.
type Message<T> = Option<T>;

impl<T: Send + 'static> Spool<T> {
    /// Starts the writer as the thread `name`: it is done when `write` is, which ought to take every entry. At most `room` of
    /// them wait. `dropped` counts those that nobody takes.
    pub fn start(
        name: &str,
        room: usize,
        dropped: Arc<AtomicU64>,
        write: impl FnOnce(&Entries<T>) + Send + 'static,
    ) -> io::Result<(Self, Guard<T>)> {
        let (queue, entries) = sync_channel(room);
        let (finished, done) = sync_channel::<()>(0);
        let stopping = Arc::new(AtomicBool::new(false));
        let (entries, late) = (Entries { queue: entries, stopping: Arc::clone(&stopping) }, Arc::clone(&dropped));
        let thread = thread::Builder::new().name(name.to_owned()).spawn(move || {
            let _finished = finished;
            write(&entries);
            late.fetch_add(entries.queue.try_iter().flatten().count() as u64, Ordering::Relaxed);
        })?;
        let guard = Guard { queue: queue.clone(), stopping, done, thread: Some(thread) };
        Ok((Self { queue, dropped }, guard))
    }
}

impl<T> Spool<T> {
    /// Leaves an entry for the writer, or drops and counts it. Never waits.
    pub fn leave(&self, entry: T) {
        if self.queue.try_send(Some(entry)).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

impl<T> Clone for Spool<T> {
    fn clone(&self) -> Self {
        Self { queue: self.queue.clone(), dropped: Arc::clone(&self.dropped) }
    }
}

impl<T> Entries<T> {
    /// The next entry; `None` when there will be none, and all that were left before the end began have been taken. `rest` is
    /// called each time that nothing waits.
    pub fn next(&self, mut rest: impl FnMut()) -> Option<T> {
        loop {
            // Looked at before the queue: what was left before the end began is found there.
            let is_stopping = self.stopping.load(Ordering::SeqCst);
            let message = match self.queue.try_recv() {
                Ok(message) => message,
                Err(_) if is_stopping => return None,
                Err(_) => {
                    rest();
                    self.queue.recv().ok()?
                }
            };
            if message.is_some() {
                return message;
            }
        }
    }
}

impl<T> Guard<T> {
    /// Has the writer end when it has taken what waits.
    fn stop(&self) {
        self.stopping.store(true, Ordering::SeqCst);
        // Only to wake it. A queue that is full wakes it too, and it looks at `stopping` when the queue is empty.
        let _ = self.queue.try_send(None);
    }
}

impl<T> Drop for Guard<T> {
    fn drop(&mut self) {
        self.stop();
        if self.done.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Disconnected) {
            // An error is its panic, which was reported when it happened.
            let _ = self.thread.take().map(JoinHandle::join);
        }
    }
}

/// As many of `bytes` as `output` takes before it fails.
pub fn write(output: &mut impl io::Write, bytes: &[u8]) -> usize {
    let mut written = 0;
    while let Some(rest) = bytes.get(written..).filter(|rest| !rest.is_empty()) {
        match output.write(rest) {
            Ok(0) => break,
            Ok(count) => written += count,
            Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => thread::sleep(RETRY),
            Err(_) => break,
        }
    }
    written
}

#[cfg(test)]
mod tests {
    use std::{
        sync::mpsc::{TrySendError, channel},
        time::Instant,
    };

    use super::*;

    #[test]
    fn o9_whoever_leaves_an_entry_never_waits_and_each_is_taken_or_counted() {
        const LEFT: u64 = 1_000;
        let (dropped, (go, gone)) = (Arc::new(AtomicU64::new(0)), channel());
        let (told, taken) = channel();
        let (spool, guard) = Spool::start("test", 10, Arc::clone(&dropped), move |entries| {
            // Takes nothing for a while.
            gone.recv().unwrap();
            while let Some(entry) = entries.next(|| {}) {
                told.send(entry).unwrap();
            }
        })
        .unwrap();
        (0..LEFT).for_each(|number| spool.clone().leave(number));
        assert_eq!(dropped.load(Ordering::Relaxed), LEFT - 10);
        go.send(()).unwrap();
        drop(guard);
        assert_eq!(taken.iter().collect::<Vec<_>>(), (0..10).collect::<Vec<_>>());
        spool.leave(0);
        assert_eq!(dropped.load(Ordering::Relaxed), LEFT - 10 + 1, "after the end nothing is taken");
    }

    /// It used to look at the queue first: an entry that came between the two looks was lost without being counted.
    #[test]
    fn o9_what_is_left_before_the_end_is_taken_even_if_the_writer_has_just_found_nothing() {
        let (queue, entries) = sync_channel(10);
        let (stopping, dropped) = (Arc::new(AtomicBool::new(false)), Arc::new(AtomicU64::new(0)));
        let entries = Entries { queue: entries, stopping: Arc::clone(&stopping) };
        let (finished, done) = sync_channel::<()>(0);
        let guard = Guard { queue: queue.clone(), stopping, done, thread: None };
        let spool = Spool { queue, dropped };
        let mut rests = 0;
        let mut next = || {
            entries.next(|| {
                rests += 1;
                spool.leave("last words");
                guard.stop();
            })
        };
        assert_eq!((next(), next()), (Some("last words"), None));
        assert_eq!(rests, 1, "whoever is to end does not rest");
        drop(finished);
    }

    #[test]
    fn o9_the_end_does_not_wait_for_ever_and_what_nobody_took_is_counted() {
        let (dropped, (go, gone)) = (Arc::new(AtomicU64::new(0)), channel::<()>());
        let (spool, guard) = Spool::start("test", 10, Arc::clone(&dropped), move |_| {
            let _ = gone.recv();
        })
        .unwrap();
        (0..10).for_each(|number| spool.leave(number));
        let begun = Instant::now();
        drop(guard);
        assert!((LAST_WORDS..LAST_WORDS * 10).contains(&begun.elapsed()));
        drop(go);
        // The writer's end of the queue goes with its thread.
        while spool.queue.try_send(None) != Err(TrySendError::Disconnected(None)) {
            thread::yield_now();
        }
        assert_eq!(dropped.load(Ordering::Relaxed), 10);
    }
}
