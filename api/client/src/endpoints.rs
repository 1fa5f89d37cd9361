//! The servers of a cluster, of which one is used until it fails.
//!
//! [`Failover`] sends every request to the server in use. When that cannot be reached, says that it is not available (503), or does not
//! answer, the next one is used from then on, and a request that cannot have had an effect is sent there at once: any that could not
//! be sent at all, and otherwise only reads. What must never happen here: a write that is sent twice.
//! Tested below with services that fail in every way.

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::sync::{Arc, Mutex, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use http::uri::{Authority, Scheme};
use http::{Method, Request, Response, StatusCode, Uri};
use http_body_util::BodyExt as _;
use hyper_util::client::legacy;
use kube::client::Body;
use tokio::time::Instant;
use tower::{Service, ServiceExt as _};

use crate::{BoxError, Error, Result};

/// Whoever gives a request up after it was not answered for so long has found a server that hangs.
const HUNG: Duration = Duration::from_secs(2);

/// Where a cluster's servers are. Clones are the same list.
#[derive(Clone)]
pub struct Endpoints(Arc<Mutex<List>>);

struct List {
    places: Vec<Authority>,
    current: usize,
}

impl fmt::Debug for Endpoints {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Endpoints").field(&self.list()).finish()
    }
}

fn parse<S: AsRef<str>>(places: &[S]) -> Result<Vec<Authority>> {
    let one = |place: &S| {
        let text = place.as_ref().trim().trim_end_matches('/');
        let text = text.strip_prefix("https://").unwrap_or(text);
        let parsed = text.parse::<Authority>();
        parsed.map_err(|source| Error::setup("the address of an API server", source))
    };
    let places = places.iter().map(one).collect::<Result<Vec<_>>>()?;
    if places.is_empty() {
        return Err(Error::setup("the addresses of the API servers", "there is none"));
    }
    Ok(places)
}

impl Endpoints {
    /// `HOST:PORT` or `https://HOST:PORT` of each server, at least one; the first is used first.
    pub fn new<S: AsRef<str>>(places: &[S]) -> Result<Endpoints> {
        let places = parse(places)?;
        Ok(Endpoints(Arc::new(Mutex::new(List { places, current: 0 }))))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, List> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// All of them.
    pub fn list(&self) -> Vec<String> {
        self.lock().places.iter().map(ToString::to_string).collect()
    }

    /// The one in use.
    pub fn current(&self) -> String {
        self.place().to_string()
    }

    /// The cluster has other servers now; the one in use stays in use if it is among them.
    pub fn replace<S: AsRef<str>>(&self, places: &[S]) -> Result<()> {
        let places = parse(places)?;
        let mut list = self.lock();
        let used = list.places[list.current].clone();
        list.current = places.iter().position(|place| *place == used).unwrap_or(0);
        list.places = places;
        Ok(())
    }

    fn place(&self) -> Authority {
        let list = self.lock();
        list.places[list.current].clone()
    }

    /// From now on the one behind `failed`, unless somebody has moved on already.
    fn leave(&self, failed: &Authority) {
        let mut list = self.lock();
        if list.places[list.current] == *failed && list.places.len() > 1 {
            list.current = (list.current + 1) % list.places.len();
            tracing::info!(%failed, next = %list.places[list.current], "the next server is used");
        }
    }
}

/// A request on its way.
struct Attempt<'a> {
    endpoints: &'a Endpoints,
    place: Authority,
    began: Instant,
    answered: bool,
}

impl Drop for Attempt<'_> {
    fn drop(&mut self) {
        if !self.answered && self.began.elapsed() >= HUNG {
            self.endpoints.leave(&self.place);
        }
    }
}

/// A service that sends requests to one of several servers. See the module.
#[derive(Clone, Debug)]
pub struct Failover<S> {
    inner: S,
    endpoints: Endpoints,
}

impl<S> Failover<S> {
    /// Over `inner`, which connects to the authority of each request.
    pub fn new(inner: S, endpoints: Endpoints) -> Failover<S> {
        Failover { inner, endpoints }
    }
}

