//! The command.

pub mod manifest;
pub mod style;
