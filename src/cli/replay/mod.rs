//! `firewall replay`: whom a configuration would have denied or allowed, by the access log of what happened.

mod lines;
mod tally;

use std::{
    fs::File,
    io::{self, Read},
    path::PathBuf,
};

use anyhow::{Context as _, anyhow};

use self::{lines::Lines, tally::Tally};
use super::{ConfigArgument, Failure, load_file, provider, say};
use crate::access_log::read_line;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Judge the clients of an access log by a configuration: who would be denied now, who would be allowed
    Replay(Replay),
}

#[derive(Debug, clap::Args)]
struct Replay {
    /// Access log of sluicegate, JSON or text; `-` is standard input
    #[arg(value_name = "ACCESS_LOG")]
    log: PathBuf,
    #[command(flatten)]
    config: ConfigArgument,
    /// How many sources are named
    #[arg(long, value_name = "N", default_value_t = 20, value_parser = clap::value_parser!(u32).range(0..=100_000))]
    sources: u32,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn firewall(arguments: &Arguments) -> Result<(), Failure> {
    let Verb::Replay(arguments) = &arguments.verb;
    replay(arguments)
}

fn replay(arguments: &Replay) -> Result<(), Failure> {
    let (_, loaded) = load_file(&arguments.config.config, &provider())?;
    let name = arguments.log.display();
    let log: Box<dyn Read> = if arguments.log.as_os_str() == "-" {
        Box::new(io::stdin().lock())
    } else {
        Box::new(File::open(&arguments.log).with_context(|| format!("cannot open `{name}`"))?)
    };
    let mut lines = Lines::new(log);
    let mut tally = Tally::new(&loaded, usize::try_from(arguments.sources).unwrap_or(usize::MAX));
    while let Some(line) = lines.next().with_context(|| format!("cannot read `{name}`"))? {
        match line.and_then(read_line) {
            Ok(Some(line)) => tally.judge(&line),
            Ok(None) => tally.other(),
            Err(reason) => tally.bad(reason),
        }
    }
    if tally.is_no_log() {
        let reason = tally.first_bad().unwrap_or_default();
        return Err(Failure::Other(anyhow!("`{name}` is no access log of sluicegate: {reason}")));
    }
    let told = tally.told();
    if arguments.json {
        say(&serde_json::to_string(&told).context("cannot write the answer")?)
    } else {
        say(&told.text())
    }
}
