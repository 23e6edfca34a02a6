//! The service manager: what it is told, the sockets it passes, and the unit it runs.

use std::{
    net::{TcpListener, TcpStream},
    os::unix::{fs::PermissionsExt, net::UnixDatagram},
    path::Path,
    process::Command,
};

use rustix::process::Signal;
use tempfile::TempDir;

use super::site;
use crate::support::{Backend, Gate, LATE, Process, SOON, client, process::BINARY, programs, wait_until};

#[test]
fn the_unit_gives_the_process_little_to_break() {
    let Some(analyze) = programs::require("systemd-analyze") else { return };
    let unit = Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/sluicegate.service");
    let output = Command::new(analyze)
        .args(["security", "--offline=true", "--threshold=20", "--no-pager"])
        .arg(unit)
        .output()
        .unwrap();
    let text = String::from_utf8_lossy(&output.stdout);
    println!("{}", text.lines().last().unwrap_or_default());
    assert!(output.status.success(), "above 2.0:\n{text}\n{}", String::from_utf8_lossy(&output.stderr));
}

#[test]
fn the_manager_hears_ready_alive_and_stopping() {
    let backend = Backend::echo();
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("sluicegate.toml"), configuration(&backend, "127.0.0.1:0")).unwrap();
    let manager = UnixDatagram::bind(directory.path().join("notify")).unwrap();
    manager.set_read_timeout(Some(SOON)).unwrap();
    let hear = || {
        let mut bytes = [0; 4096];
        let count = manager.recv(&mut bytes).expect("a word of the process");
        String::from_utf8_lossy(&bytes[..count]).into_owned()
    };
    let line = "export NOTIFY_SOCKET=\"$PWD/notify\" WATCHDOG_USEC=300000";
    let mut process = Process::start_after(line, &["run", "--config", "sluicegate.toml"], directory.path());
    let mut words = vec![hear()];
    while words.iter().filter(|word| word.contains("WATCHDOG=1")).count() < 3 {
        words.push(hear());
    }
    assert!(words.iter().any(|word| word.contains("READY=1")), "{words:?}");
    process.signal(Signal::TERM);
    let stopping = std::iter::repeat_with(hear).find(|word| word.contains("STOPPING=1")).unwrap();
    assert!(stopping.contains("EXTEND_TIMEOUT_USEC=40000000") && stopping.contains("STATUS=draining"), "{stopping}");
    assert_eq!(process.wait(SOON).and_then(|status| status.code()), Some(0));
}

/// What `systemctl reload` runs: its exit code is the verdict of the process, which sees more than the file.
#[test]
fn a_reload_by_the_manager_fails_where_the_process_refuses_and_only_there() {
    let unit = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("deploy/systemd/sluicegate.service"));
    let unit = unit.unwrap();
    let commands: Vec<_> = unit.lines().filter_map(|line| line.strip_prefix("ExecReload=")).collect();
    let [command] = commands[..] else { panic!("{commands:?}") };
    let words: Vec<_> =
        command.split(' ').skip(1).map(|word| if word.contains('/') { "sluicegate.toml" } else { word }).collect();
    let backend = Backend::named("a");
    let gate =
        Gate::plan(&site(backend.address, "1s")).admin("socket = \"admin.sock\"").global("watch = false").start();
    let file = gate.directory.path().join("sluicegate.toml");
    let good = std::fs::read_to_string(&file).unwrap();
    let reload = || Process::run(&words, gate.directory.path(), LATE);
    assert_eq!(reload().code, Some(0));
    let taken = TcpListener::bind("127.0.0.1:0").unwrap();
    let more = format!("[listener.x]\nbind = \"{}\"\npool = \"web\"\n", taken.local_addr().unwrap());
    std::fs::write(&file, format!("{good}{more}")).unwrap();
    let refused = reload();
    assert!(refused.code == Some(3) && refused.stderr.contains("E108"), "{}", refused.stderr);
    drop(taken);
    assert_eq!(reload().code, Some(0));
    std::fs::write(&file, good).unwrap();
    assert_eq!(reload().code, Some(0));
    gate.finish();
}

/// Nothing has to be configured for the verbs where a manager gives the process a folder.
#[test]
fn the_admin_socket_is_in_the_folder_of_the_manager() {
    let backend = Backend::echo();
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("sluicegate.toml"), configuration(&backend, "127.0.0.1:0")).unwrap();
    let line = "mkdir run && export RUNTIME_DIRECTORY=\"$PWD/run:$PWD/other\"";
    let process = Process::start_after(line, &["run", "--config", "sluicegate.toml"], directory.path());
    let gate = Gate::over(process, directory, LATE);
    let socket = gate.directory.path().join("run/admin.sock");
    assert_eq!(std::fs::metadata(&socket).unwrap().permissions().mode() & 0o777, 0o600);
    for verb in ["status", "plan", "reload"] {
        let ended = Process::run(&[verb, "--socket", "run/admin.sock"], gate.directory.path(), LATE);
        assert_eq!(ended.code, Some(0), "{verb}: {}", ended.stderr);
    }
    gate.finish();
}

/// Clients that come before the process is there wait for it, and the socket is not bound again.
#[test]
fn a_socket_that_is_passed_is_used() {
    let Some(activate) = programs::require("systemd-socket-activate") else { return };
    let backend = Backend::echo();
    let free = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = free.local_addr().unwrap();
    drop(free);
    let directory = TempDir::new().unwrap();
    std::fs::write(directory.path().join("sluicegate.toml"), configuration(&backend, &address.to_string())).unwrap();
    let listen = format!("--listen={address}");
    let arguments = [&*listen, BINARY, "run", "--config", "sluicegate.toml"];
    let process = Process::start_program(&activate, &arguments, directory.path());
    let mut early = None;
    wait_until(SOON, "a socket of the manager's", || {
        early = TcpStream::connect(address).ok();
        early.is_some()
    });
    let mut early = client::bounded(early.unwrap());
    client::exchange(&mut early, b"before there was a process");
    drop(early);
    let gate = Gate::over(process, directory, LATE);
    assert_eq!(gate.address("tcp"), address);
    let mut late = client::connect(address);
    client::exchange(&mut late, b"and after");
    drop(late);
    gate.wait_metrics("two connections", |m| m.outcome("client_closed") == 2);
    assert!(!gate.process.stderr.text().contains("no listener has"));
    gate.finish();
}

fn configuration(backend: &Backend, bind: &str) -> String {
    site(backend.address, "30s").replace("127.0.0.1:0", bind).replace("[pool.web]", "[pool.web]\ncheck = \"off\"")
        + "[admin]\nbind = \"127.0.0.1:0\"\n"
}
