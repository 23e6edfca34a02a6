//! What the admin socket says and is told: one set of types for the process and for its command line.

use std::{net::SocketAddr, path::PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::Value;

use crate::{config::difference::Difference, drain::inquiry::Sight, metrics::BanKind};

/// `GET /status`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    pub version: String,
    pub pid: u32,
    /// Whether new connections are welcome.
    pub ready: bool,
    pub uptime_seconds: f64,
    pub workers: usize,
    pub connections: u64,
    pub connections_limit: u64,
    /// The configuration file, where there is one.
    pub config: Option<String>,
    /// `None`: what the process was started with runs.
    pub last_reload: Option<LastReload>,
    /// Keys of the file that only a restart puts to work.
    pub needs_restart: Vec<String>,
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
}

/// How the last attempt to replace the configuration ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct LastReload {
    /// RFC 3339.
    pub at: String,
    /// `operator`, `SIGHUP` or `watch`.
    pub by: String,
    /// `applied` or `refused`.
    pub result: String,
    /// What was wrong, first of all.
    pub error: Option<String>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Listener {
    pub name: String,
    pub addresses: Vec<SocketAddr>,
    pub tls: bool,
    pub pool: String,
    pub connections: u64,
    pub connections_limit: u64,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Pool {
    pub name: String,
    pub balance: String,
    /// `active-active` or `active-passive`.
    pub mode: String,
    /// Who takes new connections now: `active`, `backup`, `ejected` (nobody better is up), `all` (checks are not believed) or
    /// `none`.
    pub serving: String,
    /// Clients that wait for a backend with room.
    pub queued: u64,
    pub backends: Vec<Backend>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Backend {
    pub name: String,
    pub address: SocketAddr,
    pub role: String,
    /// `up`, `down`, `draining`, `ejected`, or `unknown` before the first check has answered.
    pub state: String,
    /// Why, where it is not up.
    pub reason: Option<String>,
    /// When a check last changed it, RFC 3339.
    pub since: Option<String>,
    /// How it is checked.
    pub check: Option<String>,
    pub weight: u16,
    pub connections: u32,
    /// `None`: as many as come.
    pub max_connections: Option<u32>,
    /// In what it differs from the configuration file.
    pub drift: Vec<String>,
}

/// `POST /connections` and `POST /kill`: connections that fit everything that is given.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Which {
    pub id: Option<String>,
    pub listener: Option<String>,
    /// An address or a network.
    pub client: Option<String>,
    /// `POOL` or `POOL/BACKEND`.
    pub backend: Option<String>,
    /// Most connections that are described.
    pub limit: Option<usize>,
}

/// The answer to `POST /connections`.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Connections {
    /// How many fit, described or not.
    pub total: usize,
    /// The oldest first.
    pub connections: Vec<Sight>,
}

/// The answer to `POST /kill`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Killed {
    pub ended: usize,
}

/// `POST /backend/drain`, `/backend/enable`, `/backend/weight`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Change {
    /// `POOL/BACKEND`
    pub backend: String,
    #[serde(skip_serializing_if = "Option::is_none", default)]
    pub weight: Option<u16>,
}

/// A backend after a change.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Changed {
    pub pool: String,
    pub backend: Backend,
}

/// `POST /reload`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Reload {
    /// A list may have lost more than half of its networks.
    pub force: bool,
    /// `rendered` is for a terminal with colours.
    pub styled: bool,
}

/// `POST /plan`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Plan {
    /// Another file than the one of the process.
    pub config: Option<PathBuf>,
    pub force: bool,
    pub styled: bool,
}

/// The answer to both; with status 409 where it is refused.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Reloaded {
    /// `applied`, `possible` (a plan) or `refused`.
    pub result: String,
    /// The file that was read.
    pub config: String,
    pub differences: Vec<Difference>,
    /// Keys that only a restart puts to work.
    pub needs_restart: Vec<String>,
    /// As `check --json` has them.
    pub diagnostics: Value,
    /// The same for people.
    pub rendered: String,
}

/// `GET /certificates`
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificates {
    pub certificates: Vec<Certificate>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Certificate {
    pub listener: String,
    pub file: String,
    pub names: Vec<String>,
    /// RFC 3339.
    pub not_before: String,
    pub not_after: String,
    /// Until it ends; below 0 since then.
    pub days_left: i64,
}

/// `GET /bans`
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct BanList {
    /// In the order of the networks.
    pub bans: Vec<Ban>,
}

#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Ban {
    pub network: String,
    pub kind: BanKind,
    pub reason: String,
    /// RFC 3339.
    pub since: String,
    /// `None`: it does not end by itself.
    pub until: Option<String>,
    pub seconds_left: Option<f64>,
}

/// `POST /ban`
#[derive(Debug, Clone, Default, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhoToBan {
    /// Addresses or networks.
    pub networks: Vec<String>,
    /// `None`: it does not end by itself.
    pub seconds: Option<f64>,
    pub reason: String,
    /// Also what is large or exempt.
    pub force: bool,
    /// Ends their connections as well.
    pub kill: bool,
}

/// The answer to `POST /ban`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Banned {
    pub networks: Vec<String>,
    /// RFC 3339.
    pub until: Option<String>,
    /// Connections that were ended.
    pub ended: usize,
    /// Networks that are not banned because there are too many.
    pub no_room: usize,
    /// Whether there is a file for it.
    pub is_kept: bool,
    /// Why the file could not be written.
    pub not_saved: Option<String>,
}

/// `POST /unban`
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct WhoToUnban {
    pub networks: Vec<String>,
    /// Everyone.
    pub all: bool,
}

/// The answer to `POST /unban`.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Unbanned {
    pub networks: Vec<String>,
    /// Why the file could not be written.
    pub not_saved: Option<String>,
}

/// The answer to `POST /upgrade`: the process that serves now.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Upgraded {
    pub pid: u32,
    pub version: String,
    /// The process that answers. It drains.
    pub before: u32,
}

/// Every answer that is none.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Refusal {
    pub error: String,
}
