//! The metrics and the log equal what the clients counted, and neither can be talked into anything.

use std::{
    io::Read,
    net::{IpAddr, Ipv4Addr},
    time::{Duration, Instant},
};

use serde_json::Value;

use crate::support::{
    Backend, Gate, Metrics, Variant,
    client::{self, PLAIN_AND_TLS, read_all},
    gate::{https, pool, tcp, word},
    metrics::{get, get_over},
    patient,
    programs::{require, s_client},
    tags::End,
};

fn plan(backends: &[&Backend]) -> crate::support::gate::Plan {
    let addresses: Vec<_> = backends.iter().map(|b| b.address).collect();
    Gate::plan(&[tcp(""), https(""), pool("", &addresses)].concat())
}

/// One echo of this many bytes, and a clean end by the client.
fn echo(gate: &Gate, listener: &str, bytes: usize) {
    let mut stream = client::open(gate, listener);
    client::exchange(&mut stream, &vec![b'x'; bytes]);
    stream.finish_sending();
    assert_eq!(read_all(&mut stream), (Vec::new(), End::Eof));
}

fn listener_counts(metrics: &Metrics, listener: &str) -> [u64; 5] {
    let of = |name: &str| metrics.count(name, &[("listener", listener)]);
    [
        of("sluicegate_listener_accepted_total"),
        of("sluicegate_connections_closed_total"),
        of("sluicegate_listener_received_bytes_total"),
        of("sluicegate_listener_sent_bytes_total"),
        of("sluicegate_connection_duration_seconds_count"),
    ]
}

fn counts_are_exact(variant: Variant) {
    let backends = [Backend::echo(), Backend::echo()];
    let gate = plan(&[&backends[0], &backends[1]]).variant(variant).start();
    for n in 1..=10 {
        echo(&gate, "tcp", n * 1000);
        echo(&gate, "https", n * 100);
    }
    let metrics = gate.wait_outcome("client_closed", 20);
    assert_eq!(listener_counts(&metrics, "tcp"), [10, 10, 55_000, 55_000, 10]);
    assert_eq!(listener_counts(&metrics, "https"), [10, 10, 5_500, 5_500, 10]);
    for backend in &backends {
        let labels = [("pool", "web"), ("backend", &*backend.address.to_string())];
        assert_eq!(metrics.count("sluicegate_backend_connections_total", &labels), 10);
        assert_eq!(backend.accepted(), 10);
    }
    assert_eq!(metrics.count("sluicegate_tls_handshakes_total", &[("listener", "https")]), 10);
    assert_eq!(metrics.count("sluicegate_tls_handshake_duration_seconds_count", &[]), 10);
    assert_eq!(metrics.count("sluicegate_backend_connect_duration_seconds_count", &[("pool", "web")]), 20);
    assert_eq!(metrics.count("sluicegate_relay_bytes_total", &[]), 2 * 60_500);
    let records = gate.wait_records(20);
    let sum = |key: &str| records.iter().map(|r| r[key].as_u64().unwrap()).sum::<u64>();
    assert_eq!((records.len(), sum("received_bytes"), sum("sent_bytes")), (20, 60_500, 60_500));
    gate.finish();
}

#[test]
fn o10_metrics_equal_what_the_clients_counted() {
    counts_are_exact(Variant::chosen());
}

#[test]
fn o10_metrics_equal_what_the_clients_counted_by_splice() {
    counts_are_exact(Variant::SPLICE);
}

#[test]
fn o10_accepted_is_closed_and_active_at_every_scrape() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let held: Vec<_> = (0..5).map(|_| client::open(&gate, "tcp")).collect();
    std::thread::scope(|scope| {
        let load = scope.spawn(|| (0..100).for_each(|_| echo(&gate, "tcp", 10)));
        while !load.is_finished() {
            let metrics = gate.metrics();
            let of = |name: &str| metrics.count(name, &[("listener", "tcp")]);
            let (accepted, closed) =
                (of("sluicegate_listener_accepted_total"), of("sluicegate_connections_closed_total"));
            assert_eq!(accepted, closed + of("sluicegate_listener_connections"));
        }
    });
    drop(held);
    gate.finish();
}

