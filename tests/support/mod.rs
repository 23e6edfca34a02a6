//! The harness: the binary as a child process, backends and clients in this one, real programs beside them.

pub mod backend;
pub mod busy;
pub mod certificates;
pub mod client;
pub mod gate;
pub mod hello;
pub mod host;
pub mod lineage;
pub mod load;
pub mod metrics;
pub mod namespace;
pub mod nginx;
pub mod process;
pub mod programs;
#[path = "../../src/random.rs"]
pub mod random;
pub mod stand;
pub mod strace;
pub mod tags;
pub mod variant;
pub mod web;

use std::{
    sync::{Mutex, MutexGuard, PoisonError},
    thread,
    time::{Duration, Instant},
};

use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

pub use backend::Backend;
pub use busy::Busy;
pub use certificates::Authority;
pub use gate::Gate;
pub use host::patient;
pub use lineage::Lineage;
pub use load::Load;
pub use metrics::Metrics;
pub use namespace::Namespace;
pub use process::Process;
pub use random::Random;
pub use stand::Stand;
pub use strace::Strace;
pub use variant::Variant;
pub use web::WebServer;

/// What a test waits at most for anything that should happen at once.
pub const SOON: Duration = Duration::from_secs(10);

/// What a test waits at most for bulk work in a debug build on a busy machine.
pub const LATE: Duration = Duration::from_secs(90);

const POLL: Duration = Duration::from_millis(5);

/// Whether tests have their full length.
pub fn full() -> bool {
    std::env::var("SLUICEGATE_FULL").as_deref() == Ok("1")
}

/// This process may open as many descriptors as the host lets it.
pub fn raise_descriptor_limit() {
    let limit = getrlimit(Resource::Nofile);
    let _ = setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit });
}

/// Tests that take thousands of descriptors or measure time come one after the other.
pub fn turn() -> MutexGuard<'static, ()> {
    static TURN: Mutex<()> = Mutex::new(());
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Waits for a condition, not for a time; tells what it waited for when the deadline passes.
#[track_caller]
pub fn wait_until(deadline: Duration, what: &str, mut condition: impl FnMut() -> bool) {
    let reached = wait_for(deadline, || condition().then_some(()));
    assert!(reached.is_some(), "not within {deadline:?}: {what}");
}

/// The first `Some` within the deadline.
pub fn wait_for<T>(deadline: Duration, mut attempt: impl FnMut() -> Option<T>) -> Option<T> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = attempt() {
            return Some(value);
        }
        if Instant::now() >= end {
            return None;
        }
        thread::sleep(POLL);
    }
}
