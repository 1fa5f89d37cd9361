//! Members of etcd that are killed, stopped, slow, wiped, compacted, or not the right ones.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use muster_api::task_state::Phase;
use muster_api::v1::Task;
use muster_client::Error;
use muster_e2e::PATIENCE;
use muster_e2e::fleet::{Shape, TASKS, task, until};
use muster_e2e::process::Injection;
use nix::sys::signal::Signal;
use serde_json::{Value, json};

use crate::world::{Load, World, lasting, read, scenario};

const PACE: Duration = Duration::from_millis(100);
const ALL: [&str; 3] = ["e1", "e2", "e3"];

/// The other two.
fn others(member: &str) -> Vec<&'static str> {
    ALL.into_iter().filter(|name| *name != member).collect()
}

async fn load(world: &World) -> Result<Load> {
    Ok(Load::start(world, world.clients().await?, PACE))
}

fn etcd(member: &str) -> String {
    format!("{member}/etcd")
}

/// How many times some agent was lost.
fn losses(world: &World, since: Instant) -> usize {
    let changes = world.tape.since(since).into_iter();
    let lost = changes.filter(|(_, key, _, object)| {
        key.starts_with("objects/muster.dev/agents/") && object["status"]["reachability"] == json!("Unknown")
    });
    lost.count()
}

