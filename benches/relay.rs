//! The relay over loopback: bytes per CPU second of the product for copy, splice and TLS in both directions, and CPU
//! time of a small exchange. Every byte is compared with what was sent. `cargo bench --bench relay`
//!
//! The built binary relays with one worker; clients and backend are threads here and do not count.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{SocketAddr, TcpListener, TcpStream},
    process::{Child, Command, Stdio},
    sync::Arc,
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rcgen::{CertificateParams, KeyPair};
use rustls::{ClientConfig, ClientConnection, RootCertStore, StreamOwned, crypto::aws_lc_rs, pki_types::ServerName};
use tempfile::TempDir;

const CONNECTIONS: u64 = 4;
/// Of each connection.
const BULK: u64 = 256 << 20;
const EXCHANGES: u64 = 20_000;
const MESSAGE: usize = 64;
/// One round after another; the medians are shown.
const ROUNDS: u64 = 3;

fn main() -> Result<()> {
    let pattern = Arc::new(Pattern::new());
    let backend = serve(Arc::clone(&pattern))?;
    println!("{:>8} {:>10} {:>15} {:>15} {:>18}", "relay", "", "per CPU second", "per second", "CPU per exchange");
    for (name, zero_copy, tls) in
        [("copy", "off", false), ("splice", "splice", false), ("auto", "auto", false), ("TLS", "auto", true)]
    {
        let gate = Gate::start(zero_copy, tls, backend)?;
        for (task, direction) in [(Task::Upload, "upload"), (Task::Download, "download"), (Task::Exchange, "exchange")]
        {
            let mut rounds = (0..ROUNDS).map(|round| gate.load(task, round, &pattern)).collect::<Result<Vec<_>>>()?;
            rounds.sort_by_key(|(spent, _)| *spent);
            let (spent, took) = rounds.get(rounds.len() / 2).copied().context("no round")?;
            let (bytes, exchanges) = ((CONNECTIONS * BULK) as f64, (CONNECTIONS * EXCHANGES) as f64);
            let (rate, speed, each) = match task {
                Task::Exchange => {
                    let each = format!("{:.2} µs", spent.as_secs_f64() * 1e6 / exchanges);
                    let per_second = |time: Duration| format!("{:.0}", exchanges / time.as_secs_f64());
                    (per_second(spent), per_second(took), each)
                }
                Task::Upload | Task::Download => {
                    let per_second =
                        |time: Duration| format!("{:.2} GiB", bytes / time.as_secs_f64() / 1_073_741_824.0);
                    (per_second(spent), per_second(took), String::new())
                }
            };
            println!("{name:>8} {direction:>10} {rate:>15} {speed:>15} {each:>18}");
        }
    }
    Ok(())
}

/// What a connection does. Its first byte says it to the backend, eight more are the id.
#[derive(Debug, Clone, Copy)]
enum Task {
    Upload,
    Download,
    Exchange,
}

impl Task {
    fn of(byte: u8) -> Result<Self> {
        [Self::Upload, Self::Download, Self::Exchange].into_iter().nth(byte.into()).context("no task")
    }
}

/// The product with one worker, in front of the backend.
#[derive(Debug)]
struct Gate {
    child: Child,
    address: SocketAddr,
    client: Option<Arc<ClientConfig>>,
    _directory: TempDir,
}

impl Gate {
    fn start(zero_copy: &str, tls: bool, backend: SocketAddr) -> Result<Self> {
        let directory = TempDir::new()?;
        let mut text = format!(
            "[global]\nworkers = 1\nzero_copy = \"{zero_copy}\"\n[admin]\nbind = \"127.0.0.1:0\"\n\
             [log]\naccess = \"off\"\nformat = \"json\"\n[pool.web]\nbackends = [\"{backend}\"]\n\
             [listener.front]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n"
        );
        let mut client = None;
        if tls {
            let key = KeyPair::generate()?;
            let certificate = CertificateParams::new(vec!["foobar.com".to_owned()])?.self_signed(&key)?;
            fs::write(directory.path().join("cert.pem"), certificate.pem())?;
            fs::write(directory.path().join("key.pem"), key.serialize_pem())?;
            text += "tls = { cert = \"cert.pem\", key = \"key.pem\" }\n";
            let mut roots = RootCertStore::empty();
            roots.add(certificate.der().clone())?;
            let config = ClientConfig::builder_with_provider(Arc::new(aws_lc_rs::default_provider()))
                .with_safe_default_protocol_versions()?
                .with_root_certificates(roots);
            client = Some(Arc::new(config.with_no_client_auth()));
        }
        fs::write(directory.path().join("gate.toml"), text)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "--config", "gate.toml"])
            .current_dir(directory.path())
            .env_remove("RUST_LOG")
            .stdin(Stdio::null())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let stderr = child.stderr.take().context("no stderr")?;
        let mut gate = Self { child, address: backend, client, _directory: directory };
        gate.address = address(stderr)?;
        Ok(gate)
    }

    /// CPU time and time of one task on every connection at the same time.
    fn load(&self, task: Task, round: u64, pattern: &Pattern) -> Result<(Duration, Duration)> {
        let (before, began) = (self.cpu()?, Instant::now());
        thread::scope(|scope| {
            let ids = (0..CONNECTIONS).map(|index| round * CONNECTIONS + index + 1);
            let clients: Vec<_> = ids.map(|id| scope.spawn(move || self.client(task, id, pattern))).collect();
            clients.into_iter().try_for_each(|client| client.join().unwrap_or_else(|_| bail!("a client panicked")))
        })?;
        Ok((self.cpu()?.saturating_sub(before), began.elapsed()))
    }

    fn client(&self, task: Task, id: u64, pattern: &Pattern) -> Result<()> {
        let tcp = TcpStream::connect(self.address)?;
        tcp.set_nodelay(true)?;
        let Some(client) = &self.client else { return converse(tcp, task, id, pattern) };
        let tls = ClientConnection::new(Arc::clone(client), ServerName::try_from("foobar.com")?)?;
        converse(StreamOwned::new(tls, tcp), task, id, pattern)
    }

    /// Of all threads of the product.
    fn cpu(&self) -> Result<Duration> {
        let mut total = 0;
        for thread in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let text = fs::read_to_string(thread?.path().join("schedstat"))?;
            total += text.split_whitespace().next().unwrap_or_default().parse::<u64>()?;
        }
        Ok(Duration::from_nanos(total))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Where it listens, in its own words; the rest of them is read away.
