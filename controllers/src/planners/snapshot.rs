//! What the allocator sees, copied out of a view.

use std::collections::BTreeMap;

use jiff::Timestamp;
use muster_allocator::{
    AgentSnapshot, Availability, DeclaredDemand, Filter, FrameworkId, FrameworkSnapshot, Held, OpenOffer, PendingTask,
    QuotaSnapshot, RoleDemand, Snapshot,
};
use muster_api::Condition;
use muster_api::device::GpuRequirement;
use muster_api::v1::{Agent, Demand, Desired, Framework, Offer, OfferPhase, Reachability, Task};

use super::queue_order;
use crate::runtime::{Id, View};

/// So many open offers a framework with a declared demand gets, unless it says.
const OFFERS_DEFAULT: u32 = 100;

/// The state of the cluster as the allocator sees it.
pub(crate) fn snapshot(view: &View, now: Timestamp) -> Snapshot {
    let agents = view.agents.values().map(|agent| agent_snapshot(view, agent, now));
    let frameworks = view.frameworks.iter().filter_map(|(id, framework)| {
        let roles = demands(view, id, framework);
        (!roles.is_empty()).then(|| FrameworkSnapshot {
            id: framework_id(id),
            roles,
        })
    });
    let quotas = view
        .quotas
        .values()
        .filter(|quota| quota.metadata.deletion_timestamp.is_none());
    let quotas = quotas.map(|quota| QuotaSnapshot {
        name: quota.metadata.name.clone().unwrap_or_default(),
        role: quota.spec.role.clone(),
        weight: quota.spec.weight,
        guarantee: quota.spec.guarantee.clone(),
        limit: quota.spec.limit.clone(),
        minimum_offer: quota.spec.minimum_offer.clone(),
    });
    Snapshot {
        now_ms: now.as_millisecond(),
        agents: agents.collect(),
        frameworks: frameworks.collect(),
        quotas: quotas.collect(),
        filters: view.offers.values().filter_map(|offer| filter(offer, now)).collect(),
    }
}

/// Whether an open offer has run out.
pub(crate) fn is_expired(offer: &Offer, now: Timestamp) -> bool {
    offer.spec.expires_at.0 <= now
}

fn framework_id(id: &Id) -> FrameworkId {
    FrameworkId {
        namespace: id.namespace.to_string(),
        name: id.name.to_string(),
    }
}

fn framework_in(namespace: &str, name: &str) -> FrameworkId {
    FrameworkId {
        namespace: namespace.to_owned(),
        name: name.to_owned(),
    }
}

fn agent_snapshot(view: &View, agent: &Agent, now: Timestamp) -> AgentSnapshot {
    let name = agent.name();
    let tasks = view.live_tasks(name).map(|task| Held {
        framework: framework_in(task.namespace(), &task.spec.framework),
        role: task.role().to_owned(),
        bundle: task.held(),
    });
    // An offer that has run out is deleted in the very transaction that offers its resources again.
    let open = view
        .offers_of(name)
        .filter(|offer| offer.phase() == OfferPhase::Open && !is_expired(offer, now));
    let offers = open.map(|offer| OpenOffer {
        name: offer.metadata.name.clone().unwrap_or_default(),
        framework: framework_in(
            offer.metadata.namespace.as_deref().unwrap_or_default(),
            &offer.spec.framework,
        ),
        role: offer.spec.role.clone(),
        bundle: offer.bundle(),
    });
    AgentSnapshot {
        name: name.to_owned(),
        attributes: agent.spec.attributes.clone(),
        total: agent.allocatable(),
        devices: agent
            .status
            .as_ref()
            .map(|status| status.devices.clone())
            .unwrap_or_default(),
        tasks: tasks.collect(),
        offers: offers.collect(),
        availability: unavailable(view, agent).map_or(Availability::Available, Availability::Unavailable),
    }
}

/// What an agent says that keeps it from its work.
fn not_ready(agent: &Agent) -> Option<&Condition> {
    let conditions = &agent.status.as_ref()?.conditions;
    let ready = conditions.iter().find(|condition| condition.type_ == "Ready")?;
    (ready.status == "False").then_some(ready)
}

