//! R8: both directions of a relay under random events, in any order, from a seed that a failure prints.
//!
//! The sockets are a model; the modes and the end of the whole are the product's. The model does what the paths do: a
//! source is read only while nothing is parked, an end of a source counts when everything before it was delivered, and
//! a sink that fails ends its direction at once.

use super::{
    End,
    end::{self, FlowEnd, Side},
    flow::{COPY_LENGTH, Flow, Mode, Step},
};
use crate::random::Random;

const SEEDS: u64 = 256;
const STEPS: usize = 3_000;

/// One direction: the product's state, and what a peer and a kernel would know.
#[derive(Default)]
struct Direction {
    flow: Flow,
    /// Of what is parked, how much is in a pipe.
    piped: u64,
    taken: u64,
    delivered: u64,
    lost: u64,
    /// Signs in a row, counted anew beside the product.
    full: u8,
    small: u8,
}

impl Direction {
    /// What waits for the sink.
    fn parked(&self) -> u64 {
        self.taken - self.delivered - self.lost
    }

    /// Takes from the source what fits one round, and delivers some of it.
    fn read(&mut self, random: &mut Random) {
        if self.flow.end.is_some() || self.flow.source_ended.is_some() || self.parked() > 0 {
            return;
        }
        let before = self.flow.mode;
        // Sizes around every threshold: 16 KiB, 32 KiB, 64 KiB.
        let bytes = match random.below(4) {
            0 => 1 + random.below(300),
            1 => (16 << 10) - 1 + random.below(3),
            2 => (32 << 10) - 1 + random.below(3),
            _ => COPY_LENGTH as u64,
        };
        let length = usize::try_from(bytes).unwrap();
        match before {
            Mode::Splice { .. } => {
                self.flow.note_spliced(length);
                self.piped = bytes;
            }
            Mode::Copy { .. } | Mode::CopyOnly => self.flow.note_copied(length),
        }
        self.judge_mode(before, bytes);
        self.taken += bytes;
        let sent = random.below(bytes + 1);
        self.deliver(if random.below(2) == 0 { bytes } else { sent });
    }

    /// A full buffer, or two signs in a row, and nothing else, change the mode; `CopyOnly` stays.
    fn judge_mode(&mut self, before: Mode, bytes: u64) {
        let (copying, splicing) = (matches!(before, Mode::Copy { .. }), matches!(before, Mode::Splice { .. }));
        self.full = if copying && bytes >= 32 << 10 { self.full + 1 } else { 0 };
        self.small = if splicing && bytes < 16 << 10 { self.small + 1 } else { 0 };
        let expected = match before {
            Mode::CopyOnly => Mode::CopyOnly,
            Mode::Copy { .. } if self.full == 2 || bytes >= COPY_LENGTH as u64 => Mode::Splice { small: 0 },
            Mode::Copy { .. } => Mode::Copy { bulk: self.full },
            Mode::Splice { .. } if self.small == 2 => Mode::Copy { bulk: 0 },
            Mode::Splice { .. } => Mode::Splice { small: self.small },
        };
        assert_eq!(self.flow.mode, expected, "after {bytes} bytes in {before:?}");
        if std::mem::discriminant(&expected) != std::mem::discriminant(&before) {
            (self.full, self.small) = (0, 0);
        }
    }

    fn deliver(&mut self, bytes: u64) {
        if self.flow.end.is_some() {
            return;
        }
        self.delivered += bytes.min(self.parked());
        self.piped = self.piped.saturating_sub(bytes);
        self.settle();
    }

    /// An end of the source is one of the direction as soon as nothing is parked.
    fn settle(&mut self) {
        if self.parked() == 0 && self.flow.end.is_none() {
            self.flow.end = self.flow.source_ended;
        }
    }

    fn source_ends(&mut self, end: FlowEnd) {
        if self.flow.end.is_none() && self.flow.source_ended.is_none() {
            assert_eq!(self.flow.source_ended(end), Step::Again, "what is parked goes first");
            self.settle();
        }
    }

    fn sink_fails(&mut self) {
        if self.flow.end.is_some() {
            return;
        }
        let Step::Ended(end) = self.flow.sink_failed() else { panic!("a sink that fails ends its direction") };
        assert!(!self.flow.has_parked(), "and keeps nothing");
        self.lost += self.parked();
        self.piped = 0;
        self.flow.end = Some(end);
    }

    /// The kernel cannot splice this source.
    fn splice_is_refused(&mut self) {
        if matches!(self.flow.mode, Mode::Splice { .. }) && self.flow.end.is_none() {
            self.flow.mode = Mode::CopyOnly;
            (self.full, self.small) = (0, 0);
        }
    }
}

/// A relay of a plain or a TLS client.
#[derive(Default)]
struct Relay {
    tls: bool,
    up: Direction,
    down: Direction,
    first: Option<Side>,
}

