//! What tests of plans are written with.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use jiff::Timestamp;
use muster_api::names::FINALIZER_AGENT;
use muster_api::task_state::Phase;
use muster_api::v1::{Source, Task, TaskReason, TaskStatus};
use muster_api::{ObjectMeta, Time};
use muster_runtime::{Container, ContainerId, Exit, State};

use super::{Action, AgentPlan, EndedTask, Memory, PlanInput, Report, TaskKey};
use crate::devices::{DeviceSource, SimulatedDevices};
use crate::pulls::{Pull, PullKey};
use crate::sources::{Seen, SourceKey};
use crate::spec::{LABEL_ATTEMPT, LABEL_DEVICES, LABEL_UID, container_id};
use crate::volumes::Places;

/// Milliseconds since the epoch at which tests begin.
pub(crate) const START_MS: i64 = 1_800_000_000_000;

/// A task that was just bound to agent `a1`.
pub(crate) fn bound(name: &str) -> Task {
    let mut task = Task::new(name, muster_api::v1::TaskSpec::default());
    task.spec.command = vec!["sleep".to_owned(), "60".to_owned()];
    task.metadata = ObjectMeta {
        name: Some(name.to_owned()),
        namespace: Some("default".to_owned()),
        uid: Some(format!("uid-{name}")),
        resource_version: Some("7".to_owned()),
        generation: Some(1),
        finalizers: Some(vec![FINALIZER_AGENT.to_owned()]),
        ..ObjectMeta::default()
    };
    task.status = Some(TaskStatus {
        phase: Phase::Staging,
        reason: Some(TaskReason::OfferAccepted),
        agent: Some("a1".to_owned()),
        ..TaskStatus::default()
    });
    task
}

pub(crate) fn id(task: &str, attempt: u32) -> ContainerId {
    container_id(&format!("uid-{task}"), attempt).expect("test names are plain")
}

pub(crate) fn exit(code: i32) -> State {
    State::Exited(Exit {
        code: Some(code),
        signal: None,
        oom_killed: false,
        started_ms: Some(START_MS),
        finished_ms: START_MS + 1000,
        error: None,
    })
}

pub(crate) fn killed_by(signal: i32) -> State {
    let State::Exited(exit) = exit(0) else {
        unreachable!("it is an exit")
    };
    State::Exited(Exit {
        code: None,
        signal: Some(signal),
        ..exit
    })
}

pub(crate) fn running() -> State {
    State::Running {
        pid: 4,
        started_ms: START_MS,
    }
}

/// The world that one plan is made in.
pub(crate) struct Scene {
    pub(crate) tasks: BTreeMap<TaskKey, Arc<Task>>,
    pub(crate) containers: Vec<Container>,
    pub(crate) devices: SimulatedDevices,
    pub(crate) now_ms: i64,
    pub(crate) may_start: bool,
    pub(crate) can_fence: bool,
    pub(crate) disk: Option<&'static str>,
    pub(crate) draining: bool,
    pub(crate) busy: BTreeSet<String>,
    pub(crate) orphans: BTreeSet<String>,
    pub(crate) memory: Memory,
    pub(crate) pulls: Option<BTreeMap<PullKey, Pull>>,
    pub(crate) sources: BTreeMap<SourceKey, Seen>,
    pub(crate) places: Places,
}

impl Scene {
    pub(crate) fn new() -> Scene {
        Scene {
            tasks: BTreeMap::new(),
            containers: Vec::new(),
            devices: SimulatedDevices::parse("2xH100", "a1").expect("well-formed"),
            now_ms: START_MS + 2000,
            may_start: true,
            can_fence: true,
            disk: None,
            draining: false,
            busy: BTreeSet::new(),
            orphans: BTreeSet::new(),
            memory: Memory::default(),
            pulls: None,
            sources: BTreeMap::new(),
            places: Places {
                memory: Some("/memory".into()),
                disk: Some("/disk".into()),
                allowed: vec!["/allowed".into()],
            },
        }
    }

    /// With a task named `t`, as changed.
    pub(crate) fn of(change: impl FnOnce(&mut Task)) -> Scene {
        Scene::new().and(change)
    }

    /// With a task named `t` that is this far, as changed.
    pub(crate) fn at(phase: Phase, change: impl FnOnce(&mut Task)) -> Scene {
        Scene::of(|task| {
            task.status.as_mut().expect("bound").phase = phase;
            change(task);
        })
    }

