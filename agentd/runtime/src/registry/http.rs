//! Requests to one registry about one image.

use std::path::Path;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use ::http::header::{ACCEPT, AUTHORIZATION, LOCATION, RANGE, RETRY_AFTER, USER_AGENT, WWW_AUTHENTICATE};
use ::http::uri::PathAndQuery;
use ::http::{HeaderMap, HeaderValue, Request, Response, StatusCode, Uri};
use bytes::Bytes;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::Incoming;
use hyper_rustls::{HttpsConnector, HttpsConnectorBuilder};
use hyper_util::client::legacy::Client;
use hyper_util::client::legacy::connect::HttpConnector;
use hyper_util::rt::TokioExecutor;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;
use rustls::{ClientConfig, RootCertStore};
use serde::Deserialize;

use super::auth::{self, Challenge, Token};
use super::name::Remote;
use super::{Config, Keys, PullError};
use crate::limits::{IMAGE_DOCUMENT_BYTES, PULL_AFTER_MAX, PULL_REDIRECTS};

/// How much of a refusal is read.
const REFUSAL_BYTES: usize = 64 << 10;

/// A conversation with a registry about one image.
pub(super) struct Session {
    /// The image.
    pub(super) remote: Remote,
    client: Client<HttpsConnector<HttpConnector>, Empty<Bytes>>,
    base: String,
    credentials: Option<HeaderValue>,
    /// What was last found to open the door.
    authorization: Mutex<Option<HeaderValue>>,
    patience: Duration,
}

/// The errors of a registry, as it explains them.
#[derive(Deserialize)]
struct Refusal {
    errors: Vec<Reason>,
}

#[derive(Deserialize)]
struct Reason {
    #[serde(default)]
    code: String,
    #[serde(default)]
    message: String,
}

impl Session {
    /// Reads what the machine knows about the registry. Nothing is sent yet.
    pub(super) async fn begin(config: &Config, keys: &[Keys], remote: Remote) -> Result<Session, PullError> {
        let plain = remote.is_loopback() || config.plain.contains(&remote.registry);
        let (known, named, keys) = (config.clone(), remote.clone(), keys.to_vec());
        let read = tokio::task::spawn_blocking(move || {
            let credentials = auth::credentials(&keys, known.credentials.as_deref(), &named)?;
            Ok((credentials, trust(known.authorities.as_deref())?))
        });
        let (credentials, trust) = read.await.map_err(|error| PullError::later(error.to_string()))??;
        let connector = HttpsConnectorBuilder::new().with_tls_config(trust);
        let connector = if plain {
            connector.https_or_http()
        } else {
            connector.https_only()
        };
        let mut tcp = HttpConnector::new();
        tcp.enforce_http(false);
        tcp.set_connect_timeout(Some(config.patience));
        let scheme = if plain { "http" } else { "https" };
        Ok(Session {
            client: Client::builder(TokioExecutor::new()).build(connector.enable_http1().wrap_connector(tcp)),
            base: format!("{scheme}://{}/v2/{}", remote.authority(), remote.path),
            remote,
            credentials,
            authorization: Mutex::default(),
            patience: config.patience,
        })
    }

    /// Asks for something of the image; from this byte on.
    pub(super) async fn get(&self, path: &str, accept: &str, from: u64) -> Result<Response<Incoming>, PullError> {
        let url = format!("{}/{path}", self.base);
        let mut asked = false;
        loop {
            let authorization = self.authorization().clone();
            let response = self.follow(&url, accept, from, authorization).await?;
            match response.status() {
                StatusCode::OK | StatusCode::PARTIAL_CONTENT => return Ok(response),
                StatusCode::UNAUTHORIZED if !asked => {
                    asked = true;
                    match Challenge::choose(response.headers().get_all(WWW_AUTHENTICATE).iter(), &self.remote) {
                        Some(challenge) => self.authorize(&challenge).await?,
                        None => return Err(self.refusal(&url, response).await),
                    }
                }
                _ => return Err(self.refusal(&url, response).await),
            }
        }
    }

