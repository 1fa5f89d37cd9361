//! What only this store has: a disk that fails, a file that others hold, history on disk, restarts.

use std::sync::atomic::{AtomicBool, Ordering};

use futures::StreamExt;
use redb::StorageBackend;
use redb::backends::InMemoryBackend;

use super::*;
use crate::types::{Compare, Op, WatchEvent};

fn put(key: &str, value: &str) -> Txn {
    Txn {
        compares: vec![],
        ops: vec![Op::put(Key::new(key), value.to_owned())],
    }
}

async fn next(watch: &mut WatchStream) -> Result<WatchEvent, WatchError> {
    loop {
        match watch.next().await.expect("a watch does not end without an error") {
            Ok(WatchEvent::Progress(_)) => {}
            item => return item,
        }
    }
}

/// A disk in memory whose syncs fail when told to.
#[derive(Debug, Default)]
struct Disk {
    memory: InMemoryBackend,
    broken: Arc<AtomicBool>,
}

impl StorageBackend for Disk {
    fn len(&self) -> std::io::Result<u64> {
        self.memory.len()
    }

    fn read(&self, offset: u64, out: &mut [u8]) -> std::io::Result<()> {
        self.memory.read(offset, out)
    }

    fn set_len(&self, len: u64) -> std::io::Result<()> {
        self.memory.set_len(len)
    }

    fn sync_data(&self) -> std::io::Result<()> {
        if self.broken.load(Ordering::SeqCst) {
            return Err(std::io::Error::other("no space left on device"));
        }
        self.memory.sync_data()
    }

    fn write(&self, offset: u64, data: &[u8]) -> std::io::Result<()> {
        self.memory.write(offset, data)
    }
}

#[tokio::test]
async fn failed_sync_is_never_seen_and_ends_the_store() {
    let disk = Disk::default();
    let broken = Arc::clone(&disk.broken);
    let database = redb::Builder::new().create_with_backend(disk).unwrap();
    let store = EmbeddedStore::start(database, &Options::default()).unwrap();
    let before = store.commit(put("a", "1")).await.unwrap();
    let mut watch = store.watch(&Prefix::new(""), before);
    broken.store(true, Ordering::SeqCst);
    let error = store.commit(put("a", "2")).await.unwrap_err();
    assert!(
        matches!(&error, CommitError::Store(Error::Fatal(text)) if text.contains("no space left")),
        "{error}"
    );
    let watched = next(&mut watch).await;
    assert!(
        matches!(watched, Err(WatchError::Store(Error::Fatal(_)))),
        "{watched:?}"
    );
    broken.store(false, Ordering::SeqCst);
    assert!(matches!(store.get(&Key::new("a")).await, Err(Error::Fatal(_))));
    assert!(matches!(
        store.commit(put("a", "3")).await,
        Err(CommitError::Store(Error::Fatal(_)))
    ));
    assert!(matches!(
        store.grant(Duration::from_secs(1)).await,
        Err(Error::Fatal(_))
    ));
}

#[tokio::test]
async fn second_opening_is_refused_with_what_to_do() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let first = EmbeddedStore::open(&path, &Options::default()).unwrap();
    let second = EmbeddedStore::open(&path, &Options::default())
        .err()
        .expect("the file is locked");
    assert!(
        second.to_string().contains("in use by another process: stop that one"),
        "{second}"
    );
    drop(first);
    EmbeddedStore::open(&path, &Options::default()).expect("the first one released the file");
}

#[tokio::test]
async fn foreign_file_is_refused_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("notes.txt");
    let text = "nothing that a store would write\n".repeat(1000);
    std::fs::write(&path, &text).unwrap();
    assert!(matches!(
        EmbeddedStore::open(&path, &Options::default()),
        Err(Error::Fatal(_))
    ));
    assert_eq!(std::fs::read_to_string(&path).unwrap(), text);
}

#[tokio::test]
async fn file_belongs_to_its_owner_alone() {
    use std::os::unix::fs::PermissionsExt;
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let _store = EmbeddedStore::open(&path, &Options::default()).unwrap();
    assert_eq!(std::fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
}

#[tokio::test]
async fn restart_keeps_name_revision_history_and_leases() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = EmbeddedStore::open(
        &path,
        &Options {
            uid: 7,
            ..Options::default()
        },
    )
    .unwrap();
    let lease = store.grant(Duration::from_secs(3600)).await.unwrap();
    let leased = Op::Put {
        key: Key::new("l"),
        value: "x".into(),
        lease: Some(lease),
    };
    store
        .commit(Txn {
            compares: vec![],
            ops: vec![leased, Op::put(Key::new("a"), "1")],
        })
        .await
        .unwrap();
    let last = store.commit(put("a", "2")).await.unwrap();
    drop(store);

    let store = EmbeddedStore::open(
        &path,
        &Options {
            uid: 8,
            ..Options::default()
        },
    )
    .unwrap();
    assert_eq!((store.store_uid(), store.revision().await.unwrap()), (7, last));
    let mut watch = store.watch(&Prefix::new("a"), 0);
    for revision in 1..=last {
        let event = next(&mut watch).await.unwrap();
        assert!(
            matches!(event, WatchEvent::Batch { revision: at, .. } if at == revision),
            "{event:?}"
        );
    }
    store.keep_alive(lease).await.expect("leases survive");
    assert!(store.grant(Duration::from_secs(1)).await.unwrap() > lease);
    store.revoke(lease).await.unwrap();
    assert_eq!(store.get(&Key::new("l")).await.unwrap(), None);
    assert_eq!(store.commit(put("a", "3")).await.unwrap(), last + 2);
}

