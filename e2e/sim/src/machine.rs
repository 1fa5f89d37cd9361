//! An agent's machine, which outlives the agent's process.

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
use muster_client::Client;
use muster_runtime::{ContainerId, ContainerSpec, FakeRuntime, Limits, Rootfs, Runtime};
use tokio_util::sync::CancellationToken;

use crate::env::{Clock, SimEnv};
use crate::gate::Gate;
use crate::invariants::FOREIGN;
use crate::link::Link;
use crate::mutants::Mutant;
use crate::mutants::runtime::MutantRuntime;
use crate::network::Network;
use crate::process::Process;
use crate::stoppable::Stoppable;

/// A machine with 4 CPUs, 1 GiB, 3 GPUs and 20 ports.
pub struct Machine {
    /// The name of the machine.
    pub name: String,
    /// The name of its agent.
    pub agent: String,
    /// The containers.
    pub runtime: FakeRuntime,
    /// The wall clock.
    pub(crate) clock: Clock,
    pub(crate) process: Option<Process>,
    gate: Gate,
    link: Option<Link>,
    incarnation: u64,
    boot: u64,
}

impl Machine {
    /// A machine without an agent yet, with a container that is not Muster's.
    pub(crate) async fn new(agent: String, name: String, env: &Arc<SimEnv>) -> Machine {
        let clock = Clock::new(env);
        let wall = clock.clone();
        let machine = Machine {
            runtime: FakeRuntime::new(move || wall.now().as_millisecond()),
            agent,
            name,
            clock,
            process: None,
            gate: Gate::default(),
            link: None,
            incarnation: 0,
            boot: 1,
        };
        machine.start_foreign().await;
        machine
    }

    async fn start_foreign(&self) {
        let id = ContainerId::new(FOREIGN).expect("it is a fine id");
        let spec = ContainerSpec {
            argv: vec!["sleep".to_owned(), "infinity".to_owned()],
            env: BTreeMap::new(),
            working_dir: None,
            user: None,
            rootfs: Rootfs::Host,
            mounts: Vec::new(),
            memory: Vec::new(),
            variables: None,
            devices: Vec::new(),
            limits: Limits::default(),
            labels: BTreeMap::new(),
        };
        self.runtime.create(&id, &spec).await.expect("nothing is wrong yet");
        self.runtime.start(&id).await.expect("nothing is wrong yet");
    }

    /// Whether this is not the machine that has the agent's name, but one that claims it, too.
    pub fn is_copy(&self) -> bool {
        self.name.ends_with("copy")
    }

    /// Ends the agent's process, if it runs, and starts it anew.
    pub(crate) fn restart(&mut self, network: &Arc<Network>, place: usize, mutant: Option<Mutant>) {
        self.end();
        self.incarnation += 1;
        let link = Link::new(network, &self.name, self.incarnation, &self.gate, place).of_mutant(mutant);
        let client = Client::in_process(link.clone(), &format!("{USER_AGENT_PREFIX}{}", self.agent));
        let devices = SimulatedDevices::parse("3xH100", &self.agent).expect("three of a known model");
        let cancel = CancellationToken::new();
        let runtime: Arc<dyn Runtime> = match mutant {
            Some(mutant) => Arc::new(MutantRuntime::new(self.runtime.clone(), mutant)),
            None => Arc::new(self.runtime.clone()),
        };
        let runtime = Arc::new(Stoppable::new(runtime, &self.gate));
        let env: Arc<dyn Env> = Arc::new(self.clock.clone());
        let running = muster_agentd::run(client, runtime, Arc::new(devices), env, self.config(), cancel.clone());
        let copy = self.is_copy();
        let running = async move {
            match running.await {
                // It was refused, as it should be; nobody starts it again.
                Err(_) if copy => std::future::pending().await,
                ended => ended.expect("the agent of a machine goes on"),
            }
        };
        self.process = Some(Process::start(running, cancel, &self.gate));
        self.link = Some(link);
    }

    fn end(&mut self) {
        if let Some(process) = self.process.take() {
            process.kill();
        }
        if let Some(link) = self.link.take() {
            link.sever();
        }
        self.gate.open();
    }

    /// The machine loses its power and comes back, without an agent yet.
    pub(crate) async fn reboot(&mut self) {
        self.end();
        self.runtime.reboot();
        self.boot += 1;
    }

    pub(crate) fn pause(&self, time: Duration) {
        self.gate.close(time);
    }

    fn config(&self) -> muster_agentd::Config {
        muster_agentd::Config {
            identity: Identity {
                machine: self.name.clone(),
                boot_id: format!("boot-{}", self.boot),
                incarnation: self.incarnation,
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
            places: muster_agentd::volumes::Places::default(),
            stop_tasks_on_shutdown: false,
            name: self.agent.clone(),
        }
    }
}

/// The name of the agent at an index.
pub fn agent_name(index: usize) -> String {
    format!("agent-{index}")
}
