//! The part of the pool: which backends, in which order, and what decides it.

use std::net::SocketAddr;

use serde::Serialize;

use super::facts::{Fact, Question};
use crate::{
    balance::{Balance, Member, Picker, Request},
    config::{self, Listener, Role},
};

#[derive(Debug, Serialize)]
pub(super) struct Pool {
    pub(super) name: Fact<String>,
    pub(super) balance: Fact<&'static str>,
    /// Whether `backends` stands in the order in which this client is given to them, as long as all are up. Otherwise the
    /// order is the one of the file.
    pub(super) ordered: bool,
    /// Active ones first, then the backups.
    pub(super) backends: Vec<Fact<Backend>>,
    pub(super) retries: Fact<u32>,
    /// The header that backends get before anything else.
    pub(super) send_proxy: Fact<&'static str>,
    /// What else decides, and is known to the running process alone.
    pub(super) unknown: &'static str,
}

#[derive(Debug, Serialize)]
pub(super) struct Backend {
    pub(super) name: String,
    pub(super) address: SocketAddr,
    /// 0 takes no new connections.
    pub(super) weight: u16,
    /// Of the traffic of its role, while all of them are up.
    pub(super) share_percent: f64,
    /// `active` or `backup`.
    pub(super) role: &'static str,
    pub(super) max_connections: Option<u32>,
}

const UNKNOWN: &str =
    "health, load, changes by hand and bans are known to the running process: `sluicegate status`, `sluicegate bans`";

pub(super) fn pool(question: &Question<'_>, listener: &Listener, config: &config::Pool) -> Pool {
    let written = question.places.key("pool").key(&config.name);
    let order = [Role::Active, Role::Backup].map(|role| order(question, config, role)).concat();
    let backend = |index: &usize| {
        let backend = config.backends.get(*index)?;
        let (short, long) = (written.key("backends").at(*index), written.key("backend").at(*index).key("address"));
        Some(question.fact(described(config, backend), &[long, short]))
    };
    Pool {
        name: question.fact(config.name.clone(), &[question.places.key("listener").key(&listener.name).key("pool")]),
        balance: question.fact(config.balance.as_str(), &[written.key("balance")]),
        ordered: is_by_source(config.balance),
        backends: order.iter().filter_map(backend).collect(),
        retries: question.fact(config.retries, &[written.key("retries")]),
        send_proxy: question.fact(config.send_proxy.as_str(), &[written.key("send_proxy")]),
        unknown: UNKNOWN,
    }
}

fn described(pool: &config::Pool, backend: &config::Backend) -> Backend {
    let same_role = pool.backends.iter().filter(|other| other.role == backend.role);
    let total: u32 = same_role.map(|other| u32::from(other.weight)).sum();
    Backend {
        name: backend.name.clone(),
        address: backend.address,
        weight: backend.weight,
        share_percent: f64::from(backend.weight) * 100.0 / f64::from(total.max(1)),
        role: match backend.role {
            Role::Active => "active",
            Role::Backup => "backup",
        },
        max_connections: backend.max_connections.map(std::num::NonZero::get),
    }
}

fn is_by_source(balance: Balance) -> bool {
    matches!(balance, Balance::IpHash | Balance::Maglev)
}

/// The backends of a role as indices: as this client would be given to them one after the other if each failed it, where
/// that depends on the client alone, and those without traffic last; else as they are written.
fn order(question: &Question<'_>, pool: &config::Pool, role: Role) -> Vec<usize> {
    let indices: Vec<usize> =
        pool.backends.iter().enumerate().filter(|(_, backend)| backend.role == role).map(|(index, _)| index).collect();
    if !is_by_source(pool.balance) {
        return indices;
    }
    let of_role = indices.iter().filter_map(|index| pool.backends.get(*index));
    let members: Vec<_> = of_role.map(|backend| Member { name: &backend.name, weight: backend.weight }).collect();
    let picker = Picker::build(pool.balance, &members, &question.config.global.hash_key);
    let request = Request { source: question.client, ticket: 0, random: 0 };
    let mut order = Vec::new();
    while let Some(next) = picker.pick(&request, |_| 0, |member| !order.contains(&member)) {
        order.push(next);
    }
    let without = (0..indices.len()).filter(|member| !order.contains(member));
    let order: Vec<_> = order.iter().copied().chain(without).collect();
    order.iter().filter_map(|member| indices.get(*member).copied()).collect()
}
