//! One process's way to the API servers: a tower service, as a client takes it.
//!
//! What was sent is the network's: it arrives, or not, whatever becomes of its sender. A process that is stopped neither sends nor
//! hears; one that was killed hears nothing any more.

use std::collections::BTreeMap;
use std::pin::Pin;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::sync::{Arc, Mutex};
use std::task::{Context, Poll};
use std::time::Duration;

use bytes::Bytes;
use futures::future::BoxFuture;
use futures::{FutureExt, StreamExt};
use http::request::Parts;
use http::{Method, Request, Response};
use http_body_util::BodyExt;
use kube::client::Body;
use muster_api::names::{HEADER_FENCE, LEASE_CONTROLLERS, NAMESPACE_SYSTEM};
use muster_store::Revision;
use tokio::sync::oneshot;
use tokio::task::AbortHandle;
use tokio::time::{Instant, sleep};
use tower::{Service, ServiceExt};

use crate::gate::Gate;
use crate::invariants::{Reply, revision_of};
use crate::mutants::{Mutant, traffic};
use crate::network::{Endpoint, Network};
use crate::sieve::{Harm, Place, place_of};
use crate::writer::{WRITER, Writer};

pub(crate) type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = axum::body::Body;
type Answered = Result<Response<Answer>, BoxError>;

/// How long after its deadline, or after it was continued, a leader may still be seen sending: the grain of timers, twice over.
const GRAIN: Duration = Duration::from_millis(5);

/// How late an item of a watch is that is late.
const LATE: Duration = Duration::from_secs(4);

/// A process, as the network knows it.
pub struct Party {
    /// The node that it runs on: `controllers-0`.
    pub node: String,
    /// The process: `controllers-0.3`.
    pub process: String,
    /// Whether it runs.
    pub gate: Gate,
    place: AtomicUsize,
    severed: AtomicBool,
    /// When the last acknowledged renewal of which term was sent.
    renewed: Mutex<BTreeMap<Revision, Instant>>,
    lead_time: Option<Duration>,
}

/// See the module. Clones are the same way.
#[derive(Clone)]
pub struct Link {
    party: Arc<Party>,
    network: Arc<Network>,
    mutant: Option<Mutant>,
}

impl Link {
    /// A way for the process number `incarnation` of a node, to the server at a place first.
    pub fn new(network: &Arc<Network>, node: &str, incarnation: u64, gate: &Gate, place: usize) -> Link {
        Link {
            party: Arc::new(Party {
                node: node.to_owned(),
                process: format!("{node}.{incarnation}"),
                gate: gate.clone(),
                place: AtomicUsize::new(place),
                severed: AtomicBool::new(false),
                renewed: Mutex::default(),
                lead_time: None,
            }),
            network: Arc::clone(network),
            mutant: None,
        }
    }

    /// The same for a process that must not write later than this after its last acknowledged renewal as a leader.
    #[must_use]
    pub fn leading_for(mut self, lead_time: Duration) -> Link {
        if let Some(party) = Arc::get_mut(&mut self.party) {
            party.lead_time = Some(lead_time);
        }
        self
    }

    /// The same for a process with a planted bug.
    #[must_use]
    pub fn of_mutant(mut self, mutant: Option<Mutant>) -> Link {
        self.mutant = mutant;
        self
    }

    /// The process is dead: nobody hears answers any more.
    pub fn sever(&self) {
        self.party.severed.store(true, Ordering::Relaxed);
    }

    /// The next request goes to the next server.
    pub fn move_on(&self) {
        self.party.place.fetch_add(1, Ordering::Relaxed);
    }

    /// A leader whose time is over sends nothing.
    fn check_deadline(&self, request: &Request<Body>) {
        let (Some(most), Some((lease, token))) = (self.party.lead_time, fence_of(request.headers())) else {
            return;
        };
        let path = request.uri().path();
        let of_leader = lease == format!("{NAMESPACE_SYSTEM}/{LEASE_CONTROLLERS}");
        let of_term = path.contains("/leases/") || path == "/muster/v1/plan";
        if !of_leader || of_term || request.method() == Method::GET || !self.party.gate.has_been_open(GRAIN) {
            return;
        }
        let renewed = self.party.renewed.lock().expect("no one panics with the times");
        if let Some(sent) = renewed.get(&token)
            && sent.elapsed() > most + GRAIN
        {
            let what = format!(
                "{} {path} was sent {:?} after the last renewal",
                request.method(),
                sent.elapsed()
            );
            self.network.too_late(format!("{}: {what}", self.party.process));
        }
    }

