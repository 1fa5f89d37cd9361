//! The way of a request: who asks, what for, whether that is allowed, and then the handler.
//!
//! There is one handler for all paths, because the paths of objects have a grammar rather than a list, and because clients write
//! them with stray slashes and ampersands. It promises that every answer but a log and the metrics is JSON, and every refusal a `Status`.

mod about;
mod accounts;
mod agent_offers;
mod answer;
mod audited;
mod health;
mod impersonation;
mod join;
pub(crate) mod lasting;
mod lease;
mod list;
pub mod metrics;
mod offers;
mod ordered_watch;
mod path;
mod plan;
mod resource;
mod reviews;
mod scale;
pub(crate) mod tokens;
mod usage;
mod views;
mod watch;

use std::panic::{AssertUnwindSafe, resume_unwind};
use std::sync::{Arc, Mutex, PoisonError};

use axum::Router;
use axum::body::Body;
use axum::extract::State as Extract;
use axum::response::{IntoResponse, Response};
use futures::FutureExt as _;
use http::request::Parts;
use http::{HeaderMap, Method, Request, StatusCode, header};
use muster_api::names;

use crate::accounts::Accounts;
use crate::auth::{self, Attributes, Decision, User};
use crate::error::{ApiError, Result};
use crate::granted;
use crate::lanes::Lane;
use crate::params::Query;
use crate::registry::Kind;
use crate::revoked;
use crate::state::State;
use crate::tls::Peer;
use about::About;
use audited::Record;
use lasting::Lasting;
use path::{Path, Target};

/// Everything that the server serves.
pub fn router(state: Arc<State>) -> Router {
    Router::new().fallback(handle).with_state(state)
}

/// A request whose sender is known.
pub(crate) struct Call {
    pub(crate) state: Arc<State>,
    pub(crate) user: User,
    pub(crate) parts: Parts,
    pub(crate) query: Query,
    /// What was decided about it so far.
    trail: Arc<Trail>,
    /// Behind a lock because bodies cannot be shared, which requests are across threads.
    body: Mutex<Body>,
}

/// What was decided about a request, for whoever looks at its answer. The last decision stands.
#[derive(Debug, Default)]
struct Trail(Mutex<Option<Decision>>);

impl Trail {
    fn note(&self, decision: Decision) {
        *self.0.lock().unwrap_or_else(PoisonError::into_inner) = Some(decision);
    }

