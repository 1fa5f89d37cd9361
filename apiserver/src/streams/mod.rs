//! Commands, files and ports of tasks that run: a WebSocket, from whoever asks to the agent of the task.
//!
//! The server knows who asks, whether he may, and where the task runs; the protocol is the agent's, spoken through the server and not by it. So
//! what is answered before the upgrade is a `Status`, and from then on bytes go both ways as fast as the slower side takes them. It
//! promises: a side that is gone is gone for the other, too; the server holds no more of a stream than it is handing on. What must never
//! happen here: a connection to an agent that is used for two askers, or an agent that is sent elsewhere.
//!
//! Every other way to ask for a task by another name, such as as a pod, calls [`answer`] with the task's.

mod tunnel;

use std::sync::Arc;
use std::time::Duration;

use axum::body::Body;
use axum::response::Response;
use http::request::Parts;
use http::{HeaderMap, Method, StatusCode, header};
use hyper::upgrade::OnUpgrade;
use muster_api::task_state::Phase;
use muster_api::v1::Task;

use crate::error::{ApiError, Result};
use crate::logs::{self, Node};
use crate::params::Query;
use crate::registry::{Kind, View};
use crate::routes::lasting::Lasting;
use crate::state::State;
use crate::views;

pub use tunnel::{Opened, StreamError};
pub(crate) use tunnel::{STREAMS, open};

/// What clients have to speak to commands; the best first. The same as agents do.
pub const PROTOCOLS: [&str; 2] = ["v5.channel.k8s.io", "v4.channel.k8s.io"];
/// What clients have to speak to ports; the best first. The same as agents do.
pub const FORWARD_PROTOCOLS: [&str; 2] = ["v1.portforward.muster.dev", "v4.channel.k8s.io"];

/// How long a client has to begin to speak after its connection was upgraded.
const UPGRADE: Duration = Duration::from_secs(10);

/// What is wanted of a task.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// A command in it.
    Exec,
    /// Files, out of it or into it.
    Copy,
    /// Connections to its ports.
    Forward,
}

impl Action {
    /// The action of a subresource, if it is one.
    pub fn of(subresource: &str) -> Option<Action> {
        match subresource {
            "exec" => Some(Action::Exec),
            "copy" => Some(Action::Copy),
            "portforward" => Some(Action::Forward),
            _ => None,
        }
    }

    /// The subresource whose rights it needs: who may run commands can copy files with them.
    pub fn rights(self) -> &'static str {
        match self {
            Action::Exec | Action::Copy => "exec",
            Action::Forward => "portforward",
        }
    }

    /// What clients have to speak, the best first, and who speaks it.
    fn spoken(self) -> (&'static [&'static str], &'static str) {
        match self {
            Action::Exec | Action::Copy => (&PROTOCOLS, "mctl, kubectl from 1.30 on, kube-rs and the Python client"),
            Action::Forward => (
                &FORWARD_PROTOCOLS,
                "`mctl port-forward`, kube-rs and the Python client, while kubectl forwards ports in SPDY alone",
            ),
        }
    }

    /// The parameters that go on to the agent, with their values.
    fn parameters(self, query: &Query) -> Result<Vec<(&'static str, String)>> {
        let mut parameters = Vec::new();
        match self {
            Action::Exec => {
                parameters.extend(query.all("command").map(|word| ("command", word.to_owned())));
                if parameters.is_empty() {
                    return Err(ApiError::bad_request("you must specify at least one `command`"));
                }
                for name in ["stdin", "stdout", "stderr", "tty"] {
                    parameters.push((name, query.flag(name)?.to_string()));
                }
                for name in ["columns", "rows"] {
                    parameters.extend(query.number(name)?.map(|number| (name, number.to_string())));
                }
            }
            Action::Copy => {
                for name in ["from", "to"] {
                    parameters.extend(query.get(name).map(|path| (name, path.to_owned())));
                }
                if parameters.len() != 1 {
                    return Err(ApiError::bad_request("exactly one of `from` and `to` must name a path"));
                }
            }
            Action::Forward => {
                parameters.extend(query.all("ports").map(|ports| ("ports", ports.to_owned())));
                if parameters.is_empty() {
                    return Err(ApiError::bad_request("you must specify at least one port in `ports`"));
                }
            }
        }
        Ok(parameters)
    }

    fn word(self) -> &'static str {
        match self {
            Action::Exec => "exec",
            Action::Copy => "copy",
            Action::Forward => "portforward",
        }
    }
}

