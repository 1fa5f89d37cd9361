//! Makes offers and takes them back: expired ones, ones of agents that cannot be reached, ones that nobody wants any more.
//!
//! Everything that one pass changes about an agent's offers is one transaction, which fails when the agent gave out or got back
//! anything after the view; so a pass never promises twice what is there once. What is decided is the allocator's affair.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use muster_allocator::{NewOffer, Params, allocate};
use muster_api::duration::Span;
use muster_api::v1::{Offer, OfferPhase, OfferSpec, OfferStatus, OfferedResources};
use muster_api::wire::{AgentOffers, OfferRef};
use muster_api::{ObjectMeta, Time};

use super::snapshot::{is_expired, snapshot};
use crate::Config;
use crate::runtime::{Action, Change, Context, Id, Kind, Note, Object, Plan, Planner, Severity, View, Write};

/// So many offers of an agent change in one transaction: the API server's bound.
const CHANGES_MAX: usize = 50;

/// Makes offers and takes them back.
#[derive(Clone, Debug)]
pub struct Offers {
    ttl: Span,
    params: Params,
}

impl Offers {
    /// As configured.
    pub fn new(config: &Config) -> Offers {
        Offers {
            ttl: config.offer_ttl,
            params: config.params.clone(),
        }
    }
}

impl Planner for Offers {
    const NAME: &'static str = "offers";
    type Key = ();
    /// One pass for a burst of new tasks; a task waits no longer than this for its first pass.
    const COALESCE: Duration = Duration::from_millis(2);

    fn keys(&self, change: &Change, _: &View) -> Vec<()> {
        if concerns_allocation(change) {
            vec![()]
        } else {
            Vec::new()
        }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let now = context.now;
        let allocation = allocate(&snapshot(view, now), &self.params);
        let mut plan = Plan::default();
        let mut agents: BTreeMap<&str, AgentChanges> = BTreeMap::new();
        for offer in view.offers.values() {
            if is_over(offer, now) {
                agents
                    .entry(&offer.spec.agent)
                    .or_default()
                    .delete
                    .push(reference(offer));
            } else {
                plan.wake_by(ends(offer));
            }
        }
        for rescind in &allocation.rescinds {
            if let Some(offer) = view
                .offers
                .get(&Id::new(rescind.namespace.as_str(), rescind.name.as_str()))
            {
                tracing::debug!(offer = %rescind.name, agent = %rescind.agent, reason = %rescind.reason, "rescind");
                agents.entry(&rescind.agent).or_default().delete.push(reference(offer));
            }
        }
        for (index, new) in allocation.offers.iter().enumerate() {
            let changes = agents.entry(&new.agent).or_default();
            if changes.len() < CHANGES_MAX {
                changes.create.push(self.offer(view, new, index, now));
                changes.notes.extend(note(view, new));
            }
        }
        wait_for_limits(view, &mut agents);
        for (agent, changes) in agents {
            plan.writes.extend(changes.write(view, agent));
        }
        // An agent whose object is gone has no ledger to guard; its offers just go.
        for agent in view
            .agents_with_offers()
            .filter(|agent| !view.agents.contains_key(*agent))
        {
            for offer in view.offers_of(agent).take(CHANGES_MAX) {
                let uid = offer.metadata.uid.as_deref().unwrap_or_default();
                plan.write(Action::delete(Kind::Offer, &Id::of(&offer.metadata), uid));
            }
        }
        plan
    }
}

/// The writes of a plan are independent: what is taken back of one agent may not have happened yet when another agent's is given out. Where
/// a quota limits a role, that would be too much for a moment; so such offers wait for the pass after, which sees what was taken back. What a
/// removed agent had is on its way back, too, and may stay if the agent joins again at once.
fn wait_for_limits(view: &View, agents: &mut BTreeMap<&str, AgentChanges>) {
    let limits = view.quotas.values().filter(|quota| !quota.spec.limit.is_empty());
    let limited: Vec<&str> = limits.map(|quota| quota.spec.role.as_str()).collect();
    let taking = |changes: &AgentChanges| changes.delete.iter().any(|offer| holds(view, offer));
    let taken = agents
        .iter()
        .filter(|(_, changes)| taking(changes))
        .map(|(agent, _)| *agent);
    let back: Vec<&str> = taken.chain(view.removed_agents().map(String::as_str)).collect();
    if limited.is_empty() {
        return;
    }
    let is_limited = |role: &str| {
        let mut rests = limited.iter().filter_map(|limit| role.strip_prefix(limit));
        rests.any(|rest| rest.is_empty() || rest.starts_with('/'))
    };
    for (agent, changes) in agents
        .iter_mut()
        .filter(|(agent, _)| back.iter().any(|other| other != *agent))
    {
        let before = changes.create.len();
        changes.create.retain(|offer| !is_limited(&offer.spec.role));
        if changes.create.len() < before {
            tracing::debug!(agent, "offers wait until what was taken back elsewhere is back");
            changes.notes.clear();
        }
    }
}

