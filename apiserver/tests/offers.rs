//! What is promised of offers: nothing is given out twice, and an accepted offer is a bound task.

mod common;

use common::*;
use serde_json::{Value, json};

fn gpu_task(name: &str, gpus: u32) -> Value {
    let mut task = task(name);
    task["spec"]["resources"]["gpus"] = json!(gpus);
    task
}

#[tokio::test(start_paused = true)]
async fn an_accepted_offer_becomes_bound_tasks_at_once() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    jo.post(TASKS, &gpu_task("pending", 1)).await.expect(201);
    let devices = ["GPU-a1-2", "GPU-a1-0", "GPU-a1-1"];
    cluster
        .offer(&[cluster.an_offer("o", 2, &devices, "31000-31004")])
        .await
        .expect(201);
    let open = jo.get(&format!("{OFFERS}/o")).await.expect(200).json;
    assert_eq!(open["status"]["phase"], "Open");
    let mut launched = gpu_task("launched", 1);
    launched["spec"]["resources"]["ports"] = json!(2);
    let result = cluster
        .accept("o", &json!({"launch": [launched], "bind": ["pending"]}))
        .await
        .expect(201)
        .json;
    assert_eq!(result["tasks"], json!(["launched", "pending"]));
    jo.get(&format!("{OFFERS}/o")).await.expect(404);
    let launched = cluster.get_task("launched").await;
    let status = &launched["status"];
    assert_eq!(
        (&status["phase"], &status["reason"]),
        (&json!("Staging"), &json!("OfferAccepted"))
    );
    assert_eq!((&status["agent"], &status["offer"]), (&json!("a1"), &json!("o")));
    assert_eq!(status["devices"], json!(["GPU-a1-0"]), "lowest first");
    assert_eq!(status["ports"], json!(["31000-31001"]));
    assert_eq!(launched["metadata"]["finalizers"], json!(["muster.dev/agent"]));
    assert_eq!(launched["metadata"]["resourceVersion"], result["resourceVersion"]);
    let pending = cluster.get_task("pending").await;
    assert_eq!(pending["status"]["devices"], json!(["GPU-a1-1"]));
    assert_eq!(
        pending["metadata"]["resourceVersion"], result["resourceVersion"],
        "one transaction"
    );
    let types: Vec<&Value> = pending["status"]["conditions"]
        .as_array()
        .unwrap()
        .iter()
        .map(|c| &c["type"])
        .collect();
    assert_eq!(types, ["Ready", "Reconciling"]);
}

