//! Being told that something in a directory has changed.

use std::{
    io,
    mem::MaybeUninit,
    os::fd::{AsFd, OwnedFd},
    path::Path,
};

use rustix::{
    fs::inotify::{self, CreateFlags, Reader, WatchFlags},
    io::Errno,
};
use tokio::io::{Interest, unix::AsyncFd};

/// Watches directories (`inotify(7)`).
#[derive(Debug)]
pub struct Directories(AsyncFd<OwnedFd>);

impl Directories {
    /// None yet. Must be called on a runtime.
    #[expect(unsafe_code, reason = "tokio's contract about the descriptor's life cannot be put into a type")]
    pub fn new() -> io::Result<Self> {
        let fd = inotify::init(CreateFlags::CLOEXEC | CreateFlags::NONBLOCK)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on; nothing closes or replaces it before the
        // `AsyncFd` has deregistered it in its own drop.
        let fd = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self(fd))
    }

    /// One more; nothing happens if it is watched already.
    pub fn watch(&self, directory: &Path) -> io::Result<()> {
        // Not each write: a file is whole when it is closed, or moved to its name.
        let events = WatchFlags::CLOSE_WRITE
            | WatchFlags::CREATE
            | WatchFlags::DELETE
            | WatchFlags::MOVED_FROM
            | WatchFlags::MOVED_TO
            | WatchFlags::ATTRIB;
        inotify::add_watch(self.0.get_ref(), directory, events | WatchFlags::ONLYDIR)?;
        Ok(())
    }

    /// Waits until something has changed in one of them. What it was is not told: who waits has to look.
    pub async fn changed(&self) -> io::Result<()> {
        loop {
            let mut guard = self.0.readable().await?;
            if self.take_all()? {
                return Ok(());
            }
            guard.clear_ready();
        }
    }

    /// Whether there was anything to take.
    fn take_all(&self) -> io::Result<bool> {
        let mut buffer = [MaybeUninit::uninit(); 4096];
        let mut reader = Reader::new(self.0.get_ref().as_fd(), &mut buffer);
        let mut any = false;
        loop {
            match reader.next() {
                Ok(_) => any = true,
                Err(Errno::AGAIN) => return Ok(any),
                Err(Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}
