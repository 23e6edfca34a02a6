//! `conns` and `kill`: connections of the running process.

use super::{
    Failure,
    ask::Target,
    table::{age, bytes, columns},
};
use crate::{
    admin::answers::{Connections, Killed, Which},
    drain::inquiry::Sight,
};

#[derive(Debug, clap::Args)]
pub(super) struct List {
    #[command(flatten)]
    filter: Filter,
    /// Most connections that are shown, the oldest first
    #[arg(long, value_name = "NUMBER", default_value_t = 1000)]
    limit: usize,
    #[command(flatten)]
    target: Target,
}

#[derive(Debug, clap::Args)]
#[command(group(clap::ArgGroup::new("which").required(true).multiple(true).args(["id", "listener", "client", "backend"])))]
pub(super) struct Kill {
    /// The id in the access log and in `conns`
    id: Option<String>,
    #[command(flatten)]
    filter: Filter,
    #[command(flatten)]
    target: Target,
}

/// Only those that fit everything that is given.
#[derive(Debug, clap::Args)]
struct Filter {
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    /// An address or a network
    #[arg(long, value_name = "NETWORK")]
    client: Option<String>,
    #[arg(long, value_name = "POOL[/BACKEND]")]
    backend: Option<String>,
}

impl Filter {
    fn which(&self) -> Which {
        let Self { listener, client, backend } = self;
        Which { listener: listener.clone(), client: client.clone(), backend: backend.clone(), ..Which::default() }
    }
}

pub(super) fn list(arguments: &List) -> Result<(), Failure> {
    let which = Which { limit: Some(arguments.limit), ..arguments.filter.which() };
    arguments.target.post("/connections", &which, |Connections { total, connections }| {
        let header = ["ID", "AGE", "PHASE", "LISTENER", "CLIENT", "BACKEND", "RECEIVED", "SENT", "NAME"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(connections.iter().map(row));
        let hidden = total.saturating_sub(connections.len());
        let more = if hidden > 0 { format!("and {hidden} more: --limit\n") } else { String::new() };
        columns(&rows) + &more
    })
}

fn row(sight: &Sight) -> Vec<String> {
    vec![
        sight.id.clone(),
        age(sight.age_seconds),
        sight.phase.as_str().to_owned(),
        sight.listener.clone(),
        sight.client.to_string(),
        format!("{}/{}", sight.pool, sight.backend.as_deref().unwrap_or("-")),
        bytes(sight.received_bytes),
        bytes(sight.sent_bytes),
        // The client chose it.
        sight.sni.as_deref().unwrap_or_default().escape_default().to_string(),
    ]
}

pub(super) fn kill(arguments: &Kill) -> Result<(), Failure> {
    let which = Which { id: arguments.id.clone(), ..arguments.filter.which() };
    arguments.target.post("/kill", &which, |Killed { ended }| {
        format!("{ended} {} ended", if *ended == 1 { "connection" } else { "connections" })
    })
}
