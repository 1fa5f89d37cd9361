//! What agents measure, asked of them when somebody wants to know.
//!
//! Nothing of it is kept here and nothing is stored. It promises: agents are asked at the same time and each has a deadline, so one that is
//! gone costs its own row and nobody else's; one that is known to be lost is not asked. Tested with a fake source and, over TLS, with real
//! agents.

use std::collections::{BTreeMap, BTreeSet};
use std::result::Result;

use futures::{StreamExt as _, stream};
use muster_api::usage::AgentUsage;
use muster_api::v1::Agent;
use tokio::time::timeout;

use crate::keys;
use crate::limits::{AGENT_ANSWER, AGENTS_ASKED_AT_ONCE};
use crate::logs::{self, LogError, Node};
use crate::schema;
use crate::state::State;

/// Asks these agents; each answer, or why there is none.
pub(crate) async fn ask(state: &State, agents: BTreeSet<String>) -> BTreeMap<String, Result<AgentUsage, String>> {
    let asked = stream::iter(agents).map(|agent| async move {
        let said = usage(state, &agent).await;
        (agent, said)
    });
    asked.buffer_unordered(AGENTS_ASKED_AT_ONCE).collect().await
}

async fn usage(state: &State, agent: &str) -> Result<AgentUsage, String> {
    let bytes = document(state, agent, "/v1/usage").await?;
    serde_json::from_slice(&bytes).map_err(|error| format!("agent {agent} says what cannot be read: {error}"))
}

/// A document of the node server of an agent.
pub(crate) async fn document(state: &State, name: &str, path: &str) -> Result<bytes::Bytes, String> {
    let resource = &state.resources.muster("agents").resource;
    let object = state.hub.get(&keys::object(resource, "", name));
    let agent: Option<Agent> = object.and_then(|object| schema::typed(&object.json()).ok());
    if let Some(since) = agent.and_then(|agent| agent.lost_since()) {
        return Err(format!("agent {name} has not been heard from since {since}"));
    }
    let address = logs::address(state, name, "what it measures").map_err(|error| error.message)?;
    let node = Node {
        agent: name,
        address: &address,
    };
    match timeout(AGENT_ANSWER, state.logs.fetch(node, path)).await {
        Ok(Ok(bytes)) => Ok(bytes),
        Ok(Err(LogError::NotFound)) => Err(format!("agent {name} is of a version that does not measure")),
        Ok(Err(error)) => Err(format!("agent {name} at {address} cannot be asked: {error}")),
        Err(_) => Err(format!(
            "agent {name} at {address} does not answer within {AGENT_ANSWER:?}"
        )),
    }
}
