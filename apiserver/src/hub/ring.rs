//! The newest events, for watches to resume from and for lists of the past.
//!
//! Bounded by number and by bytes; whole revisions leave together. An event has a number that rises by one, so that a watch is a
//! position and not a queue: who is too slow finds that its position has left. Every event knows what was there before it, so the
//! past is the present with the events after it undone.
//!
//! Almost every reader wants only the newest events, so those hold the very objects that they are about. Older ones hold what was there
//! before them as the difference from what came ([`difference`]), which is a tenth of it; what came is there before the
//! next event of the same object, or now. At most [`RUN`] differences have to be read for one version: every so often one is
//! kept that needs no other. It promises: what is read is what was pushed, whatever has been packed or has left since. What must never
//! happen here: an object that is kept alive by an event that is packed. Tested by comparison with histories that are kept whole.

use std::collections::VecDeque;
use std::num::NonZeroU64;
use std::sync::Arc;

use muster_store::{Key, Revision};

use super::difference;
use super::kinds::KindId;
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

    /// About how many bytes it takes to tell of it.
    pub(super) fn size(&self) -> usize {
        self.object().size()
    }
}

/// The number of an event; rises by one.
pub(super) type Number = NonZeroU64;

/// How much a ring holds.
#[derive(Clone, Copy, Debug)]
pub(super) struct Bounds {
    /// Events.
    pub(super) events: usize,
    /// Bytes, all told.
    pub(super) bytes: usize,
    /// Events that hold objects.
    pub(super) fresh_events: usize,
    /// Bytes of those objects.
    pub(super) fresh_bytes: usize,
}

/// See the module.
#[derive(Debug)]
pub(super) struct Ring {
    slots: VecDeque<Slot>,
    /// The number of the oldest event that is here, or of the next one.
    first: u64,
    /// The number of the oldest event that holds objects, or of the next one.
    fresh: u64,
    /// Everything after this revision is here.
    floor: Revision,
    bytes: usize,
    fresh_bytes: usize,
    bounds: Bounds,
}

/// An event.
#[derive(Debug)]
pub(super) struct Slot {
    /// Of which object.
    pub(super) key: Key,
    /// When.
    pub(super) revision: Revision,
    /// The next event of the same object; `None`: what came is there now.
    next: Option<Number>,
    versions: Versions,
    /// Of which kind.
    pub(super) kind: KindId,
    /// How many older differences may have to be read through what was there before this.
    run: u8,
    /// Whether nothing came.
    deletes: bool,
}

#[derive(Debug)]
enum Versions {
    /// The objects themselves.
    Fresh {
        before: Option<Arc<Object>>,
        current: Option<Arc<Object>>,
    },
    /// Nothing was there before.
    Nothing,
    /// What was there before.
    Whole(Box<[u8]>),
    /// What was there before, as the difference from what came.
    Difference(Box<[u8]>),
}

/// How many differences are read for one version, at most. Each costs less than a microsecond, and one in so many versions is whole.
const RUN: u8 = 16;

/// What an object costs besides its text: itself (90 bytes), what it is selected by (about 60), counts, headers, rounding.
const OBJECT_OVERHEAD: usize = 220;

/// What a slot costs besides its versions: itself, and the header and rounding of one allocation.
const SLOT_OVERHEAD: usize = size_of::<Slot>() + 16;

impl Slot {
    /// What it holds that nothing else does: what was there before. What came is there now, or before another event.
    fn cost(&self) -> usize {
        SLOT_OVERHEAD
            + match &self.versions {
                Versions::Fresh { before, .. } => before.as_ref().map_or(0, |object| OBJECT_OVERHEAD + object.size()),
                Versions::Nothing => 0,
                Versions::Whole(bytes) | Versions::Difference(bytes) => bytes.len(),
            }
    }
}

impl Ring {
    pub(super) fn new(floor: Revision, bounds: Bounds) -> Ring {
        Ring {
            slots: VecDeque::new(),
            first: 1,
            fresh: 1,
            floor,
            bytes: 0,
            fresh_bytes: 0,
            bounds,
        }
    }

    pub(super) fn floor(&self) -> Revision {
        self.floor
    }

    pub(super) fn bytes(&self) -> usize {
        self.bytes
    }

    pub(super) fn len(&self) -> usize {
        self.slots.len()
    }

    /// The number that the next event will have.
    pub(super) fn end(&self) -> u64 {
        self.first + self.slots.len() as u64
    }

    /// The number of the first event after `revision`; `None`: some of them have left.
    pub(super) fn after(&self, revision: Revision) -> Option<u64> {
        (revision >= self.floor)
            .then(|| self.first + self.slots.partition_point(|slot| slot.revision <= revision) as u64)
    }

    /// The events from this number on; `None`: it has left.
    pub(super) fn from(&self, number: u64) -> Option<impl Iterator<Item = &Slot>> {
        let skip = usize::try_from(number.checked_sub(self.first)?).ok()?;
        (skip <= self.slots.len()).then(|| self.slots.range(skip..))
    }

