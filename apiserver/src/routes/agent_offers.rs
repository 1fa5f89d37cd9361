//! The offers of one agent, as one allocation pass changes them: all of it at once, or nothing.
//!
//! Two guards stand against giving something out twice. The transaction compares the agent's ledger, which every write touches that
//! gives something out or takes it back, with the revision that the pass has seen. And what would be out afterwards is added up
//! here from the live tasks and offers, and held against what the agent has.
//!
//! A request that changes nothing still writes the ledger: whatever was planned from an older view and has not happened by then never will.

use std::collections::BTreeSet;

use axum::response::Response;
use http::StatusCode;
use muster_api::resources::Bundle;
use muster_api::task_state::PHASES;
use muster_api::v1::{Agent, Offer, Task};
use muster_api::validation::{FieldPath, Violations};
use muster_api::wire::{AgentOffers, AgentOffersResult, OfferRef};
use muster_store::{Compare, Entry, Key, Op, Revision};
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use super::Call;
use super::answer::json_value;
use super::offers::read;
use super::path::Target;
use crate::body::Decoded;
use crate::error::{ApiError, Result};
use crate::hub::{self, Filter, Part};
use crate::keys;
use crate::limits;
use crate::params::WriteParams;
use crate::registry::fence::{self, Fence};
use crate::registry::{Context, Create, Guard, GuardedTxn, Kind, Outcome, decode, guard_namespace};
use crate::schema::typed;
use crate::selector::{FieldSelector, LabelSelector};

/// `POST /apis/muster.dev/v1/agents/NAME/offers`.
pub(super) async fn write(mut call: Call, target: Target) -> Result<Response> {
    let params = WriteParams::new(&call.query, call.headers(), "CreateOptions")?;
    let request: AgentOffers = read(&mut call, "AgentOffers").await?;
    let fence = Fence::of(call.headers(), &call.user)?;
    fence::require(
        &call.user,
        fence.as_ref(),
        "a write of offers",
        &fence::controllers_lease(),
    )?;
    let context = Context::new(&call.state, &call.user, fence.as_ref());
    let writing = Writing {
        context: &context,
        offers: context.state.resources.muster("offers"),
        agent: &target.name,
    };
    let revision = writing.run(&request, params.dry_run).await?;
    let result = AgentOffersResult {
        resource_version: revision.map(|revision| revision.to_string()).unwrap_or_default(),
    };
    Ok(json_value(StatusCode::CREATED, &result))
}

struct Writing<'a> {
    context: &'a Context<'a>,
    offers: &'a Kind,
    agent: &'a str,
}

