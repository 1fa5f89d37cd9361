//! What becomes of stored objects when a backup is restored as a new cluster.
//!
//! The cluster that the backup is of may run still. So what was promised there must not be kept here: offers, ledgers and leases stay
//! out, no task that was to run runs again by itself, and no agent counts as heard from. Pure; tested below.

use bytes::Bytes;
use muster_api::Time;
use muster_api::Timestamp;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Reachability, Task, TaskReason, TaskStatus};
use muster_store::Key;
use serde_json::Value;

use crate::hub::encode;
use crate::keys;
use crate::registry::set_status;
use crate::schema::typed;

/// How tasks are restored.
#[derive(Clone, Copy, Debug)]
pub struct NewCluster {
    /// The time of the restore.
    pub now: Timestamp,
    /// Tasks that were not bound to an agent yet wait on.
    pub keep_pending: bool,
}

/// What becomes of an entry.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// Nothing: it is kept as it is.
    Kept,
    /// It is kept with another value.
    Changed(Bytes),
    /// A task that is ended with the restore.
    Ended(Bytes),
    /// It stays out.
    Dropped,
}

const MESSAGE: &str = "the cluster was restored from a backup while this task had not ended; if it shall run, delete it and create it again";

impl NewCluster {
    /// What becomes of the entry.
    pub fn fate(&self, key: &Key, value: &[u8]) -> Fate {
        // Without its uid it gets a new one, without the hash of its authority that of whoever serves it first, and without what only its
        // servers knew something else.
        let identity = [keys::cluster(), keys::authority()].contains(key) || key.as_str().starts_with(keys::SEALED);
        if identity || keys::is_ledger(key) || keys::is_join_token(key) {
            return Fate::Dropped;
        }
        match keys::parts(key.as_str()).map(|parts| parts.kind) {
            Some("objects/muster.dev/offers/" | "objects/coordination.k8s.io/leases/") => Fate::Dropped,
            Some("objects/muster.dev/tasks/") => self.task(value),
            Some("objects/muster.dev/agents/") => agent(value),
            // What cannot be read is not judged, whatever it is.
            _ => Fate::Kept,
        }
    }

    fn task(&self, value: &[u8]) -> Fate {
        let Some((mut object, task)) = read::<Task>(value) else {
            return Fate::Kept;
        };
        // No agent of the new cluster holds anything of it.
        let released = release(&mut object);
        let finalizers = object["metadata"]["finalizers"].as_array();
        if !object["metadata"]["deletionTimestamp"].is_null() && finalizers.is_none_or(Vec::is_empty) {
            return Fate::Dropped;
        }
        let waits = task.phase() == Phase::Pending && self.keep_pending;
        if task.phase().is_terminal() || waits {
            return if released {
                Fate::Changed(write(object, "Task"))
            } else {
                Fate::Kept
            };
        }
        let status = TaskStatus {
            phase: Phase::Dropped,
            reason: Some(TaskReason::Restored),
            message: MESSAGE.to_owned(),
            finished_at: Some(Time(self.now)),
            reachability: Reachability::Reachable,
            reachability_since: None,
            reachability_message: String::new(),
            ..task.status.unwrap_or_default()
        };
        set_status(&mut object, status, self.now);
        Fate::Ended(write(object, "Task"))
    }
}

/// Takes the agent's finalizer off; whether it was there.
fn release(object: &mut Value) -> bool {
    let Some(finalizers) = object["metadata"]["finalizers"].as_array_mut() else {
        return false;
    };
    let before = finalizers.len();
    finalizers.retain(|finalizer| finalizer != names::FINALIZER_AGENT);
    let released = finalizers.len() < before;
    if finalizers.is_empty()
        && let Some(metadata) = object["metadata"].as_object_mut()
    {
        metadata.remove("finalizers");
    }
    released
}

/// The session was with the other cluster.
fn agent(value: &[u8]) -> Fate {
    let Some((mut object, _)) = read::<Value>(value) else {
        return Fate::Kept;
    };
    let session = object["status"]
        .as_object_mut()
        .and_then(|status| status.remove("session"));
    session.map_or(Fate::Kept, |_| Fate::Changed(write(object, "Agent")))
}

fn read<T: serde::de::DeserializeOwned>(value: &[u8]) -> Option<(Value, T)> {
    let object: Value = serde_json::from_slice(value).ok().filter(Value::is_object)?;
    let kind = typed(&object).ok()?;
    Some((object, kind))
}

