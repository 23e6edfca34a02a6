//! Everything that a configuration comes to at run time: pools, frontends and what the metrics show of them.

use std::sync::Arc;

use rustls::crypto::CryptoProvider;

use crate::{
    backend::Health,
    bans::Counts,
    config::{self, Action, BAN},
    frontend::{Common, Firewall, Frontend, Limit},
    ledger::{self, Ledger},
    load::{Loaded, Materials},
    metrics::{
        BackendGauges, CertificateGauges, Gauges, ListenerGauges, OffloadCells, PerWorker, PoolGauges, PrefixGauges,
        Registry, RuleCells, SourceGauges,
    },
    pool::{Mode, Pool},
    sys::clock::{self, Moment},
    tls::{acceptor::Policy, certificates::Certificates, tickets::Tickets},
};

/// A configuration that runs.
#[derive(Debug)]
pub struct Site {
    /// In the order of the listeners.
    pub frontends: Vec<Arc<Frontend>>,
    /// In the order of the pools.
    pub pools: Vec<Arc<Pool>>,
    /// What is known of sources of clients.
    pub ledger: Ledger,
    process: Arc<Limit>,
    /// What the limit of the process is to be.
    connections: usize,
    certificates: Vec<CertificateGauges>,
    served_certificates: Vec<ServedCertificate>,
    prefixes: Vec<PrefixGauges>,
    /// Of each rule, under whatever it has done since it has its name: no counter is lost when that changes.
    _rules: Vec<Arc<PerWorker<RuleCells>>>,
    /// Of each rule that the kernel may have.
    _offloaded: Vec<Arc<PerWorker<OffloadCells>>>,
}

/// A certificate of one listener, as people want to see it.
#[derive(Debug, Clone)]
pub struct ServedCertificate {
    pub listener: String,
    pub file: String,
    pub names: Vec<String>,
    /// Unix seconds.
    pub not_before: i64,
    pub not_after: i64,
}

impl Site {
    /// Builds it for at most `connections` clients at once, with what is known of sources. Counters are found by name. What
    /// is the same in `old`, the site that it is to replace, is taken over; nothing there changes until [`Site::adopt`].
    pub fn build(
        loaded: &Loaded,
        connections: usize,
        provider: &Arc<CryptoProvider>,
        registry: &Registry,
        ledger: &Ledger,
        old: Option<&Self>,
    ) -> Result<Self, rustls::Error> {
        let config = &loaded.config;
        let now = clock::coarse();
        let key = &config.global.hash_key;
        let pool = |pool: &config::Pool| {
            let old = old.and_then(|old| old.pool(&pool.name));
            Arc::new(Pool::new(pool, key, registry, old.map(|old| &**old), now))
        };
        let pools: Vec<_> = config.pools.iter().map(pool).collect();
        let process = old.map_or_else(|| Limit::new(connections), |old| Arc::clone(&old.process));
        let generation = registry.generation();
        let ledger = ledger.under(config, connections);
        let (rules, generation) = (&config.firewall, &generation);
        let common = Common { process: &process, registry, generation, firewall: rules, ledger: &ledger };
        let mut frontends = Vec::new();
        for (listener, materials) in config.listeners.iter().zip(&loaded.listeners) {
            let Some(pool) = pools.iter().find(|pool| *pool.name == *listener.pool) else { continue };
            let old = old.and_then(|old| old.frontend(&listener.name)).map(|old| &**old);
            let before = old.map(|old| &old.firewall);
            let firewall = Firewall::new(&config.firewall, materials, registry, before);
            let before = old.and_then(|old| old.tls.as_ref());
            let tls = listener.tls.as_ref().map(|tls| policy(tls, materials, provider, before)).transpose()?;
            frontends.push(Arc::new(Frontend::new(listener, firewall, tls, Arc::clone(pool), &common, old)));
        }
        let rules = config.firewall.rules.iter().zip(&loaded.prefixes);
        let prefixes =
            rules.map(|(rule, &(v4, v6))| PrefixGauges { rule: rule.name.clone(), v4: v4 as u64, v6: v6 as u64 });
        let names = config.firewall.rules.iter().map(|rule| rule.name.as_str());
        let denying = config.firewall.rules.iter().filter(|rule| rule.action == Action::Deny && !rule.shadow);
        let denying = denying.map(|rule| rule.name.as_str()).chain(["default", BAN]);
        Ok(Self {
            frontends,
            pools,
            ledger,
            process,
            connections,
            certificates: certificates(loaded),
            served_certificates: served_certificates(loaded),
            prefixes: prefixes.collect(),
            _offloaded: denying.map(|rule| registry.offloaded(rule)).collect(),
            _rules: names.chain(["default"]).flat_map(|name| registry.rules_of(name)).collect(),
        })
    }

