//! Kinds that platform teams define: with kube-rs' derive, with kubectl, and the examples that users read, run as they would run them.

#![allow(clippy::disallowed_methods, reason = "real processes take real time")]

use anyhow::{Context as _, Result, ensure};
use futures::{StreamExt, TryStreamExt};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, CustomResource, CustomResourceExt, ResourceExt};
use muster_e2e::example::{self, Example};
use muster_e2e::{Cluster, PATIENCE};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// A thing that measures.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "example.com",
    version = "v1",
    kind = "Sensor",
    namespaced,
    status = "SensorStatus",
    shortname = "sn",
    selectable = ".spec.place",
    scale = r#"{"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas"}"#,
    printcolumn = r#"{"name": "Place", "type": "string", "jsonPath": ".spec.place"}"#,
    validation = "self.spec.low < self.spec.high"
)]
struct SensorSpec {
    /// Where it hangs.
    place: String,
    /// The least that it measures.
    low: i64,
    /// The most.
    high: i64,
    /// How many there are.
    #[serde(default)]
    replicas: i32,
    /// What it is called by whom.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    names: Option<std::collections::BTreeMap<String, String>>,
}

/// What it says.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema)]
struct SensorStatus {
    /// The last value.
    value: i64,
    /// How many are there.
    #[serde(default)]
    replicas: i32,
}

fn sensor(name: &str, low: i64, high: i64) -> Sensor {
    Sensor::new(
        name,
        SensorSpec {
            place: "roof".to_owned(),
            low,
            high,
            replicas: 1,
            names: None,
        },
    )
}

async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    let config = Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    Ok(Client::try_from(config)?)
}

async fn define<K: CustomResourceExt>(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let apply = PatchParams::apply("e2e");
    definitions
        .patch(K::crd_name(), &apply, &Patch::Apply(K::crd()))
        .await?;
    let served = await_condition(definitions, K::crd_name(), conditions::is_crd_established());
    tokio::time::timeout(PATIENCE, served).await??;
    Ok(())
}

