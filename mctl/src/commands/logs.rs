//! `mctl logs`: the output of a task.
//!
//! Following goes on across connections that break, agents that restart and attempts that follow each other, and ends when the task has
//! ended. Lines are asked for with their times, so that after a broken connection none is shown twice and none is left out.

use std::time::Duration;

use futures::StreamExt as _;
use muster_api::task_state::Phase;
use serde_json::Value;
use tokio::time::Instant;

use crate::cli::LogsArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::observe::{AWAY_MAX, Observer};
use crate::rest::{CallError, with_query};
use crate::session::{Session, Terminal, span};

/// Before a stream is opened again: the first time, because the agent says a moment after the output that the attempt has ended; and at most.
const PAUSE: (Duration, Duration) = (Duration::from_millis(10), Duration::from_millis(500));

/// What is shown.
#[derive(Clone, Debug, Default)]
pub struct Options {
    /// Go on until the task has ended.
    pub follow: bool,
    /// Of the attempt before.
    pub previous: bool,
    /// The last so many lines.
    pub tail: Option<u64>,
    /// Of the last so many seconds.
    pub since_seconds: Option<u64>,
    /// After this time.
    pub since_time: Option<String>,
    /// With times.
    pub timestamps: bool,
}

/// Runs the command.
pub async fn run(session: &Session, args: LogsArgs, terminal: &mut Terminal) -> Outcome {
    let name = session.task_name(&args.task)?;
    let since = args
        .since
        .as_deref()
        .map(|text| span("--since", text))
        .transpose()?
        .flatten();
    if let Some(time) = &args.since_time {
        time.parse::<jiff::Timestamp>()
            .map_err(|_| Failure::new(format!("--since-time {time}: write it like 2026-01-02T10:00:00Z")))?;
    }
    let options = Options {
        follow: args.follow,
        previous: args.previous,
        tail: u64::try_from(args.tail).ok(),
        since_seconds: since.map(|since| since.as_secs().max(1)),
        since_time: args.since_time,
        timestamps: args.timestamps,
    };
    if options.follow && options.previous {
        return Err(Failure::new(
            "the attempt before does not go on; leave out either -f or -p",
        ));
    }
    let task = session
        .rest
        .get(&Session::tasks().object_path(&session.namespace, name))
        .await?;
    if options.follow {
        let mut observer = Observer::new(&session.rest, &Session::tasks(), &session.namespace, name);
        follow(session, name, &options, &mut observer, terminal).await?;
        return Ok(Exit::Done);
    }
    if attempt(&task) == 0 && phase(&task) < Phase::Running {
        let hint = if phase(&task) == Phase::Pending {
            format!("; `mctl why {name}` says why")
        } else {
            String::new()
        };
        return Err(Failure::new(format!(
            "{}, so there is no output yet; -f waits for it{hint}",
            state(&task)
        )));
    }
    let mut cursor = Cursor::default();
    match show(session, name, &options, None, &mut cursor, terminal).await {
        Ok(()) => Ok(Exit::Done),
        Err(Stop::Call(error)) => Err(error.into()),
        Err(Stop::Failure(failure)) => Err(failure),
    }
}

/// The phase of a task.
pub fn phase(task: &Value) -> Phase {
    serde_json::from_value(task["status"]["phase"].clone()).unwrap_or_default()
}

/// The number of the last attempt; 0 before the first.
pub fn attempt(task: &Value) -> u64 {
    task["status"]["attempts"]
        .as_array()
        .and_then(|attempts| attempts.last()?["number"].as_u64())
        .unwrap_or(0)
}

/// `task/hello is Pending (AwaitingOffer)`.
pub fn state(task: &Value) -> String {
    let reason = task["status"]["reason"]
        .as_str()
        .map(|reason| format!(" ({reason})"))
        .unwrap_or_default();
    format!(
        "task/{} is {}{reason}",
        task["metadata"]["name"].as_str().unwrap_or_default(),
        phase(task)
    )
}

/// Where in the output of an attempt we are.
#[derive(Default)]
struct Cursor {
    /// The time of the last line that was shown, as the server wrote it.
    time: Option<String>,
    /// How many lines of that very time were shown.
    count: usize,
    /// How many lines of that very time are to be passed over after a reconnect.
    skip: usize,
}

