//! Logs and documents from the agents' own servers, over TLS on both sides.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use bytes::{Bytes, BytesMut};
use futures::stream::{self, BoxStream};
use futures::{StreamExt, TryStreamExt};
use http::{HeaderMap, Request, Response, StatusCode, header};
use http_body_util::{BodyExt, Empty, Limited};
use hyper::body::Incoming;
use hyper::client::conn::http2;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use muster_api::names;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio::sync::Semaphore;
use tokio_rustls::TlsConnector;

use super::{LogError, LogLine, LogQuery, LogSource, Node};
use crate::streams::{self, Action, Opened, StreamError};
use crate::tls::Shown;

/// For the connection, the handshake and the beginning of the answer together.
const DEADLINE: Duration = Duration::from_secs(5);
/// A peer that is silent for so long is asked whether it is still there, and given as long to answer.
const ALIVE: Duration = Duration::from_secs(10);
/// The longest line that is taken: the runtime cuts lines at 64 KiB, which JSON may make six times longer.
const LINE_BYTES: usize = 1 << 20;
/// The largest document that is taken: twice what an agent has to say at most.
const DOCUMENT_BYTES: usize = 16 << 20;
/// Of what an agent says when it refuses.
const REFUSAL_BYTES: usize = 4096;

/// Asks the node server of an agent, as the API server and verified by the cluster's CA.
#[derive(Clone, Debug)]
pub struct HttpsLogSource {
    config: Shown,
    /// Of streams of commands and files.
    streams: Arc<Semaphore>,
    /// Of connections to ports: a program that makes many takes no command's place.
    forwards: Arc<Semaphore>,
}

impl HttpsLogSource {
    /// With the configuration of [`tls::client_config`](crate::tls::client_config): the CA, and the certificate that agents accept.
    pub fn new(config: Shown) -> HttpsLogSource {
        HttpsLogSource {
            config,
            streams: Arc::new(Semaphore::new(streams::STREAMS)),
            forwards: Arc::new(Semaphore::new(streams::STREAMS)),
        }
    }

    async fn connect(&self, node: Node<'_>) -> Result<http2::SendRequest<Empty<Bytes>>, LogError> {
        // The certificate names the agent, wherever it is.
        let name = ServerName::try_from(names::agent_host(node.agent)).map_err(unreachable)?;
        let socket = TcpStream::connect(node.address).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let tls = TlsConnector::from(self.config.get())
            .connect(name, socket)
            .await
            .map_err(unreachable)?;
        let (sender, connection) = http2::Builder::new(TokioExecutor::new())
            .timer(TokioTimer::new())
            .keep_alive_interval(ALIVE)
            .keep_alive_timeout(ALIVE)
            .handshake(TokioIo::new(tls))
            .await
            .map_err(unreachable)?;
        // Ends when the sender and the answer are dropped, or when the peer goes.
        tokio::spawn(async move {
            if let Err(error) = connection.await {
                tracing::debug!(%error, "a connection to an agent ended");
            }
        });
        Ok(sender)
    }

    /// The beginning of an answer, and what keeps its connection.
    async fn get(
        &self,
        node: Node<'_>,
        path: &str,
        accept: &str,
    ) -> Result<(http2::SendRequest<Empty<Bytes>>, Response<Incoming>), LogError> {
        let mut sender = self.connect(node).await?;
        let request = Request::get(format!("https://{}{path}", node.address))
            .header(header::ACCEPT, accept)
            .body(Empty::new())
            .map_err(unreachable)?;
        let response = sender.send_request(request).await.map_err(unreachable)?;
        Ok((sender, response))
    }
}

/// Gives up on what takes too long.
async fn within<T>(asked: impl Future<Output = Result<T, LogError>>) -> Result<T, LogError> {
    let late = || Err(unreachable(format!("no answer within {DEADLINE:?}")));
    tokio::time::timeout(DEADLINE, asked).await.unwrap_or_else(|_| late())
}

