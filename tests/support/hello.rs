//! A `ClientHello` in pieces: the same message in records and segments of our choice.

use std::{io::Write, net::TcpStream, sync::Arc};

use rustls::{ClientConfig, ClientConnection, pki_types::ServerName};

use super::client::{self, Tls};

const HEADER: usize = 5;

#[derive(Debug)]
pub struct Hello {
    connection: ClientConnection,
    name: String,
    header: [u8; 3],
    message: Vec<u8>,
}

impl Hello {
    pub fn new(name: &str, config: Arc<ClientConfig>) -> Self {
        let server = ServerName::try_from(name.to_owned()).unwrap();
        let mut connection = ClientConnection::new(config, server).unwrap();
        let mut record = Vec::new();
        while connection.wants_write() {
            connection.write_tls(&mut record).unwrap();
        }
        let header = [record[0], record[1], record[2]];
        let length = usize::from(u16::from_be_bytes([record[3], record[4]]));
        assert_eq!(record.len(), HEADER + length, "one record holds the whole hello");
        Self { connection, name: name.to_owned(), header, message: record[HEADER..].to_vec() }
    }

    /// The message cut at these offsets, each piece in a record of its own.
    pub fn records(&self, cuts: &[usize]) -> Vec<u8> {
        let mut bytes = Vec::new();
        let ends = cuts.iter().copied().chain([self.message.len()]);
        let mut start = 0;
        for end in ends {
            let piece = &self.message[start..end];
            bytes.extend_from_slice(&self.header);
            bytes.extend_from_slice(&(piece.len() as u16).to_be_bytes());
            bytes.extend_from_slice(piece);
            start = end;
        }
        bytes
    }

    /// As a client sends it.
    pub fn whole(&self) -> Vec<u8> {
        self.records(&[])
    }

    /// Every byte in a record of its own.
    pub fn crumbs(&self) -> Vec<u8> {
        self.records(&(1..self.message.len()).collect::<Vec<_>>())
    }

    /// An offset in the middle of the server name.
    pub fn inside_the_name(&self) -> usize {
        let name = self.name.as_bytes();
        let at = self.message.windows(name.len()).position(|w| w == name).expect("a name in the hello");
        at + name.len() / 2
    }

    /// The rest of the handshake, after the hello was sent in whatever shape.
    pub fn finish(self, stream: TcpStream) -> std::io::Result<Tls> {
        client::finish_handshake(self.connection, stream)
    }
}

/// A `close_notify` as it may be sent before any key is known.
pub const CLOSE_NOTIFY: [u8; 7] = [21, 3, 3, 0, 2, 1, 0];

#[test]
fn a_hello_in_pieces_is_the_same_hello() {
    let hello = Hello::new("foobar.com", Arc::new(client::config(rustls::ALL_VERSIONS)));
    let cut = hello.inside_the_name();
    let (whole, two) = (hello.whole(), hello.records(&[cut]));
    assert_eq!(two.len(), whole.len() + HEADER);
    assert_eq!(whole[HEADER..HEADER + cut], two[HEADER..HEADER + cut]);
    assert_eq!(whole[HEADER + cut..], two[2 * HEADER + cut..]);
    assert_eq!(hello.crumbs().len(), hello.message.len() * (HEADER + 1));
}

/// The clients here against rustls itself: what they say of the gate is not their own fault.
#[test]
fn a_rustls_server_understands_the_pieces_and_the_ends() {
    let leaf = super::Authority::leaf(&["foobar.com"]);
    let server = Arc::new(server_config(&leaf));
    let backend = super::Backend::start(move |mut stream, _| {
        let connection = rustls::ServerConnection::new(Arc::clone(&server)).unwrap();
        let mut tls = rustls::StreamOwned::new(connection, &mut stream);
        let (heard, _) = client::read_all(&mut tls);
        let _ = tls.write_all(&heard);
        tls.conn.send_close_notify();
        let _ = tls.flush();
    });
    for cuts in [vec![], vec![1, 2, 3], vec![300]] {
        let hello = Hello::new("foobar.com", Arc::new(client::config(rustls::ALL_VERSIONS)));
        let mut stream = client::connect(backend.address);
        stream.write_all(&hello.records(&cuts)).unwrap();
        let mut stream = hello.finish(stream).unwrap();
        stream.write_all(b"hello").unwrap();
        client::Stream::finish_sending(&mut stream);
        assert_eq!(client::read_all(&mut stream), (b"hello".to_vec(), super::tags::End::Eof));
    }
}

fn server_config(leaf: &super::certificates::Leaf) -> rustls::ServerConfig {
    use rustls::pki_types::{CertificateDer, PrivateKeyDer, pem::PemObject};
    let chain = vec![CertificateDer::from_pem_slice(leaf.certificate.as_bytes()).unwrap()];
    let key = PrivateKeyDer::from_pem_slice(leaf.key.as_bytes()).unwrap();
    rustls::ServerConfig::builder().with_no_client_auth().with_single_cert(chain, key).unwrap()
}
