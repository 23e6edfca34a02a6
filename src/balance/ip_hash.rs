//! By the client's address: weighted rendezvous hashing, also called highest random weight (Thaler and Ravishankar, 1998),
//! with the logarithmic weights of Schindelhauer and Schomaker (2005).
//!
//! Each member has a score for each source and the highest wins. A member that leaves takes only its own scores away, so
//! only its sources move, and to the others in proportion to their weights.

use std::{f64::consts, net::IpAddr};

use super::{
    Member,
    hash::{Key, mix},
};

#[derive(Debug)]
pub struct Rendezvous {
    key: Key,
    members: Vec<Candidate>,
}

#[derive(Debug)]
struct Candidate {
    index: usize,
    /// Hash of its name.
    seed: u64,
    weight: f64,
}

impl Rendezvous {
    pub fn build(members: &[Member<'_>], key: &[u8; 16]) -> Self {
        let key = Key::new(key);
        let weighted = members.iter().enumerate().filter(|(_, member)| member.weight > 0);
        let candidate = |(index, member): (usize, &Member<'_>)| Candidate {
            index,
            seed: key.name(member.name),
            weight: f64::from(member.weight),
        };
        Self { key, members: weighted.map(candidate).collect() }
    }

    pub fn pick(&self, source: IpAddr, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        self.pick_hashed(self.hash(source), eligible)
    }

    pub fn hash(&self, source: IpAddr) -> u64 {
        self.key.address(source)
    }

    /// One cheap mix per member: the source is already spread under the key, and so is the seed.
    pub fn pick_hashed(&self, source: u64, eligible: impl Fn(usize) -> bool) -> Option<usize> {
        let mut best: Option<(f64, usize)> = None;
        for Candidate { index, seed, weight } in &self.members {
            let u = fraction(mix(source ^ seed));
            let to_beat = best.map_or(0.0, |(score, _)| score);
            // -ln(u) >= 1 - u, so this bounds the score from above and nearly always spares the logarithm.
            if *weight <= to_beat * (1.0 - u) {
                continue;
            }
            let score = weight / negative_ln(u);
            if score > to_beat && eligible(*index) {
                best = Some((score, *index));
            }
        }
        best.map(|(_, index)| index)
    }
}

/// 52 bits as a number strictly between 0 and 1, exactly; so is its distance to 1.
fn fraction(hash: u64) -> f64 {
    const STEP: f64 = 1.0 / (1_u64 << 52) as f64;
    ((hash >> 12) as f64 + 0.5) * STEP
}

/// -ln(u) for 0 < u < 1, from additions, multiplications and divisions only.
///
/// `f64::ln` may differ in the last bit between platforms and releases, and two nodes with one key must never disagree
/// (B10). ln(m) = 2 artanh((m - 1) / (m + 1)) with m within a factor of sqrt(2) of 1; the first term left out is below 1e-13.
fn negative_ln(u: f64) -> f64 {
    const MANTISSA: u64 = (1 << 52) - 1;
    let bits = u.to_bits();
    let exponent = (bits >> 52) as f64 - 1023.0;
    let mantissa = f64::from_bits(bits & MANTISSA | 1.0_f64.to_bits());
    let (m, exponent) = if mantissa > consts::SQRT_2 { (mantissa * 0.5, exponent + 1.0) } else { (mantissa, exponent) };
    let s = (m - 1.0) / (m + 1.0);
    let square = s * s;
    let series = [15.0, 13.0, 11.0, 9.0, 7.0, 5.0, 3.0, 1.0].iter().fold(0.0, |sum, odd| sum * square + 1.0 / odd);
    -(exponent * consts::LN_2 + 2.0 * s * series)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn b10_the_logarithm_is_right() {
        for step in 1..10_000_u64 {
            let u = fraction(mix(step));
            assert!((negative_ln(u) / -u.ln() - 1.0).abs() < 1e-12, "{u}");
        }
        for hash in [0, u64::MAX, u64::MAX / 2, u64::MAX / 2 + 1, 1 << 12, u64::MAX - (1 << 12)] {
            let u = fraction(hash);
            assert!(u > 0.0 && u < 1.0 && negative_ln(u) > 0.0, "{u}");
            assert!((negative_ln(u) / -u.ln() - 1.0).abs() < 1e-12, "{u}");
            assert!(negative_ln(u) >= 1.0 - u, "the bound holds at {u}");
        }
    }
}
