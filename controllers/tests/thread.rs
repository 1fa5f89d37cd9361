//! The thread through everything: a task is applied, offered, bound, run and ended, by the real API server and controllers.

mod common;

use std::time::Duration;

use common::{Habit, TestCluster, phases};
use muster_api::task_state::Phase;
use muster_api::v1::{OfferPhase, Reachability, TaskReason};
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_client::{Error, Patch};
use muster_controllers::runtime::Id;
use serde_json::json;
use tokio::time::Instant;

fn id(name: &str) -> Id {
    Id::new("default", name)
}

#[tokio::test(start_paused = true)]
async fn a_task_is_offered_bound_run_and_finished() {
    let (cluster, controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 4, Habit::Finish).await;
    cluster.task("hello", json!({})).await;
    let task = cluster.phase("hello", Phase::Finished).await;
    let status = task.status.as_ref().expect("a status");
    assert_eq!(status.agent.as_deref(), Some("a1"));
    assert!(
        status.offer.as_deref().is_some_and(|offer| offer.starts_with("a1-")),
        "{status:?}"
    );
    assert_eq!(status.exit_code, Some(0));
    let ready = status
        .conditions
        .iter()
        .find(|condition| condition.type_ == "Ready")
        .expect("a condition");
    assert_eq!((ready.status.as_str(), ready.reason.as_str()), ("True", "Completed"));
    cluster
        .wait("the offer's end", |view| view.offers.is_empty().then_some(()))
        .await;
    let said = |view: &muster_controllers::runtime::View| (view.events.len() >= 2).then_some(());
    cluster.wait("events", said).await;
    controllers.stop().await;
}

#[tokio::test(start_paused = true)]
async fn binding_takes_a_few_milliseconds() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("first", json!({})).await;
    cluster.phase("first", Phase::Running).await;
    let start = Instant::now();
    cluster.task("second", json!({})).await;
    cluster.phase("second", Phase::Running).await;
    assert!(start.elapsed() <= Duration::from_millis(20), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn no_agent_gives_out_more_than_it_has() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let check = cluster.watch_capacity();
    for name in ["a1", "a2", "a3"] {
        cluster.agent(name, 4, Habit::Finish).await;
    }
    for index in 0..200 {
        let cpus = ["0.5", "1", "1.5", "3"][index % 4];
        let spec = json!({ "resources": { "cpus": cpus, "memory": "128Mi", "ports": index % 3 } });
        cluster.task(&format!("t{index}"), spec).await;
    }
    let all =
        |view: &muster_controllers::runtime::View| (phases(view).get(&Phase::Finished) == Some(&200)).then_some(());
    cluster.wait("the end of 200 tasks", all).await;
    assert!(check.assert_kept() > 200);
}

