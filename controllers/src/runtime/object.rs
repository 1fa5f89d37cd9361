//! The kinds that controllers watch, their objects, and what can change about them.
//!
//! A [`Kind`] is one that planners know and see whole. Of every other kind that the server has, now or later, they see an
//! [`Outline`]: who an object is, who owns it, what keeps it. A [`Resource`] is either.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use serde::Deserialize;
use serde_json::Value;

use super::resource::{Key, Resource, path};

/// A watched kind.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Kind {
    /// Namespaces.
    Namespace,
    /// Leases: presence and leadership.
    Lease,
    /// Agents.
    Agent,
    /// Frameworks.
    Framework,
    /// Quotas.
    Quota,
    /// Tasks.
    Task,
    /// Offers.
    Offer,
    /// Events; only how old they are.
    Event,
}

/// Every watched kind.
pub const KINDS: [Kind; 8] = [
    Kind::Namespace,
    Kind::Lease,
    Kind::Agent,
    Kind::Framework,
    Kind::Quota,
    Kind::Task,
    Kind::Offer,
    Kind::Event,
];

impl Kind {
    /// `plural.group`, as in the ordered watch.
    pub const fn resource(self) -> &'static str {
        match self {
            Kind::Namespace => "namespaces",
            Kind::Lease => "leases.coordination.k8s.io",
            Kind::Agent => "agents.muster.dev",
            Kind::Framework => "frameworks.muster.dev",
            Kind::Quota => "quotas.muster.dev",
            Kind::Task => "tasks.muster.dev",
            Kind::Offer => "offers.muster.dev",
            Kind::Event => "events",
        }
    }

    /// The kind of that resource.
    pub fn of_resource(resource: &str) -> Option<Kind> {
        KINDS.into_iter().find(|kind| kind.resource() == resource)
    }

    /// `apiVersion` and `kind`.
    pub const fn names(self) -> (&'static str, &'static str) {
        match self {
            Kind::Namespace => ("v1", "Namespace"),
            Kind::Lease => ("coordination.k8s.io/v1", "Lease"),
            Kind::Agent => ("muster.dev/v1", "Agent"),
            Kind::Framework => ("muster.dev/v1", "Framework"),
            Kind::Quota => ("muster.dev/v1", "Quota"),
            Kind::Task => ("muster.dev/v1", "Task"),
            Kind::Offer => ("muster.dev/v1", "Offer"),
            Kind::Event => ("v1", "Event"),
        }
    }

    /// The path of the kind in a namespace; the namespace is empty for kinds without.
    pub fn path(self, namespace: &str) -> String {
        path(self.names().0, self.resource(), namespace)
    }
}

/// The namespace (empty for kinds without) and name of an object.
#[derive(Clone, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Id {
    /// The namespace.
    pub namespace: Arc<str>,
    /// The name.
    pub name: Arc<str>,
}

impl Id {
    /// From both parts.
    pub fn new(namespace: impl Into<Arc<str>>, name: impl Into<Arc<str>>) -> Id {
        Id {
            namespace: namespace.into(),
            name: name.into(),
        }
    }

    /// Of an object.
    pub fn of(meta: &ObjectMeta) -> Id {
        Id::new(
            meta.namespace.as_deref().unwrap_or_default(),
            meta.name.as_deref().unwrap_or_default(),
        )
    }
}

impl fmt::Display for Id {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.namespace.is_empty() {
            f.write_str(&self.name)
        } else {
            write!(f, "{}/{}", self.namespace, self.name)
        }
    }
}

/// Which object of a name it is, and which state of it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Version {
    /// The uid of the object.
    pub uid: Box<str>,
    /// The revision of its last write, as the API server spells it.
    pub resource: Box<str>,
}

impl Version {
    /// Of an object.
    pub fn of(meta: &ObjectMeta) -> Version {
        Version {
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            resource: meta.resource_version.as_deref().unwrap_or_default().into(),
        }
    }
}

/// What is remembered of a task that has ended: enough to remove it. There are far more of them than of others, nothing of them is ever
/// planned but their removal, and a whole one takes twenty times the memory.
#[derive(Clone, Debug, PartialEq)]
pub struct EndedTask {
    /// Which it is.
    pub version: Version,
    /// How it ended.
    pub phase: Phase,
    /// The agent that it was bound to.
    pub agent: Option<Box<str>>,
    /// When it shall be deleted, if ever.
    pub expires: Option<Timestamp>,
    /// Whether its deletion has begun.
    pub deleting: bool,
    /// What its deletion waits for.
    pub finalizers: Box<[String]>,
    /// The uid of the task that it was made to replace.
    pub replaces: Option<Box<str>>,
    /// Who owns it.
    pub owners: Box<[OwnerReference]>,
}

