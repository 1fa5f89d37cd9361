//! Agents, shims and whole machines that are killed, stopped or turned off while tasks run.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Reachability, Task, TaskReason};
use muster_client::Preconditions;
use muster_e2e::PATIENCE;
use muster_e2e::evidence::{GATE, PROBE, open_gate, sandboxes};
use muster_e2e::fleet::{Shape, task, until};
use muster_e2e::process::{parent, state};
use nix::sys::signal::{Signal, kill};
use serde_json::{Value, json};

use crate::world::{World, lasting, scenario};

fn uid(task: &Task) -> &str {
    task.metadata.uid.as_deref().unwrap_or_default()
}

fn exit_code(task: &Task) -> Option<i32> {
    task.status.as_ref()?.exit_code
}

/// Tasks that note their start and wait at their gates.
async fn gated(world: &World, prefix: &str, count: usize) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for index in 0..count {
        tasks.push(
            world
                .run(&format!("{prefix}{index}"), &format!("{PROBE}{GATE}"))
                .await?,
        );
    }
    let limit = PATIENCE + Duration::from_secs(count as u64);
    world
        .until_tasks_within(limit, prefix, count, "Running", |task| task.phase() == Phase::Running)
        .await?;
    Ok(tasks)
}

#[test]
fn s34_agent_killed_with_two_hundred_tasks() {
    scenario(Shape::default(), async |world| {
        let tasks = gated(world, "many-", 200).await?;
        world.process("a1/agent").kill()?;
        for (index, task) in tasks.iter().take(40).enumerate() {
            open_gate(world.lab.home(), uid(task), i32::try_from(index)? + 1)?;
        }
        let started = Instant::now();
        world.start_agent("a1")?;
        world.until_phase("many-", 40, Phase::Failed).await?;
        println!(
            "40 ends of the gap were told of {:?} after the agent was started",
            started.elapsed()
        );
        for (index, task) in world
            .tape
            .tasks()
            .iter()
            .filter(|task| task.phase() == Phase::Failed)
            .enumerate()
        {
            let number: i32 = task.name().trim_start_matches("many-").parse()?;
            ensure!(
                exit_code(task) == Some(number + 1),
                "{index}: {} ended with {:?}",
                task.name(),
                exit_code(task)
            );
        }
        for task in &tasks[40..] {
            ensure!(
                world.evidence.process_of(uid(task)).is_some(),
                "{} does not run any more",
                task.name()
            );
            open_gate(world.lab.home(), uid(task), 0)?;
        }
        world.until_phase("many-", 160, Phase::Finished).await?;
        let noted = world.evidence.noted();
        ensure!(
            noted.len() == 200 && noted.values().all(|count| *count == 1),
            "each was started once: {noted:?}"
        );
        Ok(())
    });
}

#[test]
fn s35_agent_killed_while_it_starts_tasks() {
    scenario(Shape::default(), async |world| {
        for round in 0..8_u64 {
            for index in 0..3 {
                world
                    .run(&format!("short-{round}-{index}"), &format!("{PROBE}true"))
                    .await?;
            }
            lasting(Duration::from_millis(40 * round)).await;
            world.process("a1/agent").kill()?;
            world.start_agent("a1")?;
            world
                .until_phase(&format!("short-{round}-"), 3, Phase::Finished)
                .await?;
        }
        let noted = world.evidence.noted();
        ensure!(
            noted.len() == 24 && noted.values().all(|count| *count == 1),
            "each was started once: {noted:?}"
        );
        Ok(())
    });
}

#[test]
fn s36_agent_killed_while_it_stops_and_removes_tasks() {
    scenario(Shape::default(), async |world| {
        for round in 0..6_u64 {
            let prefix = format!("stop-{round}-");
            let tasks = gated(world, &prefix, 3).await?;
            for task in &tasks {
                world.stop_task(task.name()).await?;
            }
            lasting(Duration::from_millis(30 * round)).await;
            world.process("a1/agent").kill()?;
            world.start_agent("a1")?;
            world.until_phase(&prefix, 3, Phase::Killed).await?;
            for task in &tasks {
                ensure!(
                    world.evidence.process_of(uid(task)).is_none(),
                    "{} is Killed but runs",
                    task.name()
                );
                let path = format!("{}/{}", muster_e2e::fleet::TASKS, task.name());
                world
                    .client
                    .delete_at::<Value>(&path, &Preconditions::default())
                    .await?;
            }
            lasting(Duration::from_millis(10 * round)).await;
            world.process("a1/agent").kill()?;
            world.start_agent("a1")?;
            let gone = async || {
                let left = world.tape.tasks().iter().any(|task| task.name().starts_with(&prefix));
                (!left && sandboxes(world.lab.home()).is_empty()).then_some(())
            };
            until("the tasks and what was left of them to be gone", PATIENCE, gone).await?;
        }
        Ok(())
    });
}

