//! Client addresses in one canonical form, so that no rule can be walked round by another spelling (traps F1).

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

/// An IPv4-mapped IPv6 address is the IPv4 address; a scope is not part of an address.
#[must_use]
pub fn canonical(address: SocketAddr) -> SocketAddr {
    SocketAddr::new(canonical_ip(address.ip()), address.port())
}

/// As [`canonical`], without a port.
#[must_use]
pub fn canonical_ip(address: IpAddr) -> IpAddr {
    address.to_canonical()
}

/// How many leading bits make addresses one source.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Prefixes {
    /// 1 to 32.
    pub ipv4: u8,
    /// 1 to 128. One subscriber has a /64 as a rule, which is 2^64 addresses (RFC 6177, traps F8).
    pub ipv6: u8,
}

/// Who counts as one: the first bits of an address. No IPv4 source is equal to an IPv6 one.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Hash)]
pub struct Source(u128);

impl Prefixes {
    pub const DEFAULT: Self = Self { ipv4: 32, ipv6: 64 };

    /// The source that an address, in whatever spelling, belongs to.
    #[must_use]
    pub fn source_of(self, address: IpAddr) -> Source {
        let prefix = u32::from(self.prefix_of(address));
        let bits = match canonical_ip(address) {
            // In the place of mapped addresses, which no canonical IPv6 address has.
            IpAddr::V4(v4) => {
                let kept = u32::MAX.checked_shl(32 - prefix.min(32)).unwrap_or(0);
                Ipv4Addr::from_bits(v4.to_bits() & kept).to_ipv6_mapped().to_bits()
            }
            IpAddr::V6(v6) => v6.to_bits() & u128::MAX.checked_shl(128 - prefix.min(128)).unwrap_or(0),
        };
        Source(bits)
    }

    /// How many bits of this address count.
    #[must_use]
    pub fn prefix_of(self, address: IpAddr) -> u8 {
        if canonical_ip(address).is_ipv4() { self.ipv4 } else { self.ipv6 }
    }

    /// What people call one of its sources: the address, or the network where that is wider.
    #[must_use]
    pub fn name_of(self, source: Source) -> String {
        let first = canonical_ip(Ipv6Addr::from_bits(source.to_bits()).into());
        let (prefix, whole) = (self.prefix_of(first), if first.is_ipv4() { 32 } else { 128 });
        if prefix == whole { first.to_string() } else { format!("{first}/{prefix}") }
    }
}

impl Source {
    /// A number of its own for each source.
    #[must_use]
    pub fn to_bits(self) -> u128 {
        self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f8_a_64_is_one_source_and_so_is_an_ipv4_address() {
        let same = |prefixes: Prefixes, a: &str, b: &str| {
            prefixes.source_of(a.parse().unwrap()) == prefixes.source_of(b.parse().unwrap())
        };
        let default = Prefixes::DEFAULT;
        assert!(same(default, "2001:db8:0:1::1", "2001:db8:0:1:ffff::"));
        assert!(!same(default, "2001:db8:0:1::1", "2001:db8:0:2::1"));
        assert!(same(default, "192.0.2.1", "::ffff:192.0.2.1") && !same(default, "192.0.2.1", "192.0.2.2"));
        assert!(!same(default, "0.0.0.0", "::") && !same(default, "192.0.2.1", "::c000:201"));
        let wide = Prefixes { ipv4: 24, ipv6: 128 };
        assert!(same(wide, "192.0.2.1", "192.0.2.255") && !same(wide, "192.0.2.1", "192.0.3.1"));
        assert!(!same(wide, "2001:db8::1", "2001:db8::2"));
        assert!(same(Prefixes { ipv4: 1, ipv6: 1 }, "127.0.0.1", "0.0.0.0"));
    }

    #[test]
    fn a_source_is_called_by_its_address_or_its_network() {
        for (prefixes, address, expected) in [
            (Prefixes::DEFAULT, "192.0.2.7", "192.0.2.7"),
            (Prefixes::DEFAULT, "::ffff:192.0.2.7", "192.0.2.7"),
            (Prefixes::DEFAULT, "2001:db8:1:2:3::4", "2001:db8:1:2::/64"),
            (Prefixes::DEFAULT, "::1", "::/64"),
            (Prefixes { ipv4: 24, ipv6: 128 }, "192.0.2.7", "192.0.2.0/24"),
            (Prefixes { ipv4: 24, ipv6: 128 }, "2001:db8::1", "2001:db8::1"),
        ] {
            assert_eq!(prefixes.name_of(prefixes.source_of(address.parse().unwrap())), expected);
        }
    }

    #[test]
    fn f1_a_mapped_address_is_the_ipv4_address() {
        let mapped: SocketAddr = "[::ffff:192.0.2.7]:443".parse().unwrap();
        assert_eq!(canonical(mapped), "192.0.2.7:443".parse().unwrap());
        let plain: SocketAddr = "[2001:db8::1]:443".parse().unwrap();
        assert_eq!(canonical(plain), plain);
    }

    #[test]
    fn a_scope_does_not_make_another_client() {
        let scoped: SocketAddr = "[fe80::1%3]:443".parse().unwrap();
        assert_eq!(canonical(scoped), "[fe80::1]:443".parse().unwrap());
    }
}
