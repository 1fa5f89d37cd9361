//! The view: every watched object as of one revision, typed and indexed.
//!
//! A view is a prefix of history: it is only ever made by applying whole revisions in order. Cloning one is cheap (persistent
//! maps), so a planner keeps its own while the watch goes on. An object that cannot be read is a problem in the view, never an
//! error: what was known of it before stays, and an agent that it is bound to is marked, so that nobody gives away what an
//! unreadable object may hold.

use std::sync::Arc;

use imbl::{OrdMap, OrdSet};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use muster_api::wire::{ChangeKind, WatchChange};
use serde_json::Value;

use super::object::{Change, EndedTask, EventMark, Id, Kind, Object};

/// An object that cannot be read.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// What is wrong with it.
    pub message: String,
    /// The agent that it speaks of.
    pub agent: Option<String>,
}

/// Every watched object as of one revision.
#[derive(Clone, Debug, Default)]
pub struct View {
    /// The revision.
    pub revision: u64,
    /// Namespaces by name.
    pub namespaces: OrdMap<String, Arc<Namespace>>,
    /// Leases.
    pub leases: OrdMap<Id, Arc<Lease>>,
    /// Agents by name.
    pub agents: OrdMap<String, Arc<Agent>>,
    /// Frameworks.
    pub frameworks: OrdMap<Id, Arc<Framework>>,
    /// Quotas by name.
    pub quotas: OrdMap<String, Arc<Quota>>,
    /// Tasks that have not ended.
    pub tasks: OrdMap<Id, Arc<Task>>,
    /// Tasks that have.
    pub ended: OrdMap<Id, Arc<EndedTask>>,
    /// Offers.
    pub offers: OrdMap<Id, Arc<Offer>>,
    /// Events.
    pub events: OrdMap<Id, Arc<EventMark>>,
    /// What cannot be read.
    pub problems: OrdMap<(Kind, Id), Problem>,
    pending: OrdMap<Id, OrdSet<Id>>,
    live: OrdMap<String, OrdSet<Id>>,
    offered: OrdMap<String, OrdSet<Id>>,
    by_age: OrdSet<(Timestamp, Id)>,
}

fn add<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<Id>>, key: K, id: &Id) {
    index.entry(key).or_default().insert(id.clone());
}

fn remove<K: Ord + Clone>(index: &mut OrdMap<K, OrdSet<Id>>, key: &K, id: &Id) {
    if let Some(ids) = index.get_mut(key) {
        ids.remove(id);
        if ids.is_empty() {
            index.remove(key);
        }
    }
}

impl View {
    /// The ids of the pending tasks of a framework, in their order.
    pub fn pending_ids(&self, framework: &Id) -> impl Iterator<Item = &Id> {
        self.pending.get(framework).into_iter().flatten()
    }

    /// The frameworks that have pending tasks, whether or not they exist.
    pub fn frameworks_with_pending(&self) -> impl Iterator<Item = &Id> {
        self.pending.keys()
    }

    /// The pending tasks of a framework.
    pub fn pending(&self, framework: &Id) -> impl Iterator<Item = &Arc<Task>> {
        self.pending_ids(framework).filter_map(|id| self.tasks.get(id))
    }

    /// The ids of all tasks that were ever bound to an agent. Looks at every task that has ended.
    pub fn bound_ids(&self, agent: &str) -> impl Iterator<Item = &Id> {
        let live = self.live.get(agent).into_iter().flatten();
        let ended = self
            .ended
            .iter()
            .filter(move |(_, task)| task.agent.as_deref() == Some(agent));
        live.chain(ended.map(|(id, _)| id))
    }

    /// The tasks that hold resources of an agent.
    pub fn live_tasks(&self, agent: &str) -> impl Iterator<Item = &Arc<Task>> {
        let ids = self.live.get(agent).into_iter().flatten();
        ids.filter_map(|id| self.tasks.get(id))
    }

    /// The offers of an agent, open or declined.
    pub fn offers_of(&self, agent: &str) -> impl Iterator<Item = &Arc<Offer>> {
        let ids = self.offered.get(agent).into_iter().flatten();
        ids.filter_map(|id| self.offers.get(id))
    }

    /// The agents that offers name, whether or not they exist.
    pub fn agents_with_offers(&self) -> impl Iterator<Item = &String> {
        self.offered.keys()
    }

