//! What Pods and Nodes look like here: the parts of Kubernetes' types that a task or an agent has something for.
//!
//! Clients check manifests against it before they send them, and explain it; so what is not in it cannot be said.

use serde_json::{Value, json};

use crate::kinds;
use crate::resource::Resource;

/// The resources that are views.
pub(crate) fn resources() -> [Resource; 2] {
    let [mut nodes, mut pods] = kinds::of_views();
    for (resource, known) in [(&mut pods, pod()), (&mut nodes, node())] {
        let mut schema = (*resource.schema).clone();
        keep(&mut schema, &known);
        // As Kubernetes merges them, which its types do not say.
        let containers = "/properties/spec/properties/containers";
        for place in [containers.to_owned(), format!("{containers}/items/properties/env")] {
            if let Some(list) = schema.pointer_mut(&place) {
                kinds::extend(list, kinds::merge_by("name"));
            }
        }
        resource.compiled = kinds::compile(&schema);
        resource.schema = schema.into();
    }
    [nodes, pods]
}

/// Takes out of a schema every field that is not `known`: an object of what is known of each, or `true` for all of it.
fn keep(schema: &mut Value, known: &Value) {
    let Some(fields) = known.as_object() else { return };
    if let Some(items) = schema.get_mut("items") {
        return keep(items, known);
    }
    let Some(properties) = schema.get_mut("properties").and_then(Value::as_object_mut) else {
        return;
    };
    properties.retain(|name, _| fields.contains_key(name));
    for (name, below) in properties.iter_mut() {
        keep(below, &fields[name]);
    }
    if let Some(required) = schema.get_mut("required").and_then(Value::as_array_mut) {
        required.retain(|name| name.as_str().is_some_and(|name| fields.contains_key(name)));
        if required.is_empty() {
            schema.as_object_mut().and_then(|schema| schema.remove("required"));
        }
    }
}

fn all(names: &[&str]) -> Value {
    names
        .iter()
        .map(|name| ((*name).to_owned(), json!(true)))
        .collect::<serde_json::Map<_, _>>()
        .into()
}

fn pod() -> Value {
    let security = all(&[
        "runAsUser",
        "runAsGroup",
        "runAsNonRoot",
        "allowPrivilegeEscalation",
        "privileged",
        "capabilities",
        "seccompProfile",
    ]);
    let mut container = all(&[
        "name",
        "image",
        "command",
        "args",
        "workingDir",
        "resources",
        "imagePullPolicy",
        "terminationMessagePath",
        "terminationMessagePolicy",
        "stdin",
        "stdinOnce",
        "tty",
        "ports",
    ]);
    container["env"] = all(&["name", "value"]);
    container["securityContext"] = security.clone();
    let mut spec = all(&[
        "nodeName",
        "nodeSelector",
        "restartPolicy",
        "priority",
        "terminationGracePeriodSeconds",
        "activeDeadlineSeconds",
        "schedulerName",
        "dnsPolicy",
        "enableServiceLinks",
        "hostNetwork",
        "tolerations",
        "preemptionPolicy",
        "serviceAccountName",
        "serviceAccount",
        "automountServiceAccountToken",
    ]);
    spec["containers"] = container;
    spec["securityContext"] = security;
    let mut status = all(&["phase", "reason", "message", "startTime", "conditions", "qosClass"]);
    status["containerStatuses"] = all(&[
        "name",
        "image",
        "imageID",
        "containerID",
        "ready",
        "started",
        "restartCount",
        "state",
        "lastState",
    ]);
    json!({"apiVersion": true, "kind": true, "metadata": true, "spec": spec, "status": status})
}

fn node() -> Value {
    json!({
        "apiVersion": true, "kind": true, "metadata": true,
        "spec": all(&["unschedulable", "taints"]),
        "status": all(&["capacity", "allocatable", "conditions", "addresses", "nodeInfo"]),
    })
}
