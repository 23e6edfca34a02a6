//! Binding every address a configuration names, or telling which ones cannot be bound and why.

use std::{
    io,
    net::{IpAddr, SocketAddr},
    ops::Range,
    os::fd::{AsFd, BorrowedFd},
    sync::{
        Arc,
        atomic::{AtomicU64, Ordering},
    },
};

use tracing::warn;

use crate::{
    config::{
        Config, Diagnostic, Located,
        code::{BIND_KEPT, CANNOT_LISTEN},
        diagnostic::Origin,
    },
    sys::{host, listen::Bound, passed},
};

/// The sockets of one bind of one listener. They belong to the process; workers have duplicates.
#[derive(Debug, Clone)]
pub struct Port {
    pub id: Id,
    /// Name of the listener.
    pub listener: Arc<str>,
    pub address: SocketAddr,
    /// As it is written: the port may be 0.
    pub bind: SocketAddr,
    v6_only: bool,
    /// One that all workers share, or one for each. An upgrade may leave more or fewer of them than there are workers.
    sockets: Arc<[Bound]>,
}

/// The listening sockets that the service manager has bound for us. It goes on to have them, so a listener that is given up
/// and comes back, or comes later, finds its own here.
#[derive(Debug, Default)]
pub struct Passed(Vec<Arc<[Bound]>>);

/// Which port it is: no two of a process ever share one, not even one after the other.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct Id(u64);

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
    fn new(listener: &str, bind: SocketAddr, v6_only: bool, sockets: Arc<[Bound]>) -> Self {
        static NEXT: AtomicU64 = AtomicU64::new(0);
        Self {
            id: Id(NEXT.fetch_add(1, Ordering::Relaxed)),
            listener: listener.into(),
            address: sockets.first().map_or(bind, Bound::address),
            bind,
            v6_only,
            sockets,
        }
    }

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
        for socket in &*self.sockets {
            // Without it a client may still come in the moment between the last accept and the close.
            let _ = socket.turn_away();
        }
    }

    /// Whether the service manager has bound it.
    pub fn is_passed(&self) -> bool {
        self.sockets.iter().all(Bound::is_lent)
    }

    /// Whether a socket of that address would take clients of this one.
    fn overlaps(&self, bind: SocketAddr) -> bool {
        let (own, other) = (self.address.ip(), bind.ip());
        let covers = |wide: IpAddr, narrow: IpAddr| wide.is_unspecified() && (wide.is_ipv6() || narrow.is_ipv4());
        self.address.port() == bind.port() && (own == other || covers(own, other) || covers(other, own))
    }

    /// Whether this is what is asked for. A port that the kernel chose belongs to its listener.
    fn is_for(&self, listener: &str, bind: SocketAddr) -> bool {
        self.bind == bind && (bind.port() != 0 || *self.listener == *listener)
    }
}

impl Passed {
    /// What the service manager has given to this process, the first time it is asked.
    pub fn take() -> Self {
        let sockets = passed::take().and_then(|fds| fds.into_iter().map(Bound::passed).collect::<io::Result<Vec<_>>>());
        let sockets = sockets.unwrap_or_else(|error| {
            warn!(%error, "the sockets that the service manager passes cannot be used");
            Vec::new()
        });
        Self::new(sockets.into_iter().flatten())
    }

    pub fn new(sockets: impl IntoIterator<Item = Bound>) -> Self {
        Self(sockets.into_iter().map(|socket| Arc::from([socket])).collect())
    }

    pub fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.0.iter().flat_map(|sockets| sockets.iter()).map(AsFd::as_fd)
    }

    /// Of this address, as it is written; one, however many workers there are.
    fn sockets(&self, bind: SocketAddr) -> Option<Arc<[Bound]>> {
        self.0.iter().find(|sockets| sockets.iter().all(|socket| socket.address() == bind)).map(Arc::clone)
    }

    fn addresses(&self) -> impl Iterator<Item = SocketAddr> {
        self.0.iter().flat_map(|sockets| sockets.iter()).map(Bound::address)
    }
}

/// Binds every address, with `sockets` of each, or takes what is among `inherited` or `passed`; what is not needed stays
/// there. Every failure is told, not only the first.
///
/// An inherited port gets no further sockets, however many workers there are: if this process fails before it serves, clients
/// in their queues would be reset.
pub fn bind(
    config: &Config,
    sockets: usize,
    passed: &Passed,
    inherited: &mut Vec<Inherited>,
) -> Result<Vec<Port>, Vec<Diagnostic>> {
    let ports = each_bind(config, &[], |listener, bind, v6_only| {
        let sockets = match inherit(inherited, listener, bind) {
            Some(sockets) => sockets.into(),
            None => passed_or_bound(bind, v6_only, sockets, passed)?,
        };
        Ok(Port::new(listener, bind, v6_only, sockets))
    })?;
    for address in passed.addresses().filter(|address| ports.iter().all(|port| port.address != *address)) {
        warn!(%address, "the service manager passes a socket that no listener has");
    }
    Ok(ports)
}

