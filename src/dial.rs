//! Connecting one backend.

use std::{
    future::poll_fn,
    io,
    net::SocketAddr,
    time::{Duration, Instant},
};

use rustix::io::Errno;

use crate::{alarm::Alarm, metrics::ConnectFailure, sys::socket::Socket};

/// Why there is no connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DialError {
    /// This host has no descriptor or memory for it; no backend is to blame (traps A6).
    Exhausted,
    /// This attempt failed, and another backend may do better.
    Failed(ConnectFailure),
}

/// Connects `address` within `timeout`, and says how long it took. `preface` is said at once, in one piece.
pub async fn connect(
    address: SocketAddr,
    preface: &[u8],
    timeout: Duration,
    alarm: &Alarm,
) -> Result<(Socket, Duration), DialError> {
    let begin = Instant::now();
    let socket = Socket::connecting(address).map_err(|error| reason(&error))?;
    match alarm.within(timeout, poll_fn(|cx| socket.poll_connected(cx))).await {
        Some(Ok(())) if is_local_port(address) && socket.is_connected_to_itself(address) => {
            Err(DialError::Failed(ConnectFailure::Refused))
        }
        Some(Ok(())) => {
            let took = begin.elapsed();
            say(&socket, preface).await?;
            Ok((socket, took))
        }
        Some(Err(error)) => Err(reason(&error)),
        None => Err(DialError::Failed(ConnectFailure::Timeout)),
    }
}

/// A backend that does not even take this is no backend: nothing of the client's was forwarded, so another one may do.
async fn say(socket: &Socket, preface: &[u8]) -> Result<(), DialError> {
    if preface.is_empty() {
        return Ok(());
    }
    // A fresh socket has room for far more, so this never waits.
    match poll_fn(|cx| socket.poll_send(cx, preface)).await {
        Ok(sent) if sent == preface.len() => Ok(()),
        Ok(_) => Err(DialError::Failed(ConnectFailure::Other)),
        Err(error) => Err(reason(&error)),
    }
}

/// Where the kernel could have chosen this very address for our end: the default range begins at 32,768
/// (`net.ipv4.ip_local_port_range`).
fn is_local_port(address: SocketAddr) -> bool {
    address.ip().is_loopback() && address.port() >= 32_768
}

fn reason(error: &io::Error) -> DialError {
    let Some(code) = error.raw_os_error() else { return DialError::Failed(ConnectFailure::Other) };
    DialError::Failed(match Errno::from_raw_os_error(code) {
        Errno::MFILE | Errno::NFILE | Errno::NOBUFS | Errno::NOMEM => return DialError::Exhausted,
        Errno::CONNREFUSED => ConnectFailure::Refused,
        Errno::CONNRESET | Errno::PIPE => ConnectFailure::Reset,
        Errno::TIMEDOUT => ConnectFailure::Timeout,
        Errno::HOSTUNREACH | Errno::NETUNREACH | Errno::NETDOWN | Errno::HOSTDOWN => ConnectFailure::Unreachable,
        Errno::ADDRNOTAVAIL => ConnectFailure::NoPorts,
        _ => ConnectFailure::Other,
    })
}
