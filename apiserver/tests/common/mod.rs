//! A server in this process: the real router over a store in memory, on one thread and a paused clock.

#![allow(
    dead_code,
    unreachable_pub,
    clippy::unwrap_used,
    reason = "each test binary uses its own part of this, and may panic"
)]

use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64, Ordering};

use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use futures::StreamExt;
use http::{HeaderMap, Request, StatusCode};
use http_body_util::BodyExt;
use muster_api::Timestamp;
use muster_api::env::Env;
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::logs::{LogSource, NoLogs};
use muster_apiserver::membership::Membership;
use muster_apiserver::tls::{Certified, Peer};
use muster_apiserver::{Config, State, kinds, router};
use muster_store::{MemoryStore, Store};
use serde_json::{Value, json};
use tower::ServiceExt;
use uuid::Uuid;

/// A clock that is set by hand, and identities that count up.
#[derive(Default)]
pub struct TestEnv {
    seconds: AtomicI64,
    uids: AtomicU64,
}

impl TestEnv {
    pub fn advance(&self, seconds: i64) {
        self.seconds.fetch_add(seconds, Ordering::Relaxed);
    }
}

/// 2026-01-01T00:00:00Z.
const BEGIN: i64 = 1_767_225_600;

impl Env for TestEnv {
    fn now(&self) -> Timestamp {
        Timestamp::from_second(BEGIN + self.seconds.load(Ordering::Relaxed)).unwrap()
    }

    fn uid(&self) -> Uuid {
        // Spread over all bits, so that names drawn from it differ.
        let count = u128::from(self.uids.fetch_add(1, Ordering::Relaxed) + 1);
        uuid::Builder::from_random_bytes(
            count
                .wrapping_mul(0x9e37_79b9_7f4a_7c15_f39c_c060_5ced_c835)
                .to_be_bytes(),
        )
        .into_uuid()
    }
}

pub struct Server {
    pub state: Arc<State>,
    pub router: Router,
    pub env: Arc<TestEnv>,
    pub store: Arc<dyn Store>,
    tokens: Arc<Tokens>,
}

/// An answer, read to its end.
#[derive(Debug)]
pub struct Answer {
    pub code: StatusCode,
    pub headers: HeaderMap,
    pub bytes: Bytes,
    pub json: Value,
}

impl Answer {
    /// The answer, if it has this code.
    #[track_caller]
    pub fn expect(self, code: u16) -> Answer {
        assert_eq!(self.code.as_u16(), code, "{}", self.json);
        self
    }

    pub fn version(&self) -> &str {
        self.json["metadata"]["resourceVersion"].as_str().unwrap_or_default()
    }

    pub fn reason(&self) -> &str {
        self.json["reason"].as_str().unwrap_or_default()
    }

    pub fn message(&self) -> &str {
        self.json["message"].as_str().unwrap_or_default()
    }
}

impl Server {
    pub async fn new() -> Server {
        Server::on(Arc::new(MemoryStore::new())).await
    }

    pub async fn on(store: Arc<dyn Store>) -> Server {
        Server::within(store, Membership::default()).await
    }

    /// With an authority, so that machines can join.
    pub async fn within(store: Arc<dyn Store>, membership: Membership) -> Server {
        Server::with(store, membership, Arc::new(NoLogs)).await
    }

    /// With a way to agents.
    pub async fn with(store: Arc<dyn Store>, membership: Membership, logs: Arc<dyn LogSource>) -> Server {
        let env = Arc::new(TestEnv::default());
        let tokens = Arc::new(Tokens::in_memory());
        let config = Config {
            store: store.clone(),
            env: env.clone(),
            resources: kinds::resources(),
            authenticator: tokens.clone(),
            logs,
            membership,
        };
        let state = State::start(config).await.unwrap();
        let server = Server {
            router: router(state.clone()),
            state,
            env,
            store,
            tokens,
        };
        server.let_ml_work().await;
        server
    }

