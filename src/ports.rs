//! Binding every address a configuration names, or telling which ones cannot be bound and why.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    sync::Arc,
};

use tracing::warn;

use crate::{
    config::{Config, Diagnostic, code::CANNOT_LISTEN, diagnostic::Origin},
    sys::{host, listen::Bound, passed},
};

/// The sockets of one bind of one listener.
#[derive(Debug)]
pub struct Port {
    /// Index of the listener in the configuration.
    pub listener: usize,
    pub name: Arc<str>,
    /// As written: its port may be 0.
    pub bind: SocketAddr,
    pub address: SocketAddr,
    /// One that all workers share, or one for each. An upgrade may leave more or fewer of them than there are workers.
    sockets: Vec<Bound>,
}

/// The sockets of one bind that the process before this one has given.
#[derive(Debug)]
pub struct Inherited {
    /// Its place among all that were given.
    pub place: usize,
    pub listener: String,
    /// As written for that process.
    pub bind: SocketAddr,
    pub sockets: Vec<Bound>,
}

impl Port {
    /// The sockets that worker number `worker` of so many accepts from. Each socket has somebody.
    pub fn sockets_of(&self, worker: usize, workers: usize) -> impl Iterator<Item = &Bound> {
        self.sockets.iter().skip(worker % self.sockets.len().max(1)).step_by(workers.max(1))
    }

    /// All of them.
    pub fn sockets(&self) -> &[Bound] {
        &self.sockets
    }

    /// Lets nobody begin a connection any more.
    pub fn turn_away(&self) {
        for socket in &self.sockets {
            // Without it a client may still come in the moment between the last accept and the close.
            let _ = socket.turn_away();
        }
    }
}

/// Binds every address, with `sockets` of each, or takes what is among `inherited` or `passed`; what is not needed stays in
/// `inherited`. Every failure is told, not only the first.
///
/// An inherited port gets no further sockets, however many workers there are: if this process fails before it serves, clients
/// in their queues would be reset.
pub fn bind(
    config: &Config,
    sockets: usize,
    mut passed: Vec<Bound>,
    inherited: &mut Vec<Inherited>,
) -> Result<Vec<Port>, Vec<Diagnostic>> {
    let mut ports = Vec::new();
    let mut failures = Vec::new();
    for (index, listener) in config.listeners.iter().enumerate() {
        for bind in &listener.binds {
            let ready = inherit(inherited, &listener.name, bind.value).or_else(|| {
                passed.extract_if(.., |socket| socket.address() == bind.value).next().map(|socket| vec![socket])
            });
            let bound = match ready {
                Some(sockets) => Ok(sockets),
                None => bind_one(bind.value, v6_only(config, bind.value), sockets),
            };
            match bound {
                Ok(sockets) => ports.push(Port {
                    listener: index,
                    name: listener.name.as_str().into(),
                    bind: bind.value,
                    address: sockets.first().map_or(bind.value, Bound::address),
                    sockets,
                }),
                Err(error) => failures.push(cannot_listen(bind.value, &error, Some(bind.span.clone()))),
            }
        }
    }
    for socket in passed {
        warn!(address = %socket.address(), "the service manager passes a socket that no listener has");
    }
    if failures.is_empty() { Ok(ports) } else { Err(failures) }
}

/// The sockets for this bind. Where the kernel chose the port, the listener has to be the same; otherwise it may have another
/// name now.
fn inherit(inherited: &mut Vec<Inherited>, listener: &str, bind: SocketAddr) -> Option<Vec<Bound>> {
    let is_meant = |port: &mut Inherited| {
        let is_same = port.bind == bind && (bind.port() != 0 || port.listener == listener);
        is_same || port.sockets.first().is_some_and(|socket| socket.address() == bind)
    };
    inherited.extract_if(.., is_meant).next().map(|port| port.sockets)
}

/// The listening sockets that the service manager has bound for us.
pub fn passed() -> Vec<Bound> {
    let sockets = passed::take().and_then(|fds| fds.into_iter().map(Bound::passed).collect::<io::Result<Vec<_>>>());
    let sockets = sockets.unwrap_or_else(|error| {
        warn!(%error, "the sockets that the service manager passes cannot be used");
        Vec::new()
    });
    sockets.into_iter().flatten().collect()
}

/// What to do when an address cannot be bound.
pub fn cannot_listen(address: SocketAddr, error: &io::Error, span: Option<Range<usize>>) -> Diagnostic {
    let help = match error.kind() {
        io::ErrorKind::AddrInUse => format!(
            "another process listens there: `ss -ltnp 'sport = :{}'` names it; stop it or choose another port",
            address.port()
        ),
        io::ErrorKind::PermissionDenied => format!(
            "ports below 1024 need a privilege: `setcap cap_net_bind_service=+ep` on the binary, or a port such as {}",
            u32::from(address.port()) + 8000
        ),
        io::ErrorKind::AddrNotAvailable => {
            "no interface of this host has this address: `ip address` lists them; 0.0.0.0 or [::] take every one"
                .to_owned()
        }
        _ => "choose another address".to_owned(),
    };
    let origin = span.map_or(Origin::None, |span| Origin::Config { span });
    Diagnostic::error(CANNOT_LISTEN, format!("cannot listen on {address}: {}", plain(error))).from(origin).help(help)
}

fn bind_one(address: SocketAddr, v6_only: bool, sockets: usize) -> io::Result<Vec<Bound>> {
    let backlog = host::backlog();
    if sockets == 1 {
        return Ok(vec![Bound::listen(address, v6_only, false, backlog)?]);
    }
    // Sharing is for our own workers: a port that another process shares would silently lose connections to it. (A port
    // that the kernel chooses is free.)
    if address.port() != 0 {
        Bound::probe(address, v6_only)?;
    }
    let first = Bound::listen(address, v6_only, true, backlog)?;
    let address = first.address();
    let rest = (1..sockets).map(|_| Bound::listen(address, v6_only, true, backlog));
    std::iter::once(Ok(first)).chain(rest).collect()
}

/// `[::]` takes IPv4 clients too, unless a bind of `0.0.0.0` on the same port does.
fn v6_only(config: &Config, address: SocketAddr) -> bool {
    let is_v4_twin = |other: SocketAddr| {
        other.port() == address.port() && matches!(other.ip(), IpAddr::V4(ip) if ip.is_unspecified())
    };
    let mut binds = config.listeners.iter().flat_map(|listener| &listener.binds);
    !address.ip().is_unspecified() || (address.port() != 0 && binds.any(|bind| is_v4_twin(bind.value)))
}

/// The reason without the number that the standard library appends.
fn plain(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or_default().to_lowercase()
}
