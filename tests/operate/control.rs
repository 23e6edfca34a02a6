//! The admin socket and the verbs that use it: what they show is true, and what they change happens.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    path::PathBuf,
    time::Duration,
};

use serde_json::Value;

use crate::support::{
    Backend, Gate, Process, SOON,
    backend::Refusing,
    client::{self, ask, connect, connect_from, connect_tls},
    gate::{backend, https, tcp, word},
    process::Ended,
    wait_until,
};

/// A listener of each kind in front of the backends `a` and `b`.
fn two(backends: [&Backend; 2]) -> Gate {
    let pool = "[pool.web]\n";
    let [a, b] = backends;
    let text = tcp("") + &https("") + pool + &backend("a", a.address, "") + &backend("b", b.address, "weight = 2");
    Gate::plan(&text).admin("socket = \"admin.sock\"").start()
}

fn run(gate: &Gate, words: &[&str]) -> Ended {
    Process::run(&[words, &["--config", "sluicegate.toml"]].concat(), gate.directory.path(), SOON)
}

#[track_caller]
fn text(gate: &Gate, words: &[&str]) -> String {
    let ended = run(gate, words);
    assert_eq!((ended.code, &*ended.stderr), (Some(0), ""), "{words:?}");
    ended.stdout
}

#[track_caller]
fn json(gate: &Gate, words: &[&str]) -> Value {
    serde_json::from_str(&text(gate, &[words, &["--json"]].concat())).unwrap()
}

fn socket(gate: &Gate) -> PathBuf {
    gate.directory.path().join("admin.sock")
}

/// What the socket answers to these bytes.
fn raw(gate: &Gate, request: &[u8]) -> String {
    let mut stream = UnixStream::connect(socket(gate)).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    let _ = stream.write_all(request);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    String::from_utf8(answer).unwrap()
}

fn post(path: &str, kind: &str, body: &str) -> Vec<u8> {
    let length = body.len();
    format!("POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Type: {kind}\r\nContent-Length: {length}\r\n\r\n{body}")
        .into_bytes()
}

/// Who answered in so many connections.
fn answers(gate: &Gate, count: usize) -> String {
    (0..count).map(|_| ask(gate.address("tcp"))).collect()
}

#[test]
fn a_drained_backend_gets_nobody_new_and_the_difference_is_shown() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = two([&a, &b]);
    assert_eq!(answers(&gate, 30).matches('a').count(), 10);
    let before = json(&gate, &["status"]);
    assert_eq!((&before["ready"], &before["pools"][0]["mode"]), (&true.into(), &"active-active".into()));
    assert_eq!(before["listeners"][0]["addresses"][0], gate.address("tcp").to_string());
    assert_eq!(before["pools"][0]["backends"][1]["drift"], serde_json::json!([]));

    let said = text(&gate, &["backend", "drain", "web/b"]);
    assert!(said.contains("web/b is draining"), "{said}");
    assert_eq!(answers(&gate, 30), "a".repeat(30));
    let tree = text(&gate, &["status"]);
    assert!(tree.contains("differs from the file: web/b draining") && tree.contains("pool web: see above"), "{tree}");
    text(&gate, &["backend", "enable", "web/b"]);
    assert_eq!(answers(&gate, 30).matches('a').count(), 10);

    text(&gate, &["backend", "weight", "web/a", "4"]);
    assert_eq!(answers(&gate, 30).matches('a').count(), 20);
    let drift = json(&gate, &["status"])["pools"][0]["backends"][0]["drift"][0].clone();
    assert_eq!(drift, "weight 4 (the file says 1)");
    assert_eq!(gate.metrics().count("sluicegate_backend_weight", &[("backend", "a")]), 4);
    let audit: Vec<_> =
        gate.process.messages().into_iter().filter(|m| m["message"] == "operator: backend changed").collect();
    assert_eq!(audit.len(), 3, "one line for each change");
    assert_eq!((&audit[2]["change"], &audit[2]["backend"]), (&"backend weight".into(), &"a".into()));
    assert_eq!(audit[2]["uid"], rustix::process::getuid().as_raw());
    gate.finish();
}

