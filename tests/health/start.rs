//! The first seconds: nobody is sent to a backend that was never asked.

use std::time::{Duration, Instant};

use super::{backends, reasons, transitions};
use crate::support::{
    Backend, Gate, Process, SOON,
    backend::Refusing,
    client,
    gate::{pool, tcp},
    patient, wait_until,
};

#[test]
fn b3_half_of_the_backends_are_dead_at_the_start() {
    let (good, dead) = ([Backend::named("good"), Backend::named("good")], [Refusing::new(), Refusing::new()]);
    let toml = tcp("")
        + "[pool.web]\nretries = 0\noutlier = \"off\"\n"
        + &backends(&[good[0].address, dead[0].address, good[1].address, dead[1].address]);
    let gate = Gate::plan(&toml).checked().start();
    for _ in 0..200 {
        assert_eq!(client::ask(gate.address("tcp")), "good");
    }
    let metrics = gate.metrics();
    assert_eq!(metrics.count("sluicegate_backend_connect_failures_total", &[]), 0, "nobody tried a dead one");
    assert_eq!(metrics.count("sluicegate_pool_backends", &[("state", "down")]), 2);
    assert_eq!((transitions(&metrics, "down"), transitions(&metrics, "up")), (2, 0));
    assert_eq!(reasons(&gate), ["connect: connection refused"; 2]);
}

#[test]
fn b3_checks_that_never_answer_hold_clients_for_two_seconds() {
    let backend = Backend::greeting(b"");
    let check = "check = { type = \"send_expect\", expect = \"never\", every = \"10s\", timeout = \"10s\" }";
    let begin = Instant::now();
    let gate = Gate::plan(&(tcp("") + &pool(check, &[backend.address]))).checked().start();
    let waited = begin.elapsed();
    assert!((Duration::from_secs(2)..patient(Duration::from_secs(4))).contains(&waited), "{waited:?}");
    client::exchange(&mut client::connect(gate.address("tcp")), b"ping");
    let told = gate.process.messages();
    let told =
        told.iter().filter(|m| m["message"].as_str().is_some_and(|text| text.contains("without the first verdict")));
    assert_eq!(told.count(), 1);
}

#[test]
fn a_stop_is_heard_while_checks_are_waited_for() {
    let backend = Backend::greeting(b"");
    let check = "check = { type = \"send_expect\", expect = \"never\", every = \"10s\", timeout = \"10s\" }";
    let plan = Gate::plan(&(tcp("") + &pool(check, &[backend.address]))).checked();
    plan.write();
    let mut process = Process::start(&["run", "--config", "sluicegate.toml"], plan.path());
    wait_until(SOON, "the first check", || backend.accepted() > 0);
    let told = Instant::now();
    process.stop();
    let took = told.elapsed();
    assert!(took < patient(Duration::from_secs(1)), "{took:?}");
    assert!(!process.stderr.text().contains("ready"), "{}", process.stderr.text());
}

#[test]
fn a_check_that_is_off_asks_nobody() {
    let backend = Backend::named("a");
    let gate = Gate::plan(&(tcp("") + &pool("check = \"off\"", &[backend.address]))).checked().start();
    assert_eq!(client::ask(gate.address("tcp")), "a");
    assert_eq!(backend.accepted(), 1);
    assert_eq!(gate.metrics().select("sluicegate_health_checks_total", &[]).filter(|s| s.value > 0.0).count(), 0);
}