#[test]
fn s37_agent_stopped_for_longer_than_its_lease() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, "kept-", 4).await?;
            let client = world.client.clone();
            let bound: Task = client.get(Some("default"), tasks[0].name()).await?;
            let agent = bound.agent().context("it is bound")?.to_owned();
            let process = format!("{agent}/agent");
            world.process(&process).pause()?;
            world.until_reachability(&agent, Reachability::Unknown).await?;
            open_gate(world.lab.home(), uid(&tasks[0]), 9)?;
            lasting(Duration::from_secs(1)).await;
            let phase = client.get::<Task>(Some("default"), tasks[0].name()).await?.phase();
            ensure!(
                phase == Phase::Running,
                "a task of an agent that cannot be reached is {phase}"
            );
            world.process(&process).resume()?;
            world.until_reachability(&agent, Reachability::Reachable).await?;
            world.until_phase("kept-0", 1, Phase::Failed).await?;
            world
                .until_tasks("kept-", 4, "reachable", |task| {
                    task.status
                        .as_ref()
                        .is_some_and(|status| status.reachability == Reachability::Reachable)
                })
                .await?;
            for task in &tasks[1..] {
                open_gate(world.lab.home(), uid(task), 0)?;
            }
            world.until_phase("kept-", 3, Phase::Finished).await.map(drop)
        },
    );
}

#[test]
fn s38_task_ends_while_its_agent_is_down() {
    scenario(Shape::default(), async |world| {
        let tasks = gated(world, "ends-", 3).await?;
        world.process("a1/agent").kill()?;
        for (task, code) in tasks.iter().zip([42, 0, 255]) {
            open_gate(world.lab.home(), uid(task), code)?;
        }
        let ended = |task: &Task| world.evidence.process_of(uid(task)).is_none();
        until("the tasks to have ended", PATIENCE, async || {
            tasks.iter().all(ended).then_some(())
        })
        .await?;
        world.start_agent("a1")?;
        world
            .until_tasks("ends-", 3, "ended", |task| task.phase().is_terminal())
            .await?;
        let codes: Vec<Option<i32>> = world.tape.tasks().iter().map(exit_code).collect();
        ensure!(codes == [Some(42), Some(0), Some(255)], "{codes:?}");
        Ok(())
    });
}

#[test]
fn s40_shim_killed() {
    scenario(Shape::default(), async |world| {
        let tasks = gated(world, "orphan-", 2).await?;
        let running = async || world.evidence.process_of(uid(&tasks[0]));
        let first = until("the container to be seen", PATIENCE, running).await?;
        let shim = parent(first).context("it has a shim")?;
        kill(shim, Signal::SIGKILL)?;
        world.until_phase("orphan-0", 1, Phase::Failed).await?;
        let failed = world
            .tape
            .tasks()
            .into_iter()
            .find(|task| task.phase() == Phase::Failed)
            .context("it has failed")?;
        let status = failed.status.clone().context("it has a status")?;
        ensure!(
            status.reason.is_some_and(|reason| reason != TaskReason::NonZeroExit),
            "{status:?}"
        );
        ensure!(
            !matches!(state(first), Some('R' | 'S' | 'D')),
            "it is Failed but still runs"
        );
        open_gate(world.lab.home(), uid(&tasks[1]), 0)?;
        world.until_phase("orphan-1", 1, Phase::Finished).await.map(drop)
    });
}

#[test]
fn s44_machine_rebooted() {
    scenario(Shape::default(), async |world| {
        world.run("done", &format!("{PROBE}exit 3")).await?;
        world.until_phase("done", 1, Phase::Failed).await?;
        let tasks = gated(world, "cut-", 3).await?;
        world.lab.reboot("a1")?;
        for task in &tasks {
            ensure!(
                world.evidence.process_of(uid(task)).is_none(),
                "nothing outlives the machine"
            );
        }
        world.start_agent("a1")?;
        let started = Instant::now();
        world
            .until_tasks("cut-", 3, "ended", |task| task.phase().is_terminal())
            .await?;
        println!("told {:?} after the start of the agent", started.elapsed());
        world.run("next", &format!("{PROBE}true")).await?;
        world.until_phase("next", 1, Phase::Finished).await?;
        let done = world
            .tape
            .tasks()
            .into_iter()
            .find(|task| task.name() == "done")
            .context("it is there")?;
        ensure!(exit_code(&done) == Some(3), "what had ended is not touched");
        ensure!(
            world.evidence.noted().len() == 5,
            "and nothing is run again: {:?}",
            world.evidence.noted()
        );
        Ok(())
    });
}

#[test]
fn s53_agent_deleted_under_its_tasks() {
    scenario(Shape::default(), async |world| {
        let tasks = gated(world, "left-", 2).await?;
        let path = "/apis/muster.dev/v1/agents/a1";
        let before: Value = world.client.get::<Agent>(None, "a1").await.map(|agent| json!(agent))?;
        world.client.delete_at::<Value>(path, &Preconditions::default()).await?;
        let again = async || {
            let agent: Agent = world.client.get(None, "a1").await.ok()?;
            (json!(agent.metadata.uid) != before["metadata"]["uid"]).then_some(())
        };
        until("the agent to join anew", PATIENCE, again).await?;
        world.run("next", "true").await?;
        world.until_phase("next", 1, Phase::Finished).await?;
        let settled = |task: &Task| {
            let runs = world.evidence.process_of(uid(task)).is_some();
            runs != task.phase().is_terminal()
        };
        world
            .until_tasks("left-", 2, "what their processes are", settled)
            .await?;
        for task in &tasks {
            if world.evidence.process_of(uid(task)).is_some() {
                open_gate(world.lab.home(), uid(task), 0)?;
            }
        }
        world
            .until_tasks("left-", 2, "ended", |task| task.phase().is_terminal())
            .await
            .map(drop)
    });
}

