//! One record for each connection, at its end, from a thread of its own.
//!
//! Nothing here ever makes a worker wait (traps O9): a record goes into a spool or is dropped and counted.

mod line;
mod record;
mod writer;

use std::{
    fs::{File, OpenOptions},
    io,
    os::{fd::AsFd, unix::fs::OpenOptionsExt},
    path::Path,
    sync::{Arc, atomic::AtomicU64},
};

pub use line::{Line, read_line};
pub use record::{Record, Seconds, TlsDetails};

use self::writer::Writer;
use crate::{
    config::{self, LogFormat},
    spool::{self, Spool},
};

/// Where workers leave their records. Clones are cheap and go to every worker.
///
/// Records are boxed, so that the empty queue is small.
#[derive(Debug, Clone)]
pub struct AccessLog(Spool<Box<Record>>);

/// Keeps the writer; dropped, it has the rest of the queue written.
pub type Guard = spool::Guard<Box<Record>>;

/// Records that wait for the writer: a fifth of a second at 40,000 connections a second.
const QUEUE: usize = 8192;

impl AccessLog {
    /// Opens the destination and starts the writer; `None`: the log is off. `dropped` counts the records nobody will read.
    pub fn start(
        destination: &config::AccessLog,
        format: LogFormat,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<Option<(Self, Guard)>> {
        let output = match destination {
            config::AccessLog::Off => return Ok(None),
            // A file of its own: std's stdout would cut our batches at lines.
            config::AccessLog::Stdout => File::from(io::stdout().as_fd().try_clone_to_owned()?),
            config::AccessLog::File(path) => open(path)?,
        };
        Self::start_to(output, format, dropped).map(Some)
    }

    fn start_to<W: io::Write + Send + 'static>(
        output: W,
        format: LogFormat,
        dropped: Arc<AtomicU64>,
    ) -> io::Result<(Self, Guard)> {
        let mut writer = Writer::new(output, format, Arc::clone(&dropped));
        let (spool, guard) = Spool::<Box<Record>>::start("access-log", QUEUE, dropped, move |records| {
            // A batch is whatever waits, and is written when nothing more does.
            while let Some(record) = records.next(|| writer.flush()) {
                writer.push(&record);
            }
            writer.finish();
        })?;
        Ok((Self(spool), guard))
    }

    /// Leaves a record for the writer, or drops and counts it. Never waits.
    pub fn write(&self, record: Record) {
        self.0.leave(Box::new(record));
    }
}

/// Appends, so that rotation by renaming or copying works. Readable by the group: it names clients.
fn open(path: &Path) -> io::Result<File> {
    OpenOptions::new().append(true).create(true).mode(0o640).open(path)
}

#[cfg(test)]
mod tests;
