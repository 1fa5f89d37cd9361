//! Agents that are cut off: for a moment, for long, one way only, again and again, all at once.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Reachability, Task};
use muster_client::Patch;
use muster_e2e::PATIENCE;
use muster_e2e::evidence::{GATE, PROBE, open_gate};
use muster_e2e::fleet::{Shape, until};
use serde_json::{Value, json};

use crate::world::{World, lasting, scenario};

/// How long an agent counts as present without a word from it.
const PRESENCE: Duration = Duration::from_secs(15);

fn uid(task: &Task) -> &str {
    task.metadata.uid.as_deref().unwrap_or_default()
}

async fn gated(world: &World, count: usize) -> Result<Vec<Task>> {
    let mut tasks = Vec::new();
    for index in 0..count {
        tasks.push(world.run(&format!("task-{index}"), &format!("{PROBE}{GATE}")).await?);
    }
    world.until_phase("task-", count, Phase::Running).await?;
    Ok(tasks)
}

/// How often some agent was lost since then.
fn losses(world: &World, since: Instant) -> usize {
    let changes = world.tape.since(since).into_iter();
    let lost = changes.filter(|(_, key, _, object)| {
        key.starts_with("objects/muster.dev/agents/") && object["status"]["reachability"] == json!("Unknown")
    });
    lost.count()
}

/// Everything goes on where it was: all are reachable, all still run, and all end as they are told.
async fn goes_on(world: &World, tasks: &[Task]) -> Result<()> {
    for agent in world.agents() {
        world.until_reachability(&agent, Reachability::Reachable).await?;
    }
    for (index, task) in tasks.iter().enumerate() {
        let now = world.tape.tasks().into_iter().find(|now| uid(now) == uid(task));
        if now.is_some_and(|now| !now.phase().is_terminal()) {
            ensure!(
                world.evidence.process_of(uid(task)).is_some(),
                "{} should run",
                task.name()
            );
            open_gate(world.lab.home(), uid(task), 0)?;
        } else {
            ensure!(index == 0, "{} has ended", task.name());
        }
    }
    world
        .until_tasks("task-", tasks.len(), "ended", |task| task.phase().is_terminal())
        .await?;
    world.run("next", "true").await?;
    world.until_phase("next", 1, Phase::Finished).await.map(drop)
}

#[test]
fn s46_agent_cut_off_for_five_seconds() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 4).await?;
            let began = Instant::now();
            world.lab.partition(&["a1"], &["s1"])?;
            // Something that the agent is to hear of.
            world.stop_task("task-0").await?;
            lasting(Duration::from_secs(5)).await;
            world.heal()?;
            goes_on(world, &tasks).await?;
            ensure!(losses(world, began) == 0, "five seconds are nothing");
            Ok(())
        },
    );
}

#[test]
fn s46_agent_cut_off_until_it_is_given_up() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 4).await?;
            let began = Instant::now();
            world.lab.partition(&["a1", "a2"], &["s1"])?;
            for agent in ["a1", "a2"] {
                world.until_reachability(agent, Reachability::Unknown).await?;
            }
            ensure!(began.elapsed() > PRESENCE / 2, "given up after {:?}", began.elapsed());
            // What ends in the dark is told when there is light.
            open_gate(world.lab.home(), uid(&tasks[0]), 77)?;
            lasting(Duration::from_secs(2)).await;
            ensure!(
                world.tape.tasks().iter().all(|task| task.phase() == Phase::Running),
                "phases only say what was proved"
            );
            world.heal()?;
            world.until_phase("task-0", 1, Phase::Failed).await?;
            goes_on(world, &tasks).await
        },
    );
}

#[test]
fn s47_nothing_of_the_agent_reaches_the_server() {
    one_way("a1", "s1");
}

#[test]
fn s47_nothing_of_the_server_reaches_the_agent() {
    one_way("s1", "a1");
}

fn one_way(from: &str, to: &str) {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 4).await?;
            world.lab.cut(from, to)?;
            world.until_reachability("a1", Reachability::Unknown).await?;
            world.run("elsewhere", "true").await?;
            world.until_phase("elsewhere", 1, Phase::Finished).await?;
            world.heal()?;
            goes_on(world, &tasks).await
        },
    );
}

#[test]
fn s49_flapping_link() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 4).await?;
            let began = Instant::now();
            let mut dropped = 0;
            for _ in 0..8 {
                world.lab.partition(&["a1"], &["s1"])?;
                lasting(Duration::from_secs(2)).await;
                dropped += world.lab.heal()?;
                lasting(Duration::from_secs(2)).await;
            }
            ensure!(dropped > 0, "the link has held nothing up");
            goes_on(world, &tasks).await?;
            ensure!(
                losses(world, began) == 0,
                "a link that comes back within the lease is no loss"
            );
            Ok(())
        },
    );
}

