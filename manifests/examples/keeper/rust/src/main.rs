//! Keeps one Task alive for every ConfigMap labelled `keeper=task`. Run several: one leads. See ../../README.md.

use std::process;
use std::time::Duration;

use anyhow::{Context, Result};
use futures::{StreamExt, stream};
use http::{HeaderValue, Request};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ApiResource, DynamicObject, GroupVersionKind, ListParams, PostParams, WatchEvent, WatchParams};
use kube::client::ClientBuilder;
use kube::runtime::{WatchStreamExt, watcher};
use kube::{Client, Config, Error, ResourceExt};
use serde_json::json;
use tokio::time::{Instant, sleep, sleep_until, timeout_at};
use tower::util::MapRequestLayer;

const LEASE: &str = "keeper";
const LABEL: &str = "keeper=task";
const TTL: Duration = Duration::from_secs(3);
const TERMINAL: [&str; 6] = ["Finished", "Failed", "Killed", "Error", "Dropped", "Gone"];

#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let config = Config::infer().await?;
    let client = Client::try_from(config.clone())?;
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?;
    let identity = format!("{}-{}", host.trim(), process::id());
    loop {
        let (fence, until) = tokio::select! {
            won = campaign(&client, &identity) => won?,
            _ = tokio::signal::ctrl_c() => return Ok(()),
        };
        println!("{identity} leads as {fence}");
        // Every request of this client carries the fence, so no line below can forget it.
        let header = HeaderValue::from_str(&fence)?;
        let layer = MapRequestLayer::new(move |mut request: Request<kube::client::Body>| {
            request.headers_mut().insert("muster-fence", header.clone());
            request
        });
        let fenced = ClientBuilder::try_from(config.clone())?.with_layer(&layer).build();
        tokio::select! {
            () = keep(&fenced, until) => println!("{identity} no longer leads"),
            result = reconcile_for_ever(&fenced) => match result {
                Err(error) if is(&error, 412) => println!("{identity} was fenced off"),
                result => result?,
            },
            _ = tokio::signal::ctrl_c() => {
                // The futures above are dropped: nothing is under way any more.
                Api::<Lease>::default_namespaced(fenced).delete(LEASE, &Default::default()).await?;
                println!("{identity} gave the lease up");
                return Ok(());
            }
        }
    }
}

fn is(error: &anyhow::Error, code: u16) -> bool {
    matches!(error.downcast_ref(), Some(Error::Api(status)) if status.code == code)
}

/// Waits until this process leads: its fence, and until when unless it renews.
async fn campaign(client: &Client, identity: &str) -> Result<(String, Instant)> {
    let leases: Api<Lease> = Api::default_namespaced(client.clone());
    let lease: Lease = serde_json::from_value(json!({
        "metadata": { "name": LEASE, "annotations": { "muster.dev/ephemeral": "true" } },
        "spec": { "holderIdentity": identity, "leaseDurationSeconds": TTL.as_secs() },
    }))?;
    loop {
        let sent = Instant::now();
        match leases.create(&PostParams::default(), &lease).await {
            Ok(lease) => {
                let namespace = lease.namespace().context("a lease has a namespace")?;
                let token = lease.resource_version().context("a lease has a version")?;
                return Ok((format!("{namespace}/{LEASE}@{token}"), sent + TTL * 2 / 3));
            }
            Err(Error::Api(status)) if status.code == 409 => vacancy(&leases).await?,
            Err(_) => sleep(TTL / 4).await,
        }
    }
}

/// Waits until the lease is deleted, or for a while.
async fn vacancy(leases: &Api<Lease>) -> Result<()> {
    let Some(held) = leases.get_opt(LEASE).await? else {
        return Ok(());
    };
    let version = held.resource_version().context("a lease has a version")?;
    let only = WatchParams::default().fields(&format!("metadata.name={LEASE}"));
    let mut events = leases.watch(&only, &version).await?.boxed();
    let deadline = Instant::now() + TTL;
    while let Ok(Some(Ok(event))) = timeout_at(deadline, events.next()).await {
        if matches!(event, WatchEvent::Deleted(_)) {
            break;
        }
    }
    Ok(())
}

/// Renews the lease, and returns when this process must no longer act.
async fn keep(fenced: &Client, mut until: Instant) {
    let namespace = fenced.default_namespace();
    let path = format!("/apis/coordination.k8s.io/v1/namespaces/{namespace}/leases/{LEASE}/renew");
    loop {
        let sent = Instant::now();
        let request = Request::post(&path).body(Vec::new()).expect("the path is a path");
        match timeout_at(until, fenced.request::<Lease>(request)).await {
            Ok(Ok(_)) => until = sent + TTL * 2 / 3,
            Ok(Err(Error::Api(status))) if matches!(status.code, 404 | 412) => return,
            Ok(Err(_)) if Instant::now() < until => {}
            _ => return,
        }
        sleep_until((sent + TTL / 4).min(until)).await;
    }
}

/// Looks at everything again whenever a ConfigMap or a Task has changed.
async fn reconcile_for_ever(fenced: &Client) -> Result<()> {
    let kind = ApiResource::from_gvk(&GroupVersionKind::gvk("muster.dev", "v1", "Task"));
    let tasks: Api<DynamicObject> = Api::default_namespaced_with(fenced.clone(), &kind);
    let maps: Api<ConfigMap> = Api::default_namespaced(fenced.clone());
    let labelled = watcher::Config::default().labels(LABEL);
    let mut changes = stream::select(
        watcher(maps.clone(), labelled.clone())
            .default_backoff()
            .map(|_| ())
            .boxed(),
        watcher(tasks.clone(), labelled).default_backoff().map(|_| ()).boxed(),
    );
    while changes.next().await.is_some() {
        let labelled = ListParams::default().labels(LABEL);
        let all = tasks.list(&labelled).await?;
        for map in maps.list(&labelled).await? {
            reconcile(&map, &all.items, &tasks).await?;
        }
    }
    Ok(())
}

async fn reconcile(map: &ConfigMap, all: &[DynamicObject], tasks: &Api<DynamicObject>) -> Result<()> {
    let name = map.name_any();
    let command = map.data.as_ref().and_then(|data| data.get("command"));
    let Some(command) = command else { return Ok(()) };
    let number = |task: &DynamicObject| task.name_any().strip_prefix(&format!("{name}-"))?.parse::<u32>().ok();
    let last = all
        .iter()
        .filter_map(|task| Some((number(task)?, task)))
        .max_by_key(|(number, _)| *number);
    let next = match last {
        None => 1,
        Some((number, task)) => {
            let phase = task.data["status"]["phase"].as_str().unwrap_or_default();
            if !TERMINAL.contains(&phase) {
                return Ok(());
            }
            number + 1
        }
    };
    let task: DynamicObject = serde_json::from_value(json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": { "name": format!("{name}-{next}"), "labels": { "keeper": "task" } },
        "spec": { "command": ["sh", "-c", command], "resources": { "cpus": "0.01", "memory": "8Mi" } },
    }))?;
    match tasks.create(&PostParams::default(), &task).await {
        // Somebody was faster, or the list was old: the watch comes back to it.
        Err(Error::Api(status)) if status.code == 409 => Ok(()),
        result => {
            println!("created {}", result?.name_any());
            Ok(())
        }
    }
}
