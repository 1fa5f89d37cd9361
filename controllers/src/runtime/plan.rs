//! What planners say: plans, made of writes. All of it is plain data.

use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;
use muster_api::ObjectMeta;
use muster_api::wire::{AcceptRequest, AgentOffers, DeclineRequest, PlanReport};
use serde_json::{Value, json};

use super::object::{Change, Id, Kind, Version};
use super::resource::Resource;
use super::view::View;

/// A pure function from a view to writes, for one key at a time.
pub trait Planner: Send + Sync + 'static {
    /// What it is called in logs.
    const NAME: &'static str;

    /// What it looks at one at a time; `()` for the whole cluster.
    type Key: Ord + Clone + std::fmt::Debug + Send + Sync + 'static;

    /// How long a woken key waits for more changes, so that a burst is planned once.
    const COALESCE: Duration = Duration::ZERO;

    /// Which keys a change wakes. Called for every change, so it must be quick.
    fn keys(&self, change: &Change, view: &View) -> Vec<Self::Key>;

    /// What to do about a key. Total: a malformed object becomes a line of the report, never an error.
    fn plan(&self, key: &Self::Key, view: &View, context: &Context) -> Plan;
}

/// What a planner knows besides the view.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Context {
    /// The wall clock. May jump: nothing that could make two of one task may depend on it.
    pub now: Timestamp,
    /// Never jumps within a term: the wall clock when the term began, and the time since.
    pub steady: Timestamp,
    /// When the term of this leader began, by the steady clock.
    pub term: Timestamp,
    /// How often the last plans for this key were refused in a row.
    pub failures: u32,
}

/// Times of objects are whole seconds, rounded down.
const GRAIN: SignedDuration = SignedDuration::from_secs(1);

impl Context {
    /// The first plan for a key, at that time, of a leader that has always led.
    pub fn at(now: Timestamp) -> Context {
        Context {
            now,
            steady: now,
            term: Timestamp::MIN,
            failures: 0,
        }
    }

    /// How long ago that was, at least, whatever clocks have done since: a time from before the term counts from the term's beginning,
    /// because it is another leader's clock that it was read from.
    pub fn elapsed(&self, since: Timestamp) -> SignedDuration {
        self.steady.duration_since(self.seen(since)) - GRAIN
    }

    /// A time from before the term, or that has not come yet, was read from another clock: all that is known of it is that it was before
    /// the term.
    fn seen(&self, since: Timestamp) -> Timestamp {
        if since > self.steady {
            self.term
        } else {
            since.max(self.term)
        }
    }

    /// By the steady clock, when so much will have [elapsed](Context::elapsed) since then.
    pub fn due(&self, since: Timestamp, wait: SignedDuration) -> Timestamp {
        self.seen(since)
            .checked_add(wait.saturating_add(GRAIN))
            .unwrap_or(Timestamp::MAX)
    }

    /// The wall clock's time for a time of the steady one, for [`Plan::wake`].
    pub fn wall(&self, steady: Timestamp) -> Timestamp {
        let wait = steady.duration_since(self.steady);
        self.now.checked_add(wait).unwrap_or(Timestamp::MAX)
    }
}

/// What to do.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Plan {
    /// Independent writes: what must happen together is one write.
    pub writes: Vec<Write>,
    /// When to look at the key again, whatever happens.
    pub wake: Option<Timestamp>,
    /// What is strange about the view, for the log.
    pub report: Vec<String>,
}

impl Plan {
    /// Wakes the key at that time or earlier.
    pub fn wake_by(&mut self, at: Timestamp) {
        self.wake = Some(self.wake.map_or(at, |wake| wake.min(at)));
    }

    /// Adds a write.
    pub fn write(&mut self, write: impl Into<Write>) {
        self.writes.push(write.into());
    }
}

/// One transaction, and what is told when it happened.
#[derive(Clone, Debug, PartialEq)]
pub struct Write {
    /// The transaction.
    pub action: Action,
    /// Events to record when it succeeded.
    pub then: Vec<Note>,
}

impl Write {
    /// The same, telling of it.
    pub fn telling(mut self, note: Note) -> Write {
        self.then.push(note);
        self
    }
}

impl From<Action> for Write {
    fn from(action: Action) -> Write {
        Write {
            action,
            then: Vec::new(),
        }
    }
}

