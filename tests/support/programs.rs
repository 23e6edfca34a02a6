//! The programs users have: curl, openssl, wrk, strace. Missing ones fail in CI and are told how to get locally.

use std::{
    ffi::OsStr,
    io::{Read, Write},
    path::{Path, PathBuf},
    process::{Child, Command, Stdio},
    thread::{self, JoinHandle},
    time::Duration,
};

use super::{LATE, wait_for};

/// Programs whose Debian package has another name.
const PACKAGES: [(&str, &str); 10] = [
    ("ip", "iproute2"),
    ("mariadb", "mariadb-client"),
    ("mariadb-install-db", "mariadb-server"),
    ("mariadbd", "mariadb-server"),
    ("nft", "nftables"),
    ("setpriv", "util-linux"),
    ("stunnel", "stunnel4"),
    ("systemd-analyze", "systemd"),
    ("systemd-socket-activate", "systemd"),
    ("unshare", "util-linux"),
];

/// Where a program is. Missing: a failure in CI, a line to read elsewhere.
#[track_caller]
pub fn require(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let places = std::env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]);
    let found = places.map(|place| place.join(program)).find(|file| file.is_file());
    if found.is_none() {
        let package = PACKAGES.iter().find(|(name, _)| *name == program).map_or(program, |(_, package)| package);
        skip(&format!("{program} is missing: apt-get install {package}"));
    }
    found
}

/// Something that this host has to have is not there: a failure in CI, a line to read elsewhere.
#[track_caller]
pub fn skip(reason: &str) {
    assert!(std::env::var("CI").as_deref() != Ok("true"), "{reason}");
    println!("skipped: {reason}");
}

/// How a program ended.
#[derive(Debug)]
pub struct Output {
    pub success: bool,
    pub stdout: String,
    pub stderr: String,
}

/// Runs a program to its end with this input.
#[track_caller]
pub fn run<A: AsRef<OsStr>>(program: &Path, arguments: &[A], directory: &Path, input: &[u8]) -> Output {
    let mut command = Command::new(program);
    finish(command.args(arguments).current_dir(directory), input)
}

/// Runs a line as it was printed for a user.
#[track_caller]
pub fn shell(line: &str, directory: &Path) -> Output {
    run(Path::new("/bin/sh"), &["-c", line], directory, b"")
}

#[track_caller]
fn finish(command: &mut Command, input: &[u8]) -> Output {
    let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (stdout, stderr) = (collect(child.stdout.take().unwrap()), collect(child.stderr.take().unwrap()));
    let mut stdin = child.stdin.take().unwrap();
    let input = input.to_vec();
    let feeder = thread::spawn(move || drop(stdin.write_all(&input)));
    let status = wait_for(LATE, || child.try_wait().unwrap());
    if status.is_none() {
        end(&mut child);
    }
    feeder.join().unwrap();
    let (stdout, stderr) = (stdout.join().unwrap(), stderr.join().unwrap());
    let status = status.unwrap_or_else(|| panic!("{command:?} still ran after {LATE:?}\n{stdout}\n{stderr}"));
    Output { success: status.success(), stdout, stderr }
}

fn collect(mut source: impl Read + Send + 'static) -> JoinHandle<String> {
    thread::spawn(move || {
        let mut bytes = Vec::new();
        let _ = source.read_to_end(&mut bytes);
        String::from_utf8_lossy(&bytes).into_owned()
    })
}

/// Ends a child of ours.
pub fn end(child: &mut Child) {
    let _ = child.kill();
    let _ = child.wait();
}

/// curl for `https://foobar.com:PORT/`, against the authority in the directory.
#[track_caller]
pub fn curl(curl: &Path, address: std::net::SocketAddr, directory: &Path, more: &[&str]) -> String {
    let resolve = format!("foobar.com:{}:{}", address.port(), address.ip());
    let url = format!("https://foobar.com:{}/", address.port());
    let mut arguments = vec!["-sS", "--fail", "--max-time", "20", "--cacert", "ca.pem", "--resolve", &resolve];
    arguments.extend(more);
    arguments.push(&url);
    let output = run(curl, &arguments, directory, b"");
    assert!(output.success, "curl {arguments:?}: {}", output.stderr);
    output.stdout
}

/// wrk with a report that shows no error; the number of requests it made.
#[track_caller]
pub fn wrk(wrk: &Path, url: &str, connections: usize, time: Duration) -> u64 {
    let (connections, time) = (format!("-c{connections}"), format!("-d{}s", time.as_secs()));
    let output = run(wrk, &["-t2", &connections, &time, url], Path::new("/"), b"");
    assert!(output.success, "{}{}", output.stdout, output.stderr);
    faultless(&output.stdout)
}

/// The number of requests in a report of wrk that shows no error.
#[track_caller]
pub fn faultless(report: &str) -> u64 {
    assert!(!report.contains("Socket errors") && !report.contains("Non-2xx"), "{report}");
    let line = report.lines().find(|line| line.contains(" requests in ")).unwrap_or_else(|| panic!("{report}"));
    let requests = line.split_whitespace().next().and_then(|n| n.parse().ok()).unwrap_or(0);
    assert!(requests > 0, "{report}");
    requests
}

/// The request an `openssl s_client` sends here: the server closes, so the client sees what comes after the handshake.
const REQUEST: &[u8] = b"GET / HTTP/1.1\r\nHost: foobar.com\r\nConnection: close\r\n\r\n";

/// `openssl s_client` with one HTTP request; its whole report.
#[track_caller]
pub fn s_client(openssl: &Path, address: std::net::SocketAddr, directory: &Path, more: &[&str]) -> Output {
    let address = address.to_string();
    let mut arguments = vec!["s_client", "-connect", &address, "-CAfile", "ca.pem", "-ign_eof"];
    arguments.extend(more);
    let mut output = run(openssl, &arguments, directory, REQUEST);
    output.stdout += &output.stderr;
    output
}
