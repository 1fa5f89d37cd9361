//! The roles and bindings that every cluster has.
//!
//! What Kubernetes has too has Kubernetes' name: whoever knows `view`, `edit`, `admin` and `cluster-admin` knows them here. The first three
//! are put together out of roles with a label, so that a kind of somebody's own joins them with a role of its own. Agents, the control
//! plane and its servers have no role here: what they may do is written in [`crate::auth`].

use muster_api::names;
use serde_json::{Value, json};

use super::{GROUP, Rule};
use crate::auth::{AUTHENTICATED, UNAUTHENTICATED};

/// A role or a binding that is made when it is missing.
pub(super) struct Default {
    /// `clusterroles` or `clusterrolebindings`.
    pub(super) plural: &'static str,
    /// `ClusterRole` or `ClusterRoleBinding`.
    pub(super) kind: &'static str,
    /// The name.
    pub(super) name: &'static str,
    /// The object, without uid and time.
    pub(super) object: Value,
}

const LABEL: &str = "kubernetes.io/bootstrapping";
/// `"false"`: whoever wrote that keeps the object as it is.
pub(super) const AUTOUPDATE: &str = "rbac.authorization.kubernetes.io/autoupdate";

const READ: [&str; 3] = ["get", "list", "watch"];
const WRITE: [&str; 5] = ["create", "delete", "deletecollection", "patch", "update"];
const CREATE: [&str; 1] = ["create"];
const OURS: [&str; 1] = [names::GROUP];
const EVENTS: [&str; 2] = ["", "events.k8s.io"];
const LEASES: [&str; 1] = ["coordination.k8s.io"];
/// What is opened rather than read or written: by POST, or by GET for a WebSocket.
const SESSIONS: [&str; 4] = ["tasks/attach", "tasks/exec", "tasks/files", "tasks/portforward"];

fn metadata(name: &str, labels: &[(&str, &str)]) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {LABEL: "rbac-defaults"},
        "annotations": {AUTOUPDATE: "true"},
    });
    for (key, value) in labels {
        metadata["labels"][*key] = json!(value);
    }
    metadata
}

fn role(name: &'static str, labels: &[(&str, &str)], rules: &[Rule]) -> Default {
    let rules: Vec<Value> = rules.iter().map(Rule::json).collect();
    Default {
        plural: super::CLUSTER_ROLES,
        kind: "ClusterRole",
        name,
        object: json!({"metadata": metadata(name, labels), "rules": rules}),
    }
}

/// A role of everything that has the label `aggregate-to-NAME`.
fn union(name: &'static str, joins: Option<&str>) -> Default {
    let label = |name: &str| format!("{GROUP}/aggregate-to-{name}");
    let joins = joins.map(label);
    let joins: Vec<(&str, &str)> = joins.iter().map(|label| (label.as_str(), "true")).collect();
    let selector = json!({"matchLabels": {label(name): "true"}});
    Default {
        plural: super::CLUSTER_ROLES,
        kind: "ClusterRole",
        name,
        object: json!({
            "metadata": metadata(name, &joins),
            "aggregationRule": {"clusterRoleSelectors": [selector]},
            "rules": [],
        }),
    }
}

fn binding(name: &'static str, groups: &[&str]) -> Default {
    let subject = |group: &&str| json!({"apiGroup": GROUP, "kind": "Group", "name": group});
    let subjects: Vec<Value> = groups.iter().map(subject).collect();
    Default {
        plural: super::CLUSTER_ROLE_BINDINGS,
        kind: "ClusterRoleBinding",
        name,
        object: json!({
            "metadata": metadata(name, &[]),
            "roleRef": {"apiGroup": GROUP, "kind": "ClusterRole", "name": name},
            "subjects": subjects,
        }),
    }
}

/// All of them. A union stands behind what it is put together out of.
pub(super) fn all() -> Vec<Default> {
    let mut all = whole();
    all.extend(teams());
    all.extend([
        binding("cluster-admin", &[names::GROUP_MASTERS]),
        binding("system:basic-user", &[AUTHENTICATED]),
        binding("system:discovery", &[AUTHENTICATED]),
        binding("system:monitoring", &["system:monitoring"]),
        binding("system:public-info-viewer", &[AUTHENTICATED, UNAUTHENTICATED]),
        binding("system:service-account-issuer-discovery", &["system:serviceaccounts"]),
    ]);
    all
}

