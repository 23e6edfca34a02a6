//! The zero-copy path: splice(2) from the source into a borrowed pipe and out of it into the sink.
//!
//! On entry the pipe is empty, so "would block" can only mean the source (rule 2); it is emptied before it is filled
//! again. The last word belongs to `recv`, which alone can tell the end, or an urgent mark, from "nothing now" (rules 3, 9).

use std::task::{Context, Poll};

use super::{
    end::FlowEnd,
    flow::{Flow, Mode, Parked, Route, Step},
};
use crate::{
    metrics::Fallback,
    sys::{
        pipe::{NoPipe, Pipe},
        socket::Fill,
    },
};

impl Flow {
    /// Fills a pipe once and empties it; what the sink does not take stays in the pipe, parked.
    pub(super) fn splice_round(&mut self, cx: &mut Context<'_>, route: &Route<'_>) -> Step {
        let resources = route.resources;
        let mut pipe = match resources.pipes.borrow() {
            Ok(pipe) => pipe,
            Err(reason) => {
                self.mode = Mode::Copy { bulk: 0 };
                resources.note_fallback(match reason {
                    NoPipe::Cap | NoPipe::Resources => Fallback::NoPipe,
                    NoPipe::Small => Fallback::SmallPipe,
                });
                return self.copy_round(cx, route);
            }
        };
        let step = match route.source.poll_fill(cx, &mut pipe) {
            Poll::Pending => Step::Waiting,
            Poll::Ready(Ok(Fill::Bytes(bytes))) => {
                route.meter.read(route.direction, bytes);
                self.note_spliced(bytes);
                return self.empty(cx, pipe, route);
            }
            Poll::Ready(Ok(Fill::Unsure)) => self.copy_round(cx, route),
            Poll::Ready(Ok(Fill::Unsupported)) => {
                self.mode = Mode::CopyOnly;
                resources.note_fallback(Fallback::Einval);
                self.copy_round(cx, route)
            }
            Poll::Ready(Ok(Fill::NoMemory)) => {
                resources.note_fallback(Fallback::NoMemory);
                self.copy_round(cx, route)
            }
            Poll::Ready(Err(_)) => self.source_ended(FlowEnd::SourceFailed),
        };
        drop(pipe);
        resources.note_pipes();
        step
    }

    fn empty(&mut self, cx: &mut Context<'_>, pipe: Pipe, route: &Route<'_>) -> Step {
        self.parked = Parked::Pipe(pipe);
        let step = self.deliver_parked(cx, route.sink, |path, bytes| route.written(path, bytes));
        route.resources.note_pipes();
        step
    }
}
