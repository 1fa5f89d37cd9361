//! The plan: from the tasks that are bound to this agent and the containers that are here, to what to do and what to say.
//!
//! Pure: no I/O, no clock, no randomness; equal inputs give equal plans. It promises: a container that exists is never made again, and
//! no container is started twice; a command is run only after the API server has acknowledged that this agent took the task up, and not
//! while another container still holds one of its devices; a terminal phase is said only when nothing of the task is left; a phase never
//! goes back. What must never happen here: a fact that is neither in the API nor in the runtime, other than [`Memory`], which may be
//! lost at any time.
//!
//! Tested by tables (one case per rule) and by properties over random histories.

mod ended;
mod given;
#[cfg(test)]
mod given_tests;
mod image;
#[cfg(test)]
mod image_tests;
mod in_use;
mod memory;
mod task;

#[cfg(test)]
mod properties;
#[cfg(test)]
pub(crate) mod testing;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::sync::Arc;

use jiff::Timestamp;
use muster_api::v1::{Task, TaskStatus};
use muster_runtime::{Container, ContainerId, ContainerSpec, State, Stop};

use crate::devices::DeviceSource;
use crate::limits::GRACE_DEFAULT;
use crate::pulls::{Pull, PullKey, Want};
use crate::sources::{Seen, SourceKey};
use crate::spec;
use crate::volumes::{Make, Places};
pub use ended::EndedTask;
pub(crate) use memory::after;
pub use memory::{Failure, Memory, Verb};

/// The name of a task: its namespace and its name there.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct TaskKey {
    /// The namespace.
    pub namespace: String,
    /// The name.
    pub name: String,
}

impl TaskKey {
    /// The name of this task.
    pub fn of(task: &Task) -> TaskKey {
        TaskKey {
            namespace: task.namespace().to_owned(),
            name: task.name().to_owned(),
        }
    }
}

impl fmt::Display for TaskKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.namespace, self.name)
    }
}

/// Everything that a plan is made from.
#[derive(Clone, Copy)]
pub struct PlanInput<'a> {
    /// The name of this agent.
    pub agent: &'a str,
    /// The tasks bound to it that have not ended, as the API server last showed or acknowledged them.
    pub tasks: &'a BTreeMap<TaskKey, Arc<Task>>,
    /// Those that have ended.
    pub ended: &'a BTreeMap<TaskKey, EndedTask>,
    /// The containers that are here.
    pub containers: &'a [Container],
    /// The devices that are here.
    pub devices: &'a dyn DeviceSource,
    /// The wall clock.
    pub now: Timestamp,
    /// Whether tasks that never ran may be run: this process holds the agent's session.
    pub may_start: bool,
    /// Whether the runtime can end a container without the agent.
    pub can_fence: bool,
    /// Why tasks that never ran are not run although they may be: the disk is full.
    pub disk: Option<&'a str>,
    /// The boot of the machine.
    pub boot_id: &'a str,
    /// Whether everything is to be stopped because the agent ends.
    pub draining: bool,
    /// Uids of tasks that the runtime works on right now; nothing is planned for them.
    pub busy: &'a BTreeSet<String>,
    /// Uids of tasks that are proven not to exist any more, but have containers.
    pub orphans: &'a BTreeSet<String>,
    /// What this process remembers.
    pub memory: &'a Memory,
    /// What is known of the images that are wanted from registries; `None`: the runtime fetches none.
    pub pulls: Option<&'a BTreeMap<PullKey, Pull>>,
    /// What is known of the Secrets and ConfigMaps that are wanted.
    pub sources: &'a BTreeMap<SourceKey, Seen>,
    /// Where the directories of tasks are.
    pub places: &'a Places,
}

/// What to do, and what to say.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AgentPlan {
    /// By the uid of their task, in order. Those of different tasks are independent.
    pub actions: BTreeMap<String, Vec<Action>>,
    /// What the API server does not show yet.
    pub reports: BTreeMap<TaskKey, Report>,
    /// The images that have to come from registries.
    pub images: BTreeMap<PullKey, Want>,
    /// The Secrets and ConfigMaps that have to be read.
    pub sources: BTreeSet<SourceKey>,
    /// When to plan again even if nothing happens.
    pub wake: Option<Timestamp>,
    /// Objects that could not be understood.
    pub problems: Vec<String>,
}

/// A call to the runtime.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Prepare a container.
    Create {
        /// Its id.
        id: ContainerId,
        /// What it is made from.
        spec: Box<ContainerSpec>,
        /// What has to be there before.
        makes: Vec<Make>,
    },
    /// Run the command of a prepared container.
    Start(ContainerId),
    /// Begin to stop a container.
    Stop(ContainerId, Stop),
    /// Remove an exited container.
    Remove(ContainerId),
}

impl Action {
    /// The container that it is about.
    pub fn id(&self) -> &ContainerId {
        match self {
            Action::Create { id, .. } | Action::Start(id) | Action::Stop(id, _) | Action::Remove(id) => id,
        }
    }

