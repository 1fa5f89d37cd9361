//! What an apply changes: a merge patch (RFC 7386) made of three objects.
//!
//! As kubectl does: what was applied last and is not in the manifest any more is taken away; what is in the manifest and is different
//! in the cluster is set; what others have added stays. The annotation that remembers what was applied last is kubectl's own, so both
//! commands can be used in turn. Lists are replaced as a whole.

use serde_json::{Map, Value};

/// Where the object that was applied last is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";

/// The object as it is remembered: without that annotation and without what the server writes.
pub fn remembered(object: &Value) -> String {
    let mut object = object.clone();
    if let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) {
        let annotations = metadata.entry("annotations").or_insert(Value::Null);
        match annotations.as_object_mut() {
            Some(annotations) => {
                annotations.remove(LAST_APPLIED);
            }
            None => *annotations = Value::Object(Map::new()),
        }
    }
    // To the letter as kubectl writes it, or each of the two would see a change after the other: keys in order, and a newline.
    format!("{object}\n")
}

/// The object with what was applied noted in it.
pub fn with_last_applied(object: &Value) -> Value {
    let text = remembered(object);
    let mut object = object.clone();
    let Some(metadata) = object.get_mut("metadata").and_then(Value::as_object_mut) else {
        return object;
    };
    let annotations = metadata
        .entry("annotations")
        .or_insert_with(|| Value::Object(Map::new()));
    if annotations.is_null() {
        *annotations = Value::Object(Map::new());
    }
    if let Some(annotations) = annotations.as_object_mut() {
        annotations.insert(LAST_APPLIED.to_owned(), Value::String(text));
    }
    object
}

/// What was applied last to the object in the cluster.
pub fn last_applied(live: &Value) -> Option<Value> {
    let text = live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    serde_json::from_str(text).ok()
}

/// The patch from `live` to `wanted`; `None` when nothing is to be done. Parts that only the server writes are left out.
pub fn patch(last: Option<&Value>, wanted: &Value, live: &Value) -> Option<Value> {
    let noted = with_last_applied(wanted);
    let mut changes = difference(last.unwrap_or(&Value::Null), &noted, live)?;
    if let Some(fields) = changes.as_object_mut() {
        for name in ["status", "apiVersion", "kind"] {
            fields.remove(name);
        }
        let empty = match fields.get_mut("metadata").and_then(Value::as_object_mut) {
            Some(metadata) => {
                for name in [
                    "uid",
                    "resourceVersion",
                    "generation",
                    "creationTimestamp",
                    "managedFields",
                    "selfLink",
                    "name",
                    "namespace",
                ] {
                    metadata.remove(name);
                }
                metadata.is_empty()
            }
            None => false,
        };
        if empty {
            fields.remove("metadata");
        }
        if fields.is_empty() {
            return None;
        }
    }
    Some(changes)
}

