//! What is said about a connection, and how: JSON for machines, one line of words for people.

use std::{
    fmt,
    io::{self, Write},
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use jiff::Timestamp;
use serde::Serialize;

use crate::{
    config::TlsVersion,
    metrics::{Label, RelayPath},
    outcome::Outcome,
};

/// One connection, told once, at its end.
#[derive(Debug, Clone)]
pub struct Record {
    /// When it ended.
    pub ts: SystemTime,
    /// The lower 48 bits are printed.
    pub id: u64,
    pub listener: Arc<str>,
    /// Canonical.
    pub client: SocketAddr,
    /// Who has connected, if that is another: a balancer that brought the client.
    pub peer: Option<SocketAddr>,
    /// As the client sent it; cut when it is written.
    pub sni: Option<Box<str>>,
    /// `None`: no handshake was completed.
    pub tls: Option<TlsDetails>,
    /// The firewall rule that decided, or `default`.
    pub rule: Arc<str>,
    pub pool: Arc<str>,
    /// The last one that was tried.
    pub backend: Option<Arc<str>>,
    /// Backends that were tried.
    pub attempts: u32,
    /// From the client, plaintext side.
    pub received_bytes: u64,
    /// To the client, plaintext side.
    pub sent_bytes: u64,
    /// `None`: nothing was relayed.
    pub path: Option<RelayPath>,
    pub seconds: Seconds,
    pub outcome: Outcome,
}

#[derive(Debug, Clone)]
pub struct TlsDetails {
    pub version: TlsVersion,
    /// The name in the IANA registry, as rustls spells it.
    pub cipher: &'static str,
    pub alpn: Option<Box<str>>,
    pub resumed: bool,
}

/// How long each phase took; `None` for a phase that was not reached or not completed.
#[derive(Debug, Clone, Default)]
pub struct Seconds {
    pub handshake: Option<Duration>,
    /// Waiting for a place at a backend; zero without a queue.
    pub queue: Duration,
    /// The attempt that succeeded.
    pub connect: Option<Duration>,
    /// From accept to the first byte of the backend.
    pub first_byte: Option<Duration>,
    /// From accept to the end.
    pub total: Duration,
}

/// Longer than any name in DNS; what is longer is an attack or a mistake (traps O4).
const CLIENT_TEXT: usize = 255;

impl Record {
    pub(super) fn write_json(&self, output: &mut Vec<u8>) -> io::Result<()> {
        let line = JsonLine {
            ts: self.time()?,
            event: "connection",
            id: Id(self.id),
            listener: &self.listener,
            client: self.client,
            peer: self.peer,
            sni: self.sni.as_deref().map(cut),
            tls: self.tls.as_ref().map(TlsDetails::json),
            rule: &self.rule,
            pool: &self.pool,
            backend: self.backend.as_deref(),
            attempts: self.attempts,
            received_bytes: self.received_bytes,
            sent_bytes: self.sent_bytes,
            path: self.path.map(Label::as_str),
            seconds: self.seconds.json(),
            outcome: self.outcome.as_str(),
        };
        serde_json::to_writer(output, &line).map_err(io::Error::from)
    }

    pub(super) fn write_text(&self, output: &mut Vec<u8>) -> io::Result<()> {
        let Self { listener, client, rule, pool, attempts, received_bytes, sent_bytes, .. } = self;
        write!(output, "{} {} {}", self.time()?, Id(self.id), Word(listener))?;
        write!(output, " client={client}")?;
        if let Some(peer) = self.peer {
            write!(output, " peer={peer}")?;
        }
        write!(output, " rule={} pool={}", Word(rule), Word(pool))?;
        write!(output, " backend={} attempts={attempts}", Maybe(self.backend.as_deref().map(Word)))?;
        write!(output, " received={received_bytes} sent={sent_bytes}")?;
        write!(output, " path={}", Maybe(self.path.map(Label::as_str)))?;
        if let Some(sni) = &self.sni {
            write!(output, " sni={}", Word(cut(sni)))?;
        }
        if let Some(TlsDetails { version, cipher, alpn, resumed }) = &self.tls {
            write!(output, " tls={} cipher={cipher} resumed={resumed}", version.as_str())?;
            write!(output, " alpn={}", Maybe(alpn.as_deref().map(|alpn| Word(cut(alpn)))))?;
        }
        let seconds = self.seconds.json();
        write!(output, " handshake={} queue={}", Maybe(seconds.handshake), seconds.queue)?;
        write!(output, " connect={} first_byte={}", Maybe(seconds.connect), Maybe(seconds.first_byte))?;
        write!(output, " total={} outcome={}", seconds.total, self.outcome.as_str())
    }

    /// RFC 3339 in UTC, with milliseconds.
    fn time(&self) -> io::Result<String> {
        Timestamp::try_from(self.ts).map(|time| format!("{time:.3}")).map_err(io::Error::other)
    }
}

impl TlsDetails {
    fn json(&self) -> JsonTls<'_> {
        JsonTls {
            version: self.version.as_str(),
            cipher: self.cipher,
            alpn: self.alpn.as_deref().map(cut),
            resumed: self.resumed,
        }
    }
}

