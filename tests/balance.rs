//! Which backend gets the next connection, seen from outside.

use std::{
    collections::BTreeMap,
    io::Read,
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use crate::support::{
    Backend, Gate, Metrics, Variant,
    backend::{Refusing, Unanswering},
    client,
    gate::{backend, pool, tcp},
    patient,
    tags::End,
};

const NAMES: [&str; 3] = ["a", "b", "c"];

fn three() -> [Backend; 3] {
    NAMES.map(Backend::named)
}

fn addresses(backends: &[Backend]) -> Vec<SocketAddr> {
    backends.iter().map(|b| b.address).collect()
}

fn balanced(policy: &str, backends: &[Backend]) -> Gate {
    Gate::start(&(tcp("") + &pool(&format!("balance = \"{policy}\""), &addresses(backends))))
}

/// Who answers, in this many visits.
fn visit(gate: &Gate, count: usize) -> Vec<String> {
    (0..count).map(|_| client::ask(gate.address("tcp"))).collect()
}

fn shares(answers: &[String]) -> BTreeMap<&str, usize> {
    let mut shares = BTreeMap::new();
    for answer in answers {
        *shares.entry(answer.as_str()).or_default() += 1;
    }
    shares
}

fn retries(metrics: &Metrics) -> u64 {
    metrics.count("sluicegate_pool_retries_total", &[("pool", "web")])
}

fn connect_failures(metrics: &Metrics, reason: &str) -> u64 {
    metrics.count("sluicegate_backend_connect_failures_total", &[("pool", "web"), ("reason", reason)])
}

#[test]
fn b13_round_robin_is_one_order_for_all_workers() {
    for variant in [Variant::AUTO, Variant::ONE_WORKER, Variant::SHARED_SOCKET] {
        let backends = three();
        let gate = Gate::plan(&(tcp("") + &pool("", &addresses(&backends)))).variant(variant).start();
        let answers = visit(&gate, 60);
        for window in answers.windows(3) {
            assert_eq!(shares(window).len(), 3, "any three in a row are three: {answers:?}");
        }
        assert_eq!(backends.each_ref().map(Backend::accepted), [20, 20, 20]);
    }
}

#[test]
fn b13_weights_are_kept() {
    let backends = three();
    let list = (NAMES.iter().zip(&backends).zip(1..))
        .map(|((name, b), weight)| backend(name, b.address, &format!("weight = {weight}")));
    let gate = Gate::start(&(tcp("") + &list.collect::<String>()));
    let answers = visit(&gate, 600);
    assert_eq!(shares(&answers), BTreeMap::from([("a", 100), ("b", 200), ("c", 300)]));
    let metrics = gate.metrics();
    for (name, count) in [("a", 100), ("b", 200), ("c", 300)] {
        assert_eq!(metrics.count("sluicegate_backend_connections_total", &[("pool", "web"), ("backend", name)]), count);
        assert_eq!(metrics.count("sluicegate_backend_weight", &[("backend", name)]), count / 100);
    }
}

#[test]
fn a_weight_of_zero_takes_nothing() {
    let backends = three();
    let list = (NAMES.iter().zip(&backends).zip([1, 0, 1]))
        .map(|((name, b), weight)| backend(name, b.address, &format!("weight = {weight}")));
    let gate = Gate::start(&(tcp("") + &list.collect::<String>()));
    assert_eq!(shares(&visit(&gate, 10)), BTreeMap::from([("a", 5), ("c", 5)]));
}

/// The same source always meets the same backend, and the sources spread.
fn sticks_to_the_source(policy: &str) {
    let backends = three();
    let gate = balanced(policy, &backends);
    let mut answers = Vec::new();
    for n in 0..90_u8 {
        let source = IpAddr::from(Ipv4Addr::new(127, 1 + n % 7, n, 1 + n % 250));
        let visits = [0; 3].map(|_| client::ask_over(client::connect_from(source, gate.address("tcp"))));
        assert!(visits.iter().all(|v| *v == visits[0]), "{source}: {visits:?}");
        answers.push(visits[0].clone());
    }
    let shares = shares(&answers);
    assert!(NAMES.iter().all(|name| shares.get(name).is_some_and(|n| (10..=55).contains(n))), "{shares:?}");
}

#[test]
fn ip_hash_sticks_to_the_source() {
    sticks_to_the_source("ip_hash");
}

#[test]
fn maglev_sticks_to_the_source() {
    sticks_to_the_source("maglev");
}

/// B10: the choice of one process is the choice of the next.
#[test]
fn b10_a_restart_changes_no_choice() {
    let backends = three();
    for policy in ["ip_hash", "maglev"] {
        let choices = [(); 2].map(|()| {
            let gate = balanced(policy, &backends);
            let sources = (1..=30).map(|n| IpAddr::from(Ipv4Addr::new(127, 0, 3, n)));
            sources.map(|s| client::ask_over(client::connect_from(s, gate.address("tcp")))).collect::<Vec<_>>()
        });
        assert_eq!(choices[0], choices[1], "{policy}");
    }
}

/// Opens a connection to a greeting backend and keeps it; the name it got.
fn hold(address: SocketAddr) -> (u8, TcpStream) {
    let mut stream = client::connect(address);
    let mut name = [0];
    stream.read_exact(&mut name).unwrap();
    (name[0], stream)
}

fn greeting_three() -> [Backend; 3] {
    [Backend::greeting(b"a"), Backend::greeting(b"b"), Backend::greeting(b"c")]
}

#[test]
fn least_conn_fills_the_emptiest() {
    let backends = greeting_three();
    let gate = balanced("least_conn", &backends);
    let mut held: Vec<_> = (0..15).map(|_| hold(gate.address("tcp"))).collect();
    assert_eq!(backends.each_ref().map(Backend::live), [5, 5, 5]);
    held.retain(|(name, _)| *name != b'b');
    gate.wait_metrics("ten left", |m| m.count("sluicegate_backend_connections", &[("pool", "web")]) == 10);
    let next: Vec<u8> = (0..5)
        .map(|_| {
            let (name, stream) = hold(gate.address("tcp"));
            held.push((name, stream));
            name
        })
        .collect();
    assert_eq!(next, [b'b'; 5], "every new one goes where nothing is");
    drop(held);
    gate.finish();
}

#[test]
fn p2c_spreads_and_avoids_the_loaded() {
    let backends = greeting_three();
    let gate = balanced("p2c", &backends);
    let held: Vec<_> = (0..60).map(|_| hold(gate.address("tcp"))).collect();
    let live = backends.each_ref().map(Backend::live);
    assert!(live.iter().all(|n| (14..=26).contains(n)), "{live:?}");
    drop(held);
    gate.finish();
}

#[test]
fn a_backup_waits_for_the_active_ones_to_fail() {
    let (refusing, other, sorry) = (Refusing::new(), Backend::named("a"), Backend::named("sorry"));
    let list = |first: SocketAddr, second: SocketAddr| {
        [tcp(""), backend("1", first, ""), backend("2", second, ""), backend("3", sorry.address, "role = \"backup\"")]
            .concat()
    };
    let gate = Gate::start(&list(refusing.address, other.address));
    assert_eq!(shares(&visit(&gate, 10)), BTreeMap::from([("a", 10)]));
    gate.finish();
    assert_eq!(sorry.accepted(), 0, "one active backend was left");
    let second = Refusing::new();
    let gate = Gate::start(&list(refusing.address, second.address));
    assert_eq!(shares(&visit(&gate, 10)), BTreeMap::from([("sorry", 10)]));
}

#[test]
fn b1_a_failed_connect_moves_on_and_is_counted() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let gate = Gate::start(&(tcp("") + &pool("", &[refusing.address, good.address])));
    assert_eq!(shares(&visit(&gate, 20)), BTreeMap::from([("good", 20)]));
    assert_eq!(good.accepted(), 20, "each request reached one backend, once");
    let records = gate.wait_records(20);
    let attempts: u64 = records.iter().map(|r| r["attempts"].as_u64().unwrap()).sum();
    let metrics = gate.wait_outcome("backend_closed", 20);
    assert!(retries(&metrics) >= 1, "the refusing one was tried");
    assert_eq!(attempts, 20 + retries(&metrics));
    assert_eq!(connect_failures(&metrics, "refused"), retries(&metrics));
    assert_eq!(metrics.count("sluicegate_backend_connections_total", &[("backend", &good.address.to_string())]), 20);
}

