//! A1, A3, A4, S12: descriptors that run out while the process runs, and limits that follow from how many there are.

use std::{
    collections::BTreeMap,
    io::{Read, Write},
    net::TcpStream,
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Pid, Resource, Rlimit, getrlimit, prlimit};

use super::{Waiting, full, p99, repeat_for};
use crate::support::{
    Backend, Gate, Process, SOON, Stand, Strace, Variant,
    client::exchange,
    gate::{pool, tcp},
    metrics::get,
    patient,
    process::BINARY,
    programs, raise_descriptor_limit, turn, wait_until,
};

/// How many descriptors the running process may have from now on.
fn allow(process: &Process, descriptors: u64) {
    let pid = Pid::from_raw(process.pid().cast_signed());
    // It has inherited ours.
    let maximum = getrlimit(Resource::Nofile).maximum;
    prlimit(pid, Resource::Nofile, Rlimit { current: Some(descriptors), maximum }).expect("our own child");
}

/// Calls of accept that returned something: a client or an error.
fn accepts(gate: &Gate) -> u64 {
    let metrics = gate.metrics();
    metrics.count("sluicegate_listener_accepted_total", &[]) + metrics.count("sluicegate_accept_errors_total", &[])
}

fn checks(gate: &Gate) -> BTreeMap<String, u64> {
    let metrics = gate.metrics();
    let results = metrics.select("sluicegate_health_checks_total", &[]).filter(|series| series.value > 0.0);
    results.map(|series| (series.label("result").unwrap().to_owned(), series.value as u64)).collect()
}

/// The admin listener answers four times a second, each time within a second.
fn asked_for(gate: &Gate, time: Duration) {
    let (begin, mut longest) = (Instant::now(), Duration::ZERO);
    for number in 1.. {
        for path in ["/healthz", "/readyz"] {
            let asked = Instant::now();
            assert_eq!(get(gate.address("admin"), path, &[]).expect(path).status, 200, "{path}");
            longest = longest.max(asked.elapsed());
        }
        if begin.elapsed() >= time {
            break;
        }
        // The pace of a monitor, not a wait for something.
        thread::sleep((Duration::from_millis(500) * number).saturating_sub(begin.elapsed()));
    }
    println!("the slowest answer of the admin listener: {longest:?}");
    assert!(longest < patient(Duration::from_secs(1)), "{longest:?}");
}

#[test]
fn a1_s12_without_descriptors_nothing_spins_and_what_watches_goes_on() {
    const SOCKETS: u64 = 2;
    let (clients, time) = if full() { (2_000, Duration::from_secs(30)) } else { (500, Duration::from_secs(4)) };
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::greeting(b"hi");
    let check = "check = { type = \"tcp\", every = \"200ms\", timeout = \"1s\" }";
    let gate = Gate::plan(&(tcp("") + &pool(check, &[backend.address]))).checked().variant(Variant::AUTO).start();
    allow(&gate.process, 256);
    let mut waiting = Waiting::connect(gate.address("tcp"), clients);
    gate.wait_metrics("exhaustion", |m| m.count("sluicegate_accept_errors_total", &[("reason", "descriptors")]) > 0);

    let strace = Strace::attach(&gate.process, &["-e", "trace=accept4"]);
    thread::sleep(time / 4);
    if let Some(report) = strace.map(Strace::detach) {
        let rate = report.lines().filter(|line| line.contains("accept4(")).count() as f64 / (time / 4).as_secs_f64();
        println!("by strace: {:.0} accept4 a second for each of {SOCKETS} sockets", rate / SOCKETS as f64);
        assert!(rate <= 50.0 * SOCKETS as f64, "{rate}\n{report}");
    }

    let (accepted, checked) = (accepts(&gate), checks(&gate));
    let (begin, spent) = (Instant::now(), gate.process.processor_time());
    asked_for(&gate, time);
    let took = begin.elapsed().as_secs_f64();
    let spent = gate.process.processor_time().saturating_sub(spent).as_secs_f64() / took;
    let rate = (accepts(&gate) - accepted) as f64 / took / SOCKETS as f64;
    let after = checks(&gate);
    println!(
        "A1: {clients} clients, 256 descriptors, {took:.1} s: {rate:.0} accepts a second and socket, {:.1} % of a core, \
         checks {checked:?} -> {after:?}",
        spent * 100.0
    );
    assert!(rate <= 50.0, "{rate}");
    assert!(spent <= 0.05, "{spent}");
    let more = |result: &str| after.get(result).unwrap_or(&0) - checked.get(result).unwrap_or(&0);
    assert!(more("ok") as f64 >= took, "{after:?}");
    assert_eq!(more("refused") + more("timeout"), 0, "{after:?}");
    let metrics = gate.metrics();
    assert_eq!(metrics.count("sluicegate_backend_up", &[]), 1);
    // A scrape reads files too.
    assert!(metrics.count("process_open_fds", &[]) > 200 && metrics.count("process_max_fds", &[]) == 256);

    waiting.look();
    let (before, begin) = (waiting.greeted.len(), Instant::now());
    allow(&gate.process, 10_000);
    wait_until(SOON, "a client that is served", || {
        waiting.look();
        waiting.greeted.len() > before
    });
    let first = begin.elapsed();
    println!("{before} served before; the first one after descriptors are free: {first:?}");
    let busy = Duration::from_millis(if full() { 0 } else { 300 });
    assert!(first <= patient(Duration::from_millis(200) + busy), "{first:?}");
    wait_until(SOON, "everyone", || {
        waiting.look();
        waiting.silent.is_empty()
    });
    assert_eq!(gate.wait_metrics("all", |_| true).outcome("out_of_resources") as usize, waiting.refused);
    drop(waiting);
    gate.finish();
}

