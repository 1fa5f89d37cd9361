//! Server-side apply and the owners of fields, over the routes: the cases of Kubernetes' contract, and what the system's own writers cost.

mod common;

use common::*;
use serde_json::{Value, json};

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn apply(client: &Client<'_>, path: &str, query: &str, config: &Value) -> Answer {
    let client = client.clone().with("content-type", "application/apply-patch+yaml");
    client
        .send("PATCH", &format!("{path}?{query}"), config.to_string())
        .await
}

const FRAMEWORK: &str = "/apis/muster.dev/v1/namespaces/default/frameworks/f";

fn framework(spec: &Value) -> Value {
    json!({"apiVersion": "muster.dev/v1", "kind": "Framework", "metadata": {"name": "f"}, "spec": spec})
}

/// Applies a framework as this manager.
async fn applied(client: &Client<'_>, manager: &str, spec: Value) -> Answer {
    apply(client, FRAMEWORK, &format!("fieldManager={manager}"), &framework(&spec)).await
}

/// Applies a task.
async fn applied_task(client: &Client<'_>) -> Answer {
    apply(client, &format!("{TASKS}/t"), "fieldManager=m", &task("t")).await
}

/// Manager, operation and subresource of each owner.
fn owners(object: &Value) -> Vec<String> {
    let entries = object["metadata"]["managedFields"].as_array().into_iter().flatten();
    let shown = entries.map(|entry| {
        let text = |field: &str| entry[field].as_str().unwrap_or_default();
        let words = [text("manager"), text("operation"), text("subresource")];
        words.join(" ").trim_end().to_owned()
    });
    shown.collect()
}

fn fields<'a>(object: &'a Value, manager: &str) -> &'a Value {
    let entries = object["metadata"]["managedFields"]
        .as_array()
        .expect("there are owners");
    let entry = entries.iter().find(|entry| entry["manager"] == manager);
    &entry.unwrap_or_else(|| panic!("{manager}: {entries:?}"))["fieldsV1"]
}

#[tokio::test(start_paused = true)]
async fn applying_makes_an_object_and_the_same_again_changes_nothing() {
    let server = Server::new().await;
    let jo = server.jo();
    let spec = json!({"roles": ["ml"], "demand": {"maxOffers": 3}});
    let created = applied(&jo, "m", spec.clone()).await.expect(201).json;
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["spec"]["scheduler"], "External");
    assert_eq!(
        created["metadata"]["managedFields"],
        json!([{
            "manager": "m", "operation": "Apply", "apiVersion": "muster.dev/v1", "time": "2026-01-01T00:00:00Z",
            "fieldsType": "FieldsV1",
            "fieldsV1": {"f:spec": {"f:roles": {"v:\"ml\"": {}}, "f:demand": {"f:maxOffers": {}}}},
        }]),
        "what is filled in and what is not said is nobody's"
    );
    let before = server.store.revision().await.unwrap();
    server.env.advance(60);
    assert_eq!(applied(&jo, "m", spec).await.expect(200).json, created);
    assert_eq!(
        server.store.revision().await.unwrap(),
        before,
        "nothing was written, times included"
    );
    assert_eq!(jo.get(FRAMEWORK).await.expect(200).json, created);
}

#[tokio::test(start_paused = true)]
async fn a_field_of_another_is_a_conflict_until_it_is_forced() {
    let server = Server::new().await;
    let jo = server.jo();
    let max = |offers: u32| json!({"demand": {"maxOffers": offers}});
    applied(&jo, "a", json!({"roles": ["ml"], "demand": {"maxOffers": 1}}))
        .await
        .expect(201);
    let before = server.store.revision().await.unwrap();
    let refused = applied(&jo, "b", max(2)).await.expect(409);
    assert_eq!(refused.reason(), "Conflict");
    assert_eq!(
        refused.message(),
        "Apply failed with 1 conflict: conflict with \"a\": .spec.demand.maxOffers"
    );
    let cause = json!([{"reason": "FieldManagerConflict", "message": "conflict with \"a\"", "field": ".spec.demand.maxOffers"}]);
    assert_eq!(refused.json["details"]["causes"], cause);
    let config = json!({"spec": max(2)});
    let dry = apply(&jo, FRAMEWORK, "fieldManager=b&force=true&dryRun=All", &config)
        .await
        .expect(200)
        .json;
    assert_eq!(dry["spec"]["demand"]["maxOffers"], 2);
    assert_eq!(
        server.store.revision().await.unwrap(),
        before,
        "neither stores anything"
    );
    let forced = apply(&jo, FRAMEWORK, "fieldManager=b&force=true", &config)
        .await
        .expect(200)
        .json;
    assert_eq!(owners(&forced), ["a Apply", "b Apply"]);
    assert_eq!(fields(&forced, "a"), &json!({"f:spec": {"f:roles": {"v:\"ml\"": {}}}}));
    assert_eq!(forced["metadata"]["generation"], 2);
    jo.merge(FRAMEWORK, &json!({"spec": max(3)})).await.expect(200);
    let refused = applied(&jo, "b", max(2)).await.expect(409);
    assert_eq!(
        refused.message(),
        "Apply failed with 1 conflict: conflict with \"unknown\" using muster.dev/v1: .spec.demand.maxOffers"
    );
}

