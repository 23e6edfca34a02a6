//! The TLS path: the client's side is encrypted, the backend's is not.
//!
//! After the handshake the socket and the rustls connection are driven directly: one read of up to a whole batch, all
//! its records decrypted, one write; and one read of up to a batch of plaintext, all of it encrypted, its records sent
//! by one writev. A slow reader never makes us hold more than one batch (design: data path, rule 3).

use std::{
    io::{self, IoSlice, Read, Write},
    task::{Context, Poll},
};

use rustls::ServerConnection;

use super::{
    Meter, Resources,
    end::FlowEnd,
    flow::{COPY_LENGTH, Flow, ROUNDS, Scratch, Step},
};
use crate::{
    metrics::{Direction, RelayPath},
    sys::socket::Socket,
};

/// Plaintext of one batch towards a client that keeps up; and towards one that has shown not to.
const LARGE_BATCH: usize = 256 << 10;
const SMALL_BATCH: usize = 64 << 10;

/// Records sent by one call; the kernel takes 1,024 at most, and a batch has sixteen.
const SLICES: usize = 64;

/// A client behind TLS, after the handshake.
#[derive(Debug)]
pub struct RustlsClient {
    socket: Socket,
    tls: ServerConnection,
    batch: usize,
    /// Plaintext that was encrypted and is not yet all sent.
    in_flight: usize,
}

impl RustlsClient {
    /// Takes over a connection whose handshake is complete.
    pub fn new(socket: Socket, mut tls: ServerConnection) -> Self {
        // What waits is bounded by the batch, because nothing is encrypted while something waits.
        tls.set_buffer_limit(None);
        Self { socket, tls, batch: SMALL_BATCH, in_flight: 0 }
    }

    pub(super) fn socket(&self) -> &Socket {
        &self.socket
    }

    /// Whether records wait for the socket.
    pub(super) fn wants_write(&self) -> bool {
        self.tls.wants_write()
    }

    pub(super) fn into_socket(self) -> Socket {
        self.socket
    }

    /// Client to backend: decrypt.
    pub(super) fn advance_up(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        backend: &Socket,
        resources: &Resources,
        meter: &Meter,
    ) -> Step {
        for _ in 0..ROUNDS {
            match flow.deliver_parked(cx, backend, |_, bytes| {
                meter.written(resources, RelayPath::Tls, Direction::ClientToBackend, bytes);
            }) {
                Step::Again => {}
                other => return other,
            }
            let mut scratch = resources.scratch.borrow_mut();
            let plain = match self.receive(cx, flow, &mut scratch) {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(length) => scratch.plain.get(..length).unwrap_or_default(),
            };
            meter.read(Direction::ClientToBackend, plain.len());
            if plain.is_empty() {
                continue;
            }
            match backend.poll_send(cx, plain) {
                Poll::Ready(Ok(sent)) => {
                    meter.written(resources, RelayPath::Tls, Direction::ClientToBackend, sent);
                    if sent < plain.len() {
                        flow.park(plain.get(sent..).unwrap_or_default().into());
                    }
                }
                Poll::Ready(Err(_)) => return flow.sink_failed(),
                Poll::Pending => {
                    flow.park(plain.into());
                    return Step::Waiting;
                }
            }
        }
        Step::Again
    }

