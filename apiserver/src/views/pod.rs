//! A task as a Pod, and a new Pod as a task.
//!
//! A Pod of one container that is bound to one machine is a task. What a task has and a Pod lacks (why it waits, offers, roles) is in the
//! conditions' messages. A container that has ended and will not be started again leaves a Pod that is over, as a task's attempts do.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_api::duration::Span;
use muster_api::image::ImageReference;
use muster_api::v1::TaskSpec;
use muster_api::validation::{Reason, Violation};
use serde_json::{Map, Value, json};

use super::{condition, metadata, text, without_null};

/// The phases of tasks, and what they are called of Pods.
pub(crate) const PHASES: [(&str, &str); 11] = [
    ("Pending", "Pending"),
    ("Staging", "Pending"),
    ("Starting", "Pending"),
    ("Running", "Running"),
    ("Killing", "Running"),
    ("Finished", "Succeeded"),
    ("Failed", "Failed"),
    ("Killed", "Failed"),
    ("Error", "Failed"),
    ("Dropped", "Failed"),
    ("Gone", "Failed"),
];

/// What a container is called, where its Pod's name is not it.
const CONTAINER: &str = "muster.dev/container";
/// What GPUs were asked for as.
const GPU_NAME: &str = "muster.dev/gpu-name";
/// Whole GPUs.
const GPU: &str = "muster.dev/gpu";
/// What else they may be asked for as.
const GPU_ALIASES: [&str; 3] = [GPU, "nvidia.com/gpu", "amd.com/gpu"];

fn phase(task: &Value) -> &'static str {
    let own = text(task, "/status/phase");
    let known = PHASES.iter().find(|(phase, _)| *phase == own);
    known.map_or("Pending", |(_, shown)| shown)
}

/// What the container of a task with this metadata is called.
pub(crate) fn container_of(metadata: &ObjectMeta) -> &str {
    let noted = metadata
        .annotations
        .as_ref()
        .and_then(|annotations| annotations.get(CONTAINER));
    noted.or(metadata.name.as_ref()).map_or("", String::as_str)
}

pub(crate) fn container_name(task: &Value) -> &str {
    let noted = task["metadata"]["annotations"][CONTAINER].as_str();
    noted.unwrap_or_else(|| text(task, "/metadata/name"))
}

/// The Pod that a task is shown as.
pub(crate) fn of_task(task: Value) -> Value {
    let spec = &task["spec"];
    let seconds = |span: &Value| -> Option<u64> {
        let span: Span = span.as_str()?.parse().ok()?;
        Some(span.signed().as_secs().unsigned_abs())
    };
    let container = without_null(json!({
        "name": container_name(&task),
        "image": text(&task, "/spec/image"),
        "command": spec["command"],
        "args": spec["args"],
        "env": spec["env"],
        "workingDir": spec["workingDir"],
        "resources": without_null(json!({
            "requests": amounts(&task, &spec["resources"]),
            "limits": limits(&task),
        })),
        "imagePullPolicy": pull_policy(spec),
        "terminationMessagePath": "/dev/termination-log",
        "terminationMessagePolicy": "File",
    }));
    let security = without_null(json!({"runAsUser": spec["user"]["uid"], "runAsGroup": spec["user"]["gid"]}));
    let pod_spec = without_null(json!({
        "containers": [container],
        "imagePullSecrets": spec["imagePullSecrets"],
        "nodeName": task["status"]["agent"],
        "nodeSelector": selector(spec),
        "restartPolicy": spec["restartPolicy"].as_str().unwrap_or("Never"),
        "terminationGracePeriodSeconds": seconds(&spec["kill"]["gracePeriod"]),
        "activeDeadlineSeconds": seconds(&spec["deadline"]),
        "priority": spec["priority"],
        "schedulerName": spec["framework"],
        "securityContext": security,
        "dnsPolicy": "Default",
        "hostNetwork": true,
        "enableServiceLinks": false,
    }));
    let mut pod = json!({
        "apiVersion": "v1",
        "kind": "Pod",
        "metadata": metadata(&task),
        "spec": pod_spec,
        "status": status(&task),
    });
    if let Some(annotations) = pod.pointer_mut("/metadata/annotations").and_then(Value::as_object_mut) {
        annotations.retain(|name, _| ![CONTAINER, GPU_NAME].contains(&name.as_str()));
        if annotations.is_empty() {
            pod["metadata"]
                .as_object_mut()
                .and_then(|metadata| metadata.remove("annotations"));
        }
    }
    pod
}

