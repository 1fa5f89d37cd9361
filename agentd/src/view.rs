//! The tasks of this agent, as the API server last showed them or acknowledged a write of them. Pure.
//!
//! Of a task that has ended only what letting go of it needs is kept. It promises: an object never goes back to an older revision; what
//! cannot be read is remembered by its uid, so its containers are not taken for orphans; a server that went back in time
//! ([`View::regressed`]) is noticed, and then nothing is concluded from absence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_api::ObjectMeta;
use muster_api::v1::Task;
use serde::de::{Deserialize, Deserializer};
use serde_json::Value;

use crate::plan::{EndedTask, TaskKey};

/// A task as it came over the wire, or what could be told of one that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A task that has not ended.
    Task(Box<Task>),
    /// A task that has: only what is kept of it, because a list may bring thousands.
    Ended(TaskKey, EndedTask),
    /// Something else, perhaps of a newer version than this.
    Unreadable {
        /// What can be told of it.
        meta: Box<ObjectMeta>,
        /// Why it cannot be read.
        error: String,
    },
}

impl Row {
    /// What is kept of a task.
    pub fn of(task: Task) -> Row {
        match EndedTask::of(&task) {
            Some(ended) => Row::Ended(TaskKey::of(&task), ended),
            None => Row::Task(Box::new(task)),
        }
    }

    /// The name of the object.
    pub fn key(&self) -> TaskKey {
        match self {
            Row::Task(task) => TaskKey::of(task),
            Row::Ended(key, _) => key.clone(),
            Row::Unreadable { meta, .. } => TaskKey {
                namespace: meta.namespace.clone().unwrap_or_default(),
                name: meta.name.clone().unwrap_or_default(),
            },
        }
    }

    /// The revision of the object; 0 when it has none.
    pub fn revision(&self) -> u64 {
        match self {
            Row::Task(task) => revision(&task.metadata),
            Row::Ended(_, task) => task.revision,
            Row::Unreadable { meta, .. } => revision(meta),
        }
    }

    fn uid(&self) -> Option<&str> {
        match self {
            Row::Task(task) => task.metadata.uid.as_deref(),
            Row::Ended(_, task) => Some(&task.uid),
            Row::Unreadable { meta, .. } => meta.uid.as_deref(),
        }
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Row, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match Task::deserialize(&value) {
            Ok(task) => Row::of(task),
            Err(error) => Row::Unreadable {
                meta: value
                    .get("metadata")
                    .and_then(|meta| ObjectMeta::deserialize(meta).ok())
                    .map(Box::new)
                    .unwrap_or_default(),
                error: error.to_string(),
            },
        })
    }
}