#[test]
fn s11_etcd_leader_killed_under_accept_load() {
    scenario(Shape::highly_available(2), async |world| {
        let load = load(world).await?;
        load.more(5).await?;
        let leader = world.etcd_leader(&ALL).await?;
        let killed = Instant::now();
        world.process(&etcd(&leader)).kill()?;
        let next = world.etcd_leader(&others(&leader)).await?;
        ensure!(next != leader, "{next} leads");
        world.mark("after-it").await?;
        println!(
            "a write was taken {:?} after the leader of etcd was killed",
            killed.elapsed()
        );
        // Half of it, when the machine is not busy; what was under way is not given up before 5 s.
        ensure!(
            killed.elapsed() < Duration::from_secs(5),
            "writes are back after {:?}",
            killed.elapsed()
        );
        load.more(5).await?;
        world.start_member(&leader, "existing")?;
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s12_etcd_leader_stopped_and_read_through() {
    scenario(Shape::highly_available(2), async |world| {
        let load = load(world).await?;
        for _ in 0..2 {
            load.more(3).await?;
            let leader = world.etcd_leader(&ALL).await?;
            world.process(&etcd(&leader)).pause()?;
            let acknowledged = world.mark("meanwhile").await?;
            // Whoever answers must know of what was acknowledged before it was asked.
            for client in world.clients().await? {
                let list: Value = read(&client, "/api/v1/namespaces/default/configmaps").await?;
                let at: u64 = list["metadata"]["resourceVersion"]
                    .as_str()
                    .context("a revision")?
                    .parse()?;
                ensure!(
                    at >= acknowledged,
                    "a list at {at}, although {acknowledged} was acknowledged before"
                );
            }
            lasting(Duration::from_secs(3)).await;
            world.process(&etcd(&leader)).resume()?;
        }
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s13_two_of_three_members_down() {
    scenario(Shape::highly_available(2), async |world| {
        world.run("stays", "sleep 1000").await?;
        world.until_phase("stays", 1, Phase::Running).await?;
        let down = Instant::now();
        world.process("e1/etcd").kill()?;
        world.process("e2/etcd").kill()?;
        let answer: Result<Value, Error> = world.client.create_at(TASKS, &task("never", "true")).await;
        println!(
            "without a quorum a write is answered after {:?}: {answer:?}",
            down.elapsed()
        );
        ensure!(
            matches!(answer, Err(Error::Retryable { .. } | Error::Timeout(_))),
            "without a quorum: {answer:?}"
        );
        // Four times as long as an agent's presence lasts without a word.
        lasting(Duration::from_secs(60)).await;
        world.start_member("e1", "existing")?;
        world.start_member("e2", "existing")?;
        world.etcd_leader(&ALL).await?;
        let back = Instant::now();
        world.mark("quorum").await?;
        println!("writes are back {:?} after etcd has a leader", back.elapsed());
        world.run("again", "true").await?;
        world.until_phase("again", 1, Phase::Finished).await?;
        let stays: Task = world.client.get(Some("default"), "stays").await?;
        ensure!(stays.phase() == Phase::Running, "it is {}", stays.phase());
        for agent in world.agents() {
            world
                .until_reachability(&agent, muster_api::v1::Reachability::Reachable)
                .await?;
        }
        ensure!(
            losses(world, down) == 0,
            "nobody is given up because nobody could write"
        );
        Ok(())
    });
}

#[test]
fn s14_member_wiped_and_added_again() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        load.more(3).await?;
        let list = world.etcdctl(&["e1"], &["member", "list"])?;
        let id = list
            .lines()
            .find(|line| line.contains(", e3,"))
            .and_then(|line| line.split(',').next());
        let id = id.context("e3 is a member")?.to_owned();
        world.process("e3/etcd").kill()?;
        std::fs::remove_dir_all(world.member_directory("e3"))?;
        let removed = async || {
            // Without an answer, as while etcd looks for a leader, it may have happened or not: the list tells.
            let _ = world.etcdctl(&["e1", "e2"], &["member", "remove", &id]);
            let list = world.etcdctl(&["e1", "e2"], &["member", "list"]).ok()?;
            (!list.contains(&id)).then_some(())
        };
        until("the member to be removed", PATIENCE, removed).await?;
        load.more(3).await?;
        let peer = format!("--peer-urls=http://{}:2380", world.lab.host("e3").address);
        let added = async || world.etcdctl(&["e1", "e2"], &["member", "add", "e3", &peer]).ok();
        until("the member to be added", PATIENCE, added).await?;
        world.start_member("e3", "existing")?;
        let healthy = async || world.etcdctl(&["e3"], &["endpoint", "health"]).ok();
        until("it to be healthy", PATIENCE, healthy).await?;
        // Now it has to carry its part.
        world.process("e1/etcd").kill()?;
        load.more(3).await?;
        world.start_member("e1", "existing")?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s15_rolling_restart_of_etcd() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        for round in 0..6 {
            let member = ALL[round % 3];
            load.more(2).await?;
            world.process(&etcd(member)).terminate()?;
            world.start_member(member, "existing")?;
            let healthy = async || world.etcdctl(&[member], &["endpoint", "health"]).ok();
            until("it to be healthy", PATIENCE, healthy).await?;
        }
        load.more(3).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s16_slow_disk_under_the_leader_of_etcd() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        load.more(3).await?;
        let (fence, _) = world.leader().await?;
        let leader = world.etcd_leader(&ALL).await?;
        let output = world.lab.home().join("strace");
        let slow = Injection::start(
            world.process(&etcd(&leader)),
            "fdatasync,fsync:delay_enter=100000",
            &output,
        )?;
        load.more(10).await?;
        ensure!(slow.calls() > 3, "the disk was not slow");
        drop(slow);
        load.finish(world).await?;
        ensure!(
            world.etcd_leader(&ALL).await? == leader,
            "a slow disk is no reason to elect"
        );
        println!(
            "the controllers {}",
            if world.leader().await?.0 == fence {
                "led on"
            } else {
                "changed"
            }
        );
        Ok(())
    });
}

#[test]
fn s17_failing_disk_under_the_leader_of_etcd() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        load.more(3).await?;
        let leader = world.etcd_leader(&ALL).await?;
        let output = world.lab.home().join("strace");
        let failing = Injection::start(world.process(&etcd(&leader)), "fdatasync,fsync:error=EIO", &output)?;
        world.process(&etcd(&leader)).wait()?;
        ensure!(failing.calls() > 0, "the disk did not fail");
        drop(failing);
        let next = world.etcd_leader(&others(&leader)).await?;
        ensure!(next != leader, "{next} leads");
        load.more(5).await?;
        world.start_member(&leader, "existing")?;
        load.more(3).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s20_compacted_under_watches() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        load.more(10).await?;
        // A server that stands still while what it has not seen is forgotten.
        world.process("s3/server").signal(Signal::SIGSTOP)?;
        load_some(world, 20).await?;
        let status = world.etcdctl(&["e1"], &["endpoint", "status", "-w", "json"])?;
        let status: Value = serde_json::from_str(&status)?;
        let revision = status[0]["Status"]["header"]["revision"]
            .as_u64()
            .context("a revision")?;
        world.etcdctl(&["e1"], &["compact", &revision.to_string()])?;
        world.process("s3/server").resume()?;
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

/// Writes that somebody misses.
async fn load_some(world: &World, count: usize) -> Result<()> {
    for _ in 0..count {
        world.mark("missed").await?;
    }
    Ok(())
}

#[test]
fn s21_defragmented_under_load() {
    scenario(Shape::highly_available(1), async |world| {
        let load = load(world).await?;
        for member in ALL {
            load.more(3).await?;
            let said = world.etcdctl(&[member], &["defrag"])?;
            ensure!(said.contains("Finished"), "{said}");
        }
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s71_poison_in_the_store() {
    scenario(Shape::highly_available(1), async |world| {
        world.run("good", "true").await?;
        world.until_phase("good", 1, Phase::Finished).await?;
        let keys = world.etcdctl(&["e1"], &["get", "", "--from-key", "--keys-only"])?;
        let good = keys
            .lines()
            .find(|key| key.ends_with("objects/muster.dev/tasks/default/good"));
        let bad = good
            .context("the key of a task")?
            .replace("default/good", "default/bad");
        world.etcdctl(&["e1"], &["put", &bad, "\u{1}this is no object"])?;
        world.mark("behind-it").await?;
        world.run("better", "true").await?;
        world.until_phase("better", 1, Phase::Finished).await?;
        for client in world.clients().await? {
            let list: Value = read(&client, TASKS).await?;
            let names: Vec<&str> = list["items"]
                .as_array()
                .into_iter()
                .flatten()
                .filter_map(|item| item["metadata"]["name"].as_str())
                .collect();
            ensure!(
                names.contains(&"good") && names.contains(&"better"),
                "the rest is listed: {names:?}"
            );
        }
        // A server that starts with it serves the rest, too.
        world.process("s2/server").kill()?;
        world.start_server("s2")?;
        world.until_answers("s2").await
    });
}

#[test]
fn s23_another_cluster_where_ones_own_should_be() {
    scenario(Shape::highly_available(1), async |world| {
        world.process("s3/server").terminate()?;
        world.start_server_with("s3", &["--etcd-prefix=/empty/"])?;
        let ended = world.process("s3/server").wait()?;
        ensure!(!ended.success(), "it serves an empty store as if it were its own");
        let keys = world.etcdctl(&["e1"], &["get", "/empty/", "--prefix", "--keys-only"])?;
        ensure!(keys.trim().is_empty(), "and has written into it: {keys}");
        world.start_server("s3")?;
        world.until_answers("s3").await?;
        world.run("after", "true").await?;
        world.until_phase("after", 1, Phase::Finished).await.map(drop)
    });
}
