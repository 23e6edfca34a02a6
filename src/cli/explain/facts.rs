//! What is true for a client at a listener, each thing with its place. Serialized as it stands: this is the JSON answer.

use std::{
    net::{IpAddr, SocketAddr},
    path::Path,
    time::Duration,
};

use serde::{Serialize, Serializer};

use super::{
    super::Failure,
    Arguments,
    firewall::{Firewall, firewall},
    pool::{Pool, pool},
    proxy::{Proxy, proxy},
    tls::{Tls, tls},
};
use crate::{
    cidr::Cidr,
    config::{
        Auto, Config, Listener, ListenerLimits,
        places::{Places, Spot},
    },
    firewall::Action,
    load::{Loaded, Materials, Text},
};

#[derive(Debug, Serialize)]
pub(super) struct Explained {
    pub(super) client: IpAddr,
    pub(super) proxied_by: Option<IpAddr>,
    pub(super) sni: Option<String>,
    pub(super) listeners: Vec<AtListener>,
}

#[derive(Debug, Serialize)]
pub(super) struct AtListener {
    pub(super) listener: Fact<String>,
    pub(super) binds: Vec<SocketAddr>,
    /// Why whoever connects cannot get here at all.
    pub(super) unreachable: Option<&'static str>,
    /// Where clients are brought by others: what is made of who connects.
    pub(super) proxy: Option<Proxy>,
    pub(super) firewall: Firewall,
    /// What comes after the firewall; nothing for a client that is denied, or that nobody may bring.
    pub(super) admitted: Option<Admitted>,
}

#[derive(Debug, Serialize)]
pub(super) struct Admitted {
    pub(super) limits: Limits,
    pub(super) sources: Sources,
    /// `None`: plain TCP.
    pub(super) tls: Option<Tls>,
    pub(super) pool: Pool,
    pub(super) timeouts: Timeouts,
}

/// Most connections at once. `None`: of the process as many as its descriptors allow, of the listener as many as that.
#[derive(Debug, Serialize)]
pub(super) struct Limits {
    pub(super) process: Fact<Option<usize>>,
    pub(super) listener: Fact<Option<usize>>,
}

/// What the source of the client may do here.
#[derive(Debug, Serialize)]
pub(super) struct Sources {
    /// The network that counts as one source.
    pub(super) source: String,
    /// Only at this listener; otherwise at every listener without limits of its own together.
    pub(super) own: bool,
    /// `None`: as many as come.
    pub(super) connections: Option<Fact<u32>>,
    pub(super) new_per_second: Option<Fact<u32>>,
    pub(super) burst: Option<Fact<u32>>,
    /// The network that no limit is for, if the client is in one.
    pub(super) exempt: Option<Fact<String>>,
    /// Where limits are switched off for this listener.
    pub(super) off: Option<Fact<bool>>,
}

/// In seconds.
#[derive(Debug, Serialize)]
pub(super) struct Timeouts {
    pub(super) handshake: Option<Fact<Seconds>>,
    pub(super) queue: Fact<Seconds>,
    pub(super) connect: Fact<Seconds>,
    pub(super) idle: Fact<Seconds>,
    pub(super) half_closed: Fact<Seconds>,
    pub(super) max_age: Fact<Seconds>,
}

/// Something that is true, and where it is written; nowhere for a default.
#[derive(Debug, Clone, Serialize)]
pub(super) struct Fact<T> {
    pub(super) value: T,
    pub(super) at: Option<Place>,
}

#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub(super) struct Place {
    pub(super) file: String,
    pub(super) line: usize,
}

#[derive(Debug, Clone, Copy)]
pub(super) struct Seconds(pub(super) Duration);

impl Serialize for Seconds {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_f64(self.0.as_secs_f64())
    }
}

/// What is asked about, and the file that answers.
pub(super) struct Question<'a> {
    pub(super) client: IpAddr,
    /// Who brings it.
    pub(super) proxied_by: Option<IpAddr>,
    pub(super) sni: Option<&'a str>,
    pub(super) config: &'a Config,
    pub(super) path: &'a Path,
    pub(super) places: Places<'a>,
}

