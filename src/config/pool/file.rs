//! What may be written about a pool.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::RangeInclusive,
    path::PathBuf,
    time::Duration,
};

use rustls::pki_types::ServerName;

use super::{DatabaseRole, Expect, OnAllDown, OnDown, Role, Secret, SendProxy};
use crate::{
    balance::Balance,
    config::{
        Located,
        file::{Timeouts, Written},
        reader::Schema,
    },
};

#[derive(Debug)]
pub struct Pool {
    pub name: Located<String>,
    pub balance: Written<Balance>,
    pub retries: Written<u32>,
    pub timeouts: Timeouts,
    pub backends: Vec<Backend>,
    /// Of each backend that has none of its own.
    pub max_connections: Written<NonZeroUsize>,
    pub max_queued: Written<NonZeroUsize>,
    pub check: Option<Switch<Check>>,
    pub outlier: Option<Switch<Outlier>>,
    pub slow_start: Written<Duration>,
    pub send_proxy: Written<SendProxy>,
    pub on_down: Written<OnDown>,
    pub on_all_down: Written<OnAllDown>,
    pub panic_threshold: Written<u8>,
}

/// A table, or the word `off`.
#[derive(Debug)]
pub enum Switch<T> {
    Off,
    On(T),
}

#[derive(Debug)]
pub struct Backend {
    pub name: Written<String>,
    pub address: Written<SocketAddr>,
    pub weight: Written<u32>,
    pub role: Written<Role>,
    pub max_connections: Written<NonZeroUsize>,
}

#[derive(Debug, Default)]
pub struct Outlier {
    pub connect_failures: Written<u32>,
    pub eject: Written<Duration>,
    pub max_ejected: Written<u8>,
}

#[derive(Debug, Default)]
pub struct Check {
    pub kind: Option<CheckKind>,
    pub every: Written<Duration>,
    pub timeout: Written<Duration>,
    pub rise: Written<u32>,
    pub fall: Written<u32>,
    pub address: Written<IpAddr>,
    pub port: Written<u32>,
}

#[derive(Debug)]
pub enum CheckKind {
    Tcp,
    Tls(CheckTls),
    Http(CheckHttp),
    SendExpect { send: Written<Vec<u8>>, expect: Written<Expect> },
    Mysql { user: Written<String>, password: Written<Secret>, role: Written<DatabaseRole> },
}

#[derive(Debug)]
pub struct CheckTls {
    pub ca: Written<PathBuf>,
    pub server_name: Written<ServerName<'static>>,
}

#[derive(Debug)]
pub struct CheckHttp {
    pub method: Written<String>,
    pub path: Written<String>,
    pub host: Written<String>,
    pub expect: Written<RangeInclusive<u16>>,
    pub body: Written<String>,
    pub is_tls: Written<bool>,
    pub tls: CheckTls,
}

/// The word for a kind of check.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CheckType {
    Tcp,
    Tls,
    Http,
    SendExpect,
    Mysql,
}

impl From<Located<SocketAddr>> for Backend {
    fn from(address: Located<SocketAddr>) -> Self {
        Self { name: None, address: Some(address), weight: None, role: None, max_connections: None }
    }
}

impl CheckType {
    pub fn schema(self) -> &'static Schema<'static> {
        match self {
            Self::Tcp => &CHECK_TCP,
            Self::Tls => &CHECK_TLS,
            Self::Http => &CHECK_HTTP,
            Self::SendExpect => &CHECK_SEND_EXPECT,
            Self::Mysql => &CHECK_MYSQL,
        }
    }
}

pub const POOL: Schema = Schema {
    name: "[pool.*]",
    keys: &[
        "balance",
        "backends",
        "backend",
        "retries",
        "timeouts",
        "max_connections",
        "max_queued",
        "check",
        "outlier",
        "slow_start",
        "send_proxy",
        "on_down",
        "on_all_down",
        "panic_threshold",
    ],
};
pub const POOL_TIMEOUTS: Schema = Schema { name: "[pool.*.timeouts]", keys: &["connect", "queue"] };
pub const BACKEND: Schema =
    Schema { name: "[[pool.*.backend]]", keys: &["name", "address", "weight", "role", "max_connections"] };
pub const OUTLIER: Schema = Schema { name: "[pool.*.outlier]", keys: &["connect_failures", "eject", "max_ejected"] };
pub const CHECK_TCP: Schema = Schema {
    name: "[pool.*.check] with type = \"tcp\"",
    keys: &["type", "every", "timeout", "rise", "fall", "address", "port"],
};
pub const CHECK_TLS: Schema = Schema {
    name: "[pool.*.check] with type = \"tls\"",
    keys: &["type", "every", "timeout", "rise", "fall", "address", "port", "verify", "ca", "server_name"],
};
pub const CHECK_HTTP: Schema = Schema {
    name: "[pool.*.check] with type = \"http\"",
    keys: &[
        "type",
        "every",
        "timeout",
        "rise",
        "fall",
        "address",
        "port",
        "method",
        "path",
        "host",
        "expect",
        "body",
        "tls",
        "verify",
        "ca",
        "server_name",
    ],
};
pub const CHECK_SEND_EXPECT: Schema = Schema {
    name: "[pool.*.check] with type = \"send_expect\"",
    keys: &["type", "every", "timeout", "rise", "fall", "address", "port", "send", "expect"],
};
pub const CHECK_MYSQL: Schema = Schema {
    name: "[pool.*.check] with type = \"mysql\"",
    keys: &["type", "every", "timeout", "rise", "fall", "address", "port", "user", "password", "role"],
};

pub const ROLE: &[(&str, Role)] = &[("active", Role::Active), ("backup", Role::Backup)];
pub const SEND_PROXY: &[(&str, SendProxy)] = &[("off", SendProxy::Off), ("v1", SendProxy::V1), ("v2", SendProxy::V2)];
pub const ON_DOWN: &[(&str, OnDown)] = &[("keep", OnDown::Keep), ("close", OnDown::Close)];
pub const ON_ALL_DOWN: &[(&str, OnAllDown)] = &[("open", OnAllDown::Open), ("close", OnAllDown::Close)];
pub const CHECK_TYPE: &[(&str, CheckType)] = &[
    ("tcp", CheckType::Tcp),
    ("tls", CheckType::Tls),
    ("http", CheckType::Http),
    ("send_expect", CheckType::SendExpect),
    ("mysql", CheckType::Mysql),
];
pub const DATABASE_ROLE: &[(&str, DatabaseRole)] =
    &[("primary", DatabaseRole::Primary), ("replica", DatabaseRole::Replica)];
pub const BALANCE: &[(&str, Balance)] = &[
    ("round_robin", Balance::RoundRobin),
    ("least_conn", Balance::LeastConn),
    ("ip_hash", Balance::IpHash),
    ("maglev", Balance::Maglev),
    ("p2c", Balance::P2c),
];

// Bounds that no sensible file reaches: they catch slips of the keyboard.
pub const MOST_RETRIES: u32 = 100;
pub const MOST_WEIGHT: u32 = 256;
pub const MOST_IN_A_ROW: u32 = 1000;
pub const MOST_QUEUED: u32 = 1_000_000;
