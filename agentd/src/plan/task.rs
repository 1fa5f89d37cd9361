//! The plan for one task.

use std::collections::BTreeMap;

use jiff::Timestamp;
use muster_api::task_state::{Phase, Writer};
use muster_api::v1::{Desired, Task, TaskImage, TaskReason, TaskStatus};
use muster_runtime::{Container, ContainerId, ContainerSpec, LABEL_IMAGE, State};

use super::given::{self, Without};
use super::image::Absent;
use super::memory::after;
use super::{Action, Held, PlanInput, Report, TaskPlan, Verb, earlier, image, in_use};
use crate::limits::{CONTAINERS_KEPT, START_PATIENCE};
use crate::restart::{self, Decision};
use crate::spec::{self, container_id, container_spec};
use crate::status::{self, Ended, Outcome};
use crate::volumes::Make;

pub(super) fn plan(
    input: &PlanInput<'_>,
    held: &Held<'_>,
    task: &Task,
    uid: &str,
    runs: BTreeMap<u32, &Container>,
) -> TaskPlan {
    let mut case = Case {
        input,
        held,
        task,
        uid,
        status: task.status.clone().unwrap_or_default(),
        runs,
        plan: TaskPlan::default(),
    };
    match case.status.phase {
        Phase::Staging | Phase::Starting | Phase::Running | Phase::Killing => case.live(),
        // Not bound, or ended: neither is here to be run.
        Phase::Pending
        | Phase::Finished
        | Phase::Failed
        | Phase::Killed
        | Phase::Error
        | Phase::Dropped
        | Phase::Gone => {}
    }
    case.plan
}

/// How far the latest attempt is.
enum Latest {
    /// There was none.
    None,
    /// Its container is prepared.
    Prepared(u32, ContainerId),
    /// Its command runs.
    Running(ContainerId),
    /// It is over.
    Ended(Ended),
}

struct Case<'a> {
    input: &'a PlanInput<'a>,
    held: &'a Held<'a>,
    task: &'a Task,
    uid: &'a str,
    status: TaskStatus,
    runs: BTreeMap<u32, &'a Container>,
    plan: TaskPlan,
}

