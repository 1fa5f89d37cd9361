//! What is asked of service accounts: a token, and whose a token is.

use axum::response::Response;
use http::{Method, StatusCode};
use k8s_openapi::api::authentication::v1::TokenRequest;
use muster_api::validation::{FieldPath, Violations};
use serde_json::{Value, json};

use super::answer::json_value;
use super::path::Target;
use super::reviews::{read, texts};
use super::{Call, identify, resource, reviews};
use crate::accounts::{Bound, Wish};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::registry::Kind;
use crate::schema;

/// How long a token counts when nobody says.
const SECONDS: i64 = 3600;
/// The shortest and the longest time that can be wished for, as in Kubernetes.
const SECONDS_LEAST: i64 = 600;
const SECONDS_MOST: i64 = 1 << 32;

/// `POST …/serviceaccounts/NAME/token`.
pub(super) async fn token(mut call: Call, kind: &Kind, target: Target) -> Result<Response> {
    let mut request = read(&mut call).await?;
    if let Err(violation) = schema::typed::<TokenRequest>(&request) {
        let violations = vec![violation];
        return Err(ApiError::invalid(
            "TokenRequest",
            "authentication.k8s.io",
            &target.name,
            violations,
        ));
    }
    resource::catch_up(&call).await?;
    let account = call
        .state
        .hub
        .get(&keys::object(&kind.stored, &target.namespace, &target.name))
        .ok_or_else(|| ApiError::not_found(&kind.resource, &target.name))?
        .json();
    let spec = &request["spec"];
    let seconds = match &spec["expirationSeconds"] {
        Value::Null => SECONDS,
        value => value.as_i64().unwrap_or(0),
    };
    let mut violations = Violations::new();
    let path = FieldPath::root("spec");
    if seconds < SECONDS_LEAST {
        let why = "may not specify a duration less than 10 minutes";
        violations.invalid(&path.field("expirationSeconds"), seconds, why);
    } else if seconds > SECONDS_MOST {
        let why = "may not specify a duration larger than 2^32 seconds";
        violations.invalid(&path.field("expirationSeconds"), seconds, why);
    }
    let bound = bound(&call, &target.namespace, &spec["boundObjectRef"], &mut violations);
    if !violations.is_empty() {
        let violations = violations.into_vec();
        let error = ApiError::invalid("TokenRequest", "authentication.k8s.io", &target.name, violations);
        return Err(error);
    }
    let uid = account["metadata"]["uid"].as_str().unwrap_or_default();
    let wish = Wish {
        account: (target.namespace.clone(), target.name.clone(), uid.to_owned()),
        audiences: texts(&spec["audiences"]),
        seconds,
        bound,
    };
    let accounts = &call.state.accounts;
    if wish.audiences.is_empty() {
        request["spec"]["audiences"] = json!([accounts.issuer()]);
    }
    let (token, expires) = accounts.issue(wish, &*call.state.env)?;
    request["spec"]["expirationSeconds"] = json!(seconds);
    request["apiVersion"] = json!("authentication.k8s.io/v1");
    request["kind"] = json!("TokenRequest");
    request["metadata"] = json!({
        "name": target.name,
        "namespace": target.namespace,
        "creationTimestamp": seconds_of(call.state.env.now()),
    });
    request["status"] = json!({"token": token, "expirationTimestamp": seconds_of(expires)});
    tracing::info!(
        user = call.user.name,
        namespace = target.namespace,
        account = target.name,
        seconds,
        "a token was issued"
    );
    Ok(json_value(StatusCode::CREATED, &request))
}

/// The object that a token is to be bound to, which must be the one that is meant.
fn bound(
    call: &Call,
    namespace: &str,
    reference: &Value,
    violations: &mut Violations,
) -> Option<(Bound, String, String)> {
    if reference.is_null() {
        return None;
    }
    let path = FieldPath::root("spec").field("boundObjectRef");
    let text = |field: &str| reference[field].as_str().unwrap_or_default();
    let bound = match (text("apiVersion"), text("kind")) {
        ("" | "v1", "Secret") => Bound::Secret,
        ("" | muster_api::names::API_VERSION, "Task") => Bound::Task,
        (_, other) => {
            violations.not_supported(&path.field("kind"), other, &["Secret", "Task"]);
            return None;
        }
    };
    let (name, uid) = (text("name").to_owned(), text("uid"));
    let kind = bound.kind(&call.state)?;
    let found = call.state.hub.get(&keys::object(&kind.stored, namespace, &name));
    let found = found.map(|object| object.json()["metadata"]["uid"].as_str().unwrap_or_default().to_owned());
    match found {
        Some(found) if uid.is_empty() || uid == found => Some((bound, name, found)),
        Some(_) => {
            violations.invalid(&path.field("uid"), uid, "the object of this name has another uid");
            None
        }
        None => {
            violations.invalid(&path.field("name"), &name, "there is no such object");
            None
        }
    }
}

/// What is said of the token of a review.
pub(super) async fn review(call: &Call, spec: &Value) -> Result<Value> {
    resource::catch_up(call).await?;
    let token = spec["token"].as_str().unwrap_or_default();
    let found = match token {
        "" => Err(ApiError::unauthorized()),
        token => identify(&call.state, token, &texts(&spec["audiences"])),
    };
    Ok(match found {
        Ok((user, audiences)) => json!({"authenticated": true, "user": reviews::info(&user), "audiences": audiences}),
        Err(_) => json!({"authenticated": false, "user": {}, "error": "the token is not known, or its time is over"}),
    })
}

/// `GET /openid/v1/jwks` and `GET /.well-known/openid-configuration`.
pub(super) fn document(call: &Call, path: &str) -> Option<Response> {
    if call.parts.method != Method::GET && call.parts.method != Method::HEAD {
        return None;
    }
    let accounts = &call.state.accounts;
    match path {
        "/openid/v1/jwks" => Some(json_value(StatusCode::OK, &accounts.key_set())),
        "/.well-known/openid-configuration" => Some(json_value(StatusCode::OK, &accounts.configuration())),
        _ => None,
    }
}

fn seconds_of(time: muster_api::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}