#[tokio::test(start_paused = true)]
async fn what_nobody_wants_any_more_goes_and_defaults_come_back() {
    let server = Server::new().await;
    let jo = server.jo();
    let first = json!({"roles": ["a", "b"], "scheduler": "BuiltIn", "demand": {"maxOffers": 1}});
    applied(&jo, "a", first).await.expect(201);
    let both = applied(&jo, "b", json!({"roles": ["c"], "demand": {"maxOffers": 1}}))
        .await
        .expect(200)
        .json;
    assert_eq!(both["spec"]["roles"], json!(["a", "b", "c"]));
    let less = applied(&jo, "a", json!({"roles": ["b"]})).await.expect(200).json;
    assert_eq!(less["spec"]["roles"], json!(["b", "c"]));
    assert_eq!(
        (&less["spec"]["demand"]["maxOffers"], &less["spec"]["scheduler"]),
        (&json!(1), &json!("External"))
    );
    let free = applied(&jo, "c", json!({"scheduler": "BuiltIn"}))
        .await
        .expect(200)
        .json;
    assert_eq!(free["spec"]["scheduler"], "BuiltIn", "a default is nobody's");
    let none = applied(&jo, "b", json!({})).await.expect(200).json;
    assert_eq!(
        (none["spec"].get("demand"), &none["spec"]["roles"]),
        (None, &json!(["b"]))
    );
}

