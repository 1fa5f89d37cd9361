//! A request on its way through the audit log. What is written and where is in [`crate::audit`].
//!
//! A [`Record`] is made when a request comes and ends with its answer, or when it is dropped: whoever goes away in between has asked all the same.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::sync::Arc;

use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::{StreamExt as _, stream};
use http::request::Parts;
use http::{HeaderMap, HeaderValue};
use http_body_util::BodyExt as _;
use serde::Serialize;
use serde_json::{Value, json};

use super::about::About;
use super::lasting::Lasting;
use super::path::Target;
use super::reviews;
use crate::audit::{Audit, Level, Stage, Verdict};
use crate::auth::{Decision, User};
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::limits;
use crate::state::State;

/// The header that names the event of a request; whoever sends it names its own.
const HEADER: &str = "audit-id";
/// The longest name that somebody may give a request.
const ID_BYTES: usize = 64;
/// What is said about a request whose sender did not wait for the answer, in the code that proxies have for it.
const NOBODY_WAITED: (u16, &str) = (
    499,
    "the client went away before it was answered; what it asked for may have happened",
);

/// An event, as it is written.
#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Event {
    kind: &'static str,
    api_version: &'static str,
    level: &'static str,
    #[serde(rename = "auditID")]
    audit_id: String,
    stage: &'static str,
    #[serde(rename = "requestURI")]
    request_uri: String,
    verb: String,
    user: Value,
    #[serde(skip_serializing_if = "Option::is_none")]
    impersonated_user: Option<Value>,
    #[serde(rename = "sourceIPs", skip_serializing_if = "Vec::is_empty")]
    source_ips: Vec<IpAddr>,
    #[serde(skip_serializing_if = "Option::is_none")]
    user_agent: Option<String>,
    #[serde(skip_serializing_if = "Option::is_none")]
    object_ref: Option<Reference>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_status: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    request_object: Option<Value>,
    #[serde(skip_serializing_if = "Option::is_none")]
    response_object: Option<Value>,
    request_received_timestamp: String,
    stage_timestamp: String,
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    annotations: BTreeMap<&'static str, String>,
}

#[derive(Serialize)]
#[serde(rename_all = "camelCase")]
struct Reference {
    resource: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    namespace: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    name: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    api_group: String,
    api_version: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    subresource: String,
}

impl Reference {
    fn of(target: &Target) -> Reference {
        Reference {
            resource: target.plural.clone(),
            namespace: target.namespace.clone(),
            name: target.name.clone(),
            api_group: target.group.clone(),
            api_version: target.version.clone(),
            subresource: target.subresource.clone(),
        }
    }
}

/// What is written about one request.
pub(super) struct Record {
    state: Arc<State>,
    audit: Audit,
    verdict: Verdict,
    event: Event,
    changes: bool,
    /// Whether the last event about it has been written.
    ended: bool,
}

fn micros(state: &State) -> String {
    state.env.now().strftime("%Y-%m-%dT%H:%M:%S%.6fZ").to_string()
}

/// What somebody sent, as JSON, whatever the form it came in.
fn sent(headers: &HeaderMap, bytes: &[u8]) -> Option<Value> {
    match ContentType::of(headers) {
        ContentType::ApplyPatch => body::applied(bytes).ok().map(|decoded| decoded.value),
        other => match body::object(other, bytes) {
            Ok(decoded) => Some(decoded.value),
            Err(_) => body::json(bytes).ok().map(|decoded| decoded.value),
        },
    }
}

fn without_owners(mut object: Value, verdict: Verdict) -> Value {
    fn strip(object: &mut Value) {
        if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
    }
    if verdict.omit_managed_fields {
        strip(&mut object);
        let items = object.get_mut("items").and_then(Value::as_array_mut);
        items.into_iter().flatten().for_each(strip);
    }
    object
}

