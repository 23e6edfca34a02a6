//! Hashes that are the same in every process, release and machine (B10).

use std::net::IpAddr;

use siphasher::sip::SipHasher13;

use crate::address::canonical_ip;

/// SipHash-1-3 under a key: who does not know the key cannot choose where an address lands.
#[derive(Debug, Clone, Copy)]
pub struct Key(SipHasher13);

impl Key {
    pub fn new(key: &[u8; 16]) -> Self {
        Self(SipHasher13::new_with_key(key))
    }

    /// Of the 4 or 16 bytes of the canonical address, in network order.
    pub fn address(&self, ip: IpAddr) -> u64 {
        match canonical_ip(ip) {
            IpAddr::V4(ip) => self.0.hash(&ip.octets()),
            IpAddr::V6(ip) => self.0.hash(&ip.octets()),
        }
    }

    /// Of the bytes of the name.
    pub fn name(&self, name: &str) -> u64 {
        self.0.hash(name.as_bytes())
    }
}

/// Spreads any difference over all 64 bits: the finalizer of `SplitMix64`, which is variant 13 of David Stafford's "Better Bit
/// Mixing" (2011). A bijection.
pub const fn mix(mut bits: u64) -> u64 {
    bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// The `turn`th number of the `SplitMix64` sequence that `seed` starts.
pub const fn draw(seed: u64, turn: u64) -> u64 {
    mix(seed.wrapping_add(turn.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15)))
}
