//! B7: who comes back, or is new, does not get everything at once.

use std::{
    collections::{HashMap, VecDeque},
    net::{IpAddr, Ipv4Addr},
};

use super::*;

const SLOW: u64 = 10;
const PER_SECOND: usize = 2_000;

fn source(number: u64) -> IpAddr {
    Ipv4Addr::from_bits(0x0a00_0000 | u32::try_from(number & 0x00ff_ffff).unwrap()).into()
}

fn of(balance: Balance, count: usize) -> Pool {
    let mut config = config(&vec![Active; count]);
    config.balance = balance;
    build(&config)
}

/// Seconds of traffic from `begin` on; connections live for three seconds. Each second: connections of the backend.
fn traffic(pool: &Pool, name: &str, begin: u64, seconds: u64) -> Vec<usize> {
    let mut random = Random(0x5eed);
    let mut held = VecDeque::new();
    let mut counts = Vec::new();
    for second in begin..begin + seconds {
        let mut count = 0;
        for turn in 0..PER_SECOND {
            let now = at(second).after(Duration::from_secs(1) * u32::try_from(turn).unwrap() / 2_000);
            let mut search = pool.search(source(random.draw()), random.draw());
            let lease = lease(pool.pick(&mut search, now)).unwrap();
            count += usize::from(*lease.backend().name == *name);
            held.push_back(lease);
            if held.len() > 3 * PER_SECOND {
                held.pop_front();
            }
        }
        counts.push(count);
    }
    counts
}

/// In no second of its slow start more than twice the fair share, in the first next to nothing, and after it all of it.
#[track_caller]
fn is_slow(counts: &[usize], fair: usize, what: Balance) {
    let slow = usize::try_from(SLOW).unwrap();
    for (second, count) in counts.iter().enumerate().take(slow) {
        assert!(*count <= 2 * fair + fair / 4, "{what:?}, second {second}: {counts:?}, fair is {fair}");
    }
    let sum: usize = counts.iter().take(slow).sum();
    assert!(sum <= 2 * fair * slow, "{what:?}: {counts:?}");
    assert!(counts[0] < fair / 2 && sum > fair, "{what:?}: it begins low and grows: {counts:?}");
    println!("{what:?}: fair {fair}, each second {counts:?}");
}

#[test]
fn b7_a_recovered_backend_begins_slowly_under_every_policy() {
    for balance in Balance::ALL {
        let pool = of(balance, 5);
        pool.set_health(nth(&pool, 2), Health::Down, at(0));
        traffic(&pool, "b2", 0, 4);
        pool.set_health(nth(&pool, 2), Health::Up, at(4));
        let counts = traffic(&pool, "b2", 4, SLOW + 5);
        is_slow(&counts, PER_SECOND / 5, balance);
        let last = counts.last().unwrap();
        assert!(
            (PER_SECOND / 10..PER_SECOND * 3 / 10).contains(last),
            "{balance:?}: its whole share again: {counts:?}"
        );
    }
}

#[test]
fn b7_a_backend_that_is_added_under_load_begins_slowly() {
    for balance in [Balance::LeastConn, Balance::P2c] {
        let old = of(balance, 4);
        // Connections that stay for ever: the new one is always the emptiest.
        let kept: Vec<_> = (0..100_000_u64)
            .map(|n| lease(old.pick(&mut old.search(source(n), Random(n).draw()), at(0))).unwrap())
            .collect();
        let mut config = config(&[Active; 5]);
        config.balance = balance;
        let new = Pool::new(&config, &[0; 16], &Registry::new(1), Some(&old), at(100));
        is_slow(&traffic(&new, "b4", 100, SLOW), PER_SECOND / 5, balance);
        drop(kept);
    }
}

#[test]
fn b7_a_hundred_that_recover_at_once_share_evenly() {
    for balance in Balance::ALL {
        let pool = of(balance, 100);
        (0..100).for_each(|n| nth(&pool, n).set_health(Health::Down, at(0)));
        (0..100).for_each(|n| nth(&pool, n).set_health(Health::Up, at(5)));
        let mut counts: HashMap<String, usize> = HashMap::new();
        let mut random = Random(77);
        let mut held = Vec::new();
        for _ in 0..10_000 {
            let mut search = pool.search(source(random.draw()), random.draw());
            let lease = lease(pool.pick(&mut search, at(5))).unwrap();
            *counts.entry(lease.backend().name.to_string()).or_default() += 1;
            held.push(lease);
        }
        let most = counts.values().max().unwrap();
        println!("{balance:?}: {} backends, at most {most} of 100", counts.len());
        assert!(counts.len() == 100 && *most <= 200, "{balance:?}: {counts:?}");
    }
}

#[test]
fn s19_b7_under_the_hash_policies_each_client_changes_over_once_and_the_others_stay() {
    for balance in [Balance::IpHash, Balance::Maglev] {
        let pool = of(balance, 5);
        let who = |number, now| {
            let mut search = pool.search(source(number), number);
            lease(pool.pick(&mut search, now)).unwrap().backend().name.to_string()
        };
        let home: Vec<_> = (0..2_000).map(|number| who(number, at(0))).collect();
        pool.set_health(nth(&pool, 3), Health::Down, at(1));
        let away: Vec<_> = (0..2_000).map(|number| who(number, at(1))).collect();
        for (home, away) in home.iter().zip(&away) {
            assert!(if home == "b3" { away != "b3" } else { away == home }, "{balance:?}: {home} {away}");
        }
        pool.set_health(nth(&pool, 3), Health::Up, at(2));
        let mut back = vec![false; home.len()];
        for second in 2..=2 + SLOW {
            for (number, back) in (0..).zip(&mut back) {
                let now = who(number, at(second));
                let (home, away) = (&home[usize::try_from(number).unwrap()], &away[usize::try_from(number).unwrap()]);
                assert!(now == *home || (now == *away && !*back), "{balance:?}: {number} went {now}");
                *back = now == *home;
            }
        }
        assert!(back.iter().all(|back| *back), "{balance:?}");
    }
}
