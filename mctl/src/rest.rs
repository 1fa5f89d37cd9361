//! Calls to the API server, as plain HTTP with JSON bodies.
//!
//! Every answer that is no success becomes a [`CallError`] that says what happened in the server's own words. Reads are tried again
//! when the server says that it helps; writes only when it has too much to do (429), because otherwise a write may have happened.

use std::fmt;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;
use futures::{StreamExt, TryStreamExt};
use http::header::{ACCEPT, CONTENT_TYPE, RETRY_AFTER, SEC_WEBSOCKET_KEY, USER_AGENT, WARNING};
use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt;
use kube::client::Body;
use muster_agentd::streams::PROTOCOLS;
use muster_api::env::{Env as _, SystemEnv};
use serde::Deserialize;
use serde_json::Value;
use tokio_util::codec::{FramedRead, LinesCodec};
use tokio_util::io::StreamReader;

use crate::failure::{Exit, Failure};
use crate::kubeconfig::chain;
use crate::stream;

/// Plain objects.
pub const JSON: &str = "application/json";
/// Tables, as the server prints them.
pub const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";
/// How long a call may take, streams aside.
const DEADLINE: Duration = Duration::from_secs(60);
/// How often a call is tried, while the server asks to come again.
const TRIES: u32 = 6;
/// The longest line of a stream: the largest object, twice, for a table's row.
const LINE_MAX: usize = 4 << 20;

/// Why something happened, of the server's causes.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Cause {
    /// What kind of wrong.
    pub reason: String,
    /// In words.
    pub message: String,
    /// Where.
    pub field: String,
}

/// The details of a [`Status`].
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default, rename_all = "camelCase")]
pub struct Details {
    /// All causes.
    pub causes: Vec<Cause>,
    /// When to come again.
    pub retry_after_seconds: Option<u64>,
}

/// An error of the server.
#[derive(Clone, Debug, Default, Deserialize, PartialEq, Eq)]
#[serde(default)]
pub struct Status {
    /// In words.
    pub message: String,
    /// What kind.
    pub reason: String,
    /// As in HTTP.
    pub code: u16,
    /// More.
    pub details: Option<Details>,
}

/// Why a call failed.
#[derive(Clone, Debug)]
pub enum CallError {
    /// The server says no.
    Status(Box<Status>),
    /// The server cannot be reached, or the connection broke.
    Unreachable {
        /// Where it should be.
        server: String,
        /// Why.
        cause: String,
    },
    /// The answer is none of this API.
    Garbled(String),
}

impl CallError {
    /// The code of HTTP; 0 when there was no answer.
    pub fn code(&self) -> u16 {
        match self {
            CallError::Status(status) => status.code,
            _ => 0,
        }
    }

    /// Whether the object is not there.
    pub fn is_not_found(&self) -> bool {
        self.code() == 404
    }

    /// Whether a watch has to begin anew.
    pub fn is_expired(&self) -> bool {
        self.code() == 410
    }

    /// Whether the same read may do better a moment later.
    pub fn is_passing(&self) -> bool {
        matches!(self, CallError::Unreachable { .. }) || matches!(self.code(), 429 | 503 | 504)
    }

    /// When to ask again, if that helps and does no harm: what a busy server refuses it has not done.
    fn come_again(&self, reads: bool) -> Option<Duration> {
        let CallError::Status(status) = self else {
            return None;
        };
        let after = status.details.as_ref().and_then(|details| details.retry_after_seconds);
        let again = self.code() == 429 || (reads && self.is_passing());
        again.then(|| Duration::from_secs(after.unwrap_or(1).clamp(1, 5)))
    }

    /// What the server says is wrong with fields.
    pub fn causes(&self) -> &[Cause] {
        match self {
            CallError::Status(status) => status.details.as_ref().map_or(&[], |details| &details.causes),
            _ => &[],
        }
    }
}

impl fmt::Display for CallError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            CallError::Status(status) if status.code == 401 => {
                write!(
                    f,
                    "the server does not know you: {}; is this the configuration of another cluster?",
                    status.message
                )
            }
            CallError::Status(status) if status.reason.is_empty() => write!(f, "{}", status.message),
            CallError::Status(status) => write!(f, "{} ({})", status.message, status.reason),
            CallError::Unreachable { server, cause } => {
                write!(f, "the API server at {server} cannot be reached: {cause}")
            }
            CallError::Garbled(what) => write!(f, "the server's answer makes no sense: {what}"),
        }
    }
}

