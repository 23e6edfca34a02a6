//! O3: whatever is sent to the admin listeners, clients do not notice and the next operator is served.

use std::{
    io::{Read, Write},
    net::TcpStream,
    os::unix::net::UnixStream,
    sync::atomic::{AtomicBool, Ordering},
    thread,
    time::{Duration, Instant},
};

use super::{p99, repeat_for};
use crate::support::{
    Backend, Gate, SOON,
    client::{connect, exchange},
    gate::{pool, tcp},
    metrics::get,
    patient,
    process::BINARY,
    programs, raise_descriptor_limit, turn, wait_until,
};

/// What an operator may wait at most while others misbehave: a header has 5 s.
const PATIENCE: Duration = Duration::from_secs(12);

fn start(backend: &Backend) -> Gate {
    Gate::plan(&(tcp("") + &pool("", &[backend.address]))).admin("socket = \"admin.sock\"").start()
}

fn unix(gate: &Gate) -> UnixStream {
    let stream = UnixStream::connect(gate.directory.path().join("admin.sock")).unwrap();
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
    stream
}

/// What the socket says to these bytes, and how long that took.
fn said(gate: &Gate, bytes: &[u8]) -> (String, Duration) {
    let (mut stream, begin) = (unix(gate), Instant::now());
    // It may be refused while it is sent.
    let _ = stream.write_all(bytes);
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer);
    (String::from_utf8_lossy(&answer).into_owned(), begin.elapsed())
}

fn works(gate: &Gate) {
    let status = programs::shell(&format!("{BINARY} status --socket admin.sock"), gate.directory.path());
    assert!(status.success, "{status:?}");
    assert_eq!(get(gate.address("admin"), "/healthz", &[]).unwrap().status, 200);
}

/// Exchanges on one connection while something is done; their 99th percentile.
fn beside(gate: &Gate, what: impl FnOnce()) -> Duration {
    let stop = AtomicBool::new(false);
    let address = gate.address("tcp");
    thread::scope(|scope| {
        let relay = scope.spawn(|| {
            let (mut stream, mut taken) = (connect(address), Vec::new());
            while !stop.load(Ordering::SeqCst) {
                taken.extend(repeat_for(Duration::from_millis(20), || exchange(&mut stream, b"data")));
            }
            p99(taken)
        });
        what();
        stop.store(true, Ordering::SeqCst);
        relay.join().unwrap()
    })
}

fn posted(length: &str, body: &str) -> Vec<u8> {
    format!(
        "POST /kill HTTP/1.1\r\nHost: localhost\r\nContent-Type: application/json\r\nContent-Length: {length}\r\n\r\n{body}"
    )
    .into_bytes()
}

#[test]
fn o3_wrong_lengths_and_deep_json_end_their_own_connection() {
    let backend = Backend::echo();
    let gate = start(&backend);
    let deep = "[".repeat(100_000);
    let nested = format!("{{\"client\":{}", "{\"a\":".repeat(100_000));
    let long = format!("{{\"client\":\"{}\"}}", "x".repeat(2 << 20));
    let cases: [(Vec<u8>, &str); 11] = [
        (posted("0", ""), "HTTP/1.1 400"),
        (posted("2", "{}"), "HTTP/1.1 400"),
        (posted("5", "{}"), "HTTP/1.1 400"),
        (posted("4294967295", "{}"), "HTTP/1.1 400"),
        (posted("18446744073709551616", "{}"), "HTTP/1.1 400"),
        (posted("-1", "{}"), "HTTP/1.1 400"),
        (posted(&deep.len().to_string(), &deep), "HTTP/1.1 400"),
        (posted(&nested.len().to_string(), &nested), "HTTP/1.1 400"),
        (posted(&long.len().to_string(), &long), "HTTP/1.1 400"),
        (posted("4", "null"), "HTTP/1.1 400"),
        (b"POST /kill HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nTransfer-Encoding: chunked\r\n\r\nFFFFFFFFFFFFFFFF\r\n".to_vec(), "HTTP/1.1 400"),
    ];
    let p99 = beside(&gate, || {
        for (bytes, expected) in &cases {
            let (answer, took) = said(&gate, bytes);
            let shown = String::from_utf8_lossy(&bytes[..bytes.len().min(160)]);
            assert!(answer.starts_with(expected) || answer.is_empty(), "{shown}: {answer}");
            assert!(took < PATIENCE, "{shown}: {took:?}");
        }
    });
    println!("O3: {} wrong requests, p99 of a relay beside them {p99:?}", cases.len());
    works(&gate);
    assert_eq!(gate.metrics().count("sluicegate_panics_total", &[]), 0);
    gate.finish();
}

/// Half of them say nothing, half a byte now and then; both on the socket and over TCP.
#[test]
fn o3_a_thousand_admin_connections_disturb_nobody() {
    const EACH: usize = 500;
    let _turn = turn();
    raise_descriptor_limit();
    let backend = Backend::echo();
    let gate = start(&backend);
    let (before, memory) = (beside(&gate, || thread::sleep(Duration::from_millis(500))), gate.process.memory());
    let spent = gate.process.processor_time();
    let begin = Instant::now();
    let p99 = beside(&gate, || {
        let mut tcp: Vec<_> = (0..EACH).map(|_| TcpStream::connect(gate.address("admin")).unwrap()).collect();
        // The queue of the socket is what the kernel lets it be: who finds it full would have to wait.
        let path = gate.directory.path().join("admin.sock");
        let mut unix: Vec<_> = (0..EACH).map_while(|_| UnixStream::connect(&path).ok()).collect();
        for byte in b"GET /sta" {
            for stream in tcp.iter_mut().skip(EACH / 2) {
                // It may be over.
                let _ = stream.write(&[*byte]);
            }
            for stream in unix.iter_mut().skip(EACH / 2) {
                let _ = stream.write(&[*byte]);
            }
            thread::sleep(Duration::from_millis(100));
        }
        assert!(gate.process.memory().saturating_sub(memory) < 16 << 20);
        drop((tcp, unix));
    });
    let spent = gate.process.processor_time().saturating_sub(spent);
    println!(
        "O3: {} admin connections for {:?}: p99 of a relay {p99:?}, {before:?} without; {spent:?} of processor time",
        2 * EACH,
        begin.elapsed()
    );
    wait_until(SOON, "seats for honest ones", || get(gate.address("admin"), "/healthz", &[]).is_ok());
    works(&gate);
    gate.finish();
}

/// A byte a second has five seconds for the header, like everyone.
#[test]
fn o3_a_byte_a_second_is_over_at_the_deadline() {
    let backend = Backend::echo();
    let gate = start(&backend);
    let (mut stream, begin) = (unix(&gate), Instant::now());
    let mut writer = stream.try_clone().unwrap();
    let ended = AtomicBool::new(false);
    let mut answer = Vec::new();
    thread::scope(|scope| {
        scope.spawn(|| {
            for byte in b"GET /status HTTP/1.1\r\nHost: localhost\r\n" {
                if ended.load(Ordering::SeqCst) || writer.write_all(&[*byte]).is_err() {
                    return;
                }
                thread::sleep(Duration::from_millis(250));
            }
        });
        let _ = stream.read_to_end(&mut answer);
        ended.store(true, Ordering::SeqCst);
    });
    let took = begin.elapsed();
    assert!((Duration::from_secs(4)..patient(PATIENCE)).contains(&took), "{took:?}");
    assert!(!String::from_utf8_lossy(&answer).starts_with("HTTP/1.1 200"));
    works(&gate);
    gate.finish();
}
