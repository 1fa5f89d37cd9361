//! Owners and namespaces go, by the real API server and controllers.

mod common;

use std::time::Duration;

use common::{Habit, TestCluster};
use muster_api::task_state::Phase;
use muster_client::{Error, Patch, Preconditions};
use muster_controllers::runtime::{Id, Key, View};
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

/// Makes a ConfigMap with these owners and gives a reference to it.
async fn map(cluster: &TestCluster, name: &str, owners: &[&Value]) -> Value {
    let object = json!({ "metadata": { "name": name, "ownerReferences": owners } });
    let made: Value = cluster.admin.create_at(MAPS, &object).await.expect("a map");
    reference(&made)
}

fn reference(object: &Value) -> Value {
    json!({
        "apiVersion": object["apiVersion"], "kind": object["kind"],
        "name": object["metadata"]["name"], "uid": object["metadata"]["uid"], "blockOwnerDeletion": true,
    })
}

async fn delete(cluster: &TestCluster, path: &str, policy: Option<&str>) {
    let any = Preconditions::default();
    let deleted: Value = cluster.admin.delete_as(path, &any, policy).await.expect("deleted");
    assert!(deleted.is_object());
}

/// The names of the ConfigMaps that are there.
fn maps(view: &View) -> Vec<String> {
    let there = view.others.keys().filter(|key| key.resource.name() == "configmaps");
    there.map(|key| key.id.name.to_string()).collect()
}

async fn until_left(cluster: &TestCluster, expect: &[&str]) {
    let what = format!("only {expect:?} are left");
    cluster.wait(&what, |view| (maps(view) == expect).then_some(())).await;
}

#[tokio::test(start_paused = true)]
async fn what_is_owned_goes_with_its_owner_of_whatever_kind() {
    let (cluster, controllers) = TestCluster::with_controllers().await;
    let owner = map(&cluster, "owner", &[]).await;
    map(&cluster, "owned", &[&owner]).await;
    let mut task = json!({
        "metadata": { "name": "t", "ownerReferences": [owner] },
        "spec": { "command": ["true"], "resources": { "cpus": 1, "memory": "64Mi" } },
    });
    let tasks = "/apis/muster.dev/v1/namespaces/default/tasks";
    task = cluster.admin.create_at(tasks, &task).await.expect("a task");
    map(&cluster, "of-the-task", &[&reference(&task)]).await;
    map(&cluster, "other", &[]).await;
    delete(&cluster, &format!("{MAPS}/owner"), None).await;
    until_left(&cluster, &["other"]).await;
    assert_eq!(cluster.view().phase(&Id::new("default", "t")), None);
    controllers.stop().await;
}

#[tokio::test(start_paused = true)]
async fn in_the_foreground_the_owner_stays_until_what_it_owns_is_gone() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let owner = map(&cluster, "owner", &[]).await;
    let owned = map(&cluster, "owned", &[&owner]).await;
    map(&cluster, "below", &[&owned]).await;
    let held = json!({ "metadata": { "finalizers": ["example.org/held"] } });
    let below = format!("{MAPS}/below");
    let _: Value = cluster.admin.patch_at(&below, &Patch::Merge(held)).await.expect("held");
    delete(&cluster, &format!("{MAPS}/owner"), Some("Foreground")).await;
    let deleting = |view: &View| {
        let all = view
            .others
            .iter()
            .filter(|(key, _)| key.resource.name() == "configmaps");
        (all.filter(|(_, map)| map.deleting).count() == 3).then_some(())
    };
    cluster.wait("all three to be marked", deleting).await;
    assert_eq!(maps(&cluster.view()), ["below", "owned", "owner"]);
    let free = json!({ "metadata": { "finalizers": [] } });
    let _: Value = cluster.admin.patch_at(&below, &Patch::Merge(free)).await.expect("free");
    until_left(&cluster, &[]).await;
}

#[tokio::test(start_paused = true)]
async fn orphans_stay() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let owner = map(&cluster, "owner", &[]).await;
    map(&cluster, "a", &[&owner]).await;
    map(&cluster, "b", &[&owner]).await;
    delete(&cluster, &format!("{MAPS}/owner"), Some("Orphan")).await;
    until_left(&cluster, &["a", "b"]).await;
    for name in ["a", "b"] {
        let left: Value = cluster.admin.get_at(&format!("{MAPS}/{name}")).await.expect("there");
        assert!(left["metadata"]["ownerReferences"].is_null(), "{left}");
    }
}

