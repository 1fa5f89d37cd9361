//! What an agent may read of Secrets and ConfigMaps: those that its tasks name.
//!
//! As with the node authorizer of Kubernetes: an agent gets an object of these kinds by its name, while a task that is bound to it and has
//! not ended names the object ([`TaskSpec::sources`](muster_api::v1::TaskSpec::sources)); it cannot list or watch any. So a machine that is
//! taken over gives away what its tasks were given, and nothing else. The answer comes from the hub, at every request: there is nothing to
//! be granted, forgotten or taken back. What must never happen here: an answer about anybody else, or about another kind.
//! Tested in `tests/agent_matrix.rs`.

use muster_api::names;
use muster_api::v1::{Source, SourceKind, Task};

use crate::auth::{Attributes, User, Why};
use crate::error::{ApiError, Result};
use crate::hub::{Filter, Part};
use crate::selector::{FieldSelector, LabelSelector};
use crate::state::State;

/// Why it may.
pub(crate) const WHY: Why = Why::Wired("a task of the agent names it");

/// Whether an agent may do that; `None`: it is not an agent that asks, or not to read such an object, so others decide.
pub(crate) fn answer(state: &State, user: &User, asked: &Attributes<'_>) -> Option<Result<()>> {
    let agent = user.agent_name()?;
    let kind = SourceKind::of_plural(asked.resource).filter(|_| asked.group.is_empty())?;
    let read = match asked.verb {
        "get" => !asked.name.is_empty() && asked.subresource.is_empty(),
        "list" | "watch" => false,
        _ => return None,
    };
    let source = Source {
        kind,
        name: asked.name.to_owned(),
    };
    if read && names(state, agent, asked.namespace, &source) {
        return Some(Ok(()));
    }
    let mut error = ApiError::forbidden(format!(
        "{} \"{}\" is forbidden: the agent {agent} may read, by name, what a task in the namespace \"{}\" names that is bound to it and \
         has not ended",
        asked.resource, asked.name, asked.namespace
    ));
    error.details.kind = asked.resource.to_owned();
    error.details.name = asked.name.to_owned();
    Some(Err(error))
}

/// Whether a task of the agent that has not ended names the object.
fn names(state: &State, agent: &str, namespace: &str, source: &Source) -> bool {
    let tasks = format!("tasks.{}", names::GROUP);
    let Some(id) = state.hub.find(&tasks) else {
        return false;
    };
    let of_agent = FieldSelector::parse(&format!("status.agent={agent}"));
    let filter = of_agent
        .and_then(|fields| Filter::new(&state.hub.kind(id), Some(namespace), LabelSelector::default(), &fields));
    let Ok(filter) = filter else { return false };
    let found = state.hub.list(id, &filter, &Part::default());
    found.objects.iter().any(|object| {
        serde_json::from_value::<Task>(object.json()).is_ok_and(|task| {
            !task.phase().is_terminal() && task.agent() == Some(agent) && task.spec.sources().contains(source)
        })
    })
}
