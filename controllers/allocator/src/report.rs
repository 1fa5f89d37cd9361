//! Why every pending task is where it is.
//!
//! Nothing here decides anything: verdicts and lines are read off the state that the pass left behind, by the same functions
//! that the pass used. They are made when asked for, once for all tasks of equal shape of a framework, so that a pass that
//! nobody asks about costs nothing.

use std::sync::Arc;

use muster_api::v1::TaskReason;
use muster_api::wire::{PlanReport, WhyAgent, WhyTask};

use crate::explain::Explainer;
use crate::params::Params;
use crate::snapshot::Snapshot;
use crate::world::World;

/// Why every pending task is where it is, after the pass.
///
/// Every function takes the very snapshot that the pass was made from; with another one the answers are empty.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Report {
    /// Lines about what could not be understood, sorted.
    pub problems: Vec<String>,
    pub(crate) world: Box<World>,
    pub(crate) params: Params,
}

/// What holds for a pending task.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Verdict {
    /// An open or a new offer has room for it; its framework has to answer.
    Offered,
    /// There is room, but something else keeps it away now: a declined offer, a guarantee, a minimum, the bound of one pass.
    Held,
    /// No agent that could take it has room now.
    Waiting,
    /// Its role, or one above it, is at its limit.
    QuotaReached,
    /// It asks for more than any agent has, or no agent matches.
    ExceedsEveryAgent,
}

impl Verdict {
    /// The reason for the status of the task.
    pub fn reason(self) -> TaskReason {
        match self {
            Verdict::Offered => TaskReason::AwaitingOffer,
            Verdict::Held | Verdict::Waiting => TaskReason::WaitingForResources,
            Verdict::QuotaReached => TaskReason::QuotaReached,
            Verdict::ExceedsEveryAgent => TaskReason::ExceedsEveryAgent,
        }
    }
}

/// A pending task and its verdict.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct TaskVerdict<'a> {
    /// The namespace of the task.
    pub namespace: &'a str,
    /// The name of the task.
    pub task: &'a str,
    /// Who is charged.
    pub role: &'a str,
    /// The place in its framework's queue in that role, from 1.
    pub position: usize,
    /// How many wait in that queue.
    pub queue: usize,
    /// The verdict.
    pub verdict: Verdict,
    /// The same in a sentence, with what to do about it.
    pub message: Arc<str>,
    /// The client and the slot: tasks with the same share their explanation.
    group: Option<(u32, u32)>,
}

impl TaskVerdict<'_> {
    /// The reason for the status of the task.
    pub fn reason(&self) -> TaskReason {
        self.verdict.reason()
    }
}

impl Report {
    /// Every pending task, framework by framework (by namespace and name) and role by role, each queue in its order. Tasks of
    /// roles that are no roles come last.
    pub fn verdicts<'a>(&'a self, snapshot: &'a Snapshot) -> Vec<TaskVerdict<'a>> {
        let mut explainer = Explainer::new(&self.world, snapshot, &self.params);
        self.verdicts_with(&mut explainer, snapshot)
    }

