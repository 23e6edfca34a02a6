//! L7: whatever is wrong with the new process, the old one goes on as if nothing had happened.

use std::{thread, time::Instant};

use rustix::process::Signal;

use super::{site, start};
use crate::support::{Backend, Lineage, SOON, client, lineage::children, wait_until};

/// Still the same process, with the same descriptors, no children, and clients are served.
#[track_caller]
fn goes_on(lineage: &Lineage, pid: u32) {
    assert_eq!(lineage.pid(), pid);
    client::exchange(&mut client::connect(lineage.gate.address("tcp")), b"as ever");
    assert_eq!(children(pid), Vec::<u32>::new(), "nothing is left of it");
    lineage.gate.wait_quiet();
    let ready = crate::support::metrics::get(lineage.gate.address("admin"), "/readyz", &[]).unwrap();
    assert_eq!(ready.status, 200);
}

#[track_caller]
fn is_refused(lineage: &Lineage, reason: &str) {
    let begin = Instant::now();
    let ended = lineage.try_upgrade();
    println!("exit {:?} after {:?}: {}", ended.code, begin.elapsed(), ended.stderr);
    assert_eq!(ended.code, Some(3), "{}", ended.stderr);
    assert!(ended.stderr.contains(reason), "`{reason}` is not in: {}", ended.stderr);
}

#[test]
fn l7_a_new_process_that_fails_changes_nothing() {
    let backend = Backend::echo();
    let mut lineage = start(&site(backend.address, ""));
    let pid = lineage.pid();
    let mut held = client::connect(lineage.gate.address("tcp"));
    client::exchange(&mut held, b"before");
    for (script, reason) in [
        ("exit 7", "exit status: 7"),
        ("kill -SEGV $$", "signal: 11"),
        ("exec sleep 60 <&-", "has closed the line"),
        ("printf '\\000\\002\\000{}' >&0; exec sleep 60", "version 2 of the upgrade protocol"),
        ("printf 'GET / HTTP/1.1' >&0; exec sleep 60", "of the upgrade protocol"),
        ("printf '\\000\\001\\000{\"Hi\":1}' >&0; exec sleep 60", "cannot be understood"),
        ("printf '\\000\\001\\000\"Serving\"' >&0; exec sleep 60", "makes no sense now"),
    ] {
        lineage.replace(script);
        is_refused(&lineage, reason);
        client::exchange(&mut held, script.as_bytes());
    }
    lineage.replace("exec sleep 60");
    let begin = Instant::now();
    is_refused(&lineage, "took longer than 10 s to begin");
    assert!(begin.elapsed().as_secs() < 15);
    std::fs::remove_file(lineage.directory().join("sluicegate")).unwrap();
    is_refused(&lineage, "cannot start");

    client::exchange(&mut held, b"after");
    drop(held);
    goes_on(&lineage, pid);
    lineage.upgrade();
    lineage.finish();
}

#[test]
fn l7_a_configuration_that_is_wrong_is_told_and_changes_nothing() {
    let backend = Backend::echo();
    let mut lineage = start(&site(backend.address, ""));
    let (pid, path) = (lineage.pid(), lineage.directory().join("sluicegate.toml"));
    let good = std::fs::read_to_string(&path).unwrap();
    std::fs::write(&path, good.replace("[pool.web]", "[pool.web]\nbalence = \"p2c\"")).unwrap();
    is_refused(&lineage, "did you mean `balance`?");
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let second = format!("[listener.more]\nbind = \"{}\"\npool = \"web\"\n", taken.local_addr().unwrap());
    std::fs::write(&path, format!("{good}{second}")).unwrap();
    is_refused(&lineage, "another process listens there");
    goes_on(&lineage, pid);
    std::fs::write(&path, good).unwrap();
    lineage.upgrade();
    lineage.finish();
}

#[test]
fn one_upgrade_at_a_time_and_a_stop_ends_it() {
    let backend = Backend::echo();
    let lineage = start(&site(backend.address, ""));
    lineage.replace("exec sleep 60");
    thread::scope(|scope| {
        let first = scope.spawn(|| lineage.try_upgrade());
        wait_until(SOON, "a new process", || children(lineage.pid()).len() == 1);
        is_refused(&lineage, "an upgrade is under way");
        let new = children(lineage.pid());
        lineage.signal(Signal::TERM);
        let first = first.join().unwrap();
        assert!([Some(2), Some(3)].contains(&first.code), "{first:?}");
        wait_until(SOON, "the end of the new process", || {
            new.iter().all(|pid| !std::path::Path::new(&format!("/proc/{pid}/exe")).exists())
        });
    });
    lineage.wait_end();
}

#[test]
fn a_new_process_that_is_killed_before_it_serves_changes_nothing() {
    let backend = Backend::echo();
    let mut lineage = start(&site(backend.address, ""));
    let pid = lineage.pid();
    lineage.replace("exec sleep 60");
    thread::scope(|scope| {
        let upgrade = scope.spawn(|| is_refused(&lineage, "signal: 9"));
        wait_until(SOON, "a new process", || children(pid).len() == 1);
        let new = rustix::process::Pid::from_raw(children(pid)[0].cast_signed()).unwrap();
        rustix::process::kill_process(new, Signal::KILL).unwrap();
        upgrade.join().unwrap();
    });
    goes_on(&lineage, pid);
    lineage.upgrade();
    lineage.finish();
}

#[test]
fn no_upgrade_while_it_drains() {
    let backend = Backend::echo();
    let lineage = start(&site(backend.address, ""));
    let mut held = client::connect(lineage.gate.address("tcp"));
    client::exchange(&mut held, b"held");
    lineage.signal(Signal::TERM);
    wait_until(SOON, "a drain", || lineage.gate.process.messages().iter().any(|m| m["message"] == "draining"));
    is_refused(&lineage, "this process stops");
    client::exchange(&mut held, b"still");
    drop(held);
    lineage.wait_end();
}
