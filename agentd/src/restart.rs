//! Whether and when a command that has ended is run again, in place. Pure.
//!
//! The wait doubles from 1 s to 60 s with each run in a row that was short; a run of ten minutes starts over. The count is derived
//! from the attempts in the status, so a restart of the agent changes nothing.

use muster_api::v1::{Attempt, RestartPolicy, TaskSpec};

use crate::limits::{BACKOFF_FIRST, BACKOFF_MAX, BACKOFF_RESET, RETRIES_ON_FAILURE};
use crate::status::Ended;

/// What follows the end of a run.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Decision {
    /// Nothing: the task has ended.
    End,
    /// Another run, not before this time (milliseconds since the epoch).
    Again {
        /// When.
        at_ms: i64,
    },
}

/// How often a command may be run again; `None` is without bound.
pub fn retries(spec: &TaskSpec) -> Option<u32> {
    match spec.restart_policy {
        RestartPolicy::Never => Some(0),
        RestartPolicy::OnFailure => Some(spec.max_retries.unwrap_or(RETRIES_ON_FAILURE)),
        RestartPolicy::Always => spec.max_retries,
    }
}

/// Decides after the last attempt has ended. `attempts` are all that are known, the last one included.
pub fn decide(spec: &TaskSpec, attempts: &[Attempt], last: &Ended, now_ms: i64) -> Decision {
    let wanted = match spec.restart_policy {
        RestartPolicy::Never => false,
        RestartPolicy::OnFailure => !last.succeeded(),
        RestartPolicy::Always => true,
    };
    let used = last.number.saturating_sub(1);
    if !wanted || retries(spec).is_some_and(|most| used >= most) {
        return Decision::End;
    }
    // A clock that was set back must not make a short wait a long one.
    let from_ms = last.finished_ms.min(now_ms);
    Decision::Again {
        at_ms: from_ms + wait_ms(attempts),
    }
}

fn wait_ms(attempts: &[Attempt]) -> i64 {
    let short = |attempt: &&Attempt| {
        let ran = match (&attempt.started_at, &attempt.finished_at) {
            (Some(started), Some(finished)) => finished.0.as_millisecond() - started.0.as_millisecond(),
            _ => 0,
        };
        u128::try_from(ran).unwrap_or(0) < BACKOFF_RESET.as_millis()
    };
    let in_a_row = attempts.iter().rev().take_while(short).count();
    let doublings = u32::try_from(in_a_row.saturating_sub(1)).unwrap_or(u32::MAX).min(16);
    let wait = BACKOFF_FIRST.saturating_mul(1 << doublings).min(BACKOFF_MAX);
    i64::try_from(wait.as_millis()).expect("the longest wait is a minute")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::status::time;

    const NOW_MS: i64 = 1_000_000_000;

    fn spec(policy: RestartPolicy, max_retries: Option<u32>) -> TaskSpec {
        TaskSpec {
            restart_policy: policy,
            max_retries,
            ..TaskSpec::default()
        }
    }

    /// `count` runs that each lasted `secs`, the last of which ended now with `code`.
    fn runs(count: u32, secs: i64, code: i32) -> (Vec<Attempt>, Ended) {
        let ended = |number| Ended {
            number,
            started_ms: Some(NOW_MS - secs * 1000),
            finished_ms: NOW_MS,
            code: Some(code),
            signal: None,
            oom_killed: false,
            error: None,
        };
        let attempts = (1..=count).map(|number| ended(number).attempt()).collect();
        (attempts, ended(count))
    }

    fn check(spec: &TaskSpec, (attempts, last): (Vec<Attempt>, Ended), wait_secs: Option<i64>) {
        let expect = wait_secs.map_or(Decision::End, |secs| Decision::Again {
            at_ms: NOW_MS + secs * 1000,
        });
        assert_eq!(decide(spec, &attempts, &last, NOW_MS), expect);
    }

    #[test]
    fn never_means_never() {
        check(&spec(RestartPolicy::Never, None), runs(1, 1, 1), None);
    }

    #[test]
    fn on_failure_retries_failures_only_and_three_times() {
        let on_failure = spec(RestartPolicy::OnFailure, None);
        check(&on_failure, runs(1, 1, 0), None);
        check(&on_failure, runs(1, 1, 1), Some(1));
        check(&on_failure, runs(3, 1, 1), Some(4));
        check(&on_failure, runs(4, 1, 1), None);
        check(&spec(RestartPolicy::OnFailure, Some(0)), runs(1, 1, 1), None);
    }

    #[test]
    fn always_retries_success_too_and_without_bound() {
        let always = spec(RestartPolicy::Always, None);
        check(&always, runs(1, 1, 0), Some(1));
        check(&always, runs(7, 1, 0), Some(60));
        check(&always, runs(1000, 1, 1), Some(60));
        check(&spec(RestartPolicy::Always, Some(2)), runs(3, 1, 0), None);
    }

    #[test]
    fn a_long_run_makes_the_wait_short_again() {
        let always = spec(RestartPolicy::Always, None);
        let (mut attempts, _) = runs(5, 1, 1);
        let (long, _) = runs(1, 600, 1);
        attempts[4] = Attempt {
            number: 5,
            ..long[0].clone()
        };
        let last = Ended::of_attempt(&attempts[4]).expect("it is over");
        check(&always, (attempts, last), Some(1));
    }

    #[test]
    fn a_clock_set_back_does_not_make_the_wait_longer() {
        let always = spec(RestartPolicy::Always, None);
        let (attempts, mut last) = runs(1, 1, 1);
        last.finished_ms = NOW_MS + 3_600_000;
        check(&always, (attempts, last), Some(1));
    }

    #[test]
    fn times_of_attempts_are_whole_seconds() {
        assert_eq!(time(1_999), time(1_000));
    }
}
