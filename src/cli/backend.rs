//! `backend drain | enable | weight`: a backend of the running process.

use super::{Failure, ask::Target};
use crate::admin::answers::{Change, Changed};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    change: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Give it no new connections; live ones stay
    Drain(Which),
    /// Give it connections again after a drain
    Enable(Which),
    /// Give it another share of the traffic, until the file has a new one
    Weight {
        #[command(flatten)]
        which: Which,
        /// 0 to 256; 0 takes no new connections
        weight: u16,
    },
}

#[derive(Debug, clap::Args)]
struct Which {
    /// For example web/web-01
    #[arg(value_name = "POOL/BACKEND")]
    backend: String,
    #[command(flatten)]
    target: Target,
}

pub(super) fn backend(arguments: &Arguments) -> Result<(), Failure> {
    let (path, which, weight) = match &arguments.change {
        Verb::Drain(which) => ("/backend/drain", which, None),
        Verb::Enable(which) => ("/backend/enable", which, None),
        Verb::Weight { which, weight } => ("/backend/weight", which, Some(*weight)),
    };
    which.target.post(path, &Change { backend: which.backend.clone(), weight }, |Changed { pool, backend }| {
        let drift = if backend.drift.is_empty() { "as the file says".to_owned() } else { backend.drift.join(", ") };
        let (name, state, connections) = (&backend.name, &backend.state, backend.connections);
        format!("{pool}/{name} is {state}: {connections} connections; {drift}")
    })
}
