//! What the store costs over the bare client: commits per second, one after the other and 16 or 64 at once.
//!
//! Each commit compares the last revision of a key of its own and writes 1 KiB to it. Both kinds run in turn against the same etcd, one
//! member and then three. `cargo bench -p muster-store --bench etcd`.

use std::sync::Arc;
use std::time::Duration;

use etcd_client::{Client, Compare as EtcdCompare, CompareOp, Txn as EtcdTxn, TxnOp};
use futures::future::join_all;
use muster_store::testing::{EtcdCluster, EtcdOptions};
use muster_store::{Compare, EtcdStore, Key, Op, Store, Txn};
use tokio::time::Instant;

const VALUE: [u8; 1024] = [b'x'; 1024];

async fn through_the_store(store: Arc<EtcdStore>, lane: usize, end: Instant) -> u64 {
    let key = Key::new(format!("bench/{lane}"));
    let mut seen = store
        .get(&key)
        .await
        .expect("etcd runs")
        .map_or(0, |entry| entry.mod_revision);
    let mut count = 0;
    while Instant::now() < end {
        let txn = Txn {
            compares: vec![Compare::modified(key.clone(), seen)],
            ops: vec![Op::put(key.clone(), VALUE.to_vec())],
        };
        seen = store.commit(txn).await.expect("nobody else writes");
        count += 1;
    }
    count
}

async fn through_the_client(client: Client, lane: usize, end: Instant) -> u64 {
    let key = format!("/raw/{lane}");
    let mut kv = client.kv_client();
    let found = kv.get(key.clone(), None).await.expect("etcd runs");
    let mut seen = found.kvs().first().map_or(0, |found| found.mod_revision());
    let mut count = 0;
    while Instant::now() < end {
        let request = EtcdTxn::new()
            .when([EtcdCompare::mod_revision(key.clone(), CompareOp::Equal, seen)])
            .and_then([TxnOp::put(key.clone(), VALUE, None)]);
        let answer = kv.txn(request).await.expect("etcd runs");
        assert!(answer.succeeded(), "nobody else writes");
        seen = answer.header().expect("it has one").revision();
        count += 1;
    }
    count
}

fn per_second(counts: Vec<u64>, length: Duration) -> f64 {
    counts.into_iter().sum::<u64>() as f64 / length.as_secs_f64()
}

#[tokio::main]
async fn main() {
    // `cargo test --benches` only wants to know that it starts.
    let measured = std::env::args().any(|arg| arg == "--bench");
    let length = Duration::from_millis(if measured { 3_000 } else { 20 });
    println!("members  at once  store/s  client/s");
    for members in [1, 3] {
        let cluster = EtcdCluster::start(EtcdOptions {
            members,
            ..EtcdOptions::default()
        })
        .await;
        let store = Arc::new(
            EtcdStore::open(cluster.config("/muster/bench"))
                .await
                .expect("etcd runs"),
        );
        let client = Client::connect([&cluster.endpoints()[0]], None)
            .await
            .expect("etcd runs");
        for lanes in [1, 16, 64] {
            let end = Instant::now() + length;
            let stored =
                join_all((0..lanes).map(|lane| tokio::spawn(through_the_store(store.clone(), lane, end)))).await;
            let end = Instant::now() + length;
            let raw =
                join_all((0..lanes).map(|lane| tokio::spawn(through_the_client(client.clone(), lane, end)))).await;
            let [stored, raw] = [stored, raw].map(|all| {
                per_second(
                    all.into_iter().map(|count| count.expect("no lane panics")).collect(),
                    length,
                )
            });
            println!("{members:>7}  {lanes:>7}  {stored:>7.0}  {raw:>8.0}");
        }
    }
}
