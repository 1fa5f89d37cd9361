//! What can be done with a kind, and how each document says so.

use serde_json::{Map, Value, json};

use super::schemas::{meta, name, reference};
use crate::resource::{Resource, Subresource};

const JSON: &str = "application/json";
const YAML: &str = "application/yaml";
const PATCHES: [&str; 3] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
];
/// Strategic merge patches are taken for all kinds, but told only where clients know the types: for others they make better patches by
/// themselves.
const PATCHES_CORE: [&str; 4] = [
    "application/apply-patch+yaml",
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
];

/// One thing that can be done at one path.
pub(super) struct Operation {
    /// `get`, `put`, `post`, `delete` or `patch`.
    pub(super) method: &'static str,
    /// The word of Kubernetes for it, as in `list`.
    action: &'static str,
    id: String,
    description: String,
    tag: String,
    kind: Value,
    /// Name, place, type, description.
    parameters: Vec<(&'static str, &'static str, &'static str, &'static str)>,
    /// Media types and schema.
    body: Option<(&'static [&'static str], String)>,
    /// Status, media type and schema.
    response: (u16, &'static str, Option<String>),
}

const NAMESPACE: (&str, &str, &str, &str) = ("namespace", "path", "string", "The namespace of the object.");
const NAME: (&str, &str, &str, &str) = ("name", "path", "string", "The name of the object.");
const DRY_RUN: (&str, &str, &str, &str) = ("dryRun", "query", "string", "`All`: everything but the write itself.");
const MANAGER: (&str, &str, &str, &str) = ("fieldManager", "query", "string", "Who writes.");
const VALIDATION: (&str, &str, &str, &str) = (
    "fieldValidation",
    "query",
    "string",
    "What is done about unknown and duplicate fields: `Ignore`, `Warn` (the default) or `Strict`.",
);
const FORCE: (&str, &str, &str, &str) = (
    "force",
    "query",
    "boolean",
    "Whether who applies takes the fields that others own.",
);
const VERSION: (&str, &str, &str, &str) = (
    "resourceVersion",
    "query",
    "string",
    "Which state is wanted, or at least.",
);
const LIST: [(&str, &str, &str, &str); 10] = [
    ("labelSelector", "query", "string", "Only objects whose labels match."),
    ("fieldSelector", "query", "string", "Only objects whose fields match."),
    (
        "limit",
        "query",
        "integer",
        "At most so many objects; the rest follows with `continue`.",
    ),
    ("continue", "query", "string", "Where the part before ended."),
    VERSION,
    (
        "resourceVersionMatch",
        "query",
        "string",
        "How `resourceVersion` is meant: `Exact` or `NotOlderThan`.",
    ),
    ("timeoutSeconds", "query", "integer", "When a watch ends."),
    (
        "watch",
        "query",
        "boolean",
        "Changes as they happen, instead of a list.",
    ),
    (
        "allowWatchBookmarks",
        "query",
        "boolean",
        "Whether a watch may say how far it is.",
    ),
    (
        "sendInitialEvents",
        "query",
        "boolean",
        "Whether a watch begins with the objects that are there.",
    ),
];

fn patches(resource: &Resource) -> &'static [&'static str] {
    if resource.group == muster_api::names::GROUP {
        &PATCHES
    } else {
        &PATCHES_CORE
    }
}

/// Everything that can be done with a kind, with the paths.
pub(super) fn of(resource: &Resource) -> Vec<(String, Operation)> {
    let base = if resource.group.is_empty() {
        format!("/api/{}", resource.version)
    } else {
        format!("/apis/{}/{}", resource.group, resource.version)
    };
    let all = format!("{base}/{}", resource.plural);
    let collection = if resource.namespaced {
        format!("{base}/namespaces/{{namespace}}/{}", resource.plural)
    } else {
        all.clone()
    };
    let item = format!("{collection}/{{name}}");
    let mut operations = Vec::new();
    let mut add = |path: &str, operation: Option<Operation>| {
        operations.extend(operation.map(|operation| (path.to_owned(), operation)));
    };
    if resource.namespaced {
        add(&all, verb(resource, "list", false));
    }
    for action in ["list", "create", "deletecollection"] {
        add(&collection, verb(resource, action, resource.namespaced));
    }
    for action in ["get", "update", "patch", "delete"] {
        add(&item, verb(resource, action, resource.namespaced));
    }
    for subresource in &resource.subresources {
        for action in &subresource.verbs {
            add(
                &format!("{item}/{}", subresource.name),
                Some(call(resource, subresource, action)),
            );
        }
    }
    operations
}

