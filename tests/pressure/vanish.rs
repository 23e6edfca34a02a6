//! R9: peers that vanish without a word.

use std::{
    io::{ErrorKind, Write},
    net::{TcpListener, TcpStream},
    path::Path,
    thread,
    time::{Duration, Instant},
};

use socket2::SockRef;

use super::full;
use crate::support::{Gate, client, programs, raise_descriptor_limit, wait_until};

/// Tells the test that it runs in a network of its own.
const INSIDE: &str = "SLUICEGATE_TEST_NETWORK";

const IDLE: Duration = Duration::from_secs(3);

/// What a goodbye may take, at most, to one that is not there any more.
const GOODBYE: Duration = Duration::from_secs(5);

/// Runs the test `name` again in a network of its own, which is gone with it. False: it runs there already.
#[track_caller]
fn in_a_network_of_its_own(name: &str) -> bool {
    if std::env::var_os(INSIDE).is_some() {
        return false;
    }
    let needed = ["unshare", "ip", "nft"].map(programs::require);
    let [Some(_), Some(ip), Some(_)] = needed else { return true };
    if !programs::shell("unshare --net true", Path::new("/")).success {
        programs::skip("no network namespace is allowed here");
        return true;
    }
    let test = std::env::current_exe().unwrap();
    let line = format!(
        "{INSIDE}=1 unshare --net sh -c '{} link set lo up && exec {} --exact {name} --nocapture'",
        ip.display(),
        test.display()
    );
    let done = programs::shell(&line, Path::new("/"));
    print!("{}", done.stdout);
    assert!(done.success, "{}\n{}", done.stdout, done.stderr);
    true
}

fn filter(rules: &str) {
    let nft = programs::require("nft").unwrap();
    let done = programs::run(&nft, &["-f", "-"], Path::new("/"), rules.as_bytes());
    assert!(done.success, "{}", done.stderr);
}

/// Both ends of a connection.
type Pair = (TcpStream, TcpStream);

fn join(gate: &Gate, listener: &str, backend: &TcpListener, count: usize) -> Vec<Pair> {
    let pair = |_| {
        let client = client::connect(gate.address(listener));
        SockRef::from(&client).set_recv_buffer_size(16 << 10).unwrap();
        (client, backend.accept().unwrap().0)
    };
    (0..count).map(pair).collect()
}

/// Sends until nobody takes any more.
fn fill(stream: &mut TcpStream) {
    stream.set_nonblocking(true).unwrap();
    let block = vec![7; 64 << 10];
    let full = |stream: &mut TcpStream| loop {
        if let Err(error) = stream.write_all(&block) {
            assert_eq!(error.kind(), ErrorKind::WouldBlock);
            return;
        }
    };
    // Again when what was on its way has arrived.
    for _ in 0..3 {
        full(stream);
        thread::sleep(Duration::from_millis(3));
    }
}

#[test]
fn r9_peers_that_vanish_are_gone_within_the_idle_time() {
    if in_a_network_of_its_own("pressure::vanish::r9_peers_that_vanish_are_gone_within_the_idle_time") {
        return;
    }
    let count = if full() { 250 } else { 60 };
    raise_descriptor_limit();
    let bind = || TcpListener::bind("127.0.0.1:0").unwrap();
    let (gone, alive) = (bind(), bind());
    let [gone_port, alive_port] = [&gone, &alive].map(|backend| backend.local_addr().unwrap().port());
    let listener = |name: &str| format!("[listener.{name}]\nbind = \"127.0.0.1:0\"\npool = \"{name}\"\n");
    let pool = |name: &str, port| format!("[pool.{name}]\nbackends = [\"127.0.0.1:{port}\"]\n");
    let toml = [
        listener("gone"),
        listener("alive"),
        pool("gone", gone_port),
        pool("alive", alive_port),
        format!("[timeouts]\nidle = \"{}s\"\n", IDLE.as_secs()),
    ];
    let gate = Gate::start(&toml.concat());
    let mut unsent = join(&gate, "gone", &gone, count);
    for (_, backend) in &mut unsent {
        fill(backend);
    }
    let idle = join(&gate, "gone", &gone, count);
    let trickled = join(&gate, "alive", &alive, count);
    let begin = Instant::now();
    // Clients of both, and the backends of one, fall silent in both directions.
    let ports = [gate.address("gone").port(), gate.address("alive").port(), gone_port];
    let drops = ports.map(|port| format!("tcp dport {port} drop\ntcp sport {port} drop\n")).concat();
    filter(&format!("table ip f {{\nchain i {{\ntype filter hook input priority 0;\n{drops}}}\n}}\n"));
    let live = |listener: &str| gate.metrics().count("sluicegate_listener_connections", &[("listener", listener)]);
    assert_eq!((live("gone"), live("alive")), (2 * count as u64, count as u64));
    // These backends go on saying something to clients that are not there: there is never a silence.
    let mut said = 0;
    let mut gone_after = [None; 2];
    wait_until(IDLE + GOODBYE + Duration::from_secs(4), "nobody is left", || {
        said += 1;
        for (_, backend) in &trickled {
            // One that is gone shows in the metrics.
            let _ = (&*backend).write(b".");
        }
        thread::sleep(Duration::from_millis(100));
        for (after, listener) in gone_after.iter_mut().zip(["gone", "alive"]) {
            if after.is_none() && live(listener) == 0 {
                *after = Some(begin.elapsed());
            }
        }
        gone_after.iter().all(Option::is_some)
    });
    let [silent, talked_to] = gone_after.map(Option::unwrap);
    let metrics = gate.metrics();
    println!(
        "R9: idle {IDLE:?}: {count} idle and {count} with unsent bytes gone after {silent:?}, {count} that were sent {said} \
         bytes after {talked_to:?}; {} by idle_timeout, {} by client_reset",
        metrics.outcome("idle_timeout"),
        metrics.outcome("client_reset")
    );
    assert_eq!(metrics.outcome("idle_timeout"), 2 * count as u64);
    assert_eq!(metrics.outcome("client_reset"), count as u64);
    drop((idle, unsent, trickled));
    gate.finish();
}
