//! Who was turned away before it was served, told without a flood (traps F7).
//!
//! Each is counted by the metrics, exactly. Here it is decided who has a record of its own in the access log: the first
//! connection of a source in an hour, for each outcome, and at most 10,000 a minute. The others are told together, in one
//! message a minute. Nothing here grows, whoever comes.

mod summary;
mod visits;

use std::{
    net::IpAddr,
    sync::{
        Arc, OnceLock,
        atomic::{AtomicU64, Ordering},
    },
};

use arc_swap::ArcSwap;

use self::visits::Visits;
use crate::{
    address::{Prefixes, Source},
    ledger,
    moment::Moment,
    outcome::Outcome,
    sources::Table,
};
pub use summary::Teller;

/// Outcomes of clients that are turned away before anything is done for them.
pub const OUTCOMES: [Outcome; 3] = [Outcome::Denied, Outcome::Limited, Outcome::MaxConnections];

/// Sources that are remembered at once.
const ROOM: usize = 65_536;

/// Records in a minute; who comes when they are used up is told later, or only counted.
const RECORDS: u64 = 10_000;

/// Who was turned away lately, for all workers.
#[derive(Debug)]
pub struct Rejections {
    book: ArcSwap<Book>,
    /// Of this minute.
    records: AtomicU64,
}

/// What is remembered as long as the same addresses are one source.
#[derive(Debug)]
struct Book {
    prefixes: Prefixes,
    /// It takes no memory until somebody is turned away.
    table: OnceLock<Table<Visits>>,
}

/// What was noted in one minute.
#[derive(Debug)]
struct Noted {
    /// Of the sources.
    prefixes: Prefixes,
    /// How often each came at least, in the order of [`OUTCOMES`].
    sources: Vec<(Source, [u32; OUTCOMES.len()])>,
    /// Records that they had.
    recorded: u64,
}

impl Rejections {
    pub fn new(prefixes: Prefixes) -> Self {
        Self { book: ArcSwap::from_pointee(Book::new(prefixes)), records: AtomicU64::new(0) }
    }

    /// From now on these make a source. Where they are others than before, all begin anew.
    pub fn follow(&self, prefixes: Prefixes) {
        if self.book.load().prefixes != prefixes {
            self.book.store(Arc::new(Book::new(prefixes)));
        }
    }

    /// Notes a client that is turned away, and says whether it is to have a record, where there is a `log`. Some tens of
    /// nanoseconds; the first has the table made, which is half a millisecond.
    pub fn note(&self, client: IpAddr, outcome: Outcome, now: Moment, log: bool) -> bool {
        let book = self.book.load();
        let table = book.table.get_or_init(|| Table::new(ROOM, ledger::key()));
        let may_record = || log && self.take_record();
        let source = book.prefixes.source_of(client);
        let found = table.with(source, Visits::age, |visits| visits.note(outcome, now, may_record));
        found.is_some_and(|found| found.result)
    }

    fn take_record(&self) -> bool {
        let one_more = |records| (records < RECORDS).then_some(records + 1);
        self.records.fetch_update(Ordering::Relaxed, Ordering::Relaxed, one_more).is_ok()
    }

    /// What was noted since the last time.
    fn take(&self) -> Noted {
        let (book, mut sources) = (self.book.load(), Vec::new());
        if let Some(table) = book.table.get() {
            table.for_each(|source, visits| {
                let counts = visits.take_counts();
                if counts.iter().any(|count| *count > 0) {
                    sources.push((source, counts));
                }
            });
        }
        Noted { prefixes: book.prefixes, sources, recorded: self.records.swap(0, Ordering::Relaxed) }
    }
}

impl Book {
    fn new(prefixes: Prefixes) -> Self {
        Self { prefixes, table: OnceLock::new() }
    }
}

#[cfg(test)]
mod tests {
    use std::net::Ipv4Addr;

    use super::*;

    fn address(number: u32) -> IpAddr {
        Ipv4Addr::from_bits(0x7f00_0000 + number).into()
    }

    #[test]
    fn f7_ten_thousand_sources_are_told_once_each_by_any_number_of_workers() {
        let (rejections, now) = (Rejections::new(Prefixes::DEFAULT), Moment::from_millis(5_000));
        let told: usize = std::thread::scope(|scope| {
            let work = |_| {
                let visits = (0..100_000).map(|visit| address(visit % 10_000));
                visits.filter(|client| rejections.note(*client, Outcome::Denied, now, true)).count()
            };
            let workers: Vec<_> = (0..4).map(|worker| scope.spawn(move || work(worker))).collect();
            workers.into_iter().map(|worker| worker.join().unwrap()).sum()
        });
        assert_eq!(told, 10_000);
        let Noted { sources, recorded, .. } = rejections.take();
        assert_eq!((recorded, sources.len()), (10_000, 10_000));
        assert!(sources.iter().all(|(_, counts)| *counts == [40, 0, 0]));
    }

    #[test]
    fn f7_a_million_sources_have_ten_thousand_records_in_a_minute_and_the_table_does_not_grow() {
        let (rejections, now) = (Rejections::new(Prefixes::DEFAULT), Moment::from_millis(5_000));
        let book = rejections.book.load();
        assert!(book.table.get().is_none(), "no memory before the first");
        assert!(rejections.note(address(0), Outcome::Denied, now, true));
        let (table, begin) = (book.table.get().unwrap(), std::time::Instant::now());
        let before = table.heap_bytes();
        let told =
            (1..1_000_000).filter(|number| rejections.note(address(*number), Outcome::Denied, now, true)).count();
        println!("{before} bytes, {:?} for each of 1,000,000 sources", begin.elapsed() / 1_000_000);
        assert_eq!(told, 9_999);
        assert_eq!((table.heap_bytes(), table.used()), (before, ROOM));
        let Noted { sources, recorded, .. } = rejections.take();
        assert_eq!((sources.len(), recorded), (ROOM, 10_000));
        assert!(rejections.note(address(2_000_000), Outcome::Denied, now, true), "the next minute");
    }

    #[test]
    fn f8_a_source_is_what_is_configured_and_with_other_prefixes_all_begin_anew() {
        let (rejections, now) = (Rejections::new(Prefixes::DEFAULT), Moment::from_millis(5_000));
        let note = |client: &str| rejections.note(client.parse().unwrap(), Outcome::Denied, now, true);
        assert!(note("2001:db8:1:2::1") && !note("2001:db8:1:2:ffff::2") && note("2001:db8:1:3::1"));
        assert!(note("192.0.2.7") && !note("::ffff:192.0.2.7") && note("192.0.2.8"));
        let name = || {
            let noted = rejections.take();
            let mut names: Vec<_> = noted.sources.iter().map(|(source, _)| noted.prefixes.name_of(*source)).collect();
            names.sort();
            names
        };
        assert_eq!(name(), ["192.0.2.7", "192.0.2.8", "2001:db8:1:2::/64", "2001:db8:1:3::/64"]);
        rejections.follow(Prefixes::DEFAULT);
        assert!(!note("192.0.2.7"), "nothing is forgotten without need");
        rejections.follow(Prefixes { ipv4: 24, ipv6: 48 });
        assert!(note("192.0.2.7") && !note("192.0.2.8"));
        assert!(note("2001:db8:1:2::1") && !note("2001:db8:1:3::1"));
        assert_eq!(name(), ["192.0.2.0/24", "2001:db8:1::/48"]);
    }
}