    pub(crate) fn and(mut self, change: impl FnOnce(&mut Task)) -> Scene {
        let mut task = bound("t");
        change(&mut task);
        self.tasks.insert(TaskKey::of(&task), Arc::new(task));
        self
    }

    pub(crate) fn with(mut self, task: &str, attempt: u32, state: State) -> Scene {
        let labels = [(LABEL_UID, format!("uid-{task}")), (LABEL_ATTEMPT, attempt.to_string())];
        self.containers.push(Container {
            id: id(task, attempt),
            labels: labels.into_iter().collect(),
            state,
        });
        self
    }

    pub(crate) fn holding(self, device: &str) -> Scene {
        self.labelled(LABEL_DEVICES, device)
    }

    /// With this label besides on the last container.
    pub(crate) fn labelled(mut self, label: &str, value: &str) -> Scene {
        let last = self.containers.last_mut().expect("a container was added");
        let kept = [LABEL_UID, LABEL_ATTEMPT].map(|name| (name, last.labels.get(name).unwrap_or_default()));
        last.labels = kept.into_iter().chain([(label, value)]).collect();
        self
    }

    pub(crate) fn after_secs(mut self, secs: i64) -> Scene {
        self.now_ms = START_MS + secs * 1000;
        self
    }

    pub(crate) fn tell(&mut self, change: impl FnOnce(&mut Scene)) -> &mut Scene {
        change(self);
        self
    }

    pub(crate) fn plan(&self) -> AgentPlan {
        let (mut tasks, mut ended) = (BTreeMap::new(), BTreeMap::new());
        for (key, task) in &self.tasks {
            match EndedTask::of(task) {
                Some(task) => drop(ended.insert(key.clone(), task)),
                None => drop(tasks.insert(key.clone(), Arc::clone(task))),
            }
        }
        super::plan(&PlanInput {
            agent: "a1",
            tasks: &tasks,
            ended: &ended,
            containers: &self.containers,
            devices: &self.devices as &dyn DeviceSource,
            now: Timestamp::from_millisecond(self.now_ms).expect("in range"),
            may_start: self.may_start,
            can_fence: self.can_fence,
            disk: self.disk,
            boot_id: "b1",
            draining: self.draining,
            busy: &self.busy,
            orphans: &self.orphans,
            memory: &self.memory,
            pulls: self.pulls.as_ref(),
            sources: &self.sources,
            places: &self.places,
        })
    }

    /// This is known of a Secret or ConfigMap.
    pub(crate) fn knows(mut self, source: Source, seen: Seen) -> Scene {
        let namespace = "default".to_owned();
        self.sources.insert(SourceKey { namespace, source }, seen);
        self
    }

    /// Compares what is done and said about task `t` with what is expected.
    #[track_caller]
    pub(crate) fn check(&self, actions: &[&str], says: Option<(Phase, TaskReason)>) -> AgentPlan {
        let plan = self.plan();
        assert_eq!(words(&plan), actions, "{plan:#?}");
        assert_eq!(
            said(&plan).and_then(|status| Some((status.phase, status.reason?))),
            says,
            "{plan:#?}"
        );
        plan
    }
}

/// The actions of a plan in words: `create 1`, `stop 1 15`.
pub(crate) fn words(plan: &AgentPlan) -> Vec<String> {
    let word = |action: &Action| {
        let (_, attempt) = action.id().as_str().rsplit_once('-').expect("ids have an attempt");
        match action {
            Action::Create { .. } => format!("create {attempt}"),
            Action::Start(_) => format!("start {attempt}"),
            Action::Stop(_, stop) => format!("stop {attempt} {}", stop.signal),
            Action::Remove(_) => format!("remove {attempt}"),
        }
    };
    plan.actions.values().flatten().map(word).collect()
}

/// What a plan says about task `t`.
pub(crate) fn said(plan: &AgentPlan) -> Option<&TaskStatus> {
    let key = TaskKey::of(&bound("t"));
    match plan.reports.get(&key)? {
        Report::Status(status) => Some(status),
        Report::Release => None,
    }
}

pub(crate) fn time(ms: i64) -> Time {
    crate::status::time(ms)
}
