//! Addresses and networks, strictly: what two programs could read differently is refused (traps F2).

use std::{
    fmt::Display,
    net::{IpAddr, Ipv6Addr, SocketAddr},
};

use toml::de::DeValue;

use super::{
    code,
    diagnostic::Diagnostic,
    value::{Problem, quoted, text_of},
};
use crate::{
    address::{canonical, canonical_ip},
    cidr::{Cidr, CidrError},
};

/// Where a listener binds; port 0 lets the kernel choose.
pub fn bind_address(value: &DeValue) -> Result<SocketAddr, Problem> {
    socket_address(text_of(value)?)
}

/// Where a backend listens.
pub fn backend_address(value: &DeValue) -> Result<SocketAddr, Problem> {
    let written = text_of(value)?;
    let address = socket_address(written)?;
    let problem = bad_address(written);
    if address.port() == 0 {
        return Err(problem.label("a backend cannot have port 0").into());
    }
    if address.ip().is_unspecified() {
        return Err(problem.label("no host has this address: it means every address of this one").into());
    }
    Ok(address)
}

/// A network in CIDR notation, or a single address.
pub fn network(value: &DeValue) -> Result<Cidr, Problem> {
    let written = text_of(value)?;
    written.parse().map_err(|error| bad_network(written, &error))
}

/// A single address.
pub fn ip_address(value: &DeValue) -> Result<IpAddr, Problem> {
    let written = text_of(value)?;
    if let Ok(ip) = written.parse::<IpAddr>() {
        return Ok(canonical_ip(ip));
    }
    let problem = Diagnostic::error(code::BAD_IP, format!("{} is not an IP address", quoted(written)));
    Err(match written.split_once('/') {
        Some((ip, _)) if ip.parse::<IpAddr>().is_ok() => problem.label("one address, not a network").help(cure(ip)),
        _ if has_leading_zeros(written) => leading_zeros(problem),
        _ if written.contains('%') => zone(problem),
        _ => problem.label("write it like 203.0.113.7 or 2001:db8::7"),
    }
    .into())
}

fn socket_address(written: &str) -> Result<SocketAddr, Problem> {
    let problem = bad_address(written);
    if written.contains('%') {
        return Err(zone(problem).into());
    }
    let port = written.rsplit_once(':').map_or("", |(_, port)| port);
    if let Ok(address) = written.parse::<SocketAddr>() {
        if port.len() > 1 && port.starts_with('0') {
            return Err(problem.label("the port has leading zeros").into());
        }
        return Ok(canonical(address));
    }
    Err(explain(written, problem).into())
}

fn explain(written: &str, problem: Diagnostic) -> Diagnostic {
    if written.is_empty() {
        return problem.label("an address with a port is expected");
    }
    let unbracketed = written.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(written);
    if let Ok(ip) = unbracketed.parse::<IpAddr>() {
        let example = add_port(&SocketAddr::new(ip, 80));
        return match unbracketed_port(written) {
            Some(meant) => needs_brackets(problem, &meant).help(example),
            None => problem.label("the port is missing").help(example),
        };
    }
    if written.contains("://") || written.contains('/') {
        return problem.label("not an address").help("write only the address and the port, for example `10.0.0.11:80`");
    }
    let Some((host, port)) = written.rsplit_once(':') else {
        if has_leading_zeros(written) {
            return leading_zeros(problem);
        }
        return name_of_a_host(problem).help(add_port(&"10.0.0.11:80"));
    };
    if host.is_empty() || host == "*" {
        let every = format!("for every address of this host write `0.0.0.0:{port}` or `[::]:{port}`");
        return problem.label("the address is missing").help(every);
    }
    if let Some(meant) = unbracketed_port(written) {
        return needs_brackets(problem, &meant);
    }
    if has_leading_zeros(host) {
        return leading_zeros(problem);
    }
    let bare = host.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')).unwrap_or(host);
    if bare.parse::<IpAddr>().is_ok() && port.parse::<u16>().is_err() {
        return problem.label("the port must be a number from 0 to 65535");
    }
    if host.bytes().any(|byte| byte.is_ascii_alphabetic()) && !host.contains(['[', ']', ':']) {
        return name_of_a_host(problem);
    }
    problem.label("not an address").help("write it like `10.0.0.11:80` or `[2001:db8::1]:80`")
}

/// `::1:80` is an address of its own, but its author may have meant a port.
fn unbracketed_port(written: &str) -> Option<SocketAddr> {
    let (host, port) = written.rsplit_once(':')?;
    Some(SocketAddr::new(host.parse::<Ipv6Addr>().ok()?.into(), port.parse().ok()?))
}

fn needs_brackets(problem: Diagnostic, meant: &SocketAddr) -> Diagnostic {
    problem.label("an IPv6 address with a port needs brackets").help(format!("write `{meant}`"))
}

