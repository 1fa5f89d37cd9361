//! Pure allocation: a snapshot in; offers, rescinds and a why-not report out.

mod params;
mod report;
mod snapshot;

pub use params::{Allocation, NewOffer, Params, Rescind, RescindReason};
pub use report::{Report, TaskVerdict, Verdict};
pub use snapshot::{
    AgentSnapshot, Availability, DeclaredDemand, Filter, FrameworkId, FrameworkSnapshot, Held, OpenOffer, PendingTask,
    QuotaSnapshot, RoleDemand, Snapshot,
};

/// Decides which offers to make and which to take back.
pub fn allocate(snapshot: &Snapshot, params: &Params) -> Allocation {
    let _ = (snapshot, params);
    Allocation::default()
}
