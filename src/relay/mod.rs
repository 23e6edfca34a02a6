//! Moving bytes between a client and a backend until both are done.
//!
//! One future drives both directions. An idle connection owns no buffer: a read goes to the worker's scratch buffer and
//! is written on in the same poll; only what the far end would not take is parked, and then that side is not read.
//! [`flow`] is one direction, [`copy`], [`splice`] and [`tls`] are the ways it can go, [`close`] ends a socket without
//! harming what was delivered. The rules and their reasons: `docs/relay.md`.

mod close;
mod copy;
mod end;
mod flow;
pub mod rustls;
#[cfg(test)]
mod simulation;
mod splice;
mod timer;
pub mod tls;

use std::{
    cell::{Cell, RefCell},
    future::poll_fn,
    net::SocketAddr,
    rc::Rc,
    sync::Arc,
    task::{Context, Poll},
    time::Instant,
};

pub use close::PATIENCE;
pub use end::End;
pub use timer::Timeouts;

use self::{
    end::{FlowEnd, Side},
    flow::{Flow, Route, Scratch, Step},
    rustls::RustlsClient,
    timer::Timer,
    tls::TlsClient,
};
use crate::{
    alarm::Alarm,
    config::ZeroCopy,
    drain::Watcher,
    metrics::{Direction, Fallback, ListenerCells, PerWorker, Registry, RelayPath, WorkerCells},
    sys::{
        pipe::Pipes,
        socket::{Left, Socket},
    },
};

/// What the relays of one worker share.
#[derive(Debug)]
pub struct Resources {
    scratch: RefCell<Scratch>,
    pipes: Rc<Pipes>,
    zero_copy: ZeroCopy,
    worker: usize,
    registry: Arc<Registry>,
}

/// The accepted side of a connection.
#[derive(Debug)]
pub enum Client {
    Plain(Socket),
    Tls(Box<TlsClient>),
    /// The off switch of our own record layer: everything by rustls.
    Rustls(Box<RustlsClient>),
}

/// Counts one connection's bytes while they move.
#[derive(Debug)]
pub struct Meter {
    listener: Arc<PerWorker<ListenerCells>>,
    worker: usize,
    received: Cell<u64>,
    sent: Cell<u64>,
    /// Every byte read or written, on either side: a sign of life.
    moved: Cell<u64>,
    end: Cell<Option<End>>,
    spliced: Cell<bool>,
    first_byte: Cell<Option<Instant>>,
}

/// Relays until the connection has ended, and closes both sockets with care.
pub fn run<'a>(
    client: Client,
    backend: Socket,
    resources: &'a Resources,
    meter: &'a Meter,
    control: Control<'a>,
) -> impl Future<Output = End> + use<'a> {
    let mut pair = Pair { client, backend, up: Flow::default(), down: Flow::default(), first: None };
    // Not an async fn, which would keep its arguments beside what is made of them.
    async move {
        let end = pair.until_end(resources, meter, &control).await;
        meter.end.set(Some(end));
        // When both ends were read to their end, dropping the sockets sends the last FIN.
        if !end.is_plain_close(pair.up.end, pair.down.end) {
            Box::pin(close::pair(pair, end, resources, control.alarm)).await;
        }
        end
    }
}

/// What may end a relay from outside.
#[derive(Debug)]
pub struct Control<'a> {
    pub timeouts: Timeouts,
    pub drain: &'a Watcher,
    pub alarm: &'a Alarm,
}

/// Both ends and both directions.
#[derive(Debug)]
struct Pair {
    client: Client,
    backend: Socket,
    /// Client to backend.
    up: Flow,
    /// Backend to client.
    down: Flow,
    /// Who finished sending first.
    first: Option<Side>,
}

impl Pair {
    async fn until_end(&mut self, resources: &Resources, meter: &Meter, control: &Control<'_>) -> End {
        let mut timer = Timer::start(&control.timeouts, control.alarm.now());
        poll_fn(|cx| {
            if let Some(reason) = control.drain.poll_ended(cx) {
                return Poll::Ready(reason.into());
            }
            let moved = meter.moved.get();
            if let Some(end) = self.advance(cx, resources, meter) {
                return Poll::Ready(end);
            }
            let state = timer::State {
                moved: meter.moved.get() != moved,
                half_closed: self.up.end.is_some() || self.down.end.is_some(),
            };
            timer.poll_expired(cx, control.alarm, state, [self.client.socket(), &self.backend])
        })
        .await
    }

    /// Moves what can be moved now, in both directions.
    fn advance(&mut self, cx: &mut Context<'_>, resources: &Resources, meter: &Meter) -> Option<End> {
        let mut again = false;
        if self.up.end.is_none() {
            again |= self.advance_up(cx, resources, meter);
        }
        if self.down.end.is_none() {
            again |= self.advance_down(cx, resources, meter);
        }
        let end = end::of(self.up.end, self.down.end, self.first);
        if end.is_none() && again {
            // The share of this poll is used up, not the work: others first (traps R12).
            cx.waker().wake_by_ref();
        }
        end
    }

