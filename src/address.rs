//! Client addresses in one canonical form, so that no rule can be walked round by another spelling (traps F1).

use std::net::{IpAddr, SocketAddr};

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

#[cfg(test)]
mod tests {
    use super::*;

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
