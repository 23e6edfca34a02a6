//! Peers that vanish: no FIN, no reset, and a socket that would live for hours (traps R9).

use std::{os::fd::AsFd, time::Duration};

use rustix::net::sockopt;

/// The kernel gives up on unconfirmed bytes by itself after about fifteen minutes (`net.ipv4.tcp_retries2`, 924 s at
/// least, and up to two minutes for the last of them). A silence that may last longer needs probes.
const PATIENCE: Duration = Duration::from_mins(15);

/// Silence before the first probe, between probes, and how many may stay without an answer: given up after eight minutes.
const FIRST_PROBE: Duration = Duration::from_mins(5);
const NEXT_PROBE: Duration = Duration::from_secs(30);
const PROBES: u32 = 6;

/// Has the kernel find out that the peer is gone, on a connection that may be silent for `idle`.
///
/// Where that is short, a silent peer is gone with it anyway, and bytes that nobody confirms get no more time. Where it is
/// long, the kernel asks. Never both: with a user timeout the kernel no longer counts probes, and ends a peer that is
/// alive and does not read (tcp(7), `TCP_USER_TIMEOUT`).
pub fn expect(socket: impl AsFd, idle: Duration) -> rustix::io::Result<()> {
    if idle <= PATIENCE {
        return sockopt::set_tcp_user_timeout(&socket, u32::try_from(idle.as_millis()).unwrap_or(u32::MAX));
    }
    sockopt::set_tcp_keepidle(&socket, FIRST_PROBE)?;
    sockopt::set_tcp_keepintvl(&socket, NEXT_PROBE)?;
    sockopt::set_tcp_keepcnt(&socket, PROBES)?;
    sockopt::set_socket_keepalive(&socket, true)
}

#[cfg(test)]
mod tests {
    use std::net::TcpListener;

    use super::*;

    #[test]
    fn r9_a_short_idle_bounds_unconfirmed_bytes_and_a_long_one_asks() {
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        expect(&socket, Duration::from_mins(5)).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(300_000));
        assert_eq!(sockopt::socket_keepalive(&socket), Ok(false));
        let socket = TcpListener::bind("127.0.0.1:0").unwrap();
        expect(&socket, Duration::from_hours(24)).unwrap();
        assert_eq!(sockopt::tcp_user_timeout(&socket), Ok(0));
        assert_eq!(sockopt::socket_keepalive(&socket), Ok(true));
        assert_eq!(sockopt::tcp_keepidle(&socket), Ok(FIRST_PROBE));
        assert_eq!(sockopt::tcp_keepintvl(&socket), Ok(NEXT_PROBE));
        assert_eq!(sockopt::tcp_keepcnt(&socket), Ok(PROBES));
    }
}
