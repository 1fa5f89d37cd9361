//! The kinds that are served: Muster's own, and the Kubernetes kinds that clients expect around them.
//!
//! What this promises: each kind is described once. Muster's kinds come from their Rust types (`Agent::crd()` and its like), the
//! Kubernetes kinds from the types of `k8s-openapi`; schemas, columns, names and subresources are read from there, so that code
//! and API cannot disagree. Every schema is structural and free of references. What must never happen here: a rule about one
//! object's content, which belongs in the kind's own `validate`. Tested below: against the types, and in `openapi` against
//! the golden document.

mod core;
mod metrics;

use std::sync::Arc;

use k8s_openapi::api::authentication::v1::{SelfSubjectReview, TokenReview};
use k8s_openapi::api::authorization::v1::{
    LocalSubjectAccessReview, SelfSubjectAccessReview, SelfSubjectRulesReview, SubjectAccessReview,
};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Event as CoreEvent, Namespace, Node, Pod, Secret, ServiceAccount};
use k8s_openapi::api::events::v1::Event;
use k8s_openapi::api::rbac::v1::{ClusterRole, ClusterRoleBinding, Role, RoleBinding};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResourceExt;
use muster_api::names;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use schemars::generate::SchemaSettings;
use schemars::{JsonSchema, SchemaGenerator};
use serde_json::{Map, Value, json};

use crate::resource::{Column, Resource, ScalePaths, Subresource};
use crate::schema::{Schema, SchemaError};
use crate::views;

/// What may be done with the objects of an ordinary kind.
const VERBS: [&str; 8] = [
    "create",
    "delete",
    "deletecollection",
    "get",
    "list",
    "patch",
    "update",
    "watch",
];
/// A machine joins as an agent.
const VERBS_NODE: [&str; 5] = ["get", "list", "patch", "update", "watch"];
/// Offers are made by a subresource of agents; they are not created, changed or replaced.
const VERBS_OFFER: [&str; 4] = ["delete", "get", "list", "watch"];

/// Every kind that is served, in the order of discovery.
pub fn resources() -> Vec<Resource> {
    let [nodes, pods] = views::resources();
    vec![
        core::of::<ConfigMap>(core::CONFIG_MAP),
        core::of::<CoreEvent>(core::CORE_EVENT),
        core::of::<Namespace>(core::NAMESPACE).with(core::call("finalize", ("", "v1", "Namespace"), "update")),
        nodes,
        pods,
        core::of::<Secret>(core::SECRET),
        core::of::<ServiceAccount>(core::SERVICE_ACCOUNT).with(core::call("token", core::TOKEN_REQUEST, "create")),
        core::review::<SelfSubjectReview>("selfsubjectreviews", "selfsubjectreview", false),
        core::review::<TokenReview>("tokenreviews", "tokenreview", false),
        core::review::<LocalSubjectAccessReview>("localsubjectaccessreviews", "localsubjectaccessreview", true),
        core::review::<SelfSubjectAccessReview>("selfsubjectaccessreviews", "selfsubjectaccessreview", false),
        core::review::<SelfSubjectRulesReview>("selfsubjectrulesreviews", "selfsubjectrulesreview", false),
        core::review::<SubjectAccessReview>("subjectaccessreviews", "subjectaccessreview", false),
        core::of::<Event>(core::EVENT),
        core::of::<Lease>(core::LEASE),
        core::of::<CustomResourceDefinition>(core::DEFINITION),
        core::of::<ClusterRoleBinding>(core::CLUSTER_ROLE_BINDING),
        core::of::<ClusterRole>(core::CLUSTER_ROLE),
        core::of::<RoleBinding>(core::ROLE_BINDING),
        core::of::<Role>(core::ROLE),
        metrics::nodes(),
        metrics::pods(),
        muster(
            Agent::crd(),
            &VERBS,
            &[("offers", "AgentOffers", "create"), ("metrics", "Agent", "get")],
        ),
        muster(Framework::crd(), &VERBS, &[]),
        muster(
            Offer::crd(),
            &VERBS_OFFER,
            &[
                ("accept", "AcceptRequest", "create"),
                ("decline", "DeclineRequest", "create"),
            ],
        ),
        muster(Quota::crd(), &VERBS, &[]),
        muster(Task::crd(), &VERBS, &[("log", "Task", "get")]),
    ]
}

