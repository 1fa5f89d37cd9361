//! One seed from start to verdict: a stormy phase in which nothing may be violated, then calm, in which all must converge.

use std::collections::BTreeMap;
use std::time::Duration;

use futures::future::join;
use kube::api::{Api, DeleteParams, ListParams, Patch, PatchParams, PostParams};
use muster_api::duration::Span;
use muster_api::resources::Bundle;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Framework, Offer, OfferPhase, Task, TaskReason};
use muster_api::wire::{AcceptRequest, DeclineRequest};
use muster_client::Client;
use muster_runtime::{ContainerId, FakeRuntime, Runtime, State};
use muster_store::fault::Faults;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::mutants::Mutant;
use crate::transport::Weather;
use crate::workload::{Deed, draw, task};
use crate::world::{Shape, World, agent_name};

#[cfg(not(tokio_unstable))]
compile_error!(
    "a seed decides everything only with --cfg tokio_unstable, which .cargo/config.toml sets; is RUSTFLAGS set?"
);

/// How to run a seed.
#[derive(Clone, Copy, Debug)]
pub struct Options {
    /// What everything is drawn from.
    pub seed: u64,
    /// How many deeds the stormy phase has.
    pub deeds: usize,
    /// A planted bug.
    pub mutant: Option<Mutant>,
}

/// How a seed ended.
#[derive(Clone, Debug)]
pub struct Outcome {
    /// The seed.
    pub seed: u64,
    /// What was violated, or what did not converge; empty: all is well.
    pub violations: Vec<String>,
    /// How many revisions the store went through.
    pub revisions: u64,
    /// A digest of the store's whole history: the same seed gives the same.
    pub trace: u64,
    /// How many tasks ended in each phase, or stood in it at the end.
    pub phases: BTreeMap<String, usize>,
}

/// How long the calm phase may take, in virtual time: more than a presence lease (15 s), an offer's life (30 s), the longest
/// stall and the longest backoff together.
const CALM: Duration = Duration::from_secs(240);
/// The external framework of the simulation.
const EXTERNAL: &str = "mine";

/// Runs a seed.
pub fn run(options: Options) -> Outcome {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // The order in which tokio wakes several readers of one channel is drawn, too.
    builder
        .enable_time()
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&options.seed.to_le_bytes()));
    builder
        .build()
        .expect("a runtime without I/O needs nothing of the system")
        .block_on(simulate(options))
}

async fn simulate(options: Options) -> Outcome {
    let mut random = StdRng::seed_from_u64(options.seed);
    let shape = Shape {
        seed: options.seed,
        agents: random.random_range(1..4),
        controllers: random.random_range(1..3),
        mutant: options.mutant,
    };
    let mut world = World::new(shape).await;
    let user = world.user();
    let mut stage = Stage {
        random,
        user,
        launched: 0,
    };
    stage.prepare().await;
    world.network().set_weather(stage.weather());
    world.store().set_faults(stage.faults());
    let mut violations = Vec::new();
    for step in 0..options.deeds {
        let deed = draw(&mut stage.random, shape.agents, shape.controllers);
        tracing::info!(step, ?deed);
        stage.act(&mut world, deed).await;
        let pause = stage.random.random_range(0..400);
        sleep(Duration::from_millis(pause)).await;
        if !world.check() {
            violations = verdict(&world);
            break;
        }
    }
    if violations.is_empty() {
        violations = converge(&mut world).await;
    }
    let mut phases = BTreeMap::new();
    for task in world.checker().tasks().values() {
        *phases.entry(task.phase().to_string()).or_default() += 1;
    }
    let revisions = world.revision().await;
    Outcome {
        seed: options.seed,
        violations,
        revisions,
        trace: world.checker().trace(),
        phases,
    }
}

fn verdict(world: &World) -> Vec<String> {
    let mut violations = world.checker().violations().to_vec();
    if violations.is_empty() {
        violations.push("a process panicked".to_owned());
    }
    violations
}

/// Who acts, and what chance they draw from.
struct Stage {
    random: StdRng,
    user: Client,
    launched: usize,
}

impl Stage {
    /// Makes the external framework, in good weather.
    async fn prepare(&self) {
        let framework: Framework = serde_json::from_value(json!({
            "apiVersion": "muster.dev/v1",
            "kind": "Framework",
            "metadata": { "name": EXTERNAL, "namespace": "default" },
            "spec": { "scheduler": "External", "demand": { "minimum": { "cpus": "0.5" }, "maxOffers": 2 } },
        }))
        .expect("a framework");
        let api: Api<Framework> = Api::namespaced(self.user.kube().clone(), "default");
        api.create(&PostParams::default(), &framework)
            .await
            .expect("nothing is in the way yet");
    }

