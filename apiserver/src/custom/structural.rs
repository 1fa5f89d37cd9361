//! What a schema in a definition has to be like: structural, as Kubernetes calls it, so that every field of an object has one place in it.

use muster_api::validation::{FieldPath, Violations};
use serde_json::{Map, Value};

use crate::schema::{Schema, rule_problems};

/// Keywords that a schema may have anywhere.
const KEYWORDS: [&str; 41] = [
    "$ref",
    "$schema",
    "additionalItems",
    "additionalProperties",
    "allOf",
    "anyOf",
    "default",
    "definitions",
    "dependencies",
    "description",
    "enum",
    "example",
    "exclusiveMaximum",
    "exclusiveMinimum",
    "externalDocs",
    "format",
    "id",
    "items",
    "maximum",
    "maxItems",
    "maxLength",
    "maxProperties",
    "minimum",
    "minItems",
    "minLength",
    "minProperties",
    "multipleOf",
    "not",
    "nullable",
    "oneOf",
    "pattern",
    "patternProperties",
    "properties",
    "required",
    "title",
    "type",
    "uniqueItems",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-list-map-keys",
    "x-kubernetes-list-type",
];
/// The rest of them.
const MORE_KEYWORDS: [&str; 3] = [
    "x-kubernetes-map-type",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-validations",
];
/// Keywords that would make a place depend on more than its own value.
const NEVER: [&str; 6] = [
    "$ref",
    "additionalItems",
    "definitions",
    "dependencies",
    "patternProperties",
    "id",
];
/// Keywords that shape an object, which alternatives of a value cannot.
const SHAPES: [&str; 11] = [
    "type",
    "default",
    "additionalProperties",
    "nullable",
    "title",
    "description",
    "x-kubernetes-embedded-resource",
    "x-kubernetes-int-or-string",
    "x-kubernetes-preserve-unknown-fields",
    "x-kubernetes-list-type",
    "x-kubernetes-map-type",
];
const TYPES: [&str; 6] = ["array", "boolean", "integer", "number", "object", "string"];
/// How deep a schema may go. An object nests no deeper than 64 levels.
const DEPTH: usize = 64;

/// Applies `to` to every schema that lies directly in this one.
fn below(schema: &mut Map<String, Value>, mut to: impl FnMut(&mut Value)) {
    let properties = schema.get_mut("properties").and_then(Value::as_object_mut);
    properties.into_iter().flat_map(Map::values_mut).for_each(&mut to);
    for name in ["allOf", "anyOf", "oneOf"] {
        schema
            .get_mut(name)
            .and_then(Value::as_array_mut)
            .into_iter()
            .flatten()
            .for_each(&mut to);
    }
    for name in ["items", "additionalProperties", "not"] {
        schema.get_mut(name).into_iter().for_each(&mut to);
    }
}

/// Takes out keywords that nobody knows.
pub(crate) fn forget_unknown(schema: &mut Value) {
    if let Value::Object(map) = schema {
        map.retain(|name, value| {
            (KEYWORDS.contains(&name.as_str()) || MORE_KEYWORDS.contains(&name.as_str())) && !value.is_null()
        });
        below(map, forget_unknown);
    }
}

/// Puts in what is not said because it holds for every object: the two names and the metadata, of the whole and of what is embedded.
pub(crate) fn complete(schema: &mut Value) {
    fn embedded(schema: &mut Value) {
        let Value::Object(map) = schema else { return };
        if map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true)) {
            let properties = map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
            if properties.is_object() {
                crate::kinds::complete(schema);
            }
        }
        if let Value::Object(map) = schema {
            below(map, embedded);
        }
    }
    embedded(schema);
    if let Value::Object(map) = schema {
        map.entry("properties").or_insert_with(|| Value::Object(Map::new()));
    }
    crate::kinds::complete(schema);
}

/// Everything that is wrong with the schema of a version.
pub(super) fn problems(schema: &Value, path: &FieldPath, out: &mut Violations) {
    let before = out.is_empty();
    match schema["type"].as_str() {
        Some("object") => (),
        None | Some("") => out.required(&path.field("type"), "must not be empty at the root"),
        Some(other) => out.invalid(&path.field("type"), other, "must be object at the root"),
    }
    if schema["nullable"] == true {
        out.forbidden(&path.field("nullable"), "nullable cannot be true at the root");
    }
    let metadata = schema["properties"]["metadata"].as_object();
    let fine = |name: &String| ["type", "description", "properties"].contains(&name.as_str());
    let named = schema["properties"]["metadata"]["properties"].as_object();
    let only = named
        .into_iter()
        .flatten()
        .all(|(name, _)| ["name", "generateName"].contains(&name.as_str()));
    if metadata.is_some_and(|metadata| !metadata.keys().all(fine)) || !only {
        let why = "must not specify anything other than name and generateName, but metadata is implicitly specified";
        out.forbidden(&path.field("properties").key("metadata"), why);
    }
    node(schema, path, DEPTH, true, out);
    // What the rules above let pass has to be something that objects can be held against.
    if before && out.is_empty() {
        let mut whole = schema.clone();
        complete(&mut whole);
        match Schema::compile(&whole) {
            Err(error) => out.invalid(path, &error.path, &error.problem),
            Ok(schema) => defaults(&whole, &schema, path, out),
        }
    }
}

