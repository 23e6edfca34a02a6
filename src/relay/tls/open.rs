//! Client to backend: records are opened in place, and one writev sends the plaintext of many.

use std::{
    io::IoSlice,
    mem,
    ops::Range,
    task::{Context, Poll},
};

use rustls::ContentType;

use super::{CLOSE_NOTIFY, KEY_UPDATE, SHARE, TlsClient};
use crate::{
    config::TlsVersion,
    metrics::{Direction, RelayPath},
    relay::{
        Meter, Resources,
        end::FlowEnd,
        flow::{Flow, Step},
    },
    sys::socket::Socket,
    tls::record::{Opener, RecordError},
};

/// Ciphertext of one read from the client: while it fills them, the same for a backend that is behind (traps R14), and
/// before.
const LARGE_READ: usize = 224 << 10;
const MEDIUM_READ: usize = 112 << 10;
pub(super) const SMALL_READ: usize = 32 << 10;

/// Slices of plaintext that one writev sends.
const SLICES: usize = 32;

/// Key updates in a burst, and bytes that earn one more (traps T13).
pub(super) const UPDATE_BURST: u32 = 32;
const BYTES_PER_UPDATE: usize = 1 << 20;

/// Alert descriptions (RFC 8446, section 6).
const UNEXPECTED_MESSAGE: u8 = 10;
const BAD_RECORD_MAC: u8 = 20;
const RECORD_OVERFLOW: u8 = 22;
const USER_CANCELED: u8 = 90;

/// Where plaintext goes and is counted.
struct Up<'a> {
    backend: &'a Socket,
    resources: &'a Resources,
    meter: &'a Meter,
}

/// What one record asks of the direction it came in.
enum Message {
    Data(Range<usize>),
    /// Nothing to deliver.
    Nothing,
    Ended(FlowEnd),
}

/// Opened records.
struct Batch {
    /// Of the wire, headers included.
    length: usize,
    /// How many hold data.
    records: usize,
    /// Where their plaintext is.
    data: [Range<usize>; SLICES],
}

impl TlsClient {
    /// Client to backend: open.
    pub(in crate::relay) fn advance_up(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        backend: &Socket,
        resources: &Resources,
        meter: &Meter,
    ) -> Step {
        let mut moved = 0;
        while moved < SHARE {
            match flow.deliver_parked(cx, backend, |_, bytes| {
                meter.written(resources, RelayPath::Tls, Direction::ClientToBackend, bytes);
            }) {
                Step::Again => {}
                other => return other,
            }
            let mut scratch = resources.scratch.borrow_mut();
            let Poll::Ready(filled) = self.receive(cx, flow, backend, &mut scratch.raw) else { return Step::Waiting };
            moved += filled.max(1);
            if flow.source_ended.is_some() {
                continue;
            }
            let wire = scratch.raw.get_mut(..filled).unwrap_or_default();
            match self.open_all(cx, &Up { backend, resources, meter }, flow, wire) {
                Step::Again => {}
                other => return other,
            }
        }
        flow.after_its_share()
    }

