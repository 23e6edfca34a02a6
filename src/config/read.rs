//! Reads the mirror: every key of every table, and every mistake in them.

use std::path::Path;

use toml::de::{DeTable, DeValue};

use super::{
    AccessLog, Action, BAN, Located, Networks, code,
    diagnostic::Diagnostic,
    file::{
        ACTION, ADMIN, Admin, CERTIFICATE, Certificate, DAY, DAY_OR_NEVER, DENY_ACTION, FIREWALL, FORMAT, File,
        Firewall, GLOBAL, Global, LEVEL, LISTENER, LISTENER_TIMEOUTS, LOG, Listener, Log, MOST_CONNECTIONS,
        MOST_WORKERS, OFFLOAD, PROXY_LENGTHS, PROXY_PROTOCOL, ProxyProtocol, ROOT, RULE, Rule, TEST, TIMEOUTS, TLS,
        TLS_VERSION, Test, Timeouts, Tls, YEAR, YEAR_OR_NEVER, ZERO_COPY,
    },
    limits::{LIMITS, read_auto_ban, read_limits, read_listener_limits},
    network,
    pool::{file::POOL, read::pool},
    reader::{Report, Schema, Table},
    value::{self, Problem},
};

/// Reads everything that is there; paths are resolved against `base`.
pub fn read(root: &DeTable, text: &str, base: &Path, report: &mut Report) -> File {
    let root = Table::new("the file".to_owned(), 0..0, root, &ROOT, report);
    let table = |key: &str, schema: &Schema, report: &mut Report| root.table(key, format!("[{key}]"), schema, report);
    File {
        global: table("global", &GLOBAL, report).map(|t| global(&t, report)).unwrap_or_default(),
        admin: table("admin", &ADMIN, report).map(|t| admin(&t, base, report)).unwrap_or_default(),
        log: table("log", &LOG, report).map(|t| log(&t, base, report)).unwrap_or_default(),
        timeouts: timeouts(&root, "[timeouts]", &TIMEOUTS, report),
        firewall: table("firewall", &FIREWALL, report).map(|t| firewall(&t, base, report)).unwrap_or_default(),
        listeners: some_named(&root, text, "listener", &LISTENER, report)
            .into_iter()
            .map(|(name, table)| listener(name, &table, base, report))
            .collect(),
        pools: some_named(&root, text, "pool", &POOL, report)
            .into_iter()
            .map(|(name, table)| pool(name, &table, base, report))
            .collect(),
    }
}

fn some_named<'a>(
    root: &Table<'a>,
    text: &str,
    key: &str,
    schema: &Schema,
    report: &mut Report,
) -> Vec<(Located<String>, Table<'a>)> {
    let noted = report.len();
    let found = root.named(key, schema, report);
    let told = report.len() > noted || (root.contains(key) && root.key_span(key).is_none());
    if found.is_empty() && !told {
        let end = text.trim_end().len();
        report.push(
            Diagnostic::error(code::NOTHING_TO_DO, format!("there is no {key}"))
                .at(end..end)
                .label(format!("add a table `[{key}.NAME]`")),
        );
    }
    found
}

fn global(table: &Table, report: &mut Report) -> Global {
    Global {
        workers: table.read("workers", report, value::auto_or_count(MOST_WORKERS)),
        max_connections: table.read("max_connections", report, value::auto_or_count(MOST_CONNECTIONS)),
        zero_copy: table.read("zero_copy", report, value::word(ZERO_COPY)),
        hash_key: table.read("hash_key", report, value::hash_key),
        watch: table.read("watch", report, value::boolean),
    }
}

fn admin(table: &Table, base: &Path, report: &mut Report) -> Admin {
    Admin {
        bind: table.read("bind", report, network::bind_address),
        socket: table.read("socket", report, value::path(base)),
        allow: table.read_list("allow", report, network::network),
    }
}

fn log(table: &Table, base: &Path, report: &mut Report) -> Log {
    Log {
        access: table.read("access", report, access_log(base)),
        format: table.read("format", report, value::word(FORMAT)),
        level: table.read("level", report, value::word(LEVEL)),
    }
}

/// A word that is neither of the two known ones is more likely a mistake than a file beside the configuration.
fn access_log(base: &Path) -> impl Fn(&DeValue) -> Result<AccessLog, Problem> {
    move |written| match value::text_of(written)? {
        "stdout" => Ok(AccessLog::Stdout),
        "off" => Ok(AccessLog::Off),
        word if !word.is_empty() && !word.contains(['/', '.']) => Err(value::unknown_word(word, &["stdout", "off"])
            .help(format!("for a file with this name write \"./{}\"", value::cut(word)))
            .into()),
        _ => value::path(base)(written).map(AccessLog::File),
    }
}

/// The table `timeouts` of `parent`, with the keys that `schema` has.
pub fn timeouts(parent: &Table, title: &str, schema: &Schema, report: &mut Report) -> Timeouts {
    let Some(table) = parent.table("timeouts", title.to_owned(), schema, report) else { return Timeouts::default() };
    // Keys that this table may not have are noted by its schema.
    let mut read = |key: &str, bounds| {
        if !schema.keys.contains(&key) {
            return None;
        }
        table.read(key, report, value::duration(bounds))
    };
    Timeouts {
        handshake: read("handshake", DAY),
        connect: read("connect", DAY),
        idle: read("idle", YEAR),
        half_closed: read("half_closed", YEAR),
        max_age: read("max_age", YEAR_OR_NEVER),
        queue: read("queue", DAY_OR_NEVER),
        drain: read("drain", DAY_OR_NEVER),
    }
}

