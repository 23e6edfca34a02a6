//! A picked backend.

use std::sync::Arc;

use super::queue::Queue;
use crate::backend::Backend;

/// A picked backend: counted as a live connection until dropped.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
    /// How often it had gone down when it was picked.
    downs: u32,
    /// Who may be waiting for this place; `None` where there is no limit.
    pub(super) queue: Option<Arc<Queue>>,
}

impl Lease {
    /// `None` when the backend is full.
    pub(super) fn on(backend: &Arc<Backend>, queue: Option<&Arc<Queue>>) -> Option<Self> {
        // Before the count: if it goes down now, it is known.
        let downs = backend.downs();
        let queue = queue.filter(|_| backend.cap() > 0).cloned();
        backend.take().then(|| Self { backend: Arc::clone(backend), downs, queue })
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }

    /// Gives the place back to nobody in particular. The queue may be locked by who picks; its first looks by itself.
    pub(super) fn give_up(mut self) {
        self.queue = None;
    }

    /// Whether the backend went down since it was picked.
    pub fn is_outdated(&self) -> bool {
        self.backend.downs() != self.downs
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.give_back();
        if let Some(queue) = &self.queue {
            queue.note_room();
        }
    }
}