/// A place that values are read from.
/// `tracked` says whether it is known which value was there before: what is in a list without keys has no past.
fn node(schema: &Value, path: &FieldPath, depth: usize, tracked: bool, out: &mut Violations) {
    let Some(map) = schema.as_object() else {
        return out.invalid(path, kind_name(schema), "must be a schema, which is an object");
    };
    if depth == 0 {
        return out.forbidden(path, &format!("schemas nest no deeper than {DEPTH} levels"));
    }
    never(map, path, out);
    typed(map, path, out);
    list(map, path, out);
    for (index, field, problem) in rule_problems(schema, tracked) {
        let at = path.field("x-kubernetes-validations").index(index).field(field);
        out.invalid(
            &at,
            schema["x-kubernetes-validations"][index][field]
                .as_str()
                .unwrap_or_default(),
            &problem,
        );
    }
    let is_true = |name: &str| map.get(name) == Some(&Value::Bool(true));
    if map
        .get("x-kubernetes-preserve-unknown-fields")
        .is_some_and(|value| value != true)
    {
        out.invalid(
            &path.field("x-kubernetes-preserve-unknown-fields"),
            false,
            "must be true or undefined",
        );
    }
    if is_true("x-kubernetes-embedded-resource") {
        if map.get("type").is_none_or(|kind| kind != "object") {
            out.invalid(
                &path.field("type"),
                text(map, "type"),
                "must be object if x-kubernetes-embedded-resource is true",
            );
        }
        if !map.contains_key("properties") && !is_true("x-kubernetes-preserve-unknown-fields") {
            let why = "must not be empty if x-kubernetes-embedded-resource is true without x-kubernetes-preserve-unknown-fields";
            out.required(&path.field("properties"), why);
        }
    }
    match map.get("additionalProperties") {
        Some(Value::Bool(false)) => out.forbidden(
            &path.field("additionalProperties"),
            "additionalProperties cannot be set to false",
        ),
        Some(_) if map.contains_key("properties") => {
            out.forbidden(
                &path.field("additionalProperties"),
                "additionalProperties and properties are mutual exclusive",
            );
        }
        Some(below @ Value::Object(_)) => node(below, &path.field("additionalProperties"), depth - 1, tracked, out),
        _ => (),
    }
    for (name, below) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        node(below, &path.field("properties").key(name), depth - 1, tracked, out);
    }
    match map.get("items") {
        Some(Value::Array(_)) => out.forbidden(&path.field("items"), "items must be a schema object and not an array"),
        Some(below) => {
            let keyed = text(map, "x-kubernetes-list-type") == "map";
            node(below, &path.field("items"), depth - 1, tracked && keyed, out);
        }
        None if text(map, "type") == "array" => out.required(&path.field("items"), "must be specified"),
        None => (),
    }
    logic(map, schema, path, depth, out);
}

fn never(map: &Map<String, Value>, path: &FieldPath, out: &mut Violations) {
    for name in NEVER
        .into_iter()
        .filter(|name| map.get(*name).is_some_and(|value| value != ""))
    {
        out.forbidden(&path.field(name), &format!("{name} is not supported"));
    }
    if map.get("uniqueItems") == Some(&Value::Bool(true)) {
        let why = "uniqueItems cannot be set to true since the runtime complexity becomes quadratic";
        out.forbidden(&path.field("uniqueItems"), why);
    }
}

/// Every place has a type, but for those that say what they take otherwise.
fn typed(map: &Map<String, Value>, path: &FieldPath, out: &mut Violations) {
    let is_true = |name: &str| map.get(name) == Some(&Value::Bool(true));
    let (kind, path) = (text(map, "type"), path.field("type"));
    if is_true("x-kubernetes-int-or-string") {
        if !kind.is_empty() {
            out.forbidden(&path, "must be empty if x-kubernetes-int-or-string is true");
        }
    } else if kind.is_empty() {
        if !is_true("x-kubernetes-preserve-unknown-fields") {
            let place = path.as_str().trim_end_matches(".type");
            out.required(
                &path,
                match place {
                    _ if place.ends_with(".items") => "must not be empty for specified array items",
                    _ if place.ends_with(']') => "must not be empty for specified object fields",
                    _ if place.ends_with(".openAPIV3Schema") => return,
                    _ => "must not be empty",
                },
            );
        }
    } else if !TYPES.contains(&kind) {
        out.not_supported(&path, kind, &TYPES);
    }
}

