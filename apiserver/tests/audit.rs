//! What the audit log says about requests, and what happens when it cannot be written.

#![allow(clippy::unwrap_used, reason = "the helpers of tests may panic, too")]

mod common;

use std::panic::AssertUnwindSafe;
use std::path::{Path, PathBuf};
use std::task::Poll;

use axum::body::Body;
use common::{CONFIG_MAPS, Client, Server, TASKS, config_map, task};
use futures::FutureExt;
use muster_apiserver::audit::{Audit, Kept, Options};
use serde_json::{Value, json};

const EVERYTHING: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitManagedFields: true
rules:
  - {level: RequestResponse, resources: [{group: "", resources: [configmaps]}]}
  - {level: Metadata}
"#;

/// As many operators have it: a line for each request.
const ONE_LINE: &str = r#"
apiVersion: audit.k8s.io/v1
kind: Policy
omitStages: [RequestReceived]
rules:
  - {level: Metadata}
"#;

fn open(log: &Path, policy: Option<PathBuf>) -> Audit {
    let kept = Kept {
        path: log.to_owned(),
        bytes: 0,
        files: 0,
    };
    Audit::open(&Options { kept, policy }).unwrap()
}

struct Audited {
    directory: tempfile::TempDir,
    server: Server,
}

impl Audited {
    async fn new(policy: Option<&str>) -> Audited {
        Audited::over(Server::new().await, policy)
    }

    fn over(server: Server, policy: Option<&str>) -> Audited {
        let audited = Audited {
            directory: tempfile::tempdir().unwrap(),
            server,
        };
        audited
            .server
            .state
            .audit_by(open(&audited.log(), audited.policy(policy)));
        audited
    }

    fn log(&self) -> PathBuf {
        self.directory.path().join("audit.log")
    }

    fn policy(&self, text: Option<&str>) -> Option<PathBuf> {
        let file = self.directory.path().join("policy.yaml");
        text.map(|text| {
            std::fs::write(&file, text).unwrap();
            file
        })
    }

    /// All events so far, those included that nobody waits for.
    async fn events(&self) -> Vec<Value> {
        self.server.state.audit().unwrap().log.flush().await;
        let text = std::fs::read_to_string(self.log()).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    async fn last(&self) -> Value {
        self.events().await.pop().expect("an event")
    }

    async fn stages(&self) -> Vec<String> {
        let events = self.events().await;
        events
            .iter()
            .map(|event| event["stage"].as_str().unwrap().to_owned())
            .collect()
    }
}

#[tokio::test]
async fn an_event_says_who_did_what_and_why_it_was_allowed() {
    let audited = Audited::new(None).await;
    let jo = audited
        .server
        .jo()
        .with("user-agent", "tool/1")
        .with("audit-id", "mine");
    let answer = jo.post(TASKS, &task("t")).await.expect(201);
    assert_eq!(answer.headers["audit-id"], "mine");
    assert_eq!(audited.stages().await, ["RequestReceived", "ResponseComplete"]);
    let event = audited.last().await;
    let expect = json!({"resource": "tasks", "namespace": "default", "apiGroup": "muster.dev", "apiVersion": "v1"});
    assert_eq!(event["objectRef"], expect);
    for (field, expect) in [
        ("kind", "Event"),
        ("apiVersion", "audit.k8s.io/v1"),
        ("level", "Metadata"),
        ("auditID", "mine"),
        ("verb", "create"),
        ("userAgent", "tool/1"),
        ("requestURI", TASKS),
        ("requestReceivedTimestamp", "2026-01-01T00:00:00.000000Z"),
    ] {
        assert_eq!(event[field], expect, "{event}");
    }
    assert_eq!(event["user"]["username"], "jo");
    assert_eq!(event["responseStatus"]["code"], 201);
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "allow");
    let reason = "RBAC: allowed by ClusterRoleBinding \"ml\" of ClusterRole \"ml\" to Group \"ml\"";
    assert_eq!(event["annotations"]["authorization.k8s.io/reason"], reason);
    assert!(
        event["requestObject"].is_null(),
        "tasks have variables in them: {event}"
    );

    let role =
        json!({"metadata": {"name": "r"}, "rules": [{"apiGroups": [""], "resources": ["pods"], "verbs": ["get"]}]});
    audited
        .server
        .admin()
        .post(common::CLUSTER_ROLES, &role)
        .await
        .expect(201);
    let event = audited.last().await;
    assert_eq!(
        (&event["level"], &event["objectRef"]["name"]),
        (&json!("Request"), &json!("r"))
    );
    assert_eq!(event["requestObject"]["rules"][0]["resources"], json!(["pods"]));
}

