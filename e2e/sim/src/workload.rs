//! What users do in the simulation, and what befalls its processes, drawn from the seed.

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

use crate::profile::{Storm, Weights};

/// Something that somebody does to the cluster, or that happens to it.
#[derive(Clone, Debug, PartialEq)]
pub enum Deed {
    /// A user creates this task.
    Create(Value),
    /// A user deletes the task of this name.
    Delete(String),
    /// A user asks for the end of the task of this name.
    Kill(String),
    /// The external framework answers its open offers: accepts some twice at once, declines others.
    Answer,
    /// An operator deletes the object of an agent.
    RemoveAgent(usize),
    /// An agent's process dies and is started again.
    KillAgent(usize),
    /// An agent's machine loses its power and comes back.
    Reboot(usize),
    /// An agent's process is stopped for so many milliseconds.
    PauseAgent(usize, u64),
    /// A controllers' process dies and is started again.
    KillControllers(usize),
    /// A controllers' process is stopped for so many milliseconds.
    PauseControllers(usize, u64),
    /// The leader is stopped for so many milliseconds.
    PauseLeader(u64),
    /// An API server dies and is started again.
    KillServer(usize),
    /// An API server is stopped for so many milliseconds.
    PauseServer(usize, u64),
    /// The way between two nodes (of all of them, by number) is cut for so many milliseconds: there, back, or both.
    Partition(usize, usize, Direction, u64),
    /// The clock of a node is wrong by so many milliseconds from now on.
    Jump(usize, i64),
    /// The store forgets its history.
    Compact,
}

/// Which way is cut.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// From the first to the second.
    There,
    /// From the second to the first.
    Back,
    /// Both.
    Both,
}

/// The time to live of the leader's lease, in milliseconds.
pub const LEADER_TTL_MS: u64 = 2_000;

/// Draws the next deed.
pub fn draw(random: &mut StdRng, storm: &Storm) -> Deed {
    let nodes = storm.servers + storm.controllers + storm.agents + 1;
    let name = |random: &mut StdRng| format!("t{}", random.random_range(0..storm.names));
    let agent = |random: &mut StdRng| random.random_range(0..storm.agents);
    let controllers = |random: &mut StdRng| random.random_range(0..storm.controllers);
    let server = |random: &mut StdRng| random.random_range(0..storm.servers);
    match choose(random, &storm.weights) {
        0 => {
            let name = name(random);
            Deed::Create(task(random, &name, "default"))
        }
        1 => Deed::Delete(name(random)),
        2 => Deed::Kill(name(random)),
        3 => Deed::Answer,
        4 => Deed::KillAgent(agent(random)),
        5 => Deed::Reboot(agent(random)),
        6 => Deed::PauseAgent(agent(random), random.random_range(100..30_000)),
        7 => Deed::KillControllers(controllers(random)),
        8 => Deed::PauseControllers(controllers(random), random.random_range(100..15_000)),
        9 => Deed::PauseLeader(random.random_range(LEADER_TTL_MS / 2..3 * LEADER_TTL_MS)),
        10 => Deed::KillServer(server(random)),
        11 => Deed::PauseServer(server(random), random.random_range(100..10_000)),
        12 => {
            let (from, to) = (random.random_range(0..nodes), random.random_range(0..nodes));
            let direction = [Direction::There, Direction::Back, Direction::Both][random.random_range(0..3)];
            Deed::Partition(from, to, direction, random.random_range(100..20_000))
        }
        13 => Deed::Jump(random.random_range(0..nodes - 1), random.random_range(-60_000..60_000)),
        14 => Deed::Compact,
        _ => Deed::RemoveAgent(agent(random)),
    }
}

fn choose(random: &mut StdRng, weights: &Weights) -> usize {
    let weights = [
        weights.create,
        weights.delete,
        weights.kill,
        weights.answer,
        weights.kill_agent,
        weights.reboot,
        weights.pause_agent,
        weights.kill_controllers,
        weights.pause_controllers,
        weights.pause_leader,
        weights.kill_server,
        weights.pause_server,
        weights.partition,
        weights.jump,
        weights.compact,
        weights.remove_agent,
    ];
    let mut left = random.random_range(0..weights.iter().sum());
    let chosen = weights.iter().position(|weight| {
        let hit = left < *weight;
        left = left.saturating_sub(*weight);
        hit
    });
    chosen.expect("what was drawn is less than the sum")
}

/// A task of random size that ends in a random way.
pub fn task(random: &mut StdRng, name: &str, framework: &str) -> Value {
    let command = match random.random_range(0..9) {
        0 => json!(["true"]),
        1 => json!(["exit", "3"]),
        2 => json!(["sleep", "infinity"]),
        3 => json!(["fake", "run=2", "signal=9"]),
        4 => json!(["fake", "run=1", "oom=1"]),
        5 => json!(["fake", "cannot-run=no such file"]),
        6 => json!(["fake", "run=15", "ignore-signals=1"]),
        _ => json!(["sleep", random.random_range(1..20).to_string()]),
    };
    let restart = ["Never", "Never", "OnFailure"][random.random_range(0..3)];
    let cpus = ["0.1", "0.5", "1", "3"][random.random_range(0..4)];
    let gpus = [0, 0, 1, 2][random.random_range(0..4)];
    let mut task = json!({
        "apiVersion": "muster.dev/v1",
        "kind": "Task",
        "metadata": { "name": name, "namespace": "default" },
        "spec": {
            "framework": framework,
            "command": command,
            "restartPolicy": restart,
            "resources": {
                "cpus": cpus,
                "memory": "16Mi",
                "gpus": gpus,
                "ports": random.random_range(0..3),
            },
        },
    });
    if random.random_bool(0.2) {
        task["spec"]["ttlAfterFinished"] = json!("2s");
    }
    match random.random_range(0..6) {
        0 => task["spec"]["unreachable"] = json!({ "policy": "SelfFence", "after": "20s" }),
        1 => task["spec"]["unreachable"] = json!({ "policy": "ReplaceAfter", "after": "10s", "keep": "Original" }),
        2 => task["spec"]["unreachable"] = json!({ "policy": "ReplaceAfter", "after": "10s" }),
        _ => {}
    }
    task
}
