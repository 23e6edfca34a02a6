//! `ban`, `unban` and `bans`: who is shut out of the running process.

use std::time::Duration;

use jiff::fmt::friendly::SpanParser;

use super::{
    Failure,
    ask::Target,
    table::{age, columns, count},
};
use crate::{
    admin::answers::{Ban, BanList, Banned, Unbanned, WhoToBan, WhoToUnban},
    metrics::Label,
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Addresses or networks
    #[arg(required = true, value_name = "ADDRESS|NETWORK")]
    networks: Vec<String>,
    /// How long, like 1h or 30m; otherwise until it is ended
    #[arg(long = "for", value_name = "TIME", value_parser = time)]
    duration: Option<Duration>,
    /// Why, for those who look at the list
    #[arg(long, value_name = "TEXT", default_value = "")]
    reason: String,
    /// End the connections from there as well
    #[arg(long)]
    kill: bool,
    /// Also what is large or exempt
    #[arg(long)]
    force: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("who").required(true).args(["networks", "all"])))]
pub(super) struct End {
    /// Addresses or networks, as `bans` shows them
    #[arg(value_name = "ADDRESS|NETWORK")]
    networks: Vec<String>,
    /// Every ban
    #[arg(long)]
    all: bool,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    target: Target,
}

pub(super) fn ban(arguments: &Arguments) -> Result<(), Failure> {
    let Arguments { networks, duration, reason, kill, force, target } = arguments;
    let who = WhoToBan {
        networks: networks.clone(),
        seconds: duration.map(|duration| duration.as_secs_f64()),
        reason: reason.clone(),
        force: *force,
        kill: *kill,
    };
    target.post("/ban", &who, |banned: &Banned| {
        let until = match &banned.until {
            Some(until) => format!("until {until}"),
            None if banned.is_kept => "until it is ended by `unban`".to_owned(),
            None => "until it is ended by `unban`, or the process ends (there is no `bans_file`)".to_owned(),
        };
        let ended = if *kill { format!("; {} ended", count(banned.ended as u64, "connection")) } else { String::new() };
        let no_room = match banned.no_room {
            0 => String::new(),
            more => format!("no room for {more} of them: many networks belong into a list\n"),
        };
        let not_saved = not_saved(banned.not_saved.as_deref());
        format!("{} banned {until}{ended}\n{no_room}{not_saved}", these(&banned.networks))
    })
}

pub(super) fn unban(arguments: &End) -> Result<(), Failure> {
    let End { networks, all, target } = arguments;
    target.post("/unban", &WhoToUnban { networks: networks.clone(), all: *all }, |unbanned: &Unbanned| {
        format!("{} not banned any more\n{}", these(&unbanned.networks), not_saved(unbanned.not_saved.as_deref()))
    })
}

pub(super) fn list(arguments: &List) -> Result<(), Failure> {
    arguments.target.get("/bans", |BanList { bans }: &BanList| {
        if bans.is_empty() {
            return "nobody is banned".to_owned();
        }
        let header = ["NETWORK", "LEFT", "KIND", "SINCE", "REASON"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(bans.iter().map(row));
        columns(&rows)
    })
}

fn row(ban: &Ban) -> Vec<String> {
    vec![
        ban.network.clone(),
        ban.seconds_left.map_or("no end".to_owned(), age),
        ban.kind.as_str().to_owned(),
        ban.since.clone(),
        // Whoever edits the file may write what he likes.
        ban.reason.escape_default().to_string(),
    ]
}

fn these(networks: &[String]) -> String {
    match networks {
        [one] => format!("{one} is"),
        networks => format!("{} are", count(networks.len() as u64, "network")),
    }
}

fn not_saved(reason: Option<&str>) -> String {
    reason.map(|reason| format!("but a restart does not know it: {reason}\n")).unwrap_or_default()
}

fn time(written: &str) -> Result<Duration, String> {
    const MOST: Duration = Duration::from_hours(10 * 365 * 24);
    let duration = SpanParser::new().parse_unsigned_duration(written);
    let duration = duration.map_err(|_| "a time is written like 30m, 1h or 48h".to_owned())?;
    if duration.is_zero() || duration > MOST {
        return Err("longer than zero, and at most ten years".to_owned());
    }
    Ok(duration)
}
