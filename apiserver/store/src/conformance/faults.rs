//! What holds however badly things go.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use bytes::Bytes;
use futures::StreamExt;
use futures::future::join_all;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::time::timeout;

use super::PATIENCE;
use crate::Store;
use crate::fault::{FaultStore, Faults, Injected};
use crate::types::{Change, CommitError, Compare, Entry, Error, Key, Op, Page, Prefix, Revision, Txn};
use crate::types::{WatchError, WatchEvent};

const CLIENTS: usize = 8;
const TXNS_EACH: usize = 60;
const SHARED_KEYS: usize = 4;

/// What a client was told.
#[derive(Debug, PartialEq, Eq)]
enum Told {
    Committed(Revision),
    Conflict,
    Unwritten,
    Unknown,
}

type History = BTreeMap<Revision, Vec<Change>>;

/// Runs clients and a watcher through a storm of faults, then without faults, and checks: what was acknowledged is in the
/// history, once, whole, and at its revision; what met a conflict or found no store is not; nothing was applied twice; the watcher, which
/// resumes by revision, has the history without gaps; and the history adds up to the state. Returns what went wrong
/// meanwhile, so that the caller can insist that enough did.
///
/// `store` has to be fresh, and `faults` must not contain compaction, because the whole history is compared.
///
/// # Panics
///
/// When a promise is broken.
pub async fn under_faults(store: Arc<FaultStore>, seed: u64, faults: Faults) -> Injected {
    store.set_faults(faults);
    let calm = async {
        store.set_faults(Faults::none());
        store.settle().await;
    };
    run(&*store, seed, Duration::from_millis(3), async {}, calm).await;
    store.injected()
}

/// The same while `storm` does something to what the store stands on. The clients go on until it ends; then the store has to
/// work again.
///
/// # Panics
///
/// When a promise is broken.
pub async fn under_storm(store: Arc<dyn Store>, seed: u64, storm: impl Future<Output = ()>) {
    run(&*store, seed, Duration::from_millis(40), storm, async {}).await;
}

/// Clients write, each at most every `pace`, at least so long as `storm`; `calm` then ends what is wrong with the store.
async fn run(
    store: &dyn Store,
    seed: u64,
    pace: Duration,
    storm: impl Future<Output = ()>,
    calm: impl Future<Output = ()>,
) {
    // Only a store that nobody else uses begins at zero, and counts by one.
    let dense = store.revision().await.is_ok_and(|revision| revision == 0);
    let over = AtomicBool::new(false);
    let clients = async {
        let clients = join_all((0..CLIENTS).map(|number| client(store, number, seed, pace, &over)));
        let storm = async {
            storm.await;
            over.store(true, Ordering::Relaxed);
        };
        let (told, ()) = futures::join!(clients, storm);
        calm.await;
        last_write(store).await;
        told.into_iter().flatten().collect::<BTreeMap<_, _>>()
    };
    let (told, history) = futures::join!(clients, watcher(store));
    check_outcomes(&told, &history);
    let listing = store
        .list(&Prefix::new(""), Page::default())
        .await
        .expect("the faults are over");
    assert_eq!(replay(&history), listing.entries, "the history adds up to the state");
    let last = history.keys().next_back().copied();
    if dense {
        assert_eq!(last, Some(listing.revision), "the watcher has seen the end");
        assert_eq!(history.len() as u64, listing.revision, "and every revision before it");
    } else {
        assert!(last <= Some(listing.revision), "{last:?} {}", listing.revision);
    }
}

/// Writes the key that tells the watcher that this is all.
async fn last_write(store: &dyn Store) {
    let key = Key::new("end");
    let written = timeout(PATIENCE, async {
        loop {
            let txn = Txn {
                compares: vec![Compare::absent(key.clone())],
                ops: vec![Op::put(key.clone(), "")],
            };
            match store.commit(txn).await {
                Ok(_) | Err(CommitError::Conflict { .. }) => return,
                Err(CommitError::Unknown(_) | CommitError::Store(Error::Unavailable(_))) => {
                    tokio::task::yield_now().await
                }
                Err(other) => panic!("no fault explains {other:?}"),
            }
        }
    });
    written.await.expect("the faults are over");
}

