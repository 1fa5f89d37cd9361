//! The deadman: ends a container that nobody has vouched for in a while, whatever has become of the agent.
//!
//! The agent writes into one file of the state directory up to when somebody vouches ([`crate::Guard::vouch`]); every shim whose container
//! has a [`Fence`] waits, by the boot-time clock, until that is too long ago. So it holds when the agent hangs, is stopped or is killed.
//! It does not hold when the shim itself is stopped; when it is killed, the agent ends the container if there is one.

use std::fs::File;
use std::io;
use std::os::fd::{AsFd as _, BorrowedFd};
use std::os::unix::fs::FileExt as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::sys::time::TimeSpec;
use nix::sys::timerfd::{ClockId, Expiration, TimerFd, TimerFlags, TimerSetTimeFlags};
use serde::{Deserialize, Serialize};

use super::super::clock;
use crate::Fence;

/// What a deadman has to know.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(in super::super) struct Watched {
    /// When it acts, and how.
    pub(in super::super) fence: Fence,
    /// The file that says up to when somebody vouches.
    pub(in super::super) vouched: PathBuf,
}

/// Writes up to when somebody vouches. In place, without allocating: a full disk must not look like an agent that is gone.
pub(in super::super) fn vouch(path: &Path, at: Duration) -> io::Result<()> {
    let file = File::options().create(true).truncate(false).write(true).open(path)?;
    file.write_all_at(&encode(at), 0)
}

/// Up to when somebody vouched; `None`: nobody ever did since the machine was started, or it is being written right now.
fn read(path: &Path) -> Option<Duration> {
    let mut bytes = [0; 16];
    File::open(path).ok()?.read_exact_at(&mut bytes, 0).ok()?;
    // What lies in the future was written before the machine was started.
    decode(bytes).filter(|at| *at <= clock::boottime())
}

/// Milliseconds and their complement: a reader that comes while it is written sees that they do not match.
fn encode(at: Duration) -> [u8; 16] {
    let ms = u64::try_from(at.as_millis()).unwrap_or(u64::MAX);
    let mut bytes = [0; 16];
    bytes[..8].copy_from_slice(&ms.to_le_bytes());
    bytes[8..].copy_from_slice(&(!ms).to_le_bytes());
    bytes
}

fn decode(bytes: [u8; 16]) -> Option<Duration> {
    let (ms, complement) = bytes.split_at(8);
    let number = |half: &[u8]| Some(u64::from_le_bytes(half.try_into().ok()?));
    let (ms, complement) = (number(ms)?, number(complement)?);
    (ms == !complement).then_some(Duration::from_millis(ms))
}

pub(super) struct Deadman {
    watched: Watched,
    /// Up to when somebody vouched, as far as is known.
    vouched: Duration,
    timer: TimerFd,
    acted: bool,
}

impl Deadman {
    /// Begins to wait. An error when nobody vouches now: then the container must not be made.
    pub(super) fn begin(watched: &Watched) -> Result<Deadman, String> {
        let vouched = read(&watched.vouched).ok_or("nobody vouches for containers with a fence")?;
        let flags = TimerFlags::TFD_CLOEXEC | TimerFlags::TFD_NONBLOCK;
        let timer = TimerFd::new(ClockId::CLOCK_BOOTTIME, flags).map_err(|error| format!("timer: {error}"))?;
        let deadman = Deadman {
            watched: watched.clone(),
            vouched,
            timer,
            acted: false,
        };
        deadman.arm().map_err(|error| format!("timer: {error}"))?;
        Ok(deadman)
    }

    /// Readable when it is time to look.
    pub(super) fn fd(&self) -> Option<BorrowedFd<'_>> {
        (!self.acted).then(|| self.timer.as_fd())
    }

    /// How to stop the container, once, when its time is over.
    pub(super) fn acts(&mut self) -> Option<Fence> {
        if self.acted || self.deadline() > clock::boottime() {
            return None;
        }
        // The only moment at which it matters what the file says.
        self.vouched = read(&self.watched.vouched).map_or(self.vouched, |at| at.max(self.vouched));
        if self.deadline() > clock::boottime() && self.arm().is_ok() {
            return None;
        }
        self.acted = true;
        Some(self.watched.fence)
    }

    fn deadline(&self) -> Duration {
        self.vouched.saturating_add(self.watched.fence.after)
    }

    fn arm(&self) -> nix::Result<()> {
        // A time of zero would mean never.
        let at = self.deadline().max(Duration::from_millis(1));
        let once = Expiration::OneShot(TimeSpec::from_duration(at));
        self.timer.set(once, TimerSetTimeFlags::TFD_TIMER_ABSTIME)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_half_written_or_of_an_earlier_boot_does_not_count() {
        let directory = tempfile::tempdir().expect("a directory");
        let path = directory.path().join("vouched");
        assert_eq!(read(&path), None);
        let at = Duration::from_millis(1234);
        vouch(&path, at).expect("written");
        assert_eq!(read(&path), Some(at));
        let mut torn = encode(at);
        torn[..8].copy_from_slice(&encode(Duration::from_millis(99))[..8]);
        assert_eq!(decode(torn), None);
        vouch(&path, clock::boottime() + Duration::from_secs(3600)).expect("written");
        assert_eq!(read(&path), None);
    }
}
