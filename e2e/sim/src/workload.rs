//! What users do in the simulation, drawn from the seed.

use rand::Rng;
use rand::rngs::StdRng;
use serde_json::{Value, json};

/// Something that somebody does to the cluster.
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
    /// An agent's process dies and is started again.
    RestartAgent(usize),
    /// Everything that an agent sends and gets is held up for so many milliseconds.
    StallAgent(usize, u64),
    /// A controllers' process dies and is started again.
    RestartControllers(usize),
    /// Everything that a controllers' process sends and gets is held up, as when it is stopped.
    StallControllers(usize, u64),
    /// The API server dies and is started again.
    RestartServer,
}

/// Names that tasks are made under: few, so that names come back.
const NAMES: usize = 12;

/// Draws the next deed.
pub fn draw(random: &mut StdRng, agents: usize, controllers: usize) -> Deed {
    let name = |random: &mut StdRng| format!("t{}", random.random_range(0..NAMES));
    match random.random_range(0..100) {
        0..45 => {
            let name = name(random);
            Deed::Create(task(random, &name, "default"))
        }
        45..60 => Deed::Delete(name(random)),
        60..66 => Deed::Kill(name(random)),
        66..84 => Deed::Answer,
        84..88 => Deed::RestartAgent(random.random_range(0..agents)),
        88..91 => Deed::StallAgent(random.random_range(0..agents), random.random_range(100..30_000)),
        91..94 => Deed::RestartControllers(random.random_range(0..controllers)),
        94..98 => Deed::StallControllers(random.random_range(0..controllers), random.random_range(100..15_000)),
        _ => Deed::RestartServer,
    }
}

/// A task of random size that ends in a random way.
pub fn task(random: &mut StdRng, name: &str, framework: &str) -> Value {
    let command = match random.random_range(0..8) {
        0 => json!(["true"]),
        1 => json!(["exit", "3"]),
        2 => json!(["sleep", "infinity"]),
        3 => json!(["fake", "run=2", "signal=9"]),
        4 => json!(["fake", "run=1", "oom=1"]),
        5 => json!(["fake", "cannot-run=no such file"]),
        _ => json!(["sleep", random.random_range(1..20).to_string()]),
    };
    let restart = ["Never", "Never", "OnFailure"][random.random_range(0..3)];
    let cpus = ["0.1", "0.5", "1", "3"][random.random_range(0..4)];
    let gpus = [0, 0, 1, 2][random.random_range(0..4)];
    json!({
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
    })
}
