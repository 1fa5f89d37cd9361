//! One seed from start to verdict: a stormy phase in which nothing may be violated, then calm, in which all must converge.

use std::collections::BTreeMap;
use std::time::Duration;

use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams};
use muster_api::v1::{Agent, Task};
use muster_client::Client;
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use serde_json::json;
use tokio::time::{sleep, timeout};

use crate::converge::converge;
use crate::framework::Scheduler;
use crate::machine::agent_name;
use crate::mutants::Mutant;
use crate::observer::observe;
use crate::profile::Profile;
use crate::workload::{Deed, draw};
use crate::world::World;

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
    /// What kinds of trouble there are.
    pub profile: Profile,
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
    /// What was counted on the way.
    pub figures: BTreeMap<&'static str, u64>,
}

/// Runs on virtual time, with everything drawn from the seed.
pub(crate) fn on_virtual_time<T>(seed: u64, future: impl Future<Output = T>) -> T {
    let mut builder = tokio::runtime::Builder::new_current_thread();
    // The order in which tokio wakes several readers of one channel is drawn, too.
    builder
        .enable_time()
        .start_paused(true)
        .rng_seed(tokio::runtime::RngSeed::from_bytes(&seed.to_le_bytes()));
    builder
        .build()
        .expect("a runtime without I/O needs nothing of the system")
        .block_on(future)
}

/// Runs a seed.
pub fn run(options: Options) -> Outcome {
    on_virtual_time(options.seed, simulate(options))
}

async fn simulate(options: Options) -> Outcome {
    let mut random = StdRng::seed_from_u64(options.seed);
    let storm = options.profile.draw(&mut random);
    tracing::info!(?storm);
    let mut world = World::new(options.seed, &storm, options.mutant).await;
    let user = world.user();
    let mut stage = Stage {
        random,
        scheduler: Scheduler::new(user.clone()),
        user,
    };
    stage.scheduler.prepare(storm.quota).await;
    tokio::spawn(observe(world.observer(), world.recorder()));
    world.set_trouble(storm.weather, &storm.faults, &storm.lies);
    let mut violations = Vec::new();
    for step in 0..options.deeds {
        let deed = draw(&mut stage.random, &storm);
        tracing::info!(step, ?deed);
        stage.act(&mut world, deed).await;
        let pause = stage.random.random_range(0..400);
        sleep(Duration::from_millis(pause)).await;
        if !world.check() {
            violations = world.checker().violations().to_vec();
            break;
        }
    }
    if violations.is_empty() {
        violations = converge(&mut world).await;
    }
    outcome(options.seed, &world, violations)
}

fn outcome(seed: u64, world: &World, violations: Vec<String>) -> Outcome {
    let checker = world.checker();
    let mut phases = BTreeMap::new();
    for task in checker.tasks().values() {
        *phases.entry(task.phase().to_string()).or_default() += 1;
    }
    let network = world.network().figures();
    let figures = [
        ("requests", network.requests),
        ("refused by their fence", network.fenced),
        ("pauses of a leader", world.pauses()),
        ("lies of the store", world.lies_told()),
        ("revisions", checker.revision()),
    ];
    Outcome {
        seed,
        violations,
        revisions: checker.revision(),
        trace: checker.trace(),
        phases,
        figures: figures.into(),
    }
}

/// Who acts, and what chance they draw from.
struct Stage {
    random: StdRng,
    user: Client,
    scheduler: Scheduler,
}

impl Stage {
    async fn act(&mut self, world: &mut World, deed: Deed) {
        let millis = Duration::from_millis;
        match deed {
            Deed::Create(_) | Deed::Delete(_) | Deed::Kill(_) | Deed::Answer | Deed::RemoveAgent(_) => {
                // Users give up after a while, and whatever they get for an answer is theirs to deal with.
                let _ = timeout(Duration::from_secs(2), self.ask(deed)).await;
            }
            Deed::KillAgent(index) => world.restart_agent(index),
            Deed::Reboot(index) => world.reboot(index).await,
            Deed::PauseAgent(index, ms) => world.pause_agent(index, millis(ms)),
            Deed::KillControllers(index) => world.restart_controllers(index),
            Deed::PauseControllers(index, ms) => world.pause_controllers(index, millis(ms)),
            Deed::PauseLeader(ms) => world.pause_leader(millis(ms)),
            Deed::KillServer(place) => world.restart_server(place).await,
            Deed::PauseServer(place, ms) => world.pause_server(place, millis(ms)),
            Deed::Partition(one, other, direction, ms) => world.cut(one, other, direction, millis(ms)),
            Deed::Jump(node, ms) => world.jump(node, ms),
            Deed::Compact => world.compact().await,
        }
    }

    async fn ask(&mut self, deed: Deed) {
        let tasks: Api<Task> = Api::namespaced(self.user.kube(), "default");
        match deed {
            Deed::Create(task) => {
                let task = serde_json::from_value(task).expect("the workload makes tasks");
                let _ = tasks.create(&PostParams::default(), &task).await;
            }
            Deed::Delete(name) => {
                let _ = tasks.delete(&name, &DeleteParams::default()).await;
            }
            Deed::Kill(name) => {
                let patch = Patch::Merge(json!({ "spec": { "desired": "Killed" } }));
                let _ = tasks.patch(&name, &PatchParams::default(), &patch).await;
            }
            Deed::RemoveAgent(index) => {
                let agents: Api<Agent> = Api::all(self.user.kube());
                let _ = agents.delete(&agent_name(index), &DeleteParams::default()).await;
            }
            _ => self.scheduler.answer(&mut self.random).await,
        }
    }
}
