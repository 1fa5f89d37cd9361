//! Tasks: forward only, bound once, ended only when nothing is left.

use std::collections::BTreeMap;

use jiff::{SignedDuration, Timestamp};
use muster_api::names::{ANNOTATION_REPLACES, FINALIZER_AGENT, NAMESPACE_AGENTS};
use muster_api::task_state::{Phase, Writer as Author};
use muster_api::v1::{Agent, Offer, OfferPhase, Task, TaskReason};

use super::{AGENTS, Checker, LABEL_LAUNCH, OFFERS, uid};
use crate::writer::Writer;

/// Agents that are lost within such a time are lost together.
const TOGETHER: SignedDuration = SignedDuration::from_secs(60);

/// How long ago something must be for a leader to know it whose requests are slow, lost and late.
const KNOWN: SignedDuration = SignedDuration::from_secs(20);

impl Checker {
    pub(super) fn task_changed(
        &mut self,
        key: &str,
        new: Option<&Task>,
        offers_before: &BTreeMap<String, Offer>,
        writer: Option<&Writer>,
    ) {
        let old = self.tasks.get(key).cloned();
        let Some(new) = new else {
            if let Some(old) = old {
                self.task_gone(key, &old, writer);
            }
            return;
        };
        let before = old.filter(|old| old.metadata.uid == new.metadata.uid);
        if before.is_none() {
            self.launched_once(key, new);
        }
        let (from, to) = (before.as_ref().map_or(Phase::Pending, Task::phase), new.phase());
        if ![Author::Accept, Author::Agent, Author::Controllers]
            .into_iter()
            .any(|author| from.may_move(to, author))
        {
            self.violated(format!("{key}: phase {from} became {to}"));
        }
        if let Some(before) = &before {
            self.attempts_go_on(key, before, new);
        }
        // An operator's word, or the removal of its agent, ends a task that may live; a proof does not.
        let reason = new.status.as_ref().and_then(|status| status.reason);
        let unproven = matches!(reason, Some(TaskReason::AgentRemoved | TaskReason::AgentPoweredOff));
        let ended = to.is_terminal() && !from.is_terminal() && !(to == Phase::Gone && unproven);
        if let Some(live) = self.containers.live(new.metadata.uid.as_deref()).filter(|_| ended) {
            self.violated(format!("{key}: is {to} although its container {live} lives"));
        }
        let bound_before = before.as_ref().is_some_and(|task| task.agent().is_some());
        match (&before, &new.status) {
            (Some(before), Some(after)) if bound_before => {
                let was = before.status.clone().unwrap_or_default();
                if (&was.agent, &was.offer, &was.devices, &was.ports)
                    != (&after.agent, &after.offer, &after.devices, &after.ports)
                {
                    self.violated(format!("{key}: the binding changed"));
                }
            }
            (_, Some(after)) if after.agent.is_some() => self.bound(key, new, offers_before),
            _ => {}
        }
    }

    /// What an agent may still have goes by the hand of that agent, when nothing of it is left there, or when the agent is gone.
    fn task_gone(&mut self, key: &str, old: &Task, writer: Option<&Writer>) {
        if old.phase().holds_resources() {
            self.violated(format!(
                "{key}: deleted in phase {} while its agent still has it",
                old.phase()
            ));
        }
        let finalizers = old.metadata.finalizers.iter().flatten();
        let held = finalizers.into_iter().any(|finalizer| finalizer == FINALIZER_AGENT);
        let agent = old.agent().unwrap_or_default();
        // The agent that it was bound to may have been removed, and one of the same name have joined since.
        let bound_to = uid(Some(old)).and_then(|uid| self.bound_to.get(&uid).cloned());
        let removed = self.agent_uid(agent) != bound_to;
        // Who wrote is known only to who stands at the store.
        if !held || removed || self.shown {
            return;
        }
        let lease = format!("{NAMESPACE_AGENTS}/{agent}");
        let by_agent = writer.is_some_and(|writer| writer.fence.as_ref().is_some_and(|(fence, _)| *fence == lease));
        if !by_agent {
            self.violated(format!("{key}: deleted although its agent still holds it"));
        }
        if let Some(left) = self.containers.left(old.metadata.uid.as_deref()) {
            self.violated(format!("{key}: let go although its container {left} is still there"));
        }
    }

