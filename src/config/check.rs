//! What must hold between the parts of a file.

use std::{
    collections::{BTreeSet, HashMap},
    hash::Hash,
    net::{Ipv4Addr, Ipv6Addr, SocketAddr},
    ops::Range,
};

use super::{
    Located, Role, code,
    convert::DEFAULT_ADMIN_BIND,
    diagnostic::Diagnostic,
    file::File,
    pool::file::{Backend, Pool},
    reader::{Report, similar},
    value::{cut, quoted},
};
use crate::balance::Balance;

/// The table of 65,537 slots gives fair shares only while it is 100 times larger than the pool (traps B11).
const MOST_MAGLEV_BACKENDS: usize = 655;

pub fn check(file: &File, report: &mut Report) {
    binds(file, report);
    references(file, report);
    unique("rule", file.firewall.rules.iter().filter_map(|rule| rule.name.as_ref()), report);
    for listener in &file.listeners {
        let alpn = listener.tls.as_ref().and_then(|tls| tls.alpn.as_ref());
        unique("ALPN protocol", alpn.iter().flat_map(|alpn| &alpn.value), report);
    }
    for pool in &file.pools {
        pool_backends(pool, report);
    }
}

fn binds(file: &File, report: &mut Report) {
    let mut seen: HashMap<SocketAddr, String> = HashMap::new();
    match &file.admin.bind {
        Some(bind) => {
            seen.insert(bind.value, format!("[admin] binds it in line {}", report.line(&bind.span)));
        }
        None => {
            seen.insert(DEFAULT_ADMIN_BIND, "[admin] binds it by default; its `bind` can be changed".to_owned());
        }
    }
    for listener in &file.listeners {
        for bind in all(listener.bind.as_ref()) {
            // The kernel chooses another port each time.
            if bind.value.port() == 0 {
                continue;
            }
            let name = cut(&listener.name.value);
            let place = format!("listener `{name}` binds it in line {}", report.line(&bind.span));
            let Some(first) = seen.insert(bind.value, place) else { continue };
            report.push(
                Diagnostic::error(code::DUPLICATE_ADDRESS, format!("`{}` is bound twice", bind.value))
                    .at(bind.span.clone())
                    .label("bound again here")
                    .note(first.as_str()),
            );
            seen.insert(bind.value, first);
        }
    }
    overlaps(file, &seen, report);
}

/// A bind of one address beside one of all addresses with the same port: the kernel gives it to one of them.
fn overlaps(file: &File, seen: &HashMap<SocketAddr, String>, report: &mut Report) {
    let all_v4 = |port| SocketAddr::from((Ipv4Addr::UNSPECIFIED, port));
    let all_v6 = |port| SocketAddr::from((Ipv6Addr::UNSPECIFIED, port));
    let mut found = |bind: SocketAddr, span: Option<&Range<usize>>| {
        let port = bind.port();
        // `[::]` takes IPv4 clients too, unless `0.0.0.0` is bound.
        let wide = match bind {
            _ if port == 0 || bind.ip().is_unspecified() => return,
            SocketAddr::V4(_) => [all_v4(port), all_v6(port)].into_iter().find(|wide| seen.contains_key(wide)),
            SocketAddr::V6(_) => Some(all_v6(port)).filter(|wide| seen.contains_key(wide)),
        };
        let Some((wide, place)) = wide.and_then(|wide| seen.get_key_value(&wide)) else { return };
        let message = format!("`{bind}` is bound twice: `{wide}` has it too");
        let problem = Diagnostic::error(code::DUPLICATE_ADDRESS, message).note(place.as_str());
        let problem = problem.help("leave one of the two out, or choose another port");
        report.push(match span {
            Some(span) => problem.at(span.clone()),
            None => problem,
        });
    };
    for bind in file.listeners.iter().flat_map(|listener| all(listener.bind.as_ref())) {
        found(bind.value, Some(&bind.span));
    }
    match &file.admin.bind {
        Some(bind) => found(bind.value, Some(&bind.span)),
        None => found(DEFAULT_ADMIN_BIND, None),
    }
}

fn references(file: &File, report: &mut Report) {
    let listeners: BTreeSet<_> = file.listeners.iter().map(|listener| listener.name.value.as_str()).collect();
    let pools: BTreeSet<_> = file.pools.iter().map(|pool| pool.name.value.as_str()).collect();
    for listener in &file.listeners {
        known(code::UNKNOWN_POOL, "pool", listener.pool.as_ref(), &pools, report);
    }
    for rule in &file.firewall.rules {
        for name in all(rule.listeners.as_ref()) {
            known(code::UNKNOWN_LISTENER, "listener", Some(name), &listeners, report);
        }
    }
    for test in &file.firewall.tests {
        known(code::UNKNOWN_LISTENER, "listener", test.listener.as_ref(), &listeners, report);
    }
}