#[test]
fn o5_every_series_is_there_from_the_start_and_at_zero() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let metrics = gate.metrics();
    for name in [
        "listener_accepted_total",
        "listener_connections",
        "listener_received_bytes_total",
        "listener_sent_bytes_total",
        "connections_closed_total",
        "connection_duration_seconds_count",
        "firewall_connections_total",
        "tls_handshakes_total",
        "tls_handshake_failures_total",
        "tls_handshake_duration_seconds_count",
        "relay_bytes_total",
        "pipes",
        "worker_connections",
        "pool_retries_total",
        "backend_connections",
        "backend_connections_total",
        "backend_connect_failures_total",
        "backend_connect_duration_seconds_count",
        "health_checks_total",
        "backend_transitions_total",
        "log_records_dropped_total",
    ] {
        let labels: &[(&str, &str)] = if name == "pipes" { &[("state", "in_use")] } else { &[] };
        assert_eq!(metrics.count(&format!("sluicegate_{name}"), labels), 0, "{name}");
    }
    for outcome in sluicegate_outcomes() {
        assert_eq!(
            metrics.select("sluicegate_connections_closed_total", &[("outcome", outcome)]).count(),
            2,
            "{outcome}"
        );
    }
    assert_eq!(metrics.count("sluicegate_build_info", &[]), 1);
    assert_eq!(metrics.count("sluicegate_backend_up", &[]), 1);
    assert_eq!(metrics.count("sluicegate_pool_backends", &[("pool", "web"), ("state", "up")]), 1);
    assert!(metrics.count("sluicegate_listener_connections_limit", &[("listener", "tcp")]) > 0);
    assert!(metrics.value("sluicegate_tls_certificate_not_after_timestamp_seconds", &[]) > 1.7e9);
    assert!(metrics.value("process_resident_memory_bytes", &[]) > 0.0);
    assert!(metrics.count("process_open_fds", &[]) > 0);
}

fn sluicegate_outcomes() -> impl Iterator<Item = &'static str> {
    sluicegate::outcome::Outcome::ALL.into_iter().map(sluicegate::outcome::Outcome::as_str)
}

#[test]
fn o5_random_names_make_no_series() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let before = gate.metrics().shape();
    let config = client::config_with(|_| ());
    for n in 0..200_u32 {
        let name = format!("host-{:08x}.example.org", n.wrapping_mul(0x9e37_79b9));
        let refused = client::handshake(client::connect(gate.address("https")), &name, config.clone());
        assert!(refused.is_err(), "the certificate is not for {name}");
    }
    echo(&gate, "https", 10);
    gate.wait_metrics("all ended", |m| m.count("sluicegate_connections_closed_total", &[]) == 201);
    assert_eq!(gate.metrics().shape(), before);
}

#[test]
fn openmetrics_is_given_to_who_asks() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let accept = "application/openmetrics-text;version=1.0.0,text/plain;version=0.0.4;q=0.5";
    let open = get(gate.address("admin"), "/metrics", &[("Accept", accept)]).unwrap();
    assert!(open.head.contains("content-type: application/openmetrics-text"), "{}", open.head);
    assert!(open.body.ends_with("# EOF\n"), "{}", open.body);
    let plain = get(gate.address("admin"), "/metrics", &[]).unwrap();
    assert!(plain.head.contains("content-type: text/plain; version=0.0.4"), "{}", plain.head);
    assert!(!plain.body.contains("# EOF"));
    assert_eq!(Metrics::parse(&plain.body).shape(), gate.metrics().shape());
}

#[test]
fn healthz_and_readyz_answer() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let status = |path| get(gate.address("admin"), path, &[]).unwrap().status;
    assert_eq!([status("/healthz"), status("/readyz"), status("/metrics"), status("/nothing")], [200, 200, 200, 404]);
}

