//! Custom kinds: what is special about objects whose kind is defined by an object.
//!
//! Versions differ in their schema and in nothing else: an object is stored with the name of one version and shown with that of
//! another, pruned and completed by the other's schema. Their rules come with the schema.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{Context, Guard, GuardedTxn, Strategy};
use crate::custom::Definition;
use crate::error::{ApiError, Result};
use crate::resource::Resource;
use crate::schema;

use muster_store::Compare;

struct Custom {
    definition: Arc<Definition>,
}

/// The strategy of all versions of a kind.
pub(crate) fn strategy(definition: &Arc<Definition>) -> Arc<dyn Strategy> {
    Arc::new(Custom {
        definition: definition.clone(),
    })
}

/// A stored object in the version of `resource`.
pub(super) fn show(resource: &Resource, mut stored: Value) -> Value {
    stored["apiVersion"] = json!(resource.api_version());
    stored["kind"] = json!(resource.kind);
    // What is wrong with it by now is said when somebody writes it.
    schema::check(resource, &mut stored);
    stored
}

/// An object of any version, as it is stored.
pub(super) fn store(stored: &Resource, mut shown: Value) -> Value {
    shown["apiVersion"] = json!(stored.api_version());
    shown["kind"] = json!(stored.kind);
    shown
}

impl Strategy for Custom {
    fn prepare_create(&self, _: &Context<'_>, _: &mut Value) -> Result<()> {
        if self.definition.terminating {
            let message = "create not allowed while custom resource definition is terminating";
            return Err(ApiError::method_not_allowed(message));
        }
        Ok(())
    }

    fn guard(&self, _: &Context<'_>, txn: &mut GuardedTxn, _: Option<&Value>, new: Option<&Value>) -> Result<()> {
        if new.is_some() {
            let Definition { key, revision, .. } = &*self.definition;
            txn.compare(Compare::modified(key.clone(), *revision), Guard::Definition);
        }
        Ok(())
    }
}
