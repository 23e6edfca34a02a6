//! When to stop, and when to read the configuration again.

use std::future::pending;

use tokio::signal::unix::{Signal, SignalKind, signal};

/// SIGTERM, SIGINT and, where there is something to reload, SIGHUP.
#[derive(Debug)]
pub(super) struct Signals {
    terminate: Signal,
    interrupt: Signal,
    hangup: Option<Signal>,
}

/// What a signal asks for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Asked {
    /// By a signal with this name.
    Stop(&'static str),
    Reload,
}

impl Signals {
    /// Takes the signals over; must be called on a runtime. Without anything that `reloads`, the end of a terminal still ends
    /// the process.
    pub(super) fn new(reloads: bool) -> std::io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
            hangup: reloads.then(|| signal(SignalKind::hangup())).transpose()?,
        })
    }

    /// Waits for the next of them. Those of one kind that come together are one.
    pub(super) async fn next(&mut self) -> Asked {
        let hangup = async {
            match &mut self.hangup {
                Some(hangup) => hangup.recv().await,
                None => pending().await,
            }
        };
        tokio::select! {
            biased;
            _ = self.terminate.recv() => Asked::Stop("SIGTERM"),
            _ = self.interrupt.recv() => Asked::Stop("SIGINT"),
            _ = hangup => Asked::Reload,
        }
    }

    /// Waits for the next that asks to stop and says which it was.
    pub(super) async fn stop(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}
