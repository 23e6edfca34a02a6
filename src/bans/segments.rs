//! Bans as one search sees them: the whole address space as disjoint ranges, each with the moment when its last ban ends.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::{address::canonical_ip, cidr::Cidr, moment::Moment};

/// Immutable; at most two ranges for each ban.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Segments {
    v4: Ranges,
    v6: Ranges,
}

/// In the order of `start`; each ends before the next.
#[derive(Debug, Default, PartialEq, Eq)]
struct Ranges(Vec<Range>);

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Range {
    start: u128,
    end: End,
}

/// Until when a range is banned.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
enum End {
    /// It is not.
    NotBanned,
    At(Moment),
    Never,
}

/// A network that the sweep is inside of.
struct Open {
    last: u128,
    end: End,
}

impl Segments {
    /// From networks in their order, each once, with the end of its ban; `None` is never.
    pub fn new(bans: impl Iterator<Item = (Cidr, Option<Moment>)>) -> Self {
        let (mut v4, mut v6) = (Sweep::default(), Sweep::default());
        for (network, end) in bans {
            let end = end.map_or(End::Never, End::At);
            match (network.network(), network.last()) {
                (IpAddr::V4(first), IpAddr::V4(last)) => v4.add(first.to_bits().into(), last.to_bits().into(), end),
                (IpAddr::V6(first), IpAddr::V6(last)) => v6.add(first.to_bits(), last.to_bits(), end),
                // Both ends of a network are of one family.
                _ => {}
            }
        }
        Self { v4: v4.finish(), v6: v6.finish() }
    }

    /// Whether an address is banned. The clock is only asked where a ban may have ended.
    pub fn contains(&self, client: IpAddr, now: impl FnOnce() -> Moment) -> bool {
        let end = match canonical_ip(client) {
            IpAddr::V4(v4) => self.v4.end_of(v4.to_bits().into()),
            IpAddr::V6(v6) => self.v6.end_of(v6.to_bits()),
        };
        match end {
            End::NotBanned => false,
            End::Never => true,
            End::At(end) => now() < end,
        }
    }

    /// What is banned: the first and the last address of each range, and when its ban ends; `None` is never. The ranges do not
    /// overlap.
    pub fn ranges(&self) -> impl Iterator<Item = (IpAddr, IpAddr, Option<Moment>)> {
        let v4 = self.v4.banned(u32::MAX.into()).map(|(first, last, end)| {
            let address = |bits: u128| IpAddr::from(Ipv4Addr::from_bits(u32::try_from(bits).unwrap_or(u32::MAX)));
            (address(first), address(last), end)
        });
        let v6 = self
            .v6
            .banned(u128::MAX)
            .map(|(first, last, end)| (Ipv6Addr::from_bits(first).into(), Ipv6Addr::from_bits(last).into(), end));
        v4.chain(v6)
    }

    pub fn is_empty(&self) -> bool {
        self.v4.0.is_empty() && self.v6.0.is_empty()
    }
}

impl Ranges {
    fn end_of(&self, address: u128) -> End {
        let before = self.0.partition_point(|range| range.start <= address).checked_sub(1);
        before.and_then(|index| self.0.get(index)).map_or(End::NotBanned, |range| range.end)
    }

    /// The ranges with a ban, up to the last address of their family.
    fn banned(&self, most: u128) -> impl Iterator<Item = (u128, u128, Option<Moment>)> {
        let lasts = self.0.iter().skip(1).map(|next| next.start - 1).chain([most]);
        self.0.iter().zip(lasts).filter_map(|(range, last)| match range.end {
            End::NotBanned => None,
            End::At(end) => Some((range.start, last, Some(end))),
            End::Never => Some((range.start, last, None)),
        })
    }
}

/// Networks are nested or apart, never crossing: one pass over them in order, with a stack of those that are open.
#[derive(Default)]
struct Sweep {
    ranges: Vec<Range>,
    open: Vec<Open>,
}

