//! stunnel and hitch, which end the client's TLS: in front of the gate, and between two of them.

use std::{
    io::Write,
    net::{SocketAddr, TcpStream},
    path::Path,
    process::Command,
    sync::Arc,
};

use rustls::client::Resumption;
use sluicegate::proxy_protocol::{Decoder, Header, Origin, Version};

use super::{
    brought_by, capture, line,
    peers::{Peer, client},
    vectors::MOST,
};
use crate::support::{
    Authority, Backend, Gate, SOON,
    client::{Tls, config, connect_from, exchange, handshake},
    gate::{pool, tcp, word},
    programs, wait_until,
};

impl Peer {
    /// Sends version 1 to this address. It cannot read a header.
    fn stunnel(to: SocketAddr) -> Option<Self> {
        let program = programs::require("stunnel")?;
        Some(Self::start(1, |directory, ports| {
            let text = format!(
                "foreground = yes\npid =\n[tls]\naccept = {}\nconnect = {to}\ncert = foobar.com\nprotocol = proxy\n",
                ports[0]
            );
            write(directory, &text);
            let mut command = Command::new(&program);
            command.arg("c");
            command
        }))
    }

    /// `how` it makes the header that this address gets: `write-proxy-v1`, `write-proxy-v2`, or `proxy-proxy`, which is the
    /// one that it got itself.
    fn hitch(to: SocketAddr, how: &str) -> Option<Self> {
        let program = programs::require("hitch")?;
        Some(Self::start(1, |directory, ports| {
            let endpoint = |address: SocketAddr| format!("\"[{}]:{}\"", address.ip(), address.port());
            // It does not serve as root.
            let user = if rustix::process::geteuid().is_root() { "user = \"nobody\"\n" } else { "" };
            let text = format!(
                "frontend = {}\nbackend = {}\npem-file = \"foobar.com\"\n{how} = on\nworkers = 1\nocsp-dir = \"\"\n{user}",
                endpoint(ports[0]),
                endpoint(to)
            );
            write(directory, &text);
            let mut command = Command::new(&program);
            command.arg("--config=c");
            command
        }))
    }
}

/// The configuration, and key and certificate in one file.
fn write(directory: &Path, configuration: &str) {
    let leaf = Authority::leaf(&["foobar.com"]);
    std::fs::write(directory.join("foobar.com"), leaf.key + &leaf.certificate).unwrap();
    std::fs::write(directory.join("c"), configuration).unwrap();
}

/// With a client that keeps no tickets: those of other programs are none for the gates of other tests.
#[track_caller]
fn over_tls(stream: TcpStream) -> Tls {
    let mut config = config(rustls::ALL_VERSIONS);
    config.resumption = Resumption::disabled();
    handshake(stream, "foobar.com", Arc::new(config)).expect("a handshake")
}

/// The gate behind knows this client, and every byte comes back.
#[track_caller]
fn is_known(gate: &Gate, mut stream: Tls, expected: &str, records: usize) {
    exchange(&mut stream, &vec![b'x'; 100_000]);
    drop(stream);
    let record = gate.wait_records(records).pop().unwrap();
    assert_eq!(word(&record, "client"), expected, "{record}");
    assert!(word(&record, "peer").starts_with("127.0.0.1:"), "{record}");
}

fn behind(backend: &Backend) -> Gate {
    Gate::start(&[tcp(""), brought_by("tcp", "127.0.0.1"), pool("", &[backend.address])].concat())
}

#[test]
fn p8_stunnel_and_hitch_in_front_bring_clients_of_their_tls() {
    let backend = Backend::echo();
    let gate = behind(&backend);
    let to = gate.address("tcp");
    let peers = [
        ("v1", Peer::stunnel(to)),
        ("v1", Peer::hitch(to, "write-proxy-v1")),
        ("v2", Peer::hitch(to, "write-proxy-v2")),
    ];
    let mut records = 0;
    for (version, peer) in peers.iter().filter_map(|(version, peer)| Some((*version, peer.as_ref()?))) {
        let count = || gate.metrics().count("sluicegate_proxy_headers_total", &[("version", version)]);
        let before = count();
        let stream = connect_from(client(), peer.ports[0]);
        let own = stream.local_addr().unwrap().to_string();
        records += 1;
        is_known(&gate, over_tls(stream), &own, records);
        assert_eq!(count(), before + 1, "{version}");
    }
    assert_eq!(gate.metrics().count("sluicegate_proxy_header_failures_total", &[]), 0);
    drop(peers);
    gate.finish();
}

/// What hitch says of TLS besides the addresses, which is passed over here.
#[test]
fn p7_the_extensions_that_hitch_sends_belong_to_the_header() {
    let (backend, captured) = capture();
    let Some(hitch) = Peer::hitch(backend.address, "write-proxy-v2") else { return };
    let stream = connect_from(client(), hitch.ports[0]);
    let source = stream.local_addr().unwrap();
    let mut tls = over_tls(stream);
    tls.write_all(b"payload").unwrap();
    wait_until(SOON, "a header", || captured.lock().unwrap().len() == 1);
    let first = captured.lock().unwrap()[0].clone();
    let taken = Decoder::new(MOST).take(&first).unwrap();
    let header = Header { version: Version::V2, origin: Origin::Client { source, destination: hitch.ports[0] } };
    assert_eq!(taken.header, Some(header));
    let (header, payload) = first.split_at(taken.length);
    // The payload may come later.
    assert!(b"payload".starts_with(payload), "{payload:?}");
    for told in ["foobar.com", "TLSv1.3", "TLS_AES_"] {
        assert!(header.windows(told.len()).any(|window| window == told.as_bytes()), "{told}: {header:?}");
    }
}

/// A client's TLS goes through the first gate as it is; hitch reads the header that comes before it, and hands it on.
#[test]
fn p9_hitch_behind_reads_our_header_before_the_clients_tls() {
    let backend = Backend::echo();
    for version in ["v1", "v2"] {
        let second = behind(&backend);
        let Some(hitch) = Peer::hitch(second.address("tcp"), "proxy-proxy") else { return };
        let brought = "[listener.brought]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n".to_owned()
            + &brought_by("brought", "127.0.0.0/8");
        let send = format!("send_proxy = \"{version}\"");
        let first = Gate::start(&[tcp(""), brought, pool(&send, &hitch.ports)].concat());
        let stream = connect_from(client(), first.address("tcp"));
        let own = stream.local_addr().unwrap().to_string();
        is_known(&second, over_tls(stream), &own, 1);
        for (count, client) in [(2, "192.0.2.1:1234"), (3, "[2001:db8::1]:9")] {
            let mut stream: TcpStream = connect_from(self::client(), first.address("brought"));
            stream.write_all(&line(client)).unwrap();
            is_known(&second, over_tls(stream), client, count);
        }
        let metrics = second.metrics();
        assert_eq!(metrics.count("sluicegate_proxy_headers_total", &[("version", version)]), 3);
        assert_eq!(metrics.count("sluicegate_proxy_header_failures_total", &[]), 0);
        drop(hitch);
        first.finish();
        second.finish();
    }
}
