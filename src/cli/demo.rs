//! `demo`: the main job with nothing else needed. It adds three backends and a certificate; the rest is `run`.

use std::{
    convert::Infallible,
    io::Write,
    net::SocketAddr,
    os::unix::fs::OpenOptionsExt,
    path::{Path, PathBuf},
};

use anyhow::Context as _;
use hyper::{Request, Response, body::Incoming, header::HeaderValue, server::conn::http1, service::service_fn};
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use tokio::net::TcpListener;

use super::{Failure, load_text, provider, run};
use crate::{
    load::Text,
    supervisor::{Gate, Options},
};

/// The names of the certificate.
const NAMES: [&str; 3] = ["foobar.com", "www.foobar.com", "localhost"];

/// The backends; each answers with its own name.
const BACKENDS: [&str; 3] = ["web-1", "web-2", "web-3"];

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Address of the HTTPS listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8443")]
    https: SocketAddr,
    /// Address of the plain TCP listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:8080")]
    tcp: SocketAddr,
    /// Address of the admin listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    admin: SocketAddr,
}

pub(super) fn demo(arguments: &Arguments) -> Result<(), Failure> {
    let backends = start_backends()?;
    let folder = private_folder("demo")?;
    let names: Vec<String> = NAMES.iter().map(|&name| name.to_owned()).collect();
    let (cert, key) = self_signed(folder.path(), &names)?;
    let source = Text { path: PathBuf::from("demo.toml"), text: configuration(arguments, &backends, &cert, &key) };
    let provider = provider();
    let loaded = load_text(&source, &provider)?;
    let text = source.text.clone();
    run::serve(&source, loaded, Options::default(), (&provider, None), |gate| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "# The configuration that runs:\n{text}")?;
        writeln!(out, "# Lines to paste into another terminal:\n{}", lines_to_paste(gate, &cert)?)?;
        out.flush().context("cannot print")
    })
}

fn configuration(arguments: &Arguments, backends: &[SocketAddr], cert: &Path, key: &Path) -> String {
    use std::fmt::Write;
    let Arguments { https, tcp, admin } = arguments;
    let mut text = format!(
        r#"[admin]
bind = "{admin}"

[log]
format = "text"

[listener.https]
bind = "{https}"
tls  = {{ cert = {}, key = {} }}
pool = "web"

[listener.tcp]
bind = "{tcp}"
pool = "web"

[pool.web]
balance = "round_robin"
"#,
        quoted(&cert.display().to_string()),
        quoted(&key.display().to_string()),
    );
    for (name, address) in BACKENDS.iter().zip(backends) {
        // Writing to a String cannot fail.
        let _ = write!(text, "[[pool.web.backend]]\nname    = \"{name}\"\naddress = \"{address}\"\n");
    }
    text
}

/// A string as TOML writes it, so that none can say more than one value.
pub(super) fn quoted(text: &str) -> String {
    toml::Value::from(text).to_string()
}

fn lines_to_paste(gate: &Gate, cert: &Path) -> anyhow::Result<String> {
    let address = |listener: &str| {
        let found = gate.listening().into_iter().find(|(name, _)| **name == *listener);
        found.map(|(_, address)| address).with_context(|| format!("listener {listener} is missing"))
    };
    let (https, admin) = (address("https")?, address("admin")?);
    let port = https.port();
    let cert = cert.display();
    Ok(format!(
        "curl --cacert {cert} https://foobar.com:{port}/ --resolve foobar.com:{port}:{}\n\
         curl -s http://{admin}/metrics\n\
         wrk -c64 -d5s https://{https}/\n",
        https.ip(),
    ))
}

/// Starts the three backends on a thread of their own, so that they are counted apart from the balancer's.
fn start_backends() -> anyhow::Result<Vec<SocketAddr>> {
    let sockets: Vec<_> = BACKENDS
        .iter()
        .map(|&name| {
            let socket = std::net::TcpListener::bind(("127.0.0.1", 0)).context("cannot bind a demo backend")?;
            socket.set_nonblocking(true)?;
            Ok((name, socket))
        })
        .collect::<anyhow::Result<_>>()?;
    let addresses = sockets.iter().map(|(_, socket)| Ok(socket.local_addr()?)).collect::<anyhow::Result<_>>()?;
    let runtime = run::control_runtime()?;
    std::thread::Builder::new().name("demo-backends".to_owned()).spawn(move || {
        runtime.block_on(async {
            for (name, socket) in sockets {
                if let Ok(socket) = TcpListener::from_std(socket) {
                    tokio::spawn(backend(name, socket));
                }
            }
            std::future::pending::<()>().await;
        });
    })?;
    Ok(addresses)
}

async fn backend(name: &'static str, socket: TcpListener) {
    loop {
        let Ok((client, _)) = socket.accept().await else { continue };
        let _ = client.set_nodelay(true);
        tokio::spawn(async move {
            let service = service_fn(move |_: Request<Incoming>| async move { Ok::<_, Infallible>(hello(name)) });
            // A client that leaves in the middle is its own business.
            let _ = http1::Builder::new().serve_connection(TokioIo::new(client), service).await;
        });
    }
}

fn hello(name: &'static str) -> Response<String> {
    let mut response = Response::new(format!("hello from {name}\n"));
    response.headers_mut().insert("content-type", HeaderValue::from_static("text/plain"));
    response.headers_mut().insert("x-backend", HeaderValue::from_static(name));
    response
}

/// A private folder for a certificate, removed with everything in it at the end.
pub(super) fn private_folder(verb: &str) -> anyhow::Result<TempDir> {
    // The crate makes it with mode 0700 and a name that nobody can guess.
    let folder = tempfile::Builder::new().prefix(&format!("sluicegate-{verb}-")).tempdir();
    folder.context("cannot create a folder for the certificate")
}

/// Writes a self-signed certificate for `names` and its key into `folder`, and returns where.
pub(super) fn self_signed(folder: &Path, names: &[String]) -> anyhow::Result<(PathBuf, PathBuf)> {
    let certificate = rcgen::generate_simple_self_signed(names).context("cannot make a certificate")?;
    let (cert, key) = (folder.join("cert.pem"), folder.join("key.pem"));
    write_private(&cert, &certificate.cert.pem())?;
    write_private(&key, &zeroize::Zeroizing::new(certificate.signing_key.serialize_pem()))?;
    Ok((cert, key))
}

fn write_private(path: &Path, text: &str) -> anyhow::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path);
    file.and_then(|mut file| file.write_all(text.as_bytes()))
        .with_context(|| format!("cannot write {}", path.display()))
}
