//! The cluster: every part of it real, on one thread, on virtual time.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use muster_agentd::devices::SimulatedDevices;
use muster_agentd::session::Identity;
use muster_api::env::Env;
use muster_api::names::USER_AGENT_PREFIX;
use muster_api::ports::PortSet;
use muster_api::quantity::{ByteSize, Scalar};
use muster_api::v1::{AgentCapacity, Versions};
use muster_apiserver::State;
use muster_client::Client;
use muster_runtime::FakeRuntime;
use muster_store::fault::Faults;
use muster_store::{FaultStore, MemoryStore, Store};
use tokio::task::JoinHandle;
use tokio_util::sync::CancellationToken;

use crate::env::SimEnv;
use crate::invariants::Checker;
use crate::mutants::{Mutant, MutantStore};
use crate::recorder::Recorder;
use crate::transport::{Link, Network};

/// How large the cluster is and what is wrong with it.
#[derive(Clone, Copy, Debug)]
pub struct Shape {
    /// What everything is drawn from.
    pub seed: u64,
    /// Agents, each with 4 CPUs, 1 GiB, 3 GPUs and 20 ports.
    pub agents: usize,
    /// Processes of controllers.
    pub controllers: usize,
    /// A planted bug.
    pub mutant: Option<Mutant>,
}

/// A process: a task that can be killed at any await.
struct Process {
    cancel: CancellationToken,
    joined: JoinHandle<()>,
}

impl Process {
    /// As `kill -9`: nothing it was about to do happens.
    fn kill(self) {
        self.joined.abort();
        self.cancel.cancel();
    }
}

/// An agent's machine, which outlives the agent's process.
pub struct Machine {
    /// The containers.
    pub runtime: FakeRuntime,
    link: Link,
    process: Option<Process>,
    incarnation: u64,
}

/// A controllers' process and its way to the server.
struct Controllers {
    link: Link,
    process: Option<Process>,
}

/// The cluster.
pub struct World {
    shape: Shape,
    env: Arc<SimEnv>,
    recorder: Arc<Recorder>,
    store: Arc<FaultStore>,
    network: Arc<Network>,
    server: Option<Arc<State>>,
    controllers: Vec<Controllers>,
    machines: Vec<Machine>,
    checker: Checker,
}

impl World {
    /// A cluster in which everything has been started.
    pub async fn new(shape: Shape) -> World {
        let env = Arc::new(SimEnv::new(shape.seed));
        let recorder = Arc::new(Recorder::new(MemoryStore::new()));
        let store = Arc::new(FaultStore::new(recorder.clone(), shape.seed, Faults::none()));
        let network = Network::new(shape.seed, recorder.clone());
        let mut world = World {
            shape,
            env,
            recorder,
            store,
            network,
            server: None,
            controllers: Vec::new(),
            machines: Vec::new(),
            checker: Checker::default(),
        };
        world.restart_server().await;
        for index in 0..shape.controllers {
            world.controllers.push(Controllers {
                link: Link::new(format!("controllers-{index}"), &world.network),
                process: None,
            });
            world.restart_controllers(index);
        }
        for index in 0..shape.agents {
            let clock = Arc::clone(&world.env);
            let runtime = FakeRuntime::new(move || clock.now().as_millisecond());
            let mut link = Link::new(agent_name(index), &world.network);
            if shape.mutant == Some(Mutant::NameForUid) {
                link = link.falsified(name_for_uid);
            }
            world.machines.push(Machine {
                runtime,
                link,
                process: None,
                incarnation: 0,
            });
            world.restart_agent(index);
        }
        world
    }

    /// The network, for its weather.
    pub fn network(&self) -> &Network {
        &self.network
    }

    /// The store, for its faults.
    pub fn store(&self) -> &FaultStore {
        &self.store
    }

    /// What the checker knows.
    pub fn checker(&self) -> &Checker {
        &self.checker
    }

    /// The agents' machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// The wall clock.
    pub fn env(&self) -> &Arc<SimEnv> {
        &self.env
    }

    /// A user's client, with the rights of an administrator, over a network of its own weather.
    pub fn user(&self) -> Client {
        Client::in_process(Link::new("user".to_owned(), &self.network), "admin")
    }

    /// Ends the server's process, if there is one, and starts it on the same store.
    pub async fn restart_server(&mut self) {
        self.network.serve(None);
        if let Some(server) = self.server.take() {
            server.stop();
        }
        let store: Arc<dyn Store> = match self.shape.mutant {
            Some(mutant) => Arc::new(MutantStore::new(self.store.clone(), mutant)),
            None => self.store.clone(),
        };
        let (state, router) = crate::server::start(store, self.env.clone()).await;
        self.network.serve(Some(router));
        self.server = Some(state);
    }

