//! How a relay ends, decided from how its two directions ended.

use crate::drain::Reason;

/// The end of one direction, after everything before it was delivered.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum FlowEnd {
    /// The source finished and the sink has it all.
    Finished,
    /// The source ended abruptly; the sink has what came before.
    SourceFailed,
    /// FIN came without `close_notify`: everything may be there, or not (traps T11).
    SourceTruncated,
    /// The source sent something that is not valid TLS.
    SourceInvalid,
    /// The sink takes no more.
    SinkFailed,
}

/// An end of the connection.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Client,
    Backend,
}

/// How a relay ended.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum End {
    ClientClosed,
    BackendClosed,
    ClientReset,
    BackendReset,
    /// FIN without `close_notify`: a close to the eye, an abrupt end to the backend.
    ClientTruncated,
    /// The client broke the TLS protocol.
    TlsError,
    IdleTimeout,
    HalfClosedTimeout,
    MaxAge,
    Drained,
    /// The backend went down, and its connections end with it.
    BackendDown,
}

/// The end of the whole from the ends of client-to-backend (`up`) and backend-to-client (`down`); `None` while
/// something may still be delivered.
///
/// A sink that fails does not stop the other direction: what its socket received before the failure is still there and
/// is read to the end (rule 10).
pub(super) fn of(up: Option<FlowEnd>, down: Option<FlowEnd>, first: Option<Side>) -> Option<End> {
    use FlowEnd::{Finished, SinkFailed, SourceFailed, SourceInvalid, SourceTruncated};
    match (up, down) {
        (Some(SourceInvalid), _) => Some(End::TlsError),
        (Some(SourceFailed), _) | (Some(Finished | SourceTruncated | SinkFailed), Some(SinkFailed)) => {
            Some(End::ClientReset)
        }
        (_, Some(SourceFailed | SourceInvalid | SourceTruncated)) => Some(End::BackendReset),
        // The backend was done: nothing was cut that anyone waits for, or it does not want the rest.
        (Some(SourceTruncated | SinkFailed), Some(Finished)) => Some(End::BackendClosed),
        (Some(SourceTruncated), _) => Some(End::ClientTruncated),
        (Some(Finished), Some(Finished)) if first == Some(Side::Backend) => Some(End::BackendClosed),
        (Some(Finished), Some(Finished)) => Some(End::ClientClosed),
        (None, _) | (_, None) => None,
    }
}

impl From<Reason> for End {
    fn from(reason: Reason) -> Self {
        match reason {
            Reason::Drained => Self::Drained,
            Reason::BackendDown => Self::BackendDown,
        }
    }
}

impl End {
    /// Whether both sockets were read to their end and wait for nothing.
    pub(super) fn is_plain_close(self, up: Option<FlowEnd>, down: Option<FlowEnd>) -> bool {
        matches!(self, Self::ClientClosed | Self::BackendClosed)
            && up == Some(FlowEnd::Finished)
            && down == Some(FlowEnd::Finished)
    }
}

#[cfg(test)]
mod tests {
    use super::{FlowEnd::*, *};

    #[test]
    fn a_broken_sink_waits_for_the_other_direction() {
        assert_eq!(of(Some(SinkFailed), None, None), None);
        assert_eq!(of(None, Some(SinkFailed), None), None);
        assert_eq!(of(Some(SinkFailed), Some(Finished), Some(Side::Backend)), Some(End::BackendClosed));
        assert_eq!(of(Some(SinkFailed), Some(SourceFailed), None), Some(End::BackendReset));
        assert_eq!(of(Some(SourceFailed), Some(SinkFailed), None), Some(End::ClientReset));
    }

    #[test]
    fn the_first_to_finish_names_the_end() {
        assert_eq!(of(Some(Finished), Some(Finished), Some(Side::Client)), Some(End::ClientClosed));
        assert_eq!(of(Some(Finished), Some(Finished), Some(Side::Backend)), Some(End::BackendClosed));
    }

    #[test]
    fn r8_every_pair_of_ends_is_an_end() {
        let ends = [Finished, SourceFailed, SourceInvalid, SourceTruncated, SinkFailed];
        for up in ends {
            for down in ends {
                assert!(of(Some(up), Some(down), Some(Side::Client)).is_some(), "{up:?} {down:?}");
            }
        }
        assert_eq!(of(None, None, None), None);
    }
}
