//! A cluster in a file, and back into other stores.

use std::io::Cursor;
use std::time::Duration;

use futures::StreamExt;
use muster_store::backup::{self, BackupError, Fate, Header};
use muster_store::embedded::Options;
use muster_store::testing::EtcdCluster;
use muster_store::{
    CommitError, Compare, EmbeddedStore, EtcdConfig, EtcdStore, Key, MemoryStore, Op, Page, Prefix, Store, Txn,
    WatchError,
};

const UID: u128 = 42;

async fn put(store: &dyn Store, name: &str, value: &str) -> u64 {
    let key = Key::new(name);
    let seen = store
        .get(&key)
        .await
        .unwrap_or(None)
        .map_or(0, |entry| entry.mod_revision);
    let txn = Txn {
        compares: vec![Compare::modified(key.clone(), seen)],
        ops: vec![Op::put(key, value.to_owned())],
    };
    store.commit(txn).await.expect("nobody else writes")
}

async fn content(store: &dyn Store) -> Vec<(String, Vec<u8>)> {
    let listing = store
        .list(&Prefix::new(""), Page::default())
        .await
        .expect("the store is well");
    let pair = |entry: muster_store::Entry| (entry.key.to_string(), entry.value.to_vec());
    listing.entries.into_iter().map(pair).collect()
}

/// A store with something in it, and its backup.
async fn saved() -> (MemoryStore, Vec<u8>, Header) {
    let store = MemoryStore::new();
    for number in 0..200 {
        put(&store, &format!("k/{number:03}"), &"x".repeat(number)).await;
    }
    let lease = store.grant(Duration::from_secs(3600)).await.expect("it grants");
    let key = Key::new("presence/a");
    let leased = Op::Put {
        key: key.clone(),
        value: "p".into(),
        lease: Some(lease),
    };
    let txn = Txn {
        compares: vec![Compare::absent(key)],
        ops: vec![leased],
    };
    store.commit(txn).await.expect("it is free");
    let mut file = Vec::new();
    let header = backup::save(&store, UID, 7, &mut file).await.expect("it can be saved");
    (store, file, header)
}

fn keep(_: &Key, value: bytes::Bytes) -> Fate {
    Fate::Keep(value)
}

fn embedded(directory: &tempfile::TempDir, name: &str, start: u64) -> EmbeddedStore {
    let options = Options {
        uid: UID,
        start,
        ..Options::default()
    };
    EmbeddedStore::open(&directory.path().join(name), &options).expect("a new store opens")
}

#[tokio::test]
async fn a_cluster_moves_from_store_to_store_and_old_versions_never_fit() {
    let (store, file, header) = saved().await;
    assert_eq!((header.uid, header.taken_ms, header.entries), (UID, 7, 200));
    assert_eq!(backup::inspect(&file[..]).expect("it is whole"), header);
    let mut expected = content(&store).await;
    expected.retain(|(key, _)| key != "presence/a");

    let directory = tempfile::tempdir().expect("a directory can be made");
    let first = embedded(&directory, "first", header.start());
    let count = backup::restore(Cursor::new(&file), &first, keep)
        .await
        .expect("it is empty");
    assert_eq!((count, content(&first).await), (200, expected.clone()));

    let mut file = Vec::new();
    let header = backup::save(&first, UID, 8, &mut file).await.expect("it can be saved");
    let cluster = EtcdCluster::single().await;
    let config = || EtcdConfig {
        uid: UID,
        start: header.start(),
        ..cluster.config("/muster/default")
    };
    let second = EtcdStore::open(config()).await.expect("etcd runs");
    backup::restore(Cursor::new(&file), &second, keep)
        .await
        .expect("it is empty");
    assert_eq!(content(&second).await, expected);
    let old = put(&first, "k/000", "later").await;
    check_old_versions(&second, old).await;
    // A restart finds the same revisions.
    let before = second.get(&Key::new("k/000")).await.expect("etcd runs");
    drop(second);
    let second = EtcdStore::open(EtcdConfig {
        expect_uid: Some(UID),
        start: 0,
        ..config()
    })
    .await
    .expect("etcd runs");
    assert_eq!(second.get(&Key::new("k/000")).await.expect("etcd runs"), before);
    let written = put(&second, "k/000", "x").await;
    assert!(before.is_some_and(|before| before.mod_revision < written));
}

/// Nothing that was known of the cluster at `old` holds of the store.
async fn check_old_versions(store: &dyn Store, old: u64) {
    assert!(store.revision().await.expect("it is well") > old);
    let key = Key::new("k/000");
    for compare in [
        Compare::modified(key.clone(), old),
        Compare::created(key.clone(), old),
        Compare::not_modified_after(key.clone(), old),
    ] {
        let txn = Txn {
            compares: vec![compare],
            ops: vec![Op::delete(key.clone())],
        };
        let result = store.commit(txn).await;
        assert!(matches!(result, Err(CommitError::Conflict { .. })), "{result:?}");
    }
    let absent = Compare::not_modified_after(Key::new("ledger/none"), old);
    let txn = Txn {
        compares: vec![absent],
        ops: vec![],
    };
    store.commit(txn).await.expect("what is absent was never written");
    let mut watch = store.watch(&Prefix::new(""), old);
    let first = watch.next().await.expect("a watch ends only after an error");
    assert!(matches!(first, Err(WatchError::Compacted { .. })), "{first:?}");
}

#[tokio::test]
async fn old_versions_never_fit_a_restored_embedded_store() {
    let (store, file, header) = saved().await;
    let directory = tempfile::tempdir().expect("a directory can be made");
    let restored = embedded(&directory, "store", header.start());
    backup::restore(Cursor::new(&file), &restored, keep)
        .await
        .expect("it is empty");
    check_old_versions(&restored, put(&store, "k/000", "later").await).await;
}

