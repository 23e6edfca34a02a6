//! One backend of a pool and the leases on it.

use std::{
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicU32, Ordering},
    },
};

use crate::metrics::{BackendCells, PerWorker};

/// An address that takes connections. Shared by every worker.
#[derive(Debug)]
pub struct Backend {
    pub name: Arc<str>,
    pub address: SocketAddr,
    pub weight: u16,
    pub cells: Arc<PerWorker<BackendCells>>,
    live: AtomicU32,
}

/// A picked backend: counted as a live connection until dropped.
#[derive(Debug)]
pub struct Lease {
    backend: Arc<Backend>,
}

impl Backend {
    pub fn new(name: &str, address: SocketAddr, weight: u16, cells: Arc<PerWorker<BackendCells>>) -> Self {
        Self { name: name.into(), address, weight, cells, live: AtomicU32::new(0) }
    }

    /// Connections that are relayed or being made.
    pub fn live(&self) -> u32 {
        self.live.load(Ordering::Relaxed)
    }
}

impl Lease {
    pub(crate) fn on(backend: &Arc<Backend>) -> Self {
        backend.live.fetch_add(1, Ordering::Relaxed);
        Self { backend: Arc::clone(backend) }
    }

    pub fn backend(&self) -> &Backend {
        &self.backend
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        self.backend.live.fetch_sub(1, Ordering::Relaxed);
    }
}
