use std::time::Instant;

use tokio::{
    io::{AsyncReadExt, AsyncWriteExt},
    net::TcpStream,
};

use super::*;

/// Runs `test` against a server on its own port, on one thread as in the process.
fn with_server<F: Future<Output = ()>>(
    allow: &str,
    header_timeout: Duration,
    test: impl FnOnce(SocketAddr, Arc<State>) -> F,
) {
    let metrics = |format| format!("# {format:?}\n");
    with_metrics(allow, header_timeout, Box::new(metrics), test);
}

fn with_metrics<F: Future<Output = ()>>(
    allow: &str,
    header_timeout: Duration,
    metrics: Scrape,
    test: impl FnOnce(SocketAddr, Arc<State>) -> F,
) {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let state = Arc::new(State {
            doors: tokio::sync::watch::channel(super::Doors::Open).0,
            seats: super::seats(),
            allow: ArcSwap::from_pointee(vec![allow.parse().unwrap()]),
            hosts: Vec::new(),
            ready: AtomicBool::new(false),
            metrics,
        });
        let server = tokio::spawn(serve_with(listener, Arc::clone(&state), header_timeout));
        time::timeout(Duration::from_secs(20), test(address, state)).await.expect("in time");
        assert!(!server.is_finished(), "the server goes on");
        server.abort();
    });
}

/// Sends and reads to the end; a reset ends the answer too.
async fn exchange(address: SocketAddr, request: &[u8]) -> String {
    let mut stream = TcpStream::connect(address).await.unwrap();
    let _ = stream.write_all(request).await;
    read(&mut stream).await
}

async fn read(stream: &mut TcpStream) -> String {
    let mut answer = Vec::new();
    let _ = stream.read_to_end(&mut answer).await;
    String::from_utf8(answer).unwrap()
}

async fn ask(address: SocketAddr, line: &str, more: &str) -> String {
    exchange(address, format!("{line} HTTP/1.1\r\nHost: {address}\r\n{more}\r\n").as_bytes()).await
}

fn status(answer: &str) -> &str {
    answer.split(' ').nth(1).unwrap_or("no answer")
}

#[test]
fn each_path_answers_what_it_says() {
    with_server("127.0.0.0/8", HEADER_TIMEOUT, |address, state| async move {
        assert!(ask(address, "GET /healthz", "").await.ends_with("\r\n\r\nok\n"));
        let unready = ask(address, "GET /readyz", "").await;
        assert_eq!((status(&unready), unready.ends_with("not ready\n")), ("503", true));
        state.ready.store(true, Ordering::Relaxed);
        assert!(ask(address, "GET /readyz", "").await.ends_with("\r\n\r\nready\n"));
        assert!(ask(address, "GET /", "").await.contains("/metrics"));
        let text = ask(address, "GET /metrics", "").await;
        assert!(text.ends_with("# Text\n") && text.contains("content-type: text/plain; version=0.0.4"), "{text}");
        let open = ask(address, "GET /metrics", "Accept: application/openmetrics-text; version=1.0.0\r\n").await;
        assert!(open.contains("content-type: application/openmetrics-text; version=1.0.0"), "{open}");
        let head = ask(address, "HEAD /metrics", "").await;
        assert!(head.starts_with("HTTP/1.1 200") && head.contains("content-length: 7"), "{head}");
        assert!(head.ends_with("\r\n\r\n"), "{head}");
    });
}

#[test]
fn o2_everything_else_is_refused() {
    with_server("127.0.0.0/8", HEADER_TIMEOUT, |address, _| async move {
        assert_eq!(status(&ask(address, "GET /metrics/../secret", "").await), "404");
        assert_eq!(status(&ask(address, "GET /admin", "").await), "404");
        for method in ["POST", "PUT", "DELETE", "OPTIONS", "TRACE", "FROB"] {
            let answer = ask(address, &format!("{method} /metrics"), "").await;
            assert_eq!(status(&answer), "405", "{method}");
        }
        assert_ne!(status(&ask(address, "CONNECT evil.com:443", "").await), "200");
        assert_eq!(status(&ask(address, "GET /metrics", "Origin: http://evil.com\r\n").await), "403");
        let foreign = exchange(address, b"GET /metrics HTTP/1.1\r\nHost: evil.com\r\n\r\n").await;
        assert_eq!(status(&foreign), "403");
        assert!(!foreign.contains("access-control"));
    });
}

#[test]
fn a_connection_is_for_one_request() {
    with_server("127.0.0.0/8", HEADER_TIMEOUT, |address, _| async move {
        let request = format!("GET /healthz HTTP/1.1\r\nHost: {address}\r\n\r\n");
        let answer = exchange(address, request.repeat(3).as_bytes()).await;
        assert_eq!(answer.matches("HTTP/1.1").count(), 1, "{answer}");
    });
}

#[test]
fn who_is_not_allowed_gets_no_byte() {
    with_server("192.0.2.0/24", HEADER_TIMEOUT, |address, _| async move {
        assert_eq!(ask(address, "GET /healthz", "").await, "");
    });
}

#[test]
fn silent_and_slow_clients_are_closed_and_hold_nobody_up() {
    with_server("127.0.0.0/8", Duration::from_millis(300), |address, _| async move {
        let mut silent = Vec::new();
        for _ in 0..MAX_CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        silent[0].write_all(b"GET /hea").await.unwrap();
        let asked = Instant::now();
        // Every seat is taken: this one waits for the header timeout of the others.
        assert_eq!(status(&ask(address, "GET /healthz", "").await), "200");
        assert!(asked.elapsed() < Duration::from_secs(5));
        for stream in &mut silent {
            let answer = read(stream).await;
            assert!(answer.is_empty() || status(&answer) == "408", "{answer}");
        }
    });
}

#[test]
fn garbage_and_huge_headers_end_only_their_own_connection() {
    with_server("127.0.0.0/8", HEADER_TIMEOUT, |address, _| async move {
        for garbage in [
            &b"\x16\x03\x01\x02\x00\x01\x00"[..],
            b"\r\n\r\n\r\n",
            b"GET\r\n\r\n",
            &[0; 4096],
            b"PRI * HTTP/2.0\r\n\r\nSM",
        ] {
            let mut stream = TcpStream::connect(address).await.unwrap();
            let _ = stream.write_all(garbage).await;
            let _ = stream.shutdown().await;
            let answer = read(&mut stream).await;
            assert!(!answer.starts_with("HTTP/1.1 200"), "{answer}");
        }
        let mut huge = format!("GET /metrics HTTP/1.1\r\nHost: {address}\r\nX: ").into_bytes();
        huge.resize(1 << 20, b'x');
        let answer = exchange(address, &huge).await;
        assert!(matches!(status(&answer), "431" | "no answer"), "{answer}");
        let many = "X: y\r\n".repeat(100);
        assert_eq!(status(&ask(address, "GET /metrics", &many).await), "431");
        assert_eq!(status(&ask(address, "GET /metrics", "").await), "200");
    });
}

#[test]
fn r17_a_scrape_that_panics_ends_alone() {
    let broken = AtomicBool::new(true);
    let metrics: Scrape = Box::new(move |_| {
        assert!(!broken.swap(false, Ordering::Relaxed), "a bug");
        "# fine\n".to_owned()
    });
    with_metrics("127.0.0.0/8", HEADER_TIMEOUT, metrics, |address, _| async move {
        assert_eq!(ask(address, "GET /metrics", "").await, "");
        assert!(ask(address, "GET /metrics", "").await.ends_with("# fine\n"));
    });
}
