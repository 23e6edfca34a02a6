//! One record for each connection, at its end, from a thread of its own.
//!
//! Nothing here ever makes a worker wait (traps O9): a record goes into a bounded queue or is dropped and counted.

mod line;
mod record;
mod writer;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
        mpsc::{Receiver, RecvTimeoutError, SyncSender, sync_channel},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

pub use line::{Line, read_line};
pub use record::{Record, Seconds, TlsDetails};

use self::writer::Writer;
use crate::config::{self, LogFormat};

/// Where workers leave their records. Clones are cheap and go to every worker.
#[derive(Debug, Clone)]
pub struct AccessLog {
    /// `None`: the log is off.
    queue: Option<SyncSender<Message>>,
    dropped: Arc<AtomicU64>,
}

/// Keeps the writer; dropped, it has the rest of the queue written and waits for that, at most two seconds.
#[derive(Debug)]
#[must_use = "without it the last records are lost"]
pub struct Guard(Option<Thread>);

/// A record, or nothing: look at `stopping`. Boxed, so that the empty queue is small.
type Message = Option<Box<Record>>;

#[derive(Debug)]
struct Thread {
    queue: SyncSender<Message>,
    stopping: Arc<AtomicBool>,
    /// Disconnected when the writer is done.
    done: Receiver<()>,
    handle: JoinHandle<()>,
}

/// Records that wait for the writer: a fifth of a second at 40,000 connections a second.
const QUEUE: usize = 8192;
/// What a stop waits for a destination that takes nothing.
const LAST_WORDS: Duration = Duration::from_secs(2);

impl AccessLog {
    /// Opens the destination and starts the writer. `dropped` counts the records nobody will read.
    pub fn start(
        destination: &config::AccessLog,
        format: LogFormat,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Self, Guard)> {
        match destination {
            config::AccessLog::Off => Ok((Self { queue: None, dropped }, Guard(None))),
            // A file of its own: std's stdout would cut our batches at lines.
            config::AccessLog::Stdout => {
                let stdout = io::stdout().as_fd().try_clone_to_owned()?;
                Self::start_to(File::from(stdout), format, dropped)
            }
            config::AccessLog::File(path) => Self::start_to(open(path)?, format, dropped),
        }
    }

    fn start_to<W: io::Write + Send + 'static>(
        output: W,
        format: LogFormat,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Self, Guard)> {
        let (queue, records) = sync_channel(QUEUE);
        let (finished, done) = sync_channel::<()>(0);
        let stopping = Arc::new(AtomicBool::new(false));
        let (told, counter) = (Arc::clone(&stopping), Arc::clone(&dropped));
        let handle = thread::Builder::new().name("access-log".to_owned()).spawn(move || {
            let _finished = finished;
            write_all(&records, Writer::new(output, format, counter), &told);
        })?;
        let log = Self { queue: Some(queue.clone()), dropped };
        Ok((log, Guard(Some(Thread { queue, stopping, done, handle }))))
    }

    /// Whether a record would go anywhere; without it there is no need to make one.
    pub fn is_on(&self) -> bool {
        self.queue.is_some()
    }

    /// Leaves a record for the writer, or drops and counts it. Never waits.
    pub fn write(&self, record: Record) {
        let Some(queue) = &self.queue else { return };
        if queue.try_send(Some(Box::new(record))).is_err() {
            self.dropped.fetch_add(1, Ordering::Relaxed);
        }
    }
}

/// Appends, so that rotation by renaming or copying works. Readable by the group: it names clients.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

/// The writer's life: a batch is whatever waits, and is written when nothing more does.
fn write_all<W: io::Write>(records: &Receiver<Message>, mut writer: Writer<W>, stopping: &AtomicBool) {
    loop {
        let message = if let Ok(message) = records.try_recv() {
            message
        } else {
            writer.flush();
            if stopping.load(Ordering::SeqCst) {
                break;
            }
            let Ok(message) = records.recv() else { break };
            message
        };
        if let Some(record) = message {
            writer.push(&record);
        }
    }
    writer.finish(records.try_iter().flatten().count());
}

impl Drop for Guard {
    fn drop(&mut self) {
        let Some(Thread { queue, stopping, done, handle }) = self.0.take() else { return };
        stopping.store(true, Ordering::SeqCst);
        // Only to wake it. A queue that is full wakes it too, and it looks at `stopping` when the queue is empty.
        let _ = queue.try_send(None);
        if done.recv_timeout(LAST_WORDS) == Err(RecvTimeoutError::Disconnected) {
            // An error is its panic, which was reported when it happened.
            let _ = handle.join();
        }
    }
}

#[cfg(test)]
mod tests;
