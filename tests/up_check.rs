//! `up`, `check`, and what the command line says to wrong words.

use std::path::Path;

use serde_json::Value;
use tempfile::TempDir;

use crate::support::{
    Authority, Backend, Gate, LATE, Process, SOON,
    gate::{backend, https, pool, tcp},
    process::Ended,
    programs::{curl, require},
    wait_until,
};

#[test]
fn up_serves_a_site_without_a_file_and_prints_what_it_runs() {
    let Some(program) = require("curl") else { return };
    let backends = [Backend::http("first"), Backend::http("second")];
    let addresses = backends.each_ref().map(|b| b.address.to_string());
    let directory = TempDir::new().unwrap();
    Authority::write(directory.path(), "foobar", &Authority::leaf(&["foobar.com"]));
    std::fs::write(directory.path().join("ca.pem"), Authority::pem()).unwrap();
    let arguments = [
        &["up", "foobar.com", "--to", &addresses[0], &addresses[1]][..],
        &["--cert", "foobar.pem", "--key", "foobar.key", "--bind", "127.0.0.1:0", "--admin", "127.0.0.1:0"],
    ];
    let process = Process::start(&arguments.concat(), directory.path());
    let gate = Gate::over(process, directory, SOON);
    let listening =
        gate.process.messages().into_iter().find(|m| m["message"] == "listening" && m["listener"] != "admin");
    let address = listening.expect("a listener")["address"].as_str().unwrap().parse().unwrap();
    let answers = [0; 4].map(|_| curl(&program, address, gate.directory.path(), &["--http1.1"]));
    assert_eq!(answers, ["first", "second", "first", "second"]);
    wait_until(SOON, "its configuration", || addresses.iter().all(|a| gate.process.stdout.text().contains(a)));
    runs_again(&gate.process.stdout.all(), gate.directory.path());
    gate.finish();
}

/// The printed TOML is a configuration: it can be saved and checked.
fn runs_again(stdout: &[String], directory: &Path) {
    let toml: Vec<&str> = stdout.iter().map(String::as_str).filter(|line| !line.starts_with('{')).collect();
    std::fs::write(directory.join("saved.toml"), toml.join("\n")).unwrap();
    let ended = Process::run(&["check", "--config", "saved.toml"], directory, SOON);
    assert_eq!(ended.code, Some(0), "{}\n{}", toml.join("\n"), ended.stderr);
}

/// Its folder once had a name that anybody could take first: `sluicegate-demo-PID`.
#[test]
fn a_demo_starts_beside_a_folder_of_its_old_name() {
    let taken = "export TMPDIR=\"$PWD\" && mkdir \"sluicegate-demo-$$\"";
    let any = "127.0.0.1:0";
    let directory = TempDir::new().unwrap();
    let process =
        Process::start_after(taken, &["demo", "--https", any, "--tcp", any, "--admin", any], directory.path());
    let old = directory.path().join(format!("sluicegate-demo-{}", process.pid()));
    let mut gate = Gate::over(process, directory, SOON);
    assert!(old.is_dir());
    assert_eq!(std::fs::read_dir(gate.directory.path()).unwrap().count(), 2);
    gate.stop_now();
    assert_eq!(std::fs::read_dir(gate.directory.path()).unwrap().count(), 1, "its own folder is gone");
}

/// `check` on this configuration, with further words.
fn check(toml: &str, list: &str, more: &[&str]) -> Ended {
    let plan = Gate::plan(toml).file("deny.txt", list);
    plan.write();
    Process::run(&[&["check", "--config", "sluicegate.toml"], more].concat(), plan.path(), LATE)
}

fn three_backends() -> String {
    pool("", &["127.0.0.1:1", "127.0.0.1:2", "127.0.0.1:3"].map(|a| a.parse().unwrap()))
}

const DENY_LIST: &str = "[firewall]\nrules = [{ name = \"bad\", deny_file = \"deny.txt\" }]\n";