fn difference(last: &Value, wanted: &Value, live: &Value) -> Option<Value> {
    let (Value::Object(wanted_map), Value::Object(live_map)) = (wanted, live) else {
        return (wanted != live).then(|| wanted.clone());
    };
    let mut changes = Map::new();
    for (key, wanted) in wanted_map {
        let last = last.get(key).unwrap_or(&Value::Null);
        match live_map.get(key) {
            Some(live) => {
                if let Some(change) = difference(last, wanted, live) {
                    changes.insert(key.clone(), change);
                }
            }
            None if wanted.is_null() => {}
            None => {
                changes.insert(key.clone(), wanted.clone());
            }
        }
    }
    let gone = last.as_object().into_iter().flatten().map(|(key, _)| key);
    for key in gone.filter(|key| !wanted_map.contains_key(*key) && live_map.contains_key(*key)) {
        changes.insert(key.clone(), Value::Null);
    }
    (!changes.is_empty()).then_some(Value::Object(changes))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn object(spec: Value) -> Value {
        json!({"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "a"}, "spec": spec})
    }

    /// What the server would store: the object, defaults, and metadata of its own.
    fn live(applied: &Value) -> Value {
        let mut live = with_last_applied(applied);
        live["metadata"]["uid"] = json!("u");
        live["metadata"]["resourceVersion"] = json!("5");
        live["spec"]["priority"] = json!(0);
        live["status"] = json!({"phase": "Running"});
        live
    }

    fn changes(last: &Value, wanted: &Value) -> Option<Value> {
        let live = live(last);
        let mut patch = patch(last_applied(&live).as_ref(), wanted, &live)?;
        if let Some(metadata) = patch["metadata"].as_object_mut() {
            metadata.remove("annotations");
            if metadata.is_empty() {
                patch.as_object_mut().expect("map").remove("metadata");
            }
        }
        Some(patch)
    }

    #[test]
    fn nothing_is_sent_when_nothing_changed() {
        let wanted = object(json!({"command": ["x"], "env": [{"name": "A"}]}));
        assert_eq!(changes(&wanted, &wanted), None);
    }

    #[test]
    fn what_changed_is_set_and_what_went_is_taken_away() {
        let before = object(json!({"command": ["x"], "resources": {"cpus": 1, "memory": "1Gi"}, "role": "a"}));
        let after = object(json!({"command": ["y", "z"], "resources": {"cpus": 2}}));
        assert_eq!(
            changes(&before, &after),
            Some(json!({"spec": {"command": ["y", "z"], "resources": {"cpus": 2, "memory": null}, "role": null}}))
        );
    }

    #[test]
    fn what_others_added_stays() {
        let wanted = object(json!({"command": ["x"]}));
        let mut live = live(&wanted);
        live["spec"]["desired"] = json!("Killed");
        live["metadata"]["labels"] = json!({"added": "by somebody"});
        assert_eq!(patch(last_applied(&live).as_ref(), &wanted, &live), None);
    }

    #[test]
    fn an_object_that_was_not_applied_is_adopted() {
        let wanted = object(json!({"command": ["x"]}));
        let live = json!({"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "a"}, "spec": {"command": ["x"], "role": "r"}});
        let patch = patch(last_applied(&live).as_ref(), &wanted, &live).expect("the annotation");
        assert_eq!(
            patch["metadata"]["annotations"][LAST_APPLIED].as_str(),
            Some(remembered(&wanted).as_str())
        );
        assert_eq!(patch.get("spec"), None);
    }

    #[test]
    fn what_the_server_writes_is_never_sent() {
        let mut wanted = object(json!({"command": ["x"]}));
        wanted["metadata"]["uid"] = json!("other");
        wanted["metadata"]["resourceVersion"] = json!("1");
        wanted["status"] = json!({"phase": "Failed"});
        let live = live(&object(json!({"command": ["x"]})));
        let patch = patch(last_applied(&live).as_ref(), &wanted, &live).expect("the annotation");
        assert_eq!(patch.get("status"), None);
        assert_eq!(
            patch["metadata"]
                .as_object()
                .map(|metadata| metadata.keys().cloned().collect::<Vec<_>>()),
            Some(vec!["annotations".to_owned()])
        );
    }

    #[test]
    fn a_patch_leads_to_what_is_wanted() {
        let before = object(json!({"a": {"b": 1, "c": [1, 2]}, "d": "x", "e": {"f": {}}}));
        let after = object(json!({"a": {"c": [2]}, "d": {"now": "a map"}, "g": 1}));
        let mut live = live(&before);
        let patch = patch(last_applied(&live).as_ref(), &after, &live).expect("changes");
        merge(&mut live, &patch);
        assert_eq!(
            live["spec"],
            json!({"a": {"c": [2]}, "d": {"now": "a map"}, "g": 1, "priority": 0})
        );
        assert_eq!(
            last_applied(&live).map(|last| last["spec"].clone()),
            Some(after["spec"].clone())
        );
    }

    /// RFC 7386, section 2.
    fn merge(target: &mut Value, patch: &Value) {
        let Some(patch) = patch.as_object() else {
            *target = patch.clone();
            return;
        };
        if !target.is_object() {
            *target = json!({});
        }
        let target = target.as_object_mut().expect("it is a map now");
        for (key, value) in patch {
            if value.is_null() {
                target.remove(key);
            } else {
                merge(target.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
    }
}