    fn authorization(&self) -> MutexGuard<'_, Option<HeaderValue>> {
        self.authorization.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Does what the registry asks for; with the credentials for it, if there are any.
    async fn authorize(&self, challenge: &Challenge) -> Result<(), PullError> {
        let header = match challenge {
            Challenge::Basic => self.credentials.clone(),
            Challenge::Bearer { url } => {
                let response = self
                    .follow(url, "application/json", 0, self.credentials.clone())
                    .await?;
                if response.status() != StatusCode::OK {
                    return Err(self.refusal(url, response).await);
                }
                let bytes = self.whole(response, IMAGE_DOCUMENT_BYTES).await?;
                let token = serde_json::from_slice::<Token>(&bytes).ok().and_then(Token::header);
                Some(token.ok_or_else(|| PullError::Damaged(format!("{}: its answer holds no token", host(url))))?)
            }
        };
        *self.authorization() = header;
        Ok(())
    }

    /// Sends a request, and again to where its answers point. Who is asked besides does not get to know what was shown to the first.
    async fn follow(
        &self,
        url: &str,
        accept: &str,
        from: u64,
        authorization: Option<HeaderValue>,
    ) -> Result<Response<Incoming>, PullError> {
        let wrong =
            |url: &str| PullError::Damaged(format!("{} points to {url}, which is no address", self.remote.registry));
        let first: Uri = url.parse().map_err(|_| wrong(url))?;
        let mut to = first.clone();
        for _ in 0..=PULL_REDIRECTS {
            let mut request =
                Request::get(to.clone()).header(USER_AGENT, concat!("muster/", env!("CARGO_PKG_VERSION")));
            request = request.header(ACCEPT, accept);
            if from > 0 {
                request = request.header(RANGE, format!("bytes={from}-"));
            }
            if let Some(authorization) = authorization.clone()
                && to.authority() == first.authority()
                && to.scheme() == first.scheme()
            {
                request = request.header(AUTHORIZATION, authorization);
            }
            let request = request.body(Empty::new()).map_err(|_| wrong(&to.to_string()))?;
            let host = to.host().unwrap_or_default();
            let response = match tokio::time::timeout(self.patience, self.client.request(request)).await {
                Err(_) => {
                    return Err(PullError::later(format!(
                        "{host} does not answer for {:?}",
                        self.patience
                    )));
                }
                Ok(Err(error)) => return Err(PullError::later(format!("{host}: {}", chain(&error)))),
                Ok(Ok(response)) => response,
            };
            let location = response
                .headers()
                .get(LOCATION)
                .filter(|_| response.status().is_redirection());
            let Some(location) = location else { return Ok(response) };
            let location = location.to_str().unwrap_or_default();
            to = resolve(&to, location).ok_or_else(|| wrong(location))?;
        }
        Err(PullError::Damaged(format!(
            "{} points from one place to the next, more than {PULL_REDIRECTS} times",
            host(url)
        )))
    }

    /// The next piece of what is sent; `None`: that was all.
    pub(super) async fn piece(&self, body: &mut Incoming) -> Result<Option<Bytes>, PullError> {
        let registry = &self.remote.registry;
        loop {
            let frame = match tokio::time::timeout(self.patience, body.frame()).await {
                Err(_) => {
                    return Err(PullError::later(format!(
                        "{registry} has sent nothing for {:?}",
                        self.patience
                    )));
                }
                Ok(None) => return Ok(None),
                Ok(Some(Err(error))) => return Err(PullError::later(format!("{registry}: {}", chain(&error)))),
                Ok(Some(Ok(frame))) => frame,
            };
            if let Ok(data) = frame.into_data() {
                return Ok(Some(data));
            }
        }
    }

    /// All of an answer that is a small document.
    pub(super) async fn whole(&self, response: Response<Incoming>, most: u64) -> Result<Vec<u8>, PullError> {
        let (mut body, mut bytes) = (response.into_body(), Vec::new());
        while let Some(piece) = self.piece(&mut body).await? {
            bytes.extend_from_slice(&piece);
            if bytes.len() as u64 > most {
                let registry = &self.remote.registry;
                return Err(PullError::Damaged(format!(
                    "{registry} sends a document of more than {most} bytes"
                )));
            }
        }
        Ok(bytes)
    }

