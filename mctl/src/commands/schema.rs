//! `mctl schema`: JSON Schemas of the kinds, for editors and for checks of manifests without a cluster.
//!
//! They are made from the same OpenAPI documents that `explain` shows: built into the command, or of a cluster and so with the kinds that were
//! defined there. A field that the server would not know is a mistake in them, and so is a kind of another version.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};

use clap::Args;
use muster_apiserver::{kinds, openapi};
use serde_json::{Map, Value, json};

use crate::cli::Global;
use crate::failure::{Exit, Failure, Outcome};
use crate::session::{Session, Terminal};

const DIALECT: &str = "http://json-schema.org/draft-07/schema#";
const REFERENCE: &str = "#/components/schemas/";
const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1.ObjectMeta";

/// `mctl schema`.
#[derive(Debug, Args)]
pub struct SchemaArgs {
    /// Which kinds, as in `Task`; without any, one schema for all.
    #[arg(value_name = "KIND")]
    pub kinds: Vec<String>,
    /// Write a file for each kind, and `all.json`, into this directory.
    #[arg(long, value_name = "DIRECTORY")]
    pub directory: Option<PathBuf>,
    /// Those of the cluster, with the kinds that were defined there.
    #[arg(long)]
    pub of_cluster: bool,
}

/// The schema of one kind.
struct Found {
    kind: String,
    /// As kubeconform looks for it: `task-muster-v1.json`.
    file: String,
    schema: Value,
}

/// Runs the command.
pub async fn run(global: &Global, args: SchemaArgs, terminal: &mut Terminal) -> Outcome {
    let documents = if args.of_cluster {
        of_cluster(&Session::open(global).await?).await?
    } else {
        built_in()
    };
    let mut found: Vec<Found> = documents.iter().flat_map(of_document).collect();
    if !args.kinds.is_empty() {
        let wanted = |kind: &str| args.kinds.iter().any(|wanted| wanted.eq_ignore_ascii_case(kind));
        if let Some(unknown) = args
            .kinds
            .iter()
            .find(|kind| !found.iter().any(|found| found.kind.eq_ignore_ascii_case(kind)))
        {
            let known: Vec<&str> = found.iter().map(|found| found.kind.as_str()).collect();
            let hint = if args.of_cluster {
                ""
            } else {
                "; kinds that were defined in a cluster: --of-cluster"
            };
            return Err(Failure::new(format!(
                "there is no kind {unknown}; there are {}{hint}",
                known.join(", ")
            )));
        }
        found.retain(|found| wanted(&found.kind));
    }
    match &args.directory {
        Some(directory) => write(directory, &found, terminal),
        None => {
            let whole = match found.as_slice() {
                [one] => one.schema.clone(),
                several => any_of(several),
            };
            let text = serde_json::to_string_pretty(&whole).map_err(|error| Failure::new(error.to_string()))?;
            terminal.line(text)?;
            Ok(Exit::Done)
        }
    }
}

fn built_in() -> Vec<Value> {
    let resources = kinds::resources();
    let mut versions: Vec<(&str, &str)> = resources
        .iter()
        .map(|resource| (resource.group.as_str(), resource.version.as_str()))
        .collect();
    versions.sort_unstable();
    versions.dedup();
    let document = |(group, version)| openapi::v3(&resources, group, version);
    versions.into_iter().map(document).collect()
}

async fn of_cluster(session: &Session) -> Outcome<Vec<Value>> {
    let index = session.rest.get("/openapi/v3").await?;
    let mut documents = Vec::new();
    for place in index["paths"].as_object().into_iter().flatten() {
        let Some(path) = place.1["serverRelativeURL"].as_str() else {
            continue;
        };
        documents.push(session.rest.get(path).await?);
    }
    Ok(documents)
}

