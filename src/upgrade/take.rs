//! The new process: takes what the running one gives, and serves when it is told to.

use std::{
    env, io,
    net::TcpListener,
    os::{fd::OwnedFd, unix::net::UnixListener},
    time::Duration,
};

use tokio::time::timeout;

use super::{
    VARIABLE,
    memory::Memory,
    message::{Deed, Giver, Heir, Line, Silence, Taken, failed, say_now},
};
use crate::{
    doors,
    metrics::{Registry, Totals},
    ports::{Inherited, Passed},
    site::Site,
    sys::{listen::Bound, packets::Packets},
};

/// The call to take the place of the process that has started this one.
#[derive(Debug)]
pub struct Summons(Packets);

/// What the process before this one has given.
#[derive(Debug)]
pub struct Inheritance {
    /// Ports that nobody has taken yet.
    pub ports: Vec<Inherited>,
    pub passed: Passed,
    pub doors: doors::Inherited,
    /// A table of the packet filter.
    pub offload: Option<String>,
    memory: Memory,
    given: usize,
    line: Line,
}

/// The process before this one, as long as it drains.
#[derive(Debug)]
pub struct Predecessor(Line);

/// What the running process may take to answer. It has answered at once, or it is gone.
const PATIENCE: Duration = Duration::from_secs(30);

impl Summons {
    /// If there is one. The other process hears at once that this one has begun.
    pub fn heard() -> io::Result<Option<Self>> {
        if env::var_os(VARIABLE).is_none() {
            return Ok(None);
        }
        let summons = Self(Packets::at_standard_input()?);
        summons.say(&Heir::Hello { release: env!("CARGO_PKG_VERSION").to_owned() })?;
        Ok(Some(summons))
    }

    /// The configuration can be used.
    pub fn loaded(&self) -> io::Result<()> {
        self.say(&Heir::Loaded)
    }

    /// This process will not serve, and says why.
    pub fn refuse(&self, reason: &str) {
        // If nobody hears it, the end of the process says enough.
        let _ = self.say(&failed(reason));
    }

    /// Waits for what is given. Needs a runtime.
    pub async fn follow(&self) -> io::Result<Inheritance> {
        let line = Line::new(self.0.duplicate()?)?;
        let heard = timeout(PATIENCE, line.hear()).await.map_err(io::Error::from)?;
        match heard.map_err(|silence| gone(&silence))? {
            (Giver::Estate(deed), descriptors) => Inheritance::new(deed, descriptors, line),
            _ => Err(io::Error::other("the running process does not say what it gives")),
        }
    }

    fn say(&self, message: &Heir) -> io::Result<()> {
        say_now(&self.0, message)
    }
}

impl Inheritance {
    fn new(deed: Deed, descriptors: Vec<OwnedFd>, line: Line) -> io::Result<Self> {
        let mut descriptors = descriptors.into_iter();
        let missing = || io::Error::other("the running process has announced more sockets than it gives");
        let mut next = || descriptors.next().ok_or_else(missing);
        let given = deed.ports.len();
        let mut ports = Vec::new();
        for (place, port) in deed.ports.into_iter().enumerate() {
            let mut sockets = Vec::new();
            for _ in 0..port.sockets {
                let no_listener = || io::Error::other("the running process gives a socket that does not listen");
                let bound = if port.is_passed { Bound::passed(next()?)? } else { Bound::inherited(next()?)? };
                sockets.push(bound.ok_or_else(no_listener)?);
            }
            ports.push(Inherited { place, listener: port.listener, bind: port.bind, sockets });
        }
        let tcp = Some((deed.admin, TcpListener::from(next()?)));
        let unix = deed.socket.map(|path| next().map(|socket| (path, UnixListener::from(socket)))).transpose()?;
        let passed = (0..deed.passed).map(|_| Bound::passed(next()?)).collect::<io::Result<Vec<_>>>()?;
        let passed = Passed::new(passed.into_iter().flatten());
        let (doors, offload) = (doors::Inherited { tcp, unix }, deed.offload);
        Ok(Self { ports, passed, doors, offload, memory: deed.memory, given, line })
    }

    /// Puts what is known into a site that nobody uses yet, and says whether bans are part of it.
    pub fn recall(&self, site: &Site) -> bool {
        self.memory.recall(site)
    }

    /// Everything is ready but the workers. Returns when they are to be started, with what was counted before; what is left
    /// of the inheritance is closed here.
    pub async fn prepared(self) -> io::Result<(Predecessor, Box<Totals>)> {
        let Self { ports, doors, given, line, .. } = self;
        let left: Vec<_> = ports.iter().map(|port| port.place).collect();
        let ports = (0..given).filter(|place| !left.contains(place)).collect();
        line.say(&Heir::Prepared(Taken { ports, socket: doors.unix.is_none() })).await?;
        let heard = timeout(PATIENCE, line.hear()).await.map_err(io::Error::from)?;
        match heard.map_err(|silence| gone(&silence))? {
            (Giver::Go(totals), _) => Ok((Predecessor(line), totals)),
            _ => Err(io::Error::other("the running process does not say when to begin")),
        }
    }
}

impl Predecessor {
    /// The workers accept.
    pub async fn serving(&self) -> io::Result<()> {
        self.0.say(&Heir::Serving).await
    }

    /// Adds to `registry` what the other process still counts, to its end.
    pub async fn count(&self, registry: &Registry) {
        loop {
            match self.0.hear().await {
                Ok((Giver::Counted(totals), _)) => registry.inherit(&totals),
                Ok((Giver::Farewell(totals), _)) => {
                    registry.inherit(&totals);
                    break;
                }
                Ok(_) | Err(_) => break,
            }
        }
        registry.end_before();
    }
}

fn gone(silence: &Silence) -> io::Error {
    io::Error::other(format!("the running process does not go on with the upgrade: {silence}"))
}
