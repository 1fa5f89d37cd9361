//! Bad input: each gets a clear answer and changes nothing.

use std::fs;
use std::path::Path;

use anyhow::{Context, Result};
use k8s_openapi::api::core::v1::ConfigMap;
use kube::api::{Api, ListParams};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use muster_api::v1::{Agent, Framework, Offer, Quota, Task};
use muster_e2e::Cluster;
use serde_json::{Value, json};

async fn client(cluster: &Cluster) -> Result<Client> {
    let kubeconfig = Kubeconfig::read_from(cluster.kubeconfig())?;
    Ok(Client::try_from(
        Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?,
    )?)
}

/// How many objects there are that a manifest could have made.
async fn objects(client: &Client) -> Result<usize> {
    let all = ListParams::default();
    let tasks = Api::<Task>::all(client.clone()).list(&all).await?.items.len();
    let quotas = Api::<Quota>::all(client.clone()).list(&all).await?.items.len();
    let frameworks = Api::<Framework>::all(client.clone()).list(&all).await?.items.len();
    let maps = Api::<ConfigMap>::all(client.clone()).list(&all).await?.items.len();
    Ok(tasks + quotas + frameworks + maps)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn no_bad_manifest_is_applied() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let before = objects(&client).await?;
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../mctl/tests/bad-manifests");
    let mut files: Vec<_> = fs::read_dir(&folder)?
        .map(|entry| Ok(entry?.path()))
        .collect::<Result<_>>()?;
    files.sort();
    assert!(files.len() >= 200, "the corpus has {} manifests", files.len());
    for file in files {
        let shown = file.display();
        let ran = cluster.mctl(&["apply", "-f", file.to_str().context("a readable name")?]);
        assert_eq!(ran.code, 1, "{shown}: {ran:?}");
        assert!(ran.stderr.contains("nothing was applied"), "{shown}: {ran:?}");
    }
    assert_eq!(objects(&client).await?, before, "nothing was stored");
    Ok(())
}

/// Sends a body as it is and returns the code and the Status.
async fn send(client: &Client, method: &str, path: &str, body: impl Into<Vec<u8>>) -> Result<(u16, Value)> {
    let request = http_request(method, path, body.into())?;
    let response = client.send(request).await?;
    let code = response.status().as_u16();
    let bytes = response.into_body().collect_bytes().await?;
    Ok((code, serde_json::from_slice(&bytes).unwrap_or(Value::Null)))
}

