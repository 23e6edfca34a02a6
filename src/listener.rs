//! The accept loop. It has no error exit (traps A2), and it does not spin when descriptors run out (traps A1).

use std::{
    future::poll_fn,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use crate::{
    connection,
    crew::Crew,
    frontend::Frontend,
    local::Local,
    metrics::AcceptError,
    sys::listen::{Acceptor, is_of_one_client, is_out_of_descriptors, is_out_of_memory},
};

/// Accepts of one listener before the rest of the worker has its turn (traps A7).
const BATCH: usize = 16;

/// How long a listener rests when the host has nothing left to accept with.
const REST: Duration = Duration::from_millis(100);

/// How long who waits in the queue of a socket is still served when it is to be closed.
const LAST: Duration = Duration::from_secs(1);

/// How long nobody has come before it is closed: nobody may begin a connection any more, and who has begun one has it by
/// then, or is far away and tries again.
const QUIET: Duration = Duration::from_millis(20);

/// Accepts until the worker is told to stop. Who has been connected by the kernel by then is served (traps L8).
pub async fn accept(acceptor: Acceptor, frontend: Arc<Frontend>, local: Rc<Local>, crew: Arc<Crew>) {
    let serve = |(fd, client)| {
        if let Some(client) = connection::admit(fd, client, &frontend, local.index) {
            crew.serve(client, &local);
        }
    };
    let watcher = local.doors.watcher();
    let accepting = async {
        let mut batch = BATCH;
        let mut shortages = local.shortages();
        loop {
            let mut exhausted = false;
            for _ in 0..batch {
                match poll_fn(|cx| acceptor.poll_accept(cx)).await {
                    Ok(client) => serve(client),
                    Err(error) => exhausted = pause(&error, &frontend, &local),
                }
                if exhausted {
                    break;
                }
            }
            // Those who have just come are dialled for now: that may fail for the same want.
            tokio::task::yield_now().await;
            exhausted |= shortages != local.shortages();
            shortages = local.shortages();
            if exhausted {
                tokio::time::sleep(REST).await;
            }
            // First one, to see whether it can be served.
            batch = if exhausted { 1 } else { BATCH.min(batch * 2) };
        }
    };
    let _: Result<(), _> = watcher.unless_ended(accepting).await;
    let begin = Instant::now();
    let mut last = begin;
    while begin.elapsed() < LAST && last.elapsed() < QUIET {
        match acceptor.accept_now() {
            Ok(Some(client)) => {
                serve(client);
                last = Instant::now();
            }
            Ok(None) => tokio::time::sleep(QUIET / 10).await,
            Err(error) if pause(&error, &frontend, &local) => tokio::time::sleep(REST).await,
            Err(_) => {}
        }
    }
}

/// Counts an error; true if trying again at once would only fail again.
fn pause(error: &io::Error, frontend: &Frontend, local: &Local) -> bool {
    let one_client = is_of_one_client(error);
    let reason = match error {
        error if error.kind() == io::ErrorKind::ConnectionAborted => AcceptError::Aborted,
        _ if one_client => AcceptError::Network,
        error if is_out_of_descriptors(error) => AcceptError::Descriptors,
        error if is_out_of_memory(error) => AcceptError::Memory,
        _ => AcceptError::Other,
    };
    frontend.cells.at(local.index).accept_errors.at(reason).add(1);
    if !one_client && local.may_warn() {
        tracing::warn!(listener = &*frontend.name, %error, "cannot accept; trying again every 100 ms");
    }
    !one_client
}