impl EndedTask {
    /// `None`: it has not ended.
    fn of(task: &Task) -> Option<EndedTask> {
        let status = task.status.as_ref().filter(|status| status.phase.is_terminal())?;
        let ttl = task.spec.ttl_after_finished;
        let finished = status.finished_at.as_ref().map(|time| time.0);
        let expires = ttl
            .zip(finished)
            .map(|(ttl, finished)| finished.checked_add(ttl.signed()).unwrap_or(Timestamp::MAX));
        Some(EndedTask {
            version: Version::of(&task.metadata),
            phase: status.phase,
            agent: status.agent.as_deref().map(Box::from),
            expires,
            deleting: task.metadata.deletion_timestamp.is_some(),
            finalizers: task.metadata.finalizers.iter().flatten().cloned().collect(),
            replaces: replaces(&task.metadata).map(Box::from),
            owners: task.metadata.owner_references.iter().flatten().cloned().collect(),
        })
    }
}

/// What is known of an object of a kind that no planner knows. Nothing of what it holds.
#[derive(Clone, Debug, PartialEq)]
pub struct Outline {
    /// Which it is.
    pub version: Version,
    /// Who owns it.
    pub owners: Box<[OwnerReference]>,
    /// What its deletion waits for.
    pub finalizers: Box<[String]>,
    /// Whether its deletion has begun.
    pub deleting: bool,
}

impl Outline {
    fn of(meta: ObjectMeta) -> Outline {
        Outline {
            version: Version::of(&meta),
            deleting: meta.deletion_timestamp.is_some(),
            owners: meta.owner_references.unwrap_or_default().into(),
            finalizers: meta.finalizers.unwrap_or_default().into(),
        }
    }
}

/// The uid of the task that this one was made to replace.
pub fn replaces(meta: &ObjectMeta) -> Option<&str> {
    let uid = meta.annotations.as_ref()?.get(names::ANNOTATION_REPLACES)?;
    Some(uid)
}

/// What is remembered of an event: enough to delete it when it is old.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct EventMark {
    /// Which it is.
    pub version: Version,
    /// When it was created.
    pub created: Timestamp,
}

/// When an object was created; the epoch when that is not known.
pub fn created(meta: &ObjectMeta) -> Timestamp {
    meta.creation_timestamp
        .as_ref()
        .map_or(Timestamp::UNIX_EPOCH, |time| time.0)
}

/// An object of a watched kind.
#[derive(Clone, Debug)]
pub enum Object {
    /// A namespace.
    Namespace(Arc<Namespace>),
    /// A lease.
    Lease(Arc<Lease>),
    /// An agent.
    Agent(Arc<Agent>),
    /// A framework.
    Framework(Arc<Framework>),
    /// A quota.
    Quota(Arc<Quota>),
    /// A task that has not ended.
    Task(Arc<Task>),
    /// A task that has.
    EndedTask(Arc<EndedTask>),
    /// An offer.
    Offer(Arc<Offer>),
    /// An event.
    Event(Arc<EventMark>),
    /// Of any other kind.
    Other(Arc<Outline>),
}

#[derive(Deserialize)]
struct OnlyMetadata {
    metadata: ObjectMeta,
}

impl Object {
    /// Reads an object.
    pub fn read(resource: &Resource, value: Value) -> Result<Object, serde_json::Error> {
        match resource {
            Resource::Known(kind) => Object::read_known(*kind, value),
            Resource::Other(_) => {
                let object: OnlyMetadata = serde_json::from_value(value)?;
                Ok(Object::Other(Arc::new(Outline::of(object.metadata))))
            }
        }
    }

    fn read_known(kind: Kind, value: Value) -> Result<Object, serde_json::Error> {
        fn arc<T: for<'de> Deserialize<'de>>(value: Value) -> Result<Arc<T>, serde_json::Error> {
            serde_json::from_value(value).map(Arc::new)
        }
        Ok(match kind {
            Kind::Namespace => Object::Namespace(arc(value)?),
            Kind::Lease => Object::Lease(arc(value)?),
            Kind::Agent => Object::Agent(arc(value)?),
            Kind::Framework => Object::Framework(arc(value)?),
            Kind::Quota => Object::Quota(arc(value)?),
            Kind::Task => {
                let task: Arc<Task> = arc(value)?;
                match EndedTask::of(&task) {
                    Some(ended) => Object::EndedTask(Arc::new(ended)),
                    None => Object::Task(task),
                }
            }
            Kind::Offer => Object::Offer(arc(value)?),
            Kind::Event => {
                let event: OnlyMetadata = serde_json::from_value(value)?;
                Object::Event(Arc::new(EventMark {
                    version: Version::of(&event.metadata),
                    created: created(&event.metadata),
                }))
            }
        })
    }

