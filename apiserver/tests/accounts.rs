//! Secrets and service accounts through the router.

mod common;

use common::Server;
use serde_json::{Value, json};

const SECRETS: &str = "/api/v1/namespaces/default/secrets";
const ACCOUNTS: &str = "/api/v1/namespaces/default/serviceaccounts";
const REVIEWS: &str = "/apis/authentication.k8s.io/v1/tokenreviews";

#[tokio::test(start_paused = true)]
async fn a_secret_takes_texts_and_keeps_its_promises() {
    let server = Server::new().await;
    let admin = server.admin();
    let secret = json!({"metadata": {"name": "s"}, "data": {"a": "YQ=="}, "stringData": {"b": "text"}});
    let made = admin.post(SECRETS, &secret).await.expect(201).json;
    assert_eq!(made["type"], "Opaque");
    assert_eq!(made["data"], json!({"a": "YQ==", "b": "dGV4dA=="}));
    assert!(made["stringData"].is_null(), "{made}");
    let there = format!("{SECRETS}/s");
    let same = admin
        .merge(&there, &json!({"stringData": {"b": "text"}}))
        .await
        .expect(200)
        .json;
    assert_eq!(same["metadata"]["resourceVersion"], made["metadata"]["resourceVersion"]);
    admin
        .merge(&there, &json!({"type": "kubernetes.io/tls"}))
        .await
        .expect(422);
    admin
        .merge(&there, &json!({"data": {"a": "not base64"}}))
        .await
        .expect(422);
    let large = json!({"metadata": {"name": "l"}, "stringData": {"a": "x".repeat((1 << 20) + 1)}});
    let refused = admin.post(SECRETS, &large).await;
    assert!(refused.code == 422 || refused.code == 413, "{}", refused.code);
    admin
        .post(
            SECRETS,
            &json!({"metadata": {"name": "t"}, "type": "kubernetes.io/tls"}),
        )
        .await
        .expect(422);
    admin.merge(&there, &json!({"immutable": true})).await.expect(200);
    admin
        .merge(&there, &json!({"stringData": {"c": "more"}}))
        .await
        .expect(422);
    admin.merge(&there, &json!({"immutable": false})).await.expect(422);
    admin
        .merge(&there, &json!({"metadata": {"labels": {"a": "b"}}}))
        .await
        .expect(200);
}

#[tokio::test(start_paused = true)]
async fn secrets_are_read_by_whom_they_are_given_to_and_never_shown_in_a_table() {
    let server = Server::new().await;
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    server.admin().post(SECRETS, &secret).await.expect(201);
    for user in [server.jo(), server.agent("a1")] {
        for path in [
            SECRETS,
            "/api/v1/secrets",
            &format!("{SECRETS}/s"),
            "/api/v1/secrets?watch=true",
        ] {
            user.get(path).await.expect(403);
        }
        user.get("/muster/v1/watch?resources=secrets").await.expect(403);
        user.get("/muster/v1/watch?resources=tasks.muster.dev&others=true")
            .await
            .expect(403);
    }
    let admin = server.admin();
    let accept = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let table = admin.with("accept", accept).get(SECRETS).await.expect(200).json;
    let cells = &table["rows"][0]["cells"];
    assert_eq!((&cells[1], &cells[2]), (&json!("Opaque"), &json!(1)));
    assert!(!table.to_string().contains("aHVudGVyMg"), "{table}");
}

async fn account(server: &Server, name: &str) -> Value {
    let account = json!({"metadata": {"name": name}});
    server.admin().post(ACCOUNTS, &account).await.expect(201).json
}

async fn review(server: &Server, token: &str, audiences: &[&str]) -> Value {
    let body = json!({"spec": {"token": token, "audiences": audiences}});
    let review = server.admin().post(REVIEWS, &body).await.expect(201).json;
    review["status"].clone()
}

