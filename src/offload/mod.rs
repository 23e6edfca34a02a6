//! The firewall in the kernel: what user space would deny is denied by nftables, before a connection is made.
//!
//! User space stays the one that decides. It judges whoever comes through, so that nothing depends on what is done here: when
//! it fails, everybody is denied who was denied before. What would be wrong is the opposite, a client that may come and is
//! kept out by rules of yesterday. So they are replaced as soon as there are new ones, and taken away where that fails.

mod banned;
mod nft;
mod plan;
mod script;
#[cfg(test)]
mod tests;

use std::{
    collections::HashMap,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::Mutex,
    time::{self, MissedTickBehavior},
};
use tracing::{debug, error, info, warn};

use self::{
    banned::Banned,
    plan::{MOST, Plan},
    script::{Inventory, Script},
};
use crate::{
    bans::Bans,
    config::BAN,
    metrics::{OffloadCells, PerWorker, Registry},
    running::Live,
    sys::clock,
};

/// How often the kernel is asked how many packets it has denied.
const READING: Duration = Duration::from_secs(5);

/// Between two changes of who is banned: so long at least, and so many times as long as the last one took.
const PAUSE: Duration = Duration::from_secs(1);
const PAUSES: u32 = 10;

/// Between two tries to do what was refused.
const RETRY: Duration = Duration::from_mins(1);

/// What this process has in the packet filter.
#[derive(Debug)]
pub struct Offload {
    registry: Arc<Registry>,
    state: Mutex<State>,
}

#[derive(Debug, Default)]
struct State {
    /// What there should be.
    wanted: Option<Arc<Plan>>,
    /// What there is.
    applied: Option<Arc<Plan>>,
    /// Everyone who is banned.
    bans: Arc<Bans>,
    /// Who is banned there.
    banned: Option<Summary>,
    /// A table of ours, of this process or of the one before: what it counts is counted here.
    table: Option<String>,
    refused: Option<Refusal>,
    /// Another process has the table now.
    is_handed_over: bool,
    /// Kept, so that their series stay.
    cells: HashMap<String, Arc<PerWorker<OffloadCells>>>,
}

#[derive(Debug)]
struct Refusal {
    at: Instant,
    reason: String,
}

/// What was said of [`Banned`].
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Summary {
    change: u64,
    ranges: usize,
    left_out: usize,
}

/// Packets by rule.
type Counts = Vec<(String, u64)>;

/// Why it is not as it should be.
#[derive(Debug)]
enum Failure {
    /// Nothing of ours is in the kernel.
    Refused(String),
    /// What was there before still is.
    Stale(String),
}

impl Offload {
    /// `inherited` is the table of the process before this one.
    pub fn new(registry: &Arc<Registry>, inherited: Option<String>) -> Self {
        Self { registry: Arc::clone(registry), state: Mutex::new(State { table: inherited, ..State::default() }) }
    }

    /// Sees to it that the kernel denies what the configuration denies that runs. Returns when that is so, or cannot be.
    pub async fn follow(&self, live: &Live) {
        let mut state = self.state.lock().await;
        // Looked up under the lock: who comes later never has an older one.
        let running = live.running();
        state.bans = Arc::clone(&running.site.ledger.bans);
        let plan = blocking(move || Plan::of(&running)).await.flatten();
        state.wanted = plan.map(Arc::new);
        if state.wanted != state.applied || (state.wanted.is_none() && state.table.is_some()) {
            self.apply(&mut state).await;
        } else {
            self.ban(&mut state).await;
        }
    }

    /// Sees to it that the kernel denies who is banned, and nobody whose ban has been ended. Returns when that is so, or
    /// cannot be.
    pub async fn follow_bans(&self) {
        self.ban(&mut *self.state.lock().await).await;
    }

    /// Reads what is counted and tries again what was refused, without end.
    pub async fn watch(self: Arc<Self>, live: Arc<Live>) {
        // Before the first look, so that nothing comes in between.
        let mut changes = live.running().site.ledger.bans.changes();
        self.follow(&live).await;
        let mut readings = time::interval(READING);
        readings.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let (mut is_behind, mut next) = (false, time::Instant::now());
        loop {
            tokio::select! {
                _ = readings.tick() => self.look().await,
                Ok(()) = changes.changed(), if !is_behind => is_behind = true,
                () = time::sleep_until(next), if is_behind => {
                    // What changes from here on is told again.
                    changes.borrow_and_update();
                    is_behind = false;
                    let begin = Instant::now();
                    self.follow_bans().await;
                    next = time::Instant::now() + PAUSE.max(begin.elapsed() * PAUSES);
                }
            }
        }
    }

