//! Keeps the bans: makes those that are ordered or earned, and saves them where the configuration says.

use std::{
    fmt,
    path::{Path, PathBuf},
    sync::Arc,
    time::{Duration, SystemTime},
};

use tokio::{
    sync::Mutex,
    time::{Instant, sleep_until},
};
use tracing::{info, warn};

use crate::{
    bans::{Ban, Bans, SavedBan, write_saved},
    cidr::Cidr,
    config::{self, Config, ListenerLimits},
    metrics::{BanKind, Registry},
    moment::Moment,
    offence::{Culprit, Culprits},
    running::Live,
    sys::{clock, file::write_whole},
};

/// Culprits that are banned at once.
const BATCH: usize = 1_024;

/// The file is not written more often for automatic bans.
const PAUSE: Duration = Duration::from_secs(1);

/// Networks larger than these are not banned without insisting: two of them are most of what there is.
const WIDEST_V4: u8 = 8;
const WIDEST_V6: u8 = 16;

/// The keeper of the bans of the process.
pub struct Warden {
    live: Arc<Live>,
    registry: Arc<Registry>,
    /// Held while the file is written, so that what is written last is the newest.
    writing: Mutex<()>,
}

impl Warden {
    pub fn new(live: &Arc<Live>, registry: &Arc<Registry>) -> Self {
        Self { live: Arc::clone(live), registry: Arc::clone(registry), writing: Mutex::new(()) }
    }

    /// Everyone who is banned.
    pub fn bans(&self) -> Arc<Bans> {
        Arc::clone(&self.live.running().site.ledger.bans)
    }

    /// Bans networks for an operator, and says which were; the others found no room. They are in force when this returns.
    pub fn ban(&self, networks: &[Cidr], duration: Option<Duration>, reason: &str) -> Vec<Cidr> {
        let (now, since) = (clock::coarse(), unix_seconds());
        let end = duration.map(|duration| now.after(duration));
        let ban = |network: &Cidr| (*network, Ban { kind: BanKind::Manual, reason: reason.to_owned(), since, end });
        let banned = self.bans().add(networks.iter().map(ban), now);
        self.count(BanKind::Manual, banned.len());
        banned
    }

    /// Why a network should not be banned by somebody who may have slipped.
    pub fn objection(&self, network: Cidr) -> Option<String> {
        let widest = if network.network().is_ipv4() { WIDEST_V4 } else { WIDEST_V6 };
        if network.prefix_len() < widest {
            return Some(format!("{network} is a large part of the internet (shorter than /{widest})"));
        }
        let running = self.live.running();
        let exempt = exempt(&running.loaded.config);
        let meets = |exempt: &Cidr| exempt.covers(&network) || network.covers(exempt);
        exempt.into_iter().find(meets).map(|exempt| format!("{network} meets {exempt}, which is `exempt`"))
    }

    /// Bans those who have earned it, for as long as the process runs.
    pub async fn watch(&self, mut culprits: Culprits) {
        let (mut batch, mut next, mut is_saved) = (Vec::new(), Instant::now(), true);
        loop {
            tokio::select! {
                count = culprits.recv_many(&mut batch, BATCH) => {
                    if count == 0 {
                        return;
                    }
                    is_saved &= self.ban_culprits(&mut batch) == 0;
                }
                () = sleep_until(next), if !is_saved => {
                    if let Err(error) = self.save().await {
                        warn!(error, "bans are not saved");
                    }
                    (next, is_saved) = (Instant::now() + PAUSE, true);
                }
            }
        }
    }

    fn ban_culprits(&self, batch: &mut Vec<Culprit>) -> usize {
        let (now, since) = (clock::coarse(), unix_seconds());
        let bans = self.bans();
        let ban = |Culprit { network, reason, duration }: &Culprit| {
            let end = Some(now.after(*duration));
            (*network, Ban { kind: BanKind::Automatic, reason: reason.clone(), since, end })
        };
        let banned = bans.add(batch.iter().map(ban), now);
        self.count(BanKind::Automatic, banned.len());
        for Culprit { network, reason, duration } in batch.drain(..) {
            let seconds = duration.as_secs_f64();
            if banned.contains(&network) {
                info!(%network, reason, seconds, "banned");
            } else {
                warn!(%network, reason, "not banned: an operator has banned it, or there is no room");
            }
        }
        banned.len()
    }

    /// Writes the bans down, if there is a place for it.
    pub async fn save(&self) -> Result<(), String> {
        let _alone = self.writing.lock().await;
        let Some(path) = self.file() else { return Ok(()) };
        let (now, unix) = (clock::coarse(), unix_seconds());
        let bans = self.bans();
        let write = move || {
            let bans = bans.list(now).into_iter().map(|(network, ban)| saved(network, ban, now, unix));
            write_whole(&path, write_saved(&bans.collect::<Vec<_>>()).as_bytes())
                .map_err(|error| format!("cannot write `{}`: {error}", path.display()))
        };
        tokio::task::spawn_blocking(write).await.map_err(|error| error.to_string()).flatten()
    }

    /// What another file of bans held, when a configuration names it: they are in force from now on, and the file is kept.
    pub async fn take_over(&self, bans: Vec<SavedBan>, had: Option<&Path>) {
        if self.file().as_deref() == had {
            return;
        }
        recall(&self.bans(), bans);
        if let Err(error) = self.save().await {
            warn!(error, "bans are not saved");
        }
    }

    /// Whether bans outlive the process.
    pub fn keeps(&self) -> bool {
        self.file().is_some()
    }

    fn file(&self) -> Option<PathBuf> {
        self.live.running().loaded.config.firewall.bans_file.as_ref().map(|file| file.value.clone())
    }

    fn count(&self, kind: BanKind, bans: usize) {
        self.registry.bans().at(0).bans.at(kind).add(bans as u64);
    }
}

/// Puts bans in force that were saved. Those whose time is over are left out.
pub fn recall(bans: &Bans, saved: Vec<SavedBan>) {
    let (now, unix) = (clock::coarse(), unix_seconds());
    let in_force = saved.into_iter().filter_map(|SavedBan { network, kind, reason, since, until }| {
        let left = until.map(|until| u64::try_from(until.saturating_sub(unix)).ok().filter(|left| *left > 0));
        let end = match left {
            Some(left) => Some(now.after(Duration::from_secs(left?))),
            None => None,
        };
        Some((network, Ban { kind, reason, since, end }))
    });
    bans.add(in_force, now);
}

/// A ban by the clock on the wall.
pub fn saved(network: Cidr, ban: Ban, now: Moment, unix: i64) -> SavedBan {
    // To the next second: one that is in force is not over when it is read.
    let until = ban.left(now).map(|left| unix.saturating_add_unsigned(left.as_secs() + 1));
    SavedBan { network, kind: ban.kind, reason: ban.reason, since: ban.since, until }
}

/// Unix seconds.
pub fn unix_seconds() -> i64 {
    let since = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    i64::try_from(since.as_secs()).unwrap_or(i64::MAX)
}

/// Everyone that some limit leaves alone.
fn exempt(config: &Config) -> Vec<Cidr> {
    let own = config.listeners.iter().filter_map(|listener| match &listener.limits {
        ListenerLimits::Own(limits) => Some(limits),
        ListenerLimits::Shared | ListenerLimits::Off => None,
    });
    let all = own.chain([&config.firewall.limits]);
    all.flat_map(|config::SourceLimits { exempt, .. }| exempt.iter().copied()).collect()
}

impl fmt::Debug for Warden {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Warden").finish_non_exhaustive()
    }
}
