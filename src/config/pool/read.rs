//! Reads what is written about a pool, and every mistake in it.

use std::path::Path;

use super::{
    file::{
        BACKEND, BALANCE, Backend, CHECK_HTTP, CHECK_TYPE, Check, CheckHttp, CheckKind, CheckTls, CheckType,
        DATABASE_ROLE, MOST_IN_A_ROW, MOST_QUEUED, MOST_RETRIES, MOST_WEIGHT, ON_ALL_DOWN, ON_DOWN, OUTLIER, Outlier,
        POOL_TIMEOUTS, Pool, ROLE, SEND_PROXY, Switch,
    },
    value as own,
};
use crate::config::{
    Located, code,
    diagnostic::Diagnostic,
    file::{DAY, DAY_OR_NEVER, MOST_CONNECTIONS},
    network, read,
    reader::{Report, Schema, Table},
    value,
};

pub fn pool(name: Located<String>, table: &Table, base: &Path, report: &mut Report) -> Pool {
    table.require_one(&["backends", "backend"], "backends = [\"10.0.0.11:80\"]", report);
    table.exclude(&["backends", "backend"], report);
    let short = table.read_list("backends", report, network::backend_address);
    let mut backends: Vec<_> = short.into_iter().flat_map(|list| list.value).map(Backend::from).collect();
    table.refuse_empty("backend", report);
    let long = table.tables("backend", &format!("a backend of {}", table.title), &BACKEND, report);
    backends.extend(long.iter().map(|table| backend(table, report)));
    let title = |key: &str| format!("[pool.{}.{key}]", value::cut(&name.value));
    Pool {
        balance: table.read("balance", report, value::word(BALANCE)),
        retries: table.read("retries", report, value::integer(0..=MOST_RETRIES)),
        timeouts: read::timeouts(table, &title("timeouts"), &POOL_TIMEOUTS, report),
        max_connections: table.read("max_connections", report, value::count(MOST_CONNECTIONS)),
        max_queued: table.read("max_queued", report, value::count(MOST_QUEUED)),
        check: check(table, title("check"), base, report),
        outlier: outlier(table, title("outlier"), report),
        slow_start: table.read("slow_start", report, value::duration(DAY_OR_NEVER)),
        send_proxy: table.read("send_proxy", report, value::word(SEND_PROXY)),
        on_down: table.read("on_down", report, value::word(ON_DOWN)),
        on_all_down: table.read("on_all_down", report, value::word(ON_ALL_DOWN)),
        panic_threshold: table.read("panic_threshold", report, own::percent),
        backends,
        name,
    }
}

fn backend(table: &Table, report: &mut Report) -> Backend {
    table.require("address", "address = \"10.0.0.11:80\"", report);
    Backend {
        name: table.read("name", report, |written| value::name(value::text_of(written)?)),
        address: table.read("address", report, network::backend_address),
        weight: table.read("weight", report, value::integer(0..=MOST_WEIGHT)),
        role: table.read("role", report, value::word(ROLE)),
        max_connections: table.read("max_connections", report, value::count(MOST_CONNECTIONS)),
    }
}

fn outlier(pool: &Table, title: String, report: &mut Report) -> Option<Switch<Outlier>> {
    if pool.text("outlier").is_some() {
        return pool.read("outlier", report, value::word(&[("off", ())])).map(|_| Switch::Off);
    }
    let table = pool.table("outlier", title, &OUTLIER, report)?;
    Some(Switch::On(Outlier {
        connect_failures: table.read("connect_failures", report, value::integer(1..=MOST_IN_A_ROW)),
        eject: table.read("eject", report, value::duration(DAY)),
        max_ejected: table.read("max_ejected", report, own::percent),
    }))
}

