//! What is promised of leases and fences.

mod common;

use std::time::Duration;

use common::*;
use serde_json::json;

const LEASE: &str = "/apis/coordination.k8s.io/v1/namespaces/default/leases";

#[tokio::test(start_paused = true)]
async fn an_ephemeral_lease_ends_unless_it_is_renewed() {
    let server = Server::new().await;
    let jo = server.jo();
    let created = jo.post(LEASE, &lease("l", 10)).await.expect(201);
    let revision = created.version().to_owned();
    let answer = jo.post(LEASE, &lease("l", 10)).await.expect(409);
    assert_eq!(answer.reason(), "AlreadyExists");
    let fenced = jo.clone().fenced("default/l", &revision);
    let before = server.store.revision().await.unwrap();
    for _ in 0..5 {
        tokio::time::sleep(Duration::from_secs(8)).await;
        let renewed = fenced.post(&format!("{LEASE}/l/renew"), &json!({})).await.expect(200);
        assert_eq!(renewed.version(), revision);
    }
    assert_eq!(
        server.store.revision().await.unwrap(),
        before,
        "a renewal writes nothing"
    );
    let mut watch = jo.watch(&format!("{LEASE}?watch=true")).await;
    assert!(watch.event().await.starts_with("ADDED l@"));
    let began = tokio::time::Instant::now();
    assert!(watch.event().await.starts_with("DELETED l@"));
    assert!(began.elapsed() <= Duration::from_secs(11), "{:?}", began.elapsed());
    let answer = fenced.post(&format!("{LEASE}/l/renew"), &json!({})).await.expect(412);
    assert_eq!(answer.reason(), "Fenced");
    // Somebody else's incarnation is not this one.
    let second = jo.post(LEASE, &lease("l", 10)).await.expect(201);
    assert_ne!(second.version(), revision);
    fenced.post(&format!("{LEASE}/l/renew"), &json!({})).await.expect(412);
    fenced.delete(&format!("{LEASE}/l")).await.expect(412);
    jo.clone()
        .fenced("default/l", second.version())
        .delete(&format!("{LEASE}/l"))
        .await
        .expect(200);
    jo.get(&format!("{LEASE}/l")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn a_lease_is_renewed_by_its_holder_alone() {
    let server = Server::new().await;
    let jo = server.jo();
    let created = jo.post(LEASE, &lease("l", 10)).await.expect(201);
    let renew = format!("{LEASE}/l/renew");
    assert_eq!(jo.post(&renew, &json!({})).await.expect(428).reason(), "FenceRequired");
    jo.clone()
        .with("muster-fence", "nonsense")
        .post(&renew, &json!({}))
        .await
        .expect(400);
    jo.clone()
        .fenced("default/other", created.version())
        .post(&renew, &json!({}))
        .await
        .expect(400);
    jo.clone()
        .fenced("muster-agents/a1", "1")
        .post(&renew, &json!({}))
        .await
        .expect(403);
    let created = jo
        .post(LEASE, &json!({"metadata": {"name": "plain"}, "spec": {}}))
        .await
        .expect(201);
    let answer = jo
        .clone()
        .fenced("default/plain", created.version())
        .post(&format!("{LEASE}/plain/renew"), &json!({}))
        .await;
    answer.expect(422);
    jo.post(
        LEASE,
        &json!({"metadata": {"name": "x", "annotations": {"muster.dev/ephemeral": "true"}}}),
    )
    .await
    .expect(422);
}

#[tokio::test(start_paused = true)]
async fn an_ephemeral_lease_is_never_changed_and_a_plain_one_may_be() {
    let server = Server::new().await;
    let jo = server.jo();
    jo.post(LEASE, &lease("l", 10)).await.expect(201);
    jo.merge(&format!("{LEASE}/l"), &json!({"spec": {"holderIdentity": "you"}}))
        .await
        .expect(405);
    jo.post(
        LEASE,
        &json!({"metadata": {"name": "plain"}, "spec": {"holderIdentity": "me"}}),
    )
    .await
    .expect(201);
    let changed = jo
        .merge(&format!("{LEASE}/plain"), &json!({"spec": {"holderIdentity": "you"}}))
        .await
        .expect(200);
    assert_eq!(changed.json["spec"]["holderIdentity"], "you");
    jo.merge(
        &format!("{LEASE}/plain"),
        &json!({"metadata": {"annotations": {"muster.dev/ephemeral": "true"}}}),
    )
    .await
    .expect(405);
    tokio::time::sleep(Duration::from_secs(60)).await;
    jo.get(&format!("{LEASE}/plain")).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_late_write_of_a_paused_leader_does_not_land() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    server.jo().post(TASKS, &task("t")).await.expect(201);
    let late = cluster.controllers();
    late.merge(&format!("{TASKS}/t/status"), &json!({"status": {"message": "m"}}))
        .await
        .expect(200);
    // The leader pauses, its lease ends, another one leads.
    tokio::time::sleep(Duration::from_secs(20)).await;
    let second = lead(server).await;
    assert_ne!(second, cluster.leader);
    let before = cluster.get_task("t").await;
    let answers = [
        late.merge(&format!("{TASKS}/t/status"), &json!({"status": {"message": "late"}}))
            .await,
        late.merge(&format!("{TASKS}/t/status"), &json!({"status": {"message": "m"}}))
            .await,
        late.merge(&format!("{TASKS}/t"), &json!({"spec": {"desired": "Killed"}}))
            .await,
        late.delete(&format!("{TASKS}/t")).await,
        late.post(TASKS, &task("u")).await,
        cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await,
    ];
    for answer in answers {
        let answer = answer.expect(412);
        assert_eq!(answer.reason(), "Fenced");
        assert!(answer.message().contains("stop acting"), "{}", answer.message());
    }
    assert_eq!(cluster.get_task("t").await, before);
    server.admin().get(&format!("{TASKS}/u")).await.expect(404);
}

#[tokio::test(start_paused = true)]
async fn writes_that_need_a_fence_are_refused_without() {
    let cluster = Cluster::new().await;
    let server = &cluster.server;
    server.jo().post(TASKS, &task("t")).await.expect(201);
    let controllers = server.controllers();
    let status = json!({"status": {"message": "m"}});
    let answer = controllers
        .merge(&format!("{TASKS}/t/status"), &status)
        .await
        .expect(428);
    assert_eq!(answer.reason(), "FenceRequired");
    assert!(
        answer.message().contains("muster-system/muster-controllers@"),
        "{}",
        answer.message()
    );
    controllers
        .merge(
            &format!("{AGENTS}/a1/status"),
            &json!({"status": {"reachability": "Unknown"}}),
        )
        .await
        .expect(428);
    controllers
        .post(&format!("{AGENTS}/a1/offers"), &json!({"seenRevision": 1}))
        .await
        .expect(428);
    server
        .agent("a1")
        .merge(&format!("{AGENTS}/a1/status"), &json!({"status": {"address": "x:1"}}))
        .await
        .expect(428);
    // Another lease than the one that counts does not do.
    let other = controllers.post(LEASE, &lease("l", 10)).await.expect(201);
    let fenced = controllers.clone().fenced("default/l", other.version());
    fenced.merge(&format!("{TASKS}/t/status"), &status).await.expect(428);
    // Somebody has to be able to repair things.
    server
        .admin()
        .merge(&format!("{TASKS}/t/status"), &status)
        .await
        .expect(200);
}

#[tokio::test(start_paused = true)]
async fn an_agent_does_not_decide_whether_it_can_be_reached() {
    let cluster = Cluster::new().await;
    let path = format!("{AGENTS}/a1/status");
    let believed = json!({"status": {"reachability": "Unknown", "reachabilitySince": "2026-01-01T00:00:00Z"}});
    cluster.controllers().merge(&path, &believed).await.expect(200);
    let own = json!({"status": {"reachability": "Reachable", "address": "h:1"}});
    let written = cluster.agent().merge(&path, &own).await.expect(200).json;
    assert_eq!(written["status"]["reachability"], "Unknown");
    assert_eq!(written["status"]["address"], "h:1");
    assert_eq!(written["metadata"]["generation"], 1, "a status is not what is wanted");
    cluster.server.agent("a2").merge(&path, &own).await.expect(403);
}

/// Trap 8: one object that a typed client cannot read stops its whole list.
#[tokio::test(start_paused = true)]
async fn a_status_of_the_wrong_shape_is_refused() {
    let cluster = Cluster::new().await;
    for (status, field) in [
        (
            json!({"conditions": [{"type": "Ready", "status": "True"}]}),
            "status.conditions[0].lastTransitionTime",
        ),
        (json!({"capacity": {"cpus": "some"}}), "status.capacity.cpus"),
        (json!({"reachability": "Perhaps"}), "status.reachability"),
        (json!({"devices": [{"uuid": "x"}]}), "status.devices[0].model"),
    ] {
        let answer = cluster
            .agent()
            .merge(&format!("{AGENTS}/a1/status"), &json!({"status": status}))
            .await;
        let answer = answer.expect(422);
        let causes = answer.json["details"]["causes"].as_array().unwrap();
        assert!(
            causes.iter().any(|cause| cause["field"] == field),
            "{field}: {causes:?}"
        );
    }
}
