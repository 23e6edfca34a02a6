//! Networks that fail, in namespaces of these tests: packets that vanish, ports that run out.

use std::{
    fs::File,
    io::{ErrorKind, Read},
    net::TcpStream,
    os::fd::AsFd,
    path::{Path, PathBuf},
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};

use super::{backends, full, is_up, transitions};
use crate::support::{
    Backend, Gate, Load, SOON, WebServer,
    client::bounded,
    gate::{backend, tcp},
    load::{faults, slowest},
    patient, programs, wait_until,
};

/// A namespace with one network to this host; gone when dropped.
pub struct Namespace {
    ip: PathBuf,
    nft: PathBuf,
    name: String,
    /// The first three numbers of its network.
    network: String,
}

impl Namespace {
    /// `None`, with the reason, where this is not allowed.
    pub fn new() -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let (ip, nft) = (programs::require("ip")?, programs::require("nft")?);
        let (id, number) = (std::process::id(), NEXT.fetch_add(1, Ordering::Relaxed));
        let (name, network) = (format!("sg{number}-{id}"), format!("10.{}.{}", 213 + number, id % 250));
        let namespace = Self { ip, nft, name: name.clone(), network: network.clone() };
        let (inner, outer) = (format!("i{number}-{id}"), format!("o{number}-{id}"));
        let (near, far) = (format!("{network}.1/24"), format!("{network}.2/24"));
        let steps: [&[&str]; 7] = [
            &["netns", "add", &name],
            &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &name],
            &["addr", "add", &near, "dev", &outer],
            &["link", "set", &outer, "up"],
            &["-n", &name, "addr", "add", &far, "dev", &inner],
            &["-n", &name, "link", "set", &inner, "up"],
            &["-n", &name, "link", "set", "lo", "up"],
        ];
        for step in steps {
            let done = programs::run(&namespace.ip, step, Path::new("/"), b"");
            if !done.success {
                programs::skip(&format!("no network namespace: ip {}: {}", step.join(" "), done.stderr.trim()));
                return None;
            }
        }
        Some(namespace)
    }

    fn address(&self, port: u16) -> std::net::SocketAddr {
        format!("{}.2:{port}", self.network).parse().unwrap()
    }

    /// Does something in it; so do the threads and processes that this starts.
    pub fn within<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let entrance = File::open(Path::new("/run/netns").join(&self.name)).unwrap();
        let inside = move || {
            move_into_link_name_space(entrance.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            work()
        };
        std::thread::scope(|scope| scope.spawn(inside).join()).unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    }

    /// Makes every address of a network one of its own.
    #[track_caller]
    pub fn own(&self, network: &str) {
        let arguments = ["-n", &self.name, "route", "add", "local", network, "dev", "lo"];
        let done = programs::run(&self.ip, &arguments, Path::new("/"), b"");
        assert!(done.success, "{}", done.stderr);
    }

    /// Rules of its packet filter.
    #[track_caller]
    fn filter(&self, rules: &str) {
        let nft = self.nft.to_string_lossy();
        let arguments = ["netns", "exec", &self.name, &nft, "-f", "-"];
        let done = programs::run(&self.ip, &arguments, Path::new("/"), rules.as_bytes());
        assert!(done.success, "{}", done.stderr);
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let _ = programs::run(&self.ip, &["netns", "del", &self.name], Path::new("/"), b"");
    }
}

