//! The accept loop. It has no error exit (traps A2), and it does not spin when descriptors run out (traps A1).

use std::{
    cell::RefCell,
    future::poll_fn,
    io,
    net::SocketAddr,
    os::fd::OwnedFd,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::task::JoinHandle;

use crate::{
    connection,
    crew::Crew,
    drain::{Drain, Watcher},
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

/// An accept loop as its worker has it in hand.
#[derive(Debug)]
pub struct Door {
    /// What applies to the next client. It never leaves its thread, so looking costs no atomic.
    frontend: Rc<RefCell<Arc<Frontend>>>,
    closing: Rc<Drain>,
    accepting: JoinHandle<()>,
}

impl Door {
    /// Begins to accept.
    pub fn open(acceptor: Acceptor, frontend: Arc<Frontend>, local: &Rc<Local>, crew: &Arc<Crew>) -> Self {
        let (frontend, closing) = (Rc::new(RefCell::new(frontend)), Rc::<Drain>::default());
        let desk = Desk { frontend: Rc::clone(&frontend), local: Rc::clone(local), crew: Arc::clone(crew) };
        let accepting = tokio::task::spawn_local(accept(acceptor, desk, closing.watcher()));
        Self { frontend, closing, accepting }
    }

    /// The policy for every client from now on.
    pub fn set_frontend(&self, frontend: Arc<Frontend>) {
        self.frontend.replace(frontend);
    }

    /// Accepts no more and leaves who waits to another process, which has the same socket.
    pub fn leave(self) {
        // Between an accept and the service of the client nothing is waited for, so nobody is lost here.
        self.accepting.abort();
    }

    /// Accepts no more. Who has been connected by the kernel is still served (traps A5, L8); when that is done, `closed` is
    /// dropped.
    pub fn close<T: 'static>(self, closed: T) {
        self.closing.trigger();
        tokio::task::spawn_local(async move {
            let _ = self.accepting.await;
            drop(closed);
        });
    }
}

/// Where clients are admitted.
struct Desk {
    frontend: Rc<RefCell<Arc<Frontend>>>,
    local: Rc<Local>,
    crew: Arc<Crew>,
}

impl Desk {
    fn serve(&self, (fd, client): (OwnedFd, SocketAddr)) {
        let frontend = self.frontend.borrow();
        match connection::admit(fd, client, &frontend, self.local.index) {
            Ok(client) => self.crew.serve(client, &self.local),
            Err(rejected) => rejected.tell(&self.local),
        }
    }

    /// Counts an error; true if trying again at once would only fail again.
    fn pause(&self, error: &io::Error) -> bool {
        pause(error, &self.frontend.borrow(), &self.local)
    }
}

/// Accepts until the door is closed, then serves those who are left.
async fn accept(acceptor: Acceptor, desk: Desk, watcher: Watcher) {
    let accepting = async {
        let mut batch = BATCH;
        let mut shortages = desk.local.shortages();
        loop {
            let mut exhausted = false;
            for _ in 0..batch {
                match poll_fn(|cx| acceptor.poll_accept(cx)).await {
                    Ok(client) => desk.serve(client),
                    Err(error) => exhausted = desk.pause(&error),
                }
                if exhausted {
                    break;
                }
            }
            // Those who have just come are dialled for now: that may fail for the same want.
            tokio::task::yield_now().await;
            exhausted |= shortages != desk.local.shortages();
            shortages = desk.local.shortages();
            if exhausted {
                desk.local.alarms.sleep(REST).await;
            }
            // First one, to see whether it can be served.
            batch = if exhausted { 1 } else { BATCH.min(batch * 2) };
        }
    };
    let _: Result<(), _> = watcher.unless_ended(accepting).await;
    let begin = Instant::now();
    let mut last = begin;
    while begin.elapsed() < LAST {
        match acceptor.accept_now() {
            Ok(Some(client)) => {
                desk.serve(client);
                last = Instant::now();
            }
            // Looked at first: on a busy machine the rest below may have been a long one.
            Ok(None) if last.elapsed() >= QUIET => break,
            Ok(None) => desk.local.alarms.sleep(QUIET / 10).await,
            Err(error) if desk.pause(&error) => desk.local.alarms.sleep(REST).await,
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
