//! The node server: logs of the containers here, for the API server; and streams into and out of them ([`crate::streams`]).
//!
//! `GET /v1/logs/ID?follow=&tail=&since_ms=&after=` answers with one JSON object a line: `{"time_ms", "stream", "text", "position"}`, where
//! `text` has the newline of the output (the last line may lack it) and `position`, given back as `after`, goes on behind that line. An
//! empty position means that there is none to go on from yet; then ask as before. `GET /healthz` answers `ok`.
//!
//! It promises: a body that ends well has everything (a connection that breaks does not end well); without `follow` nothing younger than
//! the request. What must never happen here: a peer other than the API server (see [`crate::tls`]), a path made from what a peer says.

use std::collections::VecDeque;
use std::sync::Arc;

use axum::Router;
use axum::body::{Body, Bytes};
use axum::extract::{Path, Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use muster_api::env::Env;
use muster_runtime::{ContainerId, Error, LogChunk, LogPosition, LogQuery, Runtime, Stream};
use serde::{Deserialize, Serialize};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;

use crate::limits::{FOLLOW_INTERVAL, HANDSHAKE_DEADLINE, RUNTIME_DEADLINE, SERVER_CONNECTIONS};
use crate::streams::{self, Streams};
use crate::tls::{Acceptors, is_api_server};

/// Serves until it is dropped.
pub async fn serve(listener: TcpListener, mut acceptors: Acceptors, router: Router) {
    let slots = Arc::new(Semaphore::new(SERVER_CONNECTIONS));
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let slot = Arc::clone(&slots)
            .acquire_owned()
            .await
            .expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // Out of file descriptors, most likely: wait until some are free.
                tracing::warn!(%error, "no connection can be accepted");
                sleep(FOLLOW_INTERVAL).await;
                continue;
            }
        };
        let (acceptor, router) = (acceptors.newest(), router.clone());
        connections.spawn(async move {
            if let Err(error) = connection(stream, acceptor, router).await {
                tracing::debug!(%peer, error, "a connection ended badly");
            }
            drop(slot);
        });
    }
}

async fn connection(stream: TcpStream, acceptor: TlsAcceptor, router: Router) -> Result<(), String> {
    let _ = stream.set_nodelay(true);
    let handshake = timeout(HANDSHAKE_DEADLINE, acceptor.accept(stream)).await;
    let stream = handshake
        .map_err(|_| "no handshake in time")?
        .map_err(|error| error.to_string())?;
    let certificates = stream.get_ref().1.peer_certificates().unwrap_or_default();
    if !certificates.first().is_some_and(is_api_server) {
        return Err("the peer is not the API server".to_owned());
    }
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE_DEADLINE);
    builder.http2().timer(TokioTimer::new());
    let service = TowerToHyperService::new(router);
    builder
        .serve_connection_with_upgrades(TokioIo::new(stream), service)
        .await
        .map_err(|error| error.to_string())
}

#[derive(Clone)]
struct Node {
    runtime: Arc<dyn Runtime>,
    env: Arc<dyn Env>,
}

/// The routes, for connections that were checked.
pub fn router(runtime: Arc<dyn Runtime>, env: Arc<dyn Env>) -> Router {
    let streams = Router::new()
        .route("/v1/exec/{id}", get(streams::exec))
        .route("/v1/copy/{id}", get(streams::copy))
        .route("/v1/portforward/{id}", get(streams::forward::forward))
        .with_state(Streams::new(Arc::clone(&runtime)));
    Router::new()
        .route("/healthz", get(async || "ok"))
        .route("/v1/logs/{id}", get(logs))
        .with_state(Node { runtime, env })
        .merge(streams)
}

/// Which logs.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
struct LogParams {
    follow: bool,
    tail: Option<usize>,
    since_ms: Option<i64>,
    after: Option<String>,
}

/// A line of the answer.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct Line {
    /// Milliseconds since the epoch.
    pub time_ms: i64,
    /// Where it was written to.
    pub stream: Stream,
    /// The line, with its newline if it has one; bytes that are not UTF-8 are replaced.
    pub text: String,
    /// Where to go on behind this line; empty: nowhere.
    pub position: String,
}

/// So many lines behind a position of the runtime; on the wire `LINES:POSITION`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Place {
    lines: usize,
    base: Option<LogPosition>,
}

impl Place {
    fn parse(text: &str) -> Option<Place> {
        let (lines, base) = text.split_once(':')?;
        Some(Place {
            lines: lines.parse().ok()?,
            base: (!base.is_empty()).then(|| LogPosition(base.to_owned())),
        })
    }

    fn text(&self) -> String {
        format!("{}:{}", self.lines, self.base.as_ref().map_or("", |base| &base.0))
    }
}