impl<S, B> Service<Request<Body>> for Failover<S>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone + Send + 'static,
    S::Future: Send,
    S::Error: Into<BoxError>,
    B: Send + 'static,
{
    type Response = Response<B>;
    type Error = BoxError;
    type Future = Pin<Box<dyn Future<Output = Result<Response<B>, BoxError>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        let (inner, endpoints) = (self.inner.clone(), self.endpoints.clone());
        Box::pin(send(inner, endpoints, request))
    }
}

async fn send<S, B>(inner: S, endpoints: Endpoints, request: Request<Body>) -> Result<Response<B>, BoxError>
where
    S: Service<Request<Body>, Response = Response<B>> + Clone,
    S::Error: Into<BoxError>,
{
    let (parts, body) = request.into_parts();
    let bytes = body.collect().await?.to_bytes();
    let reads = parts.method == Method::GET || parts.method == Method::HEAD;
    let mut left = endpoints.lock().places.len();
    loop {
        left -= 1;
        let mut attempt = Attempt {
            place: endpoints.place(),
            endpoints: &endpoints,
            began: Instant::now(),
            answered: false,
        };
        let mut parts = parts.clone();
        parts.uri = at(&parts.uri, &attempt.place)?;
        let request = Request::from_parts(parts, Body::from(bytes.clone()));
        let answer = inner.clone().oneshot(request).await.map_err(Into::into);
        attempt.answered = true;
        let again = match &answer {
            Ok(response) if response.status() == StatusCode::SERVICE_UNAVAILABLE => reads,
            Ok(_) => return answer,
            Err(error) => reads || never_sent(error),
        };
        endpoints.leave(&attempt.place);
        if left == 0 || !again {
            return answer;
        }
    }
}

/// The same path at another place.
fn at(uri: &Uri, place: &Authority) -> Result<Uri, BoxError> {
    let mut parts = uri.clone().into_parts();
    parts.scheme = Some(Scheme::HTTPS);
    parts.authority = Some(place.clone());
    Ok(Uri::from_parts(parts)?)
}

