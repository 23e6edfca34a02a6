//! strace(1) on a running gate: which system calls it makes, and what it does when one of them fails.

use std::{
    collections::BTreeMap,
    fs,
    process::{Child, Command, Stdio},
};

use rustix::process::{Pid, Signal, kill_process};
use tempfile::TempDir;

use super::{Process, SOON, programs, wait_for, wait_until};

/// Calls that move bytes of a connection.
pub const DATA: [&str; 7] = ["recvfrom", "recvmsg", "readv", "sendto", "sendmsg", "writev", "splice"];

#[derive(Debug)]
pub struct Strace {
    child: Child,
    directory: TempDir,
}

/// How often each system call was made.
#[derive(Debug, Clone, Default)]
pub struct Calls(pub BTreeMap<String, u64>);

impl Strace {
    /// Follows every thread of the gate from here on. `None`: there is no strace, or the host forbids it.
    #[track_caller]
    pub fn attach(process: &Process, arguments: &[&str]) -> Option<Self> {
        let program = programs::require("strace")?;
        let directory = TempDir::new().unwrap();
        let errors = fs::File::create(directory.path().join("errors")).unwrap();
        let child = Command::new(program)
            .args(["-f", "-o", "report", "-p", &process.pid().to_string()])
            .args(arguments)
            .current_dir(directory.path())
            .stdin(Stdio::null())
            .stderr(Stdio::from(errors))
            .spawn()
            .unwrap();
        let mut strace = Self { child, directory };
        let attached = wait_for(SOON, || {
            let ended = strace.child.try_wait().unwrap().is_some();
            (ended || strace.follows(process.pid())).then_some(!ended)
        });
        if attached == Some(true) {
            return Some(strace);
        }
        programs::skip(&format!("strace cannot follow a process here: {}", strace.file("errors").trim()));
        None
    }

    /// Counts system calls.
    #[track_caller]
    pub fn count(process: &Process) -> Option<Self> {
        Self::attach(process, &["-c", "-U", "name,calls"])
    }

    /// Ends it and gives what it wrote.
    #[track_caller]
    pub fn detach(mut self) -> String {
        kill_process(Pid::from_child(&self.child), Signal::INT).unwrap();
        wait_until(SOON, "the end of strace", || self.child.try_wait().unwrap().is_some());
        self.file("report")
    }

    /// Ends it and gives what it counted.
    #[track_caller]
    pub fn calls(self) -> Calls {
        Calls::parse(&self.detach())
    }

    /// Whether it is the tracer of every thread.
    fn follows(&self, process: u32) -> bool {
        let tracer = format!("TracerPid:\t{}\n", self.child.id());
        let Ok(mut tasks) = fs::read_dir(format!("/proc/{process}/task")) else { return false };
        tasks.all(|task| {
            task.is_ok_and(|task| fs::read_to_string(task.path().join("status")).is_ok_and(|s| s.contains(&tracer)))
        })
    }

    fn file(&self, name: &str) -> String {
        fs::read_to_string(self.directory.path().join(name)).unwrap_or_default()
    }
}

impl Drop for Strace {
    fn drop(&mut self) {
        programs::end(&mut self.child);
    }
}

impl Calls {
    fn parse(report: &str) -> Self {
        let lines = report.lines().filter_map(|line| {
            let mut words = line.split_whitespace();
            let (name, calls) = (words.next()?, words.next()?.parse().ok()?);
            (name != "total").then(|| (name.to_owned(), calls))
        });
        Self(lines.collect())
    }

    pub fn of(&self, names: &[&str]) -> u64 {
        names.iter().filter_map(|name| self.0.get(*name)).sum()
    }

    /// Those that wait for events.
    pub fn waits(&self) -> u64 {
        self.of(&["epoll_wait", "epoll_pwait", "epoll_pwait2"])
    }

    /// All but those that wait, and but those with which a debug build checks each descriptor that it closes.
    pub fn work(&self) -> u64 {
        let checks = if cfg!(debug_assertions) { self.of(&["fcntl"]) } else { 0 };
        self.0.values().sum::<u64>() - self.waits() - checks
    }

    /// Calls for each of `units`, as text.
    pub fn per(&self, units: u64) -> String {
        let each = self.0.iter().map(|(name, calls)| format!("{name} {:.3}", *calls as f64 / units as f64));
        each.collect::<Vec<_>>().join(", ")
    }
}

#[test]
fn a_table_of_strace_is_read() {
    let calls =
        Calls::parse("syscall  calls\n-------- -----\nsendto     20\nepoll_wait 3\n-------- -----\ntotal      23\n");
    assert_eq!((calls.of(&DATA), calls.waits(), calls.work()), (20, 3, 20));
}