/// The schemas of the kinds that a document has, whole objects only.
fn of_document(document: &Value) -> Vec<Found> {
    let empty = Map::new();
    let schemas = document["components"]["schemas"].as_object().unwrap_or(&empty);
    let is_object = |schema: &Value| {
        let meta = format!("{REFERENCE}{META}");
        schema.pointer("/properties/metadata/allOf/0/$ref") == Some(&json!(meta))
    };
    let mut found = Vec::new();
    for (name, schema) in schemas.iter().filter(|(_, schema)| is_object(schema)) {
        let tag = &schema["x-kubernetes-group-version-kind"][0];
        let text = |field: &str| tag[field].as_str().unwrap_or_default();
        let (group, version, kind) = (text("group"), text("version"), text("kind"));
        if kind.is_empty() {
            continue;
        }
        let of_group = group.split('.').next().filter(|first| !first.is_empty());
        let of_group = of_group.map(|first| format!("{first}-")).unwrap_or_default();
        found.push(Found {
            kind: kind.to_owned(),
            file: format!("{}-{of_group}{version}.json", kind.to_lowercase()),
            schema: whole(name, schemas, group, version, kind),
        });
    }
    found
}

/// A document of its own: the schema, and what it refers to.
fn whole(name: &str, schemas: &Map<String, Value>, group: &str, version: &str, kind: &str) -> Value {
    let mut definitions = BTreeMap::new();
    let mut root = converted(&schemas[name], schemas, &mut definitions);
    let api_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    root["properties"]["apiVersion"] =
        json!({"const": api_version, "description": "The version of the schema of this object."});
    root["properties"]["kind"] = json!({"const": kind, "description": "What this object is."});
    let required = root["required"].as_array().cloned().unwrap_or_default();
    let mut names = vec![json!("apiVersion"), json!("kind"), json!("metadata")];
    names.extend(
        required
            .into_iter()
            .filter(|name| !["apiVersion", "kind", "metadata"].iter().any(|own| name == own)),
    );
    root["required"] = names.into();
    root["$schema"] = json!(DIALECT);
    root["title"] = json!(format!("{kind} of {api_version}"));
    root["definitions"] = json!(definitions);
    root
}

/// The same schema in the words of JSON Schema; what it refers to is added to `definitions`.
fn converted(schema: &Value, schemas: &Map<String, Value>, definitions: &mut BTreeMap<String, Value>) -> Value {
    let map = match schema {
        Value::Object(map) => map,
        Value::Array(list) => {
            let items = list.iter().map(|item| converted(item, schemas, definitions));
            return items.collect::<Vec<_>>().into();
        }
        other => return other.clone(),
    };
    let mut out = Map::new();
    for (key, value) in map {
        match key.as_str() {
            "$ref" => {
                let name = value
                    .as_str()
                    .and_then(|value| value.strip_prefix(REFERENCE))
                    .unwrap_or_default();
                if let Some(schema) = schemas.get(name)
                    && !definitions.contains_key(name)
                {
                    // Known before it is looked at: a schema may refer to itself.
                    definitions.insert(name.to_owned(), json!({}));
                    let schema = converted(schema, schemas, definitions);
                    definitions.insert(name.to_owned(), schema);
                }
                out.insert("$ref".to_owned(), json!(format!("#/definitions/{name}")));
            }
            "properties" => {
                let fields = value.as_object().into_iter().flatten();
                let fields: Map<String, Value> = fields
                    .map(|(name, below)| (name.clone(), converted(below, schemas, definitions)))
                    .collect();
                out.insert(key.clone(), fields.into());
            }
            "items" | "additionalProperties" | "allOf" | "anyOf" | "oneOf" | "not" => {
                out.insert(key.clone(), converted(value, schemas, definitions));
            }
            "nullable" => {}
            key if key.starts_with("x-kubernetes-") => {}
            _ => {
                out.insert(key.clone(), value.clone());
            }
        }
    }
    close(map, &mut out);
    Value::Object(out)
}

/// What OpenAPI and structural schemas say in other words.
fn close(from: &Map<String, Value>, out: &mut Map<String, Value>) {
    if from.get("nullable") == Some(&json!(true)) && out.contains_key("type") {
        let kind = out["type"].take();
        out.insert("type".to_owned(), json!([kind, "null"]));
    }
    for (flag, bound) in [("exclusiveMinimum", "minimum"), ("exclusiveMaximum", "maximum")] {
        if out.get(flag) == Some(&json!(true))
            && let Some(limit) = out.remove(bound)
        {
            out.insert(flag.to_owned(), limit);
        } else if out.get(flag).is_some_and(Value::is_boolean) {
            out.remove(flag);
        }
    }
    // The server takes out what it does not know, and says so; here it is a mistake.
    let open = from.get("x-kubernetes-preserve-unknown-fields") == Some(&json!(true));
    if out.contains_key("properties") && !out.contains_key("additionalProperties") && !open {
        out.insert("additionalProperties".to_owned(), json!(false));
    }
}

