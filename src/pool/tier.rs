//! The backends of one role, and which of them may be picked.

use std::{num::NonZeroU32, sync::Arc, time::Duration};

use super::{Lease, Pick, queue::Queue};
use crate::{
    backend::{Backend, Health, Id},
    balance::{Picker, Request},
    moment::Moment,
};

/// Backends of one role.
#[derive(Debug)]
pub(super) struct Tier {
    pub(super) backends: Vec<Arc<Backend>>,
    /// Shares of the traffic, in the order of the backends; 0 takes no new connections.
    pub(super) weights: Vec<u16>,
    /// Most connections of each, from when this pool is in force.
    pub(super) caps: Vec<Option<NonZeroU32>>,
    pub(super) picker: Picker,
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
    /// Every backend with its weight.
    pub(super) fn members(&self) -> impl Iterator<Item = (&Arc<Backend>, u16)> {
        self.backends.iter().zip(self.weights.iter().copied())
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
        let load = |index| at(index).map_or(u32::MAX, |backend| backend.live());
        let possible = |index| at(index).is_some_and(|backend| look.allows(backend) && backend.has_room());
        let welcome = |index| {
            let warmth = at(index).map_or(u32::MAX, |backend| backend.warmth(look.now, look.slow_start));
            warmth == u32::MAX || self.picker.welcomes(look.request, index, warmth)
        };
        let eligible = |index| possible(index) && welcome(index);
        let index = self.picker.pick(look.request, load, eligible);
        index.or_else(|| self.picker.pick(look.request, load, possible)).and_then(at)
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
