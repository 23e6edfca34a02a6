//! The beginning of a stream, taken without what follows it; and whose end of it is whose.

use std::{
    io,
    net::SocketAddr,
    task::{Context, Poll, ready},
};

use rustix::{io::Errno, net::RecvFlags};

use super::Socket;

impl Socket {
    /// Shows what has come, at most as much as `buffer` has room for, and takes as much of it as `take` says; the rest stays
    /// in the socket, as if nobody had looked. Nothing to show is the end of the stream.
    pub fn poll_take<T>(
        &self,
        cx: &mut Context<'_>,
        buffer: &mut [u8],
        mut take: impl FnMut(&[u8]) -> (usize, T),
    ) -> Poll<io::Result<T>> {
        loop {
            let mut guard = ready!(self.poll_readable(cx))?;
            let seen = match rustix::net::recv(&self.fd, &mut *buffer, RecvFlags::PEEK) {
                Ok((_, seen)) => seen,
                Err(Errno::AGAIN) => {
                    guard.clear_ready();
                    self.forget_urgent();
                    continue;
                }
                Err(Errno::INTR) => continue,
                Err(error) => return Poll::Ready(Err(error.into())),
            };
            let (taken, result) = take(buffer.get(..seen).unwrap_or_default());
            if taken > 0 {
                let (_, received) =
                    rustix::net::recv(&self.fd, buffer.get_mut(..taken).unwrap_or_default(), RecvFlags::empty())?;
                // What was seen is there: only this end takes it away.
                if received != taken {
                    return Poll::Ready(Err(io::ErrorKind::UnexpectedEof.into()));
                }
            }
            // With something left in it, the socket stays ready for whoever reads on.
            if 0 < taken && taken == seen && seen < buffer.len() && !self.urgent() {
                guard.clear_ready();
            }
            return Poll::Ready(Ok(result));
        }
    }

    /// Its own address. `None`: the kernel does not tell.
    pub fn own_address(&self) -> Option<SocketAddr> {
        rustix::net::getsockname(&self.fd).ok().and_then(|own| SocketAddr::try_from(own).ok())
    }
}