fn http_request(method: &str, path: &str, body: Vec<u8>) -> Result<http::Request<kube::client::Body>> {
    let kind = if method == "PATCH" {
        "application/merge-patch+json"
    } else {
        "application/json"
    };
    let request = http::Request::builder()
        .method(method)
        .uri(path)
        .header("content-type", kind);
    Ok(request.body(kube::client::Body::from(body))?)
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn the_server_refuses_what_no_client_should_send() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let before = objects(&client).await?;
    let tasks = "/apis/muster.dev/v1/namespaces/default/tasks";
    let task = |spec: Value| {
        json!({ "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": { "name": "t" }, "spec": spec }).to_string()
    };
    let resources = |cpus: &str| task(json!({ "command": ["true"], "resources": { "cpus": cpus, "memory": "1Mi" } }));
    let deep = format!("{{\"metadata\":{}1{}}}", "{\"a\":".repeat(10_000), "}".repeat(10_000));
    let long = format!("{{\"metadata\":{{\"name\":\"{}\"}}}}", "x".repeat(4 << 20));
    let cases: Vec<(&str, Vec<u8>, u16, &str)> = vec![
        ("malformed JSON", b"{\"kind\": ".to_vec(), 400, ""),
        ("not UTF-8", b"{\"kind\": \"\xff\xfe\"}".to_vec(), 400, ""),
        ("an array", b"[]".to_vec(), 400, ""),
        (
            "no name",
            resources("1").replace("\"name\":\"t\"", "").into(),
            422,
            "name",
        ),
        (
            "another kind",
            task(json!({})).replace("\"Task\"", "\"Offer\"").into(),
            400,
            "Offer",
        ),
        ("10,000 levels", deep.into(), 400, "deep"),
        ("a body of 4 MiB", long.into(), 413, ""),
        (
            "no command",
            task(json!({ "resources": { "cpus": 1 } })).into(),
            422,
            "spec.command",
        ),
        (
            "a wrong type",
            task(json!({ "command": "true", "resources": { "cpus": 1 } })).into(),
            422,
            "spec.command",
        ),
        ("1e999", resources("1e999").into(), 422, "spec.resources.cpus"),
        ("NaN", resources("NaN").into(), 422, "spec.resources.cpus"),
        (
            "a negative quantity",
            resources("-1").into(),
            422,
            "spec.resources.cpus",
        ),
        (
            "half a GPU",
            task(json!({ "command": ["true"], "resources": { "cpus": 1, "gpus": "0.5" } })).into(),
            422,
            "whole",
        ),
        (
            "a name that is no label",
            resources("1").replace("\"t\"", "\"Not_A_Label\"").into(),
            422,
            "metadata.name",
        ),
    ];
    for (what, body, code, expected) in cases {
        let (got, status) = send(&client, "POST", tasks, body)
            .await
            .with_context(|| what.to_owned())?;
        assert_eq!(got, code, "{what}: {status}");
        assert_eq!(status["kind"], "Status", "{what}: {status}");
        assert!(status.to_string().contains(expected), "{what}: {status}");
    }
    let strict = format!("{tasks}?fieldValidation=Strict");
    let unknown = task(json!({ "command": ["true"], "resources": { "cpus": 1, "memmory": 1 } }));
    let (code, status) = send(&client, "POST", &strict, unknown).await?;
    assert_eq!(code, 400, "{status}");
    let message = status["message"].as_str().unwrap_or_default();
    assert!(message.contains("memmory"), "{message}");
    let twice = resources("1").replace("\"kind\":\"Task\"", "\"kind\":\"Task\",\"kind\":\"Task\"");
    let (code, status) = send(&client, "POST", &strict, twice).await?;
    assert_eq!(code, 400, "{status}");
    assert!(status.to_string().contains("duplicate field"), "{status}");
    assert_eq!(objects(&client).await?, before, "nothing was stored");
    Ok(())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn offers_are_spent_once_by_their_framework_and_never_over() -> Result<()> {
    let cluster = Cluster::start(&[])?;
    let client = client(&cluster).await?;
    let framework = json!({
        "apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": { "name": "mine" },
        "spec": { "scheduler": "External", "demand": { "minimum": { "cpus": "0.1" }, "maxOffers": 1 } }
    });
    let (code, status) = send(
        &client,
        "POST",
        "/apis/muster.dev/v1/namespaces/default/frameworks",
        framework.to_string(),
    )
    .await?;
    assert_eq!(code, 201, "{status}");
    let offers = Api::<Offer>::default_namespaced(client.clone());
    let agents = Api::<Agent>::all(client.clone()).list(&ListParams::default()).await?;
    let mine = ListParams::default().fields("spec.framework=mine,status.phase=Open");
    let offer = loop {
        if let Some(offer) = offers.list(&mine).await?.items.pop() {
            break offer;
        }
        tokio::task::yield_now().await;
    };
    let name = offer.metadata.name.clone().context("a name")?;
    assert_eq!(Some(&offer.spec.agent), agents.items[0].metadata.name.as_ref());
    let accept = format!("/apis/muster.dev/v1/namespaces/default/offers/{name}/accept");
    let launch = |task: &str, cpus: &str| {
        json!({ "launch": [{ "metadata": { "name": task }, "spec": { "command": ["true"], "resources": { "cpus": cpus } } }] }).to_string()
    };
    let before = objects(&client).await?;
    let (code, status) = send(&client, "POST", &accept, launch("greedy", "1000")).await?;
    assert_eq!(code, 422, "{status}");
    assert!(status.to_string().contains("1000"), "the arithmetic is there: {status}");
    let (code, status) = send(&client, "POST", &accept.replace(&name, "nobody"), launch("x", "0.1")).await?;
    assert_eq!(code, 404, "{status}");
    assert_eq!(objects(&client).await?, before, "nothing was stored");

    let half = launch("half", "0.1").replace("\"cpus\":\"0.1\"", "\"cpus\":\"0.1\",\"gpus\":\"0.5\"");
    let (code, status) = send(&client, "POST", &accept, half).await?;
    assert_eq!(code, 201, "{status}");
    let half = Api::<Task>::default_namespaced(client.clone()).get("half").await?;
    assert_eq!(half.phase(), muster_api::task_state::Phase::Error);
    let (code, status) = send(&client, "POST", &accept, launch("late", "0.1")).await?;
    assert!(
        matches!(code, 404 | 409 | 410),
        "an accepted offer is spent: {code} {status}"
    );
    Ok(())
}
