//! What must hold at every revision of the store, whatever happened.
//!
//! The checker replays the store's history below the API servers, each revision in the moment it comes to be, and looks at the machines
//! in the same moment: what anybody believes does not matter here. Every revision is signed by the request that wrote it
//! ([`crate::writer`]). The list of invariants is the project's, `I1` to `I25`:
//!
//! | | What | How it is checked here |
//! |---|---|---|
//! | I1 | no attempt of a task ever has two live containers | machines, at every revision: no container id starts twice, on any machine; no two containers of a task live at once; a container starts only where its task is bound, and before it has ended (`containers`); a task is Gone by proof only when nothing of it lives (`tasks`) |
//! | I2 | offered + allocated ≤ capacity, per scalar, port and GPU | every revision (`offers`); on machines, no two live containers hold the same GPU (`containers`) |
//! | I3 | an offer leaves Open once | every revision: content fixed, never open again, uid never back (`offers`) |
//! | I4 | accept is all or nothing | every revision: a task is bound in the revision that takes its offer, to that offer's agent, while the agent is there and present; whatever an agent gives or gets back touches its ledger (`tasks`, `offers`); one idempotency key launches once |
//! | I5 | an acknowledged write is in the history | every answer with 2xx: the version that it names is one that the object had (`replies`) |
//! | I6, I7 | terminal stays; phases and attempts only go forward | every revision (`tasks`) |
//! | I8 | binding is fixed | every revision (`tasks`) |
//! | I9 | every end reaches the API | in calm: no task is left between phases, none is Running without its container (`converge`) |
//! | I10, I11 | no container without task, no Running task without container | in calm (`converge`); a task's end is said, and its finalizer taken, only when nothing of it lives or is left (`tasks`) |
//! | I12 | no write under an older fence | every revision: the fence that it was signed with is the lease as of the revision before; and no leader *sends* a write later than two thirds of its time after its last renewal (`writers`, `link`) |
//! | I13 | no status by a superseded session | as I12, with the session of the task's agent (`writers`) |
//! | I14 | watches: ordered, unique, atomic, resumable | an observer's view equals the history at every revision that its watch claims (`observer`) |
//! | I15 | a list at revision X is the replay to X | the observer lists, too |
//! | I16 | quotas hold | every revision that gives something out (`offers`) |
//! | I17 | a deleted uid never reappears | every revision, all kinds |
//! | I18 | an object goes only without finalizers | every revision: a bound task goes by its agent's hand, or by the controllers' when the agent object is gone (`tasks`) |
//! | I19 | a kill ends the task in time | in calm, as a part of I24; a container is signalled only when somebody asked for it (`containers`) |
//! | I20 | nobody else's container is touched | each machine has one (`containers`) |
//! | I22 | a denied request leaves no trace | every answer with 4xx: no revision, before or after, is signed by it (`replies`) |
//! | I24 | convergence, and it lasts | in calm (`converge`) |
//! | I25 | no mass action | every revision: no task is replaced while more than a tenth of the agents, and more than one, are lost together (`tasks`) |
//!
//! Not here: I21 (secrets: there are none in the simulation; the agent's and the server's own tests), I23 (memory and file descriptors:
//! one process plays all; `e2e`). The speed of I19 is virtual, too: it says that nothing waits for the wrong thing, not how long a
//! machine takes.

mod containers;
mod offers;
mod replies;
mod tasks;
mod writers;

use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::coordination::v1::Lease;
use muster_api::resources::Amounts;
use muster_api::v1::{Agent, Offer, Quota, Task};
use muster_runtime::FakeRuntime;
use muster_store::{Change, Key, Revision};
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::writer::{NOTE, Writer};
use containers::Containers;
pub use containers::FOREIGN;
pub use replies::{Reply, revision_of};

const AGENTS: &str = "objects/muster.dev/agents/";
const OFFERS: &str = "objects/muster.dev/offers/";
const TASKS: &str = "objects/muster.dev/tasks/";
const QUOTAS: &str = "objects/muster.dev/quotas/";
const LEASES: &str = "objects/coordination.k8s.io/leases/";
const LEDGERS: &str = "ledger/";

/// A lease, as it is held.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Held {
    /// Its create revision.
    pub created: Revision,
    /// Who holds it.
    pub holder: String,
}

/// The state of the store as of one revision, and everything that was wrong on the way.
#[derive(Default)]
pub struct Checker {
    revision: Revision,
    agents: BTreeMap<String, Agent>,
    offers: BTreeMap<String, Offer>,
    tasks: BTreeMap<String, Task>,
    quotas: BTreeMap<String, Quota>,
    leases: BTreeMap<String, Held>,
    uids: BTreeMap<Key, String>,
    gone: BTreeSet<String>,
    /// For each object, the revisions that it changed at, and whether it was there afterwards.
    versions: BTreeMap<Key, Vec<(Revision, bool)>>,
    containers: Containers,
    /// Which agent, by its uid, each task was bound to.
    bound_to: BTreeMap<String, String>,
    /// What each agent had given out as of the last revision.
    held: BTreeMap<String, Amounts>,
    /// The deliveries that wrote something, and those that were denied.
    wrote: BTreeMap<u64, Revision>,
    denied: BTreeSet<u64>,
    /// Which task a launch made, by the launch's label.
    launched: BTreeMap<String, String>,
    now: jiff::Timestamp,
    latest: jiff::Timestamp,
    violations: Vec<String>,
    trace: u64,
    shown: bool,
}

/// Label of tasks that the external framework launches: which launch it was. A launch that is tried again has the same.
pub const LABEL_LAUNCH: &str = "simulation/launch";

