//! `mctl gone`: an operator's word about an agent that cannot be reached.

use clap::Args;
use http::Method;
use jiff::Timestamp;
use muster_api::Time;
use muster_api::v1::Agent;
use serde_json::json;

use crate::failure::{Exit, Failure, Outcome};
use crate::rest::{CallError, JSON, Payload};
use crate::session::{Session, Terminal, ours};

/// `mctl gone`.
#[derive(Debug, Args)]
pub struct GoneArgs {
    /// The agent.
    #[arg(value_name = "AGENT")]
    pub agent: String,
    /// Its machine is powered off, you have seen it: nothing of its tasks runs any more. Without this, tasks are replaced or given up
    /// only as their spec.unreachable says, but although many agents were lost at once.
    #[arg(long)]
    pub powered_off: bool,
}

/// Runs the command.
pub async fn run(session: &Session, args: GoneArgs, now: Timestamp, terminal: &mut Terminal) -> Outcome {
    let path = ours("agents", "agent", "Agent", false).object_path("", &args.agent);
    let agent: Agent = serde_json::from_value(session.rest.get(&path).await?)
        .map_err(|error| CallError::Garbled(error.to_string()))?;
    let name = agent.name();
    let Some(since) = agent.lost_since() else {
        let why = format!(
            "agent {name} can be reached, so it is not gone; to keep new tasks away, set spec.unschedulable, and to remove it, stop it \
             and delete the object"
        );
        return Err(Failure::new(why));
    };
    // The word is about this loss, though the clock that saw it may be ahead of this one.
    let said = Time(now.max(since));
    let field = if args.powered_off {
        "poweredOffAt"
    } else {
        "brakeReleasedAt"
    };
    // Only if the agent is still as it was seen: it may be back.
    let version = &agent.metadata.resource_version;
    let patch = json!({ "metadata": { "resourceVersion": version }, "spec": { field: said } });
    session
        .rest
        .call(Method::PATCH, &path, JSON, Some(Payload::merge_patch(&patch)))
        .await?;
    terminal.line(if args.powered_off {
        format!("agent/{name} is powered off: its tasks are Gone")
    } else {
        format!("agent/{name} is gone: what spec.unreachable of its tasks says is done")
    })?;
    Ok(Exit::Done)
}
