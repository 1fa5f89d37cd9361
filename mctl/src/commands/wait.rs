//! `mctl wait`: until something is true.

use serde_json::Value;
use tokio::time::Instant;

use crate::cli::WaitArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::jsonpath::Template;
use crate::observe::{Observer, Seen};
use crate::session::{Session, Target, Terminal, query, read_files, span};

/// What is waited for.
#[derive(Clone, Debug, PartialEq)]
pub enum Until {
    /// The object is there.
    Create,
    /// The object is not there.
    Delete,
    /// A condition has a value; it speaks of the present generation.
    Condition(String, String),
    /// A path has a value, or any.
    Path(Template, Option<String>),
}

impl Until {
    /// Reads the value of `--for`.
    pub fn parse(text: &str) -> Outcome<Until> {
        let bad = |why: &str| Failure::new(format!("--for={text}: {why}"));
        match text.split_once('=') {
            None if text == "create" => Ok(Until::Create),
            None if text == "delete" => Ok(Until::Delete),
            Some(("condition", rest)) if !rest.is_empty() => {
                let (name, value) = rest.split_once('=').unwrap_or((rest, "True"));
                Ok(Until::Condition(name.to_owned(), value.to_owned()))
            }
            Some(("phase", phase)) if !phase.is_empty() => {
                let path = Template::parse("{.status.phase}").expect("this is a template");
                Ok(Until::Path(path, Some(phase.to_owned())))
            }
            Some(("jsonpath", rest)) => {
                let (path, value) = match rest.strip_prefix('{').and_then(|inner| inner.rfind('}')) {
                    Some(end) => {
                        let (path, value) = rest.split_at(end + 2);
                        (path, value.strip_prefix('='))
                    }
                    None => rest
                        .split_once('=')
                        .map_or((rest, None), |(path, value)| (path, Some(value))),
                };
                let path = Template::parse(path).map_err(|why| bad(&why))?;
                Ok(Until::Path(path, value.map(str::to_owned)))
            }
            _ => Err(bad(
                "there are condition=NAME[=VALUE], phase=PHASE, jsonpath={.path}[=VALUE], create and delete",
            )),
        }
    }

    /// Whether it is true of an object.
    pub fn holds(&self, seen: &Seen) -> bool {
        let Some(object) = seen else {
            return *self == Until::Delete;
        };
        match self {
            Until::Create => true,
            Until::Delete => false,
            Until::Condition(name, value) => {
                condition(object, name).is_some_and(|status| status.eq_ignore_ascii_case(value))
            }
            Until::Path(path, value) => {
                let found = path.find(object);
                let text = || path.render(object);
                !found.is_empty() && value.as_ref().is_none_or(|value| text() == *value)
            }
        }
    }

    /// Whether it can still become true: not when a task has ended otherwise.
    pub fn is_hopeless(&self, seen: &Seen) -> Option<(Exit, String)> {
        let object = seen.as_ref()?;
        let phase: muster_api::task_state::Phase = serde_json::from_value(object["status"]["phase"].clone()).ok()?;
        let task = object["kind"] == "Task" && object["apiVersion"] == muster_api::names::API_VERSION;
        let moving = matches!(self, Until::Condition(..) | Until::Path(..));
        (task && moving && phase.is_terminal()).then(|| {
            let message = object["status"]["message"]
                .as_str()
                .filter(|message| !message.is_empty());
            let exit = if phase == muster_api::task_state::Phase::Finished {
                Exit::Error
            } else {
                Exit::TaskFailed
            };
            (
                exit,
                format!(
                    "it is {phase}{}",
                    message.map(|message| format!(": {message}")).unwrap_or_default()
                ),
            )
        })
    }
}

/// The status of a condition, unless it speaks of an earlier generation.
pub fn condition<'v>(object: &'v Value, name: &str) -> Option<&'v str> {
    let generation = object["metadata"]["generation"].as_i64().unwrap_or(0);
    let conditions = object["status"]["conditions"].as_array()?;
    let found = conditions.iter().find(|condition| {
        condition["type"]
            .as_str()
            .is_some_and(|known| known.eq_ignore_ascii_case(name))
    })?;
    let of = found["observedGeneration"]
        .as_i64()
        .or(object["status"]["observedGeneration"].as_i64());
    found["status"]
        .as_str()
        .filter(|_| of.is_none_or(|of| of >= generation))
}

