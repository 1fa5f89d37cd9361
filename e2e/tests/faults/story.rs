//! Whether what the servers said is one story, and a good one.
//!
//! Histories are compared by revision, never by value or by wall time. Every server must have told the same without a gap; every list
//! that a watch began with must be what the story leads to; every acknowledged write must be in it at its revision; and the checker of
//! the simulation must find nothing wrong at any revision. Where nobody told anything, because the only server was down and has forgotten
//! what it said before, the story falls into parts; over such a hole tasks must still only have moved forward.

use std::collections::{BTreeMap, BTreeSet};

use muster_api::v1::Task;
use muster_api::wire::ChangeKind;
use muster_sim::invariants::Checker;
use muster_store::{Change, Entry, Key};
use serde_json::Value;

use crate::tape::Batch;

/// All objects by key.
pub(crate) type State = BTreeMap<String, Value>;
/// What happened to which object.
pub(crate) type Changes = BTreeMap<String, (ChangeKind, Value)>;

/// What one server has said.
pub(crate) struct Account<'a> {
    pub(crate) server: &'a str,
    /// The revisions that it told of.
    pub(crate) told: &'a BTreeSet<u64>,
    /// What it listed, at which revision.
    pub(crate) lists: &'a [(u64, State)],
    /// Behind which list up to which revision it told everything.
    pub(crate) ranges: Vec<(u64, u64)>,
}

/// Everything that was said.
pub(crate) struct Story<'a> {
    batches: &'a BTreeMap<u64, Batch>,
    accounts: Vec<Account<'a>>,
    /// Without holes: behind which list up to which revision.
    parts: Vec<(u64, u64)>,
}

/// Does to the objects what happened.
pub(crate) fn apply(state: &mut State, changes: &Changes) {
    for (key, (kind, object)) in changes {
        match kind {
            ChangeKind::Deleted => drop(state.remove(key)),
            ChangeKind::Added | ChangeKind::Modified => drop(state.insert(key.clone(), object.clone())),
        }
    }
}

