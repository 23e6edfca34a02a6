//! Backends that are killed, stopped, or come and go, under load.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, Signal, getrlimit, prlimit};

use super::{backends, full, is_up, transitions};
use crate::support::{
    Backend, Gate, LATE, Load, SOON, WebServer, client,
    gate::tcp,
    load::{faults, slowest},
    patient, wait_for, wait_until,
};

fn addresses(servers: &[WebServer]) -> Vec<SocketAddr> {
    servers.iter().map(|server| server.address).collect()
}

#[test]
fn s1_a_killed_backend_costs_no_new_connection() {
    let (kills, rate) = if full() { (20, 2_000) } else { (4, 400) };
    let Some(mut servers) = (0..4).map(|_| WebServer::start()).collect::<Option<Vec<_>>>() else { return };
    let check = "[pool.web]\ncheck = { type = \"tcp\", every = \"100ms\", timeout = \"100ms\" }\n";
    let toml = tcp("") + check + &backends(&addresses(&servers)) + "[log]\naccess = \"off\"\n";
    let gate = Gate::plan(&toml).checked().start();
    let load = Load::start(gate.address("tcp"), rate, 8);
    let mut gone = Vec::new();
    for kill in 0..kills {
        let (server, name) = (&mut servers[kill % 4], format!("b{}", kill % 4));
        let count = load.count();
        wait_until(SOON, "load before the kill", || load.count() > count + 50);
        let killed = Instant::now();
        server.kill();
        gone.push((killed, Instant::now()));
        // By a check: a recovery ends an ejection only after that.
        let downs = kill as u64 / 4 + 1;
        gate.wait_metrics("down", |metrics| {
            let labels = [("to", "down"), ("backend", name.as_str())];
            metrics.count("sluicegate_backend_transitions_total", &labels) == downs
        });
        let count = load.count();
        wait_until(SOON, "load without it", || load.count() > count + 50);
        server.revive();
        gate.wait_metrics("up", |metrics| is_up(metrics, &name));
    }
    let visits = load.finish();
    // Who was connected when it died may be cut; whoever came later may not notice anything.
    let faults = faults(&visits);
    let cut = |begun: Instant| gone.iter().any(|(killed, dead)| begun < *dead && *killed < begun + SOON);
    let (cut, failed): (Vec<_>, Vec<_>) = faults.into_iter().partition(|visit| cut(visit.begun));
    let seconds = (visits[visits.len() - 1].begun - visits[0].begun).as_secs_f64();
    println!(
        "S1: {kills} kills, {} connections at {:.0}/s, {} failed, {} cut with the backend, slowest {:?}",
        visits.len(),
        visits.len() as f64 / seconds,
        failed.len(),
        cut.len(),
        slowest(&visits)
    );
    assert!(failed.is_empty(), "{failed:?}");
    assert!(cut.len() <= 4 * kills, "{cut:?}");
    for visit in cut {
        let (_, dead) = gone.iter().find(|(_, dead)| visit.begun < *dead).unwrap();
        let end = visit.begun + visit.took;
        assert!(end.saturating_duration_since(*dead) <= patient(Duration::from_millis(100)), "{visit:?}");
    }
    gate.finish();
}

#[test]
fn s3_a_stopped_backend_is_out_within_three_seconds_and_back_after_two_checks() {
    let Some(servers) = (0..2).map(|_| WebServer::start()).collect::<Option<Vec<_>>>() else { return };
    let toml = tcp("") + "[pool.web]\ncheck = { type = \"http\" }\n" + &backends(&addresses(&servers));
    let gate = Gate::plan(&toml).checked().start();
    servers[0].signal(Signal::STOP);
    let begin = Instant::now();
    gate.wait_metrics("out", |metrics| !is_up(metrics, "b0"));
    let out = begin.elapsed();
    let load = Load::start(gate.address("tcp"), 200, 2);
    wait_until(SOON, "load on the other", || load.count() > 100);
    servers[0].signal(Signal::CONT);
    let begin = Instant::now();
    gate.wait_metrics("back", |metrics| is_up(metrics, "b0"));
    let back = begin.elapsed();
    let visits = load.finish();
    println!(
        "S3: out after {out:?}, back after {back:?}, {} connections, slowest {:?}",
        visits.len(),
        slowest(&visits)
    );
    assert!(faults(&visits).is_empty(), "{:?}", faults(&visits));
    assert!(out <= patient(Duration::from_secs(3)), "{out:?}");
    assert!(back <= patient(Duration::from_secs(2)), "{back:?}");
    assert_eq!(super::reasons(&gate), ["connected, but no answer within 1s"]);
    gate.finish();
}

#[test]
fn s20_a_rate_limited_backend_gets_less_and_is_not_blamed() {
    let Some(mut servers) = (0..3).map(|_| WebServer::start()).collect::<Option<Vec<_>>>() else { return };
    // An answer has about 180 bytes: more than a second of it.
    servers[0].limit(100);
    let policy = "[pool.web]\nbalance = \"least_conn\"\nslow_start = \"0s\"\n";
    let toml = tcp("") + policy + &backends(&addresses(&servers)) + "[log]\naccess = \"off\"\n";
    let gate = Gate::plan(&toml).checked().start();
    let load = Load::start(gate.address("tcp"), 400, 16);
    wait_until(LATE, "load", || load.count() >= 1_500);
    let visits = load.finish();
    let metrics = gate.metrics();
    let got = |backend| metrics.count("sluicegate_backend_connections_total", &[("backend", backend)]);
    let (limited, fast) = (got("b0"), got("b1") + got("b2"));
    println!(
        "S20: {} connections, {limited} at the limited backend, {fast} at the others, slowest {:?}",
        visits.len(),
        slowest(&visits)
    );
    assert!(faults(&visits).is_empty(), "{:?}", faults(&visits));
    assert!(limited > 0 && limited * 9 < limited + fast, "less than a third of a fair share");
    assert!(is_up(&metrics, "b0"), "slow is not down");
    assert_eq!(transitions(&metrics, "down"), 0, "and not ejected");
    gate.finish();
}

