//! What backends are told, captured at the backend and read by an implementation that is not ours.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::Path,
};

use serde_json::Value;
use sluicegate::proxy_protocol::encode;

use super::{Captured, brought_by, capture, line, vectors::whole};
use crate::support::{
    Backend, Gate, SOON,
    client::{self, connect, connect_from, exchange},
    gate::{https, pool, tcp, word},
    programs::{self, require},
    wait_for, wait_until,
};

/// Reads lines of hexadecimal digits, each the beginning of a connection; writes what they are, as JSON.
const PYTHON: &str = r#"
import ipaddress, json, struct, sys
def crc32c(data):
    crc = 0xffffffff
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0x82f63b78 if crc & 1 else 0)
    return crc ^ 0xffffffff
def name(ip):
    mapped = getattr(ip, "ipv4_mapped", None)
    return f"::ffff:{mapped}" if mapped else str(ip)
def tlvs(data):
    found = []
    while data:
        kind, length = struct.unpack_from("!BH", data)
        assert 3 + length <= len(data)
        found.append((kind, data[3:3 + length]))
        data = data[3 + length:]
    return found
def read(data):
    if data.startswith(b"PROXY "):
        end = data.index(b"\r\n") + 2
        assert end <= 107
        words = data[:end - 2].decode().split(" ")
        family = {"TCP4": ipaddress.IPv4Address, "TCP6": ipaddress.IPv6Address}[words[1]]
        source, to, source_port, to_port = words[2:]
        return {"version": 1, "family": words[1], "source": [name(family(source)), int(source_port)],
                "destination": [name(family(to)), int(to_port)], "rest": data[end:].hex()}
    assert data[:12] == b"\r\n\r\n\0\r\nQUIT\n", data
    command, family, length = struct.unpack_from("!BBH", data, 12)
    block, rest = data[16:16 + length], data[16 + length:]
    assert len(block) == length
    said = {"version": 2, "command": {0x20: "LOCAL", 0x21: "PROXY"}[command], "rest": rest.hex()}
    if command == 0x20:
        return said
    size, kind, said["family"] = {0x11: (4, ipaddress.IPv4Address, "TCP4"), 0x21: (16, ipaddress.IPv6Address, "TCP6")}[family]
    ports = struct.unpack_from("!HH", block, 2 * size)
    said["source"] = [name(kind(block[:size])), ports[0]]
    said["destination"] = [name(kind(block[size:2 * size])), ports[1]]
    for kind, value in tlvs(block[2 * size + 4:]):
        if kind == 3:
            at = data.index(value, 16 + 2 * size + 4)
            whole = data[:16 + length]
            said["checksum"] = crc32c(whole[:at] + bytes(4) + whole[at + 4:]) == struct.unpack("!I", value)[0]
        elif kind == 0x20:
            client, verify = struct.unpack_from("!BI", value)
            parts = {kind: part.decode() for kind, part in tlvs(value[5:])}
            said["ssl"] = {"client": client, "verify": verify, "version": parts[0x21], "cipher": parts[0x23], "parts": len(parts)}
        else:
            said[{1: "alpn", 2: "authority"}[kind]] = value.decode()
    return said
for line in sys.stdin:
    print(json.dumps(read(bytes.fromhex(line.strip()))))
"#;

/// What these are, as an independent reader sees it.
fn read(python: &Path, captured: &[Vec<u8>]) -> Vec<Value> {
    let hex = |bytes: &Vec<u8>| {
        bytes.iter().fold(String::new(), |mut digits, byte| {
            write!(digits, "{byte:02x}").unwrap();
            digits
        })
    };
    let input: Vec<_> = captured.iter().map(hex).collect();
    let output = programs::run(python, &["-c", PYTHON], Path::new("/"), (input.join("\n") + "\n").as_bytes());
    assert!(output.success, "{}", output.stderr);
    output.stdout.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

fn wait_captured(captured: &Captured, count: usize) -> Vec<Vec<u8>> {
    wait_until(SOON, "a header before anything else", || captured.lock().unwrap().len() >= count);
    captured.lock().unwrap().clone()
}

fn pair(address: &str) -> Value {
    let address: SocketAddr = address.parse().unwrap();
    serde_json::json!([address.ip().to_string(), address.port()])
}

/// A listener, the header that comes in, and what goes out: family, client, destination.
type Case = (&'static str, Vec<u8>, Option<(&'static str, &'static str, &'static str)>);

