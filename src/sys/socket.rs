//! One connected TCP socket, driven by readiness: every call says what it proves about the kernel's buffers.
//!
//! Readiness is edge-triggered, so it may only be given up when the kernel is known to have nothing more. A short `recv`
//! proves that, unless urgent data is pending (a read stops at the mark); a short `splice` proves nothing; a short
//! `send` proves that the send buffer is full.

mod beginning;
mod ending;

use std::{
    cell::Cell,
    io::{self, IoSlice, IoSliceMut},
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::Pin,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    io::Errno,
    net::{AddressFamily, RecvFlags, SendFlags, SocketFlags, SocketType, sockopt},
    pipe::{SpliceFlags, splice},
};
use tokio::{
    io::{
        AsyncRead, AsyncWrite, Interest, ReadBuf,
        unix::{AsyncFd, AsyncFdReadyGuard},
    },
    task::coop,
};

pub use self::ending::Left;
use super::{pipe::Pipe, presence};

/// Asked of each splice: a constant that stays below the signed maximum after page rounding.
const SPLICE_LENGTH: usize = 1 << 20;

/// A non-blocking TCP socket, registered with this thread's runtime.
#[derive(Debug)]
pub struct Socket {
    fd: AsyncFd<OwnedFd>,
    nagle: Cell<Nagle>,
    /// A write learnt of a reset. The kernel tells an error once, so the reads that follow would see a clean end.
    reset: Cell<bool>,
    /// The one task of this socket waits for input, and its waker stands: until readiness shows, asking the runtime
    /// again would tell nothing new and cost a lock.
    waits: Cell<bool>,
}

/// Whether Nagle's algorithm may still be on. It never holds the first write, so a connection with one exchange
/// need not pay for the option.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Nagle {
    Untouched,
    OneWrite,
    Off,
}

/// What filling a pipe came to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fill {
    /// Bytes went into the pipe.
    Bytes(usize),
    /// The socket looks empty or ended: a `recv` has to confirm it.
    Unsure,
    /// This socket cannot be spliced.
    Unsupported,
    /// No memory for it now.
    NoMemory,
}

impl Socket {
    /// Takes over an accepted socket. `TCP_NODELAY` was inherited from the listener.
    pub fn accepted(fd: OwnedFd) -> io::Result<Self> {
        Self::register(fd, Nagle::Off)
    }

    /// Begins to connect; [`Self::poll_connected`] tells how it went.
    pub fn connecting(address: SocketAddr) -> io::Result<Self> {
        let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
        let flags = SocketFlags::NONBLOCK | SocketFlags::CLOEXEC;
        let fd = rustix::net::socket_with(family, SocketType::STREAM, flags, None)?;
        // Without it an urgent byte of the backend would be lost (traps R19).
        sockopt::set_socket_oobinline(&fd, true)?;
        match rustix::net::connect(&fd, &address) {
            Ok(()) | Err(Errno::INPROGRESS) => Self::register(fd, Nagle::Untouched),
            Err(error) => Err(error.into()),
        }
    }

    #[expect(unsafe_code, reason = "tokio's contract about the descriptor's life cannot be put into a type")]
    fn register(fd: OwnedFd, nagle: Nagle) -> io::Result<Self> {
        let interest = Interest::READABLE | Interest::WRITABLE | Interest::PRIORITY;
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on; nothing closes or replaces it before the
        // `AsyncFd` has deregistered it in its own drop.
        let fd = unsafe { AsyncFd::register_with_interest(fd, interest) }?;
        Ok(Self { fd, nagle: Cell::new(nagle), reset: Cell::new(false), waits: Cell::new(false) })
    }

    /// Ready when the connection stands or has failed.
    pub fn poll_connected(&self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        let _guard = ready!(self.fd.poll_write_ready(cx))?;
        // The error bit comes with the event: a good connection needs no call to learn that it is good.
        if self.fd.try_io(Interest::ERROR, |_| Ok(())).is_ok() {
            return Poll::Ready(match sockopt::socket_error(&self.fd)? {
                Ok(()) => Ok(()),
                Err(error) => Err(error.into()),
            });
        }
        Poll::Ready(Ok(()))
    }