#[test]
fn o2_only_a_loopback_host_and_no_origin() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let admin = gate.address("admin");
    let status = |headers: &[(&str, &str)]| get(admin, "/metrics", headers).unwrap().status;
    for good in ["localhost", "127.0.0.1", &admin.to_string(), "[::1]", "[::1]:9090", "localhost:9090"] {
        assert_eq!(status(&[("Host", good)]), 200, "{good}");
    }
    for bad in ["evil.com", "127.evil.com", "localhost.evil.com", "0x7f.1", "127.0.0.1.evil.com", "10.0.0.1"] {
        assert_eq!(status(&[("Host", bad)]), 403, "{bad}");
    }
    assert_eq!(status(&[("Host", "localhost"), ("Origin", "http://localhost")]), 403);
    assert_eq!(status(&[("Host", "localhost"), ("Origin", "null")]), 403);
}

#[test]
fn o1_admin_allow_says_who_may_ask() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).admin("allow = [\"127.0.0.1/32\"]").start();
    let from = |last| client::connect_from(IpAddr::from(Ipv4Addr::new(127, 0, 0, last)), gate.address("admin"));
    let refused = get_over(from(2), "/metrics", &[]);
    assert!(refused.as_ref().map_or(true, |answer| answer.status == 403), "{refused:?}");
    assert_eq!(get_over(from(1), "/metrics", &[]).unwrap().status, 200);
}

#[test]
fn o3_a_silent_admin_client_is_closed() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let start = Instant::now();
    let mut silent = client::connect(gate.address("admin"));
    read_all(&mut silent);
    assert!(start.elapsed() < patient(Duration::from_secs(30)), "{:?}", start.elapsed());
    assert_eq!(gate.metrics().count("sluicegate_build_info", &[]), 1);
}

const KEYS: [&str; 17] = [
    "ts",
    "event",
    "id",
    "listener",
    "client",
    "sni",
    "tls",
    "rule",
    "pool",
    "backend",
    "attempts",
    "received_bytes",
    "sent_bytes",
    "path",
    "seconds",
    "total",
    "outcome",
];

#[test]
fn o7_one_record_per_connection_with_the_documented_keys() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    let mut stream = client::open(&gate, "https");
    let source = stream.socket().local_addr().unwrap();
    client::exchange(&mut stream, b"hello");
    stream.finish_sending();
    read_all(&mut stream);
    let record = gate.wait_records(1).pop().unwrap();
    let lines = gate.process.stdout.all();
    let line = lines.iter().find(|line| line.contains("\"event\":\"connection\"")).unwrap();
    let places = KEYS.iter().map(|key| line.find(&format!("\"{key}\":")));
    let places: Vec<usize> = places.map(|place| place.unwrap_or_else(|| panic!("a key is missing: {line}"))).collect();
    assert!(places.is_sorted(), "in the documented order: {line}");
    assert_eq!(word(&record, "client"), source.to_string());
    assert_eq!(record["tls"]["version"], "1.3");
    assert_eq!(record["tls"]["cipher"], "TLS13_AES_128_GCM_SHA256");
    for (key, value) in
        [("listener", "https"), ("sni", "foobar.com"), ("rule", "default"), ("pool", "web"), ("path", "tls")]
    {
        assert_eq!(record[key], value, "{line}");
    }
    assert_eq!(record["backend"], backend.address.to_string());
    assert!(is_time(&word(&record, "ts")), "{line}");
    for phase in ["handshake", "queue", "connect", "first_byte", "total"] {
        assert!(record["seconds"][phase].as_f64().is_some_and(|s| (0.0..30.0).contains(&s)), "{phase}: {line}");
    }
    gate.finish();
}

/// `2026-11-20T20:31:07.412Z`
fn is_time(text: &str) -> bool {
    let shape: String = text.chars().map(|c| if c.is_ascii_digit() { '0' } else { c }).collect();
    shape == "0000-00-00T00:00:00.000Z"
}

