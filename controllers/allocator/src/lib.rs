//! Pure allocation: a snapshot in; offers, rescinds and a why-not report out.
//!
//! # The algorithm
//!
//! 1. Names become numbers; what live tasks and open offers hold is counted on agents and in the tree of roles. Open offers that
//!    must go are taken back: of agents that may not be offered, of agents that have less than is given out, above a limit, or
//!    with no demand behind them.
//! 2. *Guarantees first*: roles whose guarantee is not met get what fills it. Where that is not enough, open offers of roles that
//!    can spare them are taken back and what they held is offered in their place.
//! 3. *Fair shares*: whoever has the smallest weighted dominant share is served first, level by level of the tree (ties: fewer
//!    allocations, then name), as long as what guarantees still miss stays free (headroom).
//!
//! A framework is offered all that is left of an agent and that it may have: cut to limits and headroom, without GPUs when it
//! asks for none, without ports when only tasks without ports want the offer. Agents are visited with the fewest free GPUs first
//! and then by name.
//!
//! Offers follow demand: an agent is offered only if a pending task that no other offer has room for fits in the offer, or if a
//! declared demand wants more offers and the offer has its minimum. Pending tasks are counted into offers first-fit, those of equal
//! shape together.
//!
//! # Promises
//!
//! Same input, same output. What is offered is free; limits hold at every level; guarantees are kept free for their roles; every
//! pending task has a verdict. What must never happen here: a panic on any input, floating point, a clock, randomness, async,
//! hash-ordered iteration. A malformed part of the snapshot becomes a line of [`Report::problems`].
//!
//! # Tests
//!
//! `tests/vectors.rs` drives passes with a small world of frameworks through published and conformance examples;
//! `tests/demand.rs` states the rules about demand, filters, devices and rescinds one by one; `tests/properties.rs` states the
//! promises over arbitrary snapshots. `benches/allocate.rs` measures whole passes.

mod agents;
mod client;
mod drf;
mod explain;
mod fit;
mod params;
mod pass;
mod quota;
mod report;
mod setup;
mod snapshot;
mod tree;
mod values;
mod world;

pub use params::{Allocation, NewOffer, Params, Rescind, RescindReason};
pub use report::{Report, TaskVerdict, Verdict};
pub use snapshot::{
    AgentSnapshot, Availability, DeclaredDemand, Filter, FrameworkId, FrameworkSnapshot, Held, OpenOffer, PendingTask,
    QuotaSnapshot, RoleDemand, Snapshot,
};

/// Decides which offers to make and which to take back.
pub fn allocate(snapshot: &Snapshot, params: &Params) -> Allocation {
    let mut pass = world::Pass::new(snapshot, params);
    pass.run();
    pass.rescinds
        .sort_by(|a, b| (&a.agent, &a.namespace, &a.name).cmp(&(&b.agent, &b.namespace, &b.name)));
    Allocation {
        offers: pass.offers,
        rescinds: pass.rescinds,
        report: Report {
            problems: pass.problems.into_iter().collect(),
            world: Box::new(pass.world),
            params: params.clone(),
        },
    }
}
