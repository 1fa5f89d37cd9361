//! What is promised of what agents measure: it is asked for when somebody wants it, an agent that does not answer costs its own row, and who
//! may see agents does not see tasks.

mod common;

use std::collections::BTreeMap;
use std::sync::Mutex;

use async_trait::async_trait;
use bytes::Bytes;
use common::*;
use futures::stream::BoxStream;
use muster_apiserver::logs::{LogError, LogLine, LogQuery, LogSource, Node};
use muster_apiserver::membership::Membership;
use muster_store::MemoryStore;
use serde_json::{Value, json};
use std::sync::Arc;

/// Agents that say what they are told to say, by name; without it they hang.
#[derive(Default)]
struct Agents(Mutex<BTreeMap<String, Value>>);

#[async_trait]
impl LogSource for Agents {
    async fn open(
        &self,
        _: Node<'_>,
        _: &str,
        _: &LogQuery,
    ) -> Result<BoxStream<'static, Result<LogLine, LogError>>, LogError> {
        Err(LogError::NotFound)
    }

    async fn fetch(&self, node: Node<'_>, path: &str) -> Result<Bytes, LogError> {
        let said = self.0.lock().expect("nobody panics with it").get(node.agent).cloned();
        match said {
            Some(usage) if path == "/v1/usage" => Ok(usage.to_string().into()),
            Some(_) => Ok(Bytes::from(format!("up{{agent=\"{}\"}} 1\n", node.agent))),
            None => std::future::pending().await,
        }
    }
}

const NODES: &str = "/apis/metrics.k8s.io/v1beta1/nodes";
const PODS: &str = "/apis/metrics.k8s.io/v1beta1/namespaces/default/pods";

/// Two agents, of which `a2` hangs, and a task that runs on `a1`.
async fn cluster() -> (Cluster, Arc<Agents>) {
    let agents = Arc::new(Agents::default());
    let server = Server::with(Arc::new(MemoryStore::new()), Membership::default(), agents.clone()).await;
    let leader = lead(&server).await;
    let presence = join(&server, "a1").await;
    let second = join(&server, "a2").await;
    for (name, session) in [("a1", &presence), ("a2", &second)] {
        let agent = server.agent(name).fenced(&format!("muster-agents/{name}"), session);
        let status = json!({"status": {"address": format!("{name}:1")}});
        agent
            .merge(&format!("{AGENTS}/{name}/status"), &status)
            .await
            .expect(200);
    }
    let cluster = Cluster {
        server,
        leader,
        presence,
    };
    cluster.server.admin().post(TASKS, &task("train")).await.expect(201);
    cluster.server.admin().post(TASKS, &task("waits")).await.expect(201);
    let offer = cluster.an_offer("o1", 2, &[], "");
    cluster.offer(&[offer]).await.expect(201);
    cluster.accept("o1", &json!({"bind": ["train"]})).await.expect(201);
    for (phase, reason) in [("Starting", "Preparing"), ("Running", "Started")] {
        let status = json!({"status": {"phase": phase, "reason": reason}});
        cluster
            .agent()
            .merge(&format!("{TASKS}/train/status"), &status)
            .await
            .expect(200);
    }
    let usage = json!({
        "measuredAt": "2026-01-01T00:00:00Z",
        "machine": {"cpuMilli": 1500, "windowMs": 10_000, "memoryBytes": 1 << 30},
        "tasks": [{"namespace": "default", "task": "train", "attempt": 1, "devices": ["GPU-a1-0"],
                   "cpuMilli": 250, "windowMs": 10_000, "memoryBytes": 1 << 20}],
        "gpus": [{"uuid": "GPU-a1-0", "temperature": 64, "task": ["default", "train"]}, {"uuid": "GPU-a1-1"}],
    });
    agents
        .0
        .lock()
        .expect("nobody panics with it")
        .insert("a1".to_owned(), usage);
    (cluster, agents)
}

