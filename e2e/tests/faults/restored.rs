//! A store that goes back in time. No story is recorded: acknowledged writes are lost, on purpose.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Task};
use muster_client::Client;
use muster_e2e::PATIENCE;
use muster_e2e::evidence::PROBE;
use muster_e2e::fleet::{Fleet, Shape, TASKS, task, until, until_task};
use serde_json::Value;

use crate::world::{in_lab, lasting};

const ONE: Shape = Shape {
    etcd: 1,
    servers: 1,
    agents: 1,
    cpus: 8,
    gpus: 0,
};

/// What nobody knows is asked for twice, half a minute apart, before it is stopped; the rest is patience.
const UNTIL_FORGOTTEN: Duration = Duration::from_secs(60).saturating_add(PATIENCE);

/// Runs a story on a cluster that nobody records.
fn unrecorded(story: impl AsyncFnOnce(&mut Fleet) -> Result<()> + Send) {
    in_lab(async |lab| {
        let mut fleet = Fleet::start(lab, ONE).await?;
        story(&mut fleet).await?;
        fleet.pass();
        Ok(())
    });
}

async fn running(client: &Client, name: &str) -> Result<String> {
    let script = format!("{PROBE}sleep 1000");
    let made: Value = client.create_at(TASKS, &task(name, &script)).await?;
    until_task(client, name, "running", |task| task.phase() == Phase::Running).await?;
    Ok(made["metadata"]["uid"].as_str().context("a uid")?.to_owned())
}

async fn regressed(client: &Client, wanted: bool) -> Result<()> {
    let seen = async || {
        let agent: Agent = client.get(None, "a1").await.ok()?;
        let conditions = agent.status.unwrap_or_default().conditions;
        let regressed = conditions
            .iter()
            .any(|condition| condition.type_ == "StoreRegressed" && condition.status == "True");
        (regressed == wanted).then_some(())
    };
    until("the agent to say what it thinks of the store", PATIENCE, seen).await
}

#[test]
fn s22_etcd_restored_from_an_older_snapshot() {
    unrecorded(async |fleet| {
        let client = fleet.client("s1").await?;
        let old = running(&client, "old").await?;
        let snapshot = fleet.lab.home().join("snapshot").display().to_string();
        fleet.etcdctl(&["e1"], &["snapshot", "save", &snapshot])?;
        let new = running(&client, "new").await?;
        fleet.process("s1/server").terminate()?;
        fleet.process("e1/etcd").kill()?;
        let data = fleet.member_directory("e1");
        std::fs::remove_dir_all(&data)?;
        let peer = format!("http://{}:2380", fleet.lab.host("e1").address);
        let (cluster, directory) = (
            format!("--initial-cluster=e1={peer}"),
            format!("--data-dir={}", data.display()),
        );
        let advertised = format!("--initial-advertise-peer-urls={peer}");
        fleet.etcdctl(
            &["e1"],
            &[
                "snapshot",
                "restore",
                &snapshot,
                "--name=e1",
                &cluster,
                &directory,
                &advertised,
            ],
        )?;
        fleet.start_member("e1", "existing")?;
        fleet.start_server("s1")?;
        fleet.until_answers("s1").await?;
        regressed(&client, true).await?;
        lasting(Duration::from_secs(5)).await;
        for uid in [&old, &new] {
            ensure!(
                fleet.evidence.process_of(uid).is_some(),
                "{uid} was stopped because the store forgot"
            );
        }
        let said = fleet.mctl(&["agent", "confirm", "a1"])?;
        ensure!(said.contains("told to go on"), "{said}");
        regressed(&client, false).await?;
        let stopped = async || fleet.evidence.process_of(&new).is_none().then_some(());
        until("what nobody knows to be stopped", UNTIL_FORGOTTEN, stopped).await?;
        let task: Task = client.get(Some("default"), "old").await?;
        ensure!(
            task.phase() == Phase::Running && fleet.evidence.process_of(&old).is_some(),
            "what is known runs on"
        );
        let again = fleet.mctl(&["agent", "confirm", "a1"]);
        ensure!(again.is_err(), "there is nothing more to confirm");
        Ok(())
    });
}
