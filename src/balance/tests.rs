//! What holds for every policy, and what hashing has to keep from release to release.

#![expect(clippy::cast_possible_truncation, reason = "drawn numbers are cut to size on purpose")]

use std::{
    cell::Cell,
    net::{IpAddr, Ipv4Addr},
};

use super::{
    hash::{draw, mix},
    *,
};

fn names(count: usize) -> Vec<String> {
    (0..count).map(|index| format!("10.0.{}.{}:8080", index / 250, index % 250 + 1)).collect()
}

fn weighted<'a>(names: &'a [String], weights: &[u16]) -> Vec<Member<'a>> {
    names.iter().zip(weights).map(|(name, weight)| Member { name, weight: *weight }).collect()
}

fn request(turn: u64) -> Request {
    let source = IpAddr::V4(Ipv4Addr::from_bits((mix(turn) >> 32) as u32));
    Request { source, ticket: turn, random: draw(99, turn) }
}

fn always(_: usize) -> bool {
    true
}

fn idle(_: usize) -> u32 {
    0
}

/// Picks of `count` requests by member.
fn spread(picker: &Picker, members: usize, count: u64, eligible: impl Fn(usize) -> bool) -> Vec<u32> {
    let mut counts = vec![0; members];
    for turn in 0..count {
        counts[picker.pick(&request(turn), idle, &eligible).unwrap()] += 1;
    }
    counts
}

#[test]
fn a_word_names_a_policy() {
    for balance in Balance::ALL {
        assert_eq!(Balance::from_word(balance.as_str()), Some(balance));
    }
    assert_eq!(Balance::from_word("Maglev"), None);
}

#[test]
fn a_pick_is_always_eligible_and_weighted_and_is_made_whenever_it_can_be() {
    let all_names = names(40);
    for case in 0..400_u64 {
        let count = draw(case, 0) % 41;
        let thin = 1 + draw(case, 1) % 6;
        let weights: Vec<u16> = (0..count)
            .map(|index| match draw(case, 100 + index) {
                r if !r.is_multiple_of(thin) => 0,
                r => [1, 1, 2, 256, 65_535][(r >> 32) as usize % 5],
            })
            .collect();
        let up: Vec<bool> = (0..count).map(|index| !draw(case, 200 + index).is_multiple_of(3)).collect();
        let members = weighted(&all_names, &weights);
        let possible = weights.iter().zip(&up).any(|(weight, up)| *weight > 0 && *up);
        for balance in Balance::ALL {
            // A table for each case would be slow in debug builds.
            if balance == Balance::Maglev && case % 20 > 0 {
                continue;
            }
            let picker = Picker::build(balance, &members, &DEFAULT_KEY);
            for turn in 0..50 {
                let load = |index| (draw(case, 300 + turn + index as u64) % 5) as u32;
                let pick = picker.pick(&request(turn), load, |index| up[index]);
                assert_eq!(pick.is_some(), possible, "{balance:?} {weights:?} {up:?}");
                assert!(pick.is_none_or(|index| up[index] && weights[index] > 0), "{balance:?} {pick:?}");
            }
        }
    }
}

#[test]
fn health_that_changes_during_a_pick_does_no_harm() {
    let all_names = names(9);
    let members = weighted(&all_names, &[1, 2, 3, 0, 5, 6, 7, 8, 256]);
    for balance in Balance::ALL {
        let picker = Picker::build(balance, &members, &DEFAULT_KEY);
        for turn in 0..1_000 {
            let asked = Cell::new(turn);
            let flapping = |_| {
                asked.set(asked.get() + 1);
                draw(5, asked.get()).is_multiple_of(3)
            };
            let pick = picker.pick(&request(turn), |_| draw(6, asked.get()) as u32, flapping);
            assert!(pick.is_none_or(|index| index != 3 && index < 9), "{balance:?}");
        }
    }
}

#[test]
fn every_policy_honours_weights() {
    let all_names = names(3);
    let members = weighted(&all_names, &[1, 2, 3]);
    for balance in [Balance::RoundRobin, Balance::IpHash, Balance::Maglev] {
        let counts = spread(&Picker::build(balance, &members, &DEFAULT_KEY), 3, 60_000, always);
        for (count, fair) in counts.iter().zip([10_000_u32, 20_000, 30_000]) {
            assert!(count.abs_diff(fair) <= fair / 25, "{balance:?} {counts:?}");
        }
    }
}

#[test]
fn s20_a_slow_member_gets_less_than_a_third_of_its_fair_share() {
    // Four members; connections on the last one take ten times as long as on the others.
    let all_names = names(4);
    let members = weighted(&all_names, &[1; 4]);
    for balance in [Balance::LeastConn, Balance::P2c] {
        let picker = Picker::build(balance, &members, &DEFAULT_KEY);
        let mut ends: [Vec<u64>; 4] = Default::default();
        let mut counts = [0_u64; 4];
        for turn in 0..20_000_u64 {
            // One arrival per tick, at three quarters of what the pool can carry.
            for member in &mut ends {
                member.retain(|end| *end > turn);
            }
            let index = picker.pick(&request(turn), |index| ends[index].len() as u32, always).unwrap();
            ends[index].push(turn + if index == 3 { 300 } else { 30 });
            counts[index] += 1;
        }
        assert!(counts[3] < 20_000 / 4 / 3, "{balance:?} {counts:?}");
    }
}