    /// The group `ml`, which [`jo`](Server::jo) is in, works everywhere, as a team does in its namespace: a role of the tests' own, that has no secrets.
    async fn let_ml_work(&self) {
        let read = ["get", "list", "watch"];
        let write = [
            "get",
            "list",
            "watch",
            "create",
            "delete",
            "deletecollection",
            "patch",
            "update",
        ];
        let rule = |groups: &[&str], resources: &[&str], verbs: &[&str]| json!({"apiGroups": groups, "resources": resources, "verbs": verbs});
        let rules = [
            rule(&["muster.dev"], &["*"], &read),
            rule(&["muster.dev"], &["frameworks", "tasks"], &write),
            rule(&["muster.dev"], &["offers/accept", "offers/decline"], &["create"]),
            rule(&["", "events.k8s.io"], &["events"], &write),
            rule(&[""], &["configmaps"], &write),
            rule(&[""], &["namespaces"], &read),
            rule(&["coordination.k8s.io"], &["leases"], &write),
            rule(&["coordination.k8s.io"], &["leases/renew"], &["create"]),
            rule(&["example.com"], &["*"], &write),
            json!({"nonResourceURLs": ["/muster/v1/plan"], "verbs": ["get"]}),
        ];
        let role = json!({"metadata": {"name": "ml"}, "rules": rules});
        let binding = json!({
            "metadata": {"name": "ml"},
            "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "ml"},
            "subjects": [{"kind": "Group", "name": "ml"}],
        });
        for (path, object) in [(CLUSTER_ROLES, role), (CLUSTER_ROLE_BINDINGS, binding)] {
            let made = self.admin().post(path, &object).await;
            // Another server over the same store may have made it.
            assert!(made.code == 201 || made.code == 409, "{}", made.json);
        }
    }

    /// The token of a user.
    pub fn token(&self, user: &User) -> String {
        self.tokens.ensure(user, &*self.env).unwrap()
    }

    fn user(&self, user: User) -> Client<'_> {
        let token = self.token(&user);
        Client {
            server: self,
            headers: vec![("authorization".to_owned(), format!("Bearer {token}"))],
            peer: None,
        }
    }

    /// Whoever has this token.
    pub fn bearer(&self, token: &str) -> Client<'_> {
        Client {
            headers: vec![("authorization".to_owned(), format!("Bearer {token}"))],
            ..self.anonymous()
        }
    }

    pub fn admin(&self) -> Client<'_> {
        self.user(User::admin())
    }

    pub fn controllers(&self) -> Client<'_> {
        self.user(User::controllers())
    }

    pub fn agent(&self, name: &str) -> Client<'_> {
        self.user(User::agent(name))
    }

    /// A user without groups, whom nobody has given anything.
    pub fn user_named(&self, name: &str) -> Client<'_> {
        self.user(User::new(name, &[]))
    }

    pub fn jo(&self) -> Client<'_> {
        self.user(User::new("jo", &["ml"]))
    }

    /// A user of these groups.
    pub fn user_in(&self, name: &str, groups: &[&str]) -> Client<'_> {
        self.user(User::new(name, groups))
    }

    pub fn anonymous(&self) -> Client<'_> {
        Client {
            server: self,
            headers: Vec::new(),
            peer: None,
        }
    }

    /// Somebody who shows a certificate instead of a token.
    pub fn certified(&self, user: User, not_after: Timestamp) -> Client<'_> {
        let issued_at = self.env.now();
        let certificate = Some(Certified {
            user,
            issued_at,
            not_after,
        });
        let address = "10.0.0.1:1".parse().unwrap();
        Client {
            peer: Some(Peer { address, certificate }),
            ..self.anonymous()
        }
    }
}

#[derive(Clone)]
pub struct Client<'a> {
    server: &'a Server,
    headers: Vec<(String, String)>,
    peer: Option<Peer>,
}

impl Client<'_> {
    #[must_use]
    pub fn with(mut self, name: &str, value: &str) -> Self {
        self.headers.push((name.to_owned(), value.to_owned()));
        self
    }

    #[must_use]
    pub fn fenced(self, lease: &str, revision: &str) -> Self {
        self.with("muster-fence", &format!("{lease}@{revision}"))
    }

    pub async fn open(&self, method: &str, path: &str, body: impl Into<Body>) -> http::Response<Body> {
        let mut request = Request::builder().method(method).uri(path);
        for (name, value) in &self.headers {
            request = request.header(name, value);
        }
        let mut request = request.body(body.into()).unwrap();
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        self.server.router.clone().oneshot(request).await.unwrap()
    }

    pub async fn send(&self, method: &str, path: &str, body: impl Into<Body>) -> Answer {
        let (parts, body) = self.open(method, path, body).await.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        Answer {
            code: parts.status,
            headers: parts.headers,
            json: serde_json::from_slice(&bytes).unwrap_or_default(),
            bytes,
        }
    }

    pub async fn get(&self, path: &str) -> Answer {
        self.send("GET", path, Body::empty()).await
    }

    pub async fn post(&self, path: &str, body: &Value) -> Answer {
        self.send("POST", path, body.to_string()).await
    }

    pub async fn put(&self, path: &str, body: &Value) -> Answer {
        self.send("PUT", path, body.to_string()).await
    }

    pub async fn delete(&self, path: &str) -> Answer {
        self.send("DELETE", path, Body::empty()).await
    }

    pub async fn merge(&self, path: &str, body: &Value) -> Answer {
        let client = self.clone().with("content-type", "application/merge-patch+json");
        client.send("PATCH", path, body.to_string()).await
    }

    pub async fn json_patch(&self, path: &str, body: &Value) -> Answer {
        let client = self
            .clone()
            .with("content-type", "application/json-patch+json; charset=utf-8");
        client.send("PATCH", path, body.to_string()).await
    }

    /// Opens a stream of lines.
    pub async fn watch(&self, path: &str) -> Lines {
        let response = self.open("GET", path, Body::empty()).await;
        assert_eq!(response.status(), StatusCode::OK, "{path}");
        Lines::new(response.into_body())
    }
}

