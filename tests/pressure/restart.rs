//! S24, L10: a process that was killed and is started again.

use std::{
    io::Read,
    net::{TcpListener, TcpStream},
    time::{Duration, Instant},
};

use rustix::process::Signal;

use crate::support::{
    Backend, Gate, Process, SOON, client,
    gate::{https, pool, tcp},
    patient,
    process::BINARY,
    programs, wait_for,
};

#[test]
fn s24_after_a_kill_it_accepts_again_within_300_ms() {
    const KILLS: usize = 10;
    let backend = Backend::greeting(b"hi");
    let port = TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let listener = tcp("").replace("127.0.0.1:0", &port.to_string());
    let toml = [listener, https(""), pool("", &[backend.address])].concat();
    let mut gate = Gate::plan(&toml).admin("socket = \"admin.sock\"").checked().start();
    let mut taken = Vec::new();
    for kill in 0..KILLS {
        let mut held = client::connect(port);
        held.read_exact(&mut [0; 2]).unwrap();
        gate.process.signal(Signal::KILL);
        gate.process.wait(SOON).expect("the end of the process");
        let socket = gate.directory.path().join("admin.sock");
        assert!(socket.exists(), "a killed process leaves its socket behind");
        // From here on it is the service manager's time, and ours.
        let begin = Instant::now();
        gate.process = Process::start(&["run", "--config", "sluicegate.toml"], gate.directory.path());
        let served = wait_for(SOON, || {
            let mut stream = TcpStream::connect(port).ok()?;
            stream.read_exact(&mut [0; 2]).ok()
        });
        assert!(served.is_some(), "kill {kill}: {}", gate.process.stderr.text());
        taken.push(begin.elapsed());
        let status = programs::shell(&format!("{BINARY} status --socket admin.sock"), gate.directory.path());
        assert!(status.success, "the socket is the new process's: {status:?}");
    }
    taken.sort();
    println!("S24: {KILLS} kills: served again after {:?} (median), {:?} at most", taken[KILLS / 2], taken[KILLS - 1]);
    assert!(taken[KILLS / 2] <= patient(Duration::from_millis(300)), "{taken:?}");
    gate.process.stop();
    gate.ended();
}
