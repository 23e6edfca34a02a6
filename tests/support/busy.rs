//! A client that reads and uploads at the same time on one thread, plain or TLS.

use std::{
    io::{self, ErrorKind, Read, Write},
    net::TcpStream,
};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustls::ClientConnection;

use super::{Gate, SOON, client, tags::Tag};

const CHUNK: usize = 16 << 10;

/// Reading from it uploads tagged bytes without pause until the far end takes no more.
#[derive(Debug)]
pub struct Busy {
    socket: TcpStream,
    tls: Option<ClientConnection>,
    tag: Tag,
    pushed: u64,
    uploads: bool,
    /// A write learnt of a reset, which the kernel tells once: the end that is read later is that reset.
    reset: bool,
}

impl Busy {
    /// A client of the listener `tcp` or `https` that uploads the payload `id`.
    #[track_caller]
    pub fn open(gate: &Gate, listener: &str, id: u64) -> Self {
        let address = gate.address(listener);
        let (tls, socket) = if listener == "https" {
            let (tls, socket) = client::connect_tls(address).into_parts();
            (Some(tls), socket)
        } else {
            (None, client::connect(address))
        };
        socket.set_nonblocking(true).unwrap();
        Self { socket, tls, tag: Tag::new(id), pushed: 0, uploads: true, reset: false }
    }

    /// Payload that was given to the kernel, or at least to TLS.
    pub fn pushed(&self) -> u64 {
        self.pushed
    }

    fn push(&mut self) -> io::Result<()> {
        let mut chunk = [0; CHUNK];
        self.tag.fill(self.pushed, &mut chunk);
        let Some(tls) = &mut self.tls else {
            self.pushed += self.socket.write(&chunk)? as u64;
            return Ok(());
        };
        if !tls.wants_write() {
            tls.writer().write_all(&chunk)?;
            self.pushed += CHUNK as u64;
        }
        while tls.wants_write() {
            tls.write_tls(&mut self.socket)?;
        }
        Ok(())
    }

    fn pull(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let Some(tls) = &mut self.tls else { return self.socket.read(buffer) };
        loop {
            match tls.reader().read(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                other => return other,
            }
            tls.read_tls(&mut self.socket)?;
            tls.process_new_packets().map_err(|error| io::Error::new(ErrorKind::InvalidData, error))?;
        }
    }

    fn wait(&self) -> io::Result<()> {
        let wanted = if self.uploads { PollFlags::IN | PollFlags::OUT } else { PollFlags::IN };
        let most = Timespec { tv_sec: SOON.as_secs().cast_signed(), tv_nsec: 0 };
        match poll(&mut [PollFd::new(&self.socket, wanted)], Some(&most))? {
            0 => Err(ErrorKind::TimedOut.into()),
            _ => Ok(()),
        }
    }
}

impl Read for Busy {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        loop {
            match self.pull(buffer) {
                Err(error) if error.kind() == ErrorKind::WouldBlock => {}
                // With TLS, 0 is a close_notify and stays a clean end whatever came after it.
                Ok(0) if self.reset && self.tls.is_none() => return Err(ErrorKind::ConnectionReset.into()),
                Err(error) if self.reset && error.kind() == ErrorKind::UnexpectedEof => {
                    return Err(ErrorKind::ConnectionReset.into());
                }
                other => return other,
            }
            match if self.uploads { self.push() } else { Ok(()) } {
                Err(error) if error.kind() != ErrorKind::WouldBlock => {
                    self.uploads = false;
                    // A broken pipe is what a write meets after a FIN.
                    self.reset = error.kind() == ErrorKind::ConnectionReset;
                }
                _ => {}
            }
            self.wait()?;
        }
    }
}
