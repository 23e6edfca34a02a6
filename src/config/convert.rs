//! The only way from what is written to what is true: defaults are applied here and nowhere else.

#![expect(clippy::ref_option, reason = "the fields of the mirror are lent as they are")]

use std::{
    net::{IpAddr, Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    time::Duration,
};

use super::{
    AccessLog, Action, Admin, Auto, CertificateFiles, Config, DenyAction, Firewall, FirewallTest, Global, Listener,
    ListenerTimeouts, Log, LogFormat, LogLevel, Offload, Pool, ProxyProtocol, Rule, Tls, TlsVersion, ZeroCopy,
    check::check,
    code,
    diagnostic::Diagnostic,
    file::{self, File, Written, WrittenList},
    limits,
    lint::lint,
    pool::{convert as pool, file::Pool as PoolFile},
    read::read,
    reader::Report,
    syntax::{Tree, with_syntax_errors, without_hiding_lines},
};
use crate::{balance::DEFAULT_KEY, cidr::Cidr};

/// A larger text is not read: no configuration comes near it, long lists have files of their own.
pub const MAX_BYTES: usize = 8 << 20;

/// Where the admin listens unless the file says otherwise.
pub const DEFAULT_ADMIN_BIND: SocketAddr = SocketAddr::new(IpAddr::V4(Ipv4Addr::LOCALHOST), 9090);

/// Where the command line looks for the process unless the file says otherwise.
pub const DEFAULT_ADMIN_SOCKET: &str = "/run/sluicegate/admin.sock";

/// Of the packet filter.
const DEFAULT_TABLE: &str = "sluicegate";

const DEFAULT_DRAIN: Duration = Duration::from_secs(30);

/// A header comes at once, unless a packet is lost.
pub const DEFAULT_PROXY_TIMEOUT: Duration = Duration::from_secs(5);

const DEFAULT_PROXY_LENGTH: u32 = 4096;

const DEFAULT_TIMEOUTS: Timeouts = Timeouts {
    pool: pool::Timeouts { connect: Duration::from_secs(3), queue: Duration::from_secs(5) },
    listener: ListenerTimeouts {
        handshake: Duration::from_secs(10),
        idle: Duration::from_mins(5),
        half_closed: Duration::from_secs(30),
        max_age: Duration::ZERO,
    },
};

/// Reads a whole configuration. Relative paths in it are resolved against `base`, the directory it stands in.
///
/// With the configuration come its warnings; without it, every error of the text at once.
pub fn parse(text: &str, base: &Path) -> Result<(Config, Vec<Diagnostic>), Vec<Diagnostic>> {
    if text.len() > MAX_BYTES {
        return Err(vec![too_large()]);
    }
    let mut report = Report::new(text);
    let (file, syntax_errors) = read_text(text, base, &mut report);
    check(&file, &mut report);
    if !syntax_errors.is_empty() {
        return Err(with_syntax_errors(&syntax_errors, report, text).into_diagnostics());
    }
    match convert(&file) {
        Some(config) if report.len() == 0 => {
            lint(&file, &config, &mut report);
            Ok((config, report.into_diagnostics()))
        }
        _ => Err(report.into_diagnostics()),
    }
}

/// The admin socket that a text names, whatever is wrong with the rest of it.
pub fn admin_socket(text: &str, base: &Path) -> Option<PathBuf> {
    let (file, _) = read_text(text.get(..MAX_BYTES).unwrap_or(text), base, &mut Report::new(text));
    file.admin.socket.map(|socket| socket.value)
}

/// What is written, and what of it is not TOML.
fn read_text(text: &str, base: &Path, report: &mut Report) -> (File, Vec<toml::de::Error>) {
    let (tree, mut errors) = Tree::parse(text);
    let file = match without_hiding_lines(text, &errors) {
        None => read(tree.root(), text, base, report),
        Some(cleared) => {
            let (tree, more) = Tree::parse(&cleared);
            errors.extend(more);
            read(tree.root(), text, base, report)
        }
    };
    (file, errors)
}

/// For whoever reads the file: this can be said before it is read.
pub fn too_large() -> Diagnostic {
    Diagnostic::error(code::TOO_LARGE, format!("the configuration is larger than {} MiB", MAX_BYTES >> 20))
        .help("put long lists into files of their own: `deny_file = \"deny.txt\"`")
}

#[derive(Clone, Copy)]
struct Timeouts {
    pool: pool::Timeouts,
    listener: ListenerTimeouts,
}

/// `None` only where a mistake is noted.
fn convert(file: &File) -> Option<Config> {
    let timeouts = timeouts(&file.timeouts, DEFAULT_TIMEOUTS);
    let no_limits = limits::Limits::default();
    let shared = file.firewall.limits.as_ref().unwrap_or(&no_limits);
    Some(Config {
        global: global(&file.global),
        admin: admin(&file.admin),
        log: log(&file.log),
        drain: value(&file.timeouts.drain, DEFAULT_DRAIN),
        firewall: Firewall {
            default: value(&file.firewall.default, Action::Allow),
            deny_action: value(&file.firewall.deny_action, DenyAction::Drop),
            offload: offload(&file.firewall),
            rules: file.firewall.rules.iter().map(rule).collect::<Option<_>>()?,
            tests: file.firewall.tests.iter().map(test).collect::<Option<_>>()?,
            limits: limits::limits(shared),
            auto_ban: file.firewall.auto_ban.as_ref().map(limits::auto_ban),
            bans_file: file.firewall.bans_file.clone(),
        },
        listeners: file.listeners.iter().map(|one| listener(one, timeouts, shared)).collect::<Option<_>>()?,
        pools: file.pools.iter().map(|one| pool_of(one, timeouts)).collect::<Option<_>>()?,
    })
}

fn global(file: &file::Global) -> Global {
    Global {
        workers: value(&file.workers, Auto::Auto),
        max_connections: value(&file.max_connections, Auto::Auto),
        zero_copy: value(&file.zero_copy, ZeroCopy::Auto),
        hash_key: value(&file.hash_key, DEFAULT_KEY),
        watch: value(&file.watch, true),
    }
}

fn admin(file: &file::Admin) -> Admin {
    Admin {
        bind: value(&file.bind, DEFAULT_ADMIN_BIND),
        socket: file.socket.as_ref().map(|socket| socket.value.clone()),
        allow: if file.allow.is_some() { list(&file.allow) } else { loopback() },
    }
}

fn loopback() -> Vec<Cidr> {
    ["127.0.0.0/8", "::1/128"].into_iter().filter_map(|network| network.parse().ok()).collect()
}

fn log(file: &file::Log) -> Log {
    Log {
        access: value(&file.access, AccessLog::Stdout),
        format: value(&file.format, LogFormat::Json),
        level: value(&file.level, LogLevel::Info),
    }
}

fn timeouts(file: &file::Timeouts, default: Timeouts) -> Timeouts {
    Timeouts {
        pool: pool::Timeouts {
            connect: value(&file.connect, default.pool.connect),
            queue: value(&file.queue, default.pool.queue),
        },
        listener: ListenerTimeouts {
            handshake: value(&file.handshake, default.listener.handshake),
            idle: value(&file.idle, default.listener.idle),
            half_closed: value(&file.half_closed, default.listener.half_closed),
            max_age: value(&file.max_age, default.listener.max_age),
        },
    }
}

fn offload(file: &file::Firewall) -> Offload {
    if value(&file.offload, false) {
        Offload::Nftables { table: value(&file.offload_table, DEFAULT_TABLE.to_owned()) }
    } else {
        Offload::Off
    }
}

fn rule(file: &file::Rule) -> Option<Rule> {
    let (action, networks) = file.matches.clone()?;
    Some(Rule {
        name: required(&file.name)?,
        action,
        networks,
        listeners: list(&file.listeners).into_iter().collect(),
        shadow: value(&file.shadow, false),
        span: file.span.clone(),
    })
}

fn test(file: &file::Test) -> Option<FirewallTest> {
    Some(FirewallTest {
        from: required(&file.from)?,
        listener: required(&file.listener),
        expect: required(&file.expect)?,
        span: file.span.clone(),
    })
}

fn listener(file: &file::Listener, defaults: Timeouts, shared: &limits::Limits) -> Option<Listener> {
    Some(Listener {
        name: file.name.value.clone(),
        binds: file.bind.as_ref()?.value.clone(),
        pool: required(&file.pool)?,
        tls: match &file.tls {
            Some(written) => Some(tls(written)?),
            None => None,
        },
        proxy_protocol: match &file.proxy_protocol {
            Some(written) => Some(proxy_protocol(written)?),
            None => None,
        },
        max_connections: required(&file.max_connections),
        limits: limits::listener_limits(file.limits.as_ref(), shared),
        timeouts: timeouts(&file.timeouts, defaults).listener,
    })
}

fn proxy_protocol(file: &file::ProxyProtocol) -> Option<ProxyProtocol> {
    Some(ProxyProtocol {
        from: list(&file.from),
        max_length: u16::try_from(value(&file.max_length, DEFAULT_PROXY_LENGTH)).ok()?,
        timeout: value(&file.timeout, DEFAULT_PROXY_TIMEOUT),
    })
}

fn tls(file: &file::Tls) -> Option<Tls> {
    let certificate =
        |file: &file::Certificate| Some(CertificateFiles { cert: file.cert.clone()?, key: file.key.clone()? });
    Some(Tls {
        certificates: file.certificates.iter().map(certificate).collect::<Option<_>>()?,
        min_version: value(&file.min_version, TlsVersion::V1_2),
        alpn: list(&file.alpn),
        strict_sni: value(&file.strict_sni, false),
    })
}

fn pool_of(file: &PoolFile, defaults: Timeouts) -> Option<Pool> {
    pool::pool(file, timeouts(&file.timeouts, defaults).pool)
}

pub fn required<T: Clone>(written: &Written<T>) -> Option<T> {
    written.as_ref().map(|written| written.value.clone())
}

pub fn value<T: Clone>(written: &Written<T>, default: T) -> T {
    required(written).unwrap_or(default)
}

pub fn list<T: Clone>(written: &WrittenList<T>) -> Vec<T> {
    written.iter().flat_map(|list| &list.value).map(|one| one.value.clone()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        balance::Balance,
        config::{Located, Networks, OnAllDown, OnDown, Role},
    };

    const SMALLEST: &str = r#"
[listener.https]
bind = "0.0.0.0:443"
tls = { cert = "certs/a.pem", key = "/etc/a.key" }
pool = "web"

[pool.web]
backends = ["10.0.0.11:80", "10.0.0.12:80"]
"#;

    fn parsed(text: &str) -> Config {
        let (config, warnings) = parse(text, Path::new("/base")).unwrap_or_else(|errors| panic!("{errors:#?}"));
        assert_eq!(warnings, []);
        config
    }

    #[test]
    fn what_is_not_written_has_a_default() {
        let config = parsed(SMALLEST);
        assert_eq!(config.global.workers, Auto::Auto);
        assert_eq!(config.global.hash_key, DEFAULT_KEY);
        assert_eq!(config.admin.bind, DEFAULT_ADMIN_BIND);
        let allow: Vec<_> = config.admin.allow.iter().map(ToString::to_string).collect();
        assert_eq!(allow, ["127.0.0.0/8", "::1/128"]);
        let listener = &config.listeners[0];
        assert_eq!(listener.timeouts, DEFAULT_TIMEOUTS.listener);
        let tls = listener.tls.as_ref().unwrap();
        assert_eq!(tls.min_version, TlsVersion::V1_2);
        assert_eq!(tls.certificates[0].cert.value, Path::new("/base/certs/a.pem"));
        assert_eq!(tls.certificates[0].key.value, Path::new("/etc/a.key"));
        assert_eq!(&SMALLEST[tls.certificates[0].cert.span.clone()], "\"certs/a.pem\"");
        let pool = &config.pools[0];
        assert_eq!(
            (pool.balance, pool.retries, pool.connect_timeout),
            (Balance::RoundRobin, 2, Duration::from_secs(3))
        );
        assert_eq!(pool.check, Some(pool::DEFAULT_CHECK));
        assert_eq!(pool.outlier, Some(pool::DEFAULT_OUTLIER));
        assert_eq!((pool.on_down, pool.on_all_down), (OnDown::Keep, OnAllDown::Open));
        assert_eq!((pool.slow_start, pool.queue), (Duration::from_secs(10), Duration::from_secs(5)));
        assert_eq!((pool.max_queued.get(), pool.panic_threshold), (1024, 0));
        assert_eq!(pool.backends[1].name, "10.0.0.12:80");
        assert_eq!((pool.backends[1].weight, pool.backends[1].role), (1, Role::Active));
    }

    #[test]
    fn a_role_check_closes_and_a_check_can_be_off() {
        let more = "check = { type = \"mysql\", user = \"u\", role = \"replica\" }\nmax_connections = 7\n";
        let pool = parsed(&format!("{SMALLEST}{more}")).pools.remove(0);
        assert_eq!((pool.on_down, pool.on_all_down), (OnDown::Close, OnAllDown::Close));
        assert_eq!(pool.backends[0].max_connections.map(std::num::NonZero::get), Some(7));
        let pool = parsed(&format!("{SMALLEST}check = \"off\"\noutlier = \"off\"\n")).pools.remove(0);
        assert_eq!((pool.check, pool.outlier), (None, None));
        let pool = parsed(&format!("{SMALLEST}check = \"tcp\"\n")).pools.remove(0);
        assert_eq!(pool.check, Some(pool::DEFAULT_CHECK));
    }

    #[test]
    fn the_nearest_timeout_holds() {
        let more = "[listener.https.timeouts]\nidle = \"1s\"\n[pool.web.timeouts]\nconnect = \"2s\"\n\
            [timeouts]\nidle = \"7s\"\nhandshake = \"8s\"\nconnect = \"9s\"\n";
        let config = parsed(&format!("{SMALLEST}{more}"));
        let timeouts = config.listeners[0].timeouts;
        assert_eq!((timeouts.idle, timeouts.handshake), (Duration::from_secs(1), Duration::from_secs(8)));
        assert_eq!(config.pools[0].connect_timeout, Duration::from_secs(2));
    }

    #[test]
    fn a_list_may_be_a_single_value_and_order_is_kept() {
        let more = "[firewall]\nrules = [{ name = \"z\", deny = \"192.0.2.0/24\" }, { name = \"a\", allow = [\"::1\"] }]\n\
            [listener.a]\nbind = [\"0.0.0.0:0\", \"0.0.0.0:0\"]\npool = \"web\"\n";
        let config = parsed(&format!("{SMALLEST}{more}"));
        let names: Vec<_> = config.firewall.rules.iter().map(|rule| rule.name.as_str()).collect();
        assert_eq!(names, ["z", "a"]);
        assert!(matches!(&config.firewall.rules[0].networks, Networks::Inline(networks) if networks.len() == 1));
        let names: Vec<_> = config.listeners.iter().map(|listener| listener.name.as_str()).collect();
        assert_eq!(names, ["https", "a"]);
        assert_eq!(config.listeners[1].binds.len(), 2);
        let Located { value, span } = &config.listeners[0].binds[0];
        assert_eq!((value.port(), &SMALLEST[span.clone()]), (443, "\"0.0.0.0:443\""));
    }

    #[test]
    fn a_huge_text_is_not_read() {
        let errors = parse(&" ".repeat(MAX_BYTES + 1), Path::new("")).unwrap_err();
        assert_eq!(errors[0].code, code::TOO_LARGE);
    }

    #[test]
    fn b11_a_maglev_pool_has_a_limit() {
        let text = |count: usize| {
            let backends: Vec<_> = (1..=count).map(|n| format!("\"10.0.{}.{}:80\"", n / 256, n % 256)).collect();
            let start = "[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"b\"\n[pool.b]\nbalance = \"maglev\"\nbackends = ";
            format!("{start}[{}]", backends.join(","))
        };
        assert_eq!(parsed(&text(655)).pools[0].backends.len(), 655);
        let errors = parse(&text(656), Path::new("")).unwrap_err();
        assert_eq!((errors.len(), errors[0].code), (1, code::OUT_OF_RANGE));
    }
}
