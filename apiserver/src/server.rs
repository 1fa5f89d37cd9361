//! The listener: TLS, HTTP/2 and HTTP/1.1 on one port, in front of the same router that in-process clients call.
//!
//! It promises that nobody can hold the server by doing nothing: handshakes and headers have deadlines, connections are counted,
//! peers that vanish are noticed. When it is told to stop it takes no more connections, lets requests finish, and after a
//! deadline cuts off the rest; watches end by themselves, because the state they read ends them
//! ([`State::stop`](crate::state::State::stop)). What must never happen here: a listener without TLS. Tested below over real sockets.

use std::convert::Infallible;
use std::io;
use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use axum::Router;
use axum::response::{IntoResponse as _, Response};
use futures::FutureExt as _;
use http::Request;
use hyper::body::Incoming;
use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use hyper_util::service::TowerToHyperService;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::{JoinHandle, JoinSet};
use tokio::time::{sleep, timeout};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

use crate::error::ApiError;
use crate::tls::{Certified, Peer};
use crate::unread::Unread;

/// Connections at a time. Two for each of 5,000 agents and room for users; each costs about 20 KB when idle.
const CONNECTIONS: usize = 12_000;
/// For a TLS handshake, and likewise for the headers of a request over HTTP/1.1.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Headers of a request, in bytes; Kubernetes' clients send less than 2 KB.
const HEADER_BYTES: u32 = 64 << 10;
/// Requests at a time on one connection; a client with a watch for each kind needs a dozen.
const STREAMS: u32 = 1_000;
/// A peer over HTTP/2 that is silent for so long is asked whether it is still there, and then has as long again.
const ALIVE: Duration = Duration::from_secs(30);
/// What a peer may send before the server has read it, of one request and of a connection.
const WINDOW: (u32, u32) = (1 << 20, 4 << 20);
/// How long requests have to finish when the server stops.
const DRAIN: Duration = Duration::from_secs(10);
/// Pause after a connection could not be accepted, most likely for want of file descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Where and how to listen.
#[derive(Clone, Debug)]
pub struct ServeConfig {
    /// The addresses; port 0 is any free one.
    pub listen: Vec<SocketAddr>,
    /// As made by [`tls::listener_config`](crate::tls::listener_config).
    pub tls: Arc<rustls::ServerConfig>,
}

/// A server that listens.
#[derive(Debug)]
pub struct Serving {
    addresses: Vec<SocketAddr>,
    work: JoinHandle<()>,
}

impl Serving {
    /// Where it listens, in the order that was asked for.
    pub fn addresses(&self) -> &[SocketAddr] {
        &self.addresses
    }

    /// Waits until it has stopped and every connection is closed.
    pub async fn stopped(self) {
        // It is never aborted, and a panic of a request is that request's alone.
        let _ = self.work.await;
    }
}

/// Listens and serves `router` until `stop`. Connections are taken from when this returns.
pub async fn serve(router: Router, config: ServeConfig, stop: CancellationToken) -> io::Result<Serving> {
    let mut listeners = Vec::new();
    for address in &config.listen {
        let bound = TcpListener::bind(address).await;
        listeners
            .push(bound.map_err(|error| io::Error::new(error.kind(), format!("cannot listen on {address}: {error}")))?);
    }
    let addresses = listeners
        .iter()
        .map(TcpListener::local_addr)
        .collect::<io::Result<_>>()?;
    let acceptor = TlsAcceptor::from(config.tls);
    let slots = Arc::new(Semaphore::new(CONNECTIONS));
    let work = tokio::spawn(async move {
        let mut accepting = JoinSet::new();
        for listener in listeners {
            accepting.spawn(accept(
                listener,
                acceptor.clone(),
                router.clone(),
                slots.clone(),
                stop.clone(),
            ));
        }
        while accepting.join_next().await.is_some() {}
    });
    Ok(Serving { addresses, work })
}

async fn accept(
    listener: TcpListener,
    acceptor: TlsAcceptor,
    router: Router,
    slots: Arc<Semaphore>,
    stop: CancellationToken,
) {
    let mut connections = JoinSet::new();
    loop {
        while connections.try_join_next().is_some() {}
        let next = async {
            let slot = slots
                .clone()
                .acquire_owned()
                .await
                .expect("the semaphore is never closed");
            (slot, listener.accept().await)
        };
        let (slot, accepted) = tokio::select! {
            biased;
            () = stop.cancelled() => break,
            next = next => next,
        };
        match accepted {
            Ok((socket, peer)) => {
                let (acceptor, router, stop) = (acceptor.clone(), router.clone(), stop.clone());
                connections.spawn(async move {
                    if let Err(problem) = connection(socket, peer, acceptor, router, stop).await {
                        tracing::debug!(%peer, problem, "a connection ended badly");
                    }
                    drop(slot);
                });
            }
            Err(error) => {
                tracing::warn!(%error, "no connection can be accepted");
                sleep(ACCEPT_PAUSE).await;
            }
        }
    }
    drop(listener);
    let drained = timeout(DRAIN, async { while connections.join_next().await.is_some() {} }).await;
    if drained.is_err() {
        tracing::warn!(
            connections = connections.len(),
            "requests did not finish in time and are cut off"
        );
    }
}

