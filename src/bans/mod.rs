//! Who is shut out until further notice: networks that an operator has banned, or that the process has for what came from
//! there. Beside the rules of the configuration, and before them.
//!
//! Clients are judged by an immutable snapshot, which is made anew when something changes; nobody waits for anybody (traps
//! F6). A ban ends by being looked at after its end: there is no timer. The clocks are given.

mod saved;
mod segments;
mod strikes;

use std::{
    collections::BTreeMap,
    fmt,
    net::IpAddr,
    sync::{Arc, Mutex, MutexGuard, PoisonError},
    time::Duration,
};

use arc_swap::ArcSwapOption;
use tokio::sync::watch;

use crate::{cidr::Cidr, metrics::BanKind, moment::Moment};
pub use saved::{BadLine, SavedBan, parse_saved, write_saved};
use segments::Segments;
pub use strikes::{Offence, Strikes};

/// More bans than this are a list, and lists have files of their own. Automatic ones may be half of it.
pub const MOST: usize = 200_000;

/// Longer reasons are cut, in bytes.
pub const LONGEST_REASON: usize = 120;

/// Everyone who is banned.
#[derive(Default)]
pub struct Bans {
    /// `None`: nobody is.
    segments: ArcSwapOption<Segments>,
    book: Mutex<BTreeMap<Cidr, Ban>>,
    /// How often they were changed.
    changes: watch::Sender<u64>,
}

/// What is banned at one moment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Snapshot {
    /// How often the bans had been changed.
    pub change: u64,
    /// The first and the last address of ranges that do not overlap, and when the ban of each ends; `None` is never.
    pub ranges: Vec<(IpAddr, IpAddr, Option<Moment>)>,
}

/// What is known of the ban of a network.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ban {
    pub kind: BanKind,
    pub reason: String,
    /// Unix seconds.
    pub since: i64,
    /// `None`: it does not end by itself.
    pub end: Option<Moment>,
}

/// Bans in force.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Counts {
    pub manual: usize,
    pub automatic: usize,
}

impl Bans {
    /// Whether a client is banned. Nothing more than a look where nobody is.
    pub fn contains(&self, client: IpAddr, now: impl FnOnce() -> Moment) -> bool {
        self.segments.load().as_ref().is_some_and(|segments| segments.contains(client, now))
    }

    /// Bans networks, and says which: those for which there is room, and that an operator has not banned where the process
    /// would. A network that is banned already is banned as it is told now.
    pub fn add(&self, bans: impl IntoIterator<Item = (Cidr, Ban)>, now: Moment) -> Vec<Cidr> {
        let mut book = self.current(now);
        let mut added = Vec::new();
        let mut automatic = count(&book).automatic;
        for (network, mut ban) in bans {
            let known = book.get(&network).map(|ban| ban.kind);
            let has_room = match (known, ban.kind) {
                (Some(BanKind::Manual), BanKind::Automatic) => false,
                (None, BanKind::Automatic) => automatic < MOST / 2 && book.len() < MOST,
                (None, BanKind::Manual) => book.len() < MOST,
                (Some(_), _) => true,
            };
            if !has_room {
                continue;
            }
            if (known, ban.kind) == (None, BanKind::Automatic) {
                automatic += 1;
            }
            ban.reason.truncate(ban.reason.floor_char_boundary(LONGEST_REASON));
            book.insert(network, ban);
            added.push(network);
        }
        self.publish(&book);
        added
    }

    /// Ends the bans of exactly these networks, and says of which there was one.
    pub fn remove(&self, networks: &[Cidr], now: Moment) -> Vec<Cidr> {
        let mut book = self.current(now);
        let removed = networks.iter().filter(|network| book.remove(network).is_some()).copied().collect();
        self.publish(&book);
        removed
    }

    /// The banned network around another one, the narrowest first.
    pub fn around(&self, network: Cidr, now: Moment) -> Option<Cidr> {
        let book = self.current(now);
        book.keys().filter(|ban| ban.covers(&network)).max_by_key(|ban| ban.prefix_len()).copied()
    }

    /// The bans in force, in the order of their networks.
    pub fn list(&self, now: Moment) -> Vec<(Cidr, Ban)> {
        self.current(now).iter().map(|(network, ban)| (*network, ban.clone())).collect()
    }

    /// Tells of each change, but not of bans that end by themselves.
    pub fn changes(&self) -> watch::Receiver<u64> {
        self.changes.subscribe()
    }

    /// The ranges that are banned now, for somebody else to keep them out.
    pub fn snapshot(&self, now: Moment) -> Snapshot {
        // Read before the ranges: what is changed in between is told once more, and not lost.
        let change = *self.changes.borrow();
        let segments = self.segments.load();
        let ranges = segments.iter().flat_map(|segments| segments.ranges());
        Snapshot { change, ranges: ranges.filter(|(.., end)| end.is_none_or(|end| now < end)).collect() }
    }

    pub fn counts(&self, now: Moment) -> Counts {
        count(&self.current(now))
    }

