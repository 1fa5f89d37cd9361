//! The planner runtime: one view, one loop, one writer.
//!
//! [`feed`] keeps the [`view`]; a [`driver`] runs each planner, with its [`queue`]; the [`executor`] does what [`plan`]s say.
//! Promises: a planner sees prefixes of history that contain its own writes; a failing key never blocks another; nothing is
//! written without the fence. Tested with paused time, and with the real API server.

pub mod driver;
pub mod event;
pub mod executor;
pub mod feed;
pub mod object;
pub mod owners;
pub mod plan;
pub mod queue;
pub mod resource;
pub mod view;

pub use object::{Change, Id, Kind, Object};
pub use plan::{Action, Context, Note, Plan, Planner, Severity, Write};
pub use resource::{Key, Resource};
pub use view::View;