impl Sweep {
    fn add(&mut self, first: u128, last: u128, end: End) {
        self.close_before(first);
        // Whoever is in a network is in those around it.
        let end = self.open.last().map_or(end, |around| around.end.max(end));
        self.begin(first, end);
        self.open.push(Open { last, end });
    }

    fn finish(mut self) -> Ranges {
        // What ends with the last address of all has nothing behind it.
        self.close_before(u128::MAX);
        Ranges(self.ranges)
    }

    /// Ends the networks whose last address is before this one.
    fn close_before(&mut self, address: u128) {
        while let Some(open) = self.open.pop_if(|open| open.last < address) {
            let around = self.open.last().map_or(End::NotBanned, |around| around.end);
            self.begin(open.last + 1, around);
        }
    }

    /// Where two begin at one address the later one, which is narrower or comes after, holds.
    fn begin(&mut self, start: u128, end: End) {
        self.ranges.pop_if(|range| range.start == start);
        if self.ranges.last().map_or(End::NotBanned, |range| range.end) != end {
            self.ranges.push(Range { start, end });
        }
    }
}

#[cfg(test)]
mod tests {
    use proptest::{collection::vec, prelude::*};

    use super::*;

    fn network(bits: u32, prefix: u8, is_v6: bool) -> Cidr {
        // Few different networks, so that they nest and touch; both ends of the address space are among them.
        let bits = bits.wrapping_mul(0x2492_4925);
        let ip: IpAddr = if is_v6 {
            std::net::Ipv6Addr::from_bits(u128::from(bits) << 96 | u128::from(bits)).into()
        } else {
            std::net::Ipv4Addr::from_bits(bits).into()
        };
        Cidr::truncated(ip, if is_v6 { prefix * 4 } else { prefix }).unwrap().0
    }

    proptest! {
        #[test]
        fn f3_the_search_finds_what_a_look_at_every_ban_finds(
            bans in vec((0..8_u32, 0..33_u8, any::<bool>(), proptest::option::of(0..10_u64)), 0..20),
            asked in vec((0..8_u32, 0..33_u8, any::<bool>(), any::<bool>(), 0..10_u64), 1..50),
        ) {
            let bans = bans.into_iter().map(|(bits, prefix, is_v6, end)| {
                (network(bits, prefix, is_v6), end.map(Moment::from_millis))
            });
            let bans: std::collections::BTreeMap<_, _> = bans.collect();
            let segments = Segments::new(bans.iter().map(|(network, end)| (*network, *end)));
            for (bits, prefix, is_v6, is_last, now) in asked {
                let network = network(bits, prefix, is_v6);
                let (client, now) = (if is_last { network.last() } else { network.network() }, Moment::from_millis(now));
                let naive = bans.iter().any(|(ban, end)| ban.contains(client) && end.is_none_or(|end| now < end));
                prop_assert_eq!(segments.contains(client, || now), naive, "{} {:?}", client, bans);
                let is_in = |(first, last, end): (IpAddr, IpAddr, Option<Moment>)| {
                    (first..=last).contains(&canonical_ip(client)) && end.is_none_or(|end| now < end)
                };
                prop_assert_eq!(segments.ranges().any(is_in), naive, "{} {:?}", client, bans);
            }
            prop_assert!(segments.v4.0.len() + segments.v6.0.len() <= 2 * bans.len());
            let mut before: Option<IpAddr> = None;
            for (first, last, end) in segments.ranges() {
                prop_assert!(first <= last && before.is_none_or(|before| before < first));
                // Nobody comes from an IPv4 address that is written as one of IPv6.
                for client in [first, last].into_iter().filter(|ip| canonical_ip(*ip) == *ip) {
                    for now in (0..10).map(Moment::from_millis) {
                        prop_assert_eq!(segments.contains(client, || now), end.is_none_or(|end| now < end));
                    }
                }
                before = Some(last);
            }
        }
    }
}