#[test]
fn b11_s19_only_the_share_of_a_member_that_went_down_moves() {
    let all_names = names(7);
    let members = weighted(&all_names, &[1, 1, 2, 3, 1, 5, 1]);
    for balance in [Balance::IpHash, Balance::Maglev] {
        let picker = Picker::build(balance, &members, &DEFAULT_KEY);
        let mut inherited = [0; 7];
        for turn in 0..20_000 {
            let pick = |down: &[usize]| picker.pick(&request(turn), idle, |index| !down.contains(&index)).unwrap();
            let (all, one_down, two_down) = (pick(&[]), pick(&[3]), pick(&[3, 5]));
            if all == 3 {
                inherited[one_down] += 1;
            } else {
                assert_eq!(all, one_down, "{balance:?}");
            }
            if one_down != 5 {
                assert_eq!(one_down, two_down, "{balance:?}");
            }
        }
        assert!(inherited.iter().enumerate().all(|(index, count)| (index == 3) == (*count == 0)), "{inherited:?}");
    }
}

#[test]
fn ip_hash_moves_only_the_share_of_a_member_that_is_taken_out() {
    let all_names = names(6);
    let members = weighted(&all_names, &[1, 2, 3, 1, 2, 3]);
    let full = Picker::build(Balance::IpHash, &members, &DEFAULT_KEY);
    let fewer = Picker::build(Balance::IpHash, &members[..5], &DEFAULT_KEY);
    for turn in 0..20_000 {
        let (before, after) = (full.pick(&request(turn), idle, always), fewer.pick(&request(turn), idle, always));
        assert!(before == Some(5) || before == after);
    }
}

#[test]
fn f1_every_spelling_of_an_address_is_the_same_client() {
    let all_names = names(50);
    let members = weighted(&all_names, &[1; 50]);
    for balance in [Balance::IpHash, Balance::Maglev] {
        let picker = Picker::build(balance, &members, &DEFAULT_KEY);
        for turn in 0..1_000 {
            let plain = request(turn);
            let IpAddr::V4(v4) = plain.source else { panic!("requests are IPv4 here") };
            let mapped = Request { source: IpAddr::V6(v4.to_ipv6_mapped()), ..plain };
            assert_eq!(picker.pick(&plain, idle, always), picker.pick(&mapped, idle, always));
        }
    }
}

#[test]
fn b10_pickers_with_one_key_agree_and_with_two_do_not() {
    let all_names = names(10);
    let members = weighted(&all_names, &[1; 10]);
    for balance in [Balance::IpHash, Balance::Maglev] {
        let build = |key| Picker::build(balance, &members, key);
        let (one, same, other) = (build(&DEFAULT_KEY), build(&DEFAULT_KEY), build(b"another key here"));
        let mut differ = 0;
        for turn in 0..10_000 {
            let pick = |picker: &Picker| picker.pick(&request(turn), idle, always);
            assert_eq!(pick(&one), pick(&same));
            differ += u32::from(pick(&one) != pick(&other));
        }
        assert!((8_700..9_300).contains(&differ), "{balance:?}: {differ} of 10,000, 9,000 expected");
    }
}

/// Computed apart from this code, from the papers and the comments alone.
///
/// A change of these figures moves every client of every installation: it is a new algorithm with a new name.
#[test]
fn b10_golden_values_are_kept() {
    let all_names = names(10);
    let members = weighted(&all_names, &[1, 1, 2, 3, 1, 1, 4, 1, 1, 2]);
    let key = b"0123456789abcdef";
    let sources = [
        "192.0.2.1",
        "192.0.2.2",
        "198.51.100.77",
        "203.0.113.200",
        "::ffff:10.1.2.3",
        "2001:db8::1",
        "2001:db8::2",
        "fe80::1",
    ];
    let picks = |balance| {
        let picker = Picker::build(balance, &members, key);
        sources.map(|source| {
            let request = Request { source: source.parse().unwrap(), ticket: 0, random: 0 };
            picker.pick(&request, idle, always).unwrap()
        })
    };
    assert_eq!(picks(Balance::IpHash), [3, 3, 6, 2, 2, 6, 2, 7]);
    assert_eq!(picks(Balance::Maglev), [5, 8, 2, 1, 9, 8, 6, 5]);
}

#[test]
fn a_picker_can_be_shared_by_threads() {
    fn shared<T: Send + Sync>() {}
    shared::<Picker>();
}
