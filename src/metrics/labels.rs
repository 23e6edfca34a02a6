//! The closed sets behind every label that is not a configured name (traps O5).

use crate::{config::TlsVersion, outcome::Outcome};

/// A closed set of label values; the discriminants count from 0 in the order of `ALL`.
pub trait Label: Copy + 'static {
    const ALL: &'static [Self];

    /// Place in `ALL`.
    fn index(self) -> usize;

    /// The label value.
    fn as_str(self) -> &'static str;
}

/// Why `accept` failed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum AcceptError {
    /// The client was gone before we looked (`ECONNABORTED`).
    Aborted,
    /// `EMFILE` or `ENFILE`.
    Descriptors,
    /// `ENOBUFS` or `ENOMEM`.
    Memory,
    /// An error of the network that Linux hands to `accept` (accept(2): `ENETDOWN`, `EPROTO`, `EHOSTUNREACH`, ...).
    Network,
    Other,
}

/// Why a TLS handshake was not completed.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HandshakeFailure {
    Timeout,
    TlsError,
    NotTls,
    /// Plain HTTP was sent to a TLS port: the commonest mistake, so it has its own name.
    NotTlsHttp,
    UnknownSni,
    NoSharedAlpn,
    /// The client went away after it had begun.
    ClientClosed,
}

/// Why a backend could not be connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ConnectFailure {
    Refused,
    Timeout,
    Unreachable,
    Reset,
    Tls,
    /// No local port was free.
    NoPorts,
    Other,
}

/// What a health check found.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckResult {
    Ok,
    Refused,
    Timeout,
    Unreachable,
    Reset,
    /// The backend closed without an answer.
    Closed,
    Tls,
    /// An answer, but not the expected one.
    Answer,
    /// A database did not let us in.
    Login,
    /// A database has another role than is wanted.
    WrongRole,
    /// This host has no descriptor, memory or port for it; no backend is to blame (traps A6).
    Local,
    /// We were stopped meanwhile: it proves nothing (traps R18).
    Stalled,
    Other,
}

/// What health checks made of a backend.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Transition {
    Up,
    Down,
}

/// How bytes travel through the process.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum RelayPath {
    Copy,
    Splice,
    Tls,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Direction {
    ClientToBackend,
    BackendToClient,
}

/// Why a relay that wanted to splice copies.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fallback {
    /// The bound on pipes is reached, or no descriptor is left.
    NoPipe,
    /// The kernel gave less than was asked (an unprivileged user's pipe budget is spent).
    SmallPipe,
    /// The kernel cannot splice this socket.
    Einval,
    NoMemory,
}

/// What a firewall rule does with a match.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum RuleAction {
    Allow,
    Deny,
    /// Counted, not enforced.
    ShadowDeny,
    /// As [`Self::ShadowDeny`], of a rule that would allow.
    ShadowAllow,
}

/// Whether a TLS handshake continued an earlier session.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Resumption {
    Full,
    Resumed,
}

impl Label for AcceptError {
    const ALL: &'static [Self] = &[Self::Aborted, Self::Descriptors, Self::Memory, Self::Network, Self::Other];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Aborted => "aborted",
            Self::Descriptors => "descriptors",
            Self::Memory => "memory",
            Self::Network => "network",
            Self::Other => "other",
        }
    }
}

impl Label for HandshakeFailure {
    const ALL: &'static [Self] = &[
        Self::Timeout,
        Self::TlsError,
        Self::NotTls,
        Self::NotTlsHttp,
        Self::UnknownSni,
        Self::NoSharedAlpn,
        Self::ClientClosed,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Timeout => "timeout",
            Self::TlsError => "tls_error",
            Self::NotTls => "not_tls",
            Self::NotTlsHttp => "not_tls_http",
            Self::UnknownSni => "unknown_sni",
            Self::NoSharedAlpn => "no_shared_alpn",
            Self::ClientClosed => "client_closed",
        }
    }
}

impl Label for ConnectFailure {
    const ALL: &'static [Self] =
        &[Self::Refused, Self::Timeout, Self::Unreachable, Self::Reset, Self::Tls, Self::NoPorts, Self::Other];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Tls => "tls",
            Self::NoPorts => "no_ports",
            Self::Other => "other",
        }
    }
}

