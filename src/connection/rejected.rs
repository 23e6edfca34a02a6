//! A client that is not served.

use std::{
    net::SocketAddr,
    sync::Arc,
    time::{Duration, SystemTime},
};

use crate::{
    access_log::{Record, Seconds},
    frontend::Frontend,
    local::Local,
    outcome::Outcome,
};

/// Who was turned away straight after accept. It is counted and closed already.
#[derive(Debug)]
pub struct Rejected<'f> {
    pub(super) client: SocketAddr,
    pub(super) frontend: &'f Frontend,
    /// That decided about its address.
    pub(super) rule: Arc<str>,
    pub(super) outcome: Outcome,
}

impl Rejected<'_> {
    /// Notes it, and tells it if it is to have a record. Who may not bring clients is only counted.
    pub fn tell(&self, local: &Local) {
        if self.outcome == Outcome::BadProxyHeader {
            return;
        }
        if local.note_rejection(self.client.ip(), self.outcome) {
            local.log(|| self.record(local.random()));
        }
    }

    fn record(&self, id: u64) -> Record {
        Record {
            ts: SystemTime::now(),
            id,
            listener: Arc::clone(&self.frontend.name),
            client: self.client,
            peer: None,
            sni: None,
            tls: None,
            rule: Arc::clone(&self.rule),
            pool: Arc::clone(&self.frontend.pool.name),
            backend: None,
            attempts: 0,
            received_bytes: 0,
            sent_bytes: 0,
            path: None,
            seconds: Seconds { total: Duration::ZERO, ..Seconds::default() },
            outcome: self.outcome,
        }
    }
}
