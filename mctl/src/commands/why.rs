//! `mctl why`: why a task is not placed, agent by agent.

use muster_api::wire::WhyTask;
use serde_json::Value;

use crate::age;
use crate::cli::WhyArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::manifest::diagnostic::clean;
use crate::output;
use crate::rest::{CallError, Rest, escape};
use crate::session::{Session, Terminal};
use crate::style::{Paint, Style};
use crate::table::Widths;

/// Asks the server.
pub async fn ask(rest: &Rest, namespace: &str, task: &str) -> Result<WhyTask, CallError> {
    let answer = rest
        .get(&format!("/muster/v1/why/{}/{}", escape(namespace), escape(task)))
        .await?;
    serde_json::from_value(answer).map_err(|error| CallError::Garbled(error.to_string()))
}

/// Runs the command.
pub async fn run(session: &Session, args: WhyArgs, terminal: &mut Terminal) -> Outcome {
    if let Some(other) = args
        .output
        .as_deref()
        .filter(|format| !matches!(*format, "json" | "yaml"))
    {
        return Err(Failure::new(format!("-o {other}: there are yaml and json")));
    }
    let name = session.task_name(&args.task)?;
    let task = session
        .rest
        .get(&Session::tasks().object_path(&session.namespace, name))
        .await?;
    let phase = task["status"]["phase"].as_str().unwrap_or("Pending");
    if phase != "Pending" {
        if args.output.is_some() {
            let found = serde_json::json!({"task": name, "namespace": session.namespace, "phase": phase, "agent": task["status"]["agent"]});
            print(&found, args.output.as_deref(), terminal)?;
        } else {
            terminal.line(placed(&task))?;
        }
        return Ok(Exit::Done);
    }
    let why = ask(&session.rest, &session.namespace, name).await?;
    let exit = if is_placeable(&why) {
        Exit::Done
    } else {
        Exit::CannotPlace
    };
    if args.output.is_some() {
        let value = serde_json::to_value(&why).map_err(|error| Failure::new(error.to_string()))?;
        print(&value, args.output.as_deref(), terminal)?;
    } else {
        terminal.text(render(&why, &task, age::now(), terminal.out_style))?;
    }
    Ok(exit)
}

fn print(value: &Value, format: Option<&str>, terminal: &mut Terminal) -> Outcome<()> {
    terminal.text(if format == Some("yaml") {
        output::yaml(value)
    } else {
        output::pretty(value)
    })
}

/// Whether nothing stands against the task, and an agent has room for it.
pub fn is_placeable(why: &WhyTask) -> bool {
    why.summary.is_empty() && why.agents.iter().any(|agent| agent.fits)
}

fn placed(task: &Value) -> String {
    let status = &task["status"];
    let text = |value: &Value| clean(value.as_str().unwrap_or_default());
    let agent = status["agent"]
        .as_str()
        .map(|agent| format!(" on {}", clean(agent)))
        .unwrap_or_default();
    let message = status["message"]
        .as_str()
        .filter(|message| !message.is_empty())
        .map(|message| format!(": {}", clean(message)));
    let reason = status["reason"]
        .as_str()
        .map(|reason| format!(" ({})", clean(reason)))
        .unwrap_or_default();
    format!(
        "task/{} is {}{agent}{reason}{}",
        text(&task["metadata"]["name"]),
        text(&status["phase"]),
        message.unwrap_or_default()
    )
}