/// A backend that is there for half a second, and then is not.
struct Flapping {
    stop: Arc<AtomicBool>,
    thread: Option<thread::JoinHandle<()>>,
}

impl Flapping {
    fn start(address: SocketAddr) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let flag = Arc::clone(&stop);
        let thread = thread::spawn(move || {
            let mut backend = None;
            for turn in 0_u32.. {
                backend = (turn % 2 == 0).then(|| {
                    Backend::start_on(address, |mut stream, _| {
                        let _ = std::io::Write::write_all(&mut stream, b"a");
                    })
                });
                let end = Instant::now() + Duration::from_millis(500);
                if wait_for(end - Instant::now(), || flag.load(Ordering::Relaxed).then_some(())).is_some() {
                    break;
                }
            }
            drop(backend);
        });
        Self { stop, thread: Some(thread) }
    }
}

impl Drop for Flapping {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
    }
}

#[test]
fn b5_a_flapping_backend_takes_no_client_with_it() {
    let length = Duration::from_secs(if full() { 300 } else { 6 });
    let every = Duration::from_millis(300);
    let steady = Backend::named("a");
    let place = Backend::stall();
    let address = place.address;
    drop(place);
    let flapping = Flapping::start(address);
    let check = format!("[pool.web]\ncheck = {{ type = \"tcp\", every = \"{}ms\" }}\n", every.as_millis());
    let toml = tcp("") + &check + &backends(&[steady.address, address]) + "[log]\naccess = \"off\"\n";
    let gate = Gate::plan(&toml).checked().start();
    let begin = Instant::now();
    let mut visits = 0;
    while begin.elapsed() < length {
        assert_eq!(client::ask(gate.address("tcp")), "a");
        visits += 1;
        thread::sleep(Duration::from_millis(2));
    }
    let metrics = gate.metrics();
    let (up, down) = (transitions(&metrics, "up"), transitions(&metrics, "down"));
    println!("S18: {visits} connections, 0 failed, {up} times up, {down} times down in {:?}", begin.elapsed());
    let windows = begin.elapsed().as_millis() / (2 * every.as_millis() * 99 / 100) + 1;
    assert!(u128::from(up + down) <= windows, "{up} + {down} transitions, {windows} windows");
    assert!(up.abs_diff(down) <= 1, "{up} and {down}");
    drop(flapping);
    gate.finish();
}

#[test]
fn a6_a_check_that_this_host_cannot_ask_is_told_once_and_changes_nothing() {
    let backend = Backend::stall();
    let check = "[pool.web]\ncheck = { type = \"tcp\", every = \"50ms\", fall = 1 }\n";
    let gate = Gate::plan(&(tcp("") + check + &backends(&[backend.address]))).checked().start();
    let pid = rustix::process::Pid::from_raw(gate.process.pid().cast_signed());
    let limit = |current| {
        let own = getrlimit(Resource::Nofile);
        prlimit(pid, Resource::Nofile, Rlimit { current, maximum: own.maximum }).unwrap()
    };
    let told = |text: &str| gate.process.messages().iter().filter(|message| message["message"] == text).count();
    let (begin, end) = ("backend cannot be checked from here: it stays as it is", "backend can be checked again");
    // No descriptor is free any more.
    let before = limit(Some(1));
    wait_until(SOON, "a line that says so", || told(begin) > 0);
    let accepted = backend.accepted();
    std::thread::sleep(Duration::from_millis(300));
    assert_eq!(backend.accepted(), accepted, "checks go on");
    limit(before.current);
    wait_until(SOON, "a line that says it is over", || told(end) > 0);
    assert_eq!((told(begin), told(end)), (1, 1), "{}", gate.process.stderr.text());
    let metrics = gate.metrics();
    assert!(metrics.count("sluicegate_health_checks_total", &[("result", "local")]) > 1);
    assert_eq!(transitions(&metrics, "down"), 0);
    gate.finish();
}

#[test]
fn r18_a_stop_of_our_own_is_no_fault_of_a_backend() {
    let backend = Backend::greeting(b"");
    let slow = Backend::start(|mut stream, _| {
        // Answers late enough that a stop falls into a check.
        thread::sleep(Duration::from_millis(150));
        let _ = std::io::Write::write_all(&mut stream, b"well");
        let _ = std::io::Read::read(&mut stream, &mut [0]);
    });
    let check = "[pool.web]\ncheck = { type = \"send_expect\", expect = \"well\", every = \"200ms\", timeout = \"200ms\", fall = 1 }\n";
    let gate = Gate::plan(&(tcp("") + check + &backends(&[slow.address]))).checked().start();
    for _ in 0..3 {
        let before = slow.accepted();
        wait_until(SOON, "a check that runs", || slow.accepted() > before);
        gate.process.signal(Signal::STOP);
        thread::sleep(Duration::from_millis(1_700));
        gate.process.signal(Signal::CONT);
    }
    let metrics =
        gate.wait_metrics("checks afterwards", |m| m.count("sluicegate_health_checks_total", &[("result", "ok")]) > 5);
    assert_eq!(transitions(&metrics, "down"), 0, "{}", gate.process.stderr.text());
    drop(backend);
    gate.finish();
}
