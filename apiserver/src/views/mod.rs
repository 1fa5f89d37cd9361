//! Tasks and agents as Pods and Nodes, for what speaks of those: kubectl, k9s, dashboards.
//!
//! Nothing is stored as a Pod or a Node. What is shown is made from the task or agent each time ([`pod::of_task`], [`node::of_agent`]); a new Pod
//! is said as a task, and refused by the name of its first field that a task cannot say ([`pod::to_task`]); a change is one of the labels,
//! annotations and the few fields that mean the same in both ([`changed`]). Pure. What must never happen here: a field of a Pod that is
//! accepted and then means nothing. Tested below and with kubectl.

pub(crate) mod node;
pub(crate) mod pod;
mod schema;

use muster_api::validation::{Reason, Violation};
use serde_json::{Map, Value, json};

use crate::error::{ApiError, Result};
use crate::resource::Resource;
use crate::selector::FieldRequirement;

pub(crate) use schema::resources;

/// Metadata as it is shown: who owns which field of the task or agent says nothing of the view.
fn metadata(of: &Value) -> Value {
    let mut metadata = of["metadata"].clone();
    if let Some(map) = metadata.as_object_mut() {
        map.remove("managedFields");
    }
    metadata
}

/// The field at a path that is there.
fn text<'a>(value: &'a Value, path: &str) -> &'a str {
    value.pointer(path).and_then(Value::as_str).unwrap_or_default()
}

/// The condition of that type.
fn condition<'a>(object: &'a Value, name: &str) -> Option<&'a Value> {
    let mut conditions = object["status"]["conditions"].as_array()?.iter();
    conditions.find(|condition| condition["type"] == name)
}

/// Takes out of an object what is null.
fn without_null(mut value: Value) -> Value {
    if let Some(map) = value.as_object_mut() {
        map.retain(|_, value| !value.is_null());
    }
    value
}

/// The change of a task or agent that a change of its view means, as a merge patch. `may`: the fields of the spec that may change.
pub(crate) fn changed(resource: &Resource, before: &Value, after: &Value, may: &[&str]) -> Result<Value> {
    let mut patch = json!({"metadata": {}});
    for field in ["labels", "annotations", "finalizers", "ownerReferences"] {
        patch["metadata"][field] = difference(&before["metadata"][field], &after["metadata"][field]);
    }
    let empty = Map::new();
    let fields = |value: &Value| value["spec"].as_object().unwrap_or(&empty).clone();
    let (old, new) = (fields(before), fields(after));
    let mut names: Vec<&String> = old.keys().chain(new.keys()).collect();
    names.sort_unstable();
    names.dedup();
    for name in names.into_iter().filter(|name| old.get(*name) != new.get(*name)) {
        if !may.contains(&name.as_str()) {
            let kind = &resource.kind;
            let what = if kind == "Pod" { "task" } else { "agent" };
            let message = format!(
                "Forbidden: a {kind} is a view of a {what}, and this cannot be changed through it; change the {what}"
            );
            let violation = Violation {
                reason: Reason::FieldValueForbidden,
                field: format!("spec.{name}"),
                message,
            };
            return Err(ApiError::invalid_object(
                resource,
                text(before, "/metadata/name"),
                vec![violation],
            ));
        }
        patch["spec"][name] = new.get(name).cloned().unwrap_or(Value::Null);
    }
    if let Some(map) = patch["metadata"].as_object_mut() {
        map.retain(|_, value| *value != json!({}));
    }
    Ok(patch)
}

/// What makes one value of the other, as a merge patch; an empty object: nothing.
fn difference(before: &Value, after: &Value) -> Value {
    if before == after {
        return json!({});
    }
    let (Some(old), Some(new)) = (before.as_object(), after.as_object()) else {
        return after.clone();
    };
    let gone = old.keys().filter(|key| !new.contains_key(*key));
    let gone = gone.map(|key| (key.clone(), Value::Null));
    let set = new.iter().filter(|(key, value)| old.get(*key) != Some(value));
    gone.chain(set.map(|(key, value)| (key.clone(), value.clone())))
        .collect::<Map<_, _>>()
        .into()
}

