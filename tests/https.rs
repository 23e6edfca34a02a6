//! The main job with real peers: HTTPS clients, the gate, nginx.

use std::{collections::BTreeSet, io::Write, path::Path, time::Duration};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;

use crate::support::{
    Backend, Gate, LATE, Process, SOON, Variant,
    client::{self, Stream, read_all},
    gate::{https, pool, tcp},
    nginx::Nginx,
    programs::{curl, faultless, require, shell, wrk},
    tags::End,
    wait_until,
};

fn three_behind(nginx: &Nginx) -> String {
    [tcp(""), https("alpn = [\"http/1.1\"]"), pool("", &nginx.addresses())].concat()
}

/// The smallest configuration a user writes.
#[test]
fn three_curls_show_three_backends() {
    let (Some(program), Some(nginx)) = (require("curl"), Nginx::start()) else { return };
    let listener = "[listener.https]\nbind = \"127.0.0.1:0\"\ntls = { cert = \"foobar.com.pem\", key = \"foobar.com.key\" }\n\
                    pool = \"web\"\n";
    for variant in Variant::all() {
        let gate = Gate::plan(&(listener.to_owned() + &pool("", &nginx.addresses()))).variant(variant).start();
        let (address, directory) = (gate.address("https"), gate.directory.path().to_owned());
        let answers = [0; 6].map(|_| curl(&program, address, &directory, &["--http1.1"]));
        let names: BTreeSet<&str> = answers[..3].iter().map(|a| a.trim()).collect();
        assert_eq!(names, BTreeSet::from(["web-01", "web-02", "web-03"]), "{variant:?}");
        assert_eq!(answers[..3], answers[3..], "{variant:?}: in turn");
        gate.wait_records(6);
        gate.finish();
    }
}

#[test]
fn http2_reaches_an_h2c_backend() {
    let (Some(program), Some(nginx)) = (require("curl"), Nginx::start()) else { return };
    let gate = Gate::start(&(https("alpn = [\"h2\", \"http/1.1\"]") + &pool("", &[nginx.h2c])));
    let (address, directory) = (gate.address("https"), gate.directory.path().to_owned());
    let answer = curl(&program, address, &directory, &["--http2", "-w", "over HTTP/%{http_version}"]);
    assert_eq!(answer, "h2c\nover HTTP/2");
    let record = &gate.wait_records(1)[0];
    assert_eq!((&record["tls"]["alpn"], &record["sni"]), (&"h2".into(), &"foobar.com".into()), "{record}");
    gate.finish();
}

fn a_thousand_at_once(variant: Variant, listener: &str) {
    const MANY: usize = 1000;
    raise_descriptor_limit();
    let backend = Backend::echo();
    let gate = Gate::plan(&[tcp(""), https(""), pool("", &[backend.address])].concat()).variant(variant).start();
    let mut clients: Vec<Box<dyn Stream>> = (0..MANY).map(|_| client::open(&gate, listener)).collect();
    for (number, client) in clients.iter_mut().enumerate() {
        client.write_all(format!("client {number:04}").as_bytes()).unwrap();
        client.flush().unwrap();
    }
    for (number, client) in clients.iter_mut().enumerate() {
        let mut answer = [0; 11];
        std::io::Read::read_exact(client, &mut answer).unwrap();
        assert_eq!(answer, format!("client {number:04}").as_bytes());
    }
    let metrics = gate.metrics();
    assert_eq!(metrics.count("sluicegate_listener_connections", &[("listener", listener)]), MANY as u64);
    assert_eq!(metrics.count("sluicegate_backend_connections", &[]), MANY as u64);
    for client in &mut clients {
        client.finish_sending();
        assert_eq!(read_all(client), (Vec::new(), End::Eof));
    }
    drop(clients);
    gate.wait_outcome("client_closed", MANY as u64);
    gate.finish();
}

/// Two descriptors per connection in the child, and as many here.
fn raise_descriptor_limit() {
    let maximum = getrlimit(Resource::Nofile).maximum;
    setrlimit(Resource::Nofile, Rlimit { current: maximum, maximum }).unwrap();
}

#[test]
fn a4_a_thousand_tls_connections_at_once() {
    a_thousand_at_once(Variant::chosen(), "https");
}

#[test]
fn a4_a_thousand_plain_connections_at_once() {
    a_thousand_at_once(Variant::SHARED_SOCKET, "tcp");
}