/// Resources under the names that Pods have for them.
fn amounts(task: &Value, resources: &Value) -> Value {
    let gpu = task["metadata"]["annotations"][GPU_NAME].as_str().unwrap_or(GPU);
    let mut shown = Map::new();
    for (own, name) in [
        ("cpus", "cpu"),
        ("memory", "memory"),
        ("disk", "ephemeral-storage"),
        ("gpus", gpu),
    ] {
        let quantity = match &resources[own] {
            Value::String(text) => text.clone(),
            Value::Number(number) => number.to_string(),
            _ => continue,
        };
        if quantity != "0" {
            shown.insert(name.to_owned(), quantity.into());
        }
    }
    if shown.is_empty() { Value::Null } else { shown.into() }
}

/// What it may have at most: memory and GPUs are limited by what was asked for, if nothing else is said.
fn limits(task: &Value) -> Value {
    let mut limits = amounts(task, &task["spec"]["limits"]);
    let gpus = amounts(task, &json!({"gpus": task["spec"]["resources"]["gpus"]}));
    if let Value::Object(gpus) = gpus {
        let mut all = limits.as_object().cloned().unwrap_or_default();
        all.extend(gpus);
        limits = all.into();
    }
    limits
}

/// Constraints, as far as a selector says them.
fn selector(spec: &Value) -> Value {
    let constraints = spec["constraints"].as_array().into_iter().flatten();
    let of_one = constraints.filter(|constraint| constraint["operator"] == "In");
    let pairs = of_one.filter_map(|constraint| match constraint["values"].as_array()?.as_slice() {
        [one] => Some((constraint["attribute"].as_str()?.to_owned(), one.clone())),
        _ => None,
    });
    let pairs: Map<String, Value> = pairs.collect();
    if pairs.is_empty() { Value::Null } else { pairs.into() }
}

fn status(task: &Value) -> Value {
    let status = &task["status"];
    let phase = phase(task);
    let created = &task["metadata"]["creationTimestamp"];
    let since = |name: &str| condition(task, name).map_or(created, |condition| &condition["lastTransitionTime"]);
    let ready = phase == "Running" && condition(task, "Ready").is_some_and(|condition| condition["status"] == "True");
    let flag = |value: bool| if value { "True" } else { "False" };
    let bound = !text(task, "/status/agent").is_empty();
    let over = ["Succeeded", "Failed"].contains(&phase);
    let about = |name: &str, value: bool, reason: Option<&str>| {
        let (reason, message) = match (value, reason) {
            (true, _) => (Value::Null, Value::Null),
            (false, reason) => (
                json!(reason.unwrap_or(text(task, "/status/reason"))),
                status["message"].clone(),
            ),
        };
        without_null(json!({
            "type": name, "status": flag(value), "reason": reason, "message": message,
            "lastProbeTime": null, "lastTransitionTime": since("Ready"),
        }))
    };
    let unready = if phase == "Succeeded" {
        Some("PodCompleted")
    } else {
        None
    };
    let unbound = Some("Unschedulable").filter(|_| !over);
    without_null(json!({
        "phase": phase,
        "reason": status["reason"],
        "message": status["message"],
        "startTime": status["startedAt"],
        "conditions": [
            about("PodScheduled", bound, unbound),
            about("Initialized", bound, unready),
            about("ContainersReady", ready, unready),
            about("Ready", ready, unready),
        ],
        "containerStatuses": if bound { json!([container_status(task, ready)]) } else { Value::Null },
        "qosClass": "Burstable",
    }))
}

