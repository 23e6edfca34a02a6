//! What is allowed but probably not meant.

#![expect(clippy::ref_option, reason = "the fields of the mirror are lent as they are")]

use std::{collections::HashSet, ops::Range};

use super::{
    Action, Config, Rule, code,
    diagnostic::Diagnostic,
    file::{File, Written},
    limits,
    pool::file::{Check, CheckKind, Pool, Switch},
    reader::Report,
    value::cut,
};

/// Notes the doubts about a configuration without mistakes.
pub fn lint(file: &File, config: &Config, report: &mut Report) {
    pools(file, report);
    trust(file, report);
    limits::lint(file, report);
    limits::lint_exempt(file, report);
    limits::lint_balancers(file, config, report);
    if let (Some(table), None | Some(false)) =
        (span(&file.firewall.offload_table), file.firewall.offload.as_ref().map(|offload| offload.value))
    {
        let problem = no_effect("`offload_table` has no effect without `offload`".to_owned(), table);
        report.push(
            problem.label("no rules are given to the kernel").help("add `offload = \"nftables\"`, or leave this out"),
        );
    }
    if let Some(default) = &file.firewall.default {
        let admits = |rule: &Rule| rule.action == Action::Allow && !rule.shadow;
        if default.value == Action::Deny && !config.firewall.rules.iter().any(admits) {
            report.push(
                Diagnostic::warning(code::DENIES_EVERYONE, "the firewall denies every client")
                    .at(default.span.clone())
                    .label("and no rule allows anyone")
                    .help("add a rule, for example `{ name = \"office\", allow = \"203.0.113.0/24\" }`"),
            );
        }
    }
}

/// Whoever may bring clients may bring any.
fn trust(file: &File, report: &mut Report) {
    let required = file.listeners.iter().filter_map(|listener| listener.proxy_protocol.as_ref());
    let networks = required.flat_map(|required| required.from.iter().flat_map(|from| &from.value));
    for network in networks.filter(|network| network.value.prefix_len() == 0) {
        report.push(
            Diagnostic::warning(code::TRUSTS_EVERYONE, "everyone may say who the client is")
                .at(network.span.clone())
                .label("any address may send a PROXY header")
                .note("who can send one can pass every rule of the firewall")
                .help("write the addresses of the balancers in front of this one"),
        );
    }
}

fn pools(file: &File, report: &mut Report) {
    let used: HashSet<_> = file.listeners.iter().filter_map(|listener| Some(&listener.pool.as_ref()?.value)).collect();
    for pool in &file.pools {
        if !used.contains(&pool.name.value) {
            report.push(
                Diagnostic::warning(code::POOL_UNUSED, format!("no listener uses pool `{}`", cut(&pool.name.value)))
                    .at(pool.name.span.clone()),
            );
        }
        for weight in pool.backends.iter().filter_map(|backend| backend.weight.as_ref()) {
            if weight.value == 0 {
                report.push(
                    Diagnostic::warning(code::WEIGHT_ZERO, "a backend with weight 0 takes no traffic")
                        .at(weight.span.clone()),
                );
            }
        }
        health(pool, report);
        queue(pool, report);
    }
}

/// What checks decide, where nobody is checked, and checks that cannot be meant.
fn health(pool: &Pool, report: &mut Report) {
    let check = match &pool.check {
        None => return,
        Some(Switch::On(check)) => check,
        Some(Switch::Off) => {
            let keys = [
                ("on_down", span(&pool.on_down)),
                ("on_all_down", span(&pool.on_all_down)),
                ("panic_threshold", span(&pool.panic_threshold)),
            ];
            for (key, span) in keys.into_iter().filter_map(|(key, span)| Some((key, span?))) {
                let problem = no_effect(format!("`{key}` has no effect with `check = \"off\"`"), span);
                report.push(problem.label("nobody finds out that a backend is down").help("leave one of them out"));
            }
            return;
        }
    };
    if let Some(CheckKind::Http(http)) = &check.kind
        && http.method.as_ref().is_some_and(|method| method.value == "HEAD")
        && let Some(body) = span(&http.body)
    {
        let problem = no_effect("an answer to HEAD has no body".to_owned(), body);
        report.push(problem.label("so this is never found").help("use `method = \"GET\"`, or leave `body` out"));
    }
    if let Some(address) = span(&check.address)
        && asks_one_place(pool, check)
    {
        let message = format!("every backend of pool `{}` is asked at one place", cut(&pool.name.value));
        let problem = no_effect(message, address).label("they all go up and down together");
        report.push(problem.help("leave `address` out: each backend is asked at its own, on `port` if there is one"));
    }
}

