//! The cluster: every part of it real, on one thread, on virtual time.

use std::sync::{Arc, MutexGuard};
use std::time::Duration;

use muster_api::env::Env;
use muster_client::Client;
use muster_store::{Faults, Lies, MemoryStore, Store};
use tokio_util::sync::CancellationToken;

use crate::env::Clock;
use crate::env::SimEnv;
use crate::gate::Gate;
use crate::invariants::Checker;
use crate::link::Link;
use crate::machine::{Machine, agent_name};
use crate::mutants::Mutant;
use crate::network::{Network, Weather};
use crate::process::Process;
use crate::profile::Storm;
use crate::recorder::Recorder;
use crate::server::Server;
use crate::sieve::Counter;
use crate::wire::STORE;
use crate::workload::{Direction, LEADER_TTL_MS};

/// The time to live of the leader's lease.
const LEADER_TTL: Duration = Duration::from_millis(LEADER_TTL_MS);

/// A node with controllers.
struct Controllers {
    node: String,
    gate: Gate,
    clock: Clock,
    link: Option<Link>,
    process: Option<Process>,
    incarnation: u64,
}

/// The cluster.
pub struct World {
    mutant: Option<Mutant>,
    env: Arc<SimEnv>,
    recorder: Arc<Recorder>,
    network: Arc<Network>,
    servers: Vec<Server>,
    controllers: Vec<Controllers>,
    machines: Vec<Machine>,
    user: Link,
    pauses: u64,
}

impl Drop for World {
    fn drop(&mut self) {
        self.network.dissolve();
    }
}

impl World {
    /// A cluster in which everything has been started, in good weather.
    pub async fn new(seed: u64, storm: &Storm, mutant: Option<Mutant>) -> World {
        World::begin(seed, storm, mutant, Network::new(seed)).await
    }

    /// The same, with a sieve at each of its points.
    pub async fn sieved(seed: u64, storm: &Storm, counter: Arc<Counter>) -> World {
        let network = Network::new(seed);
        network.set_sieve(counter);
        World::begin(seed, storm, None, network).await
    }

    async fn begin(seed: u64, storm: &Storm, mutant: Option<Mutant>, network: Arc<Network>) -> World {
        let env = Arc::new(SimEnv::new(seed));
        let recorder = Arc::new(Recorder::new(MemoryStore::new(), env.clone()));
        let mut servers = Vec::new();
        for place in 0..storm.servers {
            let mut server = Server::new(place, seed, &env, &recorder, &network, mutant);
            server.restart().await;
            servers.push(server);
        }
        let user = Link::new(&network, "user", 0, &Gate::default(), 0).of_mutant(mutant);
        let mut world = World {
            mutant,
            env,
            recorder,
            network,
            servers,
            controllers: Vec::new(),
            machines: Vec::new(),
            user,
            pauses: 0,
        };
        for index in 0..storm.controllers {
            world.controllers.push(Controllers {
                node: format!("controllers-{index}"),
                gate: Gate::default(),
                clock: Clock::new(&world.env),
                link: None,
                process: None,
                incarnation: 0,
            });
            world.restart_controllers(index);
        }
        for index in 0..storm.agents {
            world.add_machine(agent_name(index), format!("machine-{index}")).await;
        }
        if storm.duplicate {
            // Somebody copied the configuration of the first agent to another machine.
            world.add_machine(agent_name(0), "machine-copy".to_owned()).await;
        }
        world
    }

    async fn add_machine(&mut self, agent: String, name: String) {
        let machine = Machine::new(agent.clone(), name.clone(), &self.env).await;
        self.checker().add_machine(agent, name, machine.runtime.clone());
        self.machines.push(machine);
        self.restart_agent(self.machines.len() - 1);
    }

    /// The network.
    pub fn network(&self) -> &Arc<Network> {
        &self.network
    }

