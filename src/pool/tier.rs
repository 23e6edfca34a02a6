//! The backends of one role, and which of them may be picked.

use std::{
    num::NonZeroU32,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;

use super::{Lease, Pick, queue::Queue};
use crate::{
    backend::{Backend, Health, Id},
    balance::{Balance, Member, Picker, Request},
    moment::Moment,
};

/// Backends of one role.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) backends: Vec<Arc<Backend>>,
    /// Shares of the traffic, in the order of the backends; 0 takes no new connections. An operator may change them.
    weights: Vec<AtomicU16>,
    /// As the configuration has them.
    pub(super) written: Vec<u16>,
    /// Most connections of each, from when this pool is in force.
    pub(super) caps: Vec<Option<NonZeroU32>>,
    /// For the weights as they are.
    picker: ArcSwap<Picker>,
}

/// By what a picker chooses.
#[derive(Debug, Clone, Copy)]
pub(super) struct Policy<'a> {
    pub(super) balance: Balance,
    pub(super) hash_key: &'a [u8; 16],
}

/// What is asked of a backend, less and less.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Demand {
    /// Up, and not ejected.
    Good,
    /// Up: one that real traffic found wanting is better than none.
    Up,
    /// Whatever checks say.
    Any,
}

/// One look for a backend.
#[derive(Debug, Clone, Copy)]
pub(super) struct Look<'a> {
    pub(super) request: &'a Request,
    /// Those that failed this client already.
    pub(super) tried: &'a [Id],
    pub(super) demand: Demand,
    pub(super) now: Moment,
    pub(super) slow_start: Duration,
}

impl Tier {
    /// `weights` may differ from what is `written`.
    pub(super) fn new(
        backends: Vec<Arc<Backend>>,
        weights: Vec<u16>,
        written: Vec<u16>,
        caps: Vec<Option<NonZeroU32>>,
        policy: Policy<'_>,
    ) -> Self {
        let weights = weights.into_iter().map(AtomicU16::new).collect();
        let picker = ArcSwap::from_pointee(Picker::build(policy.balance, &[], policy.hash_key));
        let tier = Self { backends, weights, written, caps, picker };
        tier.weigh(policy);
        tier
    }

    /// Every backend with its weight.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Arc<Backend>, u16)> {
        self.backends.iter().zip(self.weights.iter().map(|weight| weight.load(Ordering::Relaxed)))
    }

    /// Every backend with its weight and the one that the configuration has for it.
    pub(super) fn shares(&self) -> impl Iterator<Item = (&Arc<Backend>, u16, u16)> {
        self.members().zip(&self.written).map(|((backend, weight), written)| (backend, weight, *written))
    }

    /// Gives a backend another weight; nothing happens if it is none of these.
    pub(super) fn set_weight(&self, backend: &Backend, weight: u16, policy: Policy<'_>) {
        let mut members = self.backends.iter().zip(&self.weights);
        if let Some((_, own)) = members.find(|(own, _)| own.id == backend.id) {
            own.store(weight, Ordering::Relaxed);
            self.weigh(policy);
        }
    }

    fn weigh(&self, Policy { balance, hash_key }: Policy<'_>) {
        let members = self.members().map(|(backend, weight)| Member { name: &backend.name, weight });
        self.picker.store(Arc::new(Picker::build(balance, &members.collect::<Vec<_>>(), hash_key)));
    }

    /// Those that take new connections when they are well.
    pub(super) fn takers(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.members().filter(|(backend, weight)| *weight > 0 && !backend.is_draining()).map(|(backend, _)| backend)
    }

    pub(super) fn has(&self, backend: &Backend) -> bool {
        self.backends.iter().any(|own| own.id == backend.id)
    }

    pub(super) fn pick(&self, look: &Look<'_>, queue: Option<&Arc<Queue>>) -> Pick {
        loop {
            let Some(backend) = self.choose(look) else {
                let full = self.members().any(|(b, weight)| b.cap() > 0 && weight > 0 && look.allows(b));
                return if full { Pick::Full } else { Pick::Nothing };
            };
            // Without a lease, somebody took its last place meanwhile.
            let Some(lease) = Lease::on(backend, queue) else { continue };
            // If it went down after the look and before the lease, the lease does not know and nobody would end what is
            // dialled now (traps B8). After the lease, the lease knows.
            if look.allows(backend) {
                return Pick::Lease(lease);
            }
            lease.give_up();
        }
    }

    /// By the policy; one in slow start that is not welcome now is still better than none.
    fn choose(&self, look: &Look<'_>) -> Option<&Arc<Backend>> {
        let at = |index: usize| self.backends.get(index);
        let picker = self.picker.load();
        let load = |index| at(index).map_or(u32::MAX, |backend| backend.live());
        let possible = |index| at(index).is_some_and(|backend| look.allows(backend) && backend.has_room());
        let welcome = |index| {
            let warmth = at(index).map_or(u32::MAX, |backend| backend.warmth(look.now, look.slow_start));
            warmth == u32::MAX || picker.welcomes(look.request, index, warmth)
        };
        let eligible = |index| possible(index) && welcome(index);
        let index = picker.pick(look.request, load, eligible);
        index.or_else(|| picker.pick(look.request, load, possible)).and_then(at)
    }
}

impl Look<'_> {
    /// Whether this backend may be picked when it has room.
    fn allows(&self, backend: &Backend) -> bool {
        let health = self.demand == Demand::Any || backend.health() == Health::Up;
        let ejected = self.demand == Demand::Good && backend.is_ejected(self.now);
        health && !ejected && !backend.is_draining() && !self.tried.contains(&backend.id)
    }
}
