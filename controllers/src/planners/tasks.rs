//! What becomes of tasks that no agent speaks for: cancelled before they were bound, left behind by an agent that was removed,
//! replaced, or long ended.

use jiff::Timestamp;
use muster_api::Time;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Desired, Keep, Reachability, Task, TaskReason};
use serde_json::json;

use crate::runtime::object::{EndedTask, Version, replaces};
use crate::runtime::{Action, Change, Context, Id, Kind, Note, Plan, Planner, Severity, View, Write};

/// Ends and removes tasks.
#[derive(Clone, Copy, Debug)]
pub struct Tasks;

impl Planner for Tasks {
    const NAME: &'static str = "tasks";
    type Key = Id;

    fn keys(&self, change: &Change, view: &View) -> Vec<Id> {
        match change.kind() {
            Some(Kind::Task) if !change.is_deletion() => vec![change.id.clone()],
            Some(Kind::Agent) if change.is_deletion() => view.bound_ids(&change.id.name).cloned().collect(),
            _ => Vec::new(),
        }
    }

    fn plan(&self, id: &Id, view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let abandoned = |agent: Option<&str>| agent.is_some_and(|agent| !view.agents.contains_key(agent));
        if let Some(task) = view.tasks.get(id) {
            if task.phase() == Phase::Pending && task.spec.desired == Desired::Killed {
                let why = "stopped before it was placed";
                plan.write(end(task, Phase::Killed, TaskReason::KillRequested, why, context.now));
            } else if abandoned(task.agent()) {
                let why = "its agent was removed from the cluster; how the task ended is not known";
                plan.write(end(task, Phase::Gone, TaskReason::AgentRemoved, why, context.now));
            } else if let Some((loser, why)) = loser(task, view) {
                tracing::info!(task = loser.name(), why, "one of two is stopped");
                let (id, version) = (Id::of(&loser.metadata), Version::of(&loser.metadata));
                let patch = Action::patch(
                    Kind::Task,
                    &id,
                    &version,
                    json!({ "spec": { "desired": Desired::Killed } }),
                );
                let (severity, why) = (Severity::Normal, why.to_owned());
                let note = Note::about(Kind::Task, &loser.metadata, severity, "Superseded", why);
                plan.write(Write::from(patch).telling(note));
            }
        } else if let Some(task) = view.ended.get(id) {
            if task.deleting {
                if abandoned(task.agent.as_deref()) {
                    plan.writes.extend(let_go(id, task).map(Into::into));
                }
            } else if let Some(at) = task.expires {
                if at <= context.now {
                    plan.write(Action::delete(Kind::Task, id, &task.version.uid));
                } else {
                    plan.wake_by(at);
                }
            }
        }
        plan
    }
}

/// Of a task that lives and its replacement, the one that is to be stopped and is not yet, and why. A task that was replaced is told so
/// whether or not it can be reached: it stops when it hears of it.
fn loser<'a>(task: &'a Task, view: &'a View) -> Option<(&'a Task, &'static str)> {
    let status = task.status.as_ref()?;
    let replacement = Id::new(task.namespace(), status.replaced_by.as_deref()?);
    let (loser, why) = match task.unreachable().keep.unwrap_or_default() {
        Keep::Replacement => (
            task,
            "another task has replaced this one while its agent could not be reached",
        ),
        Keep::Original if status.reachability == Reachability::Reachable => {
            let replacement = view.tasks.get(&replacement)?;
            let uid = replaces(&replacement.metadata);
            let ours = uid.is_some() && uid == task.metadata.uid.as_deref();
            (
                ours.then_some(&**replacement)?,
                "the task that this one replaced is back and goes on",
            )
        }
        Keep::Original => return None,
    };
    let stops = loser.spec.desired == Desired::Killed || loser.metadata.deletion_timestamp.is_some();
    (!stops).then_some((loser, why))
}

fn end(task: &Task, phase: Phase, reason: TaskReason, message: &str, now: Timestamp) -> Action {
    let body = json!({
        "phase": phase,
        "reason": reason,
        "message": message,
        "finishedAt": Time(now),
        "observedGeneration": task.metadata.generation,
    });
    Action::status(Kind::Task, &task.metadata, body)
}

