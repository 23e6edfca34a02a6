//! `cert list`: what the running process shows its clients.

use super::{Failure, ask::Target, table::columns};
use crate::admin::answers;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(subcommand)]
    verb: Verb,
}

#[derive(Debug, clap::Subcommand)]
enum Verb {
    /// Every certificate with its names and its end
    List(Target),
}

pub(super) fn certificates(arguments: &Arguments) -> Result<(), Failure> {
    let Verb::List(target) = &arguments.verb;
    target.get("/certificates", |answers::Certificates { certificates }| {
        let header = ["LISTENER", "ENDS", "DAYS", "NAMES", "FILE"];
        let mut rows = vec![header.map(str::to_owned).to_vec()];
        rows.extend(certificates.iter().map(|one| {
            let names = one.names.join(" ").escape_default().to_string();
            vec![one.listener.clone(), one.not_after.clone(), one.days_left.to_string(), names, one.file.clone()]
        }));
        columns(&rows)
    })
}
