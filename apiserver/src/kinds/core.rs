//! The Kubernetes kinds around ours, and what their types do not say about them.

use std::sync::Arc;

use schemars::JsonSchema;
use serde_json::json;

use super::{VERBS, compile, extend, merge_by, schema_of, tidy};
use crate::resource::{Column, Resource, Subresource};

/// What the type of a Kubernetes kind does not say about it.
pub(super) struct Core {
    plural: &'static str,
    singular: &'static str,
    short_names: &'static [&'static str],
    namespaced: bool,
    status: bool,
    renew: bool,
    /// Title, type, path, priority.
    columns: &'static [(&'static str, &'static str, &'static str, i32)],
    selectable: &'static [&'static str],
}

const AGE: (&str, &str, &str, i32) = ("Age", "date", ".metadata.creationTimestamp", 0);

pub(super) const NAMESPACE: Core = Core {
    plural: "namespaces",
    singular: "namespace",
    short_names: &["ns"],
    namespaced: false,
    status: true,
    renew: false,
    columns: &[("Status", "string", ".status.phase", 0), AGE],
    selectable: &["status.phase"],
};

pub(super) const CONFIG_MAP: Core = Core {
    plural: "configmaps",
    singular: "configmap",
    short_names: &["cm"],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[("Data", "integer", "#.data #.binaryData", 0), AGE],
    selectable: &[],
};

pub(super) const SECRET: Core = Core {
    plural: "secrets",
    singular: "secret",
    short_names: &[],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[("Type", "string", ".type", 0), ("Data", "integer", "#.data", 0), AGE],
    selectable: &["type"],
};

pub(super) const SERVICE_ACCOUNT: Core = Core {
    plural: "serviceaccounts",
    singular: "serviceaccount",
    short_names: &["sa"],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[("Secrets", "integer", "#.secrets", 0), AGE],
    selectable: &[],
};

/// A view of tasks; see `views`.
pub(super) const POD: Core = Core {
    plural: "pods",
    singular: "pod",
    short_names: &["po"],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[
        ("Ready", "string", "@pod.ready", 0),
        ("Status", "string", "@pod.status", 0),
        ("Restarts", "string", "@pod.restarts", 0),
        AGE,
        ("IP", "string", ".status.podIP", 1),
        ("Node", "string", ".spec.nodeName", 1),
    ],
    selectable: &["spec.nodeName", "status.phase"],
};

/// A view of agents; see `views`.
pub(super) const NODE: Core = Core {
    plural: "nodes",
    singular: "node",
    short_names: &["no"],
    namespaced: false,
    status: false,
    renew: false,
    columns: &[
        ("Status", "string", "@node.status", 0),
        AGE,
        ("Version", "string", ".status.nodeInfo.kubeletVersion", 0),
        (
            "Internal-IP",
            "string",
            ".status.addresses[?(@.type==\"InternalIP\")].address",
            1,
        ),
        ("Kernel-Version", "string", ".status.nodeInfo.kernelVersion", 1),
        (
            "Container-Runtime",
            "string",
            ".status.nodeInfo.containerRuntimeVersion",
            1,
        ),
    ],
    selectable: &[],
};

/// What asks for the end of a Pod.
pub(super) const EVICTION: (&str, &str, &str) = ("policy", "v1", "Eviction");

/// What is asked for when a service account shall have a token.
pub(super) const TOKEN_REQUEST: (&str, &str, &str) = ("authentication.k8s.io", "v1", "TokenRequest");

pub(super) const LEASE: Core = Core {
    plural: "leases",
    singular: "lease",
    short_names: &[],
    namespaced: true,
    status: false,
    renew: true,
    columns: &[("Holder", "string", ".spec.holderIdentity", 0), AGE],
    selectable: &[],
};

pub(super) const DEFINITION: Core = Core {
    plural: "customresourcedefinitions",
    singular: "customresourcedefinition",
    short_names: &["crd", "crds"],
    namespaced: false,
    status: true,
    renew: false,
    columns: &[
        ("Created At", "string", ".metadata.creationTimestamp", 0),
        ("Group", "string", ".spec.group", 1),
        ("Age", "date", ".metadata.creationTimestamp", 1),
    ],
    selectable: &[],
};

/// Roles are shown with the time at which they were made, as Kubernetes does.
const CREATED: &[(&str, &str, &str, i32)] = &[
    ("Created At", "string", ".metadata.creationTimestamp", 0),
    ("Age", "date", ".metadata.creationTimestamp", 1),
];
const BOUND: &[(&str, &str, &str, i32)] = &[
    ("Role", "string", "{.roleRef.kind}/{.roleRef.name}", 0),
    AGE,
    ("Users", "string", ".subjects[?(@.kind==\"User\")].name", 1),
    ("Groups", "string", ".subjects[?(@.kind==\"Group\")].name", 1),
    (
        "ServiceAccounts",
        "string",
        ".subjects[?(@.kind==\"ServiceAccount\")].name",
        1,
    ),
];

pub(super) const ROLE: Core = Core {
    plural: "roles",
    singular: "role",
    short_names: &[],
    namespaced: true,
    status: false,
    renew: false,
    columns: CREATED,
    selectable: &[],
};

pub(super) const CLUSTER_ROLE: Core = Core {
    plural: "clusterroles",
    singular: "clusterrole",
    namespaced: false,
    ..ROLE
};

pub(super) const ROLE_BINDING: Core = Core {
    plural: "rolebindings",
    singular: "rolebinding",
    columns: BOUND,
    ..ROLE
};