#[tokio::test(start_paused = true)]
async fn an_owner_that_only_the_server_knows_of_keeps_what_it_owns() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let events = "/apis/events.k8s.io/v1/namespaces/default/events";
    let event = json!({
        "metadata": { "name": "e" }, "eventTime": "2026-01-01T00:00:00.000000Z", "action": "A", "reason": "R", "type": "Normal",
        "reportingController": "c", "reportingInstance": "i", "regarding": { "kind": "ConfigMap", "namespace": "default" },
    });
    let event: Value = cluster.admin.create_at(events, &event).await.expect("an event");
    map(&cluster, "owned", &[&reference(&event)]).await;
    let mut unknown = reference(&event);
    unknown["apiVersion"] = json!("example.org/v1");
    unknown["uid"] = json!("x");
    map(&cluster, "of-no-kind", &[&unknown]).await;
    // Long enough for many looks.
    tokio::time::sleep(Duration::from_secs(60)).await;
    assert_eq!(maps(&cluster.view()), ["of-no-kind", "owned"]);
    delete(&cluster, &format!("{events}/e"), None).await;
    until_left(&cluster, &["of-no-kind"]).await;
}

#[tokio::test(start_paused = true)]
async fn an_owner_in_another_namespace_is_none() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    let system = "/api/v1/namespaces/muster-system/configmaps";
    let far = json!({ "metadata": { "name": "far" } });
    let far: Value = cluster.admin.create_at(system, &far).await.expect("a map");
    let near = map(&cluster, "near", &[]).await;
    map(&cluster, "of-far", &[&reference(&far)]).await;
    map(&cluster, "of-both", &[&reference(&far), &near]).await;
    cluster
        .wait("its end", |view| {
            (!maps(view).contains(&"of-far".to_owned())).then_some(())
        })
        .await;
    let only_near = |view: &View| {
        let resource = view.resource("v1", "ConfigMap")?;
        let both = view.others.get(&Key::new(resource, &Id::new("default", "of-both")))?;
        (both.owners.len() == 1).then_some(())
    };
    cluster.wait("the dangling owner to be forgotten", only_near).await;
}

#[tokio::test(start_paused = true)]
async fn a_namespace_goes_when_its_last_task_has_ended_and_says_what_it_waits_for() {
    let (cluster, _controllers) = TestCluster::with_controllers().await;
    cluster.agent("a1", 4, Habit::Keep).await;
    let admin = &cluster.admin;
    let namespace = json!({ "metadata": { "name": "team" } });
    let _: Value = admin.create_at("/api/v1/namespaces", &namespace).await.expect("made");
    let there = |plural: &str, group: &str| format!("{group}/namespaces/team/{plural}");
    let task = json!({
        "metadata": { "name": "t" },
        "spec": { "command": ["sleep", "9"], "resources": { "cpus": 1, "memory": "64Mi" } },
    });
    let (tasks, maps) = (there("tasks", "/apis/muster.dev/v1"), there("configmaps", "/api/v1"));
    for index in 0..300 {
        let map = json!({ "metadata": { "name": format!("c{index}") } });
        let _: Value = admin.create_at(&maps, &map).await.expect("a map");
    }
    let _: Value = admin.create_at(&tasks, &task).await.expect("a task");
    let id = Id::new("team", "t");
    cluster
        .wait("a running task", |view| {
            (view.phase(&id) == Some(Phase::Running)).then_some(())
        })
        .await;
    delete(&cluster, "/api/v1/namespaces/team", None).await;
    let refused = admin
        .create_at::<_, Value>(&maps, &json!({ "metadata": { "name": "late" } }))
        .await;
    let Err(Error::Forbidden(status)) = refused else {
        panic!("{refused:?}")
    };
    let causes = &status.details.as_ref().expect("details").causes;
    assert_eq!(causes[0].reason, "NamespaceTerminating");
    let said = |view: &View| {
        let status = view.namespaces.get("team")?.status.clone()?;
        Some((status.phase?, status.conditions?))
    };
    let (phase, conditions) = cluster.wait("its conditions", said).await;
    assert_eq!(phase, "Terminating");
    let types: Vec<&str> = conditions.iter().map(|one| one.type_.as_str()).collect();
    assert_eq!(types, ["NamespaceContentRemaining", "NamespaceFinalizersRemaining"]);
    let message = conditions[0].message.as_deref().expect("a message");
    assert!(
        message.contains("tasks.muster.dev has 1 resource instances"),
        "{message}"
    );
    assert!(
        message.contains("configmaps has 300 resource instances"),
        "what it uses is kept: {message}"
    );
    let free = Patch::Merge(json!({ "metadata": { "finalizers": [] } }));
    let _: Value = admin.patch_at(&format!("{tasks}/t"), &free).await.expect("ended");
    let gone = |view: &View| (!view.namespaces.contains_key("team") && view.content("team").is_empty()).then_some(());
    cluster.wait("its end", gone).await;
    assert!(admin.get_at::<Value>("/api/v1/namespaces/team").await.is_err());
}