    /// Remembers when a term was renewed.
    fn note_renewal(&self, parts: &Parts, sent: Instant, body: &[u8]) {
        let path = parts.uri.path();
        let token = match fence_of(&parts.headers) {
            Some((_, token)) if path.ends_with("/renew") => Some(token),
            _ if path.ends_with("/leases") => revision_of(body),
            _ => None,
        };
        if let Some(token) = token.filter(|_| self.party.lead_time.is_some()) {
            let mut renewed = self.party.renewed.lock().expect("no one panics with the times");
            let newest = renewed.entry(token).or_insert(sent);
            *newest = (*newest).max(sent);
        }
    }

    /// Passes a request on, and says so in the log: method, path, and what came of it.
    async fn pass(self, request: Request<Body>) -> Answered {
        let (method, uri) = (request.method().clone(), request.uri().clone());
        let sent = Instant::now();
        let result = self.clone().carry(request, sent).await;
        let answer = match &result {
            Ok(response) => response.status().to_string(),
            Err(error) => {
                if self.network.happens(0.5) {
                    self.move_on();
                }
                error.to_string()
            }
        };
        tracing::debug!(process = %self.party.process, %method, %uri, %answer, took = ?sent.elapsed());
        result
    }

    async fn carry(self, request: Request<Body>, sent: Instant) -> Answered {
        let (party, network) = (&self.party, &self.network);
        if party.severed.load(Ordering::Relaxed) {
            return Err("the process is dead".into());
        }
        party.gate.pass().await;
        let weather = network.weather();
        if network.happens(weather.moved) {
            self.move_on();
        }
        sleep(network.delay_of_request()).await;
        let place = party.place.load(Ordering::Relaxed);
        let server = network.server(place).ok_or("connection refused")?;
        if network.happens(weather.lost) {
            return Err("connection reset before the request was read".into());
        }
        network.cross(&party.node, &server.name).await;
        let watch = is_watch(&request);
        let (mut parts, body) = request.into_parts();
        let mut body = body.collect().await?.to_bytes();
        if let Some(mutant) = self.mutant {
            if let Some(answer) = traffic::answered_without_asking(mutant, &party.node, &parts, &body) {
                return Ok(answer);
            }
            traffic::request(mutant, &party.node, &mut parts, &mut body);
        }
        let harm = place_of(&party.node, &parts.method, parts.uri.path()).and_then(|place| network.harm(place));
        match harm {
            Some(Harm::CrashBefore) => return Err(self.crash().await),
            Some(Harm::RequestLost) => return Err("connection reset before the request was read".into()),
            _ => {}
        }
        let response = self.deliver(&server, &parts, &body).await?;
        if watch {
            return Ok(self.cut_somewhere(server, response));
        }
        let (id, response) = response;
        let response = self.read(&parts, sent, id, response).await?;
        match harm {
            Some(Harm::CrashAfter) => return Err(self.crash().await),
            Some(Harm::AnswerLost) => return Err("connection reset before the answer was read".into()),
            _ => {}
        }
        if parts.method != Method::GET && network.happens(weather.doubled) {
            let (id, second) = self.deliver(&server, &parts, &body).await?;
            self.read(&parts, sent, id, second).await?;
        }
        network.cross(&server.name, &party.node).await;
        if network.happens(weather.answer_lost) {
            return Err("connection reset before the answer was read".into());
        }
        sleep(network.delay()).await;
        party.gate.pass().await;
        if party.severed.load(Ordering::Relaxed) {
            return Err("the process is dead".into());
        }
        Ok(response)
    }

    /// The process dies here.
    async fn crash(&self) -> BoxError {
        self.sever();
        if let Some(sieve) = self.network.sieve() {
            sieve.crash(&self.party.node);
        }
        std::future::pending().await
    }