#[test]
fn o7_each_end_is_recorded_once_under_its_listener() {
    let backend = Backend::echo();
    let gate = plan(&[&backend]).start();
    for listener in PLAIN_AND_TLS {
        echo(&gate, listener, 5);
        let mut aborted = client::open(&gate, listener);
        client::exchange(&mut aborted, b"hello");
        client::reset_on_close(aborted.socket());
        drop(aborted);
    }
    let mut ends: Vec<_> = gate.wait_records(4).iter().map(|r| (word(r, "listener"), word(r, "outcome"))).collect();
    ends.sort();
    let expected = ["https", "tcp"].map(|l| [(l, "client_closed"), (l, "client_reset")]);
    let ends: Vec<(&str, &str)> = ends.iter().map(|(l, o)| (l.as_str(), o.as_str())).collect();
    assert_eq!(ends, expected.concat());
    let ids: std::collections::BTreeSet<String> = gate.records().iter().map(|r| word(r, "id")).collect();
    assert_eq!(ids.len(), 4, "each connection has its own id");
    gate.finish();
}

/// O4: whatever a client calls us, a record is one line of JSON.
#[test]
fn o4_a_name_cannot_break_a_line() {
    let Some(openssl) = require("openssl") else { return };
    let backend = Backend::http("hello");
    let gate = plan(&[&backend]).start();
    let long = "a".repeat(250);
    let names = [
        "x\r\n{\"event\":\"connection\"}",
        "\"}],\"outcome\":\"forged",
        "\u{1b}[31mred",
        "tab\there",
        "ümlaut.example",
        &long,
    ];
    for name in names {
        s_client(&openssl, gate.address("https"), gate.directory.path(), &["-servername", name]);
    }
    let count = names.len();
    gate.wait_metrics("all ended", |m| m.count("sluicegate_connections_closed_total", &[]) == count as u64);
    let records = gate.wait_records(count);
    assert_eq!(records.len(), count, "one line per connection");
    for line in gate.process.stdout.all() {
        let record: Value = serde_json::from_str(&line).unwrap_or_else(|e| panic!("{e}: {line}"));
        assert!(!line.contains('\u{1b}') && record["outcome"] != "forged", "{line}");
        assert!(record["sni"].as_str().is_none_or(|name| name.len() <= 255), "{line}");
    }
    gate.finish();
}

#[test]
fn a_connection_that_lasts_is_a_gauge_until_it_ends() {
    let backend = Backend::greeting(b"!");
    let gate = plan(&[&backend]).start();
    let mut held = client::open(&gate, "tcp");
    held.read_exact(&mut [0]).unwrap();
    let metrics = gate.metrics();
    assert_eq!(metrics.count("sluicegate_listener_connections", &[("listener", "tcp")]), 1);
    assert_eq!(metrics.count("sluicegate_backend_connections", &[("backend", &backend.address.to_string())]), 1);
    assert_eq!(metrics.outcome("client_closed"), 0);
    drop(held);
    gate.wait_outcome("client_closed", 1);
}

#[test]
fn o1_the_unix_socket_answers_its_owner_and_is_gone_at_the_end() {
    use std::{
        io::{Read, Write},
        os::unix::{fs::PermissionsExt, net::UnixStream},
    };
    let backend = Backend::echo();
    let mut gate = Gate::plan(&(tcp("") + &pool("", &[backend.address]))).admin("socket = \"admin.sock\"").start();
    let path = gate.directory.path().join("admin.sock");
    assert_eq!(path.metadata().unwrap().permissions().mode() & 0o777, 0o600);
    for (target, expected) in [("/readyz", "ready"), ("/metrics", "sluicegate_build_info")] {
        let mut stream = UnixStream::connect(&path).unwrap();
        write!(stream, "GET {target} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert!(answer.starts_with("HTTP/1.1 200") && answer.contains(expected), "{answer}");
    }
    gate.stop_now();
    assert!(!path.exists());
}
