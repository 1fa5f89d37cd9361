//! A kind of your own and its controller: a Batch is so many Tasks, and its status says how many have finished. See ../../README.md.

use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, Patch, PatchParams, PostParams};
use kube::runtime::controller::{Action, Controller};
use kube::runtime::wait::{await_condition, conditions};
use kube::runtime::watcher;
use kube::{Client, CustomResource, CustomResourceExt, Error, Resource, ResourceExt};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use serde_json::json;

/// So many tasks that do the same.
#[derive(CustomResource, Clone, Debug, Deserialize, Serialize, JsonSchema)]
#[kube(
    group = "jobs.example.com",
    version = "v1",
    kind = "Batch",
    plural = "batches",
    shortname = "bat",
    category = "all",
    namespaced,
    status = "BatchStatus",
    scale = r#"{"specReplicasPath": ".spec.count", "statusReplicasPath": ".status.finished"}"#,
    printcolumn = r#"{"name": "Count", "type": "integer", "jsonPath": ".spec.count"}"#,
    printcolumn = r#"{"name": "Finished", "type": "integer", "jsonPath": ".status.finished"}"#,
    printcolumn = r#"{"name": "Age", "type": "date", "jsonPath": ".metadata.creationTimestamp"}"#,
    validation = "self.spec.command == oldSelf.spec.command"
)]
#[serde(rename_all = "camelCase")]
struct BatchSpec {
    /// How many tasks.
    #[schemars(range(min = 1, max = 100))]
    count: u32,
    /// What each of them runs. It cannot be changed.
    command: Vec<String>,
}

/// How far it is.
#[derive(Clone, Debug, Default, Deserialize, Serialize, JsonSchema, PartialEq)]
#[serde(rename_all = "camelCase")]
struct BatchStatus {
    /// How many tasks have finished.
    finished: u32,
}

struct Apis {
    client: Client,
    task: ApiResource,
}

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let client = Client::try_default().await?;
    define(&client).await?;
    println!("batches are served");
    let task = ApiResource::from_gvk(&GroupVersionKind::gvk("muster.dev", "v1", "Task"));
    let tasks: Api<DynamicObject> = Api::default_namespaced_with(client.clone(), &task);
    let batches: Api<Batch> = Api::default_namespaced(client.clone());
    let apis = Apis {
        client,
        task: task.clone(),
    };
    Controller::new(batches, watcher::Config::default())
        .owns_with(tasks, task, watcher::Config::default())
        .run(
            reconcile,
            |_, _, _| Action::requeue(Duration::from_secs(1)),
            Arc::new(apis),
        )
        .for_each(|result| async move {
            if let Err(error) = result {
                eprintln!("{error}");
            }
        })
        .await;
    Ok(())
}

/// Installs the kind, or brings it up to date, and waits until it is served.
async fn define(client: &Client) -> Result<()> {
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    let name = Batch::crd_name();
    let apply = PatchParams::apply("batch").force();
    definitions.patch(name, &apply, &Patch::Apply(Batch::crd())).await?;
    let served = await_condition(definitions, name, conditions::is_crd_established());
    tokio::time::timeout(Duration::from_secs(30), served).await??;
    Ok(())
}

async fn reconcile(batch: Arc<Batch>, apis: Arc<Apis>) -> Result<Action, Error> {
    let (name, namespace) = (batch.name_any(), batch.namespace().unwrap_or_default());
    let tasks: Api<DynamicObject> = Api::namespaced_with(apis.client.clone(), &namespace, &apis.task);
    for number in 1..=batch.spec.count {
        let task = json!({
            "apiVersion": "muster.dev/v1",
            "kind": "Task",
            "metadata": {
                "name": format!("{name}-{number}"),
                "labels": { "batch": name },
                "ownerReferences": [batch.controller_owner_ref(&())],
            },
            "spec": { "command": batch.spec.command, "resources": { "cpus": "0.01", "memory": "8Mi" } },
        });
        let task = serde_json::from_value(task).map_err(Error::SerdeError)?;
        match tasks.create(&PostParams::default(), &task).await {
            Ok(made) => println!("created {}", made.name_any()),
            // It is there already.
            Err(Error::Api(status)) if status.code == 409 => (),
            Err(error) => return Err(error),
        }
    }
    let own = tasks
        .list(&ListParams::default().labels(&format!("batch={name}")))
        .await?;
    let finished = own
        .iter()
        .filter(|task| task.data["status"]["phase"] == "Finished")
        .count();
    let status = json!({ "status": { "finished": finished } });
    let batches: Api<Batch> = Api::namespaced(apis.client.clone(), &namespace);
    batches
        .patch_status(&name, &PatchParams::default(), &Patch::Merge(status))
        .await?;
    Ok(Action::await_change())
}
