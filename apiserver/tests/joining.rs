//! Machines join with tokens, and renew what they were given.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::sync::Arc;

use common::{Answer, Client, Server};
use muster_api::env::Env as _;
use muster_api::env::SystemEnv;
use muster_api::join::JoinToken;
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::membership::Membership;
use muster_apiserver::tls::{Pki, pin};
use muster_store::{MemoryStore, Prefix, Store};
use rcgen::{CertificateParams, KeyPair};
use serde_json::{Value, json};

const TOKENS: &str = "/muster/v1/tokens";
const JOIN: &str = "/muster/v1/join";

async fn server(directory: &tempfile::TempDir, store: Arc<dyn Store>) -> Server {
    let pki = Arc::new(Pki::open(&directory.path().join("pki"), &SystemEnv).unwrap());
    let tokens = Tokens::in_memory();
    tokens.ensure(&User::admin(), &SystemEnv).unwrap();
    let membership = Membership::new("s1", pki, Arc::new(tokens));
    membership.reached_by(vec!["10.0.0.9:7443".to_owned()]);
    Server::within(store, membership).await
}

fn csr() -> String {
    let key = KeyPair::generate_for(&rcgen::PKCS_ECDSA_P256_SHA256).unwrap();
    let params = CertificateParams::default();
    params.serialize_request(&key).unwrap().pem().unwrap()
}

async fn token(server: &Server, request: Value) -> JoinToken {
    let made = server.admin().post(TOKENS, &request).await.expect(201);
    made.json["token"].as_str().unwrap().parse().unwrap()
}

fn body(token: &JoinToken, name: &str, csr: &str) -> Value {
    json!({"id": token.id, "secret": token.secret, "role": "Agent", "name": name, "machine": "m1", "csr": csr})
}

async fn join(server: &Server, token: &JoinToken, name: &str, csr: &str) -> Answer {
    server.anonymous().post(JOIN, &body(token, name, csr)).await
}

#[tokio::test]
async fn a_token_is_used_once_and_leads_to_a_certificate_of_the_clusters_authority() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let server = server(&directory, store.clone()).await;
    let token = token(&server, json!({})).await;
    assert_eq!(token.endpoints, ["10.0.0.9:7443"]);
    let ours = csr();
    let answer = join(&server, &token, "a1", &ours).await.expect(200);
    assert_eq!(pin(answer.json["ca"].as_str().unwrap()).unwrap(), token.pin);
    assert_eq!(answer.json["name"], "a1");
    assert_eq!(answer.json["endpoints"], json!(["10.0.0.9:7443"]));
    assert!(
        answer.json["certificate"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    assert_eq!(answer.json["secrets"], Value::Null);

    // The answer may have been lost: the same key gets its certificate again, for a while, and no other key does.
    join(&server, &token, "a1", &ours).await.expect(200);
    let refused = join(&server, &token, "a1", &csr()).await.expect(403);
    assert!(refused.message().contains("was used by a1"), "{}", refused.message());
    server.env.advance(61);
    join(&server, &token, "a1", &ours).await.expect(403);

    let listed = server.admin().get(TOKENS).await.expect(200);
    assert_eq!(listed.json["items"][0]["used"]["by"], "a1");
    let kept = store
        .list(&Prefix::new(""), muster_store::Page::default())
        .await
        .unwrap();
    let secret = token.secret.as_bytes();
    let shown = |bytes: &[u8]| bytes.windows(secret.len()).any(|window| window == secret);
    assert!(
        !kept.entries.iter().any(|entry| shown(&entry.value)),
        "the store has hashes only"
    );
    assert!(!shown(&listed.bytes));
}

#[tokio::test]
async fn of_many_who_use_a_token_at_once_one_is_let_in() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let token = token(&server, json!({})).await;
    let names: Vec<String> = (0..8).map(|number| format!("a{number}")).collect();
    let csrs: Vec<String> = names.iter().map(|_| csr()).collect();
    let tries = names
        .iter()
        .zip(&csrs)
        .map(|(name, csr)| join(&server, &token, name, csr));
    let answers = futures::future::join_all(tries).await;
    assert_eq!(answers.iter().filter(|answer| answer.code == 200).count(), 1);
    assert_eq!(answers.iter().filter(|answer| answer.code == 403).count(), 7);
}