/// The revision of an object; 0 when it has none.
pub(crate) fn revision(meta: &ObjectMeta) -> u64 {
    meta.resource_version
        .as_deref()
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// Something that the watch says.
#[derive(Clone, Debug)]
pub enum ViewEvent {
    /// These are all tasks of this agent, as of that revision.
    Listed(Vec<Row>, u64),
    /// A task is new or different.
    Changed(Row),
    /// A task is not there any more, as of that revision.
    Deleted(TaskKey, u64),
    /// Nothing else has changed up to that revision.
    Reached(u64),
    /// The connection stands: the view follows the server.
    Live,
    /// The connection is lost: the view may be behind.
    Lost,
}

/// What is known of the tasks of this agent.
#[derive(Debug, Default)]
pub struct View {
    tasks: BTreeMap<TaskKey, Arc<Task>>,
    ended: BTreeMap<TaskKey, EndedTask>,
    unreadable: BTreeMap<TaskKey, String>,
    listed: bool,
    live: bool,
    revision: u64,
    highest: u64,
}

impl View {
    /// The tasks that have not ended.
    pub fn tasks(&self) -> &BTreeMap<TaskKey, Arc<Task>> {
        &self.tasks
    }

    /// Those that have.
    pub fn ended(&self) -> &BTreeMap<TaskKey, EndedTask> {
        &self.ended
    }

    /// Whether there is a task of this name that can be read.
    pub fn contains(&self, key: &TaskKey) -> bool {
        self.tasks.contains_key(key) || self.ended.contains_key(key)
    }

    /// The uids of all tasks, those included that cannot be read.
    pub fn uids(&self) -> BTreeSet<&str> {
        let tasks = self.tasks.values().filter_map(|task| task.metadata.uid.as_deref());
        let ended = self.ended.values().map(|task| &*task.uid);
        let unreadable = self.unreadable.values().map(String::as_str);
        tasks.chain(ended).chain(unreadable).collect()
    }

    /// The uids of tasks that have not ended, or may not have because they cannot be read.
    pub fn live(&self) -> BTreeSet<&str> {
        let tasks = self.tasks.values().filter_map(|task| task.metadata.uid.as_deref());
        tasks.chain(self.unreadable.values().map(String::as_str)).collect()
    }

    /// Whether there was a list at all.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether the server is at an earlier revision than it once was: a backup was restored, or it is another cluster.
    pub fn regressed(&self) -> bool {
        self.revision < self.highest
    }

    /// The highest revision that was ever seen; at least what was seen before this process.
    pub fn highest(&self) -> u64 {
        self.highest
    }

    /// The revision that the server is at, as far as it was told.
    pub fn revision(&self) -> u64 {
        self.revision
    }

    /// A view that continues another one: that one had reached this revision.
    pub fn after(highest: u64) -> View {
        View {
            highest,
            ..View::default()
        }
    }

    /// What the server says now is right, whatever it said before.
    pub fn accept_regression(&mut self) {
        self.highest = self.revision;
    }

    /// Whether the absence of a task means something.
    pub fn is_consistent(&self) -> bool {
        self.listed && self.live && !self.regressed()
    }

    /// Takes in what the watch says; the task that it was about, if it was about one.
    pub fn apply(&mut self, event: ViewEvent) -> Option<TaskKey> {
        match event {
            ViewEvent::Listed(rows, revision) => {
                let listed: BTreeSet<TaskKey> = rows.iter().map(Row::key).collect();
                self.tasks.retain(|key, _| listed.contains(key));
                self.ended.retain(|key, _| listed.contains(key));
                self.unreadable.clear();
                rows.into_iter().for_each(|row| self.insert(row));
                self.listed = true;
                self.revision = revision;
                self.highest = self.highest.max(revision);
                if self.regressed() {
                    tracing::error!(
                        revision,
                        highest = self.highest,
                        "the API server has gone back in time; nothing new is started and nothing is removed until it catches up"
                    );
                }
                None
            }
            ViewEvent::Changed(row) => {
                self.reach(row.revision());
                let key = row.key();
                self.insert(row);
                Some(key)
            }
            ViewEvent::Deleted(key, revision) => {
                self.reach(revision);
                self.tasks.remove(&key);
                self.ended.remove(&key);
                self.unreadable.remove(&key);
                Some(key)
            }
            ViewEvent::Reached(revision) => {
                self.reach(revision);
                None
            }
            ViewEvent::Live => {
                self.live = true;
                None
            }
            ViewEvent::Lost => {
                self.live = false;
                None
            }
        }
    }

    /// Takes in the answer to a write; older than what is here, or about what is gone, it says nothing.
    pub fn acknowledged(&mut self, task: Task) {
        let known = self.known(&TaskKey::of(&task)).map(|(uid, _)| uid);
        if known.is_some() && known == task.metadata.uid.as_deref() {
            self.insert(Row::of(task));
        }
    }

    /// The uid and the revision of the task of this name.
    fn known(&self, key: &TaskKey) -> Option<(&str, u64)> {
        let ended = || self.ended.get(key).map(|task| (&*task.uid, task.revision));
        let task = self.tasks.get(key);
        let task = task.and_then(|task| Some((task.metadata.uid.as_deref()?, revision(&task.metadata))));
        task.or_else(ended)
    }

    fn reach(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.highest = self.highest.max(self.revision);
    }

    /// Puts what was read in its place, unless a later state of the same object is there.
    fn insert(&mut self, row: Row) {
        let key = row.key();
        let readable = !matches!(row, Row::Unreadable { .. });
        if readable {
            self.unreadable.remove(&key);
        }
        let known = self.known(&key);
        if readable && known.is_some_and(|(uid, revision)| row.uid() == Some(uid) && revision > row.revision()) {
            return;
        }
        self.tasks.remove(&key);
        self.ended.remove(&key);
        match row {
            Row::Task(task) => drop(self.tasks.insert(key, Arc::from(task))),
            Row::Ended(_, task) => drop(self.ended.insert(key, task)),
            Row::Unreadable { meta, error } => {
                tracing::warn!(task = %key, %error, "a task cannot be read; it is left alone");
                self.unreadable.insert(key, meta.uid.unwrap_or_default());
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::task_state::Phase;

    use super::*;
    use crate::plan::testing::bound;

    fn task(name: &str, revision: u64, phase: Phase) -> Task {
        let mut task = bound(name);
        task.metadata.resource_version = Some(revision.to_string());
        task.status.as_mut().expect("bound").phase = phase;
        task
    }

    fn row(name: &str, revision: u64, phase: Phase) -> Row {
        Row::of(task(name, revision, phase))
    }

    fn phase(view: &View, name: &str) -> Option<Phase> {
        view.tasks.get(&TaskKey::of(&bound(name))).map(|task| task.phase())
    }

    #[test]
    fn an_acknowledged_write_is_seen_at_once_and_not_undone_by_what_comes_late() {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![row("t", 5, Phase::Staging)], 5));
        view.acknowledged(task("t", 8, Phase::Running));
        assert_eq!(phase(&view, "t"), Some(Phase::Running));
        view.apply(ViewEvent::Changed(row("t", 6, Phase::Starting)));
        assert_eq!(phase(&view, "t"), Some(Phase::Running));
        view.apply(ViewEvent::Listed(vec![row("t", 7, Phase::Starting)], 7));
        assert_eq!(phase(&view, "t"), Some(Phase::Running));
        view.acknowledged(task("t", 7, Phase::Starting));
        assert_eq!(phase(&view, "t"), Some(Phase::Running));
        view.apply(ViewEvent::Changed(row("t", 9, Phase::Killing)));
        assert_eq!(phase(&view, "t"), Some(Phase::Killing));
    }

    #[test]
    fn an_answer_about_a_task_that_is_gone_does_not_bring_it_back() {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![row("t", 5, Phase::Staging)], 5));
        view.apply(ViewEvent::Deleted(TaskKey::of(&bound("t")), 9));
        view.acknowledged(task("t", 8, Phase::Running));
        assert_eq!(phase(&view, "t"), None);
    }

    #[test]
    fn a_new_task_of_an_old_name_is_another_task() {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![row("t", 50, Phase::Running)], 50));
        let mut other = task("t", 60, Phase::Staging);
        other.metadata.uid = Some("another".to_owned());
        view.apply(ViewEvent::Changed(Row::of(other)));
        view.acknowledged(task("t", 70, Phase::Finished));
        assert_eq!(phase(&view, "t"), Some(Phase::Staging));
    }

    #[test]
    fn of_a_task_that_has_ended_little_is_kept_and_nothing_brings_it_back() {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![row("t", 5, Phase::Running)], 5));
        view.acknowledged(task("t", 8, Phase::Finished));
        let ended = |view: &View| view.ended().get(&TaskKey::of(&bound("t"))).map(|task| task.revision);
        assert_eq!((phase(&view, "t"), ended(&view)), (None, Some(8)));
        view.apply(ViewEvent::Changed(row("t", 6, Phase::Killing)));
        view.apply(ViewEvent::Listed(vec![row("t", 7, Phase::Running)], 7));
        view.acknowledged(task("t", 7, Phase::Running));
        assert_eq!((phase(&view, "t"), ended(&view)), (None, Some(8)));
        assert!(view.uids().contains("uid-t"), "its containers are no orphans");
        view.apply(ViewEvent::Changed(row("t", 9, Phase::Finished)));
        assert_eq!(ended(&view), Some(9));
        view.apply(ViewEvent::Deleted(TaskKey::of(&bound("t")), 10));
        assert!(!view.contains(&TaskKey::of(&bound("t"))) && view.uids().is_empty());
    }

    #[test]
    fn what_cannot_be_read_is_known_by_its_uid() {
        let text = r#"{"metadata": {"name": "t", "namespace": "default", "uid": "u", "resourceVersion": "3"},
            "spec": {"command": ["a"]}, "status": {"phase": "Levitating"}}"#;
        let row: Row = serde_json::from_str(text).expect("rows are read whatever they are");
        assert!(matches!(row, Row::Unreadable { .. }));
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![row], 3));
        assert!(view.tasks().is_empty());
        assert!(view.uids().contains("u"));
    }

    #[test]
    fn absence_means_nothing_before_the_first_list_without_connection_and_after_a_step_back() {
        let mut view = View::default();
        assert!(!view.is_consistent());
        view.apply(ViewEvent::Listed(Vec::new(), 5));
        view.apply(ViewEvent::Live);
        assert!(view.is_consistent());
        view.apply(ViewEvent::Lost);
        assert!(!view.is_consistent());
        view.apply(ViewEvent::Live);
        view.apply(ViewEvent::Reached(9));
        view.apply(ViewEvent::Listed(Vec::new(), 4));
        assert!(view.regressed() && !view.is_consistent());
        view.apply(ViewEvent::Reached(10));
        assert!(view.is_consistent());
    }
}