/// A body of lines of JSON.
pub struct Lines {
    body: Body,
    rest: Vec<u8>,
    ended: bool,
}

impl Lines {
    pub fn new(body: Body) -> Lines {
        Lines {
            body,
            rest: Vec::new(),
            ended: false,
        }
    }

    /// The next line; `None`: the stream has ended.
    pub async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.rest.iter().position(|byte| *byte == b'\n') {
                let line: Vec<u8> = self.rest.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            if self.ended {
                return None;
            }
            match self.body.frame().await {
                Some(frame) => self.rest.extend_from_slice(&frame.unwrap().into_data().unwrap()),
                None => self.ended = true,
            }
        }
    }

    /// The next line, as `TYPE name@version`.
    pub async fn event(&mut self) -> String {
        match self.next().await {
            None => "END".to_owned(),
            Some(line) => brief(&line),
        }
    }

    /// The lines that come without anything else happening.
    pub async fn ready(&mut self) -> Vec<Value> {
        let mut lines = Vec::new();
        while let Ok(Some(line)) = tokio::time::timeout(std::time::Duration::from_millis(1), self.next()).await {
            lines.push(line);
        }
        lines
    }
}

/// A watch event as `TYPE name@version`.
pub fn brief(event: &Value) -> String {
    let metadata = &event["object"]["metadata"];
    let text = |name: &str| metadata[name].as_str().unwrap_or_default();
    format!(
        "{} {}@{}",
        event["type"].as_str().unwrap_or("?"),
        text("name"),
        text("resourceVersion")
    )
}

pub const TASKS: &str = "/apis/muster.dev/v1/namespaces/default/tasks";
pub const OFFERS: &str = "/apis/muster.dev/v1/namespaces/default/offers";
pub const AGENTS: &str = "/apis/muster.dev/v1/agents";
pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";
pub const CLUSTER_ROLES: &str = "/apis/rbac.authorization.k8s.io/v1/clusterroles";
pub const CLUSTER_ROLE_BINDINGS: &str = "/apis/rbac.authorization.k8s.io/v1/clusterrolebindings";
pub const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces";

pub fn task(name: &str) -> Value {
    json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": {"name": name},
        "spec": {"command": ["true"], "resources": {"cpus": "0.5", "memory": "64Mi"}},
    })
}

pub fn config_map(name: &str, value: &str) -> Value {
    json!({"metadata": {"name": name}, "data": {"key": value}})
}

pub fn lease(name: &str, seconds: u64) -> Value {
    json!({
        "metadata": {"name": name, "annotations": {"muster.dev/ephemeral": "true"}},
        "spec": {"leaseDurationSeconds": seconds, "holderIdentity": "me"},
    })
}

/// What is needed to place tasks: the controllers lead, and an agent is there.
pub struct Cluster {
    pub server: Server,
    pub leader: String,
    pub presence: String,
}

impl Cluster {
    pub async fn new() -> Cluster {
        Cluster::on(Arc::new(MemoryStore::new())).await
    }

    pub async fn on(store: Arc<dyn Store>) -> Cluster {
        let server = Server::on(store).await;
        let leader = lead(&server).await;
        let presence = join(&server, "a1").await;
        Cluster {
            server,
            leader,
            presence,
        }
    }

