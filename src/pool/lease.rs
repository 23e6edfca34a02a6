//! A picked backend.

use std::sync::Arc;

use crate::backend::Backend;

#[derive(Debug)]
pub(super) struct Queue;

/// A picked backend: counted as a live connection until dropped.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    /// How often it had gone down when it was picked.
    downs: u32,
}

impl Lease {
    /// `None` when the backend is full.
    pub(super) fn on(backend: &Arc<Backend>, _queue: Option<&Arc<Queue>>) -> Option<Self> {
        backend.take().then(|| Self { backend: Arc::clone(backend), downs: backend.downs() })
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Whether the backend went down since it was picked.
    pub fn is_outdated(&self) -> bool {
        self.backend.downs() != self.downs
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.give_back();
    }
}
