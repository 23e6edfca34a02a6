//! What an operator sees of bans and changes in them.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    extract::{Request, State as Shared},
    http::StatusCode,
    response::Response,
    routing::{get, post},
};
use jiff::Timestamp;
use tracing::info;

use super::{
    answers::{Ban, BanList, Banned, Unbanned, Which, WhoToBan, WhoToUnban},
    api::{answer, body, peer},
    control::{Control, Refused, rfc3339},
};
use crate::{
    bans::LONGEST_REASON,
    cidr::Cidr,
    sys::clock,
    warden::{saved, unix_seconds},
};

/// Networks that a line of the log names; the others are counted.
const TOLD: usize = 10;

pub(super) fn routes() -> Router<Arc<Control>> {
    Router::new().route("/bans", get(bans)).route("/ban", post(ban)).route("/unban", post(unban))
}

async fn bans(Shared(control): Shared<Arc<Control>>) -> Response {
    answer(StatusCode::OK, &control.ban_list())
}

async fn ban(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let who: WhoToBan = body(request).await?;
    let banned = control.ban(&who).await?;
    let (networks, ended, until) = (told(&banned.networks), banned.ended, banned.until.as_deref());
    info!(uid = peer.uid, pid = peer.pid, networks, until, reason = who.reason, ended, "operator: banned");
    Ok(answer(StatusCode::OK, &banned))
}

async fn unban(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let unbanned = control.unban(&body(request).await?).await?;
    let networks = told(&unbanned.networks);
    info!(uid = peer.uid, pid = peer.pid, networks, "operator: ban ended");
    Ok(answer(StatusCode::OK, &unbanned))
}

impl Control {
    fn ban_list(&self) -> BanList {
        let (now, unix) = (clock::coarse(), unix_seconds());
        let bans = self.warden.bans().list(now).into_iter().map(|(network, ban)| {
            let left = ban.left(now);
            let saved = saved(network, ban, now, unix);
            Ban {
                network: network.to_string(),
                kind: saved.kind,
                reason: saved.reason,
                since: date(saved.since),
                until: saved.until.map(date),
                seconds_left: left.map(|left| left.as_secs_f64()),
            }
        });
        BanList { bans: bans.collect() }
    }

    async fn ban(&self, who: &WhoToBan) -> Result<Banned, Refused> {
        let WhoToBan { networks, seconds, reason, force, kill } = who;
        let networks = read(networks)?;
        let duration = seconds.map(Duration::try_from_secs_f64).transpose();
        let duration = duration.map_err(|_| Refused::Invalid("that is no time for a ban".to_owned()))?;
        if reason.len() > LONGEST_REASON {
            return Err(Refused::Invalid(format!("a reason has at most {LONGEST_REASON} bytes")));
        }
        if let Some(objection) = networks.iter().find_map(|network| self.warden.objection(*network)).filter(|_| !force)
        {
            return Err(Refused::Kept(format!("{objection}: `--force` bans it all the same")));
        }
        self.may_change_bans()?;
        let banned = self.warden.ban(&networks, duration, reason);
        let no_room = networks.len() - banned.len();
        let until = duration.map(|duration| date(unix_seconds().saturating_add_unsigned(duration.as_secs())));
        let mut ended = 0;
        for network in banned.iter().filter(|_| *kill) {
            ended += self.kill(&Which { client: Some(network.to_string()), ..Which::default() }).await?;
        }
        let not_saved = self.warden.save().await.err();
        let networks = banned.iter().map(ToString::to_string).collect();
        Ok(Banned { networks, until, ended, no_room, is_kept: self.warden.keeps(), not_saved })
    }

    async fn unban(&self, who: &WhoToUnban) -> Result<Unbanned, Refused> {
        let now = clock::coarse();
        let bans = self.warden.bans();
        let banned: Vec<_> = bans.list(now).into_iter().map(|(network, _)| network).collect();
        let networks = if who.all { banned.clone() } else { read(&who.networks)? };
        if let Some(unknown) = networks.iter().find(|network| banned.binary_search(network).is_err()) {
            let around = bans.around(*unknown, now).map(|around| format!("; {around} around it is"));
            return Err(Refused::Unknown(format!("{unknown} is not banned{}", around.unwrap_or_default())));
        }
        self.may_change_bans()?;
        let ended = bans.remove(&networks, now);
        let not_saved = self.warden.save().await.err();
        // Who may come again is not kept out by the kernel any more when this returns; new bans follow by themselves.
        self.offload.follow_bans().await;
        Ok(Unbanned { networks: ended.iter().map(ToString::to_string).collect(), not_saved })
    }

    /// What is banned while a new process gets ready would be unknown to it.
    fn may_change_bans(&self) -> Result<(), Refused> {
        let is_upgrading = self.upgrading.available_permits() == 0;
        if is_upgrading {
            Err(Refused::Kept("an upgrade is under way: ask the new process".to_owned()))
        } else {
            Ok(())
        }
    }
}

fn read(networks: &[String]) -> Result<Vec<Cidr>, Refused> {
    if networks.is_empty() {
        return Err(Refused::Invalid("which networks?".to_owned()));
    }
    let read = |text: &String| {
        text.parse().map_err(|error| Refused::Invalid(format!("`{text}` is no address and no network: {error}")))
    };
    networks.iter().map(read).collect()
}

fn told(networks: &[String]) -> String {
    let more = networks.len().saturating_sub(TOLD);
    let told = networks.get(..TOLD).unwrap_or(networks).join(" ");
    if more > 0 { format!("{told} and {more} more") } else { told }
}

fn date(seconds: i64) -> String {
    Timestamp::from_second(seconds).map_or_else(|_| format!("{seconds} s"), rfc3339)
}
