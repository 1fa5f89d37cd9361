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
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use muster_api::wire::{ChangeKind, WatchChange};
use serde_json::Value;

use super::object::{Change, EndedTask, EventMark, Id, KINDS, Kind, Object, Outline};
use super::resource::{Key, OtherKind, Resource};

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
    /// Everything else.
    pub others: OrdMap<Key, Arc<Outline>>,
    /// What cannot be read.
    pub problems: OrdMap<Key, Problem>,
    /// The other kinds, by `plural.group`.
    kinds: OrdMap<Box<str>, Arc<OtherKind>>,
    /// By the uid of what owns them.
    owned: OrdMap<Box<str>, OrdSet<Key>>,
    pending: OrdMap<Id, OrdSet<Id>>,
    live: OrdMap<String, OrdSet<Id>>,
    offered: OrdMap<String, OrdSet<Id>>,
    by_age: OrdSet<(Timestamp, Id)>,
}

fn add<K: Ord + Clone, T: Ord + Clone>(index: &mut OrdMap<K, OrdSet<T>>, key: K, id: &T) {
    index.entry(key).or_default().insert(id.clone());
}

fn remove<K: Ord + Clone, T: Ord + Clone>(index: &mut OrdMap<K, OrdSet<T>>, key: &K, id: &T) {
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

    /// The kind of objects of that `apiVersion` (of which the group counts) and `kind`, if any was ever seen.
    pub fn resource(&self, api_version: &str, kind: &str) -> Option<Resource> {
        let group = |api_version: &str| api_version.rsplit_once('/').map(|(group, _)| group.to_owned());
        let wanted = group(api_version);
        let fits = |names: (&str, &str)| names.1 == kind && group(names.0) == wanted;
        let known = KINDS.into_iter().find(|known| fits(known.names())).map(Resource::Known);
        let other = || {
            let mut others = self.kinds.values();
            others.find(|other| fits((&other.api_version, &other.kind))).cloned()
        };
        known.or_else(|| other().map(Resource::Other))
    }

    /// What an object in that namespace (empty: in none) means by an owner, if it is there: of that name in that namespace or in none, and
    /// of that uid.
    pub fn owner(&self, namespace: &str, owner: &OwnerReference) -> Option<(Key, Object)> {
        let resource = self.resource(&owner.api_version, &owner.kind)?;
        let candidates = [namespace, ""].map(|namespace| Id::new(namespace, owner.name.as_str()));
        candidates.into_iter().find_map(|id| {
            let key = Key::new(resource.clone(), &id);
            let object = self.object(&key).filter(|object| object.uid() == owner.uid)?;
            Some((key, object))
        })
    }

    /// What says that an object of that uid owns it, wherever it is.
    pub fn owned(&self, uid: &str) -> impl Iterator<Item = &Key> {
        self.owned.get(uid).into_iter().flatten()
    }

    /// Everything in a namespace.
    pub fn content(&self, namespace: &str) -> Vec<(Key, Object)> {
        fn of<'a, T: 'a>(
            kind: Kind,
            map: &'a OrdMap<Id, Arc<T>>,
            namespace: &'a str,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Key, Object)> + 'a {
            let there = map.range(Id::new(namespace, "")..);
            let there = there.take_while(move |(id, _)| &*id.namespace == namespace);
            there.map(move |(id, object)| (Key::new(kind, id), wrap(object.clone())))
        }
        let others = self.kinds.values().flat_map(|kind| {
            let resource = Resource::Other(kind.clone());
            let first = Key::new(resource.clone(), &Id::new(namespace, ""));
            let there = self.others.range(first..);
            let there = there.take_while(move |(key, _)| key.resource == resource && &*key.id.namespace == namespace);
            there.map(|(key, outline)| (key.clone(), Object::Other(outline.clone())))
        });
        of(Kind::Lease, &self.leases, namespace, Object::Lease)
            .chain(of(Kind::Framework, &self.frameworks, namespace, Object::Framework))
            .chain(of(Kind::Task, &self.tasks, namespace, Object::Task))
            .chain(of(Kind::Task, &self.ended, namespace, Object::EndedTask))
            .chain(of(Kind::Offer, &self.offers, namespace, Object::Offer))
            .chain(of(Kind::Event, &self.events, namespace, Object::Event))
            .chain(others)
            .collect()
    }

    /// The object of that key.
    pub fn object(&self, key: &Key) -> Option<Object> {
        match &key.resource {
            Resource::Known(kind) => self.get(*kind, &key.id),
            Resource::Other(_) => self.others.get(key).cloned().map(Object::Other),
        }
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
            kind: Kind,
            map: &'a OrdMap<Id, Arc<T>>,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Key, Object)> + 'a {
            map.iter()
                .map(move |(id, object)| (Key::new(kind, id), wrap(object.clone())))
        }
        fn named<'a, T: 'a>(
            kind: Kind,
            map: &'a OrdMap<String, Arc<T>>,
            wrap: fn(Arc<T>) -> Object,
        ) -> impl Iterator<Item = (Key, Object)> + 'a {
            let key = move |name: &String| Key::new(kind, &Id::new("", name.as_str()));
            map.iter().map(move |(name, object)| (key(name), wrap(object.clone())))
        }
        let others = self.others.iter();
        let others = others.map(|(key, outline)| (key.clone(), Object::Other(outline.clone())));
        let objects = named(Kind::Namespace, &self.namespaces, Object::Namespace)
            .chain(all(Kind::Lease, &self.leases, Object::Lease))
            .chain(named(Kind::Agent, &self.agents, Object::Agent))
            .chain(all(Kind::Framework, &self.frameworks, Object::Framework))
            .chain(named(Kind::Quota, &self.quotas, Object::Quota))
            .chain(all(Kind::Task, &self.tasks, Object::Task))
            .chain(all(Kind::Task, &self.ended, Object::EndedTask))
            .chain(all(Kind::Offer, &self.offers, Object::Offer))
            .chain(all(Kind::Event, &self.events, Object::Event))
            .chain(others);
        let added = |(key, object): (Key, Object)| Change {
            resource: key.resource,
            id: key.id,
            old: None,
            new: Some(object),
        };
        objects.map(added).collect()
    }

    /// What must have happened for `self` to become `newer`, however the two came about.
    pub fn difference(&self, newer: &View) -> Vec<Change> {
        let gone = self.as_changes().into_iter().filter_map(|change| {
            let gone = newer.object(&change.key()).is_none();
            gone.then_some(Change {
                old: change.new,
                new: None,
                ..change
            })
        });
        let there = newer.as_changes().into_iter().filter_map(|change| {
            let old = self.object(&change.key());
            let same = old.as_ref().map(Object::version) == change.new.as_ref().map(Object::version);
            (!same).then_some(Change { old, ..change })
        });
        gone.chain(there).collect()
    }

    /// The kind that a change of the watch is about.
    fn resource_of(&mut self, change: &WatchChange) -> Resource {
        if let Some(kind) = Kind::of_resource(&change.resource) {
            return Resource::Known(kind);
        }
        let text = |field: &str| -> Box<str> { change.object[field].as_str().unwrap_or_default().into() };
        let other = OtherKind {
            resource: change.resource.as_str().into(),
            api_version: text("apiVersion"),
            kind: text("kind"),
        };
        match self.kinds.get(&*change.resource) {
            Some(known) if known.api_version == other.api_version && known.kind == other.kind => {
                Resource::Other(known.clone())
            }
            _ => {
                let other = Arc::new(other);
                self.kinds.insert(other.resource.clone(), other.clone());
                Resource::Other(other)
            }
        }
    }

    /// Applies one change of the watch. `None`: it cannot be read.
    pub fn apply(&mut self, change: WatchChange) -> Option<Change> {
        let resource = self.resource_of(&change);
        let text = |pointer: &str| {
            change
                .object
                .pointer(pointer)
                .and_then(Value::as_str)
                .unwrap_or_default()
        };
        let id = Id::new(text("/metadata/namespace"), text("/metadata/name"));
        let key = Key::new(resource.clone(), &id);
        if change.kind == ChangeKind::Deleted {
            self.problems.remove(&key);
            let old = self.set(&key, None)?;
            return Some(Change {
                resource,
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
        match Object::read(&resource, change.object) {
            Ok(object) => {
                self.problems.remove(&key);
                let old = self.set(&key, Some(object.clone()));
                Some(Change {
                    resource,
                    id,
                    old,
                    new: Some(object),
                })
            }
            Err(error) => {
                let (_, name) = resource.names();
                let message = format!("{name} {id} cannot be read: {error}");
                self.problems.insert(key, Problem { message, agent });
                None
            }
        }
    }

    /// Puts an object in its place and gives back what was there.
    fn set(&mut self, key: &Key, object: Option<Object>) -> Option<Object> {
        let id = &key.id;
        let old = self.object(key);
        self.unindex(id, old.as_ref());
        self.index(id, object.as_ref());
        for owner in old.iter().flat_map(Object::owners) {
            remove(&mut self.owned, &owner.uid.as_str().into(), key);
        }
        for owner in object.iter().flat_map(Object::owners) {
            add(&mut self.owned, owner.uid.as_str().into(), key);
        }
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
            Some(Object::Other(new)) => drop(self.others.insert(key.clone(), new)),
            None => self.forget(key),
        }
        old
    }

    fn forget(&mut self, key: &Key) {
        let id = &key.id;
        let Resource::Known(kind) = key.resource else {
            self.others.remove(key);
            return;
        };
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
