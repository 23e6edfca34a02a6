//! A gate whose backend is a socket of the test: it holds both ends of every connection, in one thread.

use std::net::{TcpListener, TcpStream};

use socket2::{SockAddr, SockRef, Socket};

use super::{
    Gate, Variant,
    client::{self, SMALL_SEGMENT, Stream},
    gate::{https, pool, tcp},
};

#[derive(Debug)]
pub struct Stand {
    pub gate: Gate,
    backend: TcpListener,
    small_segments: bool,
}

impl Stand {
    #[track_caller]
    pub fn start(variant: Variant) -> Self {
        Self::with(variant, false)
    }

    /// Every connection in segments of an Ethernet's size, so that little fits into the buffers on the way.
    #[track_caller]
    pub fn in_small_segments(variant: Variant) -> Self {
        Self::with(variant, true)
    }

    #[track_caller]
    fn with(variant: Variant, small_segments: bool) -> Self {
        let socket = Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        if small_segments {
            socket.set_tcp_mss(SMALL_SEGMENT).unwrap();
        }
        socket.bind(&SockAddr::from("127.0.0.1:0".parse::<std::net::SocketAddr>().unwrap())).unwrap();
        socket.listen(4096).unwrap();
        let backend = TcpListener::from(socket);
        let toml = [&tcp(""), &https(""), &pool("", &[backend.local_addr().unwrap()]), "[log]\naccess = \"off\"\n"];
        let gate = Gate::plan(&toml.concat()).variant(variant).start();
        Self { gate, backend, small_segments }
    }

    /// A connection through `listener`: the client's end and the backend's.
    #[track_caller]
    pub fn join(&self, listener: &str) -> (Box<dyn Stream>, TcpStream) {
        let address = self.gate.address(listener);
        let client =
            if self.small_segments { client::connect_in_small_segments(address) } else { client::connect(address) };
        let client: Box<dyn Stream> =
            if listener == "https" { Box::new(client::connect_tls_over(client)) } else { Box::new(client) };
        (client, self.accept())
    }

    /// The same without TLS.
    #[track_caller]
    pub fn join_plain(&self) -> (TcpStream, TcpStream) {
        let (client, backend) = self.join("tcp");
        (client.socket().try_clone().unwrap(), backend)
    }

    #[track_caller]
    pub fn accept(&self) -> TcpStream {
        SockRef::from(&self.backend).set_read_timeout(Some(super::SOON)).unwrap();
        let (backend, _) = self.backend.accept().expect("the gate's connection");
        client::bounded(backend)
    }
}
