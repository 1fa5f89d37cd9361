//! Commands that are really run, by this crate's own program as the shim.

use std::sync::Arc;
use std::time::Duration;

use muster_agentd::devices::SimulatedDevices;
use muster_api::task_state::Phase;
use muster_api::v1::TaskReason;
use muster_runtime::process::{Config, ShimCommand};
use muster_runtime::{LogQuery, ProcessRuntime, Runtime as _};
use tokio_util::sync::CancellationToken;

use crate::cluster::{Cluster, Running, until};

fn runtime(directory: &std::path::Path) -> Arc<ProcessRuntime> {
    let config = Config {
        shim: ShimCommand {
            program: env!("CARGO_BIN_EXE_muster-agentd").into(),
            args: vec!["shim".into()],
        },
        ..Config::new(directory.join("runtime"))
    };
    Arc::new(ProcessRuntime::new(config).expect("the directory is ours"))
}

async fn joined(cluster: &Cluster, runtime: Arc<ProcessRuntime>, incarnation: u64) -> Running {
    let before = cluster.session().await;
    let stop = CancellationToken::new();
    let devices = Arc::new(SimulatedDevices::default());
    let mut config = cluster.config(incarnation);
    config.stop_tasks_on_shutdown = true;
    let agent = muster_agentd::run(
        cluster.client("a1"),
        runtime,
        devices,
        cluster.env.clone(),
        config,
        stop.clone(),
    );
    let running = Running {
        stop,
        task: tokio::spawn(agent),
    };
    until("the agent joins", async || cluster.session().await > before).await;
    running
}

#[tokio::test]
async fn a_real_command_runs_with_its_environment_and_survives_its_agent() {
    let directory = tempfile::tempdir().expect("a directory");
    let cluster = Cluster::new().await;
    let first = joined(&cluster, runtime(directory.path()), 1).await;
    cluster
        .launch(&["env", "sleep 1", "/does/not/exist", "sleep 1000"], |_| {})
        .await;
    cluster.reaches("t0", Phase::Finished).await;
    let unknown = cluster.reaches("t2", Phase::Failed).await.status.expect("it is told");
    assert_eq!(unknown.reason, Some(TaskReason::LaunchFailed), "{}", unknown.message);
    cluster.reaches("t3", Phase::Running).await;
    first.crash().await;
    tokio::time::sleep(Duration::from_millis(10)).await;
    let runtime = runtime(directory.path());
    let second = joined(&cluster, runtime.clone(), 2).await;
    cluster.reaches("t1", Phase::Finished).await;
    let id = cluster.container("t0", 1).await;
    let chunk = runtime.logs(&id, &LogQuery::default()).await.expect("it printed");
    let text: String = chunk
        .lines
        .iter()
        .map(|line| String::from_utf8_lossy(&line.bytes))
        .collect();
    assert!(
        text.contains("MUSTER_TASK=t0\n") && text.contains("MUSTER_AGENT=a1\n"),
        "{text}"
    );
    second.ends().await.expect("it was told to");
    assert_eq!(cluster.phase("t3").await, Some(Phase::Killed));
    for container in runtime.list().await.expect("listed") {
        runtime.remove(&container.id).await.expect("nothing runs");
    }
    runtime.close();
}