/// What selecting by a field of the view means for what is stored.
pub(crate) fn stored(resource: &Resource, asked: FieldRequirement) -> Vec<FieldRequirement> {
    match (resource.qualified().as_str(), asked.field.as_str()) {
        // What happened to a task happened to its Pod.
        ("events" | "events.events.k8s.io", "involvedObject.kind") => {
            let seen = [("Pod", "Task"), ("Node", "Agent")];
            let own = seen.iter().find(|(view, _)| *view == asked.value);
            vec![FieldRequirement {
                value: own.map_or_else(|| asked.value.clone(), |(_, own)| (*own).to_owned()),
                ..asked
            }]
        }
        ("pods", "spec.nodeName") => vec![FieldRequirement {
            field: "status.agent".to_owned(),
            ..asked
        }],
        ("pods", "status.phase") => pod::PHASES
            .iter()
            .filter(|(_, phase)| (*phase == asked.value) != asked.equal)
            .map(|(stored, _)| FieldRequirement {
                field: "status.phase".to_owned(),
                value: (*stored).to_owned(),
                equal: false,
            })
            .collect(),
        _ => vec![asked],
    }
}

/// The cell of a column that no path describes.
pub(crate) fn cell(name: &str) -> Option<fn(&Value) -> Value> {
    Some(match name {
        "pod.ready" => pod::ready_cell,
        "pod.status" => pod::status_cell,
        "pod.restarts" => pod::restarts_cell,
        "node.status" => node::status_cell,
        _ => return None,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pods() -> Resource {
        let mut all = resources().into_iter();
        all.find(|resource| resource.kind == "Pod").expect("pods are served")
    }

    #[test]
    fn a_change_is_of_labels_and_of_what_means_the_same() {
        let before = json!({
            "metadata": {"name": "a", "labels": {"x": "1", "y": "2"}, "uid": "u"},
            "spec": {"unschedulable": true, "nodeName": "n"},
        });
        let mut after = before.clone();
        after["metadata"]["labels"] = json!({"x": "3", "z": "4"});
        after["spec"] = json!({"nodeName": "n"});
        let patch = changed(&pods(), &before, &after, &["unschedulable"]).expect("it is allowed");
        let expected = json!({
            "metadata": {"labels": {"x": "3", "y": null, "z": "4"}},
            "spec": {"unschedulable": null},
        });
        assert_eq!(patch, expected);
        assert_eq!(
            changed(&pods(), &before, &before, &[]).expect("nothing"),
            json!({"metadata": {}})
        );
        let error = changed(&pods(), &before, &after, &[]).expect_err("it is refused");
        assert!(
            error.message.contains("spec.unschedulable: Forbidden"),
            "{}",
            error.message
        );
    }

    #[test]
    fn selecting_by_phase_is_selecting_by_all_phases_that_look_so() {
        let asked = |value: &str, equal| {
            let requirement = FieldRequirement {
                field: "status.phase".to_owned(),
                value: value.to_owned(),
                equal,
            };
            let all = stored(&pods(), requirement);
            assert!(all.iter().all(|requirement| !requirement.equal));
            all.into_iter().map(|requirement| requirement.value).collect::<Vec<_>>()
        };
        assert_eq!(asked("Succeeded", false), ["Finished"]);
        assert_eq!(asked("Running", false), ["Running", "Killing"]);
        assert_eq!(asked("Running", true).len(), pod::PHASES.len() - 2);
        assert_eq!(asked("Nonsense", true).len(), pod::PHASES.len(), "nothing is left");
        // Somebody's own kind of that name is no view.
        let own = Resource {
            group: "example.com".to_owned(),
            ..pods()
        };
        let requirement = FieldRequirement {
            field: "status.phase".to_owned(),
            value: "Running".to_owned(),
            equal: true,
        };
        assert_eq!(stored(&own, requirement.clone()), [requirement]);
    }
}
