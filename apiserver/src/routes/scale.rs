//! The subresource `scale`: how many there are and shall be of what an object stands for, without knowing its kind.
//!
//! A `Scale` is a view: it is made of the object's own fields, and a change of it is a change of the object.

use std::sync::Arc;

use axum::response::Response;
use http::{Method, StatusCode};
use muster_api::validation::{FieldPath, Violations};
use serde_json::{Value, json};

use super::Call;
use super::answer::json_value;
use super::path::Target;
use super::resource::{catch_up, read_object};
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::limits;
use crate::params::WriteParams;
use crate::patch::Patch;
use crate::registry::fence::Fence;
use crate::registry::{Change, Context, Kind, Update};
use crate::resource::ScalePaths;

const API_VERSION: &str = "autoscaling/v1";

/// What somebody wants to do with a scale.
enum Wanted {
    /// All of it is sent.
    Whole(Value),
    /// Only what is different is sent.
    Patch(Patch),
}

/// Reads or changes the scale of an object.
pub(super) async fn handle(mut call: Call, kind: Arc<Kind>, target: Target, paths: ScalePaths) -> Result<Response> {
    let verb = match call.parts.method {
        Method::GET | Method::HEAD => "get",
        Method::PUT => "update",
        Method::PATCH => "patch",
        _ => {
            let message = "the server does not allow this method on the requested resource";
            return Err(ApiError::method_not_allowed(message));
        }
    };
    call.authorize(&target, verb, &target.name)?;
    let wanted = match verb {
        "get" => {
            let object = read(&call, &kind, &target).await?;
            return Ok(json_value(StatusCode::OK, &scale_of(&object, &paths)));
        }
        "update" => Wanted::Whole(read_object(&mut call).await?.value),
        _ => {
            let content_type = ContentType::of(call.headers());
            let bytes = body::read(call.take_body()).await?;
            Wanted::Patch(match content_type {
                // Nobody owns a part of a view: what is applied is what is different.
                ContentType::ApplyPatch => Patch::Merge(body::applied(&bytes)?.value, Vec::new()),
                other => Patch::parse(other, &bytes)?,
            })
        }
    };
    let written = change(&call, &kind, &target, &paths, &wanted).await?;
    Ok(json_value(StatusCode::OK, &scale_of(&written, &paths)))
}

/// The object, as this version of its kind shows it.
async fn read(call: &Call, kind: &Kind, target: &Target) -> Result<Value> {
    catch_up(call).await?;
    let object = call
        .state
        .hub
        .get(&keys::object(&kind.stored, &target.namespace, &target.name));
    let object = object.ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?;
    Ok(kind.show(object.json()))
}

async fn change(call: &Call, kind: &Kind, target: &Target, paths: &ScalePaths, wanted: &Wanted) -> Result<Value> {
    let params = WriteParams::new(&call.query, call.headers(), "UpdateOptions")?;
    let fence = Fence::of(call.headers(), &call.user)?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    for _ in 0..limits::WRITE_ATTEMPTS {
        let object = read(call, kind, target).await?;
        let scale = scale_of(&object, paths);
        let (asked, based_on) = match wanted {
            Wanted::Whole(asked) => (asked.clone(), &asked["metadata"]["resourceVersion"]),
            Wanted::Patch(patch) => (patch.apply(&kind.fields, &scale)?, &Value::Null),
        };
        check(kind, target, &asked)?;
        let sent = based_on.as_str().filter(|version| !version.is_empty());
        let version = sent.map_or_else(
            || asked["metadata"]["resourceVersion"].clone(),
            |version| json!(version),
        );
        let version = if version.is_null() {
            object["metadata"]["resourceVersion"].clone()
        } else {
            version
        };
        let mut patch = nested(&paths.wanted, asked["spec"]["replicas"].as_i64().unwrap_or(0).into());
        patch["metadata"] = json!({"resourceVersion": version, "uid": object["metadata"]["uid"]});
        let update = Update {
            kind,
            namespace: &target.namespace,
            name: &target.name,
            status: false,
            change: Change::Patch(Patch::Merge(patch, Vec::new())),
            params: &params,
        };
        // Whoever named no version does not mind what came in between.
        let may_retry = sent.is_none() && version == object["metadata"]["resourceVersion"];
        match update.run(&context).await {
            Err(error) if error.reason == "Conflict" && may_retry => (),
            other => return other.map(|written| written.object),
        }
    }
    Err(ApiError::too_many_requests(
        "the object changes too often; try again",
        1,
    ))
}

fn check(kind: &Kind, target: &Target, scale: &Value) -> Result<()> {
    let name = &scale["metadata"]["name"];
    if name
        .as_str()
        .is_some_and(|name| !name.is_empty() && name != target.name)
    {
        let message = format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            target.name
        );
        return Err(ApiError::bad_request(message));
    }
    let replicas = &scale["spec"]["replicas"];
    if replicas.is_null() || replicas.as_i64().is_some_and(|replicas| replicas >= 0) {
        return Ok(());
    }
    let mut violations = Violations::new();
    let path = FieldPath::root("spec").field("replicas");
    violations.invalid(&path, replicas, "must be a whole number, zero or more");
    Err(
        ApiError::invalid("Scale", "autoscaling", &target.name, violations.into_vec())
            .about(&kind.resource, &target.name),
    )
}

fn scale_of(object: &Value, paths: &ScalePaths) -> Value {
    let at = |path: &str| path.split('.').try_fold(object, |value, step| value.get(step));
    let count = |path: &str| at(path).and_then(Value::as_i64).unwrap_or(0);
    let metadata = &object["metadata"];
    let mut scale = json!({
        "kind": "Scale",
        "apiVersion": API_VERSION,
        "metadata": {
            "name": metadata["name"],
            "uid": metadata["uid"],
            "resourceVersion": metadata["resourceVersion"],
            "creationTimestamp": metadata["creationTimestamp"],
        },
        "spec": {"replicas": count(&paths.wanted)},
        "status": {"replicas": count(&paths.present)},
    });
    if metadata["namespace"].is_string() {
        scale["metadata"]["namespace"] = metadata["namespace"].clone();
    }
    if let Some(selector) = at(&paths.selector).and_then(Value::as_str) {
        scale["status"]["selector"] = json!(selector);
    }
    scale
}

/// An object that has nothing but this value, at that path.
fn nested(path: &str, value: Value) -> Value {
    path.rsplit('.').fold(value, |value, step| json!({step: value}))
}
