//! The relay and the kernel: urgent bytes, pipes, errors of splice, system calls, memory, and every connection's share.

mod fairness;
mod injection;
mod memory;
mod pipes;
mod syscalls;
mod urgent;

use std::{
    io::{ErrorKind, Write},
    net::TcpStream,
};

use socket2::SockRef;

use crate::support::{LATE, Stand, client::Stream, tags::Tag, turn, wait_until};

/// The client's end and the backend's end of a connection.
type Pair = (Box<dyn Stream>, TcpStream);

/// A sender that never waits: it sends its tagged bytes as far as the kernel takes them.
struct Sender {
    stream: TcpStream,
    tag: Tag,
    sent: u64,
}

impl Sender {
    fn new(stream: &TcpStream, id: u64) -> Self {
        let stream = stream.try_clone().unwrap();
        Self { stream, tag: Tag::new(id), sent: 0 }
    }

    /// One for each backend. What waits on our side of the kernel is no concern of the gate, so it is little.
    fn of(pairs: &[Pair]) -> Vec<Self> {
        let sender = |(id, (_, backend)): (usize, &Pair)| {
            SockRef::from(backend).set_send_buffer_size(32 << 10).unwrap();
            Self::new(backend, id as u64)
        };
        pairs.iter().enumerate().map(sender).collect()
    }

    /// Sends until the kernel takes no more now; how much it took.
    fn push(&mut self) -> u64 {
        /// A path that is never full would be a bug of the gate.
        const MOST: u64 = 64 << 20;
        let (before, mut buffer) = (self.sent, [0; 16 << 10]);
        self.stream.set_nonblocking(true).unwrap();
        loop {
            self.tag.fill(self.sent, &mut buffer);
            match self.stream.write(&buffer) {
                Ok(count) => self.sent += count as u64,
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {} bytes: {error}", self.sent),
            }
            assert!(self.sent - before < MOST, "someone takes everything and the reader took nothing");
        }
        self.stream.set_nonblocking(false).unwrap();
        self.sent - before
    }
}

/// A receiver that never waits, and checks every byte.
struct Receiver {
    tag: Tag,
    received: u64,
}

impl Receiver {
    fn new(id: u64) -> Self {
        Self { tag: Tag::new(id), received: 0 }
    }

    /// One for each client.
    fn of(pairs: &[Pair]) -> Vec<Self> {
        (0..pairs.len()).map(|id| Self::new(id as u64)).collect()
    }

    /// Receives what is there now; true at the end of the stream.
    fn pull(&mut self, stream: &mut dyn Stream) -> bool {
        self.pull_some(stream, u64::MAX)
    }

    /// As [`Self::pull`], and stops after about `most` bytes.
    fn pull_some(&mut self, stream: &mut dyn Stream, most: u64) -> bool {
        let (before, mut buffer) = (self.received, [0; 16 << 10]);
        stream.socket().set_nonblocking(true).unwrap();
        while self.received - before < most {
            match stream.read(&mut buffer) {
                Ok(0) => return true,
                Ok(count) => {
                    self.tag.check(self.received, &buffer[..count]).unwrap();
                    self.received += count as u64;
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => break,
                Err(error) => panic!("after {} bytes: {error}", self.received),
            }
        }
        stream.socket().set_nonblocking(false).unwrap();
        false
    }
}

/// Every client reads, all at the same time, until each has what was sent to it, and then to the end.
fn drain(pairs: &mut [Pair], senders: &[Sender]) {
    drain_from(pairs, senders, Receiver::of(pairs));
}

/// As [`drain`], for clients that have read something before.
fn drain_from(pairs: &mut [Pair], senders: &[Sender], mut receivers: Vec<Receiver>) {
    wait_until(LATE, "every byte that was sent", || {
        let each = pairs.iter_mut().zip(&mut receivers).zip(senders);
        each.map(|(((client, _), receiver), sender)| {
            assert!(!receiver.pull(&mut **client), "an end after {} of {}", receiver.received, sender.sent);
            sender.sent - receiver.received
        })
        .sum::<u64>()
            == 0
    });
}

fn pipes_in_use(stand: &Stand) -> u64 {
    stand.gate.metrics().count("sluicegate_pipes", &[("state", "in_use")])
}
