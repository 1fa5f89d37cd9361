//! Changing objects: replacing and patching them, whole or only their status.

use muster_store::{Compare, Entry, Op};
use serde_json::{Value, json};

use super::admit::{Admission, Origin, encode};
use super::commit::{Guard, GuardedTxn, Outcome};
use super::owners::{self, Application, Note};
use super::{Context, Kind, Written, fence, metadata};
use crate::body::Decoded;
use crate::error::{ApiError, Result};
use crate::keys;
use crate::limits;
use crate::params::WriteParams;
use crate::patch::Patch;

/// What is to be changed.
#[derive(Clone, Debug)]
pub enum Change {
    /// Everything is sent anew.
    Replace(Decoded),
    /// Only what is different is sent.
    Patch(Patch),
    /// Everything that the sender has an opinion about is sent.
    Apply(Application),
}

/// A change of an object.
pub struct Update<'a> {
    /// Of which kind.
    pub kind: &'a Kind,
    /// Where; empty for kinds without namespaces.
    pub namespace: &'a str,
    /// Which.
    pub name: &'a str,
    /// Whether only the status is changed, or only everything else.
    pub status: bool,
    /// What.
    pub change: Change,
    /// How.
    pub params: &'a WriteParams,
}

/// The stored form of an entry, with its version.
pub(crate) fn decode(entry: &Entry) -> Result<Value> {
    let mut object: Value = serde_json::from_slice(&entry.value)
        .map_err(|error| ApiError::internal(format!("what is stored at {} is no object: {error}", entry.key)))?;
    object["metadata"]["resourceVersion"] = json!(entry.mod_revision.to_string());
    Ok(object)
}