    /// Puts what is parked and one read behind it into `raw`; says how many bytes are there.
    fn receive(&mut self, cx: &mut Context<'_>, flow: &mut Flow, backend: &Socket, raw: &mut [u8]) -> Poll<usize> {
        let parked = self.incoming.len();
        if let Some(begin) = raw.get_mut(..parked) {
            begin.copy_from_slice(&self.incoming);
        }
        if mem::take(&mut self.unread) {
            return Poll::Ready(parked);
        }
        if self.read_length > MEDIUM_READ && self.socket.may_be_readable() && backend.has_unsent() {
            self.read_length = MEDIUM_READ;
        }
        let free = raw.get_mut(parked..parked + self.read_length).unwrap_or_default();
        let result = self.socket.poll_recv(cx, free);
        match result {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(received)) if received > 0 => {
                self.read_length = if received == free.len() { LARGE_READ } else { self.read_length };
                return Poll::Ready(parked + received);
            }
            Poll::Ready(Ok(_)) => flow.source_ended = Some(FlowEnd::SourceTruncated),
            Poll::Ready(Err(_)) => flow.source_ended = Some(FlowEnd::SourceFailed),
        }
        Poll::Ready(0)
    }

    /// Opens the whole records in the first `filled` bytes and sends their plaintext; keeps what is left for later.
    fn open_all(&mut self, cx: &mut Context<'_>, route: &Up<'_>, flow: &mut Flow, wire: &mut [u8]) -> Step {
        let mut done = 0;
        loop {
            let rest = wire.get_mut(done..).unwrap_or_default();
            let batch = self.open_batch(cx, flow, rest);
            let plain = wire.get(done..).unwrap_or_default();
            done += batch.length;
            let slices: [IoSlice<'_>; SLICES] =
                batch.data.map(|range| IoSlice::new(plain.get(range).unwrap_or_default()));
            let step = self.deliver(cx, route, flow, slices.get(..batch.records).unwrap_or_default());
            let full = batch.records == SLICES;
            if full && step == Step::Again && !flow.has_parked() {
                continue;
            }
            // What is left may be whole records that wait for the backend, or the beginning of one.
            self.unread = full;
            self.keep(wire.get(done..).unwrap_or_default());
            return step;
        }
    }

    /// Opens records until there are no more, or as many as one writev takes.
    fn open_batch(&mut self, cx: &mut Context<'_>, flow: &mut Flow, wire: &mut [u8]) -> Batch {
        let mut batch = Batch { length: 0, records: 0, data: std::array::from_fn(|_| 0..0) };
        while batch.records < SLICES && flow.source_ended.is_none() {
            let rest = wire.get_mut(batch.length..).unwrap_or_default();
            let opened = match self.opener.length(rest) {
                Ok(Some(length)) => match rest.get_mut(..length) {
                    Some(record) => self.open(record).map(|message| (length, message)),
                    None => break,
                },
                Ok(None) => break,
                Err(error) => Err(error),
            };
            match opened {
                Ok((length, message)) => batch.take(length, message, flow),
                Err(error) => {
                    self.queue_alert(alert_for(error));
                    let _ = self.poll_flush(cx);
                    flow.source_ended = Some(FlowEnd::SourceInvalid);
                }
            }
        }
        batch
    }

    fn deliver(&mut self, cx: &mut Context<'_>, route: &Up<'_>, flow: &mut Flow, slices: &[IoSlice<'_>]) -> Step {
        let &Up { backend, resources, meter } = route;
        let length: usize = slices.iter().map(|slice| slice.len()).sum();
        if length == 0 {
            return Step::Again;
        }
        self.earn_updates(length);
        meter.read(Direction::ClientToBackend, length);
        let result = match slices {
            [one] if flow.source_ended == Some(FlowEnd::Finished) => backend.poll_send_last(cx, one),
            [one] => backend.poll_send(cx, one),
            many => backend.poll_send_vectored(cx, many, length),
        };
        let (sent, step) = match result {
            Poll::Ready(Ok(sent)) => (sent, Step::Again),
            Poll::Ready(Err(_)) => return flow.sink_failed(),
            Poll::Pending => (0, Step::Waiting),
        };
        meter.written(resources, RelayPath::Tls, Direction::ClientToBackend, sent);
        if sent < length {
            // A backend that falls behind is read for in smaller pieces.
            self.read_length = SMALL_READ;
            let left = slices.iter().flat_map(|slice| slice.iter().copied()).skip(sent);
            flow.park(left.collect());
        }
        step
    }

    /// Keeps the beginning of a record. Nothing is owned when there is none.
    fn keep(&mut self, rest: &[u8]) {
        if rest.is_empty() {
            self.incoming = Vec::new();
        } else {
            self.incoming.clear();
            self.incoming.extend_from_slice(rest);
        }
    }

    /// Opens one record and does what it says.
    fn open(&mut self, record: &mut [u8]) -> Result<Message, RecordError> {
        let opened = self.opener.open(record)?;
        let plain = record.get(opened.plain.clone()).unwrap_or_default();
        match (opened.content, plain) {
            (ContentType::ApplicationData, []) | (ContentType::Alert, &[_, USER_CANCELED]) => Ok(Message::Nothing),
            (ContentType::ApplicationData, _) => Ok(Message::Data(opened.plain)),
            (ContentType::Alert, &[_, CLOSE_NOTIFY]) => Ok(Message::Ended(FlowEnd::Finished)),
            (ContentType::Alert, &[_, _]) => Ok(Message::Ended(FlowEnd::SourceFailed)),
            (ContentType::Handshake, &[KEY_UPDATE, 0, 0, 1, wanted @ 0..=1]) if self.version == TlsVersion::V1_3 => {
                self.key_update(wanted == 1)
            }
            // Renegotiation too: nobody needs it, and it has been a door before (RFC 9325, section 3.5).
            _ => Err(RecordError::Unexpected),
        }
    }

    /// The client has changed its key, and may want us to (RFC 8446, section 4.6.3).
    fn key_update(&mut self, wanted: bool) -> Result<Message, RecordError> {
        self.updates_left = self.updates_left.checked_sub(1).ok_or(RecordError::Unexpected)?;
        let (sequence, secrets) = self.keys.update_rx_secret().map_err(|_| RecordError::Unexpected)?;
        self.opener = Opener::new(self.version, &secrets, sequence).ok_or(RecordError::Unexpected)?;
        if wanted {
            self.update_own_keys()?;
        }
        Ok(Message::Nothing)
    }

    fn earn_updates(&mut self, bytes: usize) {
        self.update_credit += bytes;
        while self.update_credit >= BYTES_PER_UPDATE {
            self.update_credit -= BYTES_PER_UPDATE;
            self.updates_left = (self.updates_left + 1).min(UPDATE_BURST);
        }
    }
}

impl Batch {
    fn take(&mut self, length: usize, message: Message, flow: &mut Flow) {
        match message {
            Message::Data(plain) => {
                if let Some(data) = self.data.get_mut(self.records) {
                    *data = self.length + plain.start..self.length + plain.end;
                    self.records += 1;
                }
            }
            Message::Nothing => {}
            Message::Ended(end) => flow.source_ended = Some(end),
        }
        self.length += length;
    }
}

fn alert_for(error: RecordError) -> u8 {
    match error {
        RecordError::Unexpected | RecordError::Exhausted => UNEXPECTED_MESSAGE,
        RecordError::TooLong => RECORD_OVERFLOW,
        RecordError::Forged => BAD_RECORD_MAC,
    }
}
