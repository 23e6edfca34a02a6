//! The running process: starts the new one and gives it what it needs.

use std::{
    env, fs, io,
    os::{
        fd::{AsFd, BorrowedFd},
        unix::fs::MetadataExt,
    },
    path::PathBuf,
    process::{Child, Command, ExitStatus},
    time::Duration,
};

use serde::de::DeserializeOwned;
use tokio::time::{Instant, timeout, timeout_at};

use super::{
    VARIABLE,
    memory::Memory,
    message::{Deed, Giver, Heir, Line, PortDeed, Silence, Taken},
};
use crate::{
    doors::Doors,
    metrics::Totals,
    ports::{Passed, Port},
    site::Site,
    sys::packets::Packets,
};

/// How this process was started, so that it can be started again.
#[derive(Debug, Clone)]
pub struct Launch {
    program: PathBuf,
    arguments: Vec<std::ffi::OsString>,
}

/// What is to be given.
#[derive(Debug)]
pub struct Estate<'a> {
    pub ports: &'a [Port],
    /// What the service manager has given, whether a port has it or not.
    pub passed: &'a Passed,
    pub doors: &'a Doors,
    pub site: &'a Site,
    /// The table of the packet filter.
    pub offload: Option<String>,
}

/// The new process. Dropped before it serves, it is killed.
#[derive(Debug)]
pub struct Successor {
    /// `None`: it has a life of its own.
    child: Option<Child>,
    pid: u32,
    release: String,
    taken: Taken,
    line: Line,
    end: Instant,
}

/// What the new process may take for each step (traps L7).
const STEP: Duration = Duration::from_secs(10);

/// What it may take in all: an operator waits for the answer.
const WHOLE: Duration = Duration::from_secs(25);

/// How long one may take to exit that has closed its line.
const EXIT: Duration = Duration::from_secs(1);

impl Launch {
    /// Of this process. The path is the one that it was started by, so that a file which replaces the old one there is found;
    /// it is made absolute now. Where that path is none of this program (a shell gave it another name), it is the file itself.
    pub fn of_this_process() -> io::Result<Self> {
        let own = fs::metadata("/proc/self/exe")?;
        let is_own =
            |path: &PathBuf| fs::metadata(path).is_ok_and(|file| (file.dev(), file.ino()) == (own.dev(), own.ino()));
        let mut arguments = env::args_os();
        let name = PathBuf::from(arguments.next().unwrap_or_default());
        let named = if name.components().count() > 1 {
            Some(std::path::absolute(name)?)
        } else {
            let folders = env::var_os("PATH").unwrap_or_default();
            env::split_paths(&folders).map(|folder| folder.join(&name)).find(is_own)
        };
        let program = match named.filter(is_own) {
            Some(program) => program,
            None => fs::read_link("/proc/self/exe")?,
        };
        Ok(Self { program, arguments: arguments.collect() })
    }

    /// Starts it with the same arguments, folder and environment.
    async fn start(&self) -> Result<(Child, Line), String> {
        let program = self.program.display().to_string();
        let cannot = |error: io::Error| format!("cannot start `{program}`: {error}");
        let (own, other) = Packets::pair().map_err(cannot)?;
        let line = Line::new(own).map_err(cannot)?;
        let mut command = Command::new(&self.program);
        command.args(&self.arguments).env(VARIABLE, "stdin").stdin(other);
        // These are for this process: the new one gets its sockets from us, and is watched as well.
        for name in ["LISTEN_PID", "LISTEN_FDS", "LISTEN_FDNAMES", "WATCHDOG_PID"] {
            command.env_remove(name);
        }
        // Reading a program from a slow disk must not hold the control thread up.
        let child = tokio::task::spawn_blocking(move || command.spawn()).await.map_err(io::Error::other).flatten();
        Ok((child.map_err(cannot)?, line))
    }
}

impl Estate<'_> {
    fn deed(&self) -> (Deed, Vec<BorrowedFd<'_>>) {
        let mut descriptors: Vec<_> = self.ports.iter().flat_map(Port::descriptors).collect();
        descriptors.push(self.doors.tcp());
        descriptors.extend(self.doors.unix().map(|(_, descriptor)| descriptor));
        descriptors.extend(self.passed.descriptors());
        let ports = self.ports.iter().map(|port| PortDeed {
            listener: port.listener.to_string(),
            bind: port.bind,
            sockets: port.descriptors().count(),
            is_passed: port.is_passed(),
        });
        let deed = Deed {
            ports: ports.collect(),
            passed: self.passed.descriptors().count(),
            admin: self.doors.bind,
            socket: self.doors.unix().map(|(path, _)| path.to_owned()),
            memory: Memory::of(self.site),
            offload: self.offload.clone(),
        };
        (deed, descriptors)
    }
}

