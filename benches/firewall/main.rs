//! Cost of a verdict at 1,000, 100,000 and 1,000,000 networks, of building the table, of reading a list file, of a look at the
//! limits of a source and at the bans, of turning a client away, and of a list in a process that serves.
//! `cargo bench --bench firewall`

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers are cut to size on purpose")]

mod process;
#[path = "../../src/random.rs"]
mod random;

use std::{
    fmt::Write as _,
    hint::black_box,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    num::NonZeroU32,
    sync::Arc,
    time::{Duration, Instant},
};

use random::Random;
use sluicegate::{
    address::Prefixes,
    bans::{Ban, Bans},
    cidr::Cidr,
    config::{ConnectionRate, SourceLimits},
    firewall::{Action, RuleSet, Table, parse_list},
    limits::{self, Sources},
    metrics::BanKind,
    moment::Moment,
    outcome::Outcome,
    rejections::Rejections,
};

const LOOKUPS: usize = 2_000_000;

fn main() -> anyhow::Result<()> {
    println!(
        "{:>10} {:>9} {:>11} {:>9} {:>9} {:>9} {:>9}  one lookup",
        "family", "networks", "build", "B/network", "mean", "p50", "p99"
    );
    for networks in [0, 1_000, 100_000, 1_000_000] {
        verdicts("IPv4", networks, |random| {
            let prefix = 20 + random.below(13);
            (IpAddr::V4(Ipv4Addr::from_bits(random.low_bits())), prefix)
        });
        verdicts("IPv6", networks, |random| {
            let prefix = 32 + random.below(33);
            // 2000::/3, where addresses are in use.
            let bits = (u128::from(random.draw()) << 64 | u128::from(random.draw())) >> 3 | 1 << 125;
            (IpAddr::V6(Ipv6Addr::from_bits(bits)), prefix)
        });
    }
    let text = list(1_000_000);
    list_file(&text);
    limits();
    rejections();
    bans(100_000);
    process::measure(&text)
}

fn verdicts(family: &str, count: usize, draw: impl Fn(&mut Random) -> (IpAddr, u8)) {
    let mut random = Random(1);
    let mut network = || {
        let (ip, prefix) = draw(&mut random);
        Cidr::truncated(ip, prefix).map(|(cidr, _)| cidr).ok()
    };
    let networks: Vec<Cidr> = std::iter::from_fn(|| Some(network())).flatten().take(count).collect();
    let (some, others) = networks.split_at(count / 10);
    let rules = [
        RuleSet { networks: some, action: Action::Allow, shadow: false },
        RuleSet { networks: others, action: Action::Deny, shadow: false },
    ];
    let began = Instant::now();
    let table = Table::build(&rules, Action::Allow);
    let built = began.elapsed();

    let addresses: Vec<IpAddr> = (0..LOOKUPS).map(|_| draw(&mut random).0).collect();
    let began = Instant::now();
    let denied = addresses.iter().filter(|ip| table.verdict(**ip).action == Action::Deny).count();
    let mean = began.elapsed() / LOOKUPS as u32;
    black_box(denied);
    let bytes = table.heap_bytes() as f64 / count.max(1) as f64;
    let [p50, p99] = times(&table, &addresses);
    println!("{family:>10} {count:>9} {built:>11.1?} {bytes:>9.1} {mean:>9.1?} {p50:>9.1?} {p99:>9.1?}");
}

/// The median and the 99th percentile of lookups timed alone, the cost of the clock (some 20 ns) included.
fn times(table: &Table, addresses: &[IpAddr]) -> [Duration; 2] {
    let mut times: Vec<Duration> = addresses
        .iter()
        .map(|ip| {
            let began = Instant::now();
            black_box(table.verdict(black_box(*ip)));
            began.elapsed()
        })
        .collect();
    times.sort_unstable();
    [50, 99].map(|percent| times.get(times.len() * percent / 100).copied().unwrap_or_default())
}

/// A list with IPv4 and IPv6 mixed.
fn list(lines: usize) -> String {
    let mut random = Random(2);
    let mut text = String::new();
    for line in 0..lines {
        // Not the clients of the bench.
        let bits = random.low_bits();
        let bits = if bits >> 24 == 127 { bits | 1 << 31 } else { bits };
        let written = if line % 4 == 0 {
            writeln!(text, "{}/64 # six", Ipv6Addr::from_bits(u128::from(bits) << 64 | 1 << 125))
        } else {
            writeln!(text, "{}/32", Ipv4Addr::from_bits(bits))
        };
        black_box(written).unwrap_or_default();
    }
    text
}

