//! What the servers said happened: the ordered watch of every server, recorded revision by revision.
//!
//! What is wrong with it is for [`crate::story`] to say.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use futures::{StreamExt as _, pin_mut};
use muster_api::v1::{Offer, Task};
use muster_api::wire::{ChangeKind, WatchChange, WatchLine};
use muster_client::{Client, Error};
use serde::de::DeserializeOwned;
use serde_json::Value;
use tokio::task::JoinHandle;

use crate::story::{self, Account, Changes, State, Story};

/// What is followed.
const KINDS: [&str; 7] = [
    "tasks.muster.dev",
    "offers.muster.dev",
    "agents.muster.dev",
    "frameworks.muster.dev",
    "leases.coordination.k8s.io",
    "configmaps",
    "namespaces",
];

/// How many of the last revisions are shown after a failure.
const SHOWN: usize = 80;

/// Where an object is, as in the store: `objects/GROUP/PLURAL/NAMESPACE/NAME`.
pub(crate) fn key(resource: &str, object: &Value) -> String {
    let (plural, group) = resource.split_once('.').unwrap_or((resource, "core"));
    let field = |name: &str| {
        object["metadata"][name]
            .as_str()
            .filter(|text| !text.is_empty())
            .unwrap_or("_")
    };
    format!("objects/{group}/{plural}/{}/{}", field("namespace"), field("name"))
}

/// The recording.
#[derive(Clone, Default)]
pub(crate) struct Tape {
    shared: Arc<Mutex<Shared>>,
    readers: Arc<Mutex<Vec<JoinHandle<()>>>>,
}

#[derive(Default)]
struct Shared {
    batches: BTreeMap<u64, Batch>,
    /// As of the last revision of all.
    state: State,
    readers: BTreeMap<String, Reader>,
    acknowledged: Vec<(u64, String, String)>,
    violations: Vec<String>,
}

/// Everything that one revision changed.
pub(crate) struct Batch {
    at: Instant,
    pub(crate) changes: Changes,
}

/// What one server has said.
#[derive(Default)]
struct Reader {
    /// The revision of its last list, and where it stands; zero: it has to list.
    from: u64,
    at: u64,
    /// Every revision that it told of.
    told: BTreeSet<u64>,
    lists: Vec<(u64, State)>,
    /// From which list to which revision it told everything, before its last list.
    ranges: Vec<(u64, u64)>,
    connections: usize,
    errors: Vec<String>,
}

impl Tape {
    fn lock(&self) -> MutexGuard<'_, Shared> {
        self.shared.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Records what this server says from now on.
    pub(crate) fn follow(&self, server: &str, client: Client) {
        let (tape, server) = (self.clone(), server.to_owned());
        let reader = tokio::spawn(async move { tape.read(&server, &client).await });
        self.readers.lock().unwrap_or_else(PoisonError::into_inner).push(reader);
    }

    async fn read(&self, server: &str, client: &Client) {
        loop {
            let from = self.lock().readers.entry(server.to_owned()).or_default().at;
            let error = match client.ordered_watch(&KINDS, (from > 0).then_some(from)).await {
                Err(error) => Some(error),
                Ok(lines) => {
                    self.lock().readers.entry(server.to_owned()).or_default().connections += 1;
                    self.take(server, lines).await
                }
            };
            self.lock().ended(server, error);
            tokio::time::sleep(Duration::from_millis(50)).await;
        }
    }

    async fn take(&self, server: &str, lines: impl futures::Stream<Item = Result<WatchLine, Error>>) -> Option<Error> {
        pin_mut!(lines);
        let mut list = State::new();
        while let Some(line) = lines.next().await {
            match line {
                Err(error) => return Some(error),
                Ok(WatchLine::Snapshot {
                    revision,
                    changes,
                    more,
                }) => {
                    list.extend(
                        changes
                            .into_iter()
                            .map(|change| (key(&change.resource, &change.object), change.object)),
                    );
                    if !more {
                        self.lock().listed(server, revision, std::mem::take(&mut list));
                    }
                }
                Ok(WatchLine::Batch { revision, changes }) => self.lock().told(server, revision, changes),
                Ok(WatchLine::Progress { revision }) => self.lock().progressed(server, revision),
                Ok(WatchLine::Error { object }) => self.lock().violations.push(format!("{server}: {object}")),
            }
        }
        None
    }

    /// A write that was acknowledged: it must be in the story at its revision.
    pub(crate) fn acknowledged(&self, resource: &str, object: &Value) {
        let text = |name: &str| object["metadata"][name].as_str().unwrap_or_default().to_owned();
        let revision = text("resourceVersion").parse().unwrap_or(0);
        self.lock()
            .acknowledged
            .push((revision, key(resource, object), text("uid")));
    }

    /// The revision that is known.
    pub(crate) fn revision(&self) -> u64 {
        self.lock().readers.values().map(|reader| reader.at).max().unwrap_or(0)
    }

    /// Whether every server has told everything up to a revision.
    pub(crate) fn reached(&self, revision: u64) -> bool {
        let shared = self.lock();
        !shared.readers.is_empty() && shared.readers.values().all(|reader| reader.at >= revision)
    }

    fn objects<T: DeserializeOwned>(&self, prefix: &str) -> Vec<T> {
        let shared = self.lock();
        let objects = shared
            .state
            .range(prefix.to_owned()..)
            .take_while(|(key, _)| key.starts_with(prefix));
        objects
            .filter_map(|(_, object)| serde_json::from_value(object.clone()).ok())
            .collect()
    }

    /// The tasks as of now.
    pub(crate) fn tasks(&self) -> Vec<Task> {
        self.objects("objects/muster.dev/tasks/")
    }

