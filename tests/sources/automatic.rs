//! Bans that are earned.

use std::io::Write;

use super::{bans, is_served, json, open, plan, source, text};
use crate::support::{
    Backend, Gate, SOON, WebServer,
    client::{self, connect_from, read_all},
    gate::{https, pool, tcp, word},
    wait_until,
};

#[test]
fn who_is_turned_away_too_often_is_banned_for_a_while() {
    let backend = Backend::greeting(b"hi");
    let firewall = "[firewall]\nbans_file = \"bans.jsonl\"\nauto_ban = { limited = 5, within = \"1m\", for = \"3s\" }\n\
        [firewall.limits]\nconnections = 1\nexempt = \"127.0.0.32/28\"\n";
    let gate = plan(&backend, firewall).start();
    let address = gate.address("tcp");
    let (held, reset) = open(source(9), address, 5);
    assert_eq!((held.len(), reset), (1, 4));
    assert_eq!(bans(&gate.metrics(), "automatic"), 0, "four times is not five");
    assert!(!is_served(source(9), address));
    let metrics = gate.wait_metrics("a ban", |m| bans(m, "automatic") == 1);
    assert_eq!(metrics.count("sluicegate_bans_total", &[("kind", "automatic")]), 1);
    gate.wait_metrics("a client that is denied", |m| {
        is_served(source(9), address);
        m.outcome("denied") > 0
    });
    let list = json(&gate, &["bans"]);
    let ban = &list["bans"][0];
    assert_eq!((&*word(ban, "network"), &*word(ban, "kind")), ("127.0.0.9/32", "automatic"));
    assert_eq!(word(ban, "reason"), "5 times at its limits within 60s");
    let file = gate.directory.path().join("bans.jsonl");
    wait_until(SOON, "the file", || std::fs::read_to_string(&file).is_ok_and(|text| text.contains("127.0.0.9/32")));
    assert!(is_served(source(10), address), "others are as welcome as before");
    drop(held);
    wait_until(SOON, "the end of the ban", || is_served(source(9), address));
    let (exempt, none) = open(source(40), address, 20);
    assert_eq!((exempt.len(), none), (20, 0));
    drop(exempt);
    gate.finish();
}

#[test]
fn failed_handshakes_are_offences_and_silence_is_none() {
    let backend = Backend::greeting(b"hi");
    let firewall = "[firewall.auto_ban]\nhandshake_failures = 3\n[firewall.limits]\nexempt = \"127.0.0.32/28\"\n\
        [timeouts]\nhandshake = \"200ms\"\n";
    let toml = [&tcp(""), &*https("strict_sni = true"), &*pool("", &[backend.address]), firewall].concat();
    let gate = Gate::plan(&toml).admin("socket = \"admin.sock\"").start();
    let (tls, plain) = (gate.address("https"), gate.address("tcp"));
    // A port probe, one that waits, one that goes away in the middle.
    for _ in 0..5 {
        drop(connect_from(source(9), tls));
        drop(read_all(&mut connect_from(source(9), tls)));
        let mut stream = connect_from(source(9), tls);
        stream.write_all(&[22, 3, 1]).unwrap();
        client::reset(stream);
    }
    let spoil = |last| {
        for _ in 0..3 {
            let mut stream = connect_from(source(last), tls);
            // Whoever is banned meanwhile is not read.
            let _ = stream.write_all(b"GET / HTTP/1.1\r\n\r\n");
            drop(read_all(&mut stream));
        }
    };
    spoil(40);
    spoil(10);
    let metrics = gate.wait_metrics("a ban", |m| bans(m, "automatic") == 1);
    assert_eq!(metrics.outcome("internal"), 0);
    let list = json(&gate, &["bans"]);
    assert_eq!(list["bans"].as_array().map(Vec::len), Some(1), "{list}");
    assert_eq!(word(&list["bans"][0], "network"), "127.0.0.10/32");
    assert_eq!(word(&list["bans"][0], "reason"), "3 failed handshakes within 60s");
    assert_eq!([9, 10, 40].map(|last| is_served(source(last), plain)), [true, false, true]);
    assert_eq!(text(&gate, &["unban", "127.0.0.10"]).trim(), "127.0.0.10/32 is not banned any more");
    assert!(is_served(source(10), plain));
    gate.finish();
}

/// Thousands that earn it at once are banned, and those who come beside them are served.
#[test]
fn many_culprits_at_once_hold_nobody_up() {
    const CULPRITS: u16 = 1_000;
    let Some(server) = WebServer::start() else { return };
    let firewall = "[firewall]\nauto_ban = { limited = 2 }\n[firewall.limits]\nnew_per_second = 1\nburst = 1\n\
        exempt = \"127.0.0.1\"\n[log]\naccess = \"off\"\n";
    let gate = Gate::start(&[&tcp(""), &*pool("", &[server.address]), firewall].concat());
    let load = crate::support::Load::start(gate.address("tcp"), 100, 10);
    for number in 0..CULPRITS {
        let [high, low] = number.to_be_bytes();
        for _ in 0..4 {
            drop(client::try_connect_from([127, 9, high, low].into(), gate.address("tcp")));
        }
    }
    gate.wait_metrics("most of them", |m| bans(m, "automatic") > u64::from(CULPRITS) * 9 / 10);
    let visits = load.finish();
    let failed = crate::support::load::faults(&visits);
    println!("{} bans, {} of {} visits failed", bans(&gate.metrics(), "automatic"), failed.len(), visits.len());
    assert!(failed.is_empty() && visits.len() > 20, "{failed:?}");
    gate.finish();
}
