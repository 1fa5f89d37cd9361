//! Bugs of the API server in how it uses the store.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use muster_store::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Op, Page, Prefix, Revision, Store, Test, Txn,
    WatchEvent, WatchStream,
};
use serde_json::{Value, json};

use super::Mutant;
use crate::writer::WRITER;

/// How long after its acknowledgement a write happens that is acknowledged too soon.
const TOO_SOON: Duration = Duration::from_millis(100);

const LEASES: &str = "objects/coordination.k8s.io/leases/";
const SESSIONS: &str = "objects/coordination.k8s.io/leases/muster-agents/";
const OFFERS: &str = "objects/muster.dev/offers/";
const TASKS: &str = "objects/muster.dev/tasks/";
const LEDGERS: &str = "ledger/";

fn under(key: &Key, prefix: &str) -> bool {
    key.as_str().starts_with(prefix)
}

impl Mutant {
    /// Whether a server with this bug forgets a compare of a transaction.
    fn forgets(self, key: &Key, test: Test, txn: &Txn) -> bool {
        let writes = |prefix: &str| txn.ops.iter().any(|op| under(op.key(), prefix));
        let held = matches!(test, Test::Created(at) if at > 0);
        match self {
            Mutant::DropFence => under(key, LEASES) && held,
            Mutant::DropLedger => under(key, LEDGERS),
            Mutant::AcceptTwice => under(key, OFFERS) && matches!(test, Test::Modified(_)),
            Mutant::TerminalResurrected => under(key, TASKS) && matches!(test, Test::Modified(_)),
            // An accept deletes offers; a report does not.
            Mutant::AcceptOfTheLost => under(key, SESSIONS) && writes(OFFERS),
            Mutant::SessionNotCompared => under(key, SESSIONS) && held && !writes(OFFERS),
            Mutant::LeaseNotExclusive => under(key, LEASES) && test == Test::Created(0),
            _ => false,
        }
    }
}

/// A store as a server with a planted bug uses it.
pub struct MutantStore {
    store: Arc<dyn Store>,
    mutant: Mutant,
    /// The first device that each agent's tasks were seen with.
    devices: Mutex<BTreeMap<String, String>>,
    /// The sessions that accepts were made under.
    sessions: Mutex<BTreeMap<Key, Entry>>,
}

impl MutantStore {
    /// The store as the mutant uses it.
    pub fn new(store: Arc<dyn Store>, mutant: Mutant) -> MutantStore {
        MutantStore {
            store,
            mutant,
            devices: Mutex::default(),
            sessions: Mutex::default(),
        }
    }

    fn twist(&self, txn: &mut Txn) {
        match self.mutant {
            Mutant::LedgerNotTouched if !txn.ops.iter().any(|op| under(op.key(), OFFERS)) => {
                txn.ops.retain(|op| !under(op.key(), LEDGERS));
            }
            Mutant::DeletedAtOnce => txn.ops.iter_mut().for_each(|op| {
                if read(op, TASKS).is_some_and(|task| !task["metadata"]["deletionTimestamp"].is_null()) {
                    *op = Op::delete(op.key().clone());
                }
            }),
            Mutant::DevicesTwice => txn.ops.iter_mut().for_each(|op| self.same_device(op)),
            _ => {}
        }
    }

    fn same_device(&self, op: &mut Op) {
        let Some(mut task) = read(op, TASKS) else { return };
        let (Some(agent), Some(device)) = (task["status"]["agent"].as_str(), task["status"]["devices"][0].as_str())
        else {
            return;
        };
        let mut devices = self.devices.lock().expect("no one panics with the devices");
        let first = devices.entry(agent.to_owned()).or_insert_with(|| device.to_owned());
        task["status"]["devices"][0] = json!(*first);
        *op = Op::put(op.key().clone(), task.to_string());
    }
}

/// The object that is put under this prefix.
fn read(op: &Op, prefix: &str) -> Option<Value> {
    match op {
        Op::Put { key, value, .. } if under(key, prefix) => serde_json::from_slice(value).ok(),
        _ => None,
    }
}

/// Says of every revision that is missing that nothing happened at it.
fn without_gaps(stream: WatchStream, after: Revision) -> WatchStream {
    let filled = stream.scan(after, |seen, item| {
        let revision = match &item {
            Ok(WatchEvent::Batch { revision, .. } | WatchEvent::Progress(revision)) => *revision,
            Err(_) => *seen,
        };
        let missing = (*seen + 1)..revision;
        *seen = (*seen).max(revision);
        let nothing = missing.map(|revision| {
            Ok(WatchEvent::Batch {
                revision,
                changes: Vec::new(),
            })
        });
        let items: Vec<_> = nothing.chain([item]).collect();
        futures::future::ready(Some(stream::iter(items)))
    });
    filled.flatten().boxed()
}

#[async_trait]
impl Store for MutantStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        let entry = self.store.get(key).await?;
        let accepts = || {
            WRITER
                .try_with(|writer| writer.request.ends_with("/accept"))
                .unwrap_or(false)
        };
        if self.mutant != Mutant::AcceptOfTheLost || !under(key, SESSIONS) || !accepts() {
            return Ok(entry);
        }
        let mut sessions = self.sessions.lock().expect("no one panics with the sessions");
        if let Some(entry) = entry {
            sessions.insert(key.clone(), entry);
        }
        Ok(sessions.get(key).cloned())
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.store.list(prefix, page).await
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, CommitError> {
        let before = txn.compares.len();
        let whole = txn.clone();
        txn.compares
            .retain(|compare| !self.mutant.forgets(&compare.key, compare.test, &whole));
        self.twist(&mut txn);
        // What a server writes when it starts has nobody to be acknowledged to.
        let asked = WRITER.try_with(|_| ()).is_ok() && !txn.ops.is_empty();
        if self.mutant == Mutant::AcknowledgedTooSoon && asked {
            let store = Arc::clone(&self.store);
            let next = store.revision().await? + 1;
            tokio::spawn(async move {
                tokio::time::sleep(TOO_SOON).await;
                // Nobody is told any more.
                let _ = store.commit(txn).await;
            });
            return Ok(next);
        }
        match self.store.commit(txn).await {
            // The caller counts the compares that it sent; a conflict among fewer would be misread.
            Err(CommitError::Conflict { mut current }) => {
                current.resize(before, None);
                Err(CommitError::Conflict { current })
            }
            other => other,
        }
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        match self.mutant {
            Mutant::GapsIgnored => without_gaps(self.store.watch(prefix, after), after),
            Mutant::ResumedFromNow => {
                let (store, prefix) = (Arc::clone(&self.store), prefix.clone());
                let opened = async move {
                    match store.revision().await {
                        Ok(now) => without_gaps(store.watch(&prefix, now.max(after)), after),
                        Err(error) => stream::iter([Err(error.into())]).boxed(),
                    }
                };
                stream::once(opened).flatten().boxed()
            }
            _ => self.store.watch(prefix, after),
        }
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.store.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.revoke(lease).await
    }
}
