//! The conditions of a task, which follow from the rest of its status.

use jiff::Timestamp;

use super::agent::Reachability;
use super::task::{TaskReason, TaskStatus};
use crate::task_state::Phase;
use crate::{Condition, Time};

/// The conditions that follow from the rest of a status, by the rules of kstatus: `Ready` always, `Reconciling` and `Stalled`
/// only while true. A condition that did not change keeps its time.
pub fn conditions(status: &TaskStatus, generation: Option<i64>, now: Timestamp) -> Vec<Condition> {
    let unreachable = status.phase.holds_resources() && status.reachability != Reachability::Reachable;
    let (reason, message) = if unreachable && !status.reachability_message.is_empty() {
        ("AgentUnreachable".to_owned(), &status.reachability_message)
    } else {
        let reason = status
            .reason
            .map_or_else(|| status.phase.to_string(), |reason| format!("{reason:?}"));
        (reason, &status.message)
    };
    let stalled = match status.phase {
        Phase::Pending => status.reason.is_some_and(TaskReason::is_stall),
        Phase::Failed | Phase::Error | Phase::Dropped | Phase::Gone => true,
        Phase::Staging | Phase::Starting | Phase::Running | Phase::Killing | Phase::Finished | Phase::Killed => false,
    };
    let backing_off = status.reason == Some(TaskReason::BackOff);
    let ready = match status.phase {
        Phase::Running => !backing_off && status.reachability == Reachability::Reachable,
        Phase::Finished => true,
        _ => false,
    };
    let reconciling = match status.phase {
        Phase::Pending | Phase::Staging | Phase::Starting | Phase::Killing => !stalled,
        Phase::Running => backing_off,
        _ => false,
    };
    let condition = |type_: &str, value: bool| {
        let value = if value { "True" } else { "False" };
        let before = status
            .conditions
            .iter()
            .find(|before| before.type_ == type_ && before.status == value);
        Condition {
            type_: type_.to_owned(),
            status: value.to_owned(),
            reason: reason.clone(),
            message: message.clone(),
            observed_generation: generation,
            last_transition_time: before.map_or(Time(now), |before| before.last_transition_time.clone()),
        }
    };
    let mut conditions = vec![condition("Ready", ready)];
    if reconciling {
        conditions.push(condition("Reconciling", true));
    }
    if stalled {
        conditions.push(condition("Stalled", true));
    }
    conditions
}