    /// Takes the place of `old`. Where that changes where connections go, it is to be told.
    pub fn adopt(&self, old: &Self, now: Moment) -> Vec<(&Pool, Mode)> {
        self.process.set_most(self.connections);
        self.frontends.iter().for_each(|frontend| frontend.adopt());
        let news = self.pools.iter().filter_map(|pool| {
            if let Some(old) = old.pool(&pool.name) {
                pool.catch_up(old);
            }
            pool.adopt(now).map(|mode| (&**pool, mode))
        });
        news.collect()
    }

    pub fn pool(&self, name: &str) -> Option<&Arc<Pool>> {
        self.pools.iter().find(|pool| *pool.name == *name)
    }

    pub fn frontend(&self, listener: &str) -> Option<&Arc<Frontend>> {
        self.frontends.iter().find(|frontend| *frontend.name == *listener)
    }

    /// The certificates of every listener, in the order they are written.
    pub fn served_certificates(&self) -> impl Iterator<Item = &ServedCertificate> {
        self.served_certificates.iter()
    }

    /// What is set rather than counted, as it is now.
    pub fn gauges(&self) -> Gauges {
        let listeners = self.frontends.iter().map(|frontend| ListenerGauges {
            name: frontend.name.to_string(),
            connections_limit: frontend.limits.iter().map(|limit| limit.most()).min().unwrap_or_default() as u64,
        });
        let now = clock::coarse();
        let pools = self.pools.iter().map(|pool| pool_gauges(pool, now));
        let backends = self.pools.iter().flat_map(|pool| {
            pool.members().map(|(backend, weight)| BackendGauges {
                pool: pool.name.to_string(),
                name: backend.name.to_string(),
                weight,
                connections: u64::from(backend.live()),
                up: backend.health() == Health::Up && !backend.is_ejected(now) && !backend.is_draining(),
            })
        });
        let known = ledger::known(self.frontends.iter().filter_map(|frontend| frontend.sources.as_ref()));
        let Counts { manual, automatic } = self.ledger.bans.counts(now);
        Gauges {
            listeners: listeners.collect(),
            pools: pools.collect(),
            backends: backends.collect(),
            certificates: self.certificates.clone(),
            firewall: self.prefixes.clone(),
            sources: Some(SourceGauges { sources: known as u64, manual: manual as u64, automatic: automatic as u64 }),
        }
    }

    /// The limit of the process.
    pub fn connections_limit(&self) -> usize {
        self.process.most()
    }
}

fn policy(
    tls: &config::Tls,
    materials: &Materials,
    provider: &Arc<CryptoProvider>,
    old: Option<&Policy>,
) -> Result<Policy, rustls::Error> {
    let certificates = Certificates::new(&materials.certificates, tls.strict_sni);
    // Keys of its own: a ticket of one listener is worth nothing at another (traps T4).
    let tickets = old.and_then(|old| old.tickets_for(&certificates));
    let tickets = tickets.map_or_else(|| Tickets::new().map(Arc::new), Ok)?;
    Policy::new(certificates, tls.min_version, &tls.alpn, provider, tickets)
}

