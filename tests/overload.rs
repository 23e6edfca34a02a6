//! More clients than backends may have, and backends that leave and come back.

use std::{
    collections::VecDeque,
    io::{ErrorKind, Read, Write},
    net::{SocketAddr, TcpStream},
    thread,
    time::{Duration, Instant},
};

use crate::support::{
    Backend, Gate, SOON,
    backend::{Refusing, Unanswering},
    client::{self, PLAIN_AND_TLS},
    gate::{backend, https, pool, tcp, word},
    patient,
    tags::End,
    wait_until,
};

/// Both listeners before one pool with these lines.
fn both(lines: &str, backends: &[SocketAddr]) -> String {
    [tcp(""), https(""), pool(lines, backends)].concat()
}

#[track_caller]
fn wait_queued(gate: &Gate, count: u64) {
    gate.wait_metrics(&format!("{count} wait"), |m| m.count("sluicegate_pool_queued_connections", &[]) == count);
}

/// Reads the two bytes that the backend says first.
fn greeted(stream: &mut (impl Read + ?Sized)) -> bool {
    let mut greeting = [0; 2];
    stream.read_exact(&mut greeting).is_ok() && greeting == *b"hi"
}

/// How it ended, if it has; a reset is told once.
fn ended(stream: &TcpStream) -> Option<End> {
    stream.set_nonblocking(true).unwrap();
    let peeked = stream.peek(&mut [0]);
    stream.set_nonblocking(false).unwrap();
    match peeked {
        Ok(0) => Some(End::Eof),
        Ok(_) => panic!("it was told something"),
        Err(error) if error.kind() == ErrorKind::WouldBlock => None,
        Err(error) => Some(End::of(&error)),
    }
}

fn says_nothing(stream: &TcpStream) -> bool {
    ended(stream).is_none()
}

#[test]
fn b15_who_waits_is_served_in_the_order_of_coming() {
    let greeting = Backend::greeting(b"hi");
    let gate = Gate::start(&(tcp("") + &pool("max_connections = 10", &[greeting.address])));
    let mut held: VecDeque<_> = (0..10).map(|_| client::connect(gate.address("tcp"))).collect();
    assert!(held.iter_mut().all(greeted));
    let mut waiting = VecDeque::new();
    for count in 1..=20 {
        waiting.push_back(client::connect(gate.address("tcp")));
        wait_queued(&gate, count);
    }
    assert!(waiting.iter().all(says_nothing));
    while let Some(mut next) = waiting.pop_front() {
        drop(held.pop_front());
        assert!(greeted(&mut next));
        assert!(waiting.iter().all(says_nothing), "only the first is served");
        held.push_back(next);
        assert_eq!(gate.metrics().count("sluicegate_backend_connections", &[]), 10);
    }
    drop(held);
    wait_queued(&gate, 0);
    let records = gate.wait_records(30);
    let waited = records.iter().filter(|record| record["seconds"]["queue"].as_f64().unwrap() > 0.0).count();
    assert_eq!(waited, 20);
    gate.finish();
}

#[test]
fn b15_a_hundred_clients_share_ten_places_and_all_are_served() {
    let echo = Backend::echo();
    let gate = Gate::start(&both("max_connections = 10", &[echo.address]));
    thread::scope(|scope| {
        let clients: Vec<_> = (0..100)
            .map(|number| {
                let gate = &gate;
                scope.spawn(move || {
                    let mut stream = client::open(gate, PLAIN_AND_TLS[number % 2]);
                    client::exchange(&mut stream, format!("client {number}").as_bytes());
                })
            })
            .collect();
        while clients.iter().any(|client| !client.is_finished()) {
            let live = gate.metrics().count("sluicegate_backend_connections", &[]);
            assert!(live <= 10, "{live} of 10");
        }
        for client in clients {
            client.join().unwrap();
        }
    });
    assert_eq!(echo.accepted(), 100);
    wait_queued(&gate, 0);
    gate.finish();
}