/// What stands in the first message of a process.
fn said_at_start(gate: &Gate) -> serde_json::Value {
    gate.process.messages().into_iter().find(|message| message["message"] == "starting").expect("a start line")
}

#[test]
fn a3_a4_the_limit_follows_from_the_descriptors_and_is_told_everywhere() {
    /// What the process keeps for itself, and what each worker has: an epoll and its like, and two for the one bind.
    const RESERVE: usize = 64;
    const WORKERS: usize = 2;
    const OF_A_WORKER: usize = 8 + 2;
    for descriptors in [256, 1_024, 20_000] {
        let plan =
            Gate::plan(&(tcp("") + &pool("", &["127.0.0.1:1".parse().unwrap()]))).admin("socket = \"admin.sock\"");
        plan.write();
        let (line, directory) = (format!("ulimit -n {descriptors}"), plan.into_directory());
        let possible = programs::shell(&line, directory.path()).success;
        if !possible {
            println!("this host allows fewer than {descriptors} descriptors");
            continue;
        }
        let process = Process::start_after(&line, &["run", "--config", "sluicegate.toml"], directory.path());
        let gate = Gate::over(process, directory, SOON);
        let start = said_at_start(&gate);
        let number = |key: &str| start[key].as_u64().unwrap() as usize;
        let (pipes, limit) = (number("pipes"), number("max_connections"));
        assert_eq!(number("descriptors"), descriptors);
        assert_eq!(limit, (descriptors - RESERVE - WORKERS * OF_A_WORKER - 2 * pipes) / 2, "{start}");
        assert!(pipes <= descriptors / 16, "{start}");
        assert_eq!(gate.metrics().count("sluicegate_listener_connections_limit", &[]) as usize, limit);
        let status = programs::shell(&format!("{BINARY} status --socket admin.sock"), gate.directory.path());
        assert!(status.stdout.contains(&format!("of {limit} connections")), "{status:?}");
        println!("A3: {descriptors} descriptors, {pipes} pipes: {limit} connections");
        gate.finish();
    }
}

