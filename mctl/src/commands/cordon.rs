//! `mctl cordon` and `mctl uncordon`: agents, and single GPUs, that get no new tasks for a while.

use http::Method;
use jiff::Timestamp;
use muster_api::Time;
use muster_api::v1::Agent;
use serde_json::{Value, json};

use super::agents::items;
use crate::cli::CordonArgs;
use crate::failure::{Exit, Failure, Outcome};
use crate::rest::{JSON, Payload};
use crate::session::{Session, Terminal, ours};

/// Runs the command, on one thing after the other.
pub async fn run(
    session: &Session,
    args: &CordonArgs,
    cordon: bool,
    now: Timestamp,
    terminal: &mut Terminal,
) -> Outcome {
    let agents = ours("agents", "agent", "Agent", false);
    for what in &args.what {
        let (agent, patch) = match what.split_once('/') {
            None => (what.clone(), json!({ "spec": { "unschedulable": cordon } })),
            Some(("agent" | "agents", name)) => (name.to_owned(), json!({ "spec": { "unschedulable": cordon } })),
            Some(("gpu" | "gpus", uuid)) => {
                let listed = session.rest.get(&agents.path(None)).await?;
                (holder(&items(&listed), uuid)?, order(uuid, cordon, now))
            }
            Some((kind, _)) => {
                return Err(Failure::new(format!(
                    "{what}: agents and GPUs (gpu/UUID) can be cordoned, not {kind}"
                )));
            }
        };
        let path = agents.object_path("", &agent);
        session
            .rest
            .call(Method::PATCH, &path, JSON, Some(Payload::merge_patch(&patch)))
            .await?;
        let target = if what.contains('/') {
            what.clone()
        } else {
            format!("agent/{what}")
        };
        terminal.line(format!("{target} {}", if cordon { "cordoned" } else { "uncordoned" }))?;
    }
    Ok(Exit::Done)
}

/// The agent that has the GPU.
fn holder(agents: &[Agent], uuid: &str) -> Outcome<String> {
    let has = |agent: &&Agent| {
        agent
            .status
            .iter()
            .flat_map(|status| &status.devices)
            .any(|device| device.uuid == uuid)
    };
    let found = agents.iter().find(has).map(|agent| agent.name().to_owned());
    found.ok_or_else(|| Failure::new(format!("no agent has the GPU {uuid}; `mctl get gpus` lists them")))
}

/// Merged into the agent: whoever lets tasks in again has seen to what was wrong until now.
fn order(uuid: &str, cordon: bool, now: Timestamp) -> Value {
    let order = if cordon {
        json!({ "cordoned": true })
    } else {
        json!({ "cordoned": null, "seenToAt": Time(now) })
    };
    json!({ "spec": { "gpus": { uuid: order } } })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_gpu_is_found_by_its_agent_and_seen_to_when_it_is_let_in_again() {
        let agent: Agent = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1", "kind": "Agent", "metadata": {"name": "a1"}, "spec": {},
            "status": {"devices": [{"uuid": "GPU-a", "model": "m", "memory": "1Gi", "health": "Healthy"}]},
        }))
        .expect("agent");
        assert_eq!(
            holder(std::slice::from_ref(&agent), "GPU-a").ok().as_deref(),
            Some("a1")
        );
        assert!(holder(&[agent], "GPU-b").is_err());
        let now = Timestamp::UNIX_EPOCH;
        assert_eq!(
            order("g", true, now),
            json!({ "spec": { "gpus": { "g": { "cordoned": true } } } })
        );
        let back = json!({ "cordoned": null, "seenToAt": "1970-01-01T00:00:00Z" });
        assert_eq!(order("g", false, now), json!({ "spec": { "gpus": { "g": back } } }));
    }
}