    fn verdicts_with<'a>(&'a self, explainer: &mut Explainer<'a>, snapshot: &'a Snapshot) -> Vec<TaskVerdict<'a>> {
        if !self.is_of(snapshot) {
            return Vec::new();
        }
        let offered: Arc<str> = "an open offer has room for it; its framework has to answer".into();
        let mut verdicts = Vec::new();
        let mut seen: Vec<Vec<bool>> = snapshot
            .frameworks
            .iter()
            .map(|framework| vec![false; framework.roles.len()])
            .collect();
        for (index, client) in (0u32..).zip(&self.world.clients) {
            let framework = &snapshot.frameworks[client.framework as usize];
            let demand = &framework.roles[client.demand as usize];
            seen[client.framework as usize][client.demand as usize] = true;
            let judged: Vec<_> = client.queue.iter().map(|slot| explainer.judge(client, slot)).collect();
            let mut roomy: Vec<u64> = client.queue.iter().map(|slot| slot.total - slot.left).collect();
            for (place, (task, slot)) in demand.tasks.iter().zip(&client.slots).enumerate() {
                let roomy = &mut roomy[*slot as usize];
                let (verdict, message) = match *roomy {
                    0 => judged[*slot as usize].clone(),
                    _ => (Verdict::Offered, offered.clone()),
                };
                *roomy = roomy.saturating_sub(1);
                verdicts.push(TaskVerdict {
                    namespace: &framework.id.namespace,
                    task: &task.name,
                    role: &demand.role,
                    position: place + 1,
                    queue: demand.tasks.len(),
                    verdict,
                    message,
                    group: Some((index, *slot)),
                });
            }
        }
        let message: Arc<str> = "its framework gets no offers for its role; see the problems of the plan".into();
        for (framework, seen) in snapshot.frameworks.iter().zip(seen) {
            for (demand, _) in framework.roles.iter().zip(seen).filter(|(_, seen)| !seen) {
                verdicts.extend(demand.tasks.iter().enumerate().map(|(place, task)| TaskVerdict {
                    namespace: &framework.id.namespace,
                    task: &task.name,
                    role: &demand.role,
                    position: place + 1,
                    queue: demand.tasks.len(),
                    verdict: Verdict::Waiting,
                    message: message.clone(),
                    group: None,
                }));
            }
        }
        verdicts
    }

    /// Why one task is where it is, agent by agent; `None`: it is not pending.
    pub fn why(&self, snapshot: &Snapshot, namespace: &str, task: &str) -> Option<WhyTask> {
        let mut explainer = Explainer::new(&self.world, snapshot, &self.params);
        let verdicts = self.verdicts_with(&mut explainer, snapshot);
        let found = verdicts
            .iter()
            .find(|verdict| verdict.namespace == namespace && verdict.task == task)?;
        let agents = found.group.map(|group| explainer.lines(group)).unwrap_or_default();
        Some(self.why_task(&explainer, found, agents))
    }

    /// Everything, as it goes over the wire. [`Params::explained_max`] tasks are explained agent by agent: the first of each
    /// group of equals, then others in their order.
    pub fn to_wire(&self, snapshot: &Snapshot, revision: u64) -> PlanReport {
        let mut explainer = Explainer::new(&self.world, snapshot, &self.params);
        let verdicts = self.verdicts_with(&mut explainer, snapshot);
        let mut lines = std::collections::BTreeMap::new();
        let mut explained = vec![false; verdicts.len()];
        let mut left = self.params.explained_max;
        for (verdict, explained) in verdicts.iter().zip(&mut explained) {
            if let Some(group) = verdict.group.filter(|group| left > 0 && !lines.contains_key(group)) {
                lines.insert(group, explainer.lines(group));
                *explained = true;
                left -= 1;
            }
        }
        for (verdict, explained) in verdicts.iter().zip(&mut explained) {
            let known = verdict.group.is_some_and(|group| lines.contains_key(&group));
            if known && !*explained && left > 0 {
                *explained = true;
                left -= 1;
            }
        }
        let tasks = verdicts.iter().zip(explained).map(|(verdict, explained)| {
            let agents = verdict
                .group
                .filter(|_| explained)
                .and_then(|group| lines.get(&group).cloned());
            self.why_task(&explainer, verdict, agents.unwrap_or_default())
        });
        PlanReport {
            revision,
            tasks: tasks.collect(),
            problems: self.problems.clone(),
        }
    }

    fn why_task(&self, explainer: &Explainer<'_>, verdict: &TaskVerdict<'_>, agents: Vec<WhyAgent>) -> WhyTask {
        WhyTask {
            namespace: verdict.namespace.to_owned(),
            task: verdict.task.to_owned(),
            role: verdict.role.to_owned(),
            needs: verdict.group.map(|group| explainer.needs(group)).unwrap_or_default(),
            position: verdict.position,
            queue: verdict.queue,
            summary: verdict.message.to_string(),
            agents,
        }
    }

    /// Whether the places in the snapshot are those that the pass saw.
    fn is_of(&self, snapshot: &Snapshot) -> bool {
        self.world.agents.len() == snapshot.agents.len()
            && self.world.clients.iter().all(|client| {
                let framework = snapshot.frameworks.get(client.framework as usize);
                let demand = framework.and_then(|framework| framework.roles.get(client.demand as usize));
                demand.is_some_and(|demand| demand.tasks.len() == client.slots.len())
            })
    }
}
