//! What is concluded about tasks whose agents cannot be reached, by each task's `spec.unreachable` and by what is proven.
//!
//! It promises: `Gone` is written only with proof (the operator says that the machine is off; a task that fences itself must have done so
//! by now); a task is replaced at most once, under a name that follows from its uid; while the brake is on, nothing but an operator's word
//! ends or replaces anything; every task of a lost agent says what will happen and what can be done. What must never happen here: a wait
//! that the wall clock can shorten.

use jiff::{SignedDuration, Timestamp};
use muster_api::Time;
use muster_api::names;
use muster_api::task_state::Phase;
use muster_api::v1::{Agent, Desired, Reachability, Scheduler, Task, TaskReason, UnreachablePolicy};
use serde_json::{Map, Value, json};

use super::brake::{Brake, brake, is_looked_at};
use super::condition;
use crate::runtime::object::replaces;
use crate::runtime::view::framework_of;
use crate::runtime::{Action, Change, Context, Id, Kind, Note, Object, Plan, Planner, Severity, View, Write};

/// So many objects are written in one pass; the others follow when the view has these.
const WRITES_MAX: usize = 64;

/// The condition of an agent that was lost together with too many others.
const BRAKED: &str = "ReplacementPaused";

/// How long a task has to end after the stop signal when it does not say, as agents have it.
const GRACE_DEFAULT: SignedDuration = SignedDuration::from_secs(5);

/// What the kernel and the shim may need to notice and to kill.
const FENCE_SLACK: SignedDuration = SignedDuration::from_secs(2);

/// The longest beginning of a name that a replacement keeps: with a dash and eight digits it is a DNS label.
const NAME_KEPT: usize = 54;

/// Draws the conclusions.
#[derive(Clone, Copy, Debug)]
pub struct Unreachable;

impl Planner for Unreachable {
    const NAME: &'static str = "unreachable";
    type Key = ();

    fn keys(&self, change: &Change, view: &View) -> Vec<()> {
        let concerns = match change.kind() {
            Some(Kind::Agent) => {
                let facts = |object: &Object| {
                    object.agent().map(|agent| {
                        let said = (agent.spec.powered_off_at.clone(), agent.spec.brake_released_at.clone());
                        (agent.lost_since(), said)
                    })
                };
                change.old.as_ref().and_then(facts) != change.new.as_ref().and_then(facts)
            }
            Some(Kind::Task) => change.new.as_ref().and_then(Object::task).is_some_and(|task| {
                let lost = |agent: &str| view.agents.get(agent).is_some_and(|agent| agent.lost_since().is_some());
                let replaces = task.metadata.annotations.as_ref();
                task.agent().is_some_and(lost)
                    || replaces.is_some_and(|all| all.contains_key(names::ANNOTATION_REPLACES))
            }),
            _ => false,
        };
        if concerns { vec![()] } else { Vec::new() }
    }

    fn plan(&self, (): &(), view: &View, context: &Context) -> Plan {
        let brake = brake(view.agents.values().map(|agent| &**agent));
        let mut pass = Pass {
            view,
            context,
            plan: Plan::default(),
        };
        for agent in view.agents.values() {
            let since = agent.lost_since().filter(|_| view.presence(agent.name()).is_none());
            let held = since.and(brake).filter(|_| !is_looked_at(agent));
            pass.tell(agent, held);
            let Some(since) = since else { continue };
            for task in view.live_tasks(agent.name()) {
                // First the agents planner says that it cannot be reached.
                if task
                    .status
                    .as_ref()
                    .is_some_and(|status| status.reachability != Reachability::Reachable)
                {
                    pass.task(agent, task, since, held);
                }
            }
        }
        if pass.plan.writes.len() > WRITES_MAX {
            pass.plan.writes.truncate(WRITES_MAX);
            pass.plan.wake_by(context.now);
        }
        pass.plan
    }
}

/// What is done about a task.
enum Verdict {
    /// Nothing.
    Wait(String),
    /// Nothing before this time, by the steady clock.
    Until(Timestamp, String),
    /// It is proven to run no more.
    Gone(TaskReason, String),
    /// Another is made.
    Replace,
}

struct Pass<'a> {
    view: &'a View,
    context: &'a Context,
    plan: Plan,
}

