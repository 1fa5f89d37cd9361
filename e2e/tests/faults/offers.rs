//! Frameworks that crash, come twice, race, or ask for too much.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use anyhow::ensure;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Offer};
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_client::{Error, Patch, Preconditions};
use muster_e2e::PATIENCE;
use muster_e2e::evidence::{GATE, open_gate};
use muster_e2e::fleet::{Shape, until};
use serde_json::{Value, json};

use crate::world::{accept, contend, scenario, task_of, too_late};

fn name(offer: &Offer) -> &str {
    offer.metadata.name.as_deref().unwrap_or_default()
}

#[test]
fn s54_framework_crashed_with_open_offers() {
    scenario(Shape::default(), async |world| {
        world.framework("ext", 1).await?;
        let offer = world.offer("ext", &BTreeSet::new()).await?;
        // The framework never comes back, and somebody else needs what it holds: all of the agent.
        let path = "/apis/muster.dev/v1/namespaces/default/frameworks/ext";
        world.client.delete_at::<Value>(path, &Preconditions::default()).await?;
        let mut whole = muster_e2e::fleet::task("whole", "true");
        whole["spec"]["resources"]["cpus"] = json!("64");
        world.submit(whole).await?;
        world.until_phase("whole", 1, Phase::Finished).await?;
        let answer = accept(&world.client, &offer, task_of("ext", "late", "true"), None).await;
        ensure!(too_late(&answer), "the offer was taken back, but accepted: {answer:?}");
        Ok(())
    });
}

#[test]
fn s55_framework_connected_twice() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            world.framework("ext", 1).await?;
            let sessions = [world.client("s1").await?, world.client("s1").await?];
            contend(world, "ext", &sessions, 8).await
        },
    );
}

#[test]
fn s56_one_offer_accepted_by_many_at_once() {
    scenario(Shape::default(), async |world| {
        world.framework("ext", 1).await?;
        let mut clients = Vec::new();
        for server in world.servers() {
            for _ in 0..4 {
                clients.push(world.client(&server).await?);
            }
        }
        contend(world, "ext", &clients, 5).await
    });
}

#[test]
fn s57_accept_races_with_rescind_and_decline() {
    scenario(Shape::default(), async |world| {
        world.framework("ext", 1).await?;
        let (mut accepted, mut lost) = (0, 0);
        for round in 0..8_u64 {
            let offer = world.offer("ext", &BTreeSet::new()).await?;
            let body = task_of("ext", &format!("ext-{round}"), "true");
            let decline = DeclineRequest {
                refuse: Some("1s".parse()?),
            };
            let accepting = async {
                tokio::time::sleep(Duration::from_micros(700 * (round / 2))).await;
                accept(&world.client, &offer, body, None).await
            };
            let ending = async {
                if round % 2 == 0 {
                    world.client.decline("default", name(&offer), &decline).await.is_ok()
                } else {
                    let path = format!("/apis/muster.dev/v1/namespaces/default/offers/{}", name(&offer));
                    world
                        .client
                        .delete_at::<Value>(&path, &Preconditions::default())
                        .await
                        .is_ok()
                }
            };
            let (answer, ended) = tokio::join!(accepting, ending);
            ensure!(
                answer.is_ok() != ended,
                "round {round}: accepted {answer:?}, and ended otherwise: {ended}"
            );
            ensure!(answer.is_ok() || too_late(&answer), "round {round}: {answer:?}");
            accepted += usize::from(answer.is_ok());
            lost += usize::from(ended);
            let gone = async || (!world.open_offers("ext").iter().any(|open| name(open) == name(&offer))).then_some(());
            until("the offer to be seen gone", PATIENCE, gone).await?;
        }
        ensure!(accepted + lost == 8, "every offer ends once");
        world.until_phase("ext-", accepted, Phase::Finished).await.map(drop)
    });
}

#[test]
fn s58_accept_for_an_agent_that_has_vanished() {
    scenario(
        Shape {
            agents: 2,
            ..Shape::default()
        },
        async |world| {
            world.framework("ext", 2).await?;
            let offer = world.offer("ext", &BTreeSet::new()).await?;
            let agent = offer.spec.agent.clone();
            world.process(&format!("{agent}/agent")).kill()?;
            let lease = format!("/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases/{agent}");
            world
                .client
                .delete_at::<Value>(&lease, &Preconditions::default())
                .await?;
            let answer = accept(&world.client, &offer, task_of("ext", "nowhere", "true"), None).await;
            ensure!(
                too_late(&answer),
                "an agent that is not there was given a task: {answer:?}"
            );
            let rescinded =
                async || (!world.open_offers("ext").iter().any(|open| open.spec.agent == agent)).then_some(());
            until("its offers to be taken back", PATIENCE, rescinded).await?;
            // An agent that is only to be left alone is not offered either.
            let other = world.offer("ext", &BTreeSet::new()).await?;
            let cordon = Patch::Merge(json!({ "spec": { "unschedulable": true } }));
            world.client.patch::<Agent>(None, &other.spec.agent, &cordon).await?;
            let none = async || world.open_offers("ext").is_empty().then_some(());
            until("nothing to be offered", PATIENCE, none).await?;
            let answer = accept(&world.client, &other, task_of("ext", "nowhere", "true"), None).await;
            ensure!(too_late(&answer), "a cordoned agent was given a task: {answer:?}");
            world.start_agent(&agent)?;
            let back = world.offer("ext", &BTreeSet::new()).await?;
            ensure!(back.spec.agent == agent, "what came back is offered again");
            accept(&world.client, &back, task_of("ext", "ext-1", "true"), None).await?;
            world.until_phase("ext-1", 1, Phase::Finished).await.map(drop)
        },
    );
}

