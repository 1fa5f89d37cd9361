//! The conformance suite on real etcd clusters, and what is special about etcd while nothing goes wrong.

use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt;
use muster_store::conformance::{self, Fixture};
use muster_store::etcd::Compaction;
use muster_store::testing::{EtcdCluster, EtcdOptions};
use muster_store::{
    CommitError, Compare, Error, EtcdConfig, EtcdStore, Key, Op, Page, Prefix, Revision, Store, Txn, WatchError,
    WatchEvent,
};
use tokio::time::timeout;

const PATIENCE: Duration = Duration::from_secs(60);

async fn open(config: EtcdConfig) -> EtcdStore {
    EtcdStore::open(config).await.expect("the cluster runs")
}

/// Every case, each under a prefix of its own. They follow each other, because revisions are etcd's.
async fn conforms(cluster: EtcdCluster) {
    for (number, name) in conformance::CASES.iter().enumerate() {
        println!("{name}");
        let config = EtcdConfig {
            compaction: None,
            // No case has others write meanwhile, so nothing has to be overtaken, and a mark would be a surprise.
            progress_after: PATIENCE,
            ..cluster.config(&format!("/muster/case{number}"))
        };
        let store = open(config).await;
        // The first write makes slots, which takes a revision of its own.
        let absent = vec![Compare::absent(Key::new("warm"))];
        let written = vec![Op::put(Key::new("warm"), "")];
        let warm = |compares, ops| store.commit(Txn { compares, ops });
        let written = warm(absent, written).await.expect("the cluster runs");
        let key = Key::new("warm");
        warm(vec![Compare::modified(key.clone(), written)], vec![Op::delete(key)])
            .await
            .expect("the cluster runs");
        conformance::case(name, Fixture::new(Arc::new(store))).await;
        cluster.revoke_leases().await;
    }
}

#[tokio::test]
async fn one_member_keeps_every_promise() {
    conforms(EtcdCluster::single().await).await;
}

#[tokio::test]
async fn three_members_with_tls_keep_every_promise() {
    let options = EtcdOptions {
        members: 3,
        tls: true,
        ..EtcdOptions::default()
    };
    conforms(EtcdCluster::start(options).await).await;
}

async fn put(store: &EtcdStore, name: &str) -> Revision {
    let key = Key::new(name);
    let seen = store
        .get(&key)
        .await
        .expect("etcd is well")
        .map_or(0, |entry| entry.mod_revision);
    let txn = Txn {
        compares: vec![Compare::modified(key.clone(), seen)],
        ops: vec![Op::put(key, "x")],
    };
    store.commit(txn).await.expect("etcd is well")
}

async fn names(store: &EtcdStore) -> Vec<String> {
    let listing = store
        .list(&Prefix::new(""), Page::default())
        .await
        .expect("etcd is well");
    listing.entries.iter().map(|entry| entry.key.to_string()).collect()
}

#[tokio::test]
async fn transactions_that_travel_together_are_answered_each_for_itself() {
    let cluster = EtcdCluster::start(EtcdOptions::default()).await;
    let store = open(cluster.config("/muster/default")).await;
    let taken = put(&store, "taken").await;
    let mut watch = store.watch(&Prefix::new("n/"), taken);
    let commits = (0..200).map(|number| {
        let compares = match number % 4 {
            // Not as it is: it was written at another revision.
            0 => Compare::modified(Key::new("taken"), taken - 1),
            // The same key as the next one's.
            1 => Compare::absent(Key::new(format!("n/{}", number + 1))),
            _ => Compare::absent(Key::new(format!("n/{number}"))),
        };
        let key = Key::new(format!("n/{}", number + usize::from(number % 4 == 1)));
        store.commit(Txn {
            compares: vec![compares],
            ops: vec![Op::put(key, number.to_string())],
        })
    });
    let answers = futures::future::join_all(commits).await;
    let mut revisions = Vec::new();
    for (number, answer) in answers.iter().enumerate() {
        match (number % 4, answer) {
            (0, Err(CommitError::Conflict { current })) => {
                let entry = current[0].as_ref().expect("it is there");
                assert_eq!((entry.key.as_str(), entry.mod_revision), ("taken", taken));
            }
            (3, Ok(revision)) => revisions.push(*revision),
            (1, first) => {
                let (winner, loser) = match (first, &answers[number + 1]) {
                    (Ok(_), loser @ Err(_)) => (number, loser),
                    (loser @ Err(_), Ok(_)) => (number + 1, loser),
                    both => panic!("exactly one of two makes the key: {both:?}"),
                };
                let Err(CommitError::Conflict { current }) = loser else {
                    panic!("{loser:?}");
                };
                let entry = current[0].as_ref().expect("it is there");
                assert_eq!(entry.value, winner.to_string());
            }
            (2, _) => {}
            (_, other) => panic!("{number}: {other:?}"),
        }
    }
    // They did travel together, and a watch shows those of one revision at once.
    revisions.sort_unstable();
    revisions.dedup();
    assert!(revisions.len() < 50, "{} revisions for 50 writes", revisions.len());
    let (mut seen, mut before) = (0, taken);
    while seen < 100 {
        let event = timeout(PATIENCE, watch.next())
            .await
            .expect("it comes")
            .expect("it goes on");
        if let WatchEvent::Batch { revision, changes } = event.expect("etcd is well") {
            assert!(revision > before, "{revision} came after {before}");
            (before, seen) = (revision, seen + changes.len());
        }
    }
    assert_eq!(seen, 100);
}

