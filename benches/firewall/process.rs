//! S8 in a process that serves: its memory with a million networks, a client while they are swapped, and what they cost
//! each connection.

use std::{
    fs,
    io::{BufRead, BufReader, Read, Write},
    net::{IpAddr, Ipv4Addr, SocketAddr, TcpListener, TcpStream},
    path::Path,
    process::{Child, Command, Stdio},
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
        mpsc::{Receiver, channel},
    },
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use rustix::process::{Pid, Signal, kill_process};
use socket2::{Domain, SockAddr, Socket, Type};
use tempfile::TempDir;

/// Lists that are swapped.
const SWAPS: usize = 20;

/// Connections of one side of a round; A B B A. Short rounds, so that both sides of one see the same machine.
const CONNECTIONS: u32 = 1_000;

const ROUNDS: usize = 60;

const PATIENCE: Duration = Duration::from_mins(1);

/// The binary with one worker, in front of an echo.
struct Gate {
    child: Child,
    messages: Receiver<String>,
    address: SocketAddr,
    directory: TempDir,
}

pub fn measure(list: &str) -> Result<()> {
    let backend = echo()?;
    let (empty, full) = (Gate::start("# nothing\n", backend)?, Gate::start(list, backend)?);
    let (without, with) = (empty.memory("VmRSS")?, full.memory("VmRSS")?);
    let lines = list.lines().count();
    let each = with.saturating_sub(without) as f64 / lines as f64;
    println!(
        "S8: resident {:.1} MiB with an empty list, {:.1} MiB with {lines} networks ({each:.1} B each); peak of the start {:.1} MiB",
        mib(without),
        mib(with),
        mib(full.memory("VmHWM")?)
    );
    blip(&full, list)?;
    let steady = full.memory("VmRSS")?;
    println!("S8: after {SWAPS} swaps resident {:.1} MiB, peak {:.1} MiB", mib(steady), mib(full.memory("VmHWM")?));
    processor_time(&empty, &full)
}

/// One client that exchanges messages without a pause, while lists are swapped and while nothing happens.
fn blip(gate: &Gate, list: &str) -> Result<()> {
    let exchanges = Exchanges::start(gate.address)?;
    let began = Instant::now();
    let (mut slowest, mut resident) = (Duration::ZERO, Vec::new());
    for swap in 0..SWAPS {
        let begun = Instant::now();
        // Another list each time: one that says the same is not swapped.
        gate.write_list(&format!("{list}203.0.113.{swap}\n"))?;
        gate.hang_up()?;
        gate.wait("configuration reloaded")?;
        slowest = slowest.max(begun.elapsed());
        resident.push(format!("{:.0}", mib(gate.memory("VmRSS")?)));
    }
    let took = began.elapsed();
    let during = exchanges.end()?;
    let exchanges = Exchanges::start(gate.address)?;
    thread::sleep(took);
    let control = exchanges.end()?;
    println!(
        "S8: {SWAPS} lists of a million swapped in {took:.1?}, the slowest in {slowest:.1?}, files written included"
    );
    for (what, times) in [("during swaps", &during), ("without", &control)] {
        let [p50, p999] = [500, 999].map(|part| times.get(times.len() * part / 1_000).copied().unwrap_or_default());
        let longest = times.last().copied().unwrap_or_default();
        println!("S8: {} exchanges {what}: p50 {p50:.1?}, p99.9 {p999:.1?}, longest {longest:.1?}", times.len());
    }
    let [with, without] =
        [&during, &control].map(|times| times.get(times.len() * 999 / 1_000).copied().unwrap_or_default());
    println!(
        "S8: blip of a reload (p99.9 beside that of the control): {:.1?} (at most 5 ms)",
        with.saturating_sub(without)
    );
    Ok(())
}

/// Processor time for each short connection, with the list and without, in turns: the median of what each round says.
fn processor_time(empty: &Gate, full: &Gate) -> Result<()> {
    let (mut without, mut with, mut ratios) = (Vec::new(), Vec::new(), Vec::new());
    for round in 0..ROUNDS {
        let (mut one, mut other) = (0.0, 0.0);
        for is_full in if round % 2 == 0 { [false, true] } else { [true, false] } {
            let (gate, each) = if is_full { (full, &mut other) } else { (empty, &mut one) };
            let before = gate.processor_time()?;
            for number in 0..CONNECTIONS {
                visit(gate.address, number.wrapping_mul(0x9e37_79b9) ^ u32::try_from(round)?)?;
            }
            let spent = gate.processor_time()?.saturating_sub(before) / CONNECTIONS;
            *each = spent.as_secs_f64() * 1e6;
        }
        without.push(one);
        with.push(other);
        ratios.push((other / one - 1.0) * 100.0);
    }
    let [without, with, more] = [without, with, ratios].map(quartiles);
    println!(
        "S8: processor time for a connection, {ROUNDS} rounds of {CONNECTIONS} each in turns, median (quartiles):"
    );
    println!("S8:   empty list {:.2} us ({:.2} to {:.2})", without[1], without[0], without[2]);
    println!("S8:   a million  {:.2} us ({:.2} to {:.2})", with[1], with[0], with[2]);
    println!("S8:   more {:+.1} % ({:+.1} to {:+.1}; at most 2 %)", more[1], more[0], more[2]);
    Ok(())
}

fn quartiles(mut numbers: Vec<f64>) -> [f64; 3] {
    numbers.sort_unstable_by(f64::total_cmp);
    [1, 2, 3].map(|part| numbers.get(numbers.len() * part / 4).copied().unwrap_or_default())
}

