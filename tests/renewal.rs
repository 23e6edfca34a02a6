//! Certificates that change on disk while they are served, and those that come to their end.

use std::{
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustls::{ClientConfig, HandshakeKind, pki_types::CertificateDer};
use serde_json::Value;

use crate::{
    health::full,
    support::{
        Authority, Backend, Gate, LATE, Process, SOON,
        certificates::Leaf,
        client::{config_with, connect, connect_tls, handshake, read_all},
        gate::{https, pool},
        patient, wait_for, wait_until,
    },
};

const DAY: Duration = Duration::from_hours(24);
const NAMES: [&str; 3] = ["foobar.com", "www.foobar.com", "localhost"];

fn start(backend: &Backend) -> Gate {
    Gate::plan(&(https("") + &pool("", &[backend.address]))).admin("socket = \"admin.sock\"").start()
}

fn der(leaf: &Leaf) -> CertificateDer<'static> {
    rustls_pemfile::certs(&mut leaf.certificate.as_bytes()).next().unwrap().unwrap()
}

/// The certificate that a new client is shown.
fn served(gate: &Gate) -> CertificateDer<'static> {
    let tls = connect_tls(gate.address("https"));
    tls.conn.peer_certificates().unwrap()[0].clone().into_owned()
}

fn is_served(gate: &Gate, leaf: &Leaf) -> bool {
    served(gate) == der(leaf)
}

fn messages(gate: &Gate, message: &str) -> Vec<Value> {
    gate.process.messages().into_iter().filter(|one| one["message"] == message).collect()
}

/// Clients that shake hands without a pause, each with a whole handshake.
struct Handshakes {
    stop: Arc<AtomicBool>,
    done: Arc<AtomicUsize>,
    threads: Vec<thread::JoinHandle<Vec<String>>>,
}

impl Handshakes {
    fn start(gate: &Gate) -> Self {
        let (stop, done) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let threads = (0..2).map(|_| {
            let (stop, done, address) = (Arc::clone(&stop), Arc::clone(&done), gate.address("https"));
            thread::spawn(move || {
                let mut faults = Vec::new();
                while !stop.load(Ordering::Relaxed) {
                    let config = config_with(|config| config.resumption = rustls::client::Resumption::disabled());
                    match handshake(connect(address), "foobar.com", config) {
                        Ok(_) => drop(done.fetch_add(1, Ordering::Relaxed)),
                        Err(error) => faults.push(error.to_string()),
                    }
                }
                faults
            })
        });
        let threads = threads.collect();
        Self { stop, done, threads }
    }

    fn done(&self) -> usize {
        self.done.load(Ordering::Relaxed)
    }

    /// How many there were, and what went wrong.
    fn finish(self) -> (usize, Vec<String>) {
        self.stop.store(true, Ordering::Relaxed);
        let faults = self.threads.into_iter().flat_map(|thread| thread.join().unwrap()).collect();
        (self.done.load(Ordering::Relaxed), faults)
    }
}

#[test]
fn t15_a_certificate_that_is_renewed_again_and_again_costs_no_handshake() {
    let swaps = if full() { 100 } else { 10 };
    let backend = Backend::stall();
    let gate = start(&backend);
    let load = Handshakes::start(&gate);
    wait_until(SOON, "load", || load.done() > 10);
    let mut slowest = Duration::ZERO;
    for _ in 0..swaps {
        let leaf = Authority::leaf(&NAMES);
        Authority::replace(gate.directory.path(), "foobar.com", &leaf);
        let begin = Instant::now();
        wait_until(SOON, "the new certificate", || is_served(&gate, &leaf));
        slowest = slowest.max(begin.elapsed());
        let done = load.done();
        wait_until(SOON, "load with it", || load.done() > done + 5);
    }
    let (handshakes, faults) = load.finish();
    println!("T15: {swaps} renewals under {handshakes} handshakes, {} failed, slowest {slowest:?}", faults.len());
    assert!(faults.is_empty(), "{faults:?}");
    // Changes are left to settle for a moment, so that a pair is read as a whole.
    assert!(slowest < patient(Duration::from_secs(if full() { 1 } else { 3 })), "{slowest:?}");
    gate.finish();
}

#[test]
fn t15_half_of_a_pair_waits_for_the_other_half() {
    let backend = Backend::stall();
    let gate = start(&backend);
    let (before, leaf) = (served(&gate), Authority::leaf(&NAMES));
    let directory = gate.directory.path();
    Authority::replace_one(directory, "foobar.com.pem", &leaf.certificate);
    let warned = || wait_for(SOON, || messages(&gate, "certificate not taken").into_iter().next());
    let problem = warned().expect("a warning")["problem"].to_string();
    assert!(problem.contains("the key does not belong to the certificate"), "{problem}");
    assert_eq!(served(&gate), before);
    // Who asks for a reload is told, and nothing changes.
    let reload = Process::run(&["reload", "--config", "sluicegate.toml"], directory, LATE);
    assert_eq!(reload.code, Some(3), "{}", reload.stderr);
    assert!(reload.stderr.contains("error[E105]") || reload.stderr.contains("foobar.com.key"), "{}", reload.stderr);
    assert_eq!(served(&gate), before);
    Authority::replace_one(directory, "foobar.com.key", &leaf.key);
    wait_until(SOON, "the whole pair", || is_served(&gate, &leaf));
    gate.finish();
}