#[tokio::test(start_paused = true)]
async fn an_offer_that_cannot_be_accepted_says_why() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    let one = json!({"launch": [task("t")]});
    assert_eq!(cluster.accept("none", &one).await.expect(404).reason(), "NotFound");
    // Declined.
    cluster
        .offer(&[cluster.an_offer("declined", 1, &[], "")])
        .await
        .expect(201);
    jo.post(&format!("{OFFERS}/declined/decline"), &json!({"refuse": "10s"}))
        .await
        .expect(200);
    assert_eq!(cluster.accept("declined", &one).await.expect(409).reason(), "Conflict");
    // Already accepted.
    cluster
        .offer(&[cluster.an_offer("taken", 1, &[], "")])
        .await
        .expect(201);
    cluster
        .accept("taken", &json!({"launch": [task("first")]}))
        .await
        .expect(201);
    cluster.accept("taken", &one).await.expect(404);
    // Expired.
    cluster
        .offer(&[cluster.an_offer("expired", 1, &[], "")])
        .await
        .expect(201);
    cluster.server.env.advance(30);
    let answer = cluster.accept("expired", &one).await.expect(410);
    assert_eq!(answer.reason(), "Expired");
    jo.post(&format!("{OFFERS}/expired/decline"), &json!({}))
        .await
        .expect(410);
    // Of an agent that is not there now.
    cluster.offer(&[cluster.an_offer("gone", 1, &[], "")]).await.expect(201);
    cluster
        .agent()
        .delete(&format!("{LEASES}/muster-agents/leases/a1"))
        .await
        .expect(200);
    let answer = cluster.accept("gone", &one).await.expect(409);
    assert!(answer.message().contains("cannot be reached"), "{}", answer.message());
    jo.get(&format!("{TASKS}/t")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn an_offer_of_a_removed_agent_cannot_be_accepted() {
    let cluster = Cluster::new().await;
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    // Its session goes on.
    let admin = cluster.server.admin();
    admin.delete(&format!("{AGENTS}/a1")).await.expect(200);
    let answer = cluster.accept("o", &json!({"launch": [task("t")]})).await.expect(409);
    assert!(answer.message().contains("was removed"), "{}", answer.message());
    cluster.server.jo().get(&format!("{TASKS}/t")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_foreign_offer_is_not_accepted() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    cluster
        .offer(&[cluster.an_offer("o", 2, &["GPU-a1-0"], "")])
        .await
        .expect(201);
    // Another framework or another role.
    for (field, value) in [("framework", "other"), ("role", "other")] {
        let mut task = task("t");
        task["spec"][field] = json!(value);
        let answer = cluster.accept("o", &json!({"launch": [task]})).await.expect(422);
        assert!(
            answer.message().contains(&format!("the task is of the {field} other")),
            "{}",
            answer.message()
        );
        assert_eq!(answer.json["details"]["causes"][0]["field"], "launch[0]");
    }
    // An agent accepts nothing.
    let body = json!({"launch": [task("t")]});
    cluster
        .server
        .agent("a1")
        .post(&format!("{OFFERS}/o/accept"), &body)
        .await
        .expect(403);
    cluster
        .server
        .anonymous()
        .post(&format!("{OFFERS}/o/accept"), &body)
        .await
        .expect(401);
    // Constraints and models are held against the offer.
    let mut elsewhere = task("t");
    elsewhere["spec"]["constraints"] = json!([{"attribute": "zone", "operator": "In", "values": ["b"]}]);
    let answer = cluster.accept("o", &json!({"launch": [elsewhere]})).await.expect(422);
    assert!(answer.message().contains("the attribute zone"), "{}", answer.message());
    let mut model = gpu_task("t", 1);
    model["spec"]["gpu"] = json!({"model": "B200"});
    let answer = cluster.accept("o", &json!({"launch": [model]})).await.expect(422);
    assert!(answer.message().contains("needs 1 gpus, has 0"), "{}", answer.message());
    // Offers of two agents or roles don't go together.
    join(&cluster.server, "a2").await;
    let mut second = cluster.an_offer("p", 1, &[], "");
    second["spec"]["agent"] = json!("a2");
    let seen = cluster.server.state.hub.revision();
    let body = json!({"seenRevision": seen, "create": [second]});
    cluster
        .controllers()
        .post(&format!("{AGENTS}/a2/offers"), &body)
        .await
        .expect(201);
    let answer = cluster
        .accept("o", &json!({"offers": ["p"], "launch": [task("t")]}))
        .await
        .expect(422);
    assert!(
        answer.message().contains("must have the same agent"),
        "{}",
        answer.message()
    );
    jo.get(&format!("{TASKS}/t")).await.expect(404);
    jo.get(&format!("{OFFERS}/o")).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn more_than_was_offered_is_refused_with_the_numbers() {
    let cluster = Cluster::new().await;
    cluster
        .offer(&[cluster.an_offer("o", 1, &["GPU-a1-0"], "31000")])
        .await
        .expect(201);
    let cases = [
        (json!({"cpus": 2}), "needs 2 cpus, has 1"),
        (json!({"cpus": 1, "memory": "2Gi"}), "needs 2Gi memory, has 1Gi"),
        (json!({"cpus": 1, "gpus": 2}), "needs 2 gpus, has 1"),
        (json!({"cpus": 1, "ports": 2}), "needs 2 ports, has 1"),
        (json!({"cpus": 1, "ports": ["31005"]}), "needs other ports than 31000"),
    ];
    for (resources, expect) in cases {
        let mut task = task("t");
        task["spec"]["resources"] = resources;
        let answer = cluster.accept("o", &json!({"launch": [task]})).await.expect(422);
        assert!(answer.message().contains(expect), "{expect}: {}", answer.message());
    }
    // Together they are too much, and then none of them is bound.
    let both = json!({"launch": [task("x"), task("y"), task("z")]});
    let answer = cluster.accept("o", &both).await.expect(422);
    assert_eq!(answer.json["details"]["causes"][0]["field"], "launch[2]");
    assert!(
        answer.message().contains("needs 0.5 cpus, has 0"),
        "{}",
        answer.message()
    );
    assert_eq!(names(&cluster.server.jo().get(TASKS).await.json), [""; 0]);
}

#[tokio::test(start_paused = true)]
async fn only_pending_tasks_are_bound() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    jo.post(TASKS, &task("bound")).await.expect(201);
    jo.post(TASKS, &task("unwanted")).await.expect(201);
    jo.merge(&format!("{TASKS}/unwanted"), &json!({"spec": {"desired": "Killed"}}))
        .await
        .expect(200);
    cluster
        .offer(&[cluster.an_offer("o", 1, &[], ""), cluster.an_offer("p", 1, &[], "")])
        .await
        .expect(201);
    cluster.accept("o", &json!({"bind": ["bound"]})).await.expect(201);
    for (body, expect) in [
        (
            json!({"bind": ["bound"]}),
            "only pending tasks can be bound; this one is Staging",
        ),
        (json!({"bind": ["unwanted"]}), "the task was asked to end"),
        (json!({"bind": ["none"]}), "there is no such task"),
        (json!({"bind": ["x", "x"]}), "Duplicate value"),
        (json!({"bind": []}), "from 1 to 100 tasks"),
        (json!({"launch": [task("t"), task("t")]}), "Duplicate value"),
        (json!({"offers": ["p"], "launch": [task("t")]}), "Duplicate value"),
        (json!({"launch": [1]}), "must be a task"),
        (
            json!({"launch": [{"metadata": {"name": "t"}, "spec": {"command": "x"}}]}),
            "launch[0]",
        ),
        (json!({"launch": vec![task("t"); 101]}), "from 1 to 100 tasks"),
    ] {
        let answer = cluster.accept("p", &body).await.expect(422);
        assert!(answer.message().contains(expect), "{expect}: {}", answer.message());
    }
    cluster.accept("p", &json!({"lunch": []})).await.expect(400);
    let answer = cluster
        .accept("p", &json!({"launch": [task("bound")]}))
        .await
        .expect(409);
    assert_eq!(answer.reason(), "AlreadyExists");
}

#[tokio::test(start_paused = true)]
async fn a_wish_for_part_of_a_gpu_ends_that_task_and_not_the_others() {
    let cluster = Cluster::new().await;
    cluster
        .offer(&[cluster.an_offer("o", 1, &["GPU-a1-0"], "")])
        .await
        .expect(201);
    let mut half = task("half");
    half["spec"]["resources"]["gpus"] = json!("0.5");
    let result = cluster
        .accept("o", &json!({"launch": [half, task("whole")]}))
        .await
        .expect(201)
        .json;
    assert_eq!(result["tasks"], json!(["half", "whole"]));
    let half = cluster.get_task("half").await;
    assert_eq!(
        (&half["status"]["phase"], &half["status"]["reason"]),
        (&json!("Error"), &json!("InvalidTask"))
    );
    assert!(half["status"]["message"].as_str().unwrap().contains("given out whole"));
    assert_eq!(half["metadata"].get("finalizers"), None);
    assert_eq!(cluster.get_task("whole").await["status"]["phase"], "Staging");
}

#[tokio::test(start_paused = true)]
async fn an_accept_that_is_repeated_gives_the_first_result() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    jo.post(TASKS, &task("pending")).await.expect(201);
    cluster.offer(&[cluster.an_offer("o", 2, &[], "")]).await.expect(201);
    let mut drawn = task("");
    drawn["metadata"] = json!({"generateName": "run-"});
    let body = json!({"launch": [drawn], "bind": ["pending"], "idempotencyKey": "key \"1\""});
    let first = cluster.accept("o", &body).await.expect(201).json;
    let status = json!({"status": {"phase": "Starting"}});
    cluster
        .agent()
        .merge(&format!("{TASKS}/pending/status"), &status)
        .await
        .expect(200);
    let second = cluster.accept("o", &body).await.expect(201).json;
    assert_eq!(second, first);
    assert_eq!(jo.get(TASKS).await.json["items"].as_array().unwrap().len(), 2);
    let other = json!({"launch": [task("t")], "idempotencyKey": "2"});
    cluster.accept("o", &other).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_task_that_names_an_offer_accepts_it() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    let mut body = task("t");
    body["spec"]["offer"] = json!("o");
    jo.post(&format!("{TASKS}?dryRun=All"), &body).await.expect(201);
    let created = jo.post(TASKS, &body).await.expect(201).json;
    assert_eq!(created["status"]["phase"], "Staging");
    assert_eq!(created, cluster.get_task("t").await);
    body["metadata"]["name"] = json!("u");
    jo.post(TASKS, &body).await.expect(404);
    jo.get(&format!("{TASKS}/u")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_declined_offer_is_the_memory_of_a_refusal() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    cluster
        .offer(&[cluster.an_offer("o", 1, &[], ""), cluster.an_offer("p", 1, &[], "")])
        .await
        .expect(201);
    let declined = jo
        .post(&format!("{OFFERS}/o/decline"), &json!({"refuse": "1m"}))
        .await
        .expect(200)
        .json;
    assert_eq!(
        declined["status"],
        json!({"phase": "Declined", "refuseUntil": "2026-01-01T00:01:00Z"})
    );
    jo.post(&format!("{OFFERS}/o/decline"), &json!({})).await.expect(409);
    let declined = jo
        .send("POST", &format!("{OFFERS}/p/decline"), "")
        .await
        .expect(200)
        .json;
    assert_eq!(declined["status"]["refuseUntil"], "2026-01-01T00:00:05Z");
    jo.post(&format!("{OFFERS}/p/decline"), &json!({"refuse": "400d"}))
        .await
        .expect(400);
}

#[tokio::test(start_paused = true)]
async fn offers_are_made_by_the_control_plane_alone() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    for client in [server.admin(), server.jo(), cluster.controllers()] {
        let answer = client
            .post(OFFERS, &cluster.an_offer("o", 1, &[], ""))
            .await
            .expect(405);
        assert!(
            answer.message().contains("offers are made by the control plane"),
            "{}",
            answer.message()
        );
    }
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    server
        .admin()
        .merge(&format!("{OFFERS}/o"), &json!({"spec": {"agent": "a2"}}))
        .await
        .expect(405);
    server.jo().delete(&format!("{OFFERS}/o")).await.expect(403);
    server
        .jo()
        .post(&format!("{AGENTS}/a1/offers"), &json!({"seenRevision": 1}))
        .await
        .expect(403);
    server
        .agent("a1")
        .post(&format!("{AGENTS}/a1/offers"), &json!({"seenRevision": 1}))
        .await
        .expect(403);
    let before = server
        .store
        .get(&muster_apiserver::keys::ledger("a1"))
        .await
        .unwrap()
        .unwrap()
        .mod_revision;
    cluster.controllers().delete(&format!("{OFFERS}/o")).await.expect(200);
    let after = server
        .store
        .get(&muster_apiserver::keys::ledger("a1"))
        .await
        .unwrap()
        .unwrap()
        .mod_revision;
    assert!(after > before, "taking an offer back is written in the ledger");
}

#[tokio::test(start_paused = true)]
async fn offers_from_an_outdated_view_are_refused() {
    let cluster = Cluster::new().await;
    let seen = cluster.server.state.hub.revision();
    let write = async |seen: u64, offers: Value| {
        let body = json!({"seenRevision": seen, "create": offers});
        cluster.controllers().post(&format!("{AGENTS}/a1/offers"), &body).await
    };
    write(seen, json!([cluster.an_offer("o", 1, &[], "")]))
        .await
        .expect(201);
    let answer = write(seen, json!([cluster.an_offer("p", 1, &[], "")]))
        .await
        .expect(409);
    assert!(
        answer.message().contains("since the revision that was planned from"),
        "{}",
        answer.message()
    );
    write(u64::MAX, json!([cluster.an_offer("p", 1, &[], "")]))
        .await
        .expect(422);
    // Everything that changes what is out is such a write.
    let jo = cluster.server.jo();
    for step in ["accept", "finish", "capacity"] {
        let seen = cluster.server.state.hub.revision();
        match step {
            "accept" => _ = cluster.accept("o", &json!({"launch": [task("t")]})).await.expect(201),
            "finish" => {
                let status = json!({"status": {"phase": "Finished", "exitCode": 0}});
                cluster
                    .agent()
                    .merge(&format!("{TASKS}/t/status"), &status)
                    .await
                    .expect(200);
            }
            _ => {
                let status = json!({"status": {"capacity": {"cpus": "3"}}});
                cluster
                    .agent()
                    .merge(&format!("{AGENTS}/a1/status"), &status)
                    .await
                    .expect(200);
            }
        }
        write(seen, json!([cluster.an_offer("p", 1, &[], "")]))
            .await
            .expect(409);
    }
    let seen = cluster.server.state.hub.revision();
    jo.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    write(seen, json!([cluster.an_offer("p", 1, &[], "")]))
        .await
        .expect(201);
}

#[tokio::test(start_paused = true)]
async fn a_write_of_offers_that_changes_none_settles_what_was_sent_before() {
    let cluster = Cluster::new().await;
    let seen = cluster.server.state.hub.revision();
    let write = async |agent: &str, body: Value| {
        let path = format!("{AGENTS}/{agent}/offers");
        cluster.controllers().post(&path, &body).await
    };
    let settled = write("a1", json!({"seenRevision": 0})).await.expect(201).json;
    let revision: u64 = settled["resourceVersion"].as_str().unwrap().parse().unwrap();
    assert!(revision > seen, "{settled}");
    let late = json!({"seenRevision": seen, "create": [cluster.an_offer("late", 1, &[], "")]});
    write("a1", late).await.expect(409);
    let next = json!({"seenRevision": revision, "create": [cluster.an_offer("next", 1, &[], "")]});
    write("a1", next).await.expect(201);
    // Nothing can be offered of an agent that is not there, so there is nothing to write.
    let newest = cluster.server.state.hub.revision().to_string();
    let none = write("nobody", json!({"seenRevision": 0})).await.expect(201).json;
    assert_eq!(none["resourceVersion"], newest);
}

#[tokio::test(start_paused = true)]
async fn nothing_is_offered_that_is_out_already_or_not_there() {
    let cluster = Cluster::new().await;
    cluster
        .offer(&[cluster.an_offer("o", 2, &["GPU-a1-0"], "31000-31001")])
        .await
        .expect(201);
    cluster
        .accept("o", &json!({"launch": [gpu_task("t", 1)]}))
        .await
        .expect(201);
    // 0.5 CPUs and a GPU are with the task, the rest has come back.
    for (offer, expect) in [
        (cluster.an_offer("p", 4, &[], ""), "needs 4.5 cpus, has 4"),
        (cluster.an_offer("p", 1, &["GPU-a1-0"], ""), "given out already"),
        (
            cluster.an_offer("p", 1, &["GPU-other"], ""),
            "has no healthy device GPU-other",
        ),
        (cluster.an_offer("p", 1, &[], "40000"), "ports"),
    ] {
        let answer = cluster.offer(&[offer]).await;
        assert!([409, 422].contains(&answer.code.as_u16()), "{}", answer.json);
        assert!(answer.message().contains(expect), "{expect}: {}", answer.message());
    }
    let two = [
        cluster.an_offer("p", 2, &["GPU-a1-1"], ""),
        cluster.an_offer("q", 1, &["GPU-a1-1"], ""),
    ];
    cluster.offer(&two).await.expect(409);
    let mut other = cluster.an_offer("p", 1, &[], "");
    other["spec"]["agent"] = json!("a2");
    cluster.offer(&[other]).await.expect(422);
    let mut late = cluster.an_offer("p", 1, &[], "");
    late["spec"]["expiresAt"] = json!("2026-01-01T00:00:00Z");
    cluster.offer(&[late]).await.expect(422);
    cluster
        .offer(&[cluster.an_offer("p", 3, &["GPU-a1-1", "GPU-a1-2"], "31002")])
        .await
        .expect(201);
    cluster
        .server
        .admin()
        .merge(&format!("{AGENTS}/a1"), &json!({"spec": {"unschedulable": true}}))
        .await
        .expect(200);
    let answer = cluster.offer(&[cluster.an_offer("q", 0, &[], "")]).await.expect(409);
    assert!(answer.message().contains("unschedulable"), "{}", answer.message());
}

#[tokio::test(start_paused = true)]
async fn offers_are_replaced_in_one_step() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    cluster.offer(&[cluster.an_offer("o", 4, &[], "")]).await.expect(201);
    let old = jo.get(&format!("{OFFERS}/o")).await.json;
    let replace = |uid: &Value| {
        json!({
            "seenRevision": cluster.server.state.hub.revision(),
            "create": [cluster.an_offer("p", 4, &[], "")],
            "delete": [{"namespace": "default", "name": "o", "uid": uid}],
        })
    };
    let path = format!("{AGENTS}/a1/offers");
    cluster
        .controllers()
        .post(&path, &replace(&json!("other")))
        .await
        .expect(409);
    cluster
        .controllers()
        .post(&path, &replace(&old["metadata"]["uid"]))
        .await
        .expect(201);
    assert_eq!(names(&jo.get(OFFERS).await.json), ["p"]);
    cluster
        .controllers()
        .post(&path, &replace(&old["metadata"]["uid"]))
        .await
        .expect(409);
}