#[tokio::test(start_paused = true)]
async fn a_full_cluster_takes_the_next_task_when_one_ends() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 1, Habit::Keep).await;
    cluster.task("first", json!({})).await;
    cluster.phase("first", Phase::Running).await;
    cluster.task("second", json!({})).await;
    let waits = |view: &muster_controllers::runtime::View| {
        let status = view.tasks.get(&id("second"))?.status.clone()?;
        (status.reason == Some(TaskReason::WaitingForResources)).then_some(status)
    };
    let status = cluster.wait("its reason", waits).await;
    assert!(!status.message.is_empty());
    let why = cluster.admin.why("default", "second").await.expect("reasons");
    assert_eq!((why.task.as_str(), why.position, why.agents.len()), ("second", 1, 1));
    let end = Patch::Merge(json!({ "status": { "phase": "Failed", "reason": "NonZeroExit", "exitCode": 1 } }));
    cluster
        .admin
        .patch_status::<muster_api::v1::Task>(Some("default"), "first", &end)
        .await
        .expect("ended");
    cluster.phase("second", Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fits_nowhere_stalls_with_the_numbers() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 4, Habit::Keep).await;
    cluster
        .task("huge", json!({ "resources": { "cpus": 64, "memory": "1Gi" } }))
        .await;
    let stalls = |view: &muster_controllers::runtime::View| {
        let status = view.tasks.get(&id("huge"))?.status.clone()?;
        let stalled = status.conditions.iter().any(|condition| condition.type_ == "Stalled");
        (stalled && status.reason == Some(TaskReason::ExceedsEveryAgent)).then_some(status)
    };
    let status = cluster.wait("a stalled task", stalls).await;
    assert!(status.message.contains("64"), "{}", status.message);
    // A larger agent joins, and the task goes on by itself.
    cluster.agent("a2", 64, Habit::Keep).await;
    cluster.phase("huge", Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_declined_offer_does_not_come_back_before_its_time() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let framework = json!({
        "apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": { "name": "mine", "namespace": "default" },
        "spec": { "scheduler": "External", "demand": { "minimum": { "cpus": 1, "memory": "64Mi" } } },
    });
    let path = "/apis/muster.dev/v1/namespaces/default/frameworks";
    cluster
        .admin
        .create_at::<_, serde_json::Value>(path, &framework)
        .await
        .expect("a framework");
    cluster.agent("a1", 4, Habit::Finish).await;
    let open = |view: &muster_controllers::runtime::View| {
        view.offers
            .values()
            .find(|offer| offer.phase() == OfferPhase::Open)
            .cloned()
    };
    let first = cluster.wait("an offer", open).await;
    let name = first.metadata.name.clone().expect("a name");
    let refuse = DeclineRequest {
        refuse: Some("10s".parse().expect("a span")),
    };
    let declined = Instant::now();
    cluster
        .admin
        .decline("default", &name, &refuse)
        .await
        .expect("declined");
    cluster
        .wait("the refusal", |view| open(view).is_none().then_some(()))
        .await;
    let second = cluster.wait("another offer", open).await;
    let after = declined.elapsed();
    assert!((10..12).contains(&after.as_secs()), "{after:?}");

    // The framework answers with a task of its own.
    let launch = json!({
        "metadata": { "name": "own" },
        "spec": { "framework": "mine", "command": ["true"], "resources": { "cpus": 2, "memory": "64Mi" } },
    });
    let request = AcceptRequest {
        launch: vec![launch],
        ..AcceptRequest::default()
    };
    let name = second.metadata.name.clone().expect("a name");
    let result = cluster
        .admin
        .accept("default", &name, &request)
        .await
        .expect("accepted");
    assert_eq!(result.tasks, ["own"]);
    cluster.phase("own", Phase::Finished).await;
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_nobody_answers_expires_and_is_made_again() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let framework = json!({
        "apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": { "name": "slow", "namespace": "default" },
        "spec": { "scheduler": "External" },
    });
    let path = "/apis/muster.dev/v1/namespaces/default/frameworks";
    cluster
        .admin
        .create_at::<_, serde_json::Value>(path, &framework)
        .await
        .expect("a framework");
    cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("t1", json!({ "framework": "slow" })).await;
    let one = |view: &muster_controllers::runtime::View| view.offers.keys().next().cloned();
    let first = cluster.wait("an offer", one).await;
    let start = Instant::now();
    let other = |view: &muster_controllers::runtime::View| one(view).filter(|offer| *offer != first);
    cluster.wait("another offer", other).await;
    assert!((29..32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn what_is_believed_of_an_agent_follows_its_presence() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let agent = cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("t1", json!({})).await;
    cluster.phase("t1", Phase::Running).await;
    agent.vanish().await;
    let believed = |belief: Reachability| {
        move |view: &muster_controllers::runtime::View| {
            let agent = view.agents.get("a1")?.status.clone()?;
            let task = view.tasks.get(&id("t1"))?;
            let status = task.status.clone()?;
            let same = agent.reachability == belief && status.reachability == belief;
            (same && task.phase() == Phase::Running).then_some(())
        }
    };
    cluster.wait("loss", believed(Reachability::Unknown)).await;
    cluster.task("t2", json!({})).await;
    let reason = |view: &muster_controllers::runtime::View| view.tasks.get(&id("t2"))?.status.clone()?.reason;
    cluster
        .wait("a reason", |view| {
            reason(view).filter(|reason| *reason != TaskReason::AwaitingOffer)
        })
        .await;
    cluster.agent("a1", 4, Habit::Keep).await;
    cluster.wait("return", believed(Reachability::Reachable)).await;
    cluster.phase("t2", Phase::Running).await;
}

#[tokio::test(start_paused = true)]
async fn a_waiting_task_is_killed_and_an_ended_one_deleted_in_time() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.task("waiting", json!({})).await;
    let kill = Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
    cluster
        .admin
        .patch::<muster_api::v1::Task>(Some("default"), "waiting", &kill)
        .await
        .expect("patched");
    let killed = cluster.phase("waiting", Phase::Killed).await;
    assert_eq!(
        killed.status.as_ref().expect("a status").reason,
        Some(TaskReason::KillRequested)
    );

    cluster
        .task("brief", json!({ "ttlAfterFinished": "20s", "desired": "Killed" }))
        .await;
    cluster.phase("brief", Phase::Killed).await;
    let start = Instant::now();
    cluster
        .wait("its deletion", |view| {
            (!view.ended.contains_key(&id("brief"))).then_some(())
        })
        .await;
    assert!((19..22).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn tasks_of_a_removed_agent_are_gone() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let agent = cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("t1", json!({})).await;
    cluster.phase("t1", Phase::Running).await;
    agent.vanish().await;
    cluster
        .admin
        .delete::<muster_api::v1::Agent>(None, "a1", &Default::default())
        .await
        .expect("deleted");
    let task = cluster.phase("t1", Phase::Gone).await;
    assert_eq!(
        task.status.as_ref().expect("a status").reason,
        Some(TaskReason::AgentRemoved)
    );
    cluster
        .admin
        .delete::<muster_api::v1::Task>(Some("default"), "t1", &Default::default())
        .await
        .expect("deleted");
    cluster
        .wait("its deletion", |view| {
            (!view.ended.contains_key(&id("t1"))).then_some(())
        })
        .await;
}

#[tokio::test(start_paused = true)]
async fn tasks_bound_before_the_controllers_started_are_respected() {
    let (cluster, controllers) = TestCluster::with_controllers().await;
    let check = cluster.watch_capacity();
    cluster.agent("a1", 2, Habit::Keep).await;
    cluster.task("t1", json!({})).await;
    cluster.phase("t1", Phase::Running).await;
    controllers.stop().await;
    for name in ["t2", "t3"] {
        cluster.task(name, json!({})).await;
    }
    let _again = cluster.controllers("c2");
    let two = |view: &muster_controllers::runtime::View| (phases(view).get(&Phase::Running) == Some(&2)).then_some(());
    cluster.wait("two running tasks", two).await;
    let waits = |view: &muster_controllers::runtime::View| {
        let waiting = |name: &str| {
            let reason = view.tasks.get(&id(name))?.status.as_ref()?.reason;
            (reason == Some(TaskReason::WaitingForResources)).then_some(())
        };
        waiting("t2").or(waiting("t3"))
    };
    cluster.wait("one waiting task", waits).await;
    check.assert_kept();
}

#[tokio::test(start_paused = true)]
async fn what_only_the_leader_may_do_is_refused_without_its_lease() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 2, Habit::Keep).await;
    let client = cluster.server.client(common::User::Controllers);
    let error = client
        .agent_offers("a1", &Default::default())
        .await
        .expect_err("unfenced");
    assert!(
        matches!(&error, Error::Refused(status) if status.code == 428),
        "{error:?}"
    );
}