#[tokio::test(start_paused = true)]
async fn a_token_speaks_for_its_account_until_its_time_or_the_account_ends() {
    let server = Server::new().await;
    account(&server, "robot").await;
    let path = format!("{ACCOUNTS}/robot/token");
    server.jo().post(&path, &json!({})).await.expect(403);
    server
        .admin()
        .post(&format!("{ACCOUNTS}/nobody/token"), &json!({}))
        .await
        .expect(404);
    for seconds in [json!(599), json!(1u64 << 33), json!("soon")] {
        let body = json!({"spec": {"expirationSeconds": seconds}});
        server.admin().post(&path, &body).await.expect(422);
    }
    let request = json!({"spec": {"expirationSeconds": 600}});
    let made = server.admin().post(&path, &request).await.expect(201).json;
    let token = made["status"]["token"].as_str().expect("a token").to_owned();
    let status = review(&server, &token, &[]).await;
    assert_eq!(status["authenticated"], true);
    assert_eq!(status["user"]["username"], "system:serviceaccount:default:robot");
    let groups = ["system:serviceaccounts", "system:serviceaccounts:default"];
    for group in groups {
        assert!(status["user"]["groups"].to_string().contains(group), "{status}");
    }
    assert_eq!(status["audiences"], made["spec"]["audiences"]);
    let robot = server.bearer(&token);
    let tasks = "/apis/muster.dev/v1/namespaces/default/tasks";
    robot.get(tasks).await.expect(403);
    let binding = json!({
        "metadata": {"name": "robot", "namespace": "default"},
        "roleRef": {"kind": "ClusterRole", "name": "view"},
        "subjects": [{"kind": "ServiceAccount", "name": "robot", "namespace": "default"}],
    });
    let bindings = "/apis/rbac.authorization.k8s.io/v1/namespaces/default/rolebindings";
    server.admin().post(bindings, &binding).await.expect(201);
    robot.get(tasks).await.expect(200);
    robot.get(SECRETS).await.expect(403);
    server.env.advance(600);
    robot.get(tasks).await.expect(401);
    assert_eq!(review(&server, &token, &[]).await["authenticated"], false);

    let made = server.admin().post(&path, &json!({})).await.expect(201).json;
    let token = made["status"]["token"].as_str().expect("a token").to_owned();
    server.admin().delete(&format!("{ACCOUNTS}/robot")).await.expect(200);
    account(&server, "robot").await;
    server.bearer(&token).get("/api/v1/namespaces").await.expect(401);
}

#[tokio::test(start_paused = true)]
async fn a_token_is_for_its_audience_and_for_what_it_is_bound_to() {
    let server = Server::new().await;
    account(&server, "robot").await;
    let path = format!("{ACCOUNTS}/robot/token");
    let token = |answer: Value| answer["status"]["token"].as_str().expect("a token").to_owned();
    let elsewhere = json!({"spec": {"audiences": ["vault"]}});
    let elsewhere = token(server.admin().post(&path, &elsewhere).await.expect(201).json);
    server.bearer(&elsewhere).get("/api/v1/namespaces").await.expect(401);
    assert_eq!(
        review(&server, &elsewhere, &["vault", "other"]).await["audiences"],
        json!(["vault"])
    );
    assert_eq!(review(&server, &elsewhere, &["other"]).await["authenticated"], false);

    let secret = json!({"metadata": {"name": "s"}});
    server.admin().post(SECRETS, &secret).await.expect(201);
    let bound = |name: &str, kind: &str| json!({"spec": {"boundObjectRef": {"kind": kind, "name": name}}});
    server.admin().post(&path, &bound("none", "Secret")).await.expect(422);
    server.admin().post(&path, &bound("s", "ConfigMap")).await.expect(422);
    let bound = token(server.admin().post(&path, &bound("s", "Secret")).await.expect(201).json);
    server.bearer(&bound).get("/apis").await.expect(200);
    server.admin().delete(&format!("{SECRETS}/s")).await.expect(200);
    server.bearer(&bound).get("/api/v1/namespaces").await.expect(401);

    server.jo().get("/openid/v1/jwks").await.expect(403);
    let keys = server.admin().get("/openid/v1/jwks").await.expect(200).json;
    assert_eq!(keys["keys"][0]["alg"], "ES256");
    let configuration = server
        .admin()
        .get("/.well-known/openid-configuration")
        .await
        .expect(200)
        .json;
    assert!(
        configuration["jwks_uri"]
            .as_str()
            .expect("a URI")
            .ends_with("/openid/v1/jwks")
    );
    server.anonymous().get("/openid/v1/jwks").await.expect(401);
}