impl<'a> Story<'a> {
    pub(crate) fn new(batches: &'a BTreeMap<u64, Batch>, accounts: Vec<Account<'a>>) -> Story<'a> {
        let mut ranges: Vec<(u64, u64)> = accounts
            .iter()
            .flat_map(|account| account.ranges.iter().copied())
            .collect();
        ranges.sort_unstable();
        let mut parts: Vec<(u64, u64)> = Vec::new();
        for (from, to) in ranges {
            match parts.last_mut() {
                Some(part) if from <= part.1 => part.1 = part.1.max(to),
                _ => parts.push((from, to)),
            }
        }
        Story {
            batches,
            accounts,
            parts,
        }
    }

    /// Everything that is wrong, given the revisions, keys and uids of the writes that were acknowledged.
    pub(crate) fn judge(&self, acknowledged: &[(u64, String, String)]) -> Vec<String> {
        if self.parts.is_empty() {
            return vec!["nothing was recorded".to_owned()];
        }
        let mut wrong = self.silences();
        wrong.extend(self.lists());
        wrong.extend(self.lost(acknowledged));
        wrong.extend(self.parts.iter().flat_map(|part| self.check(*part)));
        wrong.extend(
            self.parts
                .windows(2)
                .flat_map(|pair| self.over_the_hole(pair[0], pair[1])),
        );
        wrong
    }

    /// Revisions that a server passed over.
    fn silences(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for account in &self.accounts {
            for (from, to) in &account.ranges {
                let passed = self.batches.range(from + 1..to + 1).map(|(revision, _)| revision);
                let silent = passed.filter(|revision| !account.told.contains(revision));
                wrong.extend(silent.map(|revision| format!("{} never told of revision {revision}", account.server)));
            }
        }
        wrong
    }

    fn list_at(&self, revision: u64) -> State {
        let mut lists = self.accounts.iter().flat_map(|account| account.lists);
        lists
            .find(|(at, _)| *at == revision)
            .map(|(_, list)| list.clone())
            .unwrap_or_default()
    }

    /// Everything as of a revision of a part.
    fn state_at(&self, part: (u64, u64), revision: u64) -> State {
        let mut state = self.list_at(part.0);
        for batch in self.batches.range(part.0 + 1..revision + 1).map(|(_, batch)| batch) {
            apply(&mut state, &batch.changes);
        }
        state
    }

    /// Lists that are not what the story leads to.
    fn lists(&self) -> Vec<String> {
        let mut wrong = Vec::new();
        for account in &self.accounts {
            for (revision, list) in account.lists {
                let Some(part) = self.parts.iter().find(|part| (part.0..=part.1).contains(revision)) else {
                    continue;
                };
                let state = self.state_at(*part, *revision);
                if state != *list {
                    let differing = state
                        .keys()
                        .chain(list.keys())
                        .find(|key| state.get(*key) != list.get(*key));
                    wrong.push(format!(
                        "the list of {} at {revision} is not what happened: {differing:?}",
                        account.server
                    ));
                }
            }
        }
        wrong
    }

    /// Acknowledged writes that are not in the story at their revision; those that nobody could tell of must have lasted.
    fn lost(&self, acknowledged: &[(u64, String, String)]) -> Vec<String> {
        let is = |object: Option<&Value>, uid: &str| object.is_some_and(|object| object["metadata"]["uid"] == uid);
        let kept = |revision: u64, key: &String, uid: &str| {
            if self.parts.iter().any(|part| part.0 < revision && revision <= part.1) {
                let change = self.batches.get(&revision).and_then(|batch| batch.changes.get(key));
                return is(change.map(|(_, object)| object), uid);
            }
            let next = self.parts.iter().find(|part| part.0 >= revision);
            next.is_none_or(|part| is(self.list_at(part.0).get(key), uid))
        };
        let lost = acknowledged
            .iter()
            .filter(|(revision, key, uid)| !kept(*revision, key, uid));
        lost.map(|(revision, key, uid)| format!("acknowledged but lost: {key} ({uid}) at {revision}"))
            .collect()
    }

    /// What the simulation's checker says of a part.
    fn check(&self, part: (u64, u64)) -> Vec<String> {
        let mut checker = Checker::of_what_is_shown();
        let first: Vec<Change> = self
            .list_at(part.0)
            .iter()
            .map(|(key, object)| change(key, Some(object)))
            .collect();
        checker.apply(part.0, &first);
        // What was there already is not judged by how it came about.
        let before = checker.violations().len();
        for (revision, batch) in self.batches.range(part.0 + 1..part.1 + 1) {
            let changes = batch.changes.iter().map(|(key, (kind, object))| match kind {
                ChangeKind::Deleted => change(key, None),
                ChangeKind::Added | ChangeKind::Modified => change(key, Some(object)),
            });
            checker.apply(*revision, &changes.collect::<Vec<_>>());
        }
        checker.violations()[before..].to_vec()
    }

    /// Tasks that moved backwards, or elsewhere, while nobody looked.
    fn over_the_hole(&self, left: (u64, u64), right: (u64, u64)) -> Vec<String> {
        let (before, after) = (self.state_at(left, left.1), self.list_at(right.0));
        let mut wrong = Vec::new();
        for (key, object) in before
            .iter()
            .filter(|(key, _)| key.starts_with("objects/muster.dev/tasks/"))
        {
            let task = |object: &Value| serde_json::from_value::<Task>(object.clone()).ok();
            let (Some(was), Some(is)) = (task(object), after.get(key).and_then(task)) else {
                continue;
            };
            let (from, to) = (was.phase(), is.phase());
            let backwards = from.is_terminal() && from != to || from.rank() > to.rank();
            let elsewhere = was.agent().is_some() && was.agent() != is.agent();
            if was.metadata.uid == is.metadata.uid && (backwards || elsewhere) {
                wrong.push(format!(
                    "{key}: {from} on {:?} became {to} on {:?}",
                    was.agent(),
                    is.agent()
                ));
            }
        }
        wrong
    }
}

/// The same as the store would say it.
fn change(key: &str, object: Option<&Value>) -> Change {
    let entry = |object: &Value| {
        let revision = object["metadata"]["resourceVersion"]
            .as_str()
            .and_then(|text| text.parse().ok());
        Entry {
            key: Key::new(key),
            value: serde_json::to_vec(object).expect("JSON can be written").into(),
            // Right for ephemeral leases, which are never updated; nobody asks for that of others.
            create_revision: revision.unwrap_or(0),
            mod_revision: revision.unwrap_or(0),
            lease: None,
        }
    };
    Change {
        key: Key::new(key),
        current: object.map(entry),
    }
}