fn list(map: &Map<String, Value>, path: &FieldPath, out: &mut Violations) {
    let (how, at) = (
        text(map, "x-kubernetes-list-type"),
        path.field("x-kubernetes-list-type"),
    );
    let keys = map
        .get("x-kubernetes-list-map-keys")
        .and_then(Value::as_array)
        .map(Vec::as_slice)
        .unwrap_or_default();
    let keys_at = path.field("x-kubernetes-list-map-keys");
    if !how.is_empty() && text(map, "type") != "array" {
        out.invalid(
            &path.field("type"),
            text(map, "type"),
            "must be array if x-kubernetes-list-type is specified",
        );
    }
    match how {
        "" | "atomic" | "set" if !keys.is_empty() => {
            out.forbidden(&keys_at, "must be empty unless x-kubernetes-list-type is map");
        }
        "" | "atomic" | "set" => (),
        "map" if keys.is_empty() => out.required(&keys_at, "must not be empty if x-kubernetes-list-type is map"),
        "map" => {
            let items = &map.get("items").cloned().unwrap_or_default();
            if items["type"] != "object" {
                out.invalid(
                    &path.field("items").field("type"),
                    items["type"].as_str().unwrap_or_default(),
                    "must be object if parent array's x-kubernetes-list-type is map",
                );
            }
            for (index, key) in keys.iter().enumerate() {
                let name = key.as_str().unwrap_or_default();
                let at = keys_at.index(index);
                let kind = items["properties"][name]["type"].as_str().unwrap_or_default();
                if !["string", "integer", "number", "boolean"].contains(&kind) {
                    out.invalid(
                        &at,
                        name,
                        "entries must all be names of item properties with a scalar type",
                    );
                }
                let required = items["required"]
                    .as_array()
                    .is_some_and(|required| required.contains(key));
                if !required && items["properties"][name].get("default").is_none() {
                    let why = "this property is in x-kubernetes-list-map-keys, so it must have a default or be a required property";
                    out.required(&path.field("items").field("properties").key(name).field("default"), why);
                }
                if keys[..index].contains(key) {
                    out.duplicate(&at, name);
                }
            }
        }
        other => out.not_supported(&at, other, &["atomic", "map", "set"]),
    }
    let how = text(map, "x-kubernetes-map-type");
    if !["", "atomic", "granular"].contains(&how) {
        out.not_supported(&path.field("x-kubernetes-map-type"), how, &["atomic", "granular"]);
    }
}

/// Alternatives restrict values and shape nothing: every field that they name is named outside of them too.
fn logic(map: &Map<String, Value>, shape: &Value, path: &FieldPath, depth: usize, out: &mut Violations) {
    let mixed = map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true));
    for name in ["allOf", "anyOf", "oneOf"] {
        let all = map.get(name).and_then(Value::as_array).into_iter().flatten();
        for (index, below) in all.enumerate() {
            let types = below
                .as_object()
                .is_some_and(|below| below.len() == 1 && (below.contains_key("type") || below.contains_key("anyOf")));
            if !(mixed && types) {
                alternative(below, shape, &path.field(name).index(index), depth - 1, out);
            }
        }
    }
    if let Some(below) = map.get("not") {
        alternative(below, shape, &path.field("not"), depth - 1, out);
    }
}

fn alternative(schema: &Value, shape: &Value, path: &FieldPath, depth: usize, out: &mut Violations) {
    let Some(map) = schema.as_object() else {
        return out.invalid(path, kind_name(schema), "must be a schema, which is an object");
    };
    if depth == 0 {
        return out.forbidden(path, &format!("schemas nest no deeper than {DEPTH} levels"));
    }
    never(map, path, out);
    for name in SHAPES
        .into_iter()
        .filter(|name| map.get(*name).is_some_and(|value| value != "" && value != false))
    {
        out.forbidden(&path.field(name), "must be empty to be structural");
    }
    for (name, below) in map.get("properties").and_then(Value::as_object).into_iter().flatten() {
        let at = path.field("properties").key(name);
        match shape["properties"]
            .get(name)
            .or_else(|| shape.get("additionalProperties"))
        {
            Some(shape) => alternative(below, shape, &at, depth - 1, out),
            None if shape["x-kubernetes-embedded-resource"] == true || name == "metadata" => (),
            None => out.required(&at, "the field must be declared outside of the alternatives too"),
        }
    }
    if let Some(below) = map.get("items") {
        match shape.get("items") {
            Some(shape) => alternative(below, shape, &path.field("items"), depth - 1, out),
            None => out.required(
                &path.field("items"),
                "the items must be declared outside of the alternatives too",
            ),
        }
    }
    logic(map, shape, path, depth, out);
}

/// Defaults are of the shape of their own place.
fn defaults(whole: &Value, compiled: &Schema, path: &FieldPath, out: &mut Violations) {
    for (place, problem) in compiled.wrong_defaults() {
        let (mut schema, mut at) = (whole, path.clone());
        for (keyword, name) in &place {
            (schema, at) = match name {
                Some(name) => (&schema[*keyword][name.as_str()], at.field(keyword).key(name)),
                None => (&schema[*keyword], at.field(keyword)),
            };
        }
        out.invalid(&at.field("default"), &schema["default"], &problem);
    }
}

fn text<'a>(map: &'a Map<String, Value>, name: &str) -> &'a str {
    map.get(name).and_then(Value::as_str).unwrap_or_default()
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}
