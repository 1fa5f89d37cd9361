//! Namespaces: content can be made in them while they are there, and goes before they go.

use muster_api::names;
use muster_store::{Compare, Op};
use serde_json::{Value, json};

use super::commit::{Guard, GuardedTxn, Outcome};
use super::update::decode;
use super::{Context, Strategy, metadata};
use crate::error::{ApiError, Result};
use crate::keys;

/// The namespaces that are always there.
pub const DEFAULTS: [&str; 3] = [
    names::NAMESPACE_DEFAULT,
    names::NAMESPACE_SYSTEM,
    names::NAMESPACE_AGENTS,
];

/// What keeps a namespace until its content is gone.
const FINALIZER: &str = "kubernetes";

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
        object["spec"] = json!({"finalizers": [FINALIZER]});
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

/// Deletes a namespace whose content is gone. Whether it is gone; other finalizers may keep it.
pub(super) async fn finish(context: &Context<'_>, name: &str) -> Result<bool> {
    let key = keys::namespace(name);
    let Some(entry) = context.state.store.get(&key).await? else {
        return Ok(true);
    };
    let object = decode(&entry)?;
    if object["metadata"]["deletionTimestamp"].is_null() || !metadata::finalizers(&object).is_empty() {
        return Ok(false);
    }
    let mut txn = GuardedTxn::new();
    txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
    txn.write(Op::delete(key));
    Ok(matches!(context.state.commit(txn).await?, Outcome::Done(_)))
}
