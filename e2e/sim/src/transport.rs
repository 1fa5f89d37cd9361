//! The network between components and the API server: slow, lossy, and sometimes saying things twice.
//!
//! Each component has a [`Link`] of its own, so that one can be cut off or stalled while the others go on. A request may be
//! delayed, lost before the server sees it, lost after the server has acted, or delivered twice; a watch may be cut.

use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use axum::Router;
use futures::StreamExt;
use futures::future::BoxFuture;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use muster_api::names::HEADER_FENCE;
use muster_store::Store;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::{Instant, sleep, sleep_until};
use tower::{Service, ServiceExt};

use crate::invariants::FencedWrite;

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = axum::body::Body;

/// How bad the network is; probabilities from 0 to 1.
#[derive(Clone, Copy, Debug, Default)]
pub struct Weather {
    /// The longest delay of a request.
    pub delay_max: Duration,
    /// A request is lost before the server sees it.
    pub lost: f64,
    /// The answer is lost after the server has acted.
    pub answer_lost: f64,
    /// A request that is safe to repeat, or carries a compare, is delivered twice.
    pub doubled: f64,
    /// A watch is cut at one of its chunks.
    pub cut: f64,
}

/// The network, and the server at its other end.
pub struct Network {
    random: Mutex<StdRng>,
    weather: Mutex<Weather>,
    server: Mutex<Option<Router>>,
    store: Arc<dyn Store>,
    fenced: Mutex<Vec<FencedWrite>>,
}

impl Network {
    /// A network in good weather without a server. `store` is asked for revisions only.
    pub fn new(seed: u64, store: Arc<dyn Store>) -> Arc<Network> {
        Arc::new(Network {
            random: Mutex::new(StdRng::seed_from_u64(seed ^ 0x2e7)),
            weather: Mutex::default(),
            server: Mutex::default(),
            store,
            fenced: Mutex::default(),
        })
    }

    /// Puts another server at the end, or none.
    pub fn serve(&self, server: Option<Router>) {
        *self.server.lock().expect("no one panics with the server") = server;
    }

    /// Changes the weather.
    pub fn set_weather(&self, weather: Weather) {
        *self.weather.lock().expect("no one panics with the weather") = weather;
    }

    /// Takes the fenced writes that were answered with success since the last call.
    pub fn take_fenced(&self) -> Vec<FencedWrite> {
        std::mem::take(&mut *self.fenced.lock().expect("no one panics with the list"))
    }

    fn weather(&self) -> Weather {
        *self.weather.lock().expect("no one panics with the weather")
    }

    fn happens(&self, probability: f64) -> bool {
        probability > 0.0
            && self
                .random
                .lock()
                .expect("no one panics while drawing")
                .random_bool(probability)
    }

    fn delay(&self, most: Duration) -> Duration {
        let most = u64::try_from(most.as_micros()).expect("delays are short");
        Duration::from_micros(
            self.random
                .lock()
                .expect("no one panics while drawing")
                .random_range(0..=most),
        )
    }

    async fn deliver(&self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let server = self.server.lock().expect("no one panics with the server").clone();
        let server = server.ok_or("connection refused")?;
        Ok(server.oneshot(request).await?)
    }
}

/// One component's way to the server.
#[derive(Clone)]
pub struct Link {
    component: String,
    network: Arc<Network>,
    stalled_until: Arc<Mutex<Instant>>,
    /// Replaces this by that in answers: how a component is made to believe something false.
    falsify: Option<fn(&str) -> String>,
}

impl Link {
    /// A link that works, of a component with this name.
    pub fn new(component: String, network: &Arc<Network>) -> Link {
        Link {
            component,
            network: Arc::clone(network),
            stalled_until: Arc::new(Mutex::new(Instant::now())),
            falsify: None,
        }
    }

    /// The same link, but every answer goes through `falsify`.
    #[must_use]
    pub fn falsified(mut self, falsify: fn(&str) -> String) -> Link {
        self.falsify = Some(falsify);
        self
    }

    /// Holds every request of this component back for so long, as when the process is stopped or the cable pulled.
    pub fn stall(&self, time: Duration) {
        *self.stalled_until.lock().expect("no one panics with the time") = Instant::now() + time;
    }

    /// Passes a request on, and says so in the log: method, path, and what came of it.
    async fn pass(self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let sent = Instant::now();
        let result = self.clone().carry(request).await;
        let answer = match &result {
            Ok(response) => response.status().to_string(),
            Err(error) => error.to_string(),
        };
        tracing::debug!(component = %self.component, %method, %uri, %answer, took = ?sent.elapsed());
        result
    }