enum Stop {
    Call(CallError),
    Failure(Failure),
}

/// Shows the output of a task until it has ended; gives back the task as it was last.
pub async fn follow(
    session: &Session,
    name: &str,
    options: &Options,
    observer: &mut Observer,
    terminal: &mut Terminal,
) -> Outcome<Value> {
    let gone = || Failure::new(format!("task/{name} was deleted"));
    let mut task = observer.next().await?.ok_or_else(gone)?;
    let mut options = options.clone();
    let mut shown = 0;
    let mut said = String::new();
    loop {
        while attempt(&task) <= shown && !phase(&task).is_terminal() {
            if attempt(&task) == 0 && phase(&task) >= Phase::Running {
                break;
            }
            let now = state(&task);
            // What passes by itself in a moment is not worth a line.
            let waits = phase(&task) == Phase::Pending && task["status"]["reason"] != "AwaitingOffer";
            if waits && said != now && shown == 0 {
                let message = task["status"]["message"].as_str().filter(|message| !message.is_empty());
                terminal.note(format!(
                    "{now}{}",
                    message.map(|message| format!(": {message}")).unwrap_or_default()
                ));
            }
            said = now;
            task = observer.next().await?.ok_or_else(gone)?;
        }
        let current = attempt(&task);
        if current <= shown && (shown > 0 || task["status"]["startedAt"].is_null()) {
            return Ok(task);
        }
        follow_attempt(session, name, &options, current, terminal).await?;
        shown = current.max(1);
        // What was asked for of the first attempt is not wanted of the next ones.
        options = Options {
            timestamps: options.timestamps,
            ..Options::default()
        };
        while attempt(&task) <= shown && !phase(&task).is_terminal() {
            task = observer.next().await?.ok_or_else(gone)?;
        }
    }
}

/// Shows the output of one attempt until that has ended. The stream may end before: when the server is stopped, or the agent.
async fn follow_attempt(
    session: &Session,
    name: &str,
    options: &Options,
    current: u64,
    terminal: &mut Terminal,
) -> Outcome<()> {
    let whole = Options {
        follow: true,
        ..options.clone()
    };
    let number = (current > 0).then_some(current);
    let mut cursor = Cursor::default();
    let mut failing_since: Option<Instant> = None;
    let mut pause = PAUSE.0;
    loop {
        let ended = match show(session, name, &whole, number, &mut cursor, terminal).await {
            Ok(()) => {
                let task = session
                    .rest
                    .get(&Session::tasks().object_path(&session.namespace, name))
                    .await;
                task.map(|task| has_ended(&task, current))
            }
            Err(Stop::Failure(failure)) => return Err(failure),
            Err(Stop::Call(error)) => Err(error),
        };
        match ended {
            Ok(true) => return Ok(()),
            Ok(false) => failing_since = None,
            Err(error) if error.is_passing() => {
                let since = *failing_since.get_or_insert_with(Instant::now);
                if since.elapsed() > AWAY_MAX {
                    return Err(error.into());
                }
            }
            Err(error) => return Err(error.into()),
        }
        tokio::time::sleep(pause).await;
        pause = (pause * 2).min(PAUSE.1);
        cursor.skip = cursor.count;
    }
}

/// Whether nothing more comes of this attempt.
fn has_ended(task: &Value, number: u64) -> bool {
    let attempts = task["status"]["attempts"].as_array().map_or(&[][..], Vec::as_slice);
    let this = attempts
        .iter()
        .find(|attempt| attempt["number"].as_u64() == Some(number));
    phase(task).is_terminal() || attempt(task) > number || this.is_some_and(|attempt| attempt["finishedAt"].is_string())
}

