//! Pipes for splice(2): a bounded cache per worker, and the rule that nothing left in a pipe reaches another connection.
//!
//! Rules and reasons: `docs/relay.md`. A pipe is taken when there is something to move and given back the moment it is
//! empty; a pipe that still holds bytes is closed, never pooled.

use std::{
    cell::{Cell, RefCell},
    os::fd::OwnedFd,
    rc::Rc,
};

use rustix::pipe::{PipeFlags, fcntl_getpipe_size, fcntl_setpipe_size, pipe_with};

/// Asked for each pipe: what sendfile puts into a socket comes in fragments of one page, so the default of sixteen slots
/// moves 64 KiB at a time, and four times as much costs a quarter of the calls.
pub const SIZE: usize = 256 << 10;

/// A pipe below this size is what the kernel gives a user that is over its budget (`fs.pipe-user-pages-soft`).
const SMALLEST_USEFUL: usize = 64 << 10;

/// How many empty pipes a worker keeps for the next transfers.
const POOLED_AT_MOST: usize = 16;

/// The pipes of one worker.
#[derive(Debug)]
pub struct Pipes {
    free: RefCell<Vec<Ends>>,
    in_use: Cell<usize>,
    cap: usize,
}

/// Why there is no pipe to be had.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum NoPipe {
    /// All pipes this worker may have are in use.
    Cap,
    /// The kernel gave a small one: the user's budget of pipe pages is spent.
    Small,
    /// The kernel gave none.
    Resources,
}

/// A borrowed pipe. Dropping it closes it, unless it is empty: then it goes back to the cache.
#[derive(Debug)]
pub struct Pipe {
    ends: Option<Ends>,
    owner: Rc<Pipes>,
    /// Bytes filled and not yet emptied.
    held: usize,
}

#[derive(Debug)]
struct Ends {
    read: OwnedFd,
    write: OwnedFd,
}

impl Pipes {
    /// A cache that lends at most `cap` pipes at once.
    #[must_use]
    pub fn new(cap: usize) -> Rc<Self> {
        Rc::new(Self { free: RefCell::new(Vec::new()), in_use: Cell::new(0), cap })
    }

    /// An empty pipe of at least 64 KiB.
    pub fn borrow(self: &Rc<Self>) -> Result<Pipe, NoPipe> {
        if self.in_use.get() >= self.cap {
            return Err(NoPipe::Cap);
        }
        let pooled = self.free.borrow_mut().pop();
        let ends = match pooled {
            Some(ends) => ends,
            None => Ends::open()?,
        };
        self.in_use.set(self.in_use.get() + 1);
        Ok(Pipe { ends: Some(ends), owner: Rc::clone(self), held: 0 })
    }

    /// Pipes that are lent now.
    #[must_use]
    pub fn in_use(&self) -> usize {
        self.in_use.get()
    }

    /// Empty pipes kept for the next transfers.
    #[must_use]
    pub fn pooled(&self) -> usize {
        self.free.borrow().len()
    }
}

impl Ends {
    fn open() -> Result<Self, NoPipe> {
        let (read, write) = pipe_with(PipeFlags::NONBLOCK | PipeFlags::CLOEXEC).map_err(|_| NoPipe::Resources)?;
        // A refusal leaves the default size, which will do.
        let _ = fcntl_setpipe_size(&write, SIZE);
        match fcntl_getpipe_size(&write) {
            Ok(size) if size >= SMALLEST_USEFUL => Ok(Self { read, write }),
            Ok(_) => Err(NoPipe::Small),
            Err(_) => Err(NoPipe::Resources),
        }
    }
}

impl Pipe {
    /// Bytes filled and not yet emptied.
    #[must_use]
    pub fn held(&self) -> usize {
        self.held
    }

    pub(super) fn ends(&self) -> Option<(&OwnedFd, &OwnedFd)> {
        self.ends.as_ref().map(|ends| (&ends.read, &ends.write))
    }

    pub(super) fn filled(&mut self, bytes: usize) {
        self.held += bytes;
    }

    pub(super) fn emptied(&mut self, bytes: usize) {
        debug_assert!(bytes <= self.held, "no more comes out than went in");
        self.held = self.held.saturating_sub(bytes);
    }
}

impl Drop for Pipe {
    fn drop(&mut self) {
        self.owner.in_use.set(self.owner.in_use.get().saturating_sub(1));
        let Some(ends) = self.ends.take() else { return };
        let mut free = self.owner.free.borrow_mut();
        if self.held == 0 && free.len() < POOLED_AT_MOST {
            free.push(ends);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn r1_a_pipe_that_holds_bytes_is_not_pooled() {
        let pipes = Pipes::new(2);
        let mut dirty = pipes.borrow().unwrap();
        dirty.filled(1);
        drop(dirty);
        assert_eq!((pipes.in_use(), pipes.pooled()), (0, 0));
        drop(pipes.borrow().unwrap());
        assert_eq!((pipes.in_use(), pipes.pooled()), (0, 1));
    }

    #[test]
    fn r10_no_more_pipes_than_the_cap_are_lent() {
        let pipes = Pipes::new(1);
        let first = pipes.borrow().unwrap();
        assert_eq!(pipes.borrow().err(), Some(NoPipe::Cap));
        drop(first);
        assert!(pipes.borrow().is_ok());
    }
}
