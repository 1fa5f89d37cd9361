//! What remains true while members of etcd are killed, stopped, restarted, wiped or exchanged.

use std::sync::Arc;
use std::time::Duration;

use muster_store::conformance::under_storm;
use muster_store::testing::EtcdCluster;
use muster_store::{Compare, Error, EtcdConfig, EtcdStore, Key, Op, Store, Txn};
use tokio::time::{sleep, timeout};

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

async fn create(store: &EtcdStore, name: &str) -> Result<u64, muster_store::CommitError> {
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
                Err(muster_store::CommitError::Store(Error::Fatal(text))) => return text,
                Err(muster_store::CommitError::Store(Error::Unavailable(_))) => {}
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
        matches!(&result, Err(muster_store::CommitError::Store(error)) if error.is_retryable()),
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
