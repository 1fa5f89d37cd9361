//! Asking another server of the cluster.
//!
//! Only reads are passed on, and once: a request that was passed on says so, and is answered by whoever gets it. Tested in
//! `tests/servers.rs`.

use std::time::Duration;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::client::conn::http1;
use hyper_util::rt::TokioIo;
use muster_api::names;
use rustls::pki_types::ServerName;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use crate::keys;
use crate::membership;
use crate::state::State;
use crate::tls::Shown;

/// Says that a request comes from another server, which has asked whoever sent it who they are.
const PASSED_ON: &str = "muster-passed-on";
/// How long one server has for its answer.
const DEADLINE: Duration = Duration::from_secs(2);
/// The longest answer: the reasons of 10,000 tasks that wait.
const ANSWER_BYTES: usize = 64 << 20;

/// Ways to other servers. One of the server's seams.
#[async_trait]
pub trait Peers: Send + Sync + 'static {
    /// What the server at `endpoint` (`HOST:PORT`) answers to a read of `path`; `Err`: why there is no answer.
    async fn read(&self, endpoint: &str, path: &str) -> Result<(StatusCode, Bytes), String>;
}

/// Over TLS, as the API server.
#[derive(Clone, Debug)]
pub struct HttpsPeers(Shown);

impl HttpsPeers {
    /// With the certificate that agents are shown, too.
    pub fn new(shown: Shown) -> HttpsPeers {
        HttpsPeers(shown)
    }
}

#[async_trait]
impl Peers for HttpsPeers {
    async fn read(&self, endpoint: &str, path: &str) -> Result<(StatusCode, Bytes), String> {
        fn text(error: impl std::fmt::Display) -> String {
            error.to_string()
        }
        let (host, _) = endpoint.rsplit_once(':').ok_or("it is not HOST:PORT")?;
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        let name = ServerName::try_from(host).map_err(text)?;
        let socket = TcpStream::connect(endpoint).await.map_err(text)?;
        socket.set_nodelay(true).map_err(text)?;
        let tls = TlsConnector::from(self.0.get())
            .connect(name, socket)
            .await
            .map_err(text)?;
        let (mut sender, connection) = http1::handshake(TokioIo::new(tls)).await.map_err(text)?;
        // Ends when the sender and the answer are dropped, or when the peer goes.
        tokio::spawn(connection);
        let request = Request::get(path)
            .header(header::HOST, endpoint)
            .header(PASSED_ON, "true")
            .body(Empty::<Bytes>::new());
        let response = sender.send_request(request.map_err(text)?).await.map_err(text)?;
        let status = response.status();
        let body = Limited::new(response.into_body(), ANSWER_BYTES)
            .collect()
            .await
            .map_err(text)?;
        Ok((status, body.to_bytes()))
    }
}

/// The answer of another server, the leader's first, to a read that this one cannot answer. `None`: nobody has a better one.
pub(crate) async fn ask_others(state: &State, headers: &HeaderMap, path: &str) -> Option<Response> {
    let peers = state.membership.peers.as_ref()?;
    if headers.contains_key(PASSED_ON) {
        return None;
    }
    let leader = state
        .hub
        .get(&keys::lease(names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS));
    let holder = leader.map(|lease| {
        lease.json()["spec"]["holderIdentity"]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    });
    let holder = holder.unwrap_or_default();
    let leads = |name: &str| holder.strip_prefix(name).is_some_and(|rest| rest.starts_with('/'));
    let mut others = membership::servers(state);
    others.retain(|server| server.name != state.membership.name);
    others.sort_by_key(|server| !leads(&server.name));
    for server in others {
        for endpoint in &server.endpoints {
            match tokio::time::timeout(DEADLINE, peers.read(endpoint, path)).await {
                Ok(Ok((status, bytes))) if status == StatusCode::OK || status == StatusCode::NOT_FOUND => {
                    let mut response = Response::new(Body::from(bytes));
                    *response.status_mut() = status;
                    let json = HeaderValue::from_static("application/json");
                    response.headers_mut().insert(header::CONTENT_TYPE, json);
                    return Some(response);
                }
                // It has no answer either.
                Ok(Ok(_)) => break,
                Ok(Err(why)) => tracing::debug!(server = server.name, endpoint, why, "another server does not answer"),
                Err(_) => tracing::debug!(server = server.name, endpoint, "another server does not answer in time"),
            }
        }
    }
    None
}
