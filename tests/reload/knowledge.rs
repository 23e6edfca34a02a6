//! L2, L6: what the process has learnt survives a reload, and no counter ever falls.

use std::{
    collections::HashMap,
    time::{Duration, Instant},
};

use serde_json::Value;

use super::{append, edit, json, member, path, reload, run, site, start, times};
use crate::support::{
    Backend, Gate, Metrics, SOON,
    backend::Refusing,
    client::{ask, connect, exchange},
    gate::{backend, tcp, word},
    patient, wait_until,
};

/// Reloads within one test.
const ROUNDS: usize = 4;

fn backend_status(gate: &Gate, name: &str) -> Value {
    let status = json(gate, &["status"]);
    let backends = status["pools"][0]["backends"].as_array().unwrap();
    backends.iter().find(|one| one["name"] == name).unwrap_or_else(|| panic!("no {name}: {status}")).clone()
}

/// A change that has nothing to do with backends: another listener, and in the last round none.
fn change_something(gate: &Gate, round: usize, rounds: usize) {
    let text = std::fs::read_to_string(path(gate)).unwrap();
    let text = text.split("[listener.extra").next().unwrap();
    let extra = format!("[listener.extra{round}]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n");
    std::fs::write(path(gate), text.to_owned() + if round + 1 < rounds { &extra } else { "" }).unwrap();
    reload(gate);
}

#[test]
fn l6_weight_and_drain_by_hand_survive_until_the_file_has_a_new_weight() {
    let (a, b, c) = (Backend::named("a"), Backend::named("b"), Backend::named("c"));
    let gate = start(&site(&[("a", &a), ("b", &b), ("c", &c)]));
    assert_eq!(run(&gate, &["backend", "drain", "web/b"]).code, Some(0));
    assert_eq!(run(&gate, &["backend", "weight", "web/a", "3"]).code, Some(0));
    for round in 0..ROUNDS {
        change_something(&gate, round, ROUNDS);
        assert_eq!(word(&backend_status(&gate, "b"), "state"), "draining");
        assert_eq!(backend_status(&gate, "a")["weight"], 3);
    }
    let answers: String = (0..40).map(|_| ask(gate.address("tcp"))).collect();
    let count = |name: char| answers.matches(name).count();
    assert_eq!((count('a'), count('b'), count('c')), (30, 0, 10));
    edit(&gate, "name = \"a\"\n", "name = \"a\"\nweight = 2\n");
    reload(&gate);
    assert_eq!(
        (&backend_status(&gate, "a")["weight"], &backend_status(&gate, "a")["drift"]),
        (&2.into(), &Value::Array(vec![]))
    );
    assert_eq!(word(&backend_status(&gate, "b"), "state"), "draining");
    gate.finish();
}

#[test]
fn l6_an_ejection_survives() {
    let (good, bad) = (Backend::named("a"), Refusing::new());
    let pool = "[pool.web]\noutlier = { connect_failures = 3, eject = \"60s\" }\n";
    let text = tcp("") + pool + &backend("a", good.address, "") + &backend("bad", bad.address, "");
    let gate = start(&text);
    wait_until(SOON, "an ejection", || {
        ask(gate.address("tcp"));
        backend_status(&gate, "bad")["state"] == "ejected"
    });
    for round in 0..ROUNDS {
        change_something(&gate, round, ROUNDS);
        assert_eq!(word(&backend_status(&gate, "bad"), "state"), "ejected");
    }
    gate.finish();
}

/// A backend that was checked and found down stays down, without a moment of traffic, and its checks go on as they were.
#[test]
fn l6_health_and_slow_start_survive() {
    let (good, bad) = (Backend::named("a"), Refusing::new());
    let pool = "[pool.web]\ncheck = { type = \"tcp\", every = \"100ms\" }\nslow_start = \"60s\"\nretries = 0\n";
    let text = tcp("") + pool + &backend("a", good.address, "") + &backend("bad", bad.address, "");
    let gate = super::plan(&text).checked().start();
    assert_eq!(word(&backend_status(&gate, "bad"), "state"), "down");
    let since = backend_status(&gate, "bad")["since"].clone();
    for round in 0..ROUNDS {
        let began = Instant::now();
        change_something(&gate, round, ROUNDS);
        let took = began.elapsed();
        assert!(took < patient(Duration::from_secs(1)), "nobody is asked again before the change: {took:?}");
        assert_eq!(word(&backend_status(&gate, "bad"), "state"), "down");
        assert_eq!((0..10).map(|_| ask(gate.address("tcp"))).collect::<String>(), "a".repeat(10));
    }
    assert_eq!(backend_status(&gate, "bad")["since"], since);
    // Once, and not once more for each reload: at 100 ms a second has about ten.
    let asked = |m: &Metrics| m.count("sluicegate_health_checks_total", &[("backend", "a")]);
    let before = asked(&gate.metrics());
    let begin = Instant::now();
    wait_until(SOON, "ten checks", || asked(&gate.metrics()) >= before + 10);
    let took = begin.elapsed();
    println!("10 checks in {took:?}");
    assert!(took > Duration::from_millis(700), "{took:?}: somebody checks twice");
    gate.finish();
}

