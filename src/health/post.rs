//! What a checker and its owner both look at: for whom it checks, and whether anybody still needs it.

use std::{
    collections::HashMap,
    sync::{
        Arc, Mutex, PoisonError,
        atomic::{AtomicBool, Ordering},
    },
};

use tokio::sync::Notify;

use crate::{backend::Backend, pool::Pool};

/// For whom a backend is checked.
#[derive(Debug)]
pub(super) struct Post {
    /// Told when the checker takes the place of what was there before.
    pub(super) joined: Notify,
    /// The pool that it is a member of now.
    pool: Mutex<Arc<Pool>>,
    /// It is a member no more.
    pub(super) is_left: AtomicBool,
}

impl Post {
    pub(super) fn new(pool: &Arc<Pool>) -> Self {
        Self { joined: Notify::new(), pool: Mutex::new(Arc::clone(pool)), is_left: AtomicBool::new(false) }
    }

    pub(super) fn pool(&self) -> Arc<Pool> {
        Arc::clone(&self.pool.lock().unwrap_or_else(PoisonError::into_inner))
    }

    /// The pool of the same name takes the place of the one before.
    pub(super) fn join(&self, pools: &HashMap<&str, &Arc<Pool>>) {
        let mut own = self.pool.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(pool) = pools.get(&*own.name) {
            own.clone_from(pool);
        }
        // It waits for this the first time, if at all.
        self.joined.notify_one();
    }

    /// Whether a backend that is no member any more has connections that have to end when it goes down (traps B8).
    pub(super) fn is_needed(&self, backend: &Backend) -> bool {
        self.is_left.load(Ordering::Relaxed) && self.pool().closes_on_down && backend.live() > 0
    }
}
