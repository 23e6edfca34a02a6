//! Cost of a pick under each policy at 3, 100 and 1,000 members, and of building the picker.
//! `cargo bench --bench balance`

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers are cut to size on purpose")]

use std::{
    hint::black_box,
    net::{IpAddr, Ipv4Addr},
    sync::atomic::{AtomicU32, Ordering},
    time::Instant,
};

use sluicegate::balance::{Balance, DEFAULT_KEY, Member, Picker, Request};

const PICKS: u64 = 200_000;

fn main() {
    println!("{:>12} {:>8} {:>8} {:>10} {:>10} {:>10}", "policy", "members", "weights", "build", "pick", "half down");
    for balance in Balance::ALL {
        for members in [3, 100, 500, 1_000] {
            measure(balance, members, "equal", |_| 1);
            measure(balance, members, "mixed", |index| 1 + (index * 7 % 256) as u16);
        }
    }
}

fn measure(balance: Balance, count: usize, weights: &str, weight: impl Fn(usize) -> u16) {
    let names: Vec<String> = (0..count).map(|index| format!("10.1.{}.{}:8080", index / 250, index % 250 + 1)).collect();
    let members: Vec<Member<'_>> =
        names.iter().enumerate().map(|(index, name)| Member { name, weight: weight(index) }).collect();
    let began = Instant::now();
    let picker = Picker::build(balance, &members, &DEFAULT_KEY);
    let built = began.elapsed();
    // As in the process: one counter per backend, each somewhere in memory.
    let loads: Vec<AtomicU32> = (0..count).map(|index| AtomicU32::new(index as u32 * 31 % 17)).collect();
    let all_up = nanoseconds(&picker, &loads, |_| true);
    let half_down = nanoseconds(&picker, &loads, |index| index % 2 == 0);
    println!("{:>12} {count:>8} {weights:>8} {built:>10.1?} {all_up:>7.1} ns {half_down:>7.1} ns", balance.as_str());
}

fn nanoseconds(picker: &Picker, loads: &[AtomicU32], eligible: impl Fn(usize) -> bool) -> f64 {
    let load = |index: usize| loads.get(index).map_or(0, |load| load.load(Ordering::Relaxed));
    let began = Instant::now();
    for ticket in 0..PICKS {
        let random = ticket.wrapping_mul(0x9e37_79b9_7f4a_7c15);
        let source = IpAddr::V4(Ipv4Addr::from_bits((random >> 32) as u32));
        black_box(picker.pick(&Request { source, ticket, random }, load, &eligible));
    }
    began.elapsed().as_nanos() as f64 / PICKS as f64
}