fn known(code: &'static str, what: &str, name: Option<&Located<String>>, names: &BTreeSet<&str>, report: &mut Report) {
    // Where there are none at all, that is the mistake, and it is noted.
    let Some(name) = name.filter(|name| !names.is_empty() && !names.contains(name.value.as_str())) else { return };
    report.push_with(|| {
        let label = similar(&name.value, names.iter().copied().take(200))
            .map_or_else(|| format!("no such {what}"), |similar| format!("did you mean `{}`?", cut(similar)));
        let some: Vec<_> = names.iter().take(10).map(|name| cut(name)).collect();
        let rest = if names.len() > some.len() { ", ..." } else { "" };
        Diagnostic::error(code, format!("unknown {what} {}", quoted(&name.value)))
            .at(name.span.clone())
            .label(label)
            .note(format!("{what}s: {}{rest}", some.join(", ")))
    });
}

fn pool_backends(pool: &Pool, report: &mut Report) {
    unique("backend", pool.backends.iter().filter_map(|backend| backend.name.as_ref()), report);
    let mut seen = HashMap::new();
    for address in pool.backends.iter().filter_map(|backend| backend.address.as_ref()) {
        if let Some(line) = first_line(&mut seen, &address.value, &address.span, report) {
            let message = format!("`{}` is twice in pool `{}`", address.value, cut(&pool.name.value));
            report.push(
                Diagnostic::error(code::DUPLICATE_ADDRESS, message)
                    .at(address.span.clone())
                    .label("written again here")
                    .note(format!("first in line {line}"))
                    .help("give one backend a greater `weight` instead"),
            );
        }
    }
    usable(pool, report);
}

fn usable(pool: &Pool, report: &mut Report) {
    let name = cut(&pool.name.value);
    let refuse =
        |code, message: String, label: &str| Diagnostic::error(code, message).at(pool.name.span.clone()).label(label);
    let count = pool.backends.len();
    let mut active = pool.backends.iter().filter(|backend| role(backend) == Role::Active).peekable();
    if active.peek().is_some() && active.all(|backend| weight(backend) == 0) {
        let message = format!("every active backend of pool `{name}` has weight 0");
        report.push(refuse(code::NO_USABLE_BACKEND, message, "no backend takes traffic"));
    }
    if count > 0 && pool.backends.iter().all(|backend| role(backend) == Role::Backup) {
        let message = format!("every backend of pool `{name}` is a backup");
        report.push(
            refuse(code::NO_USABLE_BACKEND, message, "no backend is active")
                .help("leave `role` out where traffic goes first"),
        );
    }
    if count > MOST_MAGLEV_BACKENDS && pool.balance.as_ref().is_some_and(|one| one.value == Balance::Maglev) {
        let message = format!("pool `{name}` has {count} backends, too many for maglev");
        report.push(
            refuse(code::OUT_OF_RANGE, message, &format!("must be 1 to {MOST_MAGLEV_BACKENDS}"))
                .help("use `balance = \"ip_hash\"`, or several pools"),
        );
    }
}

fn weight(backend: &Backend) -> u32 {
    backend.weight.as_ref().map_or(1, |weight| weight.value)
}

fn role(backend: &Backend) -> Role {
    backend.role.as_ref().map_or(Role::Active, |role| role.value)
}

fn unique<'f>(what: &str, names: impl IntoIterator<Item = &'f Located<String>>, report: &mut Report) {
    let mut seen = HashMap::new();
    for name in names {
        if let Some(line) = first_line(&mut seen, &name.value, &name.span, report) {
            report.push(
                Diagnostic::error(code::DUPLICATE, format!("{what} {} is written twice", quoted(&name.value)))
                    .at(name.span.clone())
                    .label("written again here")
                    .note(format!("first in line {line}")),
            );
        }
    }
}

/// The line in which `value` was written before, if it was.
fn first_line<'f, T: Eq + Hash>(
    seen: &mut HashMap<&'f T, Range<usize>>,
    value: &'f T,
    span: &Range<usize>,
    report: &Report,
) -> Option<usize> {
    if let Some(first) = seen.get(value) {
        return Some(report.line(first));
    }
    seen.insert(value, span.clone());
    None
}

fn all<T>(list: Option<&Located<Vec<Located<T>>>>) -> impl Iterator<Item = &Located<T>> {
    list.into_iter().flat_map(|list| &list.value)
}
