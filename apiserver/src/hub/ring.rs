//! The newest events, for watches to resume from and for lists of the past.
//!
//! Bounded by number and by bytes; whole revisions leave together. An event has a number that rises by one, so that a watch is a
//! position and not a queue: who is too slow finds that its position has left. Every event knows what was there before it, so the
//! past is the present with the events after it undone.

use std::collections::VecDeque;
use std::sync::Arc;

use muster_store::Revision;

use super::object::Object;

/// What became of one object.
#[derive(Clone, Debug)]
pub struct Event {
    /// When.
    pub revision: Revision,
    /// What was there before.
    pub before: Option<Arc<Object>>,
    /// What is there now; `None`: nothing.
    pub current: Option<Arc<Object>>,
}

impl Event {
    /// The object, as it is now or was last.
    pub fn object(&self) -> &Arc<Object> {
        self.current
            .as_ref()
            .or(self.before.as_ref())
            .expect("something was there before or is there now")
    }
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ring {
    events: VecDeque<Event>,
    /// The number of the oldest event that is here, or of the next one.
    first: u64,
    /// Everything after this revision is here.
    floor: Revision,
    bytes: usize,
    most_events: usize,
    most_bytes: usize,
}

/// What an event costs besides the bytes of its object: itself, the object's strings and counts.
const EVENT_OVERHEAD: usize = 400;

fn cost(event: &Event) -> usize {
    EVENT_OVERHEAD + event.current.as_ref().map_or(0, |object| object.size())
}

impl Ring {
    pub(super) fn new(floor: Revision, most_events: usize, most_bytes: usize) -> Ring {
        Ring {
            events: VecDeque::new(),
            first: 0,
            floor,
            bytes: 0,
            most_events,
            most_bytes,
        }
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.events.len()
    }

    /// The number that the next event will have.
    pub(super) fn end(&self) -> u64 {
        self.first + self.events.len() as u64
    }

    /// The number of the first event after `revision`; `None`: some of them have left.
    pub(super) fn after(&self, revision: Revision) -> Option<u64> {
        (revision >= self.floor)
            .then(|| self.first + self.events.partition_point(|event| event.revision <= revision) as u64)
    }

    /// The events from this number on; `None`: it has left.
    pub(super) fn from(&self, number: u64) -> Option<impl DoubleEndedIterator<Item = &Event>> {
        let skip = usize::try_from(number.checked_sub(self.first)?).ok()?;
        (skip <= self.events.len()).then(|| self.events.range(skip..))
    }

    /// Adds all events of one revision.
    pub(super) fn push(&mut self, events: Vec<Event>) {
        for event in events {
            self.bytes += cost(&event);
            self.events.push_back(event);
        }
        while self.events.len() > self.most_events || self.bytes > self.most_bytes {
            let Some(oldest) = self.events.front().map(|event| event.revision) else {
                return;
            };
            while self.events.front().is_some_and(|event| event.revision == oldest) {
                self.pop();
            }
            self.floor = oldest;
        }
    }

    fn pop(&mut self) {
        if let Some(event) = self.events.pop_front() {
            self.bytes -= cost(&event);
            self.first += 1;
        }
    }
}

#[cfg(test)]
mod tests {
    use muster_store::{Entry, Key};

    use super::*;
    use crate::hub::kinds::{HubKind, KindId};
    use crate::hub::object;
    use crate::kinds;

    fn event(revision: Revision) -> Event {
        let resource = kinds::resources()
            .into_iter()
            .find(|resource| resource.plural == "configmaps")
            .unwrap();
        let object = serde_json::json!({"metadata": {"name": "c"}})
            .as_object()
            .cloned()
            .unwrap();
        let entry = Entry {
            key: Key::new("objects/core/configmaps/d/c"),
            value: object::encode("v1", "ConfigMap", object),
            create_revision: 1,
            mod_revision: revision,
            lease: None,
        };
        let current = Object::new(KindId(0), &HubKind::new(&resource), &entry).map(Arc::new);
        Event {
            revision,
            before: None,
            current,
        }
    }

    #[test]
    fn whole_revisions_leave_and_positions_with_them() {
        let mut ring = Ring::new(10, 4, usize::MAX);
        assert_eq!((ring.after(10), ring.after(9)), (Some(0), None));
        let start = ring.end();
        ring.push(vec![event(11), event(11)]);
        ring.push(vec![event(12)]);
        ring.push(vec![event(13)]);
        assert_eq!(ring.from(start).map(Iterator::count), Some(4));
        assert_eq!(ring.after(11), Some(2));
        ring.push(vec![event(14)]);
        assert_eq!(
            (ring.len(), ring.floor()),
            (3, 11),
            "both events of revision 11 have left"
        );
        assert!(ring.from(start).is_none() && ring.from(1).is_none());
        assert_eq!((ring.after(10), ring.after(11)), (None, Some(2)));
        assert_eq!(ring.from(ring.end()).map(Iterator::count), Some(0));
        assert!(ring.from(ring.end() + 1).is_none());
    }

    #[test]
    fn bytes_are_bounded_too() {
        let one = cost(&event(1));
        let mut ring = Ring::new(0, usize::MAX, 3 * one);
        for revision in 1..=10 {
            ring.push(vec![event(revision)]);
        }
        assert_eq!((ring.len(), ring.bytes(), ring.floor()), (3, 3 * one, 7));
        ring.push((0..5).map(|_| event(11)).collect());
        assert_eq!(
            (ring.len(), ring.bytes(), ring.floor()),
            (0, 0, 11),
            "one revision that is too much is not kept at all"
        );
    }
}
