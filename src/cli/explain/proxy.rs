//! The part of the PROXY protocol: whether who connects may bring clients.

use std::net::IpAddr;

use serde::Serialize;

use super::{
    super::Failure,
    facts::{Fact, Question, Seconds},
    firewall::{Firewall, firewall},
};
use crate::{
    config::{self, Action, Listener},
    load::Materials,
};

#[derive(Debug, Serialize)]
pub(super) struct Proxy {
    /// Who connects.
    pub(super) peer: IpAddr,
    /// The network of `from` that holds it; none: it is closed, whatever it sends.
    pub(super) trusted: Option<Fact<String>>,
    pub(super) from: Fact<Vec<String>>,
    /// For the whole header.
    pub(super) timeout: Fact<Seconds>,
    /// What the firewall says of it at accept, where it brings a client.
    pub(super) firewall: Option<Firewall>,
}

impl Proxy {
    /// Whether its client is looked at.
    pub(super) fn lets_in(&self) -> bool {
        let is_allowed = |verdict: &Firewall| verdict.action == Action::Allow.as_str();
        self.trusted.is_some() && self.firewall.as_ref().is_none_or(is_allowed)
    }
}

pub(super) fn proxy(
    question: &Question<'_>,
    listener: &Listener,
    required: &config::ProxyProtocol,
    materials: &Materials,
) -> Result<Proxy, Failure> {
    let written = question.places.key("listener").key(&listener.name).key("proxy_protocol");
    let from = written.key("from");
    let peer = question.proxied_by.unwrap_or(question.client);
    let trusted = required.from.iter().enumerate().find(|(_, network)| network.contains(peer));
    Ok(Proxy {
        peer,
        trusted: trusted.map(|(at, network)| question.fact(network.to_string(), &[from.at(at)])),
        from: question.fact(required.from.iter().map(ToString::to_string).collect(), &[from]),
        timeout: question.fact(Seconds(required.timeout), &[written.key("timeout")]),
        firewall: question.proxied_by.map(|peer| firewall(question, peer, materials)).transpose()?,
    })
}