    /// Backend to client: encrypt.
    pub(super) fn advance_down(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        backend: &Socket,
        resources: &Resources,
        meter: &Meter,
    ) -> Step {
        for _ in 0..ROUNDS {
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    let sent = std::mem::take(&mut self.in_flight);
                    if sent > 0 {
                        meter.written(resources, RelayPath::Tls, Direction::BackendToClient, sent);
                    }
                }
                Poll::Ready(Err(_)) => return flow.sink_failed(),
                Poll::Pending => {
                    self.batch = SMALL_BATCH;
                    return Step::Waiting;
                }
            }
            if let Some(end) = flow.source_ended {
                return Step::Ended(end);
            }
            let mut scratch = resources.scratch.borrow_mut();
            let Some(buffer) = scratch.raw.get_mut(..self.batch) else { return Step::Waiting };
            match backend.poll_recv(cx, buffer) {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(Ok(0)) => {
                    self.send_close_notify();
                    let _ = flow.source_ended(FlowEnd::Finished);
                }
                Poll::Ready(Err(_)) => {
                    let _ = flow.source_ended(FlowEnd::SourceFailed);
                }
                Poll::Ready(Ok(received)) => {
                    if received == self.batch {
                        self.batch = LARGE_BATCH;
                    }
                    let plain = buffer.get(..received).unwrap_or_default();
                    if self.tls.writer().write_all(plain).is_err() {
                        return flow.sink_failed();
                    }
                    meter.read(Direction::BackendToClient, received);
                    self.in_flight = received;
                }
            }
        }
        Step::Again
    }

    /// Sends what TLS has ready; ready when nothing is left. Partial progress shows in the kernel's queue, which the timer
    /// asks.
    pub(super) fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        while self.tls.wants_write() {
            let mut writer = ToSocket { socket: &self.socket, cx };
            match self.tls.write_tls(&mut writer) {
                Ok(_) => {}
                Err(error) if error.kind() == io::ErrorKind::WouldBlock => return Poll::Pending,
                Err(error) => return Poll::Ready(Err(error)),
            }
        }
        Poll::Ready(Ok(()))
    }

    /// Queues the alert that says "the end, and no truncation".
    pub(super) fn send_close_notify(&mut self) {
        self.tls.send_close_notify();
    }

    /// One read from the client, decrypted into `scratch.plain`; the end of the stream is noted in `flow`.
    fn receive(&mut self, cx: &mut Context<'_>, flow: &mut Flow, scratch: &mut Scratch) -> Poll<usize> {
        let Scratch { raw, plain } = scratch;
        // What came together with the end of the handshake is already inside.
        let early = self.take_plain(flow, plain, 0);
        if early > 0 || flow.source_ended.is_some() {
            return Poll::Ready(early);
        }
        let Some(buffer) = raw.get_mut(..COPY_LENGTH) else { return Poll::Pending };
        let received = match self.socket.poll_recv(cx, buffer) {
            Poll::Pending => return Poll::Pending,
            Poll::Ready(Ok(received)) if received > 0 => received,
            Poll::Ready(ended) => {
                let end = if ended.is_ok() { FlowEnd::SourceTruncated } else { FlowEnd::SourceFailed };
                flow.source_ended = Some(end);
                return Poll::Ready(0);
            }
        };
        let mut wire = buffer.get(..received).unwrap_or_default();
        let mut length = 0;
        while !wire.is_empty() && flow.source_ended.is_none() {
            if self.tls.read_tls(&mut wire).is_err() || self.tls.process_new_packets().is_err() {
                flow.source_ended = Some(FlowEnd::SourceInvalid);
            }
            length = self.take_plain(flow, plain, length);
        }
        // An answer to a key update or an alert; the other direction flushes the rest.
        let _ = self.poll_flush(cx);
        Poll::Ready(length)
    }

    /// Moves what is decrypted behind the first `length` bytes of `plain`.
    fn take_plain(&mut self, flow: &mut Flow, plain: &mut [u8], mut length: usize) -> usize {
        while let Some(free) = plain.get_mut(length..).filter(|free| !free.is_empty()) {
            match self.tls.reader().read(free) {
                Ok(0) => {
                    flow.source_ended.get_or_insert(FlowEnd::Finished);
                    break;
                }
                Ok(read) => length += read,
                Err(_) => break,
            }
        }
        length
    }
}

/// Lets rustls write to the socket.
struct ToSocket<'a, 'b> {
    socket: &'a Socket,
    cx: &'a mut Context<'b>,
}

impl Write for ToSocket<'_, '_> {
    fn write(&mut self, buffer: &[u8]) -> io::Result<usize> {
        would_block(self.socket.poll_send(self.cx, buffer))
    }

    fn write_vectored(&mut self, buffers: &[IoSlice<'_>]) -> io::Result<usize> {
        let buffers = buffers.get(..SLICES).unwrap_or(buffers);
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        would_block(self.socket.poll_send_vectored(self.cx, buffers, length))
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

fn would_block<T>(poll: Poll<io::Result<T>>) -> io::Result<T> {
    match poll {
        Poll::Ready(result) => result,
        Poll::Pending => Err(io::ErrorKind::WouldBlock.into()),
    }
}
