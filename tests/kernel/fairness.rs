//! R12, A7: every connection gets its share of a worker, and every worker its share of the connections.

use std::{
    collections::HashSet,
    fs,
    io::{ErrorKind, Read, Write},
    net::{Ipv4Addr, Shutdown, TcpStream},
    sync::atomic::{AtomicBool, AtomicU64, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::turn;
use crate::support::{
    Backend, Gate, Process, SOON, Stand, Variant, client,
    gate::{pool, tcp},
    raise_descriptor_limit, wait_until,
};

/// Echo exchanges on every connection for this long; their 99th percentile.
fn p99(clients: &mut [TcpStream], time: Duration) -> Duration {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let send = |client: &mut TcpStream| {
            client.write_all(b"ping").unwrap();
            Instant::now()
        };
        let sent: Vec<_> = clients.iter_mut().map(send).collect();
        for (client, sent) in clients.iter_mut().zip(sent) {
            client.read_exact(&mut [0; 4]).unwrap();
            taken.push(sent.elapsed());
        }
    }
    taken.sort();
    taken[taken.len() * 99 / 100]
}

fn echo(mut stream: TcpStream) {
    let mut buffer = [0; 4];
    while stream.read_exact(&mut buffer).is_ok() && stream.write_all(&buffer).is_ok() {}
}

/// A stream as fast as it goes, until it is told to stop.
fn bulk(mut from: TcpStream, mut to: TcpStream, stop: &AtomicBool, moved: &AtomicU64) {
    thread::scope(|scope| {
        scope.spawn(move || {
            let block = vec![0xab; 256 << 10];
            while !stop.load(Ordering::SeqCst) && from.write_all(&block).is_ok() {}
            from.shutdown(Shutdown::Write).unwrap();
        });
        let mut buffer = vec![0; 256 << 10];
        while let Ok(count @ 1..) = to.read(&mut buffer) {
            moved.fetch_add(count as u64, Ordering::SeqCst);
        }
    });
}

/// What the gate works while nothing happens.
fn work_in_silence(gate: &Gate, silent: &mut TcpStream, time: Duration) -> Duration {
    let before = gate.process.processor_time();
    silent.set_read_timeout(Some(time)).unwrap();
    let silence = silent.read(&mut [0]).map_err(|error| error.kind());
    assert!(matches!(silence, Err(ErrorKind::WouldBlock)), "{silence:?}");
    gate.process.processor_time().saturating_sub(before)
}

/// On one worker: fifty echo connections, alone and beside a stream that never waits.
fn a_stream_beside_fifty_echoes(variant: Variant) {
    const TIME: Duration = Duration::from_secs(1);
    const SILENCE: Duration = Duration::from_millis(400);
    /// What a busy machine of two cores may add, where a loop that is not fair adds the whole stream.
    const SLACK: Duration = Duration::from_millis(150);
    let _turn = turn();
    let stand = Stand::start(Variant { workers: 1, ..variant });
    let (stop, moved) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        let mut clients = Vec::new();
        for _ in 0..50 {
            let (client, backend) = stand.join_plain();
            clients.push(client);
            scope.spawn(move || echo(backend));
        }
        let alone = p99(&mut clients, TIME);
        let (to, from) = stand.join_plain();
        let stream = scope.spawn(|| bulk(from, to, &stop, &moved));
        wait_until(SOON, "a stream", || moved.load(Ordering::SeqCst) > 4 << 20);
        let before = moved.load(Ordering::SeqCst);
        let beside = p99(&mut clients, TIME);
        let rate = (moved.load(Ordering::SeqCst) - before) / 1_000_000;
        stop.store(true, Ordering::SeqCst);
        stream.join().unwrap();
        let worked = work_in_silence(&stand.gate, &mut clients[0], SILENCE);
        println!(
            "{variant:?}: echo p99 {alone:?} alone, {beside:?} beside a stream of {rate} MB/s; then {worked:?} of work"
        );
        assert!(rate > 10, "the stream moves as well: {rate} MB/s");
        assert!(beside <= alone * 10 + SLACK, "{alone:?} alone, {beside:?} beside the stream");
        assert!(worked <= Duration::from_millis(60), "{worked:?} of work in {SILENCE:?} of silence");
    });
    stand.gate.finish();
}

#[test]
fn r12_a_stream_leaves_the_others_their_share() {
    a_stream_beside_fifty_echoes(Variant::SPLICE);
}

#[test]
fn r12_a_stream_by_copy_leaves_the_others_their_share() {
    a_stream_beside_fifty_echoes(Variant::COPY);
}

/// Sockets of each runtime: it has an epoll instance, and the kernel lists what is registered there.
fn registered(process: &Process) -> Vec<usize> {
    // Several descriptors of one instance show the same list.
    let mut lists = HashSet::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap() {
        let path = entry.unwrap().path();
        if fs::read_link(&path).is_ok_and(|target| target.to_string_lossy() == "anon_inode:[eventpoll]") {
            let number = path.file_name().unwrap().to_string_lossy().into_owned();
            let info = fs::read_to_string(format!("/proc/{}/fdinfo/{number}", process.pid())).unwrap();
            let sockets: Vec<_> = info.lines().filter(|line| line.starts_with("tfd:")).map(str::to_owned).collect();
            lists.insert(sockets);
        }
    }
    let mut counts: Vec<_> = lists.iter().map(Vec::len).collect();
    counts.sort_unstable();
    counts
}

#[test]
fn a7_connections_spread_over_the_workers() {
    const SOURCES: usize = 100;
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::echo();
    let toml = [tcp(""), pool("", &[backend.address])].concat();
    let gate = Gate::plan(&toml).variant(Variant::AUTO).start();
    let mut clients = Vec::new();
    let mut fullest = 0.0;
    for total in [20, 100, 300, 1000] {
        clients.extend((clients.len()..total).map(|number| {
            let source = Ipv4Addr::new(127, 0, 1, (number % SOURCES) as u8 + 1);
            let mut client = client::connect_from(source.into(), gate.address("tcp"));
            client::exchange(&mut client, b"hello");
            client
        }));
        // A client and a backend each; the rest is a handful. The control runtime has none and is not counted.
        let counts: Vec<_> = registered(&gate.process).iter().map(|n| n / 2).rev().take(2).collect();
        fullest = counts[0] as f64 * 2.0 / counts.iter().sum::<usize>() as f64;
        println!("{total} connections from {SOURCES} addresses: {counts:?}, the fullest has {fullest:.2} of the mean");
    }
    assert!(fullest <= 1.3, "the fullest worker has {fullest:.2} of the mean");
    drop(clients);
    gate.finish();
}
