//! The client of the API server: a [`kube::Client`] over any tower service, with Muster's own calls.
//!
//! The service is a TLS connection ([`Client::https`], [`Client::from_config`]), several of them ([`Endpoints`]), or the API server's
//! router itself ([`Client::in_process`]); whoever calls cannot tell. Promises: every call but a stream has a deadline ([`DEADLINE`]); every
//! failure says whether trying again can help ([`Error`]); a client that is [`fenced`](Client::fenced) sends its token with
//! every request. What must never happen here: a retry of a write behind the caller's back, a clock other than tokio's,
//! knowledge of what is in the store. Tested against small services and, by the controllers' tests, the real router.

mod calls;
mod connect;
mod endpoints;
mod error;
mod lease;
mod log;
mod machine;
mod objects;
mod pinned;
mod watch;

use std::collections::BTreeSet;
use std::fmt;
use std::str::FromStr;
use std::time::Duration;

use bytes::Bytes;
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER};
use http::{HeaderValue, Method, Request, Response};
use http_body_util::{BodyExt, Limited};
use kube::client::Body;
use kube::core::Status;
use muster_api::names;
use serde::de::DeserializeOwned;

pub use endpoints::{Endpoints, Failover};
pub use error::{BoxError, Error, Result};
pub use kube;
pub use log::LogOptions;
pub use machine::Shown;
pub use objects::{Patch, Preconditions};
pub use watch::{LINE_BYTES_MAX, WATCH_SILENCE_MAX};

/// How long a call may take in all, streams aside.
pub const DEADLINE: Duration = Duration::from_secs(10);

/// The longest answer that is read: a list of 100,000 objects of 2 KiB, with room.
const ANSWER_BYTES_MAX: usize = 256 << 20;

/// More clusters behind one address than this are not told apart; two are one too many.
const CLUSTERS_MAX: usize = 8;

/// The right to act: a lease, and which incarnation of it. On the wire `NAMESPACE/NAME@CREATE_REVISION`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Fence {
    /// The namespace of the lease.
    pub namespace: String,
    /// The name of the lease.
    pub name: String,
    /// The revision that created it.
    pub revision: u64,
}

impl fmt::Display for Fence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.namespace, self.name, self.revision)
    }
}

/// A text that is not a fence.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a fence; one looks like NAMESPACE/LEASE@REVISION")]
pub struct FenceError(String);

impl FromStr for Fence {
    type Err = FenceError;

    fn from_str(text: &str) -> Result<Fence, FenceError> {
        let parts = || {
            let (lease, revision) = text.rsplit_once('@')?;
            let (namespace, name) = lease.split_once('/')?;
            let named = !namespace.is_empty() && !name.is_empty() && !name.contains('/');
            named.then_some(Fence {
                namespace: namespace.to_owned(),
                name: name.to_owned(),
                revision: revision.parse().ok()?,
            })
        };
        parts().ok_or_else(|| FenceError(text.chars().take(200).collect()))
    }
}

/// Speaks to an API server. Cheap to clone.
#[derive(Clone)]
pub struct Client {
    kube: kube::Client,
    fence: Option<Fence>,
}

impl fmt::Debug for Client {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Client")
            .field("fence", &self.fence)
            .finish_non_exhaustive()
    }
}

impl Client {
    /// The same as a kube client, for `Api<T>`. It sends the same credentials and the same fence.
    pub fn kube(&self) -> kube::Client {
        self.kube.clone()
    }

    /// The namespace of the configuration; `default` without one.
    pub fn default_namespace(&self) -> &str {
        self.kube.default_namespace()
    }

    /// The fence that is sent with every request.
    pub fn fence(&self) -> Option<&Fence> {
        self.fence.as_ref()
    }

    /// A client whose every request is made under `fence`: writes land only while that very lease exists.
    ///
    /// It starts a small task that ends with the last clone; make one for each term, not one for each call.
    pub fn fenced(&self, fence: &Fence) -> Client {
        let value = HeaderValue::from_str(&fence.to_string()).expect("names of leases have no control characters");
        let inner = self.kube.clone();
        let service = tower::service_fn(move |mut request: Request<Body>| {
            request
                .headers_mut()
                .entry(names::HEADER_FENCE)
                .or_insert_with(|| value.clone());
            let inner = inner.clone();
            async move { inner.send(request).await }
        });
        Client {
            kube: kube::Client::new(service, self.default_namespace()),
            fence: Some(fence.clone()),
        }
    }

