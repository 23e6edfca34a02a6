//! The closed sets of what is done about sources of clients.

use serde::{Deserialize, Serialize};

use super::labels::Label;

/// Why a client is turned away for what its source does.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LimitReason {
    /// It has as many connections as it may.
    Connections,
    /// It makes them too fast.
    Rate,
}

/// Who has banned a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum BanKind {
    /// An operator.
    Manual,
    /// The process, for what came from there.
    Automatic,
}

impl Label for LimitReason {
    const ALL: &'static [Self] = &[Self::Connections, Self::Rate];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Connections => "connections",
            Self::Rate => "rate",
        }
    }
}

impl Label for BanKind {
    const ALL: &'static [Self] = &[Self::Manual, Self::Automatic];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Manual => "manual",
            Self::Automatic => "automatic",
        }
    }
}
