//! A router with an in-memory store, agents with fake runtimes, all on tokio's paused clock.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicI64, AtomicU64, Ordering};
use std::time::Duration;

use muster_agentd::devices::SimulatedDevices;
use muster_agentd::session::Identity;
use muster_agentd::{Config, Error};
use muster_api::Timestamp;
use muster_api::env::Env;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, AgentCapacity, Offer, OfferSpec, OfferedResources, Task, TaskSpec, Versions};
use muster_api::wire::{AcceptRequest, AgentOffers};
use muster_apiserver::auth::{Tokens, User};
use muster_apiserver::logs::{LogSource, NoLogs};
use muster_client::Client;
use muster_runtime::{ContainerId, FakeRuntime};
use muster_store::{MemoryStore, Store};
use serde_json::{Value, json};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tower::ServiceExt as _;

/// Milliseconds since the epoch at which clusters begin.
pub(crate) const START_MS: i64 = 1_800_000_000_000;

/// A wall clock that goes with tokio's, and identities that count.
pub(crate) struct World {
    start: Instant,
    uids: AtomicU64,
    /// How far the wall clock is off, in milliseconds.
    pub(crate) jump_ms: AtomicI64,
}

impl World {
    fn now_ms(&self) -> i64 {
        START_MS
            + i64::try_from(self.start.elapsed().as_millis()).expect("tests are short")
            + self.jump_ms.load(Ordering::Relaxed)
    }
}

impl Env for World {
    fn now(&self) -> Timestamp {
        Timestamp::from_millisecond(self.now_ms()).expect("in range")
    }

    fn uid(&self) -> uuid::Uuid {
        uuid::Uuid::from_u128(u128::from(self.uids.fetch_add(1, Ordering::Relaxed)))
    }
}

/// The control plane, as far as agents need it.
pub(crate) struct Cluster {
    pub(crate) env: Arc<World>,
    pub(crate) admin: Client,
    tokens: Arc<Tokens>,
    state: Arc<muster_apiserver::State>,
    offers: AtomicU64,
    requests: Arc<AtomicU64>,
}

/// An agent that runs.
pub(crate) struct Running {
    pub(crate) stop: CancellationToken,
    pub(crate) task: JoinHandle<Result<(), Error>>,
}

impl Cluster {
    /// A control plane that cannot read logs.
    pub(crate) async fn new() -> Cluster {
        Cluster::with_logs(Arc::new(NoLogs)).await
    }

    pub(crate) async fn with_logs(logs: Arc<dyn LogSource>) -> Cluster {
        Cluster::on(Arc::new(MemoryStore::new()), logs).await
    }

    /// Over a store that may hold something.
    pub(crate) async fn on(store: Arc<dyn Store>, logs: Arc<dyn LogSource>) -> Cluster {
        let env = Arc::new(World {
            start: Instant::now(),
            uids: AtomicU64::new(1),
            jump_ms: AtomicI64::new(0),
        });
        let tokens = Arc::new(Tokens::in_memory());
        let state = muster_apiserver::State::start(muster_apiserver::Config {
            store,
            env: env.clone(),
            resources: muster_apiserver::kinds::resources(),
            authenticator: tokens.clone(),
            logs,
            membership: Default::default(),
        });
        let state = state.await.expect("an empty store can be served");
        let token = tokens.ensure(&User::admin(), &*env).expect("tokens in memory");
        let router = muster_apiserver::router(state.clone());
        Cluster {
            admin: Client::in_process(router, &token),
            env,
            tokens,
            state,
            offers: AtomicU64::new(0),
            requests: Arc::default(),
        }
    }

    /// A client of the agent of this name.
    pub(crate) fn client(&self, agent: &str) -> Client {
        let requests = Arc::clone(&self.requests);
        let counted = self.router().map_request(move |request| {
            requests.fetch_add(1, Ordering::Relaxed);
            request
        });
        Client::in_process(counted, &self.token(agent))
    }

    /// A client of the agent of this name whose way to the server can be cut.
    pub(crate) fn cuttable(&self, agent: &str, cut: Arc<AtomicBool>) -> Client {
        let router = self.router();
        let service = tower::service_fn(move |request: http::Request<kube::client::Body>| {
            let (router, cut) = (router.clone(), Arc::clone(&cut));
            async move {
                let lost = || std::io::Error::other("the connection is lost");
                if cut.load(Ordering::Relaxed) {
                    return Err(lost());
                }
                let Ok(answer) = router.oneshot(request.map(axum::body::Body::new)).await;
                Ok(answer)
            }
        });
        Client::in_process(service, &self.token(agent))
    }

