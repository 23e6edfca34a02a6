//! What is true: the configuration after every default is applied and every reference is resolved.
//!
//! [`file`] says what may be written; [`parse`] is the only way from one to the other. Nothing above this floor sees an
//! `Option` that means "default". No I/O happens here: certificate and list files are named, not read.

mod check;
pub mod code;
mod convert;
pub mod diagnostic;
pub mod difference;
mod file;
mod limits;
mod lines;
mod lint;
mod mask;
mod network;
pub mod places;
mod pool;
mod read;
mod reader;
mod render;
mod syntax;
mod value;

use std::{
    collections::BTreeSet,
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::Range,
    path::PathBuf,
    time::Duration,
};

pub use convert::{DEFAULT_ADMIN_BIND, DEFAULT_ADMIN_SOCKET, MAX_BYTES, admin_socket, parse, too_large};
pub use diagnostic::Diagnostic;
pub use limits::{AutoBan, ConnectionRate, ListenerLimits, SourceLimits};
pub use pool::{
    Backend, Check, CheckHttp, CheckKind, CheckTls, DatabaseRole, Expect, OnAllDown, OnDown, Outlier, Pattern, Pool,
    Role, Secret, SendProxy,
};
pub use reader::similar as similar_name;

pub use crate::firewall::Action;

use crate::cidr::Cidr;

/// What a ban is called among the rules; none may be named so.
pub const BAN: &str = "ban";

/// A whole configuration.
#[derive(Debug, Clone, PartialEq)]
pub struct Config {
    pub global: Global,
    pub admin: Admin,
    pub log: Log,
    /// How long connections may take to end by themselves when the process stops.
    pub drain: Duration,
    pub firewall: Firewall,
    /// In the order of the file; at least one.
    pub listeners: Vec<Listener>,
    /// In the order of the file; at least one.
    pub pools: Vec<Pool>,
}

/// A value with the place it was written at, for messages about things that only show when files are read.
#[derive(Debug, Clone, Eq)]
pub struct Located<T> {
    pub value: T,
    /// Byte range in the configuration text.
    pub span: Range<usize>,
}

/// A number that the host decides unless it is written.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Auto {
    Auto,
    Fixed(NonZeroUsize),
}

#[derive(Debug, Clone, PartialEq)]
pub struct Global {
    /// Data-plane threads; `Auto` is one per core.
    pub workers: Auto,
    /// Connections of the whole process; `Auto` derives it from the descriptor limit.
    pub max_connections: Auto,
    pub zero_copy: ZeroCopy,
    /// Key of `ip_hash` and `maglev`: the same key gives the same choice on every node.
    pub hash_key: [u8; 16],
    /// Whether a change of the file, or of one that it names, is put to work without being asked for.
    pub watch: bool,
}