    /// Whether everything is as it should be.
    async fn look(&self) {
        let mut state = self.state.lock().await;
        if state.is_handed_over {
            return;
        }
        if state.applied.is_some() && !self.read(&mut state).await {
            // Somebody has emptied the packet filter, as a restart of its service does.
            warn!("the kernel has lost our firewall rules: they are given to it again");
            state.applied = None;
            self.apply(&mut state).await;
        } else if state.refused.as_ref().is_some_and(|refusal| refusal.at.elapsed() >= RETRY) {
            self.apply(&mut state).await;
        }
    }

    /// Reads what is counted, for the last time before another process does, and leaves the table to that one: what is under
    /// way is waited for, and nothing is written any more.
    pub async fn hand_over(&self) {
        let mut state = self.state.lock().await;
        if state.applied.is_some() {
            self.read(&mut state).await;
        }
        state.is_handed_over = true;
    }

    /// The other process did not come to serve.
    pub async fn take_back(&self) {
        let mut state = self.state.lock().await;
        state.is_handed_over = false;
        self.ban(&mut state).await;
    }

    /// The table in the kernel, for the process that follows.
    pub async fn table(&self) -> Option<String> {
        self.state.lock().await.table.clone()
    }

    /// Takes everything away that this process has there.
    pub async fn remove(&self) {
        let mut state = self.state.lock().await;
        state.wanted = None;
        if state.table.is_some() {
            self.apply(&mut state).await;
        }
    }

    async fn apply(&self, state: &mut State) {
        let (wanted, before) = (state.wanted.clone(), state.table.clone());
        let begin = Instant::now();
        let (plan, table, bans) = (wanted.clone(), before.clone(), Arc::clone(&state.bans));
        let done = blocking(move || {
            // Now, and not when it was first tried: bans end meanwhile.
            let banned = plan.is_some().then(|| Banned::of(&bans, clock::coarse()));
            let plan = plan.as_deref().zip(banned.as_ref());
            replace(plan, table.as_deref()).map(|counts| (counts, banned.as_ref().map(Summary::of)))
        });
        let done = done.await;
        let done = done.unwrap_or_else(|| Err(Failure::Stale("a bug of ours".to_owned())));
        match done {
            Ok((counts, banned)) => {
                // What a killed process has left there is no business of this one.
                state.count(&self.registry, if before.is_some() { counts } else { Vec::new() });
                state.table = wanted.as_ref().map(|plan| plan.table.clone());
                state.note_banned(banned);
                tell(wanted.as_deref(), banned, begin.elapsed());
                (state.applied, state.refused) = (wanted, None);
                state.keep_cells(&self.registry);
            }
            Err(failure) => state.refuse(failure),
        }
        self.registry.set_offload_up(state.applied.is_some() && state.refused.is_none());
    }

    /// Changes who is banned, if that is not what the kernel knows.
    async fn ban(&self, state: &mut State) {
        if state.is_handed_over {
            return;
        }
        let Some(plan) = state.applied.clone() else {
            // A table that could not be changed may keep somebody out.
            if state.refused.is_some() && state.table.is_some() {
                self.apply(state).await;
            }
            return;
        };
        let bans = Arc::clone(&state.bans);
        if state.banned.is_some_and(|banned| banned.change == *bans.changes().borrow()) {
            return;
        }
        let done = blocking(move || {
            let banned = Banned::of(&bans, clock::coarse());
            let there = inventory(&plan.table)?;
            nft::carry_out(&Script::to_ban(&plan, &banned, &there))?;
            Ok::<_, String>(Summary::of(&banned))
        });
        if let Some(Ok(banned)) = done.await {
            debug!(ranges = banned.ranges, "bans are in the kernel");
            state.note_banned(Some(banned));
        } else {
            // Everything anew, or nothing: nobody is kept out by a ban of yesterday.
            state.applied = None;
            self.apply(state).await;
        }
    }

    /// False: there is nothing to read.
    async fn read(&self, state: &mut State) -> bool {
        let Some(table) = state.table.clone() else { return false };
        match blocking(move || counts_of(&table)).await {
            Some(Ok(counts)) => {
                // That of the bans is always there.
                let is_there = !counts.is_empty();
                state.count(&self.registry, counts);
                is_there
            }
            _ => false,
        }
    }
}

impl State {
    fn count(&mut self, registry: &Registry, counts: Counts) {
        for (rule, packets) in counts.into_iter().filter(|(_, packets)| *packets > 0) {
            let cells = self.cells.entry(rule).or_insert_with_key(|rule| registry.offloaded(rule));
            cells.at(0).packets.add(packets);
        }
    }

