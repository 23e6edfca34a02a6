//! Listening sockets. Options that accepted sockets inherit are set here once instead of once per connection.

use std::{
    io,
    net::SocketAddr,
    os::fd::{AsFd, BorrowedFd, OwnedFd},
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{SocketFlags, acceptfrom_with, sockopt},
};
use socket2::{Domain, Protocol, SockFilter, Type};
use tokio::io::{Interest, unix::AsyncFd};

use crate::address::canonical;

/// A bound, listening socket that belongs to the process; workers get duplicates.
///
/// A member of a reuseport group is not closed while its listener lives: the kernel would reset what waits in its
/// queue (traps A5).
#[derive(Debug)]
pub struct Bound {
    socket: socket2::Socket,
    address: SocketAddr,
    /// Somebody else keeps it open for the next process.
    is_lent: bool,
}

/// A worker's view of a [`Bound`] socket.
#[derive(Debug)]
pub struct Acceptor {
    fd: AsyncFd<OwnedFd>,
}

impl Bound {
    /// Binds and listens. `v6_only` keeps IPv4 clients away from `[::]`; `shared` lets other sockets of this user bind
    /// the same address (`SO_REUSEPORT`).
    pub fn listen(address: SocketAddr, v6_only: bool, shared: bool, backlog: i32) -> io::Result<Self> {
        let socket = Self::socket(address, v6_only)?;
        socket.set_reuse_port(shared)?;
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_out_of_band_inline(true)?;
        socket.bind(&address.into())?;
        socket.listen(backlog)?;
        let address = socket.local_addr()?.as_socket().unwrap_or(address);
        Ok(Self { socket, address, is_lent: false })
    }

    /// A socket that somebody else has bound and keeps. `None`: it is no listening TCP socket.
    pub fn passed(fd: OwnedFd) -> io::Result<Option<Self>> {
        Self::taken(fd, true)
    }

    /// As [`Self::passed`], of a process that leaves it to this one.
    pub fn inherited(fd: OwnedFd) -> io::Result<Option<Self>> {
        Self::taken(fd, false)
    }

    fn taken(fd: OwnedFd, is_lent: bool) -> io::Result<Option<Self>> {
        let socket = socket2::Socket::from(fd);
        let address = socket.local_addr()?.as_socket();
        let Some(address) = address.filter(|_| socket.is_listener().unwrap_or_default()) else { return Ok(None) };
        socket.set_nonblocking(true)?;
        socket.set_tcp_nodelay(true)?;
        socket.set_out_of_band_inline(true)?;
        // What another process may have left on it turns away whoever comes. There is an error if that is nothing.
        let _ = socket.detach_filter();
        Ok(Some(Self { socket, address: canonical(address), is_lent }))
    }

    /// Whether somebody else keeps it open.
    #[must_use]
    pub fn is_lent(&self) -> bool {
        self.is_lent
    }

    /// Whether the address is free, without taking it: nobody can connect in between.
    pub fn probe(address: SocketAddr, v6_only: bool) -> io::Result<()> {
        Self::socket(address, v6_only)?.bind(&address.into())
    }

    fn socket(address: SocketAddr, v6_only: bool) -> io::Result<socket2::Socket> {
        let socket = socket2::Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
        socket.set_reuse_address(true)?;
        if address.is_ipv6() {
            socket.set_only_v6(v6_only)?;
        }
        Ok(socket)
    }

    /// The address with the real port.
    #[must_use]
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Lets nobody begin a connection any more; those who have begun one still get it. For a socket that is about to be
    /// closed: what the kernel has answered and we have not accepted would be reset. One that somebody else keeps open resets
    /// nobody, and would turn the clients of the next process away too: it stays as it is.
    pub fn turn_away(&self) -> io::Result<()> {
        // A filter of a TCP socket sees the TCP header. The byte at 13 holds the flags: SYN without ACK is a beginning.
        const FLAGS: u32 = 13;
        const SYN_AND_ACK: u32 = 0x12;
        const SYN: u32 = 0x02;
        const LOAD_BYTE: u16 = 0x30;
        const AND: u16 = 0x54;
        const JUMP_IF_EQUAL: u16 = 0x15;
        const RETURN: u16 = 0x06;
        if self.is_lent {
            return Ok(());
        }
        self.socket.attach_filter(&[
            SockFilter::new(LOAD_BYTE, 0, 0, FLAGS),
            SockFilter::new(AND, 0, 0, SYN_AND_ACK),
            SockFilter::new(JUMP_IF_EQUAL, 0, 1, SYN),
            SockFilter::new(RETURN, 0, 0, 0),
            SockFilter::new(RETURN, 0, 0, u32::MAX),
        ])
    }

