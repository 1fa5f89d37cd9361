//! What is known of kinds before the server is asked: the schemas of Muster's own, and of the few others that people write.

use std::sync::LazyLock;

use kube::CustomResourceExt;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use serde_json::{Value, json};

/// A kind whose objects can be checked here.
pub(super) struct Kind {
    /// `apiVersion`.
    pub(super) api_version: &'static str,
    /// `kind`.
    pub(super) kind: &'static str,
    /// Whether its objects live in namespaces.
    pub(super) namespaced: bool,
    /// The schema of the whole object.
    pub(super) schema: Value,
}

/// The kinds that are known here.
pub(super) static KINDS: LazyLock<Vec<Kind>> = LazyLock::new(|| {
    vec![
        ours::<Task>("Task", true),
        ours::<Agent>("Agent", false),
        ours::<Framework>("Framework", true),
        ours::<Offer>("Offer", true),
        ours::<Quota>("Quota", false),
        other(
            "ConfigMap",
            true,
            json!({
                "immutable": {"type": "boolean"},
                "data": {"type": "object", "nullable": true, "additionalProperties": {"type": "string"}},
                "binaryData": {"type": "object", "nullable": true, "additionalProperties": {"type": "string"}},
            }),
        ),
        other(
            "Namespace",
            false,
            json!({
                "spec": {"type": "object", "properties": {"finalizers": {"type": "array", "items": {"type": "string"}}}},
            }),
        ),
    ]
});

fn ours<K: CustomResourceExt>(kind: &'static str, namespaced: bool) -> Kind {
    let crd = serde_json::to_value(K::crd()).expect("a definition is plain data");
    let mut schema = crd["spec"]["versions"][0]["schema"]["openAPIV3Schema"].clone();
    complete(&mut schema, true);
    Kind {
        api_version: muster_api::names::API_VERSION,
        kind,
        namespaced,
        schema,
    }
}

fn other(kind: &'static str, namespaced: bool, properties: Value) -> Kind {
    let mut schema = json!({"type": "object", "properties": properties});
    complete(&mut schema, false);
    Kind {
        api_version: "v1",
        kind,
        namespaced,
        schema,
    }
}

/// Adds what every object has. What a manifest says of `status` is the server's to ignore, so it is not looked at.
fn complete(schema: &mut Value, spec_required: bool) {
    let text = json!({"type": "string"});
    schema["properties"]["apiVersion"] = text.clone();
    schema["properties"]["kind"] = text;
    schema["properties"]["metadata"] = METADATA.clone();
    schema["properties"]["status"] = json!({"x-kubernetes-preserve-unknown-fields": true, "nullable": true});
    schema["required"] = if spec_required { json!(["spec"]) } else { json!([]) };
}

/// The schema of `metadata`.
pub(super) static METADATA: LazyLock<Value> = LazyLock::new(|| {
    let text = || json!({"type": "string", "nullable": true});
    let texts = || json!({"type": "object", "nullable": true, "additionalProperties": {"type": "string"}});
    let anything = || json!({"nullable": true, "x-kubernetes-preserve-unknown-fields": true});
    json!({
        "type": "object",
        "properties": {
            "name": {"type": "string"},
            "generateName": {"type": "string"},
            "namespace": {"type": "string"},
            "labels": texts(),
            "annotations": texts(),
            "finalizers": {"type": "array", "nullable": true, "items": {"type": "string"}},
            "ownerReferences": {"type": "array", "nullable": true, "items": {
                "type": "object",
                "required": ["apiVersion", "kind", "name", "uid"],
                "properties": {
                    "apiVersion": {"type": "string"},
                    "kind": {"type": "string"},
                    "name": {"type": "string"},
                    "uid": {"type": "string"},
                    "controller": {"type": "boolean", "nullable": true},
                    "blockOwnerDeletion": {"type": "boolean", "nullable": true},
                },
            }},
            "uid": text(),
            "resourceVersion": text(),
            "generation": anything(),
            "creationTimestamp": text(),
            "deletionTimestamp": text(),
            "deletionGracePeriodSeconds": anything(),
            "managedFields": anything(),
            "selfLink": text(),
        },
    })
});

/// The kind, when it is known here.
pub(super) fn find(api_version: &str, kind: &str) -> Option<&'static Kind> {
    KINDS
        .iter()
        .find(|known| known.api_version == api_version && known.kind == kind)
}