#[tokio::test]
async fn a_backup_is_of_one_revision_whatever_others_write() {
    let cluster = EtcdCluster::single().await;
    let store = EtcdStore::open(cluster.config("/muster/default"))
        .await
        .expect("etcd runs");
    // Two keys that always say the same, far apart, with several pages of others between them.
    let pair = |number: usize| {
        ["a", "z"]
            .map(|name| Op::put(Key::new(name), number.to_string()))
            .to_vec()
    };
    store
        .commit(Txn {
            compares: vec![Compare::absent(Key::new("a"))],
            ops: pair(0),
        })
        .await
        .expect("it is free");
    for batch in 0..25 {
        let key = |number: usize| Key::new(format!("m/{batch}/{number}"));
        let ops = (0..120).map(|number| Op::put(key(number), "x")).collect();
        store
            .commit(Txn {
                compares: vec![Compare::absent(key(0))],
                ops,
            })
            .await
            .expect("it is free");
    }
    let over = std::sync::atomic::AtomicBool::new(false);
    let writer = async {
        let mut number = 0;
        while !over.load(std::sync::atomic::Ordering::Relaxed) {
            number += 1;
            let seen = store
                .get(&Key::new("a"))
                .await
                .expect("etcd runs")
                .map_or(0, |entry| entry.mod_revision);
            let compares = vec![Compare::modified(Key::new("a"), seen)];
            store
                .commit(Txn {
                    compares,
                    ops: pair(number),
                })
                .await
                .expect("nobody else writes");
        }
        number
    };
    let saver = async {
        let directory = tempfile::tempdir().expect("a directory can be made");
        for number in 0..5 {
            let mut file = Vec::new();
            let header = backup::save(&store, UID, 7, &mut file).await.expect("it can be saved");
            let copy = embedded(&directory, &number.to_string(), header.start());
            backup::restore(Cursor::new(&file), &copy, keep)
                .await
                .expect("it is empty");
            let [a, z] = ["a", "z"].map(Key::new);
            let [a, z] = [copy.get(&a).await, copy.get(&z).await].map(|found| found.expect("it is well"));
            assert_eq!(a.map(|entry| entry.value), z.map(|entry| entry.value));
        }
        over.store(true, std::sync::atomic::Ordering::Relaxed);
    };
    let (written, ()) = futures::join!(writer, saver);
    assert!(written > 0, "somebody wrote meanwhile");
}

#[tokio::test]
async fn only_an_empty_store_is_restored_into() {
    let (_, file, header) = saved().await;
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = embedded(&directory, "store", header.start());
    put(&store, "other", "x").await;
    let result = backup::restore(Cursor::new(&file), &store, keep).await;
    assert!(
        matches!(&result, Err(BackupError::NotEmpty(key)) if key.as_str() == "other"),
        "{result:?}"
    );
}

#[tokio::test]
async fn a_restore_that_was_cut_short_is_known_and_starts_over() {
    let (_, file, header) = saved().await;
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = embedded(&directory, "store", header.start());
    put(&store, backup::UNFINISHED, "").await;
    put(&store, "k/000", "half of something").await;
    put(&store, "stray", "x").await;
    assert!(backup::is_unfinished(&store).await.expect("it is well"));
    let refused = backup::save(&store, UID, 7, Vec::new()).await;
    assert!(matches!(refused, Err(BackupError::Unfinished)), "{refused:?}");
    backup::restore(Cursor::new(&file), &store, keep)
        .await
        .expect("it counts as empty");
    assert!(!backup::is_unfinished(&store).await.expect("it is well"));
    let content = content(&store).await;
    assert_eq!((content.len(), content[0].1.as_slice()), (200, &b""[..]));
}

#[tokio::test]
async fn every_damage_is_noticed_before_anything_is_written() {
    let (_, file, header) = saved().await;
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = embedded(&directory, "store", header.start());
    for at in (0..file.len()).step_by(97).chain([file.len() - 1]) {
        let mut damaged = file.clone();
        damaged[at] ^= 1;
        backup::inspect(&damaged[..]).expect_err("one bit is enough");
        backup::inspect(&file[..at]).expect_err("so is a missing end");
    }
    let mut longer = file.clone();
    longer.push(0);
    assert!(matches!(backup::inspect(&longer[..]), Err(BackupError::Damaged(_))));
    let mut damaged = file.clone();
    damaged[file.len() / 2] ^= 1;
    let zero = MemoryStore::new();
    let refused = backup::restore(Cursor::new(&file), &zero, keep).await;
    assert!(matches!(refused, Err(BackupError::Behind { .. })), "{refused:?}");
    backup::restore(Cursor::new(&damaged), &store, keep)
        .await
        .expect_err("it is damaged");
    assert_eq!(
        store.revision().await.expect("it is well"),
        header.start(),
        "nothing was written"
    );
    assert!(matches!(backup::inspect(&b"PK"[..]), Err(BackupError::Foreign)));
}

#[tokio::test]
async fn what_shall_stay_out_stays_out() {
    let (_, file, header) = saved().await;
    let directory = tempfile::tempdir().expect("a directory can be made");
    let store = embedded(&directory, "store", header.start());
    let fate = |key: &Key, value| {
        if key.as_str().ends_with('0') {
            Fate::Keep(value)
        } else {
            Fate::Drop
        }
    };
    assert_eq!(
        backup::restore(Cursor::new(&file), &store, fate)
            .await
            .expect("it is empty"),
        20
    );
    assert_eq!(content(&store).await.len(), 20);
}