    /// Receives into `buffer`; 0 is the end of the stream.
    pub fn poll_recv(&self, cx: &mut Context<'_>, buffer: &mut [u8]) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, buffer.len(), |socket| {
            rustix::net::recv(&socket.fd, &mut *buffer, RecvFlags::empty()).map(|(_, received)| received)
        })
    }

    /// As [`Self::poll_recv`], into several buffers of `length` bytes in all.
    pub fn poll_recv_vectored(
        &self,
        cx: &mut Context<'_>,
        buffers: &mut [IoSliceMut<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.poll_read_with(cx, length, |socket| rustix::io::readv(&socket.fd, buffers))
    }

    /// Sends from `buffer`; less than all of it means that the send buffer is full.
    pub fn poll_send(&self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.before_write();
        self.poll_write_with(cx, buffer.len(), |socket| rustix::net::send(&socket.fd, buffer, SendFlags::NOSIGNAL))
    }

    /// As [`Self::poll_send`], from several buffers of `length` bytes in all.
    pub fn poll_send_vectored(
        &self,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
        length: usize,
    ) -> Poll<io::Result<usize>> {
        self.before_write();
        self.poll_write_with(cx, length, |socket| rustix::io::writev(&socket.fd, buffers))
    }

    /// Moves bytes from the socket into `pipe`, which must be empty: then "would block" can only mean the socket.
    ///
    /// An unsure answer (the end, or urgent data) is for `poll_recv` to settle: rules 2, 3 and 9.
    pub fn poll_fill(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<Fill>> {
        debug_assert_eq!(pipe.held(), 0, "a pipe is filled only when it is empty");
        loop {
            let mut guard = ready!(self.poll_readable(cx))?;
            let Some((_, write)) = pipe.ends() else { return Poll::Ready(Ok(Fill::Unsupported)) };
            match splice(&self.fd, None, write, None, SPLICE_LENGTH, SpliceFlags::MOVE | SpliceFlags::NONBLOCK) {
                // Without urgent data it can only mean that the socket is empty: an urgent byte that has come since the
                // last wake-up brings a wake-up of its own.
                Err(Errno::AGAIN) if !self.urgent() => guard.clear_ready(),
                Ok(0) | Err(Errno::AGAIN) => return Poll::Ready(Ok(Fill::Unsure)),
                Ok(bytes) => {
                    pipe.filled(bytes);
                    return Poll::Ready(Ok(Fill::Bytes(bytes)));
                }
                Err(Errno::INTR) => {}
                Err(Errno::INVAL) => return Poll::Ready(Ok(Fill::Unsupported)),
                Err(Errno::NOMEM | Errno::NOBUFS) => return Poll::Ready(Ok(Fill::NoMemory)),
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    /// Moves bytes from `pipe` into the socket; the pipe must hold some. Pending means that the socket is full.
    pub fn poll_empty(&self, cx: &mut Context<'_>, pipe: &mut Pipe) -> Poll<io::Result<usize>> {
        self.before_write();
        let held = pipe.held();
        let bytes = ready!(self.poll_write_with(cx, 0, |socket| match pipe.ends() {
            // A pipe never blocks while it holds something, so "would block" means the socket.
            Some((read, _)) => {
                splice(read, None, &socket.fd, None, held, SpliceFlags::MOVE | SpliceFlags::NONBLOCK)
            }
            None => Err(Errno::BADF),
        }))?;
        if bytes == 0 {
            return Poll::Ready(Err(io::ErrorKind::WriteZero.into()));
        }
        pipe.emptied(bytes);
        Poll::Ready(Ok(bytes))
    }

    /// Has the kernel end a connection whose peer is gone; `silence` is how long it may confirm nothing.
    pub fn expect_presence(&self, silence: Duration) {
        // Without it the relay's own limit on silence is left.
        let _ = presence::expect(&self.fd, silence);
    }

    /// Whether something waits in the kernel because the peer's host takes no more now (`SIOCOUTQNSD`): its reader is behind.
    #[expect(unsafe_code, reason = "rustix has no name for SIOCOUTQNSD")]
    pub fn has_unsent(&self) -> bool {
        use rustix::ioctl::{Getter, ioctl};
        const SIOCOUTQNSD: rustix::ioctl::Opcode = 0x894b;
        // SAFETY: SIOCOUTQNSD writes one C int, which is what the getter makes room for.
        let bytes = unsafe { ioctl(&self.fd, Getter::<SIOCOUTQNSD, std::ffi::c_int>::new()) };
        bytes.is_ok_and(|bytes| bytes > 0)
    }

    /// Whether a read may find something, as far as has been told.
    pub fn may_be_readable(&self) -> bool {
        self.fd.try_io(Interest::READABLE, |_| Ok(())).is_ok()
    }

    /// Whether the kernel has connected this socket to itself: a port of our own range that nobody listens on can meet
    /// its own SYN (RFC 9293, section 3.5, simultaneous open).
    pub fn is_connected_to_itself(&self, target: SocketAddr) -> bool {
        self.own_address() == Some(target)
    }

    /// Whether a read may have stopped at an urgent mark with more behind it. Also true when the peer has finished
    /// (tokio answers both with one bit), which costs one read more and no byte.
    fn urgent(&self) -> bool {
        self.fd.try_io(Interest::PRIORITY, |_| Ok(())).is_ok()
    }

    fn forget_urgent(&self) {
        let _: io::Result<()> = self.fd.try_io(Interest::PRIORITY, |_| Err(io::ErrorKind::WouldBlock.into()));
    }

    fn before_write(&self) {
        match self.nagle.get() {
            Nagle::Off => {}
            Nagle::Untouched => self.nagle.set(Nagle::OneWrite),
            Nagle::OneWrite => {
                self.nagle.set(Nagle::Off);
                // A peer that is gone shows itself in the write.
                let _ = sockopt::set_tcp_nodelay(&self.fd, true);
            }
        }
    }

    fn poll_readable(&self, cx: &mut Context<'_>) -> Poll<io::Result<AsyncFdReadyGuard<'_, OwnedFd>>> {
        if self.waits.get() && !self.may_be_readable() {
            return Poll::Pending;
        }
        // Out of budget, the runtime says "pending" without keeping the waker.
        let keeps = coop::has_budget_remaining();
        let polled = self.fd.poll_read_ready(cx);
        self.waits.set(keeps && polled.is_pending());
        polled
    }

    fn poll_read_with(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        mut read: impl FnMut(&Self) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.poll_readable(cx))?;
            match read(self) {
                Ok(0) if self.reset.get() && length > 0 => return Poll::Ready(Err(Errno::CONNRESET.into())),
                Ok(received) => {
                    if received > 0 && received < length && !self.urgent() {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(received));
                }
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    self.forget_urgent();
                }
                Err(Errno::INTR) => {}
                Err(error) => return Poll::Ready(Err(error.into())),
            }
        }
    }

    fn poll_write_with(
        &self,
        cx: &mut Context<'_>,
        length: usize,
        mut write: impl FnMut(&Self) -> Result<usize, Errno>,
    ) -> Poll<io::Result<usize>> {
        loop {
            let mut guard = ready!(self.fd.poll_write_ready(cx))?;
            match write(self) {
                Ok(sent) => {
                    if sent < length {
                        guard.clear_ready();
                    }
                    return Poll::Ready(Ok(sent));
                }
                Err(Errno::AGAIN) => guard.clear_ready(),
                Err(Errno::INTR) => {}
                Err(error) => {
                    // EPIPE: the peer's FIN came first, so its end was a clean one.
                    self.reset.set(self.reset.get() || error != Errno::PIPE);
                    return Poll::Ready(Err(error.into()));
                }
            }
        }
    }
}

impl AsyncRead for Socket {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let received = ready!(self.poll_recv(cx, buffer.initialize_unfilled()))?;
        buffer.advance(received);
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Socket {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        self.poll_send(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        let length = buffers.iter().map(|buffer| buffer.len()).sum();
        self.poll_send_vectored(cx, buffers, length)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.finish_sending();
        Poll::Ready(Ok(()))
    }
}
