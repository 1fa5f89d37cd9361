//! From reports to writes.
//!
//! It promises: a write touches only the fields that agents write; it lands only on the very object and revision that it was planned
//! from, and only while this process holds the agent's session.

use std::sync::Arc;

use kube::Resource as _;
use muster_api::v1::{Task, TaskStatus};
use muster_client::{Client, Error, Patch};
use serde_json::{Value, json};
use tokio::sync::Semaphore;

use crate::plan::{EndedTask, TaskKey};

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

/// Writes a status, when `slots` has room. The answer is the task as it is now.
pub async fn say(
    client: Client,
    slots: Arc<Semaphore>,
    task: Arc<Task>,
    status: Box<TaskStatus>,
) -> Result<Option<Task>, Error> {
    let _slot = slots.acquire().await.expect("the semaphore is never closed");
    let (namespace, name) = (Some(task.namespace()), task.name());
    let patch = Patch::Merge(status_patch(&task, &status));
    client.patch_status::<Task>(namespace, name, &patch).await.map(Some)
}

/// Takes the agent's finalizer off, when `slots` has room. There is no task in the answer: it is gone, or its watch will show it.
pub async fn release(
    client: Client,
    slots: Arc<Semaphore>,
    key: TaskKey,
    task: EndedTask,
) -> Result<Option<Task>, Error> {
    let _slot = slots.acquire().await.expect("the semaphore is never closed");
    let patch = Patch::Merge(release_patch(&task));
    // The last finalizer of a deleted object takes the object with it: the answer is then of no use.
    let path = format!("{}/{}", Task::url_path(&(), Some(&key.namespace)), key.name);
    match client.patch_at::<Value>(&path, &patch).await {
        Ok(_) | Err(Error::NotFound(_)) => Ok(None),
        Err(error) => Err(error),
    }
}

fn status_patch(task: &Task, status: &TaskStatus) -> Value {
    let mut all = serde_json::to_value(status).expect("a status is plain data");
    // In a merge patch what is not there stays, and null goes.
    let fields = FIELDS.map(|field| (field.to_owned(), all.get_mut(field).map_or(Value::Null, Value::take)));
    let identity = json!({ "uid": task.metadata.uid, "resourceVersion": task.metadata.resource_version });
    json!({ "metadata": identity, "status": Value::Object(fields.into_iter().collect()) })
}

fn release_patch(task: &EndedTask) -> Value {
    let version = task.revision.to_string();
    json!({ "metadata": { "uid": task.uid, "resourceVersion": version, "finalizers": task.others } })
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
        task.status.as_mut().expect("bound").phase = Phase::Killed;
        let expect = json!({ "uid": "uid-t", "resourceVersion": "7", "finalizers": ["somebody/else"] });
        let ended = EndedTask::of(&task).expect("it has ended");
        assert_eq!(release_patch(&ended)["metadata"], expect);
    }
}
