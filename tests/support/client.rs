//! Clients: plain sockets, and TLS over a plain socket.

use std::{
    io::{Read, Write},
    net::{IpAddr, SocketAddr, TcpStream},
    sync::{Arc, LazyLock},
    time::Duration,
};

use rustls::{ClientConfig, ClientConnection, StreamOwned, SupportedProtocolVersion, pki_types::ServerName};
use socket2::{Domain, SockAddr, SockRef, Socket, Type};

use super::{Authority, tags::End};

pub type Tls = StreamOwned<ClientConnection, TcpStream>;

/// The payload of an Ethernet frame, less the headers.
pub const SMALL_SEGMENT: u32 = 1448;

static CONFIG: LazyLock<Arc<ClientConfig>> = LazyLock::new(|| Arc::new(config(rustls::ALL_VERSIONS)));

/// A connection whose calls end after a while whatever happens.
#[track_caller]
pub fn connect(address: SocketAddr) -> TcpStream {
    bounded(TcpStream::connect(address).expect("a connection"))
}

/// As [`connect`], from this source address.
#[track_caller]
pub fn connect_from(source: IpAddr, address: SocketAddr) -> TcpStream {
    try_connect_from(source, address).expect("a connection")
}

/// As [`connect_from`], where the other side resets at once: that may come before the connect has returned, and is no
/// connection then.
#[track_caller]
pub fn try_connect_from(source: IpAddr, address: SocketAddr) -> Option<TcpStream> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.bind(&SockAddr::from(SocketAddr::new(source, 0))).expect("a local source address");
    match socket.connect(&SockAddr::from(address)) {
        Ok(()) => Some(bounded(socket.into())),
        Err(error) if error.kind() == std::io::ErrorKind::ConnectionReset => None,
        Err(error) => panic!("no connection: {error}"),
    }
}

/// As [`connect`], in segments of an Ethernet's size: the buffers on the way are then small, as on a network.
#[track_caller]
pub fn connect_in_small_segments(address: SocketAddr) -> TcpStream {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
    socket.set_tcp_mss(SMALL_SEGMENT).unwrap();
    socket.connect(&SockAddr::from(address)).expect("a connection");
    bounded(socket.into())
}

/// Calls that end after a while whatever happens, and nothing that waits to be sent.
pub fn bounded(stream: TcpStream) -> TcpStream {
    stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
    stream.set_nodelay(true).unwrap();
    stream
}

/// The next close sends RST.
pub fn reset_on_close(stream: &TcpStream) {
    SockRef::from(stream).set_linger(Some(Duration::ZERO)).unwrap();
}

/// Ends with RST.
pub fn reset(stream: TcpStream) {
    reset_on_close(&stream);
    drop(stream);
}

/// Everything up to the end, and which end it was.
pub fn read_all(stream: &mut impl Read) -> (Vec<u8>, End) {
    let mut bytes = Vec::new();
    match stream.read_to_end(&mut bytes) {
        Ok(_) => (bytes, End::Eof),
        Err(error) => (bytes, End::of(&error)),
    }
}

/// Connects, says nothing, and gives what the backend said as text.
#[track_caller]
pub fn ask(address: SocketAddr) -> String {
    ask_over(connect(address))
}

#[track_caller]
pub fn ask_over(mut stream: TcpStream) -> String {
    let (bytes, end) = read_all(&mut stream);
    assert_eq!(end, End::Eof, "after {bytes:?}");
    String::from_utf8(bytes).unwrap()
}

/// Sends a few bytes to an echo and gets them back.
#[track_caller]
pub fn exchange(stream: &mut (impl Read + Write), message: &[u8]) {
    stream.write_all(message).unwrap();
    stream.flush().unwrap();
    let mut answer = vec![0; message.len()];
    stream.read_exact(&mut answer).unwrap();
    assert_eq!(answer, message);
}

/// Bytes that were sent and not acknowledged yet, as the kernel tells (IPv4).
pub fn send_queue(stream: &TcpStream) -> Option<u64> {
    let (local, peer) = (stream.local_addr().ok()?, stream.peer_addr().ok()?);
    let (local, peer) = (kernel_name(local)?, kernel_name(peer)?);
    let table = std::fs::read_to_string("/proc/net/tcp").ok()?;
    let line = table.lines().find(|line| {
        let mut fields = line.split_whitespace().skip(1);
        fields.next() == Some(&local) && fields.next() == Some(&peer)
    })?;
    let queues = line.split_whitespace().nth(4)?;
    u64::from_str_radix(queues.split(':').next()?, 16).ok()
}

fn kernel_name(address: SocketAddr) -> Option<String> {
    let SocketAddr::V4(v4) = address else { return None };
    Some(format!("{:08X}:{:04X}", u32::from_ne_bytes(v4.ip().octets()), v4.port()))
}

/// A client that trusts the test authority.
pub fn config(versions: &[&'static SupportedProtocolVersion]) -> ClientConfig {
    ClientConfig::builder_with_protocol_versions(versions)
        .with_root_certificates(Authority::roots())
        .with_no_client_auth()
}

pub fn config_with(change: impl FnOnce(&mut ClientConfig)) -> Arc<ClientConfig> {
    let mut config = config(rustls::ALL_VERSIONS);
    change(&mut config);
    Arc::new(config)
}

/// A finished handshake for foobar.com.
#[track_caller]
pub fn connect_tls(address: SocketAddr) -> Tls {
    connect_tls_over(connect(address))
}

/// As [`connect_tls`], on a connection that was made already.
#[track_caller]
pub fn connect_tls_over(stream: TcpStream) -> Tls {
    handshake(stream, "foobar.com", Arc::clone(&CONFIG)).expect("a handshake")
}

pub fn handshake(stream: TcpStream, name: &str, config: Arc<ClientConfig>) -> std::io::Result<Tls> {
    let name = ServerName::try_from(name.to_owned()).expect("a name");
    finish_handshake(ClientConnection::new(config, name).expect("a client"), stream)
}

pub fn finish_handshake(mut connection: ClientConnection, mut stream: TcpStream) -> std::io::Result<Tls> {
    while connection.is_handshaking() {
        connection.complete_io(&mut stream)?;
    }
    while connection.wants_write() {
        connection.write_tls(&mut stream)?;
    }
    Ok(StreamOwned::new(connection, stream))
}

/// What a scenario needs of a client, plain or TLS.
pub trait Stream: Read + Write {
    /// The clean end of our direction; the other one stays open.
    fn finish_sending(&mut self);
    fn socket(&self) -> &TcpStream;
}

impl Stream for TcpStream {
    fn finish_sending(&mut self) {
        self.shutdown(std::net::Shutdown::Write).unwrap();
    }

    fn socket(&self) -> &TcpStream {
        self
    }
}

impl Stream for Tls {
    /// `close_notify` without FIN: it has to be enough.
    fn finish_sending(&mut self) {
        self.conn.send_close_notify();
        self.flush().unwrap();
    }

    fn socket(&self) -> &TcpStream {
        &self.sock
    }
}

/// Both kinds of client.
pub const PLAIN_AND_TLS: [&str; 2] = ["tcp", "https"];

/// A client of the listener `tcp` or `https`.
#[track_caller]
pub fn open(gate: &super::Gate, listener: &str) -> Box<dyn Stream> {
    let address = gate.address(listener);
    if listener == "https" { Box::new(connect_tls(address)) } else { Box::new(connect(address)) }
}
