//! One client's whole life. Start reading here.
//!
//! [`admit`] says yes or no straight after accept, [`Connection::serve`] does the rest from top to bottom. Every return
//! is an [`Outcome`]; metrics and the log are written once, by [`Connection::run`], from what the connection noted.
//! Between the two a client may change to another worker: it is counted as accepted by the one and as closed by the
//! other, each in its own cells, and only sums are shown.

mod arrival;
mod ends;
mod rejected;
mod search;
mod sight;

use std::{
    cell::RefCell,
    future::poll_fn,
    net::SocketAddr,
    os::fd::OwnedFd,
    pin::pin,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant, SystemTime},
};

use arrival::Arrival;

use crate::{
    access_log::{Record, Seconds, TlsDetails},
    admission::Admission,
    alarm::Alarm,
    bans::Offence,
    config::DenyAction,
    drain::Watcher,
    frontend::{Frontend, Place},
    limits::SourcePlace,
    local::{Local, Served},
    metrics::{HandshakeFailure, RelayPath, Resumption},
    outcome::Outcome,
    proxy_protocol::Failure,
    relay::{self, Client, Control, End, Meter, rustls::RustlsClient, tls::TlsClient},
    sys::{listen::turn_away, socket::Socket},
    tls::{
        acceptor::{self, Agreement},
        unbuffered,
    },
};
pub use rejected::Rejected;

/// A client that may come in. It belongs to no worker yet, so any of them can serve it.
#[derive(Debug)]
pub struct Admitted {
    fd: OwnedFd,
    peer: SocketAddr,
    frontend: Arc<Frontend>,
    accepted: Instant,
    rule: Arc<str>,
    places: Places,
}

/// What a client takes up under the limits, given back when dropped.
#[derive(Debug)]
struct Places {
    _house: [Place; 2],
    _source: Option<SourcePlace>,
}

/// A client that is served by one worker.
#[derive(Debug)]
pub struct Connection {
    /// What the log and the operator know it by.
    id: u64,
    frontend: Arc<Frontend>,
    local: Served,
    /// Who has connected: the client, or a balancer that brings it.
    peer: SocketAddr,
    accepted: Instant,
    rule: Arc<str>,
    _places: Places,
    meter: Meter,
    notes: RefCell<Notes>,
}

/// What is learnt on the way, for the log.
#[derive(Debug, Default)]
struct Notes {
    /// What the PROXY header said, where one is required.
    arrival: Option<Box<Arrival>>,
    /// Boxed: most of a plain connection's notes would be room for it.
    tls: Option<Box<Handshake>>,
    backend: Option<Arc<str>>,
    attempts: u32,
    /// Waiting for a backend with room.
    queue: Duration,
    connect: Option<Duration>,
    /// Closed before anything was said: counted, not logged (traps O8).
    silent: bool,
}

/// What came of a handshake.
#[derive(Debug)]
enum Handshake {
    Agreed(Agreement),
    /// With the name that was asked for.
    Refused(Option<Box<str>>),
}

impl Notes {
    fn agreement(&self) -> Option<&Agreement> {
        match self.tls.as_deref()? {
            Handshake::Agreed(agreement) => Some(agreement),
            Handshake::Refused(_) => None,
        }
    }
}

/// The verdict straight after accept: bans, the firewall, limits, and whether it may bring clients where they have to be
/// brought. Nothing is read or written; who is turned away costs accept, close and at most one option (traps F5). `worker` is
/// the one that accepted.
pub fn admit(fd: OwnedFd, peer: SocketAddr, frontend: &Arc<Frontend>, worker: usize) -> Result<Admitted, Rejected<'_>> {
    let cells = frontend.cells.at(worker);
    cells.accepted.add(1);
    let resets = frontend.firewall.deny_action == DenyAction::Reset;
    let reject = |fd, rule, outcome, resets| {
        turn_away(fd, resets);
        cells.close(outcome, Duration::ZERO);
        Err(Rejected { client: peer, frontend, rule, outcome })
    };
    let (rule, place) = match Admission::of(peer.ip(), frontend, worker) {
        Admission::Welcome { rule, place } => (rule, place),
        Admission::Denied { rule } => return reject(fd, rule, Outcome::Denied, resets),
        Admission::Limited { rule } => return reject(fd, rule, Outcome::Limited, true),
    };
    if frontend.proxy_protocol.as_ref().is_some_and(|required| !required.trusts(peer.ip())) {
        cells.proxy_failures.at(Failure::Untrusted).add(1);
        if let Some(watch) = &frontend.watch {
            watch.note(peer.ip(), Offence::Handshake);
        }
        return reject(fd, rule, Outcome::BadProxyHeader, resets);
    }
    let [process, listener] = &frontend.limits;
    let (Some(process), Some(listener)) = (process.take(), listener.take()) else {
        return reject(fd, rule, Outcome::MaxConnections, true);
    };
    Ok(Admitted {
        fd,
        peer,
        frontend: Arc::clone(frontend),
        accepted: Instant::now(),
        rule,
        places: Places { _house: [process, listener], _source: place },
    })
}