/// Transactions that write a key of their own and a shared one, each under its name.
async fn client(store: &dyn Store, number: usize, seed: u64, pace: Duration, over: &AtomicBool) -> Vec<(String, Told)> {
    let mut random = StdRng::seed_from_u64(seed ^ (number as u64 + 1).wrapping_mul(0x9e37_79b9_7f4a_7c15));
    let mut told = Vec::new();
    let mut count = 0;
    while count < TXNS_EACH || !over.load(Ordering::Relaxed) {
        count += 1;
        let name = format!("{number}-{count}");
        let shared = Key::new(format!("shared/{}", random.random_range(0..SHARED_KEYS)));
        let Ok(current) = store.get(&shared).await else {
            continue;
        };
        let seen = current.map_or(0, |entry| entry.mod_revision);
        tokio::time::sleep(Duration::from_millis(random.random_range(0..pace.as_millis() as u64))).await;
        let compares = vec![Compare::modified(shared.clone(), seen)];
        let ops = vec![
            Op::put(shared, name.clone()),
            Op::put(Key::new(format!("own/{name}")), name.clone()),
        ];
        told.push((name, tell(store.commit(Txn { compares, ops }).await)));
    }
    told
}

fn tell(result: Result<Revision, CommitError>) -> Told {
    match result {
        Ok(revision) => Told::Committed(revision),
        Err(CommitError::Conflict { .. }) => Told::Conflict,
        Err(CommitError::Unknown(_)) => Told::Unknown,
        Err(CommitError::Store(Error::Unavailable(_))) => Told::Unwritten,
        Err(other) => panic!("no fault explains {other:?}"),
    }
}

/// Watches everything, resuming after each break, until it has seen the key `end`.
async fn watcher(store: &dyn Store) -> History {
    let mut history = History::new();
    let mut position = 0;
    loop {
        let mut watch = store.watch(&Prefix::new(""), position);
        let error = loop {
            let item = timeout(PATIENCE, watch.next())
                .await
                .expect("the watch goes on within a minute");
            match item.expect("a watch ends only after an error") {
                // A repetition, which has to be of what was seen.
                Ok(WatchEvent::Batch { revision, changes }) if revision <= position => {
                    assert_eq!(history.get(&revision), Some(&changes));
                }
                Ok(WatchEvent::Batch { revision, changes }) => {
                    position = revision;
                    let end = changes.iter().any(|change| change.key.as_str() == "end");
                    history.insert(revision, changes);
                    if end {
                        return history;
                    }
                }
                // What it leaves out is missing in the end.
                Ok(WatchEvent::Progress(revision)) => position = position.max(revision),
                Err(error) => break error,
            }
        };
        assert!(
            matches!(error, WatchError::Store(Error::Unavailable(_))),
            "no fault explains {error:?}"
        );
    }
}

fn check_outcomes(told: &BTreeMap<String, Told>, history: &History) {
    let mut applied: BTreeMap<&Bytes, (Revision, usize)> = BTreeMap::new();
    for (revision, changes) in history {
        for entry in changes.iter().filter_map(|change| change.current.as_ref()) {
            assert_eq!(entry.mod_revision, *revision);
            let (at, writes) = applied.entry(&entry.value).or_insert((*revision, 0));
            assert_eq!(at, revision, "{:?} was applied twice", entry.value);
            *writes += 1;
        }
    }
    for (name, told) in told {
        let applied = applied.get(&Bytes::copy_from_slice(name.as_bytes()));
        match told {
            Told::Committed(revision) => assert_eq!(applied, Some(&(*revision, 2)), "{name} was acknowledged"),
            Told::Conflict | Told::Unwritten => assert_eq!(applied, None, "{name}: {told:?}"),
            Told::Unknown => assert!(
                applied.is_none_or(|(_, writes)| *writes == 2),
                "{name} was torn: {applied:?}"
            ),
        }
    }
}

fn replay(history: &History) -> Vec<Entry> {
    let mut state = BTreeMap::new();
    for change in history.values().flatten() {
        match &change.current {
            Some(entry) => state.insert(change.key.clone(), entry.clone()),
            None => state.remove(&change.key),
        };
    }
    state.into_values().collect()
}
