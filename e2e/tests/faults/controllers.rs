//! Leaders that are killed, stopped, cut off, deposed, or mistaken for each other.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use muster_api::task_state::Phase;
use muster_client::Error;
use muster_e2e::fleet::{Shape, until};
use serde_json::{Value, json};

use crate::world::{Load, World, accept, lasting, scenario, task_of};

/// How long leadership lasts without renewal.
const TTL: Duration = Duration::from_secs(3);
/// What a takeover may take after the lease has ended, on a machine that is busy with something else.
const TAKEOVER: Duration = Duration::from_secs(10);

const PACE: Duration = Duration::from_millis(100);

#[test]
fn s01_leader_killed_idle_and_under_load() {
    let shape = Shape {
        agents: 2,
        ..Shape::default()
    };
    scenario(shape, async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        world.framework("ext", 1).await?;
        let offer = world.offer("ext", &BTreeSet::new()).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        load.more(3).await?;
        let (fence, _) = world.leader().await?;
        let killed = Instant::now();
        world.process("c1/controllers").kill()?;
        let (_, holder) = world.next_leader(fence).await?;
        ensure!(
            holder != "c1" && killed.elapsed() < TTL + TAKEOVER,
            "{holder} leads after {:?}",
            killed.elapsed()
        );
        load.more(3).await?;
        let open = world.open_offers("ext");
        ensure!(
            open.iter().any(|open| open.metadata.uid == offer.metadata.uid),
            "an open offer outlives the leader that made it"
        );
        accept(&world.client, &offer, task_of("ext", "ext-1", "true"), None).await?;
        world.until_phase("ext-1", 1, Phase::Finished).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s02_leader_stopped_for_longer_than_its_lease() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        load.more(2).await?;
        let (stale, _) = world.leader().await?;
        world.process("c1/controllers").pause()?;
        let (current, holder) = world.next_leader(stale).await?;
        ensure!(holder != "c1", "it stands still");
        lasting(TTL).await;
        world.process("c1/controllers").resume()?;
        load.more(10).await?;
        ensure!(
            world.leader().await?.0 == current,
            "the former leader does not disturb the new one"
        );
        late_writes_are_refused(world, stale).await?;
        ensure!(
            world.process("c1/controllers").is_running(),
            "to lose leadership is no reason to end"
        );
        load.finish(world).await.map(drop)
    });
}

/// What a former leader sends under its fence never lands.
async fn late_writes_are_refused(world: &World, stale: u64) -> Result<()> {
    let client = world.client.fenced(&World::controllers_fence(stale));
    let late =
        json!({ "apiVersion": "v1", "kind": "ConfigMap", "metadata": { "name": "late", "namespace": "default" } });
    let answer: Result<Value, Error> = client.create_at("/api/v1/namespaces/default/configmaps", &late).await;
    ensure!(
        matches!(answer, Err(Error::Fenced(_))),
        "a late write was answered with {answer:?}"
    );
    Ok(())
}

#[test]
fn s03_leader_stopped_for_less_than_its_lease() {
    scenario(Shape::default(), async |world| {
        // Long enough that a machine that is busy with something else does not end it.
        let ttl = TTL * 4;
        world.controllers_apart(&["c1", "c2"], ttl).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        let (fence, _) = world.leader().await?;
        for _ in 0..4 {
            world.process("c1/controllers").pause()?;
            lasting(TTL / 2).await;
            world.process("c1/controllers").resume()?;
            load.more(2).await?;
        }
        load.finish(world).await?;
        let (now, holder) = world.leader().await?;
        ensure!(
            now == fence,
            "leadership went to {holder}, although the lease never ended"
        );
        Ok(())
    });
}

#[test]
fn s04_leader_cut_off_from_the_server() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        load.more(2).await?;
        let (fence, _) = world.leader().await?;
        let cut = Instant::now();
        world.lab.partition(&["c1"], &["s1"])?;
        let stepped_down = |log: String| log.contains("no renewal was acknowledged in time");
        let c1 = world.process("c1/controllers");
        until("the leader to step down by itself", TTL + TAKEOVER, async || {
            stepped_down(c1.log()).then_some(())
        })
        .await?;
        let (_, holder) = world.next_leader(fence).await?;
        ensure!(
            holder != "c1" && cut.elapsed() < TTL + TAKEOVER,
            "{holder} leads after {:?}",
            cut.elapsed()
        );
        load.more(5).await?;
        world.heal()?;
        load.more(5).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s06_two_leaders_of_one_identity() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["twin", "twin"], TTL).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        load.more(10).await?;
        world.process("c1/controllers").pause()?;
        lasting(TTL / 3).await;
        load.more(5).await?;
        world.process("c1/controllers").resume()?;
        load.more(10).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s08_lease_deleted_under_a_healthy_leader() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        load.more(2).await?;
        let (fence, _) = world.leader().await?;
        let deposed = Instant::now();
        world.depose(fence).await?;
        world.next_leader(fence).await?;
        ensure!(
            deposed.elapsed() < TAKEOVER,
            "nobody waits for a lease that is gone: {:?}",
            deposed.elapsed()
        );
        late_writes_are_refused(world, fence).await?;
        load.more(5).await?;
        for name in ["c1/controllers", "c2/controllers"] {
            ensure!(world.process(name).is_running(), "{name} steps down without ending");
        }
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s09_leadership_goes_to_and_fro() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        let load = Load::start(world, vec![world.client.clone()], PACE);
        let mut holders = BTreeSet::new();
        for _ in 0..25 {
            let (fence, _) = world.leader().await?;
            world.depose(fence).await.ok();
            holders.insert(world.next_leader(fence).await?.1);
        }
        ensure!(holders.len() > 1, "only {holders:?} ever led");
        load.more(3).await?;
        load.finish(world).await.map(drop)
    });
}

#[test]
fn s10_leader_told_to_stop() {
    scenario(Shape::default(), async |world| {
        world.controllers_apart(&["c1", "c2"], TTL).await?;
        let (first, _) = world.leader().await?;
        let told = Instant::now();
        let ended = world.process("c1/controllers").terminate()?;
        ensure!(ended.success(), "it ended with {ended}");
        let (second, _) = world.next_leader(first).await?;
        ensure!(
            told.elapsed() < TTL,
            "the lease is given back and not waited for: {:?}",
            told.elapsed()
        );
        // One that does not lead any more must not give back what is another's.
        world.start_controllers("c1", "c1", TTL.as_secs())?;
        world.make_lead("c1").await?;
        let (stale, _) = world.leader().await?;
        ensure!(stale > second, "leadership is new each time");
        world.process("c1/controllers").pause()?;
        let (current, _) = world.next_leader(stale).await?;
        world
            .process("c1/controllers")
            .signal(nix::sys::signal::Signal::SIGTERM)?;
        world.process("c1/controllers").resume()?;
        world.process("c1/controllers").wait()?;
        world.run("after", "true").await?;
        world.until_phase("after", 1, Phase::Finished).await?;
        ensure!(
            world.leader().await?.0 == current,
            "a former leader deleted its successor's lease"
        );
        Ok(())
    });
}