fn attempts(task: &Value) -> &[Value] {
    task["status"]["attempts"]
        .as_array()
        .map(Vec::as_slice)
        .unwrap_or_default()
}

fn container_status(task: &Value, ready: bool) -> Value {
    let attempts = attempts(task);
    let id = |attempt: &Value| format!("muster://{}-{}", text(task, "/metadata/uid"), attempt["number"]);
    let ended = |attempt: &Value| {
        let (code, signal) = (attempt["exitCode"].as_i64(), attempt["signal"].as_i64());
        let reason = match (attempt["oomKilled"] == true, code) {
            (true, _) => "OOMKilled",
            (false, Some(0)) => "Completed",
            _ if attempt["error"].is_string() => "ContainerCannotRun",
            _ => "Error",
        };
        without_null(json!({
            // A shell's word for a signal.
            "exitCode": code.or(signal.map(|signal| 128 + signal)).unwrap_or(255),
            "signal": signal,
            "reason": reason,
            "message": attempt["error"],
            "startedAt": attempt["startedAt"],
            "finishedAt": attempt["finishedAt"],
            "containerID": id(attempt),
        }))
    };
    let is_over = |attempt: &&Value| attempt["finishedAt"].is_string();
    let newest = attempts.last();
    let waits = || json!({"waiting": without_null(json!({"reason": waiting_reason(task), "message": task["status"]["message"]}))});
    let running = text(task, "/status/phase") == "Running" && text(task, "/status/reason") != "BackOff";
    let state = match newest {
        Some(attempt) if !is_over(&attempt) && attempt["startedAt"].is_string() => {
            json!({"running": {"startedAt": attempt["startedAt"]}})
        }
        Some(attempt) if is_over(&attempt) && ["Succeeded", "Failed"].contains(&phase(task)) => {
            json!({"terminated": ended(attempt)})
        }
        None if running => json!({"running": {"startedAt": task["status"]["startedAt"]}}),
        _ => waits(),
    };
    let mut before = attempts.iter().rev().filter(is_over);
    let last = before.nth(usize::from(state["terminated"].is_object()));
    without_null(json!({
        "name": container_name(task),
        "image": text(task, "/spec/image"),
        "imageID": image_id(task),
        "containerID": newest.map(id),
        "ready": ready,
        "started": state["running"].is_object(),
        "restartCount": attempts.len().saturating_sub(1),
        "state": state,
        "lastState": last.map_or(json!({}), |attempt| json!({"terminated": ended(attempt)})),
    }))
}

/// `name@sha256:…`, once that is known.
fn image_id(task: &Value) -> String {
    let found = &task["status"]["image"];
    let named = found["ref"]
        .as_str()
        .and_then(|image| image.parse::<ImageReference>().ok());
    match (named, found["digest"].as_str()) {
        (Some(image), Some(digest)) => format!("{}@{digest}", image.name()),
        _ => String::new(),
    }
}

/// When the registry is asked: what was said, or what holds when nothing is.
fn pull_policy(spec: &Value) -> Value {
    let said = TaskSpec {
        image: spec["image"].as_str().map(str::to_owned),
        image_pull_policy: serde_json::from_value(spec["imagePullPolicy"].clone()).ok(),
        ..TaskSpec::default()
    };
    json!(said.pull_policy())
}

/// Why a container does not run, in the words that people know.
fn waiting_reason(task: &Value) -> &str {
    match text(task, "/status/reason") {
        "BackOff" => "CrashLoopBackOff",
        "ImagePullFailed" | "ImageNotFound" => "ErrImagePull",
        "OfferAccepted" | "Preparing" | "Started" | "" => "ContainerCreating",
        own => own,
    }
}

