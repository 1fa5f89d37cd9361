//! The kinds that controllers watch, their objects, and what can change about them.

use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use serde::Deserialize;
use serde_json::Value;

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
        let (api_version, _) = self.names();
        let root = if api_version == "v1" {
            "/api/v1".to_owned()
        } else {
            format!("/apis/{api_version}")
        };
        let plural = self.resource().split('.').next().unwrap_or_default();
        if namespace.is_empty() {
            format!("{root}/{plural}")
        } else {
            format!("{root}/namespaces/{namespace}/{plural}")
        }
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
#[derive(Clone, Debug, PartialEq, Eq)]
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
        })
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
}

impl Object {
    /// Reads an object of a kind.
    pub fn read(kind: Kind, value: Value) -> Result<Object, serde_json::Error> {
        #[derive(Deserialize)]
        struct Event {
            metadata: ObjectMeta,
        }
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
                let event: Event = serde_json::from_value(value)?;
                Object::Event(Arc::new(EventMark {
                    version: Version::of(&event.metadata),
                    created: created(&event.metadata),
                }))
            }
        })
    }

    /// Its kind.
    pub const fn kind(&self) -> Kind {
        match self {
            Object::Namespace(_) => Kind::Namespace,
            Object::Lease(_) => Kind::Lease,
            Object::Agent(_) => Kind::Agent,
            Object::Framework(_) => Kind::Framework,
            Object::Quota(_) => Kind::Quota,
            Object::Task(_) | Object::EndedTask(_) => Kind::Task,
            Object::Offer(_) => Kind::Offer,
            Object::Event(_) => Kind::Event,
        }
    }

    /// Which it is.
    pub fn version(&self) -> Version {
        match self {
            Object::Namespace(object) => Version::of(&object.metadata),
            Object::Lease(object) => Version::of(&object.metadata),
            Object::Agent(object) => Version::of(&object.metadata),
            Object::Framework(object) => Version::of(&object.metadata),
            Object::Quota(object) => Version::of(&object.metadata),
            Object::Task(object) => Version::of(&object.metadata),
            Object::EndedTask(object) => object.version.clone(),
            Object::Offer(object) => Version::of(&object.metadata),
            Object::Event(object) => object.version.clone(),
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
    pub kind: Kind,
    /// Which object.
    pub id: Id,
    /// As it was; `None`: it was not there.
    pub old: Option<Object>,
    /// As it is; `None`: it is not there any more.
    pub new: Option<Object>,
}

impl Change {
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
        assert_eq!(
            Kind::Lease.path("a"),
            "/apis/coordination.k8s.io/v1/namespaces/a/leases"
        );
    }
}