impl Record {
    /// Begins a record, if there is an audit log and its policy wants one. Without a `sender`, nobody knows who asks.
    pub(super) fn begin(state: &Arc<State>, sender: Option<&User>, about: &About<'_>, parts: &Parts) -> Option<Record> {
        let audit = state.audit()?;
        let nobody = User::default();
        let verdict = audit.policy.verdict(sender.unwrap_or(&nobody), &about.attributes());
        if verdict.level == Level::None {
            return None;
        }
        let named = parts.headers.get(HEADER).and_then(|id| id.to_str().ok());
        let named = named
            .filter(|id| !id.is_empty() && id.len() <= ID_BYTES)
            .map(str::to_owned);
        let peer = parts.extensions.get::<crate::tls::Peer>();
        let agent = parts.headers.get(http::header::USER_AGENT);
        let event = Event {
            kind: "Event",
            api_version: "audit.k8s.io/v1",
            level: verdict.level.name(),
            audit_id: named.unwrap_or_else(|| state.env.uid().to_string()),
            stage: "",
            request_uri: parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default(),
            verb: about.attributes().verb.to_owned(),
            user: sender.map_or_else(|| json!({}), reviews::info),
            impersonated_user: None,
            source_ips: peer.map(|peer| peer.address.ip()).into_iter().collect(),
            user_agent: agent.map(|agent| String::from_utf8_lossy(agent.as_bytes()).into_owned()),
            object_ref: about.target.map(Reference::of),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: micros(state),
            stage_timestamp: String::new(),
            annotations: BTreeMap::new(),
        };
        Some(Record {
            state: state.clone(),
            audit: audit.clone(),
            verdict,
            event,
            changes: about.changes(),
            ended: false,
        })
    }

    /// Notes as whom the sender acts.
    pub(super) fn acts_as(&mut self, user: &User) {
        self.event.impersonated_user = Some(reviews::info(user));
    }

    /// Writes that the request is there, and takes in what was sent, if the policy wants that. A change is refused when nothing can be written
    /// about it.
    pub(super) async fn receive(&mut self, parts: &Parts, body: &mut Body) -> Result<()> {
        // When lines could not be written lately, a change tries with one whether they can now, whatever the policy omits.
        let tries = self.changes && self.audit.log.is_failing();
        if self.verdict.has(Stage::RequestReceived) || tries {
            let written = self.write(Stage::RequestReceived).await;
            if self.changes && !written {
                let message = "the audit log cannot be written, so nothing is changed; reads are answered. The server's log says why (a full \
                               disk, most likely); try again when it is repaired";
                return Err(ApiError::unavailable(message).retry_after(limits::AUDIT_RETRY_SECONDS));
            }
        }
        if self.verdict.level >= Level::Request && self.changes {
            let bytes = body::read(std::mem::take(body)).await?;
            if let Some(object) = sent(&parts.headers, &bytes) {
                if let (Some(about), Some(name)) = (&mut self.event.object_ref, object["metadata"]["name"].as_str())
                    && about.name.is_empty()
                {
                    name.clone_into(&mut about.name);
                }
                self.event.request_object = Some(without_owners(object, self.verdict));
            }
            *body = Body::from(bytes);
        }
        Ok(())
    }

    /// The event as it is now, as a line.
    fn line(&mut self, stage: Stage) -> Vec<u8> {
        self.event.stage = stage.name();
        self.event.stage_timestamp = micros(&self.state);
        let mut line = serde_json::to_vec(&self.event).expect("plain data goes into memory");
        line.push(b'\n');
        line
    }

    /// Writes the event as it is now; whether that worked, which the log has told of if not. A read does not wait for that: it is answered anyway.
    async fn write(&mut self, stage: Stage) -> bool {
        let line = self.line(stage);
        if self.changes {
            return self.audit.log.append(line).await.is_ok();
        }
        self.audit.log.hand_over(line).await;
        true
    }