/// Whether an offer holds something still.
fn holds(view: &View, offer: &OfferRef) -> bool {
    let id = Id::new(offer.namespace.as_str(), offer.name.as_str());
    view.offers
        .get(&id)
        .is_some_and(|offer| offer.phase() == OfferPhase::Open)
}

/// Whether a change can matter for what is offered. Events and most leases do not.
pub(crate) fn concerns_allocation(change: &Change) -> bool {
    let Some(kind) = change.kind() else {
        return false;
    };
    match kind {
        Kind::Event => false,
        Kind::Lease => &*change.id.namespace == muster_api::names::NAMESPACE_AGENTS,
        Kind::Task => task_matters(change),
        Kind::Namespace | Kind::Agent | Kind::Framework | Kind::Quota | Kind::Offer => true,
    }
}

/// A running task's progress does not change what is held or wanted.
fn task_matters(change: &Change) -> bool {
    let facts = |object: &Object| {
        object.task().map(|task| {
            let pending = task.phase() == muster_api::task_state::Phase::Pending;
            let holds = task.phase().holds_resources();
            (
                pending,
                holds,
                task.spec.desired,
                task.metadata.deletion_timestamp.is_some(),
            )
        })
    };
    change.old.as_ref().and_then(facts) != change.new.as_ref().and_then(facts)
}

#[derive(Default)]
struct AgentChanges {
    create: Vec<Offer>,
    delete: Vec<OfferRef>,
    notes: Vec<Note>,
}

impl AgentChanges {
    fn len(&self) -> usize {
        self.create.len() + self.delete.len()
    }

    fn write(mut self, view: &View, agent: &str) -> Option<Write> {
        if !view.agents.contains_key(agent) {
            return None;
        }
        if self.len() > CHANGES_MAX {
            // What is taken back comes first, and what it frees is offered in the pass after.
            self.create.clear();
            self.notes.clear();
            self.delete.truncate(CHANGES_MAX);
        }
        let request = AgentOffers {
            seen_revision: view.revision,
            create: self.create,
            delete: self.delete,
        };
        let action = Action::AgentOffers {
            agent: agent.to_owned(),
            request,
        };
        Some(Write {
            action,
            then: self.notes,
        })
    }
}

/// Whether an offer has run out, or is the memory of a refusal that has.
fn is_over(offer: &Offer, now: Timestamp) -> bool {
    match offer.phase() {
        OfferPhase::Open => is_expired(offer, now),
        OfferPhase::Declined => ends(offer) <= now,
    }
}

/// When an offer is over.
fn ends(offer: &Offer) -> Timestamp {
    let refused = offer.status.as_ref().and_then(|status| status.refuse_until.as_ref());
    match offer.phase() {
        OfferPhase::Open => offer.spec.expires_at.0,
        OfferPhase::Declined => refused.map_or(Timestamp::UNIX_EPOCH, |until| until.0),
    }
}

fn reference(offer: &Offer) -> OfferRef {
    OfferRef {
        namespace: offer.metadata.namespace.clone().unwrap_or_default(),
        name: offer.metadata.name.clone().unwrap_or_default(),
        uid: offer.metadata.uid.clone().unwrap_or_default(),
    }
}

fn note(view: &View, new: &NewOffer) -> Option<Note> {
    let id = Id::new(new.framework.namespace.as_str(), new.framework.name.as_str());
    let framework = view.frameworks.get(&id)?;
    let message = format!("offered resources of agent {} in role {}", new.agent, new.role);
    Some(Note::about(
        Kind::Framework,
        &framework.metadata,
        Severity::Normal,
        "Offered",
        message,
    ))
}

