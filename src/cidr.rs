//! Networks in CIDR notation, read so that each text has exactly one meaning (traps F1, F2).

use std::{
    error::Error,
    fmt::{self, Display},
    net::IpAddr,
    ops::RangeInclusive,
    str::FromStr,
};

use ipnet::{IpNet, Ipv4Net};

use crate::address::canonical_ip;

/// A network or a single address.
///
/// Host bits are always zero, and a network inside `::ffff:0:0/96` is held as the IPv4 network it stands for. Orders by
/// family, first address and prefix length, so that a network stands before everything it covers.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Cidr(IpNet);

impl Cidr {
    /// As [`FromStr`], but host bits are cleared; the flag says that there were some.
    pub fn parse_lenient(text: &str) -> Result<(Self, bool), CidrError> {
        let (address, prefix) = read(text)?;
        Self::truncated(address, prefix)
    }

    /// The network of `prefix` bits that `address` is in, and whether `address` had bits beyond the prefix.
    pub fn truncated(address: IpAddr, prefix: u8) -> Result<(Self, bool), CidrError> {
        let written = IpNet::new(address, prefix).map_err(|_| CidrError::PrefixLength { max: max_prefix(address) })?;
        let network = written.trunc();
        Ok((Self(fold_mapped(network)), network.addr() != address))
    }

    /// Whether `ip`, in whatever spelling, is inside. `::/0` covers no IPv4 address.
    pub fn contains(&self, ip: IpAddr) -> bool {
        self.0.contains(&canonical_ip(ip))
    }

    /// Whether every address of `other` is inside.
    pub fn covers(&self, other: &Self) -> bool {
        self.0.contains(&other.0)
    }

    /// The first address, which is also the name of the network.
    pub fn network(&self) -> IpAddr {
        self.0.network()
    }

    /// 0 to 32, or 0 to 128.
    pub fn prefix_len(&self) -> u8 {
        self.0.prefix_len()
    }

    /// The last address.
    pub fn last(&self) -> IpAddr {
        self.0.broadcast()
    }

    /// Every address: both ends belong to it.
    pub fn range(&self) -> RangeInclusive<IpAddr> {
        self.network()..=self.last()
    }
}

/// The single address, as /32 or /128.
impl From<IpAddr> for Cidr {
    fn from(ip: IpAddr) -> Self {
        Self(IpNet::from(canonical_ip(ip)))
    }
}

/// A bare address is a single address; anything with two possible meanings is an error.
impl FromStr for Cidr {
    type Err = CidrError;

    fn from_str(text: &str) -> Result<Self, CidrError> {
        let (address, prefix) = read(text)?;
        match Self::truncated(address, prefix)? {
            (network, false) => Ok(network),
            (network, true) => Err(CidrError::HostBits { network, host: Self::from(address) }),
        }
    }
}

impl Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Display::fmt(&self.0, f)
    }
}

/// Why a text is not a network.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum CidrError {
    Empty,
    NotAnAddress,
    /// `010.0.0.1` is 8.0.0.1 to one reader and 10.0.0.1 to the next.
    LeadingZeros,
    /// Not a plain decimal number from 0 to `max`.
    PrefixLength {
        max: u8,
    },
    /// `10.0.0.5/8` may mean either.
    HostBits {
        network: Cidr,
        host: Cidr,
    },
    /// `fe80::1%eth0`: an interface is not part of an address.
    Zone,
}

impl Display for CidrError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("an address or a network is missing"),
            Self::NotAnAddress => f.write_str("not an IPv4 or IPv6 address or network, like 192.0.2.0/24"),
            Self::LeadingZeros => f.write_str("leading zeros are ambiguous: write the number without them"),
            Self::PrefixLength { max } => write!(f, "the prefix length has to be a number from 0 to {max}"),
            Self::HostBits { network, host } => {
                write!(f, "bits are set beyond the prefix: write {network} for the network or {host} for the address")
            }
            Self::Zone => f.write_str("an interface (after %) cannot be part of a network"),
        }
    }
}

impl Error for CidrError {}

fn read(text: &str) -> Result<(IpAddr, u8), CidrError> {
    if text.is_empty() {
        return Err(CidrError::Empty);
    }
    if text.contains('%') {
        return Err(CidrError::Zone);
    }
    let (address, prefix) = match text.split_once('/') {
        Some((address, prefix)) => (address, Some(prefix)),
        None => (text, None),
    };
    let Ok(ip) = address.parse() else {
        return Err(if has_leading_zeros(address) { CidrError::LeadingZeros } else { CidrError::NotAnAddress });
    };
    let max = max_prefix(ip);
    Ok((ip, prefix.map_or(Ok(max), |digits| read_prefix(digits, max))?))
}

fn read_prefix(digits: &str, max: u8) -> Result<u8, CidrError> {
    // u8's own parser takes a plus sign.
    let plain = !digits.is_empty() && digits.bytes().all(|byte| byte.is_ascii_digit());
    if plain && digits.len() > 1 && digits.starts_with('0') {
        return Err(CidrError::LeadingZeros);
    }
    match digits.parse() {
        Ok(prefix) if plain && prefix <= max => Ok(prefix),
        _ => Err(CidrError::PrefixLength { max }),
    }
}

/// Only asked once the address is known to be invalid, to name the reason. IPv6 groups may have leading zeros.
fn has_leading_zeros(address: &str) -> bool {
    let dotted = address.rsplit(':').next().unwrap_or(address);
    let numbers = dotted.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()));
    numbers && dotted.contains('.') && dotted.split('.').any(|part| part.len() > 1 && part.starts_with('0'))
}

fn max_prefix(ip: IpAddr) -> u8 {
    if ip.is_ipv4() { 32 } else { 128 }
}