    /// Rules that are gone need no series any more.
    fn keep_cells(&mut self, registry: &Registry) {
        let rules = self.applied.iter().flat_map(|plan| plan.rules().chain([BAN]));
        self.cells = rules.map(|rule| (rule.to_owned(), registry.offloaded(rule))).collect();
    }

    /// That some find no room is told when it begins.
    fn note_banned(&mut self, banned: Option<Summary>) {
        let (before, now) = (self.banned, banned.map_or(0, |banned| banned.left_out));
        if now > 0 && before.is_none_or(|before| before.left_out == 0) {
            let most = banned::MOST;
            warn!(ranges = now, most, "more is banned than the kernel is given: user space alone denies the others");
        }
        self.banned = banned;
    }

    /// Each reason is told once.
    fn refuse(&mut self, failure: Failure) {
        let at = Instant::now();
        let (reason, is_stale) = match failure {
            Failure::Refused(reason) => {
                (self.applied, self.table) = (None, None);
                (reason, false)
            }
            Failure::Stale(reason) => (reason, true),
        };
        if self.refused.as_ref().is_none_or(|before| before.reason != reason) {
            if is_stale {
                let table = self.table.as_deref();
                error!(reason, table, "the kernel may deny whom the firewall allows now: nft delete table inet TABLE");
            } else {
                warn!(reason, "firewall rules are not in the kernel: user space alone denies");
            }
        }
        self.refused = Some(Refusal { at, reason });
    }
}

impl Summary {
    fn of(banned: &Banned) -> Self {
        Self { change: banned.change, ranges: banned.ranges(), left_out: banned.left_out }
    }
}

fn tell(plan: Option<&Plan>, banned: Option<Summary>, took: Duration) {
    let Some(plan) = plan else {
        info!("firewall rules are not in the kernel any more");
        return;
    };
    let (table, ranges, seconds) = (&plan.table, plan.ranges(), took.as_secs_f64());
    let banned = banned.map(|banned| banned.ranges);
    info!(table, ranges, banned, seconds, "firewall rules are in the kernel");
    if !plan.left_out.is_empty() {
        let rules = plan.left_out.join(", ");
        warn!(rules, most = MOST, "these rules have too many networks for the kernel: user space alone denies by them");
    }
}

/// Puts a plan, or nothing, in the place of a table of ours. Gives what was counted there up to now.
fn replace(plan: Option<(&Plan, &Banned)>, table: Option<&str>) -> Result<Counts, Failure> {
    match try_replace(plan, table) {
        Ok(counts) => Ok(counts),
        Err(reason) => match table.map(|table| nft::carry_out(&Script::to_remove(table))) {
            None | Some(Ok(())) if plan.is_some() => Err(Failure::Refused(reason)),
            Some(Ok(())) => Ok(Vec::new()),
            _ => Err(Failure::Stale(reason)),
        },
    }
}

fn try_replace(plan: Option<(&Plan, &Banned)>, table: Option<&str>) -> Result<Counts, String> {
    let there = script::read_tables(&nft::ask(&["-j", "list", "tables", "inet"])?)?;
    let own = plan.map(|(plan, _)| plan.table.as_str());
    let before = table.filter(|table| there.contains(*table));
    let counts = before.or(own.filter(|own| there.contains(*own))).map(counts_of).transpose()?.unwrap_or_default();
    let gone = before.filter(|before| Some(*before) != own).map(Script::to_remove);
    let script = match plan {
        None => gone,
        Some((plan, banned)) => {
            let is_there = there.contains(&plan.table);
            let inventory = is_there.then(|| inventory(&plan.table)).transpose()?.unwrap_or_default();
            let script = Script::to_replace(plan, banned, &inventory);
            Some(match gone {
                Some(gone) => script.and(gone),
                None => script,
            })
        }
    };
    script.map(|script| nft::carry_out(&script)).transpose()?;
    Ok(counts)
}

/// What is in a table of ours.
fn inventory(table: &str) -> Result<Inventory, String> {
    script::read_inventory(&nft::ask(&["-j", "-t", "list", "table", "inet", table])?)
}

/// What was counted since the last time, whoever has asked then.
fn counts_of(table: &str) -> Result<Counts, String> {
    script::read_counts(&nft::ask(&["-j", "reset", "counters", "table", "inet", table])?)
}

/// On a thread where it may wait. `None`: a panic, which was told.
async fn blocking<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> Option<T> {
    tokio::task::spawn_blocking(work).await.ok()
}