    /// Each seed has its own mixture of faults, some seeds none of a kind.
    fn weather(&mut self) -> Weather {
        let mut chance = |most: f64| {
            if self.random.random_bool(0.5) {
                self.random.random_range(0.0..most)
            } else {
                0.0
            }
        };
        Weather {
            lost: chance(0.05),
            answer_lost: chance(0.05),
            doubled: chance(0.1),
            cut: chance(0.03),
            delay_max: Duration::from_micros((chance(1.0) * 40_000.0) as u64),
        }
    }

    fn faults(&mut self) -> Faults {
        let mut chance = |most: f64| {
            if self.random.random_bool(0.4) {
                self.random.random_range(0.0..most)
            } else {
                0.0
            }
        };
        Faults {
            unavailable_before: chance(0.03),
            unavailable_after: chance(0.03),
            late_commit: chance(0.1),
            delay: chance(0.3),
            delay_max: Duration::from_millis(5 + (chance(1.0) * 150.0) as u64),
            watch_cut: chance(0.01),
            watch_repeat: chance(0.02),
            lease_lost: chance(0.02),
            compaction: chance(0.01),
        }
    }

    async fn act(&mut self, world: &mut World, deed: Deed) {
        let tasks: Api<Task> = Api::namespaced(self.user.kube().clone(), "default");
        // Users give up after a while, and whatever they get for an answer is theirs to deal with.
        let patience = Duration::from_secs(2);
        match deed {
            Deed::Create(task) => {
                let task = serde_json::from_value(task).expect("the workload makes tasks");
                let _ = timeout(patience, tasks.create(&PostParams::default(), &task)).await;
            }
            Deed::Delete(name) => {
                let _ = timeout(patience, tasks.delete(&name, &DeleteParams::default())).await;
            }
            Deed::Kill(name) => {
                let patch = Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
                let _ = timeout(patience, tasks.patch(&name, &PatchParams::default(), &patch)).await;
            }
            Deed::Answer => {
                let _ = timeout(patience, self.answer()).await;
            }
            Deed::RestartAgent(index) => world.restart_agent(index),
            Deed::StallAgent(index, ms) => world.stall_agent(index, Duration::from_millis(ms)),
            Deed::RestartControllers(index) => world.restart_controllers(index),
            Deed::StallControllers(index, ms) => world.stall_controllers(index, Duration::from_millis(ms)),
            Deed::RestartServer => world.restart_server().await,
        }
    }

    /// Answers every open offer of the external framework: half are accepted, by two schedulers at once that know nothing
    /// of each other; the others are declined.
    async fn answer(&mut self) {
        let api: Api<Offer> = Api::namespaced(self.user.kube().clone(), "default");
        let mine = ListParams::default().fields(&format!("spec.framework={EXTERNAL}"));
        let Ok(offers) = api.list(&mine).await else { return };
        for offer in offers.items.iter().filter(|offer| offer.phase() == OfferPhase::Open) {
            let name = offer.metadata.name.clone().unwrap_or_default();
            if self.random.random_bool(0.5) {
                let (first, second) = (self.launch(offer), self.launch(offer));
                let (one, two) = (self.user.clone(), self.user.clone());
                let both = join(
                    one.accept("default", &name, &first),
                    two.accept("default", &name, &second),
                );
                let _ = both.await;
            } else {
                let refuse = Some(Span::from_millis(self.random.random_range(0..3000)));
                let _ = self.user.decline("default", &name, &DeclineRequest { refuse }).await;
            }
        }
    }

    fn launch(&mut self, offer: &Offer) -> AcceptRequest {
        self.launched += 1;
        let mut launch = task(&mut self.random, &format!("x{}", self.launched), EXTERNAL);
        launch["spec"]["role"] = offer.spec.role.clone().into();
        launch["spec"]["resources"] = json!({ "cpus": "0.5", "memory": "16Mi" });
        let idempotency_key = self.random.random_bool(0.5).then(|| format!("key-{}", self.launched));
        AcceptRequest {
            launch: vec![launch],
            idempotency_key,
            ..AcceptRequest::default()
        }
    }
}