impl Label for CheckResult {
    const ALL: &'static [Self] = &[
        Self::Ok,
        Self::Refused,
        Self::Timeout,
        Self::Unreachable,
        Self::Reset,
        Self::Closed,
        Self::Tls,
        Self::Answer,
        Self::Login,
        Self::WrongRole,
        Self::Local,
        Self::Stalled,
        Self::Other,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Ok => "ok",
            Self::Refused => "refused",
            Self::Timeout => "timeout",
            Self::Unreachable => "unreachable",
            Self::Reset => "reset",
            Self::Closed => "closed",
            Self::Tls => "tls",
            Self::Answer => "answer",
            Self::Login => "login",
            Self::WrongRole => "wrong_role",
            Self::Local => "local",
            Self::Stalled => "stalled",
            Self::Other => "other",
        }
    }
}

impl Label for Transition {
    const ALL: &'static [Self] = &[Self::Up, Self::Down];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Up => "up",
            Self::Down => "down",
        }
    }
}

impl Label for RelayPath {
    const ALL: &'static [Self] = &[Self::Copy, Self::Splice, Self::Tls];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Copy => "copy",
            Self::Splice => "splice",
            Self::Tls => "tls",
        }
    }
}

impl Label for Direction {
    const ALL: &'static [Self] = &[Self::ClientToBackend, Self::BackendToClient];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::ClientToBackend => "client_to_backend",
            Self::BackendToClient => "backend_to_client",
        }
    }
}

impl Label for Fallback {
    const ALL: &'static [Self] = &[Self::NoPipe, Self::SmallPipe, Self::Einval, Self::NoMemory];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::NoPipe => "no_pipe",
            Self::SmallPipe => "small_pipe",
            Self::Einval => "einval",
            Self::NoMemory => "no_memory",
        }
    }
}

impl Label for RuleAction {
    const ALL: &'static [Self] = &[Self::Allow, Self::Deny, Self::ShadowDeny, Self::ShadowAllow];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Allow => "allow",
            Self::Deny => "deny",
            Self::ShadowDeny => "shadow_deny",
            Self::ShadowAllow => "shadow_allow",
        }
    }
}

impl Label for Resumption {
    const ALL: &'static [Self] = &[Self::Full, Self::Resumed];

    fn index(self) -> usize {
        self as usize
    }

    /// The value of the label `resumed`.
    fn as_str(self) -> &'static str {
        match self {
            Self::Full => "false",
            Self::Resumed => "true",
        }
    }
}

impl Label for TlsVersion {
    const ALL: &'static [Self] = &[Self::V1_2, Self::V1_3];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V1_2 => "1.2",
            Self::V1_3 => "1.3",
        }
    }
}

impl Label for Outcome {
    const ALL: &'static [Self] = &Self::ALL;

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        Self::as_str(self)
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;
    use crate::metrics::{BanKind, LimitReason};

    fn is_a_closed_set<L: Label>() {
        let words: HashSet<_> = L::ALL.iter().map(|label| label.as_str()).collect();
        assert_eq!(words.len(), L::ALL.len(), "two values share a word: {words:?}");
        for (index, label) in L::ALL.iter().enumerate() {
            assert_eq!(label.index(), index);
        }
    }

    #[test]
    fn o5_every_label_is_a_closed_set_in_the_order_of_its_discriminants() {
        is_a_closed_set::<AcceptError>();
        is_a_closed_set::<HandshakeFailure>();
        is_a_closed_set::<ConnectFailure>();
        is_a_closed_set::<CheckResult>();
        is_a_closed_set::<Transition>();
        is_a_closed_set::<RelayPath>();
        is_a_closed_set::<Direction>();
        is_a_closed_set::<Fallback>();
        is_a_closed_set::<RuleAction>();
        is_a_closed_set::<Resumption>();
        is_a_closed_set::<TlsVersion>();
        is_a_closed_set::<Outcome>();
        is_a_closed_set::<crate::proxy_protocol::Version>();
        is_a_closed_set::<crate::proxy_protocol::Failure>();
        is_a_closed_set::<LimitReason>();
        is_a_closed_set::<BanKind>();
    }
}