#[test]
fn connections_are_listed_and_killed_by_what_is_known_of_them() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let gate = two([&a, &b]);
    let mut first = connect(gate.address("tcp"));
    client::exchange(&mut first, b"first");
    let mut tls = connect_tls(gate.address("https"));
    client::exchange(&mut tls, b"tls");
    let mut far = connect_from([127, 0, 0, 9].into(), gate.address("tcp"));
    client::exchange(&mut far, b"far");
    let silent = connect(gate.address("https"));
    wait_until(SOON, "four connections", || json(&gate, &["conns"])["total"] == 4);

    let all = json(&gate, &["conns"]);
    let of = |client: &TcpStream| {
        let address = client.local_addr().unwrap().to_string();
        let all = all["connections"].as_array().unwrap();
        all.iter().find(|c| c["client"] == address).unwrap_or_else(|| panic!("{address}: {all:?}")).clone()
    };
    assert_eq!((&of(&first)["phase"], &of(&first)["sent_bytes"]), (&"relaying".into(), &5.into()));
    assert_eq!((&of(&tls.sock)["sni"], &of(&tls.sock)["listener"]), (&"foobar.com".into(), &"https".into()));
    assert_eq!((&of(&silent)["phase"], &of(&silent)["backend"]), (&"handshake".into(), &Value::Null));
    assert_eq!(json(&gate, &["conns", "--client", "127.0.0.8/30"])["total"], 1);
    assert_eq!(json(&gate, &["conns", "--listener", "https"])["total"], 2);
    let (backend, on_backend) =
        (word(&of(&first), "backend"), |backend: &str| json(&gate, &["conns", "--backend", backend])["total"].clone());
    assert!(on_backend(&format!("web/{backend}")).as_u64().is_some_and(|n| (1..4).contains(&n)));
    assert_eq!(on_backend("web"), 4);
    let table = text(&gate, &["conns", "--limit", "2"]);
    assert!(table.starts_with("ID ") && table.contains("and 2 more"), "{table}");

    let id = word(&of(&first), "id");
    assert_eq!(text(&gate, &["kill", &id]).trim(), "1 connection ended");
    assert_eq!(client::read_all(&mut first).0, b"");
    drop(first);
    assert_eq!(word(&gate.wait_records(1)[0], "id"), id, "the log knows it by the same id");
    assert_eq!(word(&gate.records()[0], "outcome"), "killed");
    assert_eq!(text(&gate, &["kill", "--client", "127.0.0.9"]).trim(), "1 connection ended");
    assert_eq!(text(&gate, &["kill", "--listener", "https", "--client", "127.0.0.1"]).trim(), "2 connections ended");
    assert_eq!(run(&gate, &["kill", &id]).code, Some(1), "it is gone");
    drop((far, tls, silent));
    gate.wait_outcome("killed", 4);
    gate.finish();
}

#[test]
fn many_connections_answer_at_once() {
    const CONNECTIONS: usize = 400;
    let (a, b) = (Backend::stall(), Backend::stall());
    let gate = two([&a, &b]);
    let held: Vec<_> = (0..CONNECTIONS).map(|_| connect(gate.address("tcp"))).collect();
    gate.wait_metrics("every connection", |m| m.count("sluicegate_backend_connections", &[]) == CONNECTIONS as u64);
    wait_until(SOON, "a full list", || json(&gate, &["conns"])["total"] == CONNECTIONS);
    let listed = json(&gate, &["conns"]);
    let mut ids: Vec<_> = listed["connections"].as_array().unwrap().iter().map(|c| word(c, "id")).collect();
    ids.sort();
    ids.dedup();
    assert_eq!(ids.len(), CONNECTIONS);
    let on_a = json(&gate, &["conns", "--backend", "web/a"])["total"].clone();
    assert_eq!(json(&gate, &["kill", "--backend", "web/a"])["ended"], on_a);
    assert_eq!(json(&gate, &["kill", "--backend", "web"])["ended"], CONNECTIONS as u64 - on_a.as_u64().unwrap());
    gate.wait_outcome("killed", CONNECTIONS as u64);
    drop(held);
    gate.finish();
}

#[test]
fn a_backend_that_is_down_says_why() {
    let (up, down) = (Backend::named("a"), Refusing::new());
    let check = "[pool.web]\ncheck = { type = \"tcp\", every = \"100ms\", timeout = \"1s\" }\n";
    let toml = tcp("") + check + &backend("a", up.address, "") + &backend("b", down.address, "role = \"backup\"");
    let gate = Gate::plan(&toml).admin("socket = \"admin.sock\"").checked().start();
    wait_until(SOON, "a verdict", || json(&gate, &["status"])["pools"][0]["backends"][1]["state"] == "down");
    let pool = json(&gate, &["status"])["pools"][0].clone();
    assert_eq!((&pool["mode"], &pool["serving"]), (&"active-passive".into(), &"active".into()));
    let backend = &pool["backends"][1];
    assert!(word(backend, "reason").contains("refused") && word(backend, "check").starts_with("tcp 127"), "{backend}");
    assert!(word(backend, "since").ends_with('Z'), "{backend}");
    assert!(text(&gate, &["status"]).contains("down (backup)"));
    gate.finish();
}

