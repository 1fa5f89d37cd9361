//! Everything ambient and nondeterministic: the wall clock and fresh identities. One of the four seams.
//!
//! Durations are not here: components measure them with tokio's clock, which a simulation pauses and advances.

use jiff::Timestamp;
use uuid::Uuid;

/// The wall clock and the source of identities.
pub trait Env: Send + Sync + 'static {
    /// The wall clock now. May jump; never used to decide who may act.
    fn now(&self) -> Timestamp;

    /// A version 4 UUID that was not handed out before.
    fn uid(&self) -> Uuid;
}

/// The machine's own clock and randomness.
#[derive(Clone, Copy, Debug, Default)]
pub struct SystemEnv;

#[allow(clippy::disallowed_methods, reason = "this is the seam that the ban points to")]
impl Env for SystemEnv {
    fn now(&self) -> Timestamp {
        Timestamp::now()
    }

    fn uid(&self) -> Uuid {
        Uuid::new_v4()
    }
}