/// As [`bind`], for a process that has `old` ports: what is bound stays bound. Nothing is closed here.
pub fn bind_more(config: &Config, sockets: usize, old: &[Port], passed: &Passed) -> Result<Vec<Port>, Vec<Diagnostic>> {
    let mut left = old.to_vec();
    each_bind(config, old, |listener, bind, v6_only| {
        let known = left.extract_if(.., |port| port.is_for(listener, bind)).next();
        if let Some(port) = known {
            return Ok(Port { listener: listener.into(), ..port });
        }
        Ok(Port::new(listener, bind, v6_only, passed_or_bound(bind, v6_only, sockets, passed)?))
    })
}

/// Whether [`bind_more`] would succeed. Nobody can connect to what is tried.
pub fn try_more(config: &Config, old: &[Port], passed: &Passed) -> Result<(), Vec<Diagnostic>> {
    let mut left = old.to_vec();
    let tried = each_bind(config, old, |listener, bind, v6_only| {
        let known = left.extract_if(.., |port| port.is_for(listener, bind)).next();
        if known.is_some() || passed.sockets(bind).is_some() { Ok(()) } else { Bound::probe(bind, v6_only) }
    });
    tried.map(drop)
}

/// What stays bound otherwise than `config` asks for: whether a socket of `[::]` takes IPv4 clients is decided when it is bound.
pub fn kept_otherwise(config: &Config, ports: &[Port]) -> Vec<Diagnostic> {
    let binds = config.listeners.iter().flat_map(|listener| listener.binds.iter().map(move |bind| (listener, bind)));
    let kept = binds.filter_map(|(listener, bind)| {
        let port = ports.iter().find(|port| port.is_for(&listener.name, bind.value))?;
        (port.v6_only != v6_only(config, bind.value)).then(|| {
            let which = if port.v6_only { "IPv6 clients only" } else { "IPv4 clients too" };
            Diagnostic::warning(BIND_KEPT, format!("{} takes {which} until the next restart", bind.value))
                .at(bind.span.clone())
                .note("that is decided when the socket is bound, by whether 0.0.0.0 is a bind with the same port")
        })
    });
    kept.collect()
}

/// Does something for every bind; what fails is told, and whether one of the `old` ports is to blame.
fn each_bind<T>(
    config: &Config,
    old: &[Port],
    mut act: impl FnMut(&str, SocketAddr, bool) -> io::Result<T>,
) -> Result<Vec<T>, Vec<Diagnostic>> {
    let (mut done, mut failures) = (Vec::new(), Vec::new());
    for listener in &config.listeners {
        for bind in &listener.binds {
            match act(&listener.name, bind.value, v6_only(config, bind.value)) {
                Ok(one) => done.push(one),
                Err(error) => {
                    let own =
                        old.iter().find(|port| error.kind() == io::ErrorKind::AddrInUse && port.overlaps(bind.value));
                    failures.push(own.map_or_else(
                        || cannot_listen(bind.value, &error, Some(bind.span.clone())),
                        |own| is_our_own(own, bind),
                    ));
                }
            }
        }
    }
    if failures.is_empty() { Ok(done) } else { Err(failures) }
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

fn passed_or_bound(bind: SocketAddr, v6_only: bool, sockets: usize, passed: &Passed) -> io::Result<Arc<[Bound]>> {
    passed.sockets(bind).map_or_else(|| Ok(bind_one(bind, v6_only, sockets)?.into()), Ok)
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

/// A bind that one of our own sockets is in the way of. That one stays until the next configuration is in force.
fn is_our_own(Port { listener, address, .. }: &Port, bind: &Located<SocketAddr>) -> Diagnostic {
    let message = format!("cannot listen on {}: this process listens on {address} itself, as `{listener}`", bind.value);
    Diagnostic::error(CANNOT_LISTEN, message)
        .at(bind.span.clone())
        .note("a socket is given up only when the next one is bound, and these two cannot be there together")
        .help(format!("leave {address} out and reload, then write this bind and reload again; or restart the process"))
}

fn bind_one(address: SocketAddr, v6_only: bool, sockets: usize) -> io::Result<Vec<Bound>> {
    let backlog = host::backlog();
    let listen = |address, shared| Bound::listen(address, v6_only, shared, backlog);
    if sockets == 1 {
        return Ok(vec![listen(address, false)?]);
    }
    // Sharing is for our own workers: a port that another process shares would silently lose connections to it. (A port
    // that the kernel chooses is free.)
    if address.port() != 0 {
        Bound::probe(address, v6_only)?;
    }
    let first = listen(address, true)?;
    let address = first.address();
    let rest = (1..sockets).map(|_| listen(address, true));
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
