//! Several servers, of which one leads: killed, cut off from the store, restarted in turn, behind.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::Reachability;
use muster_client::{Client, Error};
use muster_e2e::PATIENCE;
use muster_e2e::evidence::{GATE, PROBE, open_gate};
use muster_e2e::fleet::{Shape, until};
use serde_json::{Value, json};

use crate::world::{Load, World, contend, lasting, read, scenario};

const PACE: Duration = Duration::from_millis(100);
/// What a takeover may take on a machine that is busy with something else.
const TAKEOVER: Duration = Duration::from_secs(20);

#[test]
fn s01_leading_server_killed_under_load() {
    scenario(Shape::highly_available(2), async |world| {
        let load = Load::start(world, world.clients().await?, PACE);
        load.more(5).await?;
        let (fence, _) = world.leader().await?;
        let leader = world.leading_server().await?;
        let killed = Instant::now();
        world.process(&format!("{leader}/server")).kill()?;
        world.next_leader(fence).await?;
        let next = until("the next offer", PATIENCE, async || {
            world.tape.first_added(killed, "objects/muster.dev/offers/")
        })
        .await?;
        println!("the next offer came {:?} after the leader was killed", next - killed);
        ensure!(
            next - killed < TAKEOVER,
            "the next offer came after {:?}",
            next - killed
        );
        load.more(5).await?;
        world.start_server(&leader)?;
        world.until_answers(&leader).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s05_leading_server_cut_off_from_the_store() {
    scenario(Shape::highly_available(1), async |world| {
        let load = Load::start(world, world.clients().await?, PACE);
        load.more(5).await?;
        let (fence, _) = world.leader().await?;
        let leader = world.leading_server().await?;
        world.lab.partition(&[&leader], &["e1", "e2", "e3"])?;
        let (_, _) = world.next_leader(fence).await?;
        ensure!(world.leading_server().await? != leader, "{leader} cannot write");
        load.more(5).await?;
        world.heal()?;
        world.until_answers(&leader).await?;
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s28_rolling_restart_of_all_servers() {
    scenario(Shape::highly_available(2), async |world| {
        let clients = world.clients().await?;
        let (mut made, mut retried) = (0, 0);
        for round in 0..2 {
            for server in world.servers() {
                // Whoever repeats an idempotent request at the next server has an answer.
                for _ in 0..5 {
                    retried += write_somewhere(world, &clients, &format!("kept-{made}")).await?;
                    made += 1;
                }
                let process = format!("{server}/server");
                if round == 0 {
                    world.process(&process).terminate()?;
                } else {
                    world.process(&process).kill()?;
                }
                for _ in 0..5 {
                    retried += write_somewhere(world, &clients, &format!("kept-{made}")).await?;
                    made += 1;
                }
                world.start_server(&server)?;
                world.until_answers(&server).await?;
            }
        }
        ensure!(retried > 0, "no request met a server that was down");
        world.run("after", "true").await?;
        world.until_phase("after", 1, Phase::Finished).await.map(drop)
    });
}

/// Writes an object at the first server that takes it; how many did not.
async fn write_somewhere(world: &World, clients: &[Client], name: &str) -> Result<usize> {
    let body = json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": name, "namespace": "default" } });
    let mut failed = 0;
    for client in clients.iter().cycle().take(clients.len() * 3) {
        let made: Result<Value, Error> = client.create_at("/api/v1/namespaces/default/configmaps", &body).await;
        match made {
            Ok(made) => {
                world.tape.acknowledged("configmaps", &made);
                return Ok(failed);
            }
            Err(Error::AlreadyExists(_)) if failed > 0 => return Ok(failed),
            Err(error) if error.is_retryable() => failed += 1,
            Err(error) => return Err(error.into()),
        }
    }
    anyhow::bail!("no server took {name}")
}

#[test]
fn s29_client_moves_to_a_server_that_is_behind() {
    scenario(Shape::highly_available(1), async |world| {
        let behind = world.client("s2").await?;
        world.lab.partition(&["s2"], &["e1", "e2", "e3"])?;
        lasting(Duration::from_secs(1)).await;
        let acknowledged = world.mark("unseen").await?;
        let path = format!(
            "/api/v1/namespaces/default/configmaps?resourceVersion={acknowledged}&resourceVersionMatch=NotOlderThan"
        );
        let answer: Result<Value, Error> = read(&behind, &path).await;
        match &answer {
            // It may have found a way; then it knows.
            Ok(list) => {
                let at: u64 = list["metadata"]["resourceVersion"]
                    .as_str()
                    .context("a revision")?
                    .parse()?;
                ensure!(
                    at >= acknowledged,
                    "it was asked for {acknowledged} or newer, and gave {at}"
                );
            }
            Err(error) => ensure!(error.is_retryable(), "{error:?}"),
        }
        world.heal()?;
        world.until_answers("s2").await?;
        let list: Value = read(&behind, &path).await?;
        let at: u64 = list["metadata"]["resourceVersion"]
            .as_str()
            .context("a revision")?
            .parse()?;
        ensure!(at >= acknowledged, "it has caught up");
        world.run("after", "true").await?;
        world.until_phase("after", 1, Phase::Finished).await.map(drop)
    });
}

#[test]
fn s56_one_offer_accepted_at_three_servers_at_once() {
    scenario(Shape::highly_available(1), async |world| {
        world.framework("ext", 1).await?;
        let mut clients = world.clients().await?;
        clients.extend(world.clients().await?);
        contend(world, "ext", &clients, 5).await
    });
}

#[test]
fn s81_everything_killed_at_random() {
    scenario(Shape::highly_available(2), async |world| {
        let mut gated = Vec::new();
        for index in 0..4 {
            gated.push(world.run(&format!("kept-{index}"), &format!("{PROBE}{GATE}")).await?);
        }
        world.until_phase("kept-", 4, Phase::Running).await?;
        let load = Load::start(world, world.clients().await?, PACE);
        // A fixed order that meets every role, and pairs of roles, in turn.
        let victims = [
            "s1/server",
            "a1/agent",
            "e1/etcd",
            "s2/server",
            "a2/agent",
            "e2/etcd",
            "s3/server",
            "e3/etcd",
            "a1/agent",
        ];
        for victim in victims {
            lasting(Duration::from_secs(2)).await;
            world.process(victim).kill()?;
            lasting(Duration::from_millis(700)).await;
            let (host, role) = victim.split_once('/').context("HOST/ROLE")?;
            match role {
                "server" => world.start_server(host)?,
                "agent" => world.start_agent(host)?,
                _ => world.start_member(host, "existing")?,
            }
        }
        for server in world.servers() {
            world.until_answers(&server).await?;
        }
        for agent in world.agents() {
            world.until_reachability(&agent, Reachability::Reachable).await?;
        }
        load.more(5).await?;
        load.finish(world).await?;
        for task in &gated {
            open_gate(world.lab.home(), task.metadata.uid.as_deref().unwrap_or_default(), 0)?;
        }
        world.until_phase("kept-", 4, Phase::Finished).await.map(drop)
    });
}