/// S8: from the bytes of the file to a verdict.
fn list_file(text: &str) {
    let mut random = Random(3);
    let lines = text.lines().count();
    let began = Instant::now();
    let list = parse_list(text.as_bytes()).unwrap_or_default();
    let read = began.elapsed();
    let set = RuleSet { networks: &list.networks, action: Action::Deny, shadow: false };
    let table = Table::build(&[set], Action::Allow);
    let loaded = began.elapsed();
    let networks = list.networks.len();
    println!(
        "S8: {networks} networks of {lines} lines ({} repeated, {} inside others): read in {read:.1?}, loaded in {loaded:.1?}",
        list.duplicates, list.covered
    );
    // Half of the questions are about networks of the list.
    let mut ask = |n: usize| match list.networks.get(random.low_bits() as usize % networks.max(1)) {
        Some(network) if n.is_multiple_of(2) => network.last(),
        _ => IpAddr::V4(Ipv4Addr::from_bits(random.low_bits())),
    };
    let addresses: Vec<IpAddr> = (0..LOOKUPS).map(&mut ask).collect();
    let [p50, p99] = times(&table, &addresses);
    println!(
        "S8: {} ranges, {:.1} B/network, lookup p50 {p50:.1?}, p99 {p99:.1?} (at most 1 µs) of {LOOKUPS}",
        table.entries(),
        table.heap_bytes() as f64 / networks.max(1) as f64,
    );
}

/// Every second one is of a source that comes often.
fn visitors() -> Vec<IpAddr> {
    let mut random = Random(3);
    let client = |n: usize| {
        let bits = random.low_bits();
        IpAddr::V4(Ipv4Addr::from_bits(if n.is_multiple_of(2) { bits % 10_000 } else { bits }))
    };
    (0..LOOKUPS).map(client).collect()
}

/// A connection that comes and goes: a place taken and given back.
fn limits() {
    let config = SourceLimits {
        connections: NonZeroU32::new(200),
        rate: Some(ConnectionRate { new_per_second: NonZeroU32::MAX, burst: NonZeroU32::MIN }),
        exempt: Vec::new(),
        prefixes: Prefixes::DEFAULT,
    };
    let sources = Sources::new(config.prefixes, 1 << 17, [7; 16]);
    let limits = limits::SourceLimits::new(&config, Arc::clone(&sources));
    let clients = visitors();
    let began = Instant::now();
    let visit = |(client, n): (&IpAddr, u64)| drop(black_box(limits.take(*client, Duration::from_micros(n))));
    clients.iter().zip(0..).for_each(visit);
    let mean = began.elapsed() / LOOKUPS as u32;
    let (known, bytes) = (sources.known(), sources.heap_bytes());
    println!("F9: limits: {mean:.1?} for a place taken and given back, {known} sources known, {bytes} bytes");
}

/// A client that is turned away: whether it is to have a record. The first one has a table made.
fn rejections() {
    let rejections = Rejections::new(Prefixes::DEFAULT);
    let clients = visitors();
    let note = |client: &IpAddr, n| rejections.note(*client, Outcome::Denied, Moment::from_millis(n), true);
    let began = Instant::now();
    black_box(note(&IpAddr::V4(Ipv4Addr::LOCALHOST), 0));
    let first = began.elapsed();
    let began = Instant::now();
    let recorded = black_box(clients.iter().zip(0..).filter(|(client, n)| note(client, *n)).count());
    let mean = began.elapsed() / LOOKUPS as u32;
    println!("F7: {mean:.1?} for a client that is turned away, {first:.1?} for the first, {recorded} records");
}

fn bans(count: u32) {
    let (bans, now) = (Bans::default(), Moment::from_millis(0));
    let ban = Ban { kind: BanKind::Manual, reason: String::new(), since: 0, end: Some(Moment::from_millis(9)) };
    let banned = (0..count).map(|n| (Cidr::from(IpAddr::V4(Ipv4Addr::from_bits(n * 40_000))), ban.clone()));
    bans.add(banned, now);
    let began = Instant::now();
    bans.add([(Cidr::from(IpAddr::V4(Ipv4Addr::LOCALHOST)), ban.clone())], now);
    let changed = began.elapsed();
    let mut random = Random(4);
    let clients: Vec<IpAddr> = (0..LOOKUPS).map(|_| IpAddr::V4(Ipv4Addr::from_bits(random.low_bits()))).collect();
    let began = Instant::now();
    black_box(clients.iter().filter(|client| bans.contains(**client, || now)).count());
    let mean = began.elapsed() / LOOKUPS as u32;
    println!("F6: {count} bans: {mean:.1?} for a look, {changed:.1?} for one ban more");
}

impl Random {
    fn low_bits(&mut self) -> u32 {
        self.draw() as u32
    }
}
