//! F4: no connection is judged by an empty list or by half of one, however large the lists are that are swapped.

use std::{
    fmt::Write as _,
    fs,
    io::Read,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
};

use super::{plan, reload, site, times};
use crate::support::{
    Backend, Gate, LATE,
    client::{self, ask, connect_from},
    gate::{pool, tcp},
    lineage::Over,
};

const DENIED: IpAddr = IpAddr::V4(Ipv4Addr::new(127, 0, 0, 9));

/// Each list has other networks and denies the prober.
fn list(number: u32, networks: u32) -> String {
    let mut text = String::new();
    for n in 0..networks {
        writeln!(text, "{}", Ipv4Addr::from(0x1000_0000 + number + n * 3)).unwrap();
    }
    text + "127.0.0.9\n"
}

/// Another list takes the place of the one that is read.
fn swap(gate: &Gate, list: String) {
    let directory = gate.directory.path();
    fs::write(directory.join("deny.new"), list).unwrap();
    fs::rename(directory.join("deny.new"), directory.join("deny.txt")).unwrap();
    assert!(reload(gate).contains("list"), "nothing was swapped");
}

/// A connection keeps the policy that it began under: ten of them kept ten lists.
#[test]
fn l1_connections_of_earlier_lists_keep_none_of_them() {
    const SWAPS: u32 = 10;
    const NETWORKS: u32 = 200_000;
    // Two ranges for a network, 8.3 bytes each.
    const TABLE: u64 = 2 * 8 * NETWORKS as u64;
    let backend = Backend::echo();
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny_file = \"deny.txt\" }]\n";
    let toml = tcp("") + &pool("", &[backend.address]) + rules;
    let gate = plan(&toml).file("deny.txt", list(0, NETWORKS)).deadline(LATE).start();
    let hold = || {
        let mut client = client::connect(gate.address("tcp"));
        client::exchange(&mut client, b"first");
        client
    };
    // What a swap needs for itself is there from then on.
    (1..=3).for_each(|number| swap(&gate, list(number, NETWORKS)));
    let (before, mut held) = (gate.process.memory(), vec![hold()]);
    for number in 1..=SWAPS {
        swap(&gate, list(3 + number, NETWORKS));
        held.push(hold());
    }
    let more = gate.process.memory().saturating_sub(before);
    let snapshots = gate.metrics().count("sluicegate_config_snapshots", &[]);
    println!(
        "L1: {SWAPS} swaps with a connection of each: {more} bytes more, {snapshots} snapshots; a table has {TABLE}"
    );
    assert_eq!(snapshots, u64::from(SWAPS) + 1, "each connection keeps its policy");
    assert!(more < 3 * TABLE, "{more} bytes more");
    // Those of every policy are judged by the newest list, and all go on.
    assert!(matches!(connect_from(DENIED, gate.address("tcp")).read(&mut [0]), Ok(0)));
    for client in &mut held {
        client::exchange(client, b"still here");
    }
    drop(held);
    gate.finish();
}

#[test]
fn f4_a_denied_prober_is_never_admitted_while_lists_are_swapped() {
    let (swaps, networks) = (times(6, 100), if crate::support::full() { 1_000_000 } else { 60_000 });
    let backend = Backend::named("welcome");
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny_file = \"deny.txt\" }]\n";
    let toml = site(&[("a", &backend)]) + rules;
    let gate = plan(&toml).file("deny.txt", list(0, networks)).deadline(LATE).start();
    let (address, over) = (gate.address("tcp"), AtomicBool::new(false));
    let (probes, admitted, served) = (AtomicU64::new(0), AtomicU64::new(0), AtomicU64::new(0));
    std::thread::scope(|scope| {
        let _over = Over(&over);
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                let read = connect_from(DENIED, address).read(&mut [0]);
                admitted.fetch_add(u64::from(!matches!(read, Ok(0))), Ordering::Relaxed);
                probes.fetch_add(1, Ordering::Relaxed);
            }
        });
        scope.spawn(|| {
            while !over.load(Ordering::Relaxed) {
                assert_eq!(ask(address), "welcome");
                served.fetch_add(1, Ordering::Relaxed);
            }
        });
        for number in 1..=swaps as u32 {
            swap(&gate, list(number, networks));
        }
    });
    let counts = [&probes, &admitted, &served].map(|count| count.load(Ordering::Relaxed));
    let [probes, admitted, served] = counts;
    println!("F4: {swaps} lists of {networks}: {probes} probes, {admitted} admitted; {served} others served");
    assert_eq!(admitted, 0);
    assert!(probes > 100 && served > 100, "{counts:?}");
    gate.wait_outcome("denied", probes);
    gate.finish();
}
