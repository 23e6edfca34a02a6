use std::{collections::VecDeque, net::Ipv4Addr, thread};

use proptest::{collection::vec, prelude::*};

use super::*;
use crate::config::ConnectionRate;

const ROOM: usize = 1_024;

fn number(number: u32) -> NonZeroU32 {
    NonZeroU32::new(number).unwrap()
}

fn limits(connections: Option<u32>, rate: Option<(u32, u32)>, exempt: &[&str]) -> SourceLimits {
    let config = config::SourceLimits {
        connections: connections.map(number),
        rate: rate.map(|(new, burst)| ConnectionRate { new_per_second: number(new), burst: number(burst) }),
        exempt: exempt.iter().map(|network| network.parse().unwrap()).collect(),
        prefixes: Prefixes::DEFAULT,
    };
    SourceLimits::new(&config, Sources::new(config.prefixes, ROOM, [3; 16]))
}

fn client(number: u32) -> IpAddr {
    Ipv4Addr::from_bits(number).into()
}

fn place(answer: Answer) -> Option<SourcePlace> {
    match answer {
        Answer::Place { place, .. } => Some(place),
        Answer::Limited(_) => None,
        other => panic!("{other:?}"),
    }
}

#[test]
fn f9_connections_are_counted_exactly_whoever_asks() {
    let limits = limits(Some(100), None, &[]);
    let places: Vec<_> = thread::scope(|scope| {
        let ask = || (0..100).filter_map(|_| place(limits.take(client(1), Duration::ZERO))).collect::<Vec<_>>();
        let threads: Vec<_> = (0..8).map(|_| scope.spawn(ask)).collect();
        threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect()
    });
    assert_eq!(places.len(), 100);
    assert!(place(limits.take(client(2), Duration::ZERO)).is_some(), "another source");
    drop(places);
    let again: Vec<_> = (0..200).filter_map(|_| place(limits.take(client(1), Duration::ZERO))).collect();
    assert_eq!(again.len(), 100);
}

#[test]
fn f8_addresses_of_one_64_share_a_limit() {
    let limits = limits(Some(10), None, &[]);
    let ask = |net: u32| {
        (0..1_000)
            .filter_map(|host| {
                place(limits.take(format!("2001:db8:0:{net:x}::{host:x}").parse().unwrap(), Duration::ZERO))
            })
            .collect::<Vec<_>>()
    };
    let (one, two) = (ask(1), ask(2));
    assert_eq!((one.len(), two.len()), (10, 10));
}

#[test]
fn exempt_sources_are_not_counted() {
    let limits = limits(Some(1), Some((1, 1)), &["192.0.2.0/24", "2001:db8::/32"]);
    for _ in 0..10 {
        for client in ["192.0.2.7", "::ffff:192.0.2.7", "2001:db8::1"] {
            assert!(matches!(limits.take(client.parse().unwrap(), Duration::ZERO), Answer::Exempt));
        }
    }
    assert_eq!(limits.sources().known(), 0);
}

#[test]
fn a_burst_and_then_the_rate() {
    let limits = limits(None, Some((10, 5)), &[]);
    let ask = |millis: u64| {
        let ask = || place(limits.take(client(1), Duration::from_millis(millis))).is_some();
        (0..20).filter(|_| ask()).count()
    };
    assert_eq!([ask(1_000), ask(1_000), ask(1_099), ask(1_100), ask(1_350), ask(60_000)], [5, 0, 0, 1, 2, 5]);
}

#[test]
fn what_is_refused_takes_no_token() {
    let limits = limits(Some(1), Some((1, 2)), &[]);
    let first = place(limits.take(client(1), Duration::ZERO)).unwrap();
    for _ in 0..10 {
        assert!(matches!(limits.take(client(1), Duration::ZERO), Answer::Limited(LimitReason::Connections)));
    }
    drop(first);
    let _second = place(limits.take(client(1), Duration::ZERO)).expect("the second token");
}

#[test]
fn f9_sources_with_connections_stay_and_others_are_let_in_uncounted() {
    let limits = limits(Some(1), None, &[]);
    let room = u32::try_from(limits.sources().room()).unwrap();
    let mut answers: Vec<_> = (0..4 * room).map(|n| limits.take(client(n), Duration::ZERO)).collect();
    let counted = answers.iter().filter(|answer| matches!(answer, Answer::Place { .. })).count();
    let uncounted = answers.iter().filter(|answer| matches!(answer, Answer::Uncounted)).count();
    println!("{counted} counted, {uncounted} not, of {}", answers.len());
    assert_eq!((counted + uncounted, limits.sources().known()), (answers.len(), counted));
    assert!(counted > limits.sources().room() * 9 / 10);
    for n in 0..4 * room {
        let is_known = matches!(answers[n as usize], Answer::Place { .. });
        let answer = limits.take(client(n), Duration::ZERO);
        assert_eq!(matches!(answer, Answer::Limited(_)), is_known, "a source that was counted still is");
    }
    answers.clear();
    let evicted = |answer| matches!(answer, Answer::Place { evicted: true, .. });
    assert!((4 * room..8 * room).filter(|n| evicted(limits.take(client(*n), Duration::ZERO))).count() > 0);
}

#[test]
fn f9_a_million_sources_take_no_more_memory() {
    let limits = limits(Some(5), Some((1, 1)), &[]);
    let before = limits.sources().heap_bytes();
    let begin = std::time::Instant::now();
    for n in 0..1_000_000 {
        drop(limits.take(client(n), Duration::from_nanos(n.into())));
    }
    println!("{:?} for each of 1,000,000 sources", begin.elapsed() / 1_000_000);
    assert_eq!(limits.sources().heap_bytes(), before);
    assert_eq!(limits.sources().known(), limits.sources().room());
}

/// One source as one would write it without a thought for memory: every visit is remembered.
struct Naive {
    live: u32,
    tokens_ns: u128,
    last: u64,
}

proptest! {
    /// A bucket of tokens filled with time, and a count.
    #[test]
    fn f9_answers_are_those_of_a_naive_model(
        most in 1..6_u32, new in 1..50_u32, burst in 1..10_u32,
        steps in vec((0..400_u64, 0..4_u32, any::<bool>()), 1..300),
    ) {
        let limits = limits(Some(most), Some((new, burst)), &[]);
        let second = 1_000_000_000_u128;
        let interval = second / u128::from(new);
        let full = u128::from(burst) * interval;
        let mut models: Vec<_> = (0..4).map(|_| Naive { live: 0, tokens_ns: full, last: 0 }).collect();
        let mut places: Vec<VecDeque<SourcePlace>> = (0..4).map(|_| VecDeque::new()).collect();
        let mut now = 0;
        for (pause, who, leaves) in steps {
            now += pause * 1_000_000;
            let (model, places) = (&mut models[who as usize], &mut places[who as usize]);
            if leaves && places.pop_front().is_some() {
                model.live -= 1;
                continue;
            }
            model.tokens_ns = (model.tokens_ns + u128::from(now - model.last)).min(full);
            model.last = now;
            let expected = match () {
                () if model.live >= most => Err(LimitReason::Connections),
                () if model.tokens_ns < interval => Err(LimitReason::Rate),
                () => {
                    model.live += 1;
                    model.tokens_ns -= interval;
                    Ok(())
                }
            };
            match limits.take(client(who), Duration::from_nanos(now)) {
                Answer::Place { place, .. } => {
                    prop_assert_eq!(Ok(()), expected);
                    places.push_back(place);
                }
                Answer::Limited(reason) => prop_assert_eq!(Err(reason), expected),
                other => panic!("{other:?}"),
            }
        }
    }
}
