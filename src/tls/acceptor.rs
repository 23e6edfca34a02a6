//! The handshake: one total deadline, every failure with its name (traps T1, T6, T9, T16).

use std::{
    future::poll_fn,
    io,
    pin::{Pin, pin},
    sync::Arc,
    task::{Context, Poll, ready},
    time::{Duration, Instant},
};

use rustls::{
    CipherSuite, CommonState, HandshakeKind, ProtocolVersion, ServerConfig, ServerConnection,
    crypto::{CryptoProvider, aws_lc_rs},
    server::{Acceptor, ClientHello, NoServerSessionStorage},
};
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt, ReadBuf};
use tokio_rustls::LazyConfigAcceptor;

use super::{
    certificates::{Certificates, cut},
    tickets::Tickets,
};
use crate::{
    alarm::Alarm,
    config::TlsVersion,
    metrics::{HandshakeFailure, Resumption},
    sys::socket::Socket,
};

/// How a listener does TLS. Immutable.
#[derive(Debug)]
pub struct Policy {
    config: Arc<ServerConfig>,
    certificates: Arc<Certificates>,
    tickets: Arc<Tickets>,
    alpn: bool,
}

/// What was agreed, for the log and the metrics.
#[derive(Debug, Clone)]
pub struct Agreement {
    pub version: TlsVersion,
    pub cipher: &'static str,
    pub alpn: Option<Box<str>>,
    pub resumption: Resumption,
    pub sni: Option<Box<str>>,
    pub took: Duration,
}

/// A handshake that came to nothing.
#[derive(Debug)]
pub struct Refusal {
    pub reason: HandshakeFailure,
    pub sni: Option<Box<str>>,
    /// The client closed before it had sent a byte: a port probe, not a failure (traps O8).
    pub silent: bool,
}

/// The cryptography of this program: aws-lc-rs, AES-128 first.
///
/// SHA-384 has no help from x86 hardware, and a 256-bit key adds nothing against known attacks.
pub fn provider() -> CryptoProvider {
    let mut provider = aws_lc_rs::default_provider();
    provider.cipher_suites.sort_by_key(|suite| match suite.suite() {
        CipherSuite::TLS13_AES_128_GCM_SHA256 => 0,
        CipherSuite::TLS13_CHACHA20_POLY1305_SHA256 => 2,
        CipherSuite::TLS13_AES_256_GCM_SHA384 => 1,
        CipherSuite::TLS_ECDHE_ECDSA_WITH_AES_128_GCM_SHA256 => 3,
        CipherSuite::TLS_ECDHE_RSA_WITH_AES_128_GCM_SHA256 => 4,
        _ => 5,
    });
    provider
}

impl Policy {
    /// `alpn` in order of preference; `tickets` must belong to this policy alone (traps T4).
    pub fn new(
        certificates: Certificates,
        min_version: TlsVersion,
        alpn: &[String],
        provider: &Arc<CryptoProvider>,
        tickets: Arc<Tickets>,
    ) -> Result<Self, rustls::Error> {
        let certificates = Arc::new(certificates);
        let versions: &[&rustls::SupportedProtocolVersion] = match min_version {
            TlsVersion::V1_2 => &[&rustls::version::TLS13, &rustls::version::TLS12],
            TlsVersion::V1_3 => &[&rustls::version::TLS13],
        };
        let mut config = ServerConfig::builder_with_provider(Arc::clone(provider))
            .with_protocol_versions(versions)?
            .with_no_client_auth()
            .with_cert_resolver(Arc::clone(&certificates) as _);
        config.alpn_protocols = alpn.iter().map(|protocol| protocol.clone().into_bytes()).collect();
        config.ignore_client_order = true;
        config.ticketer = Arc::clone(&tickets) as _;
        // Tickets carry the state; a second, locked store would only cost.
        config.session_storage = Arc::new(NoServerSessionStorage {});
        config.send_tls13_tickets = 1;
        config.max_early_data_size = 0;
        // For our own record layer, which takes over after the handshake.
        config.enable_secret_extraction = true;
        Ok(Self { config: Arc::new(config), certificates, tickets, alpn: !alpn.is_empty() })
    }
}

impl Policy {
    /// The keys of its tickets.
    pub fn tickets(&self) -> &Tickets {
        &self.tickets
    }

    /// The keys of its tickets, for the policy that is to replace it: if that one is for other names, a ticket of this is
    /// worth nothing there (traps T4), otherwise clients resume across the change (T5).
    pub fn tickets_for(&self, certificates: &Certificates) -> Option<Arc<Tickets>> {
        (self.certificates.names() == certificates.names()).then(|| Arc::clone(&self.tickets))
    }

