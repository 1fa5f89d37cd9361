//! What the control plane believes about agents: reachable while their presence lease lives, unknown when it has ended.
//!
//! The belief goes to the agent and to each task that it holds; phases stay as they are, because an agent that cannot be
//! reached may still run everything.

use jiff::Timestamp;
use muster_api::names;
use muster_api::v1::{Agent, Reachability, Task};
use muster_api::{Condition, Time};
use serde_json::{Value, json};

use super::condition;
use crate::runtime::{Action, Change, Context, Kind, Note, Object, Plan, Planner, Severity, View, Write};

/// So many tasks are written in one pass for an agent; the others follow when the view has these.
const TASKS_MAX: usize = 64;

/// What the condition says when the lease has ended.
const LOST: &str = "PresenceLost";

/// Keeps the belief about agents.
#[derive(Clone, Copy, Debug)]
pub struct Agents;

impl Planner for Agents {
    const NAME: &'static str = "agents";
    type Key = String;

    fn keys(&self, change: &Change, _: &View) -> Vec<String> {
        match change.kind() {
            Some(Kind::Agent) => vec![change.id.name.to_string()],
            Some(Kind::Lease) if &*change.id.namespace == names::NAMESPACE_AGENTS => vec![change.id.name.to_string()],
            Some(Kind::Task) => change
                .new
                .iter()
                .filter_map(Object::task)
                .filter_map(|task| holder(task))
                .collect(),
            _ => Vec::new(),
        }
    }

    fn plan(&self, name: &String, view: &View, context: &Context) -> Plan {
        let mut plan = Plan::default();
        let Some(agent) = view.agents.get(name) else {
            return plan;
        };
        let belief = belief(agent, view.presence(name).is_some());
        plan.writes.extend(about_agent(agent, belief, context.steady));
        let since = since(agent, belief, context.steady);
        let stale = view.live_tasks(name).filter(|task| believed(task) != belief);
        let mut writes = stale.map(|task| {
            let mut body = json!({ "reachability": belief, "reachabilitySince": since });
            if belief == Reachability::Reachable {
                body["reachabilityMessage"] = Value::Null;
            }
            Write::from(Action::status(Kind::Task, &task.metadata, body))
        });
        plan.writes.extend(writes.by_ref().take(TASKS_MAX));
        if writes.next().is_some() {
            plan.wake_by(context.now);
        }
        plan
    }
}

/// The agent whose belief a task shares.
fn holder(task: &Task) -> Option<String> {
    task.phase()
        .holds_resources()
        .then(|| task.agent().map(str::to_owned))
        .flatten()
}

fn believed(task: &Task) -> Reachability {
    task.status
        .as_ref()
        .map_or(Reachability::Reachable, |status| status.reachability)
}

/// Since when the belief is held.
fn since(agent: &Agent, belief: Reachability, now: Timestamp) -> Time {
    let status = agent.status.as_ref();
    let known = status.filter(|status| lost(status.reachability) == lost(belief));
    known
        .and_then(|status| status.reachability_since.clone())
        .unwrap_or(Time(now))
}

fn lost(belief: Reachability) -> bool {
    belief != Reachability::Reachable
}

fn belief(agent: &Agent, present: bool) -> Reachability {
    let before = agent
        .status
        .as_ref()
        .map_or(Reachability::Reachable, |status| status.reachability);
    match (present, before) {
        (true, _) => Reachability::Reachable,
        (false, _) if agent.is_powered_off() => Reachability::Fenced,
        (false, Reachability::Fenced) => Reachability::Fenced,
        (false, Reachability::Reachable | Reachability::Unknown) => Reachability::Unknown,
    }
}

fn about_agent(agent: &Agent, belief: Reachability, now: Timestamp) -> Option<Write> {
    let status = agent.status.as_ref()?;
    let ready = status.conditions.iter().find(|condition| condition.type_ == "Ready");
    let was_lost = lost(status.reachability);
    let lost = lost(belief);
    // `Ready` is the agent's own to say, except that a lost one cannot take it back.
    let wrong = ready.is_some_and(|ready| {
        if lost {
            ready.reason != LOST
        } else {
            ready.reason == LOST
        }
    });
    if status.reachability == belief && !wrong {
        return None;
    }
    let mut body = json!({ "reachability": belief });
    if was_lost != lost {
        body["reachabilitySince"] = json!(Time(now));
    }
    if wrong || was_lost != lost {
        body["conditions"] = conditions(agent, lost, now);
    }
    let (severity, reason, message) = if lost {
        (
            Severity::Warning,
            "AgentLost",
            "the agent cannot be reached; what it runs may still run",
        )
    } else {
        (Severity::Normal, "AgentBack", "the agent can be reached again")
    };
    let write = Write::from(Action::status(Kind::Agent, &agent.metadata, body));
    // Each loss is news of its own, so the time is part of the message.
    let message = format!("{message} (since {})", now.strftime("%Y-%m-%dT%H:%M:%SZ"));
    let note = Note::about(Kind::Agent, &agent.metadata, severity, reason, message);
    Some(if was_lost == lost { write } else { write.telling(note) })
}