    /// The offers as of now.
    pub(crate) fn offers(&self) -> Vec<Offer> {
        self.objects("objects/muster.dev/offers/")
    }

    /// The revision that made the lease of the leading controllers, and its holder.
    pub(crate) fn leader(&self) -> Option<(u64, String)> {
        let shared = self.lock();
        let lease = shared
            .state
            .get("objects/coordination.k8s.io/leases/muster-system/muster-controllers")?;
        let revision = lease["metadata"]["resourceVersion"].as_str()?.parse().ok()?;
        Some((revision, lease["spec"]["holderIdentity"].as_str()?.to_owned()))
    }

    /// Everything that happened after a time, in order.
    pub(crate) fn since(&self, start: Instant) -> Vec<(Instant, String, ChangeKind, Value)> {
        let shared = self.lock();
        let recent = shared.batches.values().filter(|batch| batch.at > start);
        recent
            .flat_map(|batch| {
                let changes = batch.changes.iter();
                changes.map(|(key, (kind, object))| (batch.at, key.clone(), *kind, object.clone()))
            })
            .collect()
    }

    /// When something of a kind of objects first came into being after a time.
    pub(crate) fn first_added(&self, start: Instant, prefix: &str) -> Option<Instant> {
        let found = self.since(start).into_iter();
        let mut found = found.filter(|(_, key, kind, _)| *kind == ChangeKind::Added && key.starts_with(prefix));
        found.next().map(|(at, ..)| at)
    }

    /// Everything that is wrong with the story.
    pub(crate) fn verdict(&self) -> Vec<String> {
        let shared = self.lock();
        let readers = shared.readers.iter().map(|(server, reader)| Account {
            server,
            told: &reader.told,
            lists: &reader.lists,
            ranges: reader
                .ranges
                .iter()
                .copied()
                .chain([(reader.from, reader.at)])
                .filter(|(from, _)| *from > 0)
                .collect(),
        });
        let mut wrong = shared.violations.clone();
        wrong.extend(Story::new(&shared.batches, readers.collect()).judge(&shared.acknowledged));
        wrong
    }

    /// How many revisions were recorded.
    pub(crate) fn len(&self) -> usize {
        self.lock().batches.len()
    }

    /// The last revisions, for people.
    pub(crate) fn show(&self) -> String {
        let shared = self.lock();
        let mut text = String::new();
        for (server, reader) in &shared.readers {
            let errors = &reader.errors[reader.errors.len().saturating_sub(5)..];
            text += &format!(
                "{server} at {}, connected {} times, {errors:?}\n",
                reader.at, reader.connections
            );
        }
        let first = shared.batches.values().next().map(|batch| batch.at);
        let skip = shared.batches.len().saturating_sub(SHOWN);
        for (revision, batch) in shared.batches.iter().skip(skip) {
            let after = first.map(|first| batch.at - first).unwrap_or_default();
            let changes = batch.changes.iter().map(|(key, (kind, object))| {
                let status = &object["status"];
                let phase = status["phase"]
                    .as_str()
                    .or(status["reachability"].as_str())
                    .unwrap_or("");
                let holder = object["spec"]["holderIdentity"].as_str().unwrap_or("");
                format!("{kind:?} {} {phase}{holder}", key.trim_start_matches("objects/"))
            });
            text += &format!(
                "{:8.3} {revision}: {}\n",
                after.as_secs_f64(),
                changes.collect::<Vec<_>>().join(", ")
            );
        }
        text
    }

    /// Ends the recording.
    pub(crate) fn stop(&self) {
        for reader in self.readers.lock().unwrap_or_else(PoisonError::into_inner).drain(..) {
            reader.abort();
        }
    }
}

impl Shared {
    fn listed(&mut self, server: &str, revision: u64, list: State) {
        let reader = self.readers.entry(server.to_owned()).or_default();
        (reader.from, reader.at) = (revision, revision);
        if self.batches.last_key_value().is_none_or(|(last, _)| *last < revision) {
            self.state.clone_from(&list);
        }
        reader.lists.push((revision, list));
    }

    fn told(&mut self, server: &str, revision: u64, changes: Vec<WatchChange>) {
        let reader = self.readers.entry(server.to_owned()).or_default();
        if revision <= reader.at {
            self.violations
                .push(format!("{server} told of revision {revision} after {}", reader.at));
            return;
        }
        reader.at = revision;
        reader.told.insert(revision);
        let changes: Changes = changes
            .into_iter()
            .map(|change| (key(&change.resource, &change.object), (change.kind, change.object)))
            .collect();
        if let Some(batch) = self.batches.get(&revision) {
            if batch.changes != changes {
                self.violations
                    .push(format!("{server} tells another story of revision {revision}"));
            }
            return;
        }
        if self.batches.last_key_value().is_none_or(|(last, _)| *last < revision) {
            story::apply(&mut self.state, &changes);
        }
        self.batches.insert(
            revision,
            Batch {
                at: Instant::now(),
                changes,
            },
        );
    }

    fn ended(&mut self, server: &str, error: Option<Error>) {
        let reader = self.readers.entry(server.to_owned()).or_default();
        if let Some(Error::Gone(_)) = &error {
            reader.ranges.push((reader.from, reader.at));
            (reader.from, reader.at) = (0, 0);
        }
        reader.errors.extend(error.map(|error| error.to_string()));
    }

    fn progressed(&mut self, server: &str, revision: u64) {
        let reader = self.readers.entry(server.to_owned()).or_default();
        if revision < reader.at {
            self.violations
                .push(format!("{server} went back from {} to {revision}", reader.at));
        }
        reader.at = reader.at.max(revision);
    }
}
