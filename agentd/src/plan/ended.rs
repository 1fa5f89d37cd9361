//! Tasks that have ended: what is kept of them, and what is done about what they left.

use std::collections::BTreeMap;

use muster_api::names::FINALIZER_AGENT;
use muster_api::v1::Task;
use muster_runtime::{Container, State, Stop};

use super::{Action, PlanInput, Report, TaskPlan};
use crate::limits::CONTAINERS_KEPT;
use crate::spec;

/// What is kept of a task that has ended: enough to let go of it. An agent can have tens of thousands of them, most of them for hours,
/// and a whole task takes ten times the memory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EndedTask {
    /// The uid of the object.
    pub uid: Box<str>,
    /// The revision of the object.
    pub revision: u64,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// Whether its deletion waits for this agent.
    pub ours: bool,
    /// What else its deletion waits for.
    pub others: Box<[String]>,
    /// How what still runs of it is stopped.
    pub stop: Stop,
}

impl EndedTask {
    /// What is kept of a task; `None`: it has not ended, or it has no uid and so is no stored object.
    pub fn of(task: &Task) -> Option<EndedTask> {
        let uid = task.metadata.uid.as_deref().filter(|_| task.phase().is_terminal())?;
        let finalizers = || task.metadata.finalizers.iter().flatten();
        Some(EndedTask {
            uid: uid.into(),
            revision: crate::view::revision(&task.metadata),
            deleting: task.metadata.deletion_timestamp.is_some(),
            ours: finalizers().any(|name| name == FINALIZER_AGENT),
            others: finalizers().filter(|name| *name != FINALIZER_AGENT).cloned().collect(),
            stop: spec::stop(task),
        })
    }
}

/// Nothing of the task may run. Its last containers stay, for their logs, until the object is deleted.
pub(super) fn plan(input: &PlanInput<'_>, task: &EndedTask, runs: &BTreeMap<u32, &Container>) -> TaskPlan {
    let mut plan = TaskPlan::default();
    let kept = if task.deleting { 0 } else { CONTAINERS_KEPT };
    let old = runs.len().saturating_sub(kept);
    for (index, container) in runs.values().enumerate() {
        match container.state {
            State::Exited(_) if index < old => plan.act(input, Action::Remove(container.id.clone())),
            State::Exited(_) => {}
            State::Created | State::Running { .. } => plan.stop(input, &container.id, task.stop),
        }
    }
    if task.deleting && runs.is_empty() && task.ours {
        plan.report = Some(Report::Release);
    }
    plan
}
