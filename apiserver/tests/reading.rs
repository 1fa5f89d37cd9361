//! What is promised of lists and watches.

mod common;

use std::sync::Arc;
use std::time::Duration;

use common::*;
use muster_store::{MemoryStore, Store};
use serde_json::{Value, json};

async fn make(server: &Server, names: &[&str]) {
    for name in names {
        server.jo().post(TASKS, &task(name)).await.expect(201);
    }
}

#[tokio::test(start_paused = true)]
async fn pages_show_the_state_of_the_first_one() {
    let server = Server::new().await;
    let jo = server.jo();
    make(&server, &["a", "b", "c", "d", "e"]).await;
    let before = jo.get(TASKS).await.expect(200).json;
    let first = jo.get(&format!("{TASKS}?limit=2")).await.expect(200).json;
    assert_eq!(
        (names(&first), &first["metadata"]["remainingItemCount"]),
        (vec!["a", "b"], &json!(3))
    );
    // What happens between the pages is not in them.
    jo.delete(&format!("{TASKS}/c")).await.expect(200);
    jo.merge(&format!("{TASKS}/d"), &json!({"spec": {"desired": "Killed"}}))
        .await
        .expect(200);
    make(&server, &["cc", "f"]).await;
    let mut pages = vec![first];
    while let Some(token) = pages.last().unwrap()["metadata"]["continue"]
        .as_str()
        .map(str::to_owned)
    {
        let page = jo
            .get(&format!("{TASKS}?limit=2&continue={token}"))
            .await
            .expect(200)
            .json;
        assert_eq!(
            page["metadata"]["resourceVersion"],
            pages[0]["metadata"]["resourceVersion"]
        );
        pages.push(page);
    }
    assert_eq!(pages.len(), 3);
    let items: Vec<Value> = pages
        .iter()
        .flat_map(|page| page["items"].as_array().unwrap().clone())
        .collect();
    assert_eq!(Value::Array(items), before["items"]);
    let version = before["metadata"]["resourceVersion"].as_str().unwrap();
    let exact = jo
        .get(&format!("{TASKS}?resourceVersionMatch=Exact&resourceVersion={version}"))
        .await
        .expect(200)
        .json;
    assert_eq!(exact, before);
    jo.get(&format!("{TASKS}?continue=nonsense")).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn a_token_that_is_too_old_comes_with_one_that_goes_on() {
    let server = Server::new().await;
    let jo = server.jo();
    make(&server, &["a", "b", "c"]).await;
    let old = server.state.hub.revision() - 1;
    let page = jo.get(&format!("{TASKS}?limit=1")).await.expect(200).json;
    let token = page["metadata"]["continue"].as_str().unwrap().to_owned();
    // A server that starts anew has no past.
    let server = Server::on(server.store.clone()).await;
    make(&server, &["d"]).await;
    let jo = server.jo();
    let page = jo
        .get(&format!("{TASKS}?limit=1&continue={token}"))
        .await
        .expect(200)
        .json;
    assert_eq!(names(&page), ["b"], "as of the revision that the server started with");
    let stale = base64_token(old, "default/a");
    let answer = jo.get(&format!("{TASKS}?limit=1&continue={stale}")).await.expect(410);
    assert_eq!(answer.reason(), "Expired");
    let token = answer.json["metadata"]["continue"].as_str().unwrap();
    let page = jo
        .get(&format!("{TASKS}?limit=5&continue={token}"))
        .await
        .expect(200)
        .json;
    assert_eq!(names(&page), ["b", "c", "d"]);
    let exact = format!("{TASKS}?resourceVersionMatch=Exact&resourceVersion={old}");
    jo.get(&exact).await.expect(410);
}

fn base64_token(revision: u64, start: &str) -> String {
    use base64::Engine;
    let token = json!({"v": "meta.k8s.io/v1", "rv": revision, "start": start}).to_string();
    base64::engine::general_purpose::URL_SAFE_NO_PAD.encode(token)
}

#[tokio::test(start_paused = true)]
async fn a_list_is_no_older_than_was_asked_for() {
    let server = Server::new().await;
    make(&server, &["a"]).await;
    let newest = server.store.revision().await.unwrap();
    let jo = server.jo();
    jo.get(&format!("{TASKS}?resourceVersion={newest}")).await.expect(200);
    jo.get(&format!("{TASKS}?resourceVersion=0")).await.expect(200);
    for path in [TASKS.to_owned(), format!("{TASKS}/a")] {
        let answer = jo
            .get(&format!("{path}?resourceVersion={}", newest + 1))
            .await
            .expect(504);
        assert_eq!(answer.json["details"]["causes"][0]["reason"], "ResourceVersionTooLarge");
        assert_eq!(answer.headers["retry-after"], "1");
    }
}

#[tokio::test(start_paused = true)]
async fn selectors_select() {
    let server = Server::new().await;
    let jo = server.jo();
    for (name, tier, framework) in [("a", "x", "default"), ("b", "y", "other"), ("c", "x", "other")] {
        let mut body = task(name);
        body["metadata"]["labels"] = json!({"tier": tier});
        body["spec"]["framework"] = json!(framework);
        jo.post(TASKS, &body).await.expect(201);
    }
    for (query, expect) in [
        ("labelSelector=tier%3Dx", vec!["a", "c"]),
        ("labelSelector=tier+in+%28y%29", vec!["b"]),
        ("labelSelector=tier!%3Dx", vec!["b"]),
        ("labelSelector=!tier", vec![]),
        ("fieldSelector=metadata.name%3Db", vec!["b"]),
        ("fieldSelector=metadata.namespace%3Dother", vec![]),
        ("fieldSelector=spec.framework%3Dother", vec!["b", "c"]),
        ("fieldSelector=spec.framework%3Dother,metadata.name!%3Db", vec!["c"]),
        (
            "fieldSelector=status.phase%3DPending&labelSelector=tier%3Dx&limit=1",
            vec!["a"],
        ),
    ] {
        let list = jo.get(&format!("{TASKS}?{query}")).await.expect(200).json;
        assert_eq!(names(&list), expect, "{query}");
        assert_eq!(list["metadata"].get("remainingItemCount"), None);
    }
    jo.get(&format!("{TASKS}?fieldSelector=spec.command%3Dx"))
        .await
        .expect(400);
    jo.get(&format!("{TASKS}?labelSelector=a+b")).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn forms_follow_what_the_client_accepts() {
    let server = Server::new().await;
    make(&server, &["a"]).await;
    let partial = server.jo().with(
        "accept",
        "application/json;as=PartialObjectMetadataList;g=meta.k8s.io;v=v1",
    );
    let list = partial.get(TASKS).await.expect(200).json;
    assert_eq!(
        (&list["kind"], &list["apiVersion"]),
        (&json!("PartialObjectMetadataList"), &json!("meta.k8s.io/v1"))
    );
    assert_eq!(list["items"][0]["kind"], "PartialObjectMetadata");
    assert_eq!(list["items"][0].get("spec"), None);
    assert!(list["items"][0]["metadata"]["resourceVersion"].is_string());
    let one = partial.get(&format!("{TASKS}/a")).await.expect(200).json;
    assert_eq!(one, list["items"][0]);
    let table = server.jo().with(
        "accept",
        "application/json;as=Table;v=v1;g=meta.k8s.io,application/json",
    );
    let list = table.get(TASKS).await.expect(200).json;
    assert_eq!(list["kind"], "Table");
    assert_eq!(list["rows"][0]["cells"][0], "a");
    assert_eq!(list["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let none = table
        .get(&format!("{TASKS}/a?includeObject=None"))
        .await
        .expect(200)
        .json;
    assert_eq!(none["rows"][0].get("object"), None);
    let mut watch = table
        .watch(&format!("{TASKS}?watch=1&allowWatchBookmarks=true&timeoutSeconds=100"))
        .await;
    let event = watch.next().await.unwrap();
    assert_eq!(
        (&event["type"], &event["object"]["kind"]),
        (&json!("ADDED"), &json!("Table"))
    );
    let bookmark = watch.next().await.unwrap();
    assert_eq!(
        (&bookmark["type"], &bookmark["object"]["kind"]),
        (&json!("BOOKMARK"), &json!("Table"))
    );
    assert!(bookmark["object"]["metadata"]["resourceVersion"].is_string());
    server.jo().with("accept", "text/html").get(TASKS).await.expect(406);
    server
        .jo()
        .with("accept", "application/vnd.kubernetes.protobuf,application/json")
        .get(TASKS)
        .await
        .expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_watch_begins_with_the_state_and_goes_on() {
    let server = Server::new().await;
    make(&server, &["a", "b"]).await;
    let list = server.jo().get(TASKS).await.json;
    let mut from_state = server.jo().watch(&format!("{TASKS}?watch=true")).await;
    let version = list["metadata"]["resourceVersion"].as_str().unwrap();
    let mut from_version = server
        .jo()
        .watch(&format!("{TASKS}?watch=1&resourceVersion={version}"))
        .await;
    for expected in versions(&list) {
        assert_eq!(from_state.event().await, format!("ADDED {expected}"));
    }
    let made = server.jo().post(TASKS, &task("c")).await.json;
    let changed = server
        .jo()
        .merge(&format!("{TASKS}/c"), &json!({"metadata": {"labels": {"x": "y"}}}))
        .await
        .json;
    server.jo().delete(&format!("{TASKS}/c")).await.expect(200);
    server
        .jo()
        .post(CONFIG_MAPS, &config_map("other", "1"))
        .await
        .expect(201);
    for watch in [&mut from_state, &mut from_version] {
        let added = watch.next().await.unwrap();
        assert_eq!((&added["type"], &added["object"]), (&json!("ADDED"), &made));
        let modified = watch.next().await.unwrap();
        assert_eq!((&modified["type"], &modified["object"]), (&json!("MODIFIED"), &changed));
        let deleted = watch.next().await.unwrap();
        assert_eq!(deleted["type"], "DELETED");
        let version = |object: &Value| {
            object["metadata"]["resourceVersion"]
                .as_str()
                .unwrap()
                .parse::<u64>()
                .unwrap()
        };
        assert_eq!(
            version(&deleted["object"]),
            version(&changed) + 1,
            "the version of the deletion"
        );
        assert_eq!(deleted["object"]["spec"], changed["spec"]);
        assert_eq!(watch.ready().await, [] as [Value; 0]);
    }
    let mut single = server.jo().watch(&format!("{TASKS}/a?watch=true")).await;
    assert!(single.event().await.starts_with("ADDED a@"));
}

/// Trap 5.
#[tokio::test(start_paused = true)]
async fn a_watch_that_begins_too_far_back_is_told_so_inside_the_stream() {
    let server = Server::new().await;
    make(&server, &["a"]).await;
    let server = Server::on(server.store.clone()).await;
    let mut watch = server
        .jo()
        .watch(&format!("{TASKS}?watch=true&resourceVersion=1"))
        .await;
    let error = watch.next().await.unwrap();
    assert_eq!(error["type"], "ERROR");
    assert_eq!(
        (&error["object"]["kind"], &error["object"]["code"]),
        (&json!("Status"), &json!(410))
    );
    assert_eq!(error["object"]["reason"], "Expired");
    assert!(
        error["object"]["message"]
            .as_str()
            .unwrap()
            .starts_with("too old resource version: 1")
    );
    assert_eq!(watch.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn a_watch_from_the_future_waits_for_it() {
    let server = Server::new().await;
    let newest = server.store.revision().await.unwrap();
    let mut watch = server
        .jo()
        .watch(&format!("{TASKS}?watch=true&resourceVersion={}", newest + 2))
        .await;
    make(&server, &["a", "b", "c"]).await;
    assert_eq!(watch.event().await, format!("ADDED c@{}", newest + 3));
    let path = format!(
        "{TASKS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&resourceVersion={}",
        newest + 9
    );
    let error = server.jo().watch(&path).await.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(504))
    );
}

#[tokio::test(start_paused = true)]
async fn what_leaves_the_selection_is_deleted_and_what_enters_is_added() {
    let server = Server::new().await;
    make(&server, &["a"]).await;
    let mut watch = server
        .jo()
        .watch(&format!("{TASKS}?watch=true&labelSelector=on%3Dyes"))
        .await;
    let path = format!("{TASKS}/a");
    let set = async |value: Value| {
        let answer = server
            .jo()
            .merge(&path, &json!({"metadata": {"labels": value}}))
            .await
            .expect(200);
        answer.version().to_owned()
    };
    let entered = set(json!({"on": "yes"})).await;
    assert_eq!(watch.event().await, format!("ADDED a@{entered}"));
    let stayed = set(json!({"other": "x"})).await;
    assert_eq!(watch.event().await, format!("MODIFIED a@{stayed}"));
    let left = set(json!({"on": "no"})).await;
    let event = watch.next().await.unwrap();
    assert_eq!(brief(&event), format!("DELETED a@{left}"));
    assert_eq!(
        event["object"]["metadata"]["labels"]["on"], "yes",
        "as it was when it was last selected"
    );
    set(json!({"third": "x"})).await;
    server.jo().delete(&path).await.expect(200);
    assert_eq!(watch.ready().await, [] as [Value; 0]);
}

#[tokio::test(start_paused = true)]
async fn the_end_of_the_state_is_marked_for_who_asks() {
    let server = Server::new().await;
    make(&server, &["a"]).await;
    let newest = server.store.revision().await.unwrap();
    let path = format!(
        "{TASKS}?watch=true&sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true&resourceVersion="
    );
    let mut watch = server.jo().watch(&path).await;
    assert!(watch.event().await.starts_with("ADDED a@"));
    let bookmark = watch.next().await.unwrap();
    assert_eq!(bookmark["type"], "BOOKMARK");
    assert_eq!(bookmark["object"]["kind"], "Task");
    assert_eq!(bookmark["object"]["apiVersion"], "muster.dev/v1");
    assert_eq!(
        bookmark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"],
        "true"
    );
    assert_eq!(bookmark["object"]["metadata"]["resourceVersion"], newest.to_string());
    server
        .jo()
        .get(&format!("{TASKS}?watch=true&sendInitialEvents=true"))
        .await
        .expect(422);
    server
        .jo()
        .get(&format!("{TASKS}?watch=true&resourceVersionMatch=NotOlderThan"))
        .await
        .expect(422);
    let path = format!("{TASKS}?watch=true&sendInitialEvents=false&resourceVersionMatch=NotOlderThan");
    let mut watch = server.jo().watch(&path).await;
    make(&server, &["b"]).await;
    assert!(watch.event().await.starts_with("ADDED b@"), "from now on");
}

#[tokio::test(start_paused = true)]
async fn bookmarks_come_every_minute_and_before_the_end() {
    let server = Server::new().await;
    let began = tokio::time::Instant::now();
    let mut watch = server
        .jo()
        .watch(&format!(
            "{TASKS}?watch=true&allowWatchBookmarks=true&timeoutSeconds=130"
        ))
        .await;
    // Other kinds move the store on; a bookmark says that this one is as far.
    server.jo().post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    let newest = server.store.revision().await.unwrap();
    for seconds in [60, 120, 128] {
        assert_eq!(watch.event().await, format!("BOOKMARK @{newest}"));
        assert_eq!(began.elapsed().as_secs(), seconds);
    }
    assert_eq!(watch.next().await, None);
    assert_eq!(began.elapsed().as_secs(), 130);
    let mut unasked = server
        .jo()
        .watch(&format!("{TASKS}?watch=true&timeoutSeconds=130"))
        .await;
    assert_eq!(unasked.next().await, None, "nothing but the end");
}

#[tokio::test(start_paused = true)]
async fn a_watch_ends_with_the_server() {
    let server = Server::new().await;
    let mut watch = server.jo().watch(&format!("{TASKS}?watch=true")).await;
    let mut ordered = server.jo().watch("/muster/v1/watch?resources=tasks.muster.dev").await;
    ordered.next().await.unwrap();
    server.state.stop();
    assert_eq!(watch.next().await, None);
    assert_eq!(ordered.next().await, None);
}

#[tokio::test(start_paused = true)]
async fn the_ordered_watch_gives_whole_revisions() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    make(server, &["a"]).await;
    let mut watch = server
        .jo()
        .watch("/muster/v1/watch?resources=tasks.muster.dev,offers.muster.dev")
        .await;
    let snapshot = watch.next().await.unwrap();
    assert_eq!(
        (&snapshot["type"], &snapshot["more"]),
        (&json!("SNAPSHOT"), &json!(false))
    );
    assert_eq!(snapshot["changes"][0]["resource"], "tasks.muster.dev");
    assert_eq!(snapshot["changes"][0]["type"], "ADDED");
    assert_eq!(snapshot["revision"], server.store.revision().await.unwrap());
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    let result = cluster.accept("o", &json!({"bind": ["a"]})).await.expect(201).json;
    let batch = watch.next().await.unwrap();
    assert_eq!(
        (&batch["type"], &batch["changes"][0]["type"]),
        (&json!("BATCH"), &json!("ADDED"))
    );
    let batch = watch.next().await.unwrap();
    assert_eq!(
        batch["revision"].to_string(),
        result["resourceVersion"].as_str().unwrap()
    );
    let changes: Vec<String> = batch["changes"]
        .as_array()
        .unwrap()
        .iter()
        .map(|change| {
            format!(
                "{} {}",
                change["type"].as_str().unwrap(),
                change["resource"].as_str().unwrap()
            )
        })
        .collect();
    assert_eq!(
        changes,
        ["DELETED offers.muster.dev", "MODIFIED tasks.muster.dev"],
        "at once"
    );
    // A revision that touches none of the kinds is told at once; silence, after five seconds.
    server.jo().post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    let newest = server.store.revision().await.unwrap();
    assert_eq!(
        watch.next().await.unwrap(),
        json!({"type": "PROGRESS", "revision": newest})
    );
    let began = tokio::time::Instant::now();
    assert_eq!(
        watch.next().await.unwrap(),
        json!({"type": "PROGRESS", "revision": newest})
    );
    assert_eq!(began.elapsed(), Duration::from_secs(5));
    // It resumes, or says that it cannot.
    let path = format!(
        "/muster/v1/watch?resources=tasks.muster.dev&resourceVersion={}",
        newest - 2
    );
    let mut resumed = server.jo().watch(&path).await;
    assert_eq!(
        resumed.next().await.unwrap()["changes"][0]["object"]["metadata"]["name"],
        "a"
    );
    let mut old = server
        .jo()
        .watch("/muster/v1/watch?resources=tasks.muster.dev&resourceVersion=0")
        .await;
    let error = old.next().await.unwrap();
    assert_eq!(
        (&error["type"], &error["object"]["code"]),
        (&json!("ERROR"), &json!(410))
    );
    assert_eq!(old.next().await, None);
    server.jo().get("/muster/v1/watch").await.expect(400);
    server.jo().get("/muster/v1/watch?resources=things").await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn a_large_snapshot_comes_in_parts() {
    let server = Server::new().await;
    for index in 0..1001 {
        server
            .jo()
            .post(CONFIG_MAPS, &config_map(&format!("c{index}"), "1"))
            .await
            .expect(201);
    }
    let mut watch = server.jo().watch("/muster/v1/watch?resources=configmaps").await;
    let (first, second) = (watch.next().await.unwrap(), watch.next().await.unwrap());
    let count = |part: &Value| part["changes"].as_array().unwrap().len();
    assert_eq!((count(&first), &first["more"]), (1000, &json!(true)));
    assert_eq!((count(&second), &second["more"]), (1, &json!(false)));
    let list = server.jo().get(CONFIG_MAPS).await.expect(200).json;
    assert_eq!(list["items"].as_array().unwrap().len(), 1001, "longer than one chunk");
}

#[tokio::test(start_paused = true)]
async fn reasons_come_from_the_last_report() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    make(server, &["a"]).await;
    let jo = server.jo();
    jo.get("/muster/v1/why/default/none").await.expect(404);
    let answer = jo.get("/muster/v1/why/default/a").await.expect(503);
    assert_eq!(answer.headers["retry-after"], "1");
    jo.get("/muster/v1/plan").await.expect(503);
    let report =
        json!({"revision": 7, "tasks": [{"namespace": "default", "task": "a", "role": "default", "position": 1}]});
    jo.put("/muster/v1/plan", &report).await.expect(403);
    server.controllers().put("/muster/v1/plan", &report).await.expect(428);
    let stale = server.controllers().fenced("muster-system/muster-controllers", "1");
    stale.put("/muster/v1/plan", &report).await.expect(412);
    cluster.controllers().put("/muster/v1/plan", &report).await.expect(200);
    assert_eq!(jo.get("/muster/v1/why/default/a").await.expect(200).json["position"], 1);
    assert_eq!(jo.get("/muster/v1/plan").await.expect(200).json["revision"], 7);
    make(server, &["b"]).await;
    jo.get("/muster/v1/why/default/b").await.expect(503);
}

#[tokio::test(start_paused = true)]
async fn every_answer_names_the_cluster_which_a_store_never_changes() {
    let cluster_of = |answer: &Answer| answer.headers["muster-cluster"].to_str().unwrap().to_owned();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let first = Server::on(store.clone()).await;
    let uid = cluster_of(&first.jo().get(TASKS).await.expect(200));
    assert!(uuid::Uuid::parse_str(&uid).is_ok(), "{uid}");
    assert_eq!(cluster_of(&first.anonymous().get(TASKS).await.expect(401)), uid);
    assert_eq!(
        cluster_of(&first.jo().get(&format!("{TASKS}/none")).await.expect(404)),
        uid
    );
    first.env.advance(3600);
    let again = Server::on(store).await;
    assert_eq!(cluster_of(&again.jo().get("/version").await.expect(200)), uid);
    let key = muster_apiserver::keys::cluster();
    let entry = again.store.get(&key).await.unwrap().expect("it is kept");
    assert_eq!(entry.value, uid.as_bytes());
}
