//! What each lie is.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use muster_store::{Key, Lies, LyingStore, MemoryStore, Op, Page, Prefix, Store, Txn, WatchEvent};

async fn store(lies: Lies, revisions: u64) -> (Arc<MemoryStore>, LyingStore) {
    let inner = Arc::new(MemoryStore::new());
    let store = LyingStore::new(Arc::clone(&inner) as Arc<dyn Store>, 1, lies);
    for value in 1..=revisions {
        store.commit(put(&value.to_string())).await.expect("the store commits");
    }
    (inner, store)
}

fn put(value: &str) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::put(Key::new("k"), value.to_owned())],
    }
}

/// Revisions of batches as they come; progress is negative.
async fn seen(store: &LyingStore, count: usize) -> Vec<i64> {
    let items = store.watch(&Prefix::new(""), 0).take(count);
    let told = items.map(|item| match item.expect("the watch goes on") {
        WatchEvent::Batch { revision, .. } => i64::try_from(revision).expect("a small number"),
        WatchEvent::Progress(revision) => -i64::try_from(revision).expect("a small number"),
    });
    told.collect().await
}

#[tokio::test(start_paused = true)]
async fn watches_swap_rewind_and_anticipate() {
    let swapped = Lies {
        watch_swapped: 1.0,
        ..Lies::none()
    };
    assert_eq!(seen(&store(swapped, 4).await.1, 4).await, [2, 1, 4, 3]);
    let rewound = Lies {
        watch_rewound: 1.0,
        ..Lies::none()
    };
    assert_eq!(seen(&store(rewound, 3).await.1, 6).await, [1, 1, 2, 1, 2, 3]);
    let anticipated = Lies {
        watch_anticipated: 1.0,
        ..Lies::none()
    };
    assert_eq!(seen(&store(anticipated, 2).await.1, 4).await, [-1, 1, -2, 2]);
}

#[tokio::test(start_paused = true)]
async fn watches_lose_batches() {
    let lies = Lies {
        watch_lost: 0.5,
        ..Lies::none()
    };
    let (_, store) = store(lies, 50).await;
    let seen = seen(&store, 10).await;
    assert!(seen.is_sorted() && seen.last() > Some(&10), "{seen:?}");
}

#[tokio::test(start_paused = true)]
async fn reads_are_stale_but_commits_are_not() {
    let lies = Lies {
        stale_read: 1.0,
        ..Lies::none()
    };
    let (inner, store) = store(lies, 60).await;
    let (read, newest) = (store.revision().await.unwrap(), inner.revision().await.unwrap());
    assert!(read < newest, "{read} of {newest}");
    let listing = store
        .list(&Prefix::new(""), Page::default())
        .await
        .expect("the store commits");
    assert_eq!((listing.revision, listing.entries[0].mod_revision), (read, read));
    assert_eq!(store.get(&Key::new("k")).await.unwrap().unwrap().mod_revision, read);
    assert_eq!(store.commit(put("x")).await.unwrap(), newest + 1);
}

#[tokio::test(start_paused = true)]
async fn leases_end_early_live_on_and_are_said_to_live() {
    let lies = Lies {
        lease_revoked: 1.0,
        keep_alive_of_the_dead: 1.0,
        ..Lies::none()
    };
    let (inner, store) = store(lies, 0).await;
    let lease = store.grant(Duration::from_secs(60)).await.expect("the store commits");
    store.commit(put("1")).await.expect("the store commits");
    assert!(inner.keep_alive(lease).await.is_err());
    assert!(store.keep_alive(lease).await.is_ok());
    store.set_lies(Lies {
        lease_outlives: 1.0,
        ..Lies::none()
    });
    let lease = store.grant(Duration::from_secs(10)).await.expect("the store commits");
    tokio::time::sleep(Duration::from_millis(10_001)).await;
    assert!(inner.keep_alive(lease).await.is_ok());
    assert!(store.told() > 0);
}
