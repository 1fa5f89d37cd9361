//! Ways to the API server for machines: several servers, a pinned authority, a certificate that changes while it is used.

use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::{Method, Request};
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::client::legacy::{Client as Http, ResponseFuture};
use hyper_util::rt::TokioExecutor;
use kube::client::Body;
use muster_api::join::{JoinAnswer, JoinRequest, JoinToken, RenewRequest, Servers};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::{ClientConfig, RootCertStore};
use tokio::sync::watch;
use tower::Service;

use crate::endpoints::{Endpoints, Failover};
use crate::pinned::Pinned;
use crate::{Call, Client, Error, Result};

/// How long a connection may take to be made when there are other servers to try.
pub(crate) const CONNECT: Duration = Duration::from_secs(3);

/// A certificate and its private key, as PEM.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Shown {
    /// The certificate.
    pub certificate: String,
    /// The private key.
    pub key: String,
}

impl std::fmt::Debug for Shown {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shown").finish_non_exhaustive()
    }
}

enum Trust {
    /// The certificate of an authority (PEM).
    Authority(String),
    /// The SHA-256 of one.
    Pin([u8; 32]),
}

impl Client {
    /// Speaks to servers whose authority is `ca` (PEM), as whom the newest of `shown` names.
    pub fn certified(endpoints: Endpoints, ca: &str, shown: watch::Receiver<Shown>) -> Result<Client> {
        Client::machine(endpoints, Trust::Authority(ca.to_owned()), Some(shown))
    }

    /// Speaks to the servers of a join token, as nobody.
    pub fn pinned(token: &JoinToken) -> Result<Client> {
        let endpoints = Endpoints::new(&token.endpoints)?;
        Client::machine(endpoints, Trust::Pin(token.pin), None)
    }

    fn machine(endpoints: Endpoints, trust: Trust, shown: Option<watch::Receiver<Shown>>) -> Result<Client> {
        let transport = Transport(Arc::new(Mutex::new(Connections {
            http: connect(&trust, shown.as_ref().map(|shown| shown.borrow().clone()).as_ref())?,
            trust,
            shown,
        })));
        let service = Failover::new(transport, endpoints);
        Ok(Client {
            kube: kube::Client::new(service, muster_api::names::NAMESPACE_DEFAULT),
            fence: None,
        })
    }

    /// Joins the cluster.
    pub async fn join(&self, request: &JoinRequest) -> Result<JoinAnswer> {
        let call = Call::new(Method::POST, "/muster/v1/join".to_owned(), "the answer to a join");
        self.call(call.json(request)?).await
    }

    /// Asks for the successor of the certificate that this client shows.
    pub async fn renew_certificate(&self, request: &RenewRequest) -> Result<JoinAnswer> {
        let call = Call::new(Method::POST, "/muster/v1/renew".to_owned(), "a renewed certificate");
        self.call(call.json(request)?).await
    }

    /// The servers that live.
    pub async fn servers(&self) -> Result<Servers> {
        self.call(Call::new(Method::GET, "/muster/v1/endpoints".to_owned(), "the servers"))
            .await
    }
}

type Connector = HttpsConnector<HttpConnector>;

struct Connections {
    http: Http<Connector, Body>,
    trust: Trust,
    shown: Option<watch::Receiver<Shown>>,
}

/// Connections that show the newest certificate. Those that were made with an older one end with what is sent over them.
#[derive(Clone)]
struct Transport(Arc<Mutex<Connections>>);

impl Transport {
    fn http(&self) -> Http<Connector, Body> {
        let mut own = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let newer = match &mut own.shown {
            Some(shown) if shown.has_changed().unwrap_or(false) => Some(shown.borrow_and_update().clone()),
            _ => None,
        };
        if let Some(newer) = newer {
            match connect(&own.trust, Some(&newer)) {
                Ok(http) => own.http = http,
                Err(error) => tracing::error!(%error, "a new certificate cannot be used; the old one is shown"),
            }
        }
        own.http.clone()
    }
}

impl Service<Request<Body>> for Transport {
    type Response = http::Response<hyper::body::Incoming>;
    type Error = hyper_util::client::legacy::Error;
    type Future = ResponseFuture;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> ResponseFuture {
        self.http().request(request)
    }
}

fn connect(trust: &Trust, shown: Option<&Shown>) -> Result<Http<Connector, Body>> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(provider.clone()).with_safe_default_protocol_versions();
    let builder = builder.map_err(|source| Error::setup("TLS", source))?;
    let builder = match trust {
        Trust::Pin(pin) => {
            let pinned = Pinned { pin: *pin, provider };
            builder.dangerous().with_custom_certificate_verifier(Arc::new(pinned))
        }
        Trust::Authority(pem) => {
            let mut roots = RootCertStore::empty();
            for certificate in certificates(pem)? {
                roots
                    .add(certificate)
                    .map_err(|source| Error::setup("the authority", source))?;
            }
            builder.with_root_certificates(roots)
        }
    };
    let config = match shown {
        None => builder.with_no_client_auth(),
        Some(shown) => {
            let key = PrivateKeyDer::from_pem_slice(shown.key.as_bytes());
            let key = key.map_err(|source| Error::setup("the private key", source))?;
            let own = builder.with_client_auth_cert(certificates(&shown.certificate)?, key);
            own.map_err(|source| Error::setup("the certificate", source))?
        }
    };
    let mut http = HttpConnector::new();
    http.enforce_http(false);
    http.set_nodelay(true);
    http.set_connect_timeout(Some(CONNECT));
    let connector = HttpsConnectorBuilder::new()
        .with_tls_config(config)
        .https_only()
        .enable_http1();
    Ok(Http::builder(TokioExecutor::new()).build(connector.wrap_connector(http)))
}

fn certificates(pem: &str) -> Result<Vec<CertificateDer<'static>>> {
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(pem.as_bytes()).collect();
    match all {
        Ok(all) if !all.is_empty() => Ok(all),
        Ok(_) => Err(Error::setup("a certificate", "there is none in it")),
        Err(source) => Err(Error::setup("a certificate", source)),
    }
}
