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
    Backend, LATE,
    client::{ask, connect_from},
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
        for swap in 1..=swaps as u32 {
            let directory = gate.directory.path();
            fs::write(directory.join("deny.new"), list(swap, networks)).unwrap();
            fs::rename(directory.join("deny.new"), directory.join("deny.txt")).unwrap();
            assert!(reload(&gate).contains("list"), "nothing was swapped");
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
