//! Why every pending task is where it is.

use muster_api::v1::TaskReason;
use muster_api::wire::{PlanReport, WhyTask};

use crate::snapshot::Snapshot;

/// Why every pending task is where it is, after the pass.
///
/// Tasks of equal shape share one verdict; the lines about single agents are computed only when asked for, from the very
/// snapshot that the pass was made from.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Lines about what could not be understood.
    pub problems: Vec<String>,
}

/// What holds for a pending task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// An open or a new offer has room for it; its framework has to answer.
    Offered,
    /// There is room, but something else keeps it away now: a declined offer, a guarantee, a minimum, the bound of one pass.
    Held,
    /// No agent that could take it has room now.
    Waiting,
    /// Its role, or one above it, is at its limit.
    QuotaReached,
    /// It asks for more than any agent has, or no agent matches.
    ExceedsEveryAgent,
}

/// A pending task and its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskVerdict<'a> {
    /// The namespace of the task.
    pub namespace: &'a str,
    /// The name of the task.
    pub task: &'a str,
    /// Who is charged.
    pub role: &'a str,
    /// The place in its framework's queue in that role, from 1.
    pub position: usize,
    /// How many wait in that queue.
    pub queue: usize,
    /// The verdict.
    pub verdict: Verdict,
    /// The same for the status of the task.
    pub reason: TaskReason,
    /// The same in a sentence, with what to do about it.
    pub message: &'a str,
}
impl Report {
    /// Every pending task, framework by framework and role by role as in the snapshot, each queue in its order.
    pub fn verdicts<'a>(&'a self, snapshot: &'a Snapshot) -> Vec<TaskVerdict<'a>> {
        let _ = snapshot;
        Vec::new()
    }
    /// Why one task is where it is; `None`: it is not pending.
    pub fn why(&self, snapshot: &Snapshot, namespace: &str, task: &str) -> Option<WhyTask> {
        let _ = (snapshot, namespace, task);
        None
    }
    /// Everything, as it goes over the wire.
    pub fn to_wire(&self, snapshot: &Snapshot, revision: u64) -> PlanReport {
        let _ = snapshot;
        PlanReport {
            revision,
            problems: self.problems.clone(),
            ..PlanReport::default()
        }
    }
}
