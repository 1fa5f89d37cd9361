//! The planners, one file each. Every `plan` is a pure function of a view.

mod agents;
mod brake;
mod events;
mod frameworks;
mod garbage;
mod namespaces;
mod offers;
mod quotas;
mod reasons;
mod scheduling;
mod snapshot;
mod tasks;
#[cfg(test)]
mod testing;
mod unreachable;

pub use agents::Agents;
pub use events::Events;
pub use frameworks::Frameworks;
pub use garbage::Garbage;
pub use namespaces::Namespaces;
pub use offers::Offers;
pub use quotas::Quotas;
pub use reasons::Reasons;
pub use scheduling::Scheduling;
pub use tasks::Tasks;
pub use unreachable::Unreachable;

use muster_api::v1::Task;
use muster_api::{Condition, Time, Timestamp};

use crate::runtime::object::created;

/// The order in which tasks are placed: priority, highest first; then age; then name.
pub(crate) fn queue_order(task: &Task) -> (std::cmp::Reverse<i32>, Timestamp, &str) {
    (
        std::cmp::Reverse(task.spec.priority),
        created(&task.metadata),
        task.name(),
    )
}

/// A condition. One that does not change its status keeps its time.
pub(crate) fn condition(
    before: &[Condition],
    (type_, status): (&str, &str),
    (reason, message): (&str, &str),
    generation: Option<i64>,
    now: Timestamp,
) -> Condition {
    let same = before
        .iter()
        .find(|condition| condition.type_ == type_ && condition.status == status);
    Condition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: generation,
        last_transition_time: same.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    }
}
