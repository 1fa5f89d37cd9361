//! From containers to what a task's status says. Pure.
//!
//! Times of a status are whole seconds, as they are on the wire: so a status that comes back equals the one that was sent.

use std::collections::BTreeMap;

use jiff::Timestamp;
use muster_api::Time;
use muster_api::task_state::Phase;
use muster_api::v1::{Attempt, TaskReason, TaskStatus};
use muster_runtime::{Exit, FENCED, State};

use crate::limits::ATTEMPTS_MAX;

/// The error of an attempt whose container disappeared.
pub const VANISHED: &str = "the container disappeared; how the command ended is not known";

/// The error of an attempt that the machine was restarted under.
pub const REBOOTED: &str = "the machine was restarted";

/// A run of a command that is over.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Ended {
    /// Counts from 1.
    pub number: u32,
    /// Milliseconds since the epoch; `None` when the command never ran.
    pub started_ms: Option<i64>,
    /// Milliseconds since the epoch.
    pub finished_ms: i64,
    /// Its exit code, unless a signal ended it.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether it hit its memory limit.
    pub oom_killed: bool,
    /// Why it could not be run, or why its end is not known.
    pub error: Option<String>,
}

/// How a task ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// A terminal phase.
    pub phase: Phase,
    /// Why.
    pub reason: TaskReason,
    /// The same in a sentence.
    pub message: String,
}

/// The time, in whole seconds; what no calendar has is the epoch.
pub fn time(ms: i64) -> Time {
    Time(Timestamp::from_second(ms.div_euclid(1000)).unwrap_or_default())
}

fn millis(time: &Time) -> i64 {
    time.0.as_millisecond()
}

impl Ended {
    /// From what the runtime saw.
    pub fn of_exit(number: u32, exit: &Exit) -> Ended {
        Ended {
            number,
            started_ms: exit.started_ms,
            finished_ms: exit.finished_ms,
            code: exit.code,
            signal: exit.signal,
            oom_killed: exit.oom_killed,
            error: exit.error.clone(),
        }
    }

    /// From what a status remembers; `None` when it was not over.
    pub fn of_attempt(attempt: &Attempt) -> Option<Ended> {
        Some(Ended {
            number: attempt.number,
            started_ms: attempt.started_at.as_ref().map(millis),
            finished_ms: millis(attempt.finished_at.as_ref()?),
            code: attempt.exit_code,
            signal: attempt.signal,
            oom_killed: attempt.oom_killed,
            error: attempt.error.clone(),
        })
    }

    /// A run whose container disappeared.
    pub fn vanished(number: u32, started_ms: Option<i64>, now_ms: i64) -> Ended {
        Ended {
            number,
            started_ms,
            finished_ms: now_ms,
            code: None,
            signal: None,
            oom_killed: false,
            error: Some(VANISHED.to_owned()),
        }
    }

    /// The same, but the machine was restarted: what nobody saw ended by that.
    pub fn by_reboot(self) -> Ended {
        let seen = self.code.is_some() || self.signal.is_some();
        Ended {
            error: if seen { self.error } else { Some(REBOOTED.to_owned()) },
            ..self
        }
    }

    /// As a status keeps it.
    pub fn attempt(&self) -> Attempt {
        Attempt {
            number: self.number,
            started_at: self.started_ms.map(time),
            finished_at: Some(time(self.finished_ms)),
            exit_code: self.code,
            signal: self.signal,
            oom_killed: self.oom_killed,
            error: self.error.clone(),
        }
    }

    /// Whether it ended with exit code 0.
    pub fn succeeded(&self) -> bool {
        self.code == Some(0) && !self.oom_killed && self.error.is_none()
    }

    /// What it means for a task that is not run again.
    pub fn outcome(&self) -> Outcome {
        let outcome = |phase, reason, message: String| Outcome { phase, reason, message };
        match (&self.error, self.code, self.signal) {
            (Some(error), None, None) if error == REBOOTED => outcome(
                Phase::Failed,
                TaskReason::HostRebooted,
                "the machine was restarted under the task".to_owned(),
            ),
            (Some(error), _, _) if error == FENCED => {
                let message =
                    "ended on its machine because the agent had no contact for as long as spec.unreachable allows";
                outcome(Phase::Failed, TaskReason::SelfFenced, message.to_owned())
            }
            (Some(error), None, None) if self.started_ms.is_none() && error != VANISHED => outcome(
                Phase::Failed,
                TaskReason::LaunchFailed,
                format!("the command could not be run: {error}"),
            ),
            (error, None, None) => {
                let error = error.as_deref().unwrap_or(VANISHED);
                outcome(Phase::Failed, TaskReason::ContainerVanished, error.to_owned())
            }
            _ if self.oom_killed => {
                let message = "the command hit its memory limit; give it more with spec.limits.memory";
                outcome(Phase::Failed, TaskReason::OutOfMemory, message.to_owned())
            }
            (_, Some(0), _) => outcome(Phase::Finished, TaskReason::Completed, String::new()),
            (_, Some(code), _) => outcome(
                Phase::Failed,
                TaskReason::NonZeroExit,
                format!("the command ended with exit code {code}"),
            ),
            (_, None, Some(signal)) => {
                let message = format!("the command was ended by signal {signal}, which was not asked for here");
                outcome(Phase::Failed, TaskReason::Signaled, message)
            }
        }
    }
}

