//! The vocabulary of Muster: its kinds, quantities, resource algebra, the table of task phases, validation, and the
//! well-known names on the wire.
//!
//! Everything else depends on this crate and it depends on nothing of ours. It promises exact arithmetic (fixed point, every
//! operation checked) and one state table that all components share. What must never happen here: async, I/O, a clock or
//! randomness (but for [`env::SystemEnv`], the seam itself), hash-ordered iteration.

pub mod device;
pub mod duration;
pub mod env;
pub mod image;
pub mod join;
pub mod names;
pub mod ports;
pub mod quantity;
pub mod resources;
pub mod task_state;
pub mod topology;
pub mod usage;
pub mod v1;
pub mod validation;
pub mod wire;

pub use jiff::Timestamp;
pub use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, ObjectMeta, Time};
