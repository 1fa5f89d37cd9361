//! Agents that must not trust what they see: another cluster, a restored store, a second machine of their name, clocks that jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use muster_agentd::data_dir::DataDir;
use muster_agentd::session::Identity;
use muster_agentd::{Config, Error};
use muster_api::names::NAMESPACE_AGENTS;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, RestartPolicy, TaskReason};
use muster_apiserver::logs::NoLogs;
use muster_client::Patch;
use muster_runtime::{FakeRuntime, Runtime as _, State};
use muster_store::{Compare, MemoryStore, Op, Store as _, Txn};
use serde_json::json;
use tokio::time::{Instant, sleep};

use crate::cluster::{Cluster, Running, until};

type Event = k8s_openapi::api::core::v1::Event;
type Lease = k8s_openapi::api::coordination::v1::Lease;

/// A cluster with the uid of another, but nothing else of it: a store that was restored from an early backup.
async fn restored(of: &str) -> Cluster {
    let store = MemoryStore::new();
    let key = muster_apiserver::keys::cluster();
    let txn = Txn {
        compares: vec![Compare::absent(key.clone())],
        ops: vec![Op::put(key, of.to_owned())],
    };
    store.commit(txn).await.expect("an empty store takes it");
    Cluster::on(Arc::new(store), Arc::new(NoLogs)).await
}

fn with_data(cluster: &Cluster, incarnation: u64, data: &tempfile::TempDir) -> Config {
    Config {
        data: DataDir::at(data.path()),
        ..cluster.config(incarnation)
    }
}

async fn condition(cluster: &Cluster, type_: &str) -> Option<String> {
    let conditions = cluster.agent().await?.status?.conditions;
    let found = conditions.into_iter().find(|condition| condition.type_ == type_);
    found.filter(|found| found.status == "True").map(|found| found.message)
}

async fn running(machine: &FakeRuntime) -> usize {
    let containers = machine.list().await.expect("it lists");
    let runs = |state: &State| matches!(state, State::Running { .. });
    containers.iter().filter(|container| runs(&container.state)).count()
}

/// An agent with a running task in one cluster, and then another cluster behind the same address.
async fn switched_to(other: &Cluster, cluster: &Cluster, machine: &FakeRuntime) -> (Running, tempfile::TempDir) {
    let data = tempfile::tempdir().expect("a directory");
    let switched = Arc::new(AtomicBool::new(false));
    let client = cluster.switchable(other, Arc::clone(&switched));
    let agent = cluster.run_with(machine, with_data(cluster, 1, &data), client);
    until("it joins", async || cluster.session().await.is_some()).await;
    cluster.launch(&["sleep 100000", "sleep 100000"], |_| {}).await;
    until("they run", async || running(machine).await == 2).await;
    switched.store(true, Ordering::Relaxed);
    cluster.stop();
    (agent, data)
}

async fn confirm(cluster: &Cluster, message: &str) {
    let token = muster_agentd::trust::token_in(message).expect("it says how to go on");
    let patch = json!({ "metadata": { "annotations": { "muster.dev/confirmed-store": token } } });
    cluster
        .admin
        .patch::<Agent>(None, "a1", &Patch::Merge(patch))
        .await
        .expect("annotated");
}

#[tokio::test(start_paused = true)]
async fn another_cluster_behind_the_address_stops_nothing_until_an_operator_confirms() {
    let (cluster, other) = (Cluster::new().await, restored("other").await);
    let machine = cluster.machine();
    let (agent, data) = switched_to(&other, &cluster, &machine).await;
    until("it says so", async || {
        condition(&other, "StoreRegressed").await.is_some()
    })
    .await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(running(&machine).await, 2, "nothing is stopped");
    // Nor after a restart of the agent, which now sees the other one only.
    agent.crash().await;
    let client = other.client("a1");
    let _second = other.run_with(&machine, with_data(&cluster, 2, &data), client);
    sleep(Duration::from_secs(600)).await;
    assert_eq!(running(&machine).await, 2, "it remembers");
    let ready = other
        .agent()
        .await
        .and_then(|agent| agent.status)
        .expect("it is told")
        .conditions;
    assert_eq!((ready[0].type_.as_str(), ready[0].status.as_str()), ("Ready", "False"));
    // A word about something else does not count.
    confirm(&other, "muster.dev/confirmed-store=another").await;
    sleep(Duration::from_secs(120)).await;
    assert_eq!(running(&machine).await, 2);
    let message = condition(&other, "StoreRegressed").await.expect("it says so");
    confirm(&other, &message).await;
    until("what the cluster does not know is stopped", async || {
        running(&machine).await == 0
    })
    .await;
    until("it says so", async || {
        condition(&other, "StoreRegressed").await.is_none()
    })
    .await;
}

#[tokio::test(start_paused = true)]
async fn a_store_that_went_back_starts_and_stops_nothing() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    for _ in 0..20 {
        // So that its revision is higher than that of the restored one will be.
        cluster
            .admin
            .create::<Event>(Some("default"), &note())
            .await
            .expect("recorded");
    }
    let other = restored(&cluster.uid().await).await;
    let (_agent, _data) = switched_to(&other, &cluster, &machine).await;
    until("it says so", async || {
        condition(&other, "StoreRegressed").await.is_some()
    })
    .await;
    // A task that the restored store binds to it is not started.
    other.launch(&["sleep 5"], |_| {}).await;
    sleep(Duration::from_secs(300)).await;
    assert_eq!(
        (running(&machine).await, other.phase("t0").await),
        (2, Some(Phase::Staging))
    );
    let message = condition(&other, "StoreRegressed").await.expect("it says so");
    assert!(message.contains("a backup was restored"), "{message}");
    confirm(&other, &message).await;
    other.reaches("t0", Phase::Finished).await;
}

