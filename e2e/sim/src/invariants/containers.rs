//! What happens on the machines, as opposed to what is said of it.

use std::collections::{BTreeMap, BTreeSet};

use muster_api::names::FINALIZER_AGENT;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Desired, Task, UnreachablePolicy};
use muster_runtime::FakeRuntime;
use muster_runtime::fake::{Event, Happening};

/// A container on every machine that is not Muster's.
pub const FOREIGN: &str = "somebody-elses";

struct Machine {
    agent: String,
    name: String,
    runtime: FakeRuntime,
    seen: usize,
}

/// Where a container lives: its machine, and its id.
type Place = (usize, String);

/// See the module.
#[derive(Default)]
pub(super) struct Containers {
    machines: Vec<Machine>,
    started: BTreeMap<String, usize>,
    /// By the uid of their task.
    live: BTreeMap<String, BTreeSet<Place>>,
    here: BTreeMap<String, BTreeSet<Place>>,
}

impl Containers {
    pub(super) fn add(&mut self, agent: String, name: String, runtime: FakeRuntime) {
        self.machines.push(Machine {
            agent,
            name,
            runtime,
            seen: 0,
        });
    }

    /// A container of the task that lives.
    pub(super) fn live(&self, uid: Option<&str>) -> Option<&str> {
        let (_, id) = self.live.get(uid?)?.first()?;
        Some(id)
    }

    /// A container of the task that is there, alive or not.
    pub(super) fn left(&self, uid: Option<&str>) -> Option<&str> {
        let (_, id) = self.here.get(uid?)?.first()?;
        Some(id)
    }

    /// Takes in what has happened since the last call; what of it is wrong as the API stands.
    pub(super) fn look(&mut self, tasks: &BTreeMap<String, Task>, agents: &BTreeMap<String, Agent>) -> Vec<String> {
        let mut wrong = Vec::new();
        for index in 0..self.machines.len() {
            let machine = &mut self.machines[index];
            let events = machine.runtime.history_after(machine.seen);
            machine.seen += events.len();
            for event in events {
                if let Some(what) = self.happened(index, &event, tasks, agents) {
                    let name = &self.machines[index].name;
                    wrong.push(format!("{name}: container {}: {what}", event.id));
                }
            }
        }
        wrong
    }

    fn happened(
        &mut self,
        machine: usize,
        event: &Event,
        tasks: &BTreeMap<String, Task>,
        agents: &BTreeMap<String, Agent>,
    ) -> Option<String> {
        let id = event.id.as_str();
        if id == FOREIGN {
            let touched = matches!(event.happening, Happening::Signalled(_) | Happening::Removed);
            return touched.then(|| "was touched although it is not ours".to_owned());
        }
        let uid = id.rsplit_once('-')?.0;
        let place = (machine, id.to_owned());
        let task = tasks.values().find(|task| task.metadata.uid.as_deref() == Some(uid));
        match &event.happening {
            Happening::Created => {
                self.here.entry(uid.to_owned()).or_default().insert(place);
                None
            }
            Happening::Started => {
                let before = self.started.insert(id.to_owned(), machine);
                let live = self.live.entry(uid.to_owned()).or_default();
                live.insert(place);
                if let Some(before) = before {
                    return Some(format!("started again; it had run on {}", self.machines[before].name));
                }
                if live.len() > 1 {
                    return Some(format!("started while another of its task lives: {live:?}"));
                }
                let problem = task.and_then(|task| may_not_start(task, &self.machines[machine], agents));
                problem.or_else(|| self.device_in_use(machine, uid, tasks))
            }
            Happening::Signalled(signal) => {
                let task = task?;
                (!may_be_stopped(task)).then(|| {
                    let name = task.name();
                    format!(
                        "was sent signal {signal}, but {name} is {} and nobody asked for its end",
                        task.phase()
                    )
                })
            }
            Happening::Exited(_) => {
                forget(&mut self.live, uid, &place);
                None
            }
            Happening::Removed => {
                forget(&mut self.live, uid, &place);
                forget(&mut self.here, uid, &place);
                None
            }
        }
    }

    /// Another live container on the machine that holds a device of this task.
    fn device_in_use(&self, machine: usize, uid: &str, tasks: &BTreeMap<String, Task>) -> Option<String> {
        let devices = |uid: &str| {
            let task = tasks.values().find(|task| task.metadata.uid.as_deref() == Some(uid));
            let status = task.and_then(|task| task.status.clone()).unwrap_or_default();
            status.devices
        };
        let mine = devices(uid);
        let others = self
            .live
            .iter()
            .filter(|(other, places)| other.as_str() != uid && places.iter().any(|(place, _)| *place == machine));
        let clash = others
            .into_iter()
            .find(|(other, _)| devices(other).iter().any(|device| mine.contains(device)));
        clash.map(|(other, _)| format!("started on a device that task {other} uses"))
    }
}

fn forget(map: &mut BTreeMap<String, BTreeSet<Place>>, uid: &str, place: &Place) {
    if let Some(places) = map.get_mut(uid) {
        places.remove(place);
        if places.is_empty() {
            map.remove(uid);
        }
    }
}

/// A task runs only where it is bound, on the machine that has the agent's name, and not after its end.
fn may_not_start(task: &Task, machine: &Machine, agents: &BTreeMap<String, Agent>) -> Option<String> {
    let phase = task.phase();
    if task.agent() != Some(machine.agent.as_str()) {
        return Some(format!("started for task {} of agent {:?}", task.name(), task.agent()));
    }
    if phase.is_terminal() && phase != Phase::Gone {
        return Some(format!("started although {} is {phase}", task.name()));
    }
    let agent = agents.values().find(|agent| agent.name() == machine.agent)?;
    let owner = agent.metadata.annotations.as_ref()?.get("muster.dev/machine")?;
    (*owner != machine.name).then(|| format!("started on a machine that is not {}", machine.agent))
}

fn may_be_stopped(task: &Task) -> bool {
    let finalizers = task.metadata.finalizers.iter().flatten();
    let held = finalizers.into_iter().any(|finalizer| finalizer == FINALIZER_AGENT);
    task.phase().is_terminal()
        || task.phase() == Phase::Killing
        || task.spec.desired == Desired::Killed
        || task.spec.deadline.is_some()
        || task.unreachable().policy == UnreachablePolicy::SelfFence
        || task.metadata.deletion_timestamp.is_some()
        || !held
}
