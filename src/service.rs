//! What the service manager is told: ready, reloading, stopping, alive (`sd_notify(3)`). Without one all of it does nothing.

use std::{
    sync::{Arc, atomic::Ordering},
    time::Duration,
};

use sd_notify::NotifyState;
use tracing::warn;

use crate::{admin, crew::Crew};

/// Clients are served.
pub fn ready() {
    notify(&[NotifyState::Ready, NotifyState::Status("serving")]);
}

/// A configuration is being put to work; [`ready`] has to follow.
pub fn reloading() {
    // Without the time a manager takes no notice of a reload that nobody asked it for.
    if let Ok(now) = NotifyState::monotonic_usec_now() {
        notify(&[NotifyState::Reloading, now, NotifyState::Status("reloading")]);
    }
}

/// The process is leaving, and may take so long.
pub fn stopping(connections: u64, patience: Duration) {
    let status = format!("draining: {connections} connections, at most {} s", patience.as_secs());
    let limit = u32::try_from((patience + MARGIN).as_micros()).unwrap_or(u32::MAX);
    notify(&[NotifyState::Stopping, NotifyState::Status(&status), NotifyState::ExtendTimeoutUsec(limit)]);
}

/// Another process is the service from now on.
pub fn succeeded(pid: u32) {
    notify(&[NotifyState::MainPid(pid), NotifyState::Status("serving")]);
}

/// For goodbyes and the log after a drain.
const MARGIN: Duration = Duration::from_secs(10);

/// Says that the process is alive for as long as every worker answers, if the manager wants to know.
pub async fn watch(crew: Arc<Crew>, state: Arc<admin::State>) {
    let Some(limit) = sd_notify::watchdog_enabled() else { return };
    loop {
        // Who leaves has workers that have left already.
        let leaving = !state.ready.load(Ordering::Relaxed);
        if crew.is_alive(limit / 3).await || leaving {
            notify(&[NotifyState::Watchdog]);
        } else {
            warn!("a worker does not answer: the watchdog is not told that all is well");
        }
        tokio::time::sleep(limit / 3).await;
    }
}

fn notify(states: &[NotifyState<'_>]) {
    if let Err(error) = sd_notify::notify(states) {
        warn!(%error, "cannot tell the service manager: $NOTIFY_SOCKET");
    }
}
