//! The verdict about an address: is it banned, what does the firewall say, and has its source a place left? In one place,
//! because it is asked about the peer, and again about the client that a peer speaks for.

use std::{net::IpAddr, sync::Arc};

use crate::{
    bans::Offence,
    firewall::Action,
    frontend::Frontend,
    limits::{Answer, SourcePlace},
    sys::clock,
};

/// What becomes of a client.
#[derive(Debug)]
pub enum Admission {
    /// By this rule. The place is given back when it is dropped; none is taken where no limit is for the client.
    Welcome { rule: Arc<str>, place: Option<SourcePlace> },
    /// By this rule; `ban` is one.
    Denied { rule: Arc<str> },
    /// By this rule it might have come in.
    Limited { rule: Arc<str> },
}

impl Admission {
    /// Judges an address by the policy of a listener, and counts the verdict as `worker`. A ban is a rule that stands before
    /// all others.
    pub fn of(client: IpAddr, frontend: &Frontend, worker: usize) -> Self {
        if frontend.bans.contains(client, clock::coarse) {
            return Self::Denied { rule: frontend.firewall.count_ban(worker) };
        }
        let (action, rule) = frontend.firewall.judge(client, worker);
        if action == Action::Deny {
            return Self::Denied { rule };
        }
        let Some(limits) = &frontend.sources else { return Self::Welcome { rule, place: None } };
        let cells = frontend.cells.at(worker);
        match limits.take(client, clock::fine()) {
            Answer::Place { place, evicted } => {
                cells.limits_evictions.add(evicted.into());
                Self::Welcome { rule, place: Some(place) }
            }
            Answer::Exempt => Self::Welcome { rule, place: None },
            Answer::Uncounted => {
                cells.limits_uncounted.add(1);
                Self::Welcome { rule, place: None }
            }
            Answer::Limited(reason) => {
                cells.limited.at(reason).add(1);
                if let Some(watch) = &frontend.watch {
                    watch.note(client, Offence::Limited);
                }
                Self::Limited { rule }
            }
        }
    }
}