/// What is asked changes, and the backend is the same: its state stands until it is found otherwise, and its connections go on
/// to count.
#[test]
fn l6_another_check_keeps_health_connections_and_limits() {
    let (backend, mute) = (Backend::echo(), Backend::stall());
    let pool =
        "[pool.web]\ncheck = \"tcp\"\non_all_down = \"close\"\nmax_connections = 1\ntimeouts = { queue = \"100ms\" }\n";
    let text = tcp("") + pool + &super::member("a", backend.address);
    let gate = super::plan(&text).checked().start();
    let mut first = connect(gate.address("tcp"));
    exchange(&mut first, b"before");
    let since = backend_status(&gate, "a")["since"].clone();
    // Nobody answers this question for a long time.
    let check = format!("{{ type = \"http\", port = {}, every = \"30s\", timeout = \"20s\" }}", mute.address.port());
    edit(&gate, "check = \"tcp\"", &format!("check = {check}"));
    let began = Instant::now();
    reload(&gate);
    println!("another check: {:?}", began.elapsed());
    let status = backend_status(&gate, "a");
    assert_eq!(
        (word(&status, "state"), &status["connections"], &status["since"]),
        ("up".to_owned(), &1.into(), &since)
    );
    let mut second = connect(gate.address("tcp"));
    assert!(std::io::Read::read(&mut second, &mut [0; 1]).is_err(), "the limit holds");
    gate.wait_outcome("queue_timeout", 1);
    exchange(&mut first, b"after");
    drop((first, second));
    gate.wait_metrics("nobody", |m| m.count("sluicegate_backend_connections", &[]) == 0);
    exchange(&mut connect(gate.address("tcp")), b"it was never out");
    // Back to a question that is answered, and to none at all.
    edit(&gate, &check, "\"tcp\"");
    reload(&gate);
    edit(&gate, "check = \"tcp\"", "check = \"off\"");
    reload(&gate);
    exchange(&mut connect(gate.address("tcp")), b"still");
    assert_eq!(gate.metrics().outcome("no_backend"), 0);
    gate.finish();
}

/// Who is not asked any more is not left out for ever.
#[test]
fn l6_a_backend_that_was_down_is_used_when_checks_are_switched_off() {
    let (backend, gone) = (Backend::named("a"), Refusing::new());
    let check = format!("check = {{ type = \"tcp\", every = \"100ms\", port = {} }}", gone.address.port());
    let pool = format!("[pool.web]\n{check}\non_all_down = \"close\"\non_down = \"close\"\n");
    let gate = super::plan(&(tcp("") + &pool + &super::member("a", backend.address))).checked().start();
    assert_eq!(word(&backend_status(&gate, "a"), "state"), "down");
    edit(&gate, &check, "check = \"off\"");
    reload(&gate);
    assert_eq!(ask(gate.address("tcp")), "a");
    gate.finish();
}

/// B7: who comes back takes little at first, whatever is reloaded meanwhile.
#[test]
fn l6_a_slow_start_survives() {
    let good = Backend::named("a");
    let address = Backend::echo().address;
    let pool = "[pool.web]\ncheck = { type = \"tcp\", every = \"100ms\" }\nslow_start = \"10m\"\n";
    let text = tcp("") + pool + &backend("a", good.address, "") + &backend("b", address, "");
    let gate = super::plan(&text).checked().start();
    assert_eq!(word(&backend_status(&gate, "b"), "state"), "down");
    let _back = Backend::start_on(address, |mut stream, _| drop(std::io::Write::write_all(&mut stream, b"b")));
    wait_until(SOON, "a recovery", || backend_status(&gate, "b")["state"] == "up");
    for round in 0..ROUNDS {
        change_something(&gate, round, ROUNDS);
        let answers: String = (0..100).map(|_| ask(gate.address("tcp"))).collect();
        let share = answers.matches('b').count();
        println!("reload {round}: {share} of 100 to the one that came back");
        assert!(share <= 20, "{share} of 100");
    }
    gate.finish();
}

/// B3: a backend that is new is asked before it gets anybody, also when it is dead.
#[test]
fn b3_a_new_backend_gets_nobody_before_its_first_verdict() {
    let (good, bad) = (Backend::named("a"), Refusing::new());
    let pool = "[pool.web]\ncheck = { type = \"tcp\", every = \"200ms\" }\nretries = 0\noutlier = \"off\"\n";
    let text = tcp("") + pool + &backend("a", good.address, "");
    let gate = super::plan(&text).checked().start();
    append(&gate, &backend("bad", bad.address, ""));
    reload(&gate);
    assert_eq!((0..30).map(|_| ask(gate.address("tcp"))).collect::<String>(), "a".repeat(30));
    assert_eq!(gate.metrics().outcome("connect_failed"), 0);
    gate.finish();
}