    /// A client of agent `a1` that reaches this cluster, or the other one while `other` is set.
    pub(crate) fn switchable(&self, other: &Cluster, switched: Arc<AtomicBool>) -> Client {
        let ways = [self, other].map(|cluster| (cluster.router(), format!("Bearer {}", cluster.token("a1"))));
        let service = tower::service_fn(move |mut request: http::Request<kube::client::Body>| {
            let (router, token) = ways[usize::from(switched.load(Ordering::Relaxed))].clone();
            let token = token.parse().expect("tokens are visible characters");
            request.headers_mut().insert(http::header::AUTHORIZATION, token);
            router.oneshot(request.map(axum::body::Body::new))
        });
        Client::in_process(service, "replaced")
    }

    /// How many requests agents have made.
    pub(crate) fn requests(&self) -> u64 {
        self.requests.load(Ordering::Relaxed)
    }

    /// Stops the control plane: watches end, and nothing is seen any more.
    pub(crate) fn stop(&self) {
        self.state.stop();
    }

    /// The uid of the cluster.
    pub(crate) async fn uid(&self) -> String {
        self.state.cluster.to_str().expect("uids are plain").to_owned()
    }

    /// The token of the agent of this name.
    pub(crate) fn token(&self, agent: &str) -> String {
        self.tokens
            .ensure(&User::agent(agent), &*self.env)
            .expect("tokens in memory")
    }

    pub(crate) fn router(&self) -> axum::Router {
        muster_apiserver::router(self.state.clone())
    }

    /// An empty machine.
    pub(crate) fn machine(&self) -> FakeRuntime {
        let env = Arc::clone(&self.env);
        FakeRuntime::new(move || env.now_ms())
    }

    pub(crate) fn config(&self, incarnation: u64) -> Config {
        Config {
            name: "a1".to_owned(),
            identity: Identity {
                machine: "m1".to_owned(),
                boot_id: "b1".to_owned(),
                incarnation,
            },
            attributes: [("zone".to_owned(), "z1".to_owned())].into(),
            capacity: AgentCapacity {
                cpus: Scalar::from_units(64),
                memory: ByteSize::from_mib(64 * 1024),
                disk: ByteSize::from_mib(1024 * 1024),
                gpus: 0,
                ports: PortSet::range(31_000, 32_000),
            },
            versions: Versions::default(),
            session_ttl: Duration::from_secs(15),
            server: None,
            data: Default::default(),
            places: muster_agentd::volumes::Places::default(),
            stop_tasks_on_shutdown: false,
        }
    }

    /// Runs agent `a1` on a machine.
    pub(crate) fn run(&self, machine: &FakeRuntime, config: Config) -> Running {
        let client = self.client(&config.name);
        self.run_with(machine, config, client)
    }

    /// Runs agent `a1` on a machine, with another way to the API server.
    pub(crate) fn run_with(&self, machine: &FakeRuntime, config: Config, client: Client) -> Running {
        let stop = CancellationToken::new();
        let devices = SimulatedDevices::parse("2xH100", &config.name).expect("well-formed");
        let agent = muster_agentd::run(
            client,
            Arc::new(machine.clone()),
            Arc::new(devices),
            self.env.clone(),
            config,
            stop.clone(),
        );
        Running {
            stop,
            task: tokio::spawn(agent),
        }
    }

    /// Runs agent `a1` and waits until it has joined.
    pub(crate) async fn joined(&self, machine: &FakeRuntime, incarnation: u64) -> Running {
        let before = self.session().await;
        let running = self.run(machine, self.config(incarnation));
        until("the agent joins", async || self.session().await > before).await;
        running
    }

    pub(crate) async fn agent(&self) -> Option<Agent> {
        self.admin.get(None, "a1").await.ok()
    }

    /// The session that the agent object shows.
    pub(crate) async fn session(&self) -> Option<u64> {
        self.agent().await?.status?.session
    }

