//! The clocks of the machine, for what really happens on it. Decides no policy: times are only recorded, and graces counted.

use std::time::Duration;

use nix::time::{ClockId, clock_gettime};

/// Milliseconds since the epoch.
pub(super) fn wall_ms() -> i64 {
    let now = clock_gettime(ClockId::CLOCK_REALTIME).expect("the kernel has a real-time clock");
    now.tv_sec() * 1000 + now.tv_nsec() / 1_000_000
}

/// Time since the machine was started, sleep included: a grace is over when it is over.
pub(super) fn boottime() -> Duration {
    let now = clock_gettime(ClockId::CLOCK_BOOTTIME).expect("the kernel has a boot-time clock");
    Duration::from(now)
}