#[test]
fn b15_who_waits_too_long_or_finds_the_queue_full_is_reset() {
    let greeting = Backend::greeting(b"hi");
    let lines = "max_connections = 1\nmax_queued = 1\ntimeouts = { queue = \"400ms\" }";
    let gate = Gate::start(&both(lines, &[greeting.address]));
    let mut held = client::connect(gate.address("tcp"));
    assert!(greeted(&mut held));
    let begin = Instant::now();
    let mut waits = client::connect(gate.address("tcp"));
    wait_queued(&gate, 1);
    let (bytes, end) = client::read_all(&mut client::open(&gate, "https"));
    assert!(bytes.is_empty() && end == End::Reset, "{end:?}");
    assert!(begin.elapsed() < patient(Duration::from_millis(400)), "at once");
    assert_eq!(client::read_all(&mut waits), (Vec::new(), End::Reset));
    let waited = begin.elapsed();
    assert!((Duration::from_millis(380)..patient(Duration::from_secs(2))).contains(&waited), "{waited:?}");
    gate.wait_outcome("queue_full", 1);
    gate.wait_outcome("queue_timeout", 1);
    let records = gate.wait_records(2);
    let late = records.iter().find(|record| word(record, "outcome") == "queue_timeout").unwrap();
    assert!(late["seconds"]["queue"].as_f64().unwrap() >= 0.38, "{late}");
    assert!(late["backend"].is_null() && late["attempts"] == 0, "{late}");
    drop(held);
    gate.finish();
}

/// Two waits with a failed connect between them: the time is for both together.
#[test]
fn b15_the_time_in_the_queue_is_that_of_a_client_and_not_of_each_wait() {
    let (silent, greeting) = (Unanswering::new(), Backend::greeting(b"hi"));
    let lines = "max_connections = 1\nretries = 1\ntimeouts = { connect = \"500ms\", queue = \"800ms\" }";
    let gate = Gate::start(&(tcp("") + &pool(lines, &[silent.address, greeting.address])));
    let mut held = client::connect(gate.address("tcp"));
    assert!(greeted(&mut held));
    let mut dialled = client::connect(gate.address("tcp"));
    gate.wait_metrics("a dial", |m| m.count("sluicegate_backend_connections", &[]) == 2);
    // It waits while the silent one is dialled for another, then it is dialled for this one, then it waits for the other.
    let begin = Instant::now();
    let mut waits = client::connect(gate.address("tcp"));
    wait_queued(&gate, 1);
    assert_eq!(client::read_all(&mut waits), (Vec::new(), End::Reset));
    let took = begin.elapsed();
    println!("800 ms in the queue and 500 ms of dialling: {took:?}");
    assert!(took < patient(Duration::from_millis(1_650)), "{took:?}");
    assert_eq!(client::read_all(&mut dialled), (Vec::new(), End::Reset));
    gate.wait_outcome("queue_timeout", 2);
    for record in gate.wait_records(2) {
        let seconds = record["seconds"]["queue"].as_f64().unwrap();
        assert!((0.75..1.1).contains(&seconds), "{record}");
    }
    drop(held);
    gate.finish();
}

#[test]
fn b15_without_a_queue_a_full_pool_refuses_at_once() {
    let greeting = Backend::greeting(b"hi");
    let lines = "max_connections = 1\ntimeouts = { queue = \"0s\" }";
    let gate = Gate::start(&(tcp("") + &pool(lines, &[greeting.address])));
    let mut held = client::connect(gate.address("tcp"));
    assert!(greeted(&mut held));
    assert_eq!(client::read_all(&mut client::connect(gate.address("tcp"))), (Vec::new(), End::Reset));
    gate.wait_outcome("queue_full", 1);
}

#[test]
fn b15_who_left_takes_no_place() {
    let greeting = Backend::greeting(b"hi");
    let gate = Gate::start(&both("max_connections = 1", &[greeting.address]));
    for (number, listener) in (1..).zip(PLAIN_AND_TLS) {
        let mut held = client::open(&gate, listener);
        assert!(greeted(&mut *held));
        let open = |count| {
            let stream = client::open(&gate, listener);
            wait_queued(&gate, count);
            stream
        };
        let (closes, resets) = (open(1), open(2));
        let mut says_and_resets = open(3);
        says_and_resets.write_all(b"are you there?").unwrap();
        says_and_resets.flush().unwrap();
        let mut stays = open(4);
        // An end of sending is no leaving when something was asked.
        stays.write_all(b"a question").unwrap();
        stays.finish_sending();
        drop(closes);
        wait_queued(&gate, 3);
        for leaving in [resets, says_and_resets] {
            client::reset_on_close(leaving.socket());
        }
        wait_queued(&gate, 1);
        drop(held);
        assert!(greeted(&mut *stays), "{listener}");
        let (echo, end) = client::read_all(&mut stays);
        assert_eq!((echo.as_slice(), end), (&b"a question"[..], End::Eof), "{listener}");
        assert_eq!(greeting.accepted(), 2 * number, "{listener}: those who left were not dialled for");
    }
    gate.finish();
}