impl Successor {
    /// Starts it and brings it to the point where it only waits for the word. Nothing has changed until then, and nothing
    /// has when this fails or is dropped.
    pub async fn prepare(launch: &Launch, estate: &Estate<'_>) -> Result<Self, String> {
        let (child, line) = launch.start().await?;
        let (pid, end) = (child.id(), Instant::now() + WHOLE);
        let mut new = Self { child: Some(child), pid, release: String::new(), taken: Taken::default(), line, end };
        match new.hear("to begin").await? {
            Heir::Hello { release } => new.release = release,
            other => return Err(unexpected(other)),
        }
        match new.hear("to read the configuration").await? {
            Heir::Loaded => {}
            other => return Err(unexpected(other)),
        }
        let (deed, descriptors) = estate.deed();
        let estate = Giver::Estate(deed);
        let given = timeout(STEP, new.line.give(&estate, &descriptors)).await.map_err(io::Error::from).flatten();
        given.map_err(|error| format!("the new process does not take the sockets: {error}"))?;
        match new.hear("to prepare itself").await? {
            Heir::Prepared(taken) => new.taken = taken,
            other => return Err(unexpected(other)),
        }
        Ok(new)
    }

    /// Has it serve. When this returns, it accepts.
    pub async fn go(&mut self, totals: Totals) -> Result<(), String> {
        let said = timeout(STEP, self.line.say(&Giver::Go(Box::new(totals)))).await.map_err(io::Error::from).flatten();
        said.map_err(|error| format!("the new process does not listen: {error}"))?;
        match self.hear("to start its workers").await? {
            Heir::Serving => {}
            other => return Err(unexpected(other)),
        }
        self.child = None;
        Ok(())
    }

    pub fn pid(&self) -> u32 {
        self.pid
    }

    /// Which release it is.
    pub fn release(&self) -> &str {
        &self.release
    }

    /// What it took.
    pub fn taken(&self) -> &Taken {
        &self.taken
    }

    /// Tells what has been counted up to now, unless the new process is in no state to hear it.
    pub async fn report(&self, totals: Totals) {
        let _ = timeout(EXIT, self.line.say(&Giver::Counted(Box::new(totals)))).await;
    }

    /// The same for the last time.
    pub async fn take_leave(self, totals: Totals) {
        let _ = timeout(EXIT, self.line.say(&Giver::Farewell(Box::new(totals)))).await;
    }

    async fn hear<T: DeserializeOwned>(&mut self, step: &str) -> Result<T, String> {
        let begin = Instant::now();
        match timeout_at(self.end.min(begin + STEP), self.line.hear()).await {
            Ok(Ok((message, _))) => Ok(message),
            Ok(Err(Silence::Closed)) => Err(self.fate().await),
            Ok(Err(silence)) => Err(format!("the new process cannot be understood: {silence}")),
            Err(_) => {
                let waited = begin.elapsed().as_secs_f64();
                Err(format!("the new process took longer than {waited:.0} s {step}: it was killed"))
            }
        }
    }

    /// What became of a process that has closed the line.
    async fn fate(&mut self) -> String {
        const LOOK: Duration = Duration::from_millis(10);
        let end = Instant::now() + EXIT;
        while let Some(child) = &mut self.child
            && Instant::now() < end
        {
            match child.try_wait() {
                Ok(Some(status)) => return ended(status),
                Ok(None) => tokio::time::sleep(LOOK).await,
                Err(_) => break,
            }
        }
        "the new process has closed the line to this one: it was killed".to_owned()
    }
}

impl Drop for Successor {
    fn drop(&mut self) {
        if let Some(child) = &mut self.child {
            // It may have ended by itself; either way nothing of it stays.
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}

fn ended(status: ExitStatus) -> String {
    format!("the new process ended ({status}) before it served: its last messages tell more")
}

fn unexpected(message: Heir) -> String {
    match message {
        Heir::Failed { reason } => reason,
        other => format!("the new process says something that makes no sense now: {other:?}"),
    }
}

/// The descriptors of a port, for the new process.
impl Port {
    fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.sockets().iter().map(AsFd::as_fd)
    }
}
