//! What the process opens beside its listeners and the admin server: the access log.

use std::sync::Arc;

use super::cannot_start;
use crate::{
    access_log::{self, AccessLog},
    config::{self, Diagnostic},
    metrics::Registry,
};

pub(super) fn start_log(
    log: &config::Log,
    registry: &Registry,
) -> Result<(Option<AccessLog>, Option<access_log::Guard>), Vec<Diagnostic>> {
    if log.access == config::AccessLog::Off {
        return Ok((None, None));
    }
    match AccessLog::start(&log.access, log.format, Arc::clone(registry.log_records_dropped())) {
        Ok((log, guard)) => Ok((Some(log), Some(guard))),
        Err(error) => Err(vec![cannot_start("the access log cannot be opened", &error).note("this is [log] access")]),
    }
}
