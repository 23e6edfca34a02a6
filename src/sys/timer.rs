//! A timer of the kernel as a descriptor (`timerfd_create(2)`).
//!
//! The timers of a tokio runtime cost every one of its wake-ups two looks at the clock and a lock, whether or not
//! anything is due. This one costs a call when it is set and one when it is due.

use std::{io, os::fd::OwnedFd, time::Duration};

use rustix::{
    io::Errno,
    time::{Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create, timerfd_settime},
};
use tokio::io::{Interest, unix::AsyncFd};

/// One timer, registered with this thread's runtime.
#[derive(Debug)]
pub struct Timer(AsyncFd<OwnedFd>);

impl Timer {
    #[expect(unsafe_code, reason = "tokio's contract about the descriptor's life cannot be put into a type")]
    pub fn new() -> io::Result<Self> {
        let fd = timerfd_create(TimerfdClockId::Monotonic, TimerfdFlags::NONBLOCK | TimerfdFlags::CLOEXEC)?;
        // SAFETY: the descriptor is owned by the `AsyncFd` from here on; nothing closes or replaces it before the
        // `AsyncFd` has deregistered it in its own drop.
        Ok(Self(unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?))
    }

    /// Ready after this time. Whoever waits before that is over sets it anew.
    pub async fn wait(&self, time: Duration) -> io::Result<()> {
        let Self(fd) = self;
        // Zero would switch it off.
        let it_value =
            Timespec::try_from(time.max(Duration::from_nanos(1))).unwrap_or(Timespec { tv_sec: i64::MAX, tv_nsec: 0 });
        let it_interval = Timespec { tv_sec: 0, tv_nsec: 0 };
        // Setting it forgets an end that nobody has read.
        timerfd_settime(fd, TimerfdTimerFlags::empty(), &Itimerspec { it_interval, it_value })?;
        loop {
            let mut guard = fd.readable().await?;
            let read = rustix::io::read(fd, &mut [0; 8]);
            // One end is one event, so there is nothing more to read until the next.
            guard.clear_ready();
            match read {
                Ok(_) => return Ok(()),
                // The end of a time that nobody waited for any more.
                Err(Errno::AGAIN | Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Instant;

    use super::*;

    #[test]
    fn it_goes_off_in_a_runtime_without_timers() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_io().build().unwrap();
        runtime.block_on(async {
            let timer = Timer::new().unwrap();
            for millis in [0, 1, 20] {
                let (begin, time) = (Instant::now(), Duration::from_millis(millis));
                timer.wait(time).await.unwrap();
                assert!(begin.elapsed() >= time, "{:?} of {time:?}", begin.elapsed());
            }
            // One that nobody waited for does not end the next.
            let begin = Instant::now();
            tokio::select! {
                biased;
                _ = timer.wait(Duration::from_millis(1)) => unreachable!("it has only begun"),
                () = async {} => {}
            }
            std::thread::sleep(Duration::from_millis(5));
            timer.wait(Duration::from_millis(30)).await.unwrap();
            assert!(begin.elapsed() >= Duration::from_millis(35), "{:?}", begin.elapsed());
        });
    }
}