/// Nodes and Pods with all that Kubernetes has of them.
pub(crate) fn of_views() -> [Resource; 2] {
    let pods = core::of::<Pod>(core::POD).with(core::call("log", ("", "v1", "Pod"), "get"));
    let nodes = core::of::<Node>(core::NODE).only(&VERBS_NODE);
    [nodes, pods.with(core::call("eviction", core::EVICTION, "create"))]
}

/// The schema of `metadata`, which is the same for every kind.
pub fn metadata_schema() -> Value {
    let mut schema = metadata_rules();
    let lists = [
        ("finalizers", merge_set()),
        ("ownerReferences", merge_by("uid")),
        ("managedFields", json!({"x-kubernetes-list-type": "atomic"})),
    ];
    for (field, how) in lists {
        extend(&mut schema["properties"][field], how);
    }
    schema
}

/// What metadata is held against: as published, but that doubles in lists are let be, as Kubernetes does.
pub(crate) fn metadata_rules() -> Value {
    schema_of::<ObjectMeta>()
}

/// Says how a list of Kubernetes' kinds is merged, which their types do not.
pub(crate) fn extend(schema: &mut Value, how: Value) {
    let (Some(schema), Value::Object(how)) = (schema.as_object_mut(), how) else {
        unreachable!("the field is in the type, and is described by an object");
    };
    schema.extend(how);
}

fn merge_set() -> Value {
    json!({"x-kubernetes-list-type": "set", "x-kubernetes-patch-strategy": "merge"})
}

pub(crate) fn merge_by(key: &str) -> Value {
    json!({
        "x-kubernetes-list-type": "map",
        "x-kubernetes-list-map-keys": [key],
        "x-kubernetes-patch-strategy": "merge",
        "x-kubernetes-patch-merge-key": key,
    })
}