/// What comes in, and which addresses go out; `None`: those of the socket.
fn cases() -> Vec<Case> {
    let [source, to] =
        ["[::ffff:192.0.2.1]:1", "[2001:db8::2]:2"].map(|address| address.parse::<SocketAddr>().unwrap());
    let v2 = |source: &str, to: &str| encode::v2(source.parse().unwrap(), to.parse().unwrap(), None);
    vec![
        ("direct", vec![], None),
        ("six", vec![], None),
        ("tcp", line("192.0.2.1:1234"), Some(("TCP4", "192.0.2.1:1234", "192.0.2.99:443"))),
        ("tcp", line("[2001:db8::1]:1234"), Some(("TCP6", "[2001:db8::1]:1234", "[2001:db8::99]:443"))),
        ("tcp", v2("192.0.2.1:5", "192.0.2.2:6"), Some(("TCP4", "192.0.2.1:5", "192.0.2.2:6"))),
        ("tcp", v2("[2001:db8::1]:5", "[2001:db8::2]:6"), Some(("TCP6", "[2001:db8::1]:5", "[2001:db8::2]:6"))),
        ("tcp", encode::v2(source, to, None), Some(("TCP6", "[::ffff:192.0.2.1]:1", "[2001:db8::2]:2"))),
        ("tcp", b"PROXY UNKNOWN\r\n".to_vec(), None),
        ("tcp", whole(0x21, 0x31, &[b'a'; 216]), None),
        ("tcp", whole(0x21, 0x00, &[7; 5]), None),
    ]
}

/// Also to a backend that waits for nothing else: the client says nothing before the header is there.
#[test]
fn p4_p9_the_header_is_there_at_once_in_one_read_and_well_formed() {
    let Some(python) = require("python3") else { return };
    for version in [1, 2] {
        let (backend, captured) = capture();
        let six = "[listener.six]\nbind = \"[::1]:0\"\npool = \"web\"\n";
        let direct = "[listener.direct]\nbind = \"[::]:0\"\npool = \"web\"\n";
        let send = format!("send_proxy = \"v{version}\"");
        let gate = Gate::start(
            &[&tcp(""), &brought_by("tcp", "0.0.0.0/0"), six, direct, &pool(&send, &[backend.address])].concat(),
        );
        let mut expected = Vec::new();
        let local = ("tcp", encode::local(), None);
        for (listener, header, addresses) in cases().into_iter().chain([local.clone()]) {
            let mut address = gate.address(listener);
            if listener == "direct" {
                address.set_ip(Ipv4Addr::LOCALHOST.into());
            }
            let mut stream = connect(address);
            let own = stream.local_addr().unwrap();
            stream.write_all(&header).unwrap();
            let seen = wait_captured(&captured, expected.len() + 1);
            exchange(&mut stream, b"payload");
            let family = if own.is_ipv4() { "TCP4" } else { "TCP6" };
            let (own, address) = (own.to_string(), address.to_string());
            let (family, source, to) = addresses.unwrap_or((family, &own, &address));
            let is_local = header == local.1 && version == 2;
            expected.push((family.to_owned(), pair(source), pair(to), is_local));
            assert_eq!(seen.len(), expected.len());
        }
        let captured = captured.lock().unwrap().clone();
        for ((told, expected), bytes) in read(&python, &captured).iter().zip(&expected).zip(&captured) {
            assert_eq!((&told["version"], &told["rest"]), (&version.into(), &"".into()), "{told} {bytes:?}");
            let (family, source, to, is_local) = expected;
            if *is_local {
                assert_eq!(told["command"], "LOCAL");
                continue;
            }
            assert_eq!((&told["family"], &told["source"], &told["destination"]), (&family.as_str().into(), source, to));
            assert!(version == 1 || (told["command"] == "PROXY" && told["checksum"] == true), "{told}");
        }
        assert_eq!(captured.len(), expected.len());
        gate.finish();
    }
}

#[test]
fn p9_version_2_tells_of_tls_what_was_agreed_and_checked() {
    let (Some(python), Some(openssl)) = (require("python3"), require("openssl")) else { return };
    let (backend, captured) = capture();
    let gate = Gate::start(
        &[https("alpn = [\"h2\", \"http/1.1\"]"), pool("send_proxy = \"v2\"", &[backend.address])].concat(),
    );
    let address = gate.address("https");
    let mut own = Vec::new();
    for version in [&rustls::version::TLS13, &rustls::version::TLS12] {
        let mut config = client::config(&[version]);
        config.alpn_protocols = vec![b"http/1.1".to_vec()];
        let hello = crate::support::hello::Hello::new("FOOBAR.com", std::sync::Arc::new(config));
        let mut stream = connect(address);
        own.push(stream.local_addr().unwrap().to_string());
        stream.write_all(&hello.whole()).unwrap();
        let mut tls = hello.finish(stream).unwrap();
        wait_captured(&captured, own.len());
        exchange(&mut tls, b"payload");
    }
    // A name that no certificate is for is answered by the first one, and told to nobody.
    let mut command = std::process::Command::new(&openssl);
    let arguments = ["s_client", "-connect", &address.to_string(), "-servername", "elsewhere.example", "-quiet"];
    let mut other = command
        .args(arguments)
        .stdin(std::process::Stdio::piped())
        .stderr(std::process::Stdio::null())
        .spawn()
        .unwrap();
    let all = wait_for(SOON, || Some(captured.lock().unwrap().clone()).filter(|seen| seen.len() == 3));
    programs::end(&mut other);
    let told = read(&python, &all.expect("three headers"));
    for (told, (own, (version, cipher))) in told.iter().zip(
        own.iter().zip([("TLSv1.3", "TLS_AES_128_GCM_SHA256"), ("TLSv1.2", "TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256")]),
    ) {
        assert_eq!((&told["source"], &told["destination"]), (&pair(own), &pair(&address.to_string())));
        let ssl = serde_json::json!({ "client": 1, "verify": 1, "version": version, "cipher": cipher, "parts": 2 });
        assert_eq!((&told["ssl"], &told["authority"], &told["alpn"]), (&ssl, &"foobar.com".into(), &"http/1.1".into()));
        assert_eq!((&told["checksum"], &told["rest"]), (&true.into(), &"".into()));
    }
    assert_eq!((&told[2]["authority"], &told[2]["alpn"]), (&Value::Null, &Value::Null));
    assert_eq!(told[2]["ssl"]["version"], "TLSv1.3");
    gate.finish();
}