#[tokio::test(start_paused = true)]
async fn every_write_notes_its_author() {
    let server = Server::new().await;
    let jo = server.jo().with("user-agent", "tool/1.2 (linux)");
    let path = format!("{MAPS}/c");
    let created = jo.post(MAPS, &config_map("c", "1")).await.expect(201).json;
    assert_eq!(owners(&created), ["tool Update"]);
    assert_eq!(fields(&created, "tool"), &json!({"f:data": {".": {}, "f:key": {}}}));
    server.env.advance(1);
    let change = json!({"data": {"key": "2", "more": "3"}});
    let changed = jo
        .merge(&format!("{path}?fieldManager=other"), &change)
        .await
        .expect(200)
        .json;
    assert_eq!(fields(&changed, "tool"), &json!({"f:data": {}}));
    assert_eq!(
        fields(&changed, "other"),
        &json!({"f:data": {"f:key": {}, "f:more": {}}})
    );
    assert_eq!(changed["metadata"]["managedFields"][1]["time"], "2026-01-01T00:00:01Z");
    server.env.advance(1);
    let again = jo
        .merge(&format!("{path}?fieldManager=third"), &change)
        .await
        .expect(200)
        .json;
    assert_eq!(again, changed, "who changes nothing is no author");
    let mut sent = changed.clone();
    sent["data"] = json!({"key": "4"});
    sent["metadata"]["managedFields"] = Value::Null;
    let replaced = jo
        .put(&format!("{path}?fieldManager=third"), &sent)
        .await
        .expect(200)
        .json;
    assert_eq!(owners(&replaced), ["tool Update", "third Update"]);
    let many = format!("{path}?fieldManager={}", "x".repeat(129));
    jo.merge(&many, &json!({"data": {"key": "5"}})).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn owners_are_reset_and_come_back_with_the_first_apply() {
    let server = Server::new().await;
    let jo = server.jo().with("user-agent", "tool/1");
    let path = format!("{MAPS}/c");
    for reset in [json!([]), json!([{}])] {
        jo.post(MAPS, &config_map("c", "1")).await.expect(201);
        let none = jo
            .merge(&path, &json!({"metadata": {"managedFields": reset}}))
            .await
            .expect(200)
            .json;
        assert_eq!(none["metadata"].get("managedFields"), None);
        let still = jo.merge(&path, &json!({"data": {"key": "2"}})).await.expect(200).json;
        assert_eq!(owners(&still), Vec::<String>::new());
        let config = json!({"data": {"key": "3"}});
        let refused = apply(&jo, &path, "fieldManager=m", &config).await.expect(409);
        assert!(
            refused.message().contains("\"before-first-apply\" using v1: .data.key"),
            "{}",
            refused.message()
        );
        let forced = apply(&jo, &path, "fieldManager=m&force=true", &config)
            .await
            .expect(200)
            .json;
        assert_eq!(owners(&forced), ["m Apply", "before-first-apply Update"]);
        jo.delete(&path).await.expect(200);
    }
    jo.post(MAPS, &config_map("c", "1")).await.expect(201);
    // What kubectl does when it goes over from client-side apply.
    let owned = json!({"f:data": {".": {}, "f:key": {}}});
    let entry = json!({"manager": "kubectl", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": owned});
    let patch = json!([{"op": "replace", "path": "/metadata/managedFields", "value": [entry]}]);
    let changed = jo.json_patch(&path, &patch).await.expect(200).json;
    assert_eq!(owners(&changed), ["kubectl Apply"]);
    let broken = json!({"metadata": {"managedFields": [{"manager": "x", "operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"x": {}}}]}});
    let kept = jo.merge(&path, &broken).await.expect(200).json;
    assert_eq!(owners(&kept), ["kubectl Apply"], "what cannot be read changes nothing");
}

#[tokio::test(start_paused = true)]
async fn what_cannot_be_applied_is_refused() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    let refused = apply(&jo, &path, "", &task("t")).await.expect(422);
    assert_eq!(
        refused.message(),
        "PatchOptions.meta.k8s.io \"\" is invalid: fieldManager: Required value: is required for apply patch"
    );
    let with = |change: &dyn Fn(&mut Value)| {
        let mut config = task("t");
        change(&mut config);
        config
    };
    let cases = [
        (
            with(&|task| task["metadata"]["managedFields"] = json!([{}])),
            400,
            "metadata.managedFields must be nil",
        ),
        (
            with(&|task| task["apiVersion"] = json!("muster.dev/v2")),
            400,
            "does not match",
        ),
        (
            with(&|task| task["metadata"]["name"] = json!("u")),
            400,
            "does not match the name on the URL",
        ),
        (
            with(&|task| task["spec"]["comand"] = json!([])),
            400,
            ".spec.comand: field not declared in schema, did you mean \"command\"?",
        ),
        (
            with(&|task| task["spec"]["env"] = json!([{"name": "A"}, {"name": "A"}])),
            400,
            "duplicate entries for key [name=\"A\"]",
        ),
        (
            with(&|task| task["spec"]["env"] = json!([{"value": "A"}])),
            400,
            "omits key field \"name\"",
        ),
        (
            with(&|task| task["spec"]["priority"] = json!("x")),
            422,
            "must be of type integer",
        ),
        (with(&|task| task["metadata"]["uid"] = json!("u")), 409, "uid mismatch"),
        (
            with(&|task| task["metadata"]["resourceVersion"] = json!("7")),
            409,
            "no existing object was found",
        ),
    ];
    for (config, code, message) in cases {
        let refused = apply(&jo, &path, "fieldManager=m", &config).await.expect(code);
        assert!(refused.message().contains(message), "{}", refused.message());
    }
    let yaml = jo.clone().with("content-type", "application/apply-patch+yaml");
    for body in ["a: 1\na: 2\n", "[1]", "{\"a\": 1, \"a\": 2}", "{", ": :"] {
        let refused = yaml
            .send("PATCH", &format!("{path}?fieldManager=m"), body)
            .await
            .expect(400);
        assert!(
            refused.message().starts_with("error decoding YAML"),
            "{}",
            refused.message()
        );
    }
    let mut config = task("t");
    config["spec"]["priority"] = json!(1);
    let text = serde_yaml::to_string(&config).unwrap();
    yaml.send("PATCH", &format!("{path}?fieldManager=m"), text)
        .await
        .expect(201);
    jo.merge(&format!("{path}?force=false"), &json!({})).await.expect(422);
    config["metadata"]["resourceVersion"] = json!("1");
    apply(&jo, &path, "fieldManager=m", &config).await.expect(409);
    config["metadata"] = json!({"name": "t", "uid": "other"});
    apply(&jo, &path, "fieldManager=m", &config).await.expect(409);
}

#[tokio::test(start_paused = true)]
async fn the_status_is_applied_through_its_subresource_only() {
    let server = Server::new().await;
    let admin = server.admin();
    let quotas = "/apis/muster.dev/v1/quotas/q";
    let config = json!({"apiVersion": "muster.dev/v1", "kind": "Quota", "metadata": {"name": "q"}, "spec": {"role": "ml"},
        "status": {"observedGeneration": 7}});
    let created = apply(&admin, quotas, "fieldManager=m", &config).await.expect(201).json;
    assert_ne!(created["status"]["observedGeneration"], 7);
    assert_eq!(fields(&created, "m").get("f:status"), None);
    let written = apply(&admin, &format!("{quotas}/status"), "fieldManager=m", &config)
        .await
        .expect(200)
        .json;
    assert_eq!(written["status"]["observedGeneration"], 7);
    assert_eq!(written["metadata"]["generation"], 1);
    assert_eq!(owners(&written), ["m Apply", "m Apply status"]);
    apply(
        &admin,
        "/apis/muster.dev/v1/quotas/none/status",
        "fieldManager=m",
        &config,
    )
    .await
    .expect(404);
    let other = json!({"status": {"observedGeneration": 8}});
    let refused = apply(&admin, &format!("{quotas}/status"), "fieldManager=n", &other)
        .await
        .expect(409);
    assert!(
        refused
            .message()
            .contains("\"m\" with subresource \"status\": .status.observedGeneration")
    );
}

#[tokio::test(start_paused = true)]
async fn who_may_patch_and_not_create_does_not_create_by_applying() {
    let server = Server::new().await;
    let agents = "/apis/muster.dev/v1/agents/a1";
    let config = json!({"metadata": {"name": "a1"}, "spec": {}});
    apply(&server.jo(), agents, "fieldManager=m", &config).await.expect(403);
    server.jo().get(agents).await.expect(404);
    let elsewhere = "/apis/muster.dev/v1/namespaces/none/tasks/t";
    let refused = apply(
        &server.jo(),
        elsewhere,
        "fieldManager=m",
        &json!({"spec": task("t")["spec"]}),
    )
    .await;
    assert_eq!(refused.expect(404).message(), "namespaces \"none\" not found");
}

#[tokio::test(start_paused = true)]
async fn kubectl_takes_over_what_it_applied_on_the_client_side() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{MAPS}/c");
    let mut map = config_map("c", "1");
    let last = map.to_string();
    map["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    jo.post(&format!("{MAPS}?fieldManager=kubectl-client-side-apply"), &map)
        .await
        .expect(201);
    let config = json!({"data": {"key": "2"}});
    apply(&jo, &path, "fieldManager=other", &config).await.expect(409);
    let taken = apply(&jo, &path, "fieldManager=kubectl", &config)
        .await
        .expect(200)
        .json;
    assert_eq!(taken["data"]["key"], "2");
}

#[tokio::test(start_paused = true)]
async fn two_who_apply_different_fields_lose_nothing() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{MAPS}/c");
    let configs: Vec<Value> = (0..8)
        .map(|number| json!({"data": {format!("k{number}"): "v"}}))
        .collect();
    let queries: Vec<String> = (0..8).map(|number| format!("fieldManager=m{number}")).collect();
    let all = configs
        .iter()
        .zip(&queries)
        .map(|(config, query)| apply(&jo, &path, query, config));
    for answer in futures::future::join_all(all).await {
        assert!(answer.code.is_success(), "{}", answer.message());
    }
    let object = jo.get(&path).await.expect(200).json;
    assert_eq!(object["data"].as_object().unwrap().len(), 8);
    assert_eq!(owners(&object).len(), 8);
}

#[tokio::test(start_paused = true)]
async fn the_systems_own_status_has_no_owner_and_takes_from_others() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    applied_task(&server.jo()).await.expect(201);
    let path = format!("{TASKS}/t/status");
    let admin = server.admin();
    apply(
        &admin,
        &path,
        "fieldManager=op",
        &json!({"status": {"message": "mine"}}),
    )
    .await
    .expect(200);
    let offer = cluster.an_offer("o", 1, &[], "");
    cluster.offer(&[offer]).await.expect(201);
    cluster.accept("o", &json!({"bind": ["t"]})).await.expect(201);
    let bound = cluster.get_task("t").await;
    assert_eq!(bound["status"]["phase"], "Staging");
    let change = json!({"status": {"phase": "Starting", "message": "the agent's"}});
    let written = cluster.agent().merge(&path, &change).await.expect(200).json;
    assert_eq!(
        owners(&written),
        ["m Apply"],
        "the operator lost the message to the agent, who owns nothing"
    );
    assert_eq!(written["status"]["message"], "the agent's");
}

#[tokio::test(start_paused = true)]
async fn the_ordered_watch_leaves_owners_out() {
    let server = Server::new().await;
    applied_task(&server.jo()).await.expect(201);
    let mut watch = server
        .controllers()
        .watch("/muster/v1/watch?resources=tasks.muster.dev")
        .await;
    let line = watch.next().await.expect("a snapshot");
    let object = &line["changes"][0]["object"];
    assert_eq!(object["metadata"]["name"], "t");
    assert_eq!(object["metadata"].get("managedFields"), None);
    let read = server.jo().get(&format!("{TASKS}/t")).await.expect(200).json;
    assert_eq!(owners(&read), ["m Apply"]);
}

#[tokio::test(start_paused = true)]
async fn strategic_merge_patches_know_the_lists_of_every_kind() {
    let server = Server::new().await;
    applied(&server.jo(), "m", json!({"roles": ["a"]})).await.expect(201);
    let jo = server
        .jo()
        .with("content-type", "application/strategic-merge-patch+json");
    let send = |patch: Value| jo.send("PATCH", FRAMEWORK, patch.to_string());
    let changed = send(json!({"spec": {"roles": ["b"]}})).await.expect(200).json;
    assert_eq!(changed["spec"]["roles"], json!(["a", "b"]));
    let changed = send(json!({"spec": {"$deleteFromPrimitiveList/roles": ["a"]}}))
        .await
        .expect(200)
        .json;
    assert_eq!(changed["spec"]["roles"], json!(["b"]));
    send(json!({"metadata": {"labels": {"l": "1"}, "finalizers": ["x.dev/a"]}}))
        .await
        .expect(200);
    let patch = json!({"metadata": {"$deleteFromPrimitiveList/finalizers": ["x.dev/a"], "labels": {"$patch": "replace", "m": "2"}}});
    let changed = send(patch).await.expect(200).json;
    assert_eq!(
        (changed["metadata"].get("finalizers"), &changed["metadata"]["labels"]),
        (None, &json!({"m": "2"}))
    );
    let owner = json!({"metadata": {"ownerReferences": [{"kind": "x"}]}});
    let refused = send(owner).await.expect(400);
    assert!(refused.message().contains("merge key uid"), "{}", refused.message());
}

#[tokio::test(start_paused = true)]
async fn a_bound_task_whose_labels_go_keeps_what_the_control_plane_noted() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    let mut labelled = task("t");
    labelled["metadata"]["labels"] = json!({"mine": "1"});
    let path = format!("{TASKS}/t");
    apply(&jo, &path, "fieldManager=m", &labelled).await.expect(201);
    cluster
        .offer(&[cluster.an_offer("o", 2, &[], "31000-31004")])
        .await
        .expect(201);
    cluster.accept("o", &json!({"bind": ["t"]})).await.expect(201);
    let noted = cluster.get_task("t").await["metadata"].clone();
    assert_eq!(noted["finalizers"], json!(["muster.dev/agent"]));
    let after = apply(&jo, &path, "fieldManager=m", &task("t")).await.expect(200).json["metadata"].clone();
    assert_eq!(
        (&after["finalizers"], &after["annotations"]),
        (&noted["finalizers"], &noted["annotations"])
    );
    assert_eq!(after["labels"], Value::Null);
}
