//! Reviews: objects that ask something, are answered, and are kept by nobody. Who am I, may I, may they, whose token is this.
//!
//! What must never happen here: an answer that differs from what [`auth::decide`] does with the request itself.

use axum::response::Response;
use http::StatusCode;
use serde_json::{Value, json};

use super::answer::json_value;
use super::path::Target;
use super::{Call, accounts};
use crate::auth::{self, AUTHENTICATED, Attributes, Decision, User};
use crate::body::{self, ContentType};
use crate::error::{ApiError, Result};
use crate::rbac::{self, Rule};
use crate::registry::Kind;
use crate::schema;

/// Answers a review, if its sender may ask.
pub(super) async fn answer(mut call: Call, kind: &Kind, target: Target) -> Result<Response> {
    call.authorize(&target, "create", "")?;
    let mut review = read(&mut call).await?;
    review["apiVersion"] = json!(kind.resource.api_version());
    review["kind"] = json!(kind.resource.kind);
    if !review["metadata"].is_object() {
        review["metadata"] = json!({});
    }
    // Clients send one without what it must have.
    if let Some(review) = review.as_object_mut() {
        review.remove("status");
    }
    // What is answered is what was asked, completed.
    let violations = schema::check(&kind.resource, &mut review).violations;
    if !violations.is_empty() {
        return Err(ApiError::invalid_object(&kind.resource, "", violations));
    }
    let status = match kind.resource.kind.as_str() {
        "TokenReview" => accounts::review(&call, &review["spec"]).await?,
        "SelfSubjectReview" => json!({"userInfo": info(&call.user)}),
        "SelfSubjectAccessReview" => access(&call, &call.user, &review["spec"], None)?,
        "SelfSubjectRulesReview" => rules(&call, &review["spec"])?,
        "SubjectAccessReview" => access(&call, &subject(&review["spec"])?, &review["spec"], None)?,
        "LocalSubjectAccessReview" => {
            let namespace = Some(target.namespace.as_str());
            access(&call, &subject(&review["spec"])?, &review["spec"], namespace)?
        }
        _ => return Err(ApiError::unknown_path()),
    };
    review["status"] = status;
    Ok(json_value(StatusCode::CREATED, &review))
}

/// The body, which must be an object or nothing.
pub(super) async fn read(call: &mut Call) -> Result<Value> {
    let content_type = ContentType::of(call.headers());
    let bytes = body::read(call.take_body()).await?;
    if bytes.is_empty() {
        return Ok(json!({}));
    }
    Ok(body::object(content_type, &bytes)?.value)
}

/// Texts of a list.
pub(super) fn texts(value: &Value) -> Vec<String> {
    let items = value.as_array().into_iter().flatten();
    items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
}

/// A user as reviews show one.
pub(super) fn info(user: &User) -> Value {
    let mut groups = user.groups.clone();
    if !user.is_anonymous() && !user.in_group(AUTHENTICATED) {
        groups.push(AUTHENTICATED.to_owned());
    }
    let mut info = json!({"username": user.name, "groups": groups});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// Whom a review asks about.
fn subject(spec: &Value) -> Result<User> {
    let user = User {
        name: spec["user"].as_str().unwrap_or_default().to_owned(),
        groups: texts(&spec["groups"]),
        ..User::default()
    };
    if user.name.is_empty() && user.groups.is_empty() {
        return Err(ApiError::bad_request(
            "spec: at least one of user or groups must be given",
        ));
    }
    Ok(user)
}

fn access(call: &Call, user: &User, spec: &Value, namespace: Option<&str>) -> Result<Value> {
    let (resource, path) = (&spec["resourceAttributes"], &spec["nonResourceAttributes"]);
    if resource.is_object() == path.is_object() {
        let message = "spec: exactly one of resourceAttributes and nonResourceAttributes must be given";
        return Err(ApiError::bad_request(message));
    }
    fn text<'a>(value: &'a Value, field: &str) -> &'a str {
        value[field].as_str().unwrap_or_default()
    }
    let asked = if resource.is_object() {
        if namespace.is_some_and(|namespace| namespace != text(resource, "namespace")) {
            let message = "spec.resourceAttributes.namespace must be the namespace of the review";
            return Err(ApiError::bad_request(message));
        }
        Attributes {
            verb: text(resource, "verb"),
            group: text(resource, "group"),
            resource: text(resource, "resource"),
            subresource: text(resource, "subresource"),
            namespace: text(resource, "namespace"),
            name: text(resource, "name"),
            path: "",
        }
    } else {
        Attributes {
            verb: text(path, "verb"),
            path: text(path, "path"),
            ..Attributes::default()
        }
    };
    Ok(match call.state.authorizer.decide(user, &asked) {
        Decision::Allowed(why) => json!({"allowed": true, "reason": why.to_string()}),
        Decision::Refused(said) if said.is_empty() => json!({"allowed": false}),
        Decision::Refused(said) => json!({"allowed": false, "reason": said}),
    })
}

/// What the sender may do in a namespace: everything that rules say, and that there is more if the fixed table says more.
fn rules(call: &Call, spec: &Value) -> Result<Value> {
    let namespace = spec["namespace"].as_str().unwrap_or_default();
    if namespace.is_empty() {
        return Err(ApiError::bad_request("spec.namespace: no namespace on request"));
    }
    let compiled = call.state.authorizer.rules();
    let (mut rules, without) = compiled.of(&call.user, namespace);
    if call.user.is_master() {
        rules.extend([Rule::of(&["*"], &["*"], &["*"]), Rule::of_paths(&["*"], &["*"])]);
    }
    let rules = rbac::compact(rules);
    let (paths, kinds): (Vec<&Rule>, Vec<&Rule>) = rules.iter().partition(|rule| !rule.paths.is_empty());
    let json = |rules: Vec<&Rule>| -> Vec<Value> { rules.into_iter().map(Rule::json).collect() };
    let anything = Attributes {
        verb: "get",
        group: "*",
        resource: "*",
        namespace,
        ..Attributes::default()
    };
    let wired = !call.user.is_master() && auth::wired(&call.user, &anything).is_some();
    let mut status = json!({
        "resourceRules": json(kinds),
        "nonResourceRules": json(paths),
        "incomplete": wired || !without.is_empty(),
    });
    let not_found = rbac::not_found(&without);
    if wired {
        status["evaluationError"] = json!("the server itself allows this user more, which no role says");
    } else if !not_found.is_empty() {
        status["evaluationError"] = json!(not_found.trim_start_matches("RBAC: "));
    }
    Ok(status)
}