/// One transaction.
#[derive(Clone, Debug, PartialEq)]
pub enum Action {
    /// Creates an object.
    Create {
        /// The kind.
        kind: Kind,
        /// Its namespace, or empty.
        namespace: String,
        /// The object.
        object: Value,
    },
    /// Merges into an object.
    Patch {
        /// The kind.
        kind: Resource,
        /// Which.
        id: Id,
        /// Whether the status is meant.
        status: bool,
        /// What to merge.
        body: Value,
    },
    /// Deletes an object, if it is still that one.
    Delete {
        /// The kind.
        kind: Resource,
        /// Which.
        id: Id,
        /// Its uid.
        uid: String,
        /// Its version, if it must not have changed either.
        version: Option<Box<str>>,
        /// What becomes of what it owns; `None`: what its finalizers say.
        policy: Option<Propagation>,
    },
    /// Does that, if none of these owners can be found, by asking for each of them.
    IfAbsent {
        /// The owners, as an object in that namespace means them.
        owners: Vec<OwnerReference>,
        /// The namespace; empty for none.
        namespace: String,
        /// What is done.
        action: Box<Action>,
    },
    /// Says that a namespace's content is gone.
    Finalize {
        /// The namespace.
        name: String,
        /// Which, and which state of it.
        version: Version,
        /// What keeps it besides.
        left: Vec<String>,
    },
    /// Changes the offers of an agent.
    AgentOffers {
        /// The agent.
        agent: String,
        /// How.
        request: AgentOffers,
    },
    /// Accepts an offer.
    Accept {
        /// Which.
        offer: Id,
        /// With what.
        request: AcceptRequest,
    },
    /// Declines an offer.
    Decline {
        /// Which.
        offer: Id,
        /// For how long.
        request: DeclineRequest,
    },
    /// Publishes the reasons. Not waited for: only the latest counts.
    PutPlan(Box<PlanReport>),
    /// Records an event.
    Event(Note),
}

/// What becomes of the objects that a deleted object owns.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Propagation {
    /// They go before it.
    Foreground,
}

impl Action {
    /// Merges into the status of an object, if it is still what was seen.
    pub fn status(kind: Kind, meta: &ObjectMeta, status: Value) -> Action {
        Action::Patch {
            kind: kind.into(),
            id: Id::of(meta),
            status: true,
            body: json!({ "metadata": precondition(meta), "status": status }),
        }
    }

    /// Merges into an object, if it is still in that state.
    pub fn patch(kind: impl Into<Resource>, id: &Id, version: &Version, mut body: Value) -> Action {
        body["metadata"]["resourceVersion"] = json!(version.resource);
        Action::Patch {
            kind: kind.into(),
            id: id.clone(),
            status: false,
            body,
        }
    }

    /// Deletes an object, if it is still that one.
    pub fn delete(kind: impl Into<Resource>, id: &Id, uid: &str) -> Action {
        Action::Delete {
            kind: kind.into(),
            id: id.clone(),
            uid: uid.to_owned(),
            version: None,
            policy: None,
        }
    }

    /// The same, if none of these owners of an object of that namespace can be found.
    pub fn if_absent(self, owners: Vec<OwnerReference>, namespace: &str) -> Action {
        if owners.is_empty() {
            return self;
        }
        Action::IfAbsent {
            owners,
            namespace: namespace.to_owned(),
            action: Box::new(self),
        }
    }
}

fn precondition(meta: &ObjectMeta) -> Value {
    json!({ "resourceVersion": meta.resource_version })
}

/// How an event is meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Severity {
    /// As it should be.
    Normal,
    /// Somebody may want to act.
    Warning,
}

/// Something worth telling about an object.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Note {
    /// The kind of the object.
    pub kind: Kind,
    /// Which object.
    pub id: Id,
    /// Its uid.
    pub uid: String,
    /// How it is meant.
    pub severity: Severity,
    /// In one word.
    pub reason: &'static str,
    /// In a sentence.
    pub message: String,
}

impl Note {
    /// About an object.
    pub fn about(kind: Kind, meta: &ObjectMeta, severity: Severity, reason: &'static str, message: String) -> Note {
        Note {
            kind,
            id: Id::of(meta),
            uid: meta.uid.clone().unwrap_or_default(),
            severity,
            reason,
            message,
        }
    }
}