impl Admitted {
    /// Connections of the whole process, with this one.
    pub fn peers(&self) -> usize {
        let [process, _] = &self.frontend.limits;
        process.taken()
    }
}

impl Connection {
    /// Takes a client up as a task of this worker.
    pub fn begin(admitted: Admitted, local: &Rc<Local>) {
        let Admitted { fd, peer, frontend, accepted, rule, places } = admitted;
        let meter = Meter::new(Arc::clone(&frontend.cells), local.index);
        let (id, local, notes) = (local.random(), Served::by(local), RefCell::default());
        let connection = Self { id, frontend, local, peer, accepted, rule, _places: places, meter, notes };
        tokio::task::spawn_local(connection.run(fd));
    }

    /// Serves the client and tells how it ended.
    #[expect(
        clippy::manual_async_fn,
        reason = "an async fn keeps its arguments twice, for as long as the client stays"
    )]
    fn run(self, fd: OwnedFd) -> impl Future<Output = ()> {
        async move {
            let watcher = self.local.drain.watcher();
            let mut ending = Ending { connection: &self, outcome: None };
            let mut serving = pin!(self.serve(fd, &watcher));
            let served = poll_fn(|cx| {
                if let Some(inquiry) = watcher.inquiry() {
                    self.answer(&inquiry, &watcher);
                }
                serving.as_mut().poll(cx)
            })
            .await;
            ending.outcome = Some(match served {
                Ok(end) => end.into(),
                Err(outcome) => outcome,
            });
        }
    }

    async fn serve(&self, fd: OwnedFd, drain: &Watcher) -> Result<End, Outcome> {
        let frontend = &*self.frontend;
        let alarm = self.local.alarms.alarm();
        let socket = Socket::accepted(fd).map_err(|_| self.out_of_resources())?;
        let client = match (&frontend.proxy_protocol, &frontend.tls) {
            (None, None) => Client::Plain(socket),
            // Boxed, so that the state of a handshake is gone when the relay begins.
            (None, Some(_)) => drain.unless_ended(Box::pin(self.shake_hands(socket, &alarm))).await??,
            (Some(required), _) => drain.unless_ended(Box::pin(self.arrive(socket, required, &alarm))).await??,
        };
        let (_lease, backend) = match drain.unless_ended(Box::pin(self.dial(&client, drain, &alarm))).await {
            Ok(Ok(dialled)) => dialled,
            failed => {
                client.refuse();
                return Err(failed.map_or_else(Outcome::from, |dialled| dialled.err().unwrap_or(Outcome::Internal)));
            }
        };
        let control = Control { timeouts: frontend.timeouts.jittered(self.local.random()), drain, alarm: &alarm };
        Ok(relay::run(client, backend, &self.local.resources, &self.meter, control).await)
    }

    /// Terminates TLS within the deadline.
    async fn shake_hands(&self, socket: Socket, alarm: &Alarm) -> Result<Client, Outcome> {
        let Some(policy) = &self.frontend.tls else { return Ok(Client::Plain(socket)) };
        let cells = self.frontend.cells.at(self.local.index);
        let limit = self.frontend.handshake;
        let shortage = self.frontend.shortage(|| self.local.all_handshakes());
        let levels = [&cells.tls_in_progress, self.local.handshake_level()];
        let _member = self.local.handshakes.join(&self.frontend.name, alarm, shortage, levels);
        let result = if self.local.rustls_records {
            // Boxed, so that nobody else pays for the off switch's size.
            let result = Box::pin(acceptor::handshake(socket, policy, limit, alarm)).await;
            result.map(|(socket, tls, agreed)| (Client::Rustls(Box::new(RustlsClient::new(socket, tls))), agreed))
        } else {
            let result = unbuffered::handshake(socket, policy, limit, alarm).await;
            result.map(|(socket, session, agreed)| (Client::Tls(Box::new(TlsClient::new(socket, session))), agreed))
        };
        match result {
            Ok((client, agreement)) => {
                cells.tls_handshakes(agreement.version, agreement.resumption).add(1);
                cells.tls_duration.observe(agreement.took);
                self.notes.borrow_mut().tls = Some(Box::new(Handshake::Agreed(agreement)));
                Ok(client)
            }
            Err(refusal) => {
                let mut notes = self.notes.borrow_mut();
                notes.silent = refusal.silent;
                notes.tls = Some(Box::new(Handshake::Refused(refusal.sni)));
                if !refusal.silent {
                    cells.tls_failures.at(refusal.reason).add(1);
                }
                drop(notes);
                self.note_offence(refusal.reason);
                Err(refusal.reason.into())
            }
        }
    }

    /// Notes a handshake that went wrong by what the client said. Who says nothing, goes away or is slow does nothing that an
    /// honest client never does; limits are for those.
    fn note_offence(&self, failure: HandshakeFailure) {
        let is_offence = match failure {
            HandshakeFailure::Timeout | HandshakeFailure::ClientClosed => false,
            HandshakeFailure::TlsError
            | HandshakeFailure::NotTls
            | HandshakeFailure::NotTlsHttp
            | HandshakeFailure::UnknownSni
            | HandshakeFailure::NoSharedAlpn => true,
        };
        if let Some(watch) = self.frontend.watch.as_ref().filter(|_| is_offence) {
            watch.note(self.client().ip(), Offence::Handshake);
        }
    }

    /// This host has nothing left to serve the client with.
    fn out_of_resources(&self) -> Outcome {
        self.local.note_shortage();
        Outcome::OutOfResources
    }

    /// Whether it said nothing and went: that is counted and not logged (traps O8).
    fn was_port_probe(&self, outcome: Outcome) -> bool {
        let closed = matches!(outcome, Outcome::ClientClosed | Outcome::ClientReset);
        let notes = self.notes.borrow();
        closed
            && notes.queue.is_zero()
            && (notes.silent || (notes.agreement().is_none() && self.meter.received_and_sent() == (0, 0)))
    }

    fn record(&self, outcome: Outcome, total: Duration) -> Record {
        let client = self.client();
        let mut notes = self.notes.borrow_mut();
        let (tls, refused) = match notes.tls.take().map(|tls| *tls) {
            Some(Handshake::Agreed(agreement)) => (Some(agreement), None),
            Some(Handshake::Refused(sni)) => (None, sni),
            None => (None, None),
        };
        let (received_bytes, sent_bytes) = self.meter.received_and_sent();
        let path = match (&tls, self.meter.spliced()) {
            (Some(_), _) => RelayPath::Tls,
            (None, true) => RelayPath::Splice,
            (None, false) => RelayPath::Copy,
        };
        Record {
            ts: SystemTime::now(),
            id: self.id,
            listener: Arc::clone(&self.frontend.name),
            client,
            peer: (client != self.peer).then_some(self.peer),
            sni: tls.as_ref().map_or(refused, |tls| tls.sni.clone()),
            rule: notes
                .arrival
                .as_mut()
                .and_then(|arrival| arrival.rule.take())
                .unwrap_or_else(|| Arc::clone(&self.rule)),
            pool: Arc::clone(&self.frontend.pool.name),
            backend: notes.backend.take(),
            attempts: notes.attempts,
            received_bytes,
            sent_bytes,
            path: notes.connect.map(|_| path),
            seconds: Seconds {
                handshake: tls.as_ref().map(|tls| tls.took),
                queue: notes.queue,
                connect: notes.connect,
                first_byte: self.meter.first_byte().map(|at| at - self.accepted),
                total,
            },
            tls: tls.map(|tls| TlsDetails {
                version: tls.version,
                cipher: tls.cipher,
                alpn: tls.alpn,
                resumed: tls.resumption == Resumption::Resumed,
            }),
            outcome,
        }
    }
}

