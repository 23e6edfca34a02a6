//! The handshake without buffers that stay: rustls's unbuffered interface, fed one record at a time.
//!
//! One record at a time, because what follows the client's last handshake record is not rustls's any more: when the
//! handshake is done, rustls hands its traffic secrets over (its interface for kernel TLS) and [`super::record`] goes on
//! with the bytes behind it.

use std::{
    fmt,
    future::poll_fn,
    task::{Poll, ready},
    time::{Duration, Instant},
};

use rustls::{
    kernel::KernelConnection,
    server::{ServerConnectionData, UnbufferedServerConnection},
    unbuffered::{ConnectionState, EncodeError, EncodeTlsData, InsufficientSizeError, UnbufferedStatus},
};

use super::{
    acceptor::{self, Agreement, MAX_HELLO, Policy, Refusal},
    certificates::{Asked, take_asked},
    record::{HEADER, Opener, Sealer},
};
use crate::{alarm::Alarm, config::TlsVersion, metrics::HandshakeFailure, sys::socket::Socket};

/// Asked of each read; a flight of a client is shorter.
const READ: usize = 4 << 10;

/// What is left of a handshake.
pub struct Session {
    pub version: TlsVersion,
    pub sealer: Sealer,
    pub opener: Opener,
    /// Derives the next keys when one side asks for an update.
    pub keys: KernelConnection<ServerConnectionData>,
    /// What came behind the handshake.
    pub incoming: Vec<u8>,
}

/// Completes a handshake within `limit`, whatever the client does in between.
pub async fn handshake(
    socket: Socket,
    policy: &Policy,
    limit: Duration,
    alarm: &Alarm,
) -> Result<(Socket, Session, Agreement), Refusal> {
    let begin = Instant::now();
    let mut driver = Driver { socket, incoming: Vec::new(), whole: 0, outgoing: Vec::new(), asked: None };
    let result = alarm.within(limit, driver.drive(policy, alarm)).await;
    let reason = match result.unwrap_or(Err(HandshakeFailure::Timeout)) {
        Ok(tls) => {
            let sni = driver.sni();
            let agreement = acceptor::agreement(&tls, sni.clone(), begin.elapsed());
            match driver.into_session(*tls, agreement.version) {
                Some((socket, session)) => return Ok((socket, session, agreement)),
                None => return Err(Refusal { reason: HandshakeFailure::TlsError, sni, silent: false }),
            }
        }
        Err(reason) => reason,
    };
    let silent = reason == HandshakeFailure::ClientClosed && driver.asked.is_none() && driver.incoming.is_empty();
    Err(Refusal { reason, sni: driver.sni(), silent })
}

struct Driver {
    socket: Socket,
    incoming: Vec<u8>,
    /// How much of `incoming` rustls has been shown: whole records.
    whole: usize,
    outgoing: Vec<u8>,
    /// What the hello asked for; before it is understood [`MAX_HELLO`] holds.
    asked: Option<Asked>,
}

/// What the handshake wants next.
enum Next {
    Again,
    /// Send what there is, then read.
    Read,
    Done,
}

impl Driver {
    async fn drive(
        &mut self,
        policy: &Policy,
        alarm: &Alarm,
    ) -> Result<Box<UnbufferedServerConnection>, HandshakeFailure> {
        // Who says nothing, or not even a whole record, costs no more than what it says (traps T6).
        self.whole = loop {
            self.read().await?;
            if let Some(length) = self.next_record() {
                break length;
            }
        };
        let tls = UnbufferedServerConnection::new(policy.config()).map_err(|_| HandshakeFailure::TlsError)?;
        let mut tls = Box::new(tls);
        loop {
            match self.step(&mut tls) {
                Ok(Next::Again) => {}
                Ok(Next::Read) => {
                    self.flush().await?;
                    self.read().await?;
                }
                Ok(Next::Done) => break,
                Err(Some(error)) => return Err(self.refuse(&mut tls, &error, alarm).await),
                Err(None) => return Err(HandshakeFailure::ClientClosed),
            }
        }
        // The client of TLS 1.2 waits for our Finished. In TLS 1.3 only tickets are left, and they could wait for the first
        // data; but they carry the acknowledgement of the client's Finished, without which a client with Nagle's
        // algorithm holds its first request back for 40 ms.
        self.flush().await?;
        Ok(tls)
    }

    /// Lets rustls go on. `Err(None)`: the client has said goodbye.
    fn step(&mut self, tls: &mut UnbufferedServerConnection) -> Result<Next, Option<rustls::Error>> {
        let Some(shown) = self.incoming.get_mut(..self.whole) else { return Err(None) };
        let UnbufferedStatus { discard, state, .. } = tls.process_tls_records(shown);
        if let Some(asked) = take_asked() {
            self.asked = Some(asked);
        }
        let state = match state {
            Ok(state) => state,
            Err(error) => {
                self.discard(discard);
                return Err(Some(error));
            }
        };
        let (next, blocked) = match state {
            ConnectionState::EncodeTlsData(data) => {
                encode(data, &mut self.outgoing);
                (Next::Again, false)
            }
            ConnectionState::TransmitTlsData(data) => {
                data.done();
                (Next::Again, false)
            }
            ConnectionState::BlockedHandshake => (Next::Read, true),
            ConnectionState::WriteTraffic(_) => (Next::Done, false),
            _ => return Err(None),
        };
        self.discard(discard);
        if blocked && let Some(length) = self.next_record() {
            self.whole += length;
            return Ok(Next::Again);
        }
        Ok(next)
    }