#[tokio::test]
async fn refusals_are_told_of_with_who_tried() {
    let audited = Audited::new(None).await;
    let admin = || audited.server.admin();
    admin().with("impersonate-user", "al").get(TASKS).await.expect(403);
    let event = audited.last().await;
    assert_eq!(
        (&event["user"]["username"], &event["impersonatedUser"]["username"]),
        (&json!("admin"), &json!("al"))
    );
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    assert_eq!(event["responseStatus"]["reason"], "Forbidden");
    // Who may not act as somebody else has tried to.
    let jo = audited.server.jo().with("impersonate-user", "admin");
    jo.delete(&format!("{TASKS}/t")).await.expect(403);
    let event = audited.last().await;
    assert_eq!(
        (&event["user"]["username"], &event["verb"]),
        (&json!("jo"), &json!("delete"))
    );
    assert!(event["impersonatedUser"].is_null(), "it came to nothing: {event}");
    assert_eq!(event["annotations"]["authorization.k8s.io/decision"], "forbid");
    let message = event["responseStatus"]["message"].as_str().unwrap();
    assert!(message.contains("cannot impersonate"), "{message}");

    audited.server.bearer("unknown").get(TASKS).await.expect(401);
    let event = audited.last().await;
    assert_eq!(
        (&event["user"], &event["responseStatus"]["code"]),
        (&json!({}), &json!(401))
    );
    let huge = "x".repeat(4 << 20);
    let namespace = json!({"metadata": {"name": "n", "annotations": {"a": huge}}});
    admin().post("/api/v1/namespaces", &namespace).await.expect(413);
    assert_eq!(
        audited.last().await["responseStatus"]["reason"],
        "RequestEntityTooLarge"
    );
}

#[tokio::test]
async fn what_is_secret_is_not_in_the_log() {
    let audited = Audited::new(None).await;
    let admin = audited.server.admin();
    let secret = json!({"metadata": {"name": "s"}, "stringData": {"password": "hunter2"}});
    admin
        .post("/api/v1/namespaces/default/secrets", &secret)
        .await
        .expect(201);
    admin.get("/api/v1/namespaces/default/secrets/s").await.expect(200);
    let account = json!({"metadata": {"name": "robot"}});
    let accounts = "/api/v1/namespaces/default/serviceaccounts";
    admin.post(accounts, &account).await.expect(201);
    let made = admin
        .post(&format!("{accounts}/robot/token"), &json!({}))
        .await
        .expect(201);
    let token = made.json["status"]["token"].as_str().unwrap().to_owned();
    let review = json!({"spec": {"token": token}});
    admin
        .post("/apis/authentication.k8s.io/v1/tokenreviews", &review)
        .await
        .expect(201);
    let mut named = task("t");
    named["spec"]["env"] = json!([{"name": "PASSWORD", "value": "hunter2"}]);
    admin.post(TASKS, &named).await.expect(201);
    let events = audited.events().await;
    assert_eq!(events.len(), 11, "two of each change, one of a read: {events:?}");
    let text = json!(events).to_string();
    for hidden in ["hunter2", "aHVudGVyMg", token.as_str()] {
        assert!(!text.contains(hidden), "{hidden}");
    }
}

#[tokio::test]
async fn a_watch_is_told_of_when_it_starts_and_when_it_is_over() {
    let audited = Audited::new(Some(EVERYTHING)).await;
    let admin = audited.server.admin();
    let watch = admin.watch(&format!("{CONFIG_MAPS}?watch=true")).await;
    assert_eq!(audited.stages().await, ["RequestReceived", "ResponseStarted"]);
    drop(watch);
    assert_eq!(
        audited.stages().await,
        ["RequestReceived", "ResponseStarted", "ResponseComplete"]
    );
    let event = audited.last().await;
    assert_eq!(
        (&event["verb"], &event["responseStatus"]["code"]),
        (&json!("watch"), &json!(200))
    );
    // One that does not begin is over.
    audited
        .server
        .user_named("al")
        .get(&format!("{CONFIG_MAPS}?watch=1"))
        .await
        .expect(403);
    assert_eq!(audited.stages().await[3..], ["RequestReceived", "ResponseComplete"]);
}

#[tokio::test]
async fn what_was_sent_and_answered_is_told_when_the_policy_wants_it() {
    let audited = Audited::new(Some(EVERYTHING)).await;
    let admin = audited.server.admin();
    admin.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
    let event = audited.last().await;
    assert_eq!(event["requestObject"]["data"]["key"], "1");
    assert_eq!(event["responseObject"]["metadata"]["name"], "c");
    assert_eq!(event["objectRef"]["name"], "c");
    assert!(
        event["responseObject"]["metadata"]["managedFields"].is_null(),
        "{event}"
    );
    // An answer that is larger than any object goes out whole, and the event says that it has not got it.
    for index in 0..8 {
        let large = config_map(&format!("large-{index}"), &"x".repeat(700_000));
        admin.post(CONFIG_MAPS, &large).await.expect(201);
    }
    let list = admin.get(CONFIG_MAPS).await.expect(200);
    assert_eq!(list.json["items"].as_array().unwrap().len(), 9);
    let event = audited.last().await;
    assert_eq!(event["annotations"]["audit.k8s.io/truncated"], "true");
    assert!(event["responseObject"].is_null());
}

