//! Waiting for what was applied: a view that is redrawn on a terminal, one line for each change elsewhere.

use std::time::Duration;

use serde_json::Value;
use tokio::sync::mpsc;
use tokio::task::JoinSet;
use tokio::time::Instant;

use crate::discovery::Resource;
use crate::failure::{Exit, Failure, Outcome};
use crate::manifest::diagnostic::clean;
use crate::observe::{Observer, Seen};
use crate::output;
use crate::rest::CallError;
use crate::session::{Session, Terminal};
use crate::style::{Paint, Style};
use crate::table::Widths;

use super::wait::condition;

/// Changes that wait to be shown: a few for each of many objects.
const CHANGES: usize = 256;

/// Where an object stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Standing {
    /// It is on its way.
    Moving,
    /// It is what it should be.
    Ready,
    /// It cannot go on; how the command ends.
    Stalled(Exit),
    /// Somebody deleted it.
    Gone,
}

struct Row {
    name: String,
    standing: Standing,
    text: String,
}

/// Waits until every object is ready or cannot go on.
pub async fn wait(
    session: &Session,
    applied: &[(Resource, Value)],
    timeout: Option<Duration>,
    terminal: &mut Terminal,
) -> Outcome {
    let (sender, mut receiver) = mpsc::channel::<(usize, Result<Seen, CallError>)>(CHANGES);
    let mut observers = JoinSet::new();
    let mut rows: Vec<Row> = Vec::new();
    for (index, (resource, object)) in applied.iter().enumerate() {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or(&session.namespace);
        let mut observer = Observer::new(&session.rest, resource, namespace, name);
        let sender = sender.clone();
        observers.spawn(async move {
            loop {
                let seen = observer.next().await;
                let last = seen.is_err();
                if sender.send((index, seen)).await.is_err() || last {
                    return;
                }
            }
        });
        let text = "waiting".to_owned();
        rows.push(Row {
            name: output::object_name(resource, object),
            standing: Standing::Moving,
            text,
        });
    }
    drop(sender);
    let mut view = View { drawn: 0 };
    let watching = async {
        while rows.iter().any(|row| row.standing == Standing::Moving) {
            let Some((index, seen)) = receiver.recv().await else {
                return Err(Failure::new("the watch ended"));
            };
            let (standing, text) = look(&seen?);
            let row = &mut rows[index];
            let changed = row.standing != standing || row.text != text;
            (row.standing, row.text) = (standing, text);
            if changed {
                view.show(&rows, index, terminal)?;
            }
        }
        Ok(())
    };
    let start = Instant::now();
    let done = match timeout {
        Some(timeout) => tokio::time::timeout(timeout, watching).await,
        None => Ok(watching.await),
    };
    observers.shutdown().await;
    match done {
        Err(_) => {
            let waiting: Vec<String> = rows
                .iter()
                .filter(|row| row.standing == Standing::Moving)
                .map(|row| format!("{} {}", row.name, row.text.split(": ").next().unwrap_or_default()))
                .collect();
            Err(Failure::with(
                Exit::TimedOut,
                format!("timed out after {}s: {}", start.elapsed().as_secs(), waiting.join(", ")),
            ))
        }
        Ok(Err(failure)) => Err(failure),
        Ok(Ok(())) => Ok(worst(&rows)),
    }
}

fn worst(rows: &[Row]) -> Exit {
    let exits = rows.iter().map(|row| match row.standing {
        Standing::Moving | Standing::Ready => Exit::Done,
        Standing::Stalled(exit) => exit,
        Standing::Gone => Exit::Error,
    });
    exits.max_by_key(|exit| exit.code()).unwrap_or(Exit::Done)
}

/// Where an object stands, by the rules of kstatus, and what to say about it.
fn look(seen: &Seen) -> (Standing, String) {
    let Some(object) = seen else {
        return (Standing::Gone, "was deleted".to_owned());
    };
    let status = &object["status"];
    let text = |value: &Value| value.as_str().map(clean).filter(|text| !text.is_empty());
    let phase = text(&status["phase"]);
    let mut words = Vec::new();
    words.extend(phase.clone());
    words.extend(text(&status["agent"]).map(|agent| format!("on {agent}")));
    words.extend(text(&status["reason"]).map(|reason| format!("({reason})")));
    let stalled = condition(object, "Stalled") == Some("True");
    let standing = match condition(object, "Ready") {
        _ if stalled && status["reason"] == "ExceedsEveryAgent" => Standing::Stalled(Exit::CannotPlace),
        _ if stalled => Standing::Stalled(Exit::TaskFailed),
        Some("True") if runs_to_an_end(object) => Standing::Moving,
        Some("True") => Standing::Ready,
        // Asked to end, and it has.
        _ if phase.as_deref() == Some("Killed") => Standing::Ready,
        Some(_) => Standing::Moving,
        // Kinds without conditions are what they should be when they are there.
        None if status["conditions"].is_null() && object["apiVersion"] != muster_api::names::API_VERSION => {
            Standing::Ready
        }
        None => Standing::Moving,
    };
    let mut said = if words.is_empty() {
        if standing == Standing::Ready {
            "ready"
        } else {
            "waiting"
        }
        .to_owned()
    } else {
        words.join(" ")
    };
    if let Some(message) = text(&status["message"]).filter(|_| standing != Standing::Ready) {
        said = format!("{said}: {message}");
    }
    (standing, said)
}

