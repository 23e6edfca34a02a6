//! One run of the binary, with its output collected line by line.

use std::{
    io::{BufRead, BufReader, Read},
    os::fd::OwnedFd,
    path::Path,
    process::{Child, Command, ExitStatus, Stdio},
    sync::{Arc, Mutex},
    thread::{self, JoinHandle},
    time::Duration,
};

use rustix::process::{Pid, Signal};
use serde_json::{Map, Value};

use super::{SOON, host, wait_for, wait_until};

pub const BINARY: &str = env!("CARGO_BIN_EXE_sluicegate");

#[derive(Debug, Clone, Default)]
pub struct Lines(Arc<Mutex<Vec<String>>>);

impl Lines {
    pub fn all(&self) -> Vec<String> {
        self.0.lock().unwrap().clone()
    }

    pub fn text(&self) -> String {
        self.all().join("\n")
    }

    fn collect(self, source: impl Read + Send + 'static) -> JoinHandle<()> {
        thread::spawn(move || {
            let mut source = BufReader::new(source);
            let mut line = Vec::new();
            while source.read_until(b'\n', &mut line).is_ok_and(|n| n > 0) {
                let text = String::from_utf8_lossy(line.strip_suffix(b"\n").unwrap_or(&line)).into_owned();
                self.0.lock().unwrap().push(text);
                line.clear();
            }
        })
    }
}

/// How a run ended.
#[derive(Debug)]
pub struct Ended {
    pub code: Option<i32>,
    pub stdout: String,
    pub stderr: String,
}

#[derive(Debug)]
pub struct Process {
    child: Child,
    readers: Vec<JoinHandle<()>>,
    pub stdout: Lines,
    pub stderr: Lines,
}

impl Process {
    /// Starts `sluicegate` with these arguments in `directory`.
    pub fn start(arguments: &[&str], directory: &Path) -> Self {
        Self::spawn(Command::new(BINARY).args(arguments), directory)
    }

    /// As [`Self::start`], in the process of a shell that has run this line before.
    pub fn start_after(line: &str, arguments: &[&str], directory: &Path) -> Self {
        let script = format!("{line} && exec \"$0\" \"$@\"");
        Self::spawn(Command::new("sh").args(["-c", &script, BINARY]).args(arguments), directory)
    }

    /// As [`Self::start`], with a listening socket that is passed as a service manager does it. Who passes it keeps it.
    pub fn start_with_socket(program: &Path, socket: OwnedFd, arguments: &[&str], directory: &Path) -> Self {
        // Whatever else is started meanwhile does not get the socket: it travels as the shell's input.
        let script = "export LISTEN_FDS=1 LISTEN_PID=$$ && exec \"$0\" \"$@\" 3<&0 0</dev/null";
        Self::spawn_with(socket.into(), Command::new("sh").args(["-c", script]).arg(program).args(arguments), directory)
    }

    /// A program that becomes `sluicegate`.
    pub fn start_program(program: &Path, arguments: &[&str], directory: &Path) -> Self {
        Self::spawn(Command::new(program).args(arguments), directory)
    }

    /// As [`Self::start`], as the user `nobody`: through the program setpriv, which becomes the one it starts.
    pub fn start_as_nobody(setpriv: &Path, arguments: &[&str], directory: &Path) -> Self {
        // Its own place may not be open to everyone.
        let binary = directory.join("sluicegate");
        std::fs::hard_link(BINARY, &binary).or_else(|_| std::fs::copy(BINARY, &binary).map(drop)).unwrap();
        let nobody = ["--reuid=65534", "--regid=65534", "--clear-groups", "--"];
        Self::spawn(Command::new(setpriv).args(nobody).arg(&binary).args(arguments), directory)
    }

    fn spawn(command: &mut Command, directory: &Path) -> Self {
        Self::spawn_with(Stdio::null(), command, directory)
    }

    fn spawn_with(input: Stdio, command: &mut Command, directory: &Path) -> Self {
        host::watch();
        let mut child = command
            .current_dir(directory)
            .env_remove("SLUICEGATE_CONFIG")
            .env_remove("RUST_LOG")
            .env("NO_COLOR", "1")
            .stdin(input)
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the binary starts");
        let (stdout, stderr) = (Lines::default(), Lines::default());
        let readers = vec![
            stdout.clone().collect(child.stdout.take().unwrap()),
            stderr.clone().collect(child.stderr.take().unwrap()),
        ];
        Self { child, readers, stdout, stderr }
    }

    /// Runs to the end, which has to come within `deadline`.
    #[track_caller]
    pub fn run(arguments: &[&str], directory: &Path, deadline: Duration) -> Ended {
        Self::start(arguments, directory).ended(deadline)
    }

