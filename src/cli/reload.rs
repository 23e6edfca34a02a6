//! `reload` and `plan`: the configuration file and the running process.

use std::io::{IsTerminal, Write};

use super::{Failure, ask::Target, say};
use crate::admin::answers;

#[derive(Debug, clap::Args)]
pub(super) struct Reload {
    /// Accept lists that have lost more than half of their networks
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct Plan {
    /// As `reload --force` would do it
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

pub(super) fn reload(arguments: &Reload) -> Result<(), Failure> {
    let request = answers::Reload { force: arguments.force, styled: is_styled() };
    tell(&arguments.target, "/reload", &request)
}

pub(super) fn plan(arguments: &Plan) -> Result<(), Failure> {
    // Without a file of that name it is about the one of the process.
    let config = Some(arguments.target.config_path()).filter(|path| path.exists());
    let config = config.map(std::path::absolute).transpose().map_err(anyhow::Error::from)?;
    let request = answers::Plan { config, force: arguments.force, styled: is_styled() };
    tell(&arguments.target, "/plan", &request)
}

fn is_styled() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none()
}

fn tell(target: &Target, path: &str, request: &impl serde::Serialize) -> Result<(), Failure> {
    let (reloaded, answer): (answers::Reloaded, _) = target.order(path, request)?;
    if target.is_json() {
        say(&answer)?;
    } else {
        if !reloaded.rendered.is_empty() {
            // Nobody is left to tell when standard error is closed.
            let _ = writeln!(std::io::stderr(), "{}", reloaded.rendered.trim_end());
        }
        let told = told(&reloaded);
        if reloaded.result == "refused" { eprintln!("{}", told.trim_end()) } else { say(&told)? }
    }
    if reloaded.result == "refused" { Err(Failure::Kept(None)) } else { Ok(()) }
}

/// What changed or would, line by line.
fn told(reloaded: &answers::Reloaded) -> String {
    let answers::Reloaded { result, config, differences, needs_restart, .. } = reloaded;
    let mut text = match (result.as_str(), differences.is_empty()) {
        ("refused", _) => return format!("refused: the configuration before goes on, {config} is not used\n"),
        ("possible", true) => format!("{config} changes nothing\n"),
        ("possible", false) => format!("a reload of {config} would be applied\n"),
        (_, true) => format!("{config} is applied: nothing has changed\n"),
        (_, false) => format!("{config} is applied\n"),
    };
    for difference in differences {
        text.extend([&format!("  {difference}"), "\n"]);
    }
    for key in needs_restart {
        text.extend([&format!("  needs a restart: {key}"), "\n"]);
    }
    text
}
