//! What the connections of one worker share. It never leaves its thread.

use std::{cell::Cell, net::IpAddr, ops::Deref, rc::Rc, sync::Arc, time::Duration};

use crate::{
    access_log::{AccessLog, Record},
    alarm::Alarms,
    drain::Drain,
    metrics::{Level, Registry},
    outcome::Outcome,
    rejections::Rejections,
    relay::Resources,
    sys::clock::{self, Moment},
    tls::crowd::Crowd,
};

/// What a connection may use of its worker.
#[derive(Debug)]
pub struct Local {
    pub index: usize,
    pub resources: Resources,
    /// TLS records by rustls instead of our own record layer.
    pub rustls_records: bool,
    /// Its connections.
    pub drain: Rc<Drain>,
    pub alarms: Rc<Alarms>,
    pub handshakes: Crowd,
    shortages: Cell<u32>,
    registry: Arc<Registry>,
    rejections: Arc<Rejections>,
    log: Option<AccessLog>,
    random: Cell<u64>,
    warned: Cell<Option<Moment>>,
}

/// A connection's hold on its worker, which counts it until this is dropped.
#[derive(Debug)]
pub struct Served(Rc<Local>);

impl Local {
    /// For worker number `index`. `seed` is any number; two workers should not have the same.
    pub fn new(
        index: usize,
        resources: Resources,
        (registry, rejections): (Arc<Registry>, Arc<Rejections>),
        log: Option<AccessLog>,
        rustls_records: bool,
        seed: u64,
    ) -> Self {
        // xorshift never leaves zero, so it must not begin there.
        let random = Cell::new(seed | 1);
        Self {
            index,
            resources,
            rustls_records,
            drain: Rc::default(),
            alarms: Rc::default(),
            handshakes: Crowd::default(),
            shortages: Cell::new(0),
            registry,
            rejections,
            log,
            random,
            warned: Cell::new(None),
        }
    }

    /// 64 fresh bits for choices that nobody may profit from guessing slightly better: xorshift64* (Vigna, 2016).
    pub fn random(&self) -> u64 {
        let mut x = self.random.get();
        x ^= x >> 12;
        x ^= x << 25;
        x ^= x >> 27;
        self.random.set(x);
        x.wrapping_mul(0x2545_F491_4F6C_DD1D)
    }

    /// Writes a record, if there is a log. Never blocks.
    pub fn log(&self, record: impl FnOnce() -> Record) {
        if let Some(log) = &self.log {
            log.write(record());
        }
    }

    /// Notes a client that is turned away. Whether it is to have a record: the first of its source has (traps F7).
    pub fn note_rejection(&self, client: IpAddr, outcome: Outcome) -> bool {
        self.rejections.note(client, outcome, clock::coarse(), self.log.is_some())
    }

    /// The handshakes in progress of this worker.
    pub fn handshake_level(&self) -> &Level {
        &self.registry.workers().at(self.index).handshakes
    }

    /// Those of all workers.
    pub fn all_handshakes(&self) -> u64 {
        self.registry.workers().sum(|cells| cells.handshakes.value())
    }

    /// How often a client could not be served because the host has nothing left to serve it with.
    pub fn shortages(&self) -> u32 {
        self.shortages.get()
    }

    /// Notes that it happened: accept loops rest before they take the next one (traps A1).
    pub fn note_shortage(&self) {
        self.shortages.set(self.shortages.get().wrapping_add(1));
    }

    /// Whether a warning may be said now: at most one a second from each worker (traps A1).
    pub fn may_warn(&self) -> bool {
        const PAUSE: Duration = Duration::from_secs(1);
        let now = clock::coarse();
        let may = self.warned.get().is_none_or(|last| now.since(last) >= PAUSE);
        if may {
            self.warned.set(Some(now));
        }
        may
    }

    fn connections(&self) -> &Level {
        &self.registry.workers().at(self.index).connections
    }
}

impl Served {
    pub fn by(local: &Rc<Local>) -> Self {
        let connections = local.connections();
        connections.set(connections.value() + 1);
        Self(Rc::clone(local))
    }
}

impl Deref for Served {
    type Target = Local;

    fn deref(&self) -> &Local {
        &self.0
    }
}

impl Drop for Served {
    fn drop(&mut self) {
        let connections = self.connections();
        connections.set(connections.value().saturating_sub(1));
    }
}
