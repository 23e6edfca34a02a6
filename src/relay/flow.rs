//! One direction of a relay: what it has parked, how it moves bytes, and how it ended.

use std::task::{Context, Poll};

use super::{Meter, Resources, end::FlowEnd};
use crate::{
    config::ZeroCopy,
    metrics::{Direction, RelayPath},
    sys::{pipe::Pipe, socket::Socket},
};

/// Rounds of one direction in one poll; then the other connections of the worker have their turn (traps R12).
pub(super) const ROUNDS: usize = 4;

/// Bytes of one copied read, and so the most that one direction parks.
pub(super) const COPY_LENGTH: usize = 64 << 10;

/// A copied read of this size or more is a sign of bulk; one that fills the buffer is proof.
const BULK: usize = 32 << 10;

/// A spliced fill below this size is a sign that the bulk is over.
const SMALL: usize = 16 << 10;

/// How many signs in a row change the mode.
const SIGNS: u8 = 2;

/// The worker's buffers: every read of every connection goes through them, one at a time.
#[derive(Debug)]
pub(super) struct Scratch {
    /// As it came from a socket.
    pub(super) raw: Box<[u8]>,
    /// Decrypted.
    pub(super) plain: Box<[u8]>,
}

/// One direction.
#[derive(Debug, Default)]
pub(super) struct Flow {
    pub(super) parked: Parked,
    pub(super) mode: Mode,
    /// The source has ended; what is parked is still to be delivered.
    pub(super) source_ended: Option<FlowEnd>,
    pub(super) end: Option<FlowEnd>,
}

/// What the sink would not take yet. While something is parked the source is not read.
#[derive(Debug, Default)]
pub(super) enum Parked {
    #[default]
    Nothing,
    Bytes {
        bytes: Box<[u8]>,
        sent: usize,
    },
    Pipe(Pipe),
}

/// How bytes are moved now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Mode {
    /// Through the scratch buffer; `bulk` large reads in a row.
    Copy { bulk: u8 },
    /// Through a pipe; `small` fills in a row.
    Splice { small: u8 },
    /// Through the scratch buffer for good: the kernel cannot splice this source.
    CopyOnly,
}

/// Where a direction begins and ends, and what it goes by.
#[derive(Debug)]
pub(super) struct Route<'a> {
    pub(super) direction: Direction,
    pub(super) source: &'a Socket,
    pub(super) sink: &'a Socket,
    pub(super) resources: &'a Resources,
    pub(super) meter: &'a Meter,
}

/// What one turn of a direction came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Step {
    /// Nothing more to do until a socket is ready; it will wake us.
    Waiting,
    /// More may be possible at once.
    Again,
    Ended(FlowEnd),
}

impl Flow {
    /// Moves bytes over a plain route until it would block, ends, or has had its share of this poll.
    pub(super) fn advance(&mut self, cx: &mut Context<'_>, route: &Route<'_>) -> Step {
        for _ in 0..ROUNDS {
            let held_a_pipe = matches!(self.parked, Parked::Pipe(_));
            let delivered = self.deliver_parked(cx, route.sink, |path, bytes| route.written(path, bytes));
            if held_a_pipe {
                route.resources.note_pipes();
            }
            match delivered {
                Step::Again => {}
                other => return other,
            }
            let step = match self.mode(route.resources.zero_copy) {
                Mode::Splice { .. } => self.splice_round(cx, route),
                Mode::Copy { .. } | Mode::CopyOnly => self.copy_round(cx, route),
            };
            match step {
                Step::Again => {}
                other => return other,
            }
        }
        self.after_its_share()
    }

    /// When this poll has had enough: last bytes that wait for the FIN behind them must not wait for the next one.
    pub(super) fn after_its_share(&self) -> Step {
        self.source_ended.filter(|_| !self.has_parked()).map_or(Step::Again, Step::Ended)
    }

    /// Gives the sink what is parked. `Again` means that nothing is left and that the source may have more.
    pub(super) fn deliver_parked(
        &mut self,
        cx: &mut Context<'_>,
        sink: &Socket,
        mut written: impl FnMut(RelayPath, usize),
    ) -> Step {
        loop {
            let (result, path) = match &mut self.parked {
                Parked::Nothing => return self.source_ended.map_or(Step::Again, Step::Ended),
                Parked::Bytes { bytes, sent } => {
                    let left = bytes.get(*sent..).unwrap_or_default();
                    if left.is_empty() {
                        self.parked = Parked::Nothing;
                        continue;
                    }
                    let result = sink.poll_send(cx, left);
                    if let Poll::Ready(Ok(n)) = result {
                        *sent += n;
                    }
                    (result, RelayPath::Copy)
                }
                Parked::Pipe(pipe) => {
                    if pipe.held() == 0 {
                        self.parked = Parked::Nothing;
                        continue;
                    }
                    (sink.poll_empty(cx, pipe), RelayPath::Splice)
                }
            };
            match result {
                Poll::Ready(Ok(bytes)) => written(path, bytes),
                Poll::Ready(Err(_)) => return self.sink_failed(),
                Poll::Pending => return Step::Waiting,
            }
        }
    }

