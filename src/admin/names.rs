//! The names that an operator types: of what is configured, and of what is gone and still has connections.

use super::{answers::Which, control::Refused};
use crate::{
    backend::Backend,
    drain::inquiry::{ConnectionId, Filter},
    pool::Pool,
    site::Site,
};

/// What is asked of connections.
pub(super) fn filter(which: &Which) -> Result<Filter, Refused> {
    let mut filter = Filter { listener: which.listener.clone(), ..Filter::default() };
    if let Some(id) = &which.id {
        let unknown = || Refused::Invalid(format!("`{id}` is no id of a connection: 12 hexadecimal digits"));
        filter.id = Some(ConnectionId::parse(id).ok_or_else(unknown)?);
    }
    if let Some(client) = &which.client {
        let reason = |error| Refused::Invalid(format!("`{client}` is no address and no network: {error}"));
        filter.client = Some(client.parse().map_err(reason)?);
    }
    if let Some(name) = &which.backend {
        let (pool, backend) = name.split_once('/').map_or((&**name, None), |(pool, backend)| (pool, Some(backend)));
        (filter.pool, filter.backend) = (Some(pool.to_owned()), backend.map(str::to_owned));
    }
    Ok(filter)
}

/// Whether the configuration has the names.
pub(super) fn known(site: &Site, which: &Which) -> Result<(), Refused> {
    if let Some(name) = &which.listener {
        let known: Vec<_> = site.frontends.iter().map(|frontend| &*frontend.name).collect();
        known_name("listener", name, &known)?;
    }
    match &which.backend {
        Some(name) if name.contains('/') => find(site, name).map(drop),
        Some(name) => find_pool(site, name).map(drop),
        None => Ok(()),
    }
}

/// The backend that `POOL/BACKEND` names.
pub(super) fn find<'a>(site: &'a Site, name: &str) -> Result<(&'a Pool, &'a Backend), Refused> {
    let split = || Refused::Invalid(format!("`{name}` is no POOL/BACKEND"));
    let (pool, backend) = name.split_once('/').ok_or_else(split)?;
    let pool = find_pool(site, pool)?;
    let known: Vec<_> = pool.backends().map(|backend| &*backend.name).collect();
    let backend = known_name(&format!("backend of pool `{}`", pool.name), backend, &known)?;
    let found = pool.backends().find(|known| *known.name == *backend);
    found.map(|found| (pool, &**found)).ok_or(Refused::Unknown(backend))
}

fn find_pool<'a>(site: &'a Site, name: &str) -> Result<&'a Pool, Refused> {
    let known: Vec<_> = site.pools.iter().map(|pool| &*pool.name).collect();
    let name = known_name("pool", name, &known)?;
    site.pools.iter().find(|pool| *pool.name == *name).map(|pool| &**pool).ok_or(Refused::Unknown(name))
}

/// The name, if it is one of those that are known.
fn known_name(what: &str, name: &str, known: &[&str]) -> Result<String, Refused> {
    if known.contains(&name) {
        return Ok(name.to_owned());
    }
    Err(Refused::Unknown(format!("no {what} is called `{name}`; there are: {}", known.join(", "))))
}