    /// Writes what came of the request, and gives its answer; of one that goes on, with what writes its end.
    pub(super) async fn end(
        mut self,
        mut response: Response,
        failure: Option<Value>,
        decision: Option<Decision>,
        lasting: Option<&Lasting>,
    ) -> Response {
        let code = response.status().as_u16();
        self.event.response_status = Some(match failure {
            None => json!({"metadata": {}, "code": code}),
            Some(status) => failed(&status["message"], &status["reason"], code),
        });
        if let Some(decision) = decision {
            self.annotate(decision);
        }
        if let Ok(id) = HeaderValue::from_str(&self.event.audit_id) {
            response.headers_mut().insert(HEADER, id);
        }
        if let Some(lasting) = lasting {
            if self.verdict.has(Stage::ResponseStarted) {
                self.write(Stage::ResponseStarted).await;
            }
            lasting.keep_record(self);
            return response;
        }
        if self.verdict.level == Level::RequestResponse {
            response = self.take_answer(response).await;
        }
        self.ended = true;
        if self.verdict.has(Stage::ResponseComplete) {
            self.write(Stage::ResponseComplete).await;
        }
        response
    }

    /// Writes that the server failed within the request.
    pub(super) async fn panicked(mut self) {
        let message = "the server failed within the request; its log says where";
        self.event.response_status = Some(failed(&json!(message), &json!("InternalError"), 500));
        self.ended = true;
        if self.verdict.has(Stage::Panic) {
            self.write(Stage::Panic).await;
        }
    }

    fn annotate(&mut self, decision: Decision) {
        let (decision, reason) = match decision {
            Decision::Allowed(why) => ("allow", why.to_string()),
            Decision::Refused(said) => ("forbid", said),
        };
        let annotations = &mut self.event.annotations;
        annotations.insert("authorization.k8s.io/decision", decision.to_owned());
        annotations.insert("authorization.k8s.io/reason", reason);
    }

    /// Reads an answer into the event. Of one that is larger than any object it says only that, and the answer goes on as it would have.
    async fn take_answer(&mut self, response: Response) -> Response {
        let (parts, mut body) = response.into_parts();
        let (mut read, mut chunks) = (0, Vec::<Bytes>::new());
        while read <= limits::BODY_BYTES {
            match body.frame().await {
                None => {
                    let bytes: Bytes = chunks.concat().into();
                    if let Ok(object) = serde_json::from_slice::<Value>(&bytes) {
                        self.event.response_object = Some(without_owners(object, self.verdict));
                    }
                    return Response::from_parts(parts, Body::from(bytes));
                }
                Some(Ok(frame)) => {
                    let data = frame.into_data().unwrap_or_default();
                    read += data.len();
                    chunks.push(data);
                }
                Some(Err(error)) => {
                    let broken = stream::iter(chunks.into_iter().map(Ok).chain([Err(error)]));
                    return Response::from_parts(parts, Body::from_stream(broken));
                }
            }
        }
        self.event
            .annotations
            .insert("audit.k8s.io/truncated", "true".to_owned());
        let rest = stream::iter(chunks.into_iter().map(Ok)).chain(body.into_data_stream());
        Response::from_parts(parts, Body::from_stream(rest))
    }
}

fn failed(message: &Value, reason: &Value, code: u16) -> Value {
    json!({"metadata": {}, "status": "Failure", "message": message, "reason": reason, "code": code})
}

impl Drop for Record {
    /// What lasted is over, or nobody waits for the answer any more.
    fn drop(&mut self) {
        if self.ended || !self.verdict.has(Stage::ResponseComplete) {
            return;
        }
        if self.event.response_status.is_none() {
            let (code, message) = NOBODY_WAITED;
            self.event.response_status = Some(failed(&json!(message), &json!("ClientClosedRequest"), code));
        }
        let line = self.line(Stage::ResponseComplete);
        self.audit.log.post(line);
    }
}