fn note() -> Event {
    serde_json::from_value(json!({
        "metadata": { "generateName": "note-", "namespace": "default" },
        "involvedObject": { "kind": "Agent", "name": "a1" }, "reason": "Noted", "message": "noted",
    }))
    .expect("an event")
}

async fn duplicates(cluster: &Cluster) -> usize {
    let events = cluster.admin.list::<Event>(Some("default")).await.expect("listed");
    let reasons = events.items.iter().filter_map(|event| event.reason.as_deref());
    reasons.filter(|reason| *reason == "DuplicateAgent").count()
}

fn identified(cluster: &Cluster, machine: &str, boot_id: &str, incarnation: u64) -> Config {
    Config {
        identity: Identity {
            machine: machine.to_owned(),
            boot_id: boot_id.to_owned(),
            incarnation,
        },
        ..cluster.config(incarnation)
    }
}

#[tokio::test(start_paused = true)]
async fn a_second_machine_or_a_copy_of_the_disk_is_refused_while_the_first_lives() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = cluster.joined(&machine, 1).await;
    let session = cluster.session().await;
    for (index, (of, boot)) in [("m2", "b1"), ("m1", "b2")].into_iter().enumerate() {
        let second = cluster.run(&cluster.machine(), identified(&cluster, of, boot, 2));
        until("it is told", async || duplicates(&cluster).await == index + 1).await;
        sleep(Duration::from_secs(600)).await;
        assert_eq!(cluster.session().await, session, "the first keeps its session");
        assert!(!second.task.is_finished(), "the second waits");
        second.crash().await;
    }
    assert_eq!(duplicates(&cluster).await, 2, "told once each");
    cluster.launch(&["sleep 1"], |_| {}).await;
    cluster.reaches("t0", Phase::Finished).await;
    first.crash().await;
}

#[tokio::test(start_paused = true)]
async fn of_two_copies_of_a_disk_only_the_one_that_spoke_last_goes_on() {
    let cluster = Cluster::new().await;
    cluster.joined(&cluster.machine(), 1).await.crash().await;
    // The copy has another boot, so it waits for the end of the session.
    let copy = cluster.run(&cluster.machine(), identified(&cluster, "m1", "b2", 2));
    let start = Instant::now();
    let before = cluster.session().await;
    until("the copy speaks", async || cluster.session().await > before).await;
    assert!((10..=20).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    copy.crash().await;
    let original = cluster.run(&cluster.machine(), cluster.config(2));
    let error = original.task.await.expect("no panic").expect_err("it is refused");
    assert!(matches!(error, Error::Refused(_)), "{error}");
    assert!(error.to_string().contains("cloned, or set back"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn what_a_restart_of_the_machine_ended_is_told_as_that_and_run_again() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 1000"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    let policy = |spec: &mut muster_api::v1::TaskSpec| spec.restart_policy = RestartPolicy::OnFailure;
    let again = cluster.container("t0", 1).await;
    first.crash().await;
    machine.reboot();
    let rebooted = cluster.run(&machine, identified(&cluster, "m1", "b2", 2));
    let status = cluster.reaches("t0", Phase::Failed).await.status.expect("it is told");
    assert_eq!(status.reason, Some(TaskReason::HostRebooted));
    assert_eq!(machine.starts(&again), 1);
    cluster.delete("t0").await;
    until("it is gone", async || cluster.task("t0").await.is_none()).await;
    cluster.launch(&["sleep 1000"], policy).await;
    cluster.reaches("t0", Phase::Running).await;
    let second = cluster.container("t0", 2).await;
    rebooted.crash().await;
    machine.reboot();
    let _third = cluster.run(&machine, identified(&cluster, "m1", "b3", 3));
    until("it runs again", async || machine.starts(&second) == 1).await;
}

#[tokio::test(start_paused = true)]
async fn a_wall_clock_that_jumps_costs_no_session_and_no_task() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _agent = cluster.joined(&machine, 1).await;
    cluster
        .launch(&["sleep 100000"], |spec| {
            spec.unreachable = Some(muster_api::v1::Unreachable {
                policy: muster_api::v1::UnreachablePolicy::SelfFence,
                after: Some(muster_api::duration::Span::from_secs(20)),
                keep: None,
            });
        })
        .await;
    cluster.reaches("t0", Phase::Running).await;
    let session = cluster.session().await;
    let lease: Lease = cluster.admin.get(Some(NAMESPACE_AGENTS), "a1").await.expect("there");
    for second in 0..600 {
        let off = [0, 3_600_000, -3_600_000, 60_000][second % 4];
        cluster.env.jump_ms.store(off, Ordering::Relaxed);
        sleep(Duration::from_secs(1)).await;
    }
    assert_eq!(cluster.session().await, session);
    let after: Lease = cluster.admin.get(Some(NAMESPACE_AGENTS), "a1").await.expect("there");
    assert_eq!(after.metadata.uid, lease.metadata.uid);
    let task = cluster.task("t0").await.expect("there");
    assert_eq!(
        (task.phase(), task.status.expect("told").attempts.len()),
        (Phase::Running, 1)
    );
}