    /// The agents that hold something and do not exist any more.
    pub fn removed_agents(&self) -> impl Iterator<Item = &String> {
        let named = self.offered.keys().chain(self.live.keys());
        named.filter(|agent| !self.agents.contains_key(*agent))
    }

    /// The presence lease of an agent.
    pub fn presence(&self, agent: &str) -> Option<&Arc<Lease>> {
        self.leases.get(&Id::new(names::NAMESPACE_AGENTS, agent))
    }

    /// Whether a namespace is there and not on its way out.
    pub fn is_open(&self, namespace: &str) -> bool {
        self.namespaces
            .get(namespace)
            .is_some_and(|namespace| namespace.metadata.deletion_timestamp.is_none())
    }

    /// The events, oldest first.
    pub fn events_by_age(&self) -> impl Iterator<Item = (Timestamp, &Id, &Arc<EventMark>)> {
        self.by_age
            .iter()
            .filter_map(|(at, id)| self.events.get(id).map(|mark| (*at, id, mark)))
    }

    /// The phase of a task; `None`: there is no such task.
    pub fn phase(&self, id: &Id) -> Option<Phase> {
        let ended = || self.ended.get(id).map(|task| task.phase);
        self.tasks.get(id).map(|task| task.phase()).or_else(ended)
    }

    /// The object of that kind and name.
    pub fn get(&self, kind: Kind, id: &Id) -> Option<Object> {
        match kind {
            Kind::Namespace => self.namespaces.get(&*id.name).cloned().map(Object::Namespace),
            Kind::Lease => self.leases.get(id).cloned().map(Object::Lease),
            Kind::Agent => self.agents.get(&*id.name).cloned().map(Object::Agent),
            Kind::Framework => self.frameworks.get(id).cloned().map(Object::Framework),
            Kind::Quota => self.quotas.get(&*id.name).cloned().map(Object::Quota),
            Kind::Task => {
                let ended = || self.ended.get(id).cloned().map(Object::EndedTask);
                self.tasks.get(id).cloned().map(Object::Task).or_else(ended)
            }
            Kind::Offer => self.offers.get(id).cloned().map(Object::Offer),
            Kind::Event => self.events.get(id).cloned().map(Object::Event),
        }
    }

