//! One HTTP/1.1 request to a backend.

use std::{net::SocketAddr, ops::RangeInclusive};

use http_body_util::{BodyExt as _, Empty};
use hyper::{
    Request,
    body::{Bytes, Incoming},
    client::conn::http1,
    header::{CONNECTION, HOST, USER_AGENT},
};
use hyper_util::rt::TokioIo;
use tokio::{
    io::{AsyncRead, AsyncWrite},
    net::TcpStream,
    task::JoinSet,
};

use super::{Failure, Progress, tls::Tls, words};
use crate::{config::CheckHttp, metrics::CheckResult};

/// No more of a body is searched.
const MOST_BODY: usize = 64 << 10;

#[derive(Debug)]
pub struct Http {
    method: String,
    path: String,
    host: String,
    expect: RangeInclusive<u16>,
    body: Option<String>,
    tls: Option<Tls>,
}

impl Http {
    pub fn new(asked: &CheckHttp, target: SocketAddr, tls: Option<Tls>) -> Self {
        Self {
            method: asked.method.clone(),
            path: asked.path.clone(),
            host: asked.host.clone().unwrap_or_else(|| target.to_string()),
            expect: asked.expect.clone(),
            body: asked.body.clone(),
            tls,
        }
    }

    pub async fn ask(&self, stream: TcpStream, progress: &Progress) -> Result<(), Failure> {
        match &self.tls {
            Some(tls) => {
                let stream = tls.handshake(stream).await?;
                self.exchange(stream, progress).await
            }
            None => self.exchange(stream, progress).await,
        }
    }

    fn request(&self) -> Result<Request<Empty<Bytes>>, hyper::http::Error> {
        Request::builder()
            .method(self.method.as_str())
            .uri(self.path.as_str())
            .header(HOST, self.host.as_str())
            .header(USER_AGENT, "sluicegate")
            .header(CONNECTION, "close")
            .body(Empty::<Bytes>::new())
    }

    async fn exchange<S>(&self, stream: S, progress: &Progress) -> Result<(), Failure>
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let request = self.request();
        let request = request.map_err(|error| Failure::new(CheckResult::Other, format!("HTTP request: {error}")))?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(stream)).await.map_err(|error| failed(&error))?;
        // Whoever gives up on this question ends the connection's task with it.
        let mut task = JoinSet::new();
        task.spawn(connection);
        let answer = sender.send_request(request).await.map_err(|error| failed(&error))?;
        let status = answer.status().as_u16();
        if !self.expect.contains(&status) {
            let wanted = match (*self.expect.start(), *self.expect.end()) {
                (first, last) if first == last => first.to_string(),
                (first, last) => format!("{first}-{last}"),
            };
            return Err(Failure::new(CheckResult::Answer, format!("HTTP status {status}, {wanted} expected")));
        }
        let Some(wanted) = &self.body else { return Ok(()) };
        progress.reach("a good HTTP status, but no body");
        search(answer.into_body(), wanted, progress).await
    }
}

async fn search(mut body: Incoming, wanted: &str, progress: &Progress) -> Result<(), Failure> {
    let mut bytes = Vec::new();
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| failed(&error))?;
        let Some(data) = frame.data_ref() else { continue };
        progress.hear(data);
        // A match may lie across two frames.
        let begin = bytes.len().saturating_sub(wanted.len());
        bytes.extend_from_slice(data);
        let new = bytes.get(begin..).unwrap_or_default();
        if new.windows(wanted.len()).any(|window| window == wanted.as_bytes()) {
            return Ok(());
        }
        if bytes.len() > MOST_BODY {
            break;
        }
    }
    let reason = format!("HTTP body {} does not contain \"{}\"", super::excerpt(&bytes), wanted.escape_debug());
    Err(Failure::new(CheckResult::Answer, reason))
}

fn failed(error: &hyper::Error) -> Failure {
    let mut cause = std::error::Error::source(error);
    while let Some(inner) = cause {
        if let Some(error) = inner.downcast_ref::<std::io::Error>() {
            return Failure::io("HTTP", error);
        }
        cause = inner.source();
    }
    let result =
        if error.is_incomplete_message() || error.is_closed() { CheckResult::Closed } else { CheckResult::Answer };
    Failure::new(result, format!("HTTP: {}", words(&error.to_string())))
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::*;
    use crate::config::{self, CheckKind};

    fn parsed(path: &str) -> Option<CheckHttp> {
        let text = format!(
            "[listener.a]\nbind = \"0.0.0.0:1\"\npool = \"p\"\n[pool.p]\nbackends = \"192.0.2.1:80\"\n\
             check = {{ type = \"http\", path = '''{path}''' }}\n"
        );
        match config::parse(&text, Path::new("")).ok()?.0.pools.remove(0).check?.kind {
            CheckKind::Http(asked) => Some(asked),
            _ => None,
        }
    }

    #[test]
    fn every_path_that_a_configuration_may_have_can_be_asked_for() {
        let target = ([192, 0, 2, 1], 80).into();
        let mut taken = 0;
        for character in (0x21..0x7f_u8).map(char::from) {
            for path in [format!("/a{character}b"), format!("/a?b{character}c")] {
                let Some(asked) = parsed(&path) else { continue };
                let request = Http::new(&asked, target, None).request();
                let uri = request.unwrap_or_else(|error| panic!("{path}: {error}")).uri().to_string();
                assert_eq!(uri, path, "something else would be asked for");
                taken += 1;
            }
        }
        assert!(taken > 150, "{taken}");
        for path in ["/a<b", "/a>b", "/a`b", "/a#b", "/a\"b"] {
            assert_eq!(parsed(path), None, "{path}");
        }
    }
}
