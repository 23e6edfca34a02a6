//! Content under every off switch, beside aborted neighbours, and with the odd ways of TCP.

use std::{
    io::{Read, Write},
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicUsize, Ordering},
    },
    thread,
    time::Duration,
};

use socket2::SockRef;

use super::gate;
use crate::support::{
    Backend, Gate, SOON, Variant,
    backend::{answer_id, transfer_header},
    client::{self, PLAIN_AND_TLS},
    tags::{self, End},
    wait_until,
};

/// One tagged exchange; the client ends first.
fn transfer(gate: &Gate, listener: &str, id: u64, up: u64, down: u64) {
    let mut stream = client::open(gate, listener);
    stream.write_all(&transfer_header(id, up, down)).unwrap();
    tags::send(&mut stream, id, up).unwrap();
    let received = tags::receive(&mut stream, answer_id(id), down, None);
    received.assert_is(down, tags::hash(answer_id(id), down), End::Complete);
    stream.finish_sending();
    let rest = stream.read(&mut [0]).unwrap();
    assert_eq!(rest, 0);
}

fn assert_uploads(backend: &Backend, count: usize) {
    wait_until(SOON, "every upload", || backend.uploads().len() == count);
    for (id, received) in backend.uploads() {
        received.assert_is(received.bytes, tags::hash(id, received.bytes), End::Complete);
    }
}

fn many_connections(variant: Variant) {
    const THREADS: u64 = 8;
    const EACH: u64 = 6;
    let backend = Backend::tagged();
    let gate = gate(variant, &backend);
    thread::scope(|scope| {
        for thread in 0..THREADS {
            let gate = &gate;
            scope.spawn(move || {
                for round in 0..EACH {
                    let id = thread * EACH + round;
                    transfer(gate, PLAIN_AND_TLS[(id % 2) as usize], id, 1 + id * 7001, 200_000 - id * 3001);
                }
            });
        }
    });
    assert_uploads(&backend, (THREADS * EACH) as usize);
    gate.wait_outcome("client_closed", THREADS * EACH);
    gate.finish();
}

#[test]
fn many_connections_keep_their_bytes() {
    many_connections(Variant::chosen());
}

#[test]
fn many_connections_keep_their_bytes_by_copy() {
    many_connections(Variant::COPY);
}

#[test]
fn many_connections_keep_their_bytes_by_splice() {
    many_connections(Variant::SPLICE);
}

#[test]
fn many_connections_keep_their_bytes_on_one_worker() {
    many_connections(Variant::ONE_WORKER);
}

#[test]
fn many_connections_keep_their_bytes_over_one_shared_socket() {
    many_connections(Variant::SHARED_SOCKET);
}

/// R1: transfers that die with bytes in the pipe, then others that would get them.
#[test]
fn r1_no_foreign_byte_after_aborted_transfers() {
    const ROUNDS: usize = 15;
    let released = Arc::new(AtomicUsize::new(0));
    let stuck = Backend::start({
        let released = Arc::clone(&released);
        move |stream, number| {
            wait_until(Duration::from_mins(1), "release", || released.load(Ordering::SeqCst) > number);
            client::reset_on_close(stream);
        }
    });
    let tagged = Backend::tagged();
    let gate = Gate::plan(&two_pools(tagged.address, stuck.address)).variant(Variant::SPLICE).start();
    let payload = vec![0xee; 64 * 1024];
    for round in 0..ROUNDS {
        let mut doomed = client::connect(gate.address("stuck"));
        doomed.set_write_timeout(Some(Duration::from_millis(100))).unwrap();
        let full = (0..2000).any(|_| doomed.write(&payload).is_err());
        assert!(full, "the way to a backend that does not read fills up");
        wait_until(SOON, "the backend's connection", || stuck.accepted() > round);
        client::reset(doomed);
        released.store(round + 1, Ordering::SeqCst);
        for transfers in 0..4 {
            transfer(&gate, "tcp", (round * 4 + transfers) as u64, 300_000, 300_000);
        }
    }
    assert_uploads(&tagged, ROUNDS * 4);
    gate.finish();
}

fn two_pools(tagged: SocketAddr, stuck: SocketAddr) -> String {
    format!(
        "[listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"tagged\"\n[listener.stuck]\nbind = \"127.0.0.1:0\"\n\
         pool = \"stuck\"\n[pool.tagged]\nbackends = \"{tagged}\"\n[pool.stuck]\nbackends = \"{stuck}\"\n"
    )
}

#[test]
fn r15_a_backend_that_speaks_first_is_heard() {
    for variant in Variant::all() {
        let backend = Backend::greeting(b"5.5.5-10.11.6-MariaDB");
        let gate = gate(variant, &backend);
        for listener in PLAIN_AND_TLS {
            let mut client = client::open(&gate, listener);
            let mut greeting = [0; 21];
            client.read_exact(&mut greeting).unwrap();
            assert_eq!(&greeting, b"5.5.5-10.11.6-MariaDB");
            client::exchange(&mut client, b"and then we talk");
        }
        gate.finish();
    }
}

/// R19: FTP's ABOR and telnet's Synch do this.
#[test]
fn r19_an_urgent_byte_stops_nothing() {
    for variant in [Variant::COPY, Variant::SPLICE] {
        let backend = Backend::echo();
        let gate = gate(variant, &backend);
        let mut client = client::connect(gate.address("tcp"));
        client::exchange(&mut client, b"before");
        client.write_all(b"abc").unwrap();
        SockRef::from(&client).send_out_of_band(b"d").unwrap();
        client.write_all(b"efg").unwrap();
        let mut answer = [0; 7];
        client.read_exact(&mut answer).unwrap();
        assert_eq!(&answer, b"abcdefg", "{variant:?}");
        drop(client);
        gate.finish();
    }
}