/// What concerns the whole cluster.
fn whole() -> Vec<Default> {
    let reviews = ["authentication.k8s.io", "authorization.k8s.io"];
    let own = [
        "selfsubjectaccessreviews",
        "selfsubjectreviews",
        "selfsubjectrulesreviews",
    ];
    let health = ["/healthz", "/livez", "/readyz", "/version", "/version/"];
    let discovery = [
        "/api",
        "/api/*",
        "/apis",
        "/apis/*",
        "/healthz",
        "/livez",
        "/muster/v1/endpoints",
        "/openapi",
        "/openapi/*",
        "/readyz",
        "/version",
        "/version/",
    ];
    let keys = ["/.well-known/openid-configuration", "/openid/v1/jwks"];
    let health_in_parts = [
        "/healthz",
        "/healthz/*",
        "/livez",
        "/livez/*",
        "/metrics",
        "/readyz",
        "/readyz/*",
    ];
    vec![
        role(
            "cluster-admin",
            &[],
            &[Rule::of(&["*"], &["*"], &["*"]), Rule::of_paths(&["*"], &["*"])],
        ),
        role("system:basic-user", &[], &[Rule::of(&CREATE, &reviews, &own)]),
        role("system:discovery", &[], &[Rule::of_paths(&["get"], &discovery)]),
        role(
            "system:monitoring",
            &[],
            &[
                Rule::of(&["get"], &OURS, &["agents/metrics"]),
                Rule::of_paths(&["get"], &health_in_parts),
            ],
        ),
        role("system:public-info-viewer", &[], &[Rule::of_paths(&["get"], &health)]),
        role(
            "system:service-account-issuer-discovery",
            &[],
            &[Rule::of_paths(&["get"], &keys)],
        ),
        role(
            "system:auth-delegator",
            &[],
            &[
                Rule::of(&CREATE, &["authentication.k8s.io"], &["tokenreviews"]),
                Rule::of(&CREATE, &["authorization.k8s.io"], &["subjectaccessreviews"]),
            ],
        ),
    ]
}

/// What is given to people and programs, mostly in a namespace.
fn teams() -> Vec<Default> {
    let to = |name: &'static str| match name {
        "view" => ("rbac.authorization.k8s.io/aggregate-to-view", "true"),
        "edit" => ("rbac.authorization.k8s.io/aggregate-to-edit", "true"),
        _ => ("rbac.authorization.k8s.io/aggregate-to-admin", "true"),
    };
    let shown = [
        "agents",
        "agents/status",
        "agents/usage",
        "frameworks",
        "frameworks/status",
        "offers",
        "offers/status",
        "quotas",
        "quotas/status",
        "tasks",
        "tasks/log",
        "tasks/status",
        "tasks/usage",
    ];
    let view = [
        Rule::of(
            &READ,
            &[""],
            &[
                "configmaps",
                "namespaces",
                "namespaces/status",
                "nodes",
                "pods",
                "pods/log",
                "serviceaccounts",
            ],
        ),
        Rule::of(&READ, &EVENTS, &["events"]),
        Rule::of(&READ, &LEASES, &["leases"]),
        Rule::of(&READ, &["metrics.k8s.io"], &["nodes", "pods"]),
        Rule::of(&READ, &OURS, &shown),
    ];
    let edit = [
        Rule::of(&READ, &[""], &["secrets"]),
        Rule::of(&WRITE, &[""], &["configmaps", "pods", "secrets", "serviceaccounts"]),
        Rule::of(&CREATE, &[""], &["pods/eviction"]),
        Rule::of(&["create", "get"], &[""], &["pods/exec", "pods/portforward"]),
        Rule::of(&CREATE, &[""], &["serviceaccounts/token"]),
        Rule::of(&["impersonate"], &[""], &["serviceaccounts"]),
        Rule::of(&WRITE, &EVENTS, &["events"]),
        Rule::of(&WRITE, &LEASES, &["leases"]),
        Rule::of(&CREATE, &LEASES, &["leases/renew"]),
        Rule::of(&WRITE, &OURS, &["frameworks", "tasks"]),
        Rule::of(&["create", "get"], &OURS, &SESSIONS),
        Rule::of(&CREATE, &OURS, &["offers/accept", "offers/decline"]),
    ];
    let own = ["rolebindings", "roles"];
    let admin = [
        Rule::of(&CREATE, &["authorization.k8s.io"], &["localsubjectaccessreviews"]),
        Rule::of(&[&READ[..], &WRITE[..]].concat(), &[GROUP], &own),
    ];
    let framework = [
        Rule::of(
            &READ,
            &OURS,
            &["frameworks", "frameworks/status", "offers", "offers/status"],
        ),
        Rule::of(&["create", "patch", "update"], &OURS, &["frameworks"]),
        Rule::of(&CREATE, &OURS, &["offers/accept", "offers/decline"]),
        Rule::of(&[&READ[..], &WRITE[..]].concat(), &OURS, &["tasks"]),
        Rule::of(&READ, &OURS, &["tasks/log", "tasks/status"]),
        Rule::of(
            &[&READ[..], &["create", "patch", "update"]].concat(),
            &EVENTS,
            &["events"],
        ),
        Rule::of(&[&READ[..], &WRITE[..]].concat(), &LEASES, &["leases"]),
        Rule::of(&CREATE, &LEASES, &["leases/renew"]),
    ];
    vec![
        role("system:aggregate-to-view", &[to("view")], &view),
        role("system:aggregate-to-edit", &[to("edit")], &edit),
        role("system:aggregate-to-admin", &[to("admin")], &admin),
        union("view", Some("edit")),
        union("edit", Some("admin")),
        union("admin", None),
        role("muster:framework", &[], &framework),
        // What all tasks of all namespaces wait for. No part of `view`: an administrator of a namespace could not give that on.
        role(
            "muster:plan-viewer",
            &[],
            &[Rule::of_paths(&["get"], &["/muster/v1/plan"])],
        ),
    ]
}
