//! Ending a socket so that what was delivered stays delivered (traps R6, R7).
//!
//! `close` with unread input makes the kernel send RST, and an RST makes the peer lose what it has not read. So a clean
//! end says FIN, reads and throws away, and closes when the peer has finished; an abrupt end is passed on as one, after
//! the bytes before it have arrived.

use std::{
    future::poll_fn,
    task::{Context, Poll},
    time::Duration,
};

use tokio::time::{Instant, sleep, timeout};

use super::{Client, End, Resources};
use crate::sys::socket::Socket;

/// How long a peer may take to read what it was sent.
const PATIENCE: Duration = Duration::from_secs(5);

/// Closes both sockets as `end` demands.
pub(super) async fn both(mut client: Client, backend: Socket, end: End, resources: &Resources) {
    match end {
        // The end that reset is gone; the other one is told so.
        End::ClientReset | End::ClientTruncated | End::TlsError => reset(backend).await,
        End::BackendReset => {
            drop(backend);
            client.flush().await;
            reset(client.into_socket()).await;
        }
        End::ClientClosed
        | End::BackendClosed
        | End::IdleTimeout
        | End::HalfClosedTimeout
        | End::MaxAge
        | End::Drained => {
            client.say_goodbye().await;
            let client = client.into_socket();
            tokio::join!(finish(client, resources), finish(backend, resources));
        }
    }
}

/// FIN, then read and discard until the peer has finished, so that no unread input turns the close into a reset.
async fn finish(socket: Socket, resources: &Resources) {
    let delivered = socket.unconfirmed().is_ok_and(|bytes| bytes == 0);
    socket.finish_sending();
    // With everything confirmed and nothing to read there is nothing that a reset could destroy.
    let quiet = std::future::poll_fn(|cx| Poll::Ready(discard(&socket, cx, resources).is_pending())).await;
    if delivered && quiet {
        return;
    }
    let _ = timeout(PATIENCE, poll_fn(|cx| discard(&socket, cx, resources))).await;
}

/// Ready when the peer has finished or is gone.
fn discard(socket: &Socket, cx: &mut Context<'_>, resources: &Resources) -> Poll<()> {
    let mut scratch = resources.scratch.borrow_mut();
    loop {
        match socket.poll_recv(cx, &mut scratch.raw) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
    }
}

/// RST, after the peer's host has confirmed every byte or has had the time to.
async fn reset(socket: Socket) {
    let deadline = Instant::now() + PATIENCE;
    let mut pause = Duration::from_millis(1);
    // The kernel has no event for "all confirmed", so we ask, less and less often.
    while socket.unconfirmed().is_ok_and(|bytes| bytes > 0) && Instant::now() < deadline {
        sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    socket.reset_on_close();
}

impl Client {
    /// Sends what TLS still holds; a plain client holds nothing.
    async fn flush(&mut self) {
        if let Self::Tls(client) = self {
            let _ = timeout(PATIENCE, poll_fn(|cx| client.poll_flush(cx))).await;
        }
    }

    /// Tells a TLS client that this is the end and no truncation (traps T11).
    async fn say_goodbye(&mut self) {
        if let Self::Tls(client) = self {
            client.send_close_notify();
            // One attempt: a client that does not read is not waited for here.
            poll_fn(|cx| Poll::Ready(client.poll_flush(cx).is_ready())).await;
        }
    }

    fn into_socket(self) -> Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(client) => client.into_socket(),
        }
    }
}
