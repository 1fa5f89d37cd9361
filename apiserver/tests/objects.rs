//! What is promised of objects: making, reading, changing and deleting them.

mod common;

use common::*;
use serde_json::{Value, json};

#[tokio::test(start_paused = true)]
async fn a_task_is_stored_as_it_was_written_with_defaults() {
    let server = Server::new().await;
    let created = server.jo().post(TASKS, &task("t")).await.expect(201).json;
    assert_eq!(created["spec"]["resources"]["cpus"], "0.5");
    assert_eq!(created["spec"]["resources"]["memory"], "64Mi");
    assert_eq!(created["spec"]["framework"], "default");
    assert_eq!(created["spec"]["role"], "default");
    assert_eq!(created["status"]["phase"], "Pending");
    assert_eq!(created["status"]["reason"], "AwaitingOffer");
    assert_eq!(created["status"]["conditions"][0]["type"], "Ready");
    assert_eq!(created["metadata"]["generation"], 1);
    assert_eq!(created["metadata"]["creationTimestamp"], "2026-01-01T00:00:00Z");
    let read = server.jo().get(&format!("{TASKS}/t")).await.expect(200);
    assert_eq!(read.json, created);
}

#[tokio::test(start_paused = true)]
async fn the_server_sets_what_the_client_may_not() {
    let server = Server::new().await;
    let mut body = task("t");
    body["metadata"]["uid"] = json!("mine");
    body["metadata"]["creationTimestamp"] = json!("2000-01-01T00:00:00Z");
    body["metadata"]["deletionTimestamp"] = json!("2000-01-01T00:00:00Z");
    body["metadata"]["generation"] = json!(7);
    body["metadata"]["finalizers"] = json!(["muster.dev/agent"]);
    body["status"] = json!({"phase": "Finished"});
    let created = server.jo().post(TASKS, &body).await.expect(201).json;
    let metadata = &created["metadata"];
    assert_ne!(metadata["uid"], "mine");
    assert_eq!(metadata["creationTimestamp"], "2026-01-01T00:00:00Z");
    assert_eq!(
        (&metadata["deletionTimestamp"], &metadata["finalizers"]),
        (&Value::Null, &Value::Null)
    );
    assert_eq!(metadata["generation"], 1);
    assert_eq!(created["status"]["phase"], "Pending");
    body["metadata"]["resourceVersion"] = json!("1");
    server.jo().post(TASKS, &body).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn names_are_unique_checked_and_drawn() {
    let server = Server::new().await;
    let jo = server.jo();
    jo.post(TASKS, &task("t")).await.expect(201);
    let answer = jo.post(TASKS, &task("t")).await.expect(409);
    assert_eq!(answer.reason(), "AlreadyExists");
    assert_eq!(answer.message(), "tasks.muster.dev \"t\" already exists");
    assert_eq!(
        answer.json["details"],
        json!({"name": "t", "group": "muster.dev", "kind": "tasks"})
    );
    jo.post(TASKS, &task("Not A Name")).await.expect(422);
    jo.post(TASKS, &task("")).await.expect(422);
    let mut drawn = task("");
    drawn["metadata"] = json!({"generateName": "run-"});
    let mut seen = std::collections::BTreeSet::new();
    for _ in 0..20 {
        let created = jo.post(TASKS, &drawn).await.expect(201).json;
        let name = created["metadata"]["name"].as_str().unwrap().to_owned();
        assert!(name.starts_with("run-") && name.len() == 9, "{name}");
        assert!(seen.insert(name));
    }
}

#[tokio::test(start_paused = true)]
async fn what_the_path_says_and_what_the_body_says_must_agree() {
    let server = Server::new().await;
    let bodies = [
        json!({"kind": "Offer"}),
        json!({"apiVersion": "muster.dev/v2"}),
        json!({"metadata": {"name": "t", "namespace": "other"}}),
        json!({"metadata": []}),
        json!({"kind": 1}),
    ];
    for change in bodies {
        let mut body = task("t");
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        server.jo().post(TASKS, &body).await.expect(400);
    }
    let created = server.jo().post(TASKS, &task("t")).await.expect(201).json;
    let mut other = created.clone();
    other["metadata"]["name"] = json!("other");
    server.jo().put(&format!("{TASKS}/t"), &other).await.expect(400);
    server
        .jo()
        .merge(&format!("{TASKS}/t"), &json!({"metadata": {"namespace": "other"}}))
        .await
        .expect(400);
}

/// Trap 10: clients of some languages send typed bodies without kind and version, slashes at the end, stray ampersands, no types.
#[tokio::test(start_paused = true)]
async fn sloppy_requests_are_understood() {
    let server = Server::new().await;
    let jo = server.jo();
    let mut body = task("t");
    body.as_object_mut().unwrap().remove("apiVersion");
    body.as_object_mut().unwrap().remove("kind");
    let created = jo
        .post(&format!("{TASKS}/?&fieldManager=x"), &body)
        .await
        .expect(201)
        .json;
    assert_eq!(
        (&created["kind"], &created["apiVersion"]),
        (&json!("Task"), &json!("muster.dev/v1"))
    );
    assert_eq!(
        names(&jo.get(&format!("{TASKS}/?&limit=500")).await.expect(200).json),
        ["t"]
    );
    jo.get(&format!("{TASKS}/t/")).await.expect(200);
    jo.get("/version/").await.expect(200);
    jo.get("/apis/").await.expect(200);
    let yaml = jo.clone().with("content-type", "application/yaml");
    let text = "metadata: {name: y}\nspec: {command: [\"true\"], resources: {cpus: 1}}\n";
    yaml.send("POST", TASKS, text).await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn bodies_that_are_too_large_too_deep_or_no_objects_are_refused() {
    let server = Server::new().await;
    let jo = server.jo();
    let answer = jo.send("POST", TASKS, vec![b' '; (3 << 20) + 1]).await.expect(413);
    assert_eq!(answer.reason(), "RequestEntityTooLarge");
    let deep = format!("{{\"a\":{}{}}}", "[".repeat(64), "]".repeat(64));
    jo.send("POST", TASKS, deep).await.expect(400);
    for body in ["", "[]", "{", "1", "{\"metadata\": {\"name\": \"t\"}} x"] {
        jo.send("POST", TASKS, body).await.expect(400);
    }
    let mut large = config_map("large", "");
    large["data"]["key"] = json!("x".repeat(1 << 20));
    server.admin().post(CONFIG_MAPS, &large).await.expect(413);
    assert_eq!(names(&jo.get(CONFIG_MAPS).await.expect(200).json), [""; 0]);
    let protobuf = jo.with("content-type", "application/vnd.kubernetes.protobuf");
    let answer = protobuf.send("POST", TASKS, "k8s\0").await.expect(415);
    assert!(answer.message().contains("application/json"), "{}", answer.message());
}

#[tokio::test(start_paused = true)]
async fn wrong_types_are_refused_with_their_fields() {
    let server = Server::new().await;
    let cases = [
        (json!({"command": "true"}), "spec.command"),
        (json!({"command": [1]}), "spec.command[0]"),
        (json!({"command": ["x"], "priority": "high"}), "spec.priority"),
        (
            json!({"command": ["x"], "resources": {"cpus": "many"}}),
            "spec.resources.cpus",
        ),
        (
            json!({"command": ["x"], "resources": {"gpus": "0.5"}}),
            "spec.resources.gpus",
        ),
        (json!({"command": ["x"], "desired": "Maybe"}), "spec.desired"),
        (json!({"priority": 1}), "spec.command"),
    ];
    for (spec, field) in cases {
        let mut body = task("t");
        body["spec"] = spec.clone();
        let answer = server.jo().post(TASKS, &body).await.expect(422);
        assert_eq!(answer.reason(), "Invalid");
        let causes = answer.json["details"]["causes"].as_array().unwrap();
        assert!(causes.iter().any(|cause| cause["field"] == field), "{spec}: {causes:?}");
    }
}

#[tokio::test(start_paused = true)]
async fn unknown_and_duplicate_fields_are_refused_or_warned_of() {
    let server = Server::new().await;
    let jo = server.jo();
    let body = |name: &str| {
        format!(
            r#"{{"metadata": {{"name": "{name}"}}, "spec": {{"resources": {{"cpus": 1}}, "command": ["x"], "comand": ["y"], "priority": 1, "priority": 2}}}}"#
        )
    };
    let answer = jo
        .send("POST", &format!("{TASKS}?fieldValidation=Strict"), body("a"))
        .await
        .expect(400);
    assert!(
        answer.message().contains("strict decoding error"),
        "{}",
        answer.message()
    );
    assert!(
        answer.message().contains("unknown field \"spec.comand\""),
        "{}",
        answer.message()
    );
    assert!(answer.message().contains("did you mean"), "{}", answer.message());
    assert!(
        answer.message().contains("duplicate field \"spec.priority\""),
        "{}",
        answer.message()
    );
    let answer = jo.send("POST", TASKS, body("b")).await.expect(201);
    let warnings: Vec<&str> = answer
        .headers
        .get_all("warning")
        .iter()
        .map(|value| value.to_str().unwrap())
        .collect();
    assert_eq!(warnings.len(), 2, "{warnings:?}");
    assert!(
        warnings.iter().all(|warning| warning.starts_with("299 - \"")),
        "{warnings:?}"
    );
    assert_eq!(answer.json["spec"].get("comand"), None, "unknown fields are not stored");
    assert_eq!(answer.json["spec"]["priority"], 2, "the last one counts");
    let answer = jo
        .send("POST", &format!("{TASKS}?fieldValidation=Ignore"), body("c"))
        .await
        .expect(201);
    assert_eq!(answer.headers.get("warning"), None);
    jo.send("POST", &format!("{TASKS}?fieldValidation=Sometimes"), body("d"))
        .await
        .expect(422);
    let answer = jo
        .merge(&format!("{TASKS}/b?fieldValidation=Strict"), &json!({"spec": {"x": 1}}))
        .await;
    answer.expect(422);
}

#[tokio::test(start_paused = true)]
async fn a_replacement_names_the_version_it_is_based_on() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    let created = jo.post(TASKS, &task("t")).await.expect(201).json;
    let mut without = created.clone();
    without["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    let answer = jo.put(&path, &without).await.expect(422);
    assert!(
        answer.message().contains("must be specified for an update"),
        "{}",
        answer.message()
    );
    let mut changed = created.clone();
    changed["metadata"]["labels"] = json!({"a": "b"});
    let updated = jo.put(&path, &changed).await.expect(200);
    assert_ne!(
        updated.json["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    assert_eq!(
        updated.json["metadata"]["generation"], 1,
        "labels are not what is wanted"
    );
    let answer = jo.put(&path, &changed).await.expect(409);
    assert_eq!(answer.reason(), "Conflict");
    assert!(
        answer
            .message()
            .contains("please apply your changes to the latest version"),
        "{}",
        answer.message()
    );
    let mut other_uid = updated.json.clone();
    other_uid["metadata"]["uid"] = json!("other");
    jo.put(&path, &other_uid).await.expect(409);
    let mut other_time = updated.json.clone();
    other_time["metadata"]["creationTimestamp"] = json!("2000-01-01T00:00:00Z");
    jo.put(&path, &other_time).await.expect(422);
    jo.put(&format!("{TASKS}/missing"), &without).await.expect(404);
    // Plain Kubernetes kinds may be replaced whatever they are.
    jo.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    jo.put(&format!("{CONFIG_MAPS}/c"), &config_map("c", "2"))
        .await
        .expect(200);
}

#[tokio::test(start_paused = true)]
async fn the_generation_counts_changes_of_the_spec() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    jo.post(TASKS, &task("t")).await.expect(201);
    let patched = jo
        .merge(&path, &json!({"spec": {"desired": "Killed"}}))
        .await
        .expect(200)
        .json;
    assert_eq!(patched["metadata"]["generation"], 2);
    let patched = jo
        .merge(
            &path,
            &json!({"metadata": {"generation": 9, "annotations": {"x": "y"}}}),
        )
        .await
        .expect(200)
        .json;
    assert_eq!(patched["metadata"]["generation"], 2);
    let patched = jo
        .merge(&path, &json!({"status": {"phase": "Killed"}}))
        .await
        .expect(200)
        .json;
    assert_eq!(patched["status"]["phase"], "Pending", "the status has its own path");
    let answer = jo
        .merge(&path, &json!({"spec": {"command": ["other"]}}))
        .await
        .expect(422);
    assert!(
        answer.message().contains("a task's spec is fixed"),
        "{}",
        answer.message()
    );
    jo.merge(&path, &json!({"spec": {"desired": "Run"}})).await.expect(422);
}

/// Trap 14.
#[tokio::test(start_paused = true)]
async fn a_write_that_changes_nothing_keeps_the_version() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    let created = jo.post(TASKS, &task("t")).await.expect(201).json;
    let before = server.store.revision().await.unwrap();
    let mut sent = task("t");
    sent["metadata"]["resourceVersion"] = created["metadata"]["resourceVersion"].clone();
    sent["metadata"]["managedFields"] = Value::Null;
    sent["metadata"]["labels"] = json!({});
    assert_eq!(jo.put(&path, &sent).await.expect(200).json, created);
    assert_eq!(
        jo.merge(&path, &json!({"spec": {"priority": 0}}))
            .await
            .expect(200)
            .json,
        created
    );
    assert_eq!(jo.merge(&path, &json!({})).await.expect(200).json, created);
    assert_eq!(server.store.revision().await.unwrap(), before);
}

/// Trap 13.
#[tokio::test(start_paused = true)]
async fn a_dry_run_does_everything_but_the_write() {
    let server = Server::new().await;
    let jo = server.jo();
    let dry = format!("{TASKS}?dryRun=All");
    let created = jo.post(&dry, &task("t")).await.expect(201).json;
    assert_eq!(created["metadata"].get("resourceVersion"), None);
    assert!(created["metadata"]["uid"].is_string());
    jo.post(&dry, &task("NO")).await.expect(422);
    jo.get(&format!("{TASKS}/t")).await.expect(404);
    let created = jo.post(TASKS, &task("t")).await.expect(201).json;
    jo.post(&dry, &task("t")).await.expect(409);
    let path = format!("{TASKS}/t?dryRun=All");
    let patched = jo
        .merge(&path, &json!({"spec": {"desired": "Killed"}}))
        .await
        .expect(200)
        .json;
    assert_eq!(patched["spec"]["desired"], "Killed");
    assert_eq!(
        patched["metadata"]["resourceVersion"],
        created["metadata"]["resourceVersion"]
    );
    jo.delete(&path).await.expect(200);
    jo.post(&format!("{TASKS}?dryRun=Some"), &task("u")).await.expect(422);
    assert_eq!(jo.get(&format!("{TASKS}/t")).await.expect(200).json, created);
}

/// Traps 6 and 12.
#[tokio::test(start_paused = true)]
async fn patches_of_unknown_types_are_refused() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    jo.post(TASKS, &task("t")).await.expect(201);
    let patch = json!([
        {"op": "test", "path": "/metadata/finalizers", "value": null},
        {"op": "add", "path": "/metadata/finalizers", "value": ["example.org/x"]},
    ]);
    let patched = jo.json_patch(&path, &patch).await.expect(200).json;
    assert_eq!(patched["metadata"]["finalizers"], json!(["example.org/x"]));
    jo.json_patch(&path, &patch).await.expect(422);
    for content_type in ["application/apply-patch+cbor", "application/yaml", "application/json"] {
        let client = jo.clone().with("content-type", content_type);
        let answer = client.send("PATCH", &path, "{}").await.expect(415);
        assert!(
            answer.message().contains("application/merge-patch+json"),
            "{}",
            answer.message()
        );
    }
    jo.merge(&path, &json!([])).await.expect(400);
    jo.merge(&format!("{TASKS}/missing"), &json!({})).await.expect(404);
    let stale = json!({"metadata": {"resourceVersion": "1", "labels": {"a": "b"}}});
    jo.merge(&path, &stale).await.expect(409);
}

