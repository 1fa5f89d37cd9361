//! Disks that are full: real small filesystems in memory.

use anyhow::{Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::{Reachability, Task};
use muster_client::Error;
use muster_e2e::fleet::Shape;
use serde_json::{Value, json};

use crate::world::{World, scenario};

/// Puts what a directory of a host holds on a filesystem of its own, of so many MiB. From outside it looks as before.
fn on_its_own(world: &World, host: &str, directory: &str, mib: u32) -> Result<()> {
    let script = format!(
        "set -e; cp -a '{directory}' '{directory}.old'; mount -t tmpfs -o mode=700,size={mib}m tmpfs '{directory}'; \
         cp -a '{directory}.old/.' '{directory}/'"
    );
    world.lab.host(host).run("sh", &["-c", &script]).map(drop)
}

/// Writes until nothing more goes in.
fn fill(world: &World, host: &str, directory: &str) -> Result<()> {
    let script = format!(
        "dd if=/dev/zero of='{directory}/filler' bs=64k 2>/dev/null; test $(df --output=avail '{directory}' | tail -1) = 0"
    );
    world.lab.host(host).run("sh", &["-c", &script]).map(drop)
}

async fn still_runs(world: &World, name: &str) -> Result<()> {
    let task: Task = world.client.get(Some("default"), name).await?;
    let uid = task.metadata.uid.as_deref().unwrap_or_default();
    ensure!(task.phase() == Phase::Running, "{name} is {}", task.phase());
    ensure!(world.evidence.process_of(uid).is_some(), "{name} does not run");
    Ok(())
}

#[test]
fn s69_the_agents_disk_is_full() {
    scenario(Shape::default(), async |world| {
        let directory = world.agent_directory("a1").display().to_string();
        world.process("a1/agent").kill()?;
        on_its_own(world, "a1", &directory, 256)?;
        world.start_agent("a1")?;
        world.run("kept", "sleep 1000").await?;
        world.until_phase("kept", 1, Phase::Running).await?;
        fill(world, "a1", &directory)?;
        world.run("late", "true").await?;
        let says_why = |task: &Task| {
            let status = task.status.as_ref();
            status.is_some_and(|status| status.message.contains("the disk of"))
        };
        world
            .until_tasks("late", 1, "told why it is not started", says_why)
            .await?;
        still_runs(world, "kept").await?;
        world.lab.host("a1").run("rm", &[&format!("{directory}/filler")])?;
        world.until_phase("late", 1, Phase::Finished).await?;
        still_runs(world, "kept").await?;
        world.until_reachability("a1", Reachability::Reachable).await?;
        world.stop_task("kept").await?;
        world.until_phase("kept", 1, Phase::Killed).await.map(drop)
    });
}

#[test]
fn s18_the_disk_of_the_embedded_store_is_full() {
    scenario(Shape::default(), async |world| {
        world.run("kept", "sleep 1000").await?;
        world.until_phase("kept", 1, Phase::Running).await?;
        let directory = world.lab.host("s1").directory().join("server").display().to_string();
        world.process("s1/server").terminate()?;
        on_its_own(world, "s1", &directory, 24)?;
        world.start_server("s1")?;
        world.until_answers("s1").await?;
        let path = "/api/v1/namespaces/default/configmaps";
        let mut refused = None;
        for number in 0..200 {
            let body = json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": format!("big-{number}"), "namespace": "default" },
                "data": { "text": "x".repeat(500_000) },
            });
            let made: Result<Value, Error> = world.client.create_at(path, &body).await;
            match made {
                // The story is held to it: what was acknowledged is there at the end.
                Ok(made) => world.tape.acknowledged("configmaps", &made),
                Err(error) => {
                    refused = Some(error);
                    break;
                }
            }
        }
        let refused = refused.map(|error| error.to_string()).unwrap_or_default();
        println!("refused: {refused}");
        ensure!(!refused.is_empty(), "100 MB fit into 24 MiB");
        let larger = ["-o", "remount,size=256m", &directory];
        world.lab.host("s1").run("mount", &larger)?;
        if world.process("s1/server").is_running() {
            world.process("s1/server").terminate()?;
        }
        world.start_server("s1")?;
        world.until_answers("s1").await?;
        world.run("next", "true").await?;
        world.until_phase("next", 1, Phase::Finished).await?;
        still_runs(world, "kept").await?;
        world.stop_task("kept").await?;
        world.until_phase("kept", 1, Phase::Killed).await.map(drop)
    });
}