fn asks_one_place(pool: &Pool, check: &Check) -> bool {
    let mut ports = pool.backends.iter().filter_map(|backend| Some(backend.address.as_ref()?.value.port()));
    let first = ports.next();
    pool.backends.len() > 1 && (check.port.is_some() || ports.all(|port| Some(port) == first))
}

/// Nobody waits for a backend that is never full.
fn queue(pool: &Pool, report: &mut Report) {
    if pool.max_connections.is_some() || pool.backends.iter().any(|backend| backend.max_connections.is_some()) {
        return;
    }
    for (key, span) in [("max_queued", span(&pool.max_queued)), ("queue", span(&pool.timeouts.queue))] {
        let Some(span) = span else { continue };
        let problem = no_effect(format!("`{key}` has no effect without `max_connections`"), span);
        let help = "add `max_connections = NUMBER` to the pool or its backends, or leave this out";
        report.push(problem.label("no backend is ever full").help(help));
    }
}

fn no_effect(message: String, span: Range<usize>) -> Diagnostic {
    Diagnostic::warning(code::NO_EFFECT, message).at(span)
}

fn span<T>(written: &Written<T>) -> Option<Range<usize>> {
    written.as_ref().map(|written| written.span.clone())
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use crate::config::parse;

    fn without_effect(pool: &str) -> Vec<String> {
        let text = format!("[listener.a]\nbind = \"0.0.0.0:0\"\npool = \"p\"\n[pool.p]\n{pool}\n");
        let (_, warnings) = parse(&text, Path::new("")).unwrap_or_else(|errors| panic!("{errors:#?}"));
        warnings.into_iter().map(|warning| warning.message).collect()
    }

    #[test]
    fn what_has_no_effect_is_told() {
        let (one, two) = ("backends = \"192.0.2.1:80\"\n", "backends = [\"192.0.2.1:80\", \"192.0.2.2:80\"]\n");
        let mixed = "backends = [\"192.0.2.1:80\", \"192.0.2.2:81\"]\n";
        let together = "every backend of pool `p` is asked at one place";
        for (backends, more, expected) in [
            (one, "check = \"off\"\non_down = \"close\"", vec!["`on_down` has no effect with `check = \"off\"`"]),
            (one, "check = \"tcp\"\non_down = \"close\"", vec![]),
            (one, "max_queued = 7", vec!["`max_queued` has no effect without `max_connections`"]),
            (one, "max_queued = 7\nmax_connections = 9\ntimeouts = { queue = \"1s\" }", vec![]),
            (
                one,
                "check = { type = \"http\", method = \"HEAD\", body = \"x\" }",
                vec!["an answer to HEAD has no body"],
            ),
            (one, "check = { type = \"tcp\", address = \"192.0.2.9\", port = 1 }", vec![]),
            (two, "check = { type = \"tcp\", address = \"192.0.2.9\", port = 1 }", vec![together]),
            (two, "check = { type = \"tcp\", address = \"192.0.2.9\" }", vec![together]),
            (mixed, "check = { type = \"tcp\", address = \"192.0.2.9\" }", vec![]),
            (two, "check = { type = \"tcp\", port = 1 }", vec![]),
        ] {
            assert_eq!(without_effect(&(backends.to_owned() + more)), expected, "{more}");
        }
    }
}
