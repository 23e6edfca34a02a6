//! R13 and the budget of system calls: how many a unit of work costs, counted by strace.

use std::{io::Read, sync::Arc};

use crate::support::{
    Backend, Gate, Strace, Variant,
    client::{self, Stream, config_with},
    gate::{https, pool, tcp},
    strace::{Calls, DATA},
};

use super::turn;

/// The counts of other things: timers, and threads that start.
const NOISE: f64 = 0.2;

const MESSAGE: [u8; 200] = [b'm'; 200];

fn gate(backend: &Backend, more: &str) -> Gate {
    let log = "[log]\naccess = \"off\"\n";
    let toml = [&tcp(""), &https(""), &pool("", &[backend.address]), log, more].concat();
    Gate::plan(&toml).variant(Variant::ONE_WORKER).start()
}

/// Does the work `units` times under strace, after once without.
fn counted(gate: &Gate, units: u64, mut unit: impl FnMut()) -> Option<Calls> {
    unit();
    let strace = Strace::count(&gate.process)?;
    (0..units).for_each(|_| unit());
    Some(strace.calls())
}

#[track_caller]
fn at_most(calls: u64, units: u64, gate: f64, what: &str) {
    let each = calls as f64 / units as f64;
    assert!(each <= gate + NOISE, "{what}: {each:.3} calls, {gate} are allowed");
}

#[test]
fn r13_a_small_exchange_costs_four_calls_and_no_splice() {
    const UNITS: u64 = 5_000;
    let _turn = turn();
    let backend = Backend::echo();
    let gate = gate(&backend, "");
    let mut client = client::connect(gate.address("tcp"));
    let exchange = || client::exchange(&mut client, &MESSAGE);
    let Some(calls) = counted(&gate, UNITS, exchange) else { return };
    println!("persistent exchange: {}", calls.per(UNITS));
    assert_eq!(calls.of(&["splice"]), 0);
    at_most(calls.of(&DATA), UNITS, 4.0, "data");
    at_most(calls.work(), UNITS, 4.0, "all but epoll_wait");
    at_most(calls.waits(), UNITS, 2.0, "epoll_wait");
    drop(client);
    gate.finish();
}

#[test]
fn r13_a_small_exchange_through_tls_costs_four_calls() {
    const UNITS: u64 = 3_000;
    let _turn = turn();
    let backend = Backend::echo();
    let gate = gate(&backend, "");
    let mut client = client::connect_tls(gate.address("https"));
    let exchange = || client::exchange(&mut client, &MESSAGE);
    let Some(calls) = counted(&gate, UNITS, exchange) else { return };
    println!("persistent exchange through TLS: {}", calls.per(UNITS));
    at_most(calls.of(&DATA), UNITS, 4.0, "data");
    at_most(calls.work(), UNITS, 4.0, "all but epoll_wait");
    drop(client);
    gate.finish();
}

/// One exchange on a connection that the client ends, waited for.
fn short(client: &mut dyn Stream) {
    client.write_all(&MESSAGE).unwrap();
    client.flush().unwrap();
    client.read_exact(&mut [0; MESSAGE.len()]).unwrap();
    client.finish_sending();
    assert_eq!(client.read(&mut [0]).unwrap(), 0);
}

/// The aim is 16 and three waits.
#[test]
fn a_short_connection_costs_at_most_21_calls() {
    const UNITS: u64 = 1_500;
    let _turn = turn();
    let backend = Backend::echo();
    let gate = gate(&backend, "");
    let connection = || short(&mut client::connect(gate.address("tcp")));
    let Some(calls) = counted(&gate, UNITS, connection) else { return };
    println!("short connection: {}", calls.per(UNITS));
    at_most(calls.of(&DATA), UNITS, 6.0, "data");
    at_most(calls.work(), UNITS, 21.0, "all but epoll_wait");
    // Five; on a busy machine what comes together here comes one by one.
    at_most(calls.waits(), UNITS, 7.0, "epoll_wait");
    gate.finish();
}

/// Both kinds of connection on one gate: what TLS adds is four calls for the handshake and one for `close_notify`.
#[test]
fn a_full_handshake_costs_at_most_four_calls_more() {
    const UNITS: u64 = 400;
    let _turn = turn();
    let backend = Backend::echo();
    let gate = gate(&backend, "");
    let config = config_with(|config| config.resumption = rustls::client::Resumption::disabled());
    let connection = || {
        let stream = client::connect(gate.address("https"));
        short(&mut client::handshake(stream, "foobar.com", Arc::clone(&config)).unwrap());
    };
    let Some(tls) = counted(&gate, UNITS, connection) else { return };
    let connection = || short(&mut client::connect(gate.address("tcp")));
    let Some(plain) = counted(&gate, UNITS, connection) else { return };
    println!("short TLS connection: {}\nshort plain connection: {}", tls.per(UNITS), plain.per(UNITS));
    at_most(tls.of(&DATA) - plain.of(&DATA), UNITS, 4.0 + 1.0, "data beyond those of a plain connection");
    gate.finish();
}

#[test]
fn f5_a_client_at_the_limit_of_its_source_costs_at_most_three_calls() {
    const UNITS: u64 = 3_000;
    let _turn = turn();
    let backend = Backend::greeting(b"hi");
    let gate = gate(&backend, "[firewall.limits]\nconnections = 1\n");
    let mut held = client::connect(gate.address("tcp"));
    held.read_exact(&mut [0; 2]).unwrap();
    let connection = || {
        let stream = client::try_connect_from([127, 0, 0, 1].into(), gate.address("tcp"));
        assert!(stream.is_none_or(|mut stream| stream.read(&mut [0]).is_err()));
    };
    let Some(calls) = counted(&gate, UNITS, connection) else { return };
    println!("limited client: {}", calls.per(UNITS));
    // An accept that finds nobody belongs to the wait for the next client.
    at_most(calls.work() - calls.of(&["accept4"]), UNITS, 2.0, "an option and the close");
    drop(held);
    gate.finish();
}

#[test]
fn f5_a_denied_client_costs_at_most_three_calls() {
    const UNITS: u64 = 3_000;
    let _turn = turn();
    let backend = Backend::echo();
    let gate = gate(&backend, "[firewall]\ndefault = \"deny\"\n");
    let connection = || {
        assert_eq!(client::connect(gate.address("tcp")).read(&mut [0]).unwrap(), 0);
    };
    let Some(calls) = counted(&gate, UNITS, connection) else { return };
    println!("denied client: {}", calls.per(UNITS));
    at_most(calls.work(), UNITS, 3.0, "all but epoll_wait");
    gate.finish();
}
