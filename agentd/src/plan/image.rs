//! The part of a task's plan that is about its image: whether it comes, and what becomes of the task when it does not.

use muster_api::task_state::Phase;
use muster_api::v1::TaskReason;
use muster_runtime::registry::{PullError, Seen, has_registry};

use super::{Failure, PlanInput, TaskPlan, after, earlier};
use crate::limits::PULL_PATIENCE;
use crate::pulls::{self, Pull};
use crate::status::Outcome;

/// What becomes of a task whose container could not be made because its image is not here: how far that is on its way, or how the task
/// ends. `None`: it failed for another reason.
pub(super) fn fetch(
    input: &PlanInput<'_>,
    plan: &mut TaskPlan,
    failure: Option<&Failure>,
) -> Option<Result<String, Outcome>> {
    let failure = failure?;
    let image = failure.no_image.as_deref()?;
    let end = |phase, reason, message| Outcome { phase, reason, message };
    let (Some(pulls), true) = (input.pulls, has_registry(image)) else {
        let hint = input.pulls.map_or(
            "",
            |_| "; or write which registry has it, as in registry.example/team/app:1",
        );
        let message = format!("{}{hint}", failure.message);
        return Some(Err(end(Phase::Error, TaskReason::ImageNotFound, message)));
    };
    plan.image = Some(image.to_owned());
    let failed = match pulls.get(image) {
        Some(Pull::Failed(failed)) => failed,
        Some(Pull::Comes(seen)) => {
            plan.wake = earlier(plan.wake, Some(after(input.now, pulls::OLD)));
            return Some(Ok(format!("{image}: {}", pulls::words(*seen))));
        }
        None => return Some(Ok(format!("{image}: {}", pulls::words(Seen::default())))),
    };
    let error = &failed.error;
    let reason = match error {
        PullError::NotFound(_) => TaskReason::ImageNotFound,
        _ => TaskReason::ImagePullFailed,
    };
    Some(if error.is_final() {
        Err(end(
            Phase::Error,
            reason,
            format!("the image {image} could not be fetched: {error}"),
        ))
    } else if after(failed.since, PULL_PATIENCE) <= input.now {
        let message = format!(
            "not started: the image {image} could not be fetched, {} times: {error}",
            failed.count
        );
        Err(end(Phase::Dropped, reason, message))
    } else {
        plan.wake = earlier(plan.wake, Some(failed.retry_at));
        Ok(format!("{image}: trying again: {error}"))
    })
}
