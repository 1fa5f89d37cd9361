//! Containers whose tasks do not exist any more. Pure.
//!
//! A container is taken for an orphan only when its task is missing from a consistent view, and the API server, asked for that very task, has
//! said twice, [`ORPHAN_PATIENCE`] apart and at revisions not below the highest seen, that there is none. A gap in the view starts all
//! of it anew. What is remembered is in memory: a restart of the agent only makes it more patient.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use muster_runtime::Container;
use tokio::time::Instant;

use crate::limits::ORPHAN_PATIENCE;
use crate::spec;
use crate::view::View;

/// So many answers make a proof.
const ANSWERS: u8 = 2;

/// How long after an answer that said nothing it is asked again.
const ASK_AGAIN: Duration = Duration::from_secs(5);

/// Which tasks are missing, and what was said about them.
#[derive(Debug, Default)]
pub struct Orphans {
    missing: BTreeMap<String, Missing>,
}

#[derive(Debug)]
struct Missing {
    /// How often it was said that there is no such task.
    answers: u8,
    /// When to ask; `None`: somebody is asking.
    ask_at: Option<Instant>,
}

impl Orphans {
    /// Looks again; the uids of tasks that are proven to be gone.
    pub fn look(&mut self, view: &View, containers: &[Container], now: Instant) -> BTreeSet<String> {
        if !view.is_consistent() {
            self.missing.clear();
            return BTreeSet::new();
        }
        let known = view.uids();
        let owners = containers.iter().filter_map(spec::owner).map(|(uid, _)| uid);
        let missing: BTreeSet<&str> = owners.filter(|uid| !known.contains(uid)).collect();
        self.missing.retain(|uid, _| missing.contains(uid.as_str()));
        for uid in missing {
            let begin = Missing {
                answers: 0,
                ask_at: Some(now + ORPHAN_PATIENCE),
            };
            self.missing.entry(uid.to_owned()).or_insert(begin);
        }
        let proven = self.missing.iter().filter(|(_, missing)| missing.answers >= ANSWERS);
        proven.map(|(uid, _)| uid.clone()).collect()
    }

    /// The uids of tasks that the API server is to be asked for now; the answer goes to [`answered`](Orphans::answered).
    pub fn ask(&mut self, now: Instant) -> Vec<String> {
        let due = self
            .missing
            .iter_mut()
            .filter(|(_, missing)| missing.answers < ANSWERS && missing.ask_at.is_some_and(|at| at <= now));
        due.map(|(uid, missing)| {
            missing.ask_at = None;
            uid.clone()
        })
        .collect()
    }

    /// What was said about a task: whether there is none; `None`: nothing that counts.
    pub fn answered(&mut self, uid: &str, absent: Option<bool>, now: Instant) {
        let Some(missing) = self.missing.get_mut(uid) else {
            return;
        };
        let wait = match absent {
            Some(true) => {
                missing.answers += 1;
                ORPHAN_PATIENCE
            }
            Some(false) => {
                missing.answers = 0;
                ORPHAN_PATIENCE
            }
            None => ASK_AGAIN,
        };
        missing.ask_at = Some(now + wait);
    }

    /// When to ask next.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        let open = self.missing.values().filter(|missing| missing.answers < ANSWERS);
        open.filter_map(|missing| missing.ask_at).filter(|at| *at > now).min()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::plan::testing::{Scene, bound, running};
    use crate::view::{Row, ViewEvent};

    fn view() -> View {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![Row::Task(Box::new(bound("t")))], 9));
        view.apply(ViewEvent::Live);
        view
    }

    fn containers() -> Vec<Container> {
        let scene = Scene::new().with("t", 1, running()).with("gone", 1, running());
        scene.containers
    }

    #[tokio::test(start_paused = true)]
    async fn a_task_that_is_missing_and_was_denied_twice_makes_an_orphan() {
        let (mut orphans, view, containers) = (Orphans::default(), view(), containers());
        let gone = "uid-gone".to_owned();
        let mut now = Instant::now();
        assert!(orphans.look(&view, &containers, now).is_empty());
        assert_eq!(
            (orphans.ask(now).len(), orphans.next(now)),
            (0, Some(now + ORPHAN_PATIENCE))
        );
        for _ in 0..2 {
            assert!(orphans.look(&view, &containers, now).is_empty());
            now += ORPHAN_PATIENCE;
            assert_eq!(orphans.ask(now), std::slice::from_ref(&gone));
            assert_eq!(orphans.ask(now), [""; 0], "once at a time");
            orphans.answered(&gone, Some(true), now);
        }
        assert_eq!(orphans.look(&view, &containers, now), [gone].into());
    }

    #[tokio::test(start_paused = true)]
    async fn an_answer_that_does_not_count_is_asked_for_again_and_one_to_the_contrary_starts_anew() {
        let (mut orphans, view, containers) = (Orphans::default(), view(), containers());
        let mut now = Instant::now();
        for (answer, wait) in [
            (None, ASK_AGAIN),
            (Some(true), ORPHAN_PATIENCE),
            (Some(false), ORPHAN_PATIENCE),
            (Some(true), ORPHAN_PATIENCE),
        ] {
            orphans.look(&view, &containers, now);
            now = orphans.next(now).expect("it is asked for");
            orphans.ask(now);
            orphans.answered("uid-gone", answer, now);
            assert!(orphans.look(&view, &containers, now).is_empty());
            assert_eq!(orphans.next(now), Some(now + wait));
        }
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_in_the_view_starts_anew_and_late_answers_do_not_count() {
        let (mut orphans, mut view, containers) = (Orphans::default(), view(), containers());
        let mut now = Instant::now();
        orphans.look(&view, &containers, now);
        now += ORPHAN_PATIENCE;
        orphans.ask(now);
        view.apply(ViewEvent::Lost);
        orphans.look(&view, &containers, now);
        orphans.answered("uid-gone", Some(true), now);
        view.apply(ViewEvent::Live);
        orphans.look(&view, &containers, now);
        assert_eq!(orphans.next(now), Some(now + ORPHAN_PATIENCE));
        view.apply(ViewEvent::Listed(Vec::new(), 3));
        assert!(orphans.look(&view, &containers, now).is_empty());
        assert_eq!(
            orphans.next(now),
            None,
            "a server that went back in time makes no orphans"
        );
    }
}
