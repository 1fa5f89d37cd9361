//! `mctl agent confirm` and `mctl agent revoke`: an operator's word about an agent.

use http::Method;
use jiff::Timestamp;
use muster_agentd::trust::{ANNOTATION_CONFIRMED, token_in};
use muster_api::names;
use serde_json::json;

use crate::dev::args::AgentCommand;
use crate::failure::{Exit, Failure, Outcome};
use crate::rest::{JSON, Payload};
use crate::session::{Session, Terminal, ours};

/// The condition of an agent in quarantine.
const STORE_REGRESSED: &str = "StoreRegressed";
/// Where what the servers keep for themselves is.
const MAPS: &str = "/api/v1/namespaces/muster-system/configmaps";

/// Runs the command.
pub async fn run(session: &Session, command: AgentCommand, now: Timestamp, terminal: &mut Terminal) -> Outcome {
    match command {
        AgentCommand::Confirm { agent } => confirm(session, &agent, terminal).await,
        AgentCommand::Revoke { agent } => revoke(session, &agent, now, terminal).await,
    }
}

async fn confirm(session: &Session, name: &str, terminal: &mut Terminal) -> Outcome {
    let path = ours("agents", "agent", "Agent", false).object_path("", name);
    let agent = session.rest.get(&path).await?;
    let conditions = agent["status"]["conditions"].as_array().into_iter().flatten();
    let mut of_store =
        conditions.filter(|condition| condition["type"] == STORE_REGRESSED && condition["status"] == "True");
    let token = of_store.find_map(|condition| token_in(condition["message"].as_str()?).map(str::to_owned));
    let Some(token) = token else {
        return Err(Failure::new(format!(
            "agent {name} has nothing to confirm: it has no condition {STORE_REGRESSED}"
        )));
    };
    // The token is of this quarantine, so the word cannot be taken for one about another.
    let patch = json!({ "metadata": { "annotations": { ANNOTATION_CONFIRMED: token } } });
    let patch = Some(Payload::merge_patch(&patch));
    session.rest.call(Method::PATCH, &path, JSON, patch).await?;
    terminal.line(format!(
        "agent/{name} is told to go on with what the API server says now; tasks that it does not know are stopped"
    ))?;
    Ok(Exit::Done)
}

async fn revoke(session: &Session, name: &str, now: Timestamp, terminal: &mut Terminal) -> Outcome {
    let path = format!("{MAPS}/{}", names::CONFIG_MAP_REVOKED);
    let data = json!({ name: now.to_string() });
    let patch = json!({ "data": data });
    let patched = session
        .rest
        .call(Method::PATCH, &path, JSON, Some(Payload::merge_patch(&patch)));
    match patched.await {
        Err(error) if error.is_not_found() => {
            let list = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": names::CONFIG_MAP_REVOKED, "namespace": names::NAMESPACE_SYSTEM },
                "data": data,
            });
            session
                .rest
                .call(Method::POST, MAPS, JSON, Some(Payload::json(&list)))
                .await?;
        }
        answer => drop(answer?),
    }
    let agent = ours("agents", "agent", "Agent", false).object_path("", name);
    match session.rest.call(Method::DELETE, &agent, JSON, None).await {
        Err(error) if error.is_not_found() => {}
        answer => drop(answer?),
    }
    terminal.line(format!(
        "agent/{name} is revoked and deleted; its machine is let in again with a new token: mctl token create --agent {name}"
    ))?;
    Ok(Exit::Done)
}