async fn logs(State(node): State<Node>, Path(id): Path<String>, Query(params): Query<LogParams>) -> Response {
    let plain = |code: StatusCode, text: String| (code, text).into_response();
    let Some(id) = ContainerId::new(id) else {
        return plain(StatusCode::BAD_REQUEST, "this is not the id of a container".to_owned());
    };
    let after = match params
        .after
        .as_deref()
        .filter(|after| !after.is_empty())
        .map(Place::parse)
    {
        None => None,
        Some(Some(place)) => Some(place),
        Some(None) => return plain(StatusCode::BAD_REQUEST, "`after` is not a position".to_owned()),
    };
    let until_ms = (!params.follow).then(|| node.env.now().as_millisecond());
    let mut reader = Reader {
        changes: node.runtime.changes(),
        runtime: node.runtime,
        id,
        skip: after.as_ref().map_or(0, |place| place.lines),
        // Behind a position there is nothing that these would leave out.
        query: LogQuery {
            tail: params.tail.filter(|_| after.is_none()),
            since_ms: params.since_ms.filter(|_| after.is_none()),
            after: after.and_then(|place| place.base),
        },
        until_ms,
        ready: VecDeque::new(),
        ended: false,
    };
    // The first chunk is read before the answer begins, so that what is not there is a 404.
    if let Err(error) = reader.read().await {
        let code = match error {
            Error::NotFound(_) => StatusCode::NOT_FOUND,
            Error::Invalid(_) => StatusCode::BAD_REQUEST,
            Error::Deadline { .. } => StatusCode::GATEWAY_TIMEOUT,
            _ => StatusCode::INTERNAL_SERVER_ERROR,
        };
        return plain(code, error.to_string());
    }
    let body = stream::unfold(reader, |mut reader| async move {
        let next = reader.next().await?;
        Some((next, reader))
    });
    (
        [(header::CONTENT_TYPE, "application/x-ndjson")],
        Body::from_stream(body),
    )
        .into_response()
}

struct Reader {
    runtime: Arc<dyn Runtime>,
    changes: BoxStream<'static, ()>,
    id: ContainerId,
    query: LogQuery,
    /// Lines to leave out: the peer has them.
    skip: usize,
    /// Without following: where to stop, however much is written meanwhile.
    until_ms: Option<i64>,
    ready: VecDeque<Bytes>,
    ended: bool,
}

impl Reader {
    async fn next(&mut self) -> Option<Result<Bytes, Error>> {
        loop {
            if let Some(bytes) = self.ready.pop_front() {
                return Some(Ok(bytes));
            }
            if self.ended {
                return None;
            }
            match self.read().await {
                Ok(true) => {}
                Ok(false) => self.wait().await,
                Err(error) => {
                    self.ended = true;
                    return Some(Err(error));
                }
            }
        }
    }

    /// Until there may be more. Output makes no event, the end of a container does.
    async fn wait(&mut self) {
        tokio::select! {
            biased;
            Some(()) = self.changes.next() => {}
            () = sleep(FOLLOW_INTERVAL) => {}
        }
    }

    /// Reads one chunk; whether there was anything in it.
    async fn read(&mut self) -> Result<bool, Error> {
        let late = Error::Deadline {
            call: "logs",
            deadline: RUNTIME_DEADLINE,
        };
        let chunk = timeout(RUNTIME_DEADLINE, self.runtime.logs(&self.id, &self.query))
            .await
            .unwrap_or(Err(late))?;
        let any = !chunk.lines.is_empty();
        let beyond = |until_ms: i64| chunk.lines.iter().any(|line| line.time_ms > until_ms);
        self.ended |= chunk.end || self.until_ms.is_some_and(|until_ms| !any || beyond(until_ms));
        self.take(&chunk);
        self.query = LogQuery {
            after: Some(chunk.position),
            tail: None,
            since_ms: self.query.since_ms,
        };
        Ok(any)
    }

    fn take(&mut self, chunk: &LogChunk) {
        let mut out = Vec::new();
        let last = chunk.lines.len().saturating_sub(1);
        for (index, line) in chunk.lines.iter().enumerate().skip(self.skip) {
            if self.until_ms.is_some_and(|until_ms| line.time_ms > until_ms) {
                break;
            }
            let line = Line {
                time_ms: line.time_ms,
                stream: line.stream,
                text: String::from_utf8_lossy(&line.bytes).into_owned(),
                position: self.position(chunk, index, index == last),
            };
            serde_json::to_writer(&mut out, &line).expect("a line is plain data");
            out.push(b'\n');
        }
        self.skip = self.skip.saturating_sub(chunk.lines.len());
        if !out.is_empty() {
            self.ready.push_back(Bytes::from(out));
        }
    }

    /// Where to go on behind the line of this index. Within a chunk that left lines out, only its beginning is known.
    fn position(&self, chunk: &LogChunk, index: usize, last: bool) -> String {
        let place = if last {
            Place {
                lines: 0,
                base: Some(chunk.position.clone()),
            }
        } else if self.query.tail.is_none() && self.query.since_ms.is_none() {
            Place {
                lines: index + 1,
                base: self.query.after.clone(),
            }
        } else if let Some(base) = &self.query.after {
            Place {
                lines: 0,
                base: Some(base.clone()),
            }
        } else {
            return String::new();
        };
        place.text()
    }
}

#[cfg(test)]
mod tests;
