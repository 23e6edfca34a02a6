//! The PROXY protocol, versions 1 and 2: another balancer in front of this one says who the client is, and this one says it
//! to backends. After `doc/proxy-protocol.txt` of HAProxy.
//!
//! A [`Decoder`] is given bytes as they come and takes those that belong to the header, never one that follows it. Whether
//! a header comes is not guessed (traps P1): who asks the decoder knows that there has to be one.

mod crc32c;
pub mod encode;
#[cfg(test)]
mod tests;
mod v1;
mod v2;
#[cfg(test)]
mod vectors;

use std::net::SocketAddr;

/// The longest header of version 1, with its line end.
pub const LONGEST_V1: usize = v1::LONGEST;

/// What a header of version 2 has before its block: signature, command, family, length.
pub const FIXED_V2: usize = v2::FIXED;

/// A complete header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Header {
    pub version: Version,
    pub origin: Origin,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Version {
    V1,
    V2,
}

/// On whose behalf the sender has connected.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Origin {
    /// This client's, which connected to this address. Both canonical; no socket is made from them (traps P5).
    Client { source: SocketAddr, destination: SocketAddr },
    /// Its own: a check of its health, for example.
    Local,
    /// A client's that it cannot name: the addresses of the socket are all that is known.
    Unknown,
}

/// Why there is no header.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Failure {
    /// The peer is none that may send one.
    Untrusted,
    /// It did not come in time.
    Timeout,
    /// The peer ended before it was complete.
    Incomplete,
    /// Something else came.
    Missing,
    /// It begins like a header and is none.
    Malformed,
    /// It is longer than it may be.
    TooLong,
    /// Its checksum is wrong.
    Checksum,
}

/// What the decoder made of some bytes.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Taken {
    /// So many of them belong to the header, from the first on.
    pub length: usize,
    /// The header, if it is complete.
    pub header: Option<Header>,
}

/// Reads one header, in whatever pieces it comes. It keeps at most [`LONGEST_V1`] bytes, however long the header is.
#[derive(Debug)]
pub struct Decoder {
    stage: Stage,
    max_length: u16,
}

#[derive(Debug)]
enum Stage {
    First,
    V1(v1::Line),
    V2(v2::Block),
}

impl Decoder {
    /// `max_length` is the most bytes that version 2 may have behind its fixed part.
    pub fn new(max_length: u16) -> Self {
        Self { stage: Stage::First, max_length }
    }

    /// The most bytes that may belong to the header and have not come yet; more need not be looked at.
    pub fn appetite(&self) -> usize {
        match &self.stage {
            Stage::First => LONGEST_V1,
            Stage::V1(line) => line.room(),
            Stage::V2(block) => block.left(),
        }
    }

    /// Whether nothing has come yet.
    pub fn is_untouched(&self) -> bool {
        matches!(self.stage, Stage::First)
    }

    /// Takes from `bytes`, which follow those that were taken before, what belongs to the header. After an error or a
    /// complete header there is nothing more to take.
    pub fn take(&mut self, bytes: &[u8]) -> Result<Taken, Failure> {
        // One at a time, so that it makes no difference in what pieces they come (traps P8).
        for (index, byte) in bytes.iter().enumerate() {
            if let Some(header) = self.next(*byte)? {
                return Ok(Taken { length: index + 1, header: Some(header) });
            }
        }
        Ok(Taken { length: bytes.len(), header: None })
    }

    fn next(&mut self, byte: u8) -> Result<Option<Header>, Failure> {
        if self.is_untouched() {
            self.stage = match byte {
                v1::FIRST => Stage::V1(v1::Line::new()),
                v2::FIRST => Stage::V2(v2::Block::new(self.max_length)),
                _ => return Err(Failure::Missing),
            };
        }
        let (version, origin) = match &mut self.stage {
            Stage::First => return Err(Failure::Missing),
            Stage::V1(line) => (Version::V1, line.next(byte)?),
            Stage::V2(block) => (Version::V2, block.next(byte)?),
        };
        Ok(origin.map(|origin| Header { version, origin }))
    }
}
