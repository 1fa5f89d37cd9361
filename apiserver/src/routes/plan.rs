//! The reasons: what the last allocation pass said about every pending task.

use axum::response::Response;
use http::StatusCode;
use muster_api::wire::PlanReport;
use serde_json::json;

use super::answer::json_value;
use super::path::Target;
use super::{Call, resource};
use crate::auth::{self, Attributes};
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::peers;
use crate::registry::fence::{self, Fence};
use crate::registry::{GuardedTxn, Outcome};

/// `PUT /muster/v1/plan`: keeps the report, if the sender leads still.
pub(super) async fn put(mut call: Call) -> Result<Response> {
    let fence = Fence::of(call.headers(), &call.user)?;
    fence::require(
        &call.user,
        fence.as_ref(),
        "a report of the controllers",
        &fence::controllers_lease(),
    )?;
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    let decoded = body::object(content_type, &bytes)?;
    let report: PlanReport = serde_json::from_value(decoded.value)
        .map_err(|error| ApiError::bad_request(format!("the body is not a report: {error}")))?;
    let term = fence.as_ref().map_or(0, |fence| fence.revision);
    if let Some(fence) = fence {
        let mut txn = GuardedTxn::new();
        fence.guard(&mut txn);
        if let Outcome::Lost(_) = call.state.commit(txn).await? {
            return Err(ApiError::fenced(&fence.path()));
        }
    }
    call.state.set_plan(term, report);
    Ok(json_value(
        StatusCode::OK,
        &json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success"}),
    ))
}

fn no_report() -> ApiError {
    ApiError::unavailable("no allocation pass has been reported yet; there is one as soon as the controllers lead")
}

/// `GET /muster/v1/plan`.
pub(super) async fn show(call: &Call) -> Result<Response> {
    match call.state.plan() {
        Some(report) => Ok(json_value(StatusCode::OK, &*report)),
        None => elsewhere(call, no_report).await,
    }
}

/// The leader tells its reports to one server, which need not be this one.
async fn elsewhere(call: &Call, otherwise: fn() -> ApiError) -> Result<Response> {
    let found = peers::ask_others(&call.state, call.headers(), call.parts.uri.path()).await;
    found.ok_or_else(otherwise)
}

fn too_new() -> ApiError {
    ApiError::unavailable("the task is newer than the last allocation pass; ask again")
}

/// `GET /muster/v1/why/NAMESPACE/TASK`.
pub(super) async fn why(call: &Call, asked: &Attributes<'_>, namespace: &str, name: &str) -> Result<Response> {
    // Another server has asked whoever sent it whether they may read the task.
    if auth::wired(&call.user, asked).is_some() {
        call.decide(asked)?;
    } else {
        let resource = &call.state.resources.muster("tasks").resource;
        let task = Target {
            group: resource.group.clone(),
            plural: resource.plural.clone(),
            namespace: namespace.to_owned(),
            ..Target::default()
        };
        call.authorize(&task, "get", name)?;
    }
    resource::catch_up(call).await?;
    let state = &call.state;
    let kind = state.resources.muster("tasks");
    let task = state.hub.get(&keys::object(&kind.stored, namespace, name));
    let task = task.ok_or_else(|| ApiError::not_found(&kind.resource, name))?.json();
    let phase = task["status"]["phase"].as_str().unwrap_or("Pending");
    if phase != "Pending" {
        let agent = task["status"]["agent"]
            .as_str()
            .map(|agent| format!(" on agent {agent}"))
            .unwrap_or_default();
        let message = format!("task \"{name}\" is {phase}{agent}; only pending tasks wait for something");
        return Err(ApiError::absent(message).about(&kind.resource, name));
    }
    let Some(report) = state.plan() else {
        return elsewhere(call, no_report).await;
    };
    let why = report
        .tasks
        .iter()
        .find(|why| why.namespace == namespace && why.task == name);
    let why = why.ok_or_else(too_new)?;
    Ok(json_value(StatusCode::OK, why))
}
