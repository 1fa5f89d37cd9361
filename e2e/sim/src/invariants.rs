//! What must hold at every revision of the store, whatever happened.
//!
//! The checker replays the store's history, revision by revision, below the API server: what clients believe does not
//! matter here. The names are those of the list in the architecture notes: capacity, single spending, forward phases, fixed
//! bindings, fenced writes, unique identities.

use std::collections::{BTreeMap, BTreeSet};

use muster_api::resources::Bundle;
use muster_api::task_state::{Phase, Writer};
use muster_api::v1::{Agent, Offer, OfferPhase, Task};
use muster_store::{Change, Revision};
use serde::de::DeserializeOwned;

const AGENTS: &str = "objects/muster.dev/agents/";
const OFFERS: &str = "objects/muster.dev/offers/";
const TASKS: &str = "objects/muster.dev/tasks/";
const LEASES: &str = "objects/coordination.k8s.io/leases/";

/// A write that was answered with success and carried a fence.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FencedWrite {
    /// The revision that the answer named.
    pub revision: Revision,
    /// `NAMESPACE/NAME` of the lease.
    pub lease: String,
    /// The create revision that the fence named.
    pub token: Revision,
    /// Method and path, for the message.
    pub request: String,
}

/// The state of the store as of one revision, and everything that was wrong on the way.
#[derive(Default)]
pub struct Checker {
    revision: Revision,
    agents: BTreeMap<String, Agent>,
    offers: BTreeMap<String, Offer>,
    tasks: BTreeMap<String, Task>,
    gone: BTreeSet<String>,
    /// For each lease, since which revision it has which create revision (zero: none).
    leases: BTreeMap<String, Vec<(Revision, Revision)>>,
    violations: Vec<String>,
    trace: u64,
}

impl Checker {
    /// The revision up to which history was replayed.
    pub fn revision(&self) -> Revision {
        self.revision
    }

    /// The tasks as of now, by key.
    pub fn tasks(&self) -> &BTreeMap<String, Task> {
        &self.tasks
    }

    /// The offers as of now, by key.
    pub fn offers(&self) -> &BTreeMap<String, Offer> {
        &self.offers
    }

    /// The agents as of now, by key.
    pub fn agents(&self) -> &BTreeMap<String, Agent> {
        &self.agents
    }

    /// A digest of everything that was replayed: FNV-1a over revisions, keys and values.
    pub fn trace(&self) -> u64 {
        self.trace
    }