#[test]
fn t15_a_broken_configuration_keeps_no_certificate_from_the_clients() {
    let backend = Backend::stall();
    let gate = start(&backend);
    let path = gate.directory.path().join("sluicegate.toml");
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.clone() + "\n[nonsense\n").unwrap();
    let refused = "configuration refused: the one before goes on";
    wait_until(SOON, "a refusal", || !messages(&gate, refused).is_empty());
    let leaf = Authority::leaf(&NAMES);
    Authority::replace(gate.directory.path(), "foobar.com", &leaf);
    wait_until(SOON, "the new certificate", || is_served(&gate, &leaf));
    std::fs::write(&path, text).unwrap();
    gate.wait_metrics("applied", |metrics| metrics.count("sluicegate_config_last_reload_successful", &[]) == 1);
    assert!(is_served(&gate, &leaf));
    gate.finish();
}

#[test]
fn t15_a_site_without_a_configuration_file_renews_its_certificate() {
    let backend = Backend::stall();
    let directory = tempfile::TempDir::new().unwrap();
    Authority::write(directory.path(), "site", &Authority::leaf(&NAMES));
    let to = backend.address.to_string();
    let words = ["up", "foobar.com", "--to", &to, "--cert", "site.pem", "--key", "site.key", "--bind", "127.0.0.1:0"];
    let mut process = Process::start(&[&words[..], &["--admin", "127.0.0.1:0"]].concat(), directory.path());
    let bound = process.ready(SOON);
    let (_, address) = bound.iter().find(|(name, _)| name != "admin").unwrap();
    let served = || connect_tls(*address).conn.peer_certificates().unwrap()[0].clone().into_owned();
    let leaf = Authority::leaf(&NAMES);
    assert_ne!(served(), der(&leaf));
    Authority::replace(directory.path(), "site", &leaf);
    wait_until(SOON, "the new certificate", || served() == der(&leaf));
    process.stop();
}

/// Whether a client resumed its session; the answer is read so that its next ticket is there.
fn resumes(gate: &Gate, config: &Arc<ClientConfig>) -> bool {
    let mut tls = handshake(connect(gate.address("https")), "foobar.com", Arc::clone(config)).unwrap();
    let resumed = tls.conn.handshake_kind() == Some(HandshakeKind::Resumed);
    let (greeting, _) = read_all(&mut tls);
    assert_eq!(greeting, b"x");
    resumed
}

#[test]
fn t4_tickets_outlive_a_renewal_and_not_a_change_of_names() {
    let backend = Backend::start(|mut stream, _| drop(std::io::Write::write_all(&mut stream, b"x")));
    let gate = start(&backend);
    let config = config_with(|_| ());
    assert!(!resumes(&gate, &config));
    assert!(resumes(&gate, &config));
    let leaf = Authority::leaf(&NAMES);
    Authority::replace(gate.directory.path(), "foobar.com", &leaf);
    wait_until(SOON, "the new certificate", || is_served(&gate, &leaf));
    assert!(resumes(&gate, &config), "the same names");
    let leaf = Authority::leaf(&["foobar.com", "other.example"]);
    Authority::replace(gate.directory.path(), "foobar.com", &leaf);
    wait_until(SOON, "the new certificate", || is_served(&gate, &leaf));
    assert!(!resumes(&gate, &config), "other names");
    gate.finish();
}

#[test]
fn t15_a_certificate_near_its_end_is_told_once() {
    let backend = Backend::stall();
    let toml = https("") + &pool("", &[backend.address]);
    for (days, told) in [(20, false), (10, true), (2, true)] {
        let plan = Gate::plan(&toml);
        Authority::write(plan.path(), "foobar.com", &Authority::leaf_for(&NAMES, DAY * days + DAY / 2));
        let gate = plan.start();
        let warnings = || messages(&gate, "certificate expires soon: renew it");
        if told {
            let warning = wait_for(SOON, || warnings().into_iter().next()).expect("a warning");
            assert_eq!(warning["days"], days, "whole days left");
            assert_eq!(warning["listener"], "https");
        }
        assert!(is_served(&gate, &Leaf { certificate: read(&gate, "foobar.com.pem"), key: String::new() }));
        assert_eq!(warnings().len(), usize::from(told), "{days} days");
        gate.finish();
    }
}

fn read(gate: &Gate, name: &str) -> String {
    std::fs::read_to_string(gate.directory.path().join(name)).unwrap()
}
