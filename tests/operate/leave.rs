//! L8, S25: the end of a process. No new client, and none that is cut off before its time.

use std::{
    collections::{BTreeMap, HashSet},
    io::{Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    sync::atomic::{AtomicUsize, Ordering},
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;

use super::site;
use crate::support::{Backend, Gate, SOON, client, gate::word, patient, raise_descriptor_limit, wait_for, wait_until};

/// Both ends of a connection through the gate; the one of the backend is kept open.
#[derive(Debug)]
struct Held {
    client: TcpStream,
    backend: TcpStream,
}

fn hold(count: usize, gate: SocketAddr, backend: &TcpListener) -> Vec<Held> {
    let connect = || Held { client: client::connect(gate), backend: backend.accept().unwrap().0 };
    (0..count).map(|_| connect()).collect()
}

/// When each of them ended, counted from `begin`.
fn ends(mut held: Vec<Held>, begin: Instant, deadline: Duration) -> Vec<Duration> {
    for pair in &held {
        pair.client.set_nonblocking(true).unwrap();
    }
    let mut ends = Vec::new();
    wait_for(deadline, || {
        held.retain_mut(|pair| {
            let open = pair.client.read(&mut [0; 16]).is_err_and(|e| e.kind() == std::io::ErrorKind::WouldBlock);
            if !open {
                ends.push(begin.elapsed());
            }
            open
        });
        held.is_empty().then_some(())
    });
    assert!(held.is_empty(), "{} are still open after {deadline:?}", held.len());
    ends
}

fn answer(admin: SocketAddr, path: &str) -> String {
    let mut stream = client::connect(admin);
    write!(stream, "GET {path} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    String::from_utf8(client::read_all(&mut stream).0).unwrap()
}

/// `SLUICEGATE_LONG=1` gives it the 30 s that are the default.
#[test]
fn l8_s25_a_drain_takes_nobody_new_and_spreads_the_ends() {
    const STAY: usize = 1000;
    const LEAVE: usize = 50;
    let is_long = std::env::var_os("SLUICEGATE_LONG").is_some();
    let patience = Duration::from_secs(if is_long { 30 } else { 6 });
    // The last third has fewer moments when it is short.
    let most = if is_long { STAY / 20 } else { STAY / 10 };
    raise_descriptor_limit();
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut gate = Gate::start(&site(backend.local_addr().unwrap(), &format!("{}s", patience.as_secs())));
    let address = gate.address("tcp");
    let stay = hold(STAY, address, &backend);
    let leave = hold(LEAVE, address, &backend);
    let known: HashSet<_> =
        stay.iter().chain(&leave).map(|pair| pair.client.local_addr().unwrap().to_string()).collect();

    let begin = Instant::now();
    gate.process.signal(Signal::TERM);
    wait_until(SOON, "a listener that is closed", || TcpStream::connect(address).is_err());
    let closed = begin.elapsed();
    assert!(closed < patience / 2, "{closed:?}");
    let ready = answer(gate.address("admin"), "/readyz");
    assert!(ready.starts_with("HTTP/1.1 503"), "{ready}");
    let live = gate.metrics().count("sluicegate_worker_connections", &[]);
    assert!(live >= (STAY + LEAVE) as u64, "{live}: metrics go on");
    for Held { client, backend } in &leave {
        for (mut from, mut to) in [(client, backend), (backend, client)] {
            let mut bytes = [0; 4];
            from.write_all(b"late").unwrap();
            to.read_exact(&mut bytes).unwrap();
            assert_eq!(&bytes, b"late");
        }
    }
    drop(leave);
    let ends = ends(stay, begin, patience + Duration::from_secs(2));
    let status = gate.process.wait(SOON);
    let exit = begin.elapsed();

    let mut moments = BTreeMap::<u128, usize>::new();
    for end in &ends {
        *moments.entry(end.as_millis() / 100).or_default() += 1;
    }
    let fullest = moments.values().max().copied().unwrap_or_default();
    println!(
        "n = {STAY}: closed to new clients after {closed:?}, ends from {:?} to {:?}, at most {fullest} in 100 ms, exit after {exit:?}",
        ends[0],
        ends[ends.len() - 1],
    );
    assert_eq!(status.and_then(|s| s.code()), Some(0), "{}", gate.process.stderr.text());
    assert!(ends[0] >= patience * 2 / 3, "{:?}", ends[0]);
    assert!(fullest <= most, "{fullest} ends in 100 ms: {moments:?}");
    assert!(exit <= patience + Duration::from_millis(500), "{exit:?}");
    // Without those that asked whether it is closed already.
    let records = gate.records().into_iter().filter(|record| known.contains(&word(record, "client")));
    let outcomes: Vec<_> = records.map(|record| word(&record, "outcome")).collect();
    let count = |outcome: &str| outcomes.iter().filter(|o| *o == outcome).count();
    assert_eq!((count("drained"), count("client_closed"), outcomes.len()), (STAY, LEAVE, STAY + LEAVE));
    gate.ended();
}

/// A reload that reads a file for a long time does not hold the end up.
#[test]
fn l8_a_stop_does_not_wait_for_a_file_that_is_being_read() {
    let backend = Backend::echo();
    let rules = "[firewall]\nrules = [{ name = \"list\", deny_file = \"deny.txt\" }]\n";
    let plan = Gate::plan(&(site(backend.address, "1s") + rules)).global("watch = false");
    let mut gate = plan.file("deny.txt", "192.0.2.0/24\n").start();
    let lines: String = (0..=255).flat_map(|a| (0..=255).map(move |b| format!("10.{a}.{b}.0/24\n"))).collect();
    std::fs::write(gate.directory.path().join("deny.txt"), lines.repeat(100)).unwrap();
    let before = gate.process.processor_time();
    gate.process.signal(Signal::HUP);
    wait_until(SOON, "a reload at work", || gate.process.processor_time() > before + Duration::from_millis(200));
    let begin = Instant::now();
    gate.process.signal(Signal::TERM);
    assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
    println!("a stop while {} MB are read: {:?}", lines.len() / 10_000, begin.elapsed());
    let told = gate.process.messages().into_iter().map(|one| word(&one, "message"));
    assert!(!told.clone().any(|message| message.starts_with("configuration re")), "it was read too soon");
    assert!(begin.elapsed() < patient(Duration::from_secs(1)), "{:?}", begin.elapsed());
    gate.ended();
}

#[test]
fn l8_an_idle_process_ends_within_100_ms() {
    let backend = Backend::echo();
    let fastest = (0..5).map(|_| {
        let mut gate = Gate::start(&site(backend.address, "30s"));
        let begin = Instant::now();
        gate.process.stop();
        gate.ended();
        begin.elapsed()
    });
    let fastest = fastest.min().unwrap();
    println!("the fastest of 5: {fastest:?}");
    assert!(fastest <= patient(Duration::from_millis(100)), "{fastest:?}");
}

#[test]
fn l8_a_second_signal_ends_it_at_once() {
    let backend = TcpListener::bind("127.0.0.1:0").unwrap();
    let mut gate = Gate::start(&site(backend.local_addr().unwrap(), "30s"));
    let held = hold(20, gate.address("tcp"), &backend);
    let begin = Instant::now();
    gate.stop_now();
    let took = begin.elapsed();
    assert!(took < patient(Duration::from_secs(2)), "{took:?}");
    assert_eq!(ends(held, begin, SOON).len(), 20);
    assert!(gate.records().iter().all(|record| word(record, "outcome") == "drained"));
}

/// The kernel has connected them before the process looked, and the process is told to stop before it looks.
#[test]
fn l8_who_waits_in_the_accept_queue_is_served() {
    const CLIENTS: usize = 200;
    let backend = Backend::echo();
    let mut gate = Gate::start(&site(backend.address, "30s"));
    let address = gate.address("tcp");
    gate.process.signal(Signal::STOP);
    let mut clients: Vec<_> = (0..CLIENTS).map(|_| client::connect(address)).collect();
    gate.process.signal(Signal::TERM);
    gate.process.signal(Signal::CONT);
    for (number, client) in clients.iter_mut().enumerate() {
        client::exchange(client, format!("client {number}").as_bytes());
    }
    drop(clients);
    let status = gate.process.wait(SOON);
    assert_eq!(status.and_then(|s| s.code()), Some(0));
    assert_eq!(gate.records().len(), CLIENTS);
    gate.ended();
}

/// Clients come as fast as they can while it stops, several times: whom the kernel connects is served.
#[test]
fn l9_no_client_is_reset_by_a_stop() {
    const STOPS: usize = 5;
    const THREADS: usize = 4;
    let backend = Backend::echo();
    let (served, reset) = (AtomicUsize::new(0), AtomicUsize::new(0));
    for _ in 0..STOPS {
        let mut gate = Gate::start(&site(backend.address, "30s"));
        let address = gate.address("tcp");
        let begin = served.load(Ordering::Relaxed);
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    // Nobody listens any more when this fails.
                    while let Ok(stream) = TcpStream::connect_timeout(&address, SOON) {
                        let mut stream = client::bounded(stream);
                        let mut byte = [0];
                        let is_served = stream.write_all(b"x").is_ok() && stream.read_exact(&mut byte).is_ok();
                        (if is_served { &served } else { &reset }).fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            wait_until(SOON, "some clients", || served.load(Ordering::Relaxed) > begin + 200);
            gate.process.signal(Signal::TERM);
        });
        assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
        gate.ended();
    }
    println!("{STOPS} stops, n = {}: {} reset", served.load(Ordering::Relaxed), reset.load(Ordering::Relaxed));
    assert_eq!(reset.into_inner(), 0);
}
