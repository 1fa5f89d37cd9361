//! Who owns which field of an object: reading it for people, and taking over what was applied before the server kept owners.

use muster_apply::{Entry, Managed, Operation, Path, Set};
use serde_json::{Value, json};

/// Where the object that `kubectl apply` applied last is kept.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// The managers that applied on the client's side.
const CLIENT_SIDE: [&str; 2] = ["mctl-client-side-apply", "kubectl-client-side-apply"];

/// Since when the owner of a field, as a conflict names it, owns it.
pub fn since(live: &Value, conflict: &str) -> Option<String> {
    let managed = Managed::decode(&live["metadata"]["managedFields"]).ok()?;
    let named = |entry: &&Entry| {
        let manager = conflict.split('"').nth(1).unwrap_or_default();
        let subresource = conflict
            .split("with subresource \"")
            .nth(1)
            .and_then(|rest| rest.split('"').next());
        let updates = conflict.contains(" using ");
        entry.manager == manager
            && entry.subresource == subresource.unwrap_or_default()
            && updates == (entry.operation == Operation::Update)
    };
    let entry = managed.entries().iter().find(named)?;
    (!entry.time.is_empty()).then(|| entry.time.clone())
}

/// The patch that makes `manager` the owner of what was applied on the client's side; `None`: nothing was.
///
/// Without it, a field that the manifest gives up would stay: it would still belong to the one who applied it then.
pub fn taking_over(live: &Value, manager: &str) -> Option<Value> {
    live["metadata"]["annotations"][LAST_APPLIED].as_str()?;
    let managed = Managed::decode(&live["metadata"]["managedFields"]).ok()?;
    let old = |entry: &&Entry| {
        entry.operation == Operation::Update
            && entry.subresource.is_empty()
            && CLIENT_SIDE.contains(&entry.manager.as_str())
    };
    let ours = |entry: &&Entry| {
        entry.operation == Operation::Apply && entry.subresource.is_empty() && entry.manager == manager
    };
    let first = managed.entries().iter().find(old)?;
    let taken = managed.entries().iter().filter(|entry| old(entry) || ours(entry));
    let mut fields = taken.fold(Set::new(), |fields, entry| fields.union(&entry.fields));
    // The note itself stays, for those who go back.
    let note: Set = [Path::of_fields(&["metadata", "annotations", LAST_APPLIED])]
        .into_iter()
        .collect();
    fields.take_out(&note);
    let kept = managed
        .entries()
        .iter()
        .zip(live["metadata"]["managedFields"].as_array()?);
    let mut entries: Vec<Value> = kept
        .filter(|(entry, _)| !old(entry) && !ours(entry))
        .map(|(_, raw)| raw.clone())
        .collect();
    entries.push(json!({
        "manager": manager,
        "operation": "Apply",
        "apiVersion": first.api_version,
        "time": first.time,
        "fieldsType": "FieldsV1",
        "fieldsV1": fields.to_json(),
    }));
    Some(json!([
        {"op": "replace", "path": "/metadata/managedFields", "value": entries},
        {"op": "replace", "path": "/metadata/resourceVersion", "value": live["metadata"]["resourceVersion"]},
    ]))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn live() -> Value {
        let note = json!({"f:annotations": {".": {}, format!("f:{LAST_APPLIED}"): {}}});
        json!({"metadata": {
            "resourceVersion": "7",
            "annotations": {LAST_APPLIED: "{}"},
            "managedFields": [
                {"manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-02T00:00:00Z", "fieldsType": "FieldsV1",
                    "fieldsV1": {"f:spec": {"f:b": {}}}},
                {"manager": "kubectl-client-side-apply", "operation": "Update", "apiVersion": "v1", "time": "2026-01-01T00:00:00Z",
                    "fieldsType": "FieldsV1", "fieldsV1": {"f:metadata": note, "f:spec": {"f:a": {}}}},
            ],
        }})
    }

    #[test]
    fn what_was_applied_on_the_client_side_is_taken_over() {
        let patch = taking_over(&live(), "mctl").expect("there is something");
        assert_eq!(patch[1]["value"], "7");
        let entries = patch[0]["value"].as_array().expect("a list");
        assert_eq!(entries.len(), 2);
        assert_eq!(entries[1]["operation"], "Apply");
        let fields = json!({"f:metadata": {"f:annotations": {}}, "f:spec": {"f:a": {}}});
        assert_eq!(entries[1]["fieldsV1"], fields);
        let mut done = live();
        done["metadata"]["managedFields"] = json!(entries);
        assert_eq!(taking_over(&done, "mctl"), None);
    }

    #[test]
    fn an_owner_is_known_by_the_words_of_the_conflict() {
        let since = |words: &str| since(&live(), words);
        assert_eq!(since("conflict with \"m\"").as_deref(), Some("2026-01-02T00:00:00Z"));
        assert_eq!(
            since("conflict with \"kubectl-client-side-apply\" using v1").as_deref(),
            Some("2026-01-01T00:00:00Z")
        );
        assert_eq!(since("conflict with \"m\" with subresource \"status\""), None);
    }
}