#[test]
fn s62_agent_restarted_with_finished_and_running_gpu_tasks() {
    scenario(
        Shape {
            gpus: 4,
            ..Shape::default()
        },
        async |world| {
            let with_gpus = |name: &str, script: &str, gpus: u32| {
                let mut body = task(name, script);
                body["spec"]["resources"]["gpus"] = json!(gpus);
                body
            };
            world.submit(with_gpus("done", "exit 4", 1)).await?;
            world.until_phase("done", 1, Phase::Failed).await?;
            let held = world.submit(with_gpus("held", GATE, 2)).await?;
            world.until_phase("held", 1, Phase::Running).await?;
            let devices = |world: &World, name: &str| {
                let task = world.tape.tasks().into_iter().find(|task| task.name() == name);
                task.and_then(|task| task.status)
                    .map(|status| status.devices)
                    .unwrap_or_default()
            };
            let before = devices(world, "held");
            world.process("a1/agent").kill()?;
            world.start_agent("a1")?;
            world.submit(with_gpus("other", GATE, 2)).await?;
            world.until_phase("other", 1, Phase::Running).await?;
            world.submit(with_gpus("waits", "true", 1)).await?;
            let (held_now, other) = (devices(world, "held"), devices(world, "other"));
            ensure!(before.len() == 2 && held_now == before, "{held_now:?} was {before:?}");
            ensure!(
                other.len() == 2 && other.is_disjoint(&before),
                "{other:?} and {before:?}"
            );
            open_gate(world.lab.home(), uid(&held), 0)?;
            world.until_phase("waits", 1, Phase::Finished).await?;
            let done = world
                .tape
                .tasks()
                .into_iter()
                .find(|task| task.name() == "done")
                .context("it is there")?;
            ensure!(exit_code(&done) == Some(4), "what had ended is not touched");
            let other = world
                .tape
                .tasks()
                .into_iter()
                .find(|task| task.name() == "other")
                .context("it is there")?;
            open_gate(world.lab.home(), uid(&other), 0)?;
            world.until_phase("", 3, Phase::Finished).await.map(drop)
        },
    );
}

#[test]
fn s66_machine_stood_still() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            gated(world, "still-", 4).await?;
            world.lab.host("a1").signal_all(Signal::SIGSTOP);
            world.until_reachability("a1", Reachability::Unknown).await?;
            let stopped = world
                .lab
                .host("a1")
                .processes()
                .into_iter()
                .filter(|pid| state(*pid) == Some('T'))
                .count();
            ensure!(stopped > 1, "agent, shims and tasks stand still: {stopped}");
            world.run("meanwhile", &format!("{PROBE}true")).await?;
            world.until_phase("meanwhile", 1, Phase::Finished).await?;
            world.lab.host("a1").signal_all(Signal::SIGCONT);
            world.until_reachability("a1", Reachability::Reachable).await?;
            let tasks = world.tape.tasks();
            for task in tasks.iter().filter(|task| task.name().starts_with("still-")) {
                ensure!(task.phase() == Phase::Running, "{} is {}", task.name(), task.phase());
                open_gate(world.lab.home(), uid(task), 0)?;
            }
            world.until_phase("still-", 4, Phase::Finished).await.map(drop)
        },
    );
}

/// The session that an agent speaks in.
async fn session(world: &World, agent: &str) -> Result<u64> {
    let agent: Agent = world.client.get(None, agent).await?;
    agent
        .status
        .and_then(|status| status.session)
        .context("the agent has a session")
}

#[test]
fn s52_agent_copied_to_another_machine() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, "kept-", 4).await?;
            let before = session(world, "a1").await?;
            let (from, to) = (
                world.agent_directory("a1"),
                world.lab.host("a2").directory().join("stolen"),
            );
            world.lab.host("a2").run("mkdir", &[&to.to_string_lossy()])?;
            // Everything but what runs: who it is, and what it shows to the servers.
            let copy = "cd \"$0\" && tar c --exclude=runtime . | tar x -C \"$1\"";
            world
                .lab
                .host("a2")
                .run("sh", &["-c", copy, &from.to_string_lossy(), &to.to_string_lossy()])?;
            world.run_agent("a2", "copy", "a1", &to)?;
            lasting(Duration::from_secs(20)).await;
            let after = session(world, "a1").await?;
            ensure!(after == before, "a copy took the session of the first");
            for task in &tasks {
                open_gate(world.lab.home(), uid(task), 0)?;
            }
            world.until_phase("kept-", 4, Phase::Finished).await.map(drop)
        },
    );
}
