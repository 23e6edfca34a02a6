//! One question to one backend, over a connection of its own. A probe has no timeout: whoever asks gives up.

mod http;
mod mysql;
mod send_expect;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::io::Errno;
use tokio::{io::AsyncWriteExt as _, net::TcpStream};

use crate::{
    address::canonical,
    config::{self, CheckKind, SendProxy},
    load::CheckMaterials,
    metrics::CheckResult,
    proxy_protocol::encode,
    sys::reserve::Reserve,
};

/// What a backend is asked, with everything that takes.
#[derive(Debug)]
pub struct Probe {
    target: SocketAddr,
    question: Question,
    /// The header that goes before the question.
    header: SendProxy,
    reserve: Arc<Reserve>,
}

#[derive(Debug)]
enum Question {
    Tcp,
    Tls(tls::Tls),
    Http(http::Http),
    SendExpect(send_expect::SendExpect),
    Mysql(mysql::Mysql),
}

/// Why a check was not good.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Failure {
    pub result: CheckResult,
    /// In words, for the log.
    pub reason: String,
}

/// How far a probe has come, for who gives up on it.
#[derive(Debug)]
pub struct Progress(Mutex<Heard>);

#[derive(Debug)]
struct Heard {
    /// What was reached, and what is missing.
    step: &'static str,
    /// The beginning of what the backend said.
    said: Vec<u8>,
}

/// Descriptors kept back for checks when clients have taken all the others (traps A1).
pub const RESERVED: usize = 16;

/// So much of what a backend says goes into a log.
const MOST_BYTES: usize = 60;
const MOST_WORDS: usize = 200;

impl Probe {
    /// A question for `backend`, whose clients have this `header` before what they say. When they have taken every
    /// descriptor, one of `reserve` is used.
    pub fn new(
        check: &config::Check,
        header: SendProxy,
        materials: &CheckMaterials,
        backend: SocketAddr,
        reserve: &Arc<Reserve>,
    ) -> Self {
        let target = SocketAddr::new(check.address.unwrap_or(backend.ip()), check.port.unwrap_or(backend.port()));
        let tls = |names: &config::CheckTls| {
            let client = materials.tls.as_ref()?;
            Some(tls::Tls::new(Arc::clone(client), names.server_name.clone(), target))
        };
        let question = match &check.kind {
            CheckKind::Tcp => Question::Tcp,
            CheckKind::Tls(names) => tls(names).map_or(Question::Tcp, Question::Tls),
            CheckKind::Http(asked) => {
                let tls = asked.tls.as_ref().and_then(tls);
                Question::Http(http::Http::new(asked, target, tls))
            }
            CheckKind::SendExpect { send, expect } => {
                Question::SendExpect(send_expect::SendExpect { send: send.clone(), expect: expect.clone() })
            }
            CheckKind::Mysql { user, role, .. } => {
                Question::Mysql(mysql::Mysql::new(target, user, &materials.password, *role))
            }
        };
        // Another address than that of the traffic need not speak like it.
        let header = if check.address.is_some() || check.port.is_some() { SendProxy::Off } else { header };
        Self { target, question, header, reserve: Arc::clone(reserve) }
    }

    /// Where it asks.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    pub async fn ask(&self, progress: &Progress) -> Result<(), Failure> {
        match self.ask_once(progress).await {
            Err(failure) if failure.result == CheckResult::Local && self.reserve.give_up() => {
                self.ask_once(progress).await
            }
            answer => answer,
        }
    }

    async fn ask_once(&self, progress: &Progress) -> Result<(), Failure> {
        if let Question::Mysql(mysql) = &self.question
            && self.header == SendProxy::Off
        {
            return mysql.ask(progress, None).await;
        }
        let mut stream = connect(self.target).await?;
        self.say_header(&mut stream).await?;
        progress.reach("connected, but no answer");
        match &self.question {
            Question::Tcp => {
                if self.header == SendProxy::Off {
                    // Nothing was said, so a reset loses nothing, and no port waits for a minute after each check.
                    let _ = stream.set_zero_linger();
                }
                Ok(())
            }
            Question::Tls(tls) => tls.handshake(stream).await.map(drop),
            Question::Http(http) => http.ask(stream, progress).await,
            Question::SendExpect(exchange) => exchange.ask(stream, progress).await,
            Question::Mysql(mysql) => mysql.ask(progress, Some(stream)).await,
        }
    }

    /// Nobody is brought: version 2 has a word for that, and in version 1 the addresses are those of the check (traps P9).
    async fn say_header(&self, stream: &mut TcpStream) -> Result<(), Failure> {
        let header = match self.header {
            SendProxy::Off => return Ok(()),
            SendProxy::V1 => {
                let own = stream.local_addr().map_err(|error| Failure::io("connect", &error))?;
                encode::v1(canonical(own), canonical(self.target))
            }
            SendProxy::V2 => encode::local(),
        };
        stream.write_all(&header).await.map_err(|error| Failure::io("send", &error))
    }
}

