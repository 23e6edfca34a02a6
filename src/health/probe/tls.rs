//! A TLS handshake with a backend.

use std::{net::SocketAddr, sync::Arc};

use rustls::{ClientConfig, pki_types::ServerName};
use tokio::net::TcpStream;
use tokio_rustls::{TlsConnector, client::TlsStream};

use super::{Failure, words};
use crate::metrics::CheckResult;

#[derive(Debug)]
pub struct Tls {
    client: Arc<ClientConfig>,
    name: ServerName<'static>,
}

impl Tls {
    /// Without a name the address is the name; it is then not sent.
    pub fn new(client: Arc<ClientConfig>, name: Option<ServerName<'static>>, target: SocketAddr) -> Self {
        Self { client, name: name.unwrap_or_else(|| ServerName::IpAddress(target.ip().into())) }
    }

    pub async fn handshake(&self, stream: TcpStream) -> Result<TlsStream<TcpStream>, Failure> {
        let connector = TlsConnector::from(Arc::clone(&self.client));
        connector.connect(self.name.clone(), stream).await.map_err(|error| {
            if error.get_ref().and_then(|inner| inner.downcast_ref::<rustls::Error>()).is_some() {
                return Failure::new(CheckResult::Tls, format!("TLS handshake: {}", words(&error.to_string())));
            }
            Failure::io("TLS handshake", &error)
        })
    }
}
