//! S27, O10: what the metrics say is true at every moment, and asking costs clients nothing.

use std::{
    fmt::Write as _,
    net::TcpStream,
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{full, p99, repeat_for};
use crate::support::{
    Backend, Gate, Metrics, SOON, Stand, Variant,
    client::{self, exchange},
    gate::{https, pool, tcp},
    metrics::get,
    raise_descriptor_limit, turn, wait_until,
};

/// Accepted is closed and live together, for each listener.
fn assert_adds_up(metrics: &Metrics) {
    for listener in ["tcp", "https"] {
        let count = |name| metrics.count(name, &[("listener", listener)]);
        let (accepted, live) = (count("sluicegate_listener_accepted_total"), count("sluicegate_listener_connections"));
        assert_eq!(accepted, live + count("sluicegate_connections_closed_total"), "{listener}");
    }
}

#[test]
fn s27_o10_every_scrape_adds_up_and_bytes_are_the_clients_own() {
    const THREADS: u64 = 4;
    const MESSAGE: &[u8] = &[b'm'; 1_000];
    let time = Duration::from_secs(if full() { 20 } else { 2 });
    let backend = Backend::echo();
    let gate = Gate::start(&[tcp(""), https(""), pool("", &[backend.address])].concat());
    let (stop, connections, messages) = (AtomicBool::new(false), AtomicU64::new(0), AtomicU64::new(0));
    let visit = |thread: u64| {
        while !stop.load(Ordering::SeqCst) {
            let mut stream = client::open(&gate, client::PLAIN_AND_TLS[thread as usize % 2]);
            let number = connections.fetch_add(1, Ordering::SeqCst);
            for _ in 0..=number % 5 {
                exchange(&mut stream, MESSAGE);
                messages.fetch_add(1, Ordering::SeqCst);
            }
            if number % 7 == 0 {
                client::reset_on_close(stream.socket());
            }
        }
    };
    let scrapes = thread::scope(|scope| {
        for thread in 0..THREADS {
            scope.spawn(move || visit(thread));
        }
        let scrapes = repeat_for(time, || assert_adds_up(&gate.metrics()));
        stop.store(true, Ordering::SeqCst);
        scrapes.len()
    });
    let (connections, messages) = (connections.into_inner(), messages.into_inner());
    let metrics = gate.wait_metrics("the end of all", |m| m.count("sluicegate_listener_connections", &[]) == 0);
    let bytes = messages * MESSAGE.len() as u64;
    println!("S27: {scrapes} scrapes beside {connections} connections, each adds up; {bytes} bytes each way");
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[]), connections);
    for name in ["sluicegate_listener_received_bytes_total", "sluicegate_listener_sent_bytes_total"] {
        assert_eq!(metrics.count(name, &[]), bytes, "{name}");
    }
    assert_eq!(metrics.count("sluicegate_relay_bytes_total", &[]), 2 * bytes);
    assert_eq!(metrics.count("sluicegate_backend_connections_total", &[]), connections);
    gate.finish();
}

/// A debug build takes twenty times as long, and more beside other tests.
fn allowed_for_a_scrape() -> Duration {
    Duration::from_millis(if cfg!(debug_assertions) { 3_000 } else { 20 })
}

#[test]
fn s27_a_scrape_of_a_thousand_backends_and_many_connections_is_quick() {
    let count = if full() { 8_000 } else { 500 };
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::greeting(b"hi");
    let list = (0..1_000).fold(String::new(), |mut list, number| {
        write!(list, "\"127.1.{}.{}:9\", ", number / 250, number % 250 + 1).unwrap();
        list
    });
    let many = format!("[listener.many]\nbind = \"127.0.0.1:0\"\npool = \"many\"\n[pool.many]\nbackends = [{list}]\n");
    let toml = [&tcp(""), &pool("", &[backend.address]), &many, "[log]\naccess = \"off\"\n"].concat();
    let gate = Gate::start(&toml);
    let held: Vec<_> = (0..count).map(|_| client::connect(gate.address("tcp"))).collect();
    gate.wait_metrics("all served", |m| m.count("sluicegate_backend_connections", &[]) == count as u64);
    let mut size = 0;
    let mut taken = repeat_for(Duration::from_secs(2), || {
        let answer = get(gate.address("admin"), "/metrics", &[]).unwrap();
        size = answer.body.len();
    });
    taken.sort();
    let median = taken[taken.len() / 2];
    println!(
        "S27: {count} connections, 1,001 backends: a scrape of {size} bytes takes {median:?} (median of {}), {:?} at most",
        taken.len(),
        taken[taken.len() - 1]
    );
    assert!(median <= allowed_for_a_scrape(), "{median:?}");
    drop(held);
    gate.finish();
}

#[test]
fn s27_a_hundred_scrapes_a_second_leave_clients_alone() {
    const RELAYS: usize = 20;
    let time = Duration::from_secs(if full() { 10 } else { 2 });
    let _turn = turn();
    let stand = Stand::start(Variant::AUTO);
    let pairs: Vec<_> = (0..RELAYS).map(|_| stand.join_plain()).collect();
    let (mut clients, backends): (Vec<TcpStream>, Vec<TcpStream>) = pairs.into_iter().unzip();
    let echo = |mut stream: TcpStream| drop(std::io::copy(&mut stream.try_clone().unwrap(), &mut stream));
    let echoes: Vec<_> = backends.into_iter().map(|backend| thread::spawn(move || echo(backend))).collect();
    let mut next = 0;
    let mut relay = |time| {
        p99(repeat_for(time, || {
            next = (next + 1) % RELAYS;
            exchange(&mut clients[next], b"data");
        }))
    };
    let control = relay(time);
    let stop = AtomicBool::new(false);
    let (beside, scrapes) = thread::scope(|scope| {
        let scraping = scope.spawn(|| {
            let (begin, mut scrapes) = (Instant::now(), 0);
            while !stop.load(Ordering::SeqCst) {
                stand.gate.metrics();
                scrapes += 1;
                thread::sleep((Duration::from_millis(10) * scrapes).saturating_sub(begin.elapsed()));
            }
            f64::from(scrapes) / begin.elapsed().as_secs_f64()
        });
        let beside = relay(time);
        stop.store(true, Ordering::SeqCst);
        (beside, scraping.join().unwrap())
    });
    println!("S27: {scrapes:.0} scrapes a second: p99 {beside:?}, {control:?} without");
    // Client, backend, scraper and gate share the cores of the machine.
    assert!(beside <= control * 5 + Duration::from_millis(20), "{beside:?} beside, {control:?} without");
    drop(clients);
    wait_until(SOON, "the ends of the echoes", || echoes.iter().all(thread::JoinHandle::is_finished));
    stand.gate.finish();
}