/// Ends all faults and waits until what is, is what was asked for.
async fn converge(world: &mut World) -> Vec<String> {
    world.network().set_weather(Weather::default());
    world.store().set_faults(Faults::none());
    world.store().settle().await;
    let mut missing = Vec::new();
    for _ in 0..CALM.as_secs() {
        sleep(Duration::from_secs(1)).await;
        if !world.check() {
            return verdict(world);
        }
        missing = discrepancies(world).await;
        if missing.is_empty() {
            return missing;
        }
    }
    missing
        .iter()
        .map(|what| format!("after {CALM:?} of calm: {what}"))
        .collect()
}

/// What is not yet as it should be.
async fn discrepancies(world: &World) -> Vec<String> {
    let mut missing = Vec::new();
    let mut containers = BTreeMap::new();
    for (index, machine) in world.machines().iter().enumerate() {
        for container in machine.runtime.list().await.expect("nothing is wrong with the machine") {
            let id = container.id.as_str().to_owned();
            if machine.runtime.starts(&container.id) > 1 {
                missing.push(format!("container {id} was started more than once"));
            }
            if containers.insert(id.clone(), (index, container.state)).is_some() {
                missing.push(format!("container {id} is on two machines"));
            }
        }
    }
    let tasks: Vec<Task> = world.checker().tasks().values().cloned().collect();
    for task in &tasks {
        missing.extend(task_discrepancy(world, task, &mut containers).map(|what| format!("{}: {what}", task.name())));
    }
    for (id, (index, state)) in containers {
        if matches!(state, State::Running { .. }) {
            missing.push(format!("container {id} runs on {} for no task", agent_name(index)));
        }
    }
    missing
}

/// What of a task is not yet as it should be. Takes the container that the task accounts for out of the map.
fn task_discrepancy(world: &World, task: &Task, containers: &mut BTreeMap<String, (usize, State)>) -> Option<String> {
    let status = task.status.clone().unwrap_or_default();
    let uid = task.metadata.uid.clone().unwrap_or_default();
    if task.metadata.deletion_timestamp.is_some() {
        return Some(format!("is {} and still waits to be deleted", status.phase));
    }
    match status.phase {
        Phase::Pending if fits_somewhere(world, task) => Some(format!(
            "is Pending ({:?}) although there is room for it",
            status.reason
        )),
        Phase::Pending => None,
        Phase::Staging | Phase::Starting | Phase::Killing => Some(format!("is still {}", status.phase)),
        Phase::Running => {
            let attempt = status.attempts.last().map_or(1, |attempt| attempt.number);
            let running = containers.remove(&format!("{uid}-{attempt}"));
            let lives = matches!(running, Some((_, State::Running { .. })));
            (!lives && status.reason != Some(TaskReason::BackOff))
                .then(|| format!("is Running, but its container is {running:?}"))
        }
        Phase::Finished | Phase::Failed => {
            let never = status
                .attempts
                .iter()
                .find(|attempt| attempt.error.is_none() && !was_started(world, &uid, attempt.number));
            never.map(|attempt| format!("has ended, but attempt {} was never started", attempt.number))
        }
        Phase::Killed | Phase::Error | Phase::Dropped | Phase::Gone => None,
    }
}

fn was_started(world: &World, uid: &str, attempt: u32) -> bool {
    let started =
        |runtime: &FakeRuntime| ContainerId::new(format!("{uid}-{attempt}")).is_some_and(|id| runtime.starts(&id) == 1);
    world.machines().iter().any(|machine| started(&machine.runtime))
}

/// Whether a pending task of the built-in framework would fit on an agent as things stand.
fn fits_somewhere(world: &World, task: &Task) -> bool {
    if task.spec.framework == EXTERNAL {
        return false;
    }
    let Some(wanted) = task.spec.resources.amounts() else {
        return false;
    };
    world
        .checker()
        .agents()
        .values()
        .any(|agent| free(world, agent).is_some_and(|free| free.amounts().contains(&wanted)))
}

fn free(world: &World, agent: &Agent) -> Option<Bundle> {
    let name = agent.name();
    let tasks = world
        .checker()
        .tasks()
        .values()
        .filter(|task| task.agent() == Some(name))
        .map(Task::held);
    let offers = world
        .checker()
        .offers()
        .values()
        .filter(|offer| offer.spec.agent == name)
        .map(Offer::held);
    tasks
        .chain(offers)
        .try_fold(agent.allocatable(), |free, held| free.checked_sub(&held))
}
