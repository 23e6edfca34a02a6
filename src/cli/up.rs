//! `up`: HTTPS for one host in front of some backends, without a file. It prints the one it would have needed.

use std::{
    io::Write,
    net::SocketAddr,
    path::{Path, PathBuf},
};

use anyhow::Context as _;

use super::{
    Failure,
    demo::{private_folder, quoted, self_signed},
    load_text, provider, run,
};
use crate::{load::Text, supervisor::Options};

#[derive(Debug, clap::Args)]
pub(super) struct Arguments {
    /// Name that clients use, for example foobar.com
    host: String,
    /// Addresses of the backends
    #[arg(long, value_name = "ADDRESS", required = true, num_args = 1.., value_delimiter = ',')]
    to: Vec<String>,
    /// Certificate chain (PEM); without it a self-signed certificate is made
    #[arg(long, value_name = "FILE", requires = "key")]
    cert: Option<PathBuf>,
    /// Key of the certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "cert")]
    key: Option<PathBuf>,
    /// Address to listen on
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:443")]
    bind: SocketAddr,
    /// Address of the admin listener
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:9090")]
    admin: SocketAddr,
}

pub(super) fn up(arguments: &Arguments) -> Result<(), Failure> {
    let folder;
    let (cert, key) = if let (Some(cert), Some(key)) = (&arguments.cert, &arguments.key) {
        (absolute(cert)?, absolute(key)?)
    } else {
        folder = private_folder("up")?;
        eprintln!("note: the certificate is self-signed, clients will not trust it: --cert FILE --key FILE");
        self_signed(folder.path(), std::slice::from_ref(&arguments.host))?
    };
    let source = Text { path: PathBuf::from("up.toml"), text: configuration(arguments, &cert, &key) };
    let provider = provider();
    let loaded = load_text(&source, &provider)?;
    run::serve(&source, loaded, Options::default(), (&provider, None), |_| {
        let mut out = std::io::stdout().lock();
        writeln!(out, "# The configuration that runs:\n{}", source.text)?;
        out.flush().context("cannot print")
    })
}

fn configuration(arguments: &Arguments, cert: &Path, key: &Path) -> String {
    let backends: Vec<_> = arguments.to.iter().map(|address| quoted(address)).collect();
    format!(
        "# {}\n[admin]\nbind = {}\n\n[listener.https]\nbind = {}\ntls  = {{ cert = {}, key = {} }}\npool = \"web\"\n\n\
         [pool.web]\nbackends = [{}]\n",
        arguments.host.escape_default(),
        quoted(&arguments.admin.to_string()),
        quoted(&arguments.bind.to_string()),
        quoted(&cert.display().to_string()),
        quoted(&key.display().to_string()),
        backends.join(", "),
    )
}

fn absolute(path: &Path) -> anyhow::Result<PathBuf> {
    std::path::absolute(path).with_context(|| format!("cannot find {}", path.display()))
}
