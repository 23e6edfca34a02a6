//! A2: an accept that fails ends nothing, whatever the error.

use std::{collections::HashSet, fs};

use super::Waiting;
use crate::support::{
    Backend, Gate, Metrics, Process, SOON, Strace,
    gate::{pool, tcp},
    wait_until,
};

const CLIENTS: usize = 24;

/// Errors with the label they are counted under. The first nine are of one client or of the network, the next four say that
/// the host has nothing left, the last is one that nobody expects.
const ERRORS: [(&str, &str); 14] = [
    ("ECONNABORTED", "aborted"),
    ("EPROTO", "network"),
    ("EPERM", "network"),
    ("EINTR", "network"),
    ("ENETDOWN", "network"),
    ("ENETUNREACH", "network"),
    ("EHOSTUNREACH", "network"),
    ("ENOPROTOOPT", "network"),
    ("EOPNOTSUPP", "network"),
    ("EMFILE", "descriptors"),
    ("ENFILE", "descriptors"),
    ("ENOBUFS", "memory"),
    ("ENOMEM", "memory"),
    ("EIO", "other"),
];

/// The threads that accept clients, as strace names them.
fn workers(process: &Process) -> HashSet<String> {
    let tasks = fs::read_dir(format!("/proc/{}/task", process.pid())).unwrap();
    let paths = tasks.map(|task| task.unwrap().path());
    let is_worker = |path: &std::path::PathBuf| fs::read_to_string(path.join("comm")).unwrap().starts_with("worker-");
    paths.filter(is_worker).map(|path| path.file_name().unwrap().to_string_lossy().into_owned()).collect()
}

fn errors(metrics: &Metrics, reason: &str) -> u64 {
    metrics.count("sluicegate_accept_errors_total", &[("listener", "tcp"), ("reason", reason)])
}

#[test]
fn a2_no_error_of_accept_ends_the_loop_and_each_is_counted() {
    let backend = Backend::greeting(b"hi");
    let gate = Gate::start(&(tcp("") + &pool("", &[backend.address])));
    let workers = workers(&gate.process);
    let mut told = Vec::new();
    for (error, reason) in ERRORS {
        let before = errors(&gate.metrics(), reason);
        let inject = format!("inject=accept4:error={error}:when=3+7");
        let Some(strace) = Strace::attach(&gate.process, &["-e", "trace=accept4", "-e", &inject]) else { return };
        let mut clients = Waiting::default();
        for _ in 0..CLIENTS {
            clients.silent.extend(Waiting::connect(gate.address("tcp"), 1).silent);
            wait_until(SOON, "a greeting", || {
                clients.look();
                clients.silent.is_empty()
            });
        }
        let report = strace.detach();
        assert_eq!((clients.greeted.len(), clients.refused), (CLIENTS, 0), "{error}");
        let injected = report.lines().filter(|line| line.contains("(INJECTED)"));
        let of_workers = injected.filter(|line| workers.contains(line.split(' ').next().unwrap_or_default()));
        let (injected, counted) = (of_workers.count() as u64, errors(&gate.metrics(), reason) - before);
        assert!(injected > 0, "{error}: no accept failed\n{report}");
        assert_eq!(counted, injected, "{error} is counted as {reason}");
        told.push(format!("{error} {injected}"));
    }
    println!("A2: {CLIENTS} clients for each error, 0 lost; failed accepts: {}", told.join(", "));
    gate.finish();
}
