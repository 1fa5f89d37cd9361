//! The agent: a pure plan from tasks and containers to actions, an executor, devices, presence, status and the node server.

pub mod devices;
pub mod limits;
pub mod plan;
pub mod restart;
pub mod spec;
pub mod status;
