//! Accepting offers: what they hold becomes tasks, all at once or not at all.
//!
//! [`accept`] is the arithmetic, pure: which task gets what, or why it cannot be. `run` reads, asks it, and commits one
//! transaction that compares everything that was read: the offers are still what they were, the agent is still there and present, the tasks
//! are still pending, the namespace is still open. What must never happen here: a task that gets what no offer held. Tested below and through the routes.

mod flow;
mod place;
mod request;

pub(crate) use flow::{launch, offer_of, run};
pub use place::{Asked, Offered, Placed, accept};