#[tokio::test]
async fn clusters_in_one_etcd_do_not_see_each_other() {
    let cluster = EtcdCluster::single().await;
    let (one, other) = (
        open(cluster.config("/muster/a")).await,
        open(cluster.config("/muster/ab")).await,
    );
    put(&one, "k").await;
    put(&other, "l").await;
    assert_eq!(
        (names(&one).await, names(&other).await),
        (vec!["k".to_owned()], vec!["l".to_owned()])
    );
    let mut watch = one.watch(&Prefix::new(""), 0);
    let last = put(&other, "m").await;
    let second = put(&one, "k").await;
    assert!(second > last, "revisions are etcd's");
    let mut seen = Vec::new();
    while seen.last() != Some(&second) {
        match timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Batch { revision, changes } => {
                assert!(changes.iter().all(|change| change.key.as_str() == "k"), "{changes:?}");
                seen.push(revision);
            }
            WatchEvent::Progress(_) => {}
        }
    }
    assert_eq!(seen.len(), 2);
}

#[tokio::test]
async fn a_watch_overtakes_what_others_write() {
    let cluster = EtcdCluster::single().await;
    let (store, other) = (
        open(cluster.config("/muster/a")).await,
        open(cluster.config("/muster/b")).await,
    );
    let start = put(&store, "k").await;
    let mut watch = store.watch(&Prefix::new(""), start);
    for _ in 0..3 {
        let foreign = put(&other, "l").await;
        let current = store.revision().await.unwrap();
        assert!(current >= foreign, "a read shows what was written before it");
        loop {
            match timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap() {
                WatchEvent::Progress(revision) if revision >= current => break,
                WatchEvent::Progress(_) => {}
                WatchEvent::Batch { .. } => panic!("nothing was written here"),
            }
        }
    }
    assert_eq!(names(&store).await, ["k"], "marks are not entries");
}

#[tokio::test]
async fn the_cluster_keeps_the_name_that_it_got_first() {
    let cluster = EtcdCluster::single().await;
    let config = |uid: u128, expect_uid: Option<u128>| EtcdConfig {
        uid,
        expect_uid,
        ..cluster.config("/muster/default")
    };
    let refused = |result: Result<EtcdStore, Error>| match result {
        Err(Error::Fatal(text)) => text,
        Err(other) => panic!("{other}"),
        Ok(_) => panic!("it was opened"),
    };
    let text = refused(EtcdStore::open(config(1, Some(1))).await);
    assert!(
        text.contains("holds no cluster"),
        "an empty etcd is not taken for the cluster: {text}"
    );
    assert_eq!(open(config(7, None)).await.store_uid(), 7);
    assert_eq!(open(config(8, None)).await.store_uid(), 7);
    assert_eq!(open(config(8, Some(7))).await.store_uid(), 7);
    let text = refused(EtcdStore::open(config(8, Some(8))).await);
    assert!(text.contains("another cluster"), "{text}");
}

#[tokio::test]
async fn what_is_too_large_for_etcd_is_not_sent() {
    let cluster = EtcdCluster::single().await;
    let store = open(cluster.config("/muster/default")).await;
    let before = store.revision().await.unwrap();
    // By the number of bytes in keys and values it fits; with everything that goes with them it does not.
    let key = |number: usize| Key::new(format!("{}{number:03}", "k".repeat(900)));
    let txn = Txn {
        compares: (0..127).map(|number| Compare::absent(key(number))).collect(),
        ops: vec![Op::put(Key::new("big"), vec![7; 1_384_000])],
    };
    let result = store.commit(txn).await;
    assert!(matches!(result, Err(CommitError::TooLarge(_))), "{result:?}");
    assert_eq!(store.revision().await.unwrap(), before);
}