    /// Forgets what rustls is done with.
    fn discard(&mut self, length: usize) {
        self.incoming.drain(..length);
        self.whole -= length;
    }

    /// The length of the whole record behind what rustls has seen.
    fn next_record(&self) -> Option<usize> {
        let rest = self.incoming.get(self.whole..)?;
        let &[.., high, low] = rest.first_chunk::<HEADER>()?;
        let length = HEADER + usize::from(u16::from_be_bytes([high, low]));
        (rest.len() >= length).then_some(length)
    }

    async fn read(&mut self) -> Result<(), HandshakeFailure> {
        let Self { socket, incoming, .. } = self;
        // No buffer waits with the client, and what it sent takes no more room than it has to (traps T7).
        let received = poll_fn(|cx| {
            let mut buffer = [0; READ];
            let received = ready!(socket.poll_recv(cx, &mut buffer));
            Poll::Ready(received.inspect(|length| {
                let bytes = buffer.get(..*length).unwrap_or_default();
                incoming.reserve_exact(bytes.len());
                incoming.extend_from_slice(bytes);
            }))
        })
        .await;
        match received {
            Ok(1..) => {}
            Ok(0) | Err(_) => return Err(HandshakeFailure::ClientClosed),
        }
        if self.asked.is_none() {
            if let Some(refusal) = acceptor::not_a_handshake(&self.incoming) {
                return Err(refusal);
            }
            if self.incoming.len() > MAX_HELLO {
                return Err(HandshakeFailure::TlsError);
            }
        }
        Ok(())
    }

    async fn flush(&mut self) -> Result<(), HandshakeFailure> {
        let mut sent = 0;
        while let Some(rest) = self.outgoing.get(sent..).filter(|rest| !rest.is_empty()) {
            let result = poll_fn(|cx| self.socket.poll_send(cx, rest)).await;
            sent += result.map_err(|_| HandshakeFailure::ClientClosed)?;
        }
        self.outgoing.clear();
        Ok(())
    }

    /// Names the failure and sends the alert that goes with it.
    async fn refuse(
        &mut self,
        tls: &mut UnbufferedServerConnection,
        error: &rustls::Error,
        alarm: &Alarm,
    ) -> HandshakeFailure {
        let unknown = self.asked.as_ref().is_some_and(|asked| !asked.known);
        if unknown {
            self.outgoing = acceptor::unrecognized_name().to_vec();
        } else {
            // rustls has its alert ready, behind what it had said before. When it has no more it looks at what it was
            // shown once again, and that has to be there.
            loop {
                let shown = self.incoming.get_mut(..self.whole).unwrap_or_default();
                let UnbufferedStatus { discard, state, .. } = tls.process_tls_records(shown);
                let Ok(ConnectionState::EncodeTlsData(data)) = state else { break };
                encode(data, &mut self.outgoing);
                self.discard(discard);
            }
        }
        let _ = self.flush().await;
        // Boxed, so that only those who are refused pay for its buffer.
        Box::pin(acceptor::linger(&self.socket, alarm)).await;
        match error {
            _ if unknown => HandshakeFailure::UnknownSni,
            rustls::Error::NoApplicationProtocol => HandshakeFailure::NoSharedAlpn,
            _ => HandshakeFailure::TlsError,
        }
    }

    fn sni(&self) -> Option<Box<str>> {
        self.asked.as_ref().and_then(|asked| asked.name.clone())
    }

    /// Takes the keys over; `None` if rustls does not part with them.
    fn into_session(mut self, tls: UnbufferedServerConnection, version: TlsVersion) -> Option<(Socket, Session)> {
        self.incoming.drain(..self.whole);
        let (secrets, keys) = tls.dangerous_into_kernel_connection().ok()?;
        let sealer = Sealer::new(version, &secrets.tx.1, secrets.tx.0)?;
        let opener = Opener::new(version, &secrets.rx.1, secrets.rx.0)?;
        let session = Session { version, sealer, opener, keys, incoming: self.incoming };
        Some((self.socket, session))
    }
}

fn encode(mut data: EncodeTlsData<'_, ServerConnectionData>, outgoing: &mut Vec<u8>) {
    let Err(EncodeError::InsufficientSize(InsufficientSizeError { required_size })) = data.encode(&mut []) else {
        return;
    };
    let before = outgoing.len();
    outgoing.resize(before + required_size, 0);
    let room = outgoing.get_mut(before..).unwrap_or_default();
    let written = data.encode(room).unwrap_or(0);
    outgoing.truncate(before + written);
}

impl fmt::Debug for Session {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Session").field("version", &self.version).finish_non_exhaustive()
    }
}