fn address(stderr: impl Read + Send + 'static) -> Result<SocketAddr> {
    let (mut lines, mut found) = (BufReader::new(stderr).lines(), None);
    for line in lines.by_ref() {
        let line = line?;
        let message: serde_json::Value = serde_json::from_str(&line).with_context(|| line.clone())?;
        let word = |key: &str| message.get(key).and_then(serde_json::Value::as_str).unwrap_or_default();
        if word("listener") == "front" {
            found = Some(word("address").parse()?);
        }
        if word("message") == "ready" {
            break;
        }
    }
    thread::spawn(move || lines.map_while(Result::ok).for_each(drop));
    found.context("sluicegate did not start")
}

/// The client's part.
fn converse(mut stream: impl Read + Write, task: Task, id: u64, pattern: &Pattern) -> Result<()> {
    let mut header = vec![task as u8];
    header.extend(id.to_be_bytes());
    stream.write_all(&header)?;
    match task {
        Task::Upload => {
            pattern.send(&mut stream, id)?;
            let mut answer = [0; 8];
            stream.read_exact(&mut answer)?;
            ensure!(answer == id.to_be_bytes(), "the backend has read something else");
        }
        Task::Download => pattern.receive(&mut stream, id)?,
        Task::Exchange => {
            let mut answer = [0; MESSAGE];
            for number in 0..EXCHANGES {
                let message = pattern.at(id, number, MESSAGE);
                stream.write_all(message)?;
                stream.read_exact(&mut answer)?;
                ensure!(answer == message, "another answer");
            }
        }
    }
    Ok(())
}

/// The backend's part, for as long as this program runs. A connection that fails is closed, which its client sees.
fn serve(pattern: Arc<Pattern>) -> Result<SocketAddr> {
    let listener = TcpListener::bind("127.0.0.1:0")?;
    let address = listener.local_addr()?;
    thread::spawn(move || {
        for stream in listener.incoming().map_while(Result::ok) {
            let pattern = Arc::clone(&pattern);
            thread::spawn(move || answer(stream, &pattern));
        }
    });
    Ok(address)
}

fn answer(mut stream: TcpStream, pattern: &Pattern) -> Result<()> {
    stream.set_nodelay(true)?;
    let (mut task, mut id) = ([0], [0; 8]);
    stream.read_exact(&mut task)?;
    stream.read_exact(&mut id)?;
    match Task::of(task[0])? {
        Task::Upload => {
            pattern.receive(&mut stream, u64::from_be_bytes(id))?;
            stream.write_all(&id)?;
        }
        Task::Download => pattern.send(&mut stream, u64::from_be_bytes(id))?,
        Task::Exchange => {
            let mut message = [0; MESSAGE];
            while stream.read_exact(&mut message).is_ok() {
                stream.write_all(&message)?;
            }
        }
    }
    Ok(())
}

/// Content that says to whom it belongs: noise that repeats after a prime number of bytes, begun elsewhere for each
/// connection, so that a byte that is lost, doubled or foreign moves all that follow.
#[derive(Debug)]
struct Pattern(Vec<u8>);

impl Pattern {
    const PERIOD: u64 = 1_048_583;
    const CHUNK: usize = 128 << 10;

    fn new() -> Self {
        let mut state = 0x9e37_79b9_7f4a_7c15_u64;
        let noise = std::iter::repeat_with(|| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state.to_be_bytes()
        });
        let noise: Vec<u8> = noise.flatten().take(1_048_583).collect();
        let more: Vec<u8> = noise.iter().copied().take(Self::CHUNK).collect();
        Self([noise, more].concat())
    }

    /// What belongs at an offset, at most [`Self::CHUNK`] bytes of it.
    fn at(&self, id: u64, offset: u64, length: usize) -> &[u8] {
        let start = (id * 104_729 + offset) % Self::PERIOD;
        let start = usize::try_from(start).unwrap_or_default();
        self.0.get(start..start + length).unwrap_or_default()
    }

    fn send(&self, stream: &mut impl Write, id: u64) -> Result<()> {
        for offset in (0..BULK).step_by(Self::CHUNK) {
            stream.write_all(self.at(id, offset, Self::CHUNK))?;
        }
        Ok(())
    }

    fn receive(&self, stream: &mut impl Read, id: u64) -> Result<()> {
        let (mut buffer, mut offset) = (vec![0; Self::CHUNK], 0);
        while offset < BULK {
            let count = stream.read(&mut buffer)?;
            ensure!(count > 0, "connection {id} ended after {offset} bytes");
            let expected = self.at(id, offset, count);
            ensure!(buffer.get(..count) == Some(expected), "connection {id}: a foreign byte after {offset}");
            offset += count as u64;
        }
        ensure!(offset == BULK, "connection {id}: more bytes than were sent");
        Ok(())
    }
}
