//! What holds in every history: commands that end, containers that vanish, calls and reports that get lost, agents that restart.

use std::sync::Arc;

use muster_api::task_state::{Phase, Writer};
use muster_api::v1::{Desired, RestartPolicy, Task};
use muster_runtime::{Container, ContainerId, Error, Exit, State};
use proptest::prelude::*;

use super::testing::*;
use super::*;
use crate::limits::{ATTEMPTS_MAX, CONTAINERS_KEPT};
use crate::restart::retries;

#[derive(Clone, Debug)]
enum Step {
    /// Time passes.
    Pass(u16),
    /// The agent lists, plans, acts and reports; the call of this index goes wrong, the report may get lost.
    Round { wrong: Option<(u8, Wrong)>, lost: bool },
    /// The command ends.
    Exit(u8),
    /// A signal ends the command.
    Signal,
    /// Somebody deletes the latest container by hand.
    Vanish,
    /// Somebody wants the task to end.
    Kill,
    /// Somebody deletes the task.
    Delete,
    /// The agent's process starts anew.
    Restart,
}

#[derive(Clone, Copy, Debug)]
enum Wrong {
    Fails,
    FailsButHappens,
    Invalid,
}

fn steps() -> impl Strategy<Value = Vec<Step>> {
    let wrong = prop_oneof![Just(Wrong::Fails), Just(Wrong::FailsButHappens), Just(Wrong::Invalid)];
    let wrong = prop::option::weighted(0.3, (0u8..3, wrong));
    let round = (wrong, prop::bool::weighted(0.2)).prop_map(|(wrong, lost)| Step::Round { wrong, lost });
    let step = prop_oneof![
        12 => round,
        3 => (0u16..200).prop_map(Step::Pass),
        3 => (0u8..3).prop_map(Step::Exit),
        1 => Just(Step::Signal),
        1 => Just(Step::Vanish),
        1 => Just(Step::Restart),
    ];
    let ends = prop_oneof![8 => Just(None), 1 => Just(Some(Step::Kill)), 1 => Just(Some(Step::Delete))];
    prop::collection::vec((step, ends), 0..80).prop_map(|pairs| {
        pairs
            .into_iter()
            .flat_map(|(step, end)| [Some(step), end])
            .flatten()
            .collect()
    })
}

fn policy() -> impl Strategy<Value = (RestartPolicy, Option<u32>)> {
    prop_oneof![
        Just((RestartPolicy::Never, None)),
        prop::option::of(0u32..4).prop_map(|most| (RestartPolicy::OnFailure, most)),
        prop::option::of(0u32..4).prop_map(|most| (RestartPolicy::Always, most)),
    ]
}

struct World {
    scene: Scene,
    created: BTreeSet<ContainerId>,
    started: BTreeSet<ContainerId>,
    released: bool,
}

impl World {
    fn new(policy: (RestartPolicy, Option<u32>)) -> World {
        let scene = Scene::of(|task| (task.spec.restart_policy, task.spec.max_retries) = policy);
        World {
            scene,
            created: BTreeSet::new(),
            started: BTreeSet::new(),
            released: false,
        }
    }

    fn task(&self) -> &Task {
        self.scene.tasks.values().next().expect("there is one task")
    }

    fn change(&mut self, change: impl FnOnce(&mut Task)) {
        let task = self.scene.tasks.values_mut().next().expect("there is one task");
        change(Arc::make_mut(task));
    }

    fn container(&mut self, id: &ContainerId) -> Option<&mut Container> {
        self.scene.containers.iter_mut().find(|container| container.id == *id)
    }

