//! Several servers over one store: what one knows, the others say.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use async_trait::async_trait;
use axum::Router;
use axum::body::Body;
use bytes::Bytes;
use common::*;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use muster_api::env::SystemEnv;
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::membership::Membership;
use muster_apiserver::peers::Peers;
use muster_apiserver::tls::Pki;
use muster_store::{MemoryStore, Store};
use serde_json::{Value, json};
use tower::ServiceExt as _;

/// The ways between servers of one process, and how often they were used.
#[derive(Clone, Default)]
struct Network(Arc<Mutex<Ways>>);

/// The router and a token for each endpoint, and how often somebody was asked.
#[derive(Default)]
struct Ways(BTreeMap<String, (Router, String)>, usize);

#[async_trait]
impl Peers for Network {
    async fn read(&self, endpoint: &str, path: &str) -> Result<(StatusCode, Bytes), String> {
        let (router, token) = {
            let mut own = self.0.lock().unwrap();
            own.1 += 1;
            own.0.get(endpoint).cloned().ok_or("nobody is there")?
        };
        let request = Request::get(path)
            .header("authorization", format!("Bearer {token}"))
            .header("muster-passed-on", "true");
        let response = router.oneshot(request.body(Body::empty()).unwrap()).await.unwrap();
        let status = response.status();
        Ok((status, response.into_body().collect().await.unwrap().to_bytes()))
    }
}

struct Servers {
    network: Network,
    one: Server,
    two: Server,
    _directory: tempfile::TempDir,
}

impl Servers {
    async fn start() -> Servers {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let network = Network::default();
        let directory = tempfile::tempdir().unwrap();
        let pki = Arc::new(Pki::open(directory.path(), &SystemEnv).unwrap());
        let start = async |name: &str| {
            let mut membership = Membership::new(name, pki.clone(), Arc::new(Tokens::in_memory()));
            membership.peers = Some(Arc::new(network.clone()));
            let server = Server::within(store.clone(), membership).await;
            let endpoint = format!("{name}:1");
            let token = server.token(&User::new("muster-apiserver", &[]));
            network
                .0
                .lock()
                .unwrap()
                .0
                .insert(endpoint.clone(), (server.router.clone(), token));
            server.state.appear(vec![endpoint], name);
            server
        };
        let servers = Servers {
            one: start("s1").await,
            two: start("s2").await,
            network: network.clone(),
            _directory: directory,
        };
        for server in [&servers.one, &servers.two] {
            eventually(async || endpoints(server).await == ["s1", "s2"]).await;
        }
        servers
    }

    fn passed_on(&self) -> usize {
        self.network.0.lock().unwrap().1
    }
}

