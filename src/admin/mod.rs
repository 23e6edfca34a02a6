//! The admin HTTP server. Over TCP it is read-only, for scrapers, probes and people with curl; the unix socket also shows
//! the state in full and takes changes ([`api`]), for its owner alone.
//!
//! It runs on the control thread. One request per connection and a bound on everything, because a monitoring port is where
//! scanners and browsers knock: connections, header size and time, total time.

pub mod answers;
mod api;
mod bans;
pub mod control;
mod guard;
mod names;

use std::{
    convert::Infallible,
    fmt, io,
    net::SocketAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, Ordering},
    },
    time::Duration,
};

use arc_swap::ArcSwap;
use axum::{
    Extension, Router,
    extract::State as Shared,
    http::{HeaderMap, StatusCode, header},
    response::{IntoResponse, Response},
    routing::get,
};
use hyper::{body::Incoming, server::conn::http1, service::service_fn};
use hyper_util::{
    rt::{TokioIo, TokioTimer},
    service::TowerToHyperService,
};
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::{TcpListener, UnixListener},
    sync::{Semaphore, watch},
    task::JoinSet,
    time,
};

use crate::{
    address::canonical_ip,
    cidr::Cidr,
    metrics::Format,
    sys::{listen::is_out_of_descriptors, reserve::Reserve},
};
use api::Peer;
use control::Control;

/// Writes a scrape. It is called on the control thread and must not wait for anything.
pub type Scrape = Box<dyn Fn(Format) -> String + Send + Sync>;

/// What the answers are made of.
pub struct State {
    /// Who may connect; nobody else gets a byte.
    pub allow: ArcSwap<Vec<Cidr>>,
    /// DNS names the server may be called by, for scrapers that are configured by name. Addresses and `localhost` need no
    /// entry: any address where the bind is not loopback, otherwise loopback ones.
    pub hosts: Vec<String>,
    /// Whether new connections are welcome: false before the listeners are open and from the start of a drain.
    pub ready: AtomicBool,
    pub metrics: Scrape,
    /// Whether the listeners take clients.
    pub doors: watch::Sender<Doors>,
    /// A permit for each client that may be inside over TCP.
    pub seats: Arc<Semaphore>,
}

impl State {
    /// Lets nobody in and waits a moment for those that are inside.
    pub async fn shut(&self) {
        const MOMENT: Duration = Duration::from_millis(500);
        self.doors.send_replace(Doors::Shut);
        let all = u32::try_from(MAX_CONNECTIONS).unwrap_or(u32::MAX);
        let _ = time::timeout(MOMENT, self.seats.acquire_many(all)).await;
    }
}

/// As many as may be inside at once.
pub fn seats() -> Arc<Semaphore> {
    Arc::new(Semaphore::new(MAX_CONNECTIONS))
}

/// Whether the admin listeners take clients.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Doors {
    Open,
    /// Who comes waits in the kernel's queue.
    Shut,
    /// Another process takes them from now on. Who is inside is answered.
    Left,
}

/// A request is short and an answer takes one write: 64 is far beyond every honest use. Operators are fewer.
const MAX_CONNECTIONS: usize = 64;
const MAX_OPERATORS: usize = 16;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// From accept to close, so that a client that does not read its answer is gone too. An operator may wait for a reload.
const TOTAL_TIMEOUT: Duration = Duration::from_secs(30);
const OPERATION_TIMEOUT: Duration = Duration::from_mins(2);
const MAX_HEADERS: usize = 64;
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Descriptors kept back for requests when clients have taken all the others; each request needs one.
const RESERVED: usize = 16;
const RESERVED_FOR_OPERATORS: usize = 4;
/// What a scrape opens at once to read `/proc`.
const SCRAPE_OPENS: usize = 3;
/// After an accept that failed, for want of descriptors most likely.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves until it is dropped, which ends its connections too.
pub async fn serve(listener: TcpListener, state: Arc<State>) {
    serve_with(listener, state, HEADER_TIMEOUT).await;
}

/// As [`serve`], on a unix socket, with changes: the file mode says who may connect, and no web page can.
pub async fn serve_unix(listener: UnixListener, control: Arc<Control>) {
    let router = router(&control.state).merge(api::router(&control));
    serve_door(Door::Unix(listener), router, Arc::clone(&control.state), HEADER_TIMEOUT).await;
}

async fn serve_with(listener: TcpListener, state: Arc<State>, header_timeout: Duration) {
    let Ok(bound) = listener.local_addr() else { return };
    serve_door(Door::Tcp(listener, bound), router(&state), state, header_timeout).await;
}

/// Where clients come in.
enum Door {
    Tcp(TcpListener, SocketAddr),
    Unix(UnixListener),
}

/// A client, wherever it came in.
trait Stream: AsyncRead + AsyncWrite + Unpin + Send {}

impl<S: AsyncRead + AsyncWrite + Unpin + Send> Stream for S {}

impl Door {
    /// `None`: a client that may not connect.
    async fn accept(&self, state: &State) -> io::Result<Option<(Box<dyn Stream>, Option<Peer>)>> {
        match self {
            Self::Tcp(listener, _) => {
                let (stream, peer) = listener.accept().await?;
                Ok(allowed(state, peer).then(|| (Box::new(stream) as _, None)))
            }
            Self::Unix(listener) => {
                let (stream, _) = listener.accept().await?;
                let peer = stream.peer_cred().ok().map(|peer| Peer { uid: peer.uid(), pid: peer.pid() });
                Ok(Some((Box::new(stream), peer)))
            }
        }
    }

