//! What remains true while members of etcd are killed, stopped, restarted, wiped or exchanged.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_store::conformance::under_storm;
use muster_store::etcd::Compaction;
use muster_store::testing::EtcdCluster;
use muster_store::{CommitError, Compare, Error, EtcdConfig, EtcdStore, Key, Op, Store, Txn};
use tokio::time::{Instant, sleep, timeout};

const PATIENCE: Duration = Duration::from_secs(60);

async fn open(cluster: &EtcdCluster) -> Arc<EtcdStore> {
    let store = EtcdStore::open(cluster.config("/muster/default")).await;
    Arc::new(store.expect("the cluster runs"))
}

#[tokio::test]
async fn promises_hold_while_leaders_are_killed() {
    let mut cluster = EtcdCluster::three().await;
    let store = open(&cluster).await;
    under_storm(store, 1, async {
        for _ in 0..3 {
            sleep(Duration::from_millis(300)).await;
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.leader().await;
            cluster.restart(leader);
            cluster.settled().await;
        }
    })
    .await;
}

#[tokio::test]
async fn promises_hold_while_members_are_stopped() {
    let cluster = EtcdCluster::three().await;
    let store = open(&cluster).await;
    under_storm(store, 2, async {
        for index in 0..cluster.count() {
            // The leader last, so that it is stopped at least once.
            let leader = cluster.leader().await;
            let stopped = if index == 2 { leader } else { index };
            cluster.pause(stopped);
            sleep(Duration::from_secs(3)).await;
            cluster.resume(stopped);
        }
    })
    .await;
}

#[tokio::test]
async fn promises_hold_while_all_members_restart() {
    let mut cluster = EtcdCluster::three().await;
    let store = open(&cluster).await;
    under_storm(store, 3, async {
        sleep(Duration::from_millis(300)).await;
        for index in 0..3 {
            cluster.kill(index);
        }
        for index in 0..3 {
            cluster.restart(index);
        }
        cluster.settled().await;
    })
    .await;
}

async fn create(store: &EtcdStore, name: &str) -> Result<u64, CommitError> {
    let key = Key::new(name);
    let txn = Txn {
        compares: vec![Compare::absent(key.clone())],
        ops: vec![Op::put(key, "x")],
    };
    store.commit(txn).await
}

#[tokio::test]
async fn a_lease_is_kept_alive_through_a_change_of_leader() {
    let mut cluster = EtcdCluster::three().await;
    let store = open(&cluster).await;
    let lease = store.grant(Duration::from_secs(20)).await.unwrap();
    let leader = cluster.leader().await;
    cluster.kill(leader);
    timeout(PATIENCE, async { while store.keep_alive(lease).await.is_err() {} })
        .await
        .expect("the other members go on");
    store.revoke(lease).await.unwrap();
    let gone = store.keep_alive(lease).await;
    assert!(matches!(gone, Err(muster_store::LeaseError::Gone(_))), "{gone:?}");
}

#[tokio::test]
async fn a_wiped_etcd_is_neither_read_nor_written() {
    let mut cluster = EtcdCluster::single().await;
    let store = open(&cluster).await;
    create(&store, "a").await.unwrap();
    cluster.wipe(0);
    cluster.restart(0);
    cluster.settled().await;
    // It has the same address and even the same cluster id; only our record is missing.
    let failure = timeout(PATIENCE, async {
        loop {
            match create(&store, "b").await {
                Err(CommitError::Store(Error::Fatal(text))) => return text,
                Err(CommitError::Unknown(_) | CommitError::Store(Error::Unavailable(_))) => {}
                other => panic!("{other:?}"),
            }
        }
    });
    let failure = failure.await.expect("it is noticed");
    assert!(failure.contains("wiped or restored"), "{failure}");
    assert!(
        matches!(store.get(&Key::new("a")).await, Err(Error::Fatal(_))),
        "and it stays so"
    );
    let config = EtcdConfig {
        expect_uid: Some(store.store_uid()),
        ..cluster.config("/muster/default")
    };
    assert!(
        EtcdStore::open(config).await.is_err(),
        "nor is it taken for the cluster at the next start"
    );
}

#[tokio::test]
async fn without_a_quorum_calls_fail_in_time_and_come_back() {
    let mut cluster = EtcdCluster::three().await;
    let store = open(&cluster).await;
    create(&store, "a").await.unwrap();
    cluster.kill(0);
    cluster.kill(1);
    let result = timeout(PATIENCE, create(&store, "b"))
        .await
        .expect("there is a deadline");
    assert!(
        matches!(
            &result,
            Err(CommitError::Unknown(_) | CommitError::Store(Error::Unavailable(_)))
        ),
        "{result:?}"
    );
    let result = timeout(PATIENCE, store.get(&Key::new("a")))
        .await
        .expect("there is a deadline");
    assert!(matches!(&result, Err(error) if error.is_retryable()), "{result:?}");
    cluster.restart(0);
    cluster.restart(1);
    cluster.settled().await;
    timeout(PATIENCE, async { while store.get(&Key::new("a")).await.is_err() {} })
        .await
        .expect("it comes back");
}

