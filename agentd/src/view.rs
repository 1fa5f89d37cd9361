//! The tasks of this agent, as the API server last showed them or acknowledged a write of them. Pure.
//!
//! It promises: an object never goes back to an older revision; what cannot be read is remembered by its uid, so its containers are not
//! taken for orphans; a server that went back in time ([`View::regressed`]) is noticed, and then nothing is concluded from absence.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use muster_api::ObjectMeta;
use muster_api::v1::Task;
use serde::de::{Deserialize, Deserializer};
use serde_json::Value;

use crate::plan::TaskKey;

/// A task as it came over the wire, or what could be told of one that cannot be read.
#[derive(Clone, Debug, PartialEq)]
pub enum Row {
    /// A task.
    Task(Box<Task>),
    /// Something else, perhaps of a newer version than this.
    Unreadable {
        /// What can be told of it.
        meta: Box<ObjectMeta>,
        /// Why it cannot be read.
        error: String,
    },
}

impl Row {
    fn meta(&self) -> &ObjectMeta {
        match self {
            Row::Task(task) => &task.metadata,
            Row::Unreadable { meta, .. } => meta,
        }
    }

    /// The name of the object.
    pub fn key(&self) -> TaskKey {
        let meta = self.meta();
        TaskKey {
            namespace: meta.namespace.clone().unwrap_or_default(),
            name: meta.name.clone().unwrap_or_default(),
        }
    }

    /// The revision of the object; 0 when it has none.
    pub fn revision(&self) -> u64 {
        revision(self.meta())
    }
}

impl<'de> Deserialize<'de> for Row {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Row, D::Error> {
        let value = Value::deserialize(deserializer)?;
        Ok(match Task::deserialize(&value) {
            Ok(task) => Row::Task(Box::new(task)),
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

fn revision(meta: &ObjectMeta) -> u64 {
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
    unreadable: BTreeMap<TaskKey, String>,
    listed: bool,
    live: bool,
    revision: u64,
    highest: u64,
}

impl View {
    /// The tasks.
    pub fn tasks(&self) -> &BTreeMap<TaskKey, Arc<Task>> {
        &self.tasks
    }

    /// The uids of all tasks, those included that cannot be read.
    pub fn uids(&self) -> BTreeSet<&str> {
        let readable = self.tasks.values().filter_map(|task| task.metadata.uid.as_deref());
        readable.chain(self.unreadable.values().map(String::as_str)).collect()
    }

    /// Whether there was a list at all.
    pub fn is_listed(&self) -> bool {
        self.listed
    }

    /// Whether the server is at an earlier revision than it once was: a backup was restored, or it is another cluster.
    pub fn regressed(&self) -> bool {
        self.revision < self.highest
    }

    /// Whether the absence of a task means something.
    pub fn is_consistent(&self) -> bool {
        self.listed && self.live && !self.regressed()
    }

    /// Takes in what the watch says; the task that it was about, if it was about one.
    pub fn apply(&mut self, event: ViewEvent) -> Option<TaskKey> {
        match event {
            ViewEvent::Listed(rows, revision) => {
                let before = std::mem::take(&mut self.tasks);
                self.unreadable.clear();
                for row in rows {
                    let key = row.key();
                    self.insert(row);
                    if let (Some(old), Some(new)) = (before.get(&key), self.tasks.get_mut(&key)) {
                        keep_newer(old, new);
                    }
                }
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
                let old = self.tasks.remove(&key);
                self.insert(row);
                if let (Some(old), Some(new)) = (old, self.tasks.get_mut(&key)) {
                    keep_newer(&old, new);
                }
                Some(key)
            }
            ViewEvent::Deleted(key, revision) => {
                self.reach(revision);
                self.tasks.remove(&key);
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
        if let Some(shown) = self.tasks.get_mut(&TaskKey::of(&task)) {
            let mut task = Arc::new(task);
            if task.metadata.uid == shown.metadata.uid {
                keep_newer(shown, &mut task);
                *shown = task;
            }
        }
    }

    fn reach(&mut self, revision: u64) {
        self.revision = self.revision.max(revision);
        self.highest = self.highest.max(self.revision);
    }

    fn insert(&mut self, row: Row) {
        let key = row.key();
        match row {
            Row::Task(task) => {
                self.unreadable.remove(&key);
                self.tasks.insert(key, Arc::from(task));
            }
            Row::Unreadable { meta, error } => {
                tracing::warn!(task = %key, %error, "a task cannot be read; it is left alone");
                self.unreadable.insert(key, meta.uid.unwrap_or_default());
            }
        }
    }
}

/// Of two states of one object, the later.
fn keep_newer(old: &Arc<Task>, new: &mut Arc<Task>) {
    if old.metadata.uid == new.metadata.uid && revision(&old.metadata) > revision(&new.metadata) {
        *new = Arc::clone(old);
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
        Row::Task(Box::new(task(name, revision, phase)))
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
        view.apply(ViewEvent::Changed(Row::Task(Box::new(other))));
        view.acknowledged(task("t", 70, Phase::Finished));
        assert_eq!(phase(&view, "t"), Some(Phase::Staging));
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