    /// One for each connection at once.
    fn seats(&self, state: &State) -> Arc<Semaphore> {
        match self {
            Self::Tcp(..) => Arc::clone(&state.seats),
            Self::Unix(_) => Arc::new(Semaphore::new(MAX_OPERATORS)),
        }
    }

    /// Descriptors kept back for its requests.
    fn reserved(&self) -> usize {
        match self {
            Self::Tcp(..) => RESERVED,
            Self::Unix(_) => RESERVED_FOR_OPERATORS,
        }
    }

    fn patience(&self) -> Duration {
        match self {
            Self::Tcp(..) => TOTAL_TIMEOUT,
            Self::Unix(_) => OPERATION_TIMEOUT,
        }
    }

    /// The address whose name a request must use; a unix socket has none.
    fn bound(&self) -> Option<SocketAddr> {
        match self {
            Self::Tcp(_, bound) => Some(*bound),
            Self::Unix(_) => None,
        }
    }
}

async fn serve_door(door: Door, router: Router, state: Arc<State>, header_timeout: Duration) {
    let seats = door.seats(&state);
    let reserve = Reserve::watched(door.reserved());
    let mut connections = JoinSet::new();
    let mut doors = state.doors.subscribe();
    loop {
        while connections.try_join_next().is_some() {}
        match doors.wait_for(|doors| *doors != Doors::Shut).await.map(|doors| *doors) {
            Ok(Doors::Open) => {}
            _ => break,
        }
        // The seat comes before the accept: who comes when all are taken waits in the kernel's queue, at no cost to us.
        let Ok(seat) = Arc::clone(&seats).acquire_owned().await else { return };
        let accepted = tokio::select! {
            accepted = door.accept(&state) => accepted,
            _ = doors.changed() => continue,
        };
        let (stream, peer) = match accepted {
            Ok(Some(client)) => client,
            Ok(None) => continue,
            Err(error) if is_out_of_descriptors(&error) && reserve.give_up() => continue,
            Err(_) => {
                time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let router = router.clone().layer(Extension(peer)).layer(Extension(Arc::clone(&reserve)));
        let connection = connection(stream, door.bound(), router, Arc::clone(&state), header_timeout);
        let patience = door.patience();
        connections.spawn(async move {
            // Both errors mean that it is over: too slow, or nothing we could answer.
            let _ = time::timeout(patience, connection).await;
            drop(seat);
        });
    }
    drop(door);
    while connections.join_next().await.is_some() {}
}

fn allowed(state: &State, peer: SocketAddr) -> bool {
    let peer = canonical_ip(peer.ip());
    state.allow.load().iter().any(|network| network.contains(peer))
}

async fn connection(
    stream: Box<dyn Stream>,
    bound: Option<SocketAddr>,
    router: Router,
    state: Arc<State>,
    header_timeout: Duration,
) -> hyper::Result<()> {
    let router = TowerToHyperService::new(router);
    let service = service_fn(move |request: hyper::Request<Incoming>| {
        let refusal = bound.and_then(|bound| guard::refusal(&request, bound, &state.hosts));
        let answer = refusal.is_none().then(|| hyper::service::Service::call(&router, request));
        async move {
            match (refusal, answer) {
                (None, Some(answer)) => answer.await,
                (refusal, _) => Ok::<_, Infallible>(refusal.unwrap_or(StatusCode::FORBIDDEN).into_response()),
            }
        }
    });
    http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(header_timeout)
        .max_headers(MAX_HEADERS)
        .max_header_size(MAX_HEADER_BYTES)
        .max_buf_size(MAX_HEADER_BYTES)
        .keep_alive(false)
        // `printf ... | nc` finishes its side before it reads.
        .half_close(true)
        .serve_connection(TokioIo::new(stream), service)
        .await
}

fn router(state: &Arc<State>) -> Router {
    Router::new()
        .route("/", get(page))
        .route("/metrics", get(metrics))
        .route("/healthz", get(|| async { "ok\n" }))
        .route("/readyz", get(ready))
        .with_state(Arc::clone(state))
}

async fn page() -> &'static str {
    concat!(
        "sluicegate ",
        env!("CARGO_PKG_VERSION"),
        "\n\n/metrics  Prometheus text, or OpenMetrics where it is asked for\n",
        "/healthz  200 while the process lives\n",
        "/readyz   200 while it takes new connections, 503 otherwise\n",
    )
}

async fn metrics(
    Shared(state): Shared<Arc<State>>,
    Extension(reserve): Extension<Arc<Reserve>>,
    headers: HeaderMap,
) -> Response {
    let _room = reserve.lend(SCRAPE_OPENS);
    let accept = headers.get(header::ACCEPT).and_then(|value| value.to_str().ok()).unwrap_or_default();
    let format = Format::accepted(accept);
    ([(header::CONTENT_TYPE, format.content_type())], (state.metrics)(format)).into_response()
}

async fn ready(Shared(state): Shared<Arc<State>>) -> (StatusCode, &'static str) {
    if state.ready.load(Ordering::Relaxed) {
        (StatusCode::OK, "ready\n")
    } else {
        (StatusCode::SERVICE_UNAVAILABLE, "not ready\n")
    }
}

impl fmt::Debug for State {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { allow, hosts, ready, metrics: _, doors, seats: _ } = self;
        f.debug_struct("State")
            .field("allow", allow)
            .field("hosts", hosts)
            .field("ready", ready)
            .field("doors", doors)
            .finish_non_exhaustive()
    }
}

#[cfg(test)]
mod tests;
