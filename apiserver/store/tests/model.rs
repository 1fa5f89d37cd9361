//! Random transactions, leases and compactions against a naive model, with restarts in the middle.
//!
//! The safety property: whatever is asked, a store answers as the model does, its state is the model's, and a watch from
//! the oldest revision kept yields the model's history.

#![allow(clippy::unwrap_used, reason = "these are all helpers of tests")]

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use muster_store::embedded::Options;
use muster_store::{
    Change, CommitError, Compare, EmbeddedStore, Entry, Key, LeaseError, LeaseId, MemoryStore, Op, Page, Prefix,
    Revision, Store, Test, Txn, WatchError, WatchEvent, WatchStream,
};
use proptest::prelude::*;

const KEYS: u8 = 6;

/// One thing done to a store. Numbers name keys and leases; leases count from the first granted.
#[derive(Clone, Debug)]
enum Step {
    Commit {
        compares: Vec<(u8, Guess)>,
        writes: BTreeMap<u8, Write>,
    },
    Grant,
    Revoke(u8),
    KeepAlive(u8),
    Compact(u8),
    Reopen,
}

#[derive(Clone, Debug)]
enum Write {
    Put { value: u8, lease: Option<u8> },
    Delete,
}

/// A test whose revision is near one that makes it hold.
#[derive(Clone, Debug)]
struct Guess {
    kind: u8,
    off: u64,
}

fn write() -> impl Strategy<Value = Write> {
    prop_oneof![
        3 => (any::<u8>(), prop::option::weighted(0.3, 0..4_u8)).prop_map(|(value, lease)| Write::Put { value, lease }),
        1 => Just(Write::Delete),
    ]
}

fn step() -> impl Strategy<Value = Step> {
    let guess = (0..4_u8, prop_oneof![5 => Just(0_u64), 1 => Just(1)]).prop_map(|(kind, off)| Guess { kind, off });
    let compares = prop::collection::vec((0..KEYS, guess), 0..3);
    let writes = prop::collection::btree_map(0..KEYS, write(), 0..4);
    prop_oneof![
        12 => (compares, writes).prop_map(|(compares, writes)| Step::Commit { compares, writes }),
        2 => Just(Step::Grant),
        1 => (0..4_u8).prop_map(Step::Revoke),
        1 => (0..4_u8).prop_map(Step::KeepAlive),
        1 => (0..8_u8).prop_map(Step::Compact),
        1 => Just(Step::Reopen),
    ]
}

/// The naive store.
#[derive(Default)]
struct Model {
    state: BTreeMap<Key, Entry>,
    history: Vec<Vec<Change>>,
    compacted: Revision,
    leases: BTreeSet<LeaseId>,
}

fn key(number: u8) -> Key {
    Key::new(format!("k/{number}"))
}

impl Model {
    fn revision(&self) -> Revision {
        self.history.len() as Revision
    }

    fn compare(&self, (number, guess): &(u8, Guess)) -> Compare {
        let entry = self.state.get(&key(*number));
        let created = entry.map_or(0, |entry| entry.create_revision);
        let modified = entry.map_or(0, |entry| entry.mod_revision);
        let test = match guess.kind {
            0 => Test::Created(created + guess.off),
            1 => Test::Modified(modified + guess.off),
            2 => Test::NotModifiedAfter(modified.saturating_sub(guess.off)),
            _ => Test::Created(0),
        };
        Compare {
            key: key(*number),
            test,
        }
    }

    fn holds(&self, compare: &Compare) -> bool {
        let entry = self.state.get(&compare.key);
        match compare.test {
            Test::Created(0) | Test::Modified(0) => entry.is_none(),
            Test::Created(revision) => entry.is_some_and(|entry| entry.create_revision == revision),
            Test::Modified(revision) => entry.is_some_and(|entry| entry.mod_revision == revision),
            Test::NotModifiedAfter(revision) => entry.is_none_or(|entry| entry.mod_revision <= revision),
        }
    }

    /// What a commit has to answer, as text, because the answer's type has no equality.
    fn commit(&mut self, txn: &Txn) -> String {
        if !txn.compares.iter().all(|compare| self.holds(compare)) {
            let current: Vec<_> = txn
                .compares
                .iter()
                .map(|compare| self.state.get(&compare.key).cloned())
                .collect();
            return format!("{:?}", Err::<Revision, _>(CommitError::Conflict { current }));
        }
        let revision = self.revision() + 1;
        let mut changes = Vec::new();
        for op in &txn.ops {
            match op {
                Op::Put { lease: Some(lease), .. } if !self.leases.contains(lease) => {
                    return format!("{:?}", Err::<Revision, _>(CommitError::LeaseNotFound(*lease)));
                }
                Op::Put { key, value, lease } => {
                    let create_revision = self.state.get(key).map_or(revision, |entry| entry.create_revision);
                    let (key, value) = (key.clone(), value.clone());
                    let entry = Entry {
                        key: key.clone(),
                        value,
                        create_revision,
                        mod_revision: revision,
                        lease: *lease,
                    };
                    changes.push(Change {
                        key,
                        current: Some(entry),
                    });
                }
                Op::Delete { key } if self.state.contains_key(key) => {
                    changes.push(Change {
                        key: key.clone(),
                        current: None,
                    });
                }
                Op::Delete { .. } => {}
            }
        }
        self.record(changes);
        format!("{:?}", Ok::<_, CommitError>(self.revision()))
    }