impl std::error::Error for CallError {}

impl From<CallError> for Failure {
    fn from(error: CallError) -> Failure {
        Failure::with(Exit::Error, error.to_string())
    }
}

/// A body, with its type.
#[derive(Clone, Debug)]
pub struct Payload<'a> {
    /// Its type.
    pub content_type: &'static str,
    /// What is in it.
    pub value: &'a Value,
}

impl<'a> Payload<'a> {
    /// An object.
    pub fn json(value: &'a Value) -> Payload<'a> {
        Payload {
            content_type: JSON,
            value,
        }
    }

    /// All that the sender has an opinion about.
    pub fn apply(value: &'a Value) -> Payload<'a> {
        Payload {
            content_type: "application/apply-patch+yaml",
            value,
        }
    }

    /// A JSON patch (RFC 6902).
    pub fn json_patch(value: &'a Value) -> Payload<'a> {
        Payload {
            content_type: "application/json-patch+json",
            value,
        }
    }

    /// A merge patch (RFC 7386).
    pub fn merge_patch(value: &'a Value) -> Payload<'a> {
        Payload {
            content_type: "application/merge-patch+json",
            value,
        }
    }
}

/// A successful answer.
#[derive(Clone, Debug)]
pub struct Answer {
    /// What is in it.
    pub value: Value,
    /// What the server warns of.
    pub warnings: Vec<String>,
}

/// Lines of a stream.
pub type Lines = BoxStream<'static, Result<String, CallError>>;

/// The API server.
#[derive(Clone)]
pub struct Rest {
    client: kube::Client,
    server: String,
    namespace: String,
}

impl Rest {
    /// The server that a configuration names.
    pub fn new(config: kube::Config) -> Result<Rest, Failure> {
        let server = config.cluster_url.to_string().trim_end_matches('/').to_owned();
        let namespace = config.default_namespace.clone();
        let client =
            kube::Client::try_from(config).map_err(|error| Failure::new(format!("{server}: {}", chain(&error))))?;
        Ok(Rest {
            client,
            server,
            namespace,
        })
    }

    /// A server behind a client that is there already.
    pub fn over(client: kube::Client, server: &str) -> Rest {
        let namespace = client.default_namespace().to_owned();
        Rest {
            client,
            server: server.to_owned(),
            namespace,
        }
    }

    /// The address of the server.
    pub fn server(&self) -> &str {
        &self.server
    }

    /// The namespace of the context.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }

    /// Reads.
    pub async fn get(&self, path: &str) -> Result<Value, CallError> {
        self.get_as(path, JSON).await
    }

    /// Reads in another form; tries again while the server asks for it.
    pub async fn get_as(&self, path: &str, accept: &str) -> Result<Value, CallError> {
        Ok(self.call(Method::GET, path, accept, None).await?.value)
    }

    /// One call, tried again while that helps.
    pub async fn call(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        payload: Option<Payload<'_>>,
    ) -> Result<Answer, CallError> {
        let mut tried = 1;
        loop {
            let answer = self.call_once(method.clone(), path, accept, payload.clone()).await;
            match answer
                .as_ref()
                .err()
                .and_then(|error| error.come_again(method == Method::GET))
            {
                Some(after) if tried < TRIES => tokio::time::sleep(after).await,
                _ => return answer,
            }
            tried += 1;
        }
    }

    async fn call_once(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        payload: Option<Payload<'_>>,
    ) -> Result<Answer, CallError> {
        let answer = async {
            let response = self.send(method, path, accept, payload).await?;
            let warnings = warnings(&response);
            let bytes = response
                .into_body()
                .collect()
                .await
                .map_err(|error| self.unreachable(&error))?
                .to_bytes();
            let value = serde_json::from_slice(&bytes).map_err(|error| CallError::Garbled(error.to_string()))?;
            Ok(Answer { value, warnings })
        };
        tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    /// Opens a stream of lines.
    pub async fn lines(&self, path: &str, accept: &str) -> Result<Lines, CallError> {
        let response = self.send(Method::GET, path, accept, None).await?;
        let server = self.server.clone();
        let data = response.into_body().into_data_stream().map_err(std::io::Error::other);
        let lines = FramedRead::new(StreamReader::new(data), LinesCodec::new_with_max_length(LINE_MAX));
        let lines = lines.map_err(move |error| CallError::Unreachable {
            server: server.clone(),
            cause: chain(&error),
        });
        Ok(lines.boxed())
    }

    /// Opens a stream into a task.
    pub async fn stream(&self, path: &str) -> Result<(stream::Sender, stream::Receiver), CallError> {
        self.socket(path, &PROTOCOLS).await.map(stream::halves)
    }

    /// Opens a WebSocket in which the first of these protocols is spoken.
    pub async fn socket(&self, path: &str, protocols: &[&str]) -> Result<stream::Socket, CallError> {
        let headers = stream::headers(*SystemEnv.uid().as_bytes(), protocols);
        let key = headers.iter().find(|(name, _)| *name == SEC_WEBSOCKET_KEY);
        let key = key.map(|(_, key)| key.clone()).unwrap_or_default();
        let mut request = Request::get(path).header(USER_AGENT, concat!("mctl/", env!("CARGO_PKG_VERSION")));
        for (name, value) in headers {
            request = request.header(name, value);
        }
        let request = request
            .body(Body::empty())
            .map_err(|error| CallError::Garbled(format!("{path}: {error}")))?;
        let answer = async {
            let response = self.client.send(request).await;
            let response = response.map_err(|error| self.unreachable(&error))?;
            if response.status() == StatusCode::SWITCHING_PROTOCOLS {
                return stream::open(response, &key, protocols.first().copied().unwrap_or_default()).await;
            }
            Err(self.refusal(response).await)
        };
        tokio::time::timeout(DEADLINE, answer)
            .await
            .unwrap_or_else(|_| Err(self.late()))
    }

    fn late(&self) -> CallError {
        CallError::Unreachable {
            server: self.server.clone(),
            cause: format!("no answer within {} seconds", DEADLINE.as_secs()),
        }
    }

    async fn send(
        &self,
        method: Method,
        path: &str,
        accept: &str,
        payload: Option<Payload<'_>>,
    ) -> Result<Response<Body>, CallError> {
        let mut request = Request::builder().method(method).uri(path).header(ACCEPT, accept);
        request = request.header(USER_AGENT, concat!("mctl/", env!("CARGO_PKG_VERSION")));
        let body = match payload {
            Some(payload) => {
                request = request.header(CONTENT_TYPE, payload.content_type);
                Body::from(payload.value.to_string().into_bytes())
            }
            None => Body::empty(),
        };
        let request = request
            .body(body)
            .map_err(|error| CallError::Garbled(format!("{path}: {error}")))?;
        let response = self
            .client
            .send(request)
            .await
            .map_err(|error| self.unreachable(&error))?;
        if response.status().is_success() {
            return Ok(response);
        }
        Err(self.refusal(response).await)
    }

    /// What an answer says that is no success.
    async fn refusal(&self, response: Response<Body>) -> CallError {
        let code = response.status().as_u16();
        let after = response
            .headers()
            .get(RETRY_AFTER)
            .and_then(|value| value.to_str().ok()?.parse().ok());
        match response.into_body().collect().await {
            Ok(body) => CallError::Status(Box::new(status(code, after, &body.to_bytes()))),
            Err(error) => self.unreachable(&error),
        }
    }

    fn unreachable(&self, error: &(dyn std::error::Error + 'static)) -> CallError {
        let text = chain(error);
        let cause = match text.as_str() {
            text if text.contains("Connection refused") => {
                "connection refused; is it running? `mctl dev` starts one".to_owned()
            }
            text if text.contains("UnknownIssuer") || text.contains("BadSignature") => {
                "its certificate is not of the authority in the configuration; is this another cluster at the same address?".to_owned()
            }
            text => text.trim_start_matches("ServiceError: ").to_owned(),
        };
        CallError::Unreachable {
            server: self.server.clone(),
            cause,
        }
    }
}

fn status(code: u16, after: Option<u64>, bytes: &Bytes) -> Status {
    let mut status: Status = serde_json::from_slice(bytes).unwrap_or_default();
    if status.message.is_empty() {
        let text: String = String::from_utf8_lossy(bytes).chars().take(500).collect();
        status.message = if text.trim().is_empty() {
            format!("the server answered {code}")
        } else {
            text.trim().to_owned()
        };
    }
    status.code = code;
    if after.is_some() {
        status.details.get_or_insert_with(Details::default).retry_after_seconds = after;
    }
    status
}

/// The texts of `Warning: 299 - "text"` headers.
fn warnings(response: &Response<Body>) -> Vec<String> {
    let headers = response
        .headers()
        .get_all(WARNING)
        .iter()
        .filter_map(|value| value.to_str().ok());
    headers.filter_map(warning).collect()
}

fn warning(header: &str) -> Option<String> {
    let quoted = header.split_once('"')?.1;
    let mut text = String::new();
    let mut characters = quoted.chars();
    while let Some(character) = characters.next() {
        match character {
            '"' => return Some(text),
            '\\' => text.extend(characters.next()),
            character => text.push(character),
        }
    }
    Some(text)
}

/// A part of a path, with everything escaped that has a meaning in one.
pub fn escape(text: &str) -> String {
    let plain = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~');
    text.bytes()
        .map(|byte| {
            if plain(byte) {
                char::from(byte).to_string()
            } else {
                format!("%{byte:02X}")
            }
        })
        .collect()
}

/// A path with its parameters.
pub fn with_query(path: &str, parameters: &[(&str, &str)]) -> String {
    let query: Vec<String> = parameters
        .iter()
        .map(|(name, value)| format!("{name}={}", escape(value)))
        .collect();
    if query.is_empty() {
        path.to_owned()
    } else {
        format!("{path}?{}", query.join("&"))
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    use super::*;

    #[test]
    fn warnings_are_unquoted() {
        assert_eq!(
            warning("299 - \"unknown field \\\"spec.a\\\"\"").as_deref(),
            Some("unknown field \"spec.a\"")
        );
        assert_eq!(warning("299 -"), None);
    }

    #[test]
    fn paths_hold_what_they_are_given() {
        assert_eq!(escape("a/b?c#d%e ü"), "a%2Fb%3Fc%23d%25e%20%C3%BC");
        assert_eq!(
            with_query("/a", &[("l", "app=x,y in (a)"), ("w", "true")]),
            "/a?l=app%3Dx%2Cy%20in%20%28a%29&w=true"
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_write_is_sent_again_to_a_server_that_has_too_much_to_do_and_to_no_other() {
        let tries = async |code: u16, times: usize| {
            let asked = Arc::new(AtomicUsize::new(0));
            let count = asked.clone();
            let service = tower::service_fn(move |_: Request<Body>| {
                let refused = count.fetch_add(1, Relaxed) < times;
                let response = Response::builder().status(if refused { code } else { 200 });
                let response = response.header(RETRY_AFTER, "3").body(Body::from(b"{}".to_vec()));
                async move { response }
            });
            let rest = Rest::over(kube::Client::new(service, "default"), "here");
            let begun = tokio::time::Instant::now();
            let answer = rest.call(Method::POST, "/x", JSON, None).await;
            let code = answer.map_err(|error| error.code()).err();
            (code, asked.load(Relaxed), begun.elapsed().as_secs())
        };
        assert_eq!(tries(429, 2).await, (None, 3, 6));
        assert_eq!(tries(429, 100).await, (Some(429), 6, 15));
        assert_eq!(tries(503, 1).await, (Some(503), 1, 0));
    }

    #[test]
    fn an_answer_that_is_no_status_is_quoted() {
        let read = |code, body: &'static str| status(code, Some(2), &Bytes::from_static(body.as_bytes()));
        assert_eq!(read(502, "<html>Bad Gateway").message, "<html>Bad Gateway");
        assert_eq!(read(503, "").message, "the server answered 503");
        let whole = read(
            422,
            r#"{"kind":"Status","message":"no","reason":"Invalid","details":{"causes":[{"field":"spec.a"}]}}"#,
        );
        assert_eq!(
            (whole.message.as_str(), whole.reason.as_str(), whole.code),
            ("no", "Invalid", 422)
        );
        assert_eq!(whole.details.expect("details").causes[0].field, "spec.a");
    }
}