    fn end(&mut self, code: Option<i32>, signal: Option<i32>) {
        let now_ms = self.scene.now_ms;
        for container in &mut self.scene.containers {
            if let State::Running { started_ms, .. } = container.state {
                container.state = State::Exited(Exit {
                    code,
                    signal,
                    oom_killed: false,
                    started_ms: Some(started_ms),
                    finished_ms: now_ms,
                    error: None,
                });
            }
        }
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Pass(secs) => self.scene.now_ms += i64::from(*secs) * 1000,
            Step::Round { wrong, lost } => {
                self.round(*wrong, *lost);
            }
            Step::Exit(code) => self.end(Some(i32::from(*code)), None),
            Step::Signal => self.end(None, Some(11)),
            Step::Vanish => {
                let told = self.task().status.as_ref().and_then(|status| status.attempts.last());
                if let Some(id) = told.map(|attempt| id("t", attempt.number)) {
                    self.scene.containers.retain(|container| container.id != id);
                }
            }
            Step::Kill => self.change(|task| task.spec.desired = Desired::Killed),
            Step::Delete => self.change(|task| task.metadata.deletion_timestamp = Some(time(START_MS))),
            Step::Restart => self.scene.memory = Memory::default(),
        }
    }

    /// One round of the agent; whether it did or said anything.
    fn round(&mut self, wrong: Option<(u8, Wrong)>, lost: bool) -> bool {
        if self.released {
            assert!(self.scene.containers.is_empty(), "let go of with something left");
            return false;
        }
        let containers = self.scene.containers.clone();
        self.scene.memory.listed(&containers, ["uid-t"]);
        let plan = self.scene.plan();
        self.check(&plan);
        let now = Timestamp::from_millisecond(self.scene.now_ms).expect("in range");
        let actions: Vec<Action> = plan.actions.values().flatten().cloned().collect();
        for (index, action) in actions.iter().enumerate() {
            let wrong = wrong
                .filter(|(at, _)| usize::from(*at) == index)
                .map(|(_, wrong)| wrong);
            let answer = match wrong {
                None => Ok(()),
                Some(Wrong::Invalid) if matches!(action, Action::Create { .. }) => Err(Error::Invalid("no".to_owned())),
                Some(_) => Err(Error::Deadline {
                    call: "it",
                    deadline: std::time::Duration::from_secs(1),
                }),
            };
            if answer.is_ok() || matches!(wrong, Some(Wrong::FailsButHappens)) {
                self.perform(action);
            }
            self.scene.memory.acted(action, &answer, now);
            if answer.is_err() {
                break;
            }
        }
        if !lost {
            for report in plan.reports.values() {
                match report {
                    Report::Status(status) => self.change(|task| task.status = Some((**status).clone())),
                    Report::Release => self.released = true,
                }
            }
        }
        !plan.actions.is_empty() || !plan.reports.is_empty()
    }

    fn perform(&mut self, action: &Action) {
        let now_ms = self.scene.now_ms;
        match action {
            Action::Create { id, spec, .. } => {
                assert!(self.created.insert(id.clone()), "{id} was made twice");
                self.scene.containers.push(Container {
                    id: id.clone(),
                    labels: spec.labels.clone().into_iter().collect(),
                    state: State::Created,
                });
                self.scene.containers.sort_by(|a, b| a.id.cmp(&b.id));
            }
            Action::Start(id) => {
                assert!(self.started.insert(id.clone()), "{id} was started twice");
                let container = self.container(id).expect("only what is here is started");
                assert_eq!(container.state, State::Created);
                container.state = State::Running {
                    pid: 1,
                    started_ms: now_ms,
                };
            }
            Action::Stop(id, stop) => {
                let container = self.container(id).expect("only what is here is stopped");
                if container.state == State::Created {
                    container.state = State::Exited(Exit::never_ran(now_ms, "stopped"));
                } else {
                    self.end(None, Some(stop.signal));
                }
            }
            Action::Remove(id) => {
                let container = self.container(id).expect("only what is here is removed");
                assert!(
                    matches!(container.state, State::Exited(_)),
                    "{id} is removed while it is there"
                );
                self.scene.containers.retain(|container| container.id != *id);
            }
        }
    }

    fn check(&self, plan: &AgentPlan) {
        let task = self.task();
        let shown = task.status.as_ref().expect("bound");
        for action in plan.actions.values().flatten() {
            let start = matches!(action, Action::Start(_));
            assert!(
                !start || shown.phase != Phase::Staging,
                "started before it was acknowledged"
            );
            assert!(
                !(shown.phase.is_terminal() && matches!(action, Action::Create { .. } | Action::Start(_))),
                "started after the end"
            );
        }
        let Some(status) = said(plan) else {
            return;
        };
        assert!(
            shown.phase.may_move(status.phase, Writer::Agent),
            "{} to {}",
            shown.phase,
            status.phase
        );
        assert!(!shown.phase.is_terminal(), "an end is spoken of again");
        assert!(status.attempts.len() <= ATTEMPTS_MAX);
        assert!(status.attempts.is_sorted_by_key(|attempt| attempt.number));
        let last = status.attempts.last().map_or(0, |attempt| attempt.number);
        assert!(
            retries(&task.spec).is_none_or(|most| last <= most + 1),
            "attempt {last}"
        );
        for over in shown.attempts.iter().filter(|attempt| attempt.finished_at.is_some()) {
            let same = status.attempts.iter().find(|attempt| attempt.number == over.number);
            assert!(same.is_none_or(|same| same == over), "an attempt is told anew");
        }
        if status.phase.is_terminal() {
            let left = |container: &&Container| !matches!(container.state, State::Exited(_));
            assert_eq!(self.scene.containers.iter().find(left), None, "something is left");
            assert!(status.finished_at.is_some());
            assert!(
                plan.actions
                    .values()
                    .flatten()
                    .all(|action| matches!(action, Action::Remove(_)))
            );
        }
    }

    /// Rounds without faults until nothing is left to do.
    fn settle(&mut self) {
        for _ in 0..40 {
            self.scene.now_ms += 20_000;
            if !self.round(None, false) {
                return;
            }
        }
        panic!("the agent does not come to rest: {:#?}", self.task().status);
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 2000, ..ProptestConfig::default() })]

    #[test]
    fn no_history_starts_anything_twice_or_goes_back_and_every_task_can_be_ended(policy in policy(), steps in steps()) {
        let mut world = World::new(policy);
        for step in &steps {
            world.step(step);
        }
        world.step(&Step::Kill);
        world.settle();
        prop_assert!(world.task().phase().is_terminal(), "{:#?}", world.task().status);
        prop_assert!(world.scene.containers.len() <= CONTAINERS_KEPT);
        world.step(&Step::Delete);
        world.settle();
        prop_assert!(world.released && world.scene.containers.is_empty());
    }

    #[test]
    fn equal_worlds_have_equal_plans(policy in policy(), steps in steps()) {
        let mut world = World::new(policy);
        for step in &steps {
            world.step(step);
            prop_assert_eq!(world.scene.plan(), world.scene.plan());
        }
    }
}