#[test]
fn s59_accept_of_more_than_was_offered() {
    scenario(Shape::default(), async |world| {
        world.framework("ext", 1).await?;
        let offer = world.offer("ext", &BTreeSet::new()).await?;
        let asking = |resource: &str, amount: Value| {
            let mut body = task_of("ext", "greedy", "true");
            body["spec"]["resources"][resource] = amount;
            body
        };
        for (resource, amount) in [
            ("cpus", json!("1000")),
            ("cpus", json!("64.001")),
            ("cpus", json!("1e308")),
            ("cpus", json!("NaN")),
            ("cpus", json!("-0.1")),
            ("cpus", json!(-1)),
            ("cpus", json!("18446744073709551616")),
            ("cpus", json!("999999999999999999k")),
            ("memory", json!("65Gi")),
            ("memory", json!("9Ei")),
            ("memory", json!("-1")),
            ("gpus", json!(1)),
            ("ports", json!(100_000)),
            ("ports", json!("1-2")),
        ] {
            let answer = accept(&world.client, &offer, asking(resource, amount.clone()), None).await;
            let code = answer.as_ref().err().and_then(Error::status).map(|status| status.code);
            ensure!(
                code.is_some_and(|code| code == 422 || code == 400),
                "{resource}: {amount} was answered with {answer:?}"
            );
        }
        let many = AcceptRequest {
            launch: (0..2)
                .map(|index| {
                    let mut body = asking("cpus", json!("33"));
                    body["metadata"]["name"] = json!(format!("half-{index}"));
                    body
                })
                .collect(),
            ..Default::default()
        };
        let answer = world.client.accept("default", name(&offer), &many).await;
        ensure!(
            matches!(answer, Err(Error::Invalid(_))),
            "two halves are more than the whole: {answer:?}"
        );
        let left = world
            .open_offers("ext")
            .iter()
            .any(|open| open.metadata.uid == offer.metadata.uid);
        ensure!(
            left && world.tape.tasks().is_empty(),
            "a refused accept changes nothing"
        );
        accept(&world.client, &offer, asking("cpus", json!("64")), None).await?;
        world.until_phase("greedy", 1, Phase::Finished).await.map(drop)
    });
}

#[test]
fn s63_capacity_shrinks_below_what_is_given_out() {
    scenario(
        Shape {
            cpus: 8,
            ..Shape::default()
        },
        async |world| {
            world.tolerate("has given out");
            let wide = |name: &str, script: &str| {
                let mut body = muster_e2e::fleet::task(name, script);
                body["spec"]["resources"]["cpus"] = json!("3");
                body
            };
            for index in 0..2 {
                world.submit(wide(&format!("wide-{index}"), GATE)).await?;
            }
            world.until_phase("wide-", 2, Phase::Running).await?;
            world.process("a1/agent").kill()?;
            world.resize(4);
            world.start_agent("a1")?;
            let shrunk = async || {
                let agent: Agent = world.client.get(None, "a1").await.ok()?;
                (agent.status?.capacity.cpus.milli() == 4000).then_some(())
            };
            until("the agent to say that it has less", PATIENCE, shrunk).await?;
            world.submit(wide("next", "true")).await?;
            let began = Instant::now();
            let why = async || {
                let why = world.client.why("default", "next").await.ok()?;
                (!why.agents.is_empty()).then_some(why)
            };
            let why = until("the reason why it waits", PATIENCE, why).await?;
            ensure!(why.agents.iter().all(|agent| !agent.fits), "{why:?}");
            ensure!(
                world.tape.first_added(began, "objects/muster.dev/offers/").is_none(),
                "there is nothing to offer"
            );
            let running = world
                .tape
                .tasks()
                .iter()
                .filter(|task| task.phase() == Phase::Running)
                .count();
            ensure!(running == 2, "what runs is not killed for it");
            for task in world.tape.tasks().iter().filter(|task| task.phase() == Phase::Running) {
                open_gate(world.lab.home(), task.metadata.uid.as_deref().unwrap_or_default(), 0)?;
            }
            world.until_phase("wide-", 2, Phase::Finished).await?;
            world.until_phase("next", 1, Phase::Finished).await.map(drop)
        },
    );
}
