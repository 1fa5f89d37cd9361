//! What is promised of Pods and Nodes: they are tasks and agents, and nothing is accepted of them that means nothing.

mod common;

use common::*;
use serde_json::{Value, json};

const PODS: &str = "/api/v1/namespaces/default/pods";
const TABLE: &str = "application/json;as=Table;v=v1;g=meta.k8s.io,application/json";

fn pod(name: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"run": name}},
        "spec": {
            "containers": [{"name": name, "command": ["true"], "resources": {"requests": {"cpu": "1", "memory": "1Gi"}}}],
            "restartPolicy": "Never", "dnsPolicy": "ClusterFirst",
        },
    })
}

#[tokio::test(start_paused = true)]
async fn a_new_pod_is_a_task_and_a_task_is_a_pod() {
    let cluster = Cluster::new().await;
    let admin = cluster.server.admin();
    let made = admin.post(PODS, &pod("a")).await.expect(201).json;
    assert_eq!(
        (&made["kind"], &made["status"]["phase"]),
        (&json!("Pod"), &json!("Pending"))
    );
    let task = cluster.get_task("a").await;
    assert_eq!(task["spec"]["command"], json!(["true"]));
    assert_eq!(task["metadata"]["uid"], made["metadata"]["uid"]);
    assert_eq!(task["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    admin.post(PODS, &pod("a")).await.expect(409);

    admin.post(TASKS, &common::task("b")).await.expect(201);
    let pods = admin.get(PODS).await.expect(200).json;
    let names: Vec<&Value> = pods["items"]
        .as_array()
        .unwrap()
        .iter()
        .map(|pod| &pod["metadata"]["name"])
        .collect();
    assert_eq!(
        (pods["kind"].as_str(), names),
        (Some("PodList"), vec![&json!("a"), &json!("b")])
    );
    let table = cluster
        .server
        .admin()
        .with("accept", TABLE)
        .get(PODS)
        .await
        .expect(200)
        .json;
    let titles: Vec<&Value> = table["columnDefinitions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|column| &column["name"])
        .collect();
    assert_eq!(titles[..5], ["Name", "Ready", "Status", "Restarts", "Age"]);
    assert_eq!(
        table["rows"][0]["cells"].as_array().unwrap()[..4],
        [json!("a"), json!("0/1"), json!("Pending"), json!("0")]
    );

    for (selector, found) in [
        ("fieldSelector=status.phase%3DPending", 2),
        ("fieldSelector=status.phase!%3DPending", 0),
        ("fieldSelector=status.phase!%3DSucceeded,status.phase!%3DFailed", 2),
        ("fieldSelector=spec.nodeName%3Da1", 0),
        ("labelSelector=run%3Da", 1),
    ] {
        let list = admin.get(&format!("{PODS}?{selector}")).await.expect(200).json;
        assert_eq!(list["items"].as_array().unwrap().len(), found, "{selector}");
    }
    admin.delete(&format!("{PODS}/a")).await.expect(200);
    admin.get(&format!("{TASKS}/a")).await.expect(404);
    let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": "b"}});
    admin.post(&format!("{PODS}/c/eviction"), &eviction).await.expect(400);
    admin.post(&format!("{PODS}/b/eviction"), &eviction).await.expect(201);
    admin.get(&format!("{PODS}/b")).await.expect(404);
    admin.post(&format!("{PODS}/b/eviction"), &eviction).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_said_is_refused_and_nothing_is_made() {
    let cluster = Cluster::new().await;
    let admin = cluster.server.admin();
    let mut volumes = pod("a");
    volumes["spec"]["volumes"] = json!([{"name": "v", "emptyDir": {}}]);
    let refused = admin.post(PODS, &volumes).await.expect(422);
    assert_eq!(refused.json["details"]["causes"][0]["field"], "spec.volumes");
    let mut fraction = pod("a");
    fraction["spec"]["containers"][0]["resources"]["limits"] = json!({"nvidia.com/gpu": "0.5"});
    let refused = admin.post(PODS, &fraction).await.expect(422);
    assert!(refused.message().contains("whole"), "{}", refused.message());
    admin.get(&format!("{TASKS}/a")).await.expect(404);

    admin.post(PODS, &pod("a")).await.expect(201);
    let one = format!("{PODS}/a");
    let labelled = admin
        .merge(&one, &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .expect(200)
        .json;
    assert_eq!(labelled["metadata"]["labels"], json!({"run": "a", "x": "y"}));
    assert_eq!(cluster.get_task("a").await["metadata"]["labels"]["x"], "y");
    let other = json!({"spec": {"restartPolicy": "Always"}});
    let refused = admin.merge(&one, &other).await.expect(422);
    assert_eq!(refused.json["details"]["causes"][0]["field"], "spec.restartPolicy");
    let mut stale = labelled.clone();
    stale["metadata"]["resourceVersion"] = json!("1");
    admin.put(&one, &stale).await.expect(409);
    admin.put(&one, &labelled).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_node_is_an_agent_that_can_be_cordoned() {
    let cluster = Cluster::new().await;
    let admin = cluster.server.admin();
    let node = admin.get("/api/v1/nodes/a1").await.expect(200).json;
    assert_eq!(node["metadata"]["labels"]["kubernetes.io/hostname"], "a1");
    let cordon = json!({"spec": {"unschedulable": true}});
    let cordoned = admin.merge("/api/v1/nodes/a1", &cordon).await.expect(200).json;
    assert_eq!(cordoned["spec"]["taints"][0]["effect"], "NoSchedule");
    let agent = admin.get("/apis/muster.dev/v1/agents/a1").await.expect(200).json;
    assert_eq!(agent["spec"]["unschedulable"], true);
    let uncordon = json!({"spec": {"unschedulable": null}});
    admin.merge("/api/v1/nodes/a1", &uncordon).await.expect(200);
    let agent = admin.get("/apis/muster.dev/v1/agents/a1").await.expect(200).json;
    assert_eq!(agent["spec"]["unschedulable"], Value::Null);
    let table = cluster
        .server
        .admin()
        .with("accept", TABLE)
        .get("/api/v1/nodes")
        .await
        .expect(200)
        .json;
    assert_eq!(table["rows"][0]["cells"][0], "a1");
    admin.post("/api/v1/nodes", &node).await.expect(405);
}

#[tokio::test(start_paused = true)]
async fn watches_of_pods_see_what_becomes_of_tasks() {
    let cluster = Cluster::new().await;
    let admin = cluster.server.admin();
    let version = admin.get(PODS).await.expect(200).version().to_owned();
    let mut watch = admin
        .watch(&format!("{PODS}?watch=true&resourceVersion={version}"))
        .await;
    admin.post(TASKS, &common::task("a")).await.expect(201);
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["kind"]),
        (&json!("ADDED"), &json!("Pod"))
    );
    admin.delete(&format!("{TASKS}/a")).await.expect(200);
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["kind"]),
        (&json!("DELETED"), &json!("Pod"))
    );
}