impl Question<'_> {
    /// A value with the place of the first of these spots that is written.
    pub(super) fn fact<T>(&self, value: T, spots: &[Spot<'_>]) -> Fact<T> {
        let line = spots.iter().find_map(Spot::line);
        Fact { value, at: line.map(|line| Place { file: self.path.display().to_string(), line }) }
    }
}

impl AtListener {
    /// Whether the firewall lets in who connects.
    pub(super) fn lets_peer_in(&self) -> bool {
        let of_peer = self.proxy.as_ref().and_then(|proxy| proxy.firewall.as_ref());
        of_peer.unwrap_or(&self.firewall).action == Action::Allow.as_str()
    }
}

pub(super) fn explain(source: &Text, loaded: &Loaded, arguments: &Arguments) -> Result<Explained, Failure> {
    let question = Question {
        client: arguments.from,
        proxied_by: arguments.proxied_by,
        sni: arguments.sni.as_deref(),
        config: &loaded.config,
        path: &source.path,
        places: Places::of(&source.text),
    };
    let asked = |listener: &Listener| {
        arguments.listener.as_ref().is_none_or(|name| *name == listener.name)
            && (arguments.proxied_by.is_none() || listener.proxy_protocol.is_some())
    };
    let listeners = loaded.config.listeners.iter().zip(&loaded.listeners).filter(|(listener, _)| asked(listener));
    Ok(Explained {
        client: arguments.from,
        proxied_by: arguments.proxied_by,
        sni: arguments.sni.clone(),
        listeners: listeners
            .map(|(listener, materials)| at_listener(&question, listener, materials))
            .collect::<Result<_, Failure>>()?,
    })
}

fn at_listener(question: &Question<'_>, listener: &Listener, materials: &Materials) -> Result<AtListener, Failure> {
    let required = listener.proxy_protocol.as_ref();
    let proxy = required.map(|required| proxy(question, listener, required, materials)).transpose()?;
    let firewall = firewall(question, question.client, materials)?;
    let admitted = firewall.action == Action::Allow.as_str() && proxy.as_ref().is_none_or(super::proxy::Proxy::lets_in);
    Ok(AtListener {
        listener: question.fact(listener.name.clone(), &[question.places.key("listener").key(&listener.name)]),
        binds: listener.binds.iter().map(|bind| bind.value).collect(),
        unreachable: unreachable(question.proxied_by.unwrap_or(question.client), listener),
        proxy,
        firewall,
        admitted: if admitted { admit(question, listener, materials) } else { None },
    })
}

fn admit(question: &Question<'_>, listener: &Listener, materials: &Materials) -> Option<Admitted> {
    let pool_config = question.config.pools.iter().find(|pool| pool.name == listener.pool)?;
    let (own, global) = (question.places.key("listener").key(&listener.name), question.places.key("global"));
    let process = match question.config.global.max_connections {
        Auto::Auto => None,
        Auto::Fixed(most) => Some(most.get()),
    };
    let most = listener.max_connections.map(std::num::NonZero::get);
    let of_listener = |key, value| timeout(question, own, key, value);
    let of_pool = |key, value| timeout(question, question.places.key("pool").key(&listener.pool), key, value);
    let timeouts = &listener.timeouts;
    Some(Admitted {
        limits: Limits {
            process: question.fact(process, &[global.key("max_connections")]),
            listener: question.fact(most, &[own.key("max_connections")]),
        },
        sources: sources(question, listener),
        tls: listener.tls.as_ref().map(|config| tls(question, listener, config, &materials.certificates)),
        pool: pool(question, listener, pool_config),
        timeouts: Timeouts {
            handshake: listener.tls.as_ref().map(|_| of_listener("handshake", timeouts.handshake)),
            queue: of_pool("queue", pool_config.queue),
            connect: of_pool("connect", pool_config.connect_timeout),
            idle: of_listener("idle", timeouts.idle),
            half_closed: of_listener("half_closed", timeouts.half_closed),
            max_age: of_listener("max_age", timeouts.max_age),
        },
    })
}

