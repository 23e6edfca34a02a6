//! What the kernel is to deny: pure.
//!
//! It is made from the compiled tables and never from the text of the rules, so the order of rules, exceptions and overlaps
//! are decided already. Whatever is missing here is denied in user space all the same.

use std::{
    net::{IpAddr, SocketAddr},
    sync::Arc,
};

use crate::{
    config::{DenyAction, Offload},
    firewall::{Range, Table},
    load::Materials,
    running::Running,
};

/// Ranges that are given to the kernel at most: its program takes a kilobyte of memory and ten microseconds for each, and
/// all of them again with each change.
pub const MOST: usize = 200_000;

/// One table of the packet filter.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Plan {
    pub table: String,
    pub deny_action: DenyAction,
    /// Listeners with the same verdicts share one.
    pub groups: Vec<Group>,
    /// The addresses of one host before those of every host.
    pub doors: Vec<Door>,
    /// Rules that have too many ranges.
    pub left_out: Vec<String>,
}

/// What is denied where.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Group {
    pub sets: Vec<Set>,
}

/// What one rule denies. The ranges do not overlap, neither here nor with those of other rules of the group.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub rule: String,
    pub v4: Vec<(u32, u32)>,
    pub v6: Vec<(u128, u128)>,
}

/// An address that a listener is bound to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Door {
    pub address: SocketAddr,
    /// In [`Plan::groups`].
    pub group: usize,
}

impl Plan {
    /// Of a configuration that runs; `None` where it asks for none. Goes through every range: not for a thread that serves.
    pub fn of(running: &Running) -> Option<Self> {
        let config = &running.loaded.config;
        let Offload::Nftables { table } = &config.firewall.offload else { return None };
        let mut plan = Self {
            table: table.clone(),
            deny_action: config.firewall.deny_action,
            groups: Vec::new(),
            doors: Vec::new(),
            left_out: Vec::new(),
        };
        let names: Vec<_> = config.firewall.rules.iter().map(|rule| rule.name.as_str()).collect();
        let (mut tables, mut room) = (Vec::<&Arc<Table>>::new(), MOST);
        for (listener, materials) in config.listeners.iter().zip(&running.loaded.listeners) {
            let known = tables.iter().position(|table| Arc::ptr_eq(table, &materials.table));
            let group = known.unwrap_or_else(|| {
                tables.push(&materials.table);
                plan.add_group(materials, &names, &mut room);
                tables.len() - 1
            });
            let own = running.addresses.iter().filter(|(name, _)| **name == *listener.name);
            plan.doors.extend(own.map(|(_, address)| Door { address: *address, group }));
        }
        plan.doors.sort_by_key(|door| specificity(door.address.ip()));
        plan.left_out.sort_unstable();
        plan.left_out.dedup();
        Some(plan)
    }

    fn add_group(&mut self, materials: &Materials, names: &[&str], room: &mut usize) {
        let mut sets: Vec<Set> = Vec::new();
        // By the number in the table; the default comes last.
        let mut places = vec![None; materials.rules.len() + 1];
        for denied in materials.table.denied() {
            let number = denied.rule.map_or(materials.rules.len(), usize::from);
            let Some(place) = places.get_mut(number) else { continue };
            let place = *place.get_or_insert_with(|| {
                let name = materials.rules.get(number).and_then(|&index| names.get(index)).unwrap_or(&"default");
                sets.push(Set { rule: (*name).to_owned(), v4: Vec::new(), v6: Vec::new() });
                sets.len() - 1
            });
            let Some(set) = sets.get_mut(place) else { continue };
            match denied.range {
                Range::V4(first, last) => set.v4.push((first, last)),
                Range::V6(first, last) => set.v6.push((first, last)),
            }
        }
        // The small ones first: as many rules as possible.
        sets.sort_by_key(Set::ranges);
        sets.retain(|set| {
            let left = room.checked_sub(set.ranges());
            match left {
                Some(left) => *room = left,
                None => self.left_out.push(set.rule.clone()),
            }
            left.is_some()
        });
        self.groups.push(Group { sets });
    }

    /// Rules that have something here, once each.
    pub fn rules(&self) -> impl Iterator<Item = &str> {
        let rules: std::collections::BTreeSet<_> =
            self.groups.iter().flat_map(|group| &group.sets).map(|set| set.rule.as_str()).collect();
        rules.into_iter()
    }

    pub fn ranges(&self) -> usize {
        self.groups.iter().flat_map(|group| &group.sets).map(Set::ranges).sum()
    }
}

impl Set {
    pub fn ranges(&self) -> usize {
        self.v4.len() + self.v6.len()
    }
}

/// The kernel gives a connection to the socket that is bound most closely; so do we. `[::]` takes what `0.0.0.0` leaves.
fn specificity(ip: IpAddr) -> u8 {
    match ip {
        IpAddr::V4(ip) if ip.is_unspecified() => 1,
        IpAddr::V6(ip) if ip.is_unspecified() => 2,
        _ => 0,
    }
}