impl Offers {
    /// The name follows from the view and the place in the pass: the same pass, made twice, makes the same offers.
    fn offer(&self, view: &View, new: &NewOffer, index: usize, now: Timestamp) -> Offer {
        let agent: String = new.agent.chars().take(100).collect();
        let mut attributes = view
            .agents
            .get(&new.agent)
            .map(|agent| agent.spec.attributes.clone())
            .unwrap_or_default();
        attributes
            .entry("hostname".to_owned())
            .or_insert_with(|| new.agent.clone());
        let expires_at = now.checked_add(self.ttl.signed()).unwrap_or(Timestamp::MAX);
        Offer {
            metadata: ObjectMeta {
                name: Some(format!(
                    "{}-{}-{index}",
                    agent.trim_end_matches(['-', '.']),
                    view.revision
                )),
                namespace: Some(new.framework.namespace.clone()),
                ..ObjectMeta::default()
            },
            spec: OfferSpec {
                framework: new.framework.name.clone(),
                role: new.role.clone(),
                agent: new.agent.clone(),
                resources: OfferedResources {
                    cpus: new.bundle.cpus,
                    memory: new.bundle.memory,
                    disk: new.bundle.disk,
                    gpus: new.bundle.amounts().gpus,
                    ports: new.bundle.ports.clone(),
                },
                devices: new.devices.clone(),
                attributes,
                expires_at: Time(expires_at),
            },
            status: Some(OfferStatus::default()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn plan(cluster: Cluster) -> Plan {
        Offers::new(&Config::default()).plan(&(), &cluster.view(), &Context::at(now()))
    }

    fn request(plan: &Plan) -> &AgentOffers {
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        let Action::AgentOffers { agent, request } = &write.action else {
            panic!("{write:?}")
        };
        assert_eq!((agent.as_str(), request.seen_revision), ("a1", 100));
        request
    }

    fn deleted(request: &AgentOffers) -> Vec<&str> {
        request.delete.iter().map(|offer| offer.name.as_str()).collect()
    }

    #[test]
    fn an_offer_is_made_for_a_pending_task_and_nothing_without_one() {
        let idle = Cluster::default().agent("a1", 4);
        assert_eq!(plan(idle.clone()), Plan::default());
        let plan = plan(idle.task("t1", |task| task.cpus(1)));
        let request = request(&plan);
        let [offer] = request.create.as_slice() else {
            panic!("{request:?}")
        };
        assert_eq!(
            (offer.spec.framework.as_str(), offer.spec.role.as_str()),
            ("default", "default")
        );
        assert_eq!(offer.spec.expires_at.0, at(30));
        assert_eq!(offer.spec.attributes["hostname"], "a1");
        assert_eq!(offer.metadata.name.as_deref(), Some("a1-100-0"));
        assert_eq!(plan.writes[0].then.len(), 1);
    }

    #[test]
    fn the_same_view_gives_the_same_plan() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .agent("a2", 4)
            .task("t1", |task| task.cpus(1))
            .task("t2", |task| task.cpus(3));
        assert_eq!(plan(cluster.clone()), plan(cluster));
    }

    #[test]
    fn what_tasks_and_offers_hold_is_not_offered_again() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("busy", |task| task.cpus(2).running("a1"))
            .task("t1", |task| task.cpus(1))
            .task("t2", |task| task.cpus(1))
            .task("t3", |task| task.cpus(1))
            .offer("o1", "a1", 1);
        let plan = plan(cluster);
        let offered: u64 = request(&plan)
            .create
            .iter()
            .map(|offer| offer.spec.resources.cpus.milli())
            .sum();
        assert!(offered <= 1000, "{offered} of the 1000 that are free");
    }

    #[test]
    fn an_expired_offer_is_deleted_and_its_resources_are_offered_again() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(4))
            .expired_offer("o1", "a1", 4);
        let plan = plan(cluster);
        assert_eq!(deleted(request(&plan)), ["o1"]);
        assert_eq!(request(&plan).create.len(), 1);
    }

    #[test]
    fn what_a_removed_agent_had_under_a_limit_is_offered_elsewhere_only_when_it_is_back() {
        let cluster = Cluster::default()
            .agent("a2", 8)
            .task("t0", |task| task.cpus(4).running("removed"))
            .task("t1", |task| task.cpus(8));
        let created = |cluster: Cluster| {
            let writes = plan(cluster).writes.into_iter().map(|write| match write.action {
                Action::AgentOffers { request, .. } => request.create.len(),
                other => panic!("{other:?}"),
            });
            writes.sum::<usize>()
        };
        assert!(created(cluster.clone()) > 0);
        assert_eq!(created(cluster.quota("q", "default").limit("q", 8)), 0);
    }

    #[test]
    fn what_is_taken_back_under_a_limit_is_offered_elsewhere_only_when_it_is_back() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .agent("a2", 8)
            .task("t1", |task| task.cpus(8))
            .expired_offer("o1", "a1", 4);
        let given = |cluster: &Cluster| {
            let requests = plan(cluster.clone())
                .writes
                .into_iter()
                .map(|write| match write.action {
                    Action::AgentOffers { agent, request } => (agent, request.create.len(), request.delete.len()),
                    other => panic!("{other:?}"),
                });
            requests.collect::<Vec<_>>()
        };
        let free = given(&cluster);
        assert!(
            free.iter().any(|(agent, created, _)| agent == "a2" && *created > 0),
            "{free:?}"
        );
        let limited = given(&cluster.quota("q", "default").limit("q", 8));
        assert!(
            limited.iter().all(|(agent, created, _)| agent == "a1" || *created == 0),
            "{limited:?}"
        );
        assert!(
            limited.iter().any(|(agent, _, deleted)| agent == "a1" && *deleted == 1),
            "{limited:?}"
        );
    }

    #[test]
    fn an_open_offer_is_left_alone_and_its_end_waited_for() {
        let plan = plan(
            Cluster::default()
                .agent("a1", 4)
                .task("t1", |task| task.cpus(1))
                .whole_offer("o1", "a1"),
        );
        assert_eq!((plan.writes.len(), plan.wake), (0, Some(at(30))));
    }

    #[test]
    fn offer_is_rescinded_when_agent_is_lost() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1))
            .offer("o1", "a1", 4);
        assert_eq!(deleted(request(&plan(cluster.clone().without_presence("a1")))), ["o1"]);
        assert_eq!(deleted(request(&plan(cluster.unschedulable("a1")))), ["o1"]);
    }

    #[test]
    fn offer_is_rescinded_when_nobody_wants_it_any_more() {
        let cluster = Cluster::default().agent("a1", 4).offer("o1", "a1", 4);
        assert_eq!(deleted(request(&plan(cluster))), ["o1"]);
        let orphan = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1))
            .offer("o1", "a1", 4)
            .without_framework("default");
        assert_eq!(deleted(request(&plan(orphan))), ["o1"]);
    }

    #[test]
    fn offers_of_a_removed_agent_are_deleted_one_by_one() {
        let plan = plan(
            Cluster::default()
                .agent("a1", 4)
                .offer("o1", "a1", 4)
                .without_agent("a1"),
        );
        let [write] = plan.writes.as_slice() else {
            panic!("{plan:?}")
        };
        assert!(
            matches!(&write.action, Action::Delete { id, .. } if &*id.name == "o1"),
            "{write:?}"
        );
    }

    #[test]
    fn a_refusal_keeps_the_agent_out_until_it_ends() {
        let refused = |seconds| {
            let cluster = Cluster::default().agent("a1", 4).task("t1", |task| task.cpus(1));
            plan(cluster.whole_offer("o1", "a1").declined("o1", seconds))
        };
        let waiting = refused(5);
        assert_eq!((waiting.writes.len(), waiting.wake), (0, Some(at(5))));
        let over = refused(0);
        assert_eq!(deleted(request(&over)), ["o1"]);
        assert_eq!(request(&over).create.len(), 1);
    }

    #[test]
    fn an_agent_with_an_object_that_cannot_be_read_is_not_offered() {
        let mut view = Cluster::default().agent("a1", 4).task("t1", |task| task.cpus(1)).view();
        let broken = muster_api::wire::WatchChange {
            resource: "tasks.muster.dev".into(),
            kind: muster_api::wire::ChangeKind::Added,
            object: serde_json::json!({
                "metadata": { "namespace": "default", "name": "odd" }, "spec": 7, "status": { "agent": "a1" },
            }),
        };
        assert!(view.apply(broken).is_none());
        let plan = Offers::new(&Config::default()).plan(&(), &view, &Context::at(now()));
        assert_eq!(plan.writes, []);
        assert_eq!(view.problems.len(), 1);
    }

    #[test]
    fn what_a_running_task_says_of_itself_wakes_nobody() {
        let before = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).running("a1"))
            .view();
        let after = before.clone();
        let id = Id::new("default", "t1");
        let change = |new: &View| Change {
            resource: Kind::Task.into(),
            id: id.clone(),
            old: before.get(Kind::Task, &id),
            new: new.get(Kind::Task, &id),
        };
        assert!(!concerns_allocation(&change(&after)));
        let ended = Cluster::default().task("t1", |task| task.finished("a1", 0)).view();
        assert!(concerns_allocation(&change(&ended)));
        assert!(concerns_allocation(&change(&View::default())));
    }
}
