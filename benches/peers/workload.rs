//! What is asked of a proxy.

const KIB: u64 = 1 << 10;
const MIB: u64 = 1 << 20;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Listener {
    Plain,
    Tls,
}

/// Who makes the load.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Generator {
    Wrk,
    /// A new connection for each request.
    WrkClose,
    /// Requests with a body of 1 MiB.
    WrkUpload,
    /// Each connection with a full handshake, one request in it.
    FullHandshakes,
    /// The same with resumption.
    ResumedHandshakes,
}

#[derive(Debug, PartialEq, Eq)]
pub struct Workload {
    pub name: &'static str,
    /// For readers of the report.
    pub what: &'static str,
    pub listener: Listener,
    pub path: &'static str,
    pub connections: u32,
    pub generator: Generator,
    /// Payload of one request; 0 where the request is the unit.
    pub bytes: u64,
}

#[rustfmt::skip] // a table
pub static WORKLOADS: [Workload; 12] = {
    use {Generator::{FullHandshakes, ResumedHandshakes, Wrk, WrkClose, WrkUpload}, Listener::{Plain, Tls}};
    [
        workload("keep", "TCP, small requests, kept open", Plain, ("/small", 0), 64, Wrk),
        workload("conn", "TCP, a connection per request", Plain, ("/small", 0), 64, WrkClose),
        workload("64k", "TCP, 64 KiB downloads", Plain, ("/64k.bin", 64 * KIB), 32, Wrk),
        workload("1m", "TCP, 1 MiB downloads", Plain, ("/1m.bin", MIB), 16, Wrk),
        workload("16m", "TCP, 16 MiB downloads", Plain, ("/16m.bin", 16 * MIB), 4, Wrk),
        workload("up", "TCP, 1 MiB uploads", Plain, ("/up", MIB), 8, WrkUpload),
        workload("tlskeep", "TLS, small requests, kept open", Tls, ("/small", 0), 64, Wrk),
        workload("tls64k", "TLS, 64 KiB downloads", Tls, ("/64k.bin", 64 * KIB), 32, Wrk),
        workload("tls1m", "TLS, 1 MiB downloads", Tls, ("/1m.bin", MIB), 16, Wrk),
        workload("tlsup", "TLS, 1 MiB uploads", Tls, ("/up", MIB), 8, WrkUpload),
        workload("full", "TLS, a full handshake per request", Tls, ("/small", 0), 32, FullHandshakes),
        workload("resume", "TLS, a resumed handshake per request", Tls, ("/small", 0), 32, ResumedHandshakes),
    ]
};

const fn workload(
    name: &'static str,
    what: &'static str,
    listener: Listener,
    (path, bytes): (&'static str, u64),
    connections: u32,
    generator: Generator,
) -> Workload {
    Workload { name, what, listener, path, connections, generator, bytes }
}

impl Workload {
    pub fn named(name: &str) -> Result<&'static Self, String> {
        WORKLOADS.iter().find(|workload| workload.name == name).ok_or_else(|| {
            let names: Vec<_> = WORKLOADS.iter().map(|workload| workload.name).collect();
            format!("there are {}", names.join(", "))
        })
    }

    pub fn unit(&self) -> &'static str {
        if self.bytes == 0 { "µs" } else { "s/GiB" }
    }

    /// CPU seconds for so many requests, in [`Self::unit`].
    pub fn cost(&self, seconds: f64, requests: u64) -> f64 {
        let units = if self.bytes == 0 { 1e6 } else { (1_u64 << 30) as f64 / self.bytes as f64 };
        seconds / requests as f64 * units
    }
}
