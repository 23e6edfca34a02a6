//! `status`: the running process as a tree.

use std::{collections::HashSet, fmt::Write};

use super::{
    Failure,
    ask::Target,
    table::{age, columns},
};
use crate::admin::answers::{Backend, LastReload, Listener, Pool, Status};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
}

pub(super) fn status(arguments: &Arguments) -> Result<(), Failure> {
    arguments.target.get("/status", tree)
}

/// Listeners, below each its pool with the backends; a pool that was shown is only named again.
fn tree(status: &Status) -> String {
    let mut text = format!(
        "sluicegate {}, pid {}, {} for {}: {} of {} connections, {} workers\n",
        status.version,
        status.pid,
        if status.ready { "ready" } else { "not ready" },
        age(status.uptime_seconds),
        status.connections,
        status.connections_limit,
        status.workers,
    );
    text.push_str(&configuration_lines(status));
    let mut shown = HashSet::new();
    for listener in &status.listeners {
        text.push_str(&listener_line(listener));
        match status.pools.iter().find(|pool| pool.name == listener.pool) {
            Some(pool) if shown.insert(&pool.name) => text.push_str(&pool_lines(pool)),
            // Writing to a String cannot fail.
            _ => drop(writeln!(text, "  pool {}: see above", listener.pool)),
        }
    }
    for pool in status.pools.iter().filter(|pool| !shown.contains(&pool.name)) {
        let _ = writeln!(text, "no listener");
        text.push_str(&pool_lines(pool));
    }
    let drifts = status.pools.iter().flat_map(|pool| pool.backends.iter().map(move |backend| (pool, backend)));
    for (pool, backend) in drifts.filter(|(_, backend)| !backend.drift.is_empty()) {
        let _ = writeln!(text, "differs from the file: {}/{} {}", pool.name, backend.name, backend.drift.join(", "));
    }
    let keys = status.needs_restart.iter();
    text.extend(keys.map(|key| format!("differs from the file: {key}, until a restart\n")));
    text
}

/// Which file runs, and what became of the last attempt to replace it.
fn configuration_lines(status: &Status) -> String {
    let config = status.config.as_deref().unwrap_or("without a file");
    match &status.last_reload {
        None => format!("configuration {config}\n"),
        Some(LastReload { at, by, error: None, .. }) => format!("configuration {config}, reloaded {at} ({by})\n"),
        Some(LastReload { at, by, error: Some(error), .. }) => {
            format!("configuration {config}, RELOAD REFUSED {at} ({by}): {error}\n")
        }
    }
}

fn listener_line(listener: &Listener) -> String {
    let addresses: Vec<_> = listener.addresses.iter().map(ToString::to_string).collect();
    let tls = if listener.tls { "tls" } else { "tcp" };
    format!("listener {}  {}  {tls}  {} connections\n", listener.name, addresses.join(" "), listener.connections)
}

fn pool_lines(pool: &Pool) -> String {
    let mut text = format!("  pool {}  {}  {}", pool.name, pool.balance, pool.mode);
    match pool.serving.as_str() {
        "active" => {}
        "backup" => text.push_str("  served by the backups"),
        "ejected" => text.push_str("  ONLY EJECTED BACKENDS ARE UP"),
        "all" => text.push_str("  NO BACKEND, OR TOO FEW, ARE UP: ALL ARE USED"),
        _ => text.push_str("  NO BACKEND IS UP"),
    }
    if pool.queued > 0 {
        let _ = write!(text, "  {} waiting", pool.queued);
    }
    let rows: Vec<_> = pool.backends.iter().map(backend_row).collect();
    text.push('\n');
    text.push_str(&columns(&rows));
    text
}

fn backend_row(backend: &Backend) -> Vec<String> {
    let most = backend.max_connections.map(|most| format!(" of {most}")).unwrap_or_default();
    let mut why: Vec<&str> = backend.reason.as_deref().into_iter().collect();
    why.extend(backend.since.as_deref());
    vec![
        format!("    {}", backend.name),
        backend.address.to_string(),
        if backend.role == "active" { backend.state.clone() } else { format!("{} ({})", backend.state, backend.role) },
        format!("weight {}", backend.weight),
        format!("{}{most} connections", backend.connections),
        why.join(", since "),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn backend(name: &str, state: &str) -> Backend {
        Backend {
            name: name.to_owned(),
            address: ([10, 0, 0, 11], 80).into(),
            role: "active".to_owned(),
            state: state.to_owned(),
            reason: None,
            since: None,
            check: None,
            weight: 1,
            connections: 3,
            max_connections: None,
            drift: Vec::new(),
        }
    }

    #[test]
    fn the_tree_shows_state_reason_and_drift() {
        let down = Backend {
            reason: Some("connection refused".to_owned()),
            since: Some("2026-11-20T20:31:07Z".to_owned()),
            ..backend("web-02", "down")
        };
        let drained =
            Backend { max_connections: Some(10), drift: vec!["draining".to_owned()], ..backend("web-03", "draining") };
        let pool = Pool {
            name: "web".to_owned(),
            balance: "round_robin".to_owned(),
            mode: "active-active".to_owned(),
            serving: "active".to_owned(),
            queued: 0,
            backends: vec![backend("web-01", "up"), down, drained],
        };
        let listener = |name: &str, tls| Listener {
            name: name.to_owned(),
            addresses: vec![([0, 0, 0, 0], 443).into()],
            tls,
            pool: "web".to_owned(),
            connections: 2,
            connections_limit: 9,
        };
        let status = Status {
            version: "0.1.0".to_owned(),
            pid: 7,
            ready: true,
            uptime_seconds: 200.0,
            workers: 2,
            connections: 4,
            connections_limit: 9,
            config: Some("/etc/sluicegate.toml".to_owned()),
            last_reload: Some(LastReload {
                at: "2026-11-20T20:31:07Z".to_owned(),
                by: "SIGHUP".to_owned(),
                result: "refused".to_owned(),
                error: Some("E021: unknown key `x`".to_owned()),
            }),
            needs_restart: vec!["[global] workers".to_owned()],
            listeners: vec![listener("https", true), listener("tcp", false)],
            pools: vec![pool],
        };
        let expected = "\
sluicegate 0.1.0, pid 7, ready for 3m20s: 4 of 9 connections, 2 workers
configuration /etc/sluicegate.toml, RELOAD REFUSED 2026-11-20T20:31:07Z (SIGHUP): E021: unknown key `x`
listener https  0.0.0.0:443  tls  2 connections
  pool web  round_robin  active-active
    web-01  10.0.0.11:80  up        weight 1  3 connections
    web-02  10.0.0.11:80  down      weight 1  3 connections        connection refused, since 2026-11-20T20:31:07Z
    web-03  10.0.0.11:80  draining  weight 1  3 of 10 connections
listener tcp  0.0.0.0:443  tcp  2 connections
  pool web: see above
differs from the file: web/web-03 draining
differs from the file: [global] workers, until a restart
";
        assert_eq!(tree(&status), expected);
    }
}