#[tokio::test(start_paused = true)]
async fn everybody_may_ask_who_and_what_they_are_allowed_to_be() {
    let server = Server::new().await;
    let jo = server.jo();
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let me = jo.post(whoami, &json!({})).await.expect(201).json;
    assert_eq!(
        me["status"]["userInfo"],
        json!({"username": "jo", "groups": ["ml", "system:authenticated"]})
    );
    server.anonymous().post(whoami, &json!({})).await.expect(401);
    let can = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let asks = |verb: &str, group: &str, resource: &str| {
        json!({"spec": {"resourceAttributes": {
            "verb": verb, "group": group, "resource": resource, "namespace": "default",
        }}})
    };
    for (verb, group, resource, expect) in [
        ("create", "muster.dev", "tasks", true),
        ("get", "", "secrets", false),
        ("delete", "muster.dev", "offers", false),
    ] {
        let answer = jo.post(can, &asks(verb, group, resource)).await.expect(201).json;
        assert_eq!(answer["status"]["allowed"], expect, "{answer}");
        let other = "/apis/authorization.k8s.io/v1/subjectaccessreviews";
        let mut about = asks(verb, group, resource);
        about["spec"]["user"] = json!("jo");
        about["spec"]["groups"] = json!(["ml"]);
        jo.post(other, &about).await.expect(403);
        let answer = server.admin().post(other, &about).await.expect(201).json;
        assert_eq!(answer["status"]["allowed"], expect, "{answer}");
        let local = "/apis/authorization.k8s.io/v1/namespaces/default/localsubjectaccessreviews";
        let answer = server.admin().post(local, &about).await.expect(201).json;
        assert_eq!(answer["status"]["allowed"], expect, "{answer}");
        let elsewhere = local.replace("default", "muster-system");
        server.admin().post(&elsewhere, &about).await.expect(400);
    }
    let path = json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/metrics"}}});
    assert_eq!(jo.post(can, &path).await.expect(201).json["status"]["allowed"], false);
    jo.post(can, &json!({"spec": {}})).await.expect(400);
}

#[tokio::test(start_paused = true)]
async fn an_administrator_acts_as_somebody_else_and_is_nobody_more() {
    let server = Server::new().await;
    let whoami = "/apis/authentication.k8s.io/v1/selfsubjectreviews";
    let who = |answer: Value| answer["status"]["userInfo"].clone();
    let as_jo = || {
        server
            .admin()
            .with("impersonate-user", "jo")
            .with("impersonate-group", "ml")
    };
    let me = who(as_jo().post(whoami, &json!({})).await.expect(201).json);
    assert_eq!(me, json!({"username": "jo", "groups": ["ml", "system:authenticated"]}));
    let refused = as_jo()
        .post("/api/v1/namespaces", &json!({"metadata": {"name": "n"}}))
        .await
        .expect(403);
    assert!(
        refused.message().contains("User \"jo\" cannot create"),
        "{}",
        refused.message()
    );
    let robot = server
        .admin()
        .with("impersonate-user", "system:serviceaccount:default:robot");
    let me = who(robot.post(whoami, &json!({})).await.expect(201).json);
    assert!(
        me["groups"].to_string().contains("system:serviceaccounts:default"),
        "{me}"
    );
    for sender in [server.jo(), server.controllers(), server.agent("a1")] {
        let refused = sender
            .with("impersonate-user", "admin")
            .get("/api/v1/namespaces")
            .await
            .expect(403);
        assert!(
            refused.message().contains("cannot impersonate resource \"users\""),
            "{}",
            refused.message()
        );
    }
    for header in ["impersonate-group", "impersonate-uid", "impersonate-extra-scopes"] {
        server
            .admin()
            .with(header, "x")
            .get("/api/v1/namespaces")
            .await
            .expect(400);
    }
}

#[tokio::test(start_paused = true)]
async fn what_is_asked_about_accounts_and_rights_has_the_types_that_are_documented() {
    let server = Server::new().await;
    let admin = server.admin();
    account(&server, "robot").await;
    let token = format!("{ACCOUNTS}/robot/token");
    let access = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    for (path, body) in [
        (token.as_str(), json!({"spec": "an hour"})),
        (&token, json!({"spec": {"audiences": [5]}})),
        (&token, json!({"metadata": {"finalizers": [[]]}})),
        (
            access,
            json!({"metadata": {"finalizers": [[]]}, "spec": {"nonResourceAttributes": {}}}),
        ),
        (access, json!({"spec": {"resourceAttributes": {"verb": 5}}})),
        (rules, json!({"spec": {"namespace": {}}})),
        (REVIEWS, json!({"spec": []})),
    ] {
        let refused = admin.post(path, &body).await.expect(422).json;
        assert_eq!(refused["reason"], "Invalid", "{path} {body}: {refused}");
    }
    let own = json!({"spec": {"namespace": "default"}, "status": {"resourceRules": null, "incomplete": false}});
    let answer = admin.post(rules, &own).await.expect(201).json;
    assert!(answer["status"]["resourceRules"].is_array(), "{answer}");
}
