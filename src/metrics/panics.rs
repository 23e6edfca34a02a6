//! Panics: each is a bug of ours. They belong to the process and not to a configuration or a worker.

use std::sync::atomic::{AtomicU64, Ordering};

static PANICS: AtomicU64 = AtomicU64::new(0);

/// Any thread.
pub fn count_panic() {
    PANICS.fetch_add(1, Ordering::Relaxed);
}

pub(super) fn panics() -> u64 {
    PANICS.load(Ordering::Relaxed)
}
