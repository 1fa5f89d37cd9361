//! Namespaces: content can be made in them while they are there, and goes before they go.
//!
//! From the moment that a namespace is marked as deleted, nothing can be made in it; every creation compares the revision of its
//! namespace. Emptying it is the controllers' work; [`finalize`] is how they say that it is done.

use muster_api::names;
use muster_api::validation::{FieldPath, Violations};
use muster_store::{Compare, Op};
use serde_json::{Value, json};

use super::admit::encode;
use super::commit::{Guard, GuardedTxn, Outcome};
use super::update::decode;
use super::{Context, Kind, Strategy, Written, metadata};
use crate::error::{ApiError, Result};
use crate::keys;
use crate::limits;

/// The namespaces that are always there.
pub const DEFAULTS: [&str; 3] = [
    names::NAMESPACE_DEFAULT,
    names::NAMESPACE_SYSTEM,
    names::NAMESPACE_AGENTS,
];

pub(super) struct Namespaces;

impl Strategy for Namespaces {
    fn counts_generations(&self) -> bool {
        false
    }

    fn unconditional_update(&self) -> bool {
        true
    }

    fn name_problem(&self, name: &str) -> Option<String> {
        names::dns_label_problem(name)
    }

    fn prepare_create(&self, _: &Context<'_>, object: &mut Value) -> Result<()> {
        let name = metadata::text(object, "name").to_owned();
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(name);
        object["spec"] = json!({"finalizers": [names::FINALIZER_NAMESPACE]});
        object["status"] = json!({"phase": "Active"});
        Ok(())
    }

    fn prepare_update(&self, _: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        object["metadata"]["labels"]["kubernetes.io/metadata.name"] = json!(metadata::text(old, "name"));
        object["spec"] = old["spec"].clone();
        Ok(())
    }

    fn prepare_status(&self, _: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        if !object["status"].is_object() {
            object["status"] = json!({});
        }
        object["status"]["phase"] = old["status"]["phase"].clone();
        Ok(())
    }

    fn prepare_delete(&self, _: &Context<'_>, object: &Value) -> Result<()> {
        let name = metadata::text(object, "name");
        if DEFAULTS.contains(&name) {
            let message = format!("namespaces \"{name}\" is forbidden: this namespace may not be deleted");
            return Err(ApiError::forbidden(message));
        }
        Ok(())
    }

    fn mark_deleted(&self, object: &mut Value) {
        object["status"]["phase"] = json!("Terminating");
    }

    fn holds_deletion(&self, object: &Value) -> bool {
        object["spec"]["finalizers"]
            .as_array()
            .is_some_and(|finalizers| !finalizers.is_empty())
    }
}

/// Replaces what keeps a namespace, and deletes it when nothing does any more. That its content is gone is for the caller to know.
pub(crate) async fn finalize(
    context: &Context<'_>,
    kind: &Kind,
    name: &str,
    mut sent: Value,
    dry_run: bool,
) -> Result<Written> {
    metadata::identify(kind, &mut sent, "", name)?;
    let finalizers = match &sent["spec"]["finalizers"] {
        Value::Null => Vec::new(),
        Value::Array(items) if items.iter().all(|item| item.as_str().is_some_and(is_finalizer)) => items.clone(),
        other => {
            let mut violations = Violations::new();
            let path = FieldPath::root("spec").field("finalizers");
            violations.invalid(&path, other, "must be a list of qualified names");
            return Err(ApiError::invalid_object(&kind.resource, name, violations.into_vec()));
        }
    };
    for _ in 0..limits::WRITE_ATTEMPTS {
        if let Some(written) = try_finalize(context, kind, name, &sent, &finalizers, dry_run).await? {
            return Ok(written);
        }
    }
    Err(ApiError::too_many_requests(
        "the namespace changes too often; try again",
        1,
    ))
}

fn is_finalizer(name: &str) -> bool {
    names::qualified_name_problem(name).is_none()
}

async fn try_finalize(
    context: &Context<'_>,
    kind: &Kind,
    name: &str,
    sent: &Value,
    finalizers: &[Value],
    dry_run: bool,
) -> Result<Option<Written>> {
    let key = keys::namespace(name);
    let entry = context.state.store.get(&key).await?;
    let entry = entry.ok_or_else(|| ApiError::not_found(&kind.resource, name))?;
    let old = decode(&entry)?;
    for field in ["uid", "resourceVersion"] {
        let wanted = metadata::text(sent, field);
        if !wanted.is_empty() && wanted != metadata::text(&old, field) {
            return Err(ApiError::modified(&kind.resource, name));
        }
    }
    let mut object = old.clone();
    object["spec"]["finalizers"] = json!(finalizers);
    let deleted = !old["metadata"]["deletionTimestamp"].is_null()
        && finalizers.is_empty()
        && metadata::finalizers(&old).is_empty();
    let mut txn = GuardedTxn::new();
    txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
    if let Some(fence) = context.fence {
        fence.guard(&mut txn);
    }
    let changed = deleted || object != old;
    if deleted {
        txn.write(Op::delete(key));
    } else if changed {
        txn.write(Op::put(key, encode(kind, &object)?));
    }
    if !dry_run && (changed || context.fence.is_some()) {
        match context.state.commit(txn).await? {
            Outcome::Done(revision) if changed => {
                object["metadata"]["resourceVersion"] = json!(revision.to_string());
            }
            Outcome::Done(_) => (),
            Outcome::Lost(_) => return Ok(None),
        }
    }
    Ok(Some(Written {
        object,
        warnings: Vec::new(),
        deleted: deleted && !dry_run,
    }))
}