#[tokio::test(start_paused = true)]
async fn a_task_moves_forward_by_the_word_of_its_agent() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    cluster.accept("o", &json!({"launch": [task("t")]})).await.expect(201);
    let path = format!("{TASKS}/t/status");
    let phase = |phase: &str| json!({"status": {"phase": phase}});
    // Somebody else's word does not count.
    server.jo().merge(&path, &phase("Running")).await.expect(403);
    let second = join(server, "a2").await;
    let other = server.agent("a2").fenced("muster-agents/a2", &second);
    let answer = other.merge(&path, &phase("Running")).await.expect(403);
    assert!(
        answer.message().contains("only the tasks that are bound to it"),
        "{}",
        answer.message()
    );
    let answer = cluster.controllers().merge(&path, &phase("Running")).await.expect(409);
    assert_eq!(answer.reason(), "InvalidTransition");
    // Its own does, forward only.
    let running = cluster.agent().merge(&path, &phase("Running")).await.expect(200).json;
    assert_eq!(running["status"]["conditions"][0]["status"], "True");
    cluster.agent().merge(&path, &phase("Starting")).await.expect(409);
    for (field, value) in [
        ("agent", json!("a2")),
        ("devices", json!(["GPU-a1-3"])),
        ("offer", json!("p")),
        ("binding", json!(1)),
        ("ports", json!(["1"])),
    ] {
        let answer = cluster
            .agent()
            .merge(&path, &json!({"status": {field: value}}))
            .await
            .expect(422);
        assert_eq!(answer.json["details"]["causes"][0]["field"], format!("status.{field}"));
    }
    // What the control plane believes is its own to write.
    let unknown = json!({"status": {"reachability": "Unknown"}});
    cluster.controllers().merge(&path, &unknown).await.expect(200);
    let back = cluster
        .agent()
        .merge(
            &path,
            &json!({"status": {"reachability": "Reachable", "replacedBy": "x", "exitCode": 1}}),
        )
        .await
        .expect(200);
    assert_eq!(back.json["status"]["reachability"], "Unknown");
    assert_eq!(back.json["status"]["replacedBy"], Value::Null);
    let failed = cluster.agent().merge(&path, &phase("Failed")).await.expect(200).json;
    assert_eq!(failed["status"]["finishedAt"], "2026-01-01T00:00:00Z");
    cluster.agent().merge(&path, &phase("Finished")).await.expect(409);
}