#[test]
fn certificates_are_listed_with_their_names() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let gate = two([&a, &b]);
    let listed = json(&gate, &["cert", "list"]);
    let certificate = &listed["certificates"][0];
    assert_eq!((&certificate["listener"], &certificate["names"][0]), (&"https".into(), &"foobar.com".into()));
    assert!(certificate["days_left"].as_i64().is_some_and(|days| days > 0), "{certificate}");
    assert!(text(&gate, &["cert", "list"]).contains("foobar.com www.foobar.com localhost"));
    gate.finish();
}

#[test]
fn what_cannot_be_done_says_why() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let gate = two([&a, &b]);
    for (words, code, reason) in [
        (&["backend", "drain", "web/c"][..], 1, "no backend of pool `web` is called `c`; there are: a, b"),
        (&["backend", "drain", "mail/a"], 1, "no pool is called `mail`; there are: web"),
        (&["backend", "drain", "web"], 1, "`web` is no POOL/BACKEND"),
        (&["backend", "weight", "web/a", "257"], 1, "from 0 to 256"),
        (&["conns", "--client", "10.0.0.5/8"], 1, "`10.0.0.5/8` is no address"),
        (&["conns", "--listener", "smtp"], 1, "no listener is called `smtp`; there are: tcp, https"),
        (&["kill", "xyz"], 1, "12 hexadecimal digits"),
        (&["kill"], 64, "required"),
        (&["status", "--socket", "none.sock"], 2, "no process answers at `none.sock`"),
    ] {
        let ended = run(&gate, words);
        assert_eq!(ended.code, Some(code), "{words:?}: {}", ended.stderr);
        assert!(ended.stderr.contains(reason), "{words:?}: {}", ended.stderr);
        assert_eq!(ended.stdout, "");
    }
    gate.finish();
}

#[test]
fn o1_o2_only_the_socket_changes_anything_and_only_when_asked_properly() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = two([&a, &b]);
    let body = "{\"backend\":\"web/b\"}";
    for path in ["/status", "/connections", "/kill", "/backend/drain", "/certificates"] {
        let mut stream = connect(gate.address("admin"));
        stream.write_all(&post(path, "application/json", body)).unwrap();
        let answer = String::from_utf8(client::read_all(&mut stream).0).unwrap();
        assert!(answer.starts_with("HTTP/1.1 404"), "{path} over TCP: {answer}");
    }
    for (request, status) in [
        (post("/backend/drain", "text/plain", body), "400"),
        (post("/backend/drain", "application/json", "{\"backend\":\"web/b\",\"more\":1}"), "400"),
        (post("/backend/drain", "application/json", &format!("{{\"backend\":{}", "[".repeat(100_000))), "400"),
        (b"GET /backend/drain HTTP/1.1\r\nHost: localhost\r\n\r\n".to_vec(), "405"),
        (post("/kill", "application/json", "{}"), "400"),
    ] {
        let answer = raw(&gate, &request);
        assert_eq!(answer.split(' ').nth(1), Some(status), "{answer}");
    }
    assert_eq!(answers(&gate, 30).matches('a').count(), 10, "nothing has changed");
    assert!(raw(&gate, &post("/backend/drain", "application/json", body)).starts_with("HTTP/1.1 200"));
    gate.finish();
}

#[test]
fn o3_bad_and_silent_operators_hold_nobody_up() {
    let (a, b) = (Backend::named("a"), Backend::named("b"));
    let gate = two([&a, &b]);
    let head = |length: &str| {
        format!("POST /kill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n")
    };
    for length in ["0", "-1", "4294967295", "18446744073709551616"] {
        let answer = raw(&gate, format!("{}{}", head(length), "x".repeat(2_000_000)).as_bytes());
        assert!(!answer.starts_with("HTTP/1.1 2"), "{length}: {answer}");
    }
    let mut silent: Vec<_> = (0..20).map(|_| UnixStream::connect(socket(&gate)).unwrap()).collect();
    for (number, stream) in silent.iter_mut().enumerate() {
        // Some say nothing, some begin a header, some begin a body.
        let begin = ["", "POST /kill HT", &head("10")][number % 3].to_owned();
        let _ = stream.write_all(begin.as_bytes());
    }
    assert_eq!(answers(&gate, 30).matches('a').count(), 10, "clients are served as ever");
    let begin = std::time::Instant::now();
    assert!(raw(&gate, b"GET /status HTTP/1.1\r\nHost: localhost\r\n\r\n").starts_with("HTTP/1.1 200"));
    println!("an operator behind 20 silent ones waited {:?}", begin.elapsed());
    drop(silent);
    gate.finish();
}
