//! `upgrade`: a new binary in the place of the running process.

use super::{Failure, ask::Target};
use crate::admin::answers::Upgraded;

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    #[command(flatten)]
    target: Target,
}

pub(super) fn upgrade(arguments: &Arguments) -> Result<(), Failure> {
    let nothing = serde_json::json!({});
    arguments.target.post("/upgrade", &nothing, |Upgraded { pid, version, before }| {
        format!("process {pid} serves, sluicegate {version}; process {before} drains")
    })
}