impl Update<'_> {
    /// Makes the change. One that names no version is tried again when others get in between.
    pub async fn run(&self, context: &Context<'_>) -> Result<Written> {
        for _ in 0..limits::WRITE_ATTEMPTS {
            if let Some(written) = self.attempt(context).await? {
                return Ok(written);
            }
        }
        Err(ApiError::too_many_requests(
            "the object changes too often; try again",
            1,
        ))
    }

    fn admission(&self) -> Admission<'_> {
        Admission {
            kind: self.kind,
            validation: self.params.validation,
            origin: match self.change {
                Change::Replace(_) => Origin::Sent,
                Change::Patch(_) | Change::Apply(_) => Origin::Patched,
            },
        }
    }

    async fn attempt(&self, context: &Context<'_>) -> Result<Option<Written>> {
        let kind = self.kind;
        let key = keys::object(&kind.stored, self.namespace, self.name);
        let entry = context.state.store.get(&key).await?;
        let entry = entry.ok_or_else(|| ApiError::not_found(&kind.resource, self.name))?;
        let mut old = decode(&entry)?;
        let owners_before = owners::take(&mut old);
        let Candidate {
            mut object,
            owners,
            warnings,
        } = self.candidate(context, &old, &owners_before)?;
        self.require_fence(context, &old)?;
        let deleted = !object["metadata"]["deletionTimestamp"].is_null()
            && metadata::finalizers(&object).is_empty()
            && !kind.strategy.holds_deletion(&object);
        let mut txn = GuardedTxn::new();
        txn.compare(Compare::modified(key.clone(), entry.mod_revision), Guard::Subject);
        if let Some(fence) = context.fence {
            fence.guard(&mut txn);
        }
        let unchanged = object == old && !deleted && owners::same(&owners, &owners_before);
        owners::put(&mut object, if unchanged { owners_before } else { owners });
        if !unchanged {
            let new = (!deleted).then_some(&object);
            kind.strategy.guard(context, &mut txn, Some(&old), new)?;
            if let Some(agent) = kind.strategy.touches(Some(&old), new) {
                txn.touch(&agent);
            }
            txn.write(if deleted {
                Op::delete(key)
            } else {
                let (value, lease) = (encode(kind, &object)?, entry.lease);
                Op::Put { key, value, lease }
            });
        }
        self.finish(context, txn, object, warnings, unchanged, deleted).await
    }

    async fn finish(
        &self,
        context: &Context<'_>,
        txn: GuardedTxn,
        mut object: Value,
        warnings: Vec<String>,
        unchanged: bool,
        deleted: bool,
    ) -> Result<Option<Written>> {
        // A change that changes nothing is not written, but its fence is held against the store all the same.
        let skip = self.params.dry_run || (unchanged && context.fence.is_none());
        if !skip {
            match context.state.commit(txn).await? {
                Outcome::Done(revision) if !unchanged => {
                    object["metadata"]["resourceVersion"] = json!(revision.to_string());
                }
                Outcome::Done(_) => (),
                Outcome::Lost(_) => return Ok(None),
            }
        }
        let object = self.kind.show(object);
        Ok(Some(Written {
            object,
            warnings,
            deleted: deleted && !self.params.dry_run,
        }))
    }

    fn require_fence(&self, context: &Context<'_>, old: &Value) -> Result<()> {
        match self.kind.strategy.fence(context, old, self.status) {
            Some((what, lease)) => fence::require(context.user, context.fence, what, &lease),
            None => Ok(()),
        }
    }

    /// The stored form as it shall be, with the version it is based on.
    fn candidate(&self, context: &Context<'_>, old: &Value, owners: &Value) -> Result<Candidate> {
        let kind = self.kind;
        let shown = kind.show(old.clone());
        let note = Note::new(context, kind, self.params, self.status);
        let mut applied = None;
        let (mut object, duplicates) = match &self.change {
            Change::Replace(decoded) => (decoded.value.clone(), decoded.duplicates.as_slice()),
            Change::Patch(patch) => {
                let mut whole = shown.clone();
                owners::put(&mut whole, owners.clone());
                (patch.apply(&kind.fields, &whole)?, patch.duplicates())
            }
            Change::Apply(application) => {
                let mut application = application.clone();
                metadata::identify(kind, &mut application.config.value, self.namespace, self.name)?;
                self.check_version(&application.config.value, old)?;
                let (mut object, owners) = note.applied(owners, &shown, &application)?;
                carry_uid(&mut object, &application.config.value);
                applied = Some(owners);
                (object, [].as_slice())
            }
        };
        metadata::identify(kind, &mut object, self.namespace, self.name)?;
        let sent = owners::take(&mut object);
        self.check_version(&object, old)?;
        let has_status = kind.resource.has_status();
        if has_status && !self.status {
            overwrite(&mut object, &shown, "status");
        }
        if self.status {
            let status = object["status"].take();
            let mut changed = shown.clone();
            changed["status"] = status;
            if changed["status"].is_null() {
                changed.as_object_mut().and_then(|object| object.remove("status"));
            }
            metadata::carry_over(kind, &mut object, old)?;
            object = changed;
        }
        let warnings = self.admission().shape(&mut object, duplicates, Some(&shown))?;
        metadata::carry_over(kind, &mut object, old)?;
        let owners = applied.unwrap_or_else(|| note.changed(owners, &sent, &shown, &object));
        let mut object = kind.store(object);
        if self.status {
            kind.strategy.prepare_status(context, &mut object, old)?;
        } else {
            kind.strategy.prepare_update(context, &mut object, old)?;
            if kind.counts_generations() && differs(&object, old, has_status) {
                let generation = old["metadata"]["generation"].as_i64().unwrap_or(0) + 1;
                object["metadata"]["generation"] = json!(generation);
            }
        }
        self.admission().judge(&object, Some(old))?;
        Ok(Candidate {
            object,
            owners,
            warnings,
        })
    }

    fn check_version(&self, object: &Value, old: &Value) -> Result<()> {
        let resource = &self.kind.resource;
        let based_on = match &object["metadata"]["resourceVersion"] {
            Value::Null => "",
            Value::String(text) => text,
            _ => return Err(ApiError::bad_request("metadata.resourceVersion must be a string")),
        };
        if based_on.is_empty() || based_on == "0" {
            let replaces = matches!(self.change, Change::Replace(_));
            if replaces && !self.kind.strategy.unconditional_update() {
                let mut violations = muster_api::validation::Violations::new();
                let path = muster_api::validation::FieldPath::root("metadata").field("resourceVersion");
                violations.invalid(&path, based_on, "must be specified for an update");
                return Err(ApiError::invalid_object(resource, self.name, violations.into_vec()));
            }
            return Ok(());
        }
        if based_on.parse::<u64>().is_err() {
            return Err(ApiError::bad_request(format!("invalid resource version {based_on:?}")));
        }
        if based_on == metadata::text(old, "resourceVersion") {
            Ok(())
        } else {
            Err(ApiError::modified(resource, self.name))
        }
    }
}

/// An object as it shall be.
struct Candidate {
    /// The stored form, without its owners.
    object: Value,
    /// They.
    owners: Value,
    /// What the writer should know.
    warnings: Vec<String>,
}

/// Who applies may say which incarnation is meant.
fn carry_uid(object: &mut Value, config: &Value) {
    if let uid @ Value::String(_) = &config["metadata"]["uid"] {
        object["metadata"]["uid"] = uid.clone();
    }
}

fn overwrite(object: &mut Value, from: &Value, field: &str) {
    if let Some(map) = object.as_object_mut() {
        match from.get(field) {
            Some(value) => map.insert(field.to_owned(), value.clone()),
            None => map.remove(field),
        };
    }
}

/// Whether anything but metadata, and status if that is a part of its own, is different.
fn differs(object: &Value, old: &Value, has_status: bool) -> bool {
    let rest = |object: &Value| {
        let mut object = object.as_object().cloned().unwrap_or_default();
        object.remove("metadata");
        if has_status {
            object.remove("status");
        }
        object
    };
    rest(object) != rest(old)
}
