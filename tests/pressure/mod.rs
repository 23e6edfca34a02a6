//! Everything that clients, networks and this host may do to the process itself: it goes on, and says so.

mod accept;
mod admin;
mod descriptors;
mod handshakes;
mod headers;
mod panics;
mod restart;
mod truth;
mod vanish;

use std::{
    io::{ErrorKind, Read},
    net::{SocketAddr, TcpStream},
    time::{Duration, Instant},
};

use crate::support::client;

/// Whether the full length is asked for (docs/reliability.md).
fn full() -> bool {
    std::env::var("SLUICEGATE_FULL").as_deref() == Ok("1")
}

/// Clients that connected and wait, and what they have been told.
#[derive(Debug, Default)]
struct Waiting {
    silent: Vec<TcpStream>,
    greeted: Vec<TcpStream>,
    refused: usize,
}

impl Waiting {
    /// Connects this many; none is waited for.
    #[track_caller]
    fn connect(address: SocketAddr, count: usize) -> Self {
        let connect = || {
            let stream = client::connect(address);
            stream.set_nonblocking(true).unwrap();
            stream
        };
        Self { silent: (0..count).map(|_| connect()).collect(), ..Self::default() }
    }

    /// Looks who has been greeted or refused by now.
    fn look(&mut self) {
        let Self { silent, greeted, refused } = self;
        for mut stream in std::mem::take(silent) {
            match stream.read(&mut [0; 2]) {
                Ok(1..) => greeted.push(stream),
                Err(error) if error.kind() == ErrorKind::WouldBlock => silent.push(stream),
                Ok(0) | Err(_) => *refused += 1,
            }
        }
    }
}

/// The 99th percentile.
fn p99(mut taken: Vec<Duration>) -> Duration {
    taken.sort();
    taken[taken.len() * 99 / 100]
}

/// Does something over and over for this long; how long each took.
fn repeat_for(time: Duration, mut what: impl FnMut()) -> Vec<Duration> {
    let (start, mut taken) = (Instant::now(), Vec::new());
    while start.elapsed() < time {
        let begin = Instant::now();
        what();
        taken.push(begin.elapsed());
    }
    taken
}