#[test]
fn s2_a_blackholed_backend_costs_at_most_one_connect_timeout() {
    let Some(namespace) = Namespace::new() else { return };
    let server = |number: u16| {
        let (address, tls) = (namespace.address(8000 + number), namespace.address(9000 + number));
        WebServer::start_on(address, tls, Some(&namespace.name))
    };
    let Some(servers) = (0..3).map(server).collect::<Option<Vec<_>>>() else { return };
    let addresses: Vec<_> = servers.iter().map(|server| server.address).collect();
    let toml = tcp("") + "[pool.web]\ntimeouts = { connect = \"1s\" }\n" + &backends(&addresses);
    let gate = Gate::plan(&toml).checked().start();
    let load = Load::start(gate.address("tcp"), 100, 100);
    wait_until(SOON, "a second of normal load", || load.count() > 100);
    let normal = slowest(&load.visits());
    namespace.filter(
        "add table ip f; add chain ip f i { type filter hook input priority 0; }; add rule ip f i tcp dport 8000 drop;",
    );
    let begin = Instant::now();
    let metrics = gate.wait_metrics("out", |metrics| !is_up(metrics, "b0"));
    let out = begin.elapsed();
    let ejected = metrics.count("sluicegate_pool_backends", &[("state", "ejected")]);
    // Those that still wait for it are the last that notice.
    let after = Instant::now();
    let count = load.count();
    wait_until(SOON, "load without it", || load.count() > count + 200);
    let visits = load.finish();
    let late: Vec<_> = visits.iter().filter(|visit| visit.begun > after).collect();
    println!(
        "S2: {} connections, {} failed, slowest {:?} (normally {normal:?}), out after {out:?} ({}), slowest then {:?}",
        visits.len(),
        faults(&visits).len(),
        slowest(&visits),
        if ejected > 0 { "by traffic" } else { "by checks" },
        slowest(late.iter().copied())
    );
    assert!(faults(&visits).is_empty(), "{:?}", faults(&visits));
    // Beside other tests a retry may have to wait for a processor.
    let busy = Duration::from_millis(if full() { 0 } else { 200 });
    assert!(slowest(&visits) <= patient(Duration::from_millis(1_050) + normal + busy), "{:?}", slowest(&visits));
    assert!(out <= patient(Duration::from_secs(3)), "{out:?}");
    assert!(late.len() > 100 && slowest(late) < patient(Duration::from_millis(500)));
    namespace.filter("flush chain ip f i");
    gate.finish();
}

/// The range of ports of a namespace, made small; as it was when dropped, because the servers of these tests connect to
/// themselves at their end.
struct FewPorts(String);

impl FewPorts {
    const PATH: &str = "/proc/sys/net/ipv4/ip_local_port_range";

    fn new(range: &str) -> Self {
        let before = std::fs::read_to_string(Self::PATH).unwrap();
        std::fs::write(Self::PATH, range).unwrap();
        Self(before)
    }
}

impl Drop for FewPorts {
    fn drop(&mut self) {
        let _ = std::fs::write(Self::PATH, &self.0);
    }
}

#[test]
fn a6_ports_that_run_out_are_no_fault_of_the_backend() {
    const PORTS: usize = 500;
    let Some(namespace) = Namespace::new() else { return };
    namespace.within(|| {
        let server = Backend::greeting(b"a");
        // Clients have as many ports of their own to each address.
        let binds: Vec<_> = (1..=8).map(|number| format!("\"127.0.1.{number}:0\"")).collect();
        let listener = format!("[listener.tcp]\nbind = [{}]\npool = \"web\"\n", binds.join(", "));
        let toml = listener + "[log]\naccess = \"off\"\n" + &backend("b0", server.address, "");
        let gate = Gate::plan(&toml).checked().start();
        gate.wait_metrics("up", |metrics| is_up(metrics, "b0"));
        let _few = FewPorts::new("40000 40499");
        let addresses = gate.addresses("tcp");
        let client = |number: usize| {
            let begin = Instant::now();
            // On a busy machine the reset may come before the connect has returned.
            let mut stream = match TcpStream::connect(addresses[number % addresses.len()]) {
                Ok(stream) => bounded(stream),
                Err(error) if error.kind() == ErrorKind::ConnectionReset => return (None, false, begin.elapsed()),
                Err(error) => panic!("{error}"),
            };
            let relayed = stream.read_exact(&mut [0]).is_ok();
            (Some(stream), relayed, begin.elapsed())
        };
        let clients: Vec<_> = (0..2_000).map(client).collect();
        let (relayed, refused): (Vec<_>, Vec<_>) = clients.iter().partition(|(_, relayed, _)| *relayed);
        let slowest = refused.iter().map(|(_, _, took)| *took).max().unwrap();
        let metrics = gate.metrics();
        let failures = metrics.count("sluicegate_backend_connect_failures_total", &[("reason", "no_ports")]);
        println!("A6: {} relayed over {PORTS} ports, {} not, slowest {slowest:?}", relayed.len(), refused.len());
        // A check may have one port, and one that it had before may still be in TIME_WAIT.
        assert!((PORTS - 5..=PORTS).contains(&relayed.len()), "{}", relayed.len());
        assert!(slowest < patient(Duration::from_millis(100)), "{slowest:?}");
        assert!(failures >= refused.len() as u64, "{failures}");
        // Checks have no port either; three of them are enough to be down if they counted.
        let until = Instant::now() + Duration::from_secs(4);
        while Instant::now() < until {
            let metrics = gate.metrics();
            assert!(is_up(&metrics, "b0"), "no fault of the backend");
            assert_eq!(transitions(&metrics, "down"), 0);
        }
        drop(clients);
        gate.finish();
    });
}
