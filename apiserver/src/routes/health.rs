//! Whether the server lives, and whether it can be used.

use axum::body::Body;
use axum::response::Response;
use http::{HeaderValue, StatusCode, header};

use super::Call;
use crate::limits;

fn text(code: StatusCode, body: String) -> Response {
    let mut response = Response::new(Body::from(body));
    *response.status_mut() = code;
    response.headers_mut().insert(
        header::CONTENT_TYPE,
        HeaderValue::from_static("text/plain; charset=utf-8"),
    );
    response
}

/// `/livez`: it answers.
pub(super) fn live(call: &Call) -> Response {
    report(call, "livez", &[("ping", None)])
}

/// `/readyz`, or one of its checks: the store answers, and the hub has caught up with it.
pub(super) async fn ready(call: &Call, only: Option<&str>) -> Response {
    let revision = tokio::time::timeout(limits::READ_WAIT, call.state.newest()).await;
    let (store, hub) = match revision {
        Err(_) => (Some("it does not answer".to_owned()), None),
        Ok(Err(error)) => (Some(error.to_string()), None),
        Ok(Ok(revision)) => {
            let reached = call.state.hub.reach(revision, limits::READ_WAIT).await;
            (None, reached.err().map(|error| error.to_string()))
        }
    };
    let stopping = call
        .state
        .leaving()
        .is_cancelled()
        .then(|| "the server is stopping".to_owned());
    let checks = [("ping", None), ("store", store), ("hub", hub), ("shutdown", stopping)];
    let wanted: Vec<(&str, Option<String>)> = checks
        .into_iter()
        .filter(|(name, _)| only.is_none_or(|only| only == *name))
        .collect();
    if wanted.is_empty() {
        return text(StatusCode::NOT_FOUND, "there is no such check\n".to_owned());
    }
    report(call, "readyz", &wanted)
}

fn report(call: &Call, name: &str, checks: &[(&str, Option<String>)]) -> Response {
    let failed = checks.iter().any(|(_, problem)| problem.is_some());
    let verbose = call.query.flag("verbose").unwrap_or(false);
    if !failed && !verbose {
        return text(StatusCode::OK, "ok".to_owned());
    }
    let mut body = String::new();
    for (check, problem) in checks {
        match problem {
            None => body += &format!("[+]{check} ok\n"),
            Some(problem) => body += &format!("[-]{check} failed: {problem}\n"),
        }
    }
    let (code, word) = if failed {
        (StatusCode::INTERNAL_SERVER_ERROR, "failed")
    } else {
        (StatusCode::OK, "passed")
    };
    text(code, format!("{body}{name} check {word}\n"))
}
