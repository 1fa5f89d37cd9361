//! The output of a task, from the container through the node server (TLS on both sides, a free port) and the API server to a client.

use std::net::SocketAddr;
use std::sync::Arc;

use futures::TryStreamExt as _;
use muster_agentd::{NodeServer, tls};
use muster_api::env::SystemEnv;
use muster_api::task_state::Phase;
use muster_apiserver::logs::HttpsLogSource;
use muster_apiserver::tls::{Pki, Shown, client_config};
use muster_client::LogOptions;

use crate::cluster::{Cluster, Running, until};
use muster_runtime::FakeRuntime;

/// A cluster whose agent `a1` can be asked for logs.
async fn cluster(directory: &std::path::Path) -> (Cluster, FakeRuntime, Running) {
    let pki = Pki::open(directory, &SystemEnv).expect("a directory");
    let client = pki.client(&SystemEnv).expect("signed");
    let source = HttpsLogSource::new(Shown::new(client_config(pki.ca_pem(), Some(&client)).expect("usable")));
    let cluster = Cluster::with_logs(Arc::new(source)).await;
    let machine = cluster.machine();
    let serving = pki.agent("a1", &SystemEnv).expect("signed");
    let mut config = cluster.config(1);
    config.server = Some(NodeServer {
        listen: SocketAddr::from(([127, 0, 0, 1], 0)),
        advertise: None,
        tls: tls::fixed(tls::Material {
            ca: pki.ca_pem().to_owned(),
            cert: serving.certificate_pem,
            key: serving.key_pem,
        }),
        metrics: None,
    });
    let running = cluster.run(&machine, config);
    until("the agent joins", async || cluster.session().await.is_some()).await;
    (cluster, machine, running)
}

async fn log(cluster: &Cluster, task: &str, options: &LogOptions) -> String {
    let stream = cluster
        .admin
        .log("default", task, options)
        .await
        .expect("there are logs");
    let chunks: Vec<_> = stream.try_collect().await.expect("the stream ends well");
    String::from_utf8(chunks.concat()).expect("it is text")
}

#[tokio::test]
async fn what_a_task_prints_is_read_while_it_runs_and_afterwards() {
    let directory = tempfile::tempdir().expect("a directory");
    let (cluster, _machine, running) = cluster(directory.path()).await;
    cluster.launch(&["fake run=0.3 stdout=hello"], |_| {}).await;
    until("it runs", async || cluster.phase("t0").await >= Some(Phase::Running)).await;
    let follow = LogOptions {
        follow: true,
        ..LogOptions::default()
    };
    assert_eq!(log(&cluster, "t0", &follow).await, "hello\n");
    cluster.reaches("t0", Phase::Finished).await;
    assert_eq!(log(&cluster, "t0", &LogOptions::default()).await, "hello\n");
    running.ends().await.expect("it was told to");
}
