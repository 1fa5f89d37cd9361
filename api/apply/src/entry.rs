//! One owner of fields, as `metadata.managedFields` lists it.

use serde_json::{Value, json};

use crate::managed::Writer;
use crate::set::{Set, SetError};

/// How an owner came to its fields.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Operation {
    /// It said all that it has an opinion about.
    Apply,
    /// It changed them.
    Update,
}

/// An owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its name.
    pub manager: String,
    /// How it came to the fields.
    pub operation: Operation,
    /// The version that the paths are of.
    pub api_version: String,
    /// When it last changed something: RFC 3339, whole seconds, UTC. Empty: not known.
    pub time: String,
    /// The subresource that it wrote to; empty: the object itself.
    pub subresource: String,
    /// What it owns.
    pub fields: Set,
}

/// Why `managedFields` cannot be read.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// It is not a list of owners.
    #[error("managedFields must be a list of objects")]
    NotAList,
    /// An owner lacks something or has something that is not known.
    #[error("managedFields[{index}].{field} is not what it must be")]
    Field {
        /// Which owner.
        index: usize,
        /// Its field.
        field: &'static str,
    },
    /// What it owns cannot be read.
    #[error("managedFields[{index}].fieldsV1: {error}")]
    Fields {
        /// Which owner.
        index: usize,
        /// Why.
        #[source]
        error: SetError,
    },
}

impl Entry {
    pub(crate) fn is(&self, writer: &Writer<'_>, operation: Operation) -> bool {
        self.operation == operation
            && self.manager == writer.manager
            && self.subresource == writer.subresource
            && (operation == Operation::Apply || self.api_version == writer.api_version)
    }

    pub(crate) fn words(&self) -> String {
        let mut words = format!("{}", Value::from(self.manager.as_str()));
        if !self.subresource.is_empty() {
            words += &format!(" with subresource {}", Value::from(self.subresource.as_str()));
        }
        if self.operation == Operation::Update {
            words += &format!(" using {}", self.api_version);
        }
        words
    }

    pub(crate) fn decode(index: usize, value: &Value) -> Result<Entry, DecodeError> {
        let text = |field: &'static str| match &value[field] {
            Value::Null => Ok(String::new()),
            Value::String(text) => Ok(text.clone()),
            _ => Err(DecodeError::Field { index, field }),
        };
        let operation = match text("operation")?.as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => {
                return Err(DecodeError::Field {
                    index,
                    field: "operation",
                });
            }
        };
        if text("fieldsType")? != "FieldsV1" {
            return Err(DecodeError::Field {
                index,
                field: "fieldsType",
            });
        }
        let fields = match &value["fieldsV1"] {
            Value::Null => Set::new(),
            fields => Set::from_json(fields).map_err(|error| DecodeError::Fields { index, error })?,
        };
        Ok(Entry {
            manager: text("manager")?,
            operation,
            api_version: text("apiVersion")?,
            time: text("time")?,
            subresource: text("subresource")?,
            fields,
        })
    }

    pub(crate) fn encode(&self) -> Value {
        let mut value = json!({
            "manager": self.manager,
            "operation": match self.operation {
                Operation::Apply => "Apply",
                Operation::Update => "Update",
            },
            "apiVersion": self.api_version,
            "fieldsType": "FieldsV1",
            "fieldsV1": self.fields.to_json(),
        });
        for (field, text) in [("time", &self.time), ("subresource", &self.subresource)] {
            if !text.is_empty() {
                value[field] = json!(text);
            }
        }
        value
    }
}

/// By what owners are sorted.
pub(crate) fn order(entry: &Entry) -> (Operation, &str, &str, &str, &str) {
    let Entry {
        manager,
        operation,
        api_version,
        time,
        subresource,
        ..
    } = entry;
    (*operation, time, manager, api_version, subresource)
}
