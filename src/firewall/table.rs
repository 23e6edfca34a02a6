//! The compiled firewall of one listener.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    Action,
    class::{Class, Classes},
    ranges::{Bits, Entry, Ranges},
};
use crate::{address::canonical_ip, cidr::Cidr};

/// Rules a table can tell apart. The configuration refuses more; [`Table::build`] does not look further.
pub const MAX_RULES: usize = u16::MAX as usize + 1;

/// One rule: an action for a set of networks.
#[derive(Debug, Clone, Copy)]
pub struct RuleSet<'a> {
    /// In any order; overlaps and duplicates are harmless.
    pub networks: &'a [Cidr],
    pub action: Action,
    /// Counted, not enforced.
    pub shadow: bool,
}

/// What the rules say about one address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Verdict<'a> {
    pub action: Action,
    /// Index of the deciding rule in the slice the table was built from; `None` is the default.
    pub rule: Option<u16>,
    /// Shadow rules that matched before the decision, in order.
    pub shadows: &'a [u16],
}

/// Addresses that are denied.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Denied {
    /// As in [`Verdict`].
    pub rule: Option<u16>,
    pub range: Range,
}

/// First and last address.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Range {
    V4(u32, u32),
    V6(u128, u128),
}

/// The first-match verdict for every address there is, found in one search. Immutable.
///
/// About 8.3 bytes per range for IPv4 and 21 for IPv6, and at most two ranges per network.
#[derive(Debug, PartialEq, Eq)]
pub struct Table {
    v4: Ranges<u32>,
    v6: Ranges<u128>,
    classes: Vec<Class>,
}

impl Table {
    /// Compiles the rules, of which the first match decides. Sorts, so it takes a second or so for millions of networks:
    /// not for a thread that serves clients.
    #[must_use]
    pub fn build(rules: &[RuleSet<'_>], default: Action) -> Self {
        let rules = rules.get(..MAX_RULES).unwrap_or(rules);
        let mut classes = Classes::new(default);
        // The family that takes more room for each first: what the second one needs comes on top (traps F6).
        let v6 = compile(rules, &mut classes, |cidr| match cidr.network() {
            IpAddr::V4(_) => None,
            IpAddr::V6(first) => Some(first.to_bits()),
        });
        let v4 = compile(rules, &mut classes, |cidr| match cidr.network() {
            IpAddr::V4(first) => Some(first.to_bits()),
            IpAddr::V6(_) => None,
        });
        Self { v4, v6, classes: classes.into_list() }
    }

    /// The verdict on a client, whatever the spelling of its address.
    #[must_use]
    #[expect(clippy::indexing_slicing, reason = "every class number in the ranges was handed out by this list")]
    pub fn verdict(&self, ip: IpAddr) -> Verdict<'_> {
        let class = match canonical_ip(ip) {
            IpAddr::V4(ip) => self.v4.class_of(ip.to_bits()),
            IpAddr::V6(ip) => self.v6.class_of(ip.to_bits()),
        };
        self.classes[class as usize].verdict()
    }

    /// Every verdict that some address of this network gets; the same one comes several times.
    pub fn verdicts_in(&self, network: &Cidr) -> impl Iterator<Item = Verdict<'_>> {
        let v4 = match (network.network(), network.last()) {
            (IpAddr::V4(first), IpAddr::V4(last)) => Some(self.v4.classes_between(first.to_bits(), last.to_bits())),
            _ => None,
        };
        let v6 = match (network.network(), network.last()) {
            (IpAddr::V6(first), IpAddr::V6(last)) => Some(self.v6.classes_between(first.to_bits(), last.to_bits())),
            _ => None,
        };
        let classes = v4.into_iter().flatten().chain(v6.into_iter().flatten());
        classes.filter_map(|class| self.classes.get(class as usize)).map(Class::verdict)
    }

    /// Every verdict that some address gets, once.
    pub fn verdicts(&self) -> impl Iterator<Item = Verdict<'_>> {
        let used: BTreeSet<u32> = self.v4.classes().chain(self.v6.classes()).collect();
        let numbered = (0..).zip(&self.classes).filter(move |(number, _)| used.contains(number));
        numbered.map(|(_, class)| class.verdict())
    }

    /// Every address that is denied, in ranges that do not overlap: IPv4, then IPv6. Those that a shadow rule matches first are
    /// left out: somebody wants them counted.
    pub fn denied(&self) -> impl Iterator<Item = Denied> {
        let rule = |class: u32| {
            let class = self.classes.get(class as usize)?;
            (class.action == Action::Deny && class.shadows.is_empty()).then_some(class.rule)
        };
        let v4 = self.v4.iter().filter_map(move |(first, last, class)| {
            rule(class).map(|rule| Denied { rule, range: Range::V4(first, last) })
        });
        let v6 = self.v6.iter().filter_map(move |(first, last, class)| {
            rule(class).map(|rule| Denied { rule, range: Range::V6(first, last) })
        });
        v4.chain(v6)
    }

    /// Ranges held, IPv4 and IPv6 together; 2 (one for each) when there are no rules.
    #[must_use]
    pub fn entries(&self) -> usize {
        self.v4.len() + self.v6.len()
    }

    /// Memory held on the heap.
    #[must_use]
    pub fn heap_bytes(&self) -> usize {
        let shadows: usize = self.classes.iter().map(|class| class.shadows.capacity() * size_of::<u16>()).sum();
        self.v4.heap_bytes() + self.v6.heap_bytes() + self.classes.capacity() * size_of::<Class>() + shadows
    }
}

/// The ranges of the one family that `first_of` knows.
fn compile<A: Bits>(rules: &[RuleSet<'_>], classes: &mut Classes, first_of: impl Fn(&Cidr) -> Option<A>) -> Ranges<A> {
    let networks = || (0..=u16::MAX).zip(rules).flat_map(|(index, rule)| rule.networks.iter().map(move |n| (index, n)));
    // Counted first: growing step by step would hold twice the memory for a moment.
    let mut entries = Vec::with_capacity(networks().filter(|(_, cidr)| first_of(cidr).is_some()).count());
    entries.extend(
        networks().filter_map(|(rule, cidr)| Some(Entry { first: first_of(cidr)?, prefix: cidr.prefix_len(), rule })),
    );
    Ranges::build(entries, 0, |around, network| classes.refined(around, network.iter().map(|entry| entry.rule), rules))
}