/// Why no offers of an agent may be made.
fn unavailable(view: &View, agent: &Agent) -> Option<String> {
    let name = agent.name();
    let fenced = |agent: &Agent| {
        agent
            .status
            .as_ref()
            .is_some_and(|status| status.reachability == Reachability::Fenced)
    };
    let unreadable = view
        .problems
        .values()
        .find(|problem| problem.agent.as_deref() == Some(name));
    if agent.metadata.deletion_timestamp.is_some() {
        Some("the agent is being removed".to_owned())
    } else if agent.spec.unschedulable {
        Some("the agent is unschedulable".to_owned())
    } else if agent.status.is_none() {
        Some("the agent has not yet said what it has".to_owned())
    } else if view.presence(name).is_none() || fenced(agent) {
        Some("the agent cannot be reached".to_owned())
    } else if let Some(ready) = not_ready(agent) {
        Some(format!("the agent takes no new tasks: {}", ready.message))
    } else {
        unreadable.map(|problem| format!("what the agent holds is not known: {}", problem.message))
    }
}

fn demands(view: &View, id: &Id, framework: &Framework) -> Vec<RoleDemand> {
    if framework.metadata.deletion_timestamp.is_some() || !view.is_open(&id.namespace) {
        return Vec::new();
    }
    let mut tasks: BTreeMap<&str, Vec<&Task>> = BTreeMap::new();
    for task in view.pending(id).filter(|task| wants_placement(task)) {
        tasks.entry(task.role()).or_default().push(task);
    }
    let listed = &framework.spec.roles;
    let own: [String; 1] = [id.namespace.to_string()];
    let mut demands: BTreeMap<&str, RoleDemand> = BTreeMap::new();
    if let Some(demand) = &framework.spec.demand {
        for role in if listed.is_empty() { &own[..] } else { listed } {
            let declared = declared(demand);
            demands.entry(role).or_default().declared = declared;
        }
    }
    for (role, mut tasks) in tasks {
        if !may_have(framework, role) {
            continue;
        }
        tasks.sort_by_key(|task| queue_order(task));
        demands.entry(role).or_default().tasks = tasks.into_iter().filter_map(pending_task).collect();
    }
    let named = demands.into_iter().map(|(role, demand)| RoleDemand {
        role: role.to_owned(),
        ..demand
    });
    named.collect()
}

/// Whether a pending task shall still be placed.
pub(crate) fn wants_placement(task: &Task) -> bool {
    task.spec.desired == Desired::Run && task.metadata.deletion_timestamp.is_none()
}

/// Whether a framework may get offers for a role.
pub(crate) fn may_have(framework: &Framework, role: &str) -> bool {
    let listed = &framework.spec.roles;
    listed.is_empty() || listed.iter().any(|listed| listed == role)
}

fn declared(demand: &Demand) -> Option<DeclaredDemand> {
    Some(DeclaredDemand {
        minimum: demand.minimum.amounts()?,
        ports: demand.minimum.ports.clone(),
        gpu: match &demand.gpu {
            None => None,
            Some(selector) => Some(selector.requirement().ok()?),
        },
        max_offers: demand.max_offers.unwrap_or(OFFERS_DEFAULT),
    })
}

/// `None`: it asks for what cannot be read; validation keeps such tasks out.
fn pending_task(task: &Task) -> Option<PendingTask> {
    Some(PendingTask {
        name: task.name().to_owned(),
        amounts: task.spec.resources.amounts()?,
        ports: task.spec.resources.ports.clone(),
        gpu: requirement(task)?,
        constraints: task.spec.constraints.clone(),
    })
}

/// Which GPUs a task takes; `None`: it cannot be read.
pub(crate) fn requirement(task: &Task) -> Option<GpuRequirement> {
    match &task.spec.gpu {
        None => Some(GpuRequirement::default()),
        Some(selector) => selector.requirement().ok(),
    }
}

fn filter(offer: &Offer, now: Timestamp) -> Option<Filter> {
    let status = offer
        .status
        .as_ref()
        .filter(|status| status.phase == OfferPhase::Declined)?;
    let until = status.refuse_until.as_ref()?.0;
    let namespace = offer.metadata.namespace.as_deref().unwrap_or_default();
    (until > now).then(|| Filter {
        framework: framework_in(namespace, &offer.spec.framework),
        role: offer.spec.role.clone(),
        agent: offer.spec.agent.clone(),
        refused: offer.bundle().amounts(),
        until_ms: until.as_millisecond(),
    })
}
