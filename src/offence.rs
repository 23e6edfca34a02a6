//! What sources do wrong, and who is told when it is too much. Noting it costs what a look at the limits costs; whether
//! somebody is banned is decided elsewhere ([`crate::warden`]).

use std::{net::IpAddr, num::NonZeroU32, sync::Arc, time::Duration};

use tokio::sync::mpsc;

use crate::{
    bans::{Offence, Strikes},
    cidr::Cidr,
    config,
    limits::Exempt,
    sys::clock,
};

/// Sources that wait to be banned. One that finds no place comes again with its next offences.
const WAITING: usize = 4_096;

/// A source that has offended too often.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Culprit {
    pub network: Cidr,
    pub reason: String,
    /// How long it is to be banned.
    pub duration: Duration,
}

/// Where culprits come out.
pub type Culprits = mpsc::Receiver<Culprit>;

/// Where they are told.
pub type Report = mpsc::Sender<Culprit>;

/// What is noted of the clients of one listener.
#[derive(Debug)]
pub struct Watch {
    config: config::AutoBan,
    exempt: Exempt,
    strikes: Arc<Strikes>,
    report: Report,
}

pub fn line() -> (Report, Culprits) {
    mpsc::channel(WAITING)
}

impl Watch {
    /// Nothing is noted of those who are `exempt`.
    pub fn new(config: &config::AutoBan, exempt: Exempt, strikes: Arc<Strikes>, report: Report) -> Self {
        Self { config: config.clone(), exempt, strikes, report }
    }

    /// Notes an offence of a client.
    pub fn note(&self, client: IpAddr, offence: Offence) {
        let most = match offence {
            Offence::Limited => self.config.limited,
            Offence::Handshake => self.config.handshake_failures,
        };
        let Some(most) = most.filter(|_| !self.exempt.contains(client)) else { return };
        let Some(network) = self.strikes.note(client, offence, &self.config, clock::coarse()) else { return };
        let reason = format!("{} {} within {:?}", NonZeroU32::get(most), offence.as_str(), self.config.within);
        let _ = self.report.try_send(Culprit { network, reason, duration: self.config.duration });
    }
}
