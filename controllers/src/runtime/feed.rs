//! The feed: keeps the view up to date from the ordered watch and tells planners what changed.
//!
//! One feed serves all planners. It resumes by revision after a broken connection, starts again from a snapshot when the
//! server does not keep that revision any more, and then tells the difference, so that a subscriber never misses a change.
//! Subscribers are called with the view that already has all of the revision.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::StreamExt;
use muster_api::wire::WatchLine;
use muster_client::{Client, Error};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::object::{Change, KINDS};
use super::view::View;

const RETRY_FIRST: Duration = Duration::from_millis(50);
const RETRY_MOST: Duration = Duration::from_secs(2);

/// Somebody who is told about changes. Must be quick: the feed waits.
pub trait Subscriber: Send + Sync {
    /// A revision was applied; `view` has all of it.
    fn changed(&self, changes: &[Change], view: &View);
}

#[derive(Default)]
struct State {
    view: View,
    next: u64,
    subscribers: BTreeMap<u64, Arc<dyn Subscriber>>,
}

/// Keeps the view.
pub struct Feed {
    state: Mutex<State>,
    /// The revision of the view; 0 until the first snapshot.
    revision: watch::Sender<u64>,
    restart: Notify,
}

/// Ends the subscription when dropped.
pub struct Subscription {
    feed: Arc<Feed>,
    id: u64,
}

impl Drop for Subscription {
    fn drop(&mut self) {
        self.feed.lock().subscribers.remove(&self.id);
    }
}

impl Default for Feed {
    fn default() -> Feed {
        Feed {
            state: Mutex::default(),
            revision: watch::Sender::new(0),
            restart: Notify::new(),
        }
    }
}

impl Feed {
    /// A feed without a view yet.
    pub fn new() -> Arc<Feed> {
        Arc::default()
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        // Whoever panicked while holding it ends the process; until then a half-told change does no harm.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The view now.
    pub fn view(&self) -> View {
        self.lock().view.clone()
    }

    /// The revision of the view, as it changes.
    pub fn revisions(&self) -> watch::Receiver<u64> {
        self.revision.subscribe()
    }

    /// Waits until the view has reached `revision` (at least the first snapshot).
    pub async fn reached(&self, revision: u64) {
        let mut revisions = self.revision.subscribe();
        // The sender lives as long as `self`.
        let _ = revisions.wait_for(|now| *now >= revision.max(1)).await;
    }

    /// Throws the position away: the watch starts again from a snapshot.
    pub fn resync(&self) {
        self.restart.notify_one();
    }

    /// Tells `subscriber` everything that is there, and from then on every change.
    pub fn subscribe(self: &Arc<Self>, subscriber: Arc<dyn Subscriber>) -> Subscription {
        let mut state = self.lock();
        subscriber.changed(&state.view.as_changes(), &state.view);
        let id = state.next;
        state.next += 1;
        state.subscribers.insert(id, subscriber);
        Subscription { feed: self.clone(), id }
    }

    /// Applies a line and tells everybody. `false`: the server is not the one that was watched before.
    fn advance(&self, follower: &mut Follower, line: WatchLine) -> bool {
        let mut state = self.lock();
        let changes = match follower.step(&mut state.view, line) {
            Step::More => return true,
            Step::Backwards => return false,
            Step::Next(changes) => changes,
        };
        let revision = state.view.revision;
        if !changes.is_empty() {
            for subscriber in state.subscribers.values() {
                subscriber.changed(&changes, &state.view);
            }
        }
        drop(state);
        self.revision.send_replace(revision.max(1));
        true
    }

    /// Follows the watch until cancelled.
    pub async fn run(&self, client: &Client, cancel: &CancellationToken) {
        let mut from = None;
        let mut pause = RETRY_FIRST;
        while !cancel.is_cancelled() {
            let before = self.lock().view.revision;
            let ended = tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = self.restart.notified() => { from = None; continue }
                ended = self.follow(client, from) => ended,
            };
            let progressed = self.lock().view.revision != before;
            from = match ended {
                Err(Error::Gone(status)) => {
                    tracing::info!(reason = %status.message, "watch starts again from a snapshot");
                    None
                }
                Err(error) if error.is_retryable() => {
                    tracing::debug!(%error, "watch broke off");
                    self.position()
                }
                Err(error) => {
                    tracing::warn!(%error, "watch failed");
                    None
                }
                Ok(()) => self.position(),
            };
            pause = if progressed {
                RETRY_FIRST
            } else {
                (pause * 2).min(RETRY_MOST)
            };
            tokio::select! {
                biased;
                () = cancel.cancelled() => return,
                () = tokio::time::sleep(pause) => {}
            }
        }
    }

