//! Processes that take each other's place. Only the first is a child of the test; the others are known by their numbers.

use std::{
    os::{fd::OwnedFd, unix::fs::PermissionsExt},
    path::{Path, PathBuf},
    sync::atomic::{AtomicBool, Ordering},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal},
};
use serde_json::Value;

use super::{
    Gate, LATE, Process, SOON,
    gate::Plan,
    process::{BINARY, Ended},
    wait_until,
};

#[derive(Debug)]
pub struct Lineage {
    /// The first process, and whoever answers at its addresses.
    pub gate: Gate,
    program: PathBuf,
    /// Those after the first.
    heirs: Vec<Heir>,
}

/// A process that is not our child.
#[derive(Debug)]
struct Heir {
    pid: u32,
    handle: OwnedFd,
}

impl Lineage {
    /// Starts the first, from a file of its own that [`Self::replace`] replaces.
    #[track_caller]
    pub fn start(plan: Plan) -> Self {
        let program = plan.path().join("sluicegate");
        put(&program);
        let gate = plan.admin("socket = \"admin.sock\"").start_program(&program);
        Self { gate, program, heirs: Vec::new() }
    }

    /// As [`Self::start`], after a line of shell in the same process. The plan has the admin socket already.
    #[track_caller]
    pub fn start_after(plan: Plan, line: &str) -> Self {
        let (program, shell) = (plan.path().join("sluicegate"), plan.path().join("start"));
        put(&program);
        script(&shell, &format!("{line} && exec {} \"$@\"", program.display()));
        let gate = plan.start_program(&shell);
        Self { gate, program, heirs: Vec::new() }
    }

    /// As [`Self::start`], with a listening socket that is passed to it. The plan has the admin socket already.
    #[track_caller]
    pub fn start_with_socket(plan: Plan, socket: OwnedFd) -> Self {
        let program = plan.path().join("sluicegate");
        put(&program);
        plan.write();
        let directory = plan.into_directory();
        let arguments = ["run", "--config", "sluicegate.toml"];
        let process = Process::start_with_socket(&program, socket, &arguments, directory.path());
        Self { gate: Gate::over(process, directory, LATE), program, heirs: Vec::new() }
    }

    /// Puts a script where the binary was, as an installer would: under another name first.
    pub fn replace(&self, text: &str) {
        let new = self.program.with_extension("new");
        script(&new, text);
        std::fs::rename(&new, &self.program).unwrap();
    }

    /// Puts the binary there again; the file is a new one each time.
    pub fn restore(&self) {
        // Renaming over another name of the same file does nothing.
        let _ = std::fs::remove_file(&self.program);
        put(&self.program);
    }

    /// Runs the verb, whatever comes of it.
    #[track_caller]
    pub fn try_upgrade(&self) -> Ended {
        Process::run(&["upgrade", "--socket", "admin.sock"], self.directory(), LATE)
    }

    /// Has a new process serve.
    #[track_caller]
    pub fn upgrade(&mut self) -> u32 {
        self.restore();
        let ended = Process::run(&["upgrade", "--socket", "admin.sock", "--json"], self.directory(), LATE);
        assert_eq!(ended.code, Some(0), "{}\n{}", ended.stderr, self.gate.process.stderr.text());
        let answer: Value = serde_json::from_str(&ended.stdout).unwrap();
        assert_eq!(answer["before"], self.pid());
        let pid = answer["pid"].as_u64().unwrap() as u32;
        let handle = pidfd_open(number(pid), PidfdFlags::empty()).expect("the new process");
        self.heirs.push(Heir { pid, handle });
        pid
    }

    pub fn directory(&self) -> &Path {
        self.gate.directory.path()
    }

    /// Who serves.
    pub fn pid(&self) -> u32 {
        self.heirs.last().map_or(self.gate.process.pid(), |heir| heir.pid)
    }

    /// A signal for the one that serves.
    pub fn signal(&self, signal: Signal) {
        match self.heirs.last() {
            Some(heir) => pidfd_send_signal(&heir.handle, signal).unwrap(),
            None => self.gate.process.signal(signal),
        }
    }

    /// Waits until all but the one that serves are gone.
    #[track_caller]
    pub fn wait_alone(&mut self, deadline: Duration) {
        if !self.heirs.is_empty() {
            let mut first = None;
            wait_until(deadline, "the end of the first process", || {
                first = self.gate.process.exited();
                first.is_some()
            });
            assert_eq!(first.and_then(|status| status.code()), Some(0), "{}", self.gate.process.stderr.text());
        }
        let earlier = &self.heirs[..self.heirs.len().saturating_sub(1)];
        wait_until(deadline, "the ends of the processes before", || earlier.iter().all(Heir::is_gone));
    }

    /// Everything is as after a start, then the last process ends as it should.
    #[track_caller]
    pub fn finish(mut self) {
        self.wait_alone(SOON);
        assert_eq!(children(self.pid()), Vec::<u32>::new(), "processes that it left behind");
        self.gate.wait_quiet();
        self.signal(Signal::TERM);
        self.wait_end();
    }

    /// Waits for the end of every process, by their own doing.
    #[track_caller]
    pub fn wait_end(mut self) {
        wait_until(SOON, "the end of every process", || self.heirs.iter().all(Heir::is_gone));
        let status = self.gate.process.wait(SOON);
        assert_eq!(status.and_then(|status| status.code()), Some(0), "{}", self.gate.process.stderr.text());
        assert!(!self.gate.process.stderr.text().contains("panicked"), "{}", self.gate.process.stderr.text());
        self.gate.ended();
    }
}

impl Heir {
    fn is_gone(&self) -> bool {
        let mut polled = [PollFd::new(&self.handle, PollFlags::IN)];
        poll(&mut polled, Some(&Timespec { tv_sec: 0, tv_nsec: 0 })).is_ok_and(|ready| ready > 0)
    }
}

impl Drop for Heir {
    fn drop(&mut self) {
        if !self.is_gone() {
            let _ = pidfd_send_signal(&self.handle, Signal::KILL);
        }
    }
}

/// Sets it when the test is over, however it ends: threads of a scope are waited for.
#[derive(Debug)]
pub struct Over<'s>(pub &'s AtomicBool);

impl Drop for Over<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// The processes that this one has started and that are not reaped.
pub fn children(pid: u32) -> Vec<u32> {
    let parent_of = |stat: String| stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse::<u32>().ok();
    let all = std::fs::read_dir("/proc").unwrap().filter_map(|entry| entry.unwrap().file_name().to_str()?.parse().ok());
    let is_child =
        |other: &u32| std::fs::read_to_string(format!("/proc/{other}/stat")).ok().and_then(parent_of) == Some(pid);
    all.filter(is_child).collect()
}

fn put(path: &Path) {
    std::fs::hard_link(BINARY, path).or_else(|_| std::fs::copy(BINARY, path).map(drop)).unwrap();
}

fn script(path: &Path, text: &str) {
    std::fs::write(path, format!("#!/bin/sh\n{text}\n")).unwrap();
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o755)).unwrap();
}

fn number(pid: u32) -> Pid {
    Pid::from_raw(pid.cast_signed()).expect("a process has a number")
}
