//! L2, L6, L7: what the new process has from the one before.

use std::{
    collections::BTreeMap,
    io::Read,
    os::unix::net::UnixDatagram,
    sync::{
        Arc, Mutex,
        atomic::{AtomicBool, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use rustix::process::Signal;
use rustls::HandshakeKind;

use super::{site, start};
use crate::support::{
    Backend, Gate, Lineage, Metrics, Process, SOON, Variant,
    backend::Refusing,
    client,
    gate::{backend, https, pool, tcp},
    lineage::Over,
    patient, wait_until,
};

/// What a service manager has been told.
#[derive(Debug, Clone, Default)]
struct Manager(Arc<Mutex<String>>);

impl Manager {
    /// To the end of the test: nobody who tells it something may have to wait.
    fn listen(socket: UnixDatagram) -> Self {
        let manager = Self::default();
        let words = Arc::clone(&manager.0);
        thread::spawn(move || {
            let mut bytes = [0; 4096];
            while let Ok(count) = socket.recv(&mut bytes) {
                let text = String::from_utf8_lossy(&bytes[..count]).into_owned();
                words.lock().unwrap().push_str(&text);
                if text.contains("STOPPING=1") {
                    return;
                }
            }
        });
        manager
    }

    fn text(&self) -> String {
        self.0.lock().unwrap().clone()
    }
}

/// Every counter by its name and labels.
fn counters(metrics: &Metrics) -> BTreeMap<String, f64> {
    let is_counter = |name: &str| name.ends_with("_total") || name.ends_with("_count") || name.ends_with("_bucket");
    let own = metrics.0.iter().filter(|s| s.name.starts_with("sluicegate_") && is_counter(&s.name));
    own.map(|s| (format!("{} {:?}", s.name, s.labels), s.value)).collect()
}

#[test]
fn l2_no_counter_decreases_over_ten_upgrades() {
    const UPGRADES: u64 = 10;
    let server = Backend::echo();
    let mut lineage = start(&(site(server.address, "") + "[log]\naccess = \"off\"\n"));
    let (address, admin) = (lineage.gate.address("tcp"), lineage.gate.address("admin"));
    let stop = AtomicBool::new(false);
    let mut exchanged = 0_u64;
    let scrapes = thread::scope(|scope| {
        let scraping = scope.spawn(|| {
            let (mut last, mut scrapes) = (counters(&Metrics::scrape(admin)), 0);
            while !stop.load(Ordering::Relaxed) {
                let now = counters(&Metrics::scrape(admin));
                for (name, value) in &last {
                    let now = now.get(name).unwrap_or_else(|| panic!("{name} is gone"));
                    assert!(now >= value, "{name}: {value}, then {now}");
                }
                (last, scrapes) = (now, scrapes + 1);
            }
            scrapes
        });
        let over = Over(&stop);
        for _ in 0..UPGRADES {
            // It says more to the process before after the next one serves.
            let mut held = client::connect(address);
            for _ in 0..20 {
                client::exchange(&mut client::connect(address), b"x");
                exchanged += 1;
            }
            client::exchange(&mut held, b"before");
            lineage.upgrade();
            client::exchange(&mut held, b"after");
            exchanged += 11;
        }
        lineage.wait_alone(SOON);
        drop(over);
        scraping.join().unwrap()
    });
    let metrics = lineage.gate.metrics();
    println!("L2: {UPGRADES} upgrades, {scrapes} scrapes");
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[]), UPGRADES * 21);
    assert_eq!(metrics.outcome("client_closed"), UPGRADES * 21);
    for name in ["sluicegate_listener_received_bytes_total", "sluicegate_listener_sent_bytes_total"] {
        assert_eq!(metrics.count(name, &[]), exchanged, "{name}");
    }
    assert_eq!(metrics.count("sluicegate_connection_duration_seconds_count", &[]), UPGRADES * 21);
    lineage.finish();
}

#[test]
fn l7_three_hundred_sockets_go_over_in_one_upgrade() {
    let server = Backend::echo();
    let binds: Vec<_> = (0..150).map(|n| format!("\"127.0.{}.{}:0\"", 1 + n / 100, 1 + n % 100)).collect();
    let toml =
        format!("[listener.tcp]\nbind = [{}]\npool = \"web\"\n", binds.join(", ")) + &pool("", &[server.address]);
    let plan = Gate::plan(&toml).variant(Variant { workers: 2, ..Variant::chosen() });
    let mut lineage = Lineage::start(plan);
    for _ in 0..2 {
        lineage.upgrade();
        lineage.wait_alone(SOON);
        for address in lineage.gate.addresses("tcp").into_iter().step_by(7) {
            client::exchange(&mut client::connect(address), b"here");
        }
    }
    let descriptors = std::fs::read_dir(format!("/proc/{}/fd", lineage.pid())).unwrap().count();
    println!("{} addresses, {descriptors} descriptors", lineage.gate.addresses("tcp").len());
    lineage.finish();
}

#[test]
fn the_process_before_may_die_as_soon_as_the_new_one_serves() {
    let server = Backend::echo();
    let mut lineage = start(&site(server.address, ""));
    let mut held = client::connect(lineage.gate.address("tcp"));
    client::exchange(&mut held, b"held");
    let pid = lineage.upgrade();
    lineage.gate.process.signal(Signal::KILL);
    client::exchange(&mut client::connect(lineage.gate.address("tcp")), b"served");
    // It had a connection, which has ended with it.
    let metrics = lineage.gate.wait_outcome("drained", 1);
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[]), 2);
    assert_eq!(lineage.pid(), pid);
    drop(held);
    lineage.gate.wait_quiet();
    lineage.signal(Signal::TERM);
    wait_until(SOON, "the end", || lineage.gate.process.messages().iter().any(|m| m["message"] == "stopped"));
    lineage.gate.ended();
}

