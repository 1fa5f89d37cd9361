//! Checks objects against the structural schema of their kind.
//!
//! One walk over an object fills in defaults, takes out fields that the schema does not know (and says which, with the name that
//! was probably meant), and collects everything that is wrong, with the path and in the words of Kubernetes' own server. It
//! promises that what comes out without a violation is of the shape of the schema: no unknown field, every required one, each
//! value of its type. What must never happen here: stopping at the first problem, a clock, or a reference to another object.
//!
//! A schema is compiled once, when its kind is registered; a keyword that is not enforced here is refused then, so that no schema
//! promises what nobody checks. Only formats may be any: those that nobody knows describe and do not restrict, as in Kubernetes. Tested in `tests` by cases, and by the objects of every kind.

mod check;
mod compile;
mod format;
mod ratchet;
mod rules;
#[cfg(test)]
mod tests;

use std::collections::BTreeMap;

use muster_api::validation::{Reason, Violation};
use regex::Regex;
use serde::de::DeserializeOwned;
use serde_json::Value;

pub use check::check;
pub use compile::SchemaError;
pub(crate) use ratchet::is_inherited;
pub(crate) use rules::problems as rule_problems;

/// The structural schema of a kind, ready for checking.
#[derive(Debug)]
pub struct Schema {
    root: Node,
    rules: Option<rules::Branch>,
}

/// What the walk over an object found.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct SchemaOutcome {
    /// Fields that the schema does not know; they are not in the object any more.
    pub unknown: Vec<UnknownField>,
    /// What is wrong with the rest.
    pub violations: Vec<Violation>,
}

/// A field that the schema does not know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownField {
    /// Where it was, as in `spec.resources.memmory`.
    pub path: String,
    /// The name among its siblings that was probably meant.
    pub suggestion: Option<String>,
}

/// One place in a schema.
#[derive(Debug, Default)]
struct Node {
    kind: Kind,
    nullable: bool,
    /// Unknown fields below stay.
    preserve: bool,
    /// The value is an object of some kind, with names and metadata of its own.
    embedded: bool,
    properties: BTreeMap<Box<str>, Node>,
    required: Vec<Box<str>>,
    /// The schema of the values of a map.
    entries: Option<Box<Node>>,
    /// The schema of the items of a list.
    items: Option<Box<Node>>,
    list: ListKind,
    default: Option<Value>,
    options: Vec<Value>,
    format: Option<Format>,
    /// What few places have; boxed, because most have none.
    bounds: Option<Box<Bounds>>,
}

/// The rarer rules of a place.
#[derive(Debug, Default)]
struct Bounds {
    minimum: Option<f64>,
    maximum: Option<f64>,
    exclusive_minimum: bool,
    exclusive_maximum: bool,
    min_length: Option<usize>,
    max_length: Option<usize>,
    min_items: Option<usize>,
    max_items: Option<usize>,
    min_properties: Option<usize>,
    max_properties: Option<usize>,
    multiple_of: Option<f64>,
    pattern: Option<Regex>,
    all_of: Vec<Node>,
    any_of: Vec<Node>,
    one_of: Vec<Node>,
    not: Option<Node>,
}

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
enum Kind {
    #[default]
    Any,
    Object,
    Array,
    String,
    Integer,
    Number,
    Boolean,
    IntOrString,
}

impl Kind {
    const fn name(self) -> &'static str {
        match self {
            Kind::Any => "any",
            Kind::Object => "object",
            Kind::Array => "array",
            Kind::String => "string",
            Kind::Integer => "integer",
            Kind::Number => "number",
            Kind::Boolean => "boolean",
            Kind::IntOrString => "integer,string",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Format {
    Int32,
    Int64,
    Unsigned,
    DateTime,
    Byte,
    Date,
    Duration,
    Email,
    Uri,
    Hostname,
    Ipv4,
    Ipv6,
    Cidr,
    Mac,
    Uuid,
}

#[derive(Debug, Default, PartialEq, Eq)]
enum ListKind {
    #[default]
    Atomic,
    Set,
    Map(Vec<Box<str>>),
}

/// Reads `value` as a `T`; the error says which field is wrong and what was found there.
///
/// This is where texts with a grammar of their own (quantities, spans, ranges of ports) are checked: by the very code that
/// reads them.
pub fn typed<T: DeserializeOwned>(value: &Value) -> Result<T, Violation> {
    serde_path_to_error::deserialize(value).map_err(|error| {
        let path = error.path().to_string();
        let mut found = Some(value);
        for segment in error.path().iter() {
            found = match segment {
                serde_path_to_error::Segment::Seq { index } => found.and_then(|value| value.get(*index)),
                serde_path_to_error::Segment::Map { key } => found.and_then(|value| value.get(key)),
                serde_path_to_error::Segment::Enum { .. } | serde_path_to_error::Segment::Unknown => found,
            };
        }
        let shown = match found {
            Some(scalar @ (Value::String(_) | Value::Number(_) | Value::Bool(_))) => check::shown(scalar),
            Some(Value::Array(_)) => "\"array\"".to_owned(),
            Some(Value::Object(_)) => "\"object\"".to_owned(),
            Some(Value::Null) | None => "null".to_owned(),
        };
        Violation {
            reason: Reason::FieldValueInvalid,
            field: if path == "." { String::new() } else { path },
            message: format!("Invalid value: {shown}: {}", error.inner()),
        }
    })
}

/// The one of `known` that was probably meant by `word`: at most a third of its letters differ, case aside.
pub fn suggest<'a>(word: &str, known: impl IntoIterator<Item = &'a str>) -> Option<&'a str> {
    const LONGEST: usize = 64;
    if word.len() > LONGEST {
        return None;
    }
    let lower = word.to_lowercase();
    let distances = known
        .into_iter()
        .map(|name| (strsim::damerau_levenshtein(&lower, &name.to_lowercase()), name));
    let (distance, name) = distances.min_by_key(|(distance, _)| *distance)?;
    (distance <= (word.chars().count() / 3).max(1)).then_some(name)
}