/// The answer, for people.
pub fn render(why: &WhyTask, task: &Value, now: jiff::Timestamp, style: Style) -> String {
    let mut text = String::new();
    let since = age::since(&task["metadata"]["creationTimestamp"], now).unwrap_or_default();
    let mut head = vec![
        style.paint(Paint::Bold, format!("Pending {since}").trim_end()),
        format!("role {}", clean(&why.role)),
    ];
    if why.position > 0 {
        head.push(format!("position {} of {}", why.position, why.queue.max(why.position)));
    }
    text.push_str(&format!("{}\n", head.join("  ")));
    text.push_str(&format!("Needs  {}\n", clean(&why.needs)));
    if !why.summary.is_empty() {
        text.push_str(&format!("{}\n", style.paint(Paint::Error, &clean(&why.summary))));
    }
    if why.agents.is_empty() {
        text.push_str("there are no agents; start one with `mctl agent`\n");
        return text;
    }
    let name = |agent: &muster_api::wire::WhyAgent| match agent.count {
        0 | 1 => clean(&agent.agent),
        count => format!("{} (+{} alike)", clean(&agent.agent), count - 1),
    };
    let mut rows = vec![vec!["AGENT".to_owned(), "FITS".to_owned(), "WHY".to_owned()]];
    for agent in &why.agents {
        let reasons = if agent.reasons.is_empty() {
            "-".to_owned()
        } else {
            clean(&agent.reasons.join("; "))
        };
        rows.push(vec![
            name(agent),
            if agent.fits { "yes" } else { "no" }.to_owned(),
            reasons,
        ]);
    }
    let mut widths = Widths::default();
    rows.iter().for_each(|row| widths.fit(row));
    rows.iter().for_each(|row| text.push_str(&widths.line(row)));
    text
}

#[cfg(test)]
mod tests {
    use muster_api::wire::WhyAgent;
    use serde_json::json;

    use super::*;

    fn why() -> WhyTask {
        let agent = |agent: &str, count, fits, reasons: &[&str]| WhyAgent {
            agent: agent.into(),
            count,
            fits,
            reasons: reasons.iter().map(|reason| (*reason).to_owned()).collect(),
        };
        WhyTask {
            namespace: "ml".into(),
            task: "train-7".into(),
            role: "ml/research".into(),
            needs: "32 cpus, 256Gi memory, 4 gpus (h100)".into(),
            position: 3,
            queue: 11,
            summary: String::new(),
            agents: vec![
                agent("gpu-01", 1, false, &["needs 4 gpus, has 2", "gpu3 is Faulty"]),
                agent("gpu-03", 2, false, &["model A100 does not match h100"]),
                agent("cpu-01", 12, false, &["has no gpus"]),
            ],
        }
    }

    #[test]
    fn the_answer_has_a_line_for_each_agent() {
        let task = json!({"metadata": {"name": "train-7", "creationTimestamp": "2026-01-01T10:00:00Z"}});
        let now = "2026-01-01T10:04:12Z".parse().expect("time");
        insta::assert_snapshot!(render(&why(), &task, now, Style::plain()), @"
        Pending 4m12s  role ml/research  position 3 of 11
        Needs  32 cpus, 256Gi memory, 4 gpus (h100)
        AGENT                FITS   WHY
        gpu-01               no     needs 4 gpus, has 2; gpu3 is Faulty
        gpu-03 (+1 alike)    no     model A100 does not match h100
        cpu-01 (+11 alike)   no     has no gpus
        ");
        let limited = WhyTask {
            summary: "the quota of ml/research allows 16 gpus, 14 are used".into(),
            agents: Vec::new(),
            ..why()
        };
        insta::assert_snapshot!(render(&limited, &task, now, Style::plain()), @"
        Pending 4m12s  role ml/research  position 3 of 11
        Needs  32 cpus, 256Gi memory, 4 gpus (h100)
        the quota of ml/research allows 16 gpus, 14 are used
        there are no agents; start one with `mctl agent`
        ");
    }

    #[test]
    fn a_task_can_be_placed_when_an_agent_fits_and_nothing_else_is_against_it() {
        let mut why = why();
        assert!(!is_placeable(&why));
        why.agents[0].fits = true;
        assert!(is_placeable(&why));
        why.summary = "quota".into();
        assert!(!is_placeable(&why));
    }

    #[test]
    fn a_placed_task_is_said_to_be() {
        let task =
            json!({"metadata": {"name": "a"}, "status": {"phase": "Running", "agent": "a1", "reason": "Started"}});
        assert_eq!(placed(&task), "task/a is Running on a1 (Started)");
    }
}
