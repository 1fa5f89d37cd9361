//! Nobody gives what they do not have: what a role says, and what a binding gives, must be allowed to its writer already.
//!
//! Whoever may `escalate` roles, or `bind` a certain one, is trusted with that. The texts are those of Kubernetes, which people search for.

use serde_json::Value;

use super::{Context, Kind, metadata};
use crate::auth::Attributes;
use crate::error::{ApiError, Result};
use crate::rbac::{self, CLUSTER_ROLES, GROUP, ROLES, Rule};

/// Whether the writer may do that.
fn may(context: &Context<'_>, verb: &str, resource: &str, namespace: &str, name: &str) -> bool {
    let asked = Attributes {
        verb,
        group: GROUP,
        resource,
        namespace,
        name,
        ..Attributes::default()
    };
    context.state.authorizer.decide(context.user, &asked).is_allowed()
}

/// Why the writer gives more than they have; `None`: they do not.
fn lacking(context: &Context<'_>, namespace: &str, rules: &[Rule]) -> Option<String> {
    if context.user.is_master() {
        return None;
    }
    let compiled = context.state.authorizer.rules();
    let (own, without) = compiled.of(context.user, namespace);
    let missing = rbac::missing(&own, rules);
    if missing.is_empty() {
        return None;
    }
    let mut lines: Vec<String> = missing.iter().map(Rule::describe).collect();
    lines.sort();
    let user = context.user;
    let errors = match rbac::not_found(&without) {
        none if none.is_empty() => none,
        some => format!("; resolution errors: [{}]", some.trim_start_matches("RBAC: ")),
    };
    Some(format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}{errors}",
        user.name,
        rbac::quoted(&user.groups),
        lines.join("\n"),
    ))
}

fn forbidden(kind: &Kind, name: &str, why: &str) -> ApiError {
    ApiError::forbidden_object(&kind.resource, name, why)
}

/// Whether nothing but what garbage collection changes is different. A label is more than that: it may put a role into another.
fn only_collected(object: &Value, old: &Value) -> bool {
    let rest = |object: &Value| {
        let mut object = object.clone();
        if let Some(metadata) = object["metadata"].as_object_mut() {
            metadata.retain(|name, _| name != "finalizers" && name != "ownerReferences");
        }
        object
    };
    rest(object) == rest(old)
}

/// Refuses a role, or a change of one, that allows more than its writer is allowed.
pub(super) fn check_role(context: &Context<'_>, kind: &Kind, object: &Value, old: Option<&Value>) -> Result<()> {
    if old.is_some_and(|old| only_collected(object, old)) {
        return Ok(());
    }
    let (namespace, name) = (metadata::text(object, "namespace"), metadata::text(object, "name"));
    if may(context, "escalate", &kind.resource.plural, namespace, name) {
        return Ok(());
    }
    if !object["aggregationRule"].is_null() || old.is_some_and(|old| !old["aggregationRule"].is_null()) {
        let everything = [Rule::of(&["*"], &["*"], &["*"]), Rule::of_paths(&["*"], &["*"])];
        if lacking(context, namespace, &everything).is_some() {
            let why = "must have cluster-admin privileges to use the aggregationRule";
            return Err(forbidden(kind, name, why));
        }
    }
    match lacking(context, namespace, &Rule::read_all(&object["rules"])) {
        None => Ok(()),
        Some(why) => Err(forbidden(kind, name, &why)),
    }
}

/// Refuses a binding, or a change of one, that gives more than its writer has.
pub(super) fn check_binding(context: &Context<'_>, kind: &Kind, object: &Value, old: Option<&Value>) -> Result<()> {
    if old.is_some_and(|old| only_collected(object, old)) {
        return Ok(());
    }
    let (namespace, name) = (metadata::text(object, "namespace"), metadata::text(object, "name"));
    let text = |field: &str| object["roleRef"][field].as_str().unwrap_or_default();
    let (role_kind, role) = (text("kind"), text("name"));
    let plural = if role_kind == "Role" { ROLES } else { CLUSTER_ROLES };
    if may(context, "bind", plural, namespace, role) {
        return Ok(());
    }
    let rules = context.state.authorizer.rules();
    let Some(rules) = rules.role(namespace, role_kind, role) else {
        let message = format!("{plural}.{GROUP} {role:?} not found");
        return Err(ApiError::absent(message));
    };
    match lacking(context, namespace, rules) {
        None => Ok(()),
        Some(why) => Err(forbidden(kind, name, &why)),
    }
}
