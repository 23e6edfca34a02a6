//! The closed sets behind the labels of the PROXY protocol.

use super::labels::Label;
use crate::proxy_protocol::{Failure, Version};

impl Label for Version {
    const ALL: &'static [Self] = &[Self::V1, Self::V2];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

impl Label for Failure {
    const ALL: &'static [Self] = &[
        Self::Untrusted,
        Self::Timeout,
        Self::Incomplete,
        Self::Missing,
        Self::Malformed,
        Self::TooLong,
        Self::Checksum,
    ];

    fn index(self) -> usize {
        self as usize
    }

    fn as_str(self) -> &'static str {
        match self {
            Self::Untrusted => "untrusted",
            Self::Timeout => "timeout",
            Self::Incomplete => "incomplete",
            Self::Missing => "missing",
            Self::Malformed => "malformed",
            Self::TooLong => "too_long",
            Self::Checksum => "checksum",
        }
    }
}