impl Pass<'_> {
    /// Says on an agent whether what is done about its tasks is paused.
    fn tell(&mut self, agent: &Agent, held: Option<Brake>) {
        let Some(status) = &agent.status else { return };
        let shown = status.conditions.iter().find(|condition| condition.type_ == BRAKED);
        if shown.is_some() == held.is_some() {
            return;
        }
        let others = status.conditions.iter().filter(|condition| condition.type_ != BRAKED);
        let mut conditions: Vec<_> = others.cloned().collect();
        let text = held.map(|brake| paused(agent, brake));
        if let Some(text) = &text {
            let texts = ("LostTogether", text.as_str());
            let generation = agent.metadata.generation;
            conditions.push(condition(
                &status.conditions,
                (BRAKED, "True"),
                texts,
                generation,
                self.context.steady,
            ));
        }
        let body = json!({ "conditions": conditions });
        let write = Write::from(Action::status(Kind::Agent, &agent.metadata, body));
        let (severity, reason, text) = match text {
            Some(text) => (Severity::Warning, "ReplacementPaused", text),
            None => (
                Severity::Normal,
                "ReplacementResumed",
                "tasks are replaced again".to_owned(),
            ),
        };
        self.plan
            .write(write.telling(Note::about(Kind::Agent, &agent.metadata, severity, reason, text)));
    }

    fn task(&mut self, agent: &Agent, task: &Task, since: Timestamp, held: Option<Brake>) {
        let replaced = task.status.as_ref().and_then(|status| status.replaced_by.clone());
        let text = match (self.verdict(agent, task, since, held), replaced) {
            (Verdict::Gone(reason, text), _) => return self.gone(task, reason, &text),
            (Verdict::Replace, None) => return self.replace(task),
            (_, Some(name)) => format!("{}; task {name} has replaced it", unheard(agent, since)),
            (Verdict::Wait(text), None) => text,
            (Verdict::Until(at, text), None) => {
                self.plan.wake_by(self.context.wall(at));
                text
            }
        };
        self.say(task, &text);
    }

    fn verdict(&self, agent: &Agent, task: &Task, since: Timestamp, held: Option<Brake>) -> Verdict {
        if agent.is_powered_off() {
            let text = format!(
                "an operator said that the machine of agent {} is powered off",
                agent.name()
            );
            return Verdict::Gone(TaskReason::AgentPoweredOff, text);
        }
        let unheard = unheard(agent, since);
        if let Some(brake) = held {
            return Verdict::Wait(format!("{unheard}; {}", paused(agent, brake)));
        }
        let unreachable = task.unreachable();
        let after = unreachable.after.unwrap_or_default().signed();
        let stopped = task.spec.desired == Desired::Killed || task.metadata.deletion_timestamp.is_some();
        match unreachable.policy {
            UnreachablePolicy::SelfFence => {
                let kill = task.spec.kill.as_ref().and_then(|kill| kill.grace_period);
                let grace = kill.map_or(GRACE_DEFAULT, |grace| grace.signed());
                // A tenth for clocks that do not run alike.
                let wait = after + after / 10 + grace + FENCE_SLACK;
                let at = self.context.due(since, wait);
                if self.context.elapsed(since) >= wait {
                    let text = format!("{unheard}; by now the task has ended itself there, as spec.unreachable says");
                    return Verdict::Gone(TaskReason::SelfFenced, text);
                }
                let text = format!("{unheard}; the task ends itself there, and is Gone at {}", clock(at));
                Verdict::Until(at, text)
            }
            UnreachablePolicy::ReplaceAfter if stopped => Verdict::Wait(format!(
                "{unheard}; the task is stopped when it is back. {}",
                advice(agent)
            )),
            UnreachablePolicy::ReplaceAfter if !self.is_ours(task) => Verdict::Wait(format!(
                "{unheard}; its framework decides what follows. {}",
                advice(agent)
            )),
            UnreachablePolicy::ReplaceAfter if self.context.elapsed(since) >= after => Verdict::Replace,
            UnreachablePolicy::ReplaceAfter => {
                let at = self.context.due(since, after);
                Verdict::Until(at, format!("{unheard}; the task is replaced at {}", clock(at)))
            }
            UnreachablePolicy::Wait => Verdict::Wait(format!(
                "{unheard}; the task may still run, and waits. {}",
                advice(agent)
            )),
        }
    }

    /// Whether the built-in framework owns the task.
    fn is_ours(&self, task: &Task) -> bool {
        let framework = self.view.frameworks.get(&framework_of(task));
        framework.is_some_and(|framework| framework.spec.scheduler == Scheduler::BuiltIn)
    }

    fn gone(&mut self, task: &Task, reason: TaskReason, text: &str) {
        let body = json!({
            "phase": Phase::Gone,
            "reason": reason,
            "message": text,
            "reachabilityMessage": Value::Null,
            "finishedAt": Time(self.context.now),
            "observedGeneration": task.metadata.generation,
        });
        let note = Note::about(Kind::Task, &task.metadata, Severity::Warning, "Gone", text.to_owned());
        self.plan
            .write(Write::from(Action::status(Kind::Task, &task.metadata, body)).telling(note));
    }

    /// First the replacement is made, then the original says its name; so whatever happens in between, there is one.
    fn replace(&mut self, task: &Task) {
        let Some(uid) = task.metadata.uid.as_deref() else {
            return;
        };
        let name = replacement_name(task.name(), uid);
        let Some(replaces) = self.replaces(&Id::new(task.namespace(), name.as_str())) else {
            if self.view.is_open(task.namespace()) {
                self.plan.write(Action::Create {
                    kind: Kind::Task,
                    namespace: task.namespace().to_owned(),
                    object: replacement(task, uid, &name),
                });
            }
            return;
        };
        if replaces != Some(uid) {
            let text = format!("the task cannot be replaced: another one has the name {name}; delete that one");
            self.plan.report.push(format!("{}: {text}", task.name()));
            return self.say(task, &text);
        }
        let text = format!("task {name} was made to replace this one, whose agent cannot be reached");
        let body = json!({ "replacedBy": name });
        let note = Note::about(Kind::Task, &task.metadata, Severity::Warning, "Replaced", text);
        self.plan
            .write(Write::from(Action::status(Kind::Task, &task.metadata, body)).telling(note));
    }

    /// Of the task with this id, whether or not it has ended, the uid of the one that it replaces. `None`: there is no such task.
    fn replaces(&self, id: &Id) -> Option<Option<&str>> {
        let live = self.view.tasks.get(id).map(|task| replaces(&task.metadata));
        live.or_else(|| Some(self.view.ended.get(id)?.replaces.as_deref()))
    }

    fn say(&mut self, task: &Task, text: &str) {
        let shown = task.status.as_ref().map(|status| status.reachability_message.as_str());
        if shown != Some(text) {
            let body = json!({ "reachabilityMessage": text });
            self.plan.write(Action::status(Kind::Task, &task.metadata, body));
        }
    }
}

