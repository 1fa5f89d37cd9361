//! What is wrong with an object, field by field.

use std::fmt;

use serde::{Deserialize, Serialize};

/// The path of a field, as in `spec.env[1].name`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct FieldPath(String);

impl FieldPath {
    /// A path of one name.
    pub fn root(name: &str) -> FieldPath {
        FieldPath(name.to_owned())
    }

    /// The field `name` below this one.
    #[must_use]
    pub fn field(&self, name: &str) -> FieldPath {
        FieldPath(format!("{}.{name}", self.0))
    }

    /// The item `index` of this list.
    #[must_use]
    pub fn index(&self, index: usize) -> FieldPath {
        FieldPath(format!("{}[{index}]", self.0))
    }

    /// The entry `key` of this map.
    #[must_use]
    pub fn key(&self, key: &str) -> FieldPath {
        FieldPath(format!("{}[{key}]", self.0))
    }

    /// The text of the path.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for FieldPath {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// What kind of wrong; the names are those of Kubernetes' causes.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reason {
    /// A required field is missing.
    FieldValueRequired,
    /// The value is not allowed.
    FieldValueInvalid,
    /// The value is none of the known ones.
    FieldValueNotSupported,
    /// The value is there twice.
    FieldValueDuplicate,
    /// The field may not be set, or not be changed.
    FieldValueForbidden,
    /// The value is of the wrong type.
    FieldValueTypeInvalid,
    /// The value is too long, or there are too many.
    FieldValueTooLong,
}

/// One thing that is wrong.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Violation {
    /// What kind of wrong.
    pub reason: Reason,
    /// Where.
    pub field: String,
    /// What is wrong, and what to do, in the words that Kubernetes' own errors begin with.
    pub message: String,
}

/// Collects violations.
#[derive(Debug, Default)]
pub struct Violations(Vec<Violation>);

impl Violations {
    /// None yet.
    pub fn new() -> Violations {
        Violations::default()
    }

    fn push(&mut self, reason: Reason, field: &FieldPath, message: String) {
        self.0.push(Violation {
            reason,
            field: field.to_string(),
            message,
        });
    }

    /// `field` must be given.
    pub fn required(&mut self, field: &FieldPath, why: &str) {
        let message = if why.is_empty() {
            "Required value".to_owned()
        } else {
            format!("Required value: {why}")
        };
        self.push(Reason::FieldValueRequired, field, message);
    }

    /// `value` cannot stand at `field`.
    pub fn invalid(&mut self, field: &FieldPath, value: impl fmt::Display, why: &str) {
        let value: String = value.to_string().chars().take(128).collect();
        self.push(
            Reason::FieldValueInvalid,
            field,
            format!("Invalid value: \"{value}\": {why}"),
        );
    }

    /// `value` is none of `known`.
    pub fn not_supported(&mut self, field: &FieldPath, value: &str, known: &[&str]) {
        let known: Vec<String> = known.iter().map(|known| format!("\"{known}\"")).collect();
        let message = format!("Unsupported value: \"{value}\": supported values: {}", known.join(", "));
        self.push(Reason::FieldValueNotSupported, field, message);
    }

    /// `value` is at `field` for the second time.
    pub fn duplicate(&mut self, field: &FieldPath, value: &str) {
        self.push(
            Reason::FieldValueDuplicate,
            field,
            format!("Duplicate value: \"{value}\""),
        );
    }

    /// `field` may not be set or changed.
    pub fn forbidden(&mut self, field: &FieldPath, why: &str) {
        self.push(Reason::FieldValueForbidden, field, format!("Forbidden: {why}"));
    }

    /// `field` holds more than `most`.
    pub fn too_many(&mut self, field: &FieldPath, have: usize, most: usize) {
        self.push(
            Reason::FieldValueTooLong,
            field,
            format!("Too many: {have}: must have at most {most} items"),
        );
    }

    /// `field` is longer than `most` bytes.
    pub fn too_long(&mut self, field: &FieldPath, most: usize) {
        self.push(
            Reason::FieldValueTooLong,
            field,
            format!("Too long: must have at most {most} bytes"),
        );
    }

    /// Adds the problem when there is one.
    pub fn check(&mut self, field: &FieldPath, value: &str, problem: Option<String>) {
        if let Some(why) = problem {
            self.invalid(field, value, &why);
        }
    }

    /// Everything that was collected.
    pub fn into_vec(self) -> Vec<Violation> {
        self.0
    }

    /// Whether nothing is wrong so far.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }
}
