//! Backend to client: one readv puts bytes into slots that leave room for header and tag; the slots are sealed where they
//! are and sent as one run.

use std::{
    io::{self, IoSlice, IoSliceMut},
    mem,
    task::{Context, Poll},
};

use rustls::ContentType;

use super::{CLOSE_NOTIFY, SHARE, TlsClient, WARNING};
use crate::{
    config::TlsVersion,
    metrics::{Direction, RelayPath},
    relay::{
        Meter, Resources,
        end::FlowEnd,
        flow::{Flow, Step},
    },
    sys::socket::Socket,
    tls::record::{Layout, MAX_PLAIN},
};

/// Records of one batch: one while exchanges are small, more when reads fill them.
const MOST_SLOTS: usize = 15;

/// Records of one batch for a client that is behind: when it stops reading we hold no more than this (traps R14).
const FEW_SLOTS: usize = 7;

impl TlsClient {
    /// Backend to client: seal.
    pub(in crate::relay) fn advance_down(
        &mut self,
        cx: &mut Context<'_>,
        flow: &mut Flow,
        backend: &Socket,
        resources: &Resources,
        meter: &Meter,
    ) -> Step {
        let mut moved = 0;
        while moved < SHARE {
            match self.poll_flush(cx) {
                Poll::Ready(Ok(())) => {
                    let sent = mem::take(&mut self.in_flight);
                    if sent > 0 {
                        meter.written(resources, RelayPath::Tls, Direction::BackendToClient, sent);
                    }
                }
                Poll::Ready(Err(_)) => return flow.sink_failed(),
                Poll::Pending => return Step::Waiting,
            }
            if let Some(end) = flow.source_ended {
                return Step::Ended(end);
            }
            let mut scratch = resources.scratch.borrow_mut();
            match self.read_slots(cx, backend, &mut scratch.plain) {
                Poll::Pending => return Step::Waiting,
                Poll::Ready(Ok(0)) => {
                    self.send_close_notify();
                    let _ = flow.source_ended(FlowEnd::Finished);
                }
                Poll::Ready(Err(_)) => {
                    let _ = flow.source_ended(FlowEnd::SourceFailed);
                }
                Poll::Ready(Ok(received)) => {
                    moved += received;
                    meter.read(Direction::BackendToClient, received);
                    let is_last = received < MAX_PLAIN && backend.ends_here();
                    if is_last {
                        flow.source_ended = Some(FlowEnd::Finished);
                    }
                    match self.seal_and_send(cx, &mut scratch.plain, received, is_last) {
                        Ok(true) => meter.written(resources, RelayPath::Tls, Direction::BackendToClient, received),
                        Ok(false) => self.in_flight = received,
                        Err(()) => return flow.sink_failed(),
                    }
                }
            }
        }
        if self.wants_write() { Step::Again } else { flow.after_its_share() }
    }

    /// Reads from the backend into slots with room for headers and tags. One slot is a plain recv.
    fn read_slots(&mut self, cx: &mut Context<'_>, backend: &Socket, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        let layout = self.sealer.layout();
        if self.slots > FEW_SLOTS && backend.may_be_readable() && self.socket.has_unsent() {
            self.slots = FEW_SLOTS;
        }
        let room = self.slots * MAX_PLAIN;
        let result = if self.slots == 1 {
            let slot = buffer.get_mut(layout.before..layout.before + MAX_PLAIN).unwrap_or_default();
            backend.poll_recv(cx, slot)
        } else {
            let mut slots: [IoSliceMut<'_>; MOST_SLOTS] = std::array::from_fn(|_| IoSliceMut::new(&mut []));
            let chunks = buffer.chunks_exact_mut(layout.before + MAX_PLAIN + layout.behind);
            for (slot, chunk) in slots.iter_mut().zip(chunks).take(self.slots) {
                let plain = chunk.get_mut(layout.before..layout.before + MAX_PLAIN).unwrap_or_default();
                *slot = IoSliceMut::new(plain);
            }
            backend.poll_recv_vectored(cx, slots.get_mut(..self.slots).unwrap_or_default(), room)
        };
        if let Poll::Ready(Ok(received)) = result {
            // A read that fills its slots says that more waits; one that needs a single slot, that the bulk is over.
            self.slots = match received {
                _ if received == room => MOST_SLOTS,
                _ if received <= MAX_PLAIN => 1,
                _ => self.slots,
            };
        }
        result
    }

    /// Seals `received` bytes that lie in slots, and sends them; behind the last ones goes the alert that says so.
    /// `Ok(false)`: some records wait. The slots follow each other without a gap, so the records do too.
    fn seal_and_send(
        &mut self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        received: usize,
        is_last: bool,
    ) -> Result<bool, ()> {
        if self.sealer.is_worn() && self.version == TlsVersion::V1_3 {
            self.update_own_keys().map_err(drop)?;
        }
        let Layout { before, behind } = self.sealer.layout();
        let (mut left, mut end) = (received, 0);
        for slot in buffer.chunks_mut(before + MAX_PLAIN + behind) {
            let plain = left.min(MAX_PLAIN);
            let record = slot.get_mut(..before + plain + behind).ok_or(())?;
            self.sealer.seal(ContentType::ApplicationData, record).map_err(drop)?;
            end += record.len();
            left -= plain;
            if left == 0 {
                break;
            }
        }
        if is_last {
            let close_notify = [WARNING, CLOSE_NOTIFY];
            end +=
                self.seal_message(ContentType::Alert, &close_notify, buffer.get_mut(end..).ok_or(())?).map_err(drop)?;
        }
        let records = buffer.get(..end).ok_or(())?;
        // A key update that was queued just now goes before.
        let first = mem::take(&mut self.outgoing);
        let result = match (&first[..], is_last) {
            ([], true) => self.socket.poll_send_last(cx, records),
            ([], false) => self.socket.poll_send(cx, records),
            (first, _) => {
                let both = [IoSlice::new(first), IoSlice::new(records)];
                self.socket.poll_send_vectored(cx, &both, first.len() + end)
            }
        };
        let sent = match result {
            Poll::Ready(Ok(sent)) => sent,
            Poll::Ready(Err(_)) => return Err(()),
            Poll::Pending => 0,
        };
        if sent == first.len() + end {
            return Ok(true);
        }
        self.sent = 0;
        self.outgoing = match first.get(sent..) {
            Some(rest) => [rest, records].concat(),
            None => records.get(sent - first.len()..).unwrap_or_default().into(),
        };
        Ok(false)
    }
}
