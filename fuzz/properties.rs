//! What has to hold for any input. The fuzz targets ask it without end, the tests for a bounded time.

#![allow(dead_code, reason = "each fuzz target asks one of them")]

pub mod header;

use std::{
    io::Write as _,
    net::{IpAddr, Shutdown},
    os::{fd::OwnedFd, unix::net::UnixStream},
    path::Path,
    rc::Rc,
    sync::{Arc, LazyLock},
    time::{Duration, SystemTime, UNIX_EPOCH},
};

use rcgen::{CertifiedKey, generate_simple_self_signed};
use sluicegate::{
    access_log::read_line,
    alarm::Alarms,
    cidr::Cidr,
    config::{
        self, TlsVersion,
        diagnostic::{Origin, render, to_json},
    },
    firewall::{find_in_list, parse_list},
    sys::socket::Socket,
    tls::{
        acceptor::{self, Policy},
        certificates::{Certificate, Certificates},
        tickets::Tickets,
        unbuffered,
    },
};
use tokio::runtime::{Builder, LocalOptions, LocalRuntime};

/// A text is a configuration or it has errors, each with a place in it that can be shown.
pub fn config(bytes: &[u8]) {
    let Ok(text) = str::from_utf8(bytes) else { return };
    let path = Path::new("sluicegate.toml");
    let found = match config::parse(text, Path::new("/etc/sluicegate")) {
        Ok((_, warnings)) => {
            assert!(warnings.iter().all(|warning| !warning.is_error()));
            warnings
        }
        Err(errors) => {
            assert!(errors.iter().any(config::Diagnostic::is_error), "refused without an error");
            errors
        }
    };
    for diagnostic in &found {
        match &diagnostic.origin {
            Origin::Config { span } => assert!(span.start <= span.end && span.end <= text.len(), "{diagnostic:?}"),
            Origin::File { span: Some(span), .. } => assert!(span.end <= text.len(), "{diagnostic:?}"),
            Origin::Line { .. } | Origin::File { .. } => {}
            Origin::None => assert_eq!(diagnostic.code, config::code::TOO_LARGE, "{diagnostic:?}"),
        }
    }
    let told = render(&found, path, text, false);
    assert_eq!(told.is_empty(), found.is_empty());
    assert_eq!(to_json(&found, path, text).as_array().map(Vec::len), Some(found.len()));
}

/// A list file says what a reader says that is too simple to be wrong.
pub fn networks(bytes: &[u8]) {
    let simple: Result<Vec<_>, ()> = lines(bytes).filter_map(|line| simply(line).transpose()).collect();
    let read = parse_list(bytes);
    let (Ok(simple), Ok(list)) = (&simple, &read) else {
        assert!(simple.is_err() && read.is_err(), "{read:?} but {simple:?}");
        let errors = read.unwrap_err();
        assert!(!errors.first.is_empty() && errors.first.len() <= errors.total);
        assert!(errors.first.iter().all(|error| error.text.get(error.columns.clone()).is_some()), "{errors:?}");
        return;
    };
    let mut expected: Vec<_> = simple.iter().map(|network| (network.first, network.free)).collect();
    expected.sort_unstable();
    let written = expected.len();
    expected.dedup();
    let mut networks: Vec<_> = list.networks.iter().map(|cidr| (number(cidr.network()), free(cidr))).collect();
    networks.sort_unstable();
    assert_eq!(networks, expected);
    assert_eq!(list.duplicates, written - expected.len());
    assert_eq!(list.host_bits, simple.iter().filter(|network| network.host_bits).count());
    // Small enough to compare each with each.
    if expected.len() <= 64 {
        let holds = |outer: &(Number, u32), inner: &(Number, u32)| {
            outer != inner
                && outer.0.0 == inner.0.0
                && outer.1 >= inner.1
                && cut(outer.0.1, outer.1) == cut(inner.0.1, outer.1)
        };
        let covered = expected.iter().filter(|inner| expected.iter().any(|outer| holds(outer, inner))).count();
        assert_eq!(list.covered, covered);
        for cidr in &list.networks {
            assert_eq!(cidr.to_string().parse::<Cidr>(), Ok(*cidr), "what is written can be read");
            // `::/80` ends among the mapped addresses, which are IPv4 and in no IPv6 network.
            let held = [cidr.network(), cidr.last()].into_iter().filter(|ip| ip.to_canonical() == *ip);
            for ip in held {
                let (found, _) = find_in_list(bytes, ip).expect("an address of its own");
                assert!(cidr.covers(&found) || found.covers(cidr));
            }
        }
    }
}

/// Whether it is IPv4, and its bits.
type Number = (bool, u128);

