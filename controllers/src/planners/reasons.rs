//! Says why pending tasks wait: in their status, in events, and in the report that `why` reads.
//!
//! It asks the same allocator that makes the offers. It comes a little later and less often than the offers do, so a task that
//! is placed at once is never written to; a status is written only when its reason changes, so many waiting tasks cost nothing.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use muster_allocator::{Params, Verdict, allocate};
use muster_api::duration::Span;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Task, TaskReason};
use muster_api::wire::WhyTask;
use serde_json::json;

use super::offers::concerns_allocation;
use super::snapshot::{may_have, snapshot, wants_placement};
use crate::Config;
use crate::runtime::object::created;
use crate::runtime::{Action, Change, Context, Id, Kind, Note, Plan, Planner, Severity, View, Write};

/// So many statuses are written in one pass; the others follow in the next.
const WRITES_MAX: usize = 32;

/// A task that has waited for less is not told that it waits; most are placed by then.
const PATIENCE: Span = Span::from_secs(1);

/// When a pass has not written all, the next one comes so soon.
const NEXT: Span = Span::from_millis(50);

/// Says why pending tasks wait.
#[derive(Clone, Debug)]
pub struct Reasons {
    params: Params,
}

impl Reasons {
    /// As configured.
    pub fn new(config: &Config) -> Reasons {
        Reasons {
            params: config.params.clone(),
        }
    }
}

impl Planner for Reasons {
    const NAME: &'static str = "reasons";
    type Key = ();
    const COALESCE: Duration = Duration::from_millis(150);

    fn keys(&self, change: &Change, _: &View) -> Vec<()> {
        if concerns_allocation(change) {
            vec![()]
        } else {
            Vec::new()
        }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let snapshot = snapshot(view, context.now);
        let allocation = allocate(&snapshot, &self.params);
        let mut changes = Vec::new();
        for found in allocation.report.verdicts(&snapshot) {
            let Some(task) = view.tasks.get(&Id::new(found.namespace, found.task)) else {
                continue;
            };
            // What has an offer is about to leave; it keeps the reason that it has.
            let settled = matches!(found.verdict, Verdict::Offered) && has_reason(task);
            let patient = later(created(&task.metadata), PATIENCE);
            if settled {
                continue;
            } else if found.reason().is_stall() || patient <= context.now {
                changes.push((task.as_ref(), found.reason(), found.message));
            } else {
                plan.wake_by(patient);
            }
        }
        let left_out = left_out(view);
        let mut report = allocation.report.to_wire(&snapshot, view.revision);
        report
            .tasks
            .extend(left_out.iter().map(|(task, _, message)| unplaceable(task, message)));
        changes.extend(left_out);
        let mut writes = changes
            .into_iter()
            .filter_map(|(task, reason, message)| tell(task, reason, message));
        plan.writes.extend(writes.by_ref().take(WRITES_MAX));
        if writes.next().is_some() {
            plan.wake_by(later(context.now, NEXT));
        }
        report
            .problems
            .extend(view.problems.values().map(|problem| problem.message.clone()));
        plan.report.extend(report.problems.iter().cloned());
        plan.write(Action::PutPlan(Box::new(report)));
        plan
    }
}

fn later(at: Timestamp, span: Span) -> Timestamp {
    at.checked_add(span.signed()).unwrap_or(Timestamp::MAX)
}

fn has_reason(task: &Task) -> bool {
    task.status.as_ref().is_some_and(|status| status.reason.is_some())
}

/// Pending tasks that the allocator is not asked about, because their framework cannot get offers for them.
fn left_out(view: &View) -> Vec<(&Task, TaskReason, Arc<str>)> {
    let mut found = Vec::new();
    for id in view.frameworks_with_pending() {
        let framework = view.frameworks.get(id);
        for task in view.pending(id).filter(|task| wants_placement(task)) {
            let (reason, message) = match framework {
                // The built-in one is made as soon as it is needed.
                None if &*id.name == names::FRAMEWORK_DEFAULT => continue,
                None => (
                    TaskReason::FrameworkNotFound,
                    format!(
                        "there is no framework `{}` in namespace `{}`; create it, or create the task anew for another",
                        id.name, id.namespace
                    ),
                ),
                Some(framework) if may_have(framework, task.role()) => continue,
                Some(_) => (
                    TaskReason::AwaitingOffer,
                    format!(
                        "framework `{}` gets no offers for role `{}`; add it to the framework's spec.roles",
                        id.name,
                        task.role()
                    ),
                ),
            };
            found.push((task.as_ref(), reason, message.into()));
        }
    }
    found
}

