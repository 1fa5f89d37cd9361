//! What an agent may not do: every verb on every kind and subresource that is not its own, by token and by certificate.
//!
//! The table is written down, not computed: who widens what agents may do has to change it here.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use common::*;
use muster_api::env::Env as _;
use muster_apiserver::auth::User;
use serde_json::json;

/// Verbs over everything that has a name: `METHOD PATH`. An agent `a1` is refused all of them.
const REFUSED: &[(&str, &[&str])] = &[
    // Others' agents, and what of its own agent is the control plane's.
    ("/apis/muster.dev/v1/agents/a2", &["PUT", "PATCH", "DELETE"]),
    ("/apis/muster.dev/v1/agents/a2/status", &["PUT", "PATCH"]),
    ("/apis/muster.dev/v1/agents/a2/offers", &["POST"]),
    ("/apis/muster.dev/v1/agents/a1/offers", &["POST"]),
    ("/apis/muster.dev/v1/agents/a1", &["DELETE"]),
    ("/apis/muster.dev/v1/agents", &["DELETE"]),
    // Tasks are made, and ended, by users and frameworks; those of other agents are none of its business.
    ("/apis/muster.dev/v1/namespaces/default/tasks", &["POST", "DELETE"]),
    (
        "/apis/muster.dev/v1/namespaces/default/tasks/theirs",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/muster.dev/v1/namespaces/default/tasks/theirs/status",
        &["PUT", "PATCH"],
    ),
    (
        "/apis/muster.dev/v1/namespaces/default/tasks/waits",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/muster.dev/v1/namespaces/default/tasks/waits/status",
        &["PUT", "PATCH"],
    ),
    ("/apis/muster.dev/v1/namespaces/default/tasks/ours", &["DELETE"]),
    // Offers, frameworks, quotas.
    ("/apis/muster.dev/v1/namespaces/default/offers/o", &["DELETE"]),
    ("/apis/muster.dev/v1/namespaces/default/offers/o/accept", &["POST"]),
    ("/apis/muster.dev/v1/namespaces/default/offers/o/decline", &["POST"]),
    ("/apis/muster.dev/v1/namespaces/default/frameworks", &["POST", "DELETE"]),
    (
        "/apis/muster.dev/v1/namespaces/default/frameworks/f",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/muster.dev/v1/namespaces/default/frameworks/f/status",
        &["PUT", "PATCH"],
    ),
    ("/apis/muster.dev/v1/quotas", &["POST", "DELETE"]),
    ("/apis/muster.dev/v1/quotas/q", &["PUT", "PATCH", "DELETE"]),
    ("/apis/muster.dev/v1/quotas/q/status", &["PUT", "PATCH"]),
    // Leases: presence of others, leadership, those of users.
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases/a2",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases/a2/renew",
        &["POST"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases",
        &["DELETE"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/muster-controllers/renew",
        &["POST"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases/server-s1",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases",
        &["DELETE"],
    ),
    // The name of an agent means something in the agents' namespace only.
    (
        "/apis/coordination.k8s.io/v1/namespaces/default/leases/a1",
        &["PUT", "PATCH", "DELETE"],
    ),
    (
        "/apis/coordination.k8s.io/v1/namespaces/default/leases/a1/renew",
        &["POST"],
    ),
    ("/apis/coordination.k8s.io/v1/namespaces/default/leases", &["DELETE"]),
    // Kinds of Kubernetes.
    ("/api/v1/namespaces", &["POST"]),
    ("/api/v1/namespaces/default", &["PUT", "PATCH", "DELETE"]),
    ("/api/v1/namespaces/default/configmaps", &["POST", "DELETE"]),
    ("/api/v1/namespaces/default/configmaps/c", &["PUT", "PATCH", "DELETE"]),
    ("/api/v1/namespaces/default/events/e", &["DELETE"]),
    ("/api/v1/namespaces/default/events", &["DELETE"]),
    ("/apis/events.k8s.io/v1/namespaces/default/events/e", &["DELETE"]),
    ("/apis/events.k8s.io/v1/namespaces/default/events", &["DELETE"]),
    // Paths.
    ("/muster/v1/plan", &["PUT"]),
    ("/muster/v1/tokens", &["GET", "POST"]),
    ("/muster/v1/tokens/x", &["DELETE"]),
    ("/version", &["POST", "DELETE"]),
    ("/metrics", &["POST"]),
    ("/livez", &["PUT"]),
];

/// What an agent may not create under a name that is not its own.
const CREATIONS: &[(&str, &str)] = &[
    ("/apis/muster.dev/v1/agents", "a2"),
    ("/apis/muster.dev/v1/agents", "a1.other"),
    ("/apis/muster.dev/v1/agents", "a"),
    ("/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases", "a2"),
    ("/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases", "a1-x"),
    ("/apis/coordination.k8s.io/v1/namespaces/muster-system/leases", "a1"),
    (
        "/apis/coordination.k8s.io/v1/namespaces/muster-system/leases",
        "server-a1",
    ),
    ("/apis/coordination.k8s.io/v1/namespaces/default/leases", "a1"),
];

/// A cluster with one of everything: a task of a1, one of a2, and one that waits.
async fn cluster() -> Cluster {
    let cluster = Cluster::new().await;
    join(&cluster.server, "a2").await;
    let admin = cluster.server.admin();
    for name in ["ours", "theirs", "waits"] {
        admin.post(TASKS, &task(name)).await.expect(201);
    }
    for (name, agent) in [("ours", "a1"), ("theirs", "a2")] {
        let mut offer = cluster.an_offer(name, 1, &[], "");
        offer["spec"]["agent"] = json!(agent);
        offer["spec"]["attributes"] = json!({"hostname": agent, "zone": "a"});
        let body = json!({"seenRevision": cluster.server.state.hub.revision(), "create": [offer]});
        let path = format!("{AGENTS}/{agent}/offers");
        cluster.controllers().post(&path, &body).await.expect(201);
        cluster.accept(name, &json!({"bind": [name]})).await.expect(201);
    }
    let offers = cluster.offer(&[cluster.an_offer("o", 1, &[], "")]).await;
    offers.expect(201);
    admin.post(CONFIG_MAPS, &config_map("c", "v")).await.expect(201);
    let lease = lease("a1", 60);
    admin
        .post(&format!("{LEASES}/default/leases"), &lease)
        .await
        .expect(201);
    cluster
}

/// A body that would be a change, if it were allowed; of an object that is there, the whole of it.
async fn body(server: &Server, method: &str, path: &str) -> String {
    if method == "DELETE" {
        return String::new();
    }
    let whole = path.strip_suffix("/status").unwrap_or(path);
    let name = whole.rsplit('/').next().unwrap_or_default();
    let mut object = json!({"metadata": {"name": name}});
    if method == "PUT" {
        let found = server.admin().get(whole).await;
        if found.code == 200 && found.json.is_object() {
            object = found.json;
        }
    }
    object["metadata"]["labels"]["x"] = json!("y");
    object["status"]["message"] = json!("x");
    object.to_string()
}

async fn refused(server: &Server, client: &Client<'_>, method: &str, path: &str) -> u16 {
    let patch = client.clone().with("content-type", "application/merge-patch+json");
    let client = if method == "PATCH" { &patch } else { client };
    let body = body(server, method, path).await;
    client.send(method, path, body).await.code.as_u16()
}

#[tokio::test(start_paused = true)]
async fn an_agent_is_refused_everything_that_is_not_its_own() {
    let cluster = cluster().await;
    let server = &cluster.server;
    let later = server.env.now() + jiff::SignedDuration::from_hours(1);
    let certified = server
        .certified(User::agent("a1"), later)
        .fenced("muster-agents/a1", &cluster.presence);
    let before = server.store.revision().await.unwrap();
    let mut cases = 0;
    let mut wrong = Vec::new();
    for (who, client) in [("token", cluster.agent()), ("certificate", certified)] {
        for (path, methods) in REFUSED {
            for method in *methods {
                cases += 1;
                let code = refused(server, &client, method, path).await;
                if code != 403 {
                    wrong.push(format!("{who}: {method} {path}: {code}"));
                }
            }
        }
        for (path, name) in CREATIONS {
            cases += 1;
            let object = json!({"metadata": {"name": name}, "spec": {}});
            let code = client.post(path, &object).await.code.as_u16();
            if code != 403 {
                wrong.push(format!("{who}: POST {path} {name}: {code}"));
            }
        }
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(cases >= 150, "{cases}");
    assert_eq!(server.store.revision().await.unwrap(), before, "nothing was written");
}

#[tokio::test(start_paused = true)]
async fn another_agents_session_is_of_no_use() {
    let cluster = cluster().await;
    let server = &cluster.server;
    let status = json!({"status": {"phase": "Starting"}});
    // Its own task, but under the session of a2, and under an old session of its own.
    let path = format!("{TASKS}/ours/status");
    let theirs = server.agent("a1").fenced("muster-agents/a2", "1");
    theirs.merge(&path, &status).await.expect(403);
    let old = server.agent("a1").fenced("muster-agents/a1", "1");
    old.merge(&path, &status).await.expect(412);
    server.agent("a1").merge(&path, &status).await.expect(428);
    cluster.agent().merge(&path, &status).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn the_rest_of_its_own_agent_belongs_to_others() {
    let cluster = cluster().await;
    let lies = json!({"status": {"reachability": "Unknown", "reachabilityMessage": "x"}});
    let path = format!("{AGENTS}/a1/status");
    let written = cluster.agent().merge(&path, &lies).await.expect(200);
    assert_ne!(written.json["status"]["reachability"], "Unknown");
}

/// A task of `a1` that names these, as far as they are given, in every place where one can be named.
async fn naming(cluster: &Cluster) {
    let admin = cluster.server.admin();
    let mut named = task("naming");
    named["spec"]["env"] = json!([{"name": "A", "valueFrom": {"secretKeyRef": {"name": "by-key", "key": "k"}}}]);
    named["spec"]["envFrom"] = json!([{"configMapRef": {"name": "c"}}]);
    named["spec"]["volumes"] = json!([{"mountPath": "/s", "secret": {"name": "by-volume"}}]);
    named["spec"]["image"] = json!("registry.example/app:1");
    named["spec"]["imagePullSecrets"] = json!([{"name": "for-image"}]);
    admin.post(TASKS, &named).await.expect(201);
    cluster
        .offer(&[cluster.an_offer("naming", 1, &[], "")])
        .await
        .expect(201);
}

#[tokio::test(start_paused = true)]
async fn an_agent_reads_by_name_what_its_tasks_name_while_they_have_not_ended() {
    const SECRETS: &str = "/api/v1/namespaces/default/secrets";
    let cluster = cluster().await;
    let admin = cluster.server.admin();
    for name in ["by-key", "by-volume", "for-image", "other"] {
        let secret = json!({"metadata": {"name": name}, "stringData": {"k": "v"}});
        admin.post(SECRETS, &secret).await.expect(201);
    }
    let code = async |path: String| cluster.agent().get(&path).await.code.as_u16();
    let all = async || {
        let mut codes = Vec::new();
        for path in [
            "secrets/by-key",
            "secrets/by-volume",
            "secrets/for-image",
            "secrets/other",
            "configmaps/c",
        ] {
            codes.push(code(format!("/api/v1/namespaces/default/{path}")).await);
        }
        codes
    };
    assert_eq!(all().await, [403; 5], "nothing is named");
    naming(&cluster).await;
    assert_eq!(all().await, [403; 5], "what waits is nobody's");
    cluster.accept("naming", &json!({"bind": ["naming"]})).await.expect(201);
    assert_eq!(all().await, [200, 200, 200, 403, 200]);
    let a2 = cluster.server.agent("a2");
    a2.get(&format!("{SECRETS}/by-key")).await.expect(403);
    for path in [
        "/api/v1/secrets",
        SECRETS,
        "/api/v1/namespaces/default/secrets?fieldSelector=metadata.name%3Dby-key",
        "/api/v1/namespaces/default/secrets?watch=true",
        "/api/v1/namespaces/other/secrets/by-key",
        "/api/v1/namespaces/default/configmaps",
        "/muster/v1/watch?resources=secrets",
        "/muster/v1/watch?resources=configmaps",
    ] {
        assert_eq!(code(path.to_owned()).await, 403, "{path}");
    }
    let ends = json!({"status": {"phase": "Dropped", "reason": "NotStarted"}});
    let path = format!("{TASKS}/naming/status");
    cluster.agent().merge(&path, &ends).await.expect(200);
    assert_eq!(all().await, [403; 5], "it has ended");
}