impl Writing<'_> {
    fn invalid(&self, field: &FieldPath, value: &str, why: &str) -> ApiError {
        let mut violations = Violations::new();
        violations.invalid(field, value, why);
        ApiError::invalid(
            "AgentOffers",
            muster_api::names::GROUP,
            self.agent,
            violations.into_vec(),
        )
    }

    fn conflict(&self, why: &str) -> ApiError {
        let agents = &self.context.state.resources.muster("agents").resource;
        ApiError::conflict(agents, self.agent, why)
    }

    async fn run(&self, request: &AgentOffers, dry_run: bool) -> Result<Option<Revision>> {
        let count = request.create.len() + request.delete.len();
        if count > limits::OFFERS_PER_AGENT_CALL {
            let why = format!(
                "at most {} offers can be made and deleted at once",
                limits::OFFERS_PER_AGENT_CALL
            );
            return Err(self.invalid(&FieldPath::root("create"), &count.to_string(), &why));
        }
        let state = self.context.state;
        let newest = state.store.revision().await?;
        if request.seen_revision > newest {
            let why = format!("nothing after revision {newest} can have been seen");
            return Err(self.invalid(
                &FieldPath::root("seenRevision"),
                &request.seen_revision.to_string(),
                &why,
            ));
        }
        let reached = state.hub.reach(newest, limits::READ_WAIT).await;
        reached.map_err(|error| ApiError::unavailable(error.to_string()))?;

        let mut txn = GuardedTxn::new();
        if let Some(fence) = self.context.fence {
            fence.guard(&mut txn);
        }
        let ledger = keys::ledger(self.agent);
        // What changes nothing is planned from nothing.
        let seen = if count == 0 { newest } else { request.seen_revision };
        txn.compare(Compare::not_modified_after(ledger, seen), Guard::Ledger);
        let agent = self.agent(&mut txn, !request.create.is_empty()).await?;
        if count == 0 && agent.is_none() {
            // Nothing can be offered of it any more; one that joins under its name is another.
            return Ok(Some(newest));
        }
        let gone = self.delete(&mut txn, &request.delete).await?;
        let new = self.create(&mut txn, &request.create)?;
        if let Some(agent) = agent.filter(|_| !new.is_empty()) {
            self.check_sum(&agent, &new, &gone)?;
        }
        txn.touch(self.agent);
        if dry_run {
            return Ok(None);
        }
        match state.commit(txn).await? {
            Outcome::Done(revision) => Ok(Some(revision)),
            Outcome::Lost(guards) if guards.contains(&Guard::Ledger) => {
                let why = "it has given something out or got something back since the revision that was planned from";
                Err(self.conflict(why))
            }
            Outcome::Lost(_) => Err(self.conflict("what was planned from has changed")),
        }
    }

    /// The agent, which must stay the same and schedulable if anything of it is offered.
    async fn agent(&self, txn: &mut GuardedTxn, offering: bool) -> Result<Option<Agent>> {
        let state = self.context.state;
        let agents = &state.resources.muster("agents").resource;
        let key = keys::object(agents, "", self.agent);
        let Some(entry) = state.store.get(&key).await? else {
            return if offering {
                Err(ApiError::not_found(agents, self.agent))
            } else {
                Ok(None)
            };
        };
        let agent: Agent = from_entry(&entry)?;
        if offering && agent.spec.unschedulable {
            return Err(self.conflict("it is unschedulable"));
        }
        if offering && agent.metadata.deletion_timestamp.is_some() {
            return Err(self.conflict("it is being deleted"));
        }
        txn.compare(
            Compare::created(key, entry.create_revision),
            Guard::Other("agent".to_owned()),
        );
        Ok(Some(agent))
    }

    /// Deletes what is still what was seen; returns the keys.
    async fn delete(&self, txn: &mut GuardedTxn, offers: &[OfferRef]) -> Result<BTreeSet<Key>> {
        let mut keys = BTreeSet::new();
        for offer in offers {
            let key = keys::object(&self.offers.stored, &offer.namespace, &offer.name);
            let entry = self.context.state.store.get(&key).await?;
            let entry = entry.filter(|entry| {
                let object: Option<Value> = serde_json::from_slice(&entry.value).ok();
                object.is_some_and(|object| object["metadata"]["uid"] == offer.uid)
            });
            let Some(entry) = entry else {
                let why = format!("the offer {}/{} is not there any more", offer.namespace, offer.name);
                return Err(self.conflict(&why));
            };
            if decode(&entry)?["spec"]["agent"] != self.agent {
                let why = "the offer is of another agent";
                return Err(self.invalid(&FieldPath::root("delete"), &offer.name, why));
            }
            txn.compare(
                Compare::modified(key.clone(), entry.mod_revision),
                Guard::Other(format!("offers/{}", offer.name)),
            );
            txn.write(Op::delete(key.clone()));
            keys.insert(key);
        }
        Ok(keys)
    }

    /// Makes the new offers; returns what is in them.
    fn create(&self, txn: &mut GuardedTxn, offers: &[Offer]) -> Result<Vec<Offer>> {
        let params = WriteParams::default();
        let mut new = Vec::new();
        for (index, offer) in offers.iter().enumerate() {
            let place = FieldPath::root("create").index(index);
            let namespace = offer.metadata.namespace.clone().unwrap_or_default();
            if muster_api::names::dns_label_problem(&namespace).is_some() {
                let why = "an offer names the namespace of its framework";
                return Err(self.invalid(&place.field("metadata").field("namespace"), &namespace, why));
            }
            if offer.spec.agent != self.agent {
                let why = format!("must be {}, whose offers are written", self.agent);
                return Err(self.invalid(&place.field("spec").field("agent"), &offer.spec.agent, &why));
            }
            if offer.spec.expires_at.0 <= self.context.now {
                let why = "must be in the future";
                let path = place.field("spec").field("expiresAt");
                return Err(self.invalid(&path, &offer.spec.expires_at.0.to_string(), why));
            }
            let create = Create {
                kind: self.offers,
                namespace: &namespace,
                body: Decoded {
                    value: json!(offer),
                    duplicates: Vec::new(),
                },
                params: &params,
                applied: false,
            };
            let object = create.prepare(self.context)?.object;
            create.admission().judge(&object, None)?;
            guard_namespace(self.context, txn, &namespace)?;
            let name = object["metadata"]["name"].as_str().unwrap_or_default();
            let key = keys::object(&self.offers.stored, &namespace, name);
            txn.compare(Compare::absent(key.clone()), Guard::Other(format!("offers/{name}")));
            let resource = &self.offers.stored;
            let map = object.as_object().cloned().unwrap_or_default();
            txn.write(Op::put(key, hub::encode(&resource.api_version(), &resource.kind, map)));
            new.push(typed(&object).map_err(|violation| ApiError::internal(violation.message))?);
        }
        Ok(new)
    }

    /// Refuses what the agent does not have.
    fn check_sum(&self, agent: &Agent, new: &[Offer], gone: &BTreeSet<Key>) -> Result<()> {
        let have = agent.allocatable();
        let mut held = Bundle::default();
        let mut add = |what: &str, bundle: &Bundle| match held.checked_add(bundle) {
            Some(sum) => {
                held = sum;
                Ok(())
            }
            None => Err(self.conflict(&format!("{what} holds a port or device that is given out already"))),
        };
        for task in self.of_agent::<Task>("tasks", "status.agent", &BTreeSet::new())? {
            add(&format!("task {}/{}", task.namespace(), task.name()), &task.held())?;
        }
        for offer in self.of_agent::<Offer>("offers", "spec.agent", gone)? {
            add("an open offer", &offer.held())?;
        }
        for offer in new {
            add("a new offer", &offer.bundle())?;
        }
        if have.contains(&held) {
            return Ok(());
        }
        let mut problems = have.amounts().shortfall(&held.amounts());
        let devices: Vec<&str> = held.devices.difference(&have.devices).map(String::as_str).collect();
        if !devices.is_empty() {
            problems.push(format!("has no healthy device {}", devices.join(", ")));
        }
        if !have.ports.contains(&held.ports) {
            problems.push(format!("has not all of the ports {}", held.ports));
        }
        let why = format!("more would be out than it has: {}", problems.join("; "));
        Err(self.invalid(&FieldPath::root("create"), self.agent, &why))
    }

    /// The live objects of a kind that belong to the agent, but for those that go.
    fn of_agent<T: DeserializeOwned>(&self, plural: &str, field: &str, but: &BTreeSet<Key>) -> Result<Vec<T>> {
        let state = self.context.state;
        let kind = state.resources.muster(plural);
        // What has ended holds nothing, and there may be thousands of it.
        let over = PHASES
            .into_iter()
            .filter(|phase| phase.is_terminal())
            .map(|phase| phase.to_string());
        let over = over.chain(["Declined".to_owned()]);
        let over: String = over.map(|phase| format!(",status.phase!={phase}")).collect();
        let fields = FieldSelector::parse(&format!("{field}={}{over}", self.agent))?;
        let filter = Filter::new(&kind.hub, None, LabelSelector::default(), &fields)?;
        let found = state.hub.list(kind.id, &filter, &Part::default());
        let wanted = found.objects.iter().filter(|object| !but.contains(&object.key));
        wanted
            .map(|object| typed(&object.json()).map_err(|violation| ApiError::internal(violation.message)))
            .collect()
    }
}

fn from_entry<T: DeserializeOwned>(entry: &Entry) -> Result<T> {
    serde_json::from_slice(&entry.value)
        .map_err(|error| ApiError::internal(format!("what is stored at {} cannot be read: {error}", entry.key)))
}
