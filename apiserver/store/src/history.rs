//! The newest batches, kept in memory for watches.
//!
//! The tail is bounded by revisions and by bytes. It has no gaps: the batch of revision `floor + 1 + i` is at index `i`.
//! Values are shared with the current entries, so only values that were overwritten or deleted cost memory of their own.

use std::collections::VecDeque;
use std::sync::Arc;

use crate::Revision;
use crate::core::Batch;

/// How much history is kept in memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Bounds {
    pub(crate) revisions: usize,
    pub(crate) bytes: usize,
}

/// How many batches a watch takes at once: enough that taking the lock costs little, few enough that a watch that is
/// never polled again keeps little alive.
pub(crate) const CHUNK: usize = 64;

/// See the module.
#[derive(Debug)]
pub(crate) struct History {
    batches: VecDeque<Arc<Batch>>,
    bytes: usize,
    floor: Revision,
    bounds: Bounds,
}

impl History {
    /// An empty history of a store at revision `floor`.
    pub(crate) fn new(floor: Revision, bounds: Bounds) -> History {
        History {
            batches: VecDeque::new(),
            bytes: 0,
            floor,
            bounds,
        }
    }

    /// Everything after this revision is here.
    pub(crate) fn floor(&self) -> Revision {
        self.floor
    }

    /// Adds the next batch; the oldest ones make room.
    pub(crate) fn push(&mut self, batch: Arc<Batch>) {
        let expected = self.floor + self.batches.len() as u64 + 1;
        assert_eq!(batch.revision, expected, "history has no gaps");
        self.bytes += batch.cost();
        self.batches.push_back(batch);
        while self.batches.len() > self.bounds.revisions || (self.bytes > self.bounds.bytes && self.batches.len() > 1) {
            self.pop();
        }
    }

    /// Forgets everything up to and including `revision`.
    pub(crate) fn forget(&mut self, revision: Revision) {
        while self.floor < revision && self.pop() {}
    }

    fn pop(&mut self) -> bool {
        let Some(batch) = self.batches.pop_front() else {
            return false;
        };
        self.bytes -= batch.cost();
        self.floor = batch.revision;
        true
    }

    /// Up to [`CHUNK`] batches after revision `after`, oldest first; `None` if some of them are not here any more.
    pub(crate) fn since(&self, after: Revision) -> Option<Vec<Arc<Batch>>> {
        let skip = usize::try_from(after.checked_sub(self.floor)?).unwrap_or(usize::MAX);
        let start = skip.min(self.batches.len());
        Some(self.batches.range(start..).take(CHUNK).cloned().collect())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::types::{Change, Key};

    fn history(bounds: Bounds, batches: u64) -> History {
        let mut history = History::new(0, bounds);
        for revision in 1..=batches {
            let changes = vec![Change {
                key: Key::new("k"),
                current: None,
            }];
            history.push(Arc::new(Batch { revision, changes }));
        }
        history
    }

    fn revisions(history: &History, after: Revision) -> Option<Vec<Revision>> {
        history
            .since(after)
            .map(|batches| batches.iter().map(|batch| batch.revision).collect())
    }

    #[test]
    fn oldest_batches_make_room_for_revisions_and_for_bytes() {
        let by_count = history(
            Bounds {
                revisions: 3,
                bytes: usize::MAX,
            },
            10,
        );
        assert_eq!(by_count.floor(), 7);
        let by_bytes = history(
            Bounds {
                revisions: usize::MAX,
                bytes: 500,
            },
            10,
        );
        assert_eq!(by_bytes.floor(), 8, "two batches of 201 bytes fit into 500");
    }

    #[test]
    fn since_answers_exactly_what_comes_after() {
        let history = history(
            Bounds {
                revisions: 3,
                bytes: usize::MAX,
            },
            10,
        );
        assert_eq!(revisions(&history, 6), None);
        assert_eq!(revisions(&history, 7), Some(vec![8, 9, 10]));
        assert_eq!(revisions(&history, 9), Some(vec![10]));
        assert_eq!(revisions(&history, 10), Some(vec![]));
        assert_eq!(revisions(&history, 99), Some(vec![]));
    }

    #[test]
    fn forgetting_stops_at_the_newest_batch() {
        let mut history = history(
            Bounds {
                revisions: 10,
                bytes: usize::MAX,
            },
            10,
        );
        history.forget(4);
        assert_eq!(
            (revisions(&history, 3), revisions(&history, 8)),
            (None, Some(vec![9, 10]))
        );
        history.forget(10);
        assert_eq!((history.floor(), history.bytes), (10, 0));
    }
}
