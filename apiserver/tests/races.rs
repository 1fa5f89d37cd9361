//! Several at once, through a store that answers late or not at all: nothing is given out twice, and nothing is half-done.

#![allow(clippy::unwrap_used, reason = "a test may panic")]

mod common;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use common::*;
use futures::future::join_all;
use muster_api::resources::Bundle;
use muster_api::v1::{Agent, Offer, Task};
use muster_api::wire::{ChangeKind, WatchLine};
use muster_store::{FaultStore, Faults, MemoryStore, Page, Prefix, Store};
use proptest::prelude::*;
use serde_json::{Value, json};

async fn faulty(seed: u64) -> (Cluster, Arc<FaultStore>, Arc<dyn Store>) {
    let inner: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let store = Arc::new(FaultStore::new(inner.clone(), seed, Faults::none()));
    let cluster = Cluster::on(store.clone()).await;
    (cluster, store, inner)
}

fn late() -> Faults {
    Faults {
        delay: 0.7,
        delay_max: Duration::from_millis(50),
        ..Faults::none()
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_that_accept_one_offer_one_gets_it() {
    for seed in 0..20 {
        let (cluster, store, _) = faulty(seed).await;
        cluster
            .offer(&[cluster.an_offer("o", 4, &["GPU-a1-0"], "")])
            .await
            .expect(201);
        store.set_faults(late());
        let accepts = (0..4).map(|index| {
            let body = json!({"launch": [task(&format!("t{index}"))]});
            let cluster = &cluster;
            async move { cluster.accept("o", &body).await }
        });
        let answers = join_all(accepts).await;
        let mut codes: Vec<u16> = answers.iter().map(|answer| answer.code.as_u16()).collect();
        codes.sort_unstable();
        assert_eq!(codes[0], 201, "seed {seed}: {codes:?}");
        assert!(
            codes[1..].iter().all(|code| [404, 409].contains(code)),
            "seed {seed}: {codes:?}"
        );
        let tasks = cluster.server.jo().get(TASKS).await.expect(200).json;
        assert_eq!(names(&tasks).len(), 1, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_task_is_bound_once() {
    for seed in 0..20 {
        let (cluster, store, _) = faulty(seed).await;
        cluster.server.jo().post(TASKS, &task("t")).await.expect(201);
        let offers: Vec<Value> = (0..4)
            .map(|index| cluster.an_offer(&format!("o{index}"), 1, &[], ""))
            .collect();
        cluster.offer(&offers).await.expect(201);
        store.set_faults(late());
        let accepts = (0..4).map(|index| {
            let cluster = &cluster;
            async move { cluster.accept(&format!("o{index}"), &json!({"bind": ["t"]})).await }
        });
        let answers = join_all(accepts).await;
        let mut codes: Vec<u16> = answers.iter().map(|answer| answer.code.as_u16()).collect();
        codes.sort_unstable();
        assert_eq!(codes, [201, 422, 422, 422], "seed {seed}");
        assert_eq!(
            cluster.server.jo().get(OFFERS).await.json["items"]
                .as_array()
                .unwrap()
                .len(),
            3,
            "seed {seed}"
        );
    }
}

#[tokio::test(start_paused = true)]
async fn of_several_passes_over_one_agent_one_counts() {
    for seed in 0..20 {
        let (cluster, store, _) = faulty(seed).await;
        store.set_faults(late());
        let seen = cluster.server.state.hub.revision();
        let passes = (0..4).map(|index| {
            let body = json!({"seenRevision": seen, "create": [cluster.an_offer(&format!("o{index}"), 1, &[], "")]});
            let client = cluster.controllers();
            async move { client.post(&format!("{AGENTS}/a1/offers"), &body).await }
        });
        let mut codes: Vec<u16> = join_all(passes)
            .await
            .iter()
            .map(|answer| answer.code.as_u16())
            .collect();
        codes.sort_unstable();
        assert_eq!(codes, [201, 409, 409, 409], "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn a_patch_that_names_no_version_always_lands() {
    for seed in 0..10 {
        let (cluster, store, _) = faulty(seed).await;
        let jo = cluster.server.jo();
        jo.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
        store.set_faults(late());
        let patches = (0..8).map(|index| {
            let client = jo.clone();
            async move {
                let patch = json!({"data": {format!("k{index}"): "x"}});
                client.merge(&format!("{CONFIG_MAPS}/c"), &patch).await.expect(200);
            }
        });
        join_all(patches).await;
        let data = jo.get(&format!("{CONFIG_MAPS}/c")).await.expect(200).json["data"].clone();
        assert_eq!(data.as_object().unwrap().len(), 9, "seed {seed}");
    }
}

#[derive(Clone, Debug)]
enum Step {
    /// One allocation pass: these CPUs and this many devices.
    Offer(u32, usize),
    Accept(usize, usize),
    Decline(usize),
    Rescind(usize),
    Move(usize, &'static str),
    Delete(usize),
    Pause,
}

fn any_step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u32..5, 0usize..3).prop_map(|(cpus, devices)| Step::Offer(cpus, devices)),
        4 => (0usize..4, 0usize..3).prop_map(|(offer, count)| Step::Accept(offer, count)),
        1 => (0usize..4).prop_map(Step::Decline),
        1 => (0usize..4).prop_map(Step::Rescind),
        4 => (0usize..6, prop::sample::select(vec!["Starting", "Running", "Finished", "Failed"]))
            .prop_map(|(task, phase)| Step::Move(task, phase)),
        1 => (0usize..6).prop_map(Step::Delete),
        1 => Just(Step::Pause),
    ]
}

async fn nth(store: &dyn Store, kind: &str, index: usize) -> Option<Value> {
    let prefix = Prefix::new(format!("objects/muster.dev/{kind}/"));
    let listing = store.list(&prefix, Page::default()).await.unwrap();
    let entry = listing.entries.get(index % listing.entries.len().max(1))?;
    Some(serde_json::from_slice(&entry.value).unwrap())
}

/// What a reader of the ordered watch knows.
#[derive(Default)]
struct View {
    revision: u64,
    objects: BTreeMap<(String, String), Value>,
}

impl View {
    /// `false`: it has to begin anew.
    fn apply(&mut self, line: WatchLine) -> bool {
        let (revision, changes) = match line {
            WatchLine::Snapshot { revision, changes, .. } | WatchLine::Batch { revision, changes } => {
                (revision, changes)
            }
            WatchLine::Progress { revision } => (revision, Vec::new()),
            WatchLine::Error { .. } => return false,
        };
        assert!(revision >= self.revision, "{revision} after {}", self.revision);
        self.revision = revision;
        for change in changes {
            let name = change.object["metadata"]["name"].as_str().unwrap().to_owned();
            let place = (change.resource, name);
            match change.kind {
                ChangeKind::Deleted => assert!(self.objects.remove(&place).is_some(), "{place:?}"),
                ChangeKind::Added | ChangeKind::Modified => _ = self.objects.insert(place, change.object),
            }
        }
        true
    }

    /// Nothing is given out twice, at any revision that a reader can see.
    fn check(&self) {
        let of = |resource: &'static str| {
            let objects = self.objects.iter().filter(move |((kind, _), _)| kind == resource);
            objects.map(|(_, object)| object.clone())
        };
        let Some(agent) = of("agents.muster.dev").next() else {
            return;
        };
        let agent: Agent = serde_json::from_value(agent).unwrap();
        let mut held = Bundle::default();
        for task in of("tasks.muster.dev") {
            let task: Task = serde_json::from_value(task).unwrap();
            held = held
                .checked_add(&task.held())
                .expect("no device or port is given out twice");
        }
        for offer in of("offers.muster.dev") {
            let offer: Offer = serde_json::from_value(offer).unwrap();
            held = held
                .checked_add(&offer.held())
                .expect("no device or port is given out twice");
        }
        assert!(agent.allocatable().contains(&held), "{held:?}");
    }
}

const WATCHED: &str = "/muster/v1/watch?resources=tasks.muster.dev,offers.muster.dev,agents.muster.dev";

/// Reads what there is to read; a watch that ends or cannot go on is begun anew.
async fn read(cluster: &Cluster, watch: &mut Option<Lines>, view: &mut View) {
    if watch.is_none() {
        let resumed = if view.revision > 0 {
            format!("&resourceVersion={}", view.revision)
        } else {
            String::new()
        };
        let response = cluster
            .server
            .jo()
            .open("GET", &format!("{WATCHED}{resumed}"), "")
            .await;
        if response.status() != 200 {
            return;
        }
        *watch = Some(Lines::new(response.into_body()));
    }
    while let Ok(line) = tokio::time::timeout(Duration::from_millis(500), watch.as_mut().unwrap().next()).await {
        let Some(line) = line else {
            *watch = None;
            return;
        };
        if !view.apply(serde_json::from_value(line).unwrap()) {
            (*view, *watch) = (View::default(), None);
            return;
        }
        view.check();
    }
}

async fn act(cluster: &Cluster, inner: &dyn Store, step: &Step, index: usize) {
    let name = |object: &Value| object["metadata"]["name"].as_str().unwrap().to_owned();
    let free: BTreeSet<String> = (0..4).map(|index| format!("GPU-a1-{index}")).collect();
    match step {
        Step::Offer(cpus, devices) => {
            let devices: Vec<&str> = free.iter().map(String::as_str).skip(index % 3).take(*devices).collect();
            let port = (31000 + index % 10).to_string();
            cluster
                .offer(&[cluster.an_offer(&format!("o{index}"), *cpus, &devices, &port)])
                .await;
        }
        Step::Accept(offer, count) => {
            if let Some(offer) = nth(inner, "offers", *offer).await {
                let launch: Vec<Value> = (0..=*count)
                    .map(|number| {
                        let mut task = task(&format!("t{index}-{number}"));
                        task["spec"]["resources"]["gpus"] = json!(number % 2);
                        task
                    })
                    .collect();
                cluster
                    .accept(
                        &name(&offer),
                        &json!({"launch": launch, "idempotencyKey": index.to_string()}),
                    )
                    .await;
            }
        }
        Step::Decline(offer) => {
            if let Some(offer) = nth(inner, "offers", *offer).await {
                cluster
                    .server
                    .jo()
                    .post(&format!("{OFFERS}/{}/decline", name(&offer)), &json!({}))
                    .await;
            }
        }
        Step::Rescind(offer) => {
            if let Some(offer) = nth(inner, "offers", *offer).await {
                cluster
                    .controllers()
                    .delete(&format!("{OFFERS}/{}", name(&offer)))
                    .await;
            }
        }
        Step::Move(task, phase) => {
            if let Some(task) = nth(inner, "tasks", *task).await {
                let status = json!({"status": {"phase": phase}});
                cluster
                    .agent()
                    .merge(&format!("{TASKS}/{}/status", name(&task)), &status)
                    .await;
            }
        }
        Step::Delete(task) => {
            if let Some(task) = nth(inner, "tasks", *task).await {
                cluster.server.jo().delete(&format!("{TASKS}/{}", name(&task))).await;
                let release = json!({"metadata": {"finalizers": null}});
                cluster
                    .agent()
                    .merge(&format!("{TASKS}/{}", name(&task)), &release)
                    .await;
            }
        }
        Step::Pause => tokio::time::sleep(Duration::from_secs(3)).await,
    }
}

async fn check(seed: u64, steps: Vec<Step>) {
    let (cluster, store, inner) = faulty(seed).await;
    cluster.renew().await;
    store.set_faults(Faults {
        unavailable_before: 0.03,
        unavailable_after: 0.05,
        late_commit: 0.05,
        delay: 0.2,
        delay_max: Duration::from_millis(100),
        watch_cut: 0.05,
        watch_repeat: 0.1,
        compaction: 0.03,
        ..Faults::none()
    });
    let (mut watch, mut view) = (None, View::default());
    for (index, pair) in steps.chunks(2).enumerate() {
        let both = pair
            .iter()
            .enumerate()
            .map(|(place, step)| act(&cluster, &*inner, step, 2 * index + place));
        join_all(both).await;
        cluster.renew().await;
        read(&cluster, &mut watch, &mut view).await;
    }
    store.set_faults(Faults::none());
    tokio::time::sleep(Duration::from_secs(10)).await;
    let newest = inner.revision().await.unwrap();
    while view.revision < newest {
        read(&cluster, &mut watch, &mut view).await;
    }
    let mut expected = BTreeMap::new();
    for kind in ["tasks", "offers", "agents"] {
        let prefix = Prefix::new(format!("objects/muster.dev/{kind}/"));
        for entry in inner.list(&prefix, Page::default()).await.unwrap().entries {
            let mut object: Value = serde_json::from_slice(&entry.value).unwrap();
            object["metadata"]["resourceVersion"] = json!(entry.mod_revision.to_string());
            // The ordered watch leaves them out.
            object["metadata"].as_object_mut().unwrap().remove("managedFields");
            let name = object["metadata"]["name"].as_str().unwrap().to_owned();
            expected.insert((format!("{kind}.muster.dev"), name), object);
        }
    }
    assert_eq!(view.objects, expected, "seed {seed}, {steps:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 48, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn nothing_is_given_out_twice_whatever_happens(
        seed in any::<u64>(),
        steps in prop::collection::vec(any_step(), 1..50),
    ) {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().start_paused(true).build().unwrap();
        runtime.block_on(check(seed, steps));
    }
}