    /// Its metadata, where they are kept whole.
    fn metadata(&self) -> Option<&ObjectMeta> {
        Some(match self {
            Object::Namespace(object) => &object.metadata,
            Object::Lease(object) => &object.metadata,
            Object::Agent(object) => &object.metadata,
            Object::Framework(object) => &object.metadata,
            Object::Quota(object) => &object.metadata,
            Object::Task(object) => &object.metadata,
            Object::Offer(object) => &object.metadata,
            Object::EndedTask(_) | Object::Event(_) | Object::Other(_) => return None,
        })
    }

    /// Which it is.
    pub fn version(&self) -> Version {
        match self {
            Object::EndedTask(object) => object.version.clone(),
            Object::Event(object) => object.version.clone(),
            Object::Other(object) => object.version.clone(),
            _ => self.metadata().map(Version::of).unwrap_or_default(),
        }
    }

    /// Its uid.
    pub fn uid(&self) -> &str {
        match self {
            Object::EndedTask(object) => &object.version.uid,
            Object::Event(object) => &object.version.uid,
            Object::Other(object) => &object.version.uid,
            _ => {
                let uid = self.metadata().and_then(|meta| meta.uid.as_deref());
                uid.unwrap_or_default()
            }
        }
    }

    /// Who owns it. Of events that is not kept.
    pub fn owners(&self) -> &[OwnerReference] {
        match self {
            Object::EndedTask(object) => &object.owners,
            Object::Other(object) => &object.owners,
            _ => {
                let owners = self.metadata().and_then(|meta| meta.owner_references.as_deref());
                owners.unwrap_or_default()
            }
        }
    }

    /// What its deletion waits for. Of events that is not kept.
    pub fn finalizers(&self) -> &[String] {
        match self {
            Object::EndedTask(object) => &object.finalizers,
            Object::Other(object) => &object.finalizers,
            _ => {
                let finalizers = self.metadata().and_then(|meta| meta.finalizers.as_deref());
                finalizers.unwrap_or_default()
            }
        }
    }

    /// Whether its deletion has begun. Of events that is not kept.
    pub fn is_deleting(&self) -> bool {
        match self {
            Object::EndedTask(object) => object.deleting,
            Object::Other(object) => object.deleting,
            _ => self.metadata().is_some_and(|meta| meta.deletion_timestamp.is_some()),
        }
    }

    /// The agent, if it is one.
    pub fn agent(&self) -> Option<&Arc<Agent>> {
        match self {
            Object::Agent(agent) => Some(agent),
            _ => None,
        }
    }

    /// The task, if it is one that has not ended.
    pub fn task(&self) -> Option<&Arc<Task>> {
        match self {
            Object::Task(task) => Some(task),
            _ => None,
        }
    }
}

/// What happened to an object between two views.
#[derive(Clone, Debug)]
pub struct Change {
    /// The kind.
    pub resource: Resource,
    /// Which object.
    pub id: Id,
    /// As it was; `None`: it was not there.
    pub old: Option<Object>,
    /// As it is; `None`: it is not there any more.
    pub new: Option<Object>,
}

impl Change {
    /// The kind, if planners know it.
    pub fn kind(&self) -> Option<Kind> {
        self.resource.known()
    }

    /// Which object.
    pub fn key(&self) -> Key {
        Key::new(self.resource.clone(), &self.id)
    }

    /// The task before and after, as far as it had not ended.
    pub fn tasks(&self) -> impl Iterator<Item = &Arc<Task>> {
        self.old.iter().chain(&self.new).filter_map(Object::task)
    }

    /// Whether the object is gone.
    pub fn is_deletion(&self) -> bool {
        self.new.is_none()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_is_found_by_its_resource_and_has_a_path() {
        for kind in KINDS {
            assert_eq!(Kind::of_resource(kind.resource()), Some(kind));
        }
        assert_eq!(Kind::of_resource("pods"), None);
        assert_eq!(Kind::Task.path("a"), "/apis/muster.dev/v1/namespaces/a/tasks");
        assert_eq!(Kind::Agent.path(""), "/apis/muster.dev/v1/agents");
        assert_eq!(Kind::Event.path("a"), "/api/v1/namespaces/a/events");
    }
}