#[tokio::test]
async fn whoever_goes_away_before_the_answer_has_asked_all_the_same() {
    let audited = Audited::new(Some(ONE_LINE)).await;
    let admin = audited.server.admin();
    // It waits for a body that never comes.
    let body = Body::from_stream(futures::stream::pending::<Result<&'static str, std::io::Error>>());
    let asked = admin.send("POST", CONFIG_MAPS, body).now_or_never();
    assert!(asked.is_none());
    let event = audited.last().await;
    assert_eq!(
        (&event["verb"], &event["responseStatus"]["code"]),
        (&json!("create"), &json!(499))
    );
    let message = event["responseStatus"]["message"].as_str().unwrap();
    assert!(message.contains("went away"), "{message}");
}

#[tokio::test]
async fn a_panic_is_told_of() {
    let audited = Audited::new(Some(ONE_LINE)).await;
    let admin = audited.server.admin();
    let body = Body::from_stream(futures::stream::poll_fn(
        |_| -> Poll<Option<Result<&str, std::io::Error>>> { panic!("as if the server had failed in what it does") },
    ));
    let failed = AssertUnwindSafe(admin.send("POST", CONFIG_MAPS, body))
        .catch_unwind()
        .await;
    assert!(failed.is_err(), "in this process it goes on as what it is");
    assert_eq!(audited.stages().await, ["Panic"]);
    let event = audited.last().await;
    assert_eq!(
        (&event["verb"], &event["responseStatus"]["code"]),
        (&json!("create"), &json!(500))
    );
    admin.get(TASKS).await.expect(200);
}

async fn metric(client: &Client<'_>, name: &str) -> String {
    let metrics = client.get("/metrics").await.expect(200);
    let text = String::from_utf8_lossy(&metrics.bytes).into_owned();
    let line = text.lines().find_map(|line| line.strip_prefix(name)).map(str::trim);
    line.unwrap_or_else(|| panic!("{name} is not in {text}")).to_owned()
}

#[tokio::test]
async fn nothing_is_changed_while_nothing_can_be_written_about_it() {
    for policy in [None, Some(ONE_LINE)] {
        let audited = Audited {
            directory: tempfile::tempdir().unwrap(),
            server: Server::new().await,
        };
        let server = &audited.server;
        std::os::unix::fs::symlink("/dev/full", audited.log()).unwrap();
        server.state.audit_by(open(&audited.log(), audited.policy(policy)));
        let admin = server.admin();
        // Reads go on; this one is the first of which nothing can be written.
        admin.get(CONFIG_MAPS).await.expect(200);
        server.state.audit().unwrap().log.flush().await;
        for _ in 0..2 {
            let refused = admin.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(503);
            assert!(
                refused.message().contains("the audit log cannot be written"),
                "{}",
                refused.message()
            );
            assert_eq!(refused.headers["retry-after"], "10");
        }
        admin.get(&format!("{CONFIG_MAPS}/c")).await.expect(404);
        assert_eq!(metric(&admin, "muster_audit_failing").await, "1");
        // Somebody makes room: what was not written is written, and changes happen again.
        std::fs::remove_file(audited.log()).unwrap();
        admin.post(CONFIG_MAPS, &config_map("c", "1")).await.expect(201);
        let events = audited.events().await;
        let codes: Vec<u64> = events
            .iter()
            .filter_map(|event| event["responseStatus"]["code"].as_u64())
            .collect();
        let expect: &[u64] = if policy.is_some() {
            // This policy wants to know of metrics, too.
            &[200, 503, 503, 404, 200, 201]
        } else {
            &[200, 503, 503, 404, 201]
        };
        assert_eq!(codes, expect);
        assert_eq!(metric(&admin, "muster_audit_failing").await, "0");
        assert_eq!(metric(&admin, "muster_audit_events_total{outcome=\"lost\"}").await, "0");
    }
}

#[tokio::test]
async fn agents_and_leaders_stay_alive_while_nothing_can_be_written() {
    let audited = Audited {
        directory: tempfile::tempdir().unwrap(),
        server: Server::new().await,
    };
    let session = common::join(&audited.server, "a1").await;
    let agent = audited.server.agent("a1").fenced("muster-agents/a1", &session);
    audited
        .server
        .state
        .audit_by(open(Path::new("/dev/full"), audited.policy(Some(ONE_LINE))));
    audited.server.admin().get(TASKS).await.expect(200);
    audited.server.state.audit().unwrap().log.flush().await;
    assert!(audited.server.state.audit().unwrap().log.is_failing());
    let renew = format!("{}/muster-agents/leases/a1/renew", common::LEASES);
    agent.post(&renew, &json!({})).await.expect(200);
    let status = json!({"status": {"addresses": []}});
    agent
        .merge(&format!("{}/a1/status", common::AGENTS), &status)
        .await
        .expect(503);
}
