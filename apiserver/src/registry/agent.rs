//! Agents: the machine says what it has, the control plane says whether it can be reached.

use muster_api::v1::Agent;
use muster_api::validation::Violation;
use serde_json::{Value, json};

use super::{Context, Strategy, fence, metadata};
use crate::error::Result;
use crate::schema::typed;

/// Fields of the status, of an agent or of a task, that the controllers write.
const BELIEFS: [&str; 4] = ["reachability", "reachabilitySince", "reachabilityMessage", "replacedBy"];

pub(super) struct Agents;

impl Strategy for Agents {
    fn prepare_status(&self, context: &Context<'_>, object: &mut Value, old: &Value) -> Result<()> {
        if context.user.agent_name().is_some() {
            keep_beliefs(object, old);
        }
        Ok(())
    }

    fn validate(&self, object: &Value) -> Vec<Violation> {
        typed::<Agent>(object).map_or_else(|violation| vec![violation], |agent| agent.validate())
    }

    fn touches(&self, old: Option<&Value>, new: Option<&Value>) -> Option<String> {
        let given = |object: Option<&Value>| {
            let status = object.map(|object| &object["status"]);
            let field = |name: &str| status.map(|status| status[name].clone()).unwrap_or_default();
            (field("capacity"), field("devices"))
        };
        let name = metadata::text(old.or(new)?, "name");
        (given(old) != given(new)).then(|| name.to_owned())
    }

    fn fence(&self, context: &Context<'_>, old: &Value, status: bool) -> Option<(&'static str, String)> {
        if !status {
            return None;
        }
        let agent = metadata::text(old, "name");
        Some(if context.user.is_controllers() {
            ("a status write of the controllers", fence::controllers_lease())
        } else {
            ("a status write of an agent", fence::agent_lease(agent))
        })
    }
}

/// What an agent says about its own reachability does not count: only the control plane knows. Before it has said anything, an
/// agent that writes, which it does under its session only, is reachable.
pub(super) fn keep_beliefs(object: &mut Value, old: &Value) {
    if !object["status"].is_object() {
        object["status"] = json!({});
    }
    for field in BELIEFS {
        let Some(status) = object["status"].as_object_mut() else {
            return;
        };
        match old["status"].get(field) {
            Some(belief) => status.insert(field.to_owned(), belief.clone()),
            None if field == "reachability" => status.insert(field.to_owned(), json!("Reachable")),
            None => status.remove(field),
        };
    }
}