/// A kind of Muster's own, as its type describes it.
fn muster(
    definition: CustomResourceDefinition,
    verbs: &[&'static str],
    calls: &[(&'static str, &str, &'static str)],
) -> Resource {
    let definition = serde_json::to_value(definition).expect("a definition is plain data");
    let spec = &definition["spec"];
    let version = &spec["versions"][0];
    let schema = tidy(version["schema"]["openAPIV3Schema"].clone());
    let mut resource =
        of_version(spec, &spec["names"], version, schema).expect("the schemas of our kinds are structural");
    resource.verbs = verbs.to_vec();
    for (name, response, verb) in calls {
        resource.subresources.push(Subresource {
            name,
            response: (
                resource.group.clone(),
                names::VERSION.to_owned(),
                (*response).to_owned(),
            ),
            verbs: vec![verb],
        });
    }
    resource
}

/// The `spec` of a definition in one of its versions, under these names.
pub(crate) fn of_version(spec: &Value, names: &Value, version: &Value, schema: Value) -> Result<Resource, SchemaError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let texts = |value: &Value| -> Vec<String> { value.as_array().into_iter().flatten().map(text).collect() };
    let own = (text(&spec["group"]), text(&version["name"]), text(&names["kind"]));
    let changed = || vec!["get", "patch", "update"];
    let mut subresources = Vec::new();
    if version["subresources"]["status"].is_object() {
        subresources.push(Subresource {
            name: "status",
            response: own.clone(),
            verbs: changed(),
        });
    }
    let scale = version["subresources"]["scale"].is_object().then(|| {
        let path = |name: &str| {
            text(&version["subresources"]["scale"][name])
                .trim_start_matches('.')
                .to_owned()
        };
        ScalePaths {
            wanted: path("specReplicasPath"),
            present: path("statusReplicasPath"),
            selector: path("labelSelectorPath"),
        }
    });
    if scale.is_some() {
        subresources.push(Subresource {
            name: "scale",
            response: ("autoscaling".to_owned(), "v1".to_owned(), "Scale".to_owned()),
            verbs: changed(),
        });
    }
    let columns = version["additionalPrinterColumns"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default();
    let age = json!({"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"});
    let columns = if columns.is_empty() {
        std::slice::from_ref(&age)
    } else {
        columns
    };
    let selectable = version["selectableFields"].as_array().into_iter().flatten();
    let (group, version, kind) = own;
    Ok(Resource {
        plural: text(&names["plural"]),
        singular: text(&names["singular"]),
        short_names: texts(&names["shortNames"]),
        categories: texts(&names["categories"]),
        namespaced: spec["scope"] == "Namespaced",
        verbs: VERBS.to_vec(),
        subresources,
        compiled: Arc::new(Schema::compile(&schema)?),
        schema: Arc::new(schema),
        columns: columns.iter().map(column).collect(),
        scale,
        selectable: selectable
            .map(|field| text(&field["jsonPath"]).trim_start_matches('.').to_owned())
            .collect(),
        group,
        version,
        kind,
    })
}

fn column(value: &Value) -> Column {
    let text = |name: &str| value[name].as_str().unwrap_or_default().to_owned();
    Column {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description: text("description"),
        json_path: text("jsonPath"),
        priority: value["priority"]
            .as_i64()
            .and_then(|priority| i32::try_from(priority).ok())
            .unwrap_or(0),
    }
}

pub(crate) fn compile(schema: &Value) -> Arc<Schema> {
    Arc::new(Schema::compile(schema).expect("the schemas of this module's kinds are structural"))
}

/// The schema of a type with everything written out in place.
pub(crate) fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| settings.inline_subschemas = true);
    let mut value = SchemaGenerator::from(settings).into_root_schema_for::<T>().to_value();
    structural(&mut value);
    value
}

/// Makes a generated schema structural: no reference, no draft of JSON Schema, and an object of which nothing is known may
/// hold anything.
fn structural(schema: &mut Value) {
    if schema == &Value::Bool(true) {
        *schema = json!({});
    }
    let Some(map) = schema.as_object_mut() else { return };
    for name in [
        "$schema",
        "$defs",
        "definitions",
        "components",
        "title",
        "example",
        "examples",
    ] {
        map.remove(name);
    }
    if map.get("x-kubernetes-int-or-string") == Some(&Value::Bool(true)) {
        // Null is the same as leaving it out; without a type the generator cannot tell that and allows it everywhere.
        for name in ["type", "format", "nullable"] {
            map.remove(name);
        }
    }
    let known = map.get("type").is_some_and(|kind| kind != "object")
        || map.contains_key("x-kubernetes-int-or-string")
        || map.contains_key("enum");
    let shapeless = !known && !map.contains_key("properties") && !map.contains_key("additionalProperties");
    if shapeless {
        map.insert("x-kubernetes-preserve-unknown-fields".to_owned(), Value::Bool(true));
    }
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(structural);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(name) {
            structural(below);
        }
    }
}

/// A generated schema, as it is served.
fn tidy(mut schema: Value) -> Value {
    structural(&mut schema);
    complete(&mut schema);
    schema
}