/// One of the words `tcp` and `off`, or a table.
fn check(pool: &Table, title: String, base: &Path, report: &mut Report) -> Option<Switch<Check>> {
    if let Some(written) = pool.text("check") {
        let words = &[("tcp", Some(CheckType::Tcp)), ("off", None)];
        let needs_table = CHECK_TYPE.iter().any(|(word, kind)| *word == written && *kind != CheckType::Tcp);
        let word = pool.read("check", report, |text| {
            value::word(words)(text).map_err(|problem| {
                if !needs_table {
                    return problem;
                }
                problem.help(format!("write a table: `check = {{ type = \"{written}\" }}`")).into()
            })
        })?;
        return Some(match word.value {
            Some(_) => Switch::On(Check { kind: Some(CheckKind::Tcp), ..Check::default() }),
            None => Switch::Off,
        });
    }
    // Its keys depend on its type; without one every key may be there.
    let kind = pool.text_in("check", "type");
    let kind = kind.and_then(|kind| CHECK_TYPE.iter().find(|(word, _)| *word == kind)).map(|(_, kind)| *kind);
    let Some(kind) = kind else {
        let unknown = Schema { name: "[pool.*.check]", keys: &all_keys() };
        let table = pool.table("check", title, &unknown, report)?;
        table.require("type", "type = \"tcp\"", report);
        table.read("type", report, value::word(CHECK_TYPE));
        return None;
    };
    let table = pool.table("check", title, kind.schema(), report)?;
    Some(Switch::On(Check {
        kind: Some(check_kind(kind, &table, base, report)),
        every: table.read("every", report, own::interval),
        timeout: table.read("timeout", report, value::duration(DAY)),
        rise: table.read("rise", report, value::integer(1..=MOST_IN_A_ROW)),
        fall: table.read("fall", report, value::integer(1..=MOST_IN_A_ROW)),
        address: table.read("address", report, network::ip_address),
        port: table.read("port", report, value::integer(1..=u32::from(u16::MAX))),
    }))
}

/// Of every type of check, each once.
fn all_keys() -> Vec<&'static str> {
    let mut keys = Vec::new();
    for key in CHECK_TYPE.iter().flat_map(|(_, kind)| kind.schema().keys) {
        if !keys.contains(key) {
            keys.push(*key);
        }
    }
    keys
}

fn check_kind(kind: CheckType, table: &Table, base: &Path, report: &mut Report) -> CheckKind {
    match kind {
        CheckType::Tcp => CheckKind::Tcp,
        CheckType::Tls => CheckKind::Tls(check_tls(table, base, report)),
        CheckType::Http => CheckKind::Http(check_http(table, base, report)),
        CheckType::SendExpect => {
            table.require("expect", "expect = \"TEXT\"", report);
            CheckKind::SendExpect {
                send: table.read("send", report, own::bytes),
                expect: table.read("expect", report, own::expect),
            }
        }
        CheckType::Mysql => {
            table.require("user", "user = \"NAME\"", report);
            CheckKind::Mysql {
                user: table.read("user", report, own::user),
                password: table.read("password", report, own::secret(base)).map(own::secret_at),
                role: table.read("role", report, value::word(DATABASE_ROLE)),
            }
        }
    }
}

fn check_http(table: &Table, base: &Path, report: &mut Report) -> CheckHttp {
    let is_tls = table.read("tls", report, value::boolean);
    if !table.contains("tls") || is_tls.as_ref().is_some_and(|tls| !tls.value) {
        for key in ["verify", "ca", "server_name"] {
            let Some(span) = table.key_span(key) else { continue };
            report.push(
                Diagnostic::error(code::CONFLICTING_KEYS, format!("`{key}` has no meaning without TLS"))
                    .at(span)
                    .label("this check speaks plain HTTP")
                    .help("add `tls = true`")
                    .note(format!("keys of {}: {}", CHECK_HTTP.name, CHECK_HTTP.keys.join(", "))),
            );
        }
    }
    CheckHttp {
        method: table.read("method", report, own::method),
        path: table.read("path", report, own::request_path),
        host: table.read("host", report, own::host),
        expect: table.read("expect", report, own::statuses),
        body: table.read("body", report, own::substring),
        tls: check_tls(table, base, report),
        is_tls,
    }
}

fn check_tls(table: &Table, base: &Path, report: &mut Report) -> CheckTls {
    let verify = table.read("verify", report, value::boolean);
    if let Some(verify) = &verify {
        let at = |message: &str| Diagnostic::error(code::CONFLICTING_KEYS, message).at(verify.span.clone());
        if verify.value && !table.contains("ca") {
            let example = "ca = \"/etc/ssl/certs/ca-certificates.crt\"";
            let problem = at("a certificate cannot be verified without `ca`");
            report
                .push(problem.label("who may have signed it?").help(format!("add `{example}`, or a file of your own")));
        }
        if !verify.value && table.contains("ca") {
            let problem = at("`ca` has no meaning without verification");
            report.push(problem.label("and this switches it off").help("keep one of them"));
        }
    }
    CheckTls {
        ca: table.read("ca", report, value::path(base)),
        server_name: table.read("server_name", report, own::server_name),
    }
}
