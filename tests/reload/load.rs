//! S4, S7, L1: reloads while clients come and stay. Nobody loses anything, and nothing piles up.

use std::{
    fs,
    io::{Read, Write},
    net::{SocketAddr, TcpStream},
    os::unix::net::UnixStream,
    path::PathBuf,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    thread::{self, JoinHandle},
    time::{Duration, Instant},
};

use super::{path, reloads, start, times};
use crate::support::{
    Backend, Gate, WebServer,
    backend::{answer_id, transfer_header},
    client,
    gate::{https, pool, tcp},
    load::{Load, Visit, faults},
    tags::Tag,
};

/// A reload that is applied, without the time that a program takes to start.
#[track_caller]
fn reload(gate: &Gate) {
    let mut stream = UnixStream::connect(gate.directory.path().join("admin.sock")).unwrap();
    let request =
        "POST /reload HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: 2\r\n\r\n{}";
    stream.write_all(request.as_bytes()).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert!(answer.contains("\"result\":\"applied\""), "{answer}");
}

/// A connection that sends tagged bytes all the time, and gets others.
#[derive(Debug)]
struct Long {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<u64, String>>,
}

impl Long {
    fn start(stream: impl Read + Write + Send + 'static, id: u64) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let thread = thread::spawn({
            let stop = Arc::clone(&stop);
            move || talk(stream, id, &stop)
        });
        Self { stop, thread }
    }

    /// How many bytes came, all of them right.
    #[track_caller]
    fn finish(self) -> u64 {
        self.stop.store(true, Ordering::Relaxed);
        self.thread.join().unwrap().unwrap_or_else(|fault| panic!("{fault}"))
    }
}

/// Takes a download piece by piece, slowly enough that it lasts.
fn talk(mut stream: impl Read + Write, id: u64, stop: &AtomicBool) -> Result<u64, String> {
    stream.write_all(&transfer_header(id, 0, u64::MAX >> 1)).map_err(|error| error.to_string())?;
    let (tag, mut received) = (Tag::new(answer_id(id)), 0);
    let mut buffer = vec![0; 16 << 10];
    while !stop.load(Ordering::Relaxed) {
        let count = stream.read(&mut buffer).map_err(|error| format!("after {received} bytes: {error}"))?;
        if count == 0 {
            return Err(format!("ended after {received} bytes"));
        }
        tag.check(received, &buffer[..count])?;
        received += count as u64;
        thread::sleep(Duration::from_millis(20));
    }
    Ok(received)
}

/// The time of a visit that only this share of them exceeds.
fn percentile(visits: &[Visit], share: f64) -> Duration {
    let mut all: Vec<_> = visits.iter().map(|visit| visit.took).collect();
    all.sort();
    all.get((all.len() as f64 * share) as usize).or(all.last()).copied().unwrap_or_default()
}

#[test]
fn s4_s7_reloads_under_load_lose_nobody() {
    let Some(web) = WebServer::start() else { return };
    let tagged = Backend::tagged();
    let rest = format!(
        "[listener.long]\nbind = \"127.0.0.1:0\"\npool = \"long\"\n{}",
        https("").replace("\"web\"", "\"long\"")
    );
    let long_pool = format!("[pool.long]\nbackends = [\"{}\"]\n", tagged.address);
    let gate = start(&[&tcp(""), &rest, &pool("", &[web.address]), &long_pool, "[log]\naccess = \"off\"\n"].concat());
    let text = fs::read_to_string(path(&gate)).unwrap();
    let plain = (1..=10).map(|id| Long::start(client::connect(gate.address("long")), id));
    let sealed = (11..=20).map(|id| Long::start(client::connect_tls(gate.address("https")), id));
    let long: Vec<_> = plain.chain(sealed).collect();

    let rate = if crate::health::full() { 500 } else { 200 };
    let load = Load::start(gate.address("tcp"), rate, 8);
    let seconds = Duration::from_secs(times(3, 20) as u64);
    thread::sleep(seconds);
    let control = load.count();
    let rounds = times(40, 100);
    let begin = Instant::now();
    for round in 0..rounds {
        let next = text.replace("[pool.web]\n", &format!("[pool.web]\nretries = {}\n", round % 3))
            + &format!(
                "[timeouts]\nidle = \"{}s\"\n[listener.x{round}]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n",
                60 + round
            );
        fs::write(path(&gate), next).unwrap();
        reload(&gate);
        thread::sleep((seconds * round as u32 / rounds as u32).saturating_sub(begin.elapsed()));
    }
    let (took, snapshots) = (begin.elapsed(), gate.metrics().count("sluicegate_config_snapshots", &[]));
    fs::write(path(&gate), text).unwrap();
    reload(&gate);
    let visits = load.finish();
    let bytes: u64 = long.into_iter().map(Long::finish).sum();
    let failed = faults(&visits);
    println!(
        "{rounds} reloads in {took:?} at {rate}/s: {} connections, {} failed; 20 long connections, {bytes} bytes, all of them right; {snapshots} snapshots",
        visits.len(),
        failed.len(),
    );
    let (quiet, stormy) = visits.split_at(control);
    for share in [0.5, 0.99, 0.999] {
        println!(
            "  p{}: {:?} without reloads, {:?} with",
            share * 100.0,
            percentile(quiet, share),
            percentile(stormy, share)
        );
    }
    assert!(failed.is_empty(), "{:?}", failed.first());
    assert!(bytes > 20 * 1_000_000, "{bytes}");
    assert_eq!(reloads(&gate, "applied"), rounds as u64 + 1);
    gate.finish();
}