fn code<T: std::fmt::Debug>(result: kube::Result<T>) -> u16 {
    match result {
        Err(kube::Error::Api(status)) => status.code,
        other => panic!("the server refuses: {other:?}"),
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_derived_kind_is_like_any_other() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    define::<Sensor>(&client).await?;
    define::<Sensor>(&client).await.context("the same again")?;
    let sensors: Api<Sensor> = Api::default_namespaced(client.clone());
    let mut events = watcher(sensors.clone(), watcher::Config::default().streaming_lists())
        .default_backoff()
        .applied_objects()
        .boxed();
    let made = sensors.create(&PostParams::default(), &sensor("a", 1, 2)).await?;
    ensure!(made.metadata.generation == Some(1));
    let seen = tokio::time::timeout(PATIENCE, events.try_next()).await??;
    assert_eq!(seen.map(|seen| seen.name_any()).as_deref(), Some("a"));
    assert_eq!(
        code(sensors.create(&PostParams::default(), &sensor("b", 2, 1)).await),
        422
    );
    let status = serde_json::json!({ "status": { "value": 7 } });
    let patched = sensors
        .patch_status("a", &PatchParams::default(), &Patch::Merge(status))
        .await?;
    assert_eq!(patched.status.map(|status| status.value), Some(7));
    let replicas = serde_json::json!({ "spec": { "replicas": 4 } });
    let scale = sensors
        .patch_scale("a", &PatchParams::default(), &Patch::Merge(replicas))
        .await?;
    assert_eq!(scale.spec.and_then(|spec| spec.replicas), Some(4));
    let on_the_roof = ListParams::default().fields("spec.place=roof");
    assert_eq!(sensors.list(&on_the_roof).await?.items.len(), 1);
    assert_eq!(
        sensors
            .list(&ListParams::default().fields("spec.place=cellar"))
            .await?
            .items
            .len(),
        0
    );

    let table = cluster.kubectl(&["get", "sn"], "").ok();
    assert!(table.starts_with("NAME   PLACE"), "{table}");
    let explained = cluster.kubectl(&["explain", "sensor.spec.place"], "").ok();
    assert!(explained.contains("Where it hangs."), "{explained}");
    let manifest =
        "apiVersion: example.com/v1\nkind: Sensor\nmetadata: {name: c}\nspec: {place: door, low: 1, high: 3}\n";
    assert_eq!(
        cluster.kubectl(&["apply", "-f", "-"], manifest).ok(),
        "sensor.example.com/c created\n"
    );
    assert_eq!(
        cluster.kubectl(&["apply", "-f", "-"], manifest).ok(),
        "sensor.example.com/c unchanged\n"
    );
    let changed = manifest.replace("door", "gate");
    assert_eq!(
        cluster.kubectl(&["apply", "-f", "-"], &changed).ok(),
        "sensor.example.com/c configured\n"
    );
    let wrong = cluster.kubectl(&["apply", "-f", "-"], &manifest.replace("low: 1", "low: 9"));
    assert!(
        wrong.code != 0 && wrong.stderr.contains("failed rule: self.spec.low < self.spec.high"),
        "{}",
        wrong.stderr
    );
    assert!(cluster.mctl(&["get", "sensors"]).ok().contains("gate"));
    cluster.kubectl(&["scale", "sensor", "c", "--replicas=3"], "").ok();

    let definitions: Api<CustomResourceDefinition> = Api::all(client);
    definitions.delete(Sensor::crd_name(), &DeleteParams::default()).await?;
    cluster.wait_until("the kind to go", || cluster.kubectl(&["get", "sensors"], "").code != 0)?;
    Ok(())
}

fn read(cluster: &Cluster, kind: &str, name: &str, path: &str) -> String {
    let output = format!("jsonpath={{{path}}}");
    cluster.kubectl(&["get", kind, name, "-o", &output], "").stdout
}

#[test]
fn the_example_in_rust_defines_a_kind_and_reconciles_it() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let controller = Example::rust(&cluster, "batch")?;
    cluster.wait_until("the kind to be served", || {
        controller.said().contains("batches are served")
    })?;
    let manifest = example::path("batch/batch.yaml").display().to_string();
    cluster.kubectl(&["apply", "-f", &manifest], "").ok();
    let finished = |count: &str| read(&cluster, "batch", "greetings", ".status.finished") == count;
    cluster.wait_until(&format!("three tasks to finish: {}", controller.said()), || {
        finished("3")
    })?;
    cluster
        .kubectl(&["scale", "batch", "greetings", "--replicas=4"], "")
        .ok();
    cluster.wait_until("a fourth", || finished("4"))?;
    let patch = r#"{"spec": {"command": ["false"]}}"#;
    let refused = cluster.kubectl(&["patch", "batch", "greetings", "--type=merge", "-p", patch], "");
    assert!(refused.stderr.contains("failed rule"), "{}", refused.stderr);
    Ok(())
}

#[test]
fn the_example_in_python_reconciles_a_kind_that_kubectl_defines() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let path = |name: &str| example::path(name).display().to_string();
    cluster.kubectl(&["apply", "-f", &path("sweep/kind.yaml")], "").ok();
    cluster
        .kubectl(
            &["wait", "--for=condition=Established", "crd/sweeps.jobs.example.com"],
            "",
        )
        .ok();
    let controller = Example::python(&cluster, "sweep/sweep.py")?;
    cluster.kubectl(&["apply", "-f", &path("sweep/colors.yaml")], "").ok();
    cluster.wait_until("both tasks to end", || {
        read(&cluster, "sweep", "colors", ".status.done") == "2/2"
    })?;
    assert_eq!(read(&cluster, "task", "colors-2", ".spec.env[0].value"), "blue");
    let patch = r#"{"spec": {"values": ["green"]}}"#;
    let refused = cluster.kubectl(&["patch", "sweep", "colors", "--type=merge", "-p", patch], "");
    assert!(
        refused.stderr.contains("values can be added, not taken away"),
        "{}",
        refused.stderr
    );
    let patch = r#"{"spec": {"values": ["red", "blue", "green"]}}"#;
    cluster
        .kubectl(&["patch", "sweep", "colors", "--type=merge", "-p", patch], "")
        .ok();
    cluster.wait_until(&format!("the third to end: {}", controller.said()), || {
        read(&cluster, "sweep", "colors", ".status.done") == "3/3"
    })?;
    Ok(())
}
