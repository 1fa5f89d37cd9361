//! API servers that are killed, stopped, or spoken to badly.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::Reachability;
use muster_client::Error;
use muster_e2e::PATIENCE;
use muster_e2e::fleet::{Shape, TASKS, task, until};
use serde_json::{Value, json};

use crate::world::{Load, World, accept, lasting, scenario, task_of};

const PACE: Duration = Duration::from_millis(50);

#[test]
fn s26_server_killed_while_it_answers() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            world.framework("ext", 1).await?;
            let load = Load::start(world, vec![world.client.clone()], PACE);
            let mut accepted = 0;
            for round in 0..3 {
                load.more(3).await?;
                let offer = world.offer("ext", &Default::default()).await?;
                let (client, name) = (world.client.clone(), format!("ext-{round}"));
                let (body, key) = (task_of("ext", &name, "true"), format!("key-{round}"));
                let accepting = tokio::spawn({
                    let (client, offer, body, key) = (client.clone(), offer.clone(), body.clone(), key.clone());
                    async move { accept(&client, &offer, body, Some(&key)).await }
                });
                tokio::time::sleep(Duration::from_millis(round * 2)).await;
                world.process("s1/server").kill()?;
                let first = accepting.await?;
                world.start_server("s1")?;
                world.until_answers("s1").await?;
                // Whatever became of the first call, the same call again has the same result.
                let again = accept(&client, &offer, body, Some(&key)).await;
                if let (Ok(first), Ok(again)) = (&first, &again) {
                    ensure!(first.tasks == again.tasks, "the same key gave {first:?} and {again:?}");
                }
                ensure!(
                    first.is_err() || again.is_ok(),
                    "an acknowledged accept is known by its key: {again:?}"
                );
                accepted += usize::from(again.is_ok());
            }
            let loaded = load.finish(world).await?;
            ensure!(
                !loaded.unclear.is_empty() || loaded.refused > 0,
                "no request met a dead server"
            );
            world.until_phase("ext-", accepted, Phase::Finished).await?;
            retried_creates_land_once(world, &loaded.unclear).await
        },
    );
}

/// A create whose answer was lost can be sent again: it is there once.
async fn retried_creates_land_once(world: &World, unclear: &[String]) -> Result<()> {
    for name in unclear {
        match world.client.create_at::<_, Value>(TASKS, &task(name, "true")).await {
            Ok(_) | Err(Error::AlreadyExists(_)) => {}
            Err(error) => return Err(error.into()),
        }
    }
    let there = |name: &String| world.tape.tasks().iter().filter(|task| task.name() == name).count() == 1;
    let all = async || unclear.iter().all(there).then_some(());
    until("each of them to be there once", PATIENCE, all).await
}

#[test]
fn s27_server_stopped_for_ten_seconds() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            world.run("stays", "sleep 1000").await?;
            world.until_phase("stays", 1, Phase::Running).await?;
            let load = Load::start(world, vec![world.client.clone()], PACE);
            load.more(3).await?;
            let began = Instant::now();
            world.process("s1/server").pause()?;
            lasting(Duration::from_secs(10)).await;
            world.process("s1/server").resume()?;
            load.more(5).await?;
            load.finish(world).await?;
            let lost = world.tape.since(began).into_iter().filter(|(_, key, _, object)| {
                key.starts_with("objects/muster.dev/agents/") && object["status"]["reachability"] == json!("Unknown")
            });
            ensure!(
                lost.count() == 0,
                "agents are not lost because the server stood still for less than their leases"
            );
            let tasks = world.tape.tasks();
            ensure!(
                tasks
                    .iter()
                    .any(|task| task.name() == "stays" && task.phase() == Phase::Running),
                "it runs on"
            );
            Ok(())
        },
    );
}

#[test]
fn s30_connections_reset_and_silent() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            let load = Load::start(world, vec![world.client.clone()], PACE);
            load.more(2).await?;
            let server = world.lab.host("s1").address;
            let mut reset = 0;
            for _ in 0..10 {
                for agent in ["a1", "a2"] {
                    reset += world.lab.host(agent).reset_connections(server)?;
                }
                lasting(Duration::from_millis(300)).await;
            }
            ensure!(reset > 0, "no connection was reset");
            load.more(2).await?;
            // Half-open: what the server sends vanishes, for less time than the leases last.
            world.lab.cut("s1", "a1")?;
            lasting(Duration::from_secs(6)).await;
            world.heal()?;
            load.more(2).await?;
            load.finish(world).await?;
            for agent in ["a1", "a2"] {
                world.until_reachability(agent, Reachability::Reachable).await?;
            }
            Ok(())
        },
    );
}

#[test]
fn s31_watchers_that_never_read() {
    scenario(Shape::default(), async |world| {
        let mut idle = Vec::new();
        for _ in 0..100 {
            // The answer is taken and its body is never looked at.
            idle.push(
                world
                    .client
                    .ordered_watch(&["tasks.muster.dev", "configmaps"], None)
                    .await?,
            );
        }
        let body = |number: usize| {
            json!({
                "apiVersion": "v1", "kind": "ConfigMap",
                "metadata": { "name": format!("big-{number}"), "namespace": "default" },
                "data": { "text": "x".repeat(100_000) },
            })
        };
        for number in 0..60 {
            let made: Value = world
                .client
                .create_at("/api/v1/namespaces/default/configmaps", &body(number))
                .await?;
            world.tape.acknowledged("configmaps", &made);
        }
        let revision = world.mark("behind-them").await?;
        let told = Instant::now();
        until("the watchers that read to be told", PATIENCE, async || {
            world.tape.reached(revision).then_some(())
        })
        .await?;
        ensure!(
            told.elapsed() < Duration::from_secs(10),
            "one slow reader holds up the others: {:?}",
            told.elapsed()
        );
        world.run("goes-on", "true").await?;
        world.until_phase("goes-on", 1, Phase::Finished).await?;
        drop(idle);
        Ok(())
    });
}

#[test]
fn s72_objects_beyond_every_limit() {
    scenario(Shape::default(), async |world| {
        let big = |field: Value| {
            let mut body = task("big", "true");
            body["metadata"]["annotations"] = field;
            body
        };
        let labels: serde_json::Map<String, Value> = (0..10_000).map(|n| (format!("label-{n}"), json!("x"))).collect();
        let mut labelled = task("labelled", "true");
        labelled["metadata"]["labels"] = Value::Object(labels);
        let mut nested = json!("deep");
        for _ in 0..200 {
            nested = json!([nested]);
        }
        let mut deep = task("deep", "true");
        deep["spec"]["constraints"] = nested;
        let huge = json!({ "note": "x".repeat(2 << 20) });
        let before = world.mark("before").await?;
        for (what, body) in [("2 MiB", big(huge)), ("10,000 labels", labelled), ("200 levels", deep)] {
            let answer: Result<Value, Error> = world.client.create_at(TASKS, &body).await;
            let status = answer.as_ref().err().and_then(Error::status).map(|status| status.code);
            ensure!(
                status.is_some_and(|code| (400..500).contains(&code)),
                "{what} was answered with {answer:?}"
            );
        }
        let after = world.mark("after").await?;
        ensure!(world.tape.tasks().is_empty(), "what was refused has left nothing");
        ensure!(after > before, "the server goes on");
        world.run("small", "true").await?;
        world.until_phase("small", 1, Phase::Finished).await.map(drop)
    });
}
