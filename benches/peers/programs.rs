//! The programs of others: where they are, and that none of them outlives this one.

use std::{
    collections::HashMap,
    ffi::OsStr,
    fs::{self, File},
    io::Read,
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    sync::{Mutex, MutexGuard, OnceLock, PoisonError},
    thread,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail, ensure};
use rustix::process::{Pid, Signal};
use tokio::signal::unix::{SignalKind, signal};

/// How long a program has to end by itself after SIGTERM.
const PATIENCE: Duration = Duration::from_secs(5);

#[derive(Debug)]
pub struct Tools {
    pub haproxy: PathBuf,
    pub nginx: PathBuf,
    pub wrk: PathBuf,
    pub taskset: PathBuf,
    /// nginx's stream module, where it is not built in.
    pub stream_module: Option<PathBuf>,
}

impl Tools {
    /// Every program, or what is missing and how to get it, in one line.
    pub fn find() -> Result<Self> {
        let wanted = [("haproxy", "haproxy"), ("nginx", "nginx"), ("wrk", "wrk"), ("taskset", "util-linux")];
        let found = wanted.map(|(program, _)| find(program));
        let missing: Vec<_> = wanted.iter().zip(&found).filter(|(_, found)| found.is_none()).map(|(w, _)| *w).collect();
        if !missing.is_empty() {
            let (programs, packages): (Vec<_>, Vec<_>) = missing.into_iter().unzip();
            bail!("not found: {}; on Debian and Ubuntu: apt-get install {}", programs.join(", "), packages.join(" "));
        }
        let [haproxy, nginx, wrk, taskset] = found.map(Option::unwrap_or_default);
        let stream_module = stream_module(&nginx)?;
        Ok(Self { haproxy, nginx, wrk, taskset, stream_module })
    }
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    // Not in the PATH of ordinary users.
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/usr/local/sbin".into(), "/sbin".into()]);
    places.map(|place| place.join(program)).find(|file| file.is_file())
}

fn stream_module(nginx: &Path) -> Result<Option<PathBuf>> {
    let built = said(nginx, "-V");
    let option = |name: &str| built.split_whitespace().find_map(|word| word.strip_prefix(name).map(str::to_owned));
    if built.split_whitespace().any(|word| word == "--with-stream") {
        return Ok(None);
    }
    let places = option("--modules-path=")
        .into_iter()
        .chain(["/usr/lib/nginx/modules", "/usr/lib64/nginx/modules", "/usr/share/nginx/modules"].map(str::to_owned));
    let found = places.map(|place| Path::new(&place).join("ngx_stream_module.so")).find(|file| file.is_file());
    let found =
        found.context("nginx has no stream module; on Debian and Ubuntu: apt-get install libnginx-mod-stream")?;
    Ok(Some(found))
}

/// What a program prints, on either stream.
pub fn said(program: &Path, argument: &str) -> String {
    let output = Command::new(program).arg(argument).stdin(Stdio::null()).output();
    let bytes = output.map(|output| [output.stdout, output.stderr].concat()).unwrap_or_default();
    String::from_utf8_lossy(&bytes).into_owned()
}

/// Ids of our children. Whoever holds the lock may start or reap; a signal takes it for good, so nothing starts after.
static LIVE: Mutex<Vec<u32>> = Mutex::new(Vec::new());
/// Removed by a signal too.
static DIRECTORY: OnceLock<PathBuf> = OnceLock::new();

fn live() -> MutexGuard<'static, Vec<u32>> {
    LIVE.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Has this directory removed when a signal ends the run.
pub fn remove_on_signals(directory: &Path) {
    DIRECTORY.get_or_init(|| directory.to_owned());
}

/// On Ctrl-C and SIGTERM: ends every child and then this process.
pub fn end_on_signals() -> Result<()> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (mut interrupt, mut terminate) = {
        let _context = runtime.enter();
        (signal(SignalKind::interrupt())?, signal(SignalKind::terminate())?)
    };
    thread::spawn(move || {
        let code = runtime.block_on(async {
            tokio::select! { _ = interrupt.recv() => 130, _ = terminate.recv() => 143 }
        });
        eprintln!("\npeers: stopped by a signal, ending what was started");
        let live = live();
        let all: Vec<Process> = live.iter().flat_map(|pid| tree(*pid)).collect();
        live.iter().for_each(|pid| send(*pid, Signal::TERM));
        wait(PATIENCE, || !all.iter().any(Process::runs));
        all.iter().filter(|process| process.runs()).for_each(|process| send(process.pid, Signal::KILL));
        if let Some(directory) = DIRECTORY.get() {
            let _ = fs::remove_dir_all(directory);
        }
        std::process::exit(code);
    });
    Ok(())
}

/// A child that serves until it is dropped.
#[derive(Debug)]
pub struct Server {
    child: Child,
    /// As last looked at: a worker whose master died is still found.
    processes: Vec<Process>,
    log: PathBuf,
}

impl Server {
    /// Starts a program in `directory`, where `NAME.log` gets what it says.
    pub fn start<A: AsRef<OsStr>>(name: &str, directory: &Path, command: &[A]) -> Result<Self> {
        let (program, arguments) = command.split_first().context("an empty command")?;
        let log = directory.join(format!("{name}.log"));
        let output = File::create(&log)?;
        let mut command = Command::new(program);
        command.args(arguments).current_dir(directory).stdin(Stdio::null()).stdout(output.try_clone()?).stderr(output);
        let child = spawn(&mut command)?;
        Ok(Self { child, processes: Vec::new(), log })
    }

