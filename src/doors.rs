//! The listening sockets of the admin server: bound, or taken from the process before this one.

use std::{
    io,
    net::{SocketAddr, TcpListener},
    os::{
        fd::{AsFd, BorrowedFd},
        unix::{
            fs::{MetadataExt, PermissionsExt},
            net::{UnixListener, UnixStream},
        },
    },
    path::{Path, PathBuf},
    sync::Arc,
};

use tokio::task::JoinHandle;

use crate::{
    admin::{self, State, control::Control},
    config::{Diagnostic, code::CANNOT_LISTEN},
    ports::cannot_listen,
};

/// Both admin listeners. The servers have duplicates; these are for the process after this one.
#[derive(Debug)]
pub struct Doors {
    /// As written: its port may be 0.
    pub bind: SocketAddr,
    /// As bound.
    pub address: SocketAddr,
    tcp: TcpListener,
    unix: Option<(SocketFile, UnixListener)>,
}

/// Listeners that the process before this one has given.
#[derive(Debug, Default)]
pub struct Inherited {
    /// With its bind as written.
    pub tcp: Option<(SocketAddr, TcpListener)>,
    /// With its path.
    pub unix: Option<(PathBuf, UnixListener)>,
}

impl Doors {
    /// Binds both, or takes those that are where they were.
    pub fn open(bind: SocketAddr, socket: Option<&Path>, inherited: &mut Inherited) -> Result<Self, Vec<Diagnostic>> {
        let tcp = inherited.tcp.take_if(|(given, _)| *given == bind).map(|(_, listener)| Ok(listener));
        let bound = tcp.unwrap_or_else(|| TcpListener::bind(bind)).and_then(|tcp| Ok((tcp.local_addr()?, tcp)));
        let (address, tcp) = bound.map_err(|error| {
            vec![cannot_listen(bind, &error, None).note("this is the admin listener: [admin] bind")]
        })?;
        let unix = match socket {
            Some(path) => Some(open_socket(path, inherited).map_err(|error| vec![cannot_open(path, &error)])?),
            None => None,
        };
        Ok(Self { bind, address, tcp, unix })
    }

    /// Starts the server over TCP, which is read-only.
    pub fn serve_tcp(&self, state: &Arc<State>) -> io::Result<JoinHandle<()>> {
        let listener = self.tcp.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::TcpListener::from_std(listener)?;
        Ok(tokio::spawn(admin::serve(listener, Arc::clone(state))))
    }

    /// Starts the server on the unix socket, if there is one.
    pub fn serve_unix(&self, control: Arc<Control>) -> io::Result<Option<JoinHandle<()>>> {
        let Some((_, listener)) = &self.unix else { return Ok(None) };
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        let listener = tokio::net::UnixListener::from_std(listener)?;
        Ok(Some(tokio::spawn(admin::serve_unix(listener, control))))
    }

    /// The listener over TCP.
    pub fn tcp(&self) -> BorrowedFd<'_> {
        self.tcp.as_fd()
    }

    /// The unix socket and where it is.
    pub fn unix(&self) -> Option<(&Path, BorrowedFd<'_>)> {
        self.unix.as_ref().map(|(file, listener)| (&*file.path, listener.as_fd()))
    }

    /// Another process has the unix socket: its file stays.
    pub fn leave_file(&mut self) {
        if let Some((file, _)) = &mut self.unix {
            file.identity = None;
        }
    }
}

/// A unix socket in the file system, removed when this is dropped if it is still the same.
#[derive(Debug)]
struct SocketFile {
    path: PathBuf,
    identity: Option<(u64, u64)>,
}

impl SocketFile {
    fn new(path: &Path) -> Self {
        Self { path: path.to_owned(), identity: identity(path) }
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        if self.identity.is_some() && self.identity == identity(&self.path) {
            let _ = std::fs::remove_file(&self.path);
        }
    }
}

fn identity(path: &Path) -> Option<(u64, u64)> {
    std::fs::symlink_metadata(path).ok().map(|file| (file.dev(), file.ino()))
}

/// Binds a socket for its owner alone. What a process that was killed has left behind is replaced.
fn open_socket(path: &Path, inherited: &mut Inherited) -> io::Result<(SocketFile, UnixListener)> {
    if let Some((_, listener)) = inherited.unix.take_if(|(given, _)| given == path && path.exists()) {
        return Ok((SocketFile::new(path), listener));
    }
    if path.exists() && UnixStream::connect(path).is_err() {
        std::fs::remove_file(path)?;
    }
    let listener = UnixListener::bind(path)?;
    let file = SocketFile::new(path);
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(0o600))?;
    Ok((file, listener))
}

fn cannot_open(path: &Path, error: &io::Error) -> Diagnostic {
    let message = format!("cannot listen on `{}`: {error}", path.display());
    let help = "its folder must exist and be writable, and no other process may listen there";
    Diagnostic::error(CANNOT_LISTEN, message)
        .note("this is the admin socket: [admin] socket, else admin.sock in $RUNTIME_DIRECTORY")
        .help(help)
}
