//! The whole cluster in one thread on virtual time.
//!
//! Real routers, hub, planners and agents run on tokio's current-thread runtime with a paused clock, over the in-memory store inside
//! the fault store, fake runtimes, and a network that loses, delays and doubles. One seed decides everything. After every step
//! the store's history is replayed and the [`invariants`] are checked; then the faults stop and the cluster has to converge.
//!
//! A failure prints its seed; `muster-sim --seed N` runs it again. [`mutants`] are planted bugs that must be caught.

pub mod campaign;
pub mod env;
pub mod invariants;
pub mod mutants;
pub mod recorder;
pub mod run;
mod server;
pub mod transport;
pub mod workload;
pub mod world;