    fn digest(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.trace = (self.trace ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3);
        }
    }

    /// Everything that was wrong so far.
    pub fn violations(&self) -> &[String] {
        &self.violations
    }

    fn violated(&mut self, what: String) {
        self.violations.push(format!("revision {}: {what}", self.revision));
    }

    /// Replays one revision.
    pub fn apply(&mut self, revision: Revision, changes: &[Change]) {
        if revision <= self.revision {
            self.violated(format!("revision {revision} came after it"));
        }
        self.revision = revision;
        for change in changes {
            let value = change
                .current
                .as_ref()
                .map(|entry| String::from_utf8_lossy(&entry.value));
            tracing::trace!(revision, key = %change.key, ?value);
            self.digest(change.key.as_str().as_bytes());
            self.digest(change.current.as_ref().map_or(&[], |entry| &entry.value));
        }
        let offers_before = self.offers.clone();
        for change in changes {
            let key = change.key.as_str();
            if let Some(name) = key.strip_prefix(LEASES) {
                let created = change.current.as_ref().map_or(0, |entry| entry.create_revision);
                self.leases
                    .entry(name.to_owned())
                    .or_default()
                    .push((revision, created));
            } else if key.starts_with(AGENTS) {
                let agent = self.read(change);
                set(&mut self.agents, key, agent);
            } else if key.starts_with(OFFERS) {
                let offer: Option<Offer> = self.read(change);
                self.offer_changed(key, offer.as_ref());
                set(&mut self.offers, key, offer);
            }
        }
        for change in changes.iter().filter(|change| change.key.as_str().starts_with(TASKS)) {
            let task: Option<Task> = self.read(change);
            self.task_changed(change.key.as_str(), task.as_ref(), &offers_before);
            set(&mut self.tasks, change.key.as_str(), task);
        }
        self.capacity_holds();
    }

    fn read<T: DeserializeOwned>(&mut self, change: &Change) -> Option<T> {
        let entry = change.current.as_ref()?;
        match serde_json::from_slice(&entry.value) {
            Ok(object) => Some(object),
            Err(error) => {
                self.violated(format!("{} cannot be read: {error}", change.key));
                None
            }
        }
    }

    /// An offer leaves Open once, its content never changes, its uid never returns.
    fn offer_changed(&mut self, key: &str, new: Option<&Offer>) {
        let old = self.offers.get(key).cloned();
        let (old_uid, new_uid) = (uid(old.as_ref()), uid(new));
        if let (Some(old), Some(new)) = (&old, new)
            && old_uid == new_uid
        {
            if old.spec != new.spec {
                self.violated(format!("{key}: the content of an offer changed"));
            }
            if old.phase() == OfferPhase::Declined && new.phase() == OfferPhase::Open {
                self.violated(format!("{key}: a declined offer is open again"));
            }
        }
        self.identity_changed(key, old_uid, new_uid);
    }

    /// A uid that is gone stays gone, and a name changes its uid only by way of nothing.
    fn identity_changed(&mut self, key: &str, old: Option<String>, new: Option<String>) {
        if old == new {
            return;
        }
        if let (Some(old), Some(new)) = (&old, &new) {
            self.violated(format!("{key}: uid {old} became {new} in place"));
        }
        if let Some(new) = &new
            && self.gone.contains(new)
        {
            self.violated(format!("{key}: uid {new} is back after it was deleted"));
        }
        self.gone.extend(old);
    }

    fn task_changed(&mut self, key: &str, new: Option<&Task>, offers_before: &BTreeMap<String, Offer>) {
        let old = self.tasks.get(key).cloned();
        let (old_uid, new_uid) = (uid(old.as_ref()), uid(new));
        let same = old_uid == new_uid;
        self.identity_changed(key, old_uid, new_uid);
        let Some(new) = new else {
            if let Some(old) = old.filter(|old| old.phase().holds_resources()) {
                self.violated(format!(
                    "{key}: deleted in phase {} while its agent still has it",
                    old.phase()
                ));
            }
            return;
        };
        let before = if same { old } else { None };
        let (from, to) = (before.as_ref().map_or(Phase::Pending, Task::phase), new.phase());
        if ![Writer::Accept, Writer::Agent, Writer::Controllers]
            .into_iter()
            .any(|writer| from.may_move(to, writer))
        {
            self.violated(format!("{key}: phase {from} became {to}"));
        }
        let bound_before = before.as_ref().is_some_and(|task| task.agent().is_some());
        match (&before, &new.status) {
            (Some(before), Some(after)) if bound_before => {
                let was = before.status.clone().unwrap_or_default();
                if (&was.agent, &was.offer, &was.devices, &was.ports)
                    != (&after.agent, &after.offer, &after.devices, &after.ports)
                {
                    self.violated(format!("{key}: the binding changed"));
                }
            }
            (_, Some(after)) if after.agent.is_some() => self.bound(key, new, offers_before),
            _ => {}
        }
    }

    /// A task is bound in the very revision in which its offer is spent, and fits in it.
    fn bound(&mut self, key: &str, task: &Task, offers_before: &BTreeMap<String, Offer>) {
        let status = task.status.clone().unwrap_or_default();
        let offer_key = format!(
            "{OFFERS}{}/{}",
            task.namespace(),
            status.offer.as_deref().unwrap_or("none")
        );
        let Some(offer) = offers_before
            .get(&offer_key)
            .filter(|offer| offer.phase() == OfferPhase::Open)
        else {
            return self.violated(format!("{key}: bound from {offer_key}, which was not open"));
        };
        if self.offers.contains_key(&offer_key) {
            self.violated(format!("{key}: bound from {offer_key}, which is still there"));
        }
        if Some(&offer.spec.agent) != status.agent.as_ref() {
            self.violated(format!("{key}: bound to another agent than its offer's"));
        }
    }

    /// What open offers and live tasks hold of an agent never overlaps and is never more than the agent has.
    fn capacity_holds(&mut self) {
        let mut held: BTreeMap<&str, Bundle> = BTreeMap::new();
        let offers = self
            .offers
            .iter()
            .map(|(key, offer)| (key, offer.spec.agent.as_str(), offer.held()));
        let tasks = self
            .tasks
            .iter()
            .filter_map(|(key, task)| Some((key, task.agent()?, task.held())));
        let mut wrong = Vec::new();
        for (key, agent, bundle) in offers.chain(tasks) {
            let sum = held.entry(agent).or_default();
            match sum.checked_add(&bundle) {
                Some(more) => *sum = more,
                None => wrong.push(format!(
                    "{key} holds a device or port of {agent} that something else holds"
                )),
            }
        }
        for (agent, sum) in held {
            let Some(object) = self.agents.get(&format!("{AGENTS}_/{agent}")) else {
                continue;
            };
            if !object.allocatable().contains(&sum) {
                wrong.push(format!(
                    "{agent} has given out {}, but has {}",
                    sum.amounts(),
                    object.allocatable().amounts()
                ));
            }
        }
        for what in wrong {
            self.violated(what);
        }
    }

    /// A write that carried a fence landed while that very lease was held.
    pub fn check_fence(&mut self, write: &FencedWrite) {
        let history = self.leases.get(&write.lease).map(Vec::as_slice).unwrap_or_default();
        let at = history
            .iter()
            .rev()
            .find(|(revision, _)| *revision < write.revision)
            .map_or(0, |(_, created)| *created);
        if at != write.token {
            let FencedWrite {
                revision,
                lease,
                token,
                request,
            } = write;
            self.violated(format!(
                "{request} landed at {revision} under {lease}@{token}, but the lease was at {at}"
            ));
        }
    }
}

fn set<T>(map: &mut BTreeMap<String, T>, key: &str, value: Option<T>) {
    match value {
        Some(value) => map.insert(key.to_owned(), value),
        None => map.remove(key),
    };
}

fn uid<T: kube::Resource>(object: Option<&T>) -> Option<String> {
    object?.meta().uid.clone()
}