/// `1/1`.
pub(super) fn ready_cell(pod: &Value) -> Value {
    let ready = pod.pointer("/status/containerStatuses/0/ready") == Some(&json!(true));
    json!(if ready { "1/1" } else { "0/1" })
}

/// What the Pod does, in one word.
pub(super) fn status_cell(pod: &Value) -> Value {
    let phase = text(pod, "/status/phase");
    let state = &pod["status"]["containerStatuses"][0]["state"];
    let of_container = ["waiting", "terminated"]
        .iter()
        .find_map(|name| state[*name]["reason"].as_str());
    let going = pod["metadata"]["deletionTimestamp"].is_string() && !["Succeeded", "Failed"].contains(&phase);
    json!(match of_container {
        _ if going => "Terminating",
        Some(reason) => reason,
        None if phase == "Failed" && !text(pod, "/status/reason").is_empty() => text(pod, "/status/reason"),
        None => phase,
    })
}

/// How often its container was started again.
pub(super) fn restarts_cell(pod: &Value) -> Value {
    let count = pod.pointer("/status/containerStatuses/0/restartCount");
    json!(count.and_then(Value::as_u64).unwrap_or(0).to_string())
}

/// Says a new Pod as a task, or what of it a task cannot say.
pub(crate) fn to_task(pod: &Value) -> Result<Value, Vec<Violation>> {
    let mut said = Said::default();
    let mut task = json!({"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": pod["metadata"], "spec": {}});
    let (spec, task_spec) = (&pod["spec"], &mut task["spec"]);
    // As Kubernetes does.
    task_spec["restartPolicy"] = json!("Always");
    task_spec["kill"] = json!({"gracePeriod": "30s"});
    let mut constraints = Vec::new();
    for (name, value) in fields(spec) {
        let path = format!("spec.{name}");
        match name.as_str() {
            "containers" => {}
            "restartPolicy" => task_spec["restartPolicy"] = value.clone(),
            "priority" | "imagePullSecrets" => task_spec[name] = value.clone(),
            "terminationGracePeriodSeconds" => task_spec["kill"] = json!({"gracePeriod": format!("{value}s")}),
            "activeDeadlineSeconds" => task_spec["deadline"] = json!(format!("{value}s")),
            "schedulerName" if value == "default-scheduler" => {}
            "schedulerName" => task_spec["framework"] = value.clone(),
            "nodeName" => constraints.push(constraint("hostname", value)),
            "nodeSelector" => {
                let pairs = value.as_object().into_iter().flatten();
                constraints.extend(pairs.map(|(attribute, value)| {
                    let own = attribute == "kubernetes.io/hostname";
                    constraint(if own { "hostname" } else { attribute }, value)
                }));
            }
            "securityContext" => said.user(task_spec, value, &path),
            // Nothing of a task depends on them: it has its machine's network and resolver, and there is nothing to tolerate.
            "dnsPolicy" | "enableServiceLinks" | "tolerations" | "preemptionPolicy" => {}
            // Clients write false where nothing was said.
            "hostNetwork" | "hostPID" | "hostIPC" if value == false => {}
            "hostNetwork" => {}
            "serviceAccountName" | "serviceAccount" if value == "default" => {}
            "automountServiceAccountToken" if value == false => {}
            _ => said.cannot(&path, "a task has nothing like it"),
        }
    }
    if !constraints.is_empty() {
        task_spec["constraints"] = constraints.into();
    }
    match spec["containers"].as_array().map(Vec::as_slice) {
        Some([container]) => said.container(&mut task, container),
        _ => said.cannot("spec.containers", "a task is exactly one container"),
    }
    let resources = &mut task["spec"]["resources"];
    if resources["cpus"].is_null() && resources["memory"].is_null() {
        // A Pod need not ask for anything, a task must; as much as `mctl run` asks for.
        resources["cpus"] = json!("0.1");
        resources["memory"] = json!("64Mi");
    }
    if said.0.is_empty() { Ok(task) } else { Err(said.0) }
}

