//! Several processes of controllers: one leads, and what a former leader still sends is refused.

mod common;

use std::time::Duration;

use common::{Habit, TestCluster, User, phases};
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::wire::{AgentOffers, OfferRef};
use muster_client::Error;
use muster_controllers::runtime::{Id, View};
use serde_json::{Value, json};
use tokio::time::Instant;

fn leader(view: &View) -> Option<String> {
    let lease = view
        .leases
        .get(&Id::new(names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS))?;
    lease.spec.as_ref()?.holder_identity.clone()
}

#[tokio::test(start_paused = true)]
async fn one_leads_and_the_other_takes_over_at_once_when_it_leaves() {
    let cluster = TestCluster::start().await;
    let first = cluster.controllers("c1");
    cluster
        .wait("a leader", |view| leader(view).filter(|name| name == "c1"))
        .await;
    let second = cluster.controllers("c2");
    cluster.agent("a1", 4, Habit::Finish).await;
    cluster.task("t1", json!({})).await;
    cluster.phase("t1", Phase::Finished).await;
    assert_eq!(leader(&cluster.view()).as_deref(), Some("c1"));
    let start = Instant::now();
    first.stop().await;
    cluster
        .wait("another leader", |view| leader(view).filter(|name| name == "c2"))
        .await;
    assert!(start.elapsed() < Duration::from_millis(100), "{:?}", start.elapsed());
    cluster.task("t2", json!({})).await;
    cluster.phase("t2", Phase::Finished).await;
    second.stop().await;
}

#[tokio::test(start_paused = true)]
async fn a_leader_that_dies_is_followed_when_its_lease_ends() {
    let cluster = TestCluster::start().await;
    let first = cluster.controllers("c1");
    cluster
        .wait("a leader", |view| leader(view).filter(|name| name == "c1"))
        .await;
    let _second = cluster.controllers("c2");
    cluster.agent("a1", 4, Habit::Finish).await;
    let start = Instant::now();
    first.kill().await;
    cluster.task("t1", json!({})).await;
    cluster.phase("t1", Phase::Finished).await;
    assert_eq!(leader(&cluster.view()).as_deref(), Some("c2"));
    assert!(start.elapsed() < Duration::from_secs(4), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn the_late_write_of_a_former_leader_is_refused() {
    let cluster = TestCluster::start().await;
    cluster.agent("a1", 4, Habit::Keep).await;
    let client = cluster.server.client(User::Controllers);
    let ttl = Duration::from_secs(3);
    let (namespace, name) = (names::NAMESPACE_SYSTEM, names::LEASE_CONTROLLERS);
    let fence = client
        .create_ephemeral_lease(namespace, name, "old", ttl)
        .await
        .expect("leads");
    let old = client.fenced(&fence);
    let path = "/apis/muster.dev/v1/namespaces/default/frameworks";
    let framework = |name: &str| {
        json!({
            "apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": { "name": name, "namespace": "default" },
            "spec": { "scheduler": "External", "demand": { "minimum": { "cpus": 1 } } },
        })
    };
    old.create_at::<_, Value>(path, &framework("f1"))
        .await
        .expect("it leads");
    // It sleeps through the end of its lease; somebody else leads and makes an offer.
    let _new = cluster.controllers("c1");
    let offer = cluster
        .wait("an offer", |view| view.offers.values().next().cloned())
        .await;
    let late = old.create_at::<_, Value>(path, &framework("f2")).await;
    assert!(matches!(late, Err(Error::Fenced(_))), "{late:?}");
    let request = AgentOffers {
        seen_revision: cluster.view().revision,
        create: Vec::new(),
        delete: vec![OfferRef {
            namespace: "default".to_owned(),
            name: offer.metadata.name.clone().expect("a name"),
            uid: offer.metadata.uid.clone().expect("a uid"),
        }],
    };
    let late = old.agent_offers("a1", &request).await;
    assert!(matches!(late, Err(Error::Fenced(_))), "{late:?}");
    let late = old.put_plan(&Default::default()).await;
    assert!(matches!(late, Err(Error::Fenced(_))), "{late:?}");
    let view = cluster.view();
    assert_eq!((view.offers.len(), view.frameworks.len()), (1, 1));
}

#[tokio::test(start_paused = true)]
async fn a_change_of_leaders_in_the_middle_of_work_loses_and_doubles_nothing() {
    let cluster = TestCluster::start().await;
    let check = cluster.watch_capacity();
    for name in ["a1", "a2"] {
        cluster.agent(name, 3, Habit::Finish).await;
    }
    let mut current = cluster.controllers("c0");
    for round in 0..6 {
        for index in 0..10 {
            cluster.task(&format!("t{round}-{index}"), json!({})).await;
        }
        let next = cluster.controllers(&format!("c{}", round + 1));
        if round % 2 == 0 {
            current.stop().await
        } else {
            current.kill().await
        }
        current = next;
    }
    let all = |view: &View| (phases(view).get(&Phase::Finished) == Some(&60)).then_some(());
    cluster.wait("the end of 60 tasks", all).await;
    check.assert_kept();
    current.stop().await;
}
