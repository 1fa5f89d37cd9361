//! Whole agents against the real router, with fake runtimes, on virtual time.

mod cluster;
mod faults;
mod given;
mod logs;
mod process;
mod trust;

use std::sync::Arc;
use std::time::Duration;

use cluster::{Cluster, until};
use muster_agentd::Error;
use muster_agentd::session::Identity;
use muster_api::names::NAMESPACE_AGENTS;
use muster_api::task_state::Phase;
use muster_api::v1::{RestartPolicy, Task, TaskReason};
use muster_client::{Error as CallError, Patch, Preconditions};
use muster_runtime::{Runtime as _, State};
use serde_json::json;
use tokio::time::{Instant, sleep};

type Lease = k8s_openapi::api::coordination::v1::Lease;

#[tokio::test(start_paused = true)]
async fn an_agent_joins_with_what_it_has() {
    let cluster = Cluster::new().await;
    let running = cluster.joined(&cluster.machine(), 1).await;
    let agent = cluster.agent().await.expect("it joined");
    assert_eq!(agent.spec.attributes["zone"], "z1");
    assert_eq!(agent.spec.attributes["hostname"], "a1");
    let status = agent.status.clone().expect("it is told");
    assert_eq!(status.capacity.gpus, 2);
    assert_eq!(agent.allocatable().amounts().gpus, 2);
    assert_eq!(status.boot_id.as_deref(), Some("b1"));
    assert!(
        status
            .conditions
            .iter()
            .any(|condition| condition.type_ == "Ready" && condition.status == "True")
    );
    assert!(running.ends().await.is_ok());
}

