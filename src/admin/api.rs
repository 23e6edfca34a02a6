//! What the unix socket answers beside what everyone may read: the state in full, and changes to it.
//!
//! The mode of the socket says who may ask. A request is a small JSON object, bounded in size and time (traps O3), and a
//! change is told in the log with who made it.

use std::{sync::Arc, time::Duration};

use axum::{
    Router,
    body::to_bytes,
    extract::{Request, State as Shared},
    http::{StatusCode, header},
    response::{IntoResponse, Response},
    routing::{get, post},
};
use serde::{Deserialize, Serialize, de::DeserializeOwned};
use tracing::info;

use super::{
    answers::{Change, Changed, Killed, Plan, Refusal, Reload, Reloaded, Which},
    bans,
    control::{Control, Refused},
};
use crate::running::Task;

/// Who is at the other end of the socket.
#[derive(Debug, Clone, Copy)]
pub struct Peer {
    pub uid: u32,
    pub pid: Option<i32>,
}

/// A request that needs no words.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Nothing {}

const MAX_BODY: usize = 1 << 20;
const BODY_TIMEOUT: Duration = Duration::from_secs(5);

pub(super) fn router(control: &Arc<Control>) -> Router {
    Router::new()
        .route("/status", get(async |Shared(control): Shared<Arc<Control>>| answer(StatusCode::OK, &control.status())))
        .route("/certificates", get(certificates))
        .route("/connections", post(connections))
        .route("/kill", post(kill))
        .route("/reload", post(reload))
        .route("/plan", post(plan))
        .route("/backend/drain", post(drain))
        .route("/backend/enable", post(enable))
        .route("/backend/weight", post(weight))
        .route("/upgrade", post(upgrade))
        .merge(bans::routes())
        .with_state(Arc::clone(control))
}

async fn certificates(Shared(control): Shared<Arc<Control>>) -> Response {
    answer(StatusCode::OK, &control.certificates())
}

async fn connections(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let which: Which = body(request).await?;
    Ok(answer(StatusCode::OK, &control.connections(&which).await?))
}

async fn kill(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let which: Which = body(request).await?;
    let ended = control.kill(&which).await?;
    let Which { id, listener, client, backend, .. } = which;
    info!(uid = peer.uid, pid = peer.pid, ended, id, listener, client, backend, "operator: connections ended");
    Ok(answer(StatusCode::OK, &Killed { ended }))
}

/// The one who carries it out says so in the log.
async fn reload(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let Reload { force, styled } = body(request).await?;
    Ok(verdict(&control.order(peer, Task::Reload { force }, styled).await?))
}

async fn plan(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let Plan { config, force, styled } = body(request).await?;
    Ok(verdict(&control.order(peer, Task::Plan { config, force }, styled).await?))
}

fn verdict(reloaded: &Reloaded) -> Response {
    answer(if reloaded.result == "refused" { StatusCode::CONFLICT } else { StatusCode::OK }, reloaded)
}

async fn drain(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    change(request, |change| control.drain(&change.backend)).await
}

async fn enable(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    change(request, |change| control.enable(&change.backend)).await
}

async fn weight(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    change(request, |change| control.set_weight(&change.backend, change.weight)).await
}

async fn upgrade(Shared(control): Shared<Arc<Control>>, request: Request) -> Result<Response, Refused> {
    let peer = peer(&request);
    let Nothing {} = body(request).await?;
    info!(uid = peer.uid, pid = peer.pid, "operator: upgrade");
    Ok(answer(StatusCode::OK, &control.upgrade().await?))
}

/// Changes a backend, and says so in the log.
async fn change(
    request: Request,
    change: impl FnOnce(&Change) -> Result<Changed, Refused>,
) -> Result<Response, Refused> {
    let peer = peer(&request);
    let what = request.uri().path().trim_start_matches('/').replace('/', " ");
    let changed = change(&body(request).await?)?;
    let Changed { pool, backend } = &changed;
    let (backend, state, weight) = (&backend.name, &backend.state, backend.weight);
    info!(uid = peer.uid, pid = peer.pid, change = what, pool, backend, state, weight, "operator: backend changed");
    Ok(answer(StatusCode::OK, &changed))
}

pub(super) fn peer(request: &Request) -> Peer {
    let peer = request.extensions().get::<Option<Peer>>().copied().flatten();
    peer.unwrap_or(Peer { uid: u32::MAX, pid: None })
}

/// The JSON object of a request. Its types have no depth, so none that is sent does harm.
pub(super) async fn body<T: DeserializeOwned>(request: Request) -> Result<T, Refused> {
    let kind = request.headers().get(header::CONTENT_TYPE).and_then(|kind| kind.to_str().ok());
    let kind = kind.and_then(|kind| kind.split(';').next()).unwrap_or_default().trim();
    if kind != "application/json" {
        return Err(Refused::Invalid("the body has to be application/json".to_owned()));
    }
    let bytes = tokio::time::timeout(BODY_TIMEOUT, to_bytes(request.into_body(), MAX_BODY)).await;
    let bytes = bytes.map_err(|_| Refused::Invalid(format!("no whole body within {BODY_TIMEOUT:?}")))?;
    let bytes = bytes.map_err(|_| Refused::Invalid(format!("the body is cut off, or longer than {MAX_BODY} bytes")))?;
    serde_json::from_slice(&bytes).map_err(|error| Refused::Invalid(error.to_string()))
}

/// An answer as one line of JSON.
pub(super) fn answer(status: StatusCode, value: &impl Serialize) -> Response {
    match serde_json::to_string(value) {
        Ok(text) => (status, [(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
        Err(_) => StatusCode::INTERNAL_SERVER_ERROR.into_response(),
    }
}

impl IntoResponse for Refused {
    fn into_response(self) -> Response {
        let (status, error) = match self {
            Self::Unknown(error) => (StatusCode::NOT_FOUND, error),
            Self::Invalid(error) => (StatusCode::BAD_REQUEST, error),
            Self::Busy(orders) => {
                (StatusCode::TOO_MANY_REQUESTS, format!("{orders} reloads or plans wait already: try again"))
            }
            Self::Stopping => (StatusCode::SERVICE_UNAVAILABLE, "the process is stopping".to_owned()),
            Self::Kept(error) => (StatusCode::CONFLICT, error),
        };
        answer(status, &Refusal { error })
    }
}
