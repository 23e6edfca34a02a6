//! Deny rules in the kernel, each test in a network namespace of its own.

use std::{
    fmt::Write as _,
    io::{ErrorKind, Read},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::Duration,
};

use rustix::process::Signal;
use socket2::{Domain, SockAddr, Socket, Type};

use crate::support::{
    Backend, Gate, Lineage, Metrics, Namespace, Process, SOON, Variant,
    client::{bounded, exchange},
    gate::{Plan, pool},
    wait_until,
};

/// How long a packet that nobody answers is waited for.
const NOTHING: Duration = Duration::from_millis(300);

/// Longer than between two readings of the counters.
const COUNTED: Duration = Duration::from_secs(20);

const UP: &str = "sluicegate_firewall_offload_up";
const PACKETS: &str = "sluicegate_firewall_offloaded_packets_total";

/// A gate in the namespace, whose listeners are reached from outside.
struct Inside<'n> {
    namespace: &'n Namespace,
    gate: Option<Gate>,
    backend: Option<Backend>,
}

impl<'n> Inside<'n> {
    /// `listeners` and `firewall` are tables; `HOST` in them is the address of the namespace.
    #[track_caller]
    fn start(namespace: &'n Namespace, listeners: &str, firewall: &str) -> Self {
        let (backend, plan) = plan(namespace, listeners, firewall);
        let gate = namespace.within(|| plan.admin("socket = \"admin.sock\"").global("watch = false").start());
        Self { namespace, gate: Some(gate), backend: Some(backend) }
    }

    fn gate(&self) -> &Gate {
        self.gate.as_ref().unwrap()
    }

    fn metrics(&self) -> Metrics {
        self.namespace.within(|| self.gate().metrics())
    }

    #[track_caller]
    fn wait(&self, what: &str, condition: impl Fn(&Metrics) -> bool) {
        wait_until(COUNTED, what, || condition(&self.metrics()));
    }

    #[track_caller]
    fn wait_up(&self) {
        self.wait("rules in the kernel", |metrics| metrics.count(UP, &[]) == 1);
    }

    /// The address of a listener, from outside.
    fn address(&self, listener: &str) -> SocketAddr {
        self.namespace.address(self.gate().address(listener).port())
    }

    #[track_caller]
    fn reload(&self, from: &str, to: &str) {
        let path = self.gate().directory.path().join("sluicegate.toml");
        let text = std::fs::read_to_string(&path).unwrap();
        assert!(text.contains(from), "{text}");
        std::fs::write(&path, text.replace(from, to)).unwrap();
        let ended = Process::run(&["reload", "--socket", "admin.sock"], self.gate().directory.path(), SOON);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    }

    fn says(&self, text: &str) -> bool {
        self.gate().process.stderr.text().contains(text)
    }

    #[track_caller]
    fn finish(mut self) {
        let gate = self.gate.take().unwrap();
        self.namespace.within(|| gate.finish());
    }
}

/// A backend connects to itself at its end.
impl Drop for Inside<'_> {
    fn drop(&mut self) {
        let (gate, backend) = (self.gate.take(), self.backend.take());
        if let Some(gate) = gate {
            eprintln!("--- stderr of the gate\n{}", gate.process.stderr.text());
            gate.ended();
        }
        self.namespace.within(|| drop(backend));
    }
}

/// The backend is in the namespace too.
fn plan(namespace: &Namespace, listeners: &str, firewall: &str) -> (Backend, Plan) {
    let backend = namespace.within(Backend::echo);
    let host = namespace.address(0).ip().to_string();
    let net = host.strip_suffix(".2").unwrap();
    let toml = [listeners, &pool("", &[backend.address]), firewall].concat().replace("HOST", &host).replace("NET", net);
    (backend, Gate::plan(&toml))
}

const LISTENER: &str = "[listener.tcp]\nbind = \"HOST:0\"\npool = \"web\"\n";

fn connect(source: IpAddr, address: SocketAddr, within: Duration) -> std::io::Result<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None)?;
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    socket.connect_timeout(&SockAddr::from(address), within)?;
    Ok(bounded(socket.into()))
}