/// Each backend counts once, under the strongest reason why it takes nothing.
fn pool_gauges(pool: &Pool, now: Moment) -> PoolGauges {
    let (name, queued) = (pool.name.to_string(), pool.waiting() as u64);
    let mut gauges = PoolGauges { name, queued, ..PoolGauges::default() };
    for backend in pool.backends() {
        let state = match backend.health() {
            _ if backend.is_draining() => &mut gauges.draining,
            Health::Unknown | Health::Down => &mut gauges.down,
            Health::Up if backend.is_ejected(now) => &mut gauges.ejected,
            Health::Up => &mut gauges.up,
        };
        *state += 1;
    }
    gauges
}

fn served_certificates(loaded: &Loaded) -> Vec<ServedCertificate> {
    let listeners = loaded.config.listeners.iter().zip(&loaded.listeners);
    let served = listeners.flat_map(|(listener, materials)| {
        let files = listener.tls.iter().flat_map(|tls| &tls.certificates);
        files.zip(&materials.certificates).map(|(files, certificate)| ServedCertificate {
            listener: listener.name.clone(),
            file: files.cert.value.display().to_string(),
            names: certificate.names.clone(),
            not_before: certificate.not_before,
            not_after: certificate.not_after,
        })
    });
    served.collect()
}

/// Each certificate file once, by the name it has in the configuration.
fn certificates(loaded: &Loaded) -> Vec<CertificateGauges> {
    let mut all: Vec<CertificateGauges> = Vec::new();
    for (listener, materials) in loaded.config.listeners.iter().zip(&loaded.listeners) {
        let files = listener.tls.iter().flat_map(|tls| &tls.certificates);
        for (files, certificate) in files.zip(&materials.certificates) {
            let name = files.cert.value.display().to_string();
            if all.iter().all(|known| known.name != name) {
                all.push(CertificateGauges { name, not_after: certificate.not_after });
            }
        }
    }
    all
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        load::{self, Text},
        offence,
        tls::{acceptor, crowd::Shortage},
    };

    /// What two workers are told with 350 clients in a handshake, after an upgrade.
    fn shortage(process: usize, listener: usize) -> Shortage {
        const CLIENTS: usize = 350;
        let text = format!(
            "[listener.tcp]\nbind = \"127.0.0.1:0\"\npool = \"web\"\nmax_connections = {listener}\n\
             [pool.web]\nbackends = [\"127.0.0.1:1\"]\n"
        );
        let provider = Arc::new(acceptor::provider());
        let loaded = load::load(&Text { path: "test.toml".into(), text }, &provider).unwrap();
        let (registry, predecessor) = (Registry::new(2), Registry::new(2));
        let (report, _culprits) = offence::line();
        let site = Site::build(&loaded, process, &provider, &registry, &Ledger::new(report), None).unwrap();
        predecessor.listener("tcp").at(0).accepted.add(7);
        registry.inherit(&predecessor.totals());
        let frontend = site.frontend("tcp").unwrap();
        let places = || frontend.limits.each_ref().map(|limit| limit.take().unwrap());
        let _places: Vec<_> = (0..CLIENTS).map(|_| places()).collect();
        for worker in 0..2 {
            frontend.cells.at(worker).tls_in_progress.set(CLIENTS as u64 / 2);
        }
        frontend.shortage(|| CLIENTS as u64)
    }

    /// The block of cells of earlier processes used to have a share like a worker.
    #[test]
    fn t6_the_places_of_handshakes_are_shared_by_the_workers_of_this_process_alone() {
        // Of 400 places 64 are kept free.
        assert_eq!(shortage(10_000, 400), Shortage::OfListener(168));
        assert_eq!(shortage(400, 10_000), Shortage::OfProcess(168));
        assert_eq!(shortage(10_000, 10_000), Shortage::None);
    }
}
