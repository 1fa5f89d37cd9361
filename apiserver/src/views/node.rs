//! An agent as a Node.

use serde_json::{Map, Value, json};

use super::{condition, metadata, text, without_null};

/// What keeps Pods away from a Node that takes none.
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";

/// The Node that an agent is shown as.
pub(crate) fn of_agent(agent: Value) -> Value {
    let capacity = capacity(&agent);
    let unschedulable = agent["spec"]["unschedulable"] == true;
    let taints = json!([{"key": UNSCHEDULABLE, "effect": "NoSchedule"}]);
    let mut metadata = metadata(&agent);
    // What tasks select agents by is what Pods select Nodes by.
    let mut labels: Map<String, Value> = agent["spec"]["attributes"].as_object().cloned().unwrap_or_default();
    labels.insert("kubernetes.io/hostname".to_owned(), agent["metadata"]["name"].clone());
    labels.insert("kubernetes.io/os".to_owned(), json!("linux"));
    labels.extend(metadata["labels"].as_object().cloned().unwrap_or_default());
    metadata["labels"] = labels.into();
    json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": metadata,
        "spec": if unschedulable { json!({"unschedulable": true, "taints": taints}) } else { json!({}) },
        "status": {
            "capacity": capacity,
            "allocatable": capacity,
            "conditions": [ready(&agent)],
            "addresses": addresses(&agent),
            "nodeInfo": info(&agent),
        },
    })
}

fn capacity(agent: &Value) -> Value {
    let own = &agent["status"]["capacity"];
    let shown = |value: &Value| match value {
        Value::Number(number) => json!(number.to_string()),
        other => other.clone(),
    };
    let mut capacity = without_null(json!({
        "cpu": shown(&own["cpus"]),
        "memory": shown(&own["memory"]),
        "ephemeral-storage": shown(&own["disk"]),
        // As many as there are names for; what fits is a matter of the rest.
        "pods": "10000",
    }));
    if own["gpus"].as_u64().is_some_and(|gpus| gpus > 0) {
        capacity["muster.dev/gpu"] = shown(&own["gpus"]);
    }
    capacity
}

fn ready(agent: &Value) -> Value {
    let own = condition(agent, "Ready").cloned().unwrap_or_default();
    let lost = !["", "Reachable"].contains(&text(agent, "/status/reachability"));
    // Of a machine that is silent nobody knows.
    let status = if lost { json!("Unknown") } else { own["status"].clone() };
    without_null(json!({
        "type": "Ready",
        "status": if status.is_null() { json!("Unknown") } else { status },
        "reason": own["reason"],
        "message": own["message"],
        "lastHeartbeatTime": own["lastTransitionTime"],
        "lastTransitionTime": own["lastTransitionTime"],
    }))
}

fn addresses(agent: &Value) -> Value {
    let host = text(agent, "/status/address")
        .rsplit_once(':')
        .map_or("", |(host, _)| host);
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = json!({"type": "Hostname", "address": agent["metadata"]["name"]});
    if host.is_empty() {
        return json!([name]);
    }
    let kind = if host.parse::<std::net::IpAddr>().is_ok() {
        "InternalIP"
    } else {
        "InternalDNS"
    };
    json!([{"type": kind, "address": host}, name])
}

fn info(agent: &Value) -> Value {
    let versions = &agent["status"]["versions"];
    let known = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    json!({
        "architecture": "",
        "bootID": known(&agent["status"]["bootID"]),
        "containerRuntimeVersion": known(&versions["runtime"]),
        "kernelVersion": known(&versions["kernel"]),
        "kubeProxyVersion": "",
        "kubeletVersion": known(&versions["muster"]),
        "machineID": "",
        "operatingSystem": "linux",
        "osImage": "",
        "systemUUID": "",
    })
}

/// `Ready`, or what it is instead.
pub(super) fn status_cell(node: &Value) -> Value {
    let ready = match condition(node, "Ready").map(|condition| text(condition, "/status")) {
        Some("True") => "Ready",
        _ => "NotReady",
    };
    let cordoned = node["spec"]["unschedulable"] == true;
    json!(format!("{ready}{}", if cordoned { ",SchedulingDisabled" } else { "" }))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn agent() -> Value {
        json!({
            "metadata": {"name": "a1", "labels": {"team": "ml"}, "managedFields": [{}]},
            "spec": {"attributes": {"zone": "z1"}},
            "status": {
                "address": "10.0.0.1:7444", "reachability": "Reachable", "versions": {"muster": "0.1.0", "kernel": "6.1"},
                "capacity": {"cpus": 64, "memory": "1Ti", "gpus": 8},
                "conditions": [{"type": "Ready", "status": "True", "reason": "Reachable", "lastTransitionTime": "2026-01-01T00:00:00Z"}],
            },
        })
    }

    #[test]
    fn an_agent_is_a_node_with_its_capacity_labels_and_address() {
        let node = of_agent(agent());
        assert_eq!(node["status"]["capacity"]["muster.dev/gpu"], "8");
        assert_eq!(node["status"]["capacity"]["cpu"], "64");
        let labels = json!({"team": "ml", "zone": "z1", "kubernetes.io/hostname": "a1", "kubernetes.io/os": "linux"});
        assert_eq!(node["metadata"]["labels"], labels);
        assert_eq!(node["metadata"].get("managedFields"), None);
        assert_eq!(
            node["status"]["addresses"][0],
            json!({"type": "InternalIP", "address": "10.0.0.1"})
        );
        assert_eq!(status_cell(&node), "Ready");
    }

    #[test]
    fn what_is_silent_is_unknown_and_what_is_cordoned_says_so() {
        let mut lost = agent();
        lost["status"]["reachability"] = json!("Unknown");
        lost["spec"]["unschedulable"] = json!(true);
        let node = of_agent(lost);
        assert_eq!(node["status"]["conditions"][0]["status"], "Unknown");
        assert_eq!(status_cell(&node), "NotReady,SchedulingDisabled");
        assert_eq!(node["spec"]["taints"][0]["key"], UNSCHEDULABLE);
    }
}