/// Puts in what every kind's schema has at its top: the two names, and `metadata` as a plain object that is checked by rules of its own.
pub(crate) fn complete(schema: &mut Value) {
    if let Some(Value::Object(properties)) = schema.get_mut("properties") {
        let top = [
            (
                "apiVersion",
                "string",
                "The version of the schema of this object, as in `muster.dev/v1`.",
            ),
            ("kind", "string", "What this object is, as in `Task`."),
            (
                "metadata",
                "object",
                "The name of the object, its labels, and what the server notes about it.",
            ),
        ];
        for (name, kind, description) in top {
            let mut property = Map::new();
            property.insert("type".to_owned(), kind.into());
            property.insert("description".to_owned(), description.into());
            properties.insert(name.to_owned(), Value::Object(property));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn kind(group: &str, plural: &str) -> Resource {
        let all = resources();
        let found = all
            .into_iter()
            .find(|resource| resource.group == group && resource.plural == plural);
        found.unwrap_or_else(|| panic!("{plural}.{group} is not served"))
    }

    #[test]
    fn every_kind_is_described_in_full() {
        let all = resources();
        assert_eq!(all.len(), 27);
        for resource in &all {
            let name = resource.qualified();
            assert!(!resource.singular.is_empty() && !resource.version.is_empty(), "{name}");
            assert!(
                resource.is_review() || resource.columns.iter().any(|column| column.kind == "date"),
                "{name} shows no age"
            );
            assert!(resource.schema["description"].is_string(), "{name}");
            assert!(!resource.schema.to_string().contains("$ref"), "{name}");
            assert!(resource.schema["properties"]["metadata"]["type"] == "object", "{name}");
        }
    }

    #[test]
    fn the_types_say_what_can_be_selected_and_shown() {
        let tasks = kind(names::GROUP, "tasks");
        assert_eq!(
            tasks.selectable,
            ["spec.framework", "spec.role", "status.phase", "status.agent"]
        );
        assert_eq!(tasks.short_names, ["tk"]);
        assert_eq!(tasks.categories, ["muster", "all"]);
        assert!(tasks.namespaced && tasks.has_status());
        let columns: Vec<&str> = tasks.columns.iter().map(|column| column.name.as_str()).collect();
        assert_eq!(
            columns,
            [
                "Phase",
                "Reason",
                "Agent",
                "CPUs",
                "Memory",
                "GPUs",
                "Exit",
                "Age",
                "Framework",
                "Role",
                "Message"
            ]
        );
        assert_eq!(tasks.columns[0].json_path, ".status.phase");
        assert!(!kind(names::GROUP, "agents").namespaced);
        assert_eq!(
            kind(names::GROUP, "offers").selectable,
            ["spec.framework", "spec.agent", "status.phase"]
        );
    }

    #[test]
    fn every_subresource_is_there() {
        let all: Vec<String> = resources()
            .iter()
            .flat_map(|resource| {
                let plural = resource.plural.clone();
                resource
                    .subresources
                    .iter()
                    .map(move |subresource| format!("{plural}/{}", subresource.name))
            })
            .collect();
        assert_eq!(
            all,
            [
                "namespaces/status",
                "namespaces/finalize",
                "pods/log",
                "pods/eviction",
                "serviceaccounts/token",
                "leases/renew",
                "customresourcedefinitions/status",
                "agents/status",
                "agents/offers",
                "agents/metrics",
                "frameworks/status",
                "offers/status",
                "offers/accept",
                "offers/decline",
                "quotas/status",
                "tasks/status",
                "tasks/log"
            ]
        );
    }

    #[test]
    fn every_field_of_ours_is_explained() {
        fn walk(schema: &Value, path: &str, missing: &mut Vec<String>) {
            for (name, property) in schema["properties"].as_object().into_iter().flatten() {
                let path = format!("{path}.{name}");
                if !property["description"].is_string() {
                    missing.push(path.clone());
                }
                walk(property, &path, missing);
                walk(&property["items"], &path, missing);
            }
        }
        let mut missing = Vec::new();
        for resource in resources().iter().filter(|resource| resource.group == names::GROUP) {
            walk(&resource.schema, &resource.plural, &mut missing);
        }
        assert_eq!(missing, Vec::<String>::new());
    }
}