#[tokio::test(start_paused = true)]
async fn an_unbound_task_is_not_an_agents_to_write() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    server.jo().post(TASKS, &task("t")).await.expect(201);
    let status = json!({"status": {"phase": "Running"}});
    // There is no agent yet whose lease would do.
    let answer = cluster
        .agent()
        .merge(&format!("{TASKS}/t/status"), &status)
        .await
        .expect(403);
    assert_eq!(answer.reason(), "Forbidden");
    let bind = json!({"status": {"phase": "Staging", "agent": "a1"}});
    cluster
        .agent()
        .merge(&format!("{TASKS}/t/status"), &bind)
        .await
        .expect(403);
    cluster
        .controllers()
        .merge(&format!("{TASKS}/t/status"), &bind)
        .await
        .expect(409);
    server
        .admin()
        .merge(&format!("{TASKS}/t/status"), &bind)
        .await
        .expect(409);
    cluster
        .agent()
        .merge(&format!("{TASKS}/t"), &json!({"metadata": {"finalizers": ["x.org/y"]}}))
        .await
        .expect(403);
}

#[tokio::test(start_paused = true)]
async fn a_bound_task_is_kept_until_its_agent_lets_go() {
    let cluster = Cluster::new().await;
    let jo = cluster.server.jo();
    cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await.expect(201);
    cluster.accept("o", &json!({"launch": [task("t")]})).await.expect(201);
    let path = format!("{TASKS}/t");
    let marked = jo.delete(&path).await.expect(200).json;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    let release = json!({"metadata": {"finalizers": null}});
    let answer = jo.merge(&path, &release).await.expect(403);
    assert!(answer.message().contains("muster.dev/agent"), "{}", answer.message());
    let more = json!({"metadata": {"finalizers": null, "labels": {"a": "b"}}});
    cluster.agent().merge(&path, &more).await.expect(403);
    cluster
        .agent()
        .merge(&format!("{path}/status"), &json!({"status": {"phase": "Killed"}}))
        .await
        .expect(200);
    cluster.agent().merge(&path, &release).await.expect(200);
    jo.get(&path).await.expect(404);
    // A pending task is nobody's, and goes at once.
    jo.post(TASKS, &task("p")).await.expect(201);
    jo.delete(&format!("{TASKS}/p")).await.expect(200);
    jo.get(&format!("{TASKS}/p")).await.expect(404);
}
