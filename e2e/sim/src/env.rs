//! Virtual time, clocks that jump, and seeded identities.

use std::sync::atomic::{AtomicI64, Ordering};
use std::sync::{Arc, Mutex};

use jiff::{SignedDuration, Timestamp};
use muster_api::env::Env;
use rand::rngs::StdRng;
use rand::{RngCore, SeedableRng};
use tokio::time::Instant;
use uuid::{Builder, Uuid};

/// The true time of the simulation: a fixed day plus the runtime's paused clock.
pub struct SimEnv {
    start: Instant,
    random: Mutex<StdRng>,
    /// By how much any clock has ever been ahead, in milliseconds.
    ahead_ms: AtomicI64,
}

/// 2026-01-01T00:00:00Z.
const EPOCH_SECONDS: i64 = 1_767_225_600;

impl SimEnv {
    /// A clock that starts now, and identities that follow from the seed.
    pub fn new(seed: u64) -> SimEnv {
        SimEnv {
            start: Instant::now(),
            random: Mutex::new(StdRng::seed_from_u64(seed ^ 0x1d5)),
            ahead_ms: AtomicI64::new(0),
        }
    }

    /// The latest time that any clock can show, or could when something was decided that happens now.
    pub fn latest(&self) -> Timestamp {
        self.now() + SignedDuration::from_millis(self.ahead_ms.load(Ordering::Relaxed))
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

/// The wall clock of one machine, which somebody may set wrong. Clones are the same clock.
#[derive(Clone)]
pub struct Clock {
    truth: Arc<SimEnv>,
    wrong_ms: Arc<AtomicI64>,
}

impl Clock {
    /// A clock that is right.
    pub fn new(truth: &Arc<SimEnv>) -> Clock {
        Clock {
            truth: Arc::clone(truth),
            wrong_ms: Arc::default(),
        }
    }

    /// Makes the clock wrong by so many milliseconds.
    pub fn set_wrong(&self, ms: i64) {
        self.wrong_ms.store(ms, Ordering::Relaxed);
        self.truth.ahead_ms.fetch_max(ms, Ordering::Relaxed);
    }
}

impl Env for Clock {
    fn now(&self) -> Timestamp {
        let wrong = jiff::SignedDuration::from_millis(self.wrong_ms.load(Ordering::Relaxed));
        self.truth.now() + wrong
    }

    fn uid(&self) -> Uuid {
        self.truth.uid()
    }
}