/// What a process has at one moment.
#[derive(Debug, Clone, Copy)]
struct Footprint {
    memory: u64,
    descriptors: usize,
    threads: usize,
}

fn footprint(gate: &Gate) -> Footprint {
    let task = PathBuf::from(format!("/proc/{}/task", gate.process.pid()));
    Footprint {
        memory: gate.process.memory(),
        descriptors: gate.process.descriptors(),
        threads: fs::read_dir(task).map_or(0, Iterator::count),
    }
}

/// L1: a thousand configurations one after the other, each with names of its own, while connections of the first live on.
#[test]
fn l1_reloads_leave_nothing_behind() {
    let (a, b) = (Backend::echo(), Backend::echo());
    let rules = "[firewall]\nrules = [{ name = \"list\", deny_file = \"deny.txt\" }]\n";
    let list: Vec<u8> = (0..5_000_u32).flat_map(|n| format!("10.{}.{}.0/24\n", n >> 8, n & 255).into_bytes()).collect();
    let gate = super::plan(&(https("") + &tcp("") + &pool("", &[a.address]) + rules)).file("deny.txt", list).start();
    let text = fs::read_to_string(path(&gate)).unwrap();
    let mut clients: Vec<_> = (0..100).map(|_| client::connect(gate.address("tcp"))).collect();
    for client in &mut clients {
        client::exchange(client, b"first");
    }
    let rounds = times(200, 1_000);
    let begin = Instant::now();
    let mut seen = Vec::new();
    for round in 0..rounds {
        let more = format!(
            "[listener.x{round}]\nbind = \"127.0.0.1:0\"\npool = \"p{round}\"\n[pool.p{round}]\ncheck = \"off\"\nbackends = [\"{}\"]\n",
            b.address
        );
        fs::write(path(&gate), text.clone() + &more).unwrap();
        reload(&gate);
        if round % 10 == 9 {
            visit_with_tls(gate.address("https"));
            for client in &mut clients {
                client::exchange(client, b"once more");
            }
            seen.push(footprint(&gate));
        }
    }
    let took = begin.elapsed();
    let snapshots = gate.metrics().count("sluicegate_config_snapshots", &[]);
    // The first half fills what stays filled.
    let (warm, late) = seen.split_at(seen.len() / 2);
    let most = |of: fn(&Footprint) -> u64, all: &[Footprint]| all.iter().map(of).max().unwrap_or_default();
    let [memory, descriptors, threads] =
        [|f: &Footprint| f.memory, |f: &Footprint| f.descriptors as u64, |f: &Footprint| f.threads as u64]
            .map(|of| (most(of, warm), most(of, late)));
    println!("{rounds} reloads in {took:?}, {:?} each, 100 connections of the first", took / rounds as u32);
    println!(
        "  most in the first half and in the second: memory {memory:?}, descriptors {descriptors:?}, threads {threads:?}; {snapshots} snapshots"
    );
    assert_eq!(snapshots, 2, "the first, and the newest");
    // A list that is read while the one before is still there moves single figures, so the middle ones are compared.
    let [warm, late] = [warm, late].map(|half| {
        let mut figures: Vec<_> = half.iter().map(|footprint| footprint.memory).collect();
        figures.sort_unstable();
        figures[figures.len() / 2]
    });
    // In a short run the heaps of the threads still fill; a list that stayed with each reload would be ten times this.
    let slack = if crate::health::full() { 512 << 10 } else { 1536 << 10 };
    assert!(late <= warm + slack, "memory {warm} then {late}");
    // Threads that read files, and their files, come and go; of a leak there would be one for each reload.
    let grown = |(warm, late): (u64, u64)| late.saturating_sub(warm);
    assert!(grown(descriptors) <= 4 && grown(threads) <= 2, "{descriptors:?} {threads:?}");
    for client in &mut clients {
        client::exchange(client, b"still there");
    }
    drop(clients);
    fs::write(path(&gate), text).unwrap();
    reload(&gate);
    gate.wait_metrics("one snapshot", |m| m.count("sluicegate_config_snapshots", &[]) == 1);
    gate.finish();
}

fn visit_with_tls(address: SocketAddr) {
    let stream = TcpStream::connect(address).unwrap();
    client::exchange(&mut client::connect_tls_over(client::bounded(stream)), b"sealed");
}
