//! Backends in this process: one thread per connection, gone when dropped.

use std::{
    io::{BufRead, BufReader, Read, Write},
    net::{Shutdown, SocketAddr, TcpListener, TcpStream},
    sync::{
        Arc, Mutex, Weak,
        atomic::{AtomicBool, AtomicUsize, Ordering},
    },
    thread::{self, JoinHandle},
    time::Duration,
};

use socket2::{Domain, SockAddr, Socket, Type};

use super::{
    client, tags,
    tags::{Received, Tag},
};

/// The id of the answer to the payload `id`.
pub fn answer_id(id: u64) -> u64 {
    id | 1 << 63
}

#[derive(Debug, Default)]
struct State {
    stop: AtomicBool,
    accepted: AtomicUsize,
    live: AtomicUsize,
    open: Mutex<Vec<Weak<TcpStream>>>,
    uploads: Mutex<Vec<(u64, Received)>>,
}

#[derive(Debug)]
pub struct Backend {
    pub address: SocketAddr,
    state: Arc<State>,
    acceptor: Option<JoinHandle<()>>,
}

impl Backend {
    /// Calls the handler with each connection and its number; what the handler leaves is closed.
    pub fn start(handler: impl Fn(&TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::start_with(Arc::new(State::default()), "127.0.0.1:0".parse().unwrap(), handler)
    }

    pub fn start_on(address: SocketAddr, handler: impl Fn(&TcpStream, usize) + Send + Sync + 'static) -> Self {
        Self::start_with(Arc::new(State::default()), address, handler)
    }

    fn start_with(
        state: Arc<State>,
        address: SocketAddr,
        handler: impl Fn(&TcpStream, usize) + Send + Sync + 'static,
    ) -> Self {
        let socket = Socket::new(Domain::for_address(address), Type::STREAM, None).unwrap();
        socket.set_reuse_address(true).unwrap();
        socket.bind(&SockAddr::from(address)).unwrap();
        socket.listen(4096).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let acceptor = thread::spawn({
            let state = Arc::clone(&state);
            move || accept(&listener, &state, &Arc::new(handler))
        });
        Self { address, state, acceptor: Some(acceptor) }
    }

    /// Sends back what it gets, and ends when the client does.
    pub fn echo() -> Self {
        Self::start(|stream, _| echo(stream))
    }

    /// Says these bytes first, then echoes.
    pub fn greeting(bytes: &'static [u8]) -> Self {
        Self::greeting_on("127.0.0.1:0".parse().unwrap(), bytes)
    }

    pub fn greeting_on(address: SocketAddr, bytes: &'static [u8]) -> Self {
        Self::start_on(address, move |mut stream, _| {
            if stream.write_all(bytes).is_ok() {
                echo(stream);
            }
        })
    }

    /// Says its name and closes.
    pub fn named(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |mut stream, _| {
            let _ = stream.write_all(name.as_bytes());
        })
    }

    /// Accepts, reads, and never says a word.
    pub fn stall() -> Self {
        Self::start(|mut stream, _| {
            let _ = std::io::copy(&mut stream, &mut std::io::sink());
        })
    }

    /// Answers every HTTP/1.1 request with its name.
    pub fn http(name: &str) -> Self {
        let name = name.to_owned();
        Self::start(move |stream, _| serve_http(stream, &name))
    }

    /// Accepts and resets at once.
    pub fn reset() -> Self {
        Self::start(|stream, _| client::reset_on_close(stream))
    }

    /// Reads the header of [`transfer_header`], takes the tagged upload, sends the tagged download at the same time.
    pub fn tagged() -> Self {
        let state = Arc::new(State::default());
        let uploads = Arc::clone(&state);
        Self::start_with(state, "127.0.0.1:0".parse().unwrap(), move |stream, _| {
            if let Some(upload) = serve_tagged(stream) {
                uploads.uploads.lock().unwrap().push(upload);
            }
        })
    }

    /// Connections so far.
    pub fn accepted(&self) -> usize {
        self.state.accepted.load(Ordering::SeqCst)
    }

    /// Connections now.
    pub fn live(&self) -> usize {
        self.state.live.load(Ordering::SeqCst)
    }

    /// What the tagged backend received for this id, when it is done.
    pub fn upload(&self, id: u64) -> Option<Received> {
        self.state.uploads.lock().unwrap().iter().find(|(i, _)| *i == id).map(|(_, received)| received.clone())
    }

    pub fn uploads(&self) -> Vec<(u64, Received)> {
        self.state.uploads.lock().unwrap().clone()
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::SeqCst);
        let _ = TcpStream::connect(self.address);
        for stream in self.state.open.lock().unwrap().drain(..).filter_map(|weak| weak.upgrade()) {
            let _ = stream.shutdown(Shutdown::Both);
        }
        if let Some(acceptor) = self.acceptor.take() {
            let _ = acceptor.join();
        }
    }
}