    fn revoke(&mut self, lease: LeaseId) {
        self.leases.remove(&lease);
        let under = self.state.values().filter(|entry| entry.lease == Some(lease));
        let changes = under
            .map(|entry| Change {
                key: entry.key.clone(),
                current: None,
            })
            .collect();
        self.record(changes);
    }

    fn record(&mut self, changes: Vec<Change>) {
        for change in &changes {
            match &change.current {
                Some(entry) => self.state.insert(change.key.clone(), entry.clone()),
                None => self.state.remove(&change.key),
            };
        }
        if !changes.is_empty() {
            self.history.push(changes);
        }
    }
}

async fn run(open: impl Fn() -> Arc<dyn Store>, reopens: bool, steps: Vec<Step>) {
    let mut store = open();
    let mut model = Model::default();
    let mut granted = Vec::new();
    for step in steps {
        match step {
            Step::Commit { compares, writes } => {
                let compares = compares.iter().map(|compare| model.compare(compare)).collect();
                // A lease that was never granted, or one that may have ended.
                let lease = |number: u8| *granted.get(usize::from(number)).unwrap_or(&LeaseId(u64::MAX));
                let op = |(number, write): (u8, Write)| match write {
                    Write::Put { value, lease: under } => Op::Put {
                        key: key(number),
                        value: vec![value; 3].into(),
                        lease: under.map(lease),
                    },
                    Write::Delete => Op::delete(key(number)),
                };
                let txn = Txn {
                    compares,
                    ops: writes.into_iter().map(op).collect(),
                };
                let expected = model.commit(&txn);
                assert_eq!(format!("{:?}", store.commit(txn).await), expected);
            }
            Step::Grant => {
                let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
                assert!(!granted.contains(&lease), "{lease:?} was granted before");
                granted.push(lease);
                model.leases.insert(lease);
            }
            Step::Revoke(number) => {
                let lease = *granted.get(usize::from(number)).unwrap_or(&LeaseId(u64::MAX));
                store.revoke(lease).await.unwrap();
                model.revoke(lease);
            }
            Step::KeepAlive(number) => {
                let lease = *granted.get(usize::from(number)).unwrap_or(&LeaseId(u64::MAX));
                let gone = matches!(store.keep_alive(lease).await, Err(LeaseError::Gone(_)));
                assert_eq!(gone, !model.leases.contains(&lease));
            }
            Step::Compact(back) => {
                let revision = model.revision().saturating_sub(u64::from(back));
                store.compact(revision).await.unwrap();
                model.compacted = model.compacted.max(revision);
            }
            Step::Reopen if reopens => {
                drop(store);
                store = open();
            }
            Step::Reopen => {}
        }
        assert_same(&*store, &model).await;
    }
    assert_history(&*store, &model).await;
}

async fn assert_same(store: &dyn Store, model: &Model) {
    let listing = store.list(&Prefix::new(""), Page::default()).await.unwrap();
    assert_eq!(listing.entries, model.state.values().cloned().collect::<Vec<_>>());
    assert_eq!(listing.revision, model.revision());
}

async fn assert_history(store: &dyn Store, model: &Model) {
    if model.compacted > 0 {
        let first = next(&mut store.watch(&Prefix::new(""), model.compacted - 1)).await;
        assert!(
            matches!(first, Some(Err(WatchError::Compacted { compacted })) if compacted == model.compacted),
            "{first:?}"
        );
    }
    let mut watch = store.watch(&Prefix::new(""), model.compacted);
    for revision in model.compacted + 1..=model.revision() {
        let index = usize::try_from(revision - 1).unwrap();
        let expected = WatchEvent::Batch {
            revision,
            changes: model.history[index].clone(),
        };
        assert_eq!(next(&mut watch).await.unwrap().unwrap(), expected);
    }
}

/// The next item, which must not take long.
async fn next(watch: &mut WatchStream) -> Option<Result<WatchEvent, WatchError>> {
    tokio::time::timeout(Duration::from_secs(10), watch.next())
        .await
        .expect("the watch goes on")
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread()
        .enable_time()
        .build()
        .unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn memory_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        runtime().block_on(run(|| Arc::clone(&store), false, steps));
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]
    #[test]
    fn embedded_store_does_what_the_model_does_across_restarts(steps in prop::collection::vec(step(), 1..60)) {
        let directory = tempfile::tempdir().unwrap();
        let path = directory.path().join("store");
        // So little history in memory that most of it is read from disk.
        let options = Options { tail_bytes: 1_000, ..Options::default() };
        let open = || -> Arc<dyn Store> { Arc::new(EmbeddedStore::open(&path, &options).unwrap()) };
        runtime().block_on(run(open, true, steps));
    }
}