    /// A duplicate for one worker; it shares the queue with the original.
    pub fn duplicate(&self) -> io::Result<OwnedFd> {
        Ok(self.socket.try_clone()?.into())
    }
}

impl AsFd for Bound {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

impl Acceptor {
    /// Registers the duplicate of a listening socket with this thread's runtime.
    #[expect(unsafe_code, reason = "tokio's contract about the descriptor's life cannot be put into a type")]
    pub fn new(fd: OwnedFd) -> io::Result<Self> {
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on; nothing closes or replaces it before the
        // `AsyncFd` has deregistered it in its own drop.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { fd })
    }

    /// The next client, with its address in canonical form. The socket is non-blocking and closed on exec.
    pub fn poll_accept(&self, cx: &mut Context<'_>) -> Poll<io::Result<(OwnedFd, SocketAddr)>> {
        loop {
            let mut guard = ready!(self.fd.poll_read_ready(cx))?;
            match self.accept_now().transpose() {
                Some(client) => return Poll::Ready(client),
                None => guard.clear_ready(),
            }
        }
    }

    /// A client that waits already, whatever the runtime knows of it.
    pub fn accept_now(&self) -> io::Result<Option<(OwnedFd, SocketAddr)>> {
        match acceptfrom_with(self.fd.as_fd(), SocketFlags::NONBLOCK | SocketFlags::CLOEXEC) {
            Ok((fd, peer)) => {
                let peer = peer.and_then(|peer| SocketAddr::try_from(peer).ok()).ok_or(Errno::CONNABORTED)?;
                Ok(Some((fd, canonical(peer))))
            }
            Err(Errno::AGAIN) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }
}

/// Closes a socket that was accepted and is not wanted, by RST if `reset`. Nothing is read and nothing is written.
pub fn turn_away(fd: OwnedFd, reset: bool) {
    if reset {
        let _ = sockopt::set_socket_linger(&fd, Some(Duration::ZERO));
    }
    drop(fd);
}

/// What an accept error asks for (traps A1, A2).
#[must_use]
pub fn is_of_one_client(error: &io::Error) -> bool {
    let Some(code) = error.raw_os_error() else { return false };
    matches!(
        Errno::from_raw_os_error(code),
        Errno::CONNABORTED
            | Errno::PROTO
            | Errno::PERM
            | Errno::INTR
            | Errno::NETDOWN
            | Errno::NETUNREACH
            | Errno::HOSTUNREACH
            | Errno::NOPROTOOPT
            | Errno::OPNOTSUPP
    )
}

/// Whether the host ran out of descriptors.
#[must_use]
pub fn is_out_of_descriptors(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw_os_error).is_some_and(|code| matches!(code, Errno::MFILE | Errno::NFILE))
}

/// Whether the host ran out of memory for sockets.
#[must_use]
pub fn is_out_of_memory(error: &io::Error) -> bool {
    error.raw_os_error().map(Errno::from_raw_os_error).is_some_and(|code| matches!(code, Errno::NOBUFS | Errno::NOMEM))
}

#[cfg(test)]
mod tests {
    use std::{net::TcpStream, time::Duration};

    use super::*;

    /// A filter belongs to the socket and not to the process: the next one would never see a client.
    #[test]
    fn who_was_lent_a_socket_turns_nobody_away() {
        let comes = |bound: &Bound| TcpStream::connect_timeout(&bound.address(), Duration::from_millis(300)).is_ok();
        let own = Bound::listen(([127, 0, 0, 1], 0).into(), false, false, 16).unwrap();
        let lent = Bound::passed(own.duplicate().unwrap()).unwrap().unwrap();
        lent.turn_away().unwrap();
        assert!(comes(&own));
        own.turn_away().unwrap();
        assert!(!comes(&own));
        drop(Bound::passed(own.duplicate().unwrap()));
        assert!(comes(&own), "whoever has it next undoes that");
    }
}
