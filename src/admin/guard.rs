//! Which requests are a scraper's or an operator's, and which a foreign web page's (traps O2, DNS rebinding).
//!
//! A page on `evil.com` may point that name at our address, and a browser behind our `allow` then sends us its requests:
//! with `Host: evil.com`, which is how they are known. So Host must be an address, which nobody can rebind, or
//! `localhost`, or a name the operator wrote down. On a loopback bind the address must be a loopback one, or the one that is
//! bound. On any other bind every address goes, because Prometheus scrapes by address through NAT and container networks;
//! other names are still refused there. A page of another origin that asks in the open sends Origin: nothing we serve is for
//! pages, so that is refused too.

use std::net::{IpAddr, SocketAddr};

use axum::http::{Request, StatusCode, Version, header};

use crate::address::canonical_ip;

/// The status of a request that is not to be answered, or none.
pub(super) fn refusal<B>(request: &Request<B>, bound: SocketAddr, hosts: &[String]) -> Option<StatusCode> {
    if request.headers().contains_key(header::ORIGIN) {
        return Some(StatusCode::FORBIDDEN);
    }
    // `GET http://name/ HTTP/1.1` names its host in the request line.
    if request.uri().authority().is_some_and(|authority| !is_ours(authority.as_str(), bound, hosts)) {
        return Some(StatusCode::FORBIDDEN);
    }
    let mut named = request.headers().get_all(header::HOST).iter();
    match (named.next(), named.next()) {
        (Some(host), None) => {
            let ours = host.to_str().is_ok_and(|host| is_ours(host, bound, hosts));
            (!ours).then_some(StatusCode::FORBIDDEN)
        }
        // No browser leaves it out; simple probes of HTTP/1.0 do.
        (None, _) if request.version() == Version::HTTP_10 => None,
        _ => Some(StatusCode::BAD_REQUEST),
    }
}

fn is_ours(host: &str, bound: SocketAddr, hosts: &[String]) -> bool {
    let Some((name, bracketed)) = without_port(host) else { return false };
    let address = if bracketed { name.parse().map(IpAddr::V6) } else { name.parse().map(IpAddr::V4) };
    let Ok(address) = address else {
        let known = |known: &str| !bracketed && name.eq_ignore_ascii_case(known);
        return known("localhost") || hosts.iter().any(|host| known(host));
    };
    let (address, bound) = (canonical_ip(address), canonical_ip(bound.ip()));
    !bound.is_loopback() || address.is_loopback() || address == bound
}

/// The host of `host[:port]` and whether it stood in brackets. Any port is fine: it may be mapped, and it protects from
/// nothing. By hand, because the authority parser of the http crate takes `[::1].evil.com` for `[::1]`.
fn without_port(host: &str) -> Option<(&str, bool)> {
    let (name, port, bracketed) = if let Some(rest) = host.strip_prefix('[') {
        let (name, port) = rest.split_once(']')?;
        (name, port, true)
    } else {
        let (name, port) = host.split_at(host.find(':').unwrap_or(host.len()));
        (name, port, false)
    };
    let port_is_fine = port.is_empty() || port.strip_prefix(':').is_some_and(|port| port.parse::<u16>().is_ok());
    port_is_fine.then_some((name, bracketed))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(host: &str, bound: &str, hosts: &[String]) -> bool {
        let request = Request::get("/metrics").header(header::HOST, host).body(()).unwrap();
        refusal(&request, bound.parse().unwrap(), hosts).is_none()
    }

    #[test]
    fn o2_host_is_an_address_of_ours_or_localhost() {
        let local = "127.0.0.1:9090";
        for host in
            ["127.0.0.1", "127.0.0.1:9090", "[::1]", "[::1]:80", "localhost", "LocalHost:1", "[::ffff:127.0.0.1]"]
        {
            assert!(judged(host, local, &[]), "{host}");
        }
        let foreign = [
            "evil.com",
            "127.evil.com",
            "127.0.0.1.evil.com",
            "localhost.evil.com",
            "evil.com:9090",
            "0x7f.1",
            "127.1",
            "2130706433",
            "192.0.2.1",
            "127.0.0.1@evil.com",
            "evil.com@127.0.0.1",
            "",
            ":9090",
            "::1",
            "[::1",
            "[::1].evil.com",
            "[127.0.0.1]",
            "[localhost]",
            "127.0.0.1:80:80",
            "127.0.0.1:x",
            "127.0.0.1 evil.com",
            "127.0.0.1, evil.com",
        ];
        for host in foreign {
            assert!(!judged(host, local, &[]), "{host}");
        }
    }

    #[test]
    fn o2_elsewhere_any_address_goes_but_only_known_names() {
        for bound in ["10.0.0.5:9090", "0.0.0.0:9090", "[::]:9090"] {
            for host in ["10.0.0.5:9090", "192.0.2.1", "[2001:db8::1]:9090", "localhost"] {
                assert!(judged(host, bound, &[]), "{host} at {bound}");
            }
            for host in ["evil.com", "10.0.0.5.evil.com", "lb1.example"] {
                assert!(!judged(host, bound, &[]), "{host} at {bound}");
            }
            assert!(judged("LB1.example:9090", bound, &["lb1.example".to_owned()]));
        }
    }

    #[test]
    fn o2_the_request_line_and_origin_count_too() {
        let bound = "127.0.0.1:9090".parse().unwrap();
        let request = Request::get("http://evil.com/metrics").header(header::HOST, "127.0.0.1").body(()).unwrap();
        assert_eq!(refusal(&request, bound, &[]), Some(StatusCode::FORBIDDEN));
        let request =
            Request::get("/").header(header::HOST, "localhost").header(header::ORIGIN, "null").body(()).unwrap();
        assert_eq!(refusal(&request, bound, &[]), Some(StatusCode::FORBIDDEN));
        let twice =
            Request::get("/").header(header::HOST, "localhost").header(header::HOST, "evil.com").body(()).unwrap();
        assert_eq!(refusal(&twice, bound, &[]), Some(StatusCode::BAD_REQUEST));
        let none = Request::get("/").body(()).unwrap();
        assert_eq!(refusal(&none, bound, &[]), Some(StatusCode::BAD_REQUEST));
        let old = Request::get("/").version(Version::HTTP_10).body(()).unwrap();
        assert_eq!(refusal(&old, bound, &[]), None);
    }
}
