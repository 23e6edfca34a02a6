//! R17: a bug ends what it happens in, and nothing else. The bug is a source of random numbers that breaks when it is told
//! to: the cryptography of a gate is an argument of its start.

use std::{
    path::Path,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use rustls::crypto::{CryptoProvider, GetRandomFailed, SecureRandom};
use sluicegate::{
    load::{Text, load},
    messages, supervisor,
    tls::acceptor::provider,
};

use crate::support::{
    Authority, Load, SOON, WebServer, client,
    load::{faults, visit},
    metrics::Metrics,
    programs, wait_until,
};

/// Tells the test that it is alone in its process: panics are counted there.
const ALONE: &str = "SLUICEGATE_TEST_ALONE";

/// How often it is to break yet: in a handshake of a client, and in a check.
static HANDSHAKES: AtomicU64 = AtomicU64::new(0);
static CHECKS: AtomicU64 = AtomicU64::new(0);

#[derive(Debug)]
struct Faulty(&'static dyn SecureRandom);

impl SecureRandom for Faulty {
    fn fill(&self, buffer: &mut [u8]) -> Result<(), GetRandomFailed> {
        let left = match std::thread::current().name() {
            Some(name) if name.starts_with("worker-") => &HANDSHAKES,
            Some("control") => &CHECKS,
            _ => return self.0.fill(buffer),
        };
        let breaks = left.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(breaks.is_err(), "a bug, ordered by the test");
        self.0.fill(buffer)
    }
}

fn faulty() -> Arc<CryptoProvider> {
    let sound = provider();
    let faulty = Box::leak(Box::new(Faulty(sound.secure_random)));
    Arc::new(CryptoProvider { secure_random: faulty, ..sound })
}

/// What a gate of this process is reached by, and how it is told to end.
struct Inside {
    addresses: Vec<(Arc<str>, std::net::SocketAddr)>,
    stop: tokio::sync::oneshot::Sender<()>,
    control: std::thread::JoinHandle<()>,
}

impl Inside {
    fn start(text: String) -> Self {
        let (stop, stopped) = tokio::sync::oneshot::channel();
        let (sender, started) = std::sync::mpsc::channel();
        let control = move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
            runtime.block_on(async {
                let provider = faulty();
                let loaded = load(&Text { path: "sluicegate.toml".into(), text }, &provider).unwrap();
                let gate = supervisor::start(loaded, supervisor::Options::default(), &provider, None).await.unwrap();
                sender.send(gate.listening()).unwrap();
                let _ = stopped.await;
                gate.leave(std::future::ready(())).await;
            });
        };
        let control = std::thread::Builder::new().name("control".to_owned()).spawn(control).unwrap();
        Self { addresses: started.recv_timeout(SOON).unwrap(), stop, control }
    }

    fn address(&self, name: &str) -> std::net::SocketAddr {
        self.addresses.iter().find(|(known, _)| **known == *name).unwrap().1
    }

    fn metrics(&self) -> Metrics {
        Metrics::scrape(self.address("admin"))
    }

    fn end(self) {
        self.stop.send(()).unwrap();
        self.control.join().unwrap();
    }
}

#[test]
fn r17_a_panic_ends_one_connection_or_one_check_and_nothing_else() {
    const BUGS: u64 = 20;
    const NAME: &str = "pressure::panics::r17_a_panic_ends_one_connection_or_one_check_and_nothing_else";
    if std::env::var_os(ALONE).is_none() {
        let test = std::env::current_exe().unwrap();
        let line = format!("{ALONE}=1 exec {} --exact {NAME} --nocapture", test.display());
        let done = programs::shell(&line, Path::new("."));
        print!("{}", done.stdout);
        assert!(done.success, "{}\n{}", done.stdout, done.stderr);
        return;
    }
    let Some(server) = WebServer::start() else { return };
    messages::tell_panics();
    let directory = tempfile::TempDir::new().unwrap();
    Authority::write(directory.path(), "foobar.com", &Authority::leaf(&["foobar.com"]));
    let at = directory.path().display();
    let gate = Inside::start(format!(
        "[global]\nworkers = 2\n[admin]\nbind = \"127.0.0.1:0\"\n[log]\naccess = \"off\"\n\
         [listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n\
         [listener.https]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n\
         tls = {{ cert = \"{at}/foobar.com.pem\", key = \"{at}/foobar.com.key\" }}\n\
         [pool.web]\nbackends = [\"{}\"]\n\
         check = {{ type = \"tls\", verify = false, port = {}, every = \"200ms\", fall = 3 }}\n",
        server.address,
        server.tls.port()
    ));
    let load = Load::start(gate.address("tcp"), 200, 8);
    wait_until(SOON, "some load", || load.count() > 50);
    HANDSHAKES.store(BUGS, Ordering::SeqCst);
    for bug in 0..BUGS {
        let config = Arc::new(client::config(rustls::ALL_VERSIONS));
        let ended = client::handshake(client::connect(gate.address("https")), "foobar.com", config);
        assert!(ended.is_err(), "bug {bug}");
        // The socket is closed before the connection is counted as ended.
        wait_until(SOON, "a connection that ended as internal", || gate.metrics().outcome("internal") == bug + 1);
        assert_eq!(gate.metrics().count("sluicegate_panics_total", &[]), bug + 1);
    }
    client::connect_tls(gate.address("https"));
    CHECKS.store(1, Ordering::SeqCst);
    let results = |result| gate.metrics().count("sluicegate_health_checks_total", &[("result", result)]);
    wait_until(SOON, "a check that breaks", || results("other") == 1);
    let good = results("ok");
    wait_until(SOON, "checks that go on", || results("ok") > good + 2);
    let count = load.count();
    wait_until(SOON, "more load", || load.count() > count + 100);
    let visits = load.finish();
    let metrics = gate.metrics();
    println!("R17: {BUGS} panics in connections, 1 in a check: {} connections beside them, 0 failed", visits.len());
    assert!(faults(&visits).is_empty(), "{:?}", faults(&visits));
    assert_eq!(visit(gate.address("tcp")).fault, None);
    assert_eq!(metrics.count("sluicegate_panics_total", &[]), BUGS + 1);
    assert_eq!(metrics.count("sluicegate_backend_up", &[]), 1);
    wait_until(Duration::from_secs(10), "nobody is left", || {
        let metrics = gate.metrics();
        ["sluicegate_listener_connections", "sluicegate_backend_connections", "sluicegate_worker_connections"]
            .iter()
            .all(|gauge| metrics.count(gauge, &[]) == 0)
    });
    gate.end();
}
