//! The whole cluster in one thread on virtual time.
//!
//! Real routers, hubs, planners and agents run on tokio's current-thread runtime with a paused clock: several API servers over one
//! in-memory store, several candidates for leadership, agents with fake machines. Between any two of them is something that goes wrong by a
//! plan that the seed decides: a network that loses, delays, doubles and parts ([`network`]), stores that fail and stores that lie,
//! processes that are killed or stopped ([`gate`]), machines that boot, clocks that jump. Every revision of the store is replayed in the
//! moment it comes to be, and the [`invariants`] are checked; then the trouble stops and the cluster has to converge, and to stay so.
//!
//! A failure prints its seed; `muster-sim --seed N` runs it again. [`mutants`] are planted bugs that must be caught. [`sieve`] leaves
//! nothing to chance: it runs one history again and again, with one thing going wrong at each of its points in turn.

pub mod campaign;
pub mod converge;
pub mod env;
pub mod framework;
pub mod gate;
pub mod invariants;
pub mod link;
pub mod machine;
pub mod mutants;
pub mod network;
pub mod observer;
mod process;
pub mod profile;
pub mod recorder;
pub mod run;
mod server;
pub mod sieve;
mod stoppable;
pub mod wire;
pub mod workload;
pub mod world;
pub mod writer;
