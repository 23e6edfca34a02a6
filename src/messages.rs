//! The process's own messages, on stderr. Connections are told in the access log instead.
//!
//! Nothing here makes anybody wait (traps O9): a line goes into a spool or is lost and counted.

use std::{
    fs::File,
    io::{self, Write},
    os::fd::AsFd as _,
    panic,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    thread,
};

use tracing::{Subscriber, error, level_filters::LevelFilter, warn};
use tracing_subscriber::fmt::{MakeWriter, fmt};

use crate::{
    config::{LogFormat, LogLevel},
    metrics::count_panic,
    spool::{self, Spool},
};

/// Lines that wait for the writer. There are few: this is for a terminal that is held, or a journal that is stopped.
const QUEUE: usize = 1024;

/// Keeps the writer; dropped, it has the rest of the queue written.
pub type Guard = spool::Guard<Vec<u8>>;

/// Where whoever says something leaves it, each line at once.
#[derive(Debug)]
struct Lines(Spool<Vec<u8>>);

/// Sends `tracing` events of `level` and above to stderr, from now on and from every thread. Once per process.
pub fn init_messages(format: LogFormat, level: LogLevel) -> io::Result<Guard> {
    // A descriptor of its own: whoever panics must not wait for the lock of std's while the writer waits for a reader.
    let stderr = File::from(io::stderr().as_fd().try_clone_to_owned()?);
    let (subscriber, guard) = start(format, level, stderr)?;
    tracing::subscriber::set_global_default(subscriber).map_err(io::Error::other)?;
    Ok(guard)
}

/// Counts every panic of any thread from now on and tells it as a message, in the format of the others (traps R17). What it
/// ends is up to who catches it.
pub fn tell_panics() {
    panic::set_hook(Box::new(|panic| {
        count_panic();
        let (thread, reason) = (thread::current(), panic.payload_as_str().unwrap_or("unknown"));
        let (thread, place) = (thread.name().unwrap_or_default(), panic.location().map(ToString::to_string));
        error!(thread, place, reason, "a bug of sluicegate: a task has panicked, and it alone has ended");
    }));
}

/// Starts the writer, and gives who feeds it.
fn start(format: LogFormat, level: LogLevel, output: File) -> io::Result<(Box<dyn Subscriber + Send + Sync>, Guard)> {
    let (output, lost) = (Arc::new(output), Arc::new(AtomicU64::new(0)));
    let losses = Arc::clone(&lost);
    let (spool, guard) = Spool::<Vec<u8>>::start("messages", QUEUE, lost, move |lines| {
        while let Some(line) = lines.next(|| {}) {
            let is_written = spool::write(&mut &*output, &line) == line.len();
            let lost = losses.swap(0, Ordering::Relaxed) + u64::from(!is_written);
            if lost > 0 && is_written {
                // Written here and now, past the queue.
                let direct = subscriber(format, level, Arc::clone(&output));
                tracing::subscriber::with_default(direct, || warn!(lost, "messages were lost: stderr took none"));
            } else {
                losses.fetch_add(lost, Ordering::Relaxed);
            }
        }
    })?;
    Ok((subscriber(format, level, Arc::new(Lines(spool))), guard))
}

/// Takes a whole line with each write. Never waits.
impl Write for &Lines {
    fn write(&mut self, line: &[u8]) -> io::Result<usize> {
        self.0.leave(line.to_vec());
        Ok(line.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

/// Without colours anywhere, so that no file or journal ever holds escapes.
fn subscriber<W>(format: LogFormat, level: LogLevel, output: W) -> Box<dyn Subscriber + Send + Sync>
where
    W: for<'a> MakeWriter<'a> + Send + Sync + 'static,
{
    let level = match level {
        LogLevel::Error => LevelFilter::ERROR,
        LogLevel::Warn => LevelFilter::WARN,
        LogLevel::Info => LevelFilter::INFO,
        LogLevel::Debug => LevelFilter::DEBUG,
    };
    // A stderr that is closed is no reason to write to it about that.
    let builder = fmt().with_max_level(level).with_target(false).log_internal_errors(false).with_writer(output);
    match format {
        LogFormat::Json => {
            Box::new(builder.json().flatten_event(true).with_current_span(false).with_span_list(false).finish())
        }
        LogFormat::Text => Box::new(builder.with_ansi(false).finish()),
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{Read as _, pipe},
        os::fd::OwnedFd,
        sync::mpsc::sync_channel,
        time::Duration,
    };

    use serde_json::Value;

    use super::*;

    fn said(format: LogFormat, level: LogLevel) -> String {
        let (mut reader, writer) = pipe().unwrap();
        let (subscriber, guard) = start(format, level, File::from(OwnedFd::from(writer))).unwrap();
        tracing::subscriber::with_default(subscriber, || {
            tracing::debug!("quiet");
            tracing::warn!(file = "a\u{1b}[31m\nb", "certificate expires");
        });
        drop(guard);
        let mut text = String::new();
        reader.read_to_string(&mut text).unwrap();
        text
    }

    #[test]
    fn a_message_is_one_line_of_its_level_without_escapes() {
        let text = said(LogFormat::Text, LogLevel::Info);
        assert!(text.contains("WARN") && text.contains("certificate expires"), "{text}");
        assert_eq!((text.lines().count(), text.contains('\u{1b}')), (1, false), "{text:?}");
        let value: Value = serde_json::from_str(&said(LogFormat::Json, LogLevel::Info)).unwrap();
        assert_eq!(value["message"], "certificate expires");
        assert_eq!(value["level"], "WARN");
        assert_eq!(value.get("target"), None);
        assert_eq!(said(LogFormat::Text, LogLevel::Error), "");
        assert_eq!(said(LogFormat::Json, LogLevel::Debug).lines().count(), 2);
    }

    #[test]
    fn o9_a_stderr_that_takes_nothing_makes_nobody_wait_and_what_is_lost_is_told() {
        const SAID: u64 = 5_000;
        let (mut reader, writer) = pipe().unwrap();
        let (subscriber, guard) = start(LogFormat::Json, LogLevel::Info, File::from(OwnedFd::from(writer))).unwrap();
        let (sender, spoken) = sync_channel(1);
        let speaker = thread::spawn(move || {
            tracing::subscriber::with_default(subscriber, || {
                // More than the pipe and the queue hold.
                (0..SAID).for_each(|number| warn!(number, "backend is down"));
            });
            sender.send(()).unwrap();
        });
        // Nobody reads yet.
        assert_eq!(spoken.recv_timeout(Duration::from_mins(1)), Ok(()), "it waits for a reader");
        speaker.join().unwrap();
        let reading = thread::spawn(move || {
            let mut text = String::new();
            reader.read_to_string(&mut text).unwrap();
            text
        });
        drop(guard);
        let text = reading.join().unwrap();
        let lines: Vec<Value> = text.lines().map(|line| serde_json::from_str(line).unwrap()).collect();
        let lost: u64 = lines.iter().filter_map(|line| line["lost"].as_u64()).sum();
        let written = lines.iter().filter(|line| line["message"] == "backend is down").count() as u64;
        assert!(lost > 0, "{} lines", lines.len());
        assert_eq!(written + lost, SAID);
    }
}