/// Shows the output of one attempt, from the cursor on.
async fn show(
    session: &Session,
    name: &str,
    options: &Options,
    attempt: Option<u64>,
    cursor: &mut Cursor,
    terminal: &mut Terminal,
) -> Result<(), Stop> {
    let resuming = cursor.time.clone();
    let mut parameters: Vec<(&str, String)> = vec![("timestamps", "true".to_owned())];
    if options.follow {
        parameters.push(("follow", "true".to_owned()));
    }
    if options.previous {
        parameters.push(("previous", "true".to_owned()));
    }
    parameters.extend(attempt.map(|attempt| ("attempt", attempt.to_string())));
    match &resuming {
        Some(time) => parameters.push(("sinceTime", time.clone())),
        None => {
            parameters.extend(options.tail.map(|tail| ("tailLines", tail.to_string())));
            parameters.extend(
                options
                    .since_seconds
                    .map(|seconds| ("sinceSeconds", seconds.to_string())),
            );
            parameters.extend(options.since_time.clone().map(|time| ("sinceTime", time)));
        }
    }
    let parameters: Vec<(&str, &str)> = parameters.iter().map(|(name, value)| (*name, value.as_str())).collect();
    let path = format!("{}/log", Session::tasks().object_path(&session.namespace, name));
    let mut lines = session
        .rest
        .lines(&with_query(&path, &parameters), "text/plain, */*")
        .await
        .map_err(Stop::Call)?;
    while let Some(line) = lines.next().await {
        let line = line.map_err(Stop::Call)?;
        let (time, text) = split(&line);
        if cursor.passes_over(time, resuming.as_deref()) {
            continue;
        }
        terminal
            .line(if options.timestamps { &line } else { text })
            .map_err(Stop::Failure)?;
    }
    Ok(())
}

impl Cursor {
    /// Notes a line; `true` when it was shown before the connection broke.
    fn passes_over(&mut self, time: &str, resuming: Option<&str>) -> bool {
        if let Some(from) = resuming {
            if time < from {
                return true;
            }
            if time == from && self.skip > 0 {
                self.skip -= 1;
                return true;
            }
        }
        if self.time.as_deref() == Some(time) {
            self.count += 1;
        } else {
            self.time = Some(time.to_owned());
            self.count = 1;
        }
        false
    }
}

/// The time and the text of a line.
fn split(line: &str) -> (&str, &str) {
    match line.split_once(' ') {
        Some((time, text)) if time.parse::<jiff::Timestamp>().is_ok() => (time, text),
        _ if line.parse::<jiff::Timestamp>().is_ok() => (line, ""),
        _ => ("", line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_taken_off_lines() {
        assert_eq!(
            split("2026-01-01T10:00:00.5Z hello  world"),
            ("2026-01-01T10:00:00.5Z", "hello  world")
        );
        assert_eq!(split("2026-01-01T10:00:00Z "), ("2026-01-01T10:00:00Z", ""));
        assert_eq!(split("2026-01-01T10:00:00Z"), ("2026-01-01T10:00:00Z", ""));
        assert_eq!(split("no time here"), ("", "no time here"));
    }

    #[test]
    fn an_attempt_has_ended_when_its_task_or_its_successor_says_so() {
        let ended = |status: Value| has_ended(&serde_json::json!({"status": status}), 1);
        let attempts = |finished: Value| serde_json::json!([{"number": 1, "finishedAt": finished}]);
        assert!(!ended(
            serde_json::json!({"phase": "Running", "attempts": attempts(Value::Null)})
        ));
        assert!(ended(
            serde_json::json!({"phase": "Running", "attempts": attempts("2026-01-01T10:00:00Z".into())})
        ));
        assert!(ended(
            serde_json::json!({"phase": "Running", "attempts": [{"number": 2}]})
        ));
        assert!(ended(serde_json::json!({"phase": "Finished"})));
    }

    #[test]
    fn no_line_is_shown_twice_or_left_out_after_a_break() {
        let first = ["1 a", "2 b", "2 c"];
        let second = ["1 a", "2 b", "2 c", "2 d", "3 e"];
        let mut cursor = Cursor::default();
        let mut shown = Vec::new();
        for line in first {
            assert!(!cursor.passes_over(&line[..1], None));
            shown.push(line);
        }
        let from = cursor.time.clone();
        cursor.skip = cursor.count;
        for line in second {
            if !cursor.passes_over(&line[..1], from.as_deref()) {
                shown.push(line);
            }
        }
        assert_eq!(shown, second);
    }
}