fn clock(at: Timestamp) -> String {
    at.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn unheard(agent: &Agent, since: Timestamp) -> String {
    format!("agent {} has not been heard from since {}", agent.name(), clock(since))
}

fn advice(agent: &Agent) -> String {
    format!(
        "If the machine is off, say so: `mctl gone {} --powered-off`; if it will never be back, delete the agent",
        agent.name()
    )
}

fn paused(agent: &Agent, Brake { lost, total }: Brake) -> String {
    format!(
        "{lost} of {total} agents were lost within a minute, so no task is replaced or given up. If they are really gone, say so for \
         each: `mctl gone {}`, with --powered-off if the machine is off",
        agent.name()
    )
}

/// The name of the one task that may replace this one.
fn replacement_name(name: &str, uid: &str) -> String {
    let kept: String = name.chars().take(NAME_KEPT).collect();
    let digits: String = uid.chars().filter(char::is_ascii_alphanumeric).take(8).collect();
    format!("{}-{digits}", kept.trim_end_matches('-'))
}

/// A new task like this one.
fn replacement(task: &Task, uid: &str, name: &str) -> Value {
    let mut spec = task.spec.clone();
    spec.offer = None;
    spec.desired = Desired::Run;
    let own = |key: &str| key.starts_with("muster.dev/") || key.starts_with("kubectl.kubernetes.io/");
    let annotations = task.metadata.annotations.iter().flatten();
    let mut annotations: Map<String, Value> = annotations
        .filter(|(key, _)| !own(key))
        .map(|(key, value)| (key.clone(), json!(value)))
        .collect();
    annotations.insert(names::ANNOTATION_REPLACES.to_owned(), json!(uid));
    json!({
        "apiVersion": names::API_VERSION,
        "kind": "Task",
        "metadata": {
            "name": name,
            "namespace": task.namespace(),
            "labels": task.metadata.labels,
            "annotations": annotations,
            "ownerReferences": task.metadata.owner_references,
        },
        "spec": spec,
    })
}

#[cfg(test)]
#[path = "unreachable_tests.rs"]
mod tests;