/// Whether objects of a kind have it: tasks have all, their views what Kubernetes knows.
pub(crate) fn is_of(kind: &Kind, action: Action) -> bool {
    kind.resource.qualified() == "tasks.muster.dev" || (kind.view == View::Pods && action != Action::Copy)
}

/// Answers for a task. Who may ask is already settled.
pub async fn answer(
    state: &Arc<State>,
    parts: &mut Parts,
    query: &Query,
    (namespace, name): (&str, &str),
    action: Action,
) -> Result<Response> {
    check_protocol(action, &parts.method, &parts.headers)?;
    let parameters = action.parameters(query)?;
    let task = logs::task(state, namespace, name)?.ok_or_else(|| {
        let tasks = state.resources.muster("tasks");
        ApiError::not_found(&tasks.resource, name)
    })?;
    let own = views::pod::container_of(&task.metadata);
    if let Some(container) = query.get("container").filter(|container| *container != own) {
        let message = format!("task \"{name}\" has one container, \"{own}\"; there is no \"{container}\"");
        return Err(ApiError::bad_request(message));
    }
    let (agent, container) = running(&task, name, query.number("attempt")?)?;
    let address = logs::address(state, &agent, "the task")?;
    let node = Node {
        agent: &agent,
        address: &address,
    };
    let path = path(action, &container, &parameters);
    let opened = state.logs.stream(node, action, &path, &parts.headers).await;
    let opened = opened.map_err(|error| refused(&agent, &address, name, error))?;
    let Some(client) = parts.extensions.remove::<OnUpgrade>() else {
        return Err(ApiError::bad_request("this connection cannot become a WebSocket"));
    };
    let mut response = Response::new(Body::empty());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    for name in [
        header::CONNECTION,
        header::UPGRADE,
        header::SEC_WEBSOCKET_ACCEPT,
        header::SEC_WEBSOCKET_PROTOCOL,
    ] {
        if let Some(value) = opened.headers.get(&name) {
            response.headers_mut().insert(name, value.clone());
        }
    }
    let stopping = state.stopping().clone();
    let lasting = parts.extensions.remove::<Lasting>();
    tokio::spawn(async move {
        let _lasting = lasting;
        let joined = async {
            if let Ok(Ok(client)) = tokio::time::timeout(UPGRADE, client).await {
                opened.join(client).await;
            }
        };
        tokio::select! {
            biased;
            () = stopping.cancelled() => {}
            () = joined => {}
        }
    });
    Ok(response)
}

/// Refuses what does not speak the protocol, with what would.
fn check_protocol(action: Action, method: &Method, headers: &HeaderMap) -> Result<()> {
    let (protocols, clients) = action.spoken();
    let spoken = format!(
        "streams are spoken over WebSockets (GET with `Upgrade: websocket` over HTTP/1.1, and `Sec-WebSocket-Protocol: {}`): by {clients}",
        protocols.join(", ")
    );
    let is = |name: header::HeaderName, word: &str| {
        let values = headers.get_all(name).iter().filter_map(|value| value.to_str().ok());
        let mut words = values.flat_map(|value| value.split(',').map(str::trim));
        words.any(|known| known.eq_ignore_ascii_case(word))
    };
    if is(header::UPGRADE, "SPDY/3.1") {
        return Err(ApiError::bad_request(format!("SPDY is not spoken here; {spoken}")));
    }
    if method != Method::GET || !is(header::UPGRADE, "websocket") || !headers.contains_key(header::SEC_WEBSOCKET_KEY) {
        return Err(ApiError::bad_request(format!("this is not a WebSocket; {spoken}")));
    }
    let versions = headers
        .get(header::SEC_WEBSOCKET_VERSION)
        .map(|version| version.as_bytes());
    let known = protocols.iter().any(|known| is(header::SEC_WEBSOCKET_PROTOCOL, known));
    if versions != Some(b"13") || !known {
        return Err(ApiError::bad_request(format!(
            "none of the protocols offered is known; {spoken}"
        )));
    }
    Ok(())
}