impl Relay {
    fn step(&mut self, random: &mut Random) {
        let side = if random.below(2) == 0 { Side::Client } else { Side::Backend };
        let tls_client = self.tls && side == Side::Client;
        let (this, other) = match side {
            Side::Client => (&mut self.up, &mut self.down),
            Side::Backend => (&mut self.down, &mut self.up),
        };
        match random.below(400) {
            0..=1 => this.source_ends(FlowEnd::Finished),
            2 => this.source_ends(FlowEnd::SourceFailed),
            3 => {
                // A write that learns of the reset first.
                other.sink_fails();
                this.source_ends(FlowEnd::SourceFailed);
            }
            4 => this.sink_fails(),
            5 if tls_client => this.source_ends(FlowEnd::SourceTruncated),
            6 if tls_client => this.source_ends(FlowEnd::SourceInvalid),
            7 => this.splice_is_refused(),
            8..150 => this.deliver(random.below(1 << 17)),
            _ => this.read(random),
        }
        for (direction, side) in [(&self.up, Side::Client), (&self.down, Side::Backend)] {
            if direction.flow.end == Some(FlowEnd::Finished) {
                self.first.get_or_insert(side);
            }
        }
    }

    /// What has to hold after every step; the end, if there is one.
    fn judge(&self) -> Option<End> {
        use FlowEnd::{Finished, SinkFailed, SourceFailed, SourceInvalid, SourceTruncated};
        let (up, down) = (self.up.flow.end, self.down.flow.end);
        for direction in [&self.up, &self.down] {
            let whole = direction.taken == direction.delivered;
            assert!(whole || matches!(direction.flow.end, None | Some(SinkFailed)), "an end before its bytes");
            assert!(direction.piped <= direction.parked(), "more in a pipe than was taken");
        }
        let end = end::of(up, down, self.first);
        match (up, down) {
            // Rule 10: what was received before a failure is still delivered.
            (None | Some(Finished | SinkFailed), None) | (None, Some(Finished | SinkFailed)) => {
                assert_eq!(end, None, "an end while something may be delivered: {up:?} {down:?}");
            }
            _ => assert!(end.is_some(), "no end: {up:?} {down:?}"),
        }
        let client_failed = up == Some(SourceFailed) || down == Some(SinkFailed);
        let backend_failed = down == Some(SourceFailed) || up == Some(SinkFailed);
        let justified = match end {
            None => true,
            Some(End::ClientClosed) => (up, down, self.first) == (Some(Finished), Some(Finished), Some(Side::Client)),
            Some(End::BackendClosed) => down == Some(Finished) && self.first == Some(Side::Backend),
            Some(End::ClientReset) => client_failed,
            Some(End::BackendReset) => backend_failed,
            Some(End::ClientTruncated) => up == Some(SourceTruncated),
            Some(End::TlsError) => up == Some(SourceInvalid),
            Some(other) => panic!("only a timer or a stop ends it so: {other:?}"),
        };
        assert!(justified, "{end:?} from {up:?} {down:?}, first {:?}", self.first);
        end
    }

    /// The second time nothing happens to what has ended.
    fn stays(&mut self, random: &mut Random) {
        let ends = (self.up.flow.end, self.down.flow.end);
        let before = end::of(ends.0, ends.1, self.first);
        for _ in 0..20 {
            for direction in [&mut self.up, &mut self.down].into_iter().filter(|direction| direction.flow.end.is_some())
            {
                direction.source_ends(FlowEnd::SourceFailed);
                direction.sink_fails();
                direction.read(random);
                direction.deliver(1);
            }
        }
        assert_eq!((self.up.flow.end, self.down.flow.end), ends);
        assert_eq!(end::of(ends.0, ends.1, self.first), before);
    }
}

/// Relays, one after the other; how they ended.
fn run(seed: u64) -> Vec<End> {
    println!("seed {seed}"); // the last one of a failure is the one
    let mut random = Random(seed);
    let (mut relay, mut ends) = (Relay::default(), Vec::new());
    for _ in 0..STEPS {
        relay.step(&mut random);
        if let Some(end) = relay.judge() {
            relay.stays(&mut random);
            ends.push(end);
            relay = Relay { tls: random.below(2) == 0, ..Relay::default() };
        }
    }
    ends
}

#[test]
fn r8_a_relay_ends_for_a_reason_whatever_the_order_of_events() {
    let ends: Vec<End> = (0..SEEDS).flat_map(run).collect();
    let wanted = [
        End::ClientClosed,
        End::BackendClosed,
        End::ClientReset,
        End::BackendReset,
        End::ClientTruncated,
        End::TlsError,
    ];
    for end in wanted {
        let count = ends.iter().filter(|other| **other == end).count();
        println!("{count} × {end:?}");
        assert!(count > 100, "{end:?} came {count} times");
    }
}