    fn agent_uid(&self, name: &str) -> Option<String> {
        uid(self.agents.get(&format!("{AGENTS}_/{name}")))
    }

    /// Attempts are counted up, and one that is over stays as it was told.
    fn attempts_go_on(&mut self, key: &str, before: &Task, after: &Task) {
        let attempts = |task: &Task| task.status.clone().unwrap_or_default().attempts;
        let (old, new) = (attempts(before), attempts(after));
        let last = |list: &[muster_api::v1::Attempt]| list.last().map_or(0, |attempt| attempt.number);
        if last(&new) < last(&old) {
            self.violated(format!("{key}: attempt {} came after {}", last(&new), last(&old)));
        }
        let over = old.iter().filter(|attempt| attempt.finished_at.is_some());
        let changed = over
            .filter(|over| new.iter().any(|new| new.number == over.number && new != *over))
            .count();
        if changed > 0 {
            self.violated(format!("{key}: an attempt that was over was told anew"));
        }
    }

    /// One launch, however often it is tried, makes one task; and one lost task has one replacement, which is not made in a landslide.
    fn launched_once(&mut self, key: &str, task: &Task) {
        let Some(uid) = uid(Some(task)) else { return };
        let (labels, annotations) = (task.metadata.labels.as_ref(), task.metadata.annotations.as_ref());
        let launch = labels.and_then(|labels| labels.get(LABEL_LAUNCH));
        let replaces = annotations.and_then(|annotations| annotations.get(ANNOTATION_REPLACES));
        if replaces.is_some() && self.is_landslide() {
            self.violated(format!("{key}: replaces a task although many agents were lost at once"));
        }
        for origin in launch.into_iter().chain(replaces) {
            if let Some(other) = self.launched.insert(origin.clone(), uid.clone()) {
                self.violated(format!("{key}: {origin} had made task {other} already"));
            }
        }
    }

    /// Whether more than a tenth of the agents, and more than one, were lost together, and so long ago that whoever acts knows it.
    fn is_landslide(&self) -> bool {
        let known = self.now - KNOWN;
        let lost = self.agents.values().filter_map(Agent::lost_since);
        let lost: Vec<Timestamp> = lost.filter(|since| *since < known).collect();
        let together = |first: &Timestamp| {
            let near = lost
                .iter()
                .filter(|other| **other >= *first && other.duration_since(*first) <= TOGETHER);
            near.count()
        };
        lost.iter().map(together).max().unwrap_or(0) > (self.agents.len() / 10).max(1)
    }

    /// A task is bound in the very revision in which its offer is spent, and fits in it.
    fn bound(&mut self, key: &str, task: &Task, offers_before: &BTreeMap<String, Offer>) {
        let status = task.status.clone().unwrap_or_default();
        let offer_key = format!(
            "{OFFERS}{}/{}",
            task.namespace(),
            status.offer.as_deref().unwrap_or("none")
        );
        let Some(offer) = offers_before
            .get(&offer_key)
            .filter(|offer| offer.phase() == OfferPhase::Open)
        else {
            return self.violated(format!("{key}: bound from {offer_key}, which was not open"));
        };
        if self.offers.contains_key(&offer_key) {
            self.violated(format!("{key}: bound from {offer_key}, which is still there"));
        }
        let agent = offer.spec.agent.clone();
        match (uid(Some(task)), self.agent_uid(&agent)) {
            (Some(task), Some(agent)) => drop(self.bound_to.insert(task, agent)),
            _ => self.violated(format!("{key}: bound to {agent}, which was removed")),
        }
        if Some(&agent) != status.agent.as_ref() {
            self.violated(format!("{key}: bound to another agent than its offer's"));
        }
        if !self.leases.contains_key(&format!("{NAMESPACE_AGENTS}/{agent}")) {
            self.violated(format!("{key}: bound to {agent}, which is not present"));
        }
    }
}