/// An operation on the kind itself, when it is allowed.
fn verb(resource: &Resource, action: &'static str, namespaced: bool) -> Option<Operation> {
    if !resource.verbs.contains(&action) {
        return None;
    }
    let one = name(&resource.group, &resource.version, &resource.kind);
    let list = format!("{one}List");
    let mut parameters = if namespaced { vec![NAMESPACE] } else { Vec::new() };
    if !matches!(action, "list" | "create" | "deletecollection") {
        parameters.push(NAME);
    }
    let (words, body, response): (&str, Option<(&'static [&'static str], String)>, _) = match action {
        "list" => ("List or watch objects", None, (200, Some(list))),
        "create" => ("Create an object", Some((&[JSON, YAML], one.clone())), (201, Some(one))),
        "deletecollection" => (
            "Delete objects",
            Some((&[JSON], meta("DeleteOptions"))),
            (200, Some(meta("Status"))),
        ),
        "get" => ("Read an object", None, (200, Some(one))),
        "update" => (
            "Replace an object",
            Some((&[JSON, YAML], one.clone())),
            (200, Some(one)),
        ),
        "patch" => (
            "Change parts of an object",
            Some((patches(resource), meta("Patch"))),
            (200, Some(one)),
        ),
        _ => (
            "Delete an object",
            Some((&[JSON], meta("DeleteOptions"))),
            (200, Some(meta("Status"))),
        ),
    };
    match action {
        "list" => parameters.extend(LIST),
        "deletecollection" => parameters.extend(LIST.iter().take(2).chain([&DRY_RUN])),
        "get" => parameters.push(VERSION),
        "delete" => parameters.push(DRY_RUN),
        "patch" => parameters.extend([DRY_RUN, MANAGER, VALIDATION, FORCE]),
        _ => parameters.extend([DRY_RUN, MANAGER, VALIDATION]),
    }
    let scope = if namespaced { "Namespaced" } else { "" };
    Some(Operation {
        method: method(action),
        action: kubernetes_action(action),
        id: identity(action, resource, scope, ""),
        description: format!("{words} of the kind {}.", resource.kind),
        tag: tag(resource),
        kind: kind(&resource.group, &resource.version, &resource.kind),
        parameters,
        body,
        response: (response.0, JSON, response.1),
    })
}

/// An operation of a subresource.
fn call(resource: &Resource, subresource: &Subresource, action: &'static str) -> Operation {
    let (group, version, response) = &subresource.response;
    let schema = |kind: &str| name(group, version, kind);
    let mut parameters = if resource.namespaced {
        vec![NAMESPACE, NAME]
    } else {
        vec![NAME]
    };
    if matches!(action, "update" | "patch") {
        parameters.extend([DRY_RUN, MANAGER, VALIDATION]);
        if action == "patch" {
            parameters.push(FORCE);
        }
    }
    let (body, response_schema): (Option<(&'static [&'static str], String)>, _) = match (subresource.name, action) {
        ("accept", _) => (Some((&[JSON], schema("AcceptRequest"))), Some(schema("AcceptResult"))),
        ("decline", _) => (Some((&[JSON], schema("DeclineRequest"))), Some(schema(&resource.kind))),
        ("offers", _) => (
            Some((&[JSON], schema("AgentOffers"))),
            Some(schema("AgentOffersResult")),
        ),
        ("token", _) => (Some((&[JSON], schema(response))), Some(schema(response))),
        ("log", _) => (None, None),
        (_, "patch") => (Some((patches(resource), meta("Patch"))), Some(schema(response))),
        (_, "update") => (Some((&[JSON, YAML], schema(response))), Some(schema(response))),
        (_, _) => (None, Some(schema(response))),
    };
    if subresource.name == "log" {
        parameters.extend([
            ("follow", "query", "boolean", "Whether to go on as more is written."),
            ("previous", "query", "boolean", "The attempt before the last."),
            ("attempt", "query", "integer", "The attempt of this number."),
            ("tailLines", "query", "integer", "Only so many lines from the end."),
            ("sinceSeconds", "query", "integer", "Only lines that are no older."),
            ("sinceTime", "query", "string", "Only lines from this time on."),
            (
                "timestamps",
                "query",
                "boolean",
                "Whether each line begins with its time.",
            ),
        ]);
    }
    let scope = if resource.namespaced { "Namespaced" } else { "" };
    let media = if subresource.name == "log" { "text/plain" } else { JSON };
    Operation {
        method: method(action),
        action: kubernetes_action(action),
        id: identity(action, resource, scope, subresource.name),
        description: format!("The subresource {} of the kind {}.", subresource.name, resource.kind),
        tag: tag(resource),
        kind: kind(group, version, response),
        parameters,
        body,
        response: (
            if matches!(subresource.name, "accept" | "token") {
                201
            } else {
                200
            },
            media,
            response_schema,
        ),
    }
}

