//! How a connection ended: one closed vocabulary for the log and for the metric label.

/// Ends are not errors: each connection has exactly one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
#[repr(u8)]
pub enum Outcome {
    /// Both ends finished; the client was the first.
    ClientClosed,
    /// Both ends finished; the backend was the first.
    BackendClosed,
    /// The client ended abruptly.
    ClientReset,
    /// The backend ended abruptly.
    BackendReset,
    /// No byte in either direction for `idle`.
    IdleTimeout,
    /// One side had finished and the other was silent for `half_closed`.
    HalfClosedTimeout,
    /// The connection reached `max_age`.
    MaxAge,
    /// The firewall said no.
    Denied,
    /// Its source has as many connections as it may, or makes them too fast.
    Limited,
    /// The process or the listener was full.
    MaxConnections,
    /// The handshake was not complete in time.
    HandshakeTimeout,
    /// The handshake failed, or a record was not valid.
    TlsError,
    /// Something else than TLS was sent to a TLS listener.
    NotTls,
    /// `strict_sni` and a name without a certificate, or no name.
    UnknownSni,
    /// The client offered ALPN protocols and none is ours.
    NoSharedAlpn,
    /// No good PROXY header, where one is required.
    BadProxyHeader,
    /// No backend was left to try.
    NoBackend,
    /// Every backend that was tried refused, reset or timed out.
    ConnectFailed,
    /// Every backend had as many connections as it may, and so had the queue.
    QueueFull,
    /// No backend had room in time.
    QueueTimeout,
    /// The backend went down, and `on_down` ends its connections.
    BackendDown,
    /// The process was told to stop.
    Drained,
    /// The operator ended it.
    Killed,
    /// No descriptors or memory for this connection.
    OutOfResources,
    /// A bug of ours; the connection ended alone.
    Internal,
}

impl Outcome {
    /// Every outcome, in the order of the discriminants: `ALL[o as usize] == o`.
    pub const ALL: [Self; 25] = [
        Self::ClientClosed,
        Self::BackendClosed,
        Self::ClientReset,
        Self::BackendReset,
        Self::IdleTimeout,
        Self::HalfClosedTimeout,
        Self::MaxAge,
        Self::Denied,
        Self::Limited,
        Self::MaxConnections,
        Self::HandshakeTimeout,
        Self::TlsError,
        Self::NotTls,
        Self::UnknownSni,
        Self::NoSharedAlpn,
        Self::BadProxyHeader,
        Self::NoBackend,
        Self::ConnectFailed,
        Self::QueueFull,
        Self::QueueTimeout,
        Self::BackendDown,
        Self::Drained,
        Self::Killed,
        Self::OutOfResources,
        Self::Internal,
    ];

    /// The word of the access log and of the metric label.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::ClientClosed => "client_closed",
            Self::BackendClosed => "backend_closed",
            Self::ClientReset => "client_reset",
            Self::BackendReset => "backend_reset",
            Self::IdleTimeout => "idle_timeout",
            Self::HalfClosedTimeout => "half_closed_timeout",
            Self::MaxAge => "max_age",
            Self::Denied => "denied",
            Self::Limited => "limited",
            Self::MaxConnections => "max_connections",
            Self::HandshakeTimeout => "handshake_timeout",
            Self::TlsError => "tls_error",
            Self::NotTls => "not_tls",
            Self::UnknownSni => "unknown_sni",
            Self::NoSharedAlpn => "no_shared_alpn",
            Self::BadProxyHeader => "bad_proxy_header",
            Self::NoBackend => "no_backend",
            Self::ConnectFailed => "connect_failed",
            Self::QueueFull => "queue_full",
            Self::QueueTimeout => "queue_timeout",
            Self::BackendDown => "backend_down",
            Self::Drained => "drained",
            Self::Killed => "killed",
            Self::OutOfResources => "out_of_resources",
            Self::Internal => "internal",
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_table_follows_the_discriminants() {
        for (index, outcome) in Outcome::ALL.into_iter().enumerate() {
            assert_eq!(outcome as usize, index);
        }
    }
}
