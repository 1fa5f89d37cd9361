//! What holds for the metadata of every object.

use std::collections::BTreeSet;

use muster_api::env::Env;
use muster_api::names;
use muster_api::validation::{FieldPath, Violation, Violations};
use serde_json::{Map, Value, json};

use super::Kind;
use crate::error::{ApiError, Result};
use crate::limits;

/// What clients may set on a new object.
const KEPT: [&str; 7] = [
    "name",
    "generateName",
    "namespace",
    "labels",
    "annotations",
    "ownerReferences",
    "finalizers",
];

/// The letters of generated names: none that make words or can be mixed up.
const LETTERS: &[u8; 27] = b"bcdfghjklmnpqrstvwxz2456789";
/// The longest part of a generated name that is given.
const BASE_MAX: usize = 58;

/// The metadata of an object, made if it is not there.
pub(super) fn of(object: &mut Value) -> &mut Map<String, Value> {
    if !object["metadata"].is_object() {
        object["metadata"] = json!({});
    }
    object["metadata"].as_object_mut().expect("it was made an object")
}

/// A text of the metadata; empty where there is none.
pub(super) fn text<'a>(object: &'a Value, name: &str) -> &'a str {
    object["metadata"][name].as_str().unwrap_or_default()
}

/// Fills in what the path says and refuses what contradicts it: kind, version, namespace, name (empty: whatever the object says).
pub(crate) fn identify(kind: &Kind, object: &mut Value, namespace: &str, name: &str) -> Result<()> {
    let resource = &kind.resource;
    let expected = [("apiVersion", resource.api_version()), ("kind", resource.kind.clone())];
    for (field, expected) in expected {
        match object[field].as_str() {
            None if object[field].is_null() => object[field] = json!(expected),
            Some(found) if found == expected || found.is_empty() => object[field] = json!(expected),
            _ => {
                let message = format!(
                    "the {field} in the data ({}) does not match the expected {field} ({expected})",
                    object[field]
                );
                return Err(ApiError::bad_request(message));
            }
        }
    }
    if !object["metadata"].is_object() && !object["metadata"].is_null() {
        return Err(ApiError::bad_request("metadata must be an object"));
    }
    let metadata = of(object);
    for (field, expected) in [("namespace", namespace), ("name", name)] {
        let found = metadata.get(field).cloned().unwrap_or_default();
        let found = match &found {
            Value::Null => "",
            Value::String(text) => text,
            _ => return Err(ApiError::bad_request(format!("metadata.{field} must be a string"))),
        };
        let free = field == "name" && name.is_empty();
        if !free && !found.is_empty() && found != expected {
            let message = if field == "name" {
                format!("the name of the object ({found}) does not match the name on the URL ({expected})")
            } else {
                "the namespace of the provided object does not match the namespace sent on the request".to_owned()
            };
            return Err(ApiError::bad_request(message));
        }
        if !expected.is_empty() {
            metadata.insert(field.to_owned(), json!(expected));
        } else if found.is_empty() {
            metadata.remove(field);
        }
    }
    Ok(())
}

