//! The schemas that the documents name.

use std::collections::BTreeMap;

use k8s_openapi::api::authentication::v1::TokenRequest;
use k8s_openapi::api::autoscaling::v1::Scale;
use k8s_openapi::api::policy::v1::Eviction;
use muster_api::wire;
use serde_json::{Value, json};

use crate::kinds;
use crate::resource::Resource;

const META: &str = "io.k8s.apimachinery.pkg.apis.meta.v1";
/// The name that clients know for a number or a text.
pub(super) const INT_OR_STRING: &str = "io.k8s.apimachinery.pkg.util.intstr.IntOrString";

/// The name of the schema of a kind: its group turned round, as Go's and Java's packages are.
pub(super) fn name(group: &str, version: &str, kind: &str) -> String {
    let package = match group {
        "" => "io.k8s.api.core".to_owned(),
        group => match group
            .strip_suffix(".k8s.io")
            .or((!group.contains('.')).then_some(group))
        {
            Some(own) => format!("io.k8s.api.{own}"),
            None => group.rsplit('.').collect::<Vec<_>>().join("."),
        },
    };
    format!("{package}.{version}.{kind}")
}

/// A reference to the schema of that name.
pub(super) fn reference(name: &str) -> Value {
    json!({"$ref": format!("#/components/schemas/{name}")})
}

/// A reference that keeps the description of what it stands for.
fn described(name: &str, schema: &Value) -> Value {
    let mut value = json!({"allOf": [reference(name)]});
    if schema["description"].is_string() {
        value["description"] = schema["description"].clone();
    }
    value
}

/// Gives whatever is a number or a text the name of such a type, so that it has one where types are shown.
fn name_mixed(schema: &mut Value) {
    if schema["x-kubernetes-int-or-string"] == true {
        *schema = described(INT_OR_STRING, schema);
        return;
    }
    let Value::Object(map) = schema else { return };
    if let Some(Value::Object(properties)) = map.get_mut("properties") {
        properties.values_mut().for_each(name_mixed);
    }
    for name in ["items", "additionalProperties"] {
        if let Some(below) = map.get_mut(name).filter(|below| below.is_object()) {
            name_mixed(below);
        }
    }
}

/// The full name of a schema of `meta/v1`.
pub(super) fn meta(kind: &str) -> String {
    format!("{META}.{kind}")
}

/// What all documents have in common.
pub(super) fn common() -> BTreeMap<String, Value> {
    let text = |description: &str| json!({"type": "string", "description": description});
    let number = |description: &str| json!({"type": "integer", "format": "int64", "description": description});
    let list_meta = json!({
        "type": "object",
        "description": "What the server notes about a list.",
        "properties": {
            "continue": text("Ask with this for the next part of the list."),
            "remainingItemCount": number("How many items are in the parts that follow."),
            "resourceVersion": text("The state that the list shows; a watch goes on from here."),
            "selfLink": text("Not used any more."),
        },
    });
    let delete_options = json!({
        "type": "object",
        "description": "How an object is to be deleted.",
        "properties": {
            "apiVersion": text("The version of this object."),
            "kind": text("What this object is."),
            "dryRun": {"type": "array", "items": {"type": "string"}, "description": "`All`: everything but the deletion itself."},
            "gracePeriodSeconds": number("How long the object has to end."),
            "orphanDependents": {"type": "boolean", "description": "Older form of `propagationPolicy`."},
            "propagationPolicy": text("What happens to what the object owns: `Orphan`, `Background` or `Foreground`."),
            "preconditions": {
                "type": "object",
                "description": "Delete only this very object.",
                "properties": {"uid": text("Its uid."), "resourceVersion": text("Its version.")},
            },
        },
    });
    let status = json!({
        "type": "object",
        "description": "How a request went.",
        "properties": {
            "apiVersion": text("The version of this object."),
            "kind": text("What this object is."),
            "code": {"type": "integer", "format": "int32", "description": "The HTTP status."},
            "details": {
                "type": "object",
                "description": "What it is about, and each thing that is wrong.",
                "x-kubernetes-preserve-unknown-fields": true,
            },
            "message": text("What happened, and what to do about it."),
            "metadata": reference(&meta("ListMeta")),
            "reason": text("The machine's word for it."),
            "status": text("`Success` or `Failure`."),
        },
        "x-kubernetes-group-version-kind": [{"group": "", "version": "v1", "kind": "Status"}],
    });
    let patch = json!({"type": "object", "description": "A change to an object."});
    let mut object_meta = kinds::metadata_schema();
    if let Value::Object(map) = &mut object_meta {
        map.insert(
            "description".to_owned(),
            json!("The name of an object, its labels, and what the server notes about it."),
        );
    }
    let int_or_string = json!({
        "description": "A number or a text.",
        "oneOf": [{"type": "number"}, {"type": "string"}],
        "format": "int-or-string",
    });
    BTreeMap::from([
        (INT_OR_STRING.to_owned(), int_or_string),
        (meta("DeleteOptions"), delete_options),
        (meta("ListMeta"), list_meta),
        (meta("ObjectMeta"), object_meta),
        (meta("Patch"), patch),
        (meta("Status"), status),
    ])
}