/// It is served.
#[track_caller]
fn assert_served(source: IpAddr, address: SocketAddr) -> TcpStream {
    let served = connect(source, address, SOON);
    let mut stream = served.unwrap_or_else(|error| panic!("{source} has no connection to {address}: {error}"));
    exchange(&mut stream, b"hello");
    stream
}

/// It gets no connection at all.
#[track_caller]
fn assert_kept_out(source: IpAddr, address: SocketAddr, kind: ErrorKind) {
    let within = if kind == ErrorKind::TimedOut { NOTHING } else { SOON };
    let error = connect(source, address, within).expect_err("no connection");
    assert_eq!(error.kind(), kind, "{source}: {error}");
}

#[test]
fn f11_the_kernel_denies_what_the_firewall_denies_and_nothing_else() {
    let Some(namespace) = Namespace::new() else { return };
    namespace.filter("add table inet site; add set inet site s { type ipv4_addr; flags interval; elements = { 192.0.2.0/24 }; }; add chain inet site c { type filter hook input priority 0; }; add rule inet site c ip saddr @s drop;");
    let before = namespace.nft(&["list", "ruleset"]).stdout;
    let (plain, friend, bad) = (namespace.outside(1), namespace.outside(7), namespace.outside(6));
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [\n  { name = \"friend\", allow = \"NET.7\" },\n  \
                    { name = \"bad\", deny = \"NET.6/31\" },\n]\n";
    let inside = Inside::start(&namespace, LISTENER, firewall);
    inside.wait_up();
    let address = inside.address("tcp");
    let mut live = assert_served(plain, address);
    drop(assert_served(friend, address));
    assert_kept_out(bad, address, ErrorKind::TimedOut);
    inside.wait("what the kernel counted", |metrics| metrics.count(PACKETS, &[("rule", "bad")]) > 0);
    let metrics = inside.metrics();
    assert_eq!(metrics.count("sluicegate_listener_accepted_total", &[]), 2, "never accepted");
    assert_eq!(metrics.count("sluicegate_firewall_connections_total", &[("rule", "bad")]), 0);
    // Who is denied now keeps the connection that it has.
    inside.reload(&format!("{bad}/31"), &plain.to_string());
    exchange(&mut live, b"still here");
    drop(assert_served(bad, address));
    assert_kept_out(plain, address, ErrorKind::TimedOut);
    exchange(&mut live, b"still here");
    assert!(inside.metrics().count(PACKETS, &[("rule", "bad")]) > 0, "a counter survives a reload");
    drop(live);
    let during = namespace.nft(&["list", "ruleset"]).stdout;
    assert!(during.starts_with(&before) && during.contains("table inet sluicegate"), "{during}");
    inside.finish();
    assert_eq!(namespace.nft(&["list", "ruleset"]).stdout, before, "gone at the exit, and nothing else");
}

#[test]
fn f11_each_listener_has_its_own_rules_and_a_reset_is_a_reset() {
    let Some(namespace) = Namespace::new() else { return };
    let bad = namespace.outside(6);
    let port = namespace.within(|| std::net::TcpListener::bind("0.0.0.0:0").unwrap().local_addr().unwrap().port());
    let listeners = format!(
        "[listener.all]\nbind = \"0.0.0.0:{port}\"\npool = \"web\"\n[listener.local]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n\
         [listener.open]\nbind = \"HOST:0\"\npool = \"web\"\n"
    );
    let firewall = "[firewall]\noffload = \"nftables\"\noffload_table = \"mine\"\ndeny_action = \"reset\"\nrules = [\n  \
                    { name = \"try\", deny = \"NET.9\", shadow = true },\n  \
                    { name = \"bad\", deny = [\"NET.6\", \"NET.9\"], listeners = [\"all\"] },\n]\n";
    let inside = Inside::start(&namespace, &listeners, firewall);
    inside.wait_up();
    assert_kept_out(bad, inside.address("all"), ErrorKind::ConnectionRefused);
    drop(assert_served(bad, inside.address("open")));
    let table = namespace.nft(&["list", "table", "inet", "mine"]).stdout;
    // What a shadow rule wants counted comes through, and is denied in user space.
    assert!(table.contains(&bad.to_string()) && !table.contains(&namespace.outside(9).to_string()), "{table}");
    inside.reload("offload = \"nftables\"", "offload = \"off\"");
    assert!(!namespace.nft(&["list", "ruleset"]).stdout.contains("mine"));
    // The reset may come before the connect has returned.
    let answer = connect(bad, inside.address("all"), SOON).and_then(|mut stream| stream.read(&mut [0]));
    assert_eq!(answer.expect_err("user space denies").kind(), ErrorKind::ConnectionReset);
    assert_eq!(inside.metrics().count(UP, &[]), 0);
    inside.finish();
}

#[test]
fn f11_what_the_kernel_has_lost_or_a_killed_process_has_left_is_put_right() {
    let Some(namespace) = Namespace::new() else { return };
    let bad = namespace.outside(6);
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [{ name = \"bad\", deny = \"NET.6\" }]\n";
    let mut killed = Inside::start(&namespace, LISTENER, firewall);
    killed.wait_up();
    let mut gate = killed.gate.take().unwrap();
    gate.process.signal(Signal::KILL);
    gate.process.wait(SOON).expect("the end");
    gate.ended();
    assert!(namespace.nft(&["list", "table", "inet", "sluicegate"]).success, "left behind");
    let inside = Inside::start(&namespace, LISTENER, &firewall.replace("bad", "evil"));
    inside.wait_up();
    let table = namespace.nft(&["list", "table", "inet", "sluicegate"]).stdout;
    assert!(table.contains("rule-evil") && !table.contains("rule-bad"), "{table}");
    assert_kept_out(bad, inside.address("tcp"), ErrorKind::TimedOut);
    namespace.filter("flush ruleset");
    wait_until(COUNTED, "rules again", || namespace.nft(&["list", "table", "inet", "sluicegate"]).success);
    inside.wait_up();
    assert_kept_out(bad, inside.address("tcp"), ErrorKind::TimedOut);
    assert!(inside.says("the kernel has lost our firewall rules"));
    inside.finish();
}

#[test]
fn f11_who_is_banned_is_kept_out_by_the_kernel_until_the_ban_ends() {
    let Some(namespace) = Namespace::new() else { return };
    let (one, other, plain) = (namespace.outside(8), namespace.outside(9), namespace.outside(1));
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [{ name = \"friend\", allow = \"NET.8\" }]\n";
    let inside = Inside::start(&namespace, LISTENER, firewall);
    inside.wait_up();
    let address = inside.address("tcp");
    let mut live = assert_served(one, address);
    let run = |words: &[&str]| {
        let words = [&words[..1], &["--socket", "admin.sock"], &words[1..]].concat();
        let ended = Process::run(&words, inside.gate().directory.path(), SOON);
        assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    };
    let packets = || inside.metrics().count(PACKETS, &[("rule", "ban")]);
    let knows = |ip: IpAddr| {
        let table = namespace.nft(&["list", "chain", "inet", "sluicegate", "bans"]).stdout;
        let sets = namespace.nft(&["list", "table", "inet", "sluicegate"]).stdout;
        table.contains("bans-v4") && sets.contains(&ip.to_string())
    };
    assert_eq!(packets(), 0, "there from the start");
    // A rule that allows does not help, and who is in already stays.
    run(&["ban", &one.to_string()]);
    run(&["ban", &other.to_string(), "--for", "12s"]);
    wait_until(SOON, "the bans in the kernel", || knows(one) && knows(other));
    assert_kept_out(one, address, ErrorKind::TimedOut);
    assert_kept_out(other, address, ErrorKind::TimedOut);
    drop(assert_served(plain, address));
    exchange(&mut live, b"still here");
    inside.wait("what the kernel counted", |metrics| metrics.count(PACKETS, &[("rule", "ban")]) >= 2);
    assert_eq!(inside.metrics().count("sluicegate_firewall_connections_total", &[("rule", "ban")]), 0);
    // It ends there by itself, and by a reload nothing of it is lost.
    wait_until(COUNTED, "the end of a ban", || connect(other, address, NOTHING).is_ok());
    inside.reload(
        "name = \"friend\", allow = \"",
        "name = \"foe\", deny = \"192.0.2.1\" }, { name = \"friend\", allow = \"",
    );
    assert_kept_out(one, address, ErrorKind::TimedOut);
    run(&["unban", &one.to_string()]);
    assert!(!knows(one), "when the verb has ended");
    drop(assert_served(one, address));
    drop(live);
    inside.finish();
}

#[test]
fn f11_where_nft_refuses_user_space_denies() {
    let Some(namespace) = Namespace::new() else { return };
    if crate::support::programs::require("setpriv").is_none() {
        return;
    }
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [{ name = \"bad\", deny = \"NET.6\" }]\n";
    let bad = namespace.outside(6);
    let (backend, plan) = plan(&namespace, LISTENER, firewall);
    let variant = Variant { unprivileged: true, ..Variant::chosen() };
    let gate = namespace.within(|| plan.variant(variant).start());
    let inside = Inside { namespace: &namespace, gate: Some(gate), backend: Some(backend) };
    wait_until(SOON, "the reason", || inside.says("firewall rules are not in the kernel"));
    assert!(inside.says("CAP_NET_ADMIN"), "{}", inside.gate().process.stderr.text());
    let mut stream = connect(bad, inside.address("tcp"), SOON).expect("user space denies");
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    assert_eq!(inside.metrics().count(UP, &[]), 0);
    inside.finish();
}

#[test]
fn f11_rules_with_too_many_networks_stay_in_user_space() {
    let Some(namespace) = Namespace::new() else { return };
    let mut list = String::new();
    for n in 0..200_001_u32 {
        writeln!(list, "{}", Ipv4Addr::from(0x1000_0000 + n * 3)).unwrap();
    }
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [{ name = \"long\", deny_file = \"deny.txt\" },\n  \
                    { name = \"bad\", deny = \"NET.6\" }]\n";
    let (backend, plan) = plan(&namespace, LISTENER, firewall);
    let plan = plan.file("deny.txt", list).deadline(crate::support::LATE);
    let gate = namespace.within(|| plan.start());
    let inside = Inside { namespace: &namespace, gate: Some(gate), backend: Some(backend) };
    inside.wait_up();
    assert!(inside.says("too many networks for the kernel"));
    let table = namespace.nft(&["list", "table", "inet", "sluicegate"]).stdout;
    assert!(table.contains("rule-bad") && !table.contains("rule-long"), "{table}");
    inside.finish();
}

#[test]
fn f11_l2_an_upgrade_takes_the_table_over_and_the_last_one_removes_it() {
    let Some(namespace) = Namespace::new() else { return };
    let bad = namespace.outside(6);
    let firewall = "[firewall]\noffload = \"nftables\"\nrules = [{ name = \"bad\", deny = \"NET.6\" }]\n";
    let (backend, plan) = plan(&namespace, LISTENER, firewall);
    let _inside = Inside { namespace: &namespace, gate: None, backend: Some(backend) };
    let mut lineage = namespace.within(|| Lineage::start(plan));
    let metrics = |lineage: &Lineage| namespace.within(|| lineage.gate.metrics());
    wait_until(SOON, "rules in the kernel", || metrics(&lineage).count(UP, &[]) == 1);
    let address = namespace.address(lineage.gate.address("tcp").port());
    assert_kept_out(bad, address, ErrorKind::TimedOut);
    wait_until(COUNTED, "a count", || metrics(&lineage).count(PACKETS, &[("rule", "bad")]) > 0);
    let counted = metrics(&lineage).count(PACKETS, &[("rule", "bad")]);
    namespace.within(|| lineage.upgrade());
    wait_until(SOON, "rules in the kernel", || metrics(&lineage).count(UP, &[]) == 1);
    assert_kept_out(bad, address, ErrorKind::TimedOut);
    wait_until(COUNTED, "more", || metrics(&lineage).count(PACKETS, &[("rule", "bad")]) > counted);
    assert!(namespace.nft(&["list", "table", "inet", "sluicegate"]).success);
    lineage.wait_alone(SOON);
    lineage.signal(Signal::TERM);
    lineage.wait_end();
    assert!(!namespace.nft(&["list", "ruleset"]).stdout.contains("sluicegate"));
}