/// The agent of a task that runs, and the container of its attempt.
fn running(task: &Task, name: &str, attempt: Option<u64>) -> Result<(String, String)> {
    let conflict = |message: String| Err(ApiError::new(StatusCode::CONFLICT, "Conflict", message));
    let status = task.status.clone().unwrap_or_default();
    let phase = status.phase;
    match phase {
        Phase::Running | Phase::Killing => {}
        Phase::Pending => {
            return conflict(format!(
                "task \"{name}\" is Pending: it runs nowhere yet; `mctl why {name}` says why, `mctl wait` waits"
            ));
        }
        _ if phase.is_terminal() => {
            return conflict(format!(
                "task \"{name}\" is {phase:?}: its command has ended; `mctl logs {name}` shows what it printed"
            ));
        }
        _ => {
            return conflict(format!(
                "task \"{name}\" is {phase:?}: its command does not run yet; try again in a moment"
            ));
        }
    }
    let last = status.attempts.last().map(|attempt| attempt.number);
    let (Some(agent), Some(last)) = (status.agent, last) else {
        return conflict(format!(
            "task \"{name}\" has no attempt that runs; try again in a moment"
        ));
    };
    if attempt.is_some_and(|attempt| attempt != u64::from(last)) {
        return conflict(format!("of task \"{name}\" only attempt {last}, the last one, can run"));
    }
    let uid = task.metadata.uid.as_deref().unwrap_or_default();
    Ok((agent, format!("{uid}-{last}")))
}

/// The path of the node server.
fn path(action: Action, container: &str, parameters: &[(&str, String)]) -> String {
    let mut path = format!("/v1/{}/{container}", action.word());
    for (index, (name, value)) in parameters.iter().enumerate() {
        path.push(if index == 0 { '?' } else { '&' });
        path.push_str(name);
        path.push('=');
        for byte in value.bytes() {
            if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'/') {
                path.push(char::from(byte));
            } else {
                path.push_str(&format!("%{byte:02X}"));
            }
        }
    }
    path
}