    /// The event of a slot. `now` has to give what is there now, as of the newest event.
    pub(super) fn event<'a>(&self, slot: &Slot, now: &impl Fn(&Key) -> Option<&'a Arc<Object>>) -> Event {
        Event {
            revision: slot.revision,
            before: self.before(slot, now),
            current: self.current(slot, now),
        }
    }

    /// What was there before the event of a slot; `now` as above.
    pub(super) fn before<'a>(
        &self,
        slot: &Slot,
        now: &impl Fn(&Key) -> Option<&'a Arc<Object>>,
    ) -> Option<Arc<Object>> {
        let (packed, newer) = match &slot.versions {
            Versions::Fresh { before, .. } => return before.clone(),
            Versions::Nothing => return None,
            Versions::Whole(packed) => (packed, None),
            Versions::Difference(packed) => (packed, self.current(slot, now)),
        };
        let object = difference::unpack(&slot.key, slot.kind, packed, newer.as_deref());
        Some(Arc::new(object))
    }

    fn current<'a>(&self, slot: &Slot, now: &impl Fn(&Key) -> Option<&'a Arc<Object>>) -> Option<Arc<Object>> {
        match (&slot.versions, slot.next) {
            (Versions::Fresh { current, .. }, _) => current.clone(),
            _ if slot.deletes => None,
            (_, None) => now(&slot.key).cloned(),
            (_, Some(next)) => self.before(self.slot(next)?, now),
        }
    }

    fn slot(&self, number: Number) -> Option<&Slot> {
        let index = usize::try_from(number.get().checked_sub(self.first)?).ok()?;
        self.slots.get(index)
    }

    fn slot_mut(&mut self, number: Number) -> Option<&mut Slot> {
        let index = usize::try_from(number.get().checked_sub(self.first)?).ok()?;
        self.slots.get_mut(index)
    }

    /// Adds an event; `last` is the number of the one before of the same object, if what that one brought is what this one found.
    /// Nothing leaves before [`trim`](Ring::trim), so that all events of a revision leave together.
    pub(super) fn push(&mut self, event: Event, last: Option<Number>) -> Number {
        let number = Number::new(self.end()).expect("numbers begin at one");
        let mut run = 0;
        if let Some(last) = last.and_then(|last| self.slot_mut(last)) {
            last.next = Some(number);
            if matches!(last.versions, Versions::Difference(_)) {
                run = last.run + 1;
            }
        }
        let object = event.object();
        let slot = Slot {
            key: object.key.clone(),
            kind: object.kind,
            revision: event.revision,
            next: None,
            run,
            deletes: event.current.is_none(),
            versions: Versions::Fresh {
                before: event.before,
                current: event.current,
            },
        };
        self.bytes += slot.cost();
        self.fresh_bytes += slot.cost();
        self.slots.push_back(slot);
        number
    }

    /// Packs what is not quite new, and lets go of what is too much.
    pub(super) fn trim(&mut self) {
        while self.fresh < self.end()
            && (self.end() - self.fresh > self.bounds.fresh_events as u64 || self.fresh_bytes > self.bounds.fresh_bytes)
        {
            self.pack();
        }
        while self.slots.len() > self.bounds.events || self.bytes > self.bounds.bytes {
            let Some(oldest) = self.slots.front().map(|slot| slot.revision) else {
                return;
            };
            while self.slots.front().is_some_and(|slot| slot.revision == oldest) {
                self.pop();
            }
            self.floor = oldest;
        }
    }

    /// Forgets everything: there is nothing to be known up to `floor`.
    pub(super) fn clear(&mut self, floor: Revision) {
        while !self.slots.is_empty() {
            self.pop();
        }
        self.floor = floor;
    }

    /// Packs the oldest event that is not packed.
    fn pack(&mut self) {
        let Some(slot) = Number::new(self.fresh).and_then(|number| self.slot_mut(number)) else {
            return;
        };
        let fresh_cost = slot.cost();
        let (mut chained, next, run) = (false, slot.next, slot.run);
        if let Versions::Fresh { before, current } = std::mem::replace(&mut slot.versions, Versions::Nothing) {
            slot.versions = match (before, current) {
                (None, _) => Versions::Nothing,
                (Some(before), Some(current)) if run < RUN && difference::is_small(&before, &current) => {
                    chained = true;
                    Versions::Difference(difference::pack(&before, Some(&current)))
                }
                (Some(before), _) => Versions::Whole(difference::pack(&before, None)),
            };
        }
        let cost = slot.cost();
        if chained && let Some(next) = next.and_then(|next| self.slot_mut(next)) {
            next.run = run + 1;
        }
        self.bytes = self.bytes - fresh_cost + cost;
        self.fresh_bytes -= fresh_cost;
        self.fresh += 1;
    }

    fn pop(&mut self) {
        if let Some(slot) = self.slots.pop_front() {
            self.bytes -= slot.cost();
            self.first += 1;
            if self.fresh < self.first {
                self.fresh = self.first;
                self.fresh_bytes -= slot.cost();
            }
        }
    }
}

#[cfg(test)]
mod tests;
