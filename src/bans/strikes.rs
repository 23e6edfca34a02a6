//! What sources have done wrong lately, in memory of a fixed size.

use std::net::IpAddr;

use crate::{address::Prefixes, cidr::Cidr, config::AutoBan, moment::Moment, sources::Table};

/// Sources that are watched at once; when there are more, the one that was quiet for the longest goes.
const ROOM: usize = 65_536;

/// Something that a source should not do.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Offence {
    /// It was turned away at its limits.
    Limited,
    /// Its TLS handshake went wrong by what it said, or it came where only others may bring clients.
    Handshake,
}

/// How often each source has offended.
#[derive(Debug)]
pub struct Strikes {
    prefixes: Prefixes,
    table: Table<Record>,
}

/// Of one source, since its first offence of a series.
#[derive(Debug, Clone, Copy, Default)]
struct Record {
    /// Milliseconds of the clock.
    since: u64,
    limited: u32,
    handshakes: u32,
}

impl Strikes {
    pub fn new(prefixes: Prefixes, key: [u8; 16]) -> Self {
        Self { prefixes, table: Table::new(ROOM, key) }
    }

    pub fn prefixes(&self) -> Prefixes {
        self.prefixes
    }

    /// Notes an offence. The network to ban, if the source has now done this too often within the time: then its count begins
    /// anew.
    pub fn note(&self, client: IpAddr, offence: Offence, config: &AutoBan, now: Moment) -> Option<Cidr> {
        let now = now.as_millis();
        let within = u64::try_from(config.within.as_millis()).unwrap_or(u64::MAX);
        let source = self.prefixes.source_of(client);
        let found = self.table.with(
            source,
            |record| Some(record.since),
            |record| {
                if now.saturating_sub(record.since) >= within {
                    *record = Record { since: now, ..Record::default() };
                }
                let (count, most) = match offence {
                    Offence::Limited => (&mut record.limited, config.limited),
                    Offence::Handshake => (&mut record.handshakes, config.handshake_failures),
                };
                *count += 1;
                let is_enough = most.is_some_and(|most| *count >= most.get());
                if is_enough {
                    *record = Record::default();
                }
                is_enough
            },
        )?;
        let (network, _) = Cidr::truncated(client, self.prefixes.prefix_of(client)).ok()?;
        found.result.then_some(network)
    }
}

impl Offence {
    /// For the reason of a ban.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Limited => "times at its limits",
            Self::Handshake => "failed handshakes",
        }
    }
}

#[cfg(test)]
mod tests {
    use std::{num::NonZeroU32, time::Duration};

    use super::{
        Offence::{Handshake, Limited},
        *,
    };

    fn config(limited: u32, handshakes: u32) -> AutoBan {
        AutoBan {
            limited: NonZeroU32::new(limited),
            handshake_failures: NonZeroU32::new(handshakes),
            within: Duration::from_secs(10),
            duration: Duration::from_mins(1),
        }
    }

    #[test]
    fn so_many_offences_of_a_kind_within_the_time_are_enough() {
        let strikes = Strikes::new(Prefixes::DEFAULT, [5; 16]);
        let config = config(3, 2);
        let note = |client: &str, offence, seconds: u64| {
            strikes.note(client.parse().unwrap(), offence, &config, Moment::from_millis(seconds * 1_000))
        };
        let (one, net) = (Some("192.0.2.1".parse().unwrap()), Some("2001:db8::/64".parse().unwrap()));
        for (client, offence, second, expected) in [
            ("192.0.2.1", Limited, 100, None),
            ("192.0.2.1", Handshake, 101, None),
            ("192.0.2.1", Limited, 102, None),
            ("192.0.2.2", Limited, 103, None),
            ("192.0.2.1", Limited, 109, one),
            ("192.0.2.1", Limited, 109, None),
            ("192.0.2.1", Limited, 109, None),
            ("192.0.2.1", Limited, 119, None),
            ("2001:db8::1", Handshake, 200, None),
            ("2001:db8::2", Handshake, 209, net),
            ("2001:db8::3", Handshake, 300, None),
            ("2001:db8::4", Handshake, 310, None),
        ] {
            assert_eq!(note(client, offence, second), expected, "{client} {offence:?} at {second}");
        }
    }

    #[test]
    fn what_has_no_number_is_never_enough() {
        let strikes = Strikes::new(Prefixes::DEFAULT, [5; 16]);
        let config = config(0, 1);
        let note = |offence| strikes.note("192.0.2.1".parse().unwrap(), offence, &config, Moment::from_millis(0));
        assert!((0..1_000).all(|_| note(Offence::Limited).is_none()));
        assert!(note(Offence::Handshake).is_some());
    }

    #[test]
    fn f9_a_million_sources_take_no_more_memory() {
        let strikes = Strikes::new(Prefixes::DEFAULT, [5; 16]);
        let (config, before) = (config(1_000, 1_000), strikes.table.heap_bytes());
        for n in 0..1_000_000_u32 {
            let client = std::net::Ipv4Addr::from_bits(n).into();
            assert_eq!(strikes.note(client, Offence::Limited, &config, Moment::from_millis(1)), None);
        }
        assert_eq!((strikes.table.heap_bytes(), strikes.table.used()), (before, strikes.table.room()));
    }
}
