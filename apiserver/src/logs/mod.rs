//! The output of tasks: fetched from the agent that runs them, and handed on.
//!
//! The API server keeps no logs. It asks the node server of the task's agent for those of one attempt and turns its lines into plain
//! text. It promises: who follows gets every line until the task is over, across restarts of the agent and of the task's command,
//! and the answer says clearly when there is nothing to get. What must never happen here: an answer that looks complete and is
//! not; a connection to an agent that is not verified. Tested with a fake source below and with TLS in `https`.

mod https;
mod relay;

use std::sync::Arc;

use async_trait::async_trait;
use axum::body::Body;
use axum::response::Response;
use bytes::Bytes;
use futures::stream::BoxStream;
use http::{HeaderMap, HeaderValue, header};
use jiff::{SignedDuration, Timestamp};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Task};
use serde::{Deserialize, Serialize};

use crate::error::{ApiError, Result};
use crate::keys;
use crate::params::Query;
use crate::schema;
use crate::state::State;
use crate::streams::{Action, Opened, StreamError};

pub use https::HttpsLogSource;

/// Which part of the output of one container is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Whether to go on while the container runs.
    pub follow: bool,
    /// Only the last lines, this many.
    pub tail: Option<u64>,
    /// Only what was written at or after this time, milliseconds since the epoch.
    pub since_ms: Option<i64>,
    /// Only what is behind this position; then `tail` and `since_ms` don't matter.
    pub after: Option<String>,
}

/// One line of output, as the node server tells it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogLine {
    /// When it was written, milliseconds since the epoch.
    pub time_ms: i64,
    /// `Stdout` or `Stderr`.
    pub stream: String,
    /// The line with its newline, which the last one may lack.
    pub text: String,
    /// Where to go on behind it; empty when there is no such place.
    pub position: String,
}

/// Why there are no lines, or no more.
#[derive(Debug, thiserror::Error)]
pub enum LogError {
    /// The agent has no such container any more.
    #[error("the agent does not have it any more")]
    NotFound,
    /// The agent did not take the request.
    #[error("the agent refused: {0}")]
    Refused(String),
    /// The agent cannot be reached, or the connection broke; trying again may help.
    #[error("{0}")]
    Unreachable(String),
}

/// The node server of an agent.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Node<'a> {
    /// Whose it is, and so what its certificate must say.
    pub agent: &'a str,
    /// Where it is, `HOST:PORT`.
    pub address: &'a str,
}

/// Where the logs of containers come from, and the way into them. One of the server's seams.
#[async_trait]
pub trait LogSource: Send + Sync + 'static {
    /// The output of `container` on an agent. The stream ends well only when it is complete.
    async fn open(
        &self,
        node: Node<'_>,
        container: &str,
        query: &LogQuery,
    ) -> std::result::Result<BoxStream<'static, std::result::Result<LogLine, LogError>>, LogError>;

    /// A document of an agent, whole, at a path of its node server.
    async fn fetch(&self, _: Node<'_>, _path: &str) -> std::result::Result<Bytes, LogError> {
        Err(LogError::Unreachable("this server has no way to its agents".to_owned()))
    }

    /// A stream into a container of an agent, at a path of its node server; `client` says what the client said about its WebSocket.
    async fn stream(
        &self,
        _: Node<'_>,
        _: Action,
        _path: &str,
        _client: &HeaderMap,
    ) -> std::result::Result<Opened, StreamError> {
        Err(StreamError::Unreachable(
            "this server has no way to its agents".to_owned(),
        ))
    }
}

/// For servers that have no agents to ask: every attempt to read logs fails, and says so.
#[derive(Clone, Copy, Debug, Default)]
pub struct NoLogs;

#[async_trait]
impl LogSource for NoLogs {
    async fn open(
        &self,
        _: Node<'_>,
        _: &str,
        _: &LogQuery,
    ) -> std::result::Result<BoxStream<'static, std::result::Result<LogLine, LogError>>, LogError> {
        Err(LogError::Unreachable("this server has no way to its agents".to_owned()))
    }
}

/// What a client asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
struct Wanted {
    follow: bool,
    previous: bool,
    attempt: Option<u32>,
    tail: Option<u64>,
    since_ms: Option<i64>,
    timestamps: bool,
}

impl Wanted {
    fn parse(query: &Query, now: Timestamp) -> Result<Wanted> {
        let attempt = query.number("attempt")?.map(|number| {
            let number = u32::try_from(number).ok().filter(|number| *number > 0);
            number.ok_or_else(|| ApiError::bad_request("attempt must be a number from 1"))
        });
        let since = match (query.number("sinceSeconds")?, query.get("sinceTime")) {
            (Some(_), Some(_)) => {
                return Err(ApiError::bad_request(
                    "at most one of sinceSeconds and sinceTime may be given",
                ));
            }
            (Some(seconds), None) => {
                let span = SignedDuration::from_secs(i64::try_from(seconds).unwrap_or(i64::MAX));
                // Before the beginning of time means all.
                now.checked_sub(span).ok()
            }
            (None, Some(text)) => Some(text.parse::<Timestamp>().map_err(|_| {
                ApiError::bad_request(format!("sinceTime={text:?} is not a time such as 2026-01-31T12:00:00Z"))
            })?),
            (None, None) => None,
        };
        let wanted = Wanted {
            follow: query.flag("follow")?,
            previous: query.flag("previous")?,
            attempt: attempt.transpose()?,
            tail: query.number("tailLines")?,
            since_ms: since.map(Timestamp::as_millisecond),
            timestamps: query.flag("timestamps")?,
        };
        if wanted.previous && wanted.attempt.is_some() {
            return Err(ApiError::bad_request(
                "at most one of previous and attempt may be given",
            ));
        }
        Ok(wanted)
    }