/// Counts a key up by compare-and-swap, `lanes` at once, each its own, until `over`; what was not acknowledged is looked up before the next.
/// Gives what was acknowledged of each, and how long the longest call took.
async fn counted(store: &Arc<EtcdStore>, lanes: usize, over: &AtomicBool) -> (Vec<u64>, Duration) {
    let lane = async |number: usize| {
        let key = Key::new(format!("counter/{number}"));
        let (mut seen, mut count, mut longest) = (0, 0, Duration::ZERO);
        while !over.load(Ordering::Relaxed) {
            let txn = Txn {
                compares: vec![Compare::modified(key.clone(), seen)],
                ops: vec![Op::put(key.clone(), (count + 1).to_string())],
            };
            let asked = Instant::now();
            // Nobody else writes the key: a conflict would be with what was told to have failed, or to have happened elsewhen.
            seen = store.commit(txn).await.expect("one member of three is not missed");
            longest = longest.max(asked.elapsed());
            count += 1;
        }
        (count, longest)
    };
    let lanes = futures::future::join_all((0..lanes).map(lane)).await;
    let longest = lanes.iter().map(|(_, longest)| *longest).max().unwrap_or_default();
    (lanes.into_iter().map(|(count, _)| count).collect(), longest)
}

/// Every write is acknowledged although the leader is gone, and none is lost or happens twice.
async fn nothing_is_unknown_after(store: &Arc<EtcdStore>, storm: impl Future<Output = ()>) {
    let over = AtomicBool::new(false);
    let storm = async {
        storm.await;
        over.store(true, Ordering::Relaxed);
    };
    let ((counts, longest), ()) = futures::join!(counted(store, 16, &over), storm);
    println!("the longest write took {longest:?}");
    assert!(longest < Duration::from_secs(5), "the deadline: {longest:?}");
    for (number, count) in counts.into_iter().enumerate() {
        let entry = store.get(&Key::new(format!("counter/{number}"))).await;
        let entry = entry.expect("the cluster runs").expect("it was counted");
        assert_eq!(entry.value, count.to_string(), "lane {number}");
    }
}

#[tokio::test]
async fn writes_under_way_outlive_the_leader_that_they_went_through() {
    let mut cluster = EtcdCluster::three().await;
    // Whoever is asked: the leader itself, or one who passes on to it.
    for first in 0..3 {
        let mut config = cluster.config("/muster/default");
        config.endpoints.rotate_left(first);
        let store = Arc::new(EtcdStore::open(config).await.expect("the cluster runs"));
        nothing_is_unknown_after(&store, async {
            let before = store.revision().await.expect("the cluster runs");
            while store.revision().await.expect("the cluster runs") < before + 100 {}
            let leader = cluster.leader().await;
            cluster.kill(leader);
            cluster.leader().await;
            cluster.restart(leader);
            cluster.settled().await;
        })
        .await;
        let keys = store
            .list(&muster_store::Prefix::new("counter/"), Default::default())
            .await
            .unwrap();
        for entry in keys.entries {
            let txn = Txn {
                compares: vec![Compare::modified(entry.key.clone(), entry.mod_revision)],
                ops: vec![Op::delete(entry.key)],
            };
            store.commit(txn).await.expect("the cluster runs");
        }
    }
}

#[tokio::test]
async fn writes_under_way_in_a_stopped_leader_happen_once() {
    let cluster = EtcdCluster::three().await;
    let leader = cluster.leader().await;
    let mut config = cluster.config("/muster/default");
    config.endpoints.rotate_left(leader);
    let store = Arc::new(EtcdStore::open(config).await.expect("the cluster runs"));
    nothing_is_unknown_after(&store, async {
        let before = store.revision().await.expect("the cluster runs");
        while store.revision().await.expect("the cluster runs") < before + 100 {}
        cluster.pause(leader);
        sleep(Duration::from_secs(3)).await;
        // Now it passes on what it was sent: too late, because it has happened.
        cluster.resume(leader);
        sleep(Duration::from_secs(2)).await;
    })
    .await;
}

#[tokio::test]
async fn a_conflict_that_was_told_stays_one_although_an_attempt_is_under_way() {
    let cluster = EtcdCluster::three().await;
    let leader = cluster.leader().await;
    let mut config = cluster.config("/muster/default");
    config.endpoints.rotate_left(leader);
    let store = EtcdStore::open(config.clone()).await.expect("the cluster runs");
    config.endpoints.remove(0);
    let other = EtcdStore::open(config).await.expect("the cluster runs");
    create(&store, "warm").await.unwrap();
    let created = create(&other, "k").await.unwrap();
    cluster.pause(leader);
    // One attempt waits in the stopped member; another one is answered.
    let told = create(&store, "k").await;
    assert!(matches!(told, Err(CommitError::Conflict { .. })), "{told:?}");
    let key = Key::new("k");
    let delete = Txn {
        compares: vec![Compare::modified(key.clone(), created)],
        ops: vec![Op::delete(key.clone())],
    };
    other.commit(delete).await.expect("two members go on");
    // Now the first attempt would find what it compares.
    cluster.resume(leader);
    sleep(Duration::from_secs(2)).await;
    assert_eq!(other.get(&key).await.unwrap(), None, "it was told to have failed");
}

#[tokio::test]
async fn slots_that_nobody_writes_are_removed_and_not_missed() {
    let cluster = EtcdCluster::single().await;
    let config = EtcdConfig {
        compaction: Some(Compaction {
            every: Duration::from_millis(100),
            keep: 0,
        }),
        ..cluster.config("/muster/default")
    };
    let store = EtcdStore::open(config).await.expect("the cluster runs");
    create(&store, "a").await.unwrap();
    let mut client = etcd_client::Client::connect(cluster.endpoints(), None).await.unwrap();
    timeout(PATIENCE, async {
        loop {
            let all = etcd_client::GetOptions::new().with_prefix().with_keys_only();
            if client
                .get("/muster/default/meta/slot/", Some(all))
                .await
                .unwrap()
                .kvs()
                .is_empty()
            {
                return;
            }
            sleep(Duration::from_millis(20)).await;
        }
    })
    .await
    .expect("they are removed");
    create(&store, "b").await.expect("another slot is made");
}
