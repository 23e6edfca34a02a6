//! HAProxy and nginx, in front of the gate and behind it; and how their reading of headers differs from ours.

use std::{
    fmt::Write as _,
    io::{Read, Write},
    net::{IpAddr, Shutdown, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use tempfile::TempDir;

use super::{
    Origin, brought_by, line,
    vectors::{accepted, refused},
};
use crate::support::{
    Backend, Gate, SOON,
    client::{bounded, connect_from, connect_tls_over, exchange, read_all},
    gate::{https, pool, tcp, word},
    programs, wait_for,
};

/// A program of others that serves on some ports of its own.
pub struct Peer {
    child: Child,
    _directory: TempDir,
    pub ports: Vec<SocketAddr>,
}

impl Peer {
    /// HAProxy with what follows `defaults`. `None` when it is not installed.
    fn haproxy(ports: usize, configuration: impl Fn(&[SocketAddr]) -> String) -> Option<Self> {
        let program = programs::require("haproxy")?;
        let defaults = "defaults\n  mode tcp\n  timeout connect 5s\n  timeout client 30s\n  timeout server 30s\n";
        Some(Self::start(ports, |directory, ports| {
            std::fs::write(directory.join("c"), format!("{defaults}{}", configuration(ports))).unwrap();
            let mut command = Command::new(&program);
            command.args(["-db", "-f", "c"]);
            command
        }))
    }

    /// nginx with what stands beside `events`. `None` when it or its stream module is not installed.
    fn nginx(ports: usize, configuration: impl Fn(&[SocketAddr]) -> String) -> Option<Self> {
        const STREAM: &str = "/usr/lib/nginx/modules/ngx_stream_module.so";
        let program = programs::require("nginx")?;
        if !Path::new(STREAM).is_file() {
            programs::skip("nginx has no stream module: apt-get install libnginx-mod-stream");
            return None;
        }
        Some(Self::start(ports, |directory, ports| {
            let text = format!(
                "load_module {STREAM};\ndaemon off;\nmaster_process off;\npid nginx.pid;\nevents {{}}\n{}",
                configuration(ports)
            );
            std::fs::write(directory.join("c"), text).unwrap();
            let mut command = Command::new(&program);
            command.args(["-e", "error.log", "-p"]).arg(directory).args(["-c", "c"]);
            command
        }))
    }

    pub fn start(count: usize, command: impl Fn(&Path, &[SocketAddr]) -> Command) -> Self {
        // A port may be taken by others meanwhile.
        let started = (0..5).find_map(|_| {
            let directory = TempDir::new().unwrap();
            let held: Vec<_> = (0..count).map(|_| TcpListener::bind("127.0.0.1:0").unwrap()).collect();
            let ports: Vec<_> = held.iter().map(|listener| listener.local_addr().unwrap()).collect();
            drop(held);
            let mut command = command(directory.path(), &ports);
            let quiet =
                command.current_dir(directory.path()).stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::null());
            let mut peer = Self { child: quiet.spawn().unwrap(), _directory: directory, ports };
            let serving = wait_for(SOON, || match peer.child.try_wait().unwrap() {
                Some(_) => Some(false),
                None => peer.ports.iter().all(|port| TcpStream::connect(port).is_ok()).then_some(true),
            });
            (serving == Some(true)).then_some(peer)
        });
        started.expect("a program on free ports")
    }
}

impl Drop for Peer {
    fn drop(&mut self) {
        // Some have workers, which they end too when they are asked to.
        let _ = rustix::process::kill_process(Pid::from_child(&self.child), Signal::TERM);
        wait_for(SOON, || self.child.try_wait().unwrap());
        programs::end(&mut self.child);
    }
}

pub fn client() -> IpAddr {
    IpAddr::from([127, 0, 0, 77])
}

/// Clients come to these addresses, and the gate has to know them all.
#[track_caller]
fn each_client_is_known(gate: &Gate, addresses: &[SocketAddr], before: usize) {
    for (number, address) in addresses.iter().enumerate() {
        let mut stream = connect_from(client(), *address);
        let own = stream.local_addr().unwrap().to_string();
        exchange(&mut stream, &vec![b'x'; 200_000]);
        drop(stream);
        let record = gate.wait_records(before + number + 1).pop().unwrap();
        assert_eq!(word(&record, "client"), own, "{record}");
        assert!(word(&record, "peer").starts_with("127.0.0.1:"), "{record}");
    }
}

#[test]
fn p8_haproxy_and_nginx_in_front_bring_clients_in_both_versions() {
    let backend = Backend::echo();
    let gate = Gate::start(&[tcp(""), brought_by("tcp", "127.0.0.1"), pool("", &[backend.address])].concat());
    let to = gate.address("tcp");
    let lines = |ports: &[SocketAddr]| {
        ["send-proxy", "send-proxy-v2", "send-proxy-v2 proxy-v2-options crc32c,unique-id"].iter().zip(ports).fold(
            String::new(),
            |mut text, (how, port)| {
                writeln!(text, "listen l{}\n  bind {port}\n  server gate {to} {how}", port.port()).unwrap();
                text
            },
        )
    };
    let mut before = 0;
    if let Some(haproxy) = Peer::haproxy(3, lines) {
        // It has connected once to each, to see that it serves.
        gate.wait_metrics("the first connections", |m| m.outcome("client_closed") >= 3);
        each_client_is_known(&gate, &haproxy.ports, before);
        before += 3;
    }
    let server = |ports: &[SocketAddr]| {
        format!("stream {{ server {{ listen {}; proxy_pass {to}; proxy_protocol on; }} }}", ports[0])
    };
    if let Some(nginx) = Peer::nginx(1, server) {
        each_client_is_known(&gate, &nginx.ports, before);
    }
    assert_eq!(gate.metrics().count("sluicegate_proxy_header_failures_total", &[]), 0);
}

/// Its checks say LOCAL in version 2: they are headers, and not a line of the log.
#[test]
fn haproxys_checks_find_the_gate_well() {
    let backend = Backend::named("welcome");
    let gate = Gate::start(&[tcp(""), brought_by("tcp", "127.0.0.1"), pool("", &[backend.address])].concat());
    let to = gate.address("tcp");
    for how in ["send-proxy", "send-proxy-v2"] {
        let before = gate.metrics().count("sluicegate_proxy_headers_total", &[]);
        let lines = |ports: &[SocketAddr]| {
            format!("listen l\n  bind {}\n  server gate {to} {how} check inter 100ms\n", ports[0])
        };
        let Some(haproxy) = Peer::haproxy(1, lines) else { return };
        gate.wait_metrics("a few checks", |m| m.count("sluicegate_proxy_headers_total", &[]) > before + 5);
        let mut stream = connect_from(client(), haproxy.ports[0]);
        assert_eq!(read_all(&mut stream).0, b"welcome", "{how}");
    }
    assert_eq!(gate.metrics().count("sluicegate_proxy_header_failures_total", &[]), 0);
}

/// What they say of the client that they are told of.
fn told(stream: &mut (impl Read + Write)) -> String {
    stream.write_all(b"GET / HTTP/1.0\r\n\r\n").unwrap();
    stream.flush().unwrap();
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    let answer = String::from_utf8(answer).unwrap();
    assert!(answer.starts_with("HTTP/1.1 200"), "{answer}");
    answer.split_once("\r\n\r\n").unwrap().1.trim().to_owned()
}

#[test]
fn p9_haproxy_and_nginx_behind_know_the_client_in_both_versions() {
    let haproxy = Peer::haproxy(1, |ports| {
        format!(
            "frontend f\n  mode http\n  bind {} accept-proxy\n  http-request return status 200 content-type text/plain \
             lf-string \"%[src]:%[src_port] %[dst]:%[dst_port] %[fc_pp_authority]\"\n",
            ports[0]
        )
    });
    let nginx = Peer::nginx(1, |ports| {
        format!(
            "http {{ access_log off; server {{ listen {} proxy_protocol; location / {{ return 200 \"$proxy_protocol_addr:$proxy_protocol_port \
             $proxy_protocol_server_addr:$proxy_protocol_server_port\"; }} }} }}",
            ports[0]
        )
    });
    let (Some(haproxy), Some(nginx)) = (haproxy, nginx) else { return };
    for (version, peer) in [("v1", &haproxy), ("v2", &haproxy), ("v1", &nginx), ("v2", &nginx)] {
        let send = format!("send_proxy = \"{version}\"");
        let second = "[listener.behind]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n".to_owned()
            + &brought_by("behind", "127.0.0.0/8");
        let gate = Gate::start(&[tcp(""), https(""), second, pool(&send, &peer.ports)].concat());
        let (plain, tls) = (gate.address("tcp"), gate.address("https"));
        let mut stream = connect_from(client(), plain);
        let own = stream.local_addr().unwrap();
        assert_eq!(told(&mut stream), format!("{own} {plain}"), "{version}");
        drop(stream);
        let mut stream = connect_tls_over(connect_from(client(), tls));
        let own = stream.sock.local_addr().unwrap();
        let is_haproxy = peer.ports == haproxy.ports;
        let authority = if version == "v2" && is_haproxy { " foobar.com" } else { "" };
        assert_eq!(told(&mut stream), format!("{own} {tls}{authority}"), "{version}");
        drop(stream);
        for (brought, expected) in
            [("192.0.2.1:1234", "192.0.2.1:1234 192.0.2.99:443"), ("[2001:db8::1]:9", "2001:db8::1:9 2001:db8::99:443")]
        {
            let mut stream = connect_from(client(), gate.address("behind"));
            stream.write_all(&line(brought)).unwrap();
            assert_eq!(told(&mut stream), expected, "{version}");
        }
        gate.finish();
    }
}

/// How HAProxy reads these bytes with a request behind them: the client it takes, or nothing.
fn at_haproxy(address: SocketAddr, bytes: &[u8], request: &[u8]) -> (Option<String>, SocketAddr) {
    let mut stream = bounded(TcpStream::connect(address).unwrap());
    stream.set_read_timeout(Some(Duration::from_secs(5))).unwrap();
    let own = stream.local_addr().unwrap();
    // It may be refused while it is sent.
    let _ = stream.write_all(&[bytes, request].concat());
    let _ = stream.shutdown(Shutdown::Write);
    let (answer, _) = read_all(&mut stream);
    let answer = String::from_utf8_lossy(&answer).into_owned();
    let body = answer.split_once("\r\n\r\n").filter(|_| answer.starts_with("HTTP/1.1 200"));
    (body.map(|(_, body)| body.trim().to_owned()), own)
}

/// Numbers that HAProxy reads and we do not: too large, or with zeros in front (docs/firewall.md has the list).
const LAXER: [&str; 4] = [" 256.0.0.1 ", " 0300.0.0.1 ", " 01234 ", " 65536 "];

#[test]
fn p8_haproxy_reads_the_vectors_as_we_do_or_differs_where_we_know_it() {
    const REQUEST: &[u8] = b"GET / HTTP/1.0\r\n\r\n";
    let haproxy = Peer::haproxy(1, |ports| {
        format!(
            "frontend f\n  mode http\n  bind {} accept-proxy\n  http-request return status 200 content-type text/plain \
             lf-string \"%[src] %[src_port]\"\n",
            ports[0]
        )
    });
    let Some(haproxy) = haproxy else { return };
    let (mut same, mut stricter, mut laxer) = (0, 0, 0);
    for (header, origin) in accepted() {
        let (seen, own) = at_haproxy(haproxy.ports[0], &header, REQUEST);
        let expected = match origin {
            Origin::Client { source, .. } => source,
            Origin::Local | Origin::Unknown => own,
        };
        let Some(seen) = seen else {
            // It knows UNKNOWN without more words only, and of version 2 TCP only.
            assert_eq!(origin, Origin::Unknown, "{header:?}");
            stricter += 1;
            continue;
        };
        // It does not fold mapped addresses, and has no word for port 0.
        let (ip, port) = seen.split_once(' ').unwrap_or((&seen, "0"));
        assert_eq!(ip.parse::<IpAddr>().unwrap().to_canonical(), expected.ip(), "{header:?}");
        assert_eq!(port.parse().unwrap_or(0), expected.port(), "{header:?}");
        same += 1;
    }
    for (bytes, failure) in refused() {
        let request = if failure.is_none() { b"" } else { REQUEST };
        if let (Some(seen), _) = at_haproxy(haproxy.ports[0], &bytes, request) {
            let text = String::from_utf8_lossy(&bytes);
            assert!(LAXER.iter().any(|known| text.contains(known)), "{text:?}: {seen}");
            laxer += 1;
        } else {
            same += 1;
        }
    }
    println!(
        "of {} headers HAProxy reads {same} as we do, refuses {stricter} more, takes {laxer} more",
        same + stricter + laxer
    );
    assert!(same > 60 && laxer <= LAXER.len(), "{same} {stricter} {laxer}");
}