/// Whether there was no connection to send the request over.
fn never_sent(error: &BoxError) -> bool {
    error
        .downcast_ref::<legacy::Error>()
        .is_some_and(legacy::Error::is_connect)
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;

    use hyper_util::client::legacy::Client as Http;
    use hyper_util::client::legacy::connect::HttpConnector;
    use hyper_util::rt::TokioExecutor;

    use super::*;

    #[derive(Clone, Copy, PartialEq)]
    enum Habit {
        Fine,
        Unavailable,
        Breaks,
        Refuses,
        Hangs,
    }

    /// Servers with habits, and who was asked what.
    #[derive(Clone)]
    struct Servers(Arc<Mutex<Seen>>);

    type Seen = (BTreeMap<String, Habit>, Vec<String>);

    /// What a client says when nobody listens; such an error cannot be made by hand.
    async fn refused() -> BoxError {
        let mut connector = HttpConnector::new();
        connector.enforce_http(false);
        let http: Http<_, Body> = Http::builder(TokioExecutor::new()).build(connector);
        let free = std::net::TcpListener::bind("127.0.0.1:0")
            .unwrap()
            .local_addr()
            .unwrap();
        let request = Request::get(format!("http://{free}/")).body(Body::empty()).unwrap();
        http.request(request).await.expect_err("nobody listens").into()
    }

    impl Servers {
        fn new(habits: &[(&str, Habit)]) -> (Servers, Endpoints) {
            let endpoints = Endpoints::new(&habits.iter().map(|(name, _)| *name).collect::<Vec<_>>()).unwrap();
            let habits = habits
                .iter()
                .map(|(name, habit)| ((*name).to_owned(), *habit))
                .collect();
            (Servers(Arc::new(Mutex::new((habits, Vec::new())))), endpoints)
        }

        fn asked(&self) -> Vec<String> {
            std::mem::take(&mut self.0.lock().unwrap().1)
        }

        async fn answer(self, request: Request<Body>) -> Result<Response<String>, BoxError> {
            let place = request.uri().authority().unwrap().to_string();
            let body = request.into_body().collect().await?.to_bytes();
            let habit = {
                let mut own = self.0.lock().unwrap();
                own.1
                    .push(format!("{place} {}", String::from_utf8_lossy(&body)).trim().to_owned());
                own.0[&place]
            };
            match habit {
                Habit::Fine => Ok(Response::new(place)),
                Habit::Unavailable => Ok(Response::builder().status(503).body(place)?),
                Habit::Breaks => Err("the connection broke".into()),
                Habit::Refuses => Err(refused().await),
                Habit::Hangs => std::future::pending().await,
            }
        }
    }

    async fn call(
        servers: &Servers,
        endpoints: &Endpoints,
        method: &str,
        body: &str,
    ) -> Result<Response<String>, BoxError> {
        let servers = servers.clone();
        let inner = tower::service_fn(move |request| servers.clone().answer(request));
        let request = Request::builder().method(method).uri("/x?y=z");
        let request = request.body(Body::from(body.as_bytes().to_vec())).unwrap();
        Failover::new(inner, endpoints.clone()).oneshot(request).await
    }

    #[tokio::test]
    async fn the_server_in_use_stays_in_use_until_it_fails() {
        let (servers, endpoints) = Servers::new(&[("a:1", Habit::Fine), ("b:1", Habit::Fine)]);
        for _ in 0..3 {
            assert_eq!(call(&servers, &endpoints, "GET", "").await.unwrap().into_body(), "a:1");
        }
        servers.0.lock().unwrap().0.insert("a:1".to_owned(), Habit::Unavailable);
        assert_eq!(call(&servers, &endpoints, "GET", "").await.unwrap().into_body(), "b:1");
        servers.0.lock().unwrap().0.insert("a:1".to_owned(), Habit::Fine);
        assert_eq!(call(&servers, &endpoints, "GET", "").await.unwrap().into_body(), "b:1");
    }

    #[tokio::test]
    async fn a_write_is_sent_again_only_when_it_was_never_sent() {
        for (habit, asked) in [
            (Habit::Unavailable, vec!["a:1 w"]),
            (Habit::Breaks, vec!["a:1 w"]),
            (Habit::Refuses, vec!["a:1 w", "b:1 w"]),
        ] {
            let (servers, endpoints) = Servers::new(&[("a:1", habit), ("b:1", Habit::Fine)]);
            let answer = call(&servers, &endpoints, "POST", "w").await;
            assert_eq!(servers.asked(), asked);
            assert_eq!(answer.is_ok_and(|answer| answer.status() == 200), asked.len() == 2);
            assert_eq!(endpoints.current(), "b:1", "the next call goes elsewhere");
        }
    }

    #[tokio::test]
    async fn reads_are_tried_everywhere_once() {
        let habits = [
            ("a:1", Habit::Breaks),
            ("b:1", Habit::Unavailable),
            ("c:1", Habit::Refuses),
        ];
        let (servers, endpoints) = Servers::new(&habits);
        assert!(call(&servers, &endpoints, "GET", "").await.is_err());
        assert_eq!(servers.asked(), ["a:1", "b:1", "c:1"]);
    }

    #[tokio::test(start_paused = true)]
    async fn whoever_gives_up_on_a_server_that_hangs_is_sent_to_the_next() {
        let (servers, endpoints) = Servers::new(&[("a:1", Habit::Hangs), ("b:1", Habit::Fine)]);
        for (patience, next) in [(100, "a:1"), (2_500, "b:1")] {
            let patience = Duration::from_millis(patience);
            assert!(
                tokio::time::timeout(patience, call(&servers, &endpoints, "POST", ""))
                    .await
                    .is_err()
            );
            assert_eq!(endpoints.current(), next);
        }
    }

    #[test]
    fn the_list_may_change_while_it_is_used() {
        let endpoints = Endpoints::new(&["https://a:1/", "b:1"]).unwrap();
        endpoints.leave(&endpoints.place());
        endpoints.replace(&["c:1", "b:1"]).unwrap();
        assert_eq!(
            (endpoints.current(), endpoints.list()),
            ("b:1".to_owned(), vec!["c:1".to_owned(), "b:1".to_owned()])
        );
        endpoints.replace(&["d:1"]).unwrap();
        assert_eq!(endpoints.current(), "d:1");
        assert!(endpoints.replace::<&str>(&[]).is_err() && endpoints.replace(&["a b"]).is_err());
        assert_eq!(endpoints.current(), "d:1");
    }
}
