//! What the process allows itself, after what the host allows it.

use crate::{
    config::{Auto, Config, Diagnostic, ZeroCopy, code::CANNOT_START},
    sys::host,
};

/// Descriptors kept for the admin listener, log files and reading configurations.
const RESERVED_DESCRIPTORS: usize = 64;

/// What the process allows itself.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    pub workers: usize,
    pub descriptors: usize,
    pub connections: usize,
    /// Pipes of all workers together.
    pub pipes: usize,
}

impl Limits {
    /// `connections` is what the descriptor limit allows: two for each, less those of pipes, listeners and a reserve
    /// (traps A3). A configured number above it is refused.
    pub fn of(config: &Config) -> Result<Self, Vec<Diagnostic>> {
        let descriptors = usize::try_from(host::raise_descriptor_limit()).unwrap_or(usize::MAX);
        let workers = match config.global.workers {
            Auto::Auto => host::cores(),
            Auto::Fixed(workers) => workers.get(),
        };
        let pipes = match config.global.zero_copy {
            ZeroCopy::Off => 0,
            _ => host::pipe_budget().min(descriptors / 16).max(workers),
        };
        let connections = connections(config, descriptors, workers, pipes)?;
        Ok(Self { workers, descriptors, connections, pipes })
    }

    /// As [`Limits::of`] the next configuration, for a process that runs with these: its workers and pipes stay as they are
    /// until a restart.
    pub fn after(&self, config: &Config) -> Result<Self, Vec<Diagnostic>> {
        let Self { descriptors, .. } = Self::of(config)?;
        let connections = connections(config, descriptors, self.workers, self.pipes)?;
        Ok(Self { descriptors, connections, ..*self })
    }
}

fn connections(config: &Config, descriptors: usize, workers: usize, pipes: usize) -> Result<usize, Vec<Diagnostic>> {
    let binds: usize = config.listeners.iter().map(|listener| listener.binds.len()).sum();
    // Each check has one, and each worker has a duplicate of each listening socket, and its runtime a handful of its own.
    let checked = config.pools.iter().filter(|pool| pool.check.is_some()).map(|pool| pool.backends.len());
    let fixed = RESERVED_DESCRIPTORS + checked.sum::<usize>() + workers * (2 * binds + 8);
    let possible = descriptors.saturating_sub(fixed + 2 * pipes) / 2;
    let connections = match config.global.max_connections {
        Auto::Auto => possible,
        Auto::Fixed(most) => most.get(),
    };
    if connections > possible || possible == 0 {
        let message =
            format!("{descriptors} descriptors allow {possible} connections, and {connections} are asked for");
        let error = Diagnostic::error(CANNOT_START, message).help(format!(
            "raise the limit (`ulimit -Hn {}`, LimitNOFILE= in a unit file) or lower [global] max_connections",
            connections.max(1) * 2 + fixed + 2 * pipes
        ));
        return Err(vec![error]);
    }
    Ok(connections)
}
