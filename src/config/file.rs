//! What may be written: a mirror of the file. `None` is a key that is not written, or one whose mistake is noted already.

use std::{
    net::{IpAddr, SocketAddr},
    num::NonZeroUsize,
    ops::Range,
    path::PathBuf,
    time::Duration,
};

use super::{
    AccessLog, Action, Auto, DenyAction, Located, LogFormat, LogLevel, Networks, TlsVersion, ZeroCopy,
    limits::{Automatic, Limits},
    pool::file::{Pool, Switch},
    reader::Schema,
    value::Bounds,
};
use crate::cidr::Cidr;

pub type Written<T> = Option<Located<T>>;
pub type WrittenList<T> = Written<Vec<Located<T>>>;

#[derive(Debug)]
pub struct File {
    pub global: Global,
    pub admin: Admin,
    pub log: Log,
    pub timeouts: Timeouts,
    pub firewall: Firewall,
    pub listeners: Vec<Listener>,
    pub pools: Vec<Pool>,
}

#[derive(Debug, Default)]
pub struct Global {
    pub workers: Written<Auto>,
    pub max_connections: Written<Auto>,
    pub zero_copy: Written<ZeroCopy>,
    pub hash_key: Written<[u8; 16]>,
    pub watch: Written<bool>,
}

#[derive(Debug, Default)]
pub struct Admin {
    pub bind: Written<SocketAddr>,
    pub socket: Written<PathBuf>,
    pub allow: WrittenList<Cidr>,
}

#[derive(Debug, Default)]
pub struct Log {
    pub access: Written<AccessLog>,
    pub format: Written<LogFormat>,
    pub level: Written<LogLevel>,
}

#[derive(Debug, Default)]
pub struct Timeouts {
    pub handshake: Written<Duration>,
    pub connect: Written<Duration>,
    pub idle: Written<Duration>,
    pub half_closed: Written<Duration>,
    pub max_age: Written<Duration>,
    pub queue: Written<Duration>,
    pub drain: Written<Duration>,
}

#[derive(Debug, Default)]
pub struct Firewall {
    pub default: Written<Action>,
    pub deny_action: Written<DenyAction>,
    /// Whether it is on.
    pub offload: Written<bool>,
    pub offload_table: Written<String>,
    pub rules: Vec<Rule>,
    pub tests: Vec<Test>,
    pub limits: Option<Limits>,
    pub auto_ban: Option<Automatic>,
    pub bans_file: Written<PathBuf>,
}

#[derive(Debug)]
pub struct Rule {
    pub span: Range<usize>,
    pub name: Written<String>,
    pub matches: Option<(Action, Networks)>,
    pub listeners: WrittenList<String>,
    pub shadow: Written<bool>,
}

#[derive(Debug)]
pub struct Test {
    pub span: Range<usize>,
    pub from: Written<IpAddr>,
    pub listener: Written<String>,
    pub expect: Written<Action>,
}

#[derive(Debug)]
pub struct Listener {
    pub name: Located<String>,
    pub bind: WrittenList<SocketAddr>,
    pub pool: Written<String>,
    pub max_connections: Written<NonZeroUsize>,
    pub tls: Option<Tls>,
    pub proxy_protocol: Option<ProxyProtocol>,
    pub limits: Option<Switch<Limits>>,
    pub timeouts: Timeouts,
}

#[derive(Debug)]
pub struct ProxyProtocol {
    pub from: WrittenList<Cidr>,
    pub max_length: Written<u32>,
    pub timeout: Written<Duration>,
}

#[derive(Debug)]
pub struct Tls {
    pub certificates: Vec<Certificate>,
    pub min_version: Written<TlsVersion>,
    pub alpn: WrittenList<String>,
    pub strict_sni: Written<bool>,
}

#[derive(Debug)]
pub struct Certificate {
    pub cert: Written<PathBuf>,
    pub key: Written<PathBuf>,
}

pub const ROOT: Schema =
    Schema { name: "the file", keys: &["global", "admin", "log", "timeouts", "firewall", "listener", "pool"] };
pub const GLOBAL: Schema =
    Schema { name: "[global]", keys: &["workers", "max_connections", "zero_copy", "hash_key", "watch"] };
pub const ADMIN: Schema = Schema { name: "[admin]", keys: &["bind", "socket", "allow"] };
pub const LOG: Schema = Schema { name: "[log]", keys: &["access", "format", "level"] };
pub const TIMEOUTS: Schema =
    Schema { name: "[timeouts]", keys: &["handshake", "connect", "idle", "half_closed", "max_age", "queue", "drain"] };
pub const LISTENER_TIMEOUTS: Schema =
    Schema { name: "[listener.*.timeouts]", keys: &["handshake", "idle", "half_closed", "max_age"] };
