//! A question to the connections of one worker (who are you?) and the order that may come with it (end!).
//!
//! Nothing is noted for it beforehand: the question is put up where every connection sees it, all are woken, and each
//! answers for itself. So being open to questions costs a connection one comparison when it is polled.

use std::{
    cell::{Cell, RefCell},
    fmt,
    net::SocketAddr,
};

use serde::{Deserialize, Serialize};

use crate::cidr::Cidr;

/// Which connections are meant: those that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Filter {
    /// As the access log prints it.
    pub id: Option<ConnectionId>,
    pub listener: Option<String>,
    pub client: Option<Cidr>,
    pub pool: Option<String>,
    pub backend: Option<String>,
}

/// What the access log knows a connection by.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ConnectionId(u64);

/// A connection as it is seen from outside.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Sight {
    pub id: String,
    pub listener: String,
    pub client: SocketAddr,
    /// What the client called us.
    pub sni: Option<String>,
    pub pool: String,
    /// The last one that was tried.
    pub backend: Option<String>,
    pub phase: Phase,
    pub age_seconds: f64,
    pub received_bytes: u64,
    pub sent_bytes: u64,
}

/// How far a connection is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    Handshake,
    /// Looking for a backend, or waiting for one with room.
    Connecting,
    Relaying,
    /// Over, and one of its ends has not read everything yet.
    Closing,
}

/// One question and its answers so far.
#[derive(Debug)]
pub struct Inquiry {
    pub filter: Filter,
    /// Whether those that are meant have to end.
    pub ends: bool,
    /// Most connections that are described; the others are only counted.
    most: usize,
    answered: Cell<usize>,
    answers: RefCell<Answers>,
}

/// What came of a question.
#[derive(Debug, Clone, Default)]
pub struct Answers {
    /// How many connections are meant.
    pub matched: usize,
    pub sights: Vec<Sight>,
}

impl ConnectionId {
    /// The lower 48 bits are what it is known by.
    pub fn new(id: u64) -> Self {
        Self(id & 0xffff_ffff_ffff)
    }

    /// From the spelling of the log.
    pub fn parse(text: &str) -> Option<Self> {
        let digits = !text.is_empty() && text.len() <= 12 && text.bytes().all(|byte| byte.is_ascii_hexdigit());
        digits.then(|| u64::from_str_radix(text, 16).ok().map(Self)).flatten()
    }
}

impl fmt::Display for ConnectionId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0)
    }
}

impl Phase {
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Handshake => "handshake",
            Self::Connecting => "connecting",
            Self::Relaying => "relaying",
            Self::Closing => "closing",
        }
    }
}

impl Inquiry {
    pub fn new(filter: Filter, ends: bool, most: usize) -> Self {
        Self { filter, ends, most, answered: Cell::new(0), answers: RefCell::default() }
    }

    /// One connection has answered: `sight` if it is meant.
    pub fn answer(&self, sight: Option<impl FnOnce() -> Sight>) {
        self.answered.set(self.answered.get() + 1);
        if let Some(sight) = sight {
            let mut answers = self.answers.borrow_mut();
            answers.matched += 1;
            if answers.sights.len() < self.most {
                answers.sights.push(sight());
            }
        }
    }

    /// How many have answered.
    pub fn answered(&self) -> usize {
        self.answered.get()
    }

    pub fn take_answers(&self) -> Answers {
        self.answers.take()
    }
}

impl Answers {
    /// Adds what another worker said.
    pub fn add(&mut self, other: Self) {
        self.matched += other.matched;
        self.sights.extend(other.sights);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_id_is_read_as_it_is_printed() {
        let id = ConnectionId::new(0xabcd_0123_4567_89ab);
        assert_eq!(id.to_string(), "0123456789ab");
        assert_eq!(ConnectionId::parse("0123456789ab"), Some(id));
        assert_eq!(["", "g", "+1", "0123456789abc"].map(ConnectionId::parse), [None; 4]);
    }
}
