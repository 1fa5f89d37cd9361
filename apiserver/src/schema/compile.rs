//! From the JSON of a structural schema to the tree that is walked.

use serde_json::{Map, Value};

use super::{Bounds, Format, Kind, ListKind, Node, Schema, rules};

/// Why a schema is not structural, or not one that is enforced.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("schema at `{path}`: {problem}")]
pub struct SchemaError {
    /// Where in the schema.
    pub path: String,
    /// What is wrong.
    pub problem: String,
}

/// Keywords that describe and do not restrict. `uint16` and the like are a restriction by their bounds, which come along.
const IGNORED: [&str; 10] = [
    // Compiled by itself, since rules see more than their own place.
    "x-kubernetes-validations",
    "description",
    "title",
    "externalDocs",
    "example",
    "$schema",
    "uniqueItems",
    "x-kubernetes-map-type",
    "x-kubernetes-patch-strategy",
    "x-kubernetes-patch-merge-key",
];

impl Schema {
    /// Makes a schema ready for checking.
    pub fn compile(schema: &Value) -> Result<Schema, SchemaError> {
        let root = node(schema, "")?;
        if root.kind != Kind::Object {
            return Err(wrong("", "the top must be of type object"));
        }
        Ok(Schema {
            root,
            rules: rules::compile(schema)?,
        })
    }

    pub(super) fn root(&self) -> &Node {
        &self.root
    }
}

pub(super) fn wrong(path: &str, problem: impl Into<String>) -> SchemaError {
    SchemaError {
        path: path.to_owned(),
        problem: problem.into(),
    }
}

pub(super) fn node(schema: &Value, path: &str) -> Result<Node, SchemaError> {
    let map = schema.as_object().ok_or_else(|| wrong(path, "must be an object"))?;
    let mut node = Node {
        kind: kind(map, path)?,
        nullable: flag(map, "nullable"),
        preserve: flag(map, "x-kubernetes-preserve-unknown-fields"),
        embedded: flag(map, "x-kubernetes-embedded-resource"),
        ..Node::default()
    };
    let mut bounds = Bounds::default();
    let mut bounded = false;
    for (keyword, value) in map {
        if structure(&mut node, map, keyword, value, path)? {
            continue;
        }
        bound(&mut bounds, keyword, value, path, node.kind)?;
        bounded = true;
    }
    node.bounds = bounded.then(|| Box::new(bounds));
    Ok(node)
}

fn kind(map: &Map<String, Value>, path: &str) -> Result<Kind, SchemaError> {
    if flag(map, "x-kubernetes-int-or-string") {
        return Ok(Kind::IntOrString);
    }
    Ok(match map.get("type").map(|kind| kind.as_str().unwrap_or_default()) {
        None => Kind::Any,
        Some("object") => Kind::Object,
        Some("array") => Kind::Array,
        Some("string") => Kind::String,
        Some("integer") => Kind::Integer,
        Some("number") => Kind::Number,
        Some("boolean") => Kind::Boolean,
        Some(other) => return Err(wrong(path, format!("`{other}` is not a type"))),
    })
}

fn flag(map: &Map<String, Value>, name: &str) -> bool {
    map.get(name) == Some(&Value::Bool(true))
}

/// Takes in the keywords that shape the tree; whether `keyword` was one.
fn structure(
    node: &mut Node,
    map: &Map<String, Value>,
    keyword: &str,
    value: &Value,
    path: &str,
) -> Result<bool, SchemaError> {
    match keyword {
        "type"
        | "nullable"
        | "x-kubernetes-preserve-unknown-fields"
        | "x-kubernetes-int-or-string"
        | "x-kubernetes-embedded-resource"
        | "x-kubernetes-list-map-keys" => {}
        ignored if IGNORED.contains(&ignored) => {}
        "properties" => {
            let properties = value
                .as_object()
                .ok_or_else(|| wrong(path, "properties must be an object"))?;
            for (name, below) in properties {
                let below = self::node(below, &format!("{path}.{name}"))?;
                node.properties.insert(name.as_str().into(), below);
            }
        }
        "required" => node.required = texts(value),
        "items" => node.items = Some(Box::new(self::node(value, &format!("{path}[]"))?)),
        "additionalProperties" => match value {
            Value::Bool(true) => node.preserve = true,
            Value::Bool(false) => {}
            schema => node.entries = Some(Box::new(self::node(schema, &format!("{path}{{}}"))?)),
        },
        "enum" => node.options = value.as_array().cloned().unwrap_or_default(),
        "default" => node.default = Some(value.clone()),
        "format" => {
            node.format = Format::parse(value.as_str().unwrap_or_default());
        }
        "x-kubernetes-list-type" => {
            node.list = match value.as_str().unwrap_or_default() {
                "atomic" => ListKind::Atomic,
                "set" => ListKind::Set,
                "map" => ListKind::Map(map.get("x-kubernetes-list-map-keys").map(texts).unwrap_or_default()),
                other => return Err(wrong(path, format!("`{other}` is not a kind of list"))),
            }
        }
        _ => return Ok(false),
    }
    Ok(true)
}

fn bound(bounds: &mut Bounds, keyword: &str, value: &Value, path: &str, kind: Kind) -> Result<(), SchemaError> {
    let count = || {
        let number = value.as_u64().and_then(|number| usize::try_from(number).ok());
        number.ok_or_else(|| wrong(path, format!("{keyword} must be a count")))
    };
    let number = || {
        value
            .as_f64()
            .ok_or_else(|| wrong(path, format!("{keyword} must be a number")))
    };
    let nodes = || -> Result<Vec<Node>, SchemaError> {
        let list = value
            .as_array()
            .ok_or_else(|| wrong(path, format!("{keyword} must be a list")))?;
        list.iter().map(|schema| node(schema, path)).collect()
    };
    match keyword {
        "minimum" => bounds.minimum = Some(number()?),
        "maximum" => bounds.maximum = Some(number()?),
        "exclusiveMinimum" => bounds.exclusive_minimum = value == &Value::Bool(true),
        "exclusiveMaximum" => bounds.exclusive_maximum = value == &Value::Bool(true),
        "minLength" => bounds.min_length = Some(count()?),
        "maxLength" => bounds.max_length = Some(count()?),
        "minItems" => bounds.min_items = Some(count()?),
        "maxItems" => bounds.max_items = Some(count()?),
        "minProperties" => bounds.min_properties = Some(count()?),
        "maxProperties" => bounds.max_properties = Some(count()?),
        "multipleOf" => {
            let number = number()?;
            if number <= 0.0 {
                return Err(wrong(path, "multipleOf must be more than zero"));
            }
            bounds.multiple_of = Some(number);
        }
        "pattern" => {
            let text = value.as_str().unwrap_or_default();
            let pattern = regex::Regex::new(text).map_err(|error| wrong(path, error.to_string()))?;
            bounds.pattern = Some(pattern);
        }
        // The usual way to write int-or-string for readers that know only the standard; the type says it already.
        "anyOf" if kind == Kind::IntOrString => {}
        "allOf" => bounds.all_of = nodes()?,
        "anyOf" => bounds.any_of = nodes()?,
        "oneOf" => bounds.one_of = nodes()?,
        "not" => bounds.not = Some(node(value, path)?),
        other => return Err(wrong(path, format!("the keyword `{other}` is not enforced here"))),
    }
    Ok(())
}

fn texts(value: &Value) -> Vec<Box<str>> {
    let list = value.as_array().into_iter().flatten();
    list.filter_map(Value::as_str).map(Box::from).collect()
}
