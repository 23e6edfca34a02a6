//! A named set of backends with one balance policy: active ones, and backups for when every active one has failed.

use std::{
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
    time::Duration,
};

use crate::{
    backend::{Backend, Lease},
    balance::{Member, Picker, Request},
    config,
    metrics::{PerWorker, PoolCells, Registry},
};

/// A pool, shared by every worker.
#[derive(Debug)]
pub struct Pool {
    pub name: Arc<str>,
    /// Other backends of the same role tried while no client byte was forwarded.
    pub retries: u32,
    /// One connect attempt.
    pub connect_timeout: Duration,
    pub cells: Arc<PerWorker<PoolCells>>,
    active: Tier,
    backup: Tier,
    /// One order for the whole process (traps B13).
    ticket: AtomicU64,
}

/// Backends of one role.
#[derive(Debug)]
struct Tier {
    backends: Vec<Arc<Backend>>,
    picker: Picker,
}

/// One connection's search for a backend. It never tries the same one twice.
#[derive(Debug)]
pub struct Search<'a> {
    pool: &'a Pool,
    request: Request,
    /// Attempts left among the backends of the present role.
    left: u32,
    backups: bool,
    /// Empty, without an allocation, until a connect fails.
    tried: Vec<*const Backend>,
}

impl Pool {
    /// Builds the pool; counters are found by name, so they survive.
    pub fn new(config: &config::Pool, hash_key: &[u8; 16], registry: &Registry) -> Self {
        let tier = |role| {
            let members: Vec<_> = config.backends.iter().filter(|backend| backend.role == role).collect();
            let identities: Vec<_> =
                members.iter().map(|backend| Member { name: &backend.name, weight: backend.weight }).collect();
            let backends = members.iter().map(|backend| {
                let cells = registry.backend(&config.name, &backend.name);
                Arc::new(Backend::new(&backend.name, backend.address, backend.weight, cells))
            });
            Tier { backends: backends.collect(), picker: Picker::build(config.balance, &identities, hash_key) }
        };
        Self {
            name: config.name.as_str().into(),
            retries: config.retries,
            connect_timeout: config.connect_timeout,
            cells: registry.pool(&config.name),
            active: tier(config::Role::Active),
            backup: tier(config::Role::Backup),
            ticket: AtomicU64::new(0),
        }
    }

    /// Begins the search for one client. `random` is 64 fresh bits.
    pub fn search(&self, source: IpAddr, random: u64) -> Search<'_> {
        let ticket = self.ticket.fetch_add(1, Ordering::Relaxed);
        Search {
            pool: self,
            request: Request { source, ticket, random },
            left: self.retries.saturating_add(1),
            backups: false,
            tried: Vec::new(),
        }
    }

    /// Every backend, active ones first.
    pub fn backends(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.active.backends.iter().chain(&self.backup.backends)
    }
}

impl Search<'_> {
    /// The next backend to try: as many active ones as the retries allow, then as many backups. `None` when none is left.
    pub fn pick(&mut self) -> Option<Lease> {
        loop {
            let tier = if self.backups { &self.pool.backup } else { &self.pool.active };
            let lease = if self.left == 0 { None } else { tier.pick(&self.request, &self.tried) };
            self.left = self.left.saturating_sub(1);
            if lease.is_some() || self.backups {
                return lease;
            }
            (self.backups, self.left) = (true, self.pool.retries.saturating_add(1));
        }
    }

    /// Notes that `lease` did not work out.
    pub fn failed(&mut self, lease: &Lease) {
        self.tried.push(std::ptr::from_ref(lease.backend()));
    }
}

impl Tier {
    fn pick(&self, request: &Request, tried: &[*const Backend]) -> Option<Lease> {
        let at = |index: usize| self.backends.get(index);
        let load = |index| at(index).map_or(u32::MAX, |backend| backend.live());
        let eligible =
            |index| tried.is_empty() || at(index).is_some_and(|backend| !tried.contains(&Arc::as_ptr(backend)));
        let index = self.picker.pick(request, load, eligible)?;
        at(index).map(Lease::on)
    }
}

#[cfg(test)]
mod tests {
    use std::{collections::HashSet, path::Path};

    use super::*;

    fn pool(roles: &[config::Role]) -> Pool {
        let backends = roles.iter().enumerate().map(|(index, role)| {
            let role = if *role == config::Role::Active { "active" } else { "backup" };
            format!(
                "[[pool.web.backend]]\nname = \"b{index}\"\naddress = \"127.0.0.1:{}\"\nrole = \"{role}\"\n",
                1000 + index
            )
        });
        let listener = "[listener.a]\nbind = \"127.0.0.1:0\"\npool = \"web\"\n";
        let text = backends.fold(listener.to_owned(), |text, backend| text + &backend);
        let (config, _) = config::parse(&text, Path::new("")).unwrap();
        Pool::new(&config.pools[0], &[0; 16], &Registry::new(1))
    }

    #[test]
    fn b1_a_search_tries_every_active_backend_once_and_then_the_backups() {
        use config::Role::{Active, Backup};
        let pool = pool(&[Active, Backup, Active]);
        let mut search = pool.search([127, 0, 0, 1].into(), 7);
        let mut names = Vec::new();
        while let Some(lease) = search.pick() {
            names.push(lease.backend().name.to_string());
            search.failed(&lease);
        }
        assert_eq!(names.len(), 3);
        assert_eq!(names.iter().collect::<HashSet<_>>().len(), 3);
        assert_eq!(names.last().unwrap(), "b1");
    }

    #[test]
    fn a_backup_is_tried_when_the_retries_among_the_active_ones_are_used_up() {
        use config::Role::{Active, Backup};
        let pool = pool(&[Active, Active, Active, Active, Backup]);
        let mut search = pool.search([127, 0, 0, 1].into(), 7);
        let names = std::iter::from_fn(|| {
            let lease = search.pick()?;
            search.failed(&lease);
            Some(lease.backend().name.to_string())
        });
        let names: Vec<_> = names.collect();
        assert_eq!((names.len(), names.last().unwrap().as_str()), (4, "b4"));
    }

    #[test]
    fn f10_a_lease_is_counted_until_dropped() {
        let pool = pool(&[config::Role::Active]);
        let lease = pool.search([127, 0, 0, 1].into(), 7).pick().unwrap();
        assert_eq!(pool.backends().next().unwrap().live(), 1);
        drop(lease);
        assert_eq!(pool.backends().next().unwrap().live(), 0);
    }
}
