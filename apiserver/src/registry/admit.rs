//! What every object goes through before it is stored: the schema, the metadata rules, the kind's own validation.

use serde_json::{Map, Value};

use super::{Kind, Strategy, metadata};
use crate::error::{ApiError, Result};
use crate::hub;
use crate::limits;
use crate::params::FieldValidation;
use crate::schema;

use bytes::Bytes;

/// Where an object comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Origin {
    /// It was sent as it is.
    Sent,
    /// It is what a patch made.
    Patched,
}

/// The rules for one write.
pub(crate) struct Admission<'a> {
    pub(crate) kind: &'a Kind,
    pub(crate) validation: FieldValidation,
    pub(crate) origin: Origin,
}

impl Admission<'_> {
    /// Fills in defaults, takes out unknown fields, and refuses what the schema does not allow. Returns the warnings.
    ///
    /// `old` is what is changed. A schema that is defined by an object may have become stricter since: what was wrong before may stay.
    pub(crate) fn shape(&self, object: &mut Value, duplicates: &[String], old: Option<&Value>) -> Result<Vec<String>> {
        let resource = &self.kind.resource;
        let mut outcome = schema::check(resource, object);
        if let Some(old) = old.filter(|_| self.kind.definition.is_some()) {
            outcome
                .violations
                .retain(|violation| !schema::is_inherited(violation, object, old));
        }
        let mut problems: Vec<String> = duplicates
            .iter()
            .map(|path| format!("duplicate field \"{path}\""))
            .collect();
        for unknown in &outcome.unknown {
            let mut problem = format!("unknown field \"{}\"", unknown.path);
            if let Some(suggestion) = &unknown.suggestion {
                problem += &format!(", did you mean \"{suggestion}\"?");
            }
            if !problems.contains(&problem) {
                problems.push(problem);
            }
        }
        if self.validation == FieldValidation::Strict && !problems.is_empty() {
            let kind = &resource.kind;
            let message = format!(
                "{kind} in version \"{}\" cannot be handled as a {kind}: strict decoding error: {}",
                resource.version,
                problems.join(", ")
            );
            let error = match self.origin {
                Origin::Sent => ApiError::bad_request(message),
                Origin::Patched => ApiError::unprocessable(message),
            };
            let paths = outcome.unknown.iter().map(|unknown| &unknown.path).chain(duplicates);
            return Err(paths.fold(error, |error, path| {
                let known = problems.iter().find(|problem| problem.contains(&format!("\"{path}\"")));
                error.cause("FieldValueInvalid", known.cloned().unwrap_or_default(), path)
            }));
        }
        if !outcome.violations.is_empty() {
            let name = metadata::text(object, "name").to_owned();
            return Err(ApiError::invalid_object(resource, &name, outcome.violations));
        }
        Ok(if self.validation == FieldValidation::Warn {
            problems
        } else {
            Vec::new()
        })
    }

    /// Everything that the metadata rules and the kind itself say against a stored form.
    pub(crate) fn judge(&self, object: &Value, old: Option<&Value>) -> Result<()> {
        let strategy: &dyn Strategy = &*self.kind.strategy;
        let mut violations = metadata::validate(self.kind, object, old);
        for violation in strategy.validate(object) {
            if !violations.iter().any(|known| known.field == violation.field) {
                violations.push(violation);
            }
        }
        if let Some(old) = old {
            violations.extend(strategy.validate_update(object, old));
        }
        if violations.is_empty() {
            violations = self.kind.resource.compiled.judge(object, old);
        }
        if violations.is_empty() {
            return Ok(());
        }
        let name = metadata::text(object, "name");
        Err(ApiError::invalid_object(&self.kind.resource, name, violations))
    }
}

/// The bytes that are stored for an object.
pub(super) fn encode(kind: &Kind, object: &Value) -> Result<Bytes> {
    let nothing = Map::new();
    let map = object.as_object().unwrap_or(&nothing);
    let bytes = hub::encode(&kind.stored.api_version(), &kind.stored.kind, map);
    if bytes.len() > limits::OBJECT_BYTES {
        let message = format!(
            "the object has {} bytes, {} are allowed",
            bytes.len(),
            limits::OBJECT_BYTES
        );
        return Err(ApiError::too_large(message));
    }
    Ok(bytes)
}