async fn connection(
    socket: TcpStream,
    address: SocketAddr,
    acceptor: TlsAcceptor,
    router: Router,
    stop: CancellationToken,
) -> Result<(), String> {
    // Answers are written whole; waiting for more only delays them.
    socket.set_nodelay(true).map_err(|error| error.to_string())?;
    let handshake = timeout(HANDSHAKE, acceptor.accept(socket))
        .await
        .map_err(|_| "no handshake in time")?;
    let stream = handshake.map_err(|error| error.to_string())?;
    let second = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let builder = builder();
    let builder = if second {
        builder.http2_only()
    } else {
        builder.http1_only()
    };
    let shown = stream.get_ref().1.peer_certificates().unwrap_or_default().first();
    let peer = Peer {
        address,
        certificate: shown.and_then(Certified::read),
    };
    let service = tower::service_fn(move |mut request: Request<Incoming>| {
        request.extensions_mut().insert(peer.clone());
        answer(router.clone(), request)
    });
    let service = TowerToHyperService::new(service);
    let mut connection = pin!(builder.serve_connection_with_upgrades(TokioIo::new(stream), service));
    let ended = tokio::select! {
        biased;
        ended = connection.as_mut() => ended,
        () = stop.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    ended.map_err(|error| error.to_string())
}

/// A request in which the server fails is answered, and others of its connection go on. In-process callers get the failure as it is. Who still
/// sends gets to see the answer.
async fn answer(router: Router, request: Request<Incoming>) -> Result<Response, Infallible> {
    let (request, unread) = Unread::of(request);
    let answered = AssertUnwindSafe(router.oneshot(request)).catch_unwind().await;
    if let Some(unread) = unread {
        unread.discard().await;
    }
    answered.unwrap_or_else(|_| {
        let message = "the server failed within the request, which is a mistake in it; its log says where";
        Ok(ApiError::internal(message).into_response())
    })
}

fn builder() -> auto::Builder<TokioExecutor> {
    let mut builder = auto::Builder::new(TokioExecutor::new());
    builder
        .http1()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(HEADER_BYTES as usize);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_header_list_size(HEADER_BYTES)
        .max_concurrent_streams(STREAMS)
        .initial_stream_window_size(WINDOW.0)
        .initial_connection_window_size(WINDOW.1)
        .keep_alive_interval(ALIVE)
        .keep_alive_timeout(ALIVE);
    builder
}

#[cfg(test)]
mod tests {
    use axum::body::Body;
    use axum::routing::{get, post};
    use futures::StreamExt;
    use http::{Request, Response, StatusCode};
    use http_body_util::{BodyExt, Empty};
    use hyper::client::conn::{http1, http2};
    use muster_api::env::SystemEnv;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::sync::{Notify, mpsc};
    use tokio_rustls::TlsConnector;
    use tokio_rustls::client::TlsStream;
    use tokio_stream::wrappers::ReceiverStream;

    use super::*;
    use crate::tls::{self, Pki};

    struct Fixture {
        _directory: tempfile::TempDir,
        pki: Pki,
        serving: Serving,
        stop: CancellationToken,
    }

    impl Fixture {
        async fn new(router: Router) -> Fixture {
            let directory = tempfile::tempdir().unwrap();
            let pki = Pki::open(directory.path(), &SystemEnv).unwrap();
            let identity = pki.server(&[], &SystemEnv).unwrap();
            let tls = Arc::new(tls::server_config(&identity, None).unwrap());
            let stop = CancellationToken::new();
            let config = ServeConfig {
                listen: vec!["127.0.0.1:0".parse().unwrap()],
                tls,
            };
            let serving = serve(router, config, stop.clone()).await.unwrap();
            Fixture {
                _directory: directory,
                pki,
                serving,
                stop,
            }
        }

        async fn connect(&self, protocol: &[u8]) -> TlsStream<TcpStream> {
            let mut config = tls::client_config(self.pki.ca_pem(), None).unwrap();
            config.alpn_protocols = vec![protocol.to_vec()];
            let socket = TcpStream::connect(self.serving.addresses()[0]).await.unwrap();
            let name = ServerName::try_from("localhost").unwrap();
            TlsConnector::from(Arc::new(config))
                .connect(name, socket)
                .await
                .unwrap()
        }
    }

    fn request(path: &str) -> Request<Empty<axum::body::Bytes>> {
        Request::get(format!("https://localhost{path}"))
            .header("host", "localhost")
            .body(Empty::new())
            .unwrap()
    }

    #[tokio::test]
    async fn both_versions_of_http_are_served_on_one_port() {
        let fixture = Fixture::new(Router::new().route("/", get(async || "hello"))).await;
        assert_ne!(fixture.serving.addresses()[0].port(), 0);

        let io = TokioIo::new(fixture.connect(b"http/1.1").await);
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        let first = tokio::spawn(connection);
        let response = sender.send_request(request("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");

        let io = TokioIo::new(fixture.connect(b"h2").await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        let second = tokio::spawn(connection);
        let response = sender.send_request(request("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");

        fixture.stop.cancel();
        fixture.serving.stopped().await;
        first.await.unwrap().unwrap();
        second.await.unwrap().unwrap();
    }

    #[tokio::test]
    async fn requests_finish_when_the_server_stops_and_no_more_are_taken() {
        let (begun, go) = (Arc::new(Notify::new()), Arc::new(Notify::new()));
        let (tell, wait) = (begun.clone(), go.clone());
        let router = Router::new().route(
            "/",
            get(async move || {
                tell.notify_one();
                wait.notified().await;
                "done"
            }),
        );
        let fixture = Fixture::new(router).await;
        let address = fixture.serving.addresses()[0];
        let io = TokioIo::new(fixture.connect(b"h2").await);
        let (mut sender, connection) = http2::handshake(TokioExecutor::new(), io).await.unwrap();
        tokio::spawn(connection);
        let response = tokio::spawn(async move { sender.send_request(request("/")).await.unwrap() });
        begun.notified().await;
        fixture.stop.cancel();
        go.notify_one();
        let response = response.await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "done");
        fixture.serving.stopped().await;
        assert!(TcpStream::connect(address).await.is_err());
    }

    #[tokio::test]
    async fn a_request_in_which_the_server_fails_is_answered_and_its_connection_goes_on() {
        async fn fail() -> &'static str {
            panic!("a mistake");
        }
        let router = Router::new()
            .route("/", get(async || "hello"))
            .route("/fail", get(fail));
        let fixture = Fixture::new(router).await;
        let io = TokioIo::new(fixture.connect(b"http/1.1").await);
        let (mut sender, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let response = sender.send_request(request("/fail")).await.unwrap();
        assert_eq!(response.status(), 500);
        let bytes = response.into_body().collect().await.unwrap().to_bytes();
        assert!(String::from_utf8_lossy(&bytes).contains("\"reason\":\"InternalError\""));
        let response = sender.send_request(request("/")).await.unwrap();
        assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "hello");
    }

    /// Reads the answer of a route that says no.
    async fn refused(stream: &mut TlsStream<TcpStream>) {
        let mut answer = Vec::new();
        while !answer.ends_with(b"no") {
            assert_ne!(stream.read_buf(&mut answer).await.unwrap(), 0, "{answer:?}");
        }
        assert!(answer.starts_with(b"HTTP/1.1 403"), "{answer:?}");
    }

    #[tokio::test]
    async fn a_client_that_writes_before_it_reads_sees_the_answer_and_its_connection_goes_on() {
        let router = Router::new()
            .route("/", post(async || (StatusCode::FORBIDDEN, "no")))
            .layer(axum::extract::DefaultBodyLimit::disable());
        let fixture = Fixture::new(router).await;
        let mut stream = fixture.connect(b"http/1.1").await;
        // Far more than the server has read when it answers.
        let body = vec![b'x'; 1 << 20];
        for _ in 0..3 {
            let head = format!(
                "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: {}\r\n\r\n",
                body.len()
            );
            stream.write_all(head.as_bytes()).await.unwrap();
            stream.write_all(&body).await.unwrap();
            refused(&mut stream).await;
        }
        // One who waits to be asked for the body is not.
        let head = "POST / HTTP/1.1\r\nhost: localhost\r\ncontent-length: 9\r\nexpect: 100-continue\r\n\r\n";
        stream.write_all(head.as_bytes()).await.unwrap();
        refused(&mut stream).await;
    }

    #[tokio::test]
    async fn a_stream_that_its_owner_ends_ends_well() {
        let (sender, receiver) = mpsc::channel::<Result<&'static str, io::Error>>(1);
        let receiver = Arc::new(tokio::sync::Mutex::new(Some(receiver)));
        let router = Router::new().route(
            "/",
            get(async move || {
                let receiver = receiver.lock().await.take().unwrap();
                Response::new(Body::from_stream(ReceiverStream::new(receiver)))
            }),
        );
        let fixture = Fixture::new(router).await;
        let io = TokioIo::new(fixture.connect(b"http/1.1").await);
        let (mut client, connection) = http1::handshake(io).await.unwrap();
        tokio::spawn(connection);
        let response = client.send_request(request("/")).await.unwrap();
        let mut body = response.into_body().into_data_stream();
        sender.send(Ok("one\n")).await.unwrap();
        assert_eq!(body.next().await.unwrap().unwrap(), "one\n");
        fixture.stop.cancel();
        drop(sender);
        assert!(body.next().await.is_none(), "the end, not an error");
        fixture.serving.stopped().await;
    }
}