#[tokio::test]
async fn leases_run_on_after_a_restart() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = EmbeddedStore::open(&path, &Options::default()).unwrap();
    let lease = store.grant(Duration::from_millis(300)).await.unwrap();
    let leased = Op::Put {
        key: Key::new("l"),
        value: "x".into(),
        lease: Some(lease),
    };
    let put = store
        .commit(Txn {
            compares: vec![],
            ops: vec![leased],
        })
        .await
        .unwrap();
    drop(store);
    let store = EmbeddedStore::open(&path, &Options::default()).unwrap();
    let event = next(&mut store.watch(&Prefix::new(""), put)).await.unwrap();
    let WatchEvent::Batch { changes, .. } = event else {
        panic!("not a batch: {event:?}")
    };
    assert_eq!(
        changes,
        [crate::Change {
            key: Key::new("l"),
            current: None
        }]
    );
}

#[tokio::test]
async fn history_that_left_memory_is_read_from_disk_until_it_is_compacted() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options {
        tail_bytes: 2_000,
        ..Options::default()
    };
    let store = EmbeddedStore::open(&directory.path().join("store"), &options).unwrap();
    for number in 1..=300_u64 {
        assert_eq!(store.commit(put("k", &number.to_string())).await.unwrap(), number);
    }
    assert!(store.shared.read().tail.floor() > 280, "the tail in memory is short");
    let mut watch = store.watch(&Prefix::new("k"), 0);
    for number in 1..=300_u64 {
        let event = next(&mut watch).await.unwrap();
        let WatchEvent::Batch { revision, changes } = event else {
            panic!("not a batch: {event:?}")
        };
        assert_eq!(revision, number);
        assert_eq!(changes[0].current.as_ref().unwrap().value, number.to_string());
    }
    store.compact(200).await.unwrap();
    let gone = next(&mut store.watch(&Prefix::new("k"), 199)).await;
    assert!(
        matches!(gone, Err(WatchError::Compacted { compacted: 200 })),
        "{gone:?}"
    );
    let there = next(&mut store.watch(&Prefix::new("k"), 200)).await.unwrap();
    assert!(matches!(there, WatchEvent::Batch { revision: 201, .. }), "{there:?}");
}

#[tokio::test]
async fn history_beyond_retention_is_forgotten_by_itself() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let options = Options {
        retain: 100,
        ..Options::default()
    };
    let store = EmbeddedStore::open(&path, &options).unwrap();
    for number in 0..500 {
        store.commit(put("k", &number.to_string())).await.unwrap();
    }
    let compacted = store.shared.read().compacted;
    assert!((300..=400).contains(&compacted), "{compacted}");
    drop(store);
    let store = EmbeddedStore::open(&path, &options).unwrap();
    let gone = next(&mut store.watch(&Prefix::new("k"), compacted - 1)).await;
    assert!(
        matches!(gone, Err(WatchError::Compacted { compacted: at }) if at == compacted),
        "{gone:?}"
    );
    let there = next(&mut store.watch(&Prefix::new("k"), compacted)).await.unwrap();
    assert!(
        matches!(there, WatchEvent::Batch { revision, .. } if revision == compacted + 1),
        "{there:?}"
    );
}

#[tokio::test]
async fn watch_ends_when_the_store_is_closed() {
    let directory = tempfile::tempdir().unwrap();
    let store = EmbeddedStore::open(&directory.path().join("store"), &Options::default()).unwrap();
    let mut watch = store.watch(&Prefix::new(""), 0);
    drop(store);
    let end = next(&mut watch).await;
    assert!(matches!(end, Err(WatchError::Store(Error::Unavailable(_)))), "{end:?}");
}

#[tokio::test]
async fn commits_that_wait_together_share_syncs_and_keep_their_order() {
    let directory = tempfile::tempdir().unwrap();
    let path = directory.path().join("store");
    let store = EmbeddedStore::open(&path, &Options::default()).unwrap();
    let key = Key::new("counter");
    let commits = (0..200).map(|number: u64| {
        let compares = vec![Compare::absent(Key::new(format!("n/{number}")))];
        let ops = vec![
            Op::put(Key::new(format!("n/{number}")), "x"),
            Op::put(key.clone(), number.to_string()),
        ];
        store.commit(Txn { compares, ops })
    });
    let mut revisions: Vec<Revision> = futures::future::join_all(commits)
        .await
        .into_iter()
        .map(|result| result.unwrap())
        .collect();
    let last = store.get(&key).await.unwrap().unwrap();
    assert_eq!(Some(&last.mod_revision), revisions.iter().max());
    revisions.sort_unstable();
    assert_eq!(revisions, (1..=200).collect::<Vec<_>>());
    drop(store);
    // Of a key that was written often in one group, the last value is what is on disk.
    let store = EmbeddedStore::open(&path, &Options::default()).unwrap();
    assert_eq!(store.get(&key).await.unwrap(), Some(last));
}