    /// Waits until every port accepts.
    pub fn wait_ports(&self, ports: &[u16]) -> Result<()> {
        let serving = wait(Duration::from_secs(10), || {
            !self.runs() || ports.iter().all(|port| std::net::TcpStream::connect(("127.0.0.1", *port)).is_ok())
        });
        let said = || fs::read_to_string(&self.log).unwrap_or_default();
        let name = self.log.file_stem().unwrap_or_default().display();
        ensure!(serving && self.runs(), "{name} does not serve:\n{}", said());
        Ok(())
    }

    pub fn runs(&self) -> bool {
        !has_ended(self.child.id())
    }

    /// CPU time of all its threads. nginx accepts before it has a worker, so whoever asks has served something before.
    pub fn cpu(&mut self) -> Result<Duration> {
        self.processes = tree(self.child.id());
        let mut total = 0;
        for process in &self.processes {
            for thread in fs::read_dir(format!("/proc/{}/task", process.pid))? {
                let text = fs::read_to_string(thread?.path().join("schedstat"));
                let text = text.context("this kernel does not count the time of threads (schedstat)")?;
                total += text.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0_u64);
            }
        }
        Ok(Duration::from_nanos(total))
    }

    /// Resident memory of all its processes, in KiB.
    pub fn memory(&mut self) -> Result<u64> {
        self.processes = tree(self.child.id());
        let mut total = 0;
        for process in &self.processes {
            let text = fs::read_to_string(format!("/proc/{}/smaps_rollup", process.pid))?;
            let line = text.lines().find_map(|line| line.strip_prefix("Rss:")).unwrap_or_default();
            total += line.split_whitespace().next().and_then(|first| first.parse().ok()).unwrap_or(0_u64);
        }
        Ok(total)
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let all = tree(self.child.id());
        send(self.child.id(), Signal::TERM);
        wait(PATIENCE, || !self.runs());
        let left = all.iter().chain(&self.processes).filter(|process| process.runs());
        left.for_each(|process| send(process.pid, Signal::KILL));
        reap(&mut self.child);
    }
}

/// Runs a program to its end; what it printed. It is not left alone by a signal either.
pub fn run<A: AsRef<OsStr>>(command: &[A]) -> Result<String> {
    let (program, arguments) = command.split_first().context("an empty command")?;
    let mut command = Command::new(program);
    let mut child = spawn(command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(Stdio::piped()))?;
    let (mut output, mut errors) = (String::new(), String::new());
    if let Some(pipe) = &mut child.stdout {
        pipe.read_to_string(&mut output)?;
    }
    if let Some(pipe) = &mut child.stderr {
        pipe.read_to_string(&mut errors)?;
    }
    let status = reap(&mut child);
    ensure!(status, "{command:?} failed: {errors}");
    Ok(output)
}

fn spawn(command: &mut Command) -> Result<Child> {
    let mut live = live();
    let child = command.spawn().with_context(|| format!("{command:?}"))?;
    live.push(child.id());
    Ok(child)
}

/// Waits for the end, after which the id may belong to somebody else; true if the program was content.
fn reap(child: &mut Child) -> bool {
    let pid = child.id();
    // Not under the lock: a signal must not wait for the end of a program.
    wait(Duration::MAX, || has_ended(pid));
    let mut live = live();
    live.retain(|other| *other != pid);
    child.wait().is_ok_and(|status| status.success())
}

fn has_ended(pid: u32) -> bool {
    stat(pid).is_none_or(|stat| stat.is_zombie)
}

/// A process, told from a later one with the same id by the time of its start.
#[derive(Debug, Clone, Copy)]
struct Process {
    pid: u32,
    started: u64,
}

impl Process {
    fn runs(&self) -> bool {
        stat(self.pid).is_some_and(|stat| stat.started == self.started && !stat.is_zombie)
    }
}

#[derive(Debug)]
struct Stat {
    is_zombie: bool,
    parent: u32,
    started: u64,
}

/// `/proc/PID/stat`, read behind the name, which may hold anything.
fn stat(pid: u32) -> Option<Stat> {
    let text = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
    let fields: Vec<_> = text.rsplit_once(')')?.1.split_whitespace().collect();
    let is_zombie = *fields.first()? == "Z";
    Some(Stat { is_zombie, parent: fields.get(1)?.parse().ok()?, started: fields.get(19)?.parse().ok()? })
}

/// A process and all below it.
fn tree(root: u32) -> Vec<Process> {
    let pids = fs::read_dir("/proc").into_iter().flatten().flatten();
    let pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    let all: HashMap<u32, Stat> = pids.filter_map(|pid| Some((pid, stat(pid)?))).collect();
    let mut found = vec![root];
    let mut next = 0;
    while let Some(parent) = found.get(next).copied() {
        found.extend(all.iter().filter(|(_, stat)| stat.parent == parent).map(|(pid, _)| *pid));
        next += 1;
    }
    found.iter().filter_map(|pid| Some(Process { pid: *pid, started: all.get(pid)?.started })).collect()
}

fn send(pid: u32, signal: Signal) {
    if let Some(pid) = i32::try_from(pid).ok().and_then(Pid::from_raw) {
        let _ = rustix::process::kill_process(pid, signal);
    }
}

/// Waits until it is so; false if it was not in time.
fn wait(limit: Duration, mut is_so: impl FnMut() -> bool) -> bool {
    let began = Instant::now();
    while !is_so() {
        if began.elapsed() >= limit {
            return false;
        }
        thread::sleep(Duration::from_millis(10));
    }
    true
}
