//! A backend whose packets vanish: nftables in a network namespace of this test.

use std::{
    path::{Path, PathBuf},
    time::{Duration, Instant},
};

use super::{backends, full, is_up};
use crate::support::{
    Gate, Load, SOON, WebServer,
    gate::tcp,
    load::{faults, slowest},
    programs, wait_until,
};

/// A namespace with one network to this host; gone when dropped.
struct Namespace {
    ip: PathBuf,
    nft: PathBuf,
    name: String,
    /// The first three numbers of its network.
    network: String,
}

impl Namespace {
    /// `None`, with the reason, where this is not allowed.
    fn new() -> Option<Self> {
        let (ip, nft) = (programs::require("ip")?, programs::require("nft")?);
        let id = std::process::id();
        let (name, network) = (format!("sg{id}"), format!("10.213.{}", id % 250));
        let namespace = Self { ip, nft, name: name.clone(), network: network.clone() };
        let (inner, outer) = (format!("sgi{id}"), format!("sgo{id}"));
        let (near, far) = (format!("{network}.1/24"), format!("{network}.2/24"));
        let steps: [&[&str]; 6] = [
            &["netns", "add", &name],
            &["link", "add", &outer, "type", "veth", "peer", "name", &inner, "netns", &name],
            &["addr", "add", &near, "dev", &outer],
            &["link", "set", &outer, "up"],
            &["-n", &name, "addr", "add", &far, "dev", &inner],
            &["-n", &name, "link", "set", &inner, "up"],
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
    assert!(slowest(&visits) <= Duration::from_millis(1_050) + normal + busy, "{:?}", slowest(&visits));
    assert!(out <= Duration::from_secs(3), "{out:?}");
    assert!(late.len() > 100 && slowest(late) < Duration::from_millis(500));
    namespace.filter("flush chain ip f i");
    gate.finish();
}