    /// A client that adds to `clusters` the uid of each cluster that answers it, before whoever called has the answer.
    ///
    /// It starts a small task that ends with the last clone.
    pub fn noting_clusters(&self, clusters: tokio::sync::watch::Sender<BTreeSet<String>>) -> Client {
        let inner = self.kube.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let (inner, clusters) = (inner.clone(), clusters.clone());
            async move {
                let response = inner.send(request).await?;
                let cluster = response.headers().get(names::HEADER_CLUSTER);
                if let Some(cluster) = cluster.and_then(|value| value.to_str().ok()) {
                    clusters.send_if_modified(|known| known.len() < CLUSTERS_MAX && known.insert(cluster.to_owned()));
                }
                Ok::<_, kube::Error>(response)
            }
        });
        Client {
            kube: kube::Client::new(service, self.default_namespace()),
            fence: self.fence.clone(),
        }
    }

    /// One call with a JSON answer, within [`DEADLINE`]. `path` includes the query.
    pub async fn call<T: DeserializeOwned>(&self, request: Call<'_>) -> Result<T> {
        let what = request.what;
        let deadline = tokio::time::timeout(DEADLINE, async {
            let response = self.open(request).await?;
            collect(response.into_body()).await
        });
        let bytes = deadline.await.map_err(|_| Error::Timeout(DEADLINE))??;
        serde_json::from_slice(&bytes).map_err(|source| Error::decode(what, source))
    }

    /// Sends a request, again while the server has too much to do, and gives the answer once it is known to be a good one; its body is still to
    /// be read.
    async fn open(&self, request: Call<'_>) -> Result<Response<Body>> {
        for _ in 0..TRIES_AGAIN {
            match self.open_once(request.clone()).await {
                Err(error) => match again(&error) {
                    Some(after) => tokio::time::sleep(after).await,
                    None => return Err(error),
                },
                opened => return opened,
            }
        }
        self.open_once(request).await
    }

    async fn open_once(&self, request: Call<'_>) -> Result<Response<Body>> {
        let response = self.kube.send(request.into_http()?).await?;
        if response.status().is_success() {
            return Ok(response);
        }
        let code = response.status().as_u16();
        let header = response.headers().get(RETRY_AFTER);
        let after = header.and_then(|value| value.to_str().ok()?.parse().ok().map(Duration::from_secs));
        let bytes = collect(response.into_body()).await?;
        let mut status = serde_json::from_slice::<Status>(&bytes).unwrap_or_else(|_| {
            let text: String = String::from_utf8_lossy(&bytes).chars().take(1000).collect();
            Status::failure(&text, "")
        });
        status.code = code;
        Err(Error::from_status(status, after))
    }
}

async fn collect(body: Body) -> Result<Bytes> {
    let limited = Limited::new(body, ANSWER_BYTES_MAX).collect().await;
    Ok(limited.map_err(Error::Transport)?.to_bytes())
}

/// How often a call is sent again that was refused because too much was asked for at once (429), if the server says when.
const TRIES_AGAIN: u32 = 4;
/// The longest wait in between, so that all of it is within [`DEADLINE`].
const WAIT_MAX: Duration = Duration::from_secs(2);

/// When a request that was refused so is to be sent again: nothing has been done about it, so that it may be a write.
fn again(error: &Error) -> Option<Duration> {
    match error {
        Error::Retryable {
            status,
            after: Some(after),
        } if status.code == 429 && *after <= WAIT_MAX => Some(*after),
        _ => None,
    }
}

/// One request.
#[derive(Clone, Debug)]
pub struct Call<'a> {
    /// What is done.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// The body and what it is.
    pub body: Option<(&'static str, Vec<u8>)>,
    /// A fence for this request alone.
    pub fence: Option<&'a Fence>,
    /// What the answer is, for messages.
    pub what: &'static str,
}

impl<'a> Call<'a> {
    /// A request without a body.
    pub fn new(method: Method, path: String, what: &'static str) -> Call<'a> {
        Call {
            method,
            path,
            body: None,
            fence: None,
            what,
        }
    }

    /// The same with a JSON body.
    pub fn json<B: serde::Serialize + ?Sized>(self, body: &B) -> Result<Call<'a>> {
        self.body("application/json", body)
    }

    /// The same with a JSON body of another type, such as a patch.
    pub fn body<B: serde::Serialize + ?Sized>(mut self, content_type: &'static str, body: &B) -> Result<Call<'a>> {
        let bytes = serde_json::to_vec(body).map_err(|source| Error::setup("the body of a request", source))?;
        self.body = Some((content_type, bytes));
        Ok(self)
    }

    /// The same under a fence.
    pub fn under(mut self, fence: &'a Fence) -> Call<'a> {
        self.fence = Some(fence);
        self
    }

    fn into_http(self) -> Result<Request<Body>> {
        let mut builder = Request::builder()
            .method(self.method)
            .uri(&self.path)
            .header(ACCEPT, "application/json");
        if let Some(fence) = self.fence {
            builder = builder.header(names::HEADER_FENCE, fence.to_string());
        }
        let body = match self.body {
            None => Body::empty(),
            Some((content_type, bytes)) => {
                builder = builder.header(CONTENT_TYPE, content_type);
                Body::from(bytes)
            }
        };
        builder.body(body).map_err(|source| Error::setup("a request", source))
    }
}

/// A part of a path: everything but the characters that names have is percent-encoded.
pub(crate) fn segment(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        match byte {
            b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'_' | b'~' => out.push(char::from(byte)),
            b'.' if text != "." && text != ".." => out.push('.'),
            _ => out.push_str(&format!("%{byte:02X}")),
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn fences_are_read_as_they_are_written() {
        let fence = Fence {
            namespace: "muster-system".into(),
            name: "muster-controllers".into(),
            revision: 42,
        };
        assert_eq!(fence.to_string(), "muster-system/muster-controllers@42");
        assert_eq!(fence.to_string().parse(), Ok(fence));
        for text in ["", "a/b", "a@1", "a/b@", "a/b@x", "/b@1", "a/@1", "a/b/c@1", "a/b@-1"] {
            assert!(text.parse::<Fence>().is_err(), "{text}");
        }
    }

    #[test]
    fn nothing_in_a_name_leaves_its_part_of_the_path() {
        assert_eq!(segment("a-1.b"), "a-1.b");
        assert_eq!(segment("a/b?c#d e%"), "a%2Fb%3Fc%23d%20e%25");
        assert_eq!(segment(".."), "%2E%2E");
    }
}