#[tokio::test(start_paused = true)]
async fn an_agent_that_does_not_answer_costs_its_own_row() {
    let (cluster, _agents) = cluster().await;
    let admin = cluster.server.admin();
    let rows = admin.get("/muster/v1/usage/agents").await.expect(200).json;
    assert_eq!(rows["items"][0]["usage"]["machine"]["cpuMilli"], 1500);
    assert_eq!(rows["items"][0]["usage"]["gpus"][0]["temperature"], 64);
    let message = rows["items"][1]["message"].as_str().unwrap();
    assert!(message.contains("agent a2 at a2:1 does not answer within 3s"), "{rows}");
    assert!(
        !rows.to_string().contains("train"),
        "who may see agents need not see tasks"
    );

    let nodes = admin.get(NODES).await.expect(200).json;
    assert_eq!((&nodes["kind"], names(&nodes)), (&json!("NodeMetricsList"), vec!["a1"]));
    assert_eq!(
        nodes["items"][0]["usage"],
        json!({"cpu": "1500m", "memory": "1048576Ki"})
    );
    assert_eq!(nodes["items"][0]["window"], "10000ms");
    admin.get(&format!("{NODES}/a1")).await.expect(200);
    let silent = admin.get(&format!("{NODES}/a2")).await.expect(503);
    assert!(silent.message().contains("does not answer"), "{}", silent.json);
    admin.get(&format!("{NODES}/a3")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn tasks_that_run_are_told_of_and_others_are_not() {
    let (cluster, agents) = cluster().await;
    let admin = cluster.server.admin();
    let rows = admin.get("/muster/v1/usage/tasks/default").await.expect(200).json;
    assert_eq!(rows["items"].as_array().unwrap().len(), 1, "{rows}");
    assert_eq!(rows["items"][0]["usage"]["cpuMilli"], 250);
    assert_eq!(rows["items"][0]["gpus"][0]["uuid"], "GPU-a1-0");
    assert_eq!(rows["items"][0]["gpus"].as_array().unwrap().len(), 1);
    let none = admin
        .get("/muster/v1/usage/tasks?labelSelector=no%3Done")
        .await
        .expect(200)
        .json;
    assert_eq!(none["items"], json!([]));

    let pods = admin.get(PODS).await.expect(200).json;
    assert_eq!((&pods["kind"], names(&pods)), (&json!("PodMetricsList"), vec!["train"]));
    let container = json!({"name": "train", "usage": {"cpu": "250m", "memory": "1024Ki"}});
    assert_eq!(pods["items"][0]["containers"], json!([container]));
    admin.get(&format!("{PODS}/train")).await.expect(200);
    admin.get(&format!("{PODS}/waits")).await.expect(404);

    agents.0.lock().expect("nobody panics with it").clear();
    let rows = admin.get("/muster/v1/usage/tasks").await.expect(200).json;
    assert!(
        rows["items"][0]["message"]
            .as_str()
            .unwrap()
            .contains("does not answer"),
        "{rows}"
    );
    assert_eq!(names(&admin.get(PODS).await.expect(200).json), Vec::<&str>::new());
}

#[tokio::test(start_paused = true)]
async fn each_reading_needs_its_own_right_and_nothing_can_be_written() {
    let (cluster, _agents) = cluster().await;
    let al = cluster.server.user_named("al");
    let paths = [
        ("/muster/v1/usage/agents", "agents/usage", "muster.dev"),
        ("/muster/v1/usage/tasks/default", "tasks/usage", "muster.dev"),
        ("/apis/muster.dev/v1/agents/a1/metrics", "agents/metrics", "muster.dev"),
        (NODES, "nodes", "metrics.k8s.io"),
        (PODS, "pods", "metrics.k8s.io"),
    ];
    for (path, resource, group) in paths {
        al.get(path).await.expect(403);
        let rules = json!([{"apiGroups": [group], "resources": [resource], "verbs": ["get", "list"]}]);
        let name = resource.replace('/', "-") + group;
        let admin = cluster.server.admin();
        let role = json!({"metadata": {"name": name}, "rules": rules});
        admin.post(CLUSTER_ROLES, &role).await.expect(201);
        let binding = json!({
            "metadata": {"name": name},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": name},
            "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": "al"}],
        });
        admin.post(CLUSTER_ROLE_BINDINGS, &binding).await.expect(201);
        al.get(path).await.expect(200);
    }
    let metrics = al.get("/apis/muster.dev/v1/agents/a1/metrics").await.expect(200);
    assert_eq!(&metrics.bytes[..], b"up{agent=\"a1\"} 1\n");
    let admin = cluster.server.admin();
    admin.post(PODS, &json!({"metadata": {"name": "x"}})).await.expect(405);
    admin.get("/muster/v1/usage/secrets").await.expect(404);
    admin.get("/apis/muster.dev/v1/agents/a9/metrics").await.expect(404);
}
