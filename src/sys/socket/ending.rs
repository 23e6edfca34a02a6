//! How a connection ends: what the peer has done, and what we say at last.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll, ready},
    time::Duration,
};

use rustix::{
    event::{PollFd, PollFlags, Timespec, poll},
    io::Errno,
    net::{RecvFlags, SendFlags, sockopt},
};
use tokio::io::Interest;

use super::Socket;

/// How the peer left.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Left {
    Closed,
    Reset,
}

impl Socket {
    /// Ready when the peer has left: it reset, or it finished and nothing it said is unread. Nothing is taken from the
    /// socket. `unread`: something was taken before and is still to be read.
    pub async fn left(&self, unread: bool) -> Left {
        if !unread && let Some(left) = poll_fn(|cx| self.poll_left(cx)).await {
            return left;
        }
        // Who asked for something may have finished sending and wait for the answer. Only an error says that it is gone.
        let _ = self.fd.ready(Interest::ERROR).await;
        Left::Reset
    }

    /// `None` when something is unread.
    fn poll_left(&self, cx: &mut Context<'_>) -> Poll<Option<Left>> {
        loop {
            let Ok(mut guard) = ready!(self.poll_readable(cx)) else { return Poll::Ready(Some(Left::Reset)) };
            match rustix::net::recv(&self.fd, &mut [0], RecvFlags::PEEK) {
                Ok((_, 0)) => return Poll::Ready(Some(Left::Closed)),
                Ok(_) => return Poll::Ready(None),
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    self.forget_urgent();
                }
                Err(Errno::INTR) => {}
                Err(_) => return Poll::Ready(Some(Left::Reset)),
            }
        }
    }

    /// Whether the stream ends behind what was received, as far as that has come. It costs a call only where the peer has
    /// said more than bytes.
    pub fn ends_here(&self) -> bool {
        if !self.urgent() {
            return false;
        }
        match rustix::net::recv(&self.fd, &mut [0], RecvFlags::PEEK) {
            Ok((_, next)) => next == 0 && !self.reset.get(),
            Err(Errno::AGAIN | Errno::INTR) => false,
            Err(_) => {
                // Told once: the read that follows has to know.
                self.reset.set(true);
                false
            }
        }
    }

    /// As [`Socket::poll_send`], for the last bytes: they wait for the FIN of [`Self::finish_sending`], or of the close, and
    /// go in one segment with it. It has to come at once (`MSG_MORE`, tcp(7)).
    pub fn poll_send_last(&self, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        let flags = SendFlags::NOSIGNAL | SendFlags::MORE;
        self.poll_write_with(cx, buffer.len(), |socket| rustix::net::send(&socket.fd, buffer, flags))
    }

    /// Sends FIN. An end that is already gone is not an error.
    pub fn finish_sending(&self) {
        let _ = rustix::net::shutdown(&self.fd, rustix::net::Shutdown::Write);
    }

    /// Makes the close that follows a reset: RST instead of FIN, and what was not delivered is lost.
    pub fn reset_on_close(&self) {
        let _ = sockopt::set_socket_linger(&self.fd, Some(Duration::ZERO));
    }

    /// Bytes (and an unacknowledged FIN) that the peer's host has not confirmed (`SIOCOUTQ`, tcp(7)).
    #[expect(unsafe_code, reason = "rustix has no name for SIOCOUTQ")]
    pub fn unconfirmed(&self) -> io::Result<usize> {
        use rustix::ioctl::{Getter, ioctl};
        const SIOCOUTQ: rustix::ioctl::Opcode = 0x5411;
        // SAFETY: SIOCOUTQ writes one C int, which is what the getter makes room for.
        let bytes = unsafe { ioctl(&self.fd, Getter::<SIOCOUTQ, std::ffi::c_int>::new()) }?;
        Ok(usize::try_from(bytes).unwrap_or(0))
    }

    /// Whether the peer has reset the connection, so that it will never confirm anything again.
    pub fn is_reset(&self) -> bool {
        let mut polled = [PollFd::new(&self.fd, PollFlags::empty())];
        let now = Timespec { tv_sec: 0, tv_nsec: 0 };
        let error = poll(&mut polled, Some(&now)).is_ok_and(|ready| ready > 0)
            && polled.iter().any(|polled| polled.revents().contains(PollFlags::ERR));
        self.reset.get() || error
    }
}

#[cfg(test)]
mod tests {
    use std::{
        io::{ErrorKind, Read, Write},
        net::{TcpListener, TcpStream},
    };

    use super::*;

    /// A socket of ours and its peer, which does not block.
    fn pair() -> (Socket, TcpStream) {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let peer = TcpStream::connect(listener.local_addr().unwrap()).unwrap();
        let (own, _) = listener.accept().unwrap();
        own.set_nonblocking(true).unwrap();
        peer.set_nonblocking(true).unwrap();
        (Socket::accepted(own.into()).unwrap(), peer)
    }

    fn block_on<T>(work: impl Future<Output = T>) -> T {
        tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap().block_on(work)
    }

    #[test]
    fn the_last_bytes_and_the_fin_are_one_segment() {
        block_on(async {
            let (own, mut peer) = pair();
            assert_eq!(poll_fn(|cx| own.poll_send(cx, b"first")).await.unwrap(), 5);
            assert_eq!(peer.read(&mut [0; 9]).unwrap(), 5);
            assert_eq!(poll_fn(|cx| own.poll_send_last(cx, b"last")).await.unwrap(), 4);
            assert_eq!(peer.read(&mut [0; 9]).unwrap_err().kind(), ErrorKind::WouldBlock, "it waits for the FIN");
            own.finish_sending();
            assert_eq!((peer.read(&mut [0; 9]).unwrap(), peer.read(&mut [0; 9]).unwrap()), (4, 0));
            let (own, mut peer) = pair();
            assert_eq!(poll_fn(|cx| own.poll_send_last(cx, b"last")).await.unwrap(), 4);
            drop(own);
            assert_eq!(
                (peer.read(&mut [0; 9]).unwrap(), peer.read(&mut [0; 9]).unwrap()),
                (4, 0),
                "a close says it too"
            );
        });
    }

    #[test]
    fn the_end_is_known_when_nothing_is_left_before_it_and_a_reset_is_none() {
        block_on(async {
            let (own, mut peer) = pair();
            let read = async |length: usize| poll_fn(|cx| own.poll_recv(cx, &mut vec![0; length])).await;
            peer.write_all(b"some").unwrap();
            assert_eq!(read(9).await.unwrap(), 4);
            assert!(!own.ends_here());
            peer.write_all(b"more").unwrap();
            peer.shutdown(std::net::Shutdown::Write).unwrap();
            assert_eq!(read(3).await.unwrap(), 3);
            assert!(!own.ends_here(), "a byte is left");
            assert_eq!(read(9).await.unwrap(), 1);
            assert!(own.ends_here());
            let (own, mut peer) = pair();
            peer.write_all(b"some").unwrap();
            socket2::SockRef::from(&peer).set_linger(Some(Duration::ZERO)).unwrap();
            assert_eq!(poll_fn(|cx| own.poll_recv(cx, &mut [0; 9])).await.unwrap(), 4);
            drop(peer);
            own.fd.ready(Interest::ERROR).await.unwrap().retain_ready();
            assert!(!own.ends_here());
            assert!(poll_fn(|cx| own.poll_recv(cx, &mut [0; 9])).await.is_err(), "it is told all the same");
        });
    }
}