impl Gate {
    fn start(list: &str, port: u16) -> Result<Self> {
        // Several addresses, so that their connections do not run out of ports.
        let backends: Vec<_> = (1..=8).map(|number| format!("\"127.1.0.{number}:{port}\"")).collect();
        let backends = backends.join(", ");
        let directory = TempDir::new()?;
        let config = format!(
            "[global]\nworkers = 1\nwatch = false\n[admin]\nbind = \"127.0.0.1:0\"\n[log]\naccess = \"off\"\n\
             [firewall]\nrules = [{{ name = \"bad\", deny_file = \"deny.txt\" }}]\n\
             [listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n\
             [pool.web]\nbackends = [{backends}]\ncheck = \"off\"\n"
        );
        fs::write(directory.path().join("deny.txt"), list)?;
        fs::write(directory.path().join("sluicegate.toml"), config)?;
        let mut child = Command::new(env!("CARGO_BIN_EXE_sluicegate"))
            .args(["run", "--config", "sluicegate.toml"])
            .current_dir(directory.path())
            .stdout(Stdio::null())
            .stderr(Stdio::piped())
            .spawn()?;
        let (sender, messages) = channel();
        let stderr = BufReader::new(child.stderr.take().context("its messages")?);
        thread::spawn(move || stderr.lines().map_while(Result::ok).try_for_each(|line| sender.send(line).ok()));
        let mut gate = Self { child, messages, address: SocketAddr::from(([127, 0, 0, 1], 0)), directory };
        let line = gate.wait("\"listener\":\"tcp\"")?;
        let address =
            line.split("\"address\":\"").nth(1).and_then(|rest| rest.split('"').next()).context("an address")?;
        gate.address = address.parse()?;
        gate.wait("\"ready\"")?;
        Ok(gate)
    }

    /// Beside the one that is there, then over it.
    fn write_list(&self, list: &str) -> Result<()> {
        let (path, next) = (self.directory.path().join("deny.txt"), self.directory.path().join("deny.new"));
        fs::write(&next, list)?;
        Ok(fs::rename(next, path)?)
    }

    fn hang_up(&self) -> Result<()> {
        Ok(kill_process(Pid::from_child(&self.child), Signal::HUP)?)
    }

    fn wait(&self, text: &str) -> Result<String> {
        let end = Instant::now() + PATIENCE;
        loop {
            let left = end.saturating_duration_since(Instant::now());
            let line = self.messages.recv_timeout(left).with_context(|| format!("no message with {text}"))?;
            if line.contains(text) {
                return Ok(line);
            }
        }
    }

    /// Bytes.
    fn memory(&self, key: &str) -> Result<u64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.child.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix(key)).context("a line of the kernel's")?;
        let number: u64 = line.trim_matches([':', '\t', ' ']).trim_end_matches(" kB").parse()?;
        Ok(number * 1024)
    }

    /// Of all its threads.
    fn processor_time(&self) -> Result<Duration> {
        let mut nanos = 0;
        for task in fs::read_dir(format!("/proc/{}/task", self.child.id()))? {
            let schedule = fs::read_to_string(Path::new(&task?.path()).join("schedstat"))?;
            nanos += schedule.split(' ').next().context("a number of the kernel's")?.parse::<u64>()?;
        }
        Ok(Duration::from_nanos(nanos))
    }
}

impl Drop for Gate {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// A client that exchanges messages until it is told to end.
struct Exchanges {
    is_over: Arc<AtomicBool>,
    thread: thread::JoinHandle<std::io::Result<Vec<Duration>>>,
}

impl Exchanges {
    fn start(address: SocketAddr) -> Result<Self> {
        let mut stream = TcpStream::connect(address)?;
        stream.set_nodelay(true)?;
        let is_over = Arc::new(AtomicBool::new(false));
        let told = Arc::clone(&is_over);
        let thread = thread::spawn(move || {
            let (mut times, mut message) = (Vec::new(), [b'm'; 64]);
            while !told.load(Ordering::Relaxed) {
                let began = Instant::now();
                stream.write_all(&message)?;
                stream.read_exact(&mut message)?;
                times.push(began.elapsed());
            }
            times.sort_unstable();
            Ok(times)
        });
        Ok(Self { is_over, thread })
    }

    fn end(self) -> Result<Vec<Duration>> {
        self.is_over.store(true, Ordering::Relaxed);
        let times = self.thread.join().map_err(|_| anyhow::anyhow!("a client that panicked"))??;
        ensure!(!times.is_empty(), "no exchange");
        Ok(times)
    }
}

/// One exchange from some address of this host.
fn visit(address: SocketAddr, number: u32) -> Result<()> {
    let source = IpAddr::V4(Ipv4Addr::from_bits(0x7f00_0001 | number & 0x007f_fffe));
    let socket = Socket::new(Domain::IPV4, Type::STREAM, None)?;
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0)))?;
    socket.connect(&SockAddr::from(address))?;
    let mut stream = TcpStream::from(socket);
    stream.write_all(b"hello")?;
    stream.read_exact(&mut [0; 5])?;
    Ok(())
}

/// At every address of this host; the port.
fn echo() -> Result<u16> {
    let listener = TcpListener::bind("0.0.0.0:0")?;
    let port = listener.local_addr()?.port();
    thread::spawn(move || {
        for mut stream in listener.incoming().map_while(Result::ok) {
            thread::spawn(move || {
                let _ = stream.set_nodelay(true);
                let mut buffer = [0; 256];
                while let Ok(length @ 1..) = stream.read(&mut buffer) {
                    let echoed = buffer.get(..length).map(|bytes| stream.write_all(bytes));
                    if !matches!(echoed, Some(Ok(()))) {
                        break;
                    }
                }
            });
        }
    });
    Ok(port)
}

fn mib(bytes: u64) -> f64 {
    bytes as f64 / f64::from(1 << 20)
}