fn kind(group: &str, version: &str, kind: &str) -> Value {
    json!({"group": group, "version": version, "kind": kind})
}

fn tag(resource: &Resource) -> String {
    let group = resource
        .group
        .split('.')
        .next()
        .filter(|group| !group.is_empty())
        .unwrap_or("core");
    format!("{group}_{}", resource.version)
}

fn identity(action: &str, resource: &Resource, scope: &str, subresource: &str) -> String {
    let capital = |text: &str| {
        let mut characters = text.chars();
        characters
            .next()
            .map_or_else(String::new, |first| first.to_uppercase().chain(characters).collect())
    };
    let group = resource
        .group
        .split('.')
        .next()
        .filter(|group| !group.is_empty())
        .unwrap_or("core");
    let all = if resource.namespaced && scope.is_empty() {
        "ForAllNamespaces"
    } else {
        ""
    };
    let version = capital(&resource.version);
    format!(
        "{action}{}{version}{scope}{}{}{all}",
        capital(group),
        resource.kind,
        capital(subresource)
    )
}

fn method(action: &str) -> &'static str {
    match action {
        "create" => "post",
        "update" => "put",
        "patch" => "patch",
        "delete" | "deletecollection" => "delete",
        _ => "get",
    }
}

fn kubernetes_action(action: &'static str) -> &'static str {
    match action {
        "create" => "post",
        "update" => "put",
        other => other,
    }
}

impl Operation {
    /// As version 3 says it.
    pub(super) fn v3(&self) -> Value {
        let parameters = self.parameters.iter().map(|(name, place, kind, description)| {
            let mut value = json!({"name": name, "in": place, "description": description, "schema": {"type": kind}});
            if *place == "path" {
                value["required"] = json!(true);
            }
            value
        });
        let content = |media: &[&str], schema: &Value| -> Map<String, Value> {
            media
                .iter()
                .map(|media| ((*media).to_owned(), json!({ "schema": schema })))
                .collect()
        };
        let (status, media, schema) = &self.response;
        let schema = schema.as_deref().map_or_else(|| json!({"type": "string"}), reference);
        let mut value = json!({
            "operationId": self.id,
            "description": self.description,
            "tags": [self.tag],
            "parameters": parameters.collect::<Vec<_>>(),
            "responses": {status.to_string(): {"description": reason(*status), "content": content(&[media], &schema)}},
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": self.kind,
        });
        if let Some((media, schema)) = &self.body {
            let optional = schema.ends_with(".DeleteOptions");
            value["requestBody"] = json!({"required": !optional, "content": content(media, &reference(schema))});
        }
        value
    }

    /// As version 2 says it.
    pub(super) fn v2(&self) -> Value {
        let mut parameters: Vec<Value> = self
            .parameters
            .iter()
            .map(|(name, place, kind, description)| {
                let mut value = json!({"name": name, "in": place, "description": description, "type": kind});
                if *place == "path" {
                    value["required"] = json!(true);
                }
                value
            })
            .collect();
        let (status, media, schema) = &self.response;
        let mut response = json!({"description": reason(*status)});
        response["schema"] = schema.as_deref().map_or_else(|| json!({"type": "string"}), reference);
        let mut consumes: Vec<&str> = Vec::new();
        if let Some((media, schema)) = &self.body {
            let optional = schema.ends_with(".DeleteOptions");
            parameters.push(json!({"name": "body", "in": "body", "required": !optional, "schema": reference(schema)}));
            consumes.extend(*media);
        }
        json!({
            "operationId": self.id,
            "description": self.description,
            "tags": [self.tag],
            "consumes": consumes,
            "produces": [media],
            "parameters": parameters,
            "responses": {status.to_string(): response},
            "x-kubernetes-action": self.action,
            "x-kubernetes-group-version-kind": self.kind,
        })
    }
}

fn reason(status: u16) -> &'static str {
    if status == 201 { "Created" } else { "OK" }
}