#[test]
fn check_counts_what_it_read() {
    let toml = [&tcp(""), &https(""), &three_backends(), DENY_LIST].concat();
    let ended = check(&toml, "192.0.2.0/24\n198.51.100.7\n2001:db8::/32\n", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.stdout.lines().last().unwrap_or_default();
    assert_eq!(last, "ok: 2 listeners, 1 pool, 3 backends (active-active), 3 deny prefixes", "{}", ended.stdout);
}

#[test]
fn check_tells_active_passive() {
    let list = [
        backend("1", "127.0.0.1:1".parse().unwrap(), ""),
        backend("2", "127.0.0.1:2".parse().unwrap(), "role = \"backup\""),
    ];
    let ended = check(&(tcp("") + &list.concat()), "", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    let last = ended.stdout.lines().last().unwrap_or_default();
    assert!(last.starts_with("ok: 1 listener, 1 pool, 2 backends (active-passive)"), "{last}");
}

/// F2: host bits in a list are a warning, and an error for who wants it strict.
#[test]
fn f2_strict_makes_warnings_errors() {
    let toml = [&tcp(""), &three_backends(), DENY_LIST].concat();
    let ended = check(&toml, "10.0.0.5/8\n", &[]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
    assert!(ended.stderr.contains("warning") && ended.stderr.contains("deny.txt"), "{}", ended.stderr);
    let ended = check(&toml, "10.0.0.5/8\n", &["--strict"]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    let ended = check(&toml, "10.0.0.0/8\n", &["--strict"]);
    assert_eq!(ended.code, Some(0), "{}", ended.stderr);
}

#[test]
fn f2_host_bits_in_the_configuration_are_an_error_with_both_meanings() {
    let rules = "[firewall]\nrules = [{ name = \"bad\", deny = \"10.0.0.5/8\" }]\n";
    let ended = check(&[&tcp(""), &three_backends(), rules].concat(), "", &[]);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("10.0.0.0/8") && ended.stderr.contains("10.0.0.5/32"), "{}", ended.stderr);
}

#[test]
fn check_speaks_json() {
    let good = check(&(tcp("") + &three_backends()), "", &["--json"]);
    assert_eq!(good.code, Some(0), "{}", good.stderr);
    let value: Value = serde_json::from_str(&good.stdout).expect("one JSON document");
    assert!(value.is_object() || value.is_array(), "{value}");
    let bad = check(&(tcp("balence = 1") + &three_backends()), "", &["--json"]);
    assert_eq!(bad.code, Some(1), "{}", bad.stderr);
    let value: Value = serde_json::from_str(&bad.stdout).expect("one JSON document");
    assert!(value.to_string().contains("balence"), "{value}");
}

#[test]
fn check_runs_the_firewall_tests() {
    let tests = |expect: &str| {
        let firewall = format!(
            "[firewall]\nrules = [{{ name = \"bad\", deny = \"198.51.100.0/24\" }}]\n\
             tests = [{{ from = \"198.51.100.7\", expect = \"{expect}\" }}]\n"
        );
        check(&[tcp(""), three_backends(), firewall].concat(), "", &[])
    };
    assert_eq!(tests("deny").code, Some(0));
    let wrong = tests("allow");
    assert_eq!(wrong.code, Some(1), "{}", wrong.stdout);
    assert!(wrong.stderr.contains("198.51.100.7") && wrong.stderr.contains("bad"), "{}", wrong.stderr);
}

#[test]
fn wrong_words_are_usage_errors() {
    let directory = TempDir::new().unwrap();
    let wrong: [&[&str]; 8] = [
        &[],
        &["frobnicate"],
        &["run", "--nope"],
        &["run", "--config"],
        &["check", "extra"],
        &["up"],
        &["up", "foobar.com"],
        &["demo", "--https", "nonsense"],
    ];
    for arguments in wrong {
        let ended = Process::run(arguments, directory.path(), SOON);
        assert_eq!(ended.code, Some(64), "{arguments:?}: {}{}", ended.stdout, ended.stderr);
        assert!(ended.stderr.to_lowercase().contains("usage") || ended.stderr.contains("error"), "{}", ended.stderr);
    }
}

#[test]
fn help_and_version_are_no_errors() {
    let directory = TempDir::new().unwrap();
    for arguments in [&["--help"][..], &["--version"], &["run", "--help"], &["demo", "--help"], &["up", "--help"]] {
        let ended = Process::run(arguments, directory.path(), SOON);
        assert_eq!(ended.code, Some(0), "{arguments:?}: {}", ended.stderr);
        assert!(ended.stdout.contains("sluicegate") && ended.stderr.is_empty(), "{arguments:?}: {}", ended.stdout);
    }
}

/// Without `--config` the variable decides.
#[test]
fn the_default_configuration_is_named_when_it_is_missing() {
    let directory = TempDir::new().unwrap();
    let ended = Process::run(&["check"], directory.path(), SOON);
    assert_eq!(ended.code, Some(1), "{}", ended.stderr);
    assert!(ended.stderr.contains("/etc/sluicegate/sluicegate.toml"), "{}", ended.stderr);
}
