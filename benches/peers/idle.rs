//! Memory of a connection that waits: resident memory at 500 and at 3,500 connections, each after one exchange.

use std::{
    io::{Read, Write},
    net::TcpStream,
    sync::Arc,
    thread,
    time::Duration,
};

use anyhow::{Context, Result, ensure};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use rustls::{ClientConfig, ClientConnection, StreamOwned, pki_types::ServerName};

use crate::{handshakes, progress::Progress, proxy::Proxy, stage::Stage, workload::Listener};

const FEW: usize = 500;
const MANY: usize = 3500;

/// KiB per connection.
#[derive(Debug)]
pub struct Memory {
    pub listener: Listener,
    pub figures: Vec<(Proxy, f64)>,
}

impl Memory {
    pub fn name(&self) -> &'static str {
        match self.listener {
            Listener::Plain => "idle plain",
            Listener::Tls => "idle TLS",
        }
    }

    pub fn best_peer(&self) -> Option<(Proxy, f64)> {
        let peers = self.figures.iter().filter(|(proxy, _)| *proxy != Proxy::Sluicegate);
        peers.copied().min_by(|(_, a), (_, b)| a.total_cmp(b))
    }

    pub fn of(&self, proxy: Proxy) -> Option<f64> {
        self.figures.iter().find(|(other, _)| *other == proxy).map(|(_, kib)| *kib)
    }

    pub fn ratio(&self) -> Option<f64> {
        Some(self.of(Proxy::Sluicegate)? / self.best_peer()?.1)
    }
}

pub fn measure(stage: &Stage) -> Result<Vec<Memory>> {
    raise_limit()?;
    let client = handshakes::client(false)?;
    let mut progress = Progress::new(2 * u32::try_from(Proxy::ALL.len())?);
    let mut all = Vec::new();
    for listener in [Listener::Plain, Listener::Tls] {
        let mut memory = Memory { listener, figures: Vec::new() };
        for proxy in Proxy::ALL {
            progress.begin(&format!("{} {}", memory.name(), proxy.name()));
            let kib = of_one(stage, proxy, listener, &client)?;
            progress.clear();
            println!("{:10} {:15} {kib:7.2} KiB per connection", memory.name(), proxy.name());
            memory.figures.push((proxy, kib));
        }
        all.push(memory);
    }
    Ok(all)
}

fn of_one(stage: &Stage, proxy: Proxy, listener: Listener, client: &Arc<ClientConfig>) -> Result<f64> {
    let mut running = stage.start(proxy)?;
    let port = running.port(listener);
    let mut held = Vec::new();
    let mut grow = |count| -> Result<u64> {
        while held.len() < count {
            let mut stream = connect(port, listener, client)?;
            ask(stream.as_mut()).with_context(|| format!("{}, connection {}", proxy.name(), held.len() + 1))?;
            held.push(stream);
        }
        thread::sleep(Duration::from_secs(2));
        running.server.memory()
    };
    let few = grow(FEW)?;
    let many = grow(MANY)?;
    // A proxy that closes what is idle would look good.
    for stream in &mut held {
        ask(stream.as_mut()).with_context(|| format!("{} did not keep its connections", proxy.name()))?;
    }
    Ok((many as f64 - few as f64) / (MANY - FEW) as f64)
}

trait Stream: Read + Write {}
impl<T: Read + Write> Stream for T {}

fn connect(port: u16, listener: Listener, client: &Arc<ClientConfig>) -> Result<Box<dyn Stream>> {
    let tcp = TcpStream::connect(("127.0.0.1", port))?;
    tcp.set_read_timeout(Some(Duration::from_secs(5)))?;
    if listener == Listener::Plain {
        return Ok(Box::new(tcp));
    }
    let tls = ClientConnection::new(Arc::clone(client), ServerName::try_from("foobar.com")?)?;
    Ok(Box::new(StreamOwned::new(tls, tcp)))
}

/// One request and the whole answer.
fn ask(stream: &mut dyn Stream) -> Result<()> {
    stream.write_all(b"GET /small HTTP/1.1\r\nHost: foobar.com\r\n\r\n")?;
    let (mut reply, mut part) = (Vec::new(), [0; 4096]);
    while !reply.ends_with(b"hello from backend\n") {
        let count = stream.read(&mut part)?;
        ensure!(count > 0, "closed");
        reply.extend_from_slice(part.get(..count).unwrap_or_default());
    }
    ensure!(reply.starts_with(b"HTTP/1.1 200"), "a wrong answer");
    Ok(())
}

/// This process holds the client's end of every connection.
fn raise_limit() -> Result<()> {
    let limit = getrlimit(Resource::Nofile);
    let enough = limit.maximum.is_none_or(|maximum| maximum > 4 * MANY as u64);
    ensure!(enough, "{} descriptors are needed for the memory of idle connections: ulimit -Hn", 4 * MANY);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, maximum: limit.maximum })?;
    Ok(())
}
