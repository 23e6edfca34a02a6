//! Ending a socket so that what was delivered stays delivered (traps R6, R7).
//!
//! `close` with unread input makes the kernel send RST, and an RST makes the peer lose what it has not read. So a clean
//! end says FIN, reads and throws away, and closes when the peer has finished. An abrupt end, and one that leaves bytes
//! undelivered in our hands, is passed on as RST, after the bytes before it have arrived.

use std::{
    future::poll_fn,
    io,
    task::{Context, Poll},
    time::{Duration, Instant},
};

use super::{Client, End, Pair, Resources, flow::Flow};
use crate::{alarm::Alarm, sys::socket::Socket};

/// How long a peer may take to read what it was sent.
pub const PATIENCE: Duration = Duration::from_secs(5);

/// The same when the connection has to be over at once.
const HASTE: Duration = Duration::from_millis(40);

/// Closes both sockets as `end` demands.
pub(super) async fn pair(pair: Pair, end: End, resources: &Resources, alarm: &Alarm) {
    let Pair { client, backend, up, down, .. } = pair;
    let to_client = manner(&down, client.holds_back());
    let to_backend = manner(&up, false);
    // Nobody will deliver what is parked any more: its pipes are free before the goodbye.
    drop((up, down));
    resources.note_pipes();
    match end {
        // The end that reset is gone; the other one is told so.
        End::ClientReset => {
            drop(client);
            reset(backend, alarm).await;
        }
        End::BackendReset => {
            drop(backend);
            goodbye(client, Manner::Reset, (resources, alarm)).await;
        }
        // Nobody may stay, so nobody is waited for long (traps B8).
        End::BackendDown => {
            drop(backend);
            reset_within(HASTE, client.into_socket(), alarm).await;
        }
        // No close_notify: it would pass what the client has of the answer for all of it.
        End::ClientTruncated => {
            tokio::join!(reset(backend, alarm), goodbye(client, Manner::Reset, (resources, alarm)));
        }
        // The alert is on its way, and a close with unread input would reset it away.
        End::TlsError => {
            tokio::join!(reset(backend, alarm), finish(client.into_socket(), (resources, alarm)));
        }
        End::ClientClosed
        | End::BackendClosed
        | End::IdleTimeout
        | End::HalfClosedTimeout
        | End::MaxAge
        | End::Drained
        | End::Killed => {
            let means = (resources, alarm);
            tokio::join!(goodbye(client, to_client, means), end_with(backend, to_backend, means));
        }
    }
}

/// What ending takes: the worker's buffer and its time.
type Means<'a> = (&'a Resources, &'a Alarm);

/// How a socket is ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Manner {
    /// FIN: the peer has everything.
    Finish,
    /// RST, behind the bytes that are on their way.
    Reset,
}

/// A FIN behind which bytes are missing would pass a cut for a whole (traps R2).
fn manner(towards: &Flow, held_back: bool) -> Manner {
    if towards.has_parked() || held_back { Manner::Reset } else { Manner::Finish }
}

/// Ends a client; TLS says that it is the end and no truncation (traps T11), unless it is one.
async fn goodbye(mut client: Client, manner: Manner, means: Means<'_>) {
    let mut manner = manner;
    if manner == Manner::Finish {
        client.send_close_notify();
    }
    // What does not fit now is not waited for: a client that takes nothing gets an RST behind what it took.
    if !poll_fn(|cx| Poll::Ready(client.poll_flush(cx).is_ready())).await {
        manner = Manner::Reset;
    }
    end_with(client.into_socket(), manner, means).await;
}

async fn end_with(socket: Socket, manner: Manner, means: Means<'_>) {
    match manner {
        Manner::Finish => finish(socket, means).await,
        Manner::Reset => reset(socket, means.1).await,
    }
}

/// FIN, then read and discard until the peer has finished, so that no unread input turns the close into a reset.
async fn finish(socket: Socket, (resources, alarm): Means<'_>) {
    let delivered = socket.unconfirmed().is_ok_and(|bytes| bytes == 0);
    socket.finish_sending();
    let quiet = poll_fn(|cx| Poll::Ready(discard(&socket, cx, resources).is_pending())).await;
    // The peer's host has everything and sent nothing: waiting for its FIN would only keep the descriptor.
    if delivered && quiet {
        return;
    }
    // Both ends may be waited for at once, so each has an alarm of its own.
    let _ = alarm.another().within(PATIENCE, poll_fn(|cx| discard(&socket, cx, resources))).await;
}

/// Ready when the peer has finished or is gone.
fn discard(socket: &Socket, cx: &mut Context<'_>, resources: &Resources) -> Poll<()> {
    /// Reads in one poll: a peer that sends without end must not keep the worker to itself (traps R12).
    const ROUNDS: usize = 4;
    let mut scratch = resources.scratch.borrow_mut();
    for _ in 0..ROUNDS {
        match socket.poll_recv(cx, &mut scratch.raw) {
            Poll::Ready(Ok(0) | Err(_)) => return Poll::Ready(()),
            Poll::Ready(Ok(_)) => {}
            Poll::Pending => return Poll::Pending,
        }
    }
    cx.waker().wake_by_ref();
    Poll::Pending
}

async fn reset(socket: Socket, alarm: &Alarm) {
    reset_within(PATIENCE, socket, alarm).await;
}

/// RST, after the peer's host has confirmed every byte or has had the time to.
async fn reset_within(patience: Duration, socket: Socket, alarm: &Alarm) {
    let deadline = Instant::now() + patience;
    let mut pause = Duration::from_millis(1);
    // The kernel has no event for "all confirmed", so we ask, less and less often.
    while socket.unconfirmed().is_ok_and(|bytes| bytes > 0) && !socket.is_reset() && Instant::now() < deadline {
        alarm.sleep(pause).await;
        pause = (pause * 2).min(Duration::from_millis(50));
    }
    socket.reset_on_close();
}

impl Client {
    /// Whether TLS holds records that the socket would not take.
    fn holds_back(&self) -> bool {
        match self {
            Self::Plain(_) => false,
            Self::Tls(client) => client.wants_write(),
            Self::Rustls(client) => client.wants_write(),
        }
    }

    fn send_close_notify(&mut self) {
        match self {
            Self::Plain(_) => {}
            Self::Tls(client) => client.send_close_notify(),
            Self::Rustls(client) => client.send_close_notify(),
        }
    }

    fn poll_flush(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        match self {
            Self::Plain(_) => Poll::Ready(Ok(())),
            Self::Tls(client) => client.poll_flush(cx),
            Self::Rustls(client) => client.poll_flush(cx),
        }
    }

    fn into_socket(self) -> Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(client) => client.into_socket(),
            Self::Rustls(client) => client.into_socket(),
        }
    }
}