    /// Every object, kind by kind, as if it had just been added.
    pub fn as_changes(&self) -> Vec<Change> {
        fn all<'a, T: 'a>(
            map: &'a OrdMap<Id, Arc<T>>,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Id, Object)> + 'a {
            map.iter().map(move |(id, object)| (id.clone(), wrap(object.clone())))
        }
        fn named<'a, T: 'a>(
            map: &'a OrdMap<String, Arc<T>>,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Id, Object)> + 'a {
            map.iter()
                .map(move |(name, object)| (Id::new("", name.as_str()), wrap(object.clone())))
        }
        let objects = named(&self.namespaces, Object::Namespace)
            .chain(all(&self.leases, Object::Lease))
            .chain(named(&self.agents, Object::Agent))
            .chain(all(&self.frameworks, Object::Framework))
            .chain(named(&self.quotas, Object::Quota))
            .chain(all(&self.tasks, Object::Task))
            .chain(all(&self.ended, Object::EndedTask))
            .chain(all(&self.offers, Object::Offer))
            .chain(all(&self.events, Object::Event));
        let added = |(id, object): (Id, Object)| Change {
            kind: object.kind(),
            id,
            old: None,
            new: Some(object),
        };
        objects.map(added).collect()
    }

    /// What must have happened for `self` to become `newer`, however the two came about.
    pub fn difference(&self, newer: &View) -> Vec<Change> {
        let gone = self.as_changes().into_iter().filter_map(|change| {
            let gone = newer.get(change.kind, &change.id).is_none();
            gone.then_some(Change {
                old: change.new,
                new: None,
                ..change
            })
        });
        let there = newer.as_changes().into_iter().filter_map(|change| {
            let old = self.get(change.kind, &change.id);
            let same = old.as_ref().map(Object::version) == change.new.as_ref().map(Object::version);
            (!same).then_some(Change { old, ..change })
        });
        gone.chain(there).collect()
    }

    /// Applies one change of the watch. `None`: it is of a kind that nobody asked for, or cannot be read.
    pub fn apply(&mut self, change: WatchChange) -> Option<Change> {
        let kind = Kind::of_resource(&change.resource)?;
        let text = |pointer: &str| {
            change
                .object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let id = Id::new(text("/metadata/namespace"), text("/metadata/name"));
        let key = (kind, id.clone());
        if change.kind == ChangeKind::Deleted {
            self.problems.remove(&key);
            let old = self.set(kind, &id, None)?;
            return Some(Change {
                kind,
                id,
                old: Some(old),
                new: None,
            });
        }
        let agent = ["/spec/agent", "/status/agent"]
            .map(text)
            .into_iter()
            .find(|agent| !agent.is_empty());
        let agent = agent.map(str::to_owned);
        match Object::read(kind, change.object) {
            Ok(object) => {
                self.problems.remove(&key);
                let old = self.set(kind, &id, Some(object.clone()));
                Some(Change {
                    kind,
                    id,
                    old,
                    new: Some(object),
                })
            }
            Err(error) => {
                let (_, name) = kind.names();
                let message = format!("{name} {id} cannot be read: {error}");
                self.problems.insert(key, Problem { message, agent });
                None
            }
        }
    }

    /// Puts an object in its place and gives back what was there.
    fn set(&mut self, kind: Kind, id: &Id, object: Option<Object>) -> Option<Object> {
        let old = self.get(kind, id);
        self.unindex(id, old.as_ref());
        self.index(id, object.as_ref());
        match object {
            Some(Object::Namespace(new)) => drop(self.namespaces.insert(id.name.to_string(), new)),
            Some(Object::Lease(new)) => drop(self.leases.insert(id.clone(), new)),
            Some(Object::Agent(new)) => drop(self.agents.insert(id.name.to_string(), new)),
            Some(Object::Framework(new)) => drop(self.frameworks.insert(id.clone(), new)),
            Some(Object::Quota(new)) => drop(self.quotas.insert(id.name.to_string(), new)),
            Some(Object::Task(new)) => {
                self.ended.remove(id);
                self.tasks.insert(id.clone(), new);
            }
            Some(Object::EndedTask(new)) => {
                self.tasks.remove(id);
                self.ended.insert(id.clone(), new);
            }
            Some(Object::Offer(new)) => drop(self.offers.insert(id.clone(), new)),
            Some(Object::Event(new)) => drop(self.events.insert(id.clone(), new)),
            None => self.forget(kind, id),
        }
        old
    }

    fn forget(&mut self, kind: Kind, id: &Id) {
        match kind {
            Kind::Namespace => drop(self.namespaces.remove(&*id.name)),
            Kind::Lease => drop(self.leases.remove(id)),
            Kind::Agent => drop(self.agents.remove(&*id.name)),
            Kind::Framework => drop(self.frameworks.remove(id)),
            Kind::Quota => drop(self.quotas.remove(&*id.name)),
            Kind::Task => {
                self.tasks.remove(id);
                self.ended.remove(id);
            }
            Kind::Offer => drop(self.offers.remove(id)),
            Kind::Event => drop(self.events.remove(id)),
        }
    }

    fn index(&mut self, id: &Id, object: Option<&Object>) {
        match object {
            Some(Object::Task(task)) => {
                if task.phase() == Phase::Pending {
                    add(&mut self.pending, framework_of(task), id);
                }
                if let Some(agent) = task.agent().filter(|_| task.phase().holds_resources()) {
                    add(&mut self.live, agent.to_owned(), id);
                }
            }
            Some(Object::Offer(offer)) => add(&mut self.offered, offer.spec.agent.clone(), id),
            Some(Object::Event(mark)) => drop(self.by_age.insert((mark.created, id.clone()))),
            _ => {}
        }
    }

    fn unindex(&mut self, id: &Id, object: Option<&Object>) {
        match object {
            Some(Object::Task(task)) => {
                remove(&mut self.pending, &framework_of(task), id);
                if let Some(agent) = task.agent() {
                    remove(&mut self.live, &agent.to_owned(), id);
                }
            }
            Some(Object::Offer(offer)) => remove(&mut self.offered, &offer.spec.agent, id),
            Some(Object::Event(mark)) => drop(self.by_age.remove(&(mark.created, id.clone()))),
            _ => {}
        }
    }
}

/// The framework that a task belongs to.
pub fn framework_of(task: &Task) -> Id {
    Id::new(task.namespace(), task.spec.framework.as_str())
}
