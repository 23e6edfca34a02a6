//! Listeners that come, go and change while clients are there.

use std::{
    io::Read,
    net::{SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::Duration,
};

use rustix::process::Signal;

use super::{addresses, append, edit, json, messages, refused, reload, reloads, site, start, times};
use crate::support::{
    Backend, SOON,
    client::{self, ask, connect, connect_tls, exchange},
    gate::{https, tcp, word},
    wait_until,
};

fn free_address() -> SocketAddr {
    TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap()
}

fn listener(name: &str, address: SocketAddr) -> String {
    format!("[listener.{name}]\nbind = \"{address}\"\npool = \"web\"\n")
}

#[test]
fn what_changes_is_applied_and_told_and_the_rest_stays() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = start(&site(&[("a", &a)]));
    let address = gate.address("tcp");
    assert_eq!(ask(address), "a");
    edit(&gate, "name = \"a\"", "name = \"b\"");
    edit(&gate, &a.address.to_string(), &b.address.to_string());
    append(&gate, "[global.x]\n");
    refused(&gate);
    edit(&gate, "[global.x]\n", "");
    let said = reload(&gate);
    assert!(said.contains("+ backend web/b") && said.contains("- backend web/a"), "{said}");
    assert_eq!(ask(address), "b", "at the same address, from the moment when the verb returns");
    assert_eq!(addresses(&gate, "tcp"), [address]);
    assert!(reload(&gate).contains("nothing has changed"));
    assert_eq!((reloads(&gate, "applied"), reloads(&gate, "refused")), (2, 1));
    let audit = messages(&gate, "configuration reloaded");
    assert_eq!((audit.len(), &audit[0]["by"]), (2, &"operator".into()));
    assert_eq!(audit[0]["uid"], rustix::process::getuid().as_raw());
    assert!(word(&audit[0], "changes").contains("+ backend web/b"), "{audit:?}");
    gate.finish();
}

#[test]
fn a_hangup_reloads() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    append(&gate, "[timeouts]\ndrain = \"1s\"\n");
    gate.process.signal(Signal::HUP);
    wait_until(SOON, "a reload", || reloads(&gate, "applied") == 1);
    let audit = messages(&gate, "configuration reloaded");
    assert_eq!((&audit[0]["by"], &audit[0]["changes"]), (&"SIGHUP".into(), &"~ section [timeouts]: drain".into()));
    // A storm of them is as many reloads as there is time for, and no more than signals.
    for _ in 0..200 {
        gate.process.signal(Signal::HUP);
    }
    wait_until(SOON, "the end of the storm", || {
        let before = reloads(&gate, "applied");
        thread::sleep(Duration::from_millis(200));
        before > 1 && reloads(&gate, "applied") == before
    });
    println!("200 SIGHUP: {} reloads", reloads(&gate, "applied") - 1);
    assert_eq!(ask(gate.address("tcp")), "a");
    gate.finish();
}

#[test]
fn a_drain_takes_as_long_as_the_file_says_now() {
    let backend = Backend::echo();
    let mut gate = start(&site(&[("a", &backend)]));
    let mut client = connect(gate.address("tcp"));
    exchange(&mut client, b"before");
    append(&gate, "[timeouts]\ndrain = \"1s\"\n");
    reload(&gate);
    gate.process.signal(Signal::TERM);
    wait_until(SOON, "a drain", || !messages(&gate, "draining").is_empty());
    assert_eq!(messages(&gate, "draining")[0]["seconds"], 1.0);
    assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
    gate.ended();
}

#[test]
fn tls_comes_and_goes_and_tickets_survive() {
    let backend = Backend::echo();
    let pool = format!("[pool.web]\n{}", super::member("a", backend.address));
    let gate = super::plan(&(https("") + &pool))
        .certificate("other", &["other.com"])
        .certificate("again", &["foobar.com", "www.foobar.com", "localhost"])
        .start();
    let resumed = || gate.metrics().count("sluicegate_tls_handshakes_total", &[("resumed", "true")]);
    let config = Arc::new(client::config(rustls::ALL_VERSIONS));
    let visit = || {
        let stream = connect(gate.address("https"));
        exchange(&mut client::handshake(stream, "foobar.com", Arc::clone(&config)).expect("a handshake"), b"hello");
    };
    visit();
    visit();
    assert_eq!(resumed(), 1);
    // T5: another certificate for the same names, and the ticket is still good.
    edit(&gate, "\"foobar.com.pem\"", "\"again.pem\"");
    edit(&gate, "\"foobar.com.key\"", "\"again.key\"");
    let mut live = connect_tls(gate.address("https"));
    exchange(&mut live, b"under the first certificate");
    let said = reload(&gate);
    assert!(said.contains("~ listener https: tls.certificates") && said.contains("+ certificate"), "{said}");
    exchange(&mut live, b"still the first");
    visit();
    assert_eq!(resumed(), 2);
    // T4: other names, and it is worth nothing.
    edit(&gate, "certificates = [", "certificates = [{ cert = \"other.pem\", key = \"other.key\" }, ");
    reload(&gate);
    visit();
    assert_eq!(resumed(), 2, "a full handshake");
    drop(live);
    gate.finish();
}

