//! Writes through a view: a new Pod is a new task, a change of a Node one of an agent.
//!
//! What is sent is said in terms of what is stored ([`crate::views`]) and goes the way of any write from there, so every rule of tasks and agents
//! holds. Rights to views and to what they show are given apart. What must never happen here: a way around a rule of tasks or agents.

use std::sync::Arc;

use axum::response::Response;
use http::StatusCode;
use serde_json::json;

use super::Call;
use super::answer::{Renderer, json_value};
use super::path::Target;
use super::resource::{catch_up, delete_as, namespace_of, read_object};
use crate::body::{self, ContentType, Decoded};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::params::WriteParams;
use crate::patch::Patch;
use crate::registry::fence::Fence;
use crate::registry::{self, Change, Context, Create, Kind, Update, View};
use crate::views;

/// Creates, updates or patches.
pub(super) async fn write(mut call: Call, kind: &Arc<Kind>, target: Target, verb: &'static str) -> Result<Response> {
    if verb == "create" {
        return create(call, kind, target).await;
    }
    call.authorize(&target, verb, &target.name)?;
    let renderer = Renderer::new(&call, kind)?;
    let stored = call.state.resources.muster(&kind.stored.plural).clone();
    let content_type = ContentType::of(call.headers());
    if content_type == ContentType::ApplyPatch {
        return Err(ApiError::unsupported_media_type(format!(
            "a {} is a view of a {}, which can be applied in its place; create views, or use kubectl's client-side apply",
            kind.resource.kind, stored.resource.kind
        )));
    }
    catch_up(&call).await?;
    let object = call
        .state
        .hub
        .get(&keys::object(&kind.stored, &target.namespace, &target.name));
    let object = object.ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?;
    let before = kind.show(object.json_at(object.revision));
    let (mut after, options) = if verb == "update" {
        (read_object(&mut call).await?.value, "UpdateOptions")
    } else {
        let bytes = body::read(call.take_body()).await?;
        (
            Patch::parse(content_type, &bytes)?.apply(&kind.fields, &before)?,
            "PatchOptions",
        )
    };
    registry::identify(kind, &mut after, &target.namespace, &target.name)?;
    let may: &[&str] = if kind.view == View::Nodes {
        &["unschedulable"]
    } else {
        &[]
    };
    let mut change = views::changed(&kind.resource, &before, &after, may)?;
    let version = &after["metadata"]["resourceVersion"];
    if verb == "update" || *version != before["metadata"]["resourceVersion"] {
        change["metadata"]["resourceVersion"] = version.clone();
    }
    let params = WriteParams::new(&call.query, call.headers(), options)?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let update = Update {
        kind: &stored,
        namespace: &target.namespace,
        name: &target.name,
        status: false,
        change: Change::Patch(Patch::parse(ContentType::MergePatch, change.to_string().as_bytes())?),
        params: &params,
    };
    let mut written = update.run(&context).await?;
    written.object = kind.show(written.object);
    Ok(renderer.written(StatusCode::OK, written))
}

async fn create(mut call: Call, kind: &Arc<Kind>, target: Target) -> Result<Response> {
    let renderer = Renderer::new(&call, kind)?;
    let params = WriteParams::new(&call.query, call.headers(), "CreateOptions")?;
    let mut decoded = read_object(&mut call).await?;
    let namespace = namespace_of(kind, &target, &decoded)?;
    registry::identify(kind, &mut decoded.value, &namespace, "")?;
    let pod = &decoded.value;
    let name = pod["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let place = Target {
        namespace: namespace.clone(),
        ..target
    };
    call.authorize(&place, "create", &name)?;
    let refused = |violations| ApiError::invalid_object(&kind.resource, &name, violations);
    let body = Decoded {
        value: views::pod::to_task(pod).map_err(refused)?,
        duplicates: decoded.duplicates,
    };
    let stored = call.state.resources.muster(&kind.stored.plural).clone();
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let create = Create {
        kind: &stored,
        namespace: &namespace,
        body,
        params: &params,
        applied: false,
    };
    let mut written = create.run(&context).await?;
    written.object = kind.show(written.object);
    Ok(renderer.written(StatusCode::CREATED, written))
}

/// Ends a task, by the options of the eviction. There are no budgets that could be in the way.
pub(super) async fn evict(mut call: Call, kind: &Kind, target: Target) -> Result<Response> {
    let eviction = read_object(&mut call).await?.value;
    let named = eviction["metadata"]["name"].as_str().unwrap_or(&target.name);
    if named != target.name {
        let message = format!("the eviction is of {named}, and was sent to {}", target.name);
        return Err(ApiError::bad_request(message));
    }
    delete_as(&call, kind, &target, &eviction["deleteOptions"]).await?;
    let status = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201});
    Ok(json_value(StatusCode::CREATED, &status))
}
