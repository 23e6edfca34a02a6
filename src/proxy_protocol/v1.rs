//! Version 1: one line of text.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::{Failure, Origin};
use crate::address::canonical;

/// The longest line that a sender may write, with its CRLF.
pub const LONGEST: usize = 107;

pub const FIRST: u8 = b'P';

const PREFIX: &[u8] = b"PROXY ";

/// A line that is not complete.
#[derive(Debug)]
pub struct Line {
    bytes: [u8; LONGEST],
    length: usize,
}

impl Line {
    pub fn new() -> Self {
        Self { bytes: [0; LONGEST], length: 0 }
    }

    /// How many bytes may still come.
    pub fn room(&self) -> usize {
        LONGEST - self.length
    }

    /// Takes one byte; with the last of the line comes what it says.
    pub fn next(&mut self, byte: u8) -> Result<Option<Origin>, Failure> {
        let last = self.length.checked_sub(1).and_then(|last| self.bytes.get(last)).copied();
        if PREFIX.get(self.length).is_some_and(|expected| *expected != byte) {
            return Err(Failure::Missing);
        }
        *self.bytes.get_mut(self.length).ok_or(Failure::TooLong)? = byte;
        self.length += 1;
        match (last, byte) {
            (Some(b'\r'), b'\n') => {
                let line = self.bytes.get(PREFIX.len()..self.length - 2).unwrap_or_default();
                parse(line).map(Some).ok_or(Failure::Malformed)
            }
            // Half a line end, and what could end the line for somebody else.
            (Some(b'\r'), _) | (_, b'\n' | 0) => Err(Failure::Malformed),
            _ if self.room() == 0 => Err(Failure::TooLong),
            _ => Ok(None),
        }
    }
}

/// What stands behind the prefix: exactly one space between the words, as the specification has it.
fn parse(line: &[u8]) -> Option<Origin> {
    let line = str::from_utf8(line).ok().or_else(|| line.starts_with(b"UNKNOWN ").then_some("UNKNOWN"))?;
    let mut words = line.split(' ');
    let family = words.next()?;
    if family == "UNKNOWN" {
        return Some(Origin::Unknown);
    }
    let [source, destination, source_port, destination_port] = [(); 4].map(|()| words.next());
    let ip = |word: &str| -> Option<IpAddr> {
        match family {
            "TCP4" => word.parse().ok().map(Ipv4Addr::into),
            "TCP6" => word.parse().ok().map(Ipv6Addr::into),
            _ => None,
        }
    };
    let address = |word: &str, port: &str| Some(canonical(SocketAddr::new(ip(word)?, self::port(port)?)));
    let source = address(source?, source_port?)?;
    let destination = address(destination?, destination_port?)?;
    words.next().is_none().then_some(Origin::Client { source, destination })
}

/// Digits alone, and no zero before others: what two programs could read differently is none.
fn port(word: &str) -> Option<u16> {
    let is_plain = word.bytes().all(|byte| byte.is_ascii_digit()) && (word == "0" || !word.starts_with('0'));
    word.parse().ok().filter(|_| is_plain)
}
