//! Pools: their backends, how those are watched, and what happens when they fail.

pub mod convert;
pub mod file;
pub mod read;
pub mod secret;
mod value;

use std::{
    net::{IpAddr, SocketAddr},
    num::{NonZeroU32, NonZeroUsize},
    ops::RangeInclusive,
    path::{Path, PathBuf},
    time::Duration,
};

use regex::bytes::Regex;
use rustls::pki_types::ServerName;

use super::Located;
use crate::balance::Balance;
pub use secret::Secret;

#[derive(Debug, Clone, PartialEq)]
pub struct Pool {
    pub name: String,
    /// At least one, names and addresses unique, at least one that is not a backup.
    pub backends: Vec<Backend>,
    pub balance: Balance,
    /// Other backends tried while no client byte was forwarded.
    pub retries: u32,
    /// One connect attempt.
    pub connect_timeout: Duration,
    /// `None`: backends are not checked and count as up.
    pub check: Option<Check>,
    /// `None`: failed connects of traffic eject nobody.
    pub outlier: Option<Outlier>,
    /// How long a recovered backend takes to get its whole share; `Duration::ZERO` is at once.
    pub slow_start: Duration,
    /// What its backends are told of the client.
    pub send_proxy: SendProxy,
    pub on_down: OnDown,
    pub on_all_down: OnAllDown,
    /// Longest wait for a place on a full backend; `Duration::ZERO` is no queue.
    pub queue: Duration,
    /// Most connections that wait at once.
    pub max_queued: NonZeroUsize,
    /// Percent of the active backends that must be up, or health is ignored; 0 is off.
    pub panic_threshold: u8,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    /// 0 to 256; 0 takes no traffic.
    pub weight: u16,
    pub role: Role,
    /// `None`: as many as come.
    pub max_connections: Option<NonZeroU32>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Role {
    Active,
    /// Used only when every active one is down.
    Backup,
}

/// The header of the PROXY protocol that backends get before anything else.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum SendProxy {
    Off,
    V1,
    V2,
}

impl SendProxy {
    /// The word of the file.
    #[must_use]
    pub const fn as_str(self) -> &'static str {
        match self {
            Self::Off => "off",
            Self::V1 => "v1",
            Self::V2 => "v2",
        }
    }
}

/// What happens to the live connections of a backend that goes down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnDown {
    Keep,
    Close,
}

/// What happens to new connections when every backend is down.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum OnAllDown {
    /// They are given to the backends as if all were up: a check may be wrong.
    Open,
    /// They are refused at once.
    Close,
}

/// When failed connects of traffic take a backend out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Outlier {
    /// In a row.
    pub connect_failures: u32,
    /// How long it is out.
    pub eject: Duration,
    /// Percent of the active backends that may be out at once; one always may.
    pub max_ejected: u8,
}

/// How the backends of a pool are asked whether they are well.
#[derive(Debug, Clone, PartialEq)]
pub struct Check {
    pub kind: CheckKind,
    pub every: Duration,
    /// Of one check, from its first packet to its verdict.
    pub timeout: Duration,
    /// Good checks in a row that bring a backend up.
    pub rise: u32,
    /// Bad checks in a row that take it down.
    pub fall: u32,
    /// Instead of the backend's own.
    pub address: Option<IpAddr>,
    pub port: Option<u16>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum CheckKind {
    /// It accepts a connection.
    Tcp,
    /// It completes a handshake.
    Tls(CheckTls),
    Http(CheckHttp),
    SendExpect {
        send: Vec<u8>,
        expect: Expect,
    },
    Mysql {
        user: String,
        password: Secret,
        role: Option<DatabaseRole>,
    },
}

/// TLS towards a backend, for a check.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckTls {
    /// `None`: any certificate will do. Otherwise the PEM file with those that may have signed it.
    pub ca: Option<Located<PathBuf>>,
    /// The name in the `ClientHello` and in a verified certificate. `None`: the address, and no name is sent.
    pub server_name: Option<ServerName<'static>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckHttp {
    pub method: String,
    pub path: String,
    /// `None`: the address that is asked.
    pub host: Option<String>,
    /// Good statuses.
    pub expect: RangeInclusive<u16>,
    /// What the answer's body must contain.
    pub body: Option<String>,
    pub tls: Option<CheckTls>,
}

/// What an answer must contain.
#[derive(Debug, Clone, PartialEq)]
pub enum Expect {
    Bytes(Vec<u8>),
    Regex(Pattern),
}

/// A compiled regular expression, equal to another with the same text.
#[derive(Debug, Clone)]
pub struct Pattern(pub Regex);

/// What a database says about itself in `@@read_only`.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DatabaseRole {
    /// It can be written to.
    Primary,
    /// It cannot.
    Replica,
}

impl PartialEq for Pattern {
    fn eq(&self, other: &Self) -> bool {
        self.0.as_str() == other.0.as_str()
    }
}

impl CheckKind {
    /// As it is written in a configuration.
    pub fn as_str(&self) -> &'static str {
        match self {
            Self::Tcp => "tcp",
            Self::Tls(_) => "tls",
            Self::Http(_) => "http",
            Self::SendExpect { .. } => "send_expect",
            Self::Mysql { .. } => "mysql",
        }
    }
}

impl Check {
    /// The files that it names.
    pub fn files(&self) -> impl Iterator<Item = &Path> {
        let (tls, password) = match &self.kind {
            CheckKind::Tls(tls) => (Some(tls), None),
            CheckKind::Http(http) => (http.tls.as_ref(), None),
            CheckKind::Mysql { password: Secret::File(file), .. } => (None, Some(file)),
            CheckKind::Mysql { .. } | CheckKind::Tcp | CheckKind::SendExpect { .. } => (None, None),
        };
        let authorities = tls.and_then(|tls| tls.ca.as_ref());
        authorities.into_iter().chain(password).map(|file| file.value.as_path())
    }
}
