//! What each fault does, and that a seed decides all of them.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use muster_store::conformance::under_faults;
use muster_store::{
    CommitError, Error, FaultStore, Faults, Key, MemoryStore, Op, Prefix, Store, Txn, WatchError, WatchEvent,
};
use tokio::time::Instant;

fn store(seed: u64, faults: Faults) -> (Arc<MemoryStore>, FaultStore) {
    let inner = Arc::new(MemoryStore::new());
    let store = FaultStore::new(Arc::clone(&inner) as Arc<dyn Store>, seed, faults);
    (inner, store)
}

fn put(value: &str) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::put(Key::new("k"), value.to_owned())],
    }
}

fn is_unknown<T>(result: &Result<T, CommitError>) -> bool {
    matches!(result, Err(CommitError::Unknown(_)))
}

fn is_unavailable<T>(result: &Result<T, CommitError>) -> bool {
    matches!(result, Err(CommitError::Store(Error::Unavailable(_))))
}

#[tokio::test(start_paused = true)]
async fn store_that_is_cut_off_does_nothing_until_faults_stop() {
    let (inner, store) = store(
        1,
        Faults {
            unavailable_before: 1.0,
            ..Faults::none()
        },
    );
    assert!(is_unavailable(&store.commit(put("1")).await));
    assert!(store.get(&Key::new("k")).await.is_err());
    let first = store.watch(&Prefix::new(""), 0).next().await;
    assert!(
        matches!(first, Some(Err(WatchError::Store(Error::Unavailable(_))))),
        "{first:?}"
    );
    assert_eq!(inner.revision().await.unwrap(), 0);
    store.set_faults(Faults::none());
    assert_eq!(store.commit(put("1")).await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn lost_answer_hides_a_commit_that_happened() {
    let (inner, store) = store(
        1,
        Faults {
            unavailable_after: 1.0,
            ..Faults::none()
        },
    );
    assert!(is_unknown(&store.commit(put("1")).await));
    assert_eq!(inner.revision().await.unwrap(), 1);
}

#[tokio::test(start_paused = true)]
async fn late_commit_happens_after_its_failure_was_reported() {
    let faults = Faults {
        late_commit: 1.0,
        delay_max: Duration::from_secs(1),
        ..Faults::none()
    };
    let (inner, store) = store(1, faults);
    let asked = Instant::now();
    assert!(is_unknown(&store.commit(put("1")).await));
    assert_eq!(inner.revision().await.unwrap(), 0);
    store.settle().await;
    assert_eq!(inner.revision().await.unwrap(), 1);
    assert!(asked.elapsed() > Duration::ZERO && asked.elapsed() <= Duration::from_secs(10));
}

#[tokio::test(start_paused = true)]
async fn lost_lease_takes_its_keys_whatever_the_holder_is_told() {
    let (inner, store) = store(
        1,
        Faults {
            lease_lost: 1.0,
            ..Faults::none()
        },
    );
    let mut told = Vec::new();
    for _ in 0..20 {
        let lease = store.grant(Duration::from_secs(60)).await.unwrap();
        let op = Op::Put {
            key: Key::new("k"),
            value: "x".into(),
            lease: Some(lease),
        };
        store
            .commit(Txn {
                compares: vec![],
                ops: vec![op],
            })
            .await
            .unwrap();
        told.push(store.keep_alive(lease).await.is_ok());
        assert_eq!(inner.get(&Key::new("k")).await.unwrap(), None);
    }
    assert!(told.contains(&true) && told.contains(&false), "{told:?}");
}

#[tokio::test(start_paused = true)]
async fn compaction_meets_the_watch_that_lags() {
    let (_, store) = store(
        1,
        Faults {
            compaction: 1.0,
            ..Faults::none()
        },
    );
    store.commit(put("1")).await.unwrap();
    let mut watch = store.watch(&Prefix::new(""), 0);
    let item = watch.next().await;
    assert!(
        matches!(item, Some(Err(WatchError::Compacted { compacted: 1 }))),
        "{item:?}"
    );
    assert!(watch.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn repeated_batch_comes_right_after_itself() {
    let (_, store) = store(
        1,
        Faults {
            watch_repeat: 1.0,
            ..Faults::none()
        },
    );
    let mut watch = store.watch(&Prefix::new(""), 0);
    let mut seen = Vec::new();
    for value in ["1", "2"] {
        store.commit(put(value)).await.unwrap();
    }
    for _ in 0..4 {
        match watch.next().await {
            Some(Ok(WatchEvent::Batch { revision, .. })) => seen.push(revision),
            other => panic!("a batch was due, not {other:?}"),
        }
    }
    assert_eq!(seen, [1, 1, 2, 2]);
}

#[tokio::test(start_paused = true)]
async fn same_seed_gives_the_same_storm() {
    let faults = Faults {
        unavailable_before: 0.1,
        unavailable_after: 0.1,
        late_commit: 0.1,
        delay: 0.5,
        delay_max: Duration::from_millis(20),
        watch_cut: 0.1,
        watch_repeat: 0.1,
        ..Faults::none()
    };
    let storm = async |seed| {
        let (inner, store) = store(seed, Faults::none());
        let injected = under_faults(Arc::new(store), seed, faults.clone()).await;
        let listing = inner.list(&Prefix::new(""), Default::default()).await.unwrap();
        (injected, listing)
    };
    let first = storm(7).await;
    assert_eq!(storm(7).await, first);
    assert_ne!(storm(8).await, first);
}
