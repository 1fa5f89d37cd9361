//! Who owns which field of an object, noted with every write.
//!
//! The rules are those of the crate `muster_apply`; this is where they meet requests. It promises that a note never fails a write:
//! owners that cannot be read are nobody. Two things are not noted, because there is nobody to be told apart and they are most of what is
//! written: what the control plane and the agents write to status, which nobody else may write, and the kinds that are theirs
//! alone ([`super::Strategy::notes_system`]). They still take what they change from others.

use muster_apply::{Applied, Managed, Path, Writer, conflict_message};
use serde_json::{Value, json};

use super::{Context, Kind, metadata};
use crate::body::Decoded;
use crate::error::{ApiError, Result};
use crate::params::{UNKNOWN, WriteParams};
use crate::schema;

const FIELD: &str = "managedFields";

/// What somebody applies.
#[derive(Clone, Debug)]
pub struct Application {
    /// All that they have an opinion about.
    pub config: Decoded,
    /// Whether they take what others own.
    pub force: bool,
}

/// A write whose author is noted.
pub(super) struct Note<'a> {
    pub(super) kind: &'a Kind,
    /// Whether it goes to the status.
    pub(super) status: bool,
    noted: bool,
    manager: String,
    api_version: String,
    time: String,
}

/// Takes the owners out of an object; null when there are none.
pub(super) fn take(object: &mut Value) -> Value {
    let metadata = object.get_mut("metadata").and_then(Value::as_object_mut);
    metadata.and_then(|metadata| metadata.remove(FIELD)).unwrap_or_default()
}

/// Puts them back.
pub(super) fn put(object: &mut Value, owners: Value) {
    if owners.as_array().is_some_and(|owners| !owners.is_empty()) {
        metadata::of(object).insert(FIELD.to_owned(), owners);
    }
}

/// Whether both say the same, whenever it came so.
pub(super) fn same(one: &Value, other: &Value) -> bool {
    one == other || read(one).is_same(&read(other))
}

fn read(owners: &Value) -> Managed {
    Managed::decode(owners).unwrap_or_else(|error| {
        tracing::debug!(%error, "owners that cannot be read are nobody");
        Managed::default()
    })
}

/// Whether this is how a client says that nobody shall own anything.
fn resets(sent: &Value) -> bool {
    sent.as_array().is_some_and(|list| match list.as_slice() {
        [] => true,
        [one] => one.as_object().is_some_and(serde_json::Map::is_empty),
        _ => false,
    })
}

impl<'a> Note<'a> {
    pub(super) fn new(context: &Context<'_>, kind: &'a Kind, params: &WriteParams, status: bool) -> Note<'a> {
        let system = context.user.is_controllers() || context.user.agent_name().is_some();
        Note {
            kind,
            status,
            noted: !(system && (status || !kind.strategy.notes_system())),
            // Its programs send no name; the user says who they are.
            manager: match params.manager.as_str() {
                UNKNOWN if system => context.user.name.clone(),
                manager => manager.to_owned(),
            },
            api_version: kind.resource.api_version(),
            time: metadata::seconds(context.now),
        }
    }

    fn writer(&self) -> Writer<'_> {
        Writer {
            manager: &self.manager,
            api_version: &self.api_version,
            subresource: if self.status { "status" } else { "" },
            has_status: self.kind.resource.has_status(),
            time: &self.time,
        }
    }

    /// The owners of a new object.
    pub(super) fn created(&self, object: &Value) -> Value {
        let managed = Managed::default().update(&self.kind.fields, &json!({}), object, &self.writer(), self.noted);
        managed.encode()
    }

    /// The owners after a change that was not applied. `sent` are the owners that the client sent, `live` and `object` have none.
    pub(super) fn changed(&self, owners: &Value, sent: &Value, live: &Value, object: &Value) -> Value {
        let none = Value::Null;
        let base = if self.status || sent.is_null() || sent == owners {
            owners
        } else if resets(sent) {
            &none
        } else {
            match Managed::decode(sent) {
                Ok(managed) if !managed.is_empty() => sent,
                _ => owners,
            }
        };
        // Most writes are of this kind, and most objects have no owner of the status: nothing to read, nothing to compare.
        let nothing_to_take = || {
            let entries = base.as_array().into_iter().flatten();
            self.status
                && !entries
                    .into_iter()
                    .any(|entry| entry["fieldsV1"].get("f:status").is_some())
        };
        if base.is_null() || (!self.noted && nothing_to_take()) {
            return base.clone();
        }
        let before = read(base);
        let after = before
            .clone()
            .update(&self.kind.fields, live, object, &self.writer(), self.noted);
        if after == before { base.clone() } else { after.encode() }
    }

    /// The object with what is applied laid over it, and its owners. `live` has none; it is an object without fields when the object is
    /// new.
    pub(super) fn applied(&self, owners: &Value, live: &Value, application: &Application) -> Result<(Value, Value)> {
        let config = &application.config.value;
        self.check(config)?;
        let applied = read(owners).apply(&self.kind.fields, live, config, &self.writer(), application.force);
        let Applied { object, managed } = applied.map_err(|conflicts| {
            let error = ApiError::apply_conflict(conflict_message(&conflicts));
            conflicts.iter().fold(error, |error, conflict| {
                let message = format!("conflict with {}", conflict.manager);
                error.cause("FieldManagerConflict", message, &conflict.path.to_string())
            })
        })?;
        Ok((object, managed.encode()))
    }

    /// Refuses what cannot be owned: fields that are not known, items that cannot be told apart.
    fn check(&self, config: &Value) -> Result<()> {
        if !config["metadata"][FIELD].is_null() {
            return Err(ApiError::bad_request("metadata.managedFields must be nil"));
        }
        let mut problems: Vec<(String, String, String)> = Vec::new();
        for unknown in schema::check(&self.kind.resource, &mut config.clone()).unknown {
            let hint = unknown
                .suggestion
                .map_or_else(String::new, |known| format!(", did you mean \"{known}\"?"));
            let said = format!(".{}: field not declared in schema{hint}", unknown.path);
            problems.push((said, format!("unknown field \"{}\"{hint}", unknown.path), unknown.path));
        }
        for problem in muster_apply::problems(&self.kind.fields, config) {
            let path: &Path = &problem.path;
            let shown = path.to_string().trim_start_matches('.').to_owned();
            problems.push((format!("{path}: {}", problem.message), problem.message, shown));
        }
        if problems.is_empty() {
            return Ok(());
        }
        let (namespace, name) = (metadata::text(config, "namespace"), metadata::text(config, "name"));
        let said: Vec<&str> = problems.iter().map(|(said, _, _)| said.as_str()).collect();
        let error = ApiError::bad_request(format!(
            "failed to create typed patch object ({namespace}/{name}; {}, Kind={}): {}",
            self.api_version,
            self.kind.resource.kind,
            match said.as_slice() {
                [one] => (*one).to_owned(),
                more => format!("errors:\n  {}", more.join("\n  ")),
            }
        ));
        Err(problems.iter().fold(error, |error, (_, message, path)| {
            error.cause("FieldValueInvalid", message, path)
        }))
    }
}