    fn query(&self) -> LogQuery {
        LogQuery {
            follow: self.follow,
            tail: self.tail,
            since_ms: self.since_ms,
            after: None,
        }
    }
}

/// One attempt of a task, and where it is.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    agent: String,
    address: String,
    container: String,
    number: u32,
}

impl Target {
    fn node(&self) -> Node<'_> {
        Node {
            agent: &self.agent,
            address: &self.address,
        }
    }
}

/// Answers `GET …/tasks/NAME/log`; who may ask is already settled.
pub async fn answer(state: &Arc<State>, namespace: &str, name: &str, query: &Query) -> Result<Response> {
    let wanted = Wanted::parse(query, state.env.now())?;
    let task = task(state, namespace, name)?.ok_or_else(|| {
        let tasks = state.resources.muster("tasks");
        ApiError::not_found(&tasks.resource, name)
    })?;
    let target = target(state, &task, &wanted)?;
    let opened = state.logs.open(target.node(), &target.container, &wanted.query()).await;
    let lines = opened.map_err(|error| unreadable(&target, &error))?;
    let relay = relay::Relay::new(state.clone(), &task, wanted, target, lines);
    let mut response = Response::new(Body::from_stream(relay.stream()));
    let headers = response.headers_mut();
    headers.insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    headers.insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    Ok(response)
}

/// The task as it is now.
pub(crate) fn task(state: &State, namespace: &str, name: &str) -> Result<Option<Task>> {
    let resource = &state.resources.muster("tasks").resource;
    let Some(object) = state.hub.get(&keys::object(resource, namespace, name)) else {
        return Ok(None);
    };
    schema::typed(&object.json()).map(Some).map_err(|violation| {
        ApiError::internal(format!(
            "the stored task cannot be read: {}: {}",
            violation.field, violation.message
        ))
    })
}

/// Which attempt is meant, and where it is.
fn target(state: &State, task: &Task, wanted: &Wanted) -> Result<Target> {
    let name = task.metadata.name.as_deref().unwrap_or_default();
    let none_yet = |phase: Phase| {
        let why = match phase {
            Phase::Pending => "it waits for an offer",
            _ => "its command has not been started",
        };
        ApiError::bad_request(format!("task \"{name}\" is {phase:?}: no logs yet ({why})"))
    };
    let status = task.status.as_ref().ok_or_else(|| none_yet(Phase::Pending))?;
    let numbers: Vec<u32> = status.attempts.iter().map(|attempt| attempt.number).collect();
    let last = match numbers.last() {
        Some(last) => *last,
        None if status.phase.is_terminal() => {
            let message = format!(
                "task \"{name}\" is {:?} and its command was never run: there are no logs",
                status.phase
            );
            return Err(ApiError::bad_request(message));
        }
        None => return Err(none_yet(status.phase)),
    };
    let number = match (wanted.attempt, wanted.previous) {
        (Some(number), _) => number,
        (None, false) => last,
        (None, true) if last < 2 => {
            return Err(ApiError::bad_request(format!(
                "task \"{name}\" has only one attempt: there is no previous one"
            )));
        }
        (None, true) => last - 1,
    };
    if number > last {
        let message = format!("task \"{name}\" has no attempt {number}; the last one is {last}");
        return Err(ApiError::bad_request(message));
    }
    let agent = status.agent.clone().ok_or_else(|| none_yet(status.phase))?;
    let address = address(state, &agent, "the logs")?;
    let uid = task.metadata.uid.as_deref().unwrap_or_default();
    Ok(Target {
        agent,
        address,
        container: format!("{uid}-{number}"),
        number,
    })
}

/// Where the node server of an agent is, for `what` it has.
pub(crate) fn address(state: &State, name: &str, what: &str) -> Result<String> {
    let resource = &state.resources.muster("agents").resource;
    let Some(object) = state.hub.get(&keys::object(resource, "", name)) else {
        let message = format!("agent \"{name}\" has left the cluster, and {what} with it");
        return Err(ApiError::absent(message).about(resource, name));
    };
    let agent: Option<Agent> = schema::typed(&object.json()).ok();
    let address = agent.and_then(|agent| agent.status).and_then(|status| status.address);
    address.ok_or_else(|| ApiError::unavailable(format!("agent \"{name}\" has not said where {what} can be reached")))
}

fn unreadable(target: &Target, error: &LogError) -> ApiError {
    let (agent, number) = (&target.agent, target.number);
    match error {
        LogError::NotFound => ApiError::absent(format!(
            "agent \"{agent}\" does not keep the logs of attempt {number} any more"
        )),
        LogError::Refused(why) => ApiError::internal(format!(
            "agent \"{agent}\" does not give the logs of attempt {number}: {why}"
        )),
        LogError::Unreachable(why) => ApiError::unavailable(format!(
            "agent \"{agent}\" at {} cannot be reached: {why}",
            target.address
        )),
    }
}

#[cfg(test)]
mod tests;