/// The schemas of a kind: one object, a list, and what its subresources take and give.
pub(super) fn of(resource: &Resource) -> BTreeMap<String, Value> {
    let (group, version, kind) = (&resource.group, &resource.version, &resource.kind);
    let tag = |kind: &str| json!([{"group": group, "version": version, "kind": kind}]);
    let one = name(group, version, kind);
    let mut object = (*resource.schema).clone();
    object["properties"]["metadata"] = described(&meta("ObjectMeta"), &resource.schema["properties"]["metadata"]);
    name_mixed(&mut object);
    object["x-kubernetes-group-version-kind"] = tag(kind);
    let list = json!({
        "type": "object",
        "description": format!("Several objects of the kind {kind}."),
        "required": ["items"],
        "properties": {
            "apiVersion": {"type": "string", "description": "The version of the schema of this object."},
            "kind": {"type": "string", "description": "What this object is."},
            "metadata": reference(&meta("ListMeta")),
            "items": {"type": "array", "description": "The objects.", "items": reference(&one)},
        },
        "x-kubernetes-group-version-kind": tag(&format!("{kind}List")),
    });
    let mut all = BTreeMap::from([(one, object), (name(group, version, &format!("{kind}List")), list)]);
    for subresource in &resource.subresources {
        let calls = match subresource.name {
            "accept" => vec![
                ("AcceptRequest", kinds::schema_of::<wire::AcceptRequest>()),
                ("AcceptResult", kinds::schema_of::<wire::AcceptResult>()),
            ],
            "decline" => vec![("DeclineRequest", kinds::schema_of::<wire::DeclineRequest>())],
            "offers" => vec![
                ("AgentOffers", kinds::schema_of::<wire::AgentOffers>()),
                ("AgentOffersResult", kinds::schema_of::<wire::AgentOffersResult>()),
            ],
            "token" => {
                let (group, version, kind) = &subresource.response;
                all.insert(name(group, version, kind), kinds::schema_of::<TokenRequest>());
                Vec::new()
            }
            "eviction" => {
                let (group, version, kind) = &subresource.response;
                let mut eviction = kinds::schema_of::<Eviction>();
                eviction["properties"]["metadata"] =
                    described(&meta("ObjectMeta"), &eviction["properties"]["metadata"]);
                all.insert(name(group, version, kind), eviction);
                Vec::new()
            }
            _ => Vec::new(),
        };
        if subresource.name == "scale" {
            let (group, version, kind) = &subresource.response;
            let mut scale = kinds::schema_of::<Scale>();
            scale["properties"]["metadata"] = described(&meta("ObjectMeta"), &scale["properties"]["metadata"]);
            scale["x-kubernetes-group-version-kind"] = json!([{"group": group, "version": version, "kind": kind}]);
            all.insert(name(group, version, kind), scale);
        }
        all.extend(
            calls
                .into_iter()
                .map(|(call, schema)| (name(group, version, call), schema)),
        );
    }
    all
}