fn accept(
    listener: &TcpListener,
    state: &Arc<State>,
    handler: &Arc<impl Fn(&TcpStream, usize) + Send + Sync + 'static>,
) {
    while let Ok((stream, _)) = listener.accept() {
        if state.stop.load(Ordering::SeqCst) {
            return;
        }
        stream.set_read_timeout(Some(Duration::from_mins(1))).unwrap();
        stream.set_write_timeout(Some(Duration::from_mins(1))).unwrap();
        stream.set_nodelay(true).unwrap();
        let number = state.accepted.fetch_add(1, Ordering::SeqCst);
        state.live.fetch_add(1, Ordering::SeqCst);
        let stream = Arc::new(stream);
        {
            let mut open = state.open.lock().unwrap();
            open.retain(|weak| weak.strong_count() > 0);
            open.push(Arc::downgrade(&stream));
        }
        let (state, handler) = (Arc::clone(state), Arc::clone(handler));
        thread::spawn(move || {
            handler(&stream, number);
            drop(stream);
            state.live.fetch_sub(1, Ordering::SeqCst);
        });
    }
}

fn echo(stream: &TcpStream) {
    let (mut from, mut to) = (stream, stream);
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(count) = from.read(&mut buffer) {
        if count == 0 || to.write_all(&buffer[..count]).is_err() {
            return;
        }
    }
}

fn serve_http(stream: &TcpStream, name: &str) {
    let mut lines = BufReader::new(stream).lines();
    loop {
        let head: Vec<String> = lines.by_ref().map_while(Result::ok).take_while(|line| !line.is_empty()).collect();
        if head.is_empty() {
            return;
        }
        let close = head.iter().any(|line| line.eq_ignore_ascii_case("connection: close"));
        let answer = format!("HTTP/1.1 200 OK\r\nContent-Length: {}\r\n\r\n{name}", name.len());
        if (&mut &*stream).write_all(answer.as_bytes()).is_err() || close {
            return;
        }
    }
}

/// What opens a transfer with the tagged backend.
pub fn transfer_header(id: u64, upload: u64, download: u64) -> Vec<u8> {
    [id, upload, download].iter().flat_map(|n| n.to_be_bytes()).collect()
}

fn serve_tagged(stream: &TcpStream) -> Option<(u64, Received)> {
    let (mut reader, mut writer) = (stream, stream);
    let mut header = [0; 24];
    reader.read_exact(&mut header).ok()?;
    let [id, upload, download] = [0, 8, 16].map(|at| u64::from_be_bytes(header[at..at + 8].try_into().unwrap()));
    let received = thread::scope(|scope| {
        let received = scope.spawn(move || tags::receive(&mut reader, id, upload, None));
        let _ = tags::send(&mut writer, answer_id(id), download);
        received.join().unwrap()
    });
    let _ = std::io::copy(&mut reader, &mut std::io::sink()); // the client ends first
    Some((id, received))
}

/// An address that refuses: bound, so that nobody else gets it, and never listening.
#[derive(Debug)]
pub struct Refusing {
    pub address: SocketAddr,
    _socket: Socket,
}

impl Refusing {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        let address = socket.local_addr().unwrap().as_socket().unwrap();
        Self { address, _socket: socket }
    }
}

/// An address whose queue is full: the kernel answers no further SYN, so a connect has to time out.
#[derive(Debug)]
pub struct Unanswering {
    pub address: SocketAddr,
    _listener: TcpListener,
    _queued: Vec<Socket>,
}

impl Unanswering {
    pub fn new() -> Self {
        let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
        socket.bind(&SockAddr::from(SocketAddr::from(([127, 0, 0, 1], 0)))).unwrap();
        socket.listen(1).unwrap();
        let listener = TcpListener::from(socket);
        let address = listener.local_addr().unwrap();
        let queued = (0..8).map(|_| {
            let socket = Socket::new(Domain::IPV4, Type::STREAM, None).unwrap();
            socket.set_nonblocking(true).unwrap();
            let _ = socket.connect(&SockAddr::from(address));
            socket
        });
        Self { address, _queued: queued.collect(), _listener: listener }
    }
}

#[test]
fn the_tagged_backend_serves_both_ways() {
    let backend = Backend::tagged();
    let mut stream = client::connect(backend.address);
    stream.write_all(&transfer_header(5, 300_000, 70_000)).unwrap();
    let sent = tags::send(&mut stream, 5, 300_000).unwrap();
    let received = tags::receive(&mut stream, answer_id(5), 70_000, None);
    received.assert_is(70_000, tags::hash(answer_id(5), 70_000), tags::End::Complete);
    drop(stream);
    super::wait_until(super::SOON, "the upload", || backend.upload(5).is_some());
    backend.upload(5).unwrap().assert_is(300_000, sent, tags::End::Complete);
    assert_eq!((backend.accepted(), backend.uploads().len()), (1, 1));
    assert_eq!(Tag::new(1).bytes(3), Tag::new(1).bytes(5)[..3]);
}

#[test]
fn an_unanswering_address_makes_a_connect_time_out() {
    let full = Unanswering::new();
    let failed = TcpStream::connect_timeout(&full.address, Duration::from_millis(200)).unwrap_err();
    assert_eq!(failed.kind(), std::io::ErrorKind::TimedOut);
    let failed = TcpStream::connect(Refusing::new().address).unwrap_err();
    assert_eq!(failed.kind(), std::io::ErrorKind::ConnectionRefused);
}
