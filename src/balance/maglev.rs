//! By the client's address through a table: Eisenbud et al., "Maglev: A Fast and Reliable Software Network Load Balancer"
//! (NSDI 2016), section 3.4, with weights.

use std::net::IpAddr;

use super::{
    Member,
    hash::{Key, mix},
    ip_hash::Rendezvous,
};

/// Slots of the table: a prime, as the paper asks for.
pub const TABLE_SIZE: usize = 65_537;
/// Members up to which shares stay within 1 % of even: a hundredth of the slots. The configuration refuses more.
pub const MAX_MEMBERS: usize = TABLE_SIZE / 100;

const EMPTY: u16 = u16::MAX;

#[derive(Debug)]
pub struct Maglev {
    key: Key,
    table: Box<[u16]>,
    /// For sources whose member is not eligible: spreads them over the others and moves nobody else.
    rest: Rendezvous,
}

impl Maglev {
    /// Members beyond the first 65,535 get no slot.
    pub fn build(members: &[Member<'_>], key: &[u8; 16]) -> Self {
        let rest = Rendezvous::build(members, key);
        let key = Key::new(key);
        Self { key, table: fill(members, key), rest }
    }

    pub fn pick(&self, source: IpAddr, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let hash = self.hash(source);
        let slot = usize::try_from(hash % TABLE_SIZE as u64).ok()?;
        let index = self.table.get(slot).copied().map(usize::from)?;
        if eligible(index) { Some(index) } else { self.rest.pick_hashed(hash, eligible) }
    }

    pub fn hash(&self, source: IpAddr) -> u64 {
        self.key.address(source)
    }
}

/// A member's way through all slots, and what it may still take.
struct Walker {
    index: u16,
    /// The slot it wants next.
    slot: usize,
    skip: usize,
    weight: u32,
    credit: u32,
}

impl Walker {
    fn new(index: u16, member: &Member<'_>, key: Key) -> Self {
        let hash = key.name(member.name);
        #[expect(clippy::cast_possible_truncation, reason = "remainders of 65,537")]
        let (slot, skip) = ((hash % TABLE_SIZE as u64) as usize, (mix(hash) % (TABLE_SIZE as u64 - 1)) as usize + 1);
        Self { index, slot, skip, weight: member.weight.into(), credit: 0 }
    }

    fn step(&mut self) {
        self.slot = (self.slot + self.skip) % TABLE_SIZE;
    }
}

/// Empty if no member has a weight.
#[expect(clippy::indexing_slicing, reason = "slots are remainders of the table's length")]
fn fill(members: &[Member<'_>], key: Key) -> Box<[u16]> {
    let mut named: Vec<(u16, &Member<'_>)> = (0..EMPTY).zip(members).filter(|(_, m)| m.weight > 0).collect();
    // Turns go by name, so that nodes that list the same members in another order agree.
    named.sort_by_key(|(_, member)| member.name);
    let mut walkers: Vec<Walker> = named.into_iter().map(|(index, member)| Walker::new(index, member, key)).collect();
    let Some(heaviest) = walkers.iter().map(|walker| walker.weight).max() else { return Box::default() };
    let mut table = vec![EMPTY; TABLE_SIZE].into_boxed_slice();
    let mut free = TABLE_SIZE;
    loop {
        for walker in &mut walkers {
            // The heaviest takes a slot in every round, the others in proportion.
            walker.credit += walker.weight;
            if walker.credit < heaviest {
                continue;
            }
            walker.credit -= heaviest;
            // The skip has no divisor in common with the prime, so the walk meets every slot, a free one too.
            while table[walker.slot] != EMPTY {
                walker.step();
            }
            table[walker.slot] = walker.index;
            walker.step();
            free -= 1;
            if free == 0 {
                return table;
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const KEY: &[u8; 16] = &super::super::DEFAULT_KEY;

    fn names(count: usize) -> Vec<String> {
        (0..count).map(|index| format!("10.0.{}.{}:8080", index / 250, index % 250 + 1)).collect()
    }

    fn table(members: &[Member<'_>]) -> Box<[u16]> {
        fill(members, Key::new(KEY))
    }

    fn equal(names: &[String]) -> Vec<Member<'_>> {
        names.iter().map(|name| Member { name, weight: 1 }).collect()
    }

    /// Slots of each member.
    fn slots(table: &[u16], members: usize) -> Vec<usize> {
        let mut slots = vec![0; members];
        for index in table {
            slots[usize::from(*index)] += 1;
        }
        slots
    }

    #[test]
    fn b11_s19_equal_weights_differ_by_at_most_one_slot() {
        for count in [1, 2, 5, 10, 50, 100, 500, MAX_MEMBERS] {
            let names = names(count);
            let slots = slots(&table(&equal(&names)), count);
            assert!(slots.iter().max().unwrap() - slots.iter().min().unwrap() <= 1, "{count}");
        }
    }

    #[test]
    fn b11_s19_a_leaving_member_moves_few_slots_of_the_others() {
        for (count, percent) in [(5, 0.1), (10, 0.2), (50, 0.5), (100, 0.6), (500, 0.9)] {
            let names = names(count);
            let members = equal(&names);
            let before = table(&members);
            let mut moved = Vec::new();
            for leaving in [0, 1, 2, 3, 4].map(|part| part * count / 5) {
                // Without weight and not left out, so that indices stay the same.
                let mut rest = members.clone();
                rest[leaving].weight = 0;
                let after = table(&rest);
                let survivors = || before.iter().zip(&after).filter(|(old, _)| usize::from(**old) != leaving);
                let changed = survivors().filter(|(old, new)| old != new).count();
                moved.push(100.0 * changed as f64 / survivors().count() as f64);
            }
            let mean = moved.iter().sum::<f64>() / moved.len() as f64;
            assert!((mean - percent).abs() <= 0.1, "{count} members: {mean} %, {moved:?}");
        }
    }

    #[test]
    fn b11_weights_are_honoured() {
        let names = names(3);
        let members: Vec<_> = names.iter().zip([1, 2, 3]).map(|(name, weight)| Member { name, weight }).collect();
        let slots = slots(&table(&members), 3);
        for (slots, weight) in slots.iter().zip(1..) {
            assert!(slots.abs_diff(TABLE_SIZE * weight / 6) <= 2, "{slots}");
        }
    }

    #[test]
    fn b10_the_order_of_the_members_does_not_matter() {
        let names = names(20);
        let members = equal(&names);
        let reversed: Vec<_> = members.iter().rev().copied().collect();
        let (forth, back) = (table(&members), table(&reversed));
        assert!(forth.iter().zip(&back).all(|(a, b)| a + b == 19));
    }
}
