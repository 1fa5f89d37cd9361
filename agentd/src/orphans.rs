//! Containers whose tasks do not exist any more. Pure.
//!
//! A container is taken for an orphan only after its task was missing from a consistent view for [`ORPHAN_PATIENCE`] without a gap. The
//! clock is in memory: a restart of the agent starts it anew, which only makes it more patient.

use std::collections::{BTreeMap, BTreeSet};

use muster_runtime::Container;
use tokio::time::Instant;

use crate::limits::ORPHAN_PATIENCE;
use crate::spec;
use crate::view::View;

/// Since when which tasks are missing.
#[derive(Debug, Default)]
pub struct Orphans {
    missing: BTreeMap<String, Instant>,
}

impl Orphans {
    /// Looks again; the uids of tasks that were missing for long enough.
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
            self.missing.entry(uid.to_owned()).or_insert(now);
        }
        let ripe = self
            .missing
            .iter()
            .filter(|(_, since)| **since + ORPHAN_PATIENCE <= now);
        ripe.map(|(uid, _)| uid.clone()).collect()
    }

    /// When the next one will have been missing for long enough.
    pub fn next(&self, now: Instant) -> Option<Instant> {
        self.missing
            .values()
            .map(|since| *since + ORPHAN_PATIENCE)
            .filter(|at| *at > now)
            .min()
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::plan::testing::{Scene, bound, running};
    use crate::view::{Row, ViewEvent};

    fn view() -> View {
        let mut view = View::default();
        view.apply(ViewEvent::Listed(vec![Row::Task(Box::new(bound("t")))], 9));
        view.apply(ViewEvent::Live);
        view
    }

    #[tokio::test(start_paused = true)]
    async fn a_missing_task_makes_an_orphan_after_a_minute_and_not_before() {
        let (mut orphans, view) = (Orphans::default(), view());
        let containers = Scene::new()
            .with("t", 1, running())
            .with("gone", 1, running())
            .containers;
        let start = Instant::now();
        assert!(orphans.look(&view, &containers, start).is_empty());
        assert_eq!(orphans.next(start), Some(start + ORPHAN_PATIENCE));
        assert!(
            orphans
                .look(&view, &containers, start + Duration::from_secs(59))
                .is_empty()
        );
        let ripe = orphans.look(&view, &containers, start + Duration::from_secs(60));
        assert_eq!(ripe, ["uid-gone".to_owned()].into());
    }

    #[tokio::test(start_paused = true)]
    async fn a_gap_in_the_view_starts_the_minute_anew() {
        let (mut orphans, mut view) = (Orphans::default(), view());
        let containers = Scene::new().with("gone", 1, running()).containers;
        let start = Instant::now();
        orphans.look(&view, &containers, start);
        view.apply(ViewEvent::Lost);
        assert!(
            orphans
                .look(&view, &containers, start + Duration::from_secs(59))
                .is_empty()
        );
        view.apply(ViewEvent::Live);
        assert!(
            orphans
                .look(&view, &containers, start + Duration::from_secs(61))
                .is_empty()
        );
        assert!(
            !orphans
                .look(&view, &containers, start + Duration::from_secs(121))
                .is_empty()
        );
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_that_went_back_in_time_makes_no_orphans() {
        let (mut orphans, mut view) = (Orphans::default(), view());
        let containers = Scene::new().with("t", 1, running()).containers;
        view.apply(ViewEvent::Listed(Vec::new(), 3));
        let start = Instant::now();
        orphans.look(&view, &containers, start);
        assert!(
            orphans
                .look(&view, &containers, start + Duration::from_secs(600))
                .is_empty()
        );
    }
}