/// When bytes may bypass user space.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ZeroCopy {
    /// Copy small exchanges, splice bulk.
    Auto,
    /// Never splice.
    Off,
    /// Splice from the first byte.
    Splice,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Admin {
    pub bind: SocketAddr,
    /// A unix socket with the same answers, for its owner alone.
    pub socket: Option<PathBuf>,
    /// Who may connect to `bind`.
    pub allow: Vec<Cidr>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Log {
    pub access: AccessLog,
    pub format: LogFormat,
    pub level: LogLevel,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum AccessLog {
    Stdout,
    File(PathBuf),
    Off,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogFormat {
    Json,
    Text,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum LogLevel {
    Error,
    Warn,
    Info,
    Debug,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Firewall {
    pub default: Action,
    pub deny_action: DenyAction,
    pub offload: Offload,
    /// In written order: the first match decides.
    pub rules: Vec<Rule>,
    pub tests: Vec<FirewallTest>,
    /// Of listeners without limits of their own.
    pub limits: SourceLimits,
    pub auto_ban: Option<AutoBan>,
    /// Where bans are kept for the next start.
    pub bans_file: Option<Located<PathBuf>>,
}

/// How a denied client is sent away.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum DenyAction {
    /// Close without a byte.
    Drop,
    /// RST.
    Reset,
}

/// Whether the kernel denies too, before it answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Offload {
    Off,
    /// By a table of this name, of the family `inet`.
    Nftables {
        table: String,
    },
}

#[derive(Debug, Clone)]
pub struct Rule {
    /// Unique; `default` is reserved.
    pub name: String,
    pub action: Action,
    pub networks: Networks,
    /// Names of the listeners it applies to; empty means every one.
    pub listeners: BTreeSet<String>,
    /// Counted, not enforced.
    pub shadow: bool,
    /// Where the whole rule stands.
    pub span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub enum Networks {
    Inline(Vec<Cidr>),
    /// One network per line; read when the configuration is put to work. Relative paths are already resolved.
    File(Located<PathBuf>),
}

/// A question about the firewall with its answer, asked by `check`.
#[derive(Debug, Clone)]
pub struct FirewallTest {
    pub from: IpAddr,
    /// Every listener when none is named.
    pub listener: Option<String>,
    pub expect: Action,
    pub span: Range<usize>,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Listener {
    pub name: String,
    /// At least one.
    pub binds: Vec<Located<SocketAddr>>,
    /// Name of an existing pool.
    pub pool: String,
    /// `None`: plain TCP.
    pub tls: Option<Tls>,
    /// `None`: clients come themselves.
    pub proxy_protocol: Option<ProxyProtocol>,
    /// `None`: only the limit of the process.
    pub max_connections: Option<NonZeroUsize>,
    pub limits: ListenerLimits,
    pub timeouts: ListenerTimeouts,
}

/// Clients come through other balancers, which say who they are.
#[derive(Debug, Clone, PartialEq)]
pub struct ProxyProtocol {
    /// From where a header is required; at least one. Whoever comes from elsewhere is closed.
    pub from: Vec<Cidr>,
    /// Most bytes that a header of version 2 may have behind its fixed part.
    pub max_length: u16,
    /// The whole header.
    pub timeout: Duration,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ListenerTimeouts {
    /// The whole TLS handshake.
    pub handshake: Duration,
    /// No byte in either direction.
    pub idle: Duration,
    /// Silence after one side has finished sending.
    pub half_closed: Duration,
    /// `Duration::ZERO` is never.
    pub max_age: Duration,
}

#[derive(Debug, Clone, PartialEq)]
pub struct Tls {
    /// At least one; the first answers unknown names unless `strict_sni`.
    pub certificates: Vec<CertificateFiles>,
    pub min_version: TlsVersion,
    /// In order of preference; empty means ALPN is not negotiated.
    pub alpn: Vec<String>,
    pub strict_sni: bool,
}

#[derive(Debug, Clone, PartialEq)]
pub struct CertificateFiles {
    /// PEM chain, leaf first. Relative paths are already resolved.
    pub cert: Located<PathBuf>,
    /// PEM key.
    pub key: Located<PathBuf>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum TlsVersion {
    V1_2,
    V1_3,
}

impl ProxyProtocol {
    /// Whether this peer has to send a header; any other peer may not come.
    pub fn trusts(&self, peer: IpAddr) -> bool {
        self.from.iter().any(|network| network.contains(peer))
    }
}

// What is written stays the same wherever in the file it stands: a comment above it changes nothing.

impl<T: PartialEq> PartialEq for Located<T> {
    fn eq(&self, other: &Self) -> bool {
        self.value == other.value
    }
}

impl PartialEq for Rule {
    fn eq(&self, other: &Self) -> bool {
        let Self { name, action, networks, listeners, shadow, span: _ } = self;
        (name, action, networks, listeners, shadow)
            == (&other.name, &other.action, &other.networks, &other.listeners, &other.shadow)
    }
}

impl PartialEq for FirewallTest {
    fn eq(&self, other: &Self) -> bool {
        let Self { from, listener, expect, span: _ } = self;
        (from, listener, expect) == (&other.from, &other.listener, &other.expect)
    }
}
