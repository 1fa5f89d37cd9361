//! Agents that cannot be reached, by the real API server and controllers: who is replaced, who is given up, and who waits.

mod common;

use std::time::Duration;

use common::{Habit, TestAgent, TestCluster};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Reachability, Task, TaskReason};
use muster_client::Patch;
use muster_controllers::runtime::{Id, View};
use serde_json::{Value, json};
use tokio::time::Instant;

fn status<'a>(view: &'a View, name: &str) -> Option<&'a muster_api::v1::TaskStatus> {
    view.tasks.get(&Id::new("default", name))?.status.as_ref()
}

/// A cluster with a task on agent a1, which is then lost; the others, if any, are there.
async fn lost(unreachable: Value, others: usize) -> (TestCluster, common::Controllers, Instant) {
    let (cluster, controllers) = TestCluster::with_controllers().await;
    let agent = cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("t1", json!({ "unreachable": unreachable })).await;
    cluster.phase("t1", Phase::Running).await;
    for index in 0..others {
        cluster.agent(&format!("b{index}"), 4, Habit::Keep).await;
    }
    agent.vanish().await;
    let start = Instant::now();
    cluster
        .wait("loss", |view| {
            (status(view, "t1")?.reachability == Reachability::Unknown).then_some(())
        })
        .await;
    (cluster, controllers, start)
}

async fn say(cluster: &TestCluster, agent: &str, spec: Value) {
    let patch = Patch::Merge(json!({ "spec": spec }));
    cluster
        .admin
        .patch::<Agent>(None, agent, &patch)
        .await
        .expect("patched");
}

async fn replacements(cluster: &TestCluster) -> Vec<Task> {
    let tasks = cluster.admin.list::<Task>(Some("default")).await.expect("listed");
    tasks.items.into_iter().filter(|task| task.name() != "t1").collect()
}