fn fold_mapped(network: IpNet) -> IpNet {
    let IpNet::V6(v6) = network else { return network };
    let v4 = v6.addr().to_ipv4_mapped().zip(v6.prefix_len().checked_sub(96));
    v4.and_then(|(address, prefix)| Ipv4Net::new(address, prefix).ok()).map_or(network, IpNet::V4)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        text.parse().unwrap()
    }

    #[test]
    fn f2_each_spelling_has_one_meaning_or_is_refused() {
        let good = [
            ("10.0.0.0/8", "10.0.0.0/8"),
            ("10.0.0.1", "10.0.0.1/32"),
            ("0.0.0.0/0", "0.0.0.0/0"),
            ("::/0", "::/0"),
            ("2001:DB8::/32", "2001:db8::/32"),
            ("2001:0db8::0001", "2001:db8::1/128"),
            ("::ffff:10.0.0.0/104", "10.0.0.0/8"),
            ("::ffff:a00:0/104", "10.0.0.0/8"),
            ("::ffff:0:0/96", "0.0.0.0/0"),
            ("::ffff:192.0.2.1", "192.0.2.1/32"),
            ("::/95", "::/95"),
        ];
        for (text, shown) in good {
            assert_eq!(cidr(text).to_string(), shown, "{text}");
        }
        let bad = [
            ("", CidrError::Empty),
            ("010.0.0.1", CidrError::LeadingZeros),
            ("10.0.0.00", CidrError::LeadingZeros),
            ("::ffff:010.0.0.1", CidrError::LeadingZeros),
            ("10.0.0.0/08", CidrError::LeadingZeros),
            ("2001:db8::/032", CidrError::LeadingZeros),
            ("10.1/16", CidrError::NotAnAddress),
            ("10.0.0/24", CidrError::NotAnAddress),
            ("167772161", CidrError::NotAnAddress),
            ("0x0a.0.0.1", CidrError::NotAnAddress),
            ("0x7f000001", CidrError::NotAnAddress),
            ("256.0.0.1", CidrError::NotAnAddress),
            ("localhost", CidrError::NotAnAddress),
            (" 10.0.0.1", CidrError::NotAnAddress),
            ("10.0.0.1:80", CidrError::NotAnAddress),
            ("[::1]", CidrError::NotAnAddress),
            ("1:2", CidrError::NotAnAddress),
            ("/8", CidrError::NotAnAddress),
            ("10.0.0.0/33", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/256", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/+8", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/-1", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/8/8", CidrError::PrefixLength { max: 32 }),
            ("10.0.0.0/255.0.0.0", CidrError::PrefixLength { max: 32 }),
            ("::/129", CidrError::PrefixLength { max: 128 }),
            ("fe80::1%eth0", CidrError::Zone),
            ("fe80::%1/64", CidrError::Zone),
            ("10.0.0.5/8", CidrError::HostBits { network: cidr("10.0.0.0/8"), host: cidr("10.0.0.5") }),
            ("2001:db8::1/64", CidrError::HostBits { network: cidr("2001:db8::/64"), host: cidr("2001:db8::1") }),
            ("::ffff:10.0.0.5/104", CidrError::HostBits { network: cidr("10.0.0.0/8"), host: cidr("10.0.0.5") }),
            ("::ffff:10.0.0.5/64", CidrError::HostBits { network: cidr("::/64"), host: cidr("10.0.0.5") }),
        ];
        for (text, error) in bad {
            assert_eq!(text.parse::<Cidr>(), Err(error), "{text}");
        }
    }

    #[test]
    fn f2_the_host_bits_error_names_both_meanings() {
        let told = "10.0.0.5/8".parse::<Cidr>().unwrap_err().to_string();
        assert!(told.contains("10.0.0.0/8") && told.contains("10.0.0.5/32"), "{told}");
    }

    #[test]
    fn the_lenient_reader_clears_host_bits_and_says_so() {
        assert_eq!(Cidr::parse_lenient("10.0.0.5/8"), Ok((cidr("10.0.0.0/8"), true)));
        assert_eq!(Cidr::parse_lenient("10.0.0.0/8"), Ok((cidr("10.0.0.0/8"), false)));
        assert_eq!(Cidr::parse_lenient("10.1/16"), Err(CidrError::NotAnAddress));
    }

    #[test]
    fn f1_families_do_not_mix_and_mapped_addresses_are_ipv4() {
        let v4: IpAddr = "192.0.2.1".parse().unwrap();
        let mapped: IpAddr = "::ffff:192.0.2.1".parse().unwrap();
        for ip in [v4, mapped] {
            assert!(cidr("192.0.2.0/24").contains(ip));
            assert!(cidr("::ffff:192.0.2.0/120").contains(ip));
            assert!(!cidr("::/0").contains(ip));
            assert!(!cidr("::/64").contains(ip));
        }
        assert!(cidr("::/0").contains("::1".parse().unwrap()));
        assert!(!cidr("0.0.0.0/0").contains("::1".parse().unwrap()));
    }

    #[test]
    fn a_range_holds_both_ends() {
        let net = cidr("10.1.0.0/16");
        assert_eq!(net.range(), "10.1.0.0".parse().unwrap()..="10.1.255.255".parse().unwrap());
        assert_eq!(cidr("::/0").last(), "ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse::<IpAddr>().unwrap());
        assert!(net.covers(&cidr("10.1.2.0/24")) && !net.covers(&cidr("10.0.0.0/8")));
        assert!(cidr("10.0.0.0/8") < cidr("10.0.0.0/9") && cidr("10.0.0.0/9") < cidr("10.1.0.0/16"));
    }
}
