//! Descriptors kept back. When clients have taken all the others, what has to go on gives one of these up and takes its
//! number (traps A1).

use std::{
    io,
    os::fd::OwnedFd,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use rustix::event::{EventfdFlags, eventfd};
use tokio::sync::Notify;

/// Between attempts to get back what was given up. Accept loops rest longer than that, so what a client leaves comes
/// back here first.
const PAUSE: Duration = Duration::from_millis(20);

/// Placeholders, each an open file of its own that nobody uses.
#[derive(Debug)]
pub struct Reserve {
    size: usize,
    kept: Mutex<Vec<OwnedFd>>,
    given_up: Notify,
}

/// Descriptors that are free for a moment; taken back when this is dropped.
#[derive(Debug)]
pub struct Loan<'a>(&'a Reserve);

impl Reserve {
    /// Keeps `size` descriptors back, or as many as there are. What is given up is taken back as soon as one is free, for
    /// as long as the runtime that this is called on lives.
    pub fn watched(size: usize) -> Arc<Self> {
        let reserve = Arc::new(Self { size, kept: Mutex::default(), given_up: Notify::new() });
        let watched = Arc::clone(&reserve);
        // What is missing now is fetched later.
        let _ = reserve.refill();
        tokio::spawn(async move { watched.keep().await });
        reserve
    }

    /// Gives one up, if there is one: whoever opens something next has its number.
    pub fn give_up(&self) -> bool {
        let given = self.kept.lock().unwrap_or_else(PoisonError::into_inner).pop();
        self.given_up.notify_one();
        given.is_some()
    }

    /// Gives some up for a moment, for something that does not wait.
    pub fn lend(&self, count: usize) -> Loan<'_> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        let left = kept.len().saturating_sub(count);
        kept.truncate(left);
        Loan(self)
    }

    async fn keep(&self) {
        loop {
            if self.refill().is_ok() {
                self.given_up.notified().await;
            }
            tokio::time::sleep(PAUSE).await;
        }
    }

    fn refill(&self) -> io::Result<()> {
        let mut kept = self.kept.lock().unwrap_or_else(PoisonError::into_inner);
        while kept.len() < self.size {
            kept.push(eventfd(0, EventfdFlags::CLOEXEC)?);
        }
        Ok(())
    }
}

impl Drop for Loan<'_> {
    fn drop(&mut self) {
        let Self(reserve) = self;
        if reserve.refill().is_err() {
            reserve.given_up.notify_one();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(flavor = "current_thread")]
    async fn a1_what_is_given_up_is_taken_back() {
        let reserve = Reserve::watched(3);
        let kept = || reserve.kept.lock().unwrap().len();
        let loan = reserve.lend(2);
        assert_eq!(kept(), 1);
        drop(loan);
        assert_eq!(kept(), 3);
        drop(reserve.lend(5));
        assert!(reserve.give_up() && reserve.give_up() && reserve.give_up());
        assert!(!reserve.give_up() && kept() == 0);
        for _ in 0..500 {
            tokio::time::sleep(PAUSE / 10).await;
            if kept() == 3 {
                return;
            }
        }
        panic!("{} of 3 after a second", kept());
    }
}