/// What a container says about its attempt; `None` before its command runs.
pub fn attempt(number: u32, state: &State) -> Option<Attempt> {
    match state {
        State::Created => None,
        State::Running { started_ms, .. } => Some(Attempt {
            number,
            started_at: Some(time(*started_ms)),
            ..Attempt::default()
        }),
        State::Exited(exit) => Some(Ended::of_exit(number, exit).attempt()),
    }
}

/// The attempts with what was learned about some of them: sorted, the last few only. What is over stays as it was told first.
pub fn record(known: &[Attempt], learned: impl IntoIterator<Item = Attempt>) -> Vec<Attempt> {
    let mut attempts: BTreeMap<u32, Attempt> = known.iter().map(|attempt| (attempt.number, attempt.clone())).collect();
    for attempt in learned {
        let over = attempts
            .get(&attempt.number)
            .is_some_and(|known| known.finished_at.is_some());
        if !over {
            attempts.insert(attempt.number, attempt);
        }
    }
    let skip = attempts.len().saturating_sub(ATTEMPTS_MAX);
    attempts.into_values().skip(skip).collect()
}

/// Whether two statuses say the same in every field that the agent writes.
pub fn same(a: &TaskStatus, b: &TaskStatus) -> bool {
    let part = |status: &TaskStatus| {
        (
            status.phase,
            status.reason,
            status.exit_code,
            status.observed_generation,
            status.started_at.clone(),
            status.finished_at.clone(),
        )
    };
    part(a) == part(b) && a.message == b.message && a.image == b.image && a.attempts == b.attempts
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ended(code: Option<i32>, signal: Option<i32>, oom_killed: bool, error: Option<&str>) -> Ended {
        Ended {
            number: 1,
            started_ms: Some(1_500),
            finished_ms: 2_999,
            code,
            signal,
            oom_killed,
            error: error.map(str::to_owned),
        }
    }

    #[test]
    fn every_end_has_its_phase_and_reason() {
        let never_ran = Ended {
            started_ms: None,
            ..ended(None, None, false, Some("no such file"))
        };
        let cases = [
            (
                ended(Some(0), None, false, None),
                Phase::Finished,
                TaskReason::Completed,
            ),
            (
                ended(Some(3), None, false, None),
                Phase::Failed,
                TaskReason::NonZeroExit,
            ),
            (ended(None, Some(11), false, None), Phase::Failed, TaskReason::Signaled),
            (ended(None, Some(9), true, None), Phase::Failed, TaskReason::OutOfMemory),
            (
                ended(Some(137), None, true, None),
                Phase::Failed,
                TaskReason::OutOfMemory,
            ),
            (never_ran, Phase::Failed, TaskReason::LaunchFailed),
            (
                ended(None, Some(15), false, Some(FENCED)),
                Phase::Failed,
                TaskReason::SelfFenced,
            ),
            (
                ended(None, None, false, Some("lost")),
                Phase::Failed,
                TaskReason::ContainerVanished,
            ),
            (
                Ended::vanished(1, None, 5),
                Phase::Failed,
                TaskReason::ContainerVanished,
            ),
        ];
        for (ended, phase, reason) in cases {
            let outcome = ended.outcome();
            assert_eq!((outcome.phase, outcome.reason), (phase, reason), "{ended:?}");
        }
    }

    #[test]
    fn times_are_whole_seconds_so_they_survive_the_wire() {
        let attempt = ended(Some(0), None, false, None).attempt();
        let text = serde_json::to_string(&attempt).expect("attempts serialise");
        let back: Attempt = serde_json::from_str(&text).expect("and deserialise");
        assert_eq!(back, attempt);
        assert_eq!(Ended::of_attempt(&back).map(|ended| ended.finished_ms), Some(2_000));
    }

    #[test]
    fn what_is_over_is_not_told_anew_and_only_the_last_attempts_stay() {
        let first = ended(Some(1), None, false, None).attempt();
        let other = Attempt {
            exit_code: Some(2),
            ..first.clone()
        };
        assert_eq!(
            record(std::slice::from_ref(&first), [other]),
            std::slice::from_ref(&first)
        );
        let many = (1..=14).map(|number| Attempt {
            number,
            ..Attempt::default()
        });
        let kept: Vec<u32> = record(&[], many).iter().map(|attempt| attempt.number).collect();
        assert_eq!(kept, (5..=14).collect::<Vec<u32>>());
    }
}
