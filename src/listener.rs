//! The accept loop. It has no error exit (traps A2), and it does not spin when descriptors run out (traps A1).

use std::{future::poll_fn, io, rc::Rc, sync::Arc, time::Duration};

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

/// Accepts until the worker is told to stop.
pub async fn accept(acceptor: Acceptor, frontend: Arc<Frontend>, local: Rc<Local>, crew: Arc<Crew>) {
    let watcher = local.drain.watcher();
    let accepting = async {
        loop {
            for _ in 0..BATCH {
                match poll_fn(|cx| acceptor.poll_accept(cx)).await {
                    Ok((fd, client)) => {
                        if let Some(client) = connection::admit(fd, client, &frontend, local.index) {
                            crew.serve(client, &local);
                        }
                    }
                    Err(error) => {
                        if pause(&error, &frontend, &local) {
                            tokio::time::sleep(REST).await;
                        }
                    }
                }
            }
            tokio::task::yield_now().await;
        }
    };
    let _: Result<(), _> = watcher.unless_ended(accepting).await;
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
