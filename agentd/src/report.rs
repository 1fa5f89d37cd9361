//! From reports to writes.
//!
//! It promises: a write touches only the fields that agents write; it lands only on the very object and revision that it was planned
//! from, and only while this process holds the agent's session.

use std::sync::Arc;

use kube::Resource as _;
use muster_api::names::FINALIZER_AGENT;
use muster_api::v1::{Task, TaskStatus};
use muster_client::{Client, Error, Patch};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::plan::Report;

/// The fields of a task's status that agents write.
const FIELDS: [&str; 8] = [
    "phase",
    "reason",
    "message",
    "attempts",
    "exitCode",
    "startedAt",
    "finishedAt",
    "observedGeneration",
];

/// Writes one report, when `slots` has room. The answer is the task as it is now; `None` when it is gone.
pub async fn write(
    client: Client,
    slots: Arc<Semaphore>,
    task: Arc<Task>,
    report: Report,
) -> Result<Option<Task>, Error> {
    let _slot = slots.acquire().await.expect("the semaphore is never closed");
    let (namespace, name) = (Some(task.namespace()), task.name());
    match report {
        Report::Status(status) => {
            let patch = Patch::Merge(status_patch(&task, &status));
            client.patch_status::<Task>(namespace, name, &patch).await.map(Some)
        }
        Report::Release => {
            let patch = Patch::Merge(release_patch(&task));
            // The last finalizer of a deleted object takes the object with it: the answer is then of no use.
            let path = format!("{}/{name}", Task::url_path(&(), namespace));
            match client.patch_at::<Value>(&path, &patch).await {
                Ok(_) | Err(Error::NotFound(_)) => Ok(None),
                Err(error) => Err(error),
            }
        }
    }
}

fn identity(task: &Task) -> Value {
    json!({ "uid": task.metadata.uid, "resourceVersion": task.metadata.resource_version })
}

fn status_patch(task: &Task, status: &TaskStatus) -> Value {
    let mut all = serde_json::to_value(status).expect("a status is plain data");
    // In a merge patch what is not there stays, and null goes.
    let fields = FIELDS.map(|field| (field.to_owned(), all.get_mut(field).map_or(Value::Null, Value::take)));
    json!({ "metadata": identity(task), "status": Value::Object(fields.into_iter().collect()) })
}

fn release_patch(task: &Task) -> Value {
    let finalizers = task.metadata.finalizers.iter().flatten();
    let others: Vec<&String> = finalizers.filter(|finalizer| *finalizer != FINALIZER_AGENT).collect();
    let mut meta = identity(task);
    meta["finalizers"] = json!(others);
    json!({ "metadata": meta })
}

#[cfg(test)]
mod tests {
    use muster_api::task_state::Phase;
    use muster_api::v1::TaskReason;

    use super::*;
    use crate::plan::testing::bound;

    #[test]
    fn a_status_write_names_its_object_and_touches_nobody_elses_fields() {
        let task = bound("t");
        let status = TaskStatus {
            phase: Phase::Running,
            reason: Some(TaskReason::Started),
            ..task.status.clone().expect("bound")
        };
        let patch = status_patch(&task, &status);
        let expect = json!({
            "metadata": { "uid": "uid-t", "resourceVersion": "7" },
            "status": {
                "phase": "Running", "reason": "Started", "message": null, "attempts": null, "exitCode": null,
                "startedAt": null, "finishedAt": null, "observedGeneration": null,
            },
        });
        assert_eq!(patch, expect);
    }

    #[test]
    fn only_our_finalizer_is_taken_away() {
        let mut task = bound("t");
        task.metadata
            .finalizers
            .as_mut()
            .expect("bound")
            .push("somebody/else".to_owned());
        assert_eq!(release_patch(&task)["metadata"]["finalizers"], json!(["somebody/else"]));
    }
}