fn wrk_finds_no_error(variant: Variant) {
    let (Some(program), Some(nginx)) = (require("wrk"), Nginx::start()) else { return };
    let gate = Gate::plan(&three_behind(&nginx)).variant(variant).start();
    for (listener, scheme) in [("tcp", "http"), ("https", "https")] {
        let url = format!("{scheme}://{}/", gate.address(listener));
        let requests = wrk(&program, &url, 64, Duration::from_secs(2));
        println!("{listener} {variant:?}: {requests} requests in 2 s");
        let accepted = gate.metrics().count("sluicegate_listener_accepted_total", &[("listener", listener)]);
        assert!(accepted >= 64, "{accepted} connections");
    }
    let metrics = gate.wait_metrics("every connection ended", |m| m.count("sluicegate_listener_connections", &[]) == 0);
    let clean = ["client_closed", "client_reset"].map(|o| metrics.outcome(o)).iter().sum::<u64>();
    let all = metrics.count("sluicegate_connections_closed_total", &[]);
    assert_eq!(all, clean, "the clients ended them all");
    gate.finish();
}

#[test]
fn wrk_with_64_connections_finds_no_error() {
    wrk_finds_no_error(Variant::chosen());
}

#[test]
fn wrk_finds_no_error_by_copy() {
    wrk_finds_no_error(Variant::COPY);
}

#[test]
fn wrk_finds_no_error_by_splice() {
    wrk_finds_no_error(Variant::SPLICE);
}

/// The demo, used exactly as its own lines say.
#[test]
fn demo_is_used_as_it_says() {
    let (Some(_), Some(_)) = (require("curl"), require("wrk")) else { return };
    let directory = TempDir::new().unwrap();
    let arguments = ["demo", "--https", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let process = Process::start(&arguments, directory.path());
    let gate = Gate::over(process, directory, SOON);
    wait_until(SOON, "three lines to paste", || printed(&gate).len() >= 3);
    let lines = printed(&gate);
    assert!(gate.process.stdout.text().contains("[listener."), "it prints its configuration");
    let here = gate.directory.path();
    let site = find(&lines, |line| line.contains("--cacert"));
    let names: BTreeSet<String> = (0..3).map(|_| paste(&site, here)).collect();
    assert_eq!(names.len(), 3, "three backends in turn: {names:?}");
    let report = paste(&shorter(&find(&lines, |line| line.starts_with("wrk "))), here);
    faultless(&report);
    let metrics = paste(&find(&lines, |line| line.contains("/metrics")), here);
    let accepted = crate::support::Metrics::parse(&metrics).count("sluicegate_listener_accepted_total", &[]);
    assert!(accepted >= 3 + 64, "{accepted}");
    gate.finish();
}

/// The lines a user would paste.
fn printed(gate: &Gate) -> Vec<String> {
    let lines = gate.process.stdout.all();
    let plain = lines.iter().map(|line| line.trim().trim_start_matches("$ ").to_owned());
    plain.filter(|line| line.starts_with("curl ") || line.starts_with("wrk ")).collect()
}

#[track_caller]
fn find(lines: &[String], wanted: impl Fn(&str) -> bool) -> String {
    lines.iter().find(|line| wanted(line)).cloned().unwrap_or_else(|| panic!("not among {lines:?}"))
}

#[track_caller]
fn paste(line: &str, directory: &Path) -> String {
    let output = shell(line, directory);
    assert!(output.success, "{line}\n{}\n{}", output.stdout, output.stderr);
    output.stdout
}

/// The same line with one second of load.
fn shorter(line: &str) -> String {
    let words = line.split(' ').map(|word| if word.starts_with("-d") { "-d1s" } else { word });
    words.collect::<Vec<_>>().join(" ")
}

/// The plain listener of the demo is the same pool.
#[test]
fn demo_relays_plain_tcp_too() {
    let directory = TempDir::new().unwrap();
    let arguments = ["demo", "--https", "127.0.0.1:0", "--tcp", "127.0.0.1:0", "--admin", "127.0.0.1:0"];
    let gate = Gate::over(Process::start(&arguments, directory.path()), directory, LATE);
    let mut plain = Vec::new();
    for line in gate.process.messages().iter().filter(|m| m["message"] == "listening" && m["listener"] != "admin") {
        let address = line["address"].as_str().unwrap().parse().unwrap();
        let answer = crate::support::metrics::get(address, "/", &[("Host", "foobar.com")]);
        plain.extend(answer.ok().map(|a| a.status));
    }
    assert_eq!(plain, [200], "one listener speaks plain HTTP");
}
