//! What the process opens beside its listeners and the admin server: the access log.

use std::sync::Arc;

use super::cannot_start;
use crate::{
    access_log::{self, AccessLog},
    config::{self, Diagnostic},
    metrics::Registry,
};

/// `None`: it is off.
pub(super) fn start_log(
    log: &config::Log,
    registry: &Registry,
) -> Result<Option<(AccessLog, access_log::Guard)>, Vec<Diagnostic>> {
    AccessLog::start(&log.access, log.format, Arc::clone(registry.log_records_dropped()))
        .map_err(|error| vec![cannot_start("the access log cannot be opened", &error).note("this is [log] access")])
}
