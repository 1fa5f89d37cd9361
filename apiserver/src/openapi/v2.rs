//! The version 2 document: everything in one, in the older dialect.
//!
//! That dialect has no `nullable` and no alternatives of schemas. What it cannot say it leaves open, so that clients that check
//! objects against it refuse nothing that the server would take.

use std::collections::BTreeMap;

use serde_json::{Map, Value, json};

use super::{operations, schemas};
use crate::resource::Resource;

/// What version 2 has no words for.
const UNKNOWN: [&str; 7] = [
    "nullable",
    "default",
    "oneOf",
    "anyOf",
    "allOf",
    "not",
    "x-kubernetes-int-or-string",
];

/// The document.
pub(super) fn document(resources: &[Resource]) -> Value {
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut definitions = schemas::common();
    for resource in resources {
        definitions.append(&mut schemas::of(resource));
        for (path, operation) in operations::of(resource) {
            paths
                .entry(path)
                .or_default()
                .insert(operation.method.to_owned(), operation.v2());
        }
    }
    let mut document = json!({
        "swagger": "2.0",
        "info": {"title": "Muster", "version": "v1"},
        "paths": paths,
        "definitions": definitions,
    });
    simplify(&mut document["paths"]);
    // Clients know by the format that a number is fine too.
    document["definitions"][schemas::INT_OR_STRING]["type"] = json!("string");
    for schema in document["definitions"]
        .as_object_mut()
        .into_iter()
        .flat_map(Map::values_mut)
    {
        simplify(schema);
    }
    document
}

/// Turns references round, and leaves out what version 2 does not know; `properties` are names and stay.
fn simplify(value: &mut Value) {
    match value {
        Value::Object(map) => {
            // A reference with a description needs a wrapping in version 3 only.
            if let Some(Value::Array(all)) = map.get_mut("allOf")
                && let [Value::Object(only)] = all.as_mut_slice()
                && let Some(reference) = only.remove("$ref")
            {
                map.remove("allOf");
                map.insert("$ref".to_owned(), reference);
            }
            if let Some(Value::String(reference)) = map.get_mut("$ref") {
                *reference = reference.replace("#/components/schemas/", "#/definitions/");
                return;
            }
            let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
            if map.get("additionalProperties").is_some_and(Value::is_boolean) || open {
                // A closed object would have clients refuse what the server keeps.
                map.remove("additionalProperties");
                map.remove("properties");
                map.remove("required");
            }
            map.retain(|name, _| !UNKNOWN.contains(&name.as_str()));
            for (name, below) in map.iter_mut() {
                match below {
                    Value::Object(properties) if name == "properties" => properties.values_mut().for_each(simplify),
                    below => simplify(below),
                }
            }
        }
        Value::Array(list) => list.iter_mut().for_each(simplify),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::kinds;

    #[test]
    fn what_version_2_does_not_know_is_left_out() {
        let document = document(&kinds::resources());
        let text = document.to_string();
        for word in ["\"nullable\":", "#/components", "x-kubernetes-int-or-string"] {
            assert!(!text.contains(word), "{word}");
        }
        let spec = &document["definitions"]["dev.muster.v1.Task"]["properties"]["spec"];
        assert_eq!(spec["properties"]["priority"]["type"], "integer");
        let cpus = &spec["properties"]["resources"]["properties"]["cpus"];
        let mixed = cpus["$ref"].as_str().unwrap().strip_prefix('#').unwrap();
        assert_eq!(document.pointer(mixed).unwrap()["type"], "string");
        assert!(cpus["description"].is_string());
        assert_eq!(spec["properties"]["user"]["required"], json!(["uid"]));
        let patch = &document["paths"]["/apis/muster.dev/v1/namespaces/{namespace}/tasks/{name}"]["patch"];
        assert!(
            patch["parameters"]
                .as_array()
                .unwrap()
                .iter()
                .any(|parameter| parameter["name"] == "dryRun")
        );
    }
}