    pub fn controllers(&self) -> Client<'_> {
        self.server
            .controllers()
            .fenced("muster-system/muster-controllers", &self.leader)
    }

    pub fn agent(&self) -> Client<'_> {
        self.server.agent("a1").fenced("muster-agents/a1", &self.presence)
    }

    /// The controllers go on leading, and the agent stays.
    pub async fn renew(&self) {
        let leases = [
            (self.controllers(), "muster-system", "muster-controllers"),
            (self.agent(), "muster-agents", "a1"),
        ];
        for (client, namespace, name) in leases {
            client
                .post(&format!("{LEASES}/{namespace}/leases/{name}/renew"), &json!({}))
                .await;
        }
    }

    /// Makes offers of the agent a1.
    pub async fn offer(&self, offers: &[Value]) -> Answer {
        let seen = self.server.state.hub.revision();
        let body = json!({"seenRevision": seen, "create": offers});
        self.controllers().post(&format!("{AGENTS}/a1/offers"), &body).await
    }

    /// An offer of a1 with the given name, CPUs, devices and ports.
    pub fn an_offer(&self, name: &str, cpus: u32, devices: &[&str], ports: &str) -> Value {
        offer(&self.server, name, cpus, devices, ports)
    }

    pub async fn accept(&self, offer: &str, body: &Value) -> Answer {
        self.server.jo().post(&format!("{OFFERS}/{offer}/accept"), body).await
    }

    pub async fn get_task(&self, name: &str) -> Value {
        self.server
            .admin()
            .get(&format!("{TASKS}/{name}"))
            .await
            .expect(200)
            .json
    }
}

pub async fn lead(server: &Server) -> String {
    let leases = format!("{LEASES}/muster-system/leases");
    let answer = server
        .controllers()
        .post(&leases, &lease("muster-controllers", 15))
        .await
        .expect(201);
    answer.version().to_owned()
}

pub fn device(uuid: &str) -> Value {
    json!({"uuid": uuid, "model": "NVIDIA H100 80GB HBM3", "memory": "80Gi", "computeCapability": "9.0", "health": "Healthy"})
}

/// An agent of 4 CPUs, 4Gi of memory, four GPUs and ten ports; gives its session.
pub async fn join(server: &Server, name: &str) -> String {
    let agent = server.agent(name);
    let leases = format!("{LEASES}/muster-agents/leases");
    let session = agent
        .post(&leases, &lease(name, 30))
        .await
        .expect(201)
        .version()
        .to_owned();
    let object = json!({"metadata": {"name": name}, "spec": {"attributes": {"hostname": name, "zone": "a"}}});
    agent.post(AGENTS, &object).await.expect(201);
    let devices: Vec<Value> = (0..4).map(|index| device(&format!("GPU-{name}-{index}"))).collect();
    let status = json!({"status": {
        "capacity": {"cpus": "4", "memory": "4Gi", "disk": "10Gi", "gpus": 4, "ports": ["31000-31009"]},
        "devices": devices,
        "session": session.parse::<u64>().unwrap(),
    }});
    let fenced = agent.fenced(&format!("muster-agents/{name}"), &session);
    fenced
        .merge(&format!("{AGENTS}/{name}/status"), &status)
        .await
        .expect(200);
    session
}

pub fn offer(server: &Server, name: &str, cpus: u32, devices: &[&str], ports: &str) -> Value {
    let ports: Vec<&str> = ports.split(',').filter(|range| !range.is_empty()).collect();
    json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Offer",
        "metadata": {"name": name, "namespace": "default"},
        "spec": {
            "framework": "default",
            "role": "default",
            "agent": "a1",
            "resources": {"cpus": cpus.to_string(), "memory": "1Gi", "disk": "1Gi", "gpus": devices.len(), "ports": ports},
            "devices": devices.iter().map(|uuid| device(uuid)).collect::<Vec<_>>(),
            "attributes": {"hostname": "a1", "zone": "a"},
            "expiresAt": (server.env.now() + jiff::SignedDuration::from_secs(30)).to_string(),
        },
    })
}

/// Every object of a body's list, by name and version.
pub fn versions(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    let text = |item: &Value, name: &str| item["metadata"][name].as_str().unwrap().to_owned();
    items
        .map(|item| format!("{}@{}", text(item, "name"), text(item, "resourceVersion")))
        .collect()
}

pub fn names(list: &Value) -> Vec<&str> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

/// Keeps `StreamExt` in use for binaries that read streams by hand.
pub async fn first_frame(body: Body) -> Option<Bytes> {
    body.into_data_stream().next().await?.ok()
}