    /// The book without what has ended.
    fn current(&self, now: Moment) -> MutexGuard<'_, BTreeMap<Cidr, Ban>> {
        let mut book = self.book.lock().unwrap_or_else(PoisonError::into_inner);
        book.retain(|_, ban| ban.end.is_none_or(|end| now < end));
        book
    }

    /// While the book is held, so that snapshots come in the order of the changes.
    fn publish(&self, book: &BTreeMap<Cidr, Ban>) {
        let segments = Segments::new(book.iter().map(|(network, ban)| (*network, ban.end)));
        self.segments.store((!segments.is_empty()).then(|| Arc::new(segments)));
        self.changes.send_modify(|change| *change += 1);
    }
}

impl Ban {
    /// How long it still lasts; `None`: for ever.
    pub fn left(&self, now: Moment) -> Option<Duration> {
        self.end.map(|end| end.since(now))
    }
}

fn count(book: &BTreeMap<Cidr, Ban>) -> Counts {
    let automatic = book.values().filter(|ban| ban.kind == BanKind::Automatic).count();
    Counts { manual: book.len() - automatic, automatic }
}

impl fmt::Debug for Bans {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Bans").finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    fn ban(kind: BanKind, end: Option<u64>) -> Ban {
        Ban { kind, reason: "x".repeat(500), since: 0, end: end.map(Moment::from_millis) }
    }

    fn at(millis: u64) -> Moment {
        Moment::from_millis(millis)
    }

    #[test]
    fn a_ban_holds_until_its_end_and_is_gone_then() {
        let bans = Bans::default();
        let is_banned = |ip: &str, now| bans.contains(ip.parse().unwrap(), || at(now));
        assert!(!is_banned("192.0.2.1", 0));
        bans.add([(cidr("192.0.2.0/24"), ban(BanKind::Manual, Some(10)))], at(0));
        bans.add([(cidr("192.0.2.1"), ban(BanKind::Manual, None))], at(0));
        bans.add([(cidr("2001:db8::/32"), ban(BanKind::Manual, Some(5)))], at(0));
        for (ip, now, banned) in [
            ("192.0.2.1", 0, true),
            ("::ffff:192.0.2.1", 0, true),
            ("192.0.2.2", 9, true),
            ("192.0.2.2", 10, false),
            ("192.0.2.1", 10, true),
            ("2001:db8::9", 4, true),
            ("2001:db8::9", 5, false),
            ("192.0.3.0", 0, false),
        ] {
            assert_eq!(is_banned(ip, now), banned, "{ip} at {now}");
        }
        assert_eq!(bans.around(cidr("192.0.2.9"), at(9)), Some(cidr("192.0.2.0/24")));
        assert_eq!(bans.counts(at(9)), Counts { manual: 2, automatic: 0 });
        assert_eq!(bans.list(at(10)).len(), 1);
        assert_eq!(bans.remove(&[cidr("192.0.2.1"), cidr("192.0.2.0/24")], at(10)), [cidr("192.0.2.1")]);
        assert!(bans.segments.load().is_none(), "nobody is banned");
    }

    #[test]
    fn an_automatic_ban_takes_the_place_of_no_other() {
        let bans = Bans::default();
        let network = cidr("192.0.2.1");
        assert_eq!(bans.add([(network, ban(BanKind::Manual, None))], at(0)), [network]);
        assert_eq!(bans.add([(network, ban(BanKind::Automatic, Some(9)))], at(0)), []);
        assert_eq!(bans.add([(network, ban(BanKind::Manual, Some(9)))], at(0)), [network]);
        let (_, known) = &bans.list(at(0))[0];
        assert_eq!((known.end, known.reason.len()), (Some(at(9)), LONGEST_REASON));
    }

    #[test]
    fn f6_a_hundred_thousand_bans_are_fine_and_more_than_fit_are_not_taken() {
        let bans = Bans::default();
        let networks = |count: u32| (0..count).map(|n| Cidr::from(IpAddr::from(std::net::Ipv4Addr::from_bits(n * 3))));
        let begin = std::time::Instant::now();
        let automatic = networks(150_000).map(|network| (network, ban(BanKind::Automatic, Some(9))));
        assert_eq!(bans.add(automatic, at(0)).len(), MOST / 2);
        println!("{:?} for 100,000 bans", begin.elapsed());
        let begin = std::time::Instant::now();
        bans.add([(cidr("2001:db8::/32"), ban(BanKind::Manual, None))], at(0));
        println!("{:?} for one more", begin.elapsed());
        assert!(bans.contains("0.0.0.3".parse().unwrap(), || at(8)));
        assert!(!bans.contains("0.0.0.4".parse().unwrap(), || at(8)));
        let manual = networks(300_000).skip(150_000).map(|network| (network, ban(BanKind::Manual, None)));
        assert_eq!(bans.add(manual, at(0)).len(), MOST - MOST / 2 - 1);
        assert_eq!(bans.counts(at(0)), Counts { manual: MOST / 2, automatic: MOST / 2 });
        assert_eq!(bans.counts(at(9)), Counts { manual: MOST / 2, automatic: 0 });
    }
}
