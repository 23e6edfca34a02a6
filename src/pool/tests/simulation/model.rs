//! The rules once more, as plainly as they can be said.

use super::*;

/// A client that looks for a backend, as the rules see it.
#[derive(Clone)]
pub(super) struct Model {
    /// The pool that was there when it came.
    pub(super) pool: Arc<Pool>,
    /// When it came.
    pub(super) number: u64,
    pub(super) tried: Vec<Id>,
    /// Attempts left among the active ones and among the backups.
    left: [u32; 2],
}

/// What the rules allow.
#[derive(Debug, PartialEq, Eq)]
pub(super) enum Expected {
    /// One of these.
    Any(Vec<Id>),
    Full,
    Nothing,
}

/// What checks have answered, the last one last.
#[derive(Debug, Clone, Default)]
pub(super) struct Answers(Vec<bool>);

/// What is asked of a backend.
type Ground<'a> = &'a dyn Fn(&Backend) -> bool;

fn is_up(backend: &Backend) -> bool {
    backend.health() == Health::Up
}

/// The backends of these tiers that take traffic.
fn takers<'a>(tiers: &[&'a Tier]) -> Vec<&'a Backend> {
    let members = tiers.iter().flat_map(|tier| tier.members());
    members.filter(|(backend, weight)| *weight > 0 && !backend.is_draining()).map(|(backend, _)| &**backend).collect()
}

/// How the pool is to behave, and to say that it does.
pub(super) fn mode(pool: &Pool) -> Mode {
    let (active, all) = (takers(&[&pool.active]), takers(&[&pool.active, &pool.backup]));
    let up = active.iter().filter(|backend| is_up(backend)).count();
    if (1..active.len()).contains(&up) && up * 100 < usize::from(pool.rules.panic_threshold) * active.len() {
        Mode::Panic
    } else if all.iter().any(|backend| is_up(backend)) {
        Mode::Checked
    } else if all.is_empty() || pool.rules.on_all_down == OnAllDown::Close {
        Mode::Closed
    } else {
        Mode::Open
    }
}

impl Model {
    pub(super) fn new(pool: &Arc<Pool>, number: u64) -> Self {
        Self { pool: Arc::clone(pool), number, tried: Vec::new(), left: [pool.retries + 1; 2] }
    }

    /// The first group of which any is left to try decides, whether anybody in it has room or not.
    pub(super) fn group(&self, now: Moment) -> Vec<&Backend> {
        let pool = &*self.pool;
        let mode = mode(pool);
        let good = |b: &Backend| is_up(b) && !b.is_ejected(now);
        let grounds: [(bool, Ground<'_>); 3] = [
            (mode != Mode::Panic, &good),
            (mode != Mode::Panic, &is_up),
            (mode == Mode::Panic || mode == Mode::Open, &|_| true),
        ];
        for (_, fits) in grounds.into_iter().filter(|(asked, _)| *asked) {
            for (tier, left) in [&pool.active, &pool.backup].into_iter().zip(self.left) {
                let mut group = takers(&[tier]);
                group.retain(|b| fits(b) && !self.tried.contains(&b.id));
                if left > 0 && !group.is_empty() {
                    return group;
                }
            }
        }
        Vec::new()
    }

    pub(super) fn expected(&self, now: Moment) -> Expected {
        let group = self.group(now);
        let free: Vec<_> = group.iter().filter(|b| b.cap() == 0 || b.live() < b.cap()).map(|b| b.id).collect();
        match (group.is_empty(), free.is_empty()) {
            (true, _) => Expected::Nothing,
            (false, true) => Expected::Full,
            (false, false) => Expected::Any(free),
        }
    }

    pub(super) fn took(&mut self, lease: &Lease) {
        let tier = usize::from(self.pool.backup.has(lease.backend()));
        self.left[tier] -= 1;
    }
}

impl Answers {
    /// As if the last one had led to this state.
    pub(super) fn known(health: Health) -> Self {
        Self(vec![health == Health::Up])
    }

    /// Notes one more, and says what the backend is then: the first answer decides, and then only so many in a row.
    pub(super) fn add(&mut self, good: bool, before: Health, check: &config::Check) -> Health {
        self.0.push(good);
        let needed = if good { check.rise } else { check.fall };
        let in_a_row = self.0.iter().rev().take_while(|other| **other == good).count();
        if self.0.len() > 1 && in_a_row < usize::try_from(needed).unwrap() {
            return before;
        }
        if good { Health::Up } else { Health::Down }
    }
}