    fn last(&self) -> Option<Decision> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Call {
    fn headers(&self) -> &HeaderMap {
        &self.parts.headers
    }

    /// The other side of the connection, if there is one.
    fn peer(&self) -> Option<&Peer> {
        self.parts.extensions.get()
    }

    /// The body, once.
    fn take_body(&mut self) -> Body {
        self.body.get_mut().map(std::mem::take).unwrap_or_default()
    }
}

async fn handle(Extract(state): Extract<Arc<State>>, request: Request<Body>) -> Response {
    let began = tokio::time::Instant::now();
    let (mut parts, body) = request.into_parts();
    let method = parts.method.clone();
    let path = Path::parse(parts.uri.path());
    let (resource, name) = path.label();
    let about = About::of(&path, &parts);
    let lasting = about.lasts.then(Lasting::default);
    let wants = (about.asks_health(), about.keeps_lease());
    let served = about
        .target
        .is_some_and(|of| state.resources.find(&of.group, &of.version, &of.plural).is_some());
    let sender = authenticate(&state, &parts).map(User::authenticated);
    let mut record = Record::begin(&state, sender.as_ref().ok(), &about, &parts);
    if let Some(lasting) = &lasting {
        parts.extensions.insert(lasting.clone());
    }
    let trail = Arc::new(Trail::default());
    let work = answer(
        &state,
        sender,
        path,
        (parts, body),
        record.as_mut(),
        trail.clone(),
        wants,
    );
    let answered = match AssertUnwindSafe(work).catch_unwind().await {
        Ok(answered) => answered.and_then(|response| decided(response, &trail)),
        Err(panic) => {
            if let Some(record) = record {
                record.panicked().await;
            }
            resume_unwind(panic)
        }
    };
    let mut failure = None;
    let mut response = match answered {
        Ok(response) => response,
        Err(error) => {
            if error.code.is_server_error() {
                tracing::warn!(%method, resource, name, code = error.code.as_u16(), %error, "a request failed");
            }
            failure = record.is_some().then(|| error.status());
            error.into_response()
        }
    };
    let lasting = lasting.filter(|_| response.status() < StatusCode::MULTIPLE_CHOICES);
    if let Some(record) = record {
        response = record.end(response, failure, trail.last(), lasting.as_ref()).await;
    }
    if let Some(lasting) = lasting {
        response = lasting.held_by(response);
    }
    response
        .headers_mut()
        .insert(names::HEADER_CLUSTER, state.cluster.clone());
    // Nobody makes up labels: what was refused may be anything.
    let resource = if response.status().is_client_error() && !served {
        ""
    } else {
        &*resource
    };
    state
        .metrics
        .request(method.as_str(), resource, response.status().as_u16(), began.elapsed());
    response
}

/// No route answers anybody whom nothing was decided about, whatever is forgotten in it.
fn decided(response: Response, trail: &Trail) -> Result<Response> {
    match trail.last() {
        Some(Decision::Allowed(_)) => Ok(response),
        _ if response.status().is_client_error() || response.status().is_server_error() => Ok(response),
        _ => Err(ApiError::internal("nothing was decided about who may have this answer")),
    }
}

/// The token of a request. Other schemes than `Bearer` are as good as none that is known.
fn token(headers: &HeaderMap) -> Option<&str> {
    let value = headers.get(header::AUTHORIZATION)?.to_str().unwrap_or_default();
    let (scheme, token) = value.split_once(' ').unwrap_or((value, ""));
    Some(if scheme.eq_ignore_ascii_case("bearer") {
        token.trim()
    } else {
        ""
    })
}

/// A token says who asks; without one, the certificate that was shown.
fn authenticate(state: &State, parts: &Parts) -> Result<User> {
    let token = token(&parts.headers);
    let shown = parts
        .extensions
        .get::<Peer>()
        .and_then(|peer| peer.certificate.as_ref());
    let shown = shown.filter(|_| token.is_none());
    let user = match (shown, token) {
        (Some(shown), _) if state.env.now() < shown.not_after => shown.user.clone(),
        (Some(_), _) => return Err(ApiError::unauthorized()),
        (None, Some(token)) => identify(state, token, &[])?.0,
        (None, None) => state.authenticator.authenticate(None)?,
    };
    revoked::check(state, &user, shown)?;
    Ok(user)
}

/// Whose token this is, and for which of these audiences it counts; without any, for this cluster.
pub(crate) fn identify(state: &State, token: &str, audiences: &[String]) -> Result<(User, Vec<String>)> {
    if Accounts::is_token(token) {
        return state.accounts.authenticate(state, token, audiences);
    }
    // Other tokens are for nobody but this cluster.
    let own = state.accounts.issuer();
    if !audiences.is_empty() && !audiences.iter().any(|audience| audience == own) {
        return Err(ApiError::unauthorized());
    }
    let user = state.authenticator.authenticate(Some(token))?;
    Ok((user, vec![own.to_owned()]))
}

/// Finds out as whom the sender acts, waits for a seat, writes down that the request is there, and lets it be done.
async fn answer(
    state: &Arc<State>,
    sender: Result<User>,
    path: Path,
    (parts, mut body): (Parts, Body),
    record: Option<&mut Record>,
    trail: Arc<Trail>,
    (health, lease): (bool, bool),
) -> Result<Response> {
    let acting = impersonation::acting(&state.authorizer, sender?, &parts.headers);
    let user = acting.inspect_err(|error| {
        if error.code == StatusCode::FORBIDDEN {
            trail.note(Decision::Refused(error.message.clone()));
        }
    })?;
    let mut record = record;
    if let Some(record) = &mut record
        && impersonation::is_wanted(&parts.headers)
    {
        record.acts_as(&user);
    }
    let lane = Lane::of(&user, health, lease);
    // Until the answer begins.
    let _seat = state.lanes.enter(lane, &user.name).await?;
    if let Some(lasting) = parts.extensions.get::<Lasting>() {
        lasting.keep_stay(state.lanes.stay(lane, &user.name)?);
    }
    if let Some(record) = record {
        record.receive(&parts, &mut body).await?;
    }
    dispatch(state, path, parts, body, user, trail).await
}

async fn dispatch(
    state: &Arc<State>,
    path: Path,
    parts: Parts,
    body: Body,
    user: User,
    trail: Arc<Trail>,
) -> Result<Response> {
    let query = Query::parse(parts.uri.query());
    let call = Call {
        state: state.clone(),
        user,
        query,
        trail,
        parts,
        body: Mutex::new(body),
    };
    match path {
        Path::Object(target) => {
            let kind = find(&call, &target).await?;
            resource::handle(call, kind, target).await
        }
        Path::Other(path) => other(call, &path).await,
    }
}

/// The kind that is asked for. One that is not known may have been defined a moment ago, by way of another server.
async fn find(call: &Call, target: &Target) -> Result<Arc<Kind>> {
    let find = || {
        call.state
            .resources
            .find(&target.group, &target.version, &target.plural)
    };
    if let Some(kind) = find() {
        return Ok(kind);
    }
    if call.user.is_anonymous() {
        return Err(ApiError::unauthorized());
    }
    resource::catch_up(call).await?;
    find().ok_or_else(ApiError::unknown_path)
}

/// Paths that are not about objects.
async fn other(call: Call, path: &str) -> Result<Response> {
    let method = call.parts.method.clone();
    let verb = method.as_str().to_ascii_lowercase();
    let reads = method == Method::GET || method == Method::HEAD;
    let attributes = Attributes {
        // Who may read a document may ask for its head.
        verb: if reads { "get" } else { &verb },
        path,
        ..Attributes::default()
    };
    let state = call.state.clone();
    // These are about objects: who may see those may have them told this way, too, and nobody else.
    if path == "/muster/v1/watch" && reads {
        return ordered_watch::serve(call).await;
    }
    if let Some(rest) = path.strip_prefix("/muster/v1/why/").filter(|_| reads) {
        let (namespace, task) = rest.split_once('/').ok_or_else(ApiError::unknown_path)?;
        return plan::why(&call, &attributes, namespace, task).await;
    }
    if let Some(what) = path.strip_prefix("/muster/v1/usage/").filter(|_| reads) {
        return usage::rows(&call, what).await;
    }
    call.decide(&attributes)?;
    match path {
        "/livez" | "/healthz" if reads => return Ok(health::live(&call)),
        "/readyz" if reads => return Ok(health::ready(&call, None).await),
        "/metrics" if reads => return metrics::show(&state),
        "/muster/v1/plan" if reads => return plan::show(&call).await,
        "/muster/v1/plan" if method == Method::PUT => return plan::put(call).await,
        "/muster/v1/endpoints" if reads => return Ok(join::endpoints(&state)),
        "/muster/v1/join" if method == Method::POST => return join::join(call).await,
        "/muster/v1/renew" if method == Method::POST => return join::renew(call).await,
        "/muster/v1/tokens" if method == Method::POST => return tokens::create(call).await,
        "/muster/v1/tokens" if reads => return tokens::list(call).await,
        _ => (),
    }
    if let Some(check) = path.strip_prefix("/readyz/").filter(|_| reads) {
        return Ok(health::ready(&call, Some(check)).await);
    }
    if let Some(id) = path
        .strip_prefix("/muster/v1/tokens/")
        .filter(|_| method == Method::DELETE)
    {
        return tokens::delete(call, id).await;
    }
    if let Some(document) = accounts::document(&call, path) {
        return Ok(document);
    }
    let document = state
        .resources
        .documents()
        .answer(&method, &call.parts.uri, call.headers());
    document.ok_or_else(|| match path {
        "/livez"
        | "/readyz"
        | "/healthz"
        | "/metrics"
        | "/muster/v1/watch"
        | "/muster/v1/plan"
        | "/muster/v1/join"
        | "/muster/v1/renew"
        | "/muster/v1/tokens"
        | "/muster/v1/endpoints" => {
            ApiError::method_not_allowed("the server does not allow this method on the requested resource")
        }
        _ => ApiError::unknown_path(),
    })
}

impl Call {
    /// Refuses what the user may not do.
    fn authorize(&self, target: &Target, verb: &str, name: &str) -> Result<()> {
        // A namespace is in itself, so that whoever is given something in it can be given itself.
        let itself = target.group.is_empty() && target.plural == "namespaces";
        self.decide(&Attributes {
            verb,
            group: &target.group,
            resource: &target.plural,
            subresource: &target.subresource,
            namespace: if itself { name } else { &target.namespace },
            name,
            path: "",
        })
    }

    /// The same, of attributes.
    fn decide(&self, asked: &Attributes<'_>) -> Result<()> {
        if let Some(granted) = granted::answer(&self.state, &self.user, asked) {
            self.trail.note(match &granted {
                Ok(()) => Decision::Allowed(granted::WHY),
                Err(error) => Decision::Refused(error.message.clone()),
            });
            return granted;
        }
        let decision = self.state.authorizer.decide(&self.user, asked);
        let refused = match &decision {
            Decision::Allowed(_) => None,
            Decision::Refused(said) => Some(auth::refusal(&self.user, asked, said)),
        };
        self.trail.note(decision);
        refused.map_or(Ok(()), Err)
    }
}