/// Removes the finalizer of an agent that will never do so itself.
fn let_go(id: &Id, task: &EndedTask) -> Option<Action> {
    let left: Vec<&String> = task
        .finalizers
        .iter()
        .filter(|name| *name != names::FINALIZER_AGENT)
        .collect();
    (left.len() < task.finalizers.len()).then(|| {
        let body = json!({ "metadata": { "finalizers": left } });
        Action::patch(Kind::Task, id, &task.version, body)
    })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plan(cluster: Cluster) -> Plan {
        Tasks.plan(&Id::new("default", "t1"), &cluster.view(), &Context::at(now()))
    }

    #[track_caller]
    fn check_phase(cluster: Cluster, expect: &str) {
        let plan = plan(cluster);
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        let Action::Patch { body, status: true, .. } = &write.action else {
            panic!("{write:?}")
        };
        assert_eq!(body["status"]["phase"], expect);
    }

    #[test]
    fn a_task_that_is_killed_before_it_is_bound_is_killed_at_once() {
        check_phase(Cluster::default().task("t1", |task| task.cpus(1).killed()), "Killed");
    }

    #[test]
    fn a_running_task_that_shall_be_killed_is_its_agents_affair() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).running("a1").killed());
        assert_eq!(plan(cluster), Plan::default());
    }

    #[test]
    fn a_task_whose_agent_was_removed_is_gone() {
        check_phase(Cluster::default().task("t1", |task| task.cpus(1).running("a1")), "Gone");
    }

    #[test]
    fn a_task_whose_agent_is_lost_but_not_removed_stays() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).running("a1"))
            .without_presence("a1");
        assert_eq!(plan(cluster), Plan::default());
    }

    #[test]
    fn an_ended_task_is_deleted_when_its_time_has_come() {
        let ended = |ttl: u64| {
            Cluster::default()
                .agent("a1", 4)
                .task("t1", |task| task.finished("a1", -60).ttl(ttl))
        };
        let later = plan(ended(90));
        assert_eq!((later.writes.len(), later.wake), (0, Some(at(30))));
        let due = plan(ended(60));
        assert!(matches!(due.writes[0].action, Action::Delete { .. }), "{due:?}");
        assert_eq!(due.wake, None);
    }

    #[test]
    fn the_finalizer_of_a_removed_agent_is_taken_off_a_deleted_task() {
        let cluster = Cluster::default().task("t1", |task| task.finished("a1", -60).finalized().deleted());
        let plan = plan(cluster.clone());
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        let Action::Patch {
            body, status: false, ..
        } = &write.action
        else {
            panic!("{write:?}")
        };
        assert_eq!(body["metadata"]["finalizers"], json!([]));
        let there = Tasks.plan(
            &Id::new("default", "t1"),
            &cluster.agent("a1", 4).view(),
            &Context::at(now()),
        );
        assert_eq!(there, Plan::default());
    }

    /// A task that another one has replaced, and the replacement.
    fn replaced(keep: &str, reachability: &str) -> Cluster {
        let unreachable = json!({ "policy": "ReplaceAfter", "after": "1m", "keep": keep });
        let original = |task: TaskBuilder| {
            let task = task.cpus(1).running("a1").spec("unreachable", unreachable);
            task.status("reachability", json!(reachability))
                .status("replacedBy", json!("t2"))
        };
        Cluster::default()
            .agent("a1", 4)
            .task("t1", original)
            .task("t2", |task| task.cpus(1).replaces("uid-t1"))
    }

    #[track_caller]
    fn check_loser(cluster: Cluster, expect: Option<&str>) {
        let plan = plan(cluster);
        let loser = plan.writes.first().map(|write| match &write.action {
            Action::Patch {
                id,
                body,
                status: false,
                ..
            } => {
                assert_eq!(body["spec"]["desired"], "Killed");
                id.name.to_string()
            }
            other => panic!("unexpected {other:?}"),
        });
        assert_eq!(loser.as_deref(), expect);
    }

    #[test]
    fn of_a_task_and_its_replacement_one_goes_on_as_the_task_says() {
        for reachability in ["Unknown", "Reachable"] {
            check_loser(replaced("Replacement", reachability), Some("t1"));
        }
        check_loser(replaced("Original", "Unknown"), None);
        check_loser(replaced("Original", "Reachable"), Some("t2"));
    }

    #[test]
    fn a_task_that_only_has_the_name_of_a_replacement_is_left_alone() {
        let cluster = replaced("Original", "Reachable").task("t2", |task| task.cpus(1).replaces("uid-of-another"));
        check_loser(cluster, None);
    }

    #[test]
    fn what_was_told_to_stop_is_not_told_again() {
        let cluster = replaced("Original", "Reachable").task("t2", |task| task.cpus(1).replaces("uid-t1").killed());
        // The replacement was not bound yet, which is the affair of its own key.
        check_loser(cluster, None);
    }
}
