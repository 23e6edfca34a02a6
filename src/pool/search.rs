//! One connection's way through a pool.

use super::{
    Mode, Pool,
    lease::Lease,
    tier::{Demand, Look},
};
use crate::{
    backend::{Backend, Id},
    balance::Request,
    moment::Moment,
};

/// One connection's search for a backend. It never tries the same one twice.
#[derive(Debug)]
pub struct Search {
    request: Request,
    /// Attempts left among the active backends and among the backups.
    left: [u32; 2],
    /// Empty, without an allocation, until a connect fails.
    tried: Vec<Id>,
}

/// What a look for a backend came to.
#[derive(Debug)]
pub enum Pick {
    Lease(Lease),
    /// Some would do, and all of them have as many connections as they may.
    Full,
    /// None is left to try.
    Nothing,
}

impl Search {
    pub(super) fn new(request: Request, attempts: u32) -> Self {
        Self { request, left: [attempts; 2], tried: Vec::new() }
    }

    /// Its place in the order of coming.
    pub fn ticket(&self) -> u64 {
        self.request.ticket
    }

    /// Whether some backend did not work out.
    pub fn has_failed(&self) -> bool {
        !self.tried.is_empty()
    }

    /// Notes that this backend did not work out.
    pub fn failed(&mut self, backend: &Backend) {
        self.tried.push(backend.id);
    }
}

impl Pool {
    /// The next backend to try: as many active ones as the retries allow, then as many backups. While others wait for
    /// room there is none to be had.
    pub fn pick(&self, search: &mut Search, now: Moment) -> Pick {
        if let Some(queue) = self.limits() {
            queue.note_time(now);
            if !queue.is_empty() {
                return Pick::Full;
            }
        }
        self.pick_past_queue(search, now)
    }

    pub(super) fn pick_past_queue(&self, search: &mut Search, now: Moment) -> Pick {
        if self.panics() {
            return self.pick_with(Demand::Any, search, now);
        }
        for demand in [Demand::Good, Demand::Up] {
            match self.pick_with(demand, search, now) {
                Pick::Nothing => {}
                found => return found,
            }
        }
        if self.mode() == Mode::Open { self.pick_with(Demand::Any, search, now) } else { Pick::Nothing }
    }

    fn pick_with(&self, demand: Demand, search: &mut Search, now: Moment) -> Pick {
        let Search { request, left, tried } = search;
        let look = Look { request, tried, demand, now, slow_start: self.rules.slow_start };
        for (tier, left) in [&self.active, &self.backup].into_iter().zip(left) {
            if *left == 0 {
                continue;
            }
            match tier.pick(&look, self.limits()) {
                Pick::Nothing => {}
                Pick::Full => return Pick::Full,
                Pick::Lease(lease) => {
                    *left -= 1;
                    return Pick::Lease(lease);
                }
            }
        }
        Pick::Nothing
    }
}
