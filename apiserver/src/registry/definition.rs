//! Definitions of custom kinds: they get their names in the transaction that writes them, and go when their objects are gone.
//!
//! Its status is derived from what it asks for and from what others have, here and nowhere else, whoever writes it.

use muster_api::validation::{FieldPath, Violation, Violations};
use muster_store::Revision;
use serde_json::{Value, json};

use super::{Context, GuardedTxn, Strategy, metadata};
use crate::custom::{self, DEFINITIONS, FINALIZER, Taken};
use crate::error::{ApiError, Result};
use crate::hub::{Filter, Part};

pub(super) struct Definitions;

/// The names that others have in the group of `definition`, and when that was so.
fn taken(context: &Context<'_>, definition: &Value) -> (Taken, Revision) {
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let mut taken = Taken::default();
    let resources = &context.state.resources;
    let Some(kind) = resources.stored(DEFINITIONS) else {
        return (taken, 0);
    };
    let found = context.hub().list(kind.id, &Filter::all(None), &Part::default());
    let name = metadata::text(definition, "name");
    for other in found
        .objects
        .iter()
        .filter(|other| other.name() != name && other.name().ends_with(group))
    {
        let other = other.json();
        if other["spec"]["group"] == group {
            taken.add(&other);
        }
    }
    (taken, found.revision)
}

/// The paths of the server's own groups are its own.
fn refuse_own_group(context: &Context<'_>, definition: &Value) -> Result<()> {
    let resources = &context.state.resources;
    let group = definition["spec"]["group"].as_str().unwrap_or_default();
    let own = resources.built_in().iter().any(|kind| kind.resource.group == group);
    if group.is_empty() || !own {
        return Ok(());
    }
    let mut violations = Violations::new();
    let path = FieldPath::root("spec").field("group");
    violations.forbidden(
        &path,
        &format!("the group \"{group}\" has the server's own kinds; choose one of your own"),
    );
    let kind = resources.stored(DEFINITIONS).ok_or_else(ApiError::unknown_path)?;
    Err(ApiError::invalid_object(
        &kind.resource,
        metadata::text(definition, "name"),
        violations.into_vec(),
    ))
}

fn derive(context: &Context<'_>, object: &mut Value) {
    let (taken, _) = taken(context, object);
    let status = custom::status(object, &taken, &metadata::seconds(context.now));
    object["status"] = status;
}

/// A definition does not go before its objects, whoever forgets to say so.
fn hold(object: &mut Value) {
    let mut finalizers = object["metadata"]["finalizers"].as_array().cloned().unwrap_or_default();
    if !finalizers.contains(&json!(FINALIZER)) {
        finalizers.push(json!(FINALIZER));
        object["metadata"]["finalizers"] = json!(finalizers);
    }
}

/// What is the same for all who leave it out.
fn complete(object: &mut Value) {
    let spec = &mut object["spec"];
    let kind = spec["names"]["kind"].as_str().unwrap_or_default().to_owned();
    let defaults = [("singular", kind.to_lowercase()), ("listKind", format!("{kind}List"))];
    for (field, default) in defaults {
        if spec["names"][field].as_str().is_none_or(str::is_empty) {
            spec["names"][field] = json!(default);
        }
    }
    if spec["conversion"].is_null() {
        spec["conversion"] = json!({"strategy": "None"});
    }
    if spec["preserveUnknownFields"] == false {
        spec.as_object_mut()
            .and_then(|spec| spec.remove("preserveUnknownFields"));
    }
    for version in spec["versions"].as_array_mut().into_iter().flatten() {
        if let Some(schema) = version.pointer_mut("/schema/openAPIV3Schema") {
            custom::forget_unknown(schema);
        }
    }
}

impl Strategy for Definitions {
    fn prepare_create(&self, context: &Context<'_>, object: &mut Value) -> Result<()> {
        refuse_own_group(context, object)?;
        complete(object);
        hold(object);
        derive(context, object);
        Ok(())
    }

    fn prepare_update(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        complete(object);
        if old["metadata"]["deletionTimestamp"].is_null() {
            hold(object);
        }
        derive(context, object);
        Ok(())
    }

    fn prepare_status(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        // Whoever has rewritten all objects says so here; everything else follows from the definition.
        let stored = object["status"]["storedVersions"].take();
        object["status"] = old["status"].clone();
        if stored.is_array() {
            object["status"]["storedVersions"] = stored;
        }
        derive(context, object);
        Ok(())
    }

    fn mark_deleted(&self, object: &mut Value) {
        let condition = json!({
            "type": "Terminating",
            "status": "True",
            "reason": "InstanceDeletionInProgress",
            "message": "the objects of the kind are being deleted",
            "lastTransitionTime": object["metadata"]["deletionTimestamp"],
        });
        if let Some(conditions) = object["status"]["conditions"].as_array_mut() {
            conditions.retain(|known| known["type"] != "Terminating");
            conditions.push(condition);
        }
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        custom::problems(object)
    }

    fn validate_update(&self, object: &Value, old: &Value) -> Vec<Violation> {
        custom::changes(object, old)
    }

    fn guard(
        &self,
        context: &Context<'_>,
        txn: &mut GuardedTxn,
        old: Option<&Value>,
        new: Option<&Value>,
    ) -> Result<()> {
        let names = |object: Option<&Value>| object.map(|object| object["status"]["acceptedNames"].clone());
        if names(old) == names(new) {
            return Ok(());
        }
        let Some(object) = new.or(old) else { return Ok(()) };
        let (taken, revision) = taken(context, object);
        if new.is_some() && custom::accept(object, &taken).0 != object["status"]["acceptedNames"] {
            return Err(ApiError::too_many_requests(
                "the names of the group have just changed; try again",
                1,
            ));
        }
        txn.claim_names(object["spec"]["group"].as_str().unwrap_or_default(), revision);
        Ok(())
    }
}