/// What an answer says that is none.
async fn refusal(response: Response<Incoming>) -> LogError {
    let status = response.status();
    let body = Limited::new(response.into_body(), REFUSAL_BYTES).collect();
    let body = tokio::time::timeout(DEADLINE, body)
        .await
        .ok()
        .and_then(Result::ok)
        .map(|body| body.to_bytes());
    let text = String::from_utf8_lossy(&body.unwrap_or_default()).trim().to_owned();
    match status {
        StatusCode::NOT_FOUND => LogError::NotFound,
        status if status.is_server_error() => LogError::Unreachable(format!("{status}: {text}")),
        status => LogError::Refused(format!("{status}: {text}")),
    }
}

fn unreachable(error: impl std::fmt::Display) -> LogError {
    LogError::Unreachable(error.to_string())
}

/// The path of the node server.
fn path(container: &str, query: &LogQuery) -> String {
    let mut text = format!("/v1/logs/{container}?follow={}", query.follow);
    if let Some(tail) = query.tail {
        text.push_str(&format!("&tail={tail}"));
    }
    if let Some(since) = query.since_ms {
        text.push_str(&format!("&since_ms={since}"));
    }
    if let Some(after) = &query.after {
        text.push_str("&after=");
        for byte in after.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b':') {
                text.push(char::from(byte));
            } else {
                text.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    text
}

#[async_trait]
impl LogSource for HttpsLogSource {
    async fn open(
        &self,
        node: Node<'_>,
        container: &str,
        query: &LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, LogError>>, LogError> {
        let path = path(container, query);
        let (sender, response) = within(self.get(node, &path, "application/x-ndjson")).await?;
        if response.status() == StatusCode::OK {
            return Ok(lines(sender, response.into_body()));
        }
        Err(refusal(response).await)
    }

    async fn fetch(&self, node: Node<'_>, path: &str) -> Result<Bytes, LogError> {
        let whole = async {
            // The connection lasts as long as the sender.
            let (_sender, response) = self.get(node, path, "*/*").await?;
            if response.status() != StatusCode::OK {
                return Err(refusal(response).await);
            }
            let body = Limited::new(response.into_body(), DOCUMENT_BYTES).collect().await;
            Ok(body.map_err(unreachable)?.to_bytes())
        };
        within(whole).await
    }

    async fn stream(
        &self,
        node: Node<'_>,
        action: Action,
        path: &str,
        client: &HeaderMap,
    ) -> Result<Opened, StreamError> {
        let slots = match action {
            Action::Exec | Action::Copy => &self.streams,
            Action::Forward => &self.forwards,
        };
        let slot = Arc::clone(slots)
            .try_acquire_owned()
            .map_err(|_| StreamError::TooMany)?;
        streams::open(&self.config.get(), slot, node, path, client).await
    }
}

/// The lines of the body; it must end with one.
fn lines(sender: http2::SendRequest<Empty<Bytes>>, body: Incoming) -> BoxStream<'static, Result<LogLine, LogError>> {
    struct Reading {
        body: http_body_util::BodyDataStream<Incoming>,
        rest: BytesMut,
        /// Keeps the connection.
        _sender: http2::SendRequest<Empty<Bytes>>,
    }
    let reading = Reading {
        body: body.into_data_stream(),
        rest: BytesMut::new(),
        _sender: sender,
    };
    let batches = stream::try_unfold(reading, |mut reading| async move {
        loop {
            if let Some(end) = reading.rest.iter().rposition(|byte| *byte == b'\n') {
                let whole = reading.rest.split_to(end + 1).freeze();
                return Ok(Some((whole, reading)));
            }
            if reading.rest.len() > LINE_BYTES {
                return Err(LogError::Refused("a line is too long".to_owned()));
            }
            match reading.body.next().await {
                Some(Ok(bytes)) => reading.rest.extend_from_slice(&bytes),
                Some(Err(error)) => return Err(unreachable(error)),
                None if reading.rest.is_empty() => return Ok(None),
                None => return Err(unreachable("the answer ended in the middle of a line")),
            }
        }
    });
    batches
        .map_ok(|whole| {
            let lines: Vec<Result<LogLine, LogError>> = whole
                .split(|byte| *byte == b'\n')
                .filter(|line| !line.is_empty())
                .map(|line| serde_json::from_slice(line).map_err(|error| LogError::Refused(error.to_string())))
                .collect();
            stream::iter(lines)
        })
        .try_flatten()
        .boxed()
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http_body_util::StreamBody;
    use hyper::body::Frame;
    use hyper::service::service_fn;
    use hyper_util::server::conn::auto;
    use muster_api::env::SystemEnv;
    use tokio::net::TcpListener;
    use tokio_rustls::TlsAcceptor;

    use super::*;

    use crate::tls::{self, Pki, Shown};

    /// A node server that answers one connection with the path it was asked for and two lines, in pieces.
    async fn node(pki: &Pki, name: &str) -> String {
        let identity = pki.agent(name, &SystemEnv).unwrap();
        let config = tls::server_config(&identity, Some(pki.ca_pem())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(socket) = TlsAcceptor::from(Arc::new(config)).accept(socket).await else {
                return;
            };
            let service = service_fn(|request: Request<Incoming>| async move {
                let line = |text: String, position: &str| {
                    let line = LogLine {
                        time_ms: 1,
                        stream: "Stdout".to_owned(),
                        text,
                        position: position.to_owned(),
                    };
                    format!("{}\n", serde_json::to_string(&line).unwrap())
                };
                let all = line(request.uri().to_string(), "1:a") + &line("two\n".to_owned(), "2:a");
                let (one, two) = all.split_at(all.len() / 3);
                let pieces =
                    [one.to_owned(), two.to_owned()].map(|text| Ok::<_, Infallible>(Frame::data(Bytes::from(text))));
                let mut response = Response::new(BodyExt::boxed(StreamBody::new(stream::iter(pieces))));
                if request.uri().path().ends_with("gone") {
                    *response.status_mut() = StatusCode::NOT_FOUND;
                }
                Ok::<_, Infallible>(response)
            });
            let _ = auto::Builder::new(TokioExecutor::new())
                .serve_connection(TokioIo::new(socket), service)
                .await;
        });
        address
    }

    fn at(address: &str) -> Node<'_> {
        Node { agent: "a1", address }
    }

    fn source(pki: &Pki) -> HttpsLogSource {
        let client = pki.client(&SystemEnv).unwrap();
        HttpsLogSource::new(Shown::new(tls::client_config(pki.ca_pem(), Some(&client)).unwrap()))
    }

    #[tokio::test]
    async fn lines_come_from_the_agent_over_tls() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
        let address = node(&pki, "a1").await;
        let query = LogQuery {
            follow: true,
            tail: Some(3),
            since_ms: None,
            after: Some("5:x/y".to_owned()),
        };
        let lines = source(&pki).open(at(&address), "uid-1", &query).await.unwrap();
        let lines: Vec<LogLine> = lines.try_collect().await.unwrap();
        assert_eq!(lines.len(), 2);
        assert!(
            lines[0]
                .text
                .ends_with("/v1/logs/uid-1?follow=true&tail=3&after=5:x%2Fy"),
            "{}",
            lines[0].text
        );
        assert_eq!(lines[1].text, "two\n");

        let address = node(&pki, "a1").await;
        let whole = source(&pki).fetch(at(&address), "/v1/usage").await.unwrap();
        let text = String::from_utf8(whole.to_vec()).unwrap();
        assert!(text.contains("/v1/usage") && text.lines().count() == 2, "{text}");

        let address = node(&pki, "a1").await;
        let refused = source(&pki)
            .open(at(&address), "gone", &LogQuery::default())
            .await
            .err()
            .unwrap();
        assert!(matches!(refused, LogError::NotFound), "{refused}");
    }

    #[tokio::test]
    async fn an_agent_of_another_cluster_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(&directory.path().join("ours"), &SystemEnv).unwrap();
        let theirs = Pki::open(&directory.path().join("theirs"), &SystemEnv).unwrap();
        let address = node(&theirs, "a1").await;
        let error = source(&pki)
            .open(at(&address), "uid-1", &LogQuery::default())
            .await
            .err()
            .unwrap();
        assert!(matches!(error, LogError::Unreachable(_)), "{error}");
    }
}
