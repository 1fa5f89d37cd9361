//! A cluster in one thread on a paused clock: the real API server, controllers, and agents driven by hand.

#![allow(
    dead_code,
    unreachable_pub,
    unused_imports,
    reason = "each test file uses a part of it"
)]

mod agent;
mod server;

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_api::env::{Env, SystemEnv};
use muster_api::resources::Bundle;
use muster_api::task_state::Phase;
use muster_api::v1::Task;
use muster_client::Client;
use muster_controllers::runtime::feed::{Feed, Subscriber};
use muster_controllers::runtime::{Change, Id, View};
use muster_controllers::{Config, run};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

pub use agent::{Habit, TestAgent};
pub use server::{Server, User};

/// The wall clock of tests: it goes with tokio's.
pub struct TestEnv {
    start: tokio::time::Instant,
}

impl Env for TestEnv {
    fn now(&self) -> muster_api::Timestamp {
        let start: muster_api::Timestamp = "2026-01-01T00:00:00Z".parse().expect("a time");
        start + muster_api_span(self.start.elapsed())
    }

    fn uid(&self) -> uuid::Uuid {
        SystemEnv.uid()
    }
}

fn muster_api_span(elapsed: Duration) -> jiff::SignedDuration {
    jiff::SignedDuration::try_from(elapsed).expect("tests are short")
}

/// A running cluster.
pub struct TestCluster {
    pub env: Arc<dyn Env>,
    pub server: Server,
    /// May do everything.
    pub admin: Client,
    feed: Arc<Feed>,
    stop: CancellationToken,
    _guard: Option<tokio::task::AbortHandle>,
}

/// One process of controllers.
pub struct Controllers {
    pub stop: CancellationToken,
    pub running: JoinHandle<Result<(), muster_controllers::Error>>,
}

impl Controllers {
    /// Asks it to end, and waits.
    pub async fn stop(self) {
        self.stop.cancel();
        self.running.await.expect("no panic").expect("a good end");
    }

    /// It is gone from one moment to the next.
    pub async fn kill(self) {
        self.running.abort();
        let _ = self.running.await;
    }
}

impl TestCluster {
    /// An API server without controllers and agents.
    pub async fn start() -> TestCluster {
        let env: Arc<dyn Env> = Arc::new(TestEnv {
            start: tokio::time::Instant::now(),
        });
        let server = Server::start(env.clone()).await;
        let admin = server.client(User::Admin);
        let feed = Feed::new();
        let stop = CancellationToken::new();
        let following = tokio::spawn({
            let (feed, admin, stop) = (feed.clone(), admin.clone(), stop.clone());
            async move { feed.run(&admin, &stop).await }
        });
        feed.reached(1).await;
        TestCluster {
            env,
            server,
            admin,
            feed,
            stop,
            _guard: Some(following.abort_handle()),
        }
    }

    /// The same with controllers.
    pub async fn with_controllers() -> (TestCluster, Controllers) {
        let cluster = TestCluster::start().await;
        let controllers = cluster.controllers("c1");
        (cluster, controllers)
    }

    /// Starts controllers.
    pub fn controllers(&self, identity: &str) -> Controllers {
        let config = Config {
            identity: identity.to_owned(),
            ..Config::default()
        };
        let stop = CancellationToken::new();
        let client = self.server.client(User::Controllers);
        let running = tokio::spawn(run(client, self.env.clone(), config, stop.clone()));
        Controllers { stop, running }
    }

    /// An agent joins.
    pub async fn agent(&self, name: &str, cpus: u32, habit: Habit) -> TestAgent {
        TestAgent::join(self.server.client(User::Agent(name.to_owned())), name, cpus, habit).await
    }

    /// Creates a task of one CPU and 64 MiB, changed by `spec`.
    pub async fn task(&self, name: &str, spec: Value) -> Task {
        let mut task = json!({
            "apiVersion": "muster.dev/v1", "kind": "Task",
            "metadata": { "name": name, "namespace": "default" },
            "spec": { "command": ["true"], "resources": { "cpus": 1, "memory": "64Mi" } },
        });
        for (key, value) in spec.as_object().into_iter().flatten() {
            task["spec"][key] = value.clone();
        }
        let path = "/apis/muster.dev/v1/namespaces/default/tasks";
        self.admin.create_at(path, &task).await.expect("created")
    }

    /// The view now.
    pub fn view(&self) -> View {
        self.feed.view()
    }

    /// Waits until `found` finds something in the view; panics with `what` after a minute.
    pub async fn wait<T>(&self, what: &str, mut found: impl FnMut(&View) -> Option<T>) -> T {
        let waiting = async {
            let mut revisions = self.feed.revisions();
            loop {
                revisions.borrow_and_update();
                if let Some(found) = found(&self.feed.view()) {
                    return found;
                }
                revisions.changed().await.expect("the feed lives");
            }
        };
        match tokio::time::timeout(Duration::from_secs(60), waiting).await {
            Ok(found) => found,
            Err(_) => panic!("{what} did not happen; tasks: {:#?}", self.view().tasks),
        }
    }

    /// Waits until a task is in that phase.
    pub async fn phase(&self, name: &str, phase: Phase) -> Arc<Task> {
        let id = Id::new("default", name);
        let what = format!("{name} {phase}");
        self.wait(&what, |view| (view.phase(&id) == Some(phase)).then_some(()))
            .await;
        let task = self.admin.get(Some("default"), name).await;
        Arc::new(task.expect("it is there"))
    }

    /// Checks after every revision that no agent gives out more than it has; the sum of checks is returned by the result.
    pub fn watch_capacity(&self) -> Arc<CapacityCheck> {
        let check = Arc::new(CapacityCheck::default());
        // Kept for the life of the feed.
        std::mem::forget(self.feed.subscribe(check.clone()));
        check
    }
}

impl Drop for TestCluster {
    fn drop(&mut self) {
        self.stop.cancel();
    }
}

/// Remembers what was wrong.
#[derive(Default)]
pub struct CapacityCheck {
    found: std::sync::Mutex<(usize, Vec<String>)>,
}

impl Subscriber for CapacityCheck {
    fn changed(&self, _: &[Change], view: &View) {
        let mut found = self.found.lock().expect("found");
        found.0 += 1;
        for (name, agent) in &view.agents {
            let tasks = view.live_tasks(name).map(|task| task.held());
            let held = tasks.chain(view.offers_of(name).map(|offer| offer.held()));
            let sum = held
                .into_iter()
                .try_fold(Bundle::default(), |sum, bundle| sum.checked_add(&bundle));
            if !sum.as_ref().is_some_and(|sum| agent.allocatable().contains(sum)) {
                found.1.push(format!(
                    "at revision {} agent {name} has given out {sum:?}",
                    view.revision
                ));
            }
        }
    }
}

impl CapacityCheck {
    /// Panics when anything was wrong; gives the number of revisions that were looked at.
    pub fn assert_kept(&self) -> usize {
        let found = self.found.lock().expect("found");
        assert!(found.1.is_empty(), "{:#?}", found.1);
        found.0
    }
}

/// The tasks of a view by phase.
pub fn phases(view: &View) -> BTreeMap<Phase, usize> {
    let mut phases = BTreeMap::new();
    let ended = view.ended.values().map(|task| task.phase);
    for phase in view.tasks.values().map(|task| task.phase()).chain(ended) {
        *phases.entry(phase).or_default() += 1;
    }
    phases
}