    async fn carry(self, request: Request<Body>) -> Result<Response<Answer>, BoxError> {
        let weather = self.network.weather();
        let until = *self.stalled_until.lock().expect("no one panics with the time");
        sleep_until(until).await;
        sleep(self.network.delay(weather.delay_max)).await;
        if self.network.happens(weather.lost) {
            return Err("connection reset before the request was read".into());
        }
        let watch = is_watch(&request);
        let (parts, body) = request.into_parts();
        let body = body.collect().await?.to_bytes();
        let body = if self.falsify.is_some() {
            without_uid(&body).into()
        } else {
            body
        };
        let again = || {
            let mut request = Request::new(Body::from(body.to_vec()));
            *request.method_mut() = parts.method.clone();
            *request.uri_mut() = parts.uri.clone();
            *request.headers_mut() = parts.headers.clone();
            request
        };
        let before = self.network.store.revision().await?;
        let response = self.network.deliver(again()).await?;
        if watch {
            return Ok(self.cut_somewhere(response));
        }
        let response = self.read(&parts, before, response).await?;
        if parts.method != Method::GET && self.network.happens(weather.doubled) {
            let before = self.network.store.revision().await?;
            let second = self.network.deliver(again()).await?;
            self.read(&parts, before, second).await?;
        }
        if self.network.happens(weather.answer_lost) {
            return Err("connection reset before the answer was read".into());
        }
        sleep(self.network.delay(weather.delay_max)).await;
        let until = *self.stalled_until.lock().expect("no one panics with the time");
        sleep_until(until).await;
        Ok(response)
    }

    /// Reads a whole answer, and remembers it when it was a fenced write that happened.
    async fn read(
        &self,
        parts: &http::request::Parts,
        before: u64,
        response: Response<Answer>,
    ) -> Result<Response<Answer>, BoxError> {
        let (head, body) = response.into_parts();
        let mut bytes = body.collect().await?.to_bytes().to_vec();
        let fence = parts.headers.get(HEADER_FENCE).and_then(|value| value.to_str().ok());
        if let Some((lease, token)) = fence.and_then(|fence| fence.split_once('@'))
            && head.status.is_success()
            && !parts.uri.path().ends_with("/renew")
            && let Some(revision) = revision_of(&bytes).filter(|revision| *revision > before)
        {
            let request = format!("{} {}", parts.method, parts.uri.path());
            let write = FencedWrite {
                revision,
                lease: lease.to_owned(),
                token: token.parse()?,
                request,
            };
            self.network
                .fenced
                .lock()
                .expect("no one panics with the list")
                .push(write);
        }
        if let Some(falsify) = self.falsify {
            bytes = falsify(&String::from_utf8(bytes)?).into_bytes();
        }
        Ok(Response::from_parts(head, Answer::from(bytes)))
    }

    fn cut_somewhere(&self, response: Response<Answer>) -> Response<Answer> {
        let (head, body) = response.into_parts();
        let link = self.clone();
        let chunks = body.into_data_stream().then(move |chunk| {
            let link = link.clone();
            async move {
                let weather = link.network.weather();
                sleep(link.network.delay(weather.delay_max)).await;
                let until = *link.stalled_until.lock().expect("no one panics with the time");
                sleep_until(until).await;
                if link.network.happens(weather.cut) {
                    return Err(BoxError::from("connection reset in the middle of a watch"));
                }
                let chunk = chunk?;
                Ok(match link.falsify {
                    Some(falsify) => falsify(&String::from_utf8(chunk.to_vec())?).into_bytes().into(),
                    None => chunk,
                })
            }
        });
        Response::from_parts(head, Answer::from_stream(chunks))
    }
}

impl Service<Request<Body>> for Link {
    type Response = Response<Answer>;
    type Error = BoxError;
    type Future = BoxFuture<'static, Result<Response<Answer>, BoxError>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        Box::pin(self.clone().pass(request))
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.uri().path() == "/muster/v1/watch" || query.contains("watch=true") || query.contains("watch=1")
}

/// A request of a component that does not know uids.
fn without_uid(body: &[u8]) -> Vec<u8> {
    let Ok(mut value) = serde_json::from_slice::<serde_json::Value>(body) else {
        return body.to_vec();
    };
    if let Some(metadata) = value.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
        metadata.remove("uid");
    }
    value.to_string().into_bytes()
}

/// The revision that the answer to a write names.
fn revision_of(body: &[u8]) -> Option<u64> {
    let value: serde_json::Value = serde_json::from_slice(body).ok()?;
    let text = value
        .pointer("/metadata/resourceVersion")
        .or_else(|| value.pointer("/resourceVersion"))?;
    text.as_str()?.parse().ok()
}