fn write(object: Value, kind: &str) -> Bytes {
    match object {
        Value::Object(object) => encode("muster.dev/v1", kind, object),
        _ => unreachable!("only objects are read"),
    }
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    const RESTORE: NewCluster = NewCluster {
        now: Timestamp::UNIX_EPOCH,
        keep_pending: false,
    };

    fn task(phase: &str, more: Value) -> Bytes {
        let mut object = json!({
            "metadata": {"name": "t", "namespace": "d", "uid": "u", "generation": 1, "finalizers": [names::FINALIZER_AGENT]},
            "spec": {"framework": "default", "role": "d", "command": ["true"], "resources": {"cpus": "1", "memory": "1Mi"}},
            "status": {"phase": phase, "agent": "a1", "devices": ["GPU-1"]},
        });
        if let (Some(metadata), Some(more)) = (object["metadata"].as_object_mut(), more.as_object()) {
            metadata.extend(more.clone());
        }
        write(object, "Task")
    }

    fn fate(restore: NewCluster, key: &str, value: &[u8]) -> Fate {
        restore.fate(&Key::new(key), value)
    }

    const TASK: &str = "objects/muster.dev/tasks/d/t";

    #[test]
    fn no_task_that_was_to_run_runs_again() {
        for phase in ["Pending", "Staging", "Starting", "Running", "Killing"] {
            let Fate::Ended(bytes) = fate(RESTORE, TASK, &task(phase, json!({}))) else {
                panic!("{phase} goes on");
            };
            let ended: Value = serde_json::from_slice(&bytes).unwrap();
            let status = &ended["status"];
            assert_eq!(
                (&status["phase"], &status["reason"]),
                (&json!("Dropped"), &json!("Restored"))
            );
            assert!(status["message"].as_str().unwrap().contains("create it again"));
            assert_eq!(
                (&status["agent"], &ended["metadata"]["finalizers"]),
                (&json!("a1"), &Value::Null)
            );
            assert_eq!(status["conditions"][0]["type"], "Ready");
        }
    }

    #[test]
    fn what_has_ended_stays_as_it_ended_and_can_be_deleted() {
        let Fate::Changed(bytes) = fate(RESTORE, TASK, &task("Finished", json!({}))) else {
            panic!("the agent's hold is released");
        };
        let kept: Value = serde_json::from_slice(&bytes).unwrap();
        assert_eq!(
            (&kept["status"]["phase"], &kept["metadata"]["finalizers"]),
            (&json!("Finished"), &Value::Null)
        );
        assert_eq!(fate(RESTORE, TASK, &bytes), Fate::Kept);
        let deleted = task("Running", json!({"deletionTimestamp": "2026-01-01T00:00:00Z"}));
        assert_eq!(fate(RESTORE, TASK, &deleted), Fate::Dropped);
    }

    #[test]
    fn pending_tasks_wait_on_if_asked_to() {
        let restore = NewCluster {
            keep_pending: true,
            ..RESTORE
        };
        let pending = task("Pending", json!({"finalizers": []}));
        assert_eq!(fate(restore, TASK, &pending), Fate::Kept);
        assert!(matches!(
            fate(restore, TASK, &task("Staging", json!({}))),
            Fate::Ended(_)
        ));
    }

    #[test]
    fn nothing_that_was_promised_elsewhere_is_kept() {
        for key in [
            "ledger/a1",
            "meta/cluster",
            "meta/authority",
            keys::join_token("t").as_str(),
            keys::signing().as_str(),
            "objects/muster.dev/offers/d/o",
            "objects/coordination.k8s.io/leases/muster-system/x",
        ] {
            assert_eq!(fate(RESTORE, key, b"{}"), Fate::Dropped, "{key}");
        }
        let agent = write(
            json!({"metadata": {"name": "a1"}, "status": {"session": 7, "address": "x"}}),
            "Agent",
        );
        let Fate::Changed(bytes) = fate(RESTORE, "objects/muster.dev/agents/_/a1", &agent) else {
            panic!("the session ends");
        };
        assert!(!String::from_utf8_lossy(&bytes).contains("session"));
        for key in ["objects/core/secrets/d/s", "objects/muster.dev/tasks/d/poison"] {
            assert_eq!(fate(RESTORE, key, b"what is this"), Fate::Kept, "{key}");
        }
    }
}
