//! A generator of TLS connections: connect, handshake, one GET, read to the end, close, again.
//!
//! This program runs itself for it, pinned to the CPU of the generators. The key exchange is X25519 alone, so that
//! every proxy does the same work.

use std::{
    cell::Cell,
    io,
    rc::Rc,
    sync::Arc,
    time::{Duration, Instant},
};

use anyhow::{Context, Result, bail};
use rustls::{
    ClientConfig, DigitallySignedStruct, NamedGroup, SignatureScheme,
    client::{
        Resumption,
        danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier},
    },
    crypto::aws_lc_rs,
    pki_types::{CertificateDer, ServerName, UnixTime},
};
use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
    task::LocalSet,
};
use tokio_rustls::TlsConnector;

/// The first argument, in front of PORT CONNECTIONS SECONDS and one of the next two.
pub const MODE: &str = "handshakes";
pub const FULL: &str = "full";
pub const RESUME: &str = "resume";

/// Prints `ok N failed N`.
pub fn run(arguments: &[String]) -> Result<()> {
    let [port, connections, seconds, mode] = arguments else { bail!("{MODE} PORT CONNECTIONS SECONDS full|resume") };
    let (port, connections) = (port.parse().context("PORT")?, connections.parse().context("CONNECTIONS")?);
    let length = Duration::from_secs(seconds.parse().context("SECONDS")?);
    let connector = TlsConnector::from(client(mode == RESUME)?);
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (ok, failed) = LocalSet::new().block_on(&runtime, load(connector, port, connections, Instant::now() + length));
    println!("ok {ok} failed {failed}");
    Ok(())
}

/// A client that trusts every certificate: the one here was made a moment ago.
pub fn client(resume: bool) -> Result<Arc<ClientConfig>> {
    let mut provider = aws_lc_rs::default_provider();
    provider.kx_groups.retain(|group| group.name() == NamedGroup::X25519);
    let mut config = ClientConfig::builder_with_provider(Arc::new(provider))
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(Arc::new(AnyCertificate))
        .with_no_client_auth();
    if !resume {
        config.resumption = Resumption::disabled();
    }
    Ok(Arc::new(config))
}

async fn load(connector: TlsConnector, port: u16, connections: usize, end: Instant) -> (u64, u64) {
    let (ok, failed) = (Rc::new(Cell::new(0)), Rc::new(Cell::new(0)));
    let tasks: Vec<_> = (0..connections)
        .map(|_| {
            let (connector, ok, failed) = (connector.clone(), Rc::clone(&ok), Rc::clone(&failed));
            tokio::task::spawn_local(async move {
                while Instant::now() < end {
                    let counter = if one(&connector, port).await.is_ok() { &ok } else { &failed };
                    counter.set(counter.get() + 1);
                }
            })
        })
        .collect();
    for task in tasks {
        let _ = task.await;
    }
    (ok.get(), failed.get())
}

async fn one(connector: &TlsConnector, port: u16) -> io::Result<()> {
    let tcp = TcpStream::connect(("127.0.0.1", port)).await?;
    tcp.set_nodelay(true)?;
    let name = ServerName::try_from("foobar.com").map_err(io::Error::other)?;
    let mut tls = connector.connect(name, tcp).await?;
    tls.write_all(b"GET /small HTTP/1.1\r\nHost: foobar.com\r\nConnection: close\r\n\r\n").await?;
    let mut reply = Vec::new();
    // nginx closes without close_notify; the bytes are what counts.
    let _ = tls.read_to_end(&mut reply).await;
    if reply.starts_with(b"HTTP/1.1 200") { Ok(()) } else { Err(io::ErrorKind::InvalidData.into()) }
}

#[derive(Debug)]
struct AnyCertificate;

impl ServerCertVerifier for AnyCertificate {
    fn verify_server_cert(
        &self,
        _: &CertificateDer<'_>,
        _: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        _: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        Ok(ServerCertVerified::assertion())
    }

    fn verify_tls12_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn verify_tls13_signature(
        &self,
        _: &[u8],
        _: &CertificateDer<'_>,
        _: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        Ok(HandshakeSignatureValid::assertion())
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        aws_lc_rs::default_provider().signature_verification_algorithms.supported_schemes()
    }
}
