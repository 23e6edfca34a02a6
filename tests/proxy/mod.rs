//! The PROXY protocol: clients that other balancers bring (traps P1 to P8), and what backends are told (P4, P9).

mod incoming;
mod outgoing;
mod peers;
mod policy;
mod terminators;
#[path = "../../src/proxy_protocol/vectors.rs"]
pub mod vectors;

use std::{
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    sync::{Arc, Mutex},
};

use sluicegate::proxy_protocol::{Failure, LONGEST_V1, Origin};

use crate::support::{Backend, Metrics};

/// The table that makes a listener take clients only from balancers in `from`.
fn brought_by(listener: &str, from: &str) -> String {
    format!("[listener.{listener}.proxy_protocol]\nfrom = \"{from}\"\n")
}

fn failures(metrics: &Metrics, reason: &str) -> u64 {
    metrics.count("sluicegate_proxy_header_failures_total", &[("reason", reason)])
}

/// A line of version 1 for this client.
fn line(client: &str) -> Vec<u8> {
    let client: SocketAddr = client.parse().unwrap();
    let (family, to) = if client.is_ipv4() { ("TCP4", "192.0.2.99") } else { ("TCP6", "2001:db8::99") };
    format!("PROXY {family} {} {to} {} 443\r\n", client.ip(), client.port()).into_bytes()
}

/// The first read of each connection to a backend, in the order of their ends.
type Captured = Arc<Mutex<Vec<Vec<u8>>>>;

/// A backend that keeps what it read first, and sends everything back that came in later reads.
fn capture() -> (Backend, Captured) {
    let captured = Captured::default();
    let kept = Arc::clone(&captured);
    let backend = Backend::start(move |mut stream: &TcpStream, _| {
        let mut buffer = vec![0; 64 << 10];
        let Ok(first) = stream.read(&mut buffer) else { return };
        kept.lock().unwrap().push(buffer[..first].to_vec());
        while let Ok(count) = stream.read(&mut buffer) {
            if count == 0 || stream.write_all(&buffer[..count]).is_err() {
                return;
            }
        }
    });
    (backend, captured)
}