    /// Whether a certificate is for this name, which is in its normal form.
    pub fn covers(&self, name: &str) -> bool {
        self.certificates.covers(name)
    }

    pub(super) fn config(&self) -> Arc<ServerConfig> {
        Arc::clone(&self.config)
    }
}

/// Completes a handshake within `limit`, whatever the client does in between.
pub async fn handshake(
    socket: Socket,
    policy: &Policy,
    limit: Duration,
    alarm: &Alarm,
) -> Result<(Socket, ServerConnection, Agreement), Refusal> {
    let begin = Instant::now();
    let mut progress = Progress::default();
    let result = alarm.within(limit, attempt(socket, policy, alarm, &mut progress)).await;
    let reason = match result {
        Some(Ok((socket, tls))) => {
            let agreement = agreement(&tls, progress.sni, begin.elapsed());
            return Ok((socket, tls, agreement));
        }
        Some(Err(reason)) => reason,
        None => HandshakeFailure::Timeout,
    };
    let silent = progress.silent && reason == HandshakeFailure::ClientClosed;
    Err(Refusal { reason, sni: progress.sni, silent })
}

/// What is known when a handshake ends early.
#[derive(Debug, Default)]
struct Progress {
    sni: Option<Box<str>>,
    silent: bool,
}

async fn attempt(
    socket: Socket,
    policy: &Policy,
    alarm: &Alarm,
    progress: &mut Progress,
) -> Result<(Socket, ServerConnection), HandshakeFailure> {
    let mut acceptor = pin!(LazyConfigAcceptor::new(Acceptor::default(), Sniffed::new(socket)));
    let mut start = match acceptor.as_mut().await {
        Ok(start) => start,
        Err(error) => {
            let Some(io) = acceptor.take_io() else { return Err(HandshakeFailure::TlsError) };
            progress.silent = io.seen == 0;
            return Err(refuse(io, &error, alarm).await);
        }
    };
    start.io.hello = false;
    let hello = start.client_hello();
    progress.sni = hello.server_name().map(|name| cut(name).into());
    if !policy.certificates.knows(hello.server_name()) {
        let _ = start.io.socket.write_all(&unrecognized_name()).await;
        linger(&start.io.socket, alarm).await;
        return Err(HandshakeFailure::UnknownSni);
    }
    let offered = policy.alpn && offers_alpn(&hello);
    match start.into_stream(Arc::clone(&policy.config)).into_fallible().await {
        Ok(stream) => {
            let (io, tls) = stream.into_inner();
            Ok((io.socket, tls))
        }
        Err((error, io)) if offered && is_no_protocol(&error) => {
            linger(&io.socket, alarm).await;
            Err(HandshakeFailure::NoSharedAlpn)
        }
        Err((error, io)) => Err(refuse(io, &error, alarm).await),
    }
}

/// Names the failure; a client that was sent an alert gets the time to read it.
async fn refuse(io: Sniffed, error: &io::Error, alarm: &Alarm) -> HandshakeFailure {
    if let Some(reason) = io.refused {
        return reason;
    }
    if tls_error(error).is_some() {
        linger(&io.socket, alarm).await;
        return HandshakeFailure::TlsError;
    }
    HandshakeFailure::ClientClosed
}

/// The longest `ClientHello` that is taken, records and all: rustls alone would keep 64 KiB of one (traps T7). With
/// post-quantum key shares and everything else browsers send, real ones stay below 3 KiB.
pub(super) const MAX_HELLO: usize = (16 << 10) + 256;

/// TLS alert descriptions (RFC 8446, section 6).
const UNRECOGNIZED_NAME: u8 = 112;

/// A fatal alert in plain text, as the handshake has not begun.
pub(super) fn unrecognized_name() -> [u8; 7] {
    const FATAL: u8 = 2;
    [0x15, 3, 3, 0, 2, FATAL, UNRECOGNIZED_NAME]
}

/// FIN, then a moment for the client to read the alert: a close with unread input would reset it away.
pub(super) async fn linger(socket: &Socket, alarm: &Alarm) {
    const MOMENT: Duration = Duration::from_secs(1);
    socket.finish_sending();
    let mut rest = [0; 512];
    let drained = async { while matches!(poll_fn(|cx| socket.poll_recv(cx, &mut rest)).await, Ok(1..)) {} };
    // The handshake's own limit goes on meanwhile, on the alarm itself.
    let _ = alarm.another().within(MOMENT, drained).await;
}