impl Seconds {
    fn json(&self) -> JsonSeconds {
        JsonSeconds {
            handshake: self.handshake.map(seconds),
            queue: seconds(self.queue),
            connect: self.connect.map(seconds),
            first_byte: self.first_byte.map(seconds),
            total: seconds(self.total),
        }
    }
}

/// In the order of the contract. Every key but `peer` is always there: what has no value is null.
#[derive(Serialize)]
struct JsonLine<'a> {
    ts: String,
    event: &'static str,
    id: Id,
    listener: &'a str,
    client: SocketAddr,
    #[serde(skip_serializing_if = "Option::is_none")]
    peer: Option<SocketAddr>,
    sni: Option<&'a str>,
    tls: Option<JsonTls<'a>>,
    rule: &'a str,
    pool: &'a str,
    backend: Option<&'a str>,
    attempts: u32,
    received_bytes: u64,
    sent_bytes: u64,
    path: Option<&'static str>,
    seconds: JsonSeconds,
    outcome: &'static str,
}

#[derive(Serialize)]
struct JsonTls<'a> {
    version: &'static str,
    cipher: &'static str,
    alpn: Option<&'a str>,
    resumed: bool,
}

#[derive(Serialize)]
struct JsonSeconds {
    handshake: Option<f64>,
    queue: f64,
    connect: Option<f64>,
    first_byte: Option<f64>,
    total: f64,
}

/// Twelve hexadecimal digits.
struct Id(u64);

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:012x}", self.0 & 0xffff_ffff_ffff)
    }
}

impl Serialize for Id {
    fn serialize<S: serde::Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

/// A value of the text format: as it is when it is one plain word, quoted and escaped otherwise.
struct Word<'a>(&'a str);

impl fmt::Display for Word<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let plain = |b: u8| b.is_ascii_graphic() && !matches!(b, b'"' | b'\\' | b'=');
        let Self(word) = self;
        // A bare `-` is the absence of a value.
        if !word.is_empty() && *word != "-" && word.bytes().all(plain) {
            f.write_str(word)
        } else {
            write!(f, "{word:?}")
        }
    }
}

/// A value of the text format that may be absent.
struct Maybe<T>(Option<T>);

impl<T: fmt::Display> fmt::Display for Maybe<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match &self.0 {
            Some(value) => value.fmt(f),
            None => f.write_str("-"),
        }
    }
}

fn cut(text: &str) -> &str {
    text.get(..text.floor_char_boundary(CLIENT_TEXT)).unwrap_or_default()
}

/// With microseconds: what a clock read once per wake-up can tell.
fn seconds(duration: Duration) -> f64 {
    duration.as_micros() as f64 / 1e6
}