fn constraint(attribute: &str, value: &Value) -> Value {
    json!({"attribute": attribute, "operator": "In", "values": [value]})
}

/// The fields of an object that say something.
fn fields(value: &Value) -> impl Iterator<Item = (&String, &Value)> {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(list) => list.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::String(text) => text.is_empty(),
        Value::Bool(_) | Value::Number(_) => false,
    };
    value
        .as_object()
        .into_iter()
        .flatten()
        .filter(move |(_, value)| !empty(value))
}

/// What a task cannot say.
#[derive(Default)]
struct Said(Vec<Violation>);

impl Said {
    fn cannot(&mut self, field: &str, why: &str) {
        self.0.push(Violation {
            reason: Reason::FieldValueForbidden,
            field: field.to_owned(),
            message: format!("Forbidden: a Pod becomes a task here, and this cannot be said of one: {why}"),
        });
    }

    fn user(&mut self, spec: &mut Value, context: &Value, path: &str) {
        for (name, value) in fields(context) {
            match name.as_str() {
                "runAsUser" => spec["user"]["uid"] = value.clone(),
                "runAsGroup" => spec["user"]["gid"] = value.clone(),
                // What every task is anyway.
                "allowPrivilegeEscalation" | "privileged" if value == false => {}
                "runAsNonRoot" if context["runAsUser"].as_u64().is_some_and(|uid| uid > 0) => {}
                "capabilities" if value["add"].is_null() => {}
                "seccompProfile" if value["type"] == "RuntimeDefault" => {}
                _ => self.cannot(&format!("{path}.{name}"), "a task has no such right"),
            }
        }
    }

    fn container(&mut self, task: &mut Value, container: &Value) {
        let named = text(task, "/metadata/name").to_owned();
        for (name, value) in fields(container) {
            let path = format!("spec.containers[0].{name}");
            match name.as_str() {
                "name" if *value == named => {}
                "name" => task["metadata"]["annotations"][CONTAINER] = value.clone(),
                "image" | "imagePullPolicy" | "command" | "args" | "env" | "workingDir" => {
                    task["spec"][name] = value.clone();
                }
                "resources" => self.resources(task, value, &path),
                "securityContext" => self.user(&mut task["spec"], value, &path),
                "terminationMessagePath" | "terminationMessagePolicy" => {}
                "stdin" | "tty" | "stdinOnce" if value == false => {}
                "ports" => self.cannot(&path, "ports are resources: ask for spec.resources.ports of a task"),
                _ => self.cannot(&path, "a task has nothing like it"),
            }
        }
    }

    fn resources(&mut self, task: &mut Value, resources: &Value, path: &str) {
        for (name, value) in fields(resources) {
            if !["requests", "limits"].contains(&name.as_str()) {
                self.cannot(&format!("{path}.{name}"), "a task has requests and limits");
            }
            for (resource, quantity) in fields(value) {
                let own = match resource.as_str() {
                    "cpu" => "cpus",
                    "memory" => "memory",
                    "ephemeral-storage" => "disk",
                    gpu if GPU_ALIASES.contains(&gpu) => {
                        if gpu != GPU {
                            task["metadata"]["annotations"][GPU_NAME] = json!(gpu);
                        }
                        "gpus"
                    }
                    _ => {
                        self.cannot(&format!("{path}.{name}[{resource}]"), "there is no such resource");
                        continue;
                    }
                };
                // What is limited and not asked for is asked for, as in Kubernetes.
                if name == "requests" || resources["requests"][resource].is_null() {
                    task["spec"]["resources"][own] = quantity.clone();
                }
                if name == "limits" && ["cpus", "memory"].contains(&own) {
                    task["spec"]["limits"][own] = quantity.clone();
                }
            }
        }
    }
}

#[cfg(test)]
mod tests;
