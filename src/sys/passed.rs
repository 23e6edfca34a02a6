//! Sockets that a service manager has bound for us (`sd_listen_fds(3)`).

use std::{
    io,
    os::fd::{FromRawFd, OwnedFd},
    sync::atomic::{AtomicBool, Ordering},
};

/// The sockets, the first time it is asked; they are whatever the manager was told to open.
#[expect(unsafe_code, reason = "the descriptors are named by numbers in the environment")]
pub fn take() -> io::Result<Vec<OwnedFd>> {
    static TAKEN: AtomicBool = AtomicBool::new(false);
    if TAKEN.swap(true, Ordering::SeqCst) {
        return Ok(Vec::new());
    }
    let numbers = sd_notify::listen_fds()?;
    // SAFETY: the manager has opened them for this process and nobody else here knows of them: $LISTEN_PID is our number,
    // `listen_fds` has seen that each is open, and the swap above lets nobody take them a second time.
    Ok(numbers.map(|number| unsafe { OwnedFd::from_raw_fd(number) }).collect())
}