    /// What an answer means that is not what was asked for.
    async fn refusal(&self, url: &str, response: Response<Incoming>) -> PullError {
        let (status, after) = (response.status(), after(response.headers()));
        let said = self.whole(response, REFUSAL_BYTES as u64).await.unwrap_or_default();
        let path = url.parse::<Uri>().ok();
        let path = path.as_ref().map_or(url, |url| url.path());
        let mut message = format!("{} answers {status} to GET {path}", host(url));
        if let Some(reason) = serde_json::from_slice::<Refusal>(&said)
            .ok()
            .and_then(|said| said.errors.into_iter().next())
        {
            message = format!("{message}: {} {}", reason.code, reason.message)
                .trim_end()
                .to_owned();
        }
        match status {
            StatusCode::NOT_FOUND => PullError::NotFound(message),
            StatusCode::UNAUTHORIZED | StatusCode::FORBIDDEN => {
                let known = if self.credentials.is_some() { "others" } else { "some" };
                PullError::Refused(format!(
                    "{message}; if the image exists, this needs credentials for {}, or {known}: a Secret of the type \
                     kubernetes.io/dockerconfigjson in spec.imagePullSecrets, or --registry-credentials FILE of the agent, as `docker login` \
                     writes it",
                    self.remote.registry
                ))
            }
            // It has less of a blob than there is of it here.
            StatusCode::RANGE_NOT_SATISFIABLE => PullError::Later { message, after },
            StatusCode::REQUEST_TIMEOUT | StatusCode::TOO_MANY_REQUESTS => PullError::Later { message, after },
            status if status.is_client_error() => PullError::Refused(message),
            _ => PullError::Later { message, after },
        }
    }
}

/// How long somebody wants to be left alone.
fn after(headers: &HeaderMap) -> Option<Duration> {
    let seconds = headers.get(RETRY_AFTER)?.to_str().ok()?.trim().parse().ok()?;
    Some(Duration::from_secs(seconds).min(PULL_AFTER_MAX))
}

/// Where a reference points, seen from a place.
fn resolve(from: &Uri, reference: &str) -> Option<Uri> {
    let to: Uri = reference.parse().ok()?;
    let mut parts = to.into_parts();
    if parts.authority.is_none() {
        parts.authority = from.authority().cloned();
        let path = parts.path_and_query.as_ref().map_or("/", PathAndQuery::as_str);
        // Relative to a directory is what nobody sends.
        parts.path_and_query = path.starts_with('/').then(|| path.parse().ok())?;
    }
    parts.scheme = parts.scheme.or_else(|| from.scheme().cloned());
    Uri::from_parts(parts).ok()
}

fn host(url: &str) -> String {
    let authority = url.parse::<Uri>().ok().and_then(|url| url.into_parts().authority);
    authority.map_or_else(|| url.to_owned(), |authority| authority.to_string())
}

/// Which certificates are believed: the machine's authorities, and those of the file.
fn trust(authorities: Option<&Path>) -> Result<ClientConfig, PullError> {
    let mut roots = RootCertStore::empty();
    roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs);
    if let Some(path) = authorities {
        let unusable =
            |why: String| PullError::later(format!("the authorities of registries in {}: {why}", path.display()));
        for certificate in CertificateDer::pem_file_iter(path).map_err(|error| unusable(error.to_string()))? {
            let certificate = certificate.map_err(|error| unusable(error.to_string()))?;
            roots.add(certificate).map_err(|error| unusable(error.to_string()))?;
        }
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()
        .map_err(|error| PullError::later(error.to_string()))?;
    Ok(config.with_root_certificates(roots).with_no_client_auth())
}

/// An error with all its causes: those of connections say little at the top.
fn chain(error: &dyn std::error::Error) -> String {
    let causes = std::iter::successors(Some(error), |error| error.source());
    causes.map(ToString::to_string).collect::<Vec<_>>().join(": ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn answers_point_to_other_hosts_and_to_places_of_the_same() {
        let from: Uri = "https://a:1/v2/x".parse().expect("an address");
        for (reference, expect) in [
            ("https://b/c?d=e", Some("https://b/c?d=e")),
            ("/c?d", Some("https://a:1/c?d")),
            ("http://b/c", Some("http://b/c")),
            ("c", None),
            ("", None),
        ] {
            let to = resolve(&from, reference).map(|to| to.to_string());
            assert_eq!(to.as_deref(), expect, "{reference}");
        }
    }

    #[test]
    fn a_registry_is_left_alone_for_as_long_as_it_says_within_reason() {
        let after = |text: &str| after(&HeaderMap::from_iter([(RETRY_AFTER, text.parse().expect("a header"))]));
        assert_eq!(after("7"), Some(Duration::from_secs(7)));
        assert_eq!(after("999999999"), Some(PULL_AFTER_MAX));
        assert_eq!(after("Wed, 21 Oct 2026 07:28:00 GMT"), None);
    }
}
