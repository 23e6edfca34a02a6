//! R1, R4, R10: what is left in a pipe reaches nobody, a pipe does not outlive its connection, and there are never more
//! or smaller ones than there should be.

use std::{
    collections::HashSet,
    fs::{self, OpenOptions},
    io::{Read, Write},
    net::{Shutdown, TcpStream},
    os::unix::fs::OpenOptionsExt,
    thread,
    time::{Duration, Instant},
};

use rustix::{fs::OFlags, pipe::fcntl_getpipe_size};

use super::{Sender, drain, pipes_in_use, turn};
use crate::support::{
    LATE, Process, SOON, Stand, Variant,
    backend::answer_id,
    client, raise_descriptor_limit,
    tags::{self, End},
    wait_until,
};

/// A tagged exchange that fits into the buffers on the way.
fn exchange(mut client: &TcpStream, mut backend: &TcpStream, id: u64) {
    const LENGTH: u64 = 40_000;
    let hash = tags::send(&mut client, id, LENGTH).unwrap();
    tags::receive(&mut backend, id, LENGTH, None).assert_is(LENGTH, hash, End::Complete);
    let hash = tags::send(&mut backend, answer_id(id), LENGTH).unwrap();
    tags::receive(&mut client, answer_id(id), LENGTH, None).assert_is(LENGTH, hash, End::Complete);
}

/// One end sends to the other, which does not read, until everything on the way is full. True if bytes lie in a pipe:
/// what was read last may also have been a copy.
fn stall(stand: &Stand, source: &TcpStream) -> bool {
    let (mut sender, mut quiet) = (Sender::new(source, u64::MAX), 0);
    wait_until(SOON, "a full path", || {
        quiet = if sender.push() == 0 { quiet + 1 } else { 0 };
        quiet == 20 || pipes_in_use(stand) > 0
    });
    quiet < 20
}

#[test]
fn r1_what_a_stalled_connection_left_in_its_pipe_reaches_nobody() {
    const TIME: Duration = Duration::from_secs(6);
    let _turn = turn();
    let stand = Stand::in_small_segments(Variant::SPLICE);
    let (start, mut rounds, mut piped, mut others) = (Instant::now(), 0, 0, 0);
    while start.elapsed() < TIME {
        let (client, backend) = stand.join_plain();
        let (source, sink) = if rounds % 2 == 0 { (client, backend) } else { (backend, client) };
        piped += usize::from(stall(&stand, &source));
        client::reset(sink);
        for _ in 0..4 {
            let (client, backend) = stand.join_plain();
            exchange(&client, &backend, others);
            others += 1;
        }
        drop(source);
        rounds += 1;
    }
    assert!(piped > rounds / 4, "{piped} of {rounds} rounds left bytes in a pipe");
    println!("{piped} pipes with residue in {rounds} rounds, {others} tagged connections, 0 foreign bytes");
    wait_until(SOON, "no pipe in use", || pipes_in_use(&stand) == 0);
    stand.gate.finish();
}

#[test]
fn r4_a_receiver_that_is_reset_in_mid_splice_leaves_no_pipe() {
    const TIME: Duration = Duration::from_secs(4);
    let _turn = turn();
    let stand = Stand::start(Variant::SPLICE);
    let (start, mut rounds) = (Instant::now(), [0, 0]);
    while start.elapsed() < TIME {
        let direction = (rounds[0] + rounds[1]) % 2;
        let (client, backend) = stand.join_plain();
        let (mut source, mut sink) = if direction == 0 { (client, backend) } else { (backend, client) };
        thread::scope(|scope| {
            scope.spawn(move || tags::send(&mut source, 1, u64::MAX).expect_err("the sender learns of the reset"));
            let read = 1 + (rounds[0] * 7919) % 300_000;
            tags::receive(&mut sink, 1, read as u64, None).assert_is(
                read as u64,
                tags::hash(1, read as u64),
                End::Complete,
            );
            client::reset(sink);
        });
        rounds[direction] += 1;
    }
    println!("{} resets in mid-splice", rounds[0] + rounds[1]);
    stand.gate.wait_outcome("backend_reset", rounds[0] as u64);
    stand.gate.wait_outcome("client_reset", rounds[1] as u64);
    stand.gate.finish();
}

/// The sizes of the pipes that the gate holds, besides its standard output.
fn pipe_sizes(process: &Process) -> Vec<usize> {
    let mut seen = HashSet::new();
    let mut sizes = Vec::new();
    for entry in fs::read_dir(format!("/proc/{}/fd", process.pid())).unwrap() {
        let path = entry.unwrap().path();
        let standard = path.file_name().is_some_and(|name| name == "0" || name == "1" || name == "2");
        let Ok(target) = fs::read_link(&path) else { continue };
        let name = target.to_string_lossy().into_owned();
        if standard || !name.starts_with("pipe:") || !seen.insert(name) {
            continue;
        }
        let flags = OFlags::NONBLOCK.bits().cast_signed();
        // It may have been closed meanwhile.
        if let Ok(pipe) = OpenOptions::new().read(true).custom_flags(flags).open(&path) {
            sizes.push(fcntl_getpipe_size(&pipe).unwrap());
        }
    }
    sizes
}

/// 600 streams whose readers all stand still: without a bound each would hold a pipe, more than the user may have.
#[test]
fn r10_a_user_without_privileges_gets_no_small_pipe() {
    const CONNECTIONS: usize = 600;
    let _turn = turn();
    raise_descriptor_limit();
    let stand = Stand::in_small_segments(Variant { unprivileged: true, ..Variant::SPLICE });
    let mut pairs: Vec<_> = (0..CONNECTIONS).map(|_| stand.join("tcp")).collect();
    let mut senders = Sender::of(&pairs);
    wait_until(LATE, "a full path everywhere", || senders.iter_mut().map(Sender::push).sum::<u64>() == 0);
    let metrics = stand.gate.metrics();
    let fallbacks = |reason| metrics.count("sluicegate_relay_fallbacks_total", &[("reason", reason)]);
    let in_use = metrics.count("sluicegate_pipes", &[("state", "in_use")]);
    let sizes = pipe_sizes(&stand.gate.process);
    println!(
        "{in_use} pipes in use, smallest {:?}; no pipe {}, small pipe {}",
        sizes.iter().min(),
        fallbacks("no_pipe"),
        fallbacks("small_pipe")
    );
    // Just under half of what the kernel gives a user: the configured number of pages, 16 for each pipe.
    let pages: usize = fs::read_to_string("/proc/sys/fs/pipe-user-pages-soft").unwrap().trim().parse().unwrap();
    let cap = if pages == 0 { CONNECTIONS } else { pages / 32 };
    assert!(in_use > 0 && in_use as usize <= cap, "{in_use} pipes, at most {cap}");
    assert!(fallbacks("no_pipe") + fallbacks("small_pipe") > 0 || cap >= CONNECTIONS, "copying is counted");
    assert!(sizes.iter().all(|size| *size >= 64 << 10), "{sizes:?}");
    drain(&mut pairs, &senders);
    wait_until(SOON, "no pipe in use", || pipes_in_use(&stand) == 0);
    for (client, backend) in &mut pairs {
        client.write_all(b"idle").unwrap();
        backend.read_exact(&mut [0; 4]).unwrap();
        backend.shutdown(Shutdown::Write).unwrap();
    }
    assert_eq!(pipes_in_use(&stand), 0, "idle connections hold none");
    drop((pairs, senders));
    stand.gate.finish();
}