#[tokio::test]
async fn long_listings_come_whole_and_at_one_revision() {
    let cluster = EtcdCluster::single().await;
    let store = open(cluster.config("/muster/default")).await;
    for batch in 0..21 {
        let key = |number: usize| Key::new(format!("k/{batch:02}/{number:03}"));
        let txn = Txn {
            compares: vec![Compare::absent(key(0))],
            ops: (0..120).map(|number| Op::put(key(number), "x")).collect(),
        };
        store.commit(txn).await.unwrap();
    }
    let listing = store.list(&Prefix::new("k/"), Page::default()).await.unwrap();
    assert_eq!((listing.entries.len(), listing.more), (21 * 120, false));
    assert!(listing.entries.is_sorted_by(|a, b| a.key < b.key));
    let page = Page {
        after: Some(Key::new("k/00/118")),
        limit: Some(1_500),
    };
    let part = store.list(&Prefix::new("k/"), page).await.unwrap();
    assert_eq!((part.entries.len(), part.more), (1_500, true));
    assert_eq!(part.entries[0].key.as_str(), "k/00/119");
}

#[tokio::test]
async fn values_of_a_megabyte_are_listed_and_watched() {
    let cluster = EtcdCluster::single().await;
    let store = open(cluster.config("/muster/default")).await;
    for number in 0..6 {
        let key = Key::new(format!("big/{number}"));
        let txn = Txn {
            compares: vec![Compare::absent(key.clone())],
            ops: vec![Op::put(key, vec![number; 1 << 20])],
        };
        store.commit(txn).await.unwrap();
    }
    let listing = store.list(&Prefix::new("big/"), Page::default()).await.unwrap();
    assert_eq!(listing.entries.len(), 6);
    let mut watch = store.watch(&Prefix::new("big/"), 0);
    let mut seen = 0;
    while seen < 6 {
        match timeout(PATIENCE, watch.next()).await.unwrap().unwrap().unwrap() {
            WatchEvent::Batch { changes, .. } => {
                assert_eq!(changes[0].current.as_ref().unwrap(), &listing.entries[seen]);
                seen += 1;
            }
            WatchEvent::Progress(_) => {}
        }
    }
}

#[tokio::test]
async fn servers_forget_history_together_and_keep_what_they_must() {
    let cluster = EtcdCluster::single().await;
    let policy = Compaction {
        every: Duration::from_millis(200),
        keep: 20,
    };
    let config = || EtcdConfig {
        compaction: Some(policy),
        ..cluster.config("/muster/default")
    };
    let (one, two) = (open(config()).await, open(config()).await);
    let first = put(&one, "k").await;
    let compacted = timeout(PATIENCE, async {
        loop {
            let newest = put(&two, "k").await;
            let mut watch = two.watch(&Prefix::new(""), first);
            // The first item is either the oldest change or the news that it is gone.
            match watch.next().await.unwrap() {
                Err(WatchError::Compacted { compacted }) => return (compacted, newest),
                Ok(_) => {}
                Err(error) => panic!("{error}"),
            }
        }
    });
    let (compacted, newest) = compacted.await.expect("history is forgotten in time");
    assert!(compacted + 20 <= two.revision().await.unwrap(), "{compacted} {newest}");
    assert_eq!(names(&one).await, ["k"]);
}

#[tokio::test]
async fn a_full_etcd_takes_deletions_only() {
    let options = EtcdOptions {
        flags: vec!["--quota-backend-bytes=4000000".to_owned()],
        ..EtcdOptions::default()
    };
    let cluster = EtcdCluster::start(options).await;
    let store = open(cluster.config("/muster/default")).await;
    let mut number = 0;
    let refused = timeout(PATIENCE, async {
        loop {
            let key = Key::new(format!("big/{number}"));
            let txn = Txn {
                compares: vec![Compare::absent(key.clone())],
                ops: vec![Op::put(key, vec![7; 500_000])],
            };
            match store.commit(txn).await {
                Ok(_) => number += 1,
                Err(error) => return error,
            }
        }
    });
    let refused = refused.await.expect("the quota is reached");
    assert!(
        matches!(&refused, CommitError::Store(Error::Full(text)) if text.contains("defrag")),
        "{refused}"
    );
    let key = Key::new("big/0");
    let entry = store.get(&key).await.unwrap().expect("reads go on");
    let txn = Txn {
        compares: vec![Compare::modified(key.clone(), entry.mod_revision)],
        ops: vec![Op::delete(key.clone())],
    };
    store.commit(txn).await.expect("deletions go on");
    assert_eq!(store.get(&key).await.unwrap(), None);
}
