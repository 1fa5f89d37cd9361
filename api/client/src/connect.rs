//! Ways to an API server: its router in the same process, or TLS.

use std::time::Duration;

use bytes::Bytes;
use http::header::AUTHORIZATION;
use http::{HeaderValue, Request, Response};
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client as Http;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use kube::client::{Body, ConfigExt};
use kube::config::AuthInfo;
use tower::{Service, ServiceBuilder, ServiceExt};

use crate::endpoints::{Endpoints, Failover};
use crate::machine::CONNECT;
use crate::{BoxError, Client, Error, Result};

const NAMESPACE: &str = muster_api::names::NAMESPACE_DEFAULT;

impl Client {
    /// Speaks to a router, or any other service, of the same process. `token` says who calls, as it would over the network.
    ///
    /// # Panics
    /// When the token cannot be sent in a header.
    pub fn in_process<S, B>(service: S, token: &str) -> Client
    where
        S: Service<Request<Body>, Response = Response<B>> + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let mut value =
            HeaderValue::from_str(&format!("Bearer {token}")).expect("tokens are made of visible characters");
        value.set_sensitive(true);
        let service = service.map_request(move |mut request: Request<Body>| {
            request
                .headers_mut()
                .entry(AUTHORIZATION)
                .or_insert_with(|| value.clone());
            request
        });
        Client {
            kube: kube::Client::new(service, NAMESPACE),
            fence: None,
        }
    }

    /// Speaks to `endpoint`, which must show a certificate of `ca` (PEM).
    pub fn https(endpoint: &str, ca: &str, token: &str) -> Result<Client> {
        let url = endpoint
            .parse()
            .map_err(|source: http::uri::InvalidUri| Error::setup("the address of the API server", source))?;
        let mut config = kube::Config::new(url);
        let certificates = pem_certificates(ca);
        if certificates.is_empty() {
            return Err(Error::setup("the authority", "there is no certificate in it"));
        }
        config.root_cert = Some(certificates);
        config.auth_info = AuthInfo {
            token: Some(token.to_owned().into()),
            ..AuthInfo::default()
        };
        Client::from_config(config)
    }

    /// Speaks to the cluster of a kubeconfig.
    ///
    /// Small requests are sent at once (`TCP_NODELAY`), and nothing is tried again behind the caller's back.
    pub fn from_config(config: kube::Config) -> Result<Client> {
        let http = http(&config, crate::DEADLINE)?;
        Client::layered(config, http)
    }

    /// The same at several servers, in place of the one that the configuration names.
    pub fn from_config_at(config: kube::Config, endpoints: Endpoints) -> Result<Client> {
        let http = http(&config, CONNECT)?;
        Client::layered(config, Failover::new(http, endpoints))
    }

    fn layered<S, B>(config: kube::Config, http: S) -> Result<Client>
    where
        S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
        S::Future: Send + 'static,
        S::Error: Into<BoxError>,
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let setup = |source: kube::Error| Error::setup("the connection", source);
        let service = ServiceBuilder::new()
            .layer(config.base_uri_layer())
            .option_layer(config.auth_layer().map_err(setup)?)
            .layer(config.extra_headers_layer().map_err(setup)?)
            .map_err(Into::<BoxError>::into)
            .service(http);
        Ok(Client {
            kube: kube::Client::new(service, config.default_namespace),
            fence: None,
        })
    }
}

/// Connections as a configuration says.
fn http(config: &kube::Config, patience: Duration) -> Result<Http<HttpsConnector<HttpConnector>, Body>> {
    let mut connector = HttpConnector::new();
    connector.enforce_http(false);
    connector.set_nodelay(true);
    connector.set_connect_timeout(Some(patience));
    let connector = config.rustls_https_connector_with_connector(connector);
    let connector = connector.map_err(|source| Error::setup("the connection", source))?;
    Ok(Http::builder(TokioExecutor::new()).build(connector))
}

/// The certificates of a PEM file, as DER.
fn pem_certificates(pem: &str) -> Vec<Vec<u8>> {
    use rustls_pki_types::CertificateDer;
    use rustls_pki_types::pem::PemObject;
    CertificateDer::pem_slice_iter(pem.as_bytes())
        .filter_map(std::result::Result::ok)
        .map(|der| der.to_vec())
        .collect()
}
