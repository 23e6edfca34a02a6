//! One question to one backend, over a connection of its own. A probe has no timeout: whoever asks gives up.

mod http;
mod mysql;
mod send_expect;
mod tls;

use std::{
    io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
};

use rustix::io::Errno;
use tokio::net::TcpStream;

use crate::{
    config::{self, CheckKind},
    load::CheckMaterials,
    metrics::CheckResult,
};

/// What a backend is asked, with everything that takes.
#[derive(Debug)]
pub struct Probe {
    target: SocketAddr,
    question: Question,
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
#[derive(Debug, Default)]
pub struct Progress(AtomicBool);

impl Probe {
    pub fn new(check: &config::Check, materials: &CheckMaterials, backend: SocketAddr) -> Self {
        let target = SocketAddr::new(check.address.unwrap_or(backend.ip()), check.port.unwrap_or(backend.port()));
        let tls = |names: &config::CheckTls| {
            let name = names.server_name.as_deref();
            materials.tls.as_ref().map(|client| tls::Tls::new(Arc::clone(client), name, target))
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
        Self { target, question }
    }

    /// Where it asks.
    pub fn target(&self) -> SocketAddr {
        self.target
    }

    pub async fn ask(&self, progress: &Progress) -> Result<(), Failure> {
        if let Question::Mysql(mysql) = &self.question {
            return mysql.ask().await;
        }
        let stream = connect(self.target).await?;
        progress.0.store(true, Ordering::Relaxed);
        match &self.question {
            Question::Tcp => {
                // Nothing was said, so a reset loses nothing, and no port waits for a minute after each check.
                let _ = stream.set_zero_linger();
                Ok(())
            }
            Question::Tls(tls) => tls.handshake(stream).await.map(drop),
            Question::Http(http) => http.ask(stream).await,
            Question::SendExpect(exchange) => exchange.ask(stream).await,
            Question::Mysql(mysql) => mysql.ask().await,
        }
    }
}

impl Progress {
    pub fn is_connected(&self) -> bool {
        self.0.load(Ordering::Relaxed)
    }
}

impl Failure {
    pub fn new(result: CheckResult, reason: impl Into<String>) -> Self {
        Self { result, reason: reason.into() }
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
    const MOST: usize = 60;
    let cut = bytes.get(..MOST).unwrap_or(bytes);
    let dots = if bytes.len() > MOST { "..." } else { "" };
    format!("\"{}{dots}\"", String::from_utf8_lossy(cut).escape_debug())
}