#[test]
fn b1_a_backend_that_does_not_answer_the_syn_is_left() {
    let (silent, good) = (Unanswering::new(), Backend::named("good"));
    let timeouts = "[pool.web.timeouts]\nconnect = \"200ms\"\n";
    let gate = Gate::start(&[&tcp(""), &pool("", &[silent.address, good.address]), timeouts].concat());
    assert_eq!(shares(&visit(&gate, 4)), BTreeMap::from([("good", 4)]));
    let metrics = gate.wait_outcome("backend_closed", 4);
    assert!(retries(&metrics) >= 1);
    assert_eq!(connect_failures(&metrics, "timeout"), retries(&metrics));
}

#[test]
fn without_retries_a_refused_connect_ends_the_connection() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let gate = Gate::start(&(tcp("") + &pool("retries = 0", &[refusing.address, good.address])));
    let served = (0..10).filter(|_| client::read_all(&mut client::connect(gate.address("tcp"))).0 == b"good").count();
    assert_eq!(served, 5);
    let metrics = gate.wait_outcome("connect_failed", 5);
    assert_eq!((retries(&metrics), connect_failures(&metrics, "refused")), (0, 5));
    assert_eq!(good.accepted(), 5);
}

#[test]
fn b6_every_backend_down_is_told_at_once() {
    let down = [Refusing::new(), Refusing::new()];
    let gate = Gate::start(&(tcp("") + &pool("", &down.each_ref().map(|r| r.address))));
    let start = std::time::Instant::now();
    let (bytes, end) = client::read_all(&mut client::connect(gate.address("tcp")));
    assert!(bytes.is_empty() && matches!(end, End::Eof | End::Reset), "{end:?}");
    assert!(start.elapsed() < patient(Duration::from_secs(2)), "{:?}", start.elapsed());
    let metrics = gate.wait_outcome("connect_failed", 1);
    assert_eq!((retries(&metrics), connect_failures(&metrics, "refused")), (1, 2), "never the same one twice");
}