/// As many as the limit says are served, each with both its sockets, and there is no error of accept on the way.
#[test]
fn a3_with_few_descriptors_everyone_below_the_limit_is_served() {
    let _turn = turn();
    raise_descriptor_limit();
    for descriptors in [256, 1_024] {
        let backend = Backend::greeting(b"hi");
        let plan = Gate::plan(&(tcp("") + &pool("", &[backend.address])));
        plan.write();
        let (line, directory) = (format!("ulimit -n {descriptors}"), plan.into_directory());
        let process = Process::start_after(&line, &["run", "--config", "sluicegate.toml"], directory.path());
        let gate = Gate::over(process, directory, SOON);
        let limit = said_at_start(&gate)["max_connections"].as_u64().unwrap() as usize;
        let mut clients = Waiting::connect(gate.address("tcp"), limit + 20);
        wait_until(SOON, "everyone's answer", || {
            clients.look();
            clients.silent.is_empty()
        });
        assert_eq!((clients.greeted.len(), clients.refused), (limit, 20));
        let metrics = gate.wait_outcome("max_connections", 20);
        assert_eq!(metrics.count("sluicegate_accept_errors_total", &[]), 0);
        assert_eq!(metrics.outcome("out_of_resources"), 0);
        drop(clients);
        gate.finish();
    }
}

#[test]
fn a3_three_times_the_limit_disturbs_nobody_and_free_places_are_taken_at_once() {
    let limit = if full() { 3_000 } else { 300 };
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::greeting(b"hi");
    let toml = tcp("") + &pool("", &[backend.address]);
    let gate = Gate::plan(&toml).global(&format!("max_connections = {limit}")).start();
    let address = gate.address("tcp");
    let served = |count: usize| {
        let mut clients = Waiting::connect(address, count);
        wait_until(SOON, "an answer for everyone", || {
            clients.look();
            clients.silent.is_empty()
        });
        clients
    };
    let mut established = served(limit / 3).greeted;
    let relay = |streams: &mut [TcpStream]| {
        let mut next = 0;
        repeat_for(Duration::from_millis(700), || {
            next = (next + 1) % streams.len();
            streams[next].set_nonblocking(false).unwrap();
            exchange(&mut streams[next], b"still here?");
        })
    };
    let control = p99(relay(&mut established));
    let (mut rest, beside) = thread::scope(|scope| {
        let flood = scope.spawn(|| served(3 * limit - limit / 3));
        let beside = p99(relay(&mut established));
        (flood.join().unwrap(), beside)
    });
    assert_eq!((rest.greeted.len(), rest.refused), (limit - limit / 3, 2 * limit));
    let metrics = gate.wait_outcome("max_connections", 2 * limit as u64);
    assert_eq!(metrics.count("sluicegate_listener_connections", &[]) as usize, limit);
    rest.greeted.truncate(limit - limit / 3 - 100);
    gate.wait_metrics("100 places", |m| m.count("sluicegate_listener_connections", &[]) as usize == limit - 100);
    let begin = Instant::now();
    let freed = served(100);
    let took = begin.elapsed();
    println!("A3: limit {limit}: p99 {beside:?} beside {} more, {control:?} without; 100 let in: {took:?}", 2 * limit);
    assert_eq!((freed.greeted.len(), freed.refused), (100, 0));
    let busy = Duration::from_millis(if full() { 0 } else { 800 });
    assert!(took <= patient(Duration::from_millis(200) + busy), "{took:?}");
    drop((established, rest, freed));
    gate.finish();
}

#[test]
fn a4_there_is_no_limit_that_nobody_wrote() {
    let count = if full() { 5_000 } else { 2_000 };
    let _turn = turn();
    raise_descriptor_limit();
    let stand = Stand::start(Variant::AUTO);
    let pairs: Vec<_> = (0..count).map(|_| stand.join_plain()).collect();
    for (number, (client, backend)) in pairs.iter().enumerate() {
        let asked = (number as u64).to_be_bytes();
        for (mut from, mut to) in [(client, backend), (backend, client)] {
            from.write_all(&asked).unwrap();
            let mut heard = [0; 8];
            to.read_exact(&mut heard).unwrap();
            assert_eq!(heard, asked);
        }
    }
    let metrics = stand.gate.metrics();
    let live = metrics.count("sluicegate_backend_connections", &[]);
    println!(
        "A4: {live} connections to one backend, limit {}",
        metrics.count("sluicegate_listener_connections_limit", &[])
    );
    assert_eq!(live, count as u64);
    drop(pairs);
    stand.gate.finish();
}