impl Case<'_> {
    fn now_ms(&self) -> i64 {
        self.input.now.as_millisecond()
    }

    fn deleting(&self) -> bool {
        self.task.metadata.deletion_timestamp.is_some()
    }

    fn live(&mut self) {
        let latest = self.latest();
        let number = match &latest {
            Latest::None => 0,
            Latest::Prepared(number, _) => *number,
            Latest::Running(_) => self.runs.keys().next_back().copied().unwrap_or(0),
            Latest::Ended(ended) => ended.number,
        };
        let strays: Vec<ContainerId> = self
            .runs
            .range(..number)
            .filter(|(_, container)| !matches!(container.state, State::Exited(_)))
            .map(|(_, container)| container.id.clone())
            .collect();
        if !strays.is_empty() {
            strays.iter().for_each(|id| self.stop(id));
            return;
        }
        let stopping = self.stopping();
        match latest {
            Latest::None => self.fresh(stopping),
            Latest::Prepared(number, id) => self.prepared(number, &id, stopping),
            Latest::Running(id) => self.running(&id, stopping),
            Latest::Ended(ended) => self.ended(&ended, stopping),
        }
        self.remove_old();
    }

    fn latest(&self) -> Latest {
        let told = self.status.attempts.last().map_or(0, |attempt| attempt.number);
        let here = self.runs.keys().next_back().copied().unwrap_or(0);
        let number = told.max(here).max(self.input.memory.attempt(self.uid));
        if number == 0 {
            return Latest::None;
        }
        if let Some(container) = self.runs.get(&number) {
            return match &container.state {
                State::Created => Latest::Prepared(number, container.id.clone()),
                State::Running { .. } => Latest::Running(container.id.clone()),
                State::Exited(exit) => {
                    let ended = Ended::of_exit(number, exit);
                    let rebooted = spec::is_of_another_boot(container, self.input.boot_id);
                    Latest::Ended(if rebooted { ended.by_reboot() } else { ended })
                }
            };
        }
        let attempt = self.status.attempts.iter().find(|attempt| attempt.number == number);
        if let Some(ended) = attempt.and_then(Ended::of_attempt) {
            return Latest::Ended(ended);
        }
        let started = attempt.and_then(|attempt| attempt.started_at.as_ref());
        let started_ms = started.map(|started| started.0.as_millisecond());
        Latest::Ended(Ended::vanished(number, started_ms, self.now_ms()))
    }

    /// Why the task has to end, if it has to.
    fn stopping(&mut self) -> Option<TaskReason> {
        if self.status.phase == Phase::Killing {
            return Some(match self.status.reason {
                Some(reason @ (TaskReason::DeadlineExceeded | TaskReason::DeviceFault)) => reason,
                _ => TaskReason::KillRequested,
            });
        }
        if self.task.spec.desired == Desired::Killed || self.deleting() || self.input.draining {
            return Some(TaskReason::KillRequested);
        }
        if self.fault().is_some() {
            return Some(TaskReason::DeviceFault);
        }
        let deadline = self.deadline()?;
        if deadline <= self.input.now {
            return Some(TaskReason::DeadlineExceeded);
        }
        self.plan.wake = earlier(self.plan.wake, Some(deadline));
        None
    }

    /// What is wrong with one of its devices, in words.
    fn fault(&self) -> Option<String> {
        let mut devices = self.status.devices.iter();
        devices.find_map(|uuid| Some(format!("GPU {uuid}: {}", self.input.devices.fault(uuid)?)))
    }

    /// When the task has run too long. A status knows its start to the second, so then it is up to a second later, never earlier.
    fn deadline(&self) -> Option<Timestamp> {
        let allowed = self.task.spec.deadline?;
        let here_ms = self.runs.get(&1).and_then(|container| match &container.state {
            State::Created => None,
            State::Running { started_ms, .. } => Some(*started_ms),
            State::Exited(exit) => exit.started_ms,
        });
        let told_ms = self
            .status
            .started_at
            .as_ref()
            .map(|time| time.0.as_millisecond() + 999);
        let started = Timestamp::from_millisecond(here_ms.or(told_ms)?).ok()?;
        Some(after(started, allowed.duration()))
    }

    /// Nothing was made yet.
    fn fresh(&mut self, stopping: Option<TaskReason>) {
        let not_started = |message: String| Outcome {
            phase: Phase::Dropped,
            reason: TaskReason::NotStarted,
            message,
        };
        match (stopping, self.fault()) {
            (Some(TaskReason::DeviceFault), Some(fault)) => {
                return self.end(not_started(format!("not started: {fault}")), self.now_ms());
            }
            (Some(reason), _) => return self.stopped(reason, self.now_ms()),
            (None, _) => {}
        }
        let impossible = |message: String| Outcome {
            phase: Phase::Error,
            reason: TaskReason::LaunchFailed,
            message,
        };
        let Some(id) = container_id(self.uid, 1) else {
            return self.end(
                impossible(format!("the uid {} cannot name a container", self.uid)),
                self.now_ms(),
            );
        };
        let mut spec = match container_spec(self.task, 1, self.input.agent, self.input.devices) {
            Ok(spec) => spec,
            Err(error) => return self.end(not_started(format!("not started: {error}")), self.now_ms()),
        };
        if let Err(error) = spec.check() {
            return self.end(impossible(error.to_string()), self.now_ms());
        }
        if spec.limits.fence.is_some() && !self.input.can_fence {
            let why = "not started: spec.unreachable is SelfFence, and the runtime of this agent cannot end a task without the agent";
            return self.end(not_started(why.to_owned()), self.now_ms());
        }
        let failure = self.input.memory.failure(&id, Verb::Create).cloned();
        let full = self.input.disk.map(|disk| format!("not started yet: {disk}"));
        let waits = self.in_use().or(full);
        let may = waits.is_none() && self.input.may_start;
        match image::absent(self.input, &mut self.plan, (self.task, &id), failure.as_ref(), may) {
            None => {}
            Some(Absent::Comes(words)) => return self.say(Phase::Starting, TaskReason::PullingImage, words),
            Some(Absent::Misses(what)) => return self.say(Phase::Starting, TaskReason::ConfigMissing, what),
            Some(Absent::Never(outcome)) => return self.end(outcome, self.now_ms()),
        }
        match &failure {
            Some(failure) if failure.invalid => {
                return self.end(impossible(failure.message.clone()), self.now_ms());
            }
            Some(failure) if after(failure.since, START_PATIENCE) <= self.input.now => {
                let message = format!(
                    "not started: the runtime failed {} times: {}",
                    failure.count, failure.message
                );
                return self.end(not_started(message), self.now_ms());
            }
            _ => {}
        }
        let message = waits
            .clone()
            .or_else(|| failure.map(|failure| format!("trying again: {}", failure.message)));
        let makes = match given::give(self.input, &mut self.plan, self.task, 1, &mut spec) {
            Ok(makes) => makes,
            Err(Without::Refused(why)) => return self.end(not_started(format!("not started: {why}")), self.now_ms()),
            Err(Without::Misses(what)) => return self.say(Phase::Starting, TaskReason::ConfigMissing, what),
            Err(Without::Reads(trouble)) => {
                let message = trouble.or(message).unwrap_or_default();
                return self.say(Phase::Starting, TaskReason::Preparing, message);
            }
        };
        self.say(Phase::Starting, TaskReason::Preparing, message.unwrap_or_default());
        if may {
            self.create(id, spec, makes);
        }
    }

    fn create(&mut self, id: ContainerId, mut spec: ContainerSpec, makes: Vec<Make>) {
        let boot_id = self.input.boot_id.to_owned();
        spec.labels.insert(spec::LABEL_BOOT.to_owned(), boot_id);
        let spec = Box::new(spec);
        self.act(Action::Create { id, spec, makes });
    }

    /// Whether an attempt may be begun now. Further ones are begun without a session, too, where an earlier one was (another machine may
    /// have this one's name and session, and go on with the task), unless somebody may think by then that the task has ended itself.
    fn may_begin(&self, number: u32) -> bool {
        let goes_on = self.runs.range(..number).next().is_some();
        self.input.may_start || (goes_on && spec::fence(self.task).is_none())
    }

    /// What keeps a device or port of the task from being used now, in words.
    fn in_use(&self) -> Option<String> {
        in_use::words(&self.status, self.uid, self.held, self.input.devices)
    }

    /// The container is there, its command was not run. It is run once the API server knows that the task was taken up: a superseded
    /// agent, which cannot write that, so never runs it.
    fn prepared(&mut self, number: u32, id: &ContainerId, stopping: Option<TaskReason>) {
        if let Some(reason) = stopping {
            self.say(Phase::Killing, reason, String::new());
            return self.stop(id);
        }
        let failure = self.input.memory.failure(id, Verb::Start);
        let failed = failure.is_some_and(|failure| after(failure.since, START_PATIENCE) <= self.input.now);
        let waits = self.in_use();
        let trouble = failure.map(|failure| format!("trying again: {}", failure.message));
        let message = waits.clone().or(trouble);
        if number == 1 {
            self.say(Phase::Starting, TaskReason::Preparing, message.unwrap_or_default());
        } else {
            let message = message.unwrap_or_else(|| format!("attempt {number} is being started"));
            self.say(Phase::Running, TaskReason::BackOff, message);
        }
        let acknowledged = self.status.phase != Phase::Staging;
        if failed {
            self.stop(id);
        } else if acknowledged && waits.is_none() && self.may_begin(number) {
            self.act(Action::Start(id.clone()));
        }
    }

    fn running(&mut self, id: &ContainerId, stopping: Option<TaskReason>) {
        match stopping {
            Some(reason) => {
                self.say(Phase::Killing, reason, String::new());
                self.stop(id);
            }
            None => self.say(Phase::Running, TaskReason::Started, String::new()),
        }
    }

    fn ended(&mut self, ended: &Ended, stopping: Option<TaskReason>) {
        let attempts = status::record(&self.status.attempts, self.learned(Some(ended)));
        let decision = restart::decide(&self.task.spec, &attempts, ended, self.now_ms());
        let told = container_id(self.uid, ended.number).is_some_and(|id| self.input.memory.stopped(&id).is_some());
        // What ended well before anybody told it to stop has finished, even if somebody was about to.
        let by_itself = ended.succeeded() && decision == Decision::End && !told && self.status.phase != Phase::Killing;
        if let Some(reason) = stopping.filter(|_| !by_itself) {
            self.record(ended);
            return self.stopped(reason, ended.finished_ms);
        }
        self.record(ended);
        match decision {
            Decision::End => self.end(ended.outcome(), ended.finished_ms),
            Decision::Again { at_ms } => self.again(ended, at_ms),
        }
    }

    /// The command is run again when its time has come.
    fn again(&mut self, ended: &Ended, at_ms: i64) {
        let number = ended.number.saturating_add(1);
        let Some(id) = container_id(self.uid, number) else {
            return;
        };
        let failure = self.input.memory.failure(&id, Verb::Create).cloned();
        let failed = |reason, message: String| Outcome {
            phase: Phase::Failed,
            reason,
            message: format!("attempt {number} could not be started: {message}"),
        };
        let waits = self.in_use();
        let at = Timestamp::from_millisecond(at_ms).unwrap_or(self.input.now);
        let due = at <= self.input.now && waits.is_none() && self.may_begin(number);
        match image::absent(self.input, &mut self.plan, (self.task, &id), failure.as_ref(), due) {
            None => {}
            Some(Absent::Comes(words) | Absent::Misses(words)) => {
                let message = format!("attempt {number} waits for its image: {words}");
                return self.say(Phase::Running, TaskReason::BackOff, message);
            }
            Some(Absent::Never(Outcome { reason, message, .. })) => {
                return self.end(failed(reason, message), ended.finished_ms);
            }
        }
        let spec = container_spec(self.task, number, self.input.agent, self.input.devices);
        let refused = match (&spec, &failure) {
            (Err(error), _) => Some(error.to_string()),
            (_, Some(failure)) if failure.invalid => Some(failure.message.clone()),
            _ => None,
        };
        if let Some(message) = refused {
            return self.end(failed(TaskReason::LaunchFailed, message), ended.finished_ms);
        }
        let trouble = failure.map(|failure| format!("trying again: {}", failure.message));
        if at > self.input.now {
            self.plan.wake = earlier(self.plan.wake, Some(at));
        }
        let mut without = None;
        if let (Ok(mut spec), true) = (spec, due) {
            match given::give(self.input, &mut self.plan, self.task, number, &mut spec) {
                Ok(makes) => self.create(id, spec, makes),
                Err(Without::Refused(why)) => {
                    return self.end(failed(TaskReason::LaunchFailed, why), ended.finished_ms);
                }
                Err(Without::Misses(what)) => without = Some(what),
                Err(Without::Reads(what)) => without = what,
            }
        }
        let message = waits.or(without).or(trouble).unwrap_or_else(|| {
            let Outcome { message, .. } = ended.outcome();
            let message = if message.is_empty() {
                "the command has ended".to_owned()
            } else {
                message
            };
            format!("{message}; attempt {number} follows")
        });
        self.say(Phase::Running, TaskReason::BackOff, message);
    }

    /// Ended because it was told to, or would have been.
    fn stopped(&mut self, reason: TaskReason, finished_ms: i64) {
        let never = self.status.attempts.is_empty();
        let fault = || self.fault().unwrap_or_else(|| "one of its GPUs failed".to_owned());
        let (phase, message) = match reason {
            TaskReason::DeadlineExceeded => (Phase::Failed, "ran longer than spec.deadline allows".to_owned()),
            TaskReason::DeviceFault => (Phase::Failed, format!("stopped: {}", fault())),
            _ if self.input.draining => (
                Phase::Killed,
                "stopped because its agent was told to stop everything".to_owned(),
            ),
            _ if never => (Phase::Killed, "killed on request before its command was run".to_owned()),
            _ => (Phase::Killed, "killed on request".to_owned()),
        };
        self.end(Outcome { phase, reason, message }, finished_ms);
    }

    /// Containers of old attempts go once the status remembers how they ended.
    fn remove_old(&mut self) {
        let old = self.runs.len().saturating_sub(CONTAINERS_KEPT);
        let oldest = self.status.attempts.first().map_or(0, |attempt| attempt.number);
        let told = self.task.status.iter().flat_map(|status| &status.attempts);
        let told: Vec<u32> = told
            .filter(|attempt| attempt.finished_at.is_some())
            .map(|attempt| attempt.number)
            .collect();
        let runs: Vec<(u32, ContainerId)> = self
            .runs
            .iter()
            .take(old)
            .filter(|(number, _)| told.contains(number) || **number < oldest)
            .map(|(number, container)| (*number, container.id.clone()))
            .collect();
        for (_, id) in runs {
            self.act(Action::Remove(id));
        }
    }

    fn act(&mut self, action: Action) {
        self.plan.act(self.input, action);
    }

    fn stop(&mut self, id: &ContainerId) {
        self.plan.stop(self.input, id, spec::stop(self.task));
    }

    fn learned(&self, ended: Option<&Ended>) -> Vec<muster_api::v1::Attempt> {
        let here = self
            .runs
            .iter()
            .filter_map(|(number, container)| status::attempt(*number, &container.state));
        here.chain(ended.map(Ended::attempt)).collect()
    }

    /// What the last container that has one runs from.
    fn image(&self) -> Option<TaskImage> {
        let digests = self.runs.values().rev().filter_map(|run| run.labels.get(LABEL_IMAGE));
        Some(TaskImage {
            digest: digests.into_iter().next()?.to_owned(),
            reference: self.task.spec.image.clone()?,
        })
    }

    fn record(&mut self, ended: &Ended) {
        self.status.attempts = status::record(&self.status.attempts, self.learned(Some(ended)));
    }

    fn end(&mut self, outcome: Outcome, finished_ms: i64) {
        self.status.finished_at = Some(status::time(finished_ms));
        self.say(outcome.phase, outcome.reason, outcome.message);
    }

    /// Reports this status, unless the API server shows it already or it would be a step back.
    fn say(&mut self, phase: Phase, reason: TaskReason, message: String) {
        let shown = self.task.status.clone().unwrap_or_default();
        if !shown.phase.may_move(phase, Writer::Agent) {
            return;
        }
        self.status.attempts = status::record(&self.status.attempts, self.learned(None));
        let attempts = &self.status.attempts;
        let started_at = attempts.iter().filter_map(|attempt| attempt.started_at.clone()).min();
        let over = attempts.iter().rev().find(|attempt| attempt.finished_at.is_some());
        let status = TaskStatus {
            phase,
            reason: Some(reason),
            message,
            image: self.image().or_else(|| self.status.image.clone()),
            exit_code: over.map_or(self.status.exit_code, |attempt| attempt.exit_code),
            started_at: self.status.started_at.clone().or(started_at),
            observed_generation: self.task.metadata.generation,
            ..self.status.clone()
        };
        if !status::same(&status, &shown) {
            self.plan.report = Some(Report::Status(Box::new(status)));
        }
    }
}
