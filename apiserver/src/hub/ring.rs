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