/// Each kind of check begins with the header of its pool, unless it asks elsewhere than where the traffic goes.
#[test]
fn p9_checks_begin_with_a_header() {
    let Some(python) = require("python3") else { return };
    let kinds = [
        ("tcp", ""),
        ("http", "474554202f20"),
        ("tls", "1603"),
        ("send_expect\", send = \"hex:0102\", expect = \"x", "0102"),
        ("mysql\", user = \"u", ""),
    ];
    for version in [1, 2] {
        for (kind, question) in kinds {
            let (backend, captured) = capture();
            let check = format!("send_proxy = \"v{version}\"\ncheck = {{ type = \"{kind}\", every = \"200ms\" }}");
            let gate = Gate::plan(&[tcp(""), pool(&check, &[backend.address])].concat()).checked().start();
            let seen = wait_captured(&captured, 2);
            drop(gate);
            // A check that gives up may leave one that has said nothing.
            for told in read(&python, &seen.into_iter().filter(|first| !first.is_empty()).collect::<Vec<_>>()) {
                if version == 1 {
                    assert_eq!(
                        (&told["family"], &told["destination"]),
                        (&"TCP4".into(), &pair(&backend.address.to_string()))
                    );
                    assert_eq!(told["source"][0], "127.0.0.1", "{told}");
                    assert_ne!(told["source"][1], 0, "{told}");
                } else {
                    assert_eq!(told["command"], "LOCAL", "{kind} {told}");
                }
                let rest = told["rest"].as_str().unwrap();
                assert!(rest.is_empty() || rest.starts_with(question), "{kind} {told}");
            }
        }
    }
    // The question of a port of its own begins as ever.
    let (backend, captured) = capture();
    let port = backend.address.port();
    let check = format!(
        "send_proxy = \"v1\"\ncheck = {{ type = \"send_expect\", send = \"PING\", expect = \"x\", port = {port}, every = \"200ms\" }}"
    );
    let gate = Gate::plan(&[tcp(""), pool(&check, &[backend.address])].concat()).checked().start();
    assert_eq!(wait_captured(&captured, 1)[0], b"PING");
    drop(gate);
}

/// Two of these, one behind the other: the second knows the client of the first.
#[test]
fn p9_what_one_gate_sends_the_next_one_understands() {
    for version in ["v1", "v2"] {
        let backend = Backend::greeting(b"first");
        let second = Gate::start(&[tcp(""), brought_by("tcp", "127.0.0.1"), pool("", &[backend.address])].concat());
        let send = format!("send_proxy = \"{version}\"");
        let first = Gate::start(&[tcp(""), https(""), pool(&send, &[second.address("tcp")])].concat());
        let client = IpAddr::from([127, 0, 0, 77]);
        let mut stream = connect_from(client, first.address("tcp"));
        let own = stream.local_addr().unwrap().to_string();
        stream.read_exact(&mut [0; 5]).unwrap();
        exchange(&mut stream, &vec![b'x'; 300_000]);
        drop(stream);
        let record = second.wait_records(1).pop().unwrap();
        assert_eq!(word(&record, "client"), own, "{record}");
        assert!(word(&record, "peer").starts_with("127.0.0.1:"), "{record}");
        let mut tls = client::connect_tls_over(connect_from(client, first.address("https")));
        let own = tls.sock.local_addr().unwrap().to_string();
        tls.read_exact(&mut [0; 5]).unwrap();
        exchange(&mut tls, b"payload");
        drop(tls);
        assert_eq!(word(&second.wait_records(2)[1], "client"), own);
        first.finish();
        second.finish();
    }
}
