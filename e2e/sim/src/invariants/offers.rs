//! Offers: what is given out is there to be given, once.

use std::collections::{BTreeMap, BTreeSet};

use muster_api::resources::{Amounts, Bundle};
use muster_api::v1::{Offer, OfferPhase, Task};
use muster_store::Change;

use super::{AGENTS, Checker, LEDGERS, OFFERS, TASKS, uid};
use crate::converge::within;

impl Checker {
    /// An offer leaves Open once, and its content never changes.
    pub(super) fn offer_changed(&mut self, key: &str, new: Option<&Offer>) {
        let old = self.offers.get(key).cloned();
        match (&old, new) {
            (Some(old), Some(new)) if uid(Some(old)) == uid(Some(new)) => {
                if old.spec != new.spec {
                    self.violated(format!("{key}: the content of an offer changed"));
                }
                if old.phase() == OfferPhase::Declined && new.phase() == OfferPhase::Open {
                    self.violated(format!("{key}: a declined offer is open again"));
                }
            }
            (_, Some(new)) => self.refusals_hold(key, new),
            _ => {}
        }
    }

    /// What a framework has refused is not offered to it again before it wants that, by anybody's clock: refusals are given in time, so a
    /// leader whose clock is ahead ends them early.
    fn refusals_hold(&mut self, key: &str, new: &Offer) {
        let (namespace, amounts) = (&new.metadata.namespace, new.bundle().amounts());
        let refused = self.offers.values().find(|old| {
            let until = old.status.as_ref().and_then(|status| status.refuse_until.as_ref());
            old.phase() == OfferPhase::Declined
                && old.metadata.namespace == *namespace
                && (&old.spec.framework, &old.spec.role, &old.spec.agent)
                    == (&new.spec.framework, &new.spec.role, &new.spec.agent)
                && until.is_some_and(|until| until.0 > self.latest + REFUSAL_SLACK)
                && old.bundle().amounts().contains(&amounts)
        });
        if let Some(old) = refused {
            let name = old.metadata.name.clone().unwrap_or_default();
            self.violated(format!("{key}: offered although {name} was refused and says so still"));
        }
    }

    /// Whatever an agent gives out or gets back, its ledger is written with it.
    pub(super) fn check_ledgers(&mut self, changes: &[&Change]) {
        let mut touched: BTreeSet<&str> = BTreeSet::new();
        let mut needed: BTreeMap<String, &str> = BTreeMap::new();
        for change in changes {
            let key = change.key.as_str();
            if let Some(agent) = key.strip_prefix(LEDGERS) {
                touched.insert(agent);
            } else if key.starts_with(OFFERS) {
                let new: Option<Offer> = read(change);
                let old = self.offers.get(key);
                if old.map(Offer::held) != new.as_ref().map(Offer::held)
                    && let Some(offer) = old.or(new.as_ref())
                {
                    needed.insert(offer.spec.agent.clone(), key);
                }
            } else if key.starts_with(TASKS) {
                let new: Option<Task> = read(change);
                let old = self.tasks.get(key);
                let held = |task: Option<&Task>| task.map(Task::held).unwrap_or_default();
                if held(old) != held(new.as_ref())
                    && let Some(agent) = old.and_then(Task::agent).or(new.as_ref().and_then(Task::agent))
                {
                    needed.insert(agent.to_owned(), key);
                }
            }
        }
        let missing: Vec<String> = needed
            .into_iter()
            .filter(|(agent, _)| !touched.contains(agent.as_str()))
            .map(|(agent, key)| format!("{key}: what {agent} has given out changed, but its ledger was not touched"))
            .collect();
        missing.into_iter().for_each(|what| self.violated(what));
    }

    /// What open offers and live tasks hold of an agent never overlaps and is never more than the agent has.
    pub(super) fn capacity_holds(&mut self) {
        let mut held: BTreeMap<&str, Bundle> = BTreeMap::new();
        let offers = self
            .offers
            .iter()
            .map(|(key, offer)| (key, offer.spec.agent.as_str(), offer.held()));
        let tasks = self
            .tasks
            .iter()
            .filter_map(|(key, task)| Some((key, task.agent()?, task.held())));
        let mut wrong = Vec::new();
        for (key, agent, bundle) in offers.chain(tasks) {
            let sum = held.entry(agent).or_default();
            match sum.checked_add(&bundle) {
                Some(more) => *sum = more,
                None => wrong.push(format!(
                    "{key} holds a device or port of {agent} that something else holds"
                )),
            }
        }
        let mut sums = BTreeMap::new();
        for (agent, sum) in held {
            let amounts = sum.amounts();
            // What an agent has may shrink below what it has given out; then it must not give more.
            let less = self.held.get(agent).is_some_and(|before| before.contains(&amounts));
            sums.insert(agent.to_owned(), amounts);
            let Some(object) = self.agents.get(&format!("{AGENTS}_/{agent}")) else {
                continue;
            };
            if !object.allocatable().contains(&sum) && !less {
                wrong.push(format!(
                    "{agent} has given out {amounts}, but has {}",
                    object.allocatable().amounts()
                ));
            }
        }
        self.held = sums;
        for what in wrong {
            self.violated(what);
        }
    }

    /// What a role, and what is below it, has been given.
    pub fn given_to(&self, role: &str) -> Amounts {
        let below = |other: &str| other == role || other.strip_prefix(role).is_some_and(|rest| rest.starts_with('/'));
        let offers = self
            .offers
            .values()
            .filter(|offer| below(&offer.spec.role))
            .map(Offer::held);
        let tasks = self.tasks.values().filter(|task| below(task.role())).map(Task::held);
        let held = offers.chain(tasks).map(|bundle| bundle.amounts());
        held.fold(Amounts::ZERO, |sum, more| sum.checked_add(&more).unwrap_or(sum))
    }

    /// What is newly given out keeps every quota's limit.
    pub(super) fn quotas_hold(&mut self, changes: &[&Change]) {
        let given = |change: &&&Change| change.key.as_str().starts_with(OFFERS) && change.current.is_some();
        if !changes.iter().any(|change| given(&change)) {
            return;
        }
        let over = self.quotas.values().filter_map(|quota| {
            let given = self.given_to(&quota.spec.role);
            let over = !within(&given, &quota.spec.limit);
            over.then(|| format!("role {} has been given {given}, more than its quota", quota.spec.role))
        });
        let over: Vec<String> = over.collect();
        over.into_iter().for_each(|what| self.violated(what));
    }
}

/// Times in objects are rounded, and decided a little before they are written.
const REFUSAL_SLACK: jiff::SignedDuration = jiff::SignedDuration::from_millis(500);

fn read<T: serde::de::DeserializeOwned>(change: &Change) -> Option<T> {
    let entry = change.current.as_ref()?;
    serde_json::from_slice(&entry.value).ok()
}
