//! What the two processes say to each other.
//!
//! A message is JSON in one or more packets. Each packet begins with [`VERSION`], so that one of another version is told by
//! its first word, and with a byte that says whether more of the message follows. Descriptors come with the packets of the
//! message that describes them, in its order.

use std::{
    fmt, io,
    net::SocketAddr,
    os::fd::{BorrowedFd, OwnedFd},
    path::PathBuf,
};

use serde::{Deserialize, Serialize, de::DeserializeOwned};
use zeroize::Zeroizing;

use super::memory::Memory;
use crate::{
    metrics::Totals,
    sys::packets::{AsyncPackets, MAX_DESCRIPTORS, MAX_PACKET, Packets},
};

/// Changes with every change that a process of the version before would misunderstand.
pub const VERSION: u16 = 1;

/// What the new process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Heir {
    /// It has begun, and is this release.
    Hello { release: String },
    /// Its configuration is good.
    Loaded,
    /// It has everything but workers, and waits for the word.
    Prepared(Taken),
    /// It accepts.
    Serving,
    /// It will not serve.
    Failed { reason: String },
}

/// What the running process says.
#[derive(Debug, Serialize, Deserialize)]
pub(super) enum Giver {
    Estate(Deed),
    /// Serve. What was counted so far is the beginning of what the new process counts.
    Go(Box<Totals>),
    /// What has been counted while it drains, in all.
    Counted(Box<Totals>),
    /// The same for the last time.
    Farewell(Box<Totals>),
}

/// Which of the given sockets the new process uses.
#[derive(Debug, Clone, Default, Serialize, Deserialize)]
pub struct Taken {
    /// Places in [`Deed::ports`].
    pub ports: Vec<usize>,
    /// The socket file of the admin listener.
    pub socket: bool,
}

/// What is given, in the order of the descriptors that come with it.
#[derive(Debug, Serialize, Deserialize)]
pub struct Deed {
    pub ports: Vec<PortDeed>,
    /// Sockets that the service manager has given; they come last.
    pub passed: usize,
    /// The bind of the admin listener, as written.
    pub admin: SocketAddr,
    pub socket: Option<PathBuf>,
    pub memory: Memory,
    /// The table of the packet filter that is to be replaced, or removed.
    #[serde(default)]
    pub offload: Option<String>,
}

/// The sockets of one bind.
#[derive(Debug, Serialize, Deserialize)]
pub struct PortDeed {
    pub listener: String,
    /// As written: its port may be 0.
    pub bind: SocketAddr,
    pub sockets: usize,
    /// The service manager has bound it.
    pub is_passed: bool,
}

/// The line between the two.
#[derive(Debug)]
pub(super) struct Line(AsyncPackets);

/// Why there is no next message.
#[derive(Debug)]
pub(super) enum Silence {
    /// The other process has closed its end.
    Closed,
    OtherVersion(u16),
    Broken(io::Error),
}

/// Version, and whether more follows.
const HEADER: usize = 3;

/// Most bytes of a message: the numbers of 10,000 backends fit many times.
const MAX_MESSAGE: usize = 64 << 20;

/// Most descriptors of a message.
const MAX_SOCKETS: usize = 65_536;

/// Longer reasons are cut: this has to fit into one packet.
const MAX_REASON: usize = 8 * 1024;

impl Line {
    pub(super) fn new(packets: Packets) -> io::Result<Self> {
        packets.into_async().map(Self)
    }

    pub(super) async fn say(&self, message: &impl Serialize) -> io::Result<()> {
        self.give(message, &[]).await
    }

    /// Says something that comes with descriptors.
    pub(super) async fn give(&self, message: &impl Serialize, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let json = Zeroizing::new(serde_json::to_vec(message)?);
        let mut bytes = json.chunks(MAX_PACKET - HEADER);
        let mut descriptors = descriptors.chunks(MAX_DESCRIPTORS);
        loop {
            let part = packet(bytes.next().unwrap_or_default(), bytes.len() + descriptors.len().saturating_sub(1) > 0);
            self.0.send(&part, descriptors.next().unwrap_or_default()).await?;
            if bytes.len() == 0 && descriptors.len() == 0 {
                return Ok(());
            }
        }
    }

    /// The next message, and its descriptors.
    pub(super) async fn hear<T: DeserializeOwned>(&self) -> Result<(T, Vec<OwnedFd>), Silence> {
        let (mut json, mut descriptors) = (Zeroizing::new(Vec::new()), Vec::new());
        loop {
            let packet = self.0.receive().await.map_err(Silence::Broken)?.ok_or(Silence::Closed)?;
            let Some((&[high, low, more], part)) = packet.bytes.split_first_chunk::<HEADER>() else {
                return Err(Silence::OtherVersion(0));
            };
            let version = u16::from_be_bytes([high, low]);
            if version != VERSION {
                return Err(Silence::OtherVersion(version));
            }
            json.extend_from_slice(part);
            descriptors.extend(packet.descriptors);
            if json.len() > MAX_MESSAGE || descriptors.len() > MAX_SOCKETS {
                return Err(Silence::Broken(io::Error::other("a message is too long")));
            }
            if more == 0 {
                let message = serde_json::from_slice(&json).map_err(|error| Silence::Broken(error.into()))?;
                return Ok((message, descriptors));
            }
        }
    }
}

/// Says a short thing without a runtime, if the socket has room.
pub(super) fn say_now(packets: &Packets, message: &Heir) -> io::Result<()> {
    packets.send_now(&packet(&serde_json::to_vec(message)?, false))
}

/// That the new process will not serve, in a packet of its own.
pub(super) fn failed(reason: &str) -> Heir {
    let end = reason.floor_char_boundary(MAX_REASON);
    Heir::Failed { reason: reason.get(..end).unwrap_or_default().to_owned() }
}

fn packet(part: &[u8], more: bool) -> Zeroizing<Vec<u8>> {
    let [high, low] = VERSION.to_be_bytes();
    Zeroizing::new([&[high, low, u8::from(more)], part].concat())
}

impl fmt::Display for Silence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Closed => f.write_str("it has closed the line"),
            Self::OtherVersion(version) => {
                write!(f, "it speaks version {version} of the upgrade protocol, and this process version {VERSION}")
            }
            Self::Broken(error) => write!(f, "{error}"),
        }
    }
}