    fn position(&self) -> Option<u64> {
        let revision = self.lock().view.revision;
        (revision > 0).then_some(revision)
    }

    /// One watch, to its end.
    async fn follow(&self, client: &Client, from: Option<u64>) -> Result<(), Error> {
        let resources = KINDS.map(|kind| kind.resource());
        let stream = client.ordered_watch_of_all(&resources, from).await?;
        let mut lines = std::pin::pin!(stream);
        let mut follower = Follower::default();
        while let Some(line) = lines.next().await {
            if !self.advance(&mut follower, line?) {
                let status = kube::core::Status::failure("the revision went backwards", "Expired");
                return Err(Error::Gone(Box::new(status.with_code(410))));
            }
        }
        Ok(())
    }
}

/// What a line means for a view.
#[derive(Debug)]
pub enum Step {
    /// The snapshot goes on.
    More,
    /// The view has all of the line; what changed.
    Next(Vec<Change>),
    /// The server is behind what was seen before: it is not the same history.
    Backwards,
}

/// Brings a view forward line by line. Pure.
#[derive(Debug, Default)]
pub struct Follower {
    incoming: Option<View>,
}

impl Follower {
    /// Applies `line` to `view`.
    pub fn step(&mut self, view: &mut View, line: WatchLine) -> Step {
        match line {
            WatchLine::Snapshot {
                revision,
                changes,
                more,
            } => {
                let incoming = self.incoming.get_or_insert_default();
                incoming.revision = revision;
                for change in changes {
                    incoming.apply(change);
                }
                if more {
                    return Step::More;
                }
                let newer = self.incoming.take().unwrap_or_default();
                let changes = view.difference(&newer);
                *view = newer;
                Step::Next(changes)
            }
            WatchLine::Batch { revision, changes } if revision > view.revision => {
                view.revision = revision;
                Step::Next(changes.into_iter().filter_map(|change| view.apply(change)).collect())
            }
            // Repeated after a resumption; it has been applied.
            WatchLine::Batch { .. } => Step::Next(Vec::new()),
            WatchLine::Progress { revision } if revision < view.revision => Step::Backwards,
            WatchLine::Progress { revision } => {
                view.revision = revision;
                Step::Next(Vec::new())
            }
            // The client turns these into errors.
            WatchLine::Error { .. } => Step::Backwards,
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_api::wire::{ChangeKind, WatchChange};
    use serde_json::json;

    use super::*;
    use crate::runtime::Id;

    fn task(kind: ChangeKind, name: &str, version: u64, phase: &str) -> WatchChange {
        let object = json!({
            "apiVersion": "muster.dev/v1", "kind": "Task",
            "metadata": { "namespace": "d", "name": name, "uid": name, "resourceVersion": version.to_string() },
            "spec": { "framework": "f", "command": ["true"] },
            "status": { "phase": phase, "agent": (phase != "Pending").then_some("a1") },
        });
        WatchChange {
            resource: "tasks.muster.dev".to_owned(),
            kind,
            object,
        }
    }

    fn snapshot(revision: u64, names: &[(&str, u64)], more: bool) -> WatchLine {
        let changes = names
            .iter()
            .map(|(name, version)| task(ChangeKind::Added, name, *version, "Pending"));
        WatchLine::Snapshot {
            revision,
            changes: changes.collect(),
            more,
        }
    }

    #[derive(Default)]
    struct Story(Mutex<Vec<String>>);

    impl Subscriber for Story {
        fn changed(&self, changes: &[Change], view: &View) {
            let mut story = self.0.lock().expect("story");
            for change in changes {
                let sign = match (&change.old, &change.new) {
                    (None, _) => "+",
                    (_, None) => "-",
                    _ => "~",
                };
                story.push(format!("{sign}{}@{}", change.id.name, view.revision));
            }
        }
    }

    fn told(story: &Story) -> Vec<String> {
        std::mem::take(&mut *story.0.lock().expect("story"))
    }

    #[test]
    fn a_subscriber_hears_of_every_change_across_a_restart() {
        let feed = Feed::new();
        let mut first = Follower::default();
        assert!(feed.advance(&mut first, snapshot(5, &[("a", 1)], true)));
        assert!(feed.advance(&mut first, snapshot(5, &[("b", 2)], false)));
        let story = Arc::new(Story::default());
        let subscription = feed.subscribe(story.clone());
        assert_eq!(told(&story), ["+a@5", "+b@5"]);
        let batch = WatchLine::Batch {
            revision: 6,
            changes: vec![
                task(ChangeKind::Deleted, "a", 6, "Pending"),
                task(ChangeKind::Added, "c", 6, "Running"),
            ],
        };
        assert!(feed.advance(&mut first, batch.clone()));
        assert_eq!(told(&story), ["-a@6", "+c@6"]);
        assert!(feed.advance(&mut first, batch), "a batch that comes twice is fine");
        assert_eq!(told(&story), Vec::<String>::new());

        // The server kept no history: the second watch starts from a snapshot, and the difference is told.
        let mut second = Follower::default();
        assert!(feed.advance(&mut second, snapshot(9, &[("b", 8), ("d", 7)], false)));
        assert_eq!(told(&story), ["-c@9", "~b@9", "+d@9"]);
        drop(subscription);
        assert!(feed.advance(&mut second, snapshot(10, &[], false)));
        assert_eq!(told(&story), Vec::<String>::new(), "nobody listens any more");
    }

    #[test]
    fn indexes_follow_the_objects() {
        let feed = Feed::new();
        let mut follower = Follower::default();
        assert!(feed.advance(&mut follower, snapshot(1, &[("a", 1)], false)));
        let framework = Id::new("d", "f");
        assert_eq!(feed.view().pending(&framework).count(), 1);
        let mut to = |revision, phase| {
            let changes = vec![task(ChangeKind::Modified, "a", revision, phase)];
            assert!(feed.advance(&mut follower, WatchLine::Batch { revision, changes }));
            let view = feed.view();
            (
                view.pending(&framework).count(),
                view.live_tasks("a1").count(),
                view.bound_ids("a1").count(),
            )
        };
        assert_eq!(to(2, "Running"), (0, 1, 1));
        assert_eq!(to(3, "Finished"), (0, 0, 1));
        let changes = vec![task(ChangeKind::Deleted, "a", 4, "Finished")];
        assert!(feed.advance(&mut follower, WatchLine::Batch { revision: 4, changes }));
        let view = feed.view();
        assert_eq!((view.bound_ids("a1").count(), view.ended.len()), (0, 0));
    }

    #[test]
    fn what_cannot_be_read_keeps_what_was_known() {
        let feed = Feed::new();
        let mut follower = Follower::default();
        assert!(feed.advance(&mut follower, snapshot(1, &[("a", 1)], false)));
        let mut odd = task(ChangeKind::Modified, "a", 2, "Running");
        odd.object["spec"] = json!("nonsense");
        let batch = |revision, change| WatchLine::Batch {
            revision,
            changes: vec![change],
        };
        assert!(feed.advance(&mut follower, batch(2, odd)));
        let view = feed.view();
        assert_eq!(view.revision, 2);
        assert!(view.tasks.contains_key(&Id::new("d", "a")));
        let problem = view.problems.values().next().expect("a problem");
        assert_eq!(problem.agent.as_deref(), Some("a1"));
        assert!(feed.advance(&mut follower, batch(3, task(ChangeKind::Modified, "a", 3, "Running"))));
        assert!(feed.view().problems.is_empty());
    }

    #[tokio::test]
    async fn a_barrier_is_released_by_progress() {
        let feed = Feed::new();
        let waiting = tokio::spawn({
            let feed = feed.clone();
            async move { feed.reached(7).await }
        });
        tokio::task::yield_now().await;
        let mut follower = Follower::default();
        assert!(feed.advance(&mut follower, snapshot(6, &[], false)));
        tokio::task::yield_now().await;
        assert!(!waiting.is_finished());
        assert!(feed.advance(&mut follower, WatchLine::Progress { revision: 7 }));
        waiting.await.expect("released");
        assert!(
            !feed.advance(&mut follower, WatchLine::Progress { revision: 3 }),
            "another history"
        );
    }
}