    /// Makes tasks of these commands, named `t0` and so on, bound to agent `a1`, as an allocator and a scheduler would.
    pub(crate) async fn launch(&self, commands: &[&str], change: impl Fn(&mut TaskSpec)) {
        let number = self.offers.fetch_add(1, Ordering::Relaxed);
        let count = u32::try_from(commands.len()).expect("few");
        let name = format!("o{number}");
        let mut offer = Offer::new(
            &name,
            OfferSpec {
                framework: "default".to_owned(),
                role: "default".to_owned(),
                agent: "a1".to_owned(),
                resources: OfferedResources {
                    cpus: Scalar::from_milli(100 * u64::from(count)),
                    memory: ByteSize::from_mib(8 * count),
                    ..OfferedResources::default()
                },
                devices: Vec::new(),
                attributes: Default::default(),
                expires_at: muster_api::Time(self.env.now() + muster_api::duration::Span::from_secs(30).signed()),
            },
        );
        offer.metadata.namespace = Some("default".to_owned());
        let revision = self.revision().await;
        let offers = AgentOffers {
            seen_revision: revision,
            create: vec![offer],
            delete: Vec::new(),
        };
        self.admin.agent_offers("a1", &offers).await.expect("the offer fits");
        let launch = commands.iter().enumerate().map(|(index, command)| {
            let mut spec = TaskSpec {
                framework: "default".to_owned(),
                command: command.split(' ').map(str::to_owned).collect(),
                ..TaskSpec::default()
            };
            spec.resources.cpus = Scalar::from_milli(100);
            spec.resources.memory = ByteSize::from_mib(8);
            change(&mut spec);
            json!({
                "apiVersion": "muster.dev/v1", "kind": "Task",
                "metadata": { "name": format!("t{index}"), "namespace": "default" },
                "spec": spec,
            })
        });
        let request = AcceptRequest {
            launch: launch.collect(),
            ..AcceptRequest::default()
        };
        self.admin
            .accept("default", &name, &request)
            .await
            .expect("the tasks fit");
    }

    async fn revision(&self) -> u64 {
        let agents = self.admin.list::<Agent>(None).await.expect("agents are listed");
        agents
            .metadata
            .resource_version
            .and_then(|text| text.parse().ok())
            .expect("lists have revisions")
    }

    pub(crate) async fn task(&self, name: &str) -> Option<Task> {
        self.admin.get(Some("default"), name).await.ok()
    }

    pub(crate) async fn phase(&self, name: &str) -> Option<Phase> {
        Some(self.task(name).await?.phase())
    }

    /// Waits until the task is this far.
    pub(crate) async fn reaches(&self, name: &str, phase: Phase) -> Task {
        until(&format!("{name} is {phase}"), async || {
            self.phase(name).await == Some(phase)
        })
        .await;
        self.task(name).await.expect("it is there")
    }

    pub(crate) async fn kill(&self, name: &str) {
        let patch = muster_client::Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
        self.admin
            .patch::<Task>(Some("default"), name, &patch)
            .await
            .expect("it can be killed");
    }

    pub(crate) async fn delete(&self, name: &str) {
        let any = muster_client::Preconditions::default();
        self.admin
            .delete::<Task>(Some("default"), name, &any)
            .await
            .expect("it can be deleted");
    }

    /// The container of an attempt of a task.
    pub(crate) async fn container(&self, name: &str, attempt: u32) -> ContainerId {
        let uid = self
            .task(name)
            .await
            .and_then(|task| task.metadata.uid)
            .expect("it is there");
        ContainerId::new(format!("{uid}-{attempt}")).expect("uids are plain")
    }

    /// Takes the finalizers of a deleted task away by force.
    pub(crate) async fn force(&self, name: &str) {
        let patch = muster_client::Patch::Merge(json!({ "metadata": { "finalizers": Value::Null } }));
        let path = format!("/apis/muster.dev/v1/namespaces/default/tasks/{name}");
        self.admin
            .patch_at::<Value>(&path, &patch)
            .await
            .expect("an administrator may");
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.state.stop();
    }
}

impl Running {
    /// Ends the process at once, as kill -9 does.
    pub(crate) async fn crash(self) {
        self.task.abort();
        drop(self.task.await);
    }

    /// Tells it to stop, and waits.
    pub(crate) async fn ends(self) -> Result<(), Error> {
        self.stop.cancel();
        self.task.await.expect("it does not panic")
    }
}

/// Waits until a condition holds, at most ten minutes of the paused clock.
pub(crate) async fn until(what: &str, condition: impl AsyncFn() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(600);
    while !condition().await {
        assert!(Instant::now() < deadline, "never happened: {what}");
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
}
