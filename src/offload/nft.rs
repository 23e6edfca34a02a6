//! The program of the packet filter, as a child that comes to its end.

use std::{
    env,
    fs::File,
    io::{self, BufWriter, Read as _, Seek as _},
    path::{Path, PathBuf},
    process::{Command, ExitStatus, Stdio},
    thread,
    time::{Duration, Instant},
};

use serde::Serialize;

use crate::sys::file::in_memory;

/// How long it may take; as many ranges as may be take some two seconds.
const PATIENCE: Duration = Duration::from_secs(20);

/// Between two looks whether it has ended.
const LOOK: Duration = Duration::from_millis(2);

/// How much of a complaint is told.
const MAX_REASON: usize = 300;

/// Carries commands out, all or none of them.
pub fn carry_out(script: &impl Serialize) -> Result<(), String> {
    let cannot = |error: io::Error| format!("no memory for the rules: {error}");
    let mut input = BufWriter::new(in_memory("rules").map_err(cannot)?);
    serde_json::to_writer(&mut input, script).map_err(|error| cannot(error.into()))?;
    let mut input = input.into_inner().map_err(|error| cannot(error.into_error()))?;
    input.rewind().map_err(cannot)?;
    run(&["-j", "-f", "-"], Stdio::from(input)).map(drop)
}

/// Asks a question, and gives the answer.
pub fn ask(words: &[&str]) -> Result<Vec<u8>, String> {
    run(words, Stdio::null())
}

/// Blocks until it has ended. Its input and output are memory, so neither side waits for the other.
fn run(words: &[&str], input: Stdio) -> Result<Vec<u8>, String> {
    let program = find();
    let cannot = |error: io::Error| {
        let help = if error.kind() == io::ErrorKind::NotFound { ": install nftables" } else { "" };
        format!("cannot run `{}`: {error}{help}", program.display())
    };
    let (mut output, mut complaint) = (in_memory("answer").map_err(cannot)?, in_memory("complaint").map_err(cannot)?);
    let mut command = Command::new(&program);
    command.args(words).env("LC_ALL", "C").stdin(input);
    command.stdout(output.try_clone().map_err(cannot)?).stderr(complaint.try_clone().map_err(cannot)?);
    let status = wait(&mut command).map_err(cannot)?;
    let Some(status) = status else {
        return Err(format!("`nft {}` took longer than {} s", words.join(" "), PATIENCE.as_secs()));
    };
    if !status.success() {
        return Err(told(&whole(&mut complaint).map_err(cannot)?, words, status));
    }
    whole(&mut output).map_err(cannot)
}

/// `None`: it took too long, and was killed.
fn wait(command: &mut Command) -> io::Result<Option<ExitStatus>> {
    let mut child = command.spawn()?;
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(status) = child.try_wait()? {
            return Ok(Some(status));
        }
        if Instant::now() >= end {
            child.kill()?;
            child.wait()?;
            return Ok(None);
        }
        thread::sleep(LOOK);
    }
}

/// Its first line, in one.
fn told(complaint: &[u8], words: &[&str], status: ExitStatus) -> String {
    let text = String::from_utf8_lossy(complaint);
    let line = text.lines().find(|line| !line.trim().is_empty()).unwrap_or_default().trim();
    let line = line.get(..line.floor_char_boundary(MAX_REASON)).unwrap_or_default();
    let help = if line.contains("not permitted") { " (the capability CAP_NET_ADMIN is needed)" } else { "" };
    format!("`nft {}` ended with {status}: {line}{help}", words.join(" "))
}

fn whole(file: &mut File) -> io::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    file.rewind()?;
    file.read_to_end(&mut bytes)?;
    Ok(bytes)
}

/// In the folders of `PATH`, and in those that only an administrator has there.
fn find() -> PathBuf {
    let path = env::var_os("PATH").unwrap_or_default();
    let folders = env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let mut files = folders.map(|folder| folder.join("nft"));
    files.find(|file| file.is_file()).unwrap_or_else(|| Path::new("nft").to_owned())
}