    /// Which call it is.
    pub fn verb(&self) -> Verb {
        match self {
            Action::Create { .. } => Verb::Create,
            Action::Start(_) => Verb::Start,
            Action::Stop(..) => Verb::Stop,
            Action::Remove(_) => Verb::Remove,
        }
    }
}

/// Something that the API server has to be told about a task.
#[derive(Clone, Debug, PartialEq)]
pub enum Report {
    /// Its status; only the fields that agents write count.
    Status(Box<TaskStatus>),
    /// That nothing of it is here any more: the agent's finalizer goes.
    Release,
}

/// The plan for one task.
#[derive(Debug, Default)]
struct TaskPlan {
    actions: Vec<Action>,
    report: Option<Report>,
    image: Option<(PullKey, Want)>,
    sources: BTreeSet<SourceKey>,
    wake: Option<Timestamp>,
}

/// The devices and ports that are in use, and by which task (uid).
type Held<'a> = BTreeMap<String, &'a str>;

/// A port among what is in use.
fn port(port: u16) -> String {
    format!("port {port}")
}

fn earlier(a: Option<Timestamp>, b: Option<Timestamp>) -> Option<Timestamp> {
    [a, b].into_iter().flatten().min()
}

/// Makes the plan. Total: what cannot be understood becomes a problem of the plan, and is left alone.
pub fn plan(input: &PlanInput<'_>) -> AgentPlan {
    let mut plan = AgentPlan::default();
    let mut containers: BTreeMap<&str, BTreeMap<u32, &Container>> = BTreeMap::new();
    let mut held = Held::new();
    for container in input.containers {
        let Some((uid, attempt)) = spec::owner(container) else {
            plan.problems.push(format!(
                "container {} belongs to no task; it is left alone",
                container.id
            ));
            continue;
        };
        containers.entry(uid).or_default().insert(attempt, container);
        if !matches!(container.state, State::Exited(_)) {
            held.extend(spec::devices(container).map(|device| (device.to_owned(), uid)));
            held.extend(spec::ports(container).iter().map(|number| (port(number), uid)));
        }
    }
    for (key, task) in input.tasks {
        let Some(uid) = task.metadata.uid.as_deref() else {
            plan.problems.push(format!("task {key} has no uid; it is left alone"));
            continue;
        };
        let runs = containers.remove(uid).unwrap_or_default();
        if input.busy.contains(uid) || task.agent() != Some(input.agent) {
            continue;
        }
        plan.add(uid, Some(key), task::plan(input, &held, task, uid, runs));
    }
    for (key, task) in input.ended {
        let runs = containers.remove(&*task.uid).unwrap_or_default();
        if !input.busy.contains(&*task.uid) {
            plan.add(&task.uid, Some(key), ended::plan(input, task, &runs));
        }
    }
    for (uid, runs) in containers {
        if input.orphans.contains(uid) && !input.busy.contains(uid) {
            plan.add(uid, None, orphan(input, &runs));
        }
    }
    plan
}

impl AgentPlan {
    fn add(&mut self, uid: &str, key: Option<&TaskKey>, one: TaskPlan) {
        if !one.actions.is_empty() {
            self.actions.insert(uid.to_owned(), one.actions);
        }
        if let (Some(key), Some(report)) = (key, one.report) {
            self.reports.insert(key.clone(), report);
        }
        if let Some((key, want)) = one.image {
            self.images.entry(key).or_default().and(want);
        }
        self.sources.extend(one.sources);
        self.wake = earlier(self.wake, one.wake);
    }
}

/// A task that does not exist any more leaves nothing.
fn orphan(input: &PlanInput<'_>, runs: &BTreeMap<u32, &Container>) -> TaskPlan {
    let stop = Stop {
        signal: 15,
        grace: GRACE_DEFAULT,
    };
    let mut plan = TaskPlan::default();
    for container in runs.values() {
        match container.state {
            State::Exited(_) => plan.act(input, Action::Remove(container.id.clone())),
            State::Created | State::Running { .. } => plan.stop(input, &container.id, stop),
        }
    }
    plan
}

impl TaskPlan {
    /// Adds an action, unless the same call failed so recently that it has to wait.
    fn act(&mut self, input: &PlanInput<'_>, action: Action) {
        match input.memory.failure(action.id(), action.verb()) {
            Some(failure) if failure.retry_at > input.now => self.wake = earlier(self.wake, Some(failure.retry_at)),
            _ => self.actions.push(action),
        }
    }

    /// Stops a container once: a second signal can mean something else to a program. Much later it is killed.
    fn stop(&mut self, input: &PlanInput<'_>, id: &ContainerId, stop: Stop) {
        let Some(told) = input.memory.stopped(id) else {
            return self.act(input, Action::Stop(id.clone(), stop));
        };
        let again = memory::after(told, stop.grace + crate::limits::STOP_AGAIN);
        if again > input.now {
            self.wake = earlier(self.wake, Some(again));
            return;
        }
        let kill = Stop {
            signal: 9,
            grace: std::time::Duration::ZERO,
        };
        self.act(input, Action::Stop(id.clone(), kill));
    }
}
