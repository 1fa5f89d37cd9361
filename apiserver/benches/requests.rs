//! What a request costs, what it costs more when it is written into an audit log, and what its seat in a lane costs, of which there are enough.
//!
//! Two servers in this process over stores in memory, one with an audit log by the default policy on the disk of temporary files; requests go to them
//! in turn, so that whatever disturbs one disturbs the other. A create writes two lines, a get one.

#![allow(
    clippy::disallowed_methods,
    clippy::print_stdout,
    reason = "a benchmark measures time and prints it"
)]

use std::hint::black_box;
use std::sync::Arc;
use std::time::{Duration, Instant};

use axum::Router;
use axum::body::Body;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use muster_api::env::SystemEnv;
use muster_apiserver::audit::{Audit, Kept, Options};
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::lanes::{Lane, Lanes, Limits};
use muster_apiserver::logs::NoLogs;
use muster_apiserver::{Config, State, kinds, router};
use muster_store::MemoryStore;
use serde_json::json;
use tower::ServiceExt as _;

const ROUNDS: usize = 2_000;
/// Seats that are taken and left for one measurement.
const SEATS: u32 = 100;
const TASKS: &str = "/apis/muster.dev/v1/namespaces/default/tasks";

struct Server {
    router: Router,
    token: String,
}

impl Server {
    async fn new(audit: Option<Options>) -> Server {
        let tokens = Arc::new(Tokens::in_memory());
        let config = Config {
            store: Arc::new(MemoryStore::new()),
            env: Arc::new(SystemEnv),
            resources: kinds::resources(),
            authenticator: tokens.clone(),
            logs: Arc::new(NoLogs),
            membership: Default::default(),
        };
        let state = State::start(config).await.expect("a server in memory starts");
        if let Some(options) = audit {
            state.audit_by(Audit::open(&options).expect("the directory is new"));
        }
        Server {
            router: router(state),
            token: tokens.ensure(&User::admin(), &SystemEnv).expect("in memory"),
        }
    }

    async fn ask(&self, method: &str, path: &str, body: String) -> Duration {
        let request = Request::builder()
            .method(method)
            .uri(path)
            .header("authorization", format!("Bearer {}", self.token))
            .body(Body::from(body))
            .expect("it is written here");
        let begun = Instant::now();
        let Ok(response) = self.router.clone().oneshot(request).await;
        assert!(matches!(response.status(), StatusCode::OK | StatusCode::CREATED));
        response.into_body().collect().await.expect("it is in memory");
        begun.elapsed()
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times[times.len() / 2]
}

#[tokio::main]
async fn main() {
    let directory = tempfile::tempdir().expect("there is room for temporary files");
    let kept = Kept {
        path: directory.path().join("audit.log"),
        bytes: 100 << 20,
        files: 10,
    };
    let (plain, audited) = (
        Server::new(None).await,
        Server::new(Some(Options { kept, policy: None })).await,
    );
    let mut times: [Vec<Duration>; 4] = Default::default();
    for round in 0..ROUNDS {
        let name = format!("t-{round}");
        let task = json!({"metadata": {"name": name}, "spec": {"command": ["true"], "resources": {"cpus": 1, "memory": "64Mi"}}});
        let path = format!("{TASKS}/{name}");
        for (server, at) in [(&plain, 0), (&audited, 2)] {
            times[at].push(server.ask("POST", TASKS, task.to_string()).await);
            times[at + 1].push(server.ask("GET", &path, String::new()).await);
        }
    }
    let lanes = Lanes::new(Limits::default());
    let mut seats = Vec::new();
    for _ in 0..ROUNDS {
        let begun = Instant::now();
        for _ in 0..SEATS {
            drop(black_box(
                lanes
                    .enter(Lane::Users, black_box("jo"))
                    .await
                    .expect("there are enough"),
            ));
        }
        seats.push(begun.elapsed() / SEATS);
    }
    println!("seat    {:?}", median(seats));
    let [create, get, audited_create, audited_get] = times.map(median);
    println!("create  {create:?}, with an audit log {audited_create:?}");
    println!("get     {get:?}, with an audit log {audited_get:?}");
}