    /// Whether something waits for the sink.
    pub(super) fn has_parked(&self) -> bool {
        match &self.parked {
            Parked::Nothing => false,
            Parked::Bytes { bytes, sent } => *sent < bytes.len(),
            Parked::Pipe(pipe) => pipe.held() > 0,
        }
    }

    /// The sink takes no more: what is parked is lost, and a pipe with it is closed (traps R4).
    pub(super) fn sink_failed(&mut self) -> Step {
        self.parked = Parked::Nothing;
        Step::Ended(FlowEnd::SinkFailed)
    }

    /// The source has no more. `Again`: what is parked has to go first.
    pub(super) fn source_ended(&mut self, end: FlowEnd) -> Step {
        self.source_ended = Some(end);
        Step::Again
    }

    /// Keeps `bytes` until the sink takes them.
    pub(super) fn park(&mut self, bytes: Box<[u8]>) {
        self.parked = Parked::Bytes { bytes, sent: 0 };
    }

    /// A copied read of `bytes` of at most [`COPY_LENGTH`].
    pub(super) fn note_copied(&mut self, bytes: usize) {
        if let Mode::Copy { bulk } = self.mode {
            self.mode = match bytes {
                COPY_LENGTH.. => Mode::Splice { small: 0 },
                BULK.. if bulk + 1 >= SIGNS => Mode::Splice { small: 0 },
                BULK.. => Mode::Copy { bulk: bulk + 1 },
                _ => Mode::Copy { bulk: 0 },
            };
        }
    }

    /// A spliced fill of `bytes`.
    pub(super) fn note_spliced(&mut self, bytes: usize) {
        if let Mode::Splice { small } = self.mode {
            self.mode = match (bytes < SMALL, small + 1 >= SIGNS) {
                (false, _) => Mode::Splice { small: 0 },
                (true, false) => Mode::Splice { small: small + 1 },
                (true, true) => Mode::Copy { bulk: 0 },
            };
        }
    }

    fn mode(&self, zero_copy: ZeroCopy) -> Mode {
        match (zero_copy, self.mode) {
            (ZeroCopy::Off, _) => Mode::CopyOnly,
            (ZeroCopy::Splice, Mode::Copy { .. }) => Mode::Splice { small: 0 },
            (_, mode) => mode,
        }
    }
}

impl Route<'_> {
    /// Counts bytes that the sink has taken.
    pub(super) fn written(&self, path: RelayPath, bytes: usize) {
        self.meter.written(self.resources, path, self.direction, bytes);
    }
}

impl Default for Mode {
    fn default() -> Self {
        Self::Copy { bulk: 0 }
    }
}

impl Scratch {
    pub(super) fn new() -> Self {
        const LENGTH: usize = 256 << 10;
        Self { raw: vec![0; LENGTH].into(), plain: vec![0; LENGTH].into() }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r13_a_full_read_or_two_large_ones_promote_and_two_small_fills_demote() {
        let mut flow = Flow::default();
        flow.note_copied(COPY_LENGTH);
        assert_eq!(flow.mode, Mode::Splice { small: 0 });
        let mut flow = Flow::default();
        flow.note_copied(BULK);
        flow.note_copied(200);
        flow.note_copied(COPY_LENGTH - 1);
        assert_eq!(flow.mode, Mode::Copy { bulk: 1 });
        flow.note_copied(BULK);
        assert_eq!(flow.mode, Mode::Splice { small: 0 });
        flow.note_spliced(200);
        flow.note_spliced(1 << 20);
        flow.note_spliced(200);
        assert_eq!(flow.mode, Mode::Splice { small: 1 });
        flow.note_spliced(200);
        assert_eq!(flow.mode, Mode::Copy { bulk: 0 });
    }

    #[test]
    fn zero_copy_off_never_splices_and_splice_begins_with_it() {
        let flow = Flow { mode: Mode::Splice { small: 0 }, ..Flow::default() };
        assert_eq!(flow.mode(ZeroCopy::Off), Mode::CopyOnly);
        assert_eq!(Flow::default().mode(ZeroCopy::Splice), Mode::Splice { small: 0 });
        assert_eq!(Flow::default().mode(ZeroCopy::Auto), Mode::Copy { bulk: 0 });
        let stuck = Flow { mode: Mode::CopyOnly, ..Flow::default() };
        assert_eq!(stuck.mode(ZeroCopy::Splice), Mode::CopyOnly);
    }
}
