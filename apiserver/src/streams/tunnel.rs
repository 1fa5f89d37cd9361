//! A connection to an agent that becomes a stream, and its way through the server.

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http::{HeaderMap, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper::upgrade::Upgraded;
use hyper_util::rt::TokioIo;
use muster_api::names;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use tokio::io::copy_bidirectional_with_sizes;
use tokio::net::TcpStream;
use tokio::sync::OwnedSemaphorePermit;
use tokio_rustls::TlsConnector;

use crate::logs::Node;

/// Streams at a time, of commands and files as of ports: a handful for each person, and what programs hold; each costs two connections and
/// twice [`BLOCK`].
pub(crate) const STREAMS: usize = 1_000;
/// For the connection and the handshake.
const CONNECT: Duration = Duration::from_secs(5);
/// For the answer of the agent, which enters the container first: its own deadline is shorter.
const ANSWER: Duration = Duration::from_secs(30);
/// Of what an agent says when it refuses.
const REFUSAL_BYTES: usize = 4096;
/// What is held of each direction.
const BLOCK: usize = 16 * 1024;

/// Why there is no stream.
#[derive(Debug, thiserror::Error)]
pub enum StreamError {
    /// The agent says no.
    #[error("the agent refused: {0}: {1}")]
    Refused(StatusCode, String),
    /// The server has as many as it may.
    #[error("there are too many streams")]
    TooMany,
    /// The agent cannot be reached.
    #[error("{0}")]
    Unreachable(String),
}

fn unreachable(error: impl std::fmt::Display) -> StreamError {
    StreamError::Unreachable(error.to_string())
}

/// A stream at whose other end an agent speaks.
#[derive(Debug)]
pub struct Opened {
    /// What the agent answered.
    pub headers: HeaderMap,
    agent: Upgraded,
    _slot: OwnedSemaphorePermit,
}

impl Opened {
    /// Joins it with a client until one of them is gone.
    pub(super) async fn join(self, client: Upgraded) {
        let (mut agent, mut client) = (TokioIo::new(self.agent), TokioIo::new(client));
        // An end of one direction is the end of all: a WebSocket has no half of one.
        let _ = copy_bidirectional_with_sizes(&mut client, &mut agent, BLOCK, BLOCK).await;
    }
}

/// Asks the node server of an agent for a stream, with what the client said about its WebSocket.
pub(crate) async fn open(
    config: &Arc<ClientConfig>,
    slot: OwnedSemaphorePermit,
    node: Node<'_>,
    path: &str,
    client: &HeaderMap,
) -> Result<Opened, StreamError> {
    // What is upgraded is a connection, and those of HTTP/2 are not.
    let mut config = ClientConfig::clone(config);
    config.alpn_protocols = vec![b"http/1.1".to_vec()];
    let connect = async {
        let name = ServerName::try_from(names::agent_host(node.agent)).map_err(unreachable)?;
        let socket = TcpStream::connect(node.address).await.map_err(unreachable)?;
        socket.set_nodelay(true).map_err(unreachable)?;
        let tls = TlsConnector::from(Arc::new(config)).connect(name, socket);
        http1::handshake(TokioIo::new(tls.await.map_err(unreachable)?))
            .await
            .map_err(unreachable)
    };
    let late = |deadline: Duration| move |_| unreachable(format!("no answer within {deadline:?}"));
    let connected = tokio::time::timeout(CONNECT, connect).await.map_err(late(CONNECT))?;
    let (mut sender, connection) = connected?;
    // Ends when it was upgraded, or with the sender and the answer.
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "a connection to an agent ended");
        }
    });
    let mut request = Request::get(path)
        .header(header::HOST, names::agent_host(node.agent))
        .header(header::CONNECTION, "Upgrade")
        .header(header::UPGRADE, "websocket");
    for name in [
        header::SEC_WEBSOCKET_KEY,
        header::SEC_WEBSOCKET_VERSION,
        header::SEC_WEBSOCKET_PROTOCOL,
    ] {
        for value in client.get_all(&name) {
            request = request.header(&name, value);
        }
    }
    let request = request.body(Empty::<Bytes>::new()).map_err(unreachable)?;
    let answer = tokio::time::timeout(ANSWER, sender.send_request(request)).await;
    let answer = answer.map_err(late(ANSWER))?.map_err(unreachable)?;
    let status = answer.status();
    if status == StatusCode::SWITCHING_PROTOCOLS {
        let headers = answer.headers().clone();
        let upgraded = tokio::time::timeout(CONNECT, hyper::upgrade::on(answer)).await;
        return Ok(Opened {
            headers,
            agent: upgraded.map_err(late(CONNECT))?.map_err(unreachable)?,
            _slot: slot,
        });
    }
    let body = Limited::new(answer.into_body(), REFUSAL_BYTES).collect();
    let body = tokio::time::timeout(CONNECT, body).await.ok().and_then(Result::ok);
    let text = body.map(|body| body.to_bytes()).unwrap_or_default();
    let text = String::from_utf8_lossy(&text).trim().to_owned();
    Err(StreamError::Refused(status, text))
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use http::Response;
    use hyper::body::Incoming;
    use hyper::service::service_fn;
    use muster_api::env::SystemEnv;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _, duplex};
    use tokio::net::TcpListener;
    use tokio::sync::Semaphore;
    use tokio_rustls::TlsAcceptor;

    use super::*;
    use crate::tls::{self, Pki};

    /// A node server that upgrades one connection, and sends back what it gets, with the path first; `/refuse` is refused.
    async fn node(pki: &Pki) -> String {
        let identity = pki.agent("a1", &SystemEnv).unwrap();
        let config = tls::server_config(&identity, Some(pki.ca_pem())).unwrap();
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(async move {
            let (socket, _) = listener.accept().await.unwrap();
            let Ok(socket) = TlsAcceptor::from(Arc::new(config)).accept(socket).await else {
                return;
            };
            let service = service_fn(|request: Request<Incoming>| async move {
                let mut response = Response::new("the task is over".to_owned());
                *response.status_mut() = StatusCode::CONFLICT;
                if request.uri().path() != "/refuse" {
                    let key = request.headers()[header::SEC_WEBSOCKET_KEY]
                        .to_str()
                        .unwrap()
                        .to_owned();
                    let hello = format!("{} {key};", request.uri());
                    tokio::spawn(async move {
                        let mut io = TokioIo::new(hyper::upgrade::on(request).await.unwrap());
                        io.write_all(hello.as_bytes()).await.unwrap();
                        let (mut read, mut write) = tokio::io::split(io);
                        let _ = tokio::io::copy(&mut read, &mut write).await;
                    });
                    response = Response::new(String::new());
                    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
                    let upgrade = header::HeaderValue::from_static("websocket");
                    response.headers_mut().insert(header::UPGRADE, upgrade);
                    let connection = header::HeaderValue::from_static("Upgrade");
                    response.headers_mut().insert(header::CONNECTION, connection);
                }
                Ok::<_, Infallible>(response)
            });
            let connection = hyper::server::conn::http1::Builder::new().serve_connection(TokioIo::new(socket), service);
            let _ = connection.with_upgrades().await;
        });
        address
    }

    async fn asked(pki: &Pki, agent: &str, address: &str, path: &str) -> Result<Opened, StreamError> {
        let client = pki.client(&SystemEnv).unwrap();
        let config = Arc::new(tls::client_config(pki.ca_pem(), Some(&client)).unwrap());
        let slot = Arc::new(Semaphore::new(1)).acquire_owned().await.unwrap();
        let headers = [(header::SEC_WEBSOCKET_KEY, "key"), (header::COOKIE, "secret")]
            .map(|(name, value)| (name, value.parse().unwrap()))
            .into_iter()
            .collect();
        open(&config, slot, Node { agent, address }, path, &headers).await
    }

    #[tokio::test]
    async fn bytes_go_both_ways_until_one_side_is_gone() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
        let opened = asked(&pki, "a1", &node(&pki).await, "/v1/exec/c?command=x")
            .await
            .unwrap();
        assert_eq!(opened.headers[header::UPGRADE], "websocket");
        let (client, mut here) = duplex(1024);
        let mut agent = TokioIo::new(opened.agent);
        let mut client = client;
        let joined = tokio::spawn(async move { tokio::io::copy_bidirectional(&mut client, &mut agent).await });
        here.write_all(b"typed").await.unwrap();
        let expected = "/v1/exec/c?command=x key;typed";
        let mut seen = vec![0; expected.len()];
        here.read_exact(&mut seen).await.unwrap();
        assert_eq!(String::from_utf8(seen).unwrap(), expected);
        drop(here);
        // It ends; that the agent says no farewell is nothing to it.
        let _ = joined.await.unwrap();
    }

    #[tokio::test]
    async fn what_an_agent_refuses_is_told_and_who_is_not_it_is_not_asked() {
        let directory = tempfile::tempdir().unwrap();
        let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
        let refused = asked(&pki, "a1", &node(&pki).await, "/refuse").await.unwrap_err();
        assert!(
            matches!(&refused, StreamError::Refused(StatusCode::CONFLICT, why) if why == "the task is over"),
            "{refused}"
        );
        // Another agent's name at this address.
        let other = asked(&pki, "a2", &node(&pki).await, "/v1/exec/c").await.unwrap_err();
        assert!(matches!(other, StreamError::Unreachable(_)), "{other}");
    }
}