impl Checker {
    /// For a history that was read from the API: some revisions and keys of the store are not shown there.
    pub fn of_what_is_shown() -> Checker {
        Checker {
            shown: true,
            ..Checker::default()
        }
    }

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

    /// The quotas as of now, by key.
    pub fn quotas(&self) -> &BTreeMap<String, Quota> {
        &self.quotas
    }

    /// Who holds `NAMESPACE/NAME`.
    pub fn lease(&self, path: &str) -> Option<&Held> {
        self.leases.get(path)
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

    /// Notes that something was wrong.
    pub fn violated(&mut self, what: String) {
        self.violations.push(format!("revision {}: {what}", self.revision));
    }

    /// Watches a machine of an agent from now on.
    pub fn add_machine(&mut self, agent: String, machine: String, runtime: FakeRuntime) {
        self.containers.add(agent, machine, runtime);
    }

    /// The objects of a kind as of a revision: the store's keys, and when each was written last.
    pub fn at(&self, prefix: &str, revision: Revision) -> BTreeMap<&str, Revision> {
        let start = self
            .versions
            .range::<str, _>((std::ops::Bound::Included(prefix), std::ops::Bound::Unbounded));
        let here = start.take_while(|(key, _)| key.as_str().starts_with(prefix));
        let last = here.filter_map(|(key, versions)| {
            let (at, there) = *versions.iter().rev().find(|(at, _)| *at <= revision)?;
            there.then_some((key.as_str(), at))
        });
        last.collect()
    }

    /// How often each object was written after a revision.
    pub fn written_since(&self, revision: Revision) -> impl Iterator<Item = (&Key, usize)> {
        let writes = move |versions: &[(Revision, bool)]| versions.iter().filter(|(at, _)| *at > revision).count();
        self.versions.iter().map(move |(key, versions)| (key, writes(versions)))
    }

    /// Looks at the machines.
    pub fn look(&mut self) {
        let mut containers = std::mem::take(&mut self.containers);
        for what in containers.look(&self.tasks, &self.agents) {
            self.violated(what);
        }
        self.containers = containers;
    }

    /// Tells the true time, and the latest that any clock may have shown when something was decided that happens now.
    pub fn tick(&mut self, now: jiff::Timestamp, latest: jiff::Timestamp) {
        self.now = now;
        self.latest = latest;
    }

    /// Replays one revision.
    pub fn apply(&mut self, revision: Revision, changes: &[Change]) {
        self.look();
        if revision != self.revision + 1 && !self.shown {
            self.violated(format!("revision {revision} came after it"));
        }
        self.revision = revision;
        let mut writer: Option<Writer> = None;
        for change in changes {
            let value = change.current.as_ref().map(|entry| &entry.value);
            tracing::trace!(revision, key = %change.key, value = ?value.map(|value| String::from_utf8_lossy(value)));
            self.digest(change.key.as_str().as_bytes());
            // What only servers know is drawn by the system's own random numbers, never by the seed.
            if !change.key.as_str().starts_with(muster_apiserver::keys::SEALED) {
                self.digest(value.map_or(&[], |value| value));
            }
            if change.key.as_str() == NOTE {
                writer = value.and_then(|value| serde_json::from_slice(value).ok());
            }
        }
        let changes: Vec<&Change> = changes.iter().filter(|change| change.key.as_str() != NOTE).collect();
        if let Some(writer) = &writer {
            self.check_writer(writer, &changes);
        }
        if !self.shown {
            self.check_ledgers(&changes);
        }
        let offers_before = self.offers.clone();
        for change in &changes {
            self.versions
                .entry(change.key.clone())
                .or_default()
                .push((revision, change.current.is_some()));
            self.identity_changed(change);
            let key = change.key.as_str();
            if let Some(name) = key.strip_prefix(LEASES) {
                self.lease_changed(name, change);
            } else if key.starts_with(AGENTS) {
                let agent = self.read(change);
                set(&mut self.agents, key, agent);
            } else if key.starts_with(QUOTAS) {
                let quota = self.read(change);
                set(&mut self.quotas, key, quota);
            } else if key.starts_with(OFFERS) {
                let offer: Option<Offer> = self.read(change);
                self.offer_changed(key, offer.as_ref());
                set(&mut self.offers, key, offer);
            }
        }
        let mut given = false;
        for change in changes.iter().filter(|change| change.key.as_str().starts_with(TASKS)) {
            given = true;
            let task: Option<Task> = self.read(change);
            self.task_changed(change.key.as_str(), task.as_ref(), &offers_before, writer.as_ref());
            set(&mut self.tasks, change.key.as_str(), task);
        }
        let held =
            |change: &&Change| change.key.as_str().starts_with(OFFERS) || change.key.as_str().starts_with(AGENTS);
        if given || changes.iter().any(held) {
            self.capacity_holds();
            self.quotas_hold(&changes);
        }
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

    fn lease_changed(&mut self, name: &str, change: &Change) {
        let lease: Option<Lease> = self.read(change);
        let held = change.current.as_ref().zip(lease).map(|(entry, lease)| Held {
            created: entry.create_revision,
            holder: lease.spec.and_then(|spec| spec.holder_identity).unwrap_or_default(),
        });
        set(&mut self.leases, name, held);
    }

    /// A uid that is gone stays gone, and a name changes its uid only by way of nothing.
    fn identity_changed(&mut self, change: &Change) {
        let new = change.current.as_ref().and_then(|entry| {
            let object: Value = serde_json::from_slice(&entry.value).ok()?;
            Some(object["metadata"]["uid"].as_str()?.to_owned())
        });
        let old = match &new {
            Some(new) => self.uids.insert(change.key.clone(), new.clone()),
            None => self.uids.remove(&change.key),
        };
        if old == new {
            return;
        }
        let key = &change.key;
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
