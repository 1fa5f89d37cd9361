//! The same over TLS: a whole API server on a free port, controllers and an agent as clients of the network.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::{Habit, TestAgent};
use futures::StreamExt;
use muster_api::env::{Env, SystemEnv};
use muster_api::task_state::Phase;
use muster_api::v1::Task;
use muster_api::wire::WatchLine;
use muster_apiserver::auth::User;
use muster_apiserver::launch::{Options, Running, start};
use muster_client::kube::config::{KubeConfigOptions, Kubeconfig};
use muster_client::{Client, Error};
use muster_controllers::{Config, run};
use muster_store::MemoryStore;
use serde_json::json;
use tokio_util::sync::CancellationToken;

fn client(server: &Running, user: &User) -> Client {
    let token = server.tokens.ensure(user, &SystemEnv).expect("a token");
    Client::https(&server.access.server, &server.access.ca_pem, &token).expect("a client")
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_task_finishes_when_everybody_is_somewhere_else() {
    let directory = tempfile::tempdir().expect("a directory");
    let options = Options {
        data_dir: directory.path().to_owned(),
        listen: vec!["127.0.0.1:0".parse().expect("an address")],
        ..Options::default()
    };
    let env: Arc<dyn Env> = Arc::new(SystemEnv);
    let stop = CancellationToken::new();
    let server = start(&options, Arc::new(MemoryStore::new()), env.clone(), stop.clone())
        .await
        .expect("a server");

    let cancel = CancellationToken::new();
    let controllers = client(&server, &User::controllers());
    let controllers = tokio::spawn(run(controllers, env, Config::default(), cancel.clone()));
    let agent = TestAgent::join(client(&server, &User::agent("a1")), "a1", 4, Habit::Finish).await;

    let kubeconfig = Kubeconfig::read_from(directory.path().join("kubeconfig")).expect("a kubeconfig");
    let context = KubeConfigOptions::default();
    let config = muster_client::kube::Config::from_custom_kubeconfig(kubeconfig, &context).await;
    let admin = Client::from_config(config.expect("a configuration")).expect("a client");
    let task = json!({
        "apiVersion": "muster.dev/v1", "kind": "Task", "metadata": { "name": "far", "namespace": "default" },
        "spec": { "command": ["true"], "resources": { "cpus": 1, "memory": "64Mi" } },
    });
    let path = "/apis/muster.dev/v1/namespaces/default/tasks";
    admin.create_at::<_, Task>(path, &task).await.expect("created");
    let lines = admin.ordered_watch(&["tasks.muster.dev"], None).await.expect("a watch");
    let finished = async {
        let mut lines = std::pin::pin!(lines);
        let mut phase = Phase::Pending;
        while phase != Phase::Finished {
            let line = lines.next().await.expect("more").expect("a line");
            if let WatchLine::Snapshot { changes, .. } | WatchLine::Batch { changes, .. } = line {
                let mut tasks = changes
                    .into_iter()
                    .map(|change| serde_json::from_value::<Task>(change.object));
                phase = tasks.next_back().map_or(phase, |task| task.expect("a task").phase());
            }
        }
    };
    tokio::time::timeout(Duration::from_secs(30), finished)
        .await
        .expect("it finishes");

    let stranger = Client::https(&server.access.server, &server.access.ca_pem, "guessed").expect("a client");
    assert!(matches!(stranger.get_plan().await, Err(Error::Forbidden(_))));
    let other_ca = foreign_authority();
    let deceived = Client::https(&server.access.server, &other_ca, "guessed").expect("a client");
    assert!(matches!(deceived.get_plan().await, Err(Error::Transport(_))));

    agent.vanish().await;
    cancel.cancel();
    controllers.await.expect("no panic").expect("a good end");
    stop.cancel();
    server.stopped().await;
}

/// The certificate of an authority that has nothing to do with the server.
fn foreign_authority() -> String {
    let directory = tempfile::tempdir().expect("a directory");
    let pki = muster_apiserver::tls::Pki::open(directory.path(), &SystemEnv).expect("an authority");
    pki.ca_pem().to_owned()
}
