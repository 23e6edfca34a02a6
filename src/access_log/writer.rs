//! Batches of whole lines, and an exact count of those that did not make it.

use std::{
    io::Write,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use super::record::Record;
use crate::{config::LogFormat, spool};

pub(super) struct Writer<W> {
    output: W,
    format: LogFormat,
    dropped: Arc<AtomicU64>,
    batch: Vec<u8>,
    /// Where each line of the batch ends.
    ends: Vec<usize>,
    /// The batch begins with the rest of a line whose beginning is written already.
    torn: bool,
}

/// A batch is written at this size even when more records wait.
const BATCH: usize = 64 * 1024;

impl<W: Write> Writer<W> {
    pub(super) fn new(output: W, format: LogFormat, dropped: Arc<AtomicU64>) -> Self {
        Self { output, format, dropped, batch: Vec::new(), ends: Vec::new(), torn: false }
    }

    pub(super) fn push(&mut self, record: &Record) {
        let start = self.batch.len();
        let written = match self.format {
            LogFormat::Json => record.write_json(&mut self.batch),
            LogFormat::Text => record.write_text(&mut self.batch),
        };
        if written.is_err() {
            self.batch.truncate(start);
            self.drop(1);
            return;
        }
        self.batch.push(b'\n');
        self.ends.push(self.batch.len());
        if self.batch.len() >= BATCH {
            self.flush();
        }
    }

    /// Writes the batch, or as much as goes; the lines that do not go are lost and counted. Only the line that is cut in
    /// two stays, for its second half: the next reader finds whole lines whatever happened.
    pub(super) fn flush(&mut self) {
        let written = spool::write(&mut self.output, &self.batch);
        if written == self.batch.len() {
            self.batch.clear();
            self.ends.clear();
            self.torn = false;
            return;
        }
        let whole = self.ends.partition_point(|end| *end <= written);
        let start = whole.checked_sub(1).and_then(|last| self.ends.get(last)).copied().unwrap_or(0);
        let torn = written > start || (whole == 0 && self.torn);
        let end = self.ends.get(whole).copied().filter(|_| torn).unwrap_or(written);
        self.drop(self.ends.len() - whole - usize::from(torn));
        self.batch.truncate(end);
        self.batch.drain(..written.min(end));
        self.ends.clear();
        if torn {
            self.ends.push(self.batch.len());
        }
        self.torn = torn;
    }

    /// The end: what cannot be written now is lost.
    pub(super) fn finish(mut self) {
        self.flush();
        self.drop(self.ends.len());
    }

    fn drop(&self, records: usize) {
        self.dropped.fetch_add(records as u64, Ordering::Relaxed);
    }
}
