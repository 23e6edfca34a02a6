//! In turn: one smooth weighted order, computed once and indexed by a ticket that all workers share.

use super::Member;

/// Longest order. Exact for up to 256 members of any weight up to 256; beyond that weights are scaled down to fit.
const MAX_ORDER: u64 = 65_536;

/// nginx's smooth weighted round robin: weights 5, 1, 1 give a a b a c a a and not a a a a a b c. Over one round of the
/// order each member comes up exactly its weight (divided by the greatest common divisor of all) times.
#[derive(Debug)]
pub struct RoundRobin {
    order: Vec<u32>,
    /// Members with a weight.
    members: Vec<u32>,
}

impl RoundRobin {
    pub fn build(members: &[Member<'_>]) -> Self {
        let weighted: Vec<(u32, u64)> =
            (0..).zip(members).filter(|(_, m)| m.weight > 0).map(|(i, m)| (i, u64::from(m.weight))).collect();
        let order = smooth_order(&reduced(&weighted));
        Self { order, members: weighted.into_iter().map(|(index, _)| index).collect() }
    }

    pub fn pick(&self, ticket: u64, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let length = self.order.len();
        let (place, round) = split(ticket, length)?;
        let wanted = self.order.get(place).map(|index| *index as usize)?;
        if eligible(wanted) {
            return Some(wanted);
        }
        // Walking on from the same place in every round would give the whole share of a lost member to its neighbour.
        let start = (place + 1 + round % (length - 1).max(1)) % length;
        // A rare member can be far off in a long order: after a while look at each member once.
        let near = from(&self.order, start).take(self.members.len() * 2);
        let each = from(&self.members, (place + round) % self.members.len().max(1));
        near.chain(each).map(|index| *index as usize).find(|index| eligible(*index))
    }
}

/// All of `list` in order, beginning at `start`.
fn from(list: &[u32], start: usize) -> impl Iterator<Item = &u32> {
    let (before, after) = list.split_at_checked(start).unwrap_or((&[], list));
    after.iter().chain(before)
}

/// Place in a round of `length`, and the number of the round.
pub fn split(ticket: u64, length: usize) -> Option<(usize, usize)> {
    let length = u64::try_from(length).ok()?;
    let place = ticket.checked_rem(length)?;
    let round = ticket.checked_div(length)? % length;
    Some((usize::try_from(place).ok()?, usize::try_from(round).ok()?))
}

/// Divided by their greatest common divisor, and scaled to `MAX_ORDER` in sum if that is not enough (each at least 1).
fn reduced(weighted: &[(u32, u64)]) -> Vec<(u32, u64)> {
    let divisor = weighted.iter().fold(0, |divisor, (_, weight)| gcd(divisor, *weight)).max(1);
    let sum: u64 = weighted.iter().map(|(_, weight)| weight / divisor).sum();
    let scale = |weight: u64| if sum > MAX_ORDER { (weight * MAX_ORDER / sum).max(1) } else { weight };
    weighted.iter().map(|(index, weight)| (*index, scale(weight / divisor))).collect()
}

fn gcd(a: u64, b: u64) -> u64 {
    if b == 0 { a } else { gcd(b, a % b) }
}

/// In each step every member earns its weight, the richest is next (the first of equals) and pays the sum of all.
fn smooth_order(weighted: &[(u32, u64)]) -> Vec<u32> {
    let sum: u64 = weighted.iter().map(|(_, weight)| weight).sum();
    if weighted.iter().all(|(_, weight)| *weight == 1) {
        return weighted.iter().map(|(index, _)| *index).collect();
    }
    let mut members: Vec<(i64, i64, u32)> =
        weighted.iter().map(|(index, weight)| (0, weight.cast_signed(), *index)).collect();
    let mut order = Vec::new();
    for _ in 0..sum {
        let mut richest: Option<&mut (i64, i64, u32)> = None;
        for member in &mut members {
            member.0 += member.1;
            if richest.as_ref().is_none_or(|best| member.0 > best.0) {
                richest = Some(member);
            }
        }
        if let Some((credit, _, index)) = richest {
            *credit -= sum.cast_signed();
            order.push(*index);
        }
    }
    order
}

#[cfg(test)]
mod tests {
    use super::*;

    fn build(weights: &[u16]) -> RoundRobin {
        let members: Vec<_> = weights.iter().map(|weight| Member { name: "", weight: *weight }).collect();
        RoundRobin::build(&members)
    }

    #[test]
    fn the_order_is_the_smooth_one_of_nginx() {
        assert_eq!(build(&[5, 1, 1]).order, [0, 0, 1, 0, 2, 0, 0]);
        assert_eq!(build(&[10, 0, 30]).order, [2, 0, 2, 2]);
        assert_eq!(build(&[7, 7, 7]).order, [0, 1, 2]);
        assert!(build(&[0, 0]).order.is_empty());
    }

    #[test]
    fn b13_without_weights_counts_differ_by_at_most_one_at_any_moment() {
        let policy = build(&[1; 7]);
        let mut counts = [0; 7];
        for ticket in 0..1_000 {
            counts[policy.pick(ticket, |_| true).unwrap()] += 1;
            assert!(counts.iter().max().unwrap() - counts.iter().min().unwrap() <= 1);
        }
    }

    #[test]
    fn s20_weights_1_2_3_are_exact_over_60_000() {
        let policy = build(&[1, 2, 3]);
        let mut counts = [0; 3];
        for ticket in 0..60_000 {
            counts[policy.pick(ticket, |_| true).unwrap()] += 1;
        }
        assert_eq!(counts, [10_000, 20_000, 30_000]);
    }

    #[test]
    fn the_share_of_a_lost_member_is_spread_over_the_others() {
        let policy = build(&[1; 4]);
        let mut counts = [0; 4];
        for ticket in 0..12_000 {
            counts[policy.pick(ticket, |index| index != 1).unwrap()] += 1;
        }
        assert_eq!(counts[1], 0);
        assert!(counts.iter().filter(|count| **count > 0).all(|count| (3_000..=5_000).contains(count)), "{counts:?}");
    }

    #[test]
    fn the_order_of_many_odd_weights_is_bounded() {
        let weights: Vec<u16> = (0..300).map(|index| if index % 2 == 0 { 65_535 } else { 1 + index % 200 }).collect();
        let policy = build(&weights);
        assert!(policy.order.len() <= 65_536 + 300, "{}", policy.order.len());
        assert!((0..300).all(|index| policy.order.contains(&index)));
        assert_eq!(policy.pick(5, |index| index == 299), Some(299));
    }
}
