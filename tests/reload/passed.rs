//! Sockets that the service manager has bound, and keeps: what it keeps has to go on working.

use std::{
    net::{SocketAddr, TcpListener, TcpStream},
    os::fd::OwnedFd,
};

use super::{append, edit, reload};
use crate::support::{
    Backend, Gate, LATE, Lineage, Process,
    client::{ask, bounded},
    gate::{Plan, tcp},
    process::BINARY,
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

    fn socket(&self) -> OwnedFd {
        self.socket.try_clone().unwrap().into()
    }

    /// A gate with a listener of its own, and `more`.
    fn start(&self, backend: &Backend, more: &str) -> Gate {
        let plan = Self::plan(backend, more);
        plan.write();
        let (directory, arguments) = (plan.into_directory(), ["run", "--config", "sluicegate.toml"]);
        let process = Process::start_with_socket(BINARY.as_ref(), self.socket(), &arguments, directory.path());
        Gate::over(process, directory, LATE)
    }

    fn plan(backend: &Backend, more: &str) -> Plan {
        let text = tcp("") + more + "[pool.web]\n" + &super::member("a", backend.address);
        super::plan(&text)
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

/// What no listener has goes over as well, and it stays the manager's.
#[test]
fn a_passed_socket_goes_over_in_an_upgrade() {
    let (backend, manager) = (Backend::named("a"), Manager::new());
    let mut line = Lineage::start_with_socket(Manager::plan(&backend, &manager.listener()), manager.socket());
    line.upgrade();
    assert_eq!(ask(manager.address()), "a", "of a listener");
    edit(&line.gate, &manager.listener(), "");
    reload(&line.gate);
    line.wait_alone(LATE);
    line.upgrade();
    append(&line.gate, &manager.listener());
    reload(&line.gate);
    assert_eq!(ask(manager.address()), "a", "of no listener");
    line.finish();
    let early = TcpStream::connect(manager.address()).expect("the manager listens");
    let gate = manager.start(&backend, &manager.listener());
    assert_eq!(answer(early), "a", "who came between two processes");
    gate.finish();
}