pub const FIREWALL: Schema = Schema {
    name: "[firewall]",
    keys: &["default", "deny_action", "offload", "offload_table", "rules", "tests", "limits", "auto_ban", "bans_file"],
};
pub const RULE: Schema = Schema {
    name: "[[firewall.rules]]",
    keys: &["name", "allow", "deny", "allow_file", "deny_file", "listeners", "shadow"],
};
pub const TEST: Schema = Schema { name: "[[firewall.tests]]", keys: &["from", "listener", "expect"] };
pub const LISTENER: Schema = Schema {
    name: "[listener.*]",
    keys: &["bind", "pool", "max_connections", "tls", "proxy_protocol", "limits", "timeouts"],
};
pub const PROXY_PROTOCOL: Schema =
    Schema { name: "[listener.*.proxy_protocol]", keys: &["from", "max_length", "timeout"] };
pub const TLS: Schema =
    Schema { name: "[listener.*.tls]", keys: &["cert", "key", "certificates", "min_version", "alpn", "strict_sni"] };
pub const CERTIFICATE: Schema = Schema { name: "[[listener.*.tls.certificates]]", keys: &["cert", "key"] };

pub const ZERO_COPY: &[(&str, ZeroCopy)] =
    &[("auto", ZeroCopy::Auto), ("off", ZeroCopy::Off), ("splice", ZeroCopy::Splice)];
pub const FORMAT: &[(&str, LogFormat)] = &[("json", LogFormat::Json), ("text", LogFormat::Text)];
pub const LEVEL: &[(&str, LogLevel)] =
    &[("error", LogLevel::Error), ("warn", LogLevel::Warn), ("info", LogLevel::Info), ("debug", LogLevel::Debug)];
pub const ACTION: &[(&str, Action)] = &[("allow", Action::Allow), ("deny", Action::Deny)];
pub const DENY_ACTION: &[(&str, DenyAction)] = &[("drop", DenyAction::Drop), ("reset", DenyAction::Reset)];
pub const OFFLOAD: &[(&str, bool)] = &[("off", false), ("nftables", true)];
pub const TLS_VERSION: &[(&str, TlsVersion)] = &[("1.2", TlsVersion::V1_2), ("1.3", TlsVersion::V1_3)];

/// A sender's longest addresses have to fit, those of unix sockets (216 bytes), and a few extensions.
pub const PROXY_LENGTHS: std::ops::RangeInclusive<u32> = 256..=65_535;

// Bounds that no sensible file reaches: they catch slips of the keyboard.
pub const MOST_WORKERS: u32 = 1024;
pub const MOST_CONNECTIONS: u32 = 100_000_000;
pub const DAY: Bounds = Bounds { zero: false, hours: 24 };
pub const DAY_OR_NEVER: Bounds = Bounds { zero: true, hours: 24 };
pub const YEAR: Bounds = Bounds { zero: false, hours: 24 * 365 };
pub const YEAR_OR_NEVER: Bounds = Bounds { zero: true, hours: 24 * 365 };

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::{
        balance::DEFAULT_KEY,
        config::{
            limits::{AUTO_BAN, LIMITS, LISTENER_LIMITS},
            parse,
            pool::file::{
                BACKEND, CHECK_HTTP, CHECK_MYSQL, CHECK_SEND_EXPECT, CHECK_TCP, CHECK_TLS, OUTLIER, POOL, POOL_TIMEOUTS,
            },
        },
    };

    const FULL: &str = include_str!("../../config/full.toml");

    #[test]
    fn the_full_file_has_every_key() {
        for schema in [
            ROOT,
            GLOBAL,
            ADMIN,
            LOG,
            TIMEOUTS,
            LISTENER_TIMEOUTS,
            POOL_TIMEOUTS,
            FIREWALL,
            LIMITS,
            AUTO_BAN,
            RULE,
            TEST,
            LISTENER,
            PROXY_PROTOCOL,
            LISTENER_LIMITS,
            TLS,
            CERTIFICATE,
            POOL,
            BACKEND,
            OUTLIER,
            CHECK_TCP,
            CHECK_TLS,
            CHECK_HTTP,
            CHECK_SEND_EXPECT,
            CHECK_MYSQL,
        ] {
            for key in schema.keys {
                let is_there =
                    FULL.split(|char: char| !(char.is_alphanumeric() || char == '_')).any(|word| word == *key);
                assert!(is_there, "{key} of {}", schema.name);
            }
        }
    }

    #[test]
    fn the_full_file_shows_the_default_key() {
        let (config, _) = parse(FULL, Path::new("")).unwrap();
        assert_eq!(config.global.hash_key, DEFAULT_KEY);
    }
}