#[test]
fn b4_traffic_ejects_a_backend_that_refuses_and_says_so() {
    let (refusing, good) = (Refusing::new(), Backend::named("good"));
    let lines = "outlier = { connect_failures = 3, eject = \"1m\", max_ejected = \"50%\" }";
    let gate = Gate::start(&(tcp("") + &pool(lines, &[refusing.address, good.address])));
    let answers = (0..30).filter(|_| client::ask(gate.address("tcp")) == "good").count();
    assert_eq!(answers, 30);
    let metrics = gate.wait_metrics("ejected", |m| m.count("sluicegate_pool_backends", &[("state", "ejected")]) == 1);
    assert_eq!(metrics.count("sluicegate_pool_retries_total", &[]), 3, "and then nobody tries it");
    assert_eq!(metrics.count("sluicegate_backend_up", &[]), 1);
    let said = gate.process.messages().into_iter().filter(|m| m["backend"] == refusing.address.to_string()).count();
    assert_eq!(said, 1, "{}", gate.process.stderr.text());
}

#[test]
fn b1_dialling_has_a_deadline_in_all() {
    let silent = [(); 6].map(|()| Unanswering::new());
    let role = |index| if index < 3 { "" } else { "role = \"backup\"" };
    let list = silent.iter().enumerate().map(|(index, s)| backend(&index.to_string(), s.address, role(index)));
    let timeouts = "[pool.web.timeouts]\nconnect = \"200ms\"\n";
    let gate = Gate::start(&[tcp(""), timeouts.to_owned(), list.collect()].concat());
    let begin = Instant::now();
    assert_eq!(client::read_all(&mut client::connect(gate.address("tcp"))), (Vec::new(), End::Reset));
    let took = begin.elapsed();
    println!("three active ones and one backup of three, 200 ms each: {took:?}");
    assert!((Duration::from_millis(700)..patient(Duration::from_millis(1_100))).contains(&took), "{took:?}");
    gate.wait_outcome("connect_failed", 1);
}

/// Asks `count` times; those who were served by this name.
fn served_by(gate: &Gate, name: &str, count: usize) -> usize {
    let ask = || client::read_all(&mut client::connect(gate.address("tcp"))).0;
    (0..count).filter(|_| ask() == name.as_bytes()).count()
}

const CHECK: &str = "[pool.web]\non_all_down = \"close\"\nslow_start = \"0s\"\n\
    check = { type = \"tcp\", every = \"300ms\", timeout = \"300ms\", rise = 2, fall = 2 }\n";

fn state(gate: &Gate, state: &str, count: u64) {
    gate.wait_metrics(state, |m| m.count("sluicegate_pool_backends", &[("state", state)]) == count);
}

#[test]
fn b6_a_backup_takes_over_and_hands_back() {
    let (primary, sorry) = (Backend::named("primary"), Backend::named("sorry"));
    let address = primary.address;
    let list = [backend("1", address, ""), backend("2", sorry.address, "role = \"backup\"")].concat();
    let gate = Gate::plan(&[&tcp(""), CHECK, &list].concat()).checked().start();
    assert_eq!(served_by(&gate, "primary", 10), 10);
    drop(primary);
    state(&gate, "down", 1);
    assert_eq!(served_by(&gate, "sorry", 10), 10);
    let primary = Backend::start_on(address, |mut stream, _| drop(stream.write_all(b"primary")));
    state(&gate, "up", 2);
    assert_eq!(served_by(&gate, "primary", 10), 10);
    drop(primary);
}

