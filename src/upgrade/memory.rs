//! What a process knows, so that the next one need not find out again (traps B3, L6): of backends their health, ejections,
//! slow starts and what the operator has changed, and the keys of session tickets (T5).

use std::net::SocketAddr;

use serde::{Deserialize, Serialize};

use crate::{
    backend::{Health, Stamps},
    bans::Ban,
    config::Role,
    metrics::BanKind,
    moment::Moment,
    pool,
    site::Site,
    sys::clock,
    tls::tickets::SavedKeys,
};

/// What is known.
#[derive(Debug, Serialize, Deserialize)]
pub struct Memory {
    pools: Vec<Pool>,
    listeners: Vec<Listener>,
    /// `None`: of a version that has none.
    #[serde(default)]
    bans: Option<Vec<Banned>>,
}

/// A network that is banned.
#[derive(Debug, Serialize, Deserialize)]
struct Banned {
    network: String,
    kind: BanKind,
    reason: String,
    since: i64,
    /// Milliseconds of the monotonic clock.
    end: Option<u64>,
}

/// A listener with TLS.
#[derive(Debug, Serialize, Deserialize)]
struct Listener {
    name: String,
    /// For which it has certificates. A ticket that was given for others is worth nothing (traps T4).
    names: Vec<String>,
    keys: SavedKeys,
}

/// What is known of one pool.
#[derive(Debug, Serialize, Deserialize)]
struct Pool {
    name: String,
    /// The question that its backends are asked, as text. What was answered to another one means nothing.
    question: Option<String>,
    backends: Vec<Backend>,
}

#[derive(Debug, Serialize, Deserialize)]
struct Backend {
    name: String,
    address: SocketAddr,
    /// `None`: no check has answered yet.
    up: Option<bool>,
    draining: bool,
    weight: u16,
    /// What the configuration has for it.
    written: u16,
    /// On the monotonic clock, which both processes share.
    stamps: Stamps,
}

impl Memory {
    /// Everything that is known now.
    pub(super) fn of(site: &Site) -> Self {
        let tls = site.frontends.iter().filter_map(|frontend| Some((&frontend.name, frontend.tls.as_ref()?)));
        let listeners = tls.map(|(name, tls)| Listener {
            name: name.to_string(),
            names: names(site, name),
            keys: tls.tickets().save(),
        });
        let bans = site.ledger.bans.list(clock::coarse());
        let bans = bans.into_iter().map(|(network, Ban { kind, reason, since, end })| Banned {
            network: network.to_string(),
            kind,
            reason,
            since,
            end: end.map(Moment::as_millis),
        });
        Self {
            pools: site.pools.iter().map(|pool| Pool::of(pool)).collect(),
            listeners: listeners.collect(),
            bans: Some(bans.collect()),
        }
    }

    /// Recalls it for a site that nobody uses yet, and says whether bans are part of it. What is configured differently now
    /// begins anew.
    pub(super) fn recall(&self, site: &Site) -> bool {
        for pool in &site.pools {
            if let Some(known) = self.pools.iter().find(|known| *known.name == *pool.name) {
                known.recall(pool);
            }
        }
        for frontend in &site.frontends {
            let known = self.listeners.iter().find(|known| *known.name == *frontend.name);
            let known = known.filter(|known| known.names == names(site, &frontend.name));
            if let (Some(known), Some(tls)) = (known, &frontend.tls) {
                tls.tickets().recall(&known.keys);
            }
        }
        let Some(bans) = &self.bans else { return false };
        let bans = bans.iter().filter_map(|Banned { network, kind, reason, since, end }| {
            let end = end.map(Moment::from_millis);
            Some((network.parse().ok()?, Ban { kind: *kind, reason: reason.clone(), since: *since, end }))
        });
        site.ledger.bans.add(bans, clock::coarse());
        true
    }
}

/// The names that a listener has certificates for.
fn names(site: &Site, listener: &str) -> Vec<String> {
    let own = site.served_certificates().filter(|certificate| certificate.listener == listener);
    own.flat_map(|certificate| certificate.names.iter().cloned()).collect()
}

impl Pool {
    fn of(pool: &pool::Pool) -> Self {
        let shares = [Role::Active, Role::Backup].into_iter().flat_map(|role| pool.shares(role));
        let backends = shares.map(|(backend, weight, written)| Backend {
            name: backend.name.to_string(),
            address: backend.address,
            up: match backend.health() {
                Health::Unknown => None,
                Health::Up => Some(true),
                Health::Down => Some(false),
            },
            draining: backend.is_draining(),
            weight,
            written,
            stamps: backend.stamps(),
        });
        Self { name: pool.name.to_string(), question: pool.question(), backends: backends.collect() }
    }

    fn recall(&self, pool: &pool::Pool) {
        let now = clock::coarse();
        let is_same = self.question == pool.question();
        let shares = [Role::Active, Role::Backup].into_iter().flat_map(|role| pool.shares(role));
        let members: Vec<_> = shares.map(|(backend, _, written)| (backend.clone(), written)).collect();
        for (backend, written) in members {
            let mut all = self.backends.iter();
            let known = all.find(|known| *known.name == *backend.name && known.address == backend.address);
            let Some(known) = known else { continue };
            // What changes by this is no news: it was told when it happened.
            if known.draining {
                let _ = pool.set_draining(&backend, true, now);
            }
            if known.weight != known.written && known.written == written {
                let _ = pool.set_weight(&backend, known.weight, now);
            }
            if let Some(up) = known.up.filter(|_| is_same) {
                let _ = pool.set_health(&backend, if up { Health::Up } else { Health::Down }, now);
                backend.recall(known.stamps);
            }
        }
    }
}