/// Takes out of a new object what only the server sets.
pub(super) fn begin(object: &mut Value, env: &dyn Env, generation: bool) -> Result<()> {
    let metadata = of(object);
    let version = metadata
        .get("resourceVersion")
        .and_then(Value::as_str)
        .unwrap_or_default();
    if !version.is_empty() {
        return Err(ApiError::bad_request(
            "resourceVersion should not be set on objects to be created",
        ));
    }
    metadata.retain(|key, value| KEPT.contains(&key.as_str()) && !value.is_null());
    metadata.insert("uid".to_owned(), json!(env.uid().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(seconds(env.now())));
    if generation {
        metadata.insert("generation".to_owned(), json!(1));
    }
    drop_empty(object);
    Ok(())
}

/// As Kubernetes writes times: whole seconds, UTC.
pub(super) fn seconds(time: muster_api::Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

/// Draws a name, if only its beginning is given. Whether it did.
pub(super) fn generate_name(object: &mut Value, env: &dyn Env) -> bool {
    let base = text(object, "generateName").to_owned();
    if !text(object, "name").is_empty() || base.is_empty() {
        return false;
    }
    let base: String = base.chars().take(BASE_MAX).collect();
    let random = env.uid().as_u128();
    let letters = (0..5u32).map(|index| {
        let index = (random >> (index * 16)) & 0xffff;
        char::from(LETTERS[index as usize % LETTERS.len()])
    });
    let name: String = base.chars().chain(letters).collect();
    of(object).insert("name".to_owned(), json!(name));
    true
}

/// Carries over what a change cannot change, and refuses attempts to.
pub(super) fn carry_over(kind: &Kind, object: &mut Value, old: &Value) -> Result<()> {
    let name = text(old, "name").to_owned();
    let uid = text(object, "uid").to_owned();
    if !uid.is_empty() && uid != text(old, "uid") {
        let why = format!(
            "Precondition failed: UID in precondition: {uid}, UID in object meta: {}",
            text(old, "uid")
        );
        return Err(ApiError::conflict(&kind.resource, &name, why));
    }
    let path = FieldPath::root("metadata");
    let mut violations = Violations::new();
    let deleting = !old["metadata"]["deletionTimestamp"].is_null();
    let given = &object["metadata"]["creationTimestamp"];
    if given.is_string() && !same_time(given, &old["metadata"]["creationTimestamp"]) {
        violations.invalid(&path.field("creationTimestamp"), given, "field is immutable");
    }
    let given = &object["metadata"]["deletionTimestamp"];
    if !deleting && !given.is_null() {
        violations.invalid(
            &path.field("deletionTimestamp"),
            given,
            "field is immutable; may only be changed via deletion",
        );
    }
    if !violations.is_empty() {
        return Err(ApiError::invalid_object(&kind.resource, &name, violations.into_vec()));
    }
    let fixed = [
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "resourceVersion",
    ];
    for field in fixed {
        match old["metadata"].get(field) {
            Some(value) => of(object).insert(field.to_owned(), value.clone()),
            None => of(object).remove(field),
        };
    }
    of(object).remove("selfLink");
    drop_empty(object);
    Ok(())
}

/// Nothing and an empty list are the same; only one of them is stored.
pub(super) fn drop_empty(object: &mut Value) {
    for field in ["labels", "annotations", "ownerReferences", "finalizers"] {
        let empty = match &object["metadata"][field] {
            Value::Null => true,
            Value::Array(items) => items.is_empty(),
            Value::Object(map) => map.is_empty(),
            _ => false,
        };
        if empty {
            of(object).remove(field);
        }
    }
}

fn same_time(a: &Value, b: &Value) -> bool {
    let time = |value: &Value| {
        value
            .as_str()
            .and_then(|text| text.parse::<muster_api::Timestamp>().ok())
    };
    time(a) == time(b)
}

/// The finalizers of an object.
pub(super) fn finalizers(object: &Value) -> BTreeSet<&str> {
    let items = object["metadata"]["finalizers"].as_array().into_iter().flatten();
    items.filter_map(Value::as_str).collect()
}

/// What is wrong with the metadata. Its shape has been checked.
pub(super) fn validate(kind: &Kind, object: &Value, old: Option<&Value>) -> Vec<Violation> {
    let path = FieldPath::root("metadata");
    let mut violations = Violations::new();
    let metadata = &object["metadata"];
    let name = text(object, "name");
    if name.is_empty() {
        violations.required(&path.field("name"), "name or generateName is required");
    } else {
        violations.check(&path.field("name"), name, kind.strategy.name_problem(name));
    }
    validate_maps(&mut violations, &path, metadata);
    let finalizers_path = path.field("finalizers");
    let own = finalizers(object);
    if own.len() > limits::META_ITEMS {
        violations.too_many(&finalizers_path, own.len(), limits::META_ITEMS);
    }
    let before = old.map(finalizers).unwrap_or_default();
    for finalizer in own.iter().filter(|finalizer| !before.contains(*finalizer)) {
        violations.check(&finalizers_path, finalizer, names::qualified_name_problem(finalizer));
        if old.is_some_and(|old| !old["metadata"]["deletionTimestamp"].is_null()) {
            let why = "no new finalizers can be added if the object is being deleted";
            violations.forbidden(&finalizers_path, &format!("{why}, found new finalizer \"{finalizer}\""));
        }
    }
    validate_owners(&mut violations, &path.field("ownerReferences"), metadata);
    violations.into_vec()
}

fn validate_maps(violations: &mut Violations, path: &FieldPath, metadata: &Value) {
    let labels = path.field("labels");
    let entries = metadata["labels"].as_object();
    let count = entries.map_or(0, Map::len);
    if count > limits::LABELS {
        violations.too_many(&labels, count, limits::LABELS);
    }
    for (key, value) in entries.into_iter().flatten() {
        let value = value.as_str().unwrap_or_default();
        violations.check(&labels, key, names::qualified_name_problem(key));
        violations.check(&labels.key(key), value, names::label_value_problem(value));
    }
    let annotations = path.field("annotations");
    let mut bytes = 0;
    for (key, value) in metadata["annotations"].as_object().into_iter().flatten() {
        bytes += key.len() + value.as_str().map_or(0, str::len);
        violations.check(&annotations, key, names::qualified_name_problem(&key.to_lowercase()));
    }
    if bytes > limits::ANNOTATION_BYTES {
        violations.too_long(&annotations, limits::ANNOTATION_BYTES);
    }
}

fn validate_owners(violations: &mut Violations, path: &FieldPath, metadata: &Value) {
    let owners = metadata["ownerReferences"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    if owners.len() > limits::META_ITEMS {
        violations.too_many(path, owners.len(), limits::META_ITEMS);
    }
    for (index, owner) in owners.iter().enumerate() {
        let path = path.index(index);
        for field in ["apiVersion", "kind", "name", "uid"] {
            if owner[field].as_str().unwrap_or_default().is_empty() {
                violations.required(&path.field(field), "must not be empty");
            }
        }
    }
    let controllers: Vec<usize> = (0..owners.len())
        .filter(|index| owners[*index]["controller"] == true)
        .collect();
    if let [_, second, ..] = controllers.as_slice() {
        let why = "only one reference can have Controller set to true";
        violations.invalid(&path.index(*second).field("controller"), true, why);
    }
}