#[tokio::test]
async fn tokens_that_are_wrong_expired_or_deleted_are_refused() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let good = token(&server, json!({"ttlSeconds": 60, "name": "a1"})).await;
    let check = async |change: Value, code: u16, why: &str| {
        let mut body = body(&good, "a1", &csr());
        body.as_object_mut()
            .unwrap()
            .extend(change.as_object().unwrap().clone());
        let answer = server.anonymous().post(JOIN, &body).await.expect(code);
        assert!(answer.message().contains(why), "{change}: {}", answer.message());
    };
    check(json!({"secret": "x"}), 403, "not valid").await;
    check(json!({"secret": good.secret[1..]}), 403, "not valid").await;
    check(json!({"id": "nobody"}), 403, "not valid").await;
    check(json!({"id": "../ledger/a1"}), 403, "not valid").await;
    check(json!({"role": "Server"}), 403, "for an agent, not for a server").await;
    check(json!({"name": "a2"}), 403, "for the agent a1, not for a2").await;
    check(json!({"name": "A/1"}), 422, "RFC 1123").await;
    check(json!({"csr": "x"}), 400, "csr").await;
    check(json!({"more": 1}), 400, "more").await;
    let any = token(&server, json!({})).await;
    let long = "a".repeat(64);
    join(&server, &any, &long, &csr()).await.expect(422);
    server.env.advance(60);
    check(json!({}), 403, "not valid").await;
    let listed = server.admin().get(TOKENS).await.expect(200);
    assert_eq!(listed.json["items"].as_array().unwrap().len(), 1, "the other one");
    let path = format!("{TOKENS}/{}", any.id);
    server.admin().delete(&path).await.expect(200);
    server.admin().delete(&path).await.expect(404);
    join(&server, &any, "a1", &csr()).await.expect(403);
}

#[tokio::test(start_paused = true)]
async fn expired_tokens_leave_the_store() {
    let directory = tempfile::tempdir().unwrap();
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let server = server(&directory, store.clone()).await;
    token(&server, json!({"ttlSeconds": 5})).await;
    server.env.advance(6);
    let count = async || {
        let prefix = Prefix::new("join/");
        let kept = store.list(&prefix, muster_store::Page::default()).await.unwrap();
        kept.entries.len()
    };
    while count().await > 0 {
        tokio::time::sleep(std::time::Duration::from_secs(10)).await;
    }
}

#[tokio::test]
async fn whoever_guesses_has_to_wait() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let good = token(&server, json!({})).await;
    let guess = JoinToken {
        secret: "guess".to_owned(),
        ..good.clone()
    };
    for _ in 0..10 {
        join(&server, &guess, "a1", &csr()).await.expect(403);
    }
    let refused = join(&server, &good, "a1", &csr()).await.expect(429);
    assert!(refused.headers.contains_key("retry-after"));
    server.env.advance(61);
    join(&server, &good, "a1", &csr()).await.expect(200);
}

#[tokio::test]
async fn the_name_of_another_machine_is_not_given_away() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let agent = json!({
        "apiVersion": "muster.dev/v1", "kind": "Agent",
        "metadata": {"name": "a1", "annotations": {"muster.dev/machine": "m2"}}, "spec": {},
    });
    server
        .admin()
        .post("/apis/muster.dev/v1/agents", &agent)
        .await
        .expect(201);
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease",
        "metadata": {"name": "a2", "annotations": {"muster.dev/ephemeral": "true"}},
        "spec": {"holderIdentity": "m2/boot/3", "leaseDurationSeconds": 60},
    });
    let path = "/apis/coordination.k8s.io/v1/namespaces/muster-agents/leases";
    server.admin().post(path, &lease).await.expect(201);
    let token = token(&server, json!({})).await;
    for name in ["a1", "a2"] {
        let refused = join(&server, &token, name, &csr()).await.expect(409);
        assert!(refused.message().contains("another machine"), "{}", refused.message());
    }
    let ours = csr();
    let mut same = body(&token, "a1", &ours);
    same["machine"] = json!("m2");
    server.anonymous().post(JOIN, &same).await.expect(200);
}

