//! From reports to writes.
//!
//! It promises: a write touches only the fields that agents write; it lands only on the very object and revision that it was planned
//! from, and only while this process holds the agent's session.

use std::collections::BTreeMap;
use std::sync::Arc;

use kube::Resource as _;
use muster_api::v1::{Task, TaskReason, TaskStatus};
use muster_client::{Client, Error, Patch};
use serde_json::{Value, json};
use tokio::sync::Semaphore;
use tokio::time::Instant;

use crate::limits::RUNNING_PATIENCE;
use crate::plan::{EndedTask, Report, TaskKey};

/// The fields of a task's status that agents write.
const FIELDS: [&str; 9] = [
    "phase",
    "reason",
    "message",
    "image",
    "attempts",
    "exitCode",
    "startedAt",
    "finishedAt",
    "observedGeneration",
];

/// Reports that say no more than that a task runs now, and wait while there is much else to say: most small tasks have ended by then, and
/// one report says both.
#[derive(Debug, Default)]
pub struct Deferred(BTreeMap<TaskKey, Instant>);

impl Deferred {
    /// Until when this report waits, counted from when it was first asked for; `None`: it is to be made.
    pub fn until(&mut self, key: &TaskKey, report: &Report, now: Instant) -> Option<Instant> {
        let Report::Status(status) = report else { return None };
        if status.reason != Some(TaskReason::Started) {
            return None;
        }
        let until = *self.0.entry(key.clone()).or_insert(now + RUNNING_PATIENCE);
        (until > now).then_some(until)
    }

    /// Forgets those that are not to be made any more.
    pub fn keep(&mut self, reports: &BTreeMap<TaskKey, Report>) {
        self.0.retain(|key, _| reports.contains_key(key));
    }
}

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
                "phase": "Running", "reason": "Started", "message": null, "image": null, "attempts": null, "exitCode": null,
                "startedAt": null, "finishedAt": null, "observedGeneration": null,
            },
        });
        assert_eq!(patch, expect);
    }

    #[test]
    fn only_that_a_task_runs_now_may_wait_and_not_for_ever() {
        let (task, now) = (bound("t"), Instant::now());
        let key = TaskKey::of(&task);
        let report = |phase, reason| {
            Report::Status(Box::new(TaskStatus {
                phase,
                reason: Some(reason),
                ..task.status.clone().expect("bound")
            }))
        };
        let started = report(Phase::Running, TaskReason::Started);
        let mut deferred = Deferred::default();
        let until = now + RUNNING_PATIENCE;
        assert_eq!(deferred.until(&key, &started, now), Some(until));
        assert_eq!(deferred.until(&key, &started, now + RUNNING_PATIENCE / 2), Some(until));
        assert_eq!(deferred.until(&key, &started, until), None);
        let ended = report(Phase::Finished, TaskReason::Completed);
        for urgent in [report(Phase::Starting, TaskReason::Preparing), ended, Report::Release] {
            assert_eq!(deferred.until(&key, &urgent, now), None);
        }
        deferred.keep(&BTreeMap::new());
        let again = until + RUNNING_PATIENCE;
        assert_eq!(deferred.until(&key, &started, until), Some(again), "another run of it");
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
