//! `check`: the verdict that `run` would give, without running.

use std::collections::BTreeSet;

use super::{ConfigArgument, Failure, load_file, provider, say, table::count};
use crate::{
    config::{Config, Role, diagnostic},
    firewall::Action,
    load::{self, Loaded, ReadList},
    supervisor::Limits,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    config: ConfigArgument,
    /// Treat warnings as errors
    #[arg(long)]
    strict: bool,
    /// Print the diagnostics as JSON on standard output
    #[arg(long)]
    json: bool,
}

pub(super) fn check(arguments: &Arguments) -> Result<(), Failure> {
    if arguments.json { check_json(arguments) } else { check_text(arguments) }
}

fn check_text(arguments: &Arguments) -> Result<(), Failure> {
    let (source, loaded) = load_file(&arguments.config.config, &provider())?;
    Limits::of(&loaded.config).map_err(|errors| Failure::refused(errors, &source))?;
    if arguments.strict && !loaded.warnings.is_empty() {
        return Err(Failure::Other(anyhow::anyhow!("{} and --strict", count(loaded.warnings.len() as u64, "warning"))));
    }
    let lists = loaded.lists.iter().map(|list| list_line(list) + "\n").collect::<String>();
    say(&format!("{lists}ok: {}", summary(&loaded)))
}

fn check_json(arguments: &Arguments) -> Result<(), Failure> {
    let path = &arguments.config.config;
    let (source, result) = match load::read(path) {
        Ok(source) => {
            let result = load::load(&source, &provider());
            let result = result.and_then(|loaded| Limits::of(&loaded.config).map(|_| loaded));
            (source, result)
        }
        Err(error) => (load::Text { path: path.clone(), text: String::new() }, Err(vec![*error])),
    };
    let (diagnostics, summary, lists) = match result {
        Ok(loaded) => (loaded.warnings.clone(), Some(summary(&loaded)), loaded.lists),
        Err(errors) => (errors, None, Vec::new()),
    };
    let ok = summary.is_some() && (diagnostics.is_empty() || !arguments.strict);
    let answer = serde_json::json!({
        "ok": ok,
        "summary": summary,
        "lists": lists,
        "diagnostics": diagnostic::to_json(&diagnostics, &source.path, &source.text),
    });
    say(&answer.to_string())?;
    if ok { Ok(()) } else { Err(Failure::refused(Vec::new(), &source)) }
}

/// `list deny.txt: 812344 networks; 12 lines repeated, 400 networks inside others`
fn list_line(list: &ReadList) -> String {
    let ReadList { path, networks, duplicates, covered } = list;
    format!(
        "list {}: {}; {} repeated, {} inside others",
        path.display(),
        count(*networks as u64, "network"),
        count(*duplicates as u64, "line"),
        count(*covered as u64, "network"),
    )
}

/// `2 listeners, 1 pool, 3 backends (active-active), 812344 deny prefixes`
fn summary(loaded: &Loaded) -> String {
    let config = &loaded.config;
    let backends: usize = config.pools.iter().map(|pool| pool.backends.len()).sum();
    let denied: usize = config
        .firewall
        .rules
        .iter()
        .zip(&loaded.prefixes)
        .filter(|(rule, _)| rule.action == Action::Deny && !rule.shadow)
        .map(|(_, (v4, v6))| v4 + v6)
        .sum();
    let deny = if denied == 1 { "deny prefix" } else { "deny prefixes" };
    format!(
        "{}, {}, {} ({}), {denied} {deny}",
        count(config.listeners.len() as u64, "listener"),
        count(config.pools.len() as u64, "pool"),
        count(backends as u64, "backend"),
        modes(config),
    )
}

fn modes(config: &Config) -> String {
    let mode = |pool: &crate::config::Pool| {
        let passive = pool.backends.iter().any(|backend| backend.role == Role::Backup);
        if passive { "active-passive" } else { "active-active" }
    };
    let modes: BTreeSet<_> = config.pools.iter().map(mode).collect();
    modes.into_iter().collect::<Vec<_>>().join(" and ")
}