#[tokio::test(start_paused = true)]
async fn a_task_is_run_and_told_to_the_end() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    cluster
        .launch(&["sleep 5", "false", "fake cannot-run=nothing"], |_| {})
        .await;
    cluster.reaches("t0", Phase::Running).await;
    let task = cluster.reaches("t0", Phase::Finished).await;
    let status = task.status.expect("it is told");
    assert_eq!(status.exit_code, Some(0));
    assert_eq!(status.attempts.len(), 1);
    assert!(status.started_at.is_some() && status.finished_at.is_some());
    let failed = cluster.reaches("t1", Phase::Failed).await.status.expect("it is told");
    assert_eq!(
        (failed.reason, failed.exit_code),
        (Some(TaskReason::NonZeroExit), Some(1))
    );
    let unlaunched = cluster.reaches("t2", Phase::Failed).await.status.expect("it is told");
    assert_eq!(unlaunched.reason, Some(TaskReason::LaunchFailed));
    assert_eq!(machine.starts(&cluster.container("t0", 1).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_command_runs_within_a_moment_of_being_bound() {
    let cluster = Cluster::new().await;
    let _running = cluster.joined(&cluster.machine(), 1).await;
    let start = Instant::now();
    cluster.launch(&["sleep 60"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    assert!(start.elapsed() <= Duration::from_millis(100), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_starts_again_finds_what_ran_and_tells_what_ended_meanwhile() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 1000", "sleep 30", "sleep 40"], |_| {}).await;
    for task in ["t0", "t1", "t2"] {
        cluster.reaches(task, Phase::Running).await;
    }
    first.crash().await;
    let killed = cluster.container("t2", 1).await;
    machine.kill(&killed, 11);
    sleep(Duration::from_secs(60)).await;
    assert_eq!(cluster.phase("t1").await, Some(Phase::Running), "nobody tells");
    let _second = cluster.joined(&machine, 2).await;
    assert_eq!(
        cluster
            .reaches("t1", Phase::Finished)
            .await
            .status
            .and_then(|status| status.exit_code),
        Some(0)
    );
    let status = cluster.reaches("t2", Phase::Failed).await.status.expect("it is told");
    assert_eq!(status.reason, Some(TaskReason::Signaled));
    assert_eq!(cluster.phase("t0").await, Some(Phase::Running));
    for task in ["t0", "t1", "t2"] {
        assert_eq!(machine.starts(&cluster.container(task, 1).await), 1, "{task}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_restarted_agent_has_a_session_at_once_not_after_the_time_of_the_old_one() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    cluster.joined(&machine, 1).await.crash().await;
    let start = Instant::now();
    let _second = cluster.joined(&machine, 2).await;
    assert!(start.elapsed() < Duration::from_secs(1), "{:?}", start.elapsed());
}

#[tokio::test(start_paused = true)]
async fn a_superseded_process_ends_and_cannot_write() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 1000"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    let old = cluster.client("a1").fenced(&muster_client::Fence {
        namespace: NAMESPACE_AGENTS.to_owned(),
        name: "a1".to_owned(),
        revision: cluster.session().await.expect("it joined"),
    });
    let failed = Patch::Merge(json!({ "status": { "phase": "Failed", "reason": "NonZeroExit" } }));
    let _second = cluster.joined(&machine, 2).await;
    let answer = old.patch_status::<Task>(Some("default"), "t0", &failed).await;
    assert!(matches!(answer, Err(CallError::Fenced(_))), "{answer:?}");
    let ended = first.task.await.expect("it does not panic");
    assert!(matches!(ended, Err(Error::Superseded(_))), "{ended:?}");
    assert_eq!(cluster.phase("t0").await, Some(Phase::Running));
}

#[tokio::test(start_paused = true)]
async fn a_name_belongs_to_one_machine() {
    let cluster = Cluster::new().await;
    let first = cluster.joined(&cluster.machine(), 1).await;
    first.ends().await.expect("it was told to");
    let mut config = cluster.config(1);
    config.identity = Identity {
        machine: "m2".to_owned(),
        ..config.identity
    };
    let ended = cluster
        .run(&cluster.machine(), config)
        .task
        .await
        .expect("it does not panic");
    assert!(matches!(ended, Err(Error::Refused(_))), "{ended:?}");
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_lost_its_session_gets_another_and_goes_on() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 20"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    let before = cluster.session().await;
    let any = Preconditions::default();
    cluster
        .admin
        .delete::<Lease>(Some(NAMESPACE_AGENTS), "a1", &any)
        .await
        .expect("an administrator may");
    cluster.reaches("t0", Phase::Finished).await;
    assert!(cluster.session().await > before);
    assert_eq!(machine.starts(&cluster.container("t0", 1).await), 1);
}

#[tokio::test(start_paused = true)]
async fn a_killed_task_ends_and_a_deleted_one_leaves_nothing() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    cluster.launch(&["fake ignore-signals=1", "sleep 1000"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    cluster.reaches("t1", Phase::Running).await;
    cluster.kill("t0").await;
    cluster.reaches("t0", Phase::Killing).await;
    let status = cluster.reaches("t0", Phase::Killed).await.status.expect("it is told");
    assert_eq!(status.attempts[0].signal, Some(9), "it ignored the first signal");
    cluster.delete("t0").await;
    cluster.delete("t1").await;
    until("both are gone", async || {
        cluster.task("t0").await.is_none() && cluster.task("t1").await.is_none()
    })
    .await;
    assert_eq!(machine.list().await.expect("listed"), []);
}

#[tokio::test(start_paused = true)]
async fn a_failing_command_is_run_again_and_then_given_up() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    let start = Instant::now();
    cluster
        .launch(&["fake run=2 exit=3"], |spec| {
            spec.restart_policy = RestartPolicy::OnFailure
        })
        .await;
    let status = cluster.reaches("t0", Phase::Failed).await.status.expect("it is told");
    let numbers: Vec<u32> = status.attempts.iter().map(|attempt| attempt.number).collect();
    assert_eq!(numbers, [1, 2, 3, 4]);
    assert!(status.attempts.iter().all(|attempt| attempt.exit_code == Some(3)));
    // Four runs of 2 s, and waits of 1, 2 and 4 s.
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(15)..Duration::from_secs(16)).contains(&took),
        "{took:?}"
    );
    assert_eq!(
        machine.list().await.expect("listed").len(),
        2,
        "the last, and the one before"
    );
}

#[tokio::test(start_paused = true)]
async fn a_container_without_a_task_is_removed_after_a_minute() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let running = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 1000"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    running.crash().await;
    cluster.delete("t0").await;
    cluster.force("t0").await;
    let _running = cluster.joined(&machine, 2).await;
    let start = Instant::now();
    until("the container is gone", async || {
        machine.list().await.is_ok_and(|list| list.is_empty())
    })
    .await;
    let took = start.elapsed();
    assert!(
        (Duration::from_secs(59)..Duration::from_secs(100)).contains(&took),
        "{took:?}"
    );
}

#[tokio::test(start_paused = true)]
async fn tasks_outlive_an_agent_that_is_told_to_stop() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let running = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 1000"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    running.ends().await.expect("it was told to");
    let lease = cluster.admin.get::<Lease>(Some(NAMESPACE_AGENTS), "a1").await;
    assert!(matches!(lease, Err(CallError::NotFound(_))), "the session is given up");
    let list = machine.list().await.expect("listed");
    assert!(matches!(list[0].state, State::Running { .. }));
    assert_eq!(cluster.phase("t0").await, Some(Phase::Running));
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_stops_everything_leaves_nothing_running() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let mut config = cluster.config(1);
    config.stop_tasks_on_shutdown = true;
    let running = cluster.run(&machine, config);
    until("the agent joins", async || cluster.session().await.is_some()).await;
    cluster.launch(&["sleep 1000", "fake ignore-signals=1"], |_| {}).await;
    cluster.reaches("t0", Phase::Running).await;
    cluster.reaches("t1", Phase::Running).await;
    let start = Instant::now();
    running.ends().await.expect("it was told to");
    assert!(start.elapsed() < Duration::from_secs(6), "{:?}", start.elapsed());
    assert_eq!(cluster.phase("t0").await, Some(Phase::Killed));
    assert_eq!(cluster.phase("t1").await, Some(Phase::Killed));
    let list = machine.list().await.expect("listed");
    assert!(list.iter().all(|container| matches!(container.state, State::Exited(_))));
}