#[derive(Debug)]
struct Network {
    first: Number,
    /// Bits that are free.
    free: u32,
    host_bits: bool,
}

fn lines(bytes: &[u8]) -> impl Iterator<Item = &[u8]> {
    bytes.strip_prefix(b"\xef\xbb\xbf").unwrap_or(bytes).split(|byte| *byte == b'\n')
}

fn simply(line: &[u8]) -> Result<Option<Network>, ()> {
    let entry = line.split(|byte| *byte == b'#').next().unwrap_or_default().trim_ascii();
    if entry.is_empty() {
        return Ok(None);
    }
    let text = str::from_utf8(entry).map_err(drop)?;
    let (address, prefix) = text.split_once('/').map_or((text, None), |(address, prefix)| (address, Some(prefix)));
    let address: IpAddr = address.parse().map_err(drop)?;
    let width: u32 = if address.is_ipv4() { 32 } else { 128 };
    let prefix = match prefix {
        None => width,
        Some(digits) => {
            digits.parse().ok().filter(|prefix: &u32| prefix.to_string() == digits && *prefix <= width).ok_or(())?
        }
    };
    let bits = match address {
        IpAddr::V4(ip) => u128::from(ip.to_bits()),
        IpAddr::V6(ip) => ip.to_bits(),
    };
    let free = width - prefix;
    let first = cut(bits, free);
    let mapped = address.is_ipv6() && free <= 32 && first >> 32 == 0xffff;
    let first = if mapped { (true, first & 0xffff_ffff) } else { (address.is_ipv4(), first) };
    Ok(Some(Network { first, free, host_bits: cut(bits, free) != bits }))
}

fn number(ip: IpAddr) -> Number {
    match ip {
        IpAddr::V4(ip) => (true, u128::from(ip.to_bits())),
        IpAddr::V6(ip) => (false, ip.to_bits()),
    }
}

fn free(cidr: &Cidr) -> u32 {
    if cidr.network().is_ipv4() { 32 - u32::from(cidr.prefix_len()) } else { 128 - u32::from(cidr.prefix_len()) }
}

/// Without the free bits.
fn cut(bits: u128, free: u32) -> u128 {
    bits.checked_shr(free).and_then(|bits| bits.checked_shl(free)).unwrap_or(0)
}

/// A line of a log is a record, something else, or broken; never a panic, and a record has a client.
pub fn access_log(bytes: &[u8]) {
    if let Ok(Some(line)) = read_line(bytes) {
        assert!(!line.listener.is_empty());
    }
}

/// Whatever a client sends first, the handshake ends: with keys or with a reason, and within its time.
pub fn client_hello(bytes: &[u8]) {
    static POLICY: LazyLock<Policy> = LazyLock::new(policy);
    thread_local! {
        static RUNTIME: LocalRuntime =
            Builder::new_current_thread().enable_all().build_local(LocalOptions::default()).expect("a runtime");
    }
    let (mut client, server) = UnixStream::pair().expect("a pair of sockets");
    server.set_nonblocking(true).expect("a socket");
    // More than a hello may have is refused; the rest of it need not fit into the socket.
    client.set_nonblocking(true).expect("a socket");
    let _ = client.write(bytes);
    let _ = client.shutdown(Shutdown::Write);
    RUNTIME.with(|runtime| {
        runtime.block_on(async {
            let socket = Socket::accepted(OwnedFd::from(server)).expect("a watch");
            let alarm = Rc::<Alarms>::default().alarm();
            let shaking = unbuffered::handshake(socket, &POLICY, Duration::from_secs(10), &alarm);
            let ended = tokio::time::timeout(Duration::from_mins(1), shaking).await;
            // A client that has said its last word cannot complete a handshake without having heard ours.
            assert!(ended.expect("an end").is_err(), "a handshake of one flight");
        });
    });
}

fn policy() -> Policy {
    let provider = Arc::new(acceptor::provider());
    let names = ["foobar.com".to_owned(), "*.foobar.com".to_owned()];
    let CertifiedKey { cert, signing_key } = generate_simple_self_signed(names).expect("a certificate");
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_secs().cast_signed());
    let key = signing_key.serialize_pem();
    let certificate = Certificate::from_pem(cert.pem().as_bytes(), key.as_bytes(), now, &provider);
    let certificates = Certificates::new(&[certificate.expect("the certificate of these tests")], true);
    let tickets = Arc::new(Tickets::new().expect("keys for tickets"));
    Policy::new(certificates, TlsVersion::V1_2, &["http/1.1".to_owned()], &provider, tickets).expect("a policy")
}