#[test]
fn s17_everything_goes_down_is_refused_at_once_and_comes_back_in_time() {
    let backends = [Backend::named("a"), Backend::named("a")];
    let addresses = backends.each_ref().map(|backend| backend.address);
    let list = [backend("1", addresses[0], ""), backend("2", addresses[1], "")].concat();
    let gate = Gate::plan(&[&tcp(""), CHECK, &list].concat()).checked().start();
    drop(backends);
    state(&gate, "down", 2);
    let begin = Instant::now();
    assert_eq!(served_by(&gate, "", 20), 20);
    assert!(begin.elapsed() < patient(Duration::from_secs(1)), "{:?}", begin.elapsed());
    gate.wait_metrics("refused", |m| m.outcome("no_backend") >= 20);
    let revived = Backend::start_on(addresses[0], |mut stream, _| drop(stream.write_all(b"a")));
    let begin = Instant::now();
    wait_until(SOON, "an answer", || served_by(&gate, "a", 1) == 1);
    let took = begin.elapsed();
    println!("S17: first success {took:?} after the recovery, twice 300 ms are allowed for the checks");
    assert!(took <= patient(Duration::from_millis(700)), "{took:?}");
    drop(revived);
}

/// One backend's answer to checks goes away while its connections stand. The gate, and what they see of it: how those
/// that ended did.
fn goes_down(on_down: &str, listener: &str) -> (Gate, Vec<End>) {
    const EACH: usize = 20;
    // Checks ask another port than traffic, at the address of each backend.
    let (first, second) = (Backend::greeting(b"hi"), Backend::greeting_on(([127, 0, 0, 2], 0).into(), b"hi"));
    let health = Backend::stall();
    let also = Backend::start_on(([127, 0, 0, 2], health.address.port()).into(), |_, _| ());
    let check = format!("check = {{ type = \"tcp\", port = {} }}", health.address.port());
    let lines = format!("on_down = \"{on_down}\"\n{check}");
    let gate = Gate::plan(&both(&lines, &[first.address, second.address])).checked().start();
    let mut streams: Vec<_> = (0..2 * EACH).map(|_| client::open(&gate, listener)).collect();
    assert!(streams.iter_mut().all(|stream| greeted(&mut **stream)));
    assert_eq!((first.live(), second.live()), (EACH, EACH));
    drop(health);
    gate.wait_metrics("down", |m| m.count("sluicegate_pool_backends", &[("state", "down")]) == 1);
    if on_down == "close" {
        gate.wait_outcome("backend_down", EACH as u64);
        wait_until(SOON, "the backend notices", || first.live() == 0);
    }
    let (mut alive, mut ends) = (Vec::new(), Vec::new());
    for stream in streams {
        match ended(stream.socket()) {
            Some(end) => ends.push(end),
            None => alive.push(stream),
        }
    }
    assert_eq!(alive.len() + ends.len(), 2 * EACH);
    for stream in &mut alive {
        client::exchange(stream, b"still here");
    }
    drop((alive, also));
    (gate, ends)
}

/// When this was said, or when these connections ended.
fn times(gate: &Gate) -> (jiff::Timestamp, Vec<jiff::Timestamp>) {
    let messages = gate.process.messages();
    let down = messages.iter().find(|message| message["message"] == "backend is down").unwrap();
    let ends = gate.records().into_iter().filter(|record| word(record, "outcome") == "backend_down");
    let ends = ends.map(|record| word(&record, "ts").parse().unwrap());
    (word(down, "timestamp").parse().unwrap(), ends.collect())
}

#[test]
fn b8_connections_of_a_backend_that_went_down_end_within_100_ms_and_no_others() {
    for listener in PLAIN_AND_TLS {
        let (gate, ends) = goes_down("close", listener);
        assert_eq!(ends, [End::Reset; 20], "{listener}");
        gate.wait_records(40);
        let (told, ends) = times(&gate);
        let latest = ends.iter().map(|end| end.duration_since(told)).max().unwrap();
        println!("B8, {listener}: {} connections, the last ended {latest:?} after the message", ends.len());
        assert!(ends.len() == 20 && latest <= jiff::SignedDuration::from_millis(100), "{listener}: {latest:?}");
        gate.finish();
    }
}

#[test]
fn b8_with_keep_they_stay() {
    let (gate, ends) = goes_down("keep", "tcp");
    assert_eq!(ends, []);
    gate.finish();
}
