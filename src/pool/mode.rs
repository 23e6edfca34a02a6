//! How a pool treats its clients, after what checks found and what the operator wants. One reading for who picks and for
//! the log.

use std::sync::{Arc, PoisonError};

use super::Pool;
use crate::{
    backend::{Backend, Health},
    config::OnAllDown,
    moment::Moment,
};

/// Where connections go.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum Mode {
    /// To backends that are up.
    #[default]
    Checked,
    /// To all, because so few are up that checks are more likely wrong than they are.
    Panic,
    /// To all, because none is up.
    Open,
    /// Nowhere, because none is up.
    Closed,
}

impl Mode {
    /// For the log.
    #[must_use]
    pub const fn message(self) -> &'static str {
        match self {
            Self::Checked => "connections go to the backends that are up again",
            Self::Panic => "fewer backends are up than panic_threshold: connections go to all of them, up or down",
            Self::Open => "no backend is up: connections go to all of them as if they were up",
            Self::Closed => "no backend is up: connections are refused",
        }
    }
}

impl Pool {
    /// What a check found. When that changes where connections go, it is to be told: each change once.
    pub fn set_health(&self, backend: &Backend, health: Health, now: Moment) -> Option<Mode> {
        backend.set_health(health, now);
        self.serve_waiting(now);
        self.news()
    }

    /// What the operator wants. When that changes where connections go, it is to be told.
    pub fn set_draining(&self, backend: &Backend, draining: bool, now: Moment) -> Option<Mode> {
        backend.set_draining(draining);
        self.serve_waiting(now);
        self.news()
    }

    /// Where connections go now. Backends that are draining or have no weight do not count: they take none in any case.
    pub fn mode(&self) -> Mode {
        if self.panics() {
            return Mode::Panic;
        }
        let mut takers = self.takers().peekable();
        let is_open = self.rules.on_all_down == OnAllDown::Open && takers.peek().is_some();
        if takers.any(|backend| backend.health() == Health::Up) {
            Mode::Checked
        } else if is_open {
            Mode::Open
        } else {
            Mode::Closed
        }
    }

    /// Whether only some of the active backends are up, and fewer than it takes to believe the checks. When none is, the
    /// backups come as ever.
    pub(super) fn panics(&self) -> bool {
        let threshold = usize::from(self.rules.panic_threshold);
        if threshold == 0 {
            return false;
        }
        let up = self.active.takers().filter(|backend| backend.health() == Health::Up).count();
        up > 0 && up * 100 < threshold * self.active.takers().count()
    }

    /// The mode that was last told.
    pub(super) fn told(&self) -> Mode {
        *self.told.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The mode, if it is another than the one last told. While the first verdict of a backend is still to come, nothing is.
    pub(super) fn news(&self) -> Option<Mode> {
        // Held over the look, so that two who change something do not tell what is over already.
        let mut told = self.told.lock().unwrap_or_else(PoisonError::into_inner);
        if self.takers().any(|backend| backend.health() == Health::Unknown) {
            return None;
        }
        let mode = self.mode();
        (std::mem::replace(&mut *told, mode) != mode).then_some(mode)
    }

    fn takers(&self) -> impl Iterator<Item = &Arc<Backend>> {
        self.active.takers().chain(self.backup.takers())
    }
}