#[tokio::test(start_paused = true)]
async fn a_hundred_tasks_of_one_accept_all_run_once() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 3"; 100], |_| {}).await;
    for index in 0..100 {
        let name = format!("t{index}");
        cluster.reaches(&name, Phase::Finished).await;
        assert_eq!(machine.starts(&cluster.container(&name, 1).await), 1);
    }
}

#[tokio::test(start_paused = true)]
async fn an_agent_waits_quietly_for_a_server_that_has_stopped() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let _running = cluster.joined(&machine, 1).await;
    cluster
        .launch(&["sleep 5"], |spec| spec.restart_policy = RestartPolicy::Always)
        .await;
    cluster.reaches("t0", Phase::Running).await;
    let requests = cluster.requests();
    cluster.stop();
    sleep(Duration::from_secs(60)).await;
    let asked = cluster.requests() - requests;
    assert!(asked < 150, "{asked} requests in a minute");
    assert!(machine.history().len() > 10, "what runs is looked after meanwhile");
}

fn fencing(spec: &mut muster_api::v1::TaskSpec) {
    spec.unreachable = Some(muster_api::v1::Unreachable {
        policy: muster_api::v1::UnreachablePolicy::SelfFence,
        after: Some(muster_api::duration::Span::from_secs(30)),
        keep: None,
    });
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fences_itself_ends_though_its_agent_is_dead() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let first = cluster.joined(&machine, 1).await;
    cluster.launch(&["sleep 100000"], fencing).await;
    cluster.reaches("t0", Phase::Running).await;
    let fenced = cluster.container("t0", 1).await;
    sleep(Duration::from_secs(600)).await;
    assert_eq!(
        cluster.phase("t0").await,
        Some(Phase::Running),
        "as long as it is vouched for"
    );
    first.crash().await;
    let start = Instant::now();
    let ended = async || {
        let containers = machine.list().await.expect("it lists");
        containers
            .iter()
            .any(|container| container.id == fenced && matches!(container.state, State::Exited(_)))
    };
    until("it ends", ended).await;
    // The last renewal was up to five seconds before.
    assert!((24..=30).contains(&start.elapsed().as_secs()), "{:?}", start.elapsed());
    let _second = cluster.joined(&machine, 2).await;
    let status = cluster.reaches("t0", Phase::Failed).await.status.expect("it is told");
    assert_eq!(status.reason, Some(TaskReason::SelfFenced));
}

#[tokio::test(start_paused = true)]
async fn a_task_that_fences_itself_ends_when_the_server_is_silent_and_is_not_begun_again() {
    let cluster = Cluster::new().await;
    let machine = cluster.machine();
    let cut = Arc::new(std::sync::atomic::AtomicBool::new(false));
    let client = cluster.cuttable("a1", Arc::clone(&cut));
    let _running = cluster.run_with(&machine, cluster.config(1), client);
    until("it joins", async || cluster.session().await.is_some()).await;
    cluster
        .launch(&["sleep 100000"], |spec| {
            fencing(spec);
            spec.restart_policy = RestartPolicy::Always;
        })
        .await;
    cluster.reaches("t0", Phase::Running).await;
    let (first, second) = (cluster.container("t0", 1).await, cluster.container("t0", 2).await);
    cut.store(true, std::sync::atomic::Ordering::Relaxed);
    sleep(Duration::from_secs(300)).await;
    assert_eq!((machine.starts(&first), machine.starts(&second)), (1, 0));
    cut.store(false, std::sync::atomic::Ordering::Relaxed);
    until("it runs again", async || machine.starts(&second) == 1).await;
    let task = cluster.reaches("t0", Phase::Running).await;
    let first = task.status.expect("told").attempts[0].clone();
    assert!(first.error.is_some_and(|error| error.contains("fence")), "it says why");
}
