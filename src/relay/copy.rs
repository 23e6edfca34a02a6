//! The copy path: one read into the worker's scratch buffer, one write out of it.

use std::task::{Context, Poll};

use super::{
    end::FlowEnd,
    flow::{COPY_LENGTH, Flow, Route, Step},
};
use crate::metrics::RelayPath;

impl Flow {
    /// Reads once and writes it on; what the sink does not take is parked.
    pub(super) fn copy_round(&mut self, cx: &mut Context<'_>, route: &Route<'_>) -> Step {
        let mut scratch = route.resources.scratch.borrow_mut();
        let Some(buffer) = scratch.raw.get_mut(..COPY_LENGTH) else { return Step::Waiting };
        let received = match route.source.poll_recv(cx, buffer) {
            Poll::Pending => return Step::Waiting,
            Poll::Ready(Ok(0)) => return self.source_ended(FlowEnd::Finished),
            Poll::Ready(Err(_)) => return self.source_ended(FlowEnd::SourceFailed),
            Poll::Ready(Ok(received)) => received,
        };
        route.meter.read(route.direction, received);
        self.note_copied(received);
        let is_last = received < COPY_LENGTH && route.source.ends_here();
        if is_last {
            self.source_ended = Some(FlowEnd::Finished);
        }
        let bytes = buffer.get(..received).unwrap_or_default();
        let sent = if is_last { route.sink.poll_send_last(cx, bytes) } else { route.sink.poll_send(cx, bytes) };
        match sent {
            Poll::Ready(Ok(sent)) => {
                route.written(RelayPath::Copy, sent);
                if sent < received {
                    self.park(bytes.get(sent..).unwrap_or_default().into());
                }
                Step::Again
            }
            Poll::Ready(Err(_)) => self.sink_failed(),
            Poll::Pending => {
                self.park(bytes.into());
                Step::Waiting
            }
        }
    }
}