    /// How it ended; that has to come within `deadline`.
    #[track_caller]
    pub fn ended(mut self, deadline: Duration) -> Ended {
        let status = self.wait(deadline);
        assert!(status.is_some(), "still running after {deadline:?}\n{}", self.stderr.text());
        Ended { code: status.and_then(|s| s.code()), stdout: self.stdout.text(), stderr: self.stderr.text() }
    }

    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// How it ended, if it did within the deadline; then its output is complete.
    pub fn wait(&mut self, deadline: Duration) -> Option<ExitStatus> {
        let status = wait_for(deadline, || self.child.try_wait().expect("our own child"))?;
        for reader in self.readers.drain(..) {
            reader.join().unwrap();
        }
        Some(status)
    }

    /// How it ended, if it has. Its output may go on: others may write there.
    pub fn exited(&mut self) -> Option<ExitStatus> {
        self.child.try_wait().expect("our own child")
    }

    pub fn signal(&self, signal: Signal) {
        rustix::process::kill_process(Pid::from_child(&self.child), signal).expect("our own child");
    }

    /// SIGTERM, and the exit code 0 that belongs to it.
    #[track_caller]
    pub fn stop(&mut self) {
        self.signal(Signal::TERM);
        let status = self.wait(SOON);
        assert_eq!(status.and_then(|s| s.code()), Some(0), "exit after SIGTERM\n{}", self.stderr.text());
        assert!(!self.stderr.text().contains("panicked"), "a panic:\n{}", self.stderr.text());
    }

    /// Waits for the line that says it serves; the addresses it said before, by listener name.
    #[track_caller]
    pub fn ready(&mut self, deadline: Duration) -> Vec<(String, std::net::SocketAddr)> {
        let mut ended = None;
        wait_until(deadline, "a line with the message `ready`, or the end", || {
            ended = self.child.try_wait().expect("our own child");
            ended.is_some() || self.messages().iter().any(|m| m["message"] == "ready")
        });
        assert!(ended.is_none(), "ended instead of serving: {ended:?}\n{}\n{}", self.stdout.text(), self.stderr.text());
        let bound = self.messages().into_iter().filter(|m| m["message"] == "listening");
        bound.map(|m| (word(&m, "listener"), word(&m, "address").parse().expect("an address"))).collect()
    }

    /// Its own messages, in whichever of its two formats.
    pub fn messages(&self) -> Vec<Value> {
        let lines = self.stderr.all();
        lines.iter().filter_map(|line| serde_json::from_str(line).ok().or_else(|| text_message(line))).collect()
    }

    /// User and system time so far, in the kernel's ticks of 10 ms.
    pub fn processor_time(&self) -> Duration {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.pid())).expect("a running process");
        let fields = stat.rsplit_once(')').map_or("", |(_, rest)| rest).split_whitespace();
        let ticks: u64 = fields.skip(11).take(2).filter_map(|field| field.parse::<u64>().ok()).sum();
        Duration::from_millis(ticks * 10)
    }

    /// Resident memory in bytes, without what is mapped from files.
    pub fn memory(&self) -> u64 {
        let rollup = std::fs::read_to_string(format!("/proc/{}/smaps_rollup", self.pid())).expect("a running process");
        let line = rollup.lines().find_map(|line| line.strip_prefix("Anonymous:")).expect("a line of the kernel's");
        line.trim().trim_end_matches(" kB").parse::<u64>().expect("a number") * 1024
    }

    /// What its descriptors are, a line each.
    pub fn open_files(&self) -> String {
        let entries = std::fs::read_dir(format!("/proc/{}/fd", self.pid())).into_iter().flatten().flatten();
        let targets = entries.filter_map(|entry| std::fs::read_link(entry.path()).ok());
        let mut lines: Vec<_> = targets.map(|target| target.display().to_string()).collect();
        lines.sort();
        lines.join("\n")
    }

    /// What `/proc/PID/fd` holds.
    pub fn descriptors(&self) -> usize {
        std::fs::read_dir(format!("/proc/{}/fd", self.pid())).map_or(0, Iterator::count)
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        if self.child.try_wait().is_ok_and(|status| status.is_none()) {
            let _ = self.child.kill();
            let _ = self.child.wait();
        }
    }
}

/// `TIME LEVEL message key=value key="value"`
fn text_message(line: &str) -> Option<Value> {
    let mut words = line.split_whitespace().skip(1);
    let mut message = Map::from_iter([("level".to_owned(), words.next()?.into())]);
    let (fields, text): (Vec<&str>, Vec<&str>) = words.partition(|word| word.contains('='));
    message.insert("message".to_owned(), text.join(" ").into());
    for (key, value) in fields.iter().filter_map(|field| field.split_once('=')) {
        message.insert(key.to_owned(), value.trim_matches('"').into());
    }
    Some(message.into())
}

/// A text field of a JSON object.
#[track_caller]
pub fn word(object: &Value, key: &str) -> String {
    object[key].as_str().unwrap_or_else(|| panic!("no text at `{key}`: {object}")).to_owned()
}

#[test]
fn a_message_is_understood_as_text_too() {
    let message =
        text_message("2026-11-21T00:11:49.984107Z  INFO listening listener=\"https\" address=127.0.0.1:41335");
    let expected = serde_json::json!({
        "level": "INFO", "message": "listening", "listener": "https", "address": "127.0.0.1:41335"
    });
    assert_eq!(message, Some(expected));
}
