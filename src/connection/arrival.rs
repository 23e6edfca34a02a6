//! Who the client is where another balancer brings it, and what backends are told of it.

use std::{future::poll_fn, net::SocketAddr, sync::Arc};

use super::Connection;
use crate::{
    address::canonical,
    admission::Admission,
    alarm::Alarm,
    config::{self, DenyAction, SendProxy, TlsVersion},
    limits::SourcePlace,
    outcome::Outcome,
    proxy_protocol::{
        Decoder, Failure, Header, Origin,
        encode::{self, Tls},
    },
    relay::Client,
    sys::socket::Socket,
    tls::{acceptor::Agreement, certificates::normal},
};

/// Bytes of a header that are looked at in one go.
const LOOK: usize = 1 << 10;

/// What a PROXY header said.
#[derive(Debug)]
pub(super) struct Arrival {
    origin: Origin,
    /// The firewall rule that decided about the client; nothing where that is the peer, about whom one has decided.
    pub(super) rule: Option<Arc<str>>,
    /// The client's, beside that of the peer.
    place: Option<SourcePlace>,
}

impl Arrival {
    fn admit(&mut self, admission: Admission) -> Result<(), Outcome> {
        match admission {
            Admission::Welcome { rule, place } => {
                self.rule = Some(rule);
                self.place = place;
                Ok(())
            }
            Admission::Denied { rule } => {
                self.rule = Some(rule);
                Err(Outcome::Denied)
            }
            Admission::Limited { rule } => {
                self.rule = Some(rule);
                Err(Outcome::Limited)
            }
        }
    }

    /// The client that was named, and the address that it connected to.
    fn addresses(&self) -> Option<(SocketAddr, SocketAddr)> {
        match self.origin {
            Origin::Client { source, destination } => Some((source, destination)),
            Origin::Local | Origin::Unknown => None,
        }
    }
}

impl Connection {
    /// For whom it is: whom the header names, or else the peer.
    pub(super) fn client(&self) -> SocketAddr {
        let notes = self.notes.borrow();
        notes.arrival.as_ref().and_then(|arrival| arrival.addresses()).map_or(self.peer, |(source, _)| source)
    }

    /// A client that is brought: first its header, then what every client does.
    pub(super) async fn arrive(
        &self,
        socket: Socket,
        required: &config::ProxyProtocol,
        alarm: &Alarm,
    ) -> Result<Client, Outcome> {
        self.receive_header(&socket, required, alarm).await?;
        // Boxed, so that who only waits for its header takes no room for a handshake.
        if self.frontend.tls.is_some() {
            Box::pin(self.shake_hands(socket, alarm)).await
        } else {
            Ok(Client::Plain(socket))
        }
    }

    /// Takes the header from the stream, and nothing behind it; then the client that it names is judged like one that came
    /// itself (traps P6).
    async fn receive_header(
        &self,
        socket: &Socket,
        required: &config::ProxyProtocol,
        alarm: &Alarm,
    ) -> Result<(), Outcome> {
        let frontend = &*self.frontend;
        let cells = frontend.cells.at(self.local.index);
        let mut decoder = Decoder::new(required.max_length);
        let header = {
            let shortage = frontend.shortage(|| self.local.all_handshakes());
            let levels = [&cells.proxy_in_progress, self.local.handshake_level()];
            let _member = self.local.handshakes.join(&frontend.name, alarm, shortage, levels);
            alarm.within(required.timeout, read(socket, &mut decoder)).await
        };
        let header = match header.unwrap_or(Err(Failure::Timeout)) {
            Ok(header) => header,
            Err(Failure::Incomplete) if decoder.is_untouched() => {
                self.notes.borrow_mut().silent = true;
                return Err(Outcome::ClientClosed);
            }
            Err(failure) => {
                cells.proxy_failures.at(failure).add(1);
                return Err(Outcome::BadProxyHeader);
            }
        };
        cells.proxy_headers.at(header.version).add(1);
        let mut arrival = Box::new(Arrival { origin: header.origin, rule: None, place: None });
        let admitted = match arrival.addresses() {
            Some((client, _)) => arrival.admit(Admission::of(client.ip(), frontend, self.local.index)),
            None => Ok(()),
        };
        self.notes.borrow_mut().arrival = Some(arrival);
        if admitted == Err(Outcome::Limited) || admitted.is_err() && frontend.firewall.deny_action == DenyAction::Reset
        {
            socket.reset_on_close();
        }
        admitted
    }

    /// What a backend is told of the client before anything else; nothing by most pools.
    pub(super) fn preface(&self, client: &Client) -> Vec<u8> {
        let send_proxy = self.frontend.pool.send_proxy;
        if send_proxy == SendProxy::Off {
            return Vec::new();
        }
        let notes = self.notes.borrow();
        let arrival = notes.arrival.as_ref();
        let (source, destination) = arrival.and_then(|arrival| arrival.addresses()).unwrap_or_else(|| {
            let nobody = SocketAddr::new(std::net::Ipv4Addr::UNSPECIFIED.into(), 0);
            (self.peer, client.own_address().map_or(nobody, canonical))
        });
        let is_local = arrival.is_some_and(|arrival| arrival.origin == Origin::Local);
        match send_proxy {
            SendProxy::Off => Vec::new(),
            SendProxy::V1 => encode::v1(source, destination),
            SendProxy::V2 if is_local => encode::local(),
            SendProxy::V2 => {
                let agreed = notes.agreement();
                let tls = agreed.map(|agreed| self.told_of_tls(agreed));
                encode::v2(source, destination, tls.as_ref())
            }
        }
    }

    fn told_of_tls<'a>(&self, agreed: &'a Agreement) -> Tls<'a> {
        // A name without a certificate is only what the client said (traps P9).
        let covered = |name: &String| self.frontend.tls.as_ref().is_some_and(|policy| policy.covers(name));
        Tls {
            version: match agreed.version {
                TlsVersion::V1_2 => "TLSv1.2",
                TlsVersion::V1_3 => "TLSv1.3",
            },
            // rustls spells the suites of TLS 1.3 in its own way.
            cipher: agreed.cipher.replacen("TLS13_", "TLS_", 1),
            alpn: agreed.alpn.as_deref(),
            authority: agreed.sni.as_deref().map(normal).filter(covered),
        }
    }
}

async fn read(socket: &Socket, decoder: &mut Decoder) -> Result<Header, Failure> {
    loop {
        let taken = poll_fn(|cx| {
            // No buffer waits with the client.
            let mut buffer = [0; LOOK];
            let appetite = decoder.appetite().min(LOOK);
            let buffer = buffer.get_mut(..appetite).unwrap_or_default();
            socket.poll_take(cx, buffer, |bytes| match decoder.take(bytes) {
                Ok(_) if bytes.is_empty() => (0, Err(Failure::Incomplete)),
                Ok(taken) => (taken.length, Ok(taken.header)),
                Err(failure) => (0, Err(failure)),
            })
        });
        if let Some(header) = taken.await.unwrap_or(Err(Failure::Incomplete))? {
            return Ok(header);
        }
    }
}