/// Whether this is a task that runs and is to end by itself: what one waits for is its end.
fn runs_to_an_end(object: &Value) -> bool {
    let policy = object["spec"]["restartPolicy"].as_str();
    object["kind"] == "Task" && object["status"]["phase"] == "Running" && matches!(policy, Some("Never" | "OnFailure"))
}

struct View {
    drawn: usize,
}

impl View {
    fn show(&mut self, rows: &[Row], changed: usize, terminal: &mut Terminal) -> Outcome<()> {
        if !terminal.interactive {
            return terminal.line(format!("{} {}", rows[changed].name, rows[changed].text));
        }
        let mut widths = Widths::default();
        rows.iter()
            .for_each(|row| widths.fit(&["●".to_owned(), row.name.clone()]));
        // Up to where the last drawing began, and clear what is below.
        let up = if self.drawn > 0 {
            format!("\u{1b}[{}A\u{1b}[J", self.drawn)
        } else {
            String::new()
        };
        let lines: String = rows.iter().map(|row| line(row, &widths, terminal.out_style)).collect();
        self.drawn = rows.len();
        // Without wrapping: a line that is too long for the terminal is cut off at its edge.
        terminal.text(format!("\u{1b}[?7l{up}{lines}\u{1b}[?7h"))
    }
}

fn line(row: &Row, widths: &Widths, style: Style) -> String {
    let (sign, paint) = match row.standing {
        Standing::Moving => ("◌", Paint::Warning),
        Standing::Ready => ("●", Paint::Good),
        Standing::Stalled(_) | Standing::Gone => ("✗", Paint::Error),
    };
    // One line for each object, or the next drawing would not find where it began.
    let text: String = row.text.chars().take(60).collect();
    let line = widths.line(&[sign.to_owned(), row.name.clone(), text]);
    line.replacen(sign, &style.paint(paint, sign), 1)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(status: Value, expect: Standing, said: &str) {
        let object =
            json!({"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"generation": 1}, "status": status});
        assert_eq!(look(&Some(object)), (expect, said.to_owned()));
    }

    #[test]
    fn objects_are_ready_moving_or_stalled() {
        let ready = |status: &str| json!([{"type": "Ready", "status": status}]);
        let stalled = || json!([{"type": "Ready", "status": "False"}, {"type": "Stalled", "status": "True"}]);
        check(
            json!({"phase": "Running", "agent": "a1", "conditions": ready("True")}),
            Standing::Ready,
            "Running on a1",
        );
        let mut once = json!({"apiVersion": "muster.dev/v1", "kind": "Task", "spec": {"restartPolicy": "Never"}});
        once["status"] = json!({"phase": "Running", "conditions": ready("True")});
        assert_eq!(look(&Some(once.clone())).0, Standing::Moving, "its end is waited for");
        once["status"]["phase"] = json!("Finished");
        assert_eq!(look(&Some(once)).0, Standing::Ready);
        check(
            json!({"phase": "Pending", "reason": "AwaitingOffer", "message": "m", "conditions": ready("False")}),
            Standing::Moving,
            "Pending (AwaitingOffer): m",
        );
        check(
            json!({"phase": "Failed", "reason": "NonZeroExit", "conditions": stalled()}),
            Standing::Stalled(Exit::TaskFailed),
            "Failed (NonZeroExit)",
        );
        check(
            json!({"phase": "Pending", "reason": "ExceedsEveryAgent", "conditions": stalled()}),
            Standing::Stalled(Exit::CannotPlace),
            "Pending (ExceedsEveryAgent)",
        );
        check(Value::Null, Standing::Moving, "waiting");
        assert_eq!(
            look(&Some(json!({"apiVersion": "v1", "kind": "ConfigMap"}))),
            (Standing::Ready, "ready".to_owned())
        );
        assert_eq!(look(&None).0, Standing::Gone);
    }
}