#[test]
fn a_new_address_is_bound_before_anything_changes() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    let (taken, free) = (TcpListener::bind("127.0.0.1:0").unwrap(), free_address());
    append(&gate, &(listener("x", free) + &listener("y", taken.local_addr().unwrap())));
    edit(&gate, "[pool.web]", "[pool.web]\nretries = 7");
    let said = refused(&gate);
    assert!(said.contains("E108") && said.contains(&taken.local_addr().unwrap().to_string()), "{said}");
    assert!(TcpStream::connect(free).is_err(), "nothing of a refused configuration is left");
    assert_eq!(json(&gate, &["status"])["listeners"].as_array().unwrap().len(), 1);
    assert_eq!(json(&gate, &["status"])["last_reload"]["result"], "refused");
    let also = taken.local_addr().unwrap();
    drop(taken);
    reload(&gate);
    assert_eq!((ask(free), ask(also)), ("a".to_owned(), "a".to_owned()));
    edit(&gate, &(listener("x", free) + &listener("y", also)), "");
    reload(&gate);
    gate.finish();
}

/// A socket of our own in the way is called that, by `plan` and by `reload`, and the way out is one.
#[test]
fn a_bind_that_overlaps_one_of_our_own_says_so() {
    let backend = Backend::named("a");
    let port = free_address().port();
    let (one, all) = (SocketAddr::from(([127, 0, 0, 1], port)), SocketAddr::from(([0, 0, 0, 0], port)));
    let six = SocketAddr::from((std::net::Ipv6Addr::UNSPECIFIED, port));
    for (now, next) in [(one, all), (all, one), (six, all)] {
        let gate = start(&(site(&[("a", &backend)]) + &listener("x", now)));
        edit(&gate, &now.to_string(), &next.to_string());
        let said = refused(&gate);
        assert!(said.contains("E108") && said.contains(&format!("listens on {now} itself, as `x`")), "{said}");
        assert!(said.contains("reload again") && !said.contains("another process"), "{said}");
        let plan = super::run(&gate, &["plan"]);
        assert_eq!(plan.code, Some(3), "{}", plan.stderr);
        assert_eq!(ask(one), "a");
        // As it says.
        edit(&gate, &listener("x", next), "");
        reload(&gate);
        append(&gate, &listener("x", next));
        reload(&gate);
        assert_eq!(ask(one), "a");
        gate.finish();
    }
}

/// What is gone from the configuration and still has connections is found by its name, as long as it has some.
#[test]
fn connections_of_what_is_gone_are_listed_and_ended_by_name() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let address = free_address();
    let gone = super::member("b", b.address).replace("pool.web", "pool.old");
    let gone = format!("[listener.x]\nbind = \"{address}\"\npool = \"old\"\n[pool.old]\ncheck = \"off\"\n{gone}");
    let gate = start(&site(&[("a", &a)]));
    append(&gate, &gone);
    reload(&gate);
    let mut clients: Vec<_> = (0..3).map(|_| connect(address)).collect();
    for client in &mut clients {
        exchange(client, b"before");
    }
    edit(&gate, &gone, "");
    reload(&gate);
    let count = |words: &[&str]| json(&gate, &[&["conns"], words].concat())["total"].as_u64();
    assert_eq!((count(&["--listener", "x"]), count(&["--backend", "old/b"])), (Some(3), Some(3)));
    let first = json(&gate, &["conns"])["connections"][0]["id"].as_str().unwrap().to_owned();
    assert_eq!(super::run(&gate, &["kill", &first]).code, Some(0));
    gate.wait_outcome("killed", 1);
    assert_eq!(super::run(&gate, &["kill", "--backend", "old"]).code, Some(0));
    gate.wait_outcome("killed", 3);
    for words in [["--listener", "x"], ["--backend", "old/b"], ["--backend", "old"]] {
        let nobody = super::run(&gate, &[&["conns"], &words[..]].concat());
        assert_eq!(nobody.code, Some(1), "{}", nobody.stdout);
        assert!(nobody.stderr.contains("is called"), "{}", nobody.stderr);
    }
    drop(clients);
    gate.finish();
}

/// A reload that has changed what runs is told so, also when the process begins to stop in the next moment.
#[test]
fn what_was_applied_is_told_when_the_process_stops_meanwhile() {
    let backend = Backend::named("a");
    for _ in 0..times(2, 20) {
        let address = free_address();
        let mut gate = start(&(site(&[("a", &backend)]) + &listener("x", address)));
        edit(&gate, &listener("x", address), "");
        let words = ["reload", "--config", "sluicegate.toml"];
        let asking = crate::support::Process::start(&words, gate.directory.path());
        wait_until(SOON, "the change", || !messages(&gate, "no longer listening").is_empty());
        gate.process.signal(Signal::TERM);
        let ended = asking.ended(SOON);
        assert_eq!(ended.code, Some(0), "{}{}", ended.stdout, ended.stderr);
        assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
        assert_eq!(messages(&gate, "configuration reloaded").len(), 1);
        gate.ended();
    }
}