pub(super) const CLUSTER_ROLE_BINDING: Core = Core {
    plural: "clusterrolebindings",
    singular: "clusterrolebinding",
    namespaced: false,
    ..ROLE_BINDING
};

pub(super) const CORE_EVENT: Core = Core {
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[
        (
            "Last Seen",
            "date",
            ".series.lastObservedTime|.lastTimestamp|.eventTime|.metadata.creationTimestamp",
            0,
        ),
        ("Type", "string", ".type", 0),
        ("Reason", "string", ".reason", 0),
        ("Object", "string", "{.involvedObject.kind}/{.involvedObject.name}", 0),
        ("Source", "string", ".source.component|.reportingComponent", 1),
        ("Message", "string", ".message", 0),
        (
            "First Seen",
            "date",
            ".firstTimestamp|.eventTime|.metadata.creationTimestamp",
            1,
        ),
        ("Count", "integer", ".series.count|.count", 1),
        ("Name", "string", ".metadata.name", 1),
    ],
    selectable: &[
        "involvedObject.apiVersion",
        "involvedObject.fieldPath",
        "involvedObject.kind",
        "involvedObject.name",
        "involvedObject.namespace",
        "involvedObject.resourceVersion",
        "involvedObject.uid",
        "reason",
        "reportingComponent",
        "source",
        "type",
    ],
};

pub(super) const EVENT: Core = Core {
    plural: "events",
    singular: "event",
    short_names: &["ev"],
    namespaced: true,
    status: false,
    renew: false,
    columns: &[
        (
            "Last Seen",
            "date",
            ".series.lastObservedTime|.deprecatedLastTimestamp|.eventTime|.metadata.creationTimestamp",
            0,
        ),
        ("Type", "string", ".type", 0),
        ("Reason", "string", ".reason", 0),
        ("Object", "string", "{.regarding.kind}/{.regarding.name}", 0),
        (
            "Source",
            "string",
            ".reportingController|.deprecatedSource.component",
            1,
        ),
        ("Message", "string", ".note", 0),
        (
            "First Seen",
            "date",
            ".deprecatedFirstTimestamp|.eventTime|.metadata.creationTimestamp",
            1,
        ),
        ("Count", "integer", ".series.count|.deprecatedCount", 1),
        ("Name", "string", ".metadata.name", 1),
    ],
    selectable: &[
        "reason",
        "regarding.apiVersion",
        "regarding.fieldPath",
        "regarding.kind",
        "regarding.name",
        "regarding.namespace",
        "regarding.resourceVersion",
        "regarding.uid",
        "reportingController",
        "type",
    ],
};

/// A subresource that takes and gives an object of that group, version and kind.
pub(super) fn call(name: &'static str, (group, version, kind): (&str, &str, &str), verb: &'static str) -> Subresource {
    Subresource {
        name,
        response: (group.to_owned(), version.to_owned(), kind.to_owned()),
        verbs: vec![verb],
    }
}

/// A kind whose objects ask something, are answered, and are kept by nobody.
pub(super) fn review<K: k8s_openapi::Resource + JsonSchema>(
    plural: &'static str,
    singular: &'static str,
    namespaced: bool,
) -> Resource {
    let about = Core {
        plural,
        singular,
        short_names: &[],
        namespaced,
        status: false,
        renew: false,
        columns: &[],
        selectable: &[],
    };
    of::<K>(about).only(&["create"])
}

/// A schema has schemas in it, which no schema without references can say; what is in one is checked by the kind's own rules.
const OPEN: [&str; 1] = ["/properties/spec/properties/versions/items/properties/schema/properties/openAPIV3Schema"];

/// A kind of Kubernetes', as `k8s-openapi` describes it.
pub(super) fn of<K: k8s_openapi::Resource + JsonSchema>(about: Core) -> Resource {
    let own = || (K::GROUP.to_owned(), K::VERSION.to_owned(), K::KIND.to_owned());
    let mut subresources = Vec::new();
    if about.status {
        subresources.push(Subresource {
            name: "status",
            response: own(),
            verbs: vec!["get", "patch", "update"],
        });
    }
    if about.renew {
        subresources.push(Subresource {
            name: "renew",
            response: own(),
            verbs: vec!["create"],
        });
    }
    let mut schema = tidy(schema_of::<K>());
    for place in OPEN {
        if let Some(place) = schema.pointer_mut(place) {
            *place = json!({
                "type": "object",
                "description": place["description"],
                "x-kubernetes-preserve-unknown-fields": true,
            });
        }
    }
    let conditions = schema.pointer_mut("/properties/status/properties/conditions");
    if let Some(conditions) = conditions {
        extend(conditions, merge_by("type"));
    }
    Resource {
        group: K::GROUP.to_owned(),
        version: K::VERSION.to_owned(),
        kind: K::KIND.to_owned(),
        plural: about.plural.to_owned(),
        singular: about.singular.to_owned(),
        short_names: about.short_names.iter().map(|name| (*name).to_owned()).collect(),
        categories: Vec::new(),
        namespaced: about.namespaced,
        verbs: VERBS.to_vec(),
        subresources,
        compiled: compile(&schema),
        schema: Arc::new(schema),
        scale: None,
        columns: about
            .columns
            .iter()
            .map(|(name, kind, json_path, priority)| Column {
                name: (*name).to_owned(),
                kind: (*kind).to_owned(),
                format: String::new(),
                description: String::new(),
                json_path: (*json_path).to_owned(),
                priority: *priority,
            })
            .collect(),
        selectable: about.selectable.iter().map(|field| (*field).to_owned()).collect(),
    }
}