/// Runs the command.
pub async fn run(session: &Session, args: WaitArgs, terminal: &mut Terminal) -> Outcome {
    let until = Until::parse(&args.until)?;
    let timeout = span("--timeout", &args.timeout)?;
    let targets = targets(session, &args, terminal).await?;
    let start = Instant::now();
    for target in &targets {
        let name = target.name.as_deref().unwrap_or_default();
        let title = format!("{}/{name}", target.resource.title());
        let mut observer = Observer::new(&session.rest, &target.resource, &target.namespace, name);
        let first = observer.next().await?;
        if first.is_none() && !matches!(until, Until::Create | Until::Delete) {
            return Err(Failure::new(format!("{title} is not there")));
        }
        let met = async {
            let mut seen = first;
            while !until.holds(&seen) {
                if let Some((exit, why)) = until.is_hopeless(&seen) {
                    return Err(Failure::with(
                        exit,
                        format!("{title} will not be {}: {why}", args.until),
                    ));
                }
                seen = observer.next().await?;
            }
            Ok(())
        };
        let late = || {
            Failure::with(
                Exit::TimedOut,
                format!("timed out after {}: {title}, --for={}", args.timeout, args.until),
            )
        };
        let left = timeout.unwrap_or_default().saturating_sub(start.elapsed());
        tokio::time::timeout(left, met).await.map_err(|_| late())??;
        terminal.line(format!(
            "{title} {}",
            if until == Until::Delete {
                "deleted"
            } else {
                "condition met"
            }
        ))?;
    }
    Ok(Exit::Done)
}

async fn targets(session: &Session, args: &WaitArgs, terminal: &mut Terminal) -> Outcome<Vec<Target>> {
    let catalogue = session.catalogue().await?;
    if !args.files.filename.is_empty() {
        return session.file_targets(&catalogue, &read_files(&args.files, terminal)?);
    }
    let mut targets = Vec::new();
    for target in session.targets(&catalogue, &args.what)? {
        if target.name.is_some() {
            targets.push(target);
            continue;
        }
        if query(&args.selection).is_empty() && !args.all {
            return Err(Failure::new("name the objects, or choose them with -l or --all"));
        }
        targets.extend(session.members(&target, &args.selection).await?);
    }
    if targets.is_empty() {
        return Err(Failure::new("there are no such objects"));
    }
    Ok(targets)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn task(phase: &str) -> Seen {
        Some(json!({
            "apiVersion": "muster.dev/v1", "kind": "Task",
            "metadata": {"generation": 2},
            "status": {"phase": phase, "message": "m", "observedGeneration": 2, "conditions": [
                {"type": "Ready", "status": "True", "observedGeneration": 2},
                {"type": "Old", "status": "True", "observedGeneration": 1},
            ]},
        }))
    }

    #[track_caller]
    fn check(until: &str, seen: &Seen, holds: bool) {
        assert_eq!(Until::parse(until).expect(until).holds(seen), holds, "{until}");
    }

    #[test]
    fn what_is_waited_for_is_recognised() {
        let running = task("Running");
        check("condition=Ready", &running, true);
        check("condition=ready=true", &running, true);
        check("condition=Ready=False", &running, false);
        check("condition=Old", &running, false);
        check("condition=Missing", &running, false);
        check("phase=Running", &running, true);
        check("jsonpath={.status.phase}=Running", &running, true);
        check("jsonpath={.status.phase}", &running, true);
        check("jsonpath={.status.nothing}", &running, false);
        check("jsonpath=.status.phase=Finished", &running, false);
        check(
            "jsonpath={.status.conditions[?(@.type==\"Ready\")].status}=True",
            &running,
            true,
        );
        check("create", &running, true);
        check("delete", &running, false);
        check("delete", &None, true);
        check("create", &None, false);
        check("phase=Running", &None, false);
        for bad in ["", "ready", "condition=", "phase=", "jsonpath={.a", "x=y"] {
            assert!(Until::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn nobody_waits_for_a_task_that_has_ended() {
        let until = Until::parse("phase=Running").expect("until");
        assert_eq!(
            until.is_hopeless(&task("Failed")),
            Some((Exit::TaskFailed, "it is Failed: m".to_owned()))
        );
        assert_eq!(
            until.is_hopeless(&task("Finished")),
            Some((Exit::Error, "it is Finished: m".to_owned()))
        );
        assert_eq!(until.is_hopeless(&task("Starting")), None);
        assert_eq!(Until::Delete.is_hopeless(&task("Failed")), None);
    }
}
