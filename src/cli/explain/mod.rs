//! `explain`: what would happen to a client, and where that is written.

mod facts;
mod firewall;
mod pool;
mod proxy;
mod text;
mod tls;

use std::net::IpAddr;

use anyhow::anyhow;
use rustls::pki_types::DnsName;

use super::{ConfigArgument, Failure, load_file, provider, say};
use crate::{
    address::canonical_ip,
    cidr::{Cidr, CidrError},
    config::{Config, Listener, similar_name},
};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address of the client
    #[arg(long, value_name = "IP", value_parser = client)]
    from: IpAddr,
    /// The balancer that brings the client, for listeners that take PROXY headers; without it, --from itself connects
    #[arg(long, value_name = "IP", value_parser = client)]
    proxied_by: Option<IpAddr>,
    /// Host name that the client asks for in its TLS handshake
    #[arg(long, value_name = "NAME", value_parser = host_name)]
    sni: Option<String>,
    /// Only this listener
    #[arg(long, value_name = "NAME")]
    listener: Option<String>,
    #[command(flatten)]
    config: ConfigArgument,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

pub(super) fn explain(arguments: &Arguments) -> Result<(), Failure> {
    let (source, loaded) = load_file(&arguments.config.config, &provider())?;
    if let Some(name) = &arguments.listener {
        known(&loaded.config, name)?;
    }
    if arguments.proxied_by.is_some() {
        takes_headers(&loaded.config, arguments.listener.as_deref())?;
    }
    let explained = facts::explain(&source, &loaded, arguments)?;
    if arguments.json {
        return say(&serde_json::to_string(&explained).map_err(anyhow::Error::from)?);
    }
    say(&text::text(&explained))
}

fn known(config: &Config, name: &str) -> Result<(), Failure> {
    let names: Vec<&str> = config.listeners.iter().map(|listener: &Listener| listener.name.as_str()).collect();
    if names.contains(&name) {
        return Ok(());
    }
    let cure = match similar_name(name, names.iter().copied()) {
        Some(similar) => format!("did you mean `{similar}`?"),
        None => format!("listeners: {}", names.join(", ")),
    };
    Err(Failure::Other(anyhow!("no listener `{}`; {cure}", name.escape_debug())))
}

/// Where nobody brings clients, whoever connects is one.
fn takes_headers(config: &Config, name: Option<&str>) -> Result<(), Failure> {
    let asked = |listener: &&Listener| name.is_none_or(|name| name == listener.name);
    if config.listeners.iter().filter(asked).any(|listener| listener.proxy_protocol.is_some()) {
        return Ok(());
    }
    let who = name.map_or("no listener takes".to_owned(), |name| format!("listener `{name}` takes no"));
    let header = if name.is_some() { "header" } else { "a header" };
    Err(Failure::Other(anyhow!("{who} {header} of the PROXY protocol: leave --proxied-by out")))
}

/// As strict as the configuration: what two programs could read differently is refused.
fn client(written: &str) -> Result<IpAddr, String> {
    match written.parse::<IpAddr>() {
        Ok(ip) => Ok(canonical_ip(ip)),
        Err(_) => Err(match written.parse::<Cidr>() {
            Ok(_) | Err(CidrError::HostBits { .. }) => "one address, not a network".to_owned(),
            Err(CidrError::Zone) => "an interface (after %) is not part of an address".to_owned(),
            Err(error @ CidrError::LeadingZeros) => error.to_string(),
            Err(_) => "not an IP address, like 203.0.113.7 or 2001:db8::7".to_owned(),
        }),
    }
}

fn host_name(written: &str) -> Result<String, String> {
    if written.parse::<IpAddr>().is_ok() {
        return Err("clients name no address in a handshake: leave --sni out".to_owned());
    }
    DnsName::try_from(written).map(|_| written.to_owned()).map_err(|_| "not a host name, like foobar.com".to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn f2_a_client_is_one_address_with_one_meaning() {
        assert_eq!(client("::ffff:192.0.2.7").unwrap().to_string(), "192.0.2.7");
        for (written, told) in [
            ("10.0.0.0/8", "one address"),
            ("10.0.0.1/8", "one address"),
            ("fe80::1%eth0", "interface"),
            ("010.0.0.1", "leading zeros"),
            ("foobar.com", "not an IP"),
            ("10.0.0.1:80", "not an IP"),
            ("", "not an IP"),
        ] {
            assert!(client(written).unwrap_err().contains(told), "{written}");
        }
    }

    #[test]
    fn a_host_name_is_one_that_a_client_can_send() {
        for good in ["foobar.com", "WWW.foobar.com.", "xn--nxasmq6b.example"] {
            assert_eq!(host_name(good).as_deref(), Ok(good));
        }
        for bad in ["", "10.0.0.1", "::1", "a b", "foo..bar", "*.foobar.com", "münchen.de"] {
            assert!(host_name(bad).is_err(), "{bad}");
        }
    }
}