fn bad_network(written: &str, error: &CidrError) -> Problem {
    let problem = Diagnostic::error(code::BAD_NETWORK, format!("{} is not a network", quoted(written)));
    match error {
        CidrError::HostBits { network, host } => {
            Diagnostic::error(code::BAD_NETWORK, format!("{} has bits set behind its prefix", quoted(written)))
                .label("this could mean two things")
                .help(format!("write `{network}` for the whole network"))
                .help(format!("write `{host}` for the single address"))
        }
        CidrError::Empty => problem.label("a network is expected"),
        CidrError::LeadingZeros => leading_zeros(problem),
        CidrError::PrefixLength { max } => problem.label(format!("the prefix length must be a number from 0 to {max}")),
        CidrError::Zone => zone(problem),
        CidrError::NotAnAddress => problem
            .label("write it like 203.0.113.0/24 or 2001:db8::/32")
            .help("names are not resolved; write the address"),
    }
    .into()
}

fn bad_address(written: &str) -> Diagnostic {
    Diagnostic::error(code::BAD_ADDRESS, format!("{} is not an address with a port", quoted(written)))
}

fn name_of_a_host(problem: Diagnostic) -> Diagnostic {
    problem.label("not an IP address").help("names are not resolved; write the address")
}

fn add_port(example: &impl Display) -> String {
    format!("add a port, for example `{example}`")
}

fn cure(ip: &str) -> String {
    format!("write `{ip}`")
}

fn leading_zeros(problem: Diagnostic) -> Diagnostic {
    problem.label("a number has leading zeros").note("some programs read such a number as octal, others as decimal")
}

fn zone(problem: Diagnostic) -> Diagnostic {
    problem.label("zones (`%`) are not allowed: they have a meaning on one host only")
}

fn has_leading_zeros(host: &str) -> bool {
    host.split('.').count() == 4
        && host.split('.').all(|part| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit()))
        && host.split('.').any(|part| part.len() > 1 && part.starts_with('0'))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_canonical() {
        for (written, canonical) in [
            ("10.0.0.11:80", "10.0.0.11:80"),
            ("[::1]:80", "[::1]:80"),
            ("[::ffff:192.0.2.7]:80", "192.0.2.7:80"),
            ("0.0.0.0:0", "0.0.0.0:0"),
        ] {
            assert_eq!(socket_address(written).unwrap().to_string(), canonical);
        }
    }

    #[test]
    fn f2_an_ambiguous_address_is_refused_with_its_cure() {
        for (written, cure) in [
            ("", "an address with a port is expected"),
            ("10.0.0.11", "the port is missing; add a port, for example `10.0.0.11:80`"),
            ("::1", "the port is missing; add a port, for example `[::1]:80`"),
            ("[::1]", "the port is missing; add a port, for example `[::1]:80`"),
            (
                "::1:443",
                "an IPv6 address with a port needs brackets; write `[::1]:443`; add a port, for example `[::1:443]:80`",
            ),
            ("fe80::1%eth0:80", "zones (`%`) are not allowed: they have a meaning on one host only"),
            ("[fe80::1%3]:80", "zones (`%`) are not allowed: they have a meaning on one host only"),
            ("010.0.0.1:80", "a number has leading zeros"),
            ("010.0.0.1", "a number has leading zeros"),
            ("10.0.0.1:080", "the port has leading zeros"),
            ("10.0.0.1:65536", "the port must be a number from 0 to 65535"),
            ("10.0.0.1:http", "the port must be a number from 0 to 65535"),
            (":443", "the address is missing; for every address of this host write `0.0.0.0:443` or `[::]:443`"),
            ("web-01:80", "not an IP address; names are not resolved; write the address"),
            (
                "foobar.com",
                "not an IP address; names are not resolved; write the address; add a port, for example `10.0.0.11:80`",
            ),
            ("http://10.0.0.1:80", "not an address; write only the address and the port, for example `10.0.0.11:80`"),
            ("10.1:80", "not an address; write it like `10.0.0.11:80` or `[2001:db8::1]:80`"),
            (" 10.0.0.1:80", "not an address; write it like `10.0.0.11:80` or `[2001:db8::1]:80`"),
        ] {
            let problem = socket_address(written).unwrap_err();
            let told: Vec<_> = std::iter::once(problem.label.clone()).chain(problem.helps.clone()).collect();
            assert_eq!(told.join("; "), cure, "{written}");
        }
    }

    #[test]
    fn f2_host_bits_name_both_meanings() {
        let problem = network(&DeValue::String("10.0.0.5/8".into())).unwrap_err();
        assert_eq!(
            problem.helps,
            ["write `10.0.0.0/8` for the whole network", "write `10.0.0.5/32` for the single address"]
        );
    }

    #[test]
    fn a_test_asks_about_one_address() {
        assert_eq!(ip_address(&DeValue::String("::ffff:192.0.2.7".into())).unwrap().to_string(), "192.0.2.7");
        for bad in ["", "10.0.0.0/8", "010.0.0.1", "fe80::1%3", "foobar.com", "10.0.0.1:80"] {
            assert!(ip_address(&DeValue::String(bad.into())).is_err(), "{bad}");
        }
    }
}