fn unplaceable(task: &Task, message: &str) -> WhyTask {
    let needs = task.spec.resources.amounts().map(|amounts| amounts.to_string());
    WhyTask {
        namespace: task.namespace().to_owned(),
        task: task.name().to_owned(),
        role: task.role().to_owned(),
        needs: needs.unwrap_or_default(),
        summary: message.to_owned(),
        ..WhyTask::default()
    }
}

/// The write that gives a task its reason; `None`: it has it.
fn tell(task: &Task, reason: TaskReason, message: Arc<str>) -> Option<Write> {
    let status = task.status.as_ref()?;
    let known = status.reason == Some(reason);
    // A sentence whose numbers move all the time is not worth a write for each task; one that asks somebody to act is.
    let fine = known && (*status.message == *message || !(status.message.is_empty() || reason.is_stall()));
    if fine || status.phase != Phase::Pending {
        return None;
    }
    let body = json!({ "reason": reason, "message": &*message, "observedGeneration": task.metadata.generation });
    let write: Write = Action::status(Kind::Task, &task.metadata, body).into();
    let severity = if reason.is_stall() {
        Severity::Warning
    } else {
        Severity::Normal
    };
    let news = reason != TaskReason::AwaitingOffer && !known;
    let note = Note::about(Kind::Task, &task.metadata, severity, "CannotPlace", message.to_string());
    Some(if news { write.telling(note) } else { write })
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn told(view: &View) -> Vec<(String, String, bool)> {
        let plan = Reasons::new(&Config::default()).plan(&(), view, &Context::at(now()));
        let told = |write: Write| match write.action {
            Action::Patch { id, body, .. } => {
                let reason = body["status"]["reason"].as_str().expect("a reason").to_owned();
                Some((id.name.to_string(), reason, !write.then.is_empty()))
            }
            Action::PutPlan(_) => None,
            other => panic!("unexpected {other:?}"),
        };
        plan.writes.into_iter().filter_map(told).collect()
    }

    #[test]
    fn a_task_that_no_agent_could_hold_is_told_so_once() {
        let cluster = Cluster::default().agent("a1", 4).task("t1", |task| task.cpus(16));
        let view = cluster.clone().view();
        assert_eq!(told(&view), [("t1".into(), "ExceedsEveryAgent".into(), true)]);
        let message = {
            let plan = Reasons::new(&Config::default()).plan(&(), &view, &Context::at(now()));
            let Action::Patch { body, .. } = &plan.writes[0].action else {
                panic!("no patch")
            };
            body["status"]["message"].as_str().expect("a message").to_owned()
        };
        let cluster = cluster.task("t1", |task| {
            task.cpus(16).reason(TaskReason::ExceedsEveryAgent, &message)
        });
        assert_eq!(told(&cluster.view()), []);
    }

    #[test]
    fn a_task_without_its_framework_is_told_so() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).framework("mine"));
        let view = cluster.view();
        assert_eq!(told(&view), [("t1".into(), "FrameworkNotFound".into(), true)]);
        let plan = Reasons::new(&Config::default()).plan(&(), &view, &Context::at(now()));
        let Some(Action::PutPlan(report)) = plan.writes.last().map(|write| &write.action) else {
            panic!("{plan:?}")
        };
        assert_eq!(
            (report.tasks[0].task.as_str(), report.tasks[0].needs.as_str()),
            ("t1", "1 cpus, 64Mi memory")
        );
        assert!(report.tasks[0].summary.contains("no framework `mine`"), "{report:?}");
    }

    #[test]
    fn a_task_that_is_about_to_be_placed_is_left_alone() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).reason(TaskReason::AwaitingOffer, ""));
        assert_eq!(told(&cluster.view()), []);
    }

    #[test]
    fn a_task_is_told_that_it_waits_only_after_a_while() {
        let waiting = |seconds| {
            let cluster = Cluster::default()
                .agent("a1", 1)
                .task("busy", |task| task.cpus(1).running("a1"));
            cluster.task("t1", |task| task.cpus(1).created(seconds)).view()
        };
        assert_eq!(told(&waiting(0)), []);
        let plan = Reasons::new(&Config::default()).plan(&(), &waiting(0), &Context::at(now()));
        assert_eq!(plan.wake, Some(at(1)));
        assert_eq!(told(&waiting(-1)), [("t1".into(), "WaitingForResources".into(), true)]);
    }

    #[test]
    fn many_waiting_tasks_are_told_a_part_at_a_time() {
        let mut cluster = Cluster::default().agent("a1", 1);
        for index in 0..WRITES_MAX + 6 {
            cluster = cluster.task(&format!("t{index}"), |task| task.cpus(9));
        }
        let view = cluster.view();
        assert_eq!(told(&view).len(), WRITES_MAX);
        let plan = Reasons::new(&Config::default()).plan(&(), &view, &Context::at(now()));
        assert_eq!(plan.wake, Some(later(now(), NEXT)));
    }
}