    /// What the checker knows.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.recorder.checker()
    }

    /// The store's history.
    pub fn recorder(&self) -> Arc<Recorder> {
        self.recorder.clone()
    }

    /// The agents' machines.
    pub fn machines(&self) -> &[Machine] {
        &self.machines
    }

    /// How many processes of controllers there are.
    pub fn candidates(&self) -> usize {
        self.controllers.len()
    }

    /// A user's client, with the rights of an administrator, over a network of its own weather.
    pub fn user(&self) -> Client {
        Client::in_process(self.user.clone(), "admin")
    }

    /// A client for somebody who only looks.
    pub fn observer(&self) -> Client {
        let link = Link::new(&self.network, "observer", 0, &Gate::default(), 1);
        Client::in_process(link, "admin")
    }

    /// Begins or ends the storm.
    pub fn set_trouble(&self, weather: Weather, faults: &Faults, lies: &Lies) {
        self.network.set_weather(weather);
        for server in &self.servers {
            server.set_trouble(faults.clone(), lies.clone());
        }
    }

    /// Ends everything that is wrong, and waits for what is still on its way.
    pub async fn calm_down(&mut self) {
        self.set_trouble(Weather::default(), &Faults::none(), &Lies::none());
        self.network.heal();
        for node in 0..self.clocks().len() {
            self.clocks()[node].set_wrong(0);
        }
        for server in &self.servers {
            server.settle().await;
        }
    }

    /// Ends a server's process and starts it on the same store.
    pub async fn restart_server(&mut self, place: usize) {
        self.servers[place].restart().await;
    }

    /// Ends a controllers' process, if it runs, and starts it anew.
    pub fn restart_controllers(&mut self, index: usize) {
        let servers = self.servers.len();
        let controllers = &mut self.controllers[index];
        if let Some(process) = controllers.process.take() {
            process.kill();
        }
        if let Some(link) = controllers.link.take() {
            link.sever();
        }
        controllers.gate.open();
        controllers.incarnation += 1;
        let (node, incarnation) = (&controllers.node, controllers.incarnation);
        let link = Link::new(&self.network, node, incarnation, &controllers.gate, index % servers)
            .leading_for(LEADER_TTL * 2 / 3)
            .of_mutant(self.mutant);
        let client = Client::in_process(link.clone(), "controllers");
        let env: Arc<dyn Env> = Arc::new(controllers.clock.clone());
        let config = muster_controllers::Config {
            identity: format!("{node}.{incarnation}"),
            lease_ttl: LEADER_TTL,
            ..Default::default()
        };
        let cancel = CancellationToken::new();
        let running = muster_controllers::run(client, env, config, cancel.clone());
        let running = async move { running.await.expect("no planner panics") };
        controllers.process = Some(Process::start(running, cancel, &controllers.gate));
        controllers.link = Some(link);
    }

    /// Ends an agent's process, if it runs, and starts it anew on the same machine.
    pub fn restart_agent(&mut self, index: usize) {
        let place = index % self.servers.len();
        self.machines[index].restart(&self.network, place, self.mutant);
    }

    /// Starts the process of a controllers' node or of an agent's machine anew.
    pub fn restart(&mut self, node: &str) {
        if let Some(index) = self.controllers.iter().position(|controllers| controllers.node == node) {
            self.restart_controllers(index);
        } else if let Some(index) = self.machines.iter().position(|machine| machine.name == node) {
            self.restart_agent(index);
        }
    }

    /// An agent's machine loses its power and comes back.
    pub async fn reboot(&mut self, index: usize) {
        self.machines[index].reboot().await;
        self.restart_agent(index);
    }

    /// Stops an agent's process for a while.
    pub fn pause_agent(&self, index: usize, time: Duration) {
        self.machines[index].pause(time);
    }

    /// Stops a controllers' process for a while.
    pub fn pause_controllers(&self, index: usize, time: Duration) {
        self.controllers[index].gate.close(time);
    }

    /// Stops whoever leads for a while.
    pub fn pause_leader(&mut self, time: Duration) {
        let leader = self.leader();
        if let Some(index) = leader {
            self.pauses += 1;
            self.pause_controllers(index, time);
        }
    }

    /// Which of the controllers leads.
    pub fn leader(&self) -> Option<usize> {
        let holder = self.checker().lease("muster-system/muster-controllers")?.holder.clone();
        self.controllers
            .iter()
            .position(|controllers| holder.starts_with(&format!("{}.", controllers.node)))
    }

    /// Stops a server for a while.
    pub fn pause_server(&self, place: usize, time: Duration) {
        self.servers[place].pause(time);
    }

    /// The names of all nodes in the network: servers, controllers, machines, the store.
    fn node(&self, number: usize) -> &str {
        let servers = self.servers.iter().map(Server::name);
        let controllers = self.controllers.iter().map(|controllers| controllers.node.as_str());
        let machines = self.machines.iter().map(|machine| machine.name.as_str());
        let mut all = servers.chain(controllers).chain(machines).chain([STORE]);
        all.nth(number).unwrap_or(STORE)
    }

    fn clocks(&self) -> Vec<&Clock> {
        let servers = self.servers.iter().map(Server::clock);
        let controllers = self.controllers.iter().map(|controllers| &controllers.clock);
        let machines = self.machines.iter().map(|machine| &machine.clock);
        servers.chain(controllers).chain(machines).collect()
    }

    /// Cuts the way between two nodes.
    pub fn cut(&self, one: usize, other: usize, direction: Direction, time: Duration) {
        let (one, other) = (self.node(one), self.node(other));
        if direction != Direction::Back {
            self.network.cut(one, other, time);
        }
        if direction != Direction::There {
            self.network.cut(other, one, time);
        }
    }

    /// Sets a node's clock wrong.
    pub fn jump(&self, node: usize, ms: i64) {
        if let Some(clock) = self.clocks().get(node) {
            clock.set_wrong(ms);
        }
    }

    /// The store forgets its history.
    pub async fn compact(&self) {
        let newest = self.recorder.revision().await.expect("the memory store answers");
        let compacted = self.recorder.compact(newest).await;
        compacted.expect("the newest revision can be forgotten");
    }

    /// Looks at everything that happened since the last call; returns whether everything that must hold, holds.
    pub fn check(&mut self) -> bool {
        self.recorder.listen();
        let (replies, late) = self.network.take_replies();
        let panicked = !self.processes_live();
        let mut checker = self.checker();
        checker.look();
        for reply in &replies {
            checker.check_reply(reply);
        }
        for what in late {
            checker.violated(what);
        }
        if panicked {
            checker.violated("a process has panicked".to_owned());
        }
        checker.violations().is_empty()
    }

    /// Whether no process has panicked.
    fn processes_live(&self) -> bool {
        let controllers = self
            .controllers
            .iter()
            .filter_map(|controllers| controllers.process.as_ref());
        let agents = self.machines.iter().filter_map(|machine| machine.process.as_ref());
        controllers.chain(agents).all(Process::is_well)
    }

    /// How often a leader was stopped.
    pub fn pauses(&self) -> u64 {
        self.pauses
    }

    /// How often the store was worse than it may be.
    pub fn lies_told(&self) -> u64 {
        self.servers.iter().map(Server::lies_told).sum()
    }
}
