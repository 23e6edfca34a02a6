//! The power of two choices (Mitzenmacher, 2001): draw two, take the less loaded. Nearly as even as looking at every member,
//! at constant cost, and without the herd that runs for one member whose load is seen late.

use super::{Member, hash::draw, least_conn::Load};

/// Draws before members are looked at one by one. Enough even when half of the weight is ineligible.
const DRAWS: u64 = 8;

#[derive(Debug)]
pub struct P2c {
    /// Sum of the weights up to and with each member: drawing in proportion to weight is a search in it.
    sums: Vec<u64>,
}

impl P2c {
    pub fn build(members: &[Member<'_>]) -> Self {
        let sums = members.iter().scan(0, |sum, member| {
            *sum += u64::from(member.weight);
            Some(*sum)
        });
        Self { sums: sums.collect() }
    }

    pub fn pick(&self, random: u64, load: impl Fn(usize) -> u32, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let first = self.draw_one(random, &eligible)?;
        let Some(second) = self.draw_one(draw(random, DRAWS), |index| index != first && eligible(index)) else {
            return Some(first);
        };
        let loaded = |index| Load { connections: load(index), weight: self.weight(index) };
        Some(if loaded(second).lighter_than(loaded(first)) { second } else { first })
    }

    /// One member that is `wanted`, in proportion to weight.
    fn draw_one(&self, random: u64, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let total = self.sums.last().copied().filter(|total| *total > 0)?;
        let drawn = (0..DRAWS).map(|turn| {
            let point = scaled(draw(random, turn), total);
            // A member without weight ends where the one before it ends, so the search never stops there.
            self.sums.partition_point(|sum| *sum <= point)
        });
        drawn.into_iter().find(|index| wanted(*index)).or_else(|| self.draw_from_few(random, wanted))
    }

    /// Exact, when most of the weight is not wanted.
    fn draw_from_few(&self, random: u64, wanted: impl Fn(usize) -> bool) -> Option<usize> {
        let candidates = || (0..self.sums.len()).filter(|index| self.weight(*index) > 0 && wanted(*index));
        let total: u64 = candidates().map(|index| u64::from(self.weight(index))).sum();
        let mut left = scaled(draw(random, DRAWS), total);
        let mut last = None;
        for index in candidates() {
            let weight = u64::from(self.weight(index));
            if left < weight {
                return Some(index);
            }
            left -= weight;
            // Should the second look find less than the first.
            last = Some(index);
        }
        last
    }

    fn weight(&self, index: usize) -> u16 {
        let sum = |index: usize| self.sums.get(index).copied().unwrap_or(0);
        let before = index.checked_sub(1).map_or(0, sum);
        u16::try_from(sum(index).saturating_sub(before)).unwrap_or(u16::MAX)
    }
}

/// A number of 64 random bits brought into `0..end` by multiplication (Lemire, 2019); its bias is below `end` / 2^64.
fn scaled(random: u64, end: u64) -> u64 {
    // The high half of the product.
    ((u128::from(random) * u128::from(end)) >> 64) as u64
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(weights: &[u16]) -> P2c {
        let members: Vec<_> = weights.iter().map(|weight| Member { name: "", weight: *weight }).collect();
        P2c::build(&members)
    }

    fn counts<const N: usize>(policy: &P2c, loads: [u32; N], eligible: [bool; N]) -> [u32; N] {
        let mut counts = [0; N];
        for turn in 0..10_000 {
            counts[policy.pick(draw(7, turn), |i| loads[i], |i| eligible[i]).unwrap()] += 1;
        }
        counts
    }

    #[test]
    fn the_most_loaded_is_picked_only_when_alone() {
        let policy = build(&[1, 1, 1]);
        assert_eq!(counts(&policy, [9, 1, 1], [true; 3])[0], 0);
        assert_eq!(counts(&policy, [9, 1, 1], [true, false, false])[0], 10_000);
    }

    #[test]
    fn equals_are_picked_evenly() {
        let [a, b, c] = counts(&build(&[1, 1, 1]), [4; 3], [true; 3]);
        assert!([a, b, c].iter().all(|count| (3_100..3_567).contains(count)), "{a} {b} {c}");
    }

    #[test]
    fn load_settles_in_proportion_to_weight() {
        let policy = build(&[1, 2, 3]);
        let mut loads = [0_u32; 3];
        for turn in 0..6_000 {
            let index = policy.pick(draw(1, turn), |i| loads[i], |_| true).unwrap();
            loads[index] += 1;
        }
        for (load, fair) in loads.iter().zip([1_000_u32, 2_000, 3_000]) {
            assert!(load.abs_diff(fair) <= fair / 50, "{loads:?}");
        }
    }

    #[test]
    fn a_rare_member_is_found_among_heavy_ones_that_are_not_eligible() {
        let mut weights = [u16::MAX; 100];
        weights[57] = 1;
        let policy = build(&weights);
        assert!((0..1_000).all(|turn| policy.pick(draw(2, turn), |_| 0, |index| index == 57) == Some(57)));
    }
}
