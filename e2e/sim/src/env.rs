//! Virtual time and seeded identities.

use std::sync::Mutex;

use jiff::Timestamp;
use muster_api::env::Env;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// The wall clock of the simulation: a fixed day plus the runtime's paused clock.
pub struct SimEnv {
    start: Instant,
    random: Mutex<StdRng>,
}

/// 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;

impl SimEnv {
    /// A clock that starts now, and identities that follow from the seed.
    pub fn new(seed: u64) -> SimEnv {
        SimEnv {
            start: Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed ^ 0x1d5)),
        }
    }
}

impl Env for SimEnv {
    fn now(&self) -> Timestamp {
        let elapsed =
            i64::try_from(self.start.elapsed().as_millis()).expect("a simulation lasts less than 292 million years");
        Timestamp::from_millisecond(EPOCH_SECONDS * 1000 + elapsed).expect("the simulated day lies in range")
    }

    fn uid(&self) -> Uuid {
        let mut bytes = [0; 16];
        self.random
            .lock()
            .expect("no one panics while drawing")
            .fill_bytes(&mut bytes);
        Builder::from_random_bytes(bytes).into_uuid()
    }
}