#[tokio::test(start_paused = true)]
async fn a_task_is_replaced_once_and_stops_when_it_is_back() {
    let (cluster, controllers, start) = lost(json!({ "policy": "ReplaceAfter", "after": "30s" }), 2).await;
    let replacement = cluster
        .wait("its replacement", |view| status(view, "t1")?.replaced_by.clone())
        .await;
    assert!((30..33).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    cluster.phase(&replacement, Phase::Running).await;
    let task = cluster.phase("t1", Phase::Running).await;
    let told = &task.status.as_ref().expect("told").reachability_message;
    cluster
        .wait("the word", |view| {
            let text = &status(view, "t1")?.reachability_message;
            text.contains(&replacement).then_some(())
        })
        .await;
    assert!(told.contains("a1"), "{told}");
    // A new leader finds everything done.
    controllers.kill().await;
    let _second = cluster.controllers("c2");
    tokio::time::sleep(Duration::from_secs(300)).await;
    let all = replacements(&cluster).await;
    assert_eq!(all.len(), 1, "one replacement");
    let first: Task = cluster.admin.get(Some("default"), "t1").await.expect("there");
    let (before, after) = (first.status.expect("told"), all[0].status.clone().expect("told"));
    assert!(before.binding < after.binding, "{before:?} {after:?}");
    assert_eq!(
        first.spec.desired,
        muster_api::v1::Desired::Killed,
        "it stops when it hears of it"
    );
}

#[tokio::test(start_paused = true)]
async fn the_original_goes_on_if_it_is_to_be_kept() {
    let policy = json!({ "policy": "ReplaceAfter", "after": "30s", "keep": "Original" });
    let (cluster, _controllers, _) = lost(policy, 2).await;
    let replacement = cluster
        .wait("its replacement", |view| status(view, "t1")?.replaced_by.clone())
        .await;
    cluster.phase(&replacement, Phase::Running).await;
    cluster.agent("a1", 4, Habit::Keep).await;
    cluster
        .wait("the end of the replacement", |view| {
            let task = view.tasks.get(&Id::new("default", replacement.as_str()))?;
            (task.spec.desired == muster_api::v1::Desired::Killed).then_some(())
        })
        .await;
    let first: Task = cluster.admin.get(Some("default"), "t1").await.expect("there");
    assert_eq!(first.spec.desired, muster_api::v1::Desired::Run);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fences_itself_is_gone_in_time_and_its_resources_with_it() {
    let (cluster, _controllers, start) = lost(json!({ "policy": "SelfFence", "after": "20s" }), 2).await;
    let task = cluster.phase("t1", Phase::Gone).await;
    // 20 s, a tenth, 5 s to end and 2 s to spare.
    assert!((29..32).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    assert_eq!(
        task.status.as_ref().and_then(|status| status.reason),
        Some(TaskReason::SelfFenced)
    );
}

#[tokio::test(start_paused = true)]
async fn an_operators_word_is_proof() {
    let (cluster, _controllers, _) = lost(Value::Null, 0).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    let task: Task = cluster.admin.get(Some("default"), "t1").await.expect("there");
    assert_eq!(task.phase(), Phase::Running, "it waits");
    say(&cluster, "a1", json!({ "poweredOffAt": cluster.env.now().to_string() })).await;
    let task = cluster.phase("t1", Phase::Gone).await;
    assert_eq!(
        task.status.as_ref().and_then(|status| status.reason),
        Some(TaskReason::AgentPoweredOff)
    );
    let fenced = |view: &View| {
        let status = view.agents.get("a1")?.status.as_ref()?;
        (status.reachability == Reachability::Fenced).then_some(())
    };
    cluster.wait("its fence", fenced).await;
    // What was said does not hold for the next loss.
    tokio::time::sleep(Duration::from_secs(2)).await;
    let again = cluster.agent("a1", 4, Habit::Keep).await;
    cluster.task("t2", json!({})).await;
    cluster.phase("t2", Phase::Running).await;
    again.vanish().await;
    let believed = |view: &View| (status(view, "t2")?.reachability == Reachability::Unknown).then_some(());
    cluster.wait("loss", believed).await;
    tokio::time::sleep(Duration::from_secs(60)).await;
    let task: Task = cluster.admin.get(Some("default"), "t2").await.expect("there");
    assert_eq!(task.phase(), Phase::Running);
}

#[tokio::test(start_paused = true)]
async fn agents_that_are_lost_together_make_no_storm_under_any_leader() {
    let (cluster, controllers) = TestCluster::with_controllers().await;
    let mut agents: Vec<TestAgent> = Vec::new();
    for index in 0..4 {
        agents.push(cluster.agent(&format!("a{index}"), 1, Habit::Keep).await);
    }
    for index in 0..4 {
        let policy = json!({ "policy": if index % 2 == 0 { "ReplaceAfter" } else { "SelfFence" }, "after": "30s" });
        cluster
            .task(&format!("t{index}"), json!({ "unreachable": policy }))
            .await;
        cluster.phase(&format!("t{index}"), Phase::Running).await;
    }
    for agent in agents {
        agent.vanish().await;
    }
    let paused = |view: &View| {
        let all = view.agents.values().filter_map(|agent| agent.status.as_ref());
        let paused = |status: &&muster_api::v1::AgentStatus| {
            status
                .conditions
                .iter()
                .any(|condition| condition.type_ == "ReplacementPaused")
        };
        (all.filter(paused).count() == 4).then_some(())
    };
    cluster.wait("the brake", paused).await;
    tokio::time::sleep(Duration::from_secs(600)).await;
    controllers.kill().await;
    let _second = cluster.controllers("c2");
    tokio::time::sleep(Duration::from_secs(600)).await;
    let tasks = cluster.admin.list::<Task>(Some("default")).await.expect("listed");
    assert!(
        tasks.items.iter().all(|task| task.phase() == Phase::Running),
        "nobody is given up"
    );
    assert_eq!(tasks.items.len(), 4, "nobody is replaced");
    // An operator has looked at one of them; the others come back.
    say(
        &cluster,
        "a1",
        json!({ "brakeReleasedAt": cluster.env.now().to_string() }),
    )
    .await;
    cluster.phase("t1", Phase::Gone).await;
    for index in [0, 2, 3] {
        cluster.agent(&format!("a{index}"), 1, Habit::Keep).await;
    }
    let resumed = |view: &View| {
        let all = view.agents.values().filter_map(|agent| agent.status.as_ref());
        let paused = all.flat_map(|status| &status.conditions);
        (paused
            .filter(|condition| condition.type_ == "ReplacementPaused")
            .count()
            == 0)
            .then_some(())
    };
    cluster.wait("the end of the brake", resumed).await;
}