fn conditions(agent: &Agent, lost: bool, now: Timestamp) -> Value {
    let before = agent
        .status
        .as_ref()
        .map(|status| status.conditions.clone())
        .unwrap_or_default();
    let (status, texts) = if lost {
        (
            "Unknown",
            (LOST, "the agent's presence lease has ended; what it runs may still run"),
        )
    } else {
        ("True", ("Present", "the agent's presence lease is alive"))
    };
    let own = |condition: &&Condition| condition.type_ == "Ready" && condition.reason != LOST;
    let own = before.iter().find(own).filter(|_| !lost).cloned();
    // What an agent that is back says of itself stays: it may have said that it is not ready.
    let ready = own.unwrap_or_else(|| condition(&before, ("Ready", status), texts, agent.metadata.generation, now));
    let mut after = vec![ready];
    after.extend(before.into_iter().filter(|condition| condition.type_ != "Ready"));
    json!(after)
}

#[cfg(test)]
mod tests {
    use super::super::testing::*;
    use super::*;

    fn believed_of(view: &View, agent: &str) -> Vec<(String, String)> {
        let plan = Agents.plan(&agent.to_owned(), view, &Context::at(now()));
        let patch = |write: Write| match write.action {
            Action::Patch { id, body, .. } => (
                id.name.to_string(),
                body["status"]["reachability"].as_str().expect("a belief").to_owned(),
            ),
            other => panic!("unexpected {other:?}"),
        };
        plan.writes.into_iter().map(patch).collect()
    }

    #[test]
    fn an_agent_without_its_lease_and_its_tasks_are_unknown() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).running("a1"))
            .task("done", |task| task.cpus(1).finished("a1", 0))
            .without_presence("a1");
        let expect = [
            ("a1".to_owned(), "Unknown".to_owned()),
            ("t1".to_owned(), "Unknown".to_owned()),
        ];
        assert_eq!(believed_of(&cluster.view(), "a1"), expect);
    }

    #[test]
    fn an_agent_whose_lease_is_back_and_its_tasks_are_reachable() {
        let cluster = Cluster::default()
            .agent("a1", 4)
            .believed("a1", Reachability::Unknown)
            .task("t1", |task| task.cpus(1).running("a1").unreachable());
        let expect = [
            ("a1".to_owned(), "Reachable".to_owned()),
            ("t1".to_owned(), "Reachable".to_owned()),
        ];
        assert_eq!(believed_of(&cluster.view(), "a1"), expect);
    }

    #[test]
    fn nothing_is_written_about_what_is_believed_already() {
        let present = Cluster::default()
            .agent("a1", 4)
            .task("t1", |task| task.cpus(1).running("a1"));
        assert_eq!(believed_of(&present.view(), "a1"), []);
        let lost = Cluster::default()
            .agent("a1", 4)
            .believed("a1", Reachability::Unknown)
            .without_presence("a1");
        assert_eq!(believed_of(&lost.view(), "a1"), []);
    }

    #[test]
    fn a_fenced_agent_stays_fenced_until_it_is_present() {
        let fenced = Cluster::default().agent("a1", 4).believed("a1", Reachability::Fenced);
        assert_eq!(believed_of(&fenced.clone().without_presence("a1").view(), "a1"), []);
        assert_eq!(
            believed_of(&fenced.view(), "a1"),
            [("a1".to_owned(), "Reachable".to_owned())]
        );
    }

    #[test]
    fn many_tasks_of_a_lost_agent_are_told_a_part_at_a_time() {
        let mut cluster = Cluster::default().agent("a1", 1000);
        for index in 0..TASKS_MAX + 1 {
            cluster = cluster.task(&format!("t{index}"), |task| task.cpus(1).running("a1"));
        }
        let plan = Agents.plan(
            &"a1".to_owned(),
            &cluster.without_presence("a1").view(),
            &Context::at(now()),
        );
        assert_eq!((plan.writes.len(), plan.wake), (TASKS_MAX + 1, Some(now())));
    }
}
