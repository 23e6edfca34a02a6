//! The fewest live connections for its weight, by looking at every member.

use super::{Member, round_robin::split};

#[derive(Debug)]
pub struct LeastConn {
    weights: Vec<u16>,
}

impl LeastConn {
    pub fn build(members: &[Member<'_>]) -> Self {
        Self { weights: members.iter().map(|member| member.weight).collect() }
    }

    /// Equals are taken in turn by the ticket: an idle pool behaves as under round robin.
    pub fn pick(&self, ticket: u64, load: impl Fn(usize) -> u32, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let count = self.weights.len();
        let (mut first, round) = split(ticket, count)?;
        let usable = |index: usize| self.weights.get(index).is_some_and(|weight| *weight > 0) && eligible(index);
        if !usable(first) {
            // Not always the neighbour of a lost member, or it would win the ties of both.
            first = (first + 1 + round % (count - 1).max(1)) % count;
        }
        let indexed = || self.weights.iter().copied().enumerate();
        let mut least: Option<(usize, Load)> = None;
        for (index, weight) in indexed().skip(first).chain(indexed().take(first)) {
            if weight == 0 {
                continue;
            }
            let load = Load { connections: load(index), weight };
            if least.is_none_or(|(_, best)| load.lighter_than(best)) && eligible(index) {
                least = Some((index, load));
            }
        }
        least.map(|(index, _)| index)
    }
}

/// Load for weight: (connections + 1) / weight, the figure after the pick.
#[derive(Debug, Clone, Copy)]
pub struct Load {
    pub connections: u32,
    /// At least 1.
    pub weight: u16,
}

impl Load {
    /// Compared by cross multiplication: no division, no rounding, and 33 + 16 bits cannot overflow.
    pub fn lighter_than(self, other: Self) -> bool {
        let after = |load: Self| u64::from(load.connections) + 1;
        after(self) * u64::from(other.weight) < after(other) * u64::from(self.weight)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(weights: &[u16]) -> LeastConn {
        let members: Vec<_> = weights.iter().map(|weight| Member { name: "", weight: *weight }).collect();
        LeastConn::build(&members)
    }

    #[test]
    fn the_least_loaded_for_its_weight_is_picked() {
        let loads = [3, 5, 9];
        assert_eq!(build(&[1, 1, 1]).pick(1, |i| loads[i], |_| true), Some(0));
        assert_eq!(build(&[1, 2, 4]).pick(1, |i| loads[i], |_| true), Some(2));
        assert_eq!(build(&[0, 1, 1]).pick(1, |i| loads[i], |_| true), Some(1));
        assert_eq!(build(&[1, 1]).pick(0, |i| [u32::MAX, u32::MAX - 1][i], |_| true), Some(1));
    }

    #[test]
    fn an_idle_pool_of_equals_is_taken_in_turn() {
        let policy = build(&[1, 1, 1]);
        let picks: Vec<_> = (0..6).filter_map(|ticket| policy.pick(ticket, |_| 0, |_| true)).collect();
        assert_eq!(picks, [0, 1, 2, 0, 1, 2]);
        let without_one: Vec<_> = (0..6).filter_map(|ticket| policy.pick(ticket, |_| 0, |index| index != 1)).collect();
        assert_eq!(without_one.iter().filter(|pick| **pick == 0).count(), 3, "{without_one:?}");
    }

    #[test]
    fn b12_connections_settle_in_proportion_to_weight() {
        let policy = build(&[1, 2, 3]);
        let mut loads = [0; 3];
        for ticket in 0..600 {
            let index = policy.pick(ticket, |i| loads[i], |_| true).unwrap();
            loads[index] += 1;
        }
        assert_eq!(loads, [100, 200, 300]);
    }
}