/// Whichever of them an object says it is.
fn any_of(found: &[Found]) -> Value {
    let mut definitions = Map::new();
    let mut choices = Vec::new();
    for found in found {
        let mut schema = found.schema.clone();
        if let Some(Value::Object(own)) = schema.as_object_mut().and_then(|schema| schema.remove("definitions")) {
            definitions.extend(own);
        }
        choices.push(json!({
            "if": {"properties": {
                "apiVersion": schema["properties"]["apiVersion"],
                "kind": schema["properties"]["kind"],
            }},
            "then": schema,
        }));
    }
    let kinds: Vec<&str> = found.iter().map(|found| found.kind.as_str()).collect();
    json!({
        "$schema": DIALECT,
        "title": "Any kind of Muster",
        "type": "object",
        "required": ["apiVersion", "kind"],
        "properties": {"kind": {"enum": kinds}},
        "allOf": choices,
        "definitions": definitions,
    })
}

fn write(directory: &Path, found: &[Found], terminal: &mut Terminal) -> Outcome {
    let failed = |path: &Path, error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
    std::fs::create_dir_all(directory).map_err(|error| failed(directory, error))?;
    let whole = any_of(found);
    let all = found.iter().map(|found| (found.file.as_str(), &found.schema));
    for (name, schema) in all.chain([("all.json", &whole)]) {
        let path = directory.join(name);
        let text = format!("{schema:#}\n");
        std::fs::write(&path, text).map_err(|error| failed(&path, error))?;
        terminal.line(path.display().to_string())?;
    }
    Ok(Exit::Done)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn all() -> Vec<Found> {
        built_in().iter().flat_map(of_document).collect()
    }

    fn references(value: &Value, found: &mut Vec<String>) {
        match value {
            Value::Object(map) => {
                found.extend(map.get("$ref").and_then(Value::as_str).map(str::to_owned));
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[test]
    fn every_kind_has_a_file_of_its_own_that_is_whole() {
        let found = all();
        let mut files: Vec<&str> = found.iter().map(|found| found.file.as_str()).collect();
        files.sort_unstable();
        let count = files.len();
        files.dedup();
        assert_eq!(files.len(), count, "{files:?}");
        for name in [
            "task-muster-v1.json",
            "namespace-v1.json",
            "customresourcedefinition-apiextensions-v1.json",
        ] {
            assert!(files.contains(&name), "{name} of {files:?}");
        }
        for found in &found {
            let mut named = Vec::new();
            references(&found.schema, &mut named);
            for reference in named {
                let pointer = reference.strip_prefix('#').expect("it is within the document");
                assert!(found.schema.pointer(pointer).is_some(), "{}: {reference}", found.file);
            }
        }
    }

    #[test]
    fn fields_that_the_server_does_not_know_are_mistakes() {
        let found = all();
        let task = found.iter().find(|found| found.kind == "Task").expect("it is a kind");
        let properties = &task.schema["properties"];
        assert_eq!(properties["spec"]["additionalProperties"], json!(false));
        assert_eq!(properties["kind"]["const"], json!("Task"));
        assert_eq!(properties["apiVersion"]["const"], json!("muster.dev/v1"));
        assert!(!task.schema.to_string().contains("x-kubernetes-"));
    }

    #[test]
    fn words_of_openapi_become_words_of_json_schema() {
        let schema = json!({"type": "integer", "nullable": true, "minimum": 0, "exclusiveMinimum": true, "exclusiveMaximum": false});
        let out = converted(&schema, &Map::new(), &mut BTreeMap::new());
        assert_eq!(out, json!({"type": ["integer", "null"], "exclusiveMinimum": 0}));
        let open = json!({"type": "object", "properties": {"a": {}}, "x-kubernetes-preserve-unknown-fields": true});
        let out = converted(&open, &Map::new(), &mut BTreeMap::new());
        assert_eq!(out, json!({"type": "object", "properties": {"a": {}}}));
    }
}
