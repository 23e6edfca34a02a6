//! What each way to end is called in the log and the metrics.

use crate::{drain::Reason, metrics::HandshakeFailure, outcome::Outcome, relay::End};

impl From<End> for Outcome {
    fn from(end: End) -> Self {
        match end {
            End::ClientClosed | End::ClientTruncated => Self::ClientClosed,
            End::BackendClosed => Self::BackendClosed,
            End::ClientReset => Self::ClientReset,
            End::BackendReset => Self::BackendReset,
            End::TlsError => Self::TlsError,
            End::IdleTimeout => Self::IdleTimeout,
            End::HalfClosedTimeout => Self::HalfClosedTimeout,
            End::MaxAge => Self::MaxAge,
            End::Drained => Self::Drained,
            End::Killed => Self::Killed,
            End::BackendDown => Self::BackendDown,
        }
    }
}

impl From<Reason> for Outcome {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Drained => Self::Drained,
            Reason::BackendDown => Self::BackendDown,
            Reason::Killed => Self::Killed,
        }
    }
}

impl From<HandshakeFailure> for Outcome {
    fn from(failure: HandshakeFailure) -> Self {
        match failure {
            HandshakeFailure::Timeout => Self::HandshakeTimeout,
            HandshakeFailure::TlsError => Self::TlsError,
            HandshakeFailure::NotTls | HandshakeFailure::NotTlsHttp => Self::NotTls,
            HandshakeFailure::UnknownSni => Self::UnknownSni,
            HandshakeFailure::NoSharedAlpn => Self::NoSharedAlpn,
            HandshakeFailure::ClientClosed => Self::ClientClosed,
        }
    }
}
