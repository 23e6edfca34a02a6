//! Who may bring clients, and what holds for whom they bring.

use std::{
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use super::{brought_by, failures, line};
use crate::support::{
    Backend, Gate, Metrics, SOON,
    client::{self, connect, connect_from, exchange, read_all},
    gate::{backend, https, pool, tcp, word},
    patient,
    process::BINARY,
    programs,
    tags::End,
};

fn verdicts(metrics: &Metrics, rule: &str) -> u64 {
    metrics.count("sluicegate_firewall_connections_total", &[("rule", rule)])
}

/// What somebody at this address gets who sends these bytes.
fn visit(source: u8, address: SocketAddr, bytes: &[u8]) -> (Vec<u8>, End) {
    let mut stream = connect_from(IpAddr::from(Ipv4Addr::new(127, 0, 0, source)), address);
    // It may be closed already.
    let _ = stream.write_all(bytes);
    read_all(&mut stream)
}

#[test]
fn p1_only_trusted_peers_may_come_and_only_with_a_header() {
    let backend = Backend::named("welcome");
    let listeners = [tcp(""), brought_by("tcp", "127.0.0.8/30"), https(""), brought_by("https", "127.0.0.8/30")];
    let gate = Gate::start(&[listeners.concat(), pool("", &[backend.address])].concat());
    let header = line("192.0.2.1:1234");
    for listener in client::PLAIN_AND_TLS {
        let address = gate.address(listener);
        for bytes in [&header[..], b"", b"GET / HTTP/1.1\r\n\r\n"] {
            assert_eq!(visit(7, address, bytes).0, b"", "from elsewhere");
        }
        assert_eq!(visit(9, address, b"GET / HTTP/1.1\r\n\r\n").0, b"", "without a header");
    }
    let metrics = gate.wait_outcome("bad_proxy_header", 8);
    assert_eq!((failures(&metrics, "untrusted"), failures(&metrics, "missing")), (6, 2));
    assert_eq!((backend.accepted(), metrics.count("sluicegate_listener_received_bytes_total", &[])), (0, 0));
    assert_eq!(gate.records().len(), 2, "who is closed at accept is only counted");
    assert_eq!(visit(9, gate.address("tcp"), &header), (b"welcome".to_vec(), End::Eof));
    gate.finish();
}

#[test]
fn p3_a_header_that_does_not_come_in_time_is_not_waited_for() {
    let backend = Backend::named("welcome");
    let listener = tcp("proxy_protocol = { from = \"127.0.0.0/8\", timeout = \"3s\" }");
    let gate = Gate::start(&[listener, pool("", &[backend.address])].concat());
    let begin = Instant::now();
    let mut slow: Vec<TcpStream> = (0..9).map(|_| connect(gate.address("tcp"))).collect();
    let header = line("192.0.2.1:1234");
    let mut said = 0;
    while begin.elapsed() < Duration::from_millis(2_500) {
        // A third says nothing, a third all but the last byte, a third a byte now and then.
        for (number, stream) in slow.iter_mut().enumerate() {
            let piece = match number % 3 {
                1 if said == 0 => &header[..header.len() - 1],
                2 => &header[said..=said],
                _ => &[],
            };
            stream.write_all(piece).unwrap();
        }
        said += 1;
        assert_eq!(visit(1, gate.address("tcp"), &header).0, b"welcome", "beside them");
        std::thread::sleep(Duration::from_millis(200));
    }
    assert_eq!(gate.metrics().count("sluicegate_proxy_headers_in_progress", &[]), 9);
    for stream in &mut slow {
        assert_eq!(read_all(stream).0, b"");
    }
    let took = begin.elapsed();
    assert!((Duration::from_secs(3)..patient(Duration::from_secs(4))).contains(&took), "{took:?}");
    let metrics = gate.wait_outcome("bad_proxy_header", 9);
    assert_eq!((failures(&metrics, "timeout"), backend.accepted()), (9, said));
    gate.finish();
}

#[test]
fn p6_f1_the_firewall_judges_the_peer_and_then_the_client() {
    let backend = Backend::named("welcome");
    let rules = "[firewall]\nrules = [{ name = \"test-net\", deny = \"192.0.2.0/24\" }, { name = \"peer\", deny = \"127.0.0.9\" }]\n";
    let gate =
        Gate::start(&[&tcp(""), &brought_by("tcp", "127.0.0.0/8"), &pool("", &[backend.address]), rules].concat());
    let address = gate.address("tcp");
    // By IPv4, by its mapped form, and by both forms in version 2.
    let mapped = "PROXY TCP6 ::ffff:192.0.2.1 ::ffff:192.0.2.2 1 2\r\n".as_bytes().to_vec();
    let v2 = |client: &str| {
        let [client, to] = [client, "198.51.100.1:443"].map(|address| address.parse().unwrap());
        sluicegate::proxy_protocol::encode::v2(client, to, None)
    };
    for header in [line("192.0.2.1:1234"), mapped, v2("192.0.2.1:1234"), v2("[::ffff:192.0.2.1]:1234")] {
        assert_eq!(visit(1, address, &header).0, b"", "{header:?}");
    }
    let metrics = gate.wait_outcome("denied", 4);
    assert_eq!((verdicts(&metrics, "test-net"), verdicts(&metrics, "default")), (4, 4), "the peer was let in");
    // The inverse: a good client of a peer that is denied, and who names nobody is the peer.
    assert_eq!(visit(9, address, &line("198.51.100.1:1")).0, b"");
    let metrics = gate.wait_outcome("denied", 5);
    assert_eq!((verdicts(&metrics, "peer"), verdicts(&metrics, "default")), (1, 4));
    assert_eq!(backend.accepted(), 0);
    let rules: Vec<_> = gate.wait_records(2).iter().map(|record| word(record, "rule")).collect();
    assert_eq!(rules, ["test-net", "peer"], "the first of each source has a record");
    assert_eq!(word(&gate.records()[0], "client"), "192.0.2.1:1234");
    assert_eq!(visit(1, address, b"PROXY UNKNOWN\r\n").0, b"welcome");
    assert_eq!(visit(1, address, &line("198.51.100.1:1")).0, b"welcome");
    let metrics = gate.metrics();
    assert_eq!(verdicts(&metrics, "default"), 4 + 1 + 2, "whom nobody brings is judged once");
    let record = gate.wait_records(4).pop().unwrap();
    assert_eq!((word(&record, "client"), word(&record, "rule")), ("198.51.100.1:1".to_owned(), "default".to_owned()));
    gate.finish();
}

/// Hashing goes by whom the header names: all from one peer, and each client has its backend.
#[test]
fn p6_hashing_goes_by_the_client_of_the_header() {
    for balance in ["ip_hash", "maglev"] {
        let backends = ["a", "b", "c"].map(Backend::named);
        let list: String =
            backends.iter().zip(["a", "b", "c"]).map(|(one, name)| backend(name, one.address, "")).collect();
        let policy = format!("[pool.web]\nbalance = \"{balance}\"\n");
        let both = [
            tcp(""),
            brought_by("tcp", "127.0.0.0/8"),
            "[listener.direct]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n".to_owned(),
        ];
        let gate = Gate::start(&[both.concat(), policy, list].concat());
        let mut met = std::collections::BTreeSet::new();
        for client in 1..60 {
            let direct = visit(client, gate.address("direct"), b"").0;
            let brought = visit(200, gate.address("tcp"), &line(&format!("127.0.0.{client}:{client}"))).0;
            assert_eq!(brought, direct, "{balance}: client {client}");
            met.insert(direct);
        }
        assert_eq!(met.len(), 3);
        gate.finish();
    }
}

/// A name of an address that this host could not even open a socket for.
#[test]
fn p5_a_client_of_a_family_that_the_host_lacks_is_relayed() {
    let Some(unshare) = programs::require("unshare") else { return };
    let heard = "PROXY TCP6 2001:db8::7 2001:db8::99 4711 443";
    // A host of its own without IPv6; what is inside talks to what is inside.
    let script = "ip link set lo up && echo 1 > /proc/sys/net/ipv6/conf/all/disable_ipv6 && exec \"$0\" \"$@\"";
    let arguments = ["--net", "sh", "-c", script, "python3", "-c", P5, BINARY];
    if programs::require("python3").is_none() || programs::require("ip").is_none() {
        return;
    }
    let directory = tempfile::TempDir::new().unwrap();
    let toml = "[admin]\nbind = \"127.0.0.1:9\"\n[listener.a]\nbind = \"127.0.0.1:7000\"\npool = \"p\"\n\
        proxy_protocol = { from = \"127.0.0.1\" }\n[pool.p]\nbackends = \"127.0.0.1:7001\"\ncheck = \"off\"\nsend_proxy = \"v1\"\n";
    std::fs::write(directory.path().join("sluicegate.toml"), toml).unwrap();
    let done = programs::run(&unshare, &arguments, directory.path(), b"");
    if done.stderr.contains("unshare failed") {
        programs::skip(&format!("no network namespace: {}", done.stderr.trim()));
        return;
    }
    assert!(done.success, "{}{}", done.stdout, done.stderr);
    assert!(done.stdout.contains(heard), "{}", done.stdout);
    assert!(done.stdout.contains("\"client\":\"[2001:db8::7]:4711\",\"peer\":\"127.0.0.1:"), "{}", done.stdout);
}

/// A backend, the gate, and a balancer that brings a client over IPv6.
const P5: &str = r#"
import socket, subprocess, sys, time
try:
    socket.socket(socket.AF_INET6).bind(("::1", 0)); sys.exit("there is IPv6")
except OSError:
    pass
backend = socket.create_server(("127.0.0.1", 7001)); backend.settimeout(20)
gate = subprocess.Popen([sys.argv[1], "run", "--config", "sluicegate.toml"], stderr=subprocess.DEVNULL)
for _ in range(1000):
    try:
        client = socket.create_connection(("127.0.0.1", 7000), 20); break
    except OSError:
        time.sleep(0.01)
client.sendall(b"PROXY TCP6 2001:db8::7 2001:db8::99 4711 443\r\nhello")
to_backend, _ = backend.accept(); to_backend.settimeout(20)
heard = b""
while not heard.endswith(b"hello"):
    heard += to_backend.recv(1000)
to_backend.sendall(b"answer"); to_backend.close()
said = b""
while piece := client.recv(100):
    said += piece
client.close()
assert said == b"answer", said
print(heard.decode(), flush=True)
gate.terminate(); gate.wait(20)
"#;

#[test]
fn p6_operators_find_connections_by_the_client_of_the_header() {
    let backend = Backend::echo();
    let gate = Gate::plan(&[tcp(""), brought_by("tcp", "127.0.0.0/8"), pool("", &[backend.address])].concat())
        .admin("socket = \"admin.sock\"")
        .start();
    let mut stream = connect(gate.address("tcp"));
    stream.write_all(&line("192.0.2.1:1234")).unwrap();
    exchange(&mut stream, b"hello");
    let ask = |words: &str| {
        let words: Vec<_> = words.split(' ').chain(["--socket", "admin.sock"]).collect();
        crate::support::Process::run(&words, gate.directory.path(), SOON).stdout
    };
    assert!(ask("conns --client 192.0.2.0/24").contains("192.0.2.1:1234"));
    assert!(!ask("conns --client 127.0.0.0/8").contains("192.0.2.1:1234"));
    assert!(ask("kill --client 127.0.0.0/8").contains("0 connections ended"));
    assert!(ask("kill --client 192.0.2.1").contains("1 connection ended"));
    assert_eq!(stream.read(&mut [0]).unwrap(), 0);
    gate.wait_outcome("killed", 1);
    gate.finish();
}

#[test]
fn a_reload_changes_who_brings_clients_and_what_backends_are_told() {
    let (backend, captured) = super::capture();
    let gate = Gate::plan(&[tcp(""), pool("", &[backend.address])].concat()).admin("socket = \"admin.sock\"").start();
    let mut old = connect(gate.address("tcp"));
    old.write_all(b"first").unwrap();
    crate::support::wait_until(SOON, "a backend", || captured.lock().unwrap().len() == 1);
    let file = gate.directory.path().join("sluicegate.toml");
    let text = std::fs::read_to_string(&file).unwrap().replace("[pool.web]\n", "[pool.web]\nsend_proxy = \"v1\"\n");
    std::fs::write(&file, text + &brought_by("tcp", "127.0.0.1")).unwrap();
    let run = |verb: &str| crate::support::Process::run(&[verb, "--socket", "admin.sock"], gate.directory.path(), SOON);
    let done = run("reload");
    assert_eq!(done.code, Some(0), "{}{}", done.stdout, done.stderr);
    assert_eq!(visit(2, gate.address("tcp"), b"anything").0, b"");
    let mut new = connect(gate.address("tcp"));
    new.write_all(&[line("192.0.2.1:1234"), b"second".to_vec()].concat()).unwrap();
    crate::support::wait_until(SOON, "a backend", || captured.lock().unwrap().len() == 2);
    assert!(captured.lock().unwrap()[1].starts_with(&line("192.0.2.1:1234")), "what came in goes out");
    exchange(&mut old, b"as before");
    gate.wait_outcome("bad_proxy_header", 1);
}
