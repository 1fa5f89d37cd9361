//! The flags that say how much is done at once.

use clap::Args;

use super::Limits;
use crate::limits;

/// How much of what users ask for is done at once.
#[derive(Clone, Copy, Debug, Args)]
pub struct LaneArgs {
    /// Requests of users that are worked on at once; agents, controllers and masters have room of their own. One user alone gets at most half of it.
    #[arg(
        long = "max-requests-inflight",
        value_name = "NUMBER",
        default_value_t = limits::USERS_SEATS as u32,
        value_parser = clap::value_parser!(u32).range(2..=10_000),
        help_heading = "Limits"
    )]
    pub seats: u32,
    /// Watches, logs and sessions of one user that are open at once.
    #[arg(
        long = "max-streams-per-user",
        value_name = "NUMBER",
        default_value_t = limits::LASTING_OF_USER as u32,
        value_parser = clap::value_parser!(u32).range(1..),
        help_heading = "Limits"
    )]
    pub lasting: u32,
}

impl LaneArgs {
    /// The same as numbers.
    pub fn limits(&self) -> Limits {
        Limits {
            seats: self.seats as usize,
            lasting: self.lasting as usize,
        }
    }
}