/// B8: connections of an older configuration end too when their backend goes down, whatever has become of it since.
#[test]
fn b8_on_down_close_reaches_the_connections_of_older_configurations() {
    let (kept, gone, health) = (Backend::echo(), Backend::echo(), Backend::echo());
    let check = format!("check = {{ type = \"tcp\", every = \"100ms\", port = {} }}\n", health.address.port());
    let pool = format!("[pool.web]\n{check}on_down = \"close\"\n");
    let text = tcp("") + &pool + &backend("kept", kept.address, "") + &backend("gone", gone.address, "");
    let gate = super::plan(&text).checked().start();
    let mut clients: Vec<_> = (0..4).map(|_| connect(gate.address("tcp"))).collect();
    for client in &mut clients {
        exchange(client, b"hello");
    }
    assert_eq!((kept.live(), gone.live()), (2, 2), "n = 4");
    edit(&gate, &backend("gone", gone.address, ""), "");
    reload(&gate);
    // And it is asked otherwise.
    edit(&gate, "every = \"100ms\"", "every = \"110ms\"");
    reload(&gate);
    for client in &mut clients {
        exchange(client, b"still there");
    }
    drop(health);
    gate.wait_outcome("backend_down", 4);
    drop(clients);
    gate.finish();
}

/// L2: over many reloads that change everything that can change, no counter is ever lower than before.
#[test]
fn l2_no_counter_ever_falls() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = start(&site(&[("a", &a), ("b", &b)]));
    let text = std::fs::read_to_string(path(&gate)).unwrap();
    let counters = || {
        let all = gate
            .metrics()
            .0
            .into_iter()
            .filter(|s| ["_total", "_count", "_sum", "_bucket"].iter().any(|end| s.name.ends_with(end)));
        all.map(|s| (format!("{} {:?}", s.name, s.labels), s.value)).collect::<HashMap<_, _>>()
    };
    let rounds = times(30, 100);
    let mut before = counters();
    for round in 0..rounds {
        let idle = format!("[timeouts]\nidle = \"{}s\"\n", 60 + round);
        let balance = ["round_robin", "least_conn", "p2c"][round % 3];
        let next = text.replace("[pool.web]\n", &format!("[pool.web]\nbalance = \"{balance}\"\n")) + &idle;
        std::fs::write(path(&gate), next).unwrap();
        reload(&gate);
        ask(gate.address("tcp"));
        let now = counters();
        for (series, value) in &before {
            let after = now.get(series).unwrap_or_else(|| panic!("round {round}: {series} is gone"));
            assert!(after >= value, "round {round}: {series} fell from {value} to {after}");
        }
        before = now;
    }
    println!("{rounds} reloads, {} counters: none fell", before.len());
    assert_eq!(gate.metrics().outcome("backend_closed") + gate.metrics().outcome("client_closed"), rounds as u64);
    gate.finish();
}

/// L2: names come and go, and rules do other things: what is there never falls, and what is gone is gone at once, or when the
/// last connection that counts by it has ended.
#[test]
fn l2_series_of_names_and_rules_that_change() {
    let backend = Backend::echo();
    let rule = "[firewall]\nrules = [{ name = \"here\", allow = \"127.0.0.0/8\" }]\n";
    let gate = start(&(site(&[("a", &backend)]) + rule));
    let address = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let extra = format!("[listener.extra]\nbind = \"{address}\"\npool = \"more\"\n[pool.more]\n");
    let extra = extra + &member("more", backend.address).replace("pool.web", "pool.more");
    let listener = |m: &Metrics| m.select("sluicegate_listener_accepted_total", &[("listener", "extra")]).count();
    let pool = |m: &Metrics| m.select("sluicegate_backend_connections_total", &[("pool", "more")]).count();
    let allowed =
        |m: &Metrics| m.count("sluicegate_firewall_connections_total", &[("action", "allow"), ("rule", "here")]);
    let rounds = times(5, 50);
    for round in 0..rounds {
        append(&gate, &extra);
        edit(&gate, "allow = \"127.0.0.0/8\"", "allow = \"127.0.0.0/8\", shadow = true");
        let before = allowed(&gate.metrics());
        reload(&gate);
        let mut client = connect(address);
        exchange(&mut client, b"hello");
        assert_eq!(allowed(&gate.metrics()), before, "round {round}: of a rule that does something else now");
        edit(&gate, &extra, "");
        edit(&gate, ", shadow = true", "");
        reload(&gate);
        let live = gate.metrics();
        assert_eq!((listener(&live), pool(&live)), (1, 1), "round {round}: somebody still counts");
        exchange(&mut client, b"still there");
        drop(client);
        gate.wait_metrics("the end of what nobody counts", |m| listener(m) == 0);
        exchange(&mut connect(gate.address("tcp")), b"hello");
        assert_eq!(allowed(&gate.metrics()), before + 1, "round {round}");
        // Without a connection there is nothing to wait for.
        append(&gate, &extra);
        reload(&gate);
        edit(&gate, &extra, "");
        reload(&gate);
        let idle = gate.metrics();
        assert_eq!((listener(&idle), pool(&idle)), (0, 0), "round {round}: gone when the verb returns");
    }
    println!("{rounds} rounds: nothing fell, nothing stayed");
    gate.finish();
}