#[tokio::test(start_paused = true)]
async fn deletion_waits_for_finalizers() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{CONFIG_MAPS}/c");
    let mut body = config_map("c", "1");
    body["metadata"]["finalizers"] = json!(["example.org/x", "example.org/y"]);
    jo.post(CONFIG_MAPS, &body).await.expect(201);
    let marked = jo.delete(&path).await.expect(200).json;
    assert_eq!(marked["kind"], "ConfigMap");
    assert_eq!(marked["metadata"]["deletionTimestamp"], "2026-01-01T00:00:00Z");
    server.env.advance(5);
    assert_eq!(
        jo.delete(&path).await.expect(200).json,
        marked,
        "deleting again changes nothing"
    );
    jo.merge(&path, &json!({"metadata": {"finalizers": ["example.org/z"]}}))
        .await
        .expect(422);
    let kept = jo
        .merge(&path, &json!({"metadata": {"deletionTimestamp": null}}))
        .await
        .expect(200)
        .json;
    assert_eq!(
        kept["metadata"]["deletionTimestamp"],
        marked["metadata"]["deletionTimestamp"]
    );
    jo.merge(&path, &json!({"metadata": {"finalizers": ["example.org/y"]}}))
        .await
        .expect(200);
    jo.get(&path).await.expect(200);
    jo.merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200);
    jo.get(&path).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn deletion_heeds_preconditions_and_answers_with_a_status() {
    let server = Server::new().await;
    let jo = server.jo();
    let path = format!("{TASKS}/t");
    let created = jo.post(TASKS, &task("t")).await.expect(201).json;
    for preconditions in [json!({"uid": "other"}), json!({"resourceVersion": "1"})] {
        let body = json!({"preconditions": preconditions}).to_string();
        jo.send("DELETE", &path, body).await.expect(409);
    }
    jo.delete(&format!("{path}?propagationPolicy=Sideways"))
        .await
        .expect(422);
    let body =
        json!({"preconditions": {"uid": created["metadata"]["uid"]}, "propagationPolicy": "Background"}).to_string();
    let status = jo.send("DELETE", &path, body).await.expect(200).json;
    assert_eq!(
        (&status["kind"], &status["status"]),
        (&json!("Status"), &json!("Success"))
    );
    assert_eq!(status["details"]["name"], "t");
    assert_eq!(status["details"]["uid"], created["metadata"]["uid"]);
    jo.delete(&path).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn collections_are_deleted_by_selection() {
    let server = Server::new().await;
    let jo = server.jo();
    for (name, label) in [("a", "x"), ("b", "y"), ("c", "x")] {
        let mut body = task(name);
        body["metadata"]["labels"] = json!({"l": label});
        jo.post(TASKS, &body).await.expect(201);
    }
    jo.delete(&format!("{TASKS}?labelSelector=l%3Dx")).await.expect(200);
    assert_eq!(names(&jo.get(TASKS).await.json), ["b"]);
}

#[tokio::test(start_paused = true)]
async fn metadata_has_limits() {
    let server = Server::new().await;
    let labels: serde_json::Map<String, Value> = (0..65).map(|index| (format!("l{index}"), json!("x"))).collect();
    let owner = json!({"apiVersion": "v1", "kind": "ConfigMap", "name": "o", "uid": "u", "controller": true});
    for metadata in [
        json!({"labels": labels}),
        json!({"labels": {"not a key": "x"}}),
        json!({"labels": {"a": "not a value!"}}),
        json!({"annotations": {"a": "x".repeat(257 << 10)}}),
        json!({"finalizers": ["not a name"]}),
        json!({"ownerReferences": [{"apiVersion": "v1", "kind": "ConfigMap", "name": "", "uid": "u"}]}),
        json!({"ownerReferences": [owner, owner]}),
        json!({"labels": {"a": 1}}),
    ] {
        let mut body = config_map("c", "1");
        body["metadata"]
            .as_object_mut()
            .unwrap()
            .extend(metadata.as_object().unwrap().clone());
        server.jo().post(CONFIG_MAPS, &body).await.expect(422);
    }
    let mut body = config_map("c", "1");
    body["metadata"]["ownerReferences"] = json!([owner]);
    server.jo().post(CONFIG_MAPS, &body).await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn namespaces_open_close_and_go_with_their_content() {
    let server = Server::new().await;
    let (admin, jo) = (server.admin(), server.jo());
    let there = "/apis/muster.dev/v1/namespaces/n/tasks";
    let answer = jo.post(there, &task("t")).await.expect(404);
    assert_eq!(answer.message(), "namespaces \"n\" not found");
    let namespace = admin
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}}))
        .await
        .expect(201)
        .json;
    assert_eq!(namespace["status"]["phase"], "Active");
    assert_eq!(namespace["metadata"]["labels"]["kubernetes.io/metadata.name"], "n");
    jo.post(there, &task("t")).await.expect(201);
    let mut held = config_map("c", "1");
    held["metadata"]["finalizers"] = json!(["example.org/x"]);
    jo.post("/api/v1/namespaces/n/configmaps", &held).await.expect(201);
    let marked = admin.delete("/api/v1/namespaces/n").await.expect(200).json;
    assert_eq!(marked["status"]["phase"], "Terminating");
    let answer = jo.post(there, &task("u")).await.expect(403);
    assert_eq!(answer.json["details"]["causes"][0]["reason"], "NamespaceTerminating");
    let mut watch = admin
        .watch("/api/v1/namespaces?watch=true&fieldSelector=metadata.name%3Dn")
        .await;
    assert!(watch.event().await.starts_with("ADDED n@"));
    // Emptying it is the controllers' work; they say when it is done.
    let finalize = "/api/v1/namespaces/n/finalize";
    let mut done = json!({"metadata": {"name": "n", "resourceVersion": "1"}, "spec": {"finalizers": []}});
    assert_eq!(admin.put(finalize, &done).await.expect(409).reason(), "Conflict");
    jo.put(finalize, &done).await.expect(403);
    done["metadata"]["resourceVersion"] = marked["metadata"]["resourceVersion"].clone();
    done["spec"]["finalizers"] = json!(["example.org/more"]);
    let kept = admin.put(finalize, &done).await.expect(200).json;
    assert_eq!(kept["spec"]["finalizers"], json!(["example.org/more"]));
    assert!(watch.event().await.starts_with("MODIFIED n@"));
    done["metadata"] = json!({});
    done["spec"]["finalizers"] = json!(["no name"]);
    admin.put(finalize, &done).await.expect(422);
    done["spec"] = json!({});
    admin.put(&format!("{finalize}?dryRun=All"), &done).await.expect(200);
    admin.get("/api/v1/namespaces/n").await.expect(200);
    admin.put(finalize, &done).await.expect(200);
    assert!(watch.event().await.starts_with("DELETED n@"));
    admin.get("/api/v1/namespaces/n").await.expect(404);
    admin.delete("/api/v1/namespaces/default").await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn a_deletion_says_what_becomes_of_what_is_owned() {
    let server = Server::new().await;
    let jo = server.jo();
    jo.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    let there = format!("{CONFIG_MAPS}/c");
    let how = |policy: &str| json!({"propagationPolicy": policy}).to_string();
    let marked = jo.send("DELETE", &there, how("Foreground")).await.expect(200).json;
    assert_eq!(marked["metadata"]["finalizers"], json!(["foregroundDeletion"]));
    assert!(marked["metadata"]["deletionTimestamp"].is_string(), "{marked}");
    let again = jo.delete(&there).await.expect(200).json;
    assert_eq!(again["metadata"], marked["metadata"], "nothing changes");
    let other = jo.send("DELETE", &there, how("Orphan")).await.expect(200).json;
    assert_eq!(other["metadata"]["finalizers"], json!(["orphan"]));
    assert_eq!(
        other["metadata"]["deletionTimestamp"],
        marked["metadata"]["deletionTimestamp"]
    );
    let gone = jo.send("DELETE", &there, how("Background")).await.expect(200).json;
    assert_eq!((&gone["kind"], &gone["status"]), (&json!("Status"), &json!("Success")));
    jo.get(&there).await.expect(404);
    // Events own nothing that could be waited for.
    let event = json!({"metadata": {"name": "e"}, "involvedObject": {"namespace": "default"}, "reason": "R"});
    let events = "/api/v1/namespaces/default/events";
    jo.post(events, &event).await.expect(201);
    jo.send("DELETE", &format!("{events}/e"), how("Foreground"))
        .await
        .expect(200);
    jo.get(&format!("{events}/e")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn events_are_two_views_of_one_store() {
    let server = Server::new().await;
    let jo = server.jo();
    let (new, core) = (
        "/apis/events.k8s.io/v1/namespaces/default/events",
        "/api/v1/namespaces/default/events",
    );
    let event = json!({
        "metadata": {"generateName": "e-"},
        "eventTime": "2026-01-01T00:00:00.000000Z",
        "reportingController": "c", "reportingInstance": "i", "action": "Bind", "reason": "Bound", "type": "Normal",
        "regarding": {"kind": "Task", "name": "t", "namespace": "default"}, "note": "hello",
    });
    let created = jo.post(new, &event).await.expect(201).json;
    assert_eq!(
        (&created["apiVersion"], &created["note"]),
        (&json!("events.k8s.io/v1"), &json!("hello"))
    );
    let name = created["metadata"]["name"].as_str().unwrap().to_owned();
    let path =
        format!("{core}?fieldSelector=involvedObject.name%3Dt,involvedObject.kind%3DTask,reportingComponent%3Dc");
    let list = jo.get(&path).await.expect(200).json;
    assert_eq!(
        (&list["kind"], names(&list)),
        (&json!("EventList"), vec![name.as_str()])
    );
    assert_eq!(list["items"][0]["message"], "hello");
    assert_eq!(list["items"][0]["apiVersion"], "v1");
    let series = json!({"series": {"count": 2, "lastObservedTime": "2026-01-01T00:00:05.000000Z"}});
    let patched = jo.merge(&format!("{new}/{name}"), &series).await.expect(200).json;
    assert_eq!(patched["regarding"]["name"], "t");
    let read = jo.get(&format!("{core}/{name}")).await.expect(200).json;
    assert_eq!(read["series"]["count"], 2);
    assert_eq!(
        names(
            &jo.get(&format!("{new}?fieldSelector=regarding.name%3Dother"))
                .await
                .expect(200)
                .json
        ),
        [""; 0]
    );
    jo.get(&format!("{core}?fieldSelector=nothing%3Dx")).await.expect(400);
    // An hour after they were last seen, they go.
    server.env.advance(3600);
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    jo.get(&format!("{core}/{name}")).await.expect(200);
    server.env.advance(6);
    tokio::time::sleep(std::time::Duration::from_secs(61)).await;
    jo.get(&format!("{core}/{name}")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn who_is_not_known_or_not_allowed_changes_nothing() {
    let server = Server::new().await;
    let anonymous = server.anonymous();
    anonymous.get(TASKS).await.expect(401);
    anonymous.get("/apis/none.dev/v1/things").await.expect(401);
    anonymous.post(TASKS, &task("t")).await.expect(401);
    anonymous.get("/metrics").await.expect(401);
    for path in ["/version", "/livez", "/readyz", "/readyz?verbose", "/readyz/store"] {
        anonymous.get(path).await.expect(200);
    }
    anonymous
        .clone()
        .with("authorization", "Bearer wrong")
        .get(TASKS)
        .await
        .expect(401);
    anonymous.with("authorization", "Basic x").get(TASKS).await.expect(401);
    let answer = server.agent("a1").post(TASKS, &task("t")).await.expect(403);
    assert_eq!(answer.reason(), "Forbidden");
    server
        .jo()
        .post(AGENTS, &json!({"metadata": {"name": "a1"}, "spec": {}}))
        .await
        .expect(403);
    server.jo().get("/apis/none.dev/v1/things").await.expect(404);
    server
        .jo()
        .get("/apis/muster.dev/v1/namespaces/default/agents")
        .await
        .expect(404);
    server.jo().send("PUT", TASKS, "{}").await.expect(405);
    let empty = server.admin().get("/apis/muster.dev/v1/tasks").await.expect(200).json;
    assert_eq!(names(&empty), [""; 0]);
    assert!(empty["items"].is_array());
}

#[tokio::test(start_paused = true)]
async fn what_happens_is_counted() {
    let server = Server::new().await;
    server.jo().post(TASKS, &task("t")).await.expect(201);
    let answer = server.admin().get("/metrics").await.expect(200);
    let text = String::from_utf8(answer.bytes.to_vec()).unwrap();
    for line in [
        "muster_requests_total{verb=\"POST\",resource=\"tasks\",code=\"201\"} 1",
        "muster_objects{resource=\"tasks.muster.dev\"} 1",
    ] {
        assert!(text.contains(line), "{line}\n{text}");
    }
}

#[tokio::test(start_paused = true)]
async fn what_becomes_of_an_unreachable_task_is_said_in_full_or_refused() {
    let server = Server::new().await;
    let with = |unreachable: Value| {
        let mut task = task("t");
        task["spec"]["unreachable"] = unreachable;
        task
    };
    for (unreachable, field) in [
        (json!({"policy": "Wait", "after": "1m"}), "after"),
        (json!({"policy": "ReplaceAfter"}), "after"),
        (json!({"policy": "ReplaceAfter", "after": "9s"}), "after"),
        (json!({"policy": "SelfFence", "after": "19s"}), "after"),
        (
            json!({"policy": "SelfFence", "after": "1m", "keep": "Original"}),
            "keep",
        ),
        (json!({"policy": "Sometimes"}), "policy"),
    ] {
        let answer = server.jo().post(TASKS, &with(unreachable)).await.expect(422);
        assert_eq!(
            answer.json["details"]["causes"][0]["field"],
            format!("spec.unreachable.{field}")
        );
    }
    let fine = json!({"policy": "ReplaceAfter", "after": "10s", "keep": "Original"});
    let task = server.jo().post(TASKS, &with(fine.clone())).await.expect(201).json;
    assert_eq!(task["spec"]["unreachable"], fine);
}
