//! Sockets that the service manager has bound, and keeps: what it keeps has to go on working.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use super::{append, edit, reload};
use crate::support::{
    Backend, Gate, LATE, Process,
    client::{ask, bounded},
    gate::tcp,
};

/// A service manager that has bound one socket.
struct Manager {
    socket: TcpListener,
}

impl Manager {
    fn new() -> Self {
        Self { socket: TcpListener::bind("127.0.0.1:0").unwrap() }
    }

    fn address(&self) -> SocketAddr {
        self.socket.local_addr().unwrap()
    }

    /// A gate with a listener of its own, and `more`.
    fn start(&self, backend: &Backend, more: &str) -> Gate {
        let text = tcp("") + more + "[pool.web]\n" + &super::member("a", backend.address);
        let plan = super::plan(&text);
        plan.write();
        let directory = plan.into_directory();
        let socket = OwnedFd::from(self.socket.try_clone().unwrap());
        let process = Process::start_with_socket(socket, &["run", "--config", "sluicegate.toml"], directory.path());
        Gate::over(process, directory, LATE)
    }

    fn listener(&self) -> String {
        format!("[listener.passed]\nbind = \"{}\"\npool = \"web\"\n", self.address())
    }
}

/// What the backend says to who has connected already.
fn answer(client: TcpStream) -> String {
    std::io::read_to_string(bounded(client)).unwrap()
}

#[test]
fn a_passed_socket_lives_on_after_a_stop() {
    let (backend, manager) = (Backend::named("a"), Manager::new());
    let gate = manager.start(&backend, &manager.listener());
    assert_eq!(ask(manager.address()), "a");
    gate.finish();
    // Nobody runs: who comes now waits for the next process.
    let early = TcpStream::connect(manager.address()).expect("the manager listens");
    let gate = manager.start(&backend, &manager.listener());
    assert_eq!(answer(early), "a", "who came between two processes");
    assert_eq!(ask(manager.address()), "a");
    gate.finish();
}

#[test]
fn a_passed_socket_lives_on_after_a_reload_that_removes_its_listener() {
    let (backend, manager) = (Backend::named("a"), Manager::new());
    // No listener has it at the start.
    let gate = manager.start(&backend, "");
    for round in 0..3 {
        append(&gate, &manager.listener());
        assert_eq!(super::run(&gate, &["plan"]).code, Some(0), "round {round}");
        reload(&gate);
        assert_eq!(ask(manager.address()), "a", "round {round}");
        edit(&gate, &manager.listener(), "");
        reload(&gate);
    }
    let early = TcpStream::connect(manager.address()).expect("the manager listens");
    append(&gate, &manager.listener());
    reload(&gate);
    assert_eq!(answer(early), "a", "who came while no listener had it");
    edit(&gate, &manager.listener(), "");
    reload(&gate);
    gate.finish();
}