fn sources(question: &Question<'_>, listener: &Listener) -> Sources {
    let own = question.places.key("listener").key(&listener.name).key("limits");
    let shared = question.places.key("firewall").key("limits");
    let (limits, off) = match &listener.limits {
        ListenerLimits::Own(limits) => (limits, None),
        ListenerLimits::Shared => (&question.config.firewall.limits, None),
        ListenerLimits::Off => (&question.config.firewall.limits, Some(question.fact(true, &[own]))),
    };
    let is_limited = off.is_none();
    let fact = |key, value| question.fact(value, &[own.key(key), shared.key(key)]);
    let rate = limits.rate.filter(|_| is_limited);
    let network = Cidr::truncated(question.client, limits.prefixes.prefix_of(question.client));
    let exempt = limits.exempt.iter().enumerate().find(|(_, network)| network.contains(question.client));
    let exempt = exempt.filter(|_| is_limited && (limits.connections.is_some() || rate.is_some()));
    Sources {
        source: network.map_or_else(|_| question.client.to_string(), |(network, _)| network.to_string()),
        own: matches!(listener.limits, ListenerLimits::Own(_)),
        connections: limits.connections.filter(|_| is_limited).map(|most| fact("connections", most.get())),
        new_per_second: rate.map(|rate| fact("new_per_second", rate.new_per_second.get())),
        burst: rate.map(|rate| fact("burst", rate.burst.get())),
        exempt: exempt.map(|(index, network)| {
            let written = [own.key("exempt"), shared.key("exempt")].into_iter().find(|spot| spot.line().is_some());
            question.fact(network.to_string(), &written.map(|list| list.at(index)).into_iter().collect::<Vec<_>>())
        }),
        off,
    }
}

/// The nearest one that is written holds.
fn timeout(question: &Question<'_>, own: Spot<'_>, key: &str, value: Duration) -> Fact<Seconds> {
    question.fact(Seconds(value), &[own.key("timeouts").key(key), question.places.key("timeouts").key(key)])
}

/// A client whose packets no bind of the listener takes.
fn unreachable(client: IpAddr, listener: &Listener) -> Option<&'static str> {
    let takes_family = |bind: &SocketAddr| bind.is_ipv4() == client.is_ipv4() || takes_both(bind, listener);
    let is_far = |bind: &SocketAddr| bind.ip().is_loopback() && !client.is_loopback();
    let takes: Vec<_> = listener.binds.iter().map(|bind| &bind.value).filter(|bind| takes_family(bind)).collect();
    match takes.as_slice() {
        [] if client.is_ipv4() => Some("none of its addresses takes IPv4 clients"),
        [] => Some("none of its addresses takes IPv6 clients"),
        some if some.iter().all(|bind| is_far(bind)) => {
            Some("it listens on loopback only: clients of this host come here, no others")
        }
        _ => None,
    }
}

/// `[::]` takes IPv4 clients as well, unless `0.0.0.0` with its port is bound too.
fn takes_both(bind: &SocketAddr, listener: &Listener) -> bool {
    let both = |other: &SocketAddr| other.is_ipv4() && other.ip().is_unspecified() && other.port() == bind.port();
    bind.is_ipv6() && bind.ip().is_unspecified() && !listener.binds.iter().any(|other| both(&other.value))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::config;

    #[test]
    fn a_client_that_no_bind_takes_is_told_so() {
        for (binds, client, expected) in [
            ("0.0.0.0:443", "203.0.113.7", None),
            ("0.0.0.0:443", "2001:db8::1", Some("none of its addresses takes IPv6 clients")),
            ("[::]:443", "203.0.113.7", None),
            ("[2001:db8::9]:443", "203.0.113.7", Some("none of its addresses takes IPv4 clients")),
            ("127.0.0.1:443", "127.0.0.5", None),
            ("[::1]:443", "127.0.0.5", Some("none of its addresses takes IPv4 clients")),
            (
                "127.0.0.1:443",
                "203.0.113.7",
                Some("it listens on loopback only: clients of this host come here, no others"),
            ),
        ] {
            let text =
                format!("[listener.a]\nbind = \"{binds}\"\npool = \"p\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n");
            let (config, _) = config::parse(&text, Path::new("")).unwrap();
            assert_eq!(unreachable(client.parse().unwrap(), &config.listeners[0]), expected, "{binds} {client}");
        }
    }
}
