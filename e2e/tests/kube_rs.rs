//! kube-rs, unmodified, against the real server: Api, watcher, reflector, Controller.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace};
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::{WatchStreamExt, reflector, watcher};
use kube::{Client, Config, ResourceExt};
use muster_api::v1::{Quota, QuotaSpec, Task, TaskSpec};
use muster_e2e::{Cluster, PATIENCE};

async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

fn sleeper(name: &str) -> Task {
    let resources = serde_json::from_value(serde_json::json!({ "cpus": "0.01", "memory": "8Mi" })).expect("resources");
    Task::new(
        name,
        TaskSpec {
            command: vec!["true".into()],
            framework: "default".into(),
            resources,
            ..Default::default()
        },
    )
}

fn quota(name: &str, role: &str) -> Quota {
    let spec = serde_json::from_value(serde_json::json!({ "role": role })).expect("a role is enough");
    Quota::new(name, QuotaSpec { ..spec })
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn every_verb_of_the_api_works() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let maps: Api<ConfigMap> = Api::default_namespaced(client.clone());
    let data = |text: &str| Some(BTreeMap::from([("key".to_owned(), text.to_owned())]));
    let new = ConfigMap {
        data: data("one"),
        ..ConfigMap::default()
    };
    let named = ConfigMap {
        metadata: kube::api::ObjectMeta {
            name: Some("map".into()),
            ..Default::default()
        },
        ..new
    };
    let created = maps.create(&PostParams::default(), &named).await?;
    assert!(created.uid().is_some() && created.resource_version().is_some());

    let mut changed = created.clone();
    changed.data = data("two");
    let replaced = maps.replace("map", &PostParams::default(), &changed).await?;
    let stale = maps
        .replace(
            "map",
            &PostParams::default(),
            &ConfigMap {
                data: data("three"),
                ..created
            },
        )
        .await;
    assert!(
        matches!(stale, Err(kube::Error::Api(status)) if status.code == 409),
        "a stale write is a conflict"
    );
    let patch = serde_json::json!({ "data": { "more": "x" } });
    let patched = maps.patch("map", &PatchParams::default(), &Patch::Merge(patch)).await?;
    assert_eq!(patched.data.map(|data| data.len()), Some(2));
    assert_ne!(replaced.metadata.resource_version, patched.metadata.resource_version);
    assert_eq!(maps.list(&ListParams::default()).await?.items.len(), 1);
    let wanted = serde_json::json!({"apiVersion": "v1", "kind": "ConfigMap", "data": { "more": "y" }});
    let refused = maps
        .patch("map", &PatchParams::apply("kube-rs"), &Patch::Apply(&wanted))
        .await;
    assert!(
        matches!(&refused, Err(kube::Error::Api(status)) if status.code == 409 && status.message.contains(".data.more")),
        "somebody else wrote it: {refused:?}"
    );
    let forced = PatchParams::apply("kube-rs").force();
    let applied = maps.patch("map", &forced, &Patch::Apply(&wanted)).await?;
    assert_eq!(
        applied
            .data
            .as_ref()
            .and_then(|data| data.get("more"))
            .map(String::as_str),
        Some("y")
    );
    let again = maps.patch("map", &forced, &Patch::Apply(&wanted)).await?;
    assert_eq!(again.metadata.resource_version, applied.metadata.resource_version);
    maps.delete("map", &DeleteParams::default()).await?;
    assert!(maps.get_opt("map").await?.is_none());
    let namespaces: Api<Namespace> = Api::all(client);
    assert!(namespaces.get("default").await.is_ok());
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_reflector_sees_tasks_come_run_and_go() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let tasks: Api<Task> = Api::default_namespaced(client);
    for config in [watcher::Config::default(), watcher::Config::default().streaming_lists()] {
        let (reader, writer) = reflector::store();
        let stream = watcher(tasks.clone(), config)
            .default_backoff()
            .reflect(writer)
            .applied_objects();
        let reflecting = tokio::spawn(async move { stream.try_for_each(|_| async { Ok(()) }).await });
        reader.wait_until_ready().await?;
        tasks.create(&PostParams::default(), &sleeper("seen")).await?;
        let finished = |tasks: &[Arc<Task>]| {
            tasks
                .iter()
                .any(|task| task.phase() == muster_api::task_state::Phase::Finished)
        };
        eventually("the reflector to see it finished", || finished(&reader.state())).await?;
        tasks.delete("seen", &DeleteParams::default()).await?;
        eventually("the reflector to see it gone", || reader.state().is_empty()).await?;
        reflecting.abort();
    }
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_controller_reconciles_and_owns() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let quotas: Api<Quota> = Api::all(client.clone());
    let reconcile = |quota: Arc<Quota>, client: Arc<Client>| async move {
        let maps: Api<ConfigMap> = Api::default_namespaced((*client).clone());
        let name = format!("for-{}", quota.name_any());
        if maps.get_opt(&name).await?.is_none() {
            let map = ConfigMap {
                metadata: kube::api::ObjectMeta {
                    name: Some(name),
                    ..Default::default()
                },
                ..Default::default()
            };
            maps.create(&PostParams::default(), &map).await?;
        }
        Ok::<_, kube::Error>(Action::await_change())
    };
    let controller = Controller::new(quotas.clone(), watcher::Config::default()).run(
        reconcile,
        |_, _, _| Action::requeue(Duration::from_millis(100)),
        Arc::new(client.clone()),
    );
    let running = tokio::spawn(controller.for_each(|_| async {}));
    for number in 0..3 {
        quotas
            .create(
                &PostParams::default(),
                &quota(&format!("q{number}"), &format!("role{number}")),
            )
            .await?;
    }
    let maps: Api<ConfigMap> = Api::default_namespaced(client);
    let started = tokio::time::Instant::now();
    while maps.list(&ListParams::default()).await?.items.len() < 3 {
        anyhow::ensure!(started.elapsed() < PATIENCE, "the controller did not reconcile");
        tokio::task::yield_now().await;
    }
    running.abort();
    Ok(())
}

async fn eventually(what: &str, mut done: impl FnMut() -> bool) -> Result<()> {
    let waiting = async {
        while !done() {
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
    };
    tokio::time::timeout(PATIENCE, waiting)
        .await
        .with_context(|| format!("waited for {what}"))
}