#[tokio::test]
async fn a_server_is_given_what_makes_it_one() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    server
        .admin()
        .post(TOKENS, &json!({"role": "Server", "name": "x"}))
        .await
        .expect(422);
    let token = token(&server, json!({"role": "Server"})).await;
    let mut body = body(&token, "s2", &csr());
    server.anonymous().post(JOIN, &body).await.expect(403);
    body["role"] = json!("Server");
    let answer = server.anonymous().post(JOIN, &body).await.expect(200);
    let secrets = &answer.json["secrets"];
    let two = directory.path().join("two");
    Pki::adopt(
        &two,
        answer.json["ca"].as_str().unwrap(),
        secrets["caKey"].as_str().unwrap(),
    )
    .unwrap();
    assert_eq!(Pki::open(&two, &SystemEnv).unwrap().pin().unwrap(), token.pin);
    assert!(secrets["tokens"].as_str().unwrap().contains("system:masters"));
}

#[tokio::test]
async fn a_certificate_is_renewed_by_whoever_shows_it_while_it_lasts() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let renew = async |client: Client<'_>| client.post("/muster/v1/renew", &json!({"csr": csr()})).await;
    let later = server.env.now() + jiff::SignedDuration::from_secs(100);
    let agent = || server.certified(User::agent("a1"), later);
    let answer = renew(agent()).await.expect(200);
    assert_eq!(answer.json["name"], "a1");
    assert!(
        answer.json["certificate"]
            .as_str()
            .unwrap()
            .contains("BEGIN CERTIFICATE")
    );
    renew(server.agent("a1")).await.expect(403);
    renew(server.anonymous()).await.expect(401);
    renew(server.certified(User::new("jo", &[]), later)).await.expect(403);
    renew(server.certified(User::admin(), later)).await.expect(403);
    server.env.advance(100);
    renew(agent()).await.expect(401);
    agent().get("/apis/muster.dev/v1/agents").await.expect(401);
}

#[tokio::test]
async fn a_revoked_agent_is_refused_until_it_joins_again() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    let end = server.env.now() + jiff::SignedDuration::from_hours(1);
    let agents = "/apis/muster.dev/v1/agents";
    let (one, other) = (
        server.certified(User::agent("a1"), end),
        server.certified(User::agent("a2"), end),
    );
    one.clone().get(agents).await.expect(200);
    server.env.advance(1);
    let list = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "revoked-agents", "namespace": "muster-system"},
        "data": {"a1": server.env.now().to_string(), "a3": "no time"},
    });
    let maps = "/api/v1/namespaces/muster-system/configmaps";
    server.user_named("al").post(maps, &list).await.expect(403);
    one.clone().post(maps, &list).await.expect(403);
    server.admin().post(maps, &list).await.expect(201);
    let refused = one.clone().get(agents).await.expect(401);
    assert!(
        refused.message().contains("mctl token create --agent a1"),
        "{}",
        refused.message()
    );
    one.post("/muster/v1/renew", &json!({"csr": csr()})).await.expect(401);
    server.agent("a1").get(agents).await.expect(401);
    other.get(agents).await.expect(200);
    server.agent("a2").get(agents).await.expect(200);
    server.certified(User::agent("a3"), end).get(agents).await.expect(401);
    server.env.advance(1);
    let token = token(&server, json!({"name": "a1"})).await;
    join(&server, &token, "a1", &csr()).await.expect(200);
    // What it was given then is younger than the revocation.
    server.certified(User::agent("a1"), end).get(agents).await.expect(200);
}

#[tokio::test]
async fn only_masters_see_and_make_tokens() {
    let directory = tempfile::tempdir().unwrap();
    let server = server(&directory, Arc::new(MemoryStore::new())).await;
    for client in [server.agent("a1"), server.controllers(), server.jo()] {
        client.post(TOKENS, &json!({})).await.expect(403);
        client.get(TOKENS).await.expect(403);
        client.delete(&format!("{TOKENS}/x")).await.expect(403);
        client.get("/muster/v1/endpoints").await.expect(200);
    }
    server.anonymous().post(TOKENS, &json!({})).await.expect(401);
    server.anonymous().get("/muster/v1/endpoints").await.expect(401);
    server
        .admin()
        .post(TOKENS, &json!({"ttlSeconds": 604_801}))
        .await
        .expect(422);
    server.admin().post(TOKENS, &json!({"name": "A"})).await.expect(422);
    server
        .admin()
        .post(TOKENS, &json!({"role": "Master"}))
        .await
        .expect(400);
}