    /// Lets the server answer, unless it dies meanwhile. Each delivery has a number.
    async fn deliver(
        &self,
        server: &Endpoint,
        parts: &Parts,
        body: &Bytes,
    ) -> Result<(u64, Response<Answer>), BoxError> {
        let mut request = Request::new(Body::from(body.to_vec()));
        *request.method_mut() = parts.method.clone();
        *request.uri_mut() = parts.uri.clone();
        *request.headers_mut() = parts.headers.clone();
        let id = self.network.next_request();
        let writer = Writer {
            id,
            process: self.party.process.clone(),
            request: format!("{} {}", parts.method, parts.uri.path()),
            fence: fence_of(&parts.headers),
        };
        let answering = WRITER.scope(writer, server.router.clone().oneshot(request));
        tokio::select! {
            biased;
            () = server.death.cancelled() => Err("connection reset: the server died".into()),
            answer = server.gate.hold(answering) => Ok((id, answer?)),
        }
    }

    /// Reads a whole answer, and keeps it for the checker when something was to be written.
    async fn read(&self, parts: &Parts, sent: Instant, id: u64, response: Response<Answer>) -> Answered {
        let (head, body) = response.into_parts();
        let mut bytes = body.collect().await?.to_bytes();
        if head.status.is_success() {
            self.note_renewal(parts, sent, &bytes);
        }
        if parts.method != Method::GET {
            self.network.replied(Reply {
                id,
                request: format!("{} {}", parts.method, parts.uri.path()),
                code: head.status.as_u16(),
                body: bytes.clone(),
            });
        }
        if let Some(mutant) = self.mutant {
            bytes = traffic::answer(mutant, &self.party.node, bytes);
        }
        Ok(Response::from_parts(head, Answer::from(bytes)))
    }

    fn cut_somewhere(&self, server: Endpoint, (_, response): (u64, Response<Answer>)) -> Response<Answer> {
        let (head, body) = response.into_parts();
        let link = self.clone();
        let chunks = body.into_data_stream().then(move |chunk| {
            let (link, server) = (link.clone(), server.clone());
            async move {
                let (network, party) = (&link.network, &link.party);
                let place = match party.node.split('-').next() {
                    Some("controllers") => Some(Place::ControllersWatch),
                    Some("machine") => Some(Place::AgentWatch),
                    _ => None,
                };
                match place.and_then(|place| network.harm(place)) {
                    Some(Harm::WatchCut) => return Err(BoxError::from("connection reset in the middle of a watch")),
                    Some(_) => sleep(LATE).await,
                    None => {}
                }
                sleep(network.delay()).await;
                server.gate.pass().await;
                network.cross(&server.name, &party.node).await;
                party.gate.pass().await;
                if network.happens(network.weather().cut) || party.severed.load(Ordering::Relaxed) {
                    return Err(BoxError::from("connection reset in the middle of a watch"));
                }
                let chunk = chunk?;
                Ok(match link.mutant {
                    Some(mutant) => traffic::answer(mutant, &party.node, chunk),
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
    type Future = BoxFuture<'static, Answered>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<Result<(), BoxError>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, request: Request<Body>) -> Self::Future {
        self.check_deadline(&request);
        let (told, answer) = oneshot::channel();
        let passing = self.clone().pass(request);
        let task = tokio::spawn(async move {
            // Whether anybody still waits is of no concern here.
            let _ = told.send(passing.await);
        });
        let waiting = Waiting {
            answer,
            task: task.abort_handle(),
            network: Arc::clone(&self.network),
        };
        waiting.boxed()
    }
}

/// Waits for an answer. Whoever stops waiting may be noticed by the server, or not.
struct Waiting {
    answer: oneshot::Receiver<Answered>,
    task: AbortHandle,
    network: Arc<Network>,
}

impl Future for Waiting {
    type Output = Answered;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Answered> {
        let answer = Pin::new(&mut self.answer);
        answer
            .poll(context)
            .map(|answer| answer.unwrap_or_else(|_| Err("connection reset".into())))
    }
}

impl Drop for Waiting {
    fn drop(&mut self) {
        if !self.task.is_finished() && self.network.happens(self.network.weather().abandoned) {
            self.task.abort();
        }
    }
}

fn is_watch(request: &Request<Body>) -> bool {
    let query = request.uri().query().unwrap_or_default();
    request.uri().path() == "/muster/v1/watch" || query.contains("watch=true") || query.contains("watch=1")
}

/// The lease and the create revision of a request's fence.
fn fence_of(headers: &http::HeaderMap) -> Option<(String, Revision)> {
    let (lease, token) = headers.get(HEADER_FENCE)?.to_str().ok()?.split_once('@')?;
    Some((lease.to_owned(), token.parse().ok()?))
}