    /// Ends a controllers' process, if it runs, and starts it anew.
    pub fn restart_controllers(&mut self, index: usize) {
        let controllers = &mut self.controllers[index];
        if let Some(process) = controllers.process.take() {
            process.kill();
        }
        let client = Client::in_process(controllers.link.clone(), "controllers");
        let env: Arc<dyn Env> = self.env.clone();
        let config = muster_controllers::Config {
            lease_ttl: Duration::from_secs(2),
            ..Default::default()
        };
        let cancel = CancellationToken::new();
        let running = muster_controllers::run(client, env, config, cancel.clone());
        let joined = tokio::spawn(async move { running.await.expect("no planner panics") });
        controllers.process = Some(Process { cancel, joined });
    }

    /// Ends an agent's process, if it runs, and starts it anew on the same machine.
    pub fn restart_agent(&mut self, index: usize) {
        let machine = &mut self.machines[index];
        if let Some(process) = machine.process.take() {
            process.kill();
        }
        let name = agent_name(index);
        let client = Client::in_process(machine.link.clone(), &format!("{USER_AGENT_PREFIX}{name}"));
        let devices = SimulatedDevices::parse("3xH100", &name).expect("three of a known model");
        machine.incarnation += 1;
        let config = agent_config(name, machine.incarnation);
        let cancel = CancellationToken::new();
        let runtime = Arc::new(machine.runtime.clone());
        let env: Arc<dyn Env> = self.env.clone();
        let running = muster_agentd::run(client, runtime, Arc::new(devices), env, config, cancel.clone());
        let joined = tokio::spawn(async move { running.await.expect("the agent of a machine goes on") });
        machine.process = Some(Process { cancel, joined });
    }

    /// Holds up everything that an agent sends and gets.
    pub fn stall_agent(&self, index: usize, time: Duration) {
        self.machines[index].link.stall(time);
    }

    /// Holds up everything that a controllers' process sends and gets.
    pub fn stall_controllers(&self, index: usize, time: Duration) {
        self.controllers[index].link.stall(time);
    }

    /// Replays what the store did since the last call; returns whether everything that must hold, holds.
    pub fn check(&mut self) -> bool {
        for (revision, changes) in self.recorder.take() {
            self.checker.apply(revision, &changes);
        }
        for write in self.network.take_fenced() {
            self.checker.check_fence(&write);
        }
        self.checker.violations().is_empty() && self.processes_live()
    }

    /// Whether no process has panicked.
    fn processes_live(&self) -> bool {
        let controllers = self
            .controllers
            .iter()
            .filter_map(|controllers| controllers.process.as_ref());
        let agents = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        controllers.chain(agents).all(|process| !process.joined.is_finished())
    }

    /// The revision of the store.
    pub async fn revision(&self) -> u64 {
        self.recorder.revision().await.expect("the memory store answers")
    }
}

/// The name of the agent at an index.
pub fn agent_name(index: usize) -> String {
    format!("agent-{index}")
}

fn agent_config(name: String, incarnation: u64) -> muster_agentd::Config {
    muster_agentd::Config {
        identity: Identity {
            machine: name.clone(),
            boot_id: "boot".to_owned(),
            incarnation,
        },
        attributes: BTreeMap::new(),
        capacity: AgentCapacity {
            cpus: Scalar::from_units(4),
            memory: ByteSize::from_mib(1024),
            disk: ByteSize::from_mib(1024),
            gpus: 3,
            ports: PortSet::range(31_000, 31_019),
        },
        versions: Versions::default(),
        session_ttl: Duration::from_secs(5),
        server: None,
        data: Default::default(),
        stop_tasks_on_shutdown: false,
        name,
    }
}

/// Makes every uid in an answer the same for the same name: `"uid":"…"` becomes a uid made from the object's name.
fn name_for_uid(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    let mut lines = text.split_inclusive('\n');
    for line in &mut lines {
        match serde_json::from_str::<serde_json::Value>(line) {
            Ok(mut value) => {
                falsify(&mut value);
                out.push_str(&value.to_string());
                out.push('\n');
            }
            Err(_) => out.push_str(line),
        }
    }
    out
}

fn falsify(value: &mut serde_json::Value) {
    match value {
        serde_json::Value::Object(map) => {
            let task = map.get("kind").and_then(|kind| kind.as_str()) == Some("Task");
            if task && let Some(metadata) = map.get_mut("metadata").and_then(|metadata| metadata.as_object_mut()) {
                let name = metadata.get("name").and_then(|name| name.as_str()).unwrap_or_default();
                let uid = format!("00000000-0000-4000-8000-{:0>12}", name.trim_start_matches('t'));
                metadata.insert("uid".to_owned(), uid.into());
            }
            map.values_mut().for_each(falsify);
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(falsify),
        _ => {}
    }
}