#[test]
fn l6_b3_what_is_known_of_backends_is_known_to_the_new_process() {
    let (good, drained, dead) = (Backend::named("good"), Backend::named("drained"), Refusing::new());
    let check =
        "[pool.web]\nretries = 0\noutlier = \"off\"\ncheck = { type = \"tcp\", every = \"60s\", timeout = \"2s\" }\n";
    let toml = tcp("")
        + check
        + &backend("a", good.address, "")
        + &backend("b", drained.address, "")
        + &backend("c", dead.address, "");
    let mut lineage = Lineage::start(Gate::plan(&toml).checked());
    let run = |words: &[&str]| {
        let ended = Process::run(&[words, &["--socket", "admin.sock"]].concat(), lineage.directory(), SOON);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
        ended.stdout
    };
    run(&["backend", "drain", "web/b"]);
    run(&["backend", "weight", "web/a", "7"]);
    lineage.upgrade();
    for _ in 0..30 {
        assert_eq!(client::ask(lineage.gate.address("tcp")), "good");
    }
    lineage.wait_alone(SOON);
    let metrics = lineage.gate.metrics();
    assert_eq!(metrics.count("sluicegate_backend_weight", &[("backend", "a")]), 7);
    assert_eq!(metrics.count("sluicegate_backend_connect_failures_total", &[]), 0, "nobody was sent to the dead one");
    lineage.finish();
}

#[test]
fn a_new_process_does_not_wait_for_checks_whose_verdict_is_known() {
    // It answers the first check and no other.
    let server = Backend::start(|mut stream, number| {
        if number == 0 {
            let _ = std::io::Write::write_all(&mut stream, b"well");
        } else {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        }
    });
    let check = "check = { type = \"send_expect\", expect = \"well\", every = \"60s\", timeout = \"30s\" }";
    let mut lineage = Lineage::start(Gate::plan(&(tcp("") + &pool(check, &[server.address]))).checked());
    let begin = Instant::now();
    lineage.upgrade();
    let took = begin.elapsed();
    println!("served after {took:?}");
    assert!(took < patient(Duration::from_millis(1_900)), "{took:?}");
    assert_eq!(lineage.gate.metrics().count("sluicegate_pool_backends", &[("state", "up")]), 1);
    lineage.finish();
}

#[test]
fn listeners_may_come_and_go_with_an_upgrade() {
    let server = Backend::echo();
    let more = "[listener.old]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n";
    let mut lineage = start(&site(server.address, more));
    let (old, path) = (lineage.gate.address("old"), lineage.directory().join("sluicegate.toml"));
    let text = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, text.replace("listener.old", "listener.new").replace("workers = 2", "workers = 3")).unwrap();
    lineage.upgrade();
    wait_until(SOON, "an address that nobody has", || std::net::TcpStream::connect(old).is_err());
    let new = lineage.gate.process.messages().into_iter().filter(|m| m["listener"] == "new");
    let new = new.map(|m| m["address"].as_str().unwrap().parse().unwrap()).next().expect("a new listener");
    client::exchange(&mut client::connect(new), b"new");
    client::exchange(&mut client::connect(lineage.gate.address("tcp")), b"kept");
    lineage.wait_alone(SOON);
    lineage.gate.wait_metrics("quiet", |m| m.count("sluicegate_listener_connections", &[]) == 0);
    lineage.signal(Signal::TERM);
    lineage.wait_end();
}

#[test]
fn the_service_manager_follows_the_new_process() {
    let server = Backend::echo();
    let plan = Gate::plan(&site(server.address, "")).admin("socket = \"admin.sock\"");
    let manager = UnixDatagram::bind(plan.path().join("notify")).unwrap();
    let heard = Manager::listen(manager);
    let line = "export NOTIFY_SOCKET=\"$PWD/notify\" WATCHDOG_USEC=300000 WATCHDOG_PID=$$";
    let mut lineage = Lineage::start_after(plan, line);
    let pid = lineage.upgrade();
    let main = format!("MAINPID={pid}\n");
    wait_until(SOON, "the number of the new process", || heard.text().contains(&main));
    lineage.wait_alone(SOON);
    let before = heard.text().matches("WATCHDOG=1").count();
    wait_until(SOON, "a new process that is watched", || heard.text().matches("WATCHDOG=1").count() > before + 2);
    assert!(!heard.text().contains("STOPPING=1"), "the service goes on");
    lineage.signal(Signal::TERM);
    wait_until(SOON, "the stop", || heard.text().contains("STOPPING=1"));
    lineage.wait_end();
}

#[test]
fn t5_sessions_are_resumed_in_the_new_process() {
    let server = Backend::echo();
    let mut lineage = start(&(https("") + &pool("", &[server.address])));
    let config = client::config_with(|_| {});
    for round in 0..3 {
        let stream = client::connect(lineage.gate.address("https"));
        let mut stream = client::handshake(stream, "foobar.com", Arc::clone(&config)).unwrap();
        client::exchange(&mut stream, b"take the ticket");
        let kind = if round == 0 { HandshakeKind::Full } else { HandshakeKind::Resumed };
        assert_eq!(stream.conn.handshake_kind(), Some(kind), "round {round}");
        client::Stream::finish_sending(&mut stream);
        assert_eq!(stream.read(&mut [0]).unwrap(), 0);
        lineage.upgrade();
    }
    lineage.finish();
}