async fn eventually(mut done: impl AsyncFnMut() -> bool) {
    while !done().await {
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
}

async fn endpoints(server: &Server) -> Vec<String> {
    let found = server.jo().get("/muster/v1/endpoints").await.expect(200);
    let servers = found.json["servers"].as_array().unwrap().iter();
    servers
        .map(|server| server["name"].as_str().unwrap().to_owned())
        .collect()
}

fn report(words: &str) -> Value {
    json!({"revision": 1, "tasks": [{"namespace": "default", "task": "t", "summary": words}]})
}

/// Leads through a server, as the controllers of the server `name`.
async fn lead(server: &Server, name: &str) -> String {
    let mut body = lease("muster-controllers", 15);
    body["spec"]["holderIdentity"] = json!(format!("{name}/x"));
    let path = format!("{LEASES}/muster-system/leases");
    let made = server.controllers().post(&path, &body).await.expect(201);
    made.version().to_owned()
}

async fn tell(server: &Server, term: &str, words: &str) {
    let leader = server.controllers().fenced("muster-system/muster-controllers", term);
    leader.put("/muster/v1/plan", &report(words)).await.expect(200);
}

async fn why(server: &Server) -> Answer {
    server.jo().get("/muster/v1/why/default/t").await
}

#[tokio::test(start_paused = true)]
async fn every_server_says_why_a_task_waits() {
    let servers = Servers::start().await;
    servers.one.jo().post(TASKS, &task("t")).await.expect(201);
    why(&servers.two).await.expect(503);
    let before = servers.passed_on();
    assert!(before <= 1, "nobody asks back: {before}");

    let term = lead(&servers.one, "s1").await;
    tell(&servers.one, &term, "first").await;
    for server in [&servers.one, &servers.two] {
        assert_eq!(why(server).await.expect(200).json["summary"], "first");
        let plan = server.jo().get("/muster/v1/plan").await.expect(200);
        assert_eq!(plan.json["tasks"][0]["summary"], "first");
    }
    // The other one leads now: what the first was told is old, and it knows that.
    let path = format!("{LEASES}/muster-system/leases/muster-controllers");
    servers.one.admin().delete(&path).await.expect(200);
    let term = lead(&servers.two, "s2").await;
    tell(&servers.two, &term, "second").await;
    for server in [&servers.one, &servers.two] {
        assert_eq!(why(server).await.expect(200).json["summary"], "second");
    }
    // Who leads is gone, and so are its reasons: the answer says so and does not come from the past.
    servers.network.0.lock().unwrap().0.remove("s2:1");
    why(&servers.one).await.expect(503);
}

#[tokio::test(start_paused = true)]
async fn what_was_written_through_one_server_is_read_through_the_other() {
    let servers = Servers::start().await;
    for number in 0..20 {
        let name = format!("t{number}");
        let (writer, reader) = match number % 2 {
            0 => (&servers.one, &servers.two),
            _ => (&servers.two, &servers.one),
        };
        let written = writer.jo().post(TASKS, &task(&name)).await.expect(201);
        reader.jo().get(&format!("{TASKS}/{name}")).await.expect(200);
        let list = reader.jo().get(TASKS).await.expect(200);
        assert_eq!(names(&list.json).len(), number + 1);
        let path = format!(
            "{TASKS}?resourceVersion={}&resourceVersionMatch=NotOlderThan",
            written.version()
        );
        assert_eq!(names(&reader.jo().get(&path).await.expect(200).json).len(), number + 1);
    }
    let future = servers.one.state.hub.revision() + 100;
    let late = servers
        .two
        .jo()
        .get(&format!("{TASKS}?resourceVersion={future}"))
        .await
        .expect(504);
    assert_eq!(late.reason(), "Timeout");
}

#[tokio::test(start_paused = true)]
async fn an_ordered_watch_goes_on_at_another_server_without_a_step_back() {
    let servers = Servers::start().await;
    let path = "/muster/v1/watch?resources=tasks.muster.dev";
    servers.one.jo().post(TASKS, &task("t1")).await.expect(201);
    let first = servers.one.jo().watch(path).await.next().await.unwrap();
    let reached = first["revision"].as_u64().unwrap();
    servers.one.jo().post(TASKS, &task("t2")).await.expect(201);
    let mut lines = servers
        .two
        .jo()
        .watch(&format!("{path}&resourceVersion={reached}"))
        .await;
    let next = loop {
        let line = lines.next().await.unwrap();
        assert!(line["revision"].as_u64().unwrap() >= reached, "{line}");
        if line["type"] == "BATCH" {
            break line;
        }
    };
    assert_eq!(next["changes"][0]["object"]["metadata"]["name"], "t2");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_leaves_says_so_at_once_and_serves_on() {
    let servers = Servers::start().await;
    servers.one.anonymous().get("/readyz").await.expect(200);
    servers.one.state.leave();
    servers.one.anonymous().get("/readyz").await.expect(500);
    eventually(async || endpoints(&servers.two).await == ["s2"]).await;
    servers.one.jo().post(TASKS, &task("t")).await.expect(201);

    // Another one of its name is not taken for it, as long as it is there.
    let mut lines = servers
        .two
        .jo()
        .watch("/muster/v1/watch?resources=tasks.muster.dev")
        .await;
    lines.next().await.unwrap();
    servers.two.state.end_watches();
    while lines.next().await.is_some() {}
    servers.two.jo().post(TASKS, &task("u")).await.expect(201);
}

#[tokio::test(start_paused = true)]
async fn two_servers_of_one_name_are_not_confused() {
    let servers = Servers::start().await;
    let directory = tempfile::tempdir().unwrap();
    let pki = Arc::new(Pki::open(directory.path(), &SystemEnv).unwrap());
    let start = async |instance: &str, endpoint: &str| {
        let membership = Membership::new("s2", pki.clone(), Arc::new(Tokens::in_memory()));
        let server = Server::within(servers.one.store.clone(), membership).await;
        server.state.appear(vec![endpoint.to_owned()], instance);
        server
    };
    let shown = async || {
        let found = servers.one.jo().get("/muster/v1/endpoints").await.expect(200);
        found.json["servers"][1]["endpoints"][0]
            .as_str()
            .unwrap_or_default()
            .to_owned()
    };
    let foreign = start("other", "s9:1").await;
    tokio::time::sleep(Duration::from_secs(30)).await;
    assert_eq!(shown().await, "s2:1");
    foreign.state.stopped().await;
    // The next process over the same directory takes over at once.
    servers.two.state.stop();
    let _successor = start("s2", "s2:2").await;
    eventually(async || shown().await == "s2:2").await;
}