fn refused(agent: &str, address: &str, name: &str, error: StreamError) -> ApiError {
    match error {
        StreamError::Refused(StatusCode::NOT_FOUND | StatusCode::CONFLICT, _) => {
            let message = format!("task \"{name}\" does not run at this moment: its command has ended, or begins anew");
            ApiError::new(StatusCode::CONFLICT, "Conflict", message)
        }
        StreamError::Refused(StatusCode::BAD_REQUEST, why) => ApiError::bad_request(why),
        StreamError::Refused(StatusCode::TOO_MANY_REQUESTS, why) => ApiError::too_many_requests(why, 1),
        StreamError::Refused(code, why) => {
            ApiError::internal(format!("agent \"{agent}\" cannot do it: {why} ({code})"))
        }
        StreamError::TooMany => {
            ApiError::too_many_requests(format!("this server hands on {STREAMS} streams, which is the most"), 1)
        }
        StreamError::Unreachable(why) => {
            ApiError::unavailable(format!("agent \"{agent}\" at {address} cannot be reached: {why}"))
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::v1::{Attempt, TaskStatus};

    use super::*;

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let pairs = pairs.iter().map(|(name, value)| {
            let name = header::HeaderName::from_static(name);
            (name, value.parse().unwrap())
        });
        pairs.collect()
    }

    #[test]
    fn who_speaks_something_else_is_told_what_to_speak() {
        let socket = [
            ("connection", "Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-version", "13"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ];
        assert_eq!(check_protocol(Action::Exec, &Method::GET, &headers(&socket)), Ok(()));
        let mut older = socket;
        older[4].1 = "v4.channel.k8s.io";
        assert_eq!(check_protocol(Action::Exec, &Method::GET, &headers(&older)), Ok(()));
        let refusal = |method: Method, pairs: &[(&'static str, &str)]| {
            let error = check_protocol(Action::Exec, &method, &headers(pairs)).expect_err("refused");
            assert_eq!(error.code, StatusCode::BAD_REQUEST);
            assert!(error.message.contains("kubectl from 1.30 on"), "{}", error.message);
            error.message
        };
        assert!(refusal(Method::POST, &[("upgrade", "SPDY/3.1")]).starts_with("SPDY is not spoken"));
        assert!(refusal(Method::POST, &socket).starts_with("this is not a WebSocket"));
        assert!(refusal(Method::GET, &[]).starts_with("this is not a WebSocket"));
        let mut unknown = socket;
        unknown[4].1 = "base64.channel.k8s.io";
        assert!(refusal(Method::GET, &unknown).starts_with("none of the protocols"));
        // As Kubernetes' clients say it, and as kubectl does, which says the other way next.
        assert_eq!(check_protocol(Action::Forward, &Method::GET, &headers(&older)), Ok(()));
        let mut tunnel = socket;
        tunnel[4].1 = "SPDY/3.1+portforward.k8s.io";
        for (method, pairs) in [(Method::GET, &tunnel[..]), (Method::POST, &[("upgrade", "SPDY/3.1")])] {
            let error = check_protocol(Action::Forward, &method, &headers(pairs)).expect_err("refused");
            assert!(error.message.contains("`mctl port-forward`"), "{}", error.message);
        }
    }

    #[test]
    fn only_the_last_attempt_of_a_task_that_runs_is_entered() {
        let mut task = Task::new("t", Default::default());
        task.metadata.uid = Some("u".to_owned());
        let status = |phase| TaskStatus {
            phase,
            agent: Some("a1".to_owned()),
            attempts: [1, 2]
                .map(|number| Attempt {
                    number,
                    ..Attempt::default()
                })
                .into(),
            ..TaskStatus::default()
        };
        task.status = Some(status(Phase::Running));
        assert_eq!(running(&task, "t", None), Ok(("a1".to_owned(), "u-2".to_owned())));
        assert!(running(&task, "t", Some(2)).is_ok());
        assert_eq!(running(&task, "t", Some(1)).unwrap_err().code, StatusCode::CONFLICT);
        for (phase, what) in [
            (Phase::Pending, "mctl why t"),
            (Phase::Starting, "try again"),
            (Phase::Finished, "mctl logs t"),
        ] {
            task.status = Some(status(phase));
            let error = running(&task, "t", None).unwrap_err();
            assert!(
                error.code == StatusCode::CONFLICT && error.message.contains(what),
                "{error}"
            );
        }
    }

    #[test]
    fn words_go_on_as_they_were() {
        let query = Query::parse(Some(
            "command=sh&command=-c&command=echo%20%26+%C3%BC&stdout=1&rows=5&evil=1",
        ));
        let parameters = Action::Exec.parameters(&query).unwrap();
        assert_eq!(
            path(Action::Exec, "u-1", &parameters),
            "/v1/exec/u-1?command=sh&command=-c&command=echo%20%26%20%C3%BC&stdin=false&stdout=true&stderr=false&tty=false&rows=5"
        );
        assert!(Action::Exec.parameters(&Query::parse(None)).is_err());
        assert!(Action::Copy.parameters(&Query::parse(Some("from=/a&to=/b"))).is_err());
        let copy = Action::Copy.parameters(&Query::parse(Some("from=/a"))).unwrap();
        assert_eq!(path(Action::Copy, "u-1", &copy), "/v1/copy/u-1?from=/a");
        let forward = Action::Forward
            .parameters(&Query::parse(Some("ports=80,443&name=x")))
            .unwrap();
        assert_eq!(
            path(Action::Forward, "u-1", &forward),
            "/v1/portforward/u-1?ports=80%2C443"
        );
        assert!(Action::Forward.parameters(&Query::parse(Some("port=80"))).is_err());
    }
}