/// Writes the end of a connection down, also when it is cut off or ends by a panic.
struct Ending<'a> {
    connection: &'a Connection,
    outcome: Option<Outcome>,
}

impl Drop for Ending<'_> {
    fn drop(&mut self) {
        let connection = self.connection;
        let Connection { local, frontend, accepted, .. } = connection;
        let outcome = match (self.outcome, connection.meter.end()) {
            (Some(outcome), _) => outcome,
            (None, _) if std::thread::panicking() => Outcome::Internal,
            // Cut off while its sockets were being closed.
            (None, Some(end)) => end.into(),
            (None, None) => Outcome::Drained,
        };
        let total = accepted.elapsed();
        let has_record = match outcome {
            Outcome::Denied | Outcome::Limited => local.note_rejection(connection.client().ip(), outcome),
            _ => !connection.was_port_probe(outcome),
        };
        if has_record {
            local.log(|| connection.record(outcome, total));
        }
        frontend.cells.at(local.index).close(outcome, total);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// How much a future takes, without one.
    fn size<A, B, F>(_: impl FnOnce(A, B) -> F) -> usize {
        size_of::<F>()
    }

    /// What waits with a client that says nothing, beside its task (traps T6).
    #[test]
    fn s13_the_future_of_a_handshake_is_small() {
        const AT_MOST: usize = 1_152;
        fn size<'a, F: 'a>(_: impl FnOnce(&'a Connection, Socket, &'a Alarm) -> F) -> usize {
            size_of::<F>()
        }
        let size = size(Connection::shake_hands);
        println!("{size} bytes for a handshake");
        assert!(size <= AT_MOST, "{size} bytes");
    }

    /// A task is one allocation of this size and a little more, for as long as the connection lives.
    #[test]
    fn s9_the_future_of_a_connection_is_small() {
        const AT_MOST: usize = 912;
        let size = size(Connection::run);
        println!("{size} bytes for a connection, {} for its socket", size_of::<Socket>());
        assert!(size <= AT_MOST, "{size} bytes");
    }
}
