//! Files that are no configuration, and configurations that cannot be true.

use std::{
    fs::{self, File},
    net::TcpListener,
    path::Path,
};

use rustix::fs::{CWD, Mode, mkfifoat};
use tempfile::TempDir;

use super::refused;
use crate::support::{
    Backend, Gate, SOON,
    gate::{pool, tcp},
    process::Process,
};

fn with(content: impl AsRef<[u8]>) -> TempDir {
    let directory = TempDir::new().unwrap();
    fs::write(directory.path().join("bad.toml"), content).unwrap();
    directory
}

#[test]
fn a_missing_configuration() {
    let directory = TempDir::new().unwrap();
    refused(directory.path(), "nowhere.toml", &["nowhere.toml", "no such file"]);
}

#[test]
fn an_empty_configuration() {
    for nothing in ["", "\n\n", "# only a comment\n"] {
        refused(with(nothing).path(), "bad.toml", &["bad.toml", "listener"]);
    }
}

#[test]
fn a_configuration_that_is_not_utf_8() {
    refused(with(b"[listener.tcp]\nbind = \"127.0.0.1:0\"\n# caf\xe9\n").path(), "bad.toml", &["bad.toml", "utf-8"]);
}

#[test]
fn a_configuration_that_is_a_directory() {
    let directory = TempDir::new().unwrap();
    fs::create_dir(directory.path().join("conf.d")).unwrap();
    refused(directory.path(), "conf.d", &["conf.d", "directory"]);
}

/// It must not wait for a writer.
#[test]
fn a_configuration_that_is_a_fifo() {
    let directory = TempDir::new().unwrap();
    mkfifoat(CWD, directory.path().join("pipe.toml"), Mode::RUSR | Mode::WUSR).unwrap();
    refused(directory.path(), "pipe.toml", &["pipe.toml"]);
}

#[test]
fn a_configuration_of_100_mb() {
    let directory = with("");
    File::options().write(true).open(directory.path().join("bad.toml")).unwrap().set_len(100_000_000).unwrap();
    refused(directory.path(), "bad.toml", &["bad.toml"]);
}

#[test]
fn a_configuration_with_nul_bytes_and_garbage() {
    for garbage in [&b"\0\0\0\0"[..], b"\x1b[2J = 1\n", b"[[[[[[[[\n", b"a = {a = {a = {a = {", b"listener = 3\n"] {
        refused(with(garbage).path(), "bad.toml", &["bad.toml"]);
    }
}

#[test]
fn a_very_deep_configuration() {
    let deep = format!("a = {}{}\n", "[".repeat(100_000), "]".repeat(100_000));
    refused(with(deep).path(), "bad.toml", &["bad.toml"]);
}

/// A configuration with one thing wrong.
fn changed(from: &str, to: &str) -> TempDir {
    let good = tcp("") + &pool("", &["127.0.0.1:1".parse().unwrap()]) + "[admin]\nbind = \"127.0.0.1:0\"\n";
    assert!(good.contains(from), "{from} in {good}");
    with(good.replacen(from, to, 1))
}

#[test]
fn an_unknown_key_is_named_with_what_was_meant() {
    let directory = changed("pool = \"web\"", "pol = \"web\"");
    refused(directory.path(), "bad.toml", &["bad.toml:3", "pol", "did you mean `pool`"]);
}

#[test]
fn an_unknown_pool_is_named() {
    refused(changed("pool = \"web\"", "pool = \"wbe\"").path(), "bad.toml", &["bad.toml:3", "wbe", "web"]);
}

#[test]
fn malformed_addresses_are_named_with_their_line() {
    let bind = "bind = \"127.0.0.1:0\"\npool";
    for bad in ["127.0.0.1", "127.0.0.1:99999", "localhost:http", ":::80", "256.0.0.1:80", "[::1:80", "", " "] {
        let directory = changed(bind, &format!("bind = \"{bad}\"\npool"));
        refused(directory.path(), "bad.toml", &["bad.toml:2"]);
        let directory = changed("\"127.0.0.1:1\"", &format!("\"{bad}\""));
        refused(directory.path(), "bad.toml", &["bad.toml:6"]);
    }
}

#[test]
fn an_unresolvable_backend_is_named() {
    let directory = changed("127.0.0.1:1", "does-not-exist.invalid:80");
    refused(directory.path(), "bad.toml", &["bad.toml:6", "does-not-exist.invalid"]);
}

#[test]
fn every_error_of_a_file_is_told_at_once() {
    let directory =
        with("[listener.tcp]\nbind = \"127.0.0.1\"\npol = \"web\"\n[pool.web]\nbackends = []\nbalance = \"rr\"\n");
    refused(directory.path(), "bad.toml", &["bad.toml:2", "bad.toml:3", "bad.toml:6", "round_robin"]);
}

#[test]
fn a_port_in_use_is_named_with_a_cure() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let directory = changed("bind = \"127.0.0.1:0\"\npool", &format!("bind = \"{address}\"\npool"));
    run_refused(directory.path(), &[&address, "in use"]);
}

#[test]
fn the_port_of_another_gate_is_in_use_although_workers_share_ports() {
    let backend = Backend::echo();
    let gate = Gate::start(&[tcp(""), pool("", &[backend.address])].concat());
    let address = gate.address("tcp").to_string();
    let directory = changed("bind = \"127.0.0.1:0\"\npool", &format!("bind = \"{address}\"\npool"));
    run_refused(directory.path(), &[&address, "in use"]);
    gate.finish();
}

#[test]
fn an_admin_port_in_use_is_named_too() {
    let held = TcpListener::bind("127.0.0.1:0").unwrap();
    let address = held.local_addr().unwrap().to_string();
    let directory = changed("[admin]\nbind = \"127.0.0.1:0\"", &format!("[admin]\nbind = \"{address}\""));
    run_refused(directory.path(), &[&address, "in use"]);
}

#[test]
fn an_address_of_another_host_cannot_be_bound_and_is_named() {
    let directory = changed("bind = \"127.0.0.1:0\"\npool", "bind = \"192.0.2.1:4433\"\npool");
    run_refused(directory.path(), &["192.0.2.1:4433"]);
}

/// `check` does not bind, so only `run` can know.
#[track_caller]
fn run_refused(directory: &Path, needles: &[&str]) {
    let ended = Process::run(&["run", "--config", "bad.toml"], directory, SOON);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(!ended.stderr.contains("panicked"), "{}", ended.stderr);
    for needle in needles {
        assert!(ended.stderr.contains(needle), "`{needle}` is not said: {}", ended.stderr);
    }
}

#[test]
fn a_missing_list_file_is_named() {
    let firewall = "[firewall]\nrules = [{ name = \"bad\", deny_file = \"deny.txt\" }]\n[admin]";
    refused(changed("[admin]", firewall).path(), "bad.toml", &["deny.txt", "no such file"]);
}

#[test]
fn a_second_start_on_the_same_log_file_does_not_lose_the_first() {
    let backend = Backend::named("x");
    let toml = tcp("") + &pool("", &[backend.address]) + "[log]\naccess = \"access.log\"\n";
    let gate = Gate::start(&toml);
    assert_eq!(crate::support::client::ask(gate.address("tcp")), "x");
    let path = gate.directory.path().join("access.log");
    gate.wait_outcome("backend_closed", 1);
    crate::support::wait_until(SOON, "a record in the file", || {
        fs::read_to_string(&path).is_ok_and(|log| log.lines().count() == 1)
    });
    assert!(gate.records().is_empty(), "not on stdout");
    gate.finish();
}