/// What rustls knows of a connection, buffered or not.
pub(super) fn agreement(tls: &CommonState, sni: Option<Box<str>>, took: Duration) -> Agreement {
    let version = version(tls);
    let resumption = match tls.handshake_kind() {
        Some(HandshakeKind::Resumed) => Resumption::Resumed,
        _ => Resumption::Full,
    };
    let cipher = tls.negotiated_cipher_suite().and_then(|suite| suite.suite().as_str()).unwrap_or("unknown");
    let alpn = tls.alpn_protocol().map(|protocol| cut(&String::from_utf8_lossy(protocol)).into());
    Agreement { version, cipher, alpn, resumption, sni, took }
}

/// The version that was agreed.
pub(super) fn version(tls: &CommonState) -> TlsVersion {
    match tls.protocol_version() {
        Some(ProtocolVersion::TLSv1_2) => TlsVersion::V1_2,
        _ => TlsVersion::V1_3,
    }
}

fn offers_alpn(hello: &ClientHello<'_>) -> bool {
    hello.alpn().is_some_and(|mut protocols| protocols.next().is_some())
}

fn is_no_protocol(error: &io::Error) -> bool {
    matches!(tls_error(error), Some(rustls::Error::NoApplicationProtocol))
}

fn tls_error(error: &io::Error) -> Option<&rustls::Error> {
    error.get_ref()?.downcast_ref()
}

/// A socket whose first bytes are looked at: what cannot become a handshake is refused before TLS sees it.
#[derive(Debug)]
struct Sniffed {
    socket: Socket,
    /// Bytes received.
    seen: usize,
    /// The first of them.
    first: Vec<u8>,
    /// The `ClientHello` is not complete: [`MAX_HELLO`] holds.
    hello: bool,
    refused: Option<HandshakeFailure>,
}

impl Sniffed {
    fn new(socket: Socket) -> Self {
        Self { socket, seen: 0, first: Vec::new(), hello: true, refused: None }
    }

    fn look(&mut self, received: &[u8]) {
        if self.seen < FIRST.len() {
            self.first.extend_from_slice(received);
            self.refused = not_a_handshake(&self.first);
        }
        self.seen += received.len();
        if self.hello && self.seen > MAX_HELLO {
            self.refused.get_or_insert(HandshakeFailure::TlsError);
        }
    }
}

/// RFC 8446, section 5.1: a record of content type 22 and a legacy version whose first byte is 3.
const FIRST: [u8; 2] = [0x16, 0x03];

/// What the first bytes of a client are if they cannot become a handshake.
pub(super) fn not_a_handshake(first: &[u8]) -> Option<HandshakeFailure> {
    let handshake = first.iter().zip(FIRST).all(|(byte, expected)| *byte == expected);
    match (handshake, looks_like_http(first)) {
        (true, _) => None,
        (false, true) => Some(HandshakeFailure::NotTlsHttp),
        (false, false) => Some(HandshakeFailure::NotTls),
    }
}

/// A request line begins with a method in capitals (RFC 9112, section 3).
fn looks_like_http(bytes: &[u8]) -> bool {
    const METHODS: [&[u8]; 10] =
        [b"GET ", b"HEAD", b"POST", b"PUT ", b"DELE", b"CONN", b"OPTI", b"TRAC", b"PATC", b"PRI "];
    METHODS.iter().any(|method| bytes.starts_with(method))
}

impl AsyncRead for Sniffed {
    fn poll_read(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        let this = self.get_mut();
        let before = buffer.filled().len();
        ready!(Pin::new(&mut this.socket).poll_read(cx, buffer))?;
        this.look(buffer.filled().get(before..).unwrap_or_default());
        if this.refused.is_some() {
            return Poll::Ready(Err(io::ErrorKind::InvalidData.into()));
        }
        Poll::Ready(Ok(()))
    }
}

impl AsyncWrite for Sniffed {
    fn poll_write(self: Pin<&mut Self>, cx: &mut Context<'_>, buffer: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write(cx, buffer)
    }

    fn poll_write_vectored(
        self: Pin<&mut Self>,
        cx: &mut Context<'_>,
        buffers: &[io::IoSlice<'_>],
    ) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.get_mut().socket).poll_write_vectored(cx, buffers)
    }

    fn is_write_vectored(&self) -> bool {
        true
    }

    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.get_mut().socket).poll_shutdown(cx)
    }
}
