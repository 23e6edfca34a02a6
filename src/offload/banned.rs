//! Who is banned, as the kernel is told.

use std::net::IpAddr;

use crate::{bans::Bans, moment::Moment};

/// Ranges that are given to the kernel at most: with each change all of them are given again, in half a second.
pub const MOST: usize = 50_000;

/// Each ban ends in the kernel so many seconds before it ends in user space: the kernel counts from when it has been told,
/// and who may come again must not be kept out.
const EARLY: u64 = 5;

/// The kernel is told of no longer ones, 20 days in seconds: the program may count milliseconds in 31 bits.
const LONGEST: u64 = 20 * 86_400;

/// A range, and for how many seconds; `None` is until it is taken away.
pub type Timed<A> = (A, A, Option<u64>);

/// Ranges that do not overlap. The kernel ends them itself.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Banned {
    /// As [`crate::bans::Snapshot::change`].
    pub change: u64,
    pub v4: Vec<Timed<u32>>,
    pub v6: Vec<Timed<u128>>,
    /// Ranges that found no room.
    pub left_out: usize,
}

impl Banned {
    /// Those that last longest, if there are too many.
    pub fn of(bans: &Bans, now: Moment) -> Self {
        let snapshot = bans.snapshot(now);
        let mut banned = Self { change: snapshot.change, ..Self::default() };
        let seconds = |end: Option<Moment>| match end {
            None => Some(None),
            Some(end) => {
                let left = end.since(now).as_secs().checked_sub(EARLY).filter(|left| *left > 0)?;
                Some(Some(left.min(LONGEST)))
            }
        };
        let ranges = snapshot.ranges.into_iter();
        let mut ranges: Vec<_> = ranges.filter_map(|(first, last, end)| Some((first, last, seconds(end)?))).collect();
        ranges.sort_by_key(|(.., left)| std::cmp::Reverse(left.unwrap_or(u64::MAX)));
        banned.left_out = ranges.len().saturating_sub(MOST);
        ranges.truncate(MOST);
        for range in ranges {
            match range {
                (IpAddr::V4(first), IpAddr::V4(last), left) => banned.v4.push((first.to_bits(), last.to_bits(), left)),
                (IpAddr::V6(first), IpAddr::V6(last), left) => banned.v6.push((first.to_bits(), last.to_bits(), left)),
                // Both ends of a range are of one family.
                _ => {}
            }
        }
        banned
    }

    pub fn ranges(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}