impl Default for Progress {
    fn default() -> Self {
        Self(Mutex::new(Heard { step: "no answer", said: Vec::new() }))
    }
}

impl Progress {
    /// From now on this is what is missing.
    pub fn reach(&self, step: &'static str) {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).step = step;
    }

    /// The backend said something, and it may not be enough.
    pub fn hear(&self, bytes: &[u8]) {
        let said = &mut self.0.lock().unwrap_or_else(PoisonError::into_inner).said;
        // One more than is shown, so that the rest is known to be there.
        said.extend(bytes.iter().take((MOST_BYTES + 1).saturating_sub(said.len())));
    }

    /// Why the time was not enough.
    pub fn missing(&self, limit: Duration) -> String {
        let heard = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if heard.said.is_empty() {
            return format!("{} within {limit:?}", heard.step);
        }
        format!("{} is all that came within {limit:?}", excerpt(&heard.said))
    }
}

impl Failure {
    pub fn new(result: CheckResult, reason: impl Into<String>) -> Self {
        Self { result, reason: reason.into() }
    }

    /// Whether this host or this process is to blame, and the backend may be well (traps A6, R18).
    pub fn is_ours(&self) -> bool {
        matches!(self.result, CheckResult::Local | CheckResult::Stalled)
    }

    /// An error of the kernel's; `what` was being done.
    fn io(what: &str, error: &io::Error) -> Self {
        let code = error.raw_os_error().map(Errno::from_raw_os_error);
        let (result, words) = match code {
            Some(Errno::CONNREFUSED) => (CheckResult::Refused, "connection refused"),
            Some(Errno::CONNRESET | Errno::PIPE) => (CheckResult::Reset, "connection reset"),
            Some(Errno::TIMEDOUT) => (CheckResult::Timeout, "connection timed out"),
            Some(Errno::HOSTUNREACH | Errno::HOSTDOWN) => (CheckResult::Unreachable, "host unreachable"),
            Some(Errno::NETUNREACH | Errno::NETDOWN) => (CheckResult::Unreachable, "network unreachable"),
            Some(Errno::MFILE | Errno::NFILE) => (CheckResult::Local, "no descriptor is free on this host"),
            Some(Errno::NOBUFS | Errno::NOMEM) => (CheckResult::Local, "no memory is free on this host"),
            Some(Errno::ADDRNOTAVAIL) => (CheckResult::Local, "no local port is free"),
            _ if error.kind() == io::ErrorKind::UnexpectedEof => (CheckResult::Closed, "connection closed"),
            _ => return Self::new(CheckResult::Other, format!("{what}: {error}")),
        };
        Self::new(result, format!("{what}: {words}"))
    }
}

async fn connect(target: SocketAddr) -> Result<TcpStream, Failure> {
    let stream = TcpStream::connect(target).await.map_err(|error| Failure::io("connect", &error))?;
    // The kernel may have chosen this very address for our end: then nobody listens there.
    if stream.local_addr().is_ok_and(|own| own == target) {
        return Err(Failure::new(CheckResult::Refused, "connect: connection refused"));
    }
    Ok(stream)
}

/// What a peer said, fit for one line of a log.
fn excerpt(bytes: &[u8]) -> String {
    let cut = bytes.get(..MOST_BYTES).unwrap_or(bytes);
    let dots = if bytes.len() > MOST_BYTES { "..." } else { "" };
    format!("\"{}{dots}\"", String::from_utf8_lossy(cut).escape_debug())
}

/// A message with words of a peer's in it, fit for one line of a log.
fn words(text: &str) -> String {
    match text.char_indices().nth(MOST_WORDS) {
        Some((end, _)) => format!("{}...", text.get(..end).unwrap_or_default().escape_debug()),
        None => text.escape_debug().to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_peer_says_is_cut_and_cannot_break_a_line() {
        assert_eq!(words("Access denied for user 'x'\n"), "Access denied for user \\'x\\'\\n");
        assert_eq!(words(&"ä".repeat(100_000)).chars().count(), MOST_WORDS + 3);
        assert_eq!(excerpt(&[b'x'; 10_000]).len(), MOST_BYTES + 5);
    }
}
