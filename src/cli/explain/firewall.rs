//! The firewall's part: what the compiled table says, and which line of which file made it say so.

use std::net::IpAddr;

use anyhow::{Context as _, anyhow};
use serde::Serialize;

use super::{
    super::Failure,
    facts::{Fact, Place, Question},
};
use crate::{
    config::{Action, DenyAction, Networks, Offload, Rule},
    firewall::find_in_list,
    load::{LIST_LIMIT, Materials},
    sys::file::read_bounded,
};

#[derive(Debug, Serialize)]
pub(super) struct Firewall {
    /// `allow` or `deny`.
    pub(super) action: &'static str,
    /// `default` if no rule matches.
    pub(super) rule: Fact<String>,
    /// What matched; nothing where the default decides.
    pub(super) network: Option<Fact<String>>,
    /// How a denied client is sent away.
    pub(super) deny_action: Option<Fact<&'static str>>,
    /// `nftables` where the kernel denies it too.
    pub(super) offload: Option<Fact<&'static str>>,
    /// Shadow rules that matched before the decision: counted, not enforced.
    pub(super) shadows: Vec<Shadow>,
}

#[derive(Debug, Serialize)]
pub(super) struct Shadow {
    pub(super) rule: Fact<String>,
    pub(super) action: &'static str,
    pub(super) network: Fact<String>,
}

pub(super) fn firewall(question: &Question<'_>, address: IpAddr, materials: &Materials) -> Result<Firewall, Failure> {
    let config = &question.config.firewall;
    let written = question.places.key("firewall");
    let verdict = materials.table.verdict(address);
    let rule_of = |number: u16| {
        let index = *materials.rules.get(usize::from(number))?;
        Some((index, config.rules.get(index)?))
    };
    let shadows = verdict.shadows.iter().filter_map(|number| rule_of(*number)).map(|(index, rule)| {
        Ok(Shadow {
            rule: named(question, index, rule),
            action: rule.action.as_str(),
            network: network(question, address, (index, rule))?,
        })
    });
    let shadows = shadows.collect::<Result<Vec<_>, Failure>>()?;
    let deny_action = match config.deny_action {
        DenyAction::Drop => "drop",
        DenyAction::Reset => "reset",
    };
    let denied = verdict.action == Action::Deny;
    let is_offloaded = denied && shadows.is_empty() && config.offload != Offload::Off;
    let (rule, network) = match verdict.rule.and_then(rule_of) {
        Some((index, rule)) => (named(question, index, rule), Some(network(question, address, (index, rule))?)),
        None => (question.fact("default".to_owned(), &[written.key("default")]), None),
    };
    Ok(Firewall {
        action: verdict.action.as_str(),
        rule,
        network,
        deny_action: denied.then(|| question.fact(deny_action, &[written.key("deny_action")])),
        offload: is_offloaded.then(|| question.fact("nftables", &[written.key("offload")])),
        shadows,
    })
}

fn named(question: &Question<'_>, index: usize, rule: &Rule) -> Fact<String> {
    question.fact(rule.name.clone(), &[question.places.key("firewall").key("rules").at(index).key("name")])
}

/// The narrowest network of the rule that holds the address.
fn network(question: &Question<'_>, address: IpAddr, (index, rule): (usize, &Rule)) -> Result<Fact<String>, Failure> {
    let list = match &rule.networks {
        Networks::File(list) => &list.value,
        Networks::Inline(networks) => {
            let holding = networks.iter().enumerate().filter(|(_, network)| network.contains(address));
            let (at, network) = holding
                .max_by_key(|(_, network)| network.prefix_len())
                .ok_or_else(|| anyhow!("rule `{}` matched without a network: this is a bug", rule.name))?;
            let written = question.places.key("firewall").key("rules").at(index).key(rule.action.as_str()).at(at);
            return Ok(question.fact(network.to_string(), &[written]));
        }
    };
    // Where things stand in a list is not kept: it is looked for again.
    let bytes = read_bounded(list, LIST_LIMIT).with_context(|| format!("cannot use list `{}`", list.display()))?;
    let (network, line) = find_in_list(&bytes, address)
        .ok_or_else(|| anyhow!("list `{}` changed while it was read: ask again", list.display()))?;
    Ok(Fact { value: network.to_string(), at: Some(Place { file: list.display().to_string(), line }) })
}