/// An address is bound when nothing is waited for any more: a stop in between resets nobody.
#[test]
fn a_new_address_takes_nobody_before_it_serves() {
    let (backend, mute) = (Backend::named("a"), Backend::stall());
    let pool = "[pool.web]\ncheck = \"tcp\"\n".to_owned() + &super::member("a", backend.address);
    let mut gate = super::plan(&(tcp("") + &pool)).checked().start();
    let address = free_address();
    let check = "check = { type = \"send_expect\", expect = \"x\", timeout = \"20s\", every = \"30s\" }";
    let slow = super::member("b", mute.address).replace("pool.web", "pool.slow");
    append(&gate, &(listener("x", address) + &format!("[pool.slow]\n{check}\n{slow}")));
    gate.process.signal(Signal::HUP);
    wait_until(SOON, "the first question to the new backend", || mute.accepted() > 0);
    assert!(TcpStream::connect(address).is_err(), "it is not open yet");
    gate.process.signal(Signal::TERM);
    assert_eq!(gate.process.wait(SOON).and_then(|status| status.code()), Some(0));
    assert!(messages(&gate, "configuration reloaded").is_empty());
    gate.ended();
}

/// A5: an address is given up and taken again under load: nobody who gets a connection loses it.
#[test]
fn a5_a_removed_listener_is_accepted_empty_before_it_is_closed() {
    let backend = Backend::named("answer");
    let gate = start(&site(&[("a", &backend)]));
    let address = free_address();
    let stop = Arc::new(AtomicBool::new(false));
    let clients: Vec<_> = (0..4)
        .map(|_| {
            let stop = Arc::clone(&stop);
            thread::spawn(move || visits(address, &stop))
        })
        .collect();
    let rounds = times(20, 100);
    for _ in 0..rounds {
        append(&gate, &listener("extra", address));
        reload(&gate);
        assert_eq!(ask(address), "answer");
        edit(&gate, &listener("extra", address), "");
        reload(&gate);
        assert!(TcpStream::connect(address).is_err(), "the verb returns when it is closed");
    }
    stop.store(true, Ordering::Relaxed);
    let counts: Vec<_> = clients.into_iter().map(|client| client.join().unwrap()).collect();
    let sum = |of: fn(&Visits) -> u64| counts.iter().map(of).sum::<u64>();
    let (served, refused, lost) = (sum(|v| v.served), sum(|v| v.refused), sum(|v| v.lost));
    println!("{rounds} times added and removed: {served} served, {refused} refused, {lost} lost");
    assert!(served > rounds as u64 && refused > 0);
    assert_eq!(lost, 0, "of {served}");
    gate.finish();
}

#[derive(Debug, Default)]
struct Visits {
    served: u64,
    refused: u64,
    /// Connected, and then not served.
    lost: u64,
}

fn visits(address: SocketAddr, stop: &AtomicBool) -> Visits {
    let mut visits = Visits::default();
    while !stop.load(Ordering::Relaxed) {
        let Ok(stream) = TcpStream::connect_timeout(&address, Duration::from_millis(900)) else {
            visits.refused += 1;
            thread::sleep(Duration::from_millis(2));
            continue;
        };
        let mut text = String::new();
        let whole = client::bounded(stream).read_to_string(&mut text).is_ok() && text == "answer";
        *if whole { &mut visits.served } else { &mut visits.lost } += 1;
    }
    visits
}

#[test]
fn the_limit_of_the_process_changes_and_counts_everyone() {
    let backend = Backend::echo();
    let gate = start(&site(&[("a", &backend)]));
    let mut first: Vec<_> = (0..5).map(|_| connect(gate.address("tcp"))).collect();
    for client in &mut first {
        exchange(client, b"in");
    }
    edit(&gate, "[global]\n", "[global]\nmax_connections = 5\n");
    reload(&gate);
    let mut sixth = connect(gate.address("tcp"));
    assert!(sixth.read(&mut [0; 1]).is_err(), "those before the reload count");
    gate.wait_outcome("max_connections", 1);
    first.truncate(3);
    gate.wait_metrics("three", |m| m.count("sluicegate_listener_connections", &[]) == 3);
    exchange(&mut connect(gate.address("tcp")), b"in");
    drop(first);
    gate.finish();
}

#[test]
fn what_needs_a_restart_is_told_and_the_rest_is_applied() {
    let backend = Backend::named("a");
    let gate = start(&site(&[("a", &backend)]));
    edit(&gate, "workers = ", "workers = 1");
    append(&gate, "[log]\naccess = \"off\"\n[timeouts]\nidle = \"7s\"\n");
    let said = reload(&gate);
    assert!(said.contains("needs a restart: [global] workers"), "{said}");
    assert!(said.contains("needs a restart: [log] access") && said.contains("timeouts.idle"), "{said}");
    let status = json(&gate, &["status"]);
    assert_eq!(status["needs_restart"], serde_json::json!(["[global] workers", "[log] access"]));
    gate.finish();
}