    fn advance_up(&mut self, cx: &mut Context<'_>, resources: &Resources, meter: &Meter) -> bool {
        let step = match &mut self.client {
            Client::Plain(socket) => {
                let direction = Direction::ClientToBackend;
                let route = Route { direction, source: socket, sink: &self.backend, resources, meter };
                self.up.advance(cx, &route)
            }
            Client::Tls(client) => client.advance_up(cx, &mut self.up, &self.backend, resources, meter),
            Client::Rustls(client) => client.advance_up(cx, &mut self.up, &self.backend, resources, meter),
        };
        self.settle(step, Side::Client)
    }

    fn advance_down(&mut self, cx: &mut Context<'_>, resources: &Resources, meter: &Meter) -> bool {
        let step = match &mut self.client {
            Client::Plain(socket) => {
                let direction = Direction::BackendToClient;
                let route = Route { direction, source: &self.backend, sink: socket, resources, meter };
                self.down.advance(cx, &route)
            }
            Client::Tls(client) => client.advance_down(cx, &mut self.down, &self.backend, resources, meter),
            Client::Rustls(client) => client.advance_down(cx, &mut self.down, &self.backend, resources, meter),
        };
        self.settle(step, Side::Backend)
    }

    /// Notes how the direction that begins at `source` stands; true if it wants to be polled again at once.
    fn settle(&mut self, step: Step, source: Side) -> bool {
        let (this, other) = match source {
            Side::Client => (&mut self.up, &self.down),
            Side::Backend => (&mut self.down, &self.up),
        };
        match step {
            Step::Waiting => return false,
            Step::Again => return true,
            Step::Ended(end) => this.end = Some(end),
        }
        if this.end == Some(FlowEnd::Finished) {
            self.first.get_or_insert(source);
            // When the other direction is over too, the close that follows says it all.
            if other.end != Some(FlowEnd::Finished) {
                match source {
                    Side::Client => self.backend.finish_sending(),
                    Side::Backend => self.client.finish_sending(),
                }
            }
        }
        false
    }
}

impl Client {
    fn socket(&self) -> &Socket {
        match self {
            Self::Plain(socket) => socket,
            Self::Tls(client) => client.socket(),
            Self::Rustls(client) => client.socket(),
        }
    }

    /// The address that it connected to.
    pub fn own_address(&self) -> Option<SocketAddr> {
        self.socket().own_address()
    }

    /// Ready when the client has left: it reset, or it finished and nothing that it said is unread.
    pub async fn left(&self) -> Left {
        let unread = match self {
            Self::Plain(_) => false,
            Self::Tls(client) => client.has_unread(),
            // What rustls holds cannot be looked at without taking it.
            Self::Rustls(_) => true,
        };
        self.socket().left(unread).await
    }

    /// Closes it by a reset: it cannot be served.
    pub fn refuse(self) {
        self.socket().reset_on_close();
    }

    /// Sends FIN; `close_notify` has gone before it.
    fn finish_sending(&self) {
        self.socket().finish_sending();
    }
}

impl Resources {
    /// The resources of worker number `worker`, with at most `pipes` pipes.
    pub fn new(worker: usize, pipes: usize, zero_copy: ZeroCopy, registry: Arc<Registry>) -> Self {
        Self { scratch: RefCell::new(Scratch::new()), pipes: Pipes::new(pipes), zero_copy, worker, registry }
    }

    fn cells(&self) -> &WorkerCells {
        self.registry.workers().at(self.worker)
    }

    /// Shows the pipes in the metrics.
    fn note_pipes(&self) {
        let cells = self.cells();
        cells.pipes_in_use.set(self.pipes.in_use() as u64);
        cells.pipes_pooled.set(self.pipes.pooled() as u64);
    }

    fn note_fallback(&self, reason: Fallback) {
        self.cells().fallbacks.at(reason).add(1);
    }
}

impl Meter {
    /// A meter for one connection of a listener, on worker number `worker`.
    pub fn new(listener: Arc<PerWorker<ListenerCells>>, worker: usize) -> Self {
        Self {
            listener,
            worker,
            received: Cell::new(0),
            sent: Cell::new(0),
            moved: Cell::new(0),
            end: Cell::new(None),
            spliced: Cell::new(false),
            first_byte: Cell::new(None),
        }
    }

    /// Bytes from the client and to the client so far.
    pub fn received_and_sent(&self) -> (u64, u64) {
        (self.received.get(), self.sent.get())
    }

    /// Whether any byte went through a pipe.
    pub fn spliced(&self) -> bool {
        self.spliced.get()
    }

    /// When the first byte of the backend went to the client.
    pub fn first_byte(&self) -> Option<Instant> {
        self.first_byte.get()
    }

    /// How the relay ended, known before its sockets are closed.
    pub fn end(&self) -> Option<End> {
        self.end.get()
    }

    fn read(&self, direction: Direction, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
        if direction == Direction::ClientToBackend {
            self.received.set(self.received.get() + bytes as u64);
            self.listener.at(self.worker).received_bytes.add(bytes as u64);
        }
    }

    fn written(&self, resources: &Resources, path: RelayPath, direction: Direction, bytes: usize) {
        self.moved.set(self.moved.get() + bytes as u64);
        if direction == Direction::BackendToClient {
            if self.sent.get() == 0 {
                self.first_byte.set(Some(Instant::now()));
            }
            self.sent.set(self.sent.get() + bytes as u64);
            self.listener.at(self.worker).sent_bytes.add(bytes as u64);
        }
        if path == RelayPath::Splice {
            self.spliced.set(true);
        }
        resources.cells().relay_bytes(path, direction).add(bytes as u64);
    }
}