fn firewall(table: &Table, base: &Path, report: &mut Report) -> Firewall {
    Firewall {
        default: table.read("default", report, value::word(ACTION)),
        deny_action: table.read("deny_action", report, value::word(DENY_ACTION)),
        offload: table.read("offload", report, value::word(OFFLOAD)),
        offload_table: table.read("offload_table", report, value::table_name),
        rules: table
            .tables("rules", "a rule of [firewall]", &RULE, report)
            .into_iter()
            .map(|table| rule(&table, base, report))
            .collect(),
        tests: table
            .tables("tests", "a test of [firewall]", &TEST, report)
            .into_iter()
            .map(|table| test(&table, report))
            .collect(),
        limits: read_limits(table, "[firewall.limits]".to_owned(), &LIMITS, report),
        auto_ban: read_auto_ban(table, report),
        bans_file: table.read("bans_file", report, value::path(base)),
    }
}

fn rule(table: &Table, base: &Path, report: &mut Report) -> Rule {
    table.require("name", "name = \"NAME\"", report);
    let networks = ["allow", "deny", "allow_file", "deny_file"];
    table.require_one(&networks, "deny = \"198.51.100.0/24\"", report);
    table.exclude(&networks, report);
    let inline = |key, report: &mut Report| {
        let list = table.read_list(key, report, network::network)?;
        Some(Networks::Inline(list.value.into_iter().map(|one| one.value).collect()))
    };
    let file = |key, report: &mut Report| table.read(key, report, value::path(base)).map(Networks::File);
    let found = [
        (Action::Allow, inline("allow", report)),
        (Action::Deny, inline("deny", report)),
        (Action::Allow, file("allow_file", report)),
        (Action::Deny, file("deny_file", report)),
    ];
    Rule {
        span: table.span.clone(),
        name: table.read("name", report, value::name_except(&["default", BAN])),
        matches: found.into_iter().find_map(|(action, networks)| Some((action, networks?))),
        listeners: table.read_list("listeners", report, value::text),
        shadow: table.read("shadow", report, value::boolean),
    }
}

fn test(table: &Table, report: &mut Report) -> Test {
    table.require("from", "from = \"203.0.113.9\"", report);
    table.require("expect", "expect = \"allow\"", report);
    Test {
        span: table.span.clone(),
        from: table.read("from", report, network::ip_address),
        listener: table.read("listener", report, value::text),
        expect: table.read("expect", report, value::word(ACTION)),
    }
}

fn listener(name: Located<String>, table: &Table, base: &Path, report: &mut Report) -> Listener {
    if name.value == "admin" {
        report.push(value::reserved_name("admin").at(name.span.clone()));
    }
    table.require("bind", "bind = \"0.0.0.0:443\"", report);
    table.require("pool", "pool = \"NAME\"", report);
    let title = |key: &str| format!("[listener.{}.{key}]", value::cut(&name.value));
    Listener {
        bind: table.read_list("bind", report, network::bind_address),
        pool: table.read("pool", report, value::text),
        max_connections: table.read("max_connections", report, value::count(MOST_CONNECTIONS)),
        tls: table.table("tls", title("tls"), &TLS, report).map(|tls_table| tls(&tls_table, base, report)),
        proxy_protocol: table
            .table("proxy_protocol", title("proxy_protocol"), &PROXY_PROTOCOL, report)
            .map(|own| proxy_protocol(&own, report)),
        limits: read_listener_limits(table, title("limits"), report),
        timeouts: timeouts(table, &title("timeouts"), &LISTENER_TIMEOUTS, report),
        name,
    }
}

fn proxy_protocol(table: &Table, report: &mut Report) -> ProxyProtocol {
    table.require("from", "from = \"10.0.8.0/24\"", report);
    ProxyProtocol {
        from: table.read_list("from", report, network::network),
        max_length: table.read("max_length", report, value::integer(PROXY_LENGTHS)),
        timeout: table.read("timeout", report, value::proxy_timeout),
    }
}

fn tls(table: &Table, base: &Path, report: &mut Report) -> Tls {
    let short = table.contains("cert") || table.contains("key");
    let mut certificates = Vec::new();
    if short {
        let short = if table.contains("cert") { "cert" } else { "key" };
        table.exclude(&[short, "certificates"], report);
        certificates.push(certificate(table, base, report));
    } else {
        let example = "certificates = [{ cert = \"FILE\", key = \"FILE\" }]";
        table.require_one(&["cert", "key", "certificates"], example, report);
    }
    table.refuse_empty("certificates", report);
    let list = table.tables("certificates", &format!("a certificate of {}", table.title), &CERTIFICATE, report);
    certificates.extend(list.iter().map(|table| certificate(table, base, report)));
    Tls {
        certificates,
        min_version: table.read("min_version", report, value::word(TLS_VERSION)),
        alpn: table.read_list("alpn", report, value::alpn),
        strict_sni: table.read("strict_sni", report, value::boolean),
    }
}

fn certificate(table: &Table, base: &Path, report: &mut Report) -> Certificate {
    table.require("cert", "cert = \"FILE\"", report);
    table.require("key", "key = \"FILE\"", report);
    Certificate {
        cert: table.read("cert", report, value::path(base)),
        key: table.read("key", report, value::path(base)),
    }
}
