//! Asking the running process over its admin socket.

use std::{
    io::ErrorKind,
    path::{Path, PathBuf},
    time::Duration,
};

use anyhow::{Context as _, anyhow};
use http_body_util::{BodyExt, Full, Limited};
use hyper::{Method, Request, StatusCode, body::Bytes, client::conn::http1, header};
use hyper_util::rt::TokioIo;
use serde::{Serialize, de::DeserializeOwned};
use tokio::net::UnixStream;

use super::{ConfigArgument, Failure, run, say};
use crate::{
    admin::answers::Refusal,
    config::{self, DEFAULT_ADMIN_SOCKET},
    load,
};

/// The process answers from memory, but it may have much to say.
const PATIENCE: Duration = Duration::from_secs(30);
const MOST: usize = 256 << 20;

/// A reload reads files and waits for the first verdict of each new backend.
const ORDER_PATIENCE: Duration = Duration::from_mins(2);

/// Which running process, and how its answer is printed.
#[derive(Debug, clap::Args)]
pub(super) struct Target {
    /// Admin socket of the process; otherwise the one of the configuration
    #[arg(long, value_name = "PATH")]
    socket: Option<PathBuf>,
    #[command(flatten)]
    config: ConfigArgument,
    /// Print the answer as JSON
    #[arg(long)]
    json: bool,
}

impl Target {
    /// Asks for what is there, and prints it as JSON or as `text` has it.
    pub(super) fn get<T: DeserializeOwned>(&self, path: &str, text: impl FnOnce(&T) -> String) -> Result<(), Failure> {
        self.print(Method::GET, path, Bytes::new(), text)
    }

    /// As [`Self::get`], with something to say.
    pub(super) fn post<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let body = serde_json::to_vec(request).context("cannot write the request")?;
        self.print(Method::POST, path, body.into(), text)
    }

    /// Asks for something that may be refused; the answer as it is understood, and as it came.
    pub(super) fn order<T: DeserializeOwned>(
        &self,
        path: &str,
        request: &impl Serialize,
    ) -> Result<(T, String), Failure> {
        let body = serde_json::to_vec(request).context("cannot write the request")?;
        let (status, answer) = self.ask(Method::POST, path, body.into(), ORDER_PATIENCE)?;
        if status != StatusCode::CONFLICT && !status.is_success() {
            return Err(no_answer(status, &answer));
        }
        let parsed = serde_json::from_slice(&answer).context("the answer is none of this version of sluicegate")?;
        Ok((parsed, String::from_utf8_lossy(&answer).into_owned()))
    }

    pub(super) fn is_json(&self) -> bool {
        self.json
    }

    pub(super) fn config_path(&self) -> &Path {
        &self.config.config
    }

    fn print<T: DeserializeOwned>(
        &self,
        method: Method,
        path: &str,
        body: Bytes,
        text: impl FnOnce(&T) -> String,
    ) -> Result<(), Failure> {
        let (status, answer) = self.ask(method, path, body, PATIENCE)?;
        if status.is_success() {
            let parsed = serde_json::from_slice(&answer).context("the answer is none of this version of sluicegate")?;
            return say(&if self.json { String::from_utf8_lossy(&answer).into_owned() } else { text(&parsed) });
        }
        Err(no_answer(status, &answer))
    }

    fn ask(&self, method: Method, path: &str, body: Bytes, patience: Duration) -> Result<(StatusCode, Bytes), Failure> {
        let socket = self.socket()?;
        run::control_runtime()?.block_on(async {
            tokio::time::timeout(patience, exchange(&socket, method, path, body))
                .await
                .unwrap_or_else(|_| Err(anyhow!("no answer from `{}` within {patience:?}", socket.display())))
                .map_err(Failure::Unreachable)
        })
    }

    /// The one that is named, else the one of the configuration, else the usual one.
    fn socket(&self) -> Result<PathBuf, Failure> {
        if let Some(socket) = &self.socket {
            return Ok(socket.clone());
        }
        let path = &self.config.config;
        if !path.exists() {
            return Ok(DEFAULT_ADMIN_SOCKET.into());
        }
        let unclear = |_| anyhow!("`{}` does not tell the admin socket: name it with --socket PATH", path.display());
        let source = load::read(path).map_err(unclear)?;
        let base = path.parent().unwrap_or(Path::new(""));
        // A file with mistakes is just what a reload is asked about.
        Ok(config::admin_socket(&source.text, base).unwrap_or_else(|| DEFAULT_ADMIN_SOCKET.into()))
    }
}

fn no_answer(status: StatusCode, answer: &[u8]) -> Failure {
    let refusal = serde_json::from_slice(answer).map(|Refusal { error }| error);
    let refusal = anyhow!(refusal.unwrap_or_else(|_| format!("the process answers {status}")));
    match status {
        StatusCode::CONFLICT | StatusCode::SERVICE_UNAVAILABLE => Failure::Kept(Some(refusal)),
        _ => Failure::Other(refusal),
    }
}

async fn exchange(socket: &Path, method: Method, path: &str, body: Bytes) -> anyhow::Result<(StatusCode, Bytes)> {
    let stream = UnixStream::connect(socket).await.map_err(|error| {
        let cure = match error.kind() {
            ErrorKind::PermissionDenied => "the socket is for the user of the process: try sudo",
            _ => {
                "is it running, with `[admin] socket`? If that was changed since it was started, it still has the one of \
                 before: --socket PATH names it"
            }
        };
        anyhow!("no process answers at `{}`: {error}; {cure}", socket.display())
    })?;
    let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await?;
    let request = Request::builder()
        .method(method)
        .uri(path)
        .header(header::HOST, "localhost")
        .header(header::CONTENT_TYPE, "application/json")
        .body(Full::new(body))?;
    let driving = tokio::spawn(connection);
    let answer = sender.send_request(request).await.context("the process does not answer")?;
    let status = answer.status();
    let body = Limited::new(answer.into_body(), MOST).collect().await;
    let body = body.map_err(|error| anyhow!("the answer breaks off: {error}"))?.to_bytes();
    driving.abort();
    Ok((status, body))
}