#[test]
fn s48_links_cut_one_by_one_and_mended_in_another_order() {
    let shape = Shape {
        agents: 10,
        cpus: 4,
        ..Shape::default()
    };
    scenario(shape, async |world| {
        let tasks = gated(world, 10).await?;
        let agents = world.agents();
        for agent in &agents {
            world.lab.partition(&[agent], &["s1"])?;
            lasting(Duration::from_secs(2)).await;
        }
        // The first has been away for longer than its presence lasts, the last has not; nothing may be made of that.
        world.until_reachability("a1", Reachability::Unknown).await?;
        for turn in 0..agents.len() {
            let agent = &agents[(turn * 7 + 3) % agents.len()];
            world.lab.mend(agent, "s1")?;
            lasting(Duration::from_millis(500)).await;
            world.lab.mend("s1", agent)?;
        }
        ensure!(
            world.tape.tasks().iter().all(|task| task.phase() == Phase::Running),
            "phases only say what was proved"
        );
        goes_on(world, &tasks).await
    });
}

#[test]
fn s50_a_quarter_of_all_packets_lost() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 4).await?;
            let began = Instant::now();
            world.lab.host("a1").lose(0.25)?;
            world.lab.host("s1").lose(0.25)?;
            for index in 0..5 {
                world.run(&format!("lossy-{index}"), "true").await?;
                lasting(Duration::from_secs(3)).await;
            }
            world.until_phase("lossy-", 5, Phase::Finished).await?;
            world.heal()?;
            goes_on(world, &tasks).await?;
            ensure!(losses(world, began) == 0, "loss makes things slow and loses nobody");
            Ok(())
        },
    );
}

#[test]
fn s51_all_agents_cut_off_at_once() {
    scenario(
        Shape {
            agents: 3,
            ..Shape::default()
        },
        async |world| {
            let tasks = gated(world, 6).await?;
            world
                .submit(unreachable(
                    "hasty",
                    json!({ "policy": "ReplaceAfter", "after": "10s" }),
                ))
                .await?;
            world.until_phase("hasty", 1, Phase::Running).await?;
            world.lab.partition(&["a1", "a2", "a3"], &["s1"])?;
            for agent in world.agents() {
                world.until_reachability(&agent, Reachability::Unknown).await?;
            }
            lasting(Duration::from_secs(13)).await;
            ensure!(
                world.tape.tasks().iter().all(|task| task.phase() == Phase::Running),
                "a dead switch ends no task"
            );
            ensure!(
                world.tape.tasks().len() == 7,
                "when all are lost at once, nothing is replaced"
            );
            // As soon as some are back, many are lost no more, and it would be replaced if its own were the last: rightly.
            let killed = Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
            world.client.patch::<Task>(Some("default"), "hasty", &killed).await?;
            world.heal()?;
            world.until_phase("hasty", 1, Phase::Killed).await?;
            goes_on(world, &tasks).await
        },
    );
}

/// A task for which somebody has said what becomes of it when its agent is lost.
fn unreachable(name: &str, policy: Value) -> Value {
    let mut body = muster_e2e::fleet::task(name, &format!("{PROBE}{GATE}"));
    body["spec"]["unreachable"] = policy;
    body
}

#[test]
fn s46_agent_cut_off_and_each_task_as_it_asked_for() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let schedulable = |yes: bool| Patch::Merge(json!({ "spec": { "unschedulable": !yes } }));
            world.client.patch::<Agent>(None, "a2", &schedulable(false)).await?;
            let waits = world.submit(unreachable("waits", json!({ "policy": "Wait" }))).await?;
            let ends = world
                .submit(unreachable("ends", json!({ "policy": "SelfFence", "after": "20s" })))
                .await?;
            let moves = world
                .submit(unreachable(
                    "moves",
                    json!({ "policy": "ReplaceAfter", "after": "10s" }),
                ))
                .await?;
            world.until_phase("", 3, Phase::Running).await?;
            world.client.patch::<Agent>(None, "a2", &schedulable(true)).await?;
            world.lab.partition(&["a1"], &["s1"])?;
            world
                .until_tasks("", 1, "the replacement", |task| {
                    task.agent() == Some("a2") && task.phase() == Phase::Running
                })
                .await?;
            ensure!(world.evidence.process_of(uid(&waits)).is_some(), "what waits runs on");
            world.until_phase("ends", 1, Phase::Gone).await?;
            ensure!(world.evidence.process_of(uid(&ends)).is_none(), "it is Gone, but runs");
            let phase = |of: &Task| {
                world
                    .tape
                    .tasks()
                    .iter()
                    .find(|task| uid(task) == uid(of))
                    .map(Task::phase)
            };
            ensure!(
                phase(&waits) == Some(Phase::Running) && phase(&moves) == Some(Phase::Running),
                "nothing was proved of them"
            );
            world.heal()?;
            let killed = async || (phase(&moves) == Some(Phase::Killed)).then_some(());
            until("the original to make way for its replacement", PATIENCE, killed).await?;
            for task in world.tape.tasks().iter().filter(|task| task.phase() == Phase::Running) {
                open_gate(world.lab.home(), uid(task), 0)?;
            }
            world.until_phase("", 2, Phase::Finished).await?;
            ensure!(phase(&ends) == Some(Phase::Gone), "what is Gone stays Gone");
            Ok(())
        },
    );
}
