//! The hub: everything that is in the store, in memory, as bytes, with the events that led there.
//!
//! It follows the store with one watch over everything, and serves every list and every watch of the API. It promises: what it
//! shows is always a prefix of the store's history; all changes of a revision appear at once; a watch sees every event after
//! its start, in order, or is told that it cannot; whoever waits for a revision sees it. It trusts no watch of the store: what is
//! missing, early or in the wrong order is noticed. What must never happen here: an await under the lock, a queue per watcher. Tested
//! through the routes, by comparing a client's view with the store, and on a store that lies.

mod difference;
mod kinds;
mod object;
mod ring;
mod state;

use std::collections::BTreeSet;
use std::sync::{Arc, RwLock, RwLockReadGuard};
use std::time::Duration;

use futures::StreamExt;
use muster_store::{Key, Page, Prefix, Revision, Store, WatchError, WatchEvent};
use tokio::sync::{Notify, watch};

pub use kinds::{Filter, HubKind, KindId};
pub use object::{Object, encode};
pub use ring::Event;
pub use state::{Found, Part};

use crate::limits;
use kinds::Kinds;
use ring::{Bounds, Ring};
use state::HubState;

/// How long the hub waits before it asks a store again that could not answer.
const RETRY: Duration = Duration::from_millis(100);

/// How long it waits at most, when the store keeps failing: longer would be noticed when it is back, shorter fills the log.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// Silence of the watch after which the hub asks the store whether it is behind.
const LOOK_BEHIND: Duration = Duration::from_secs(5);

/// How long somebody waits for a revision until the hub doubts its watch. Far more than a watch lags, far less than anybody's patience.
const DOUBT: Duration = Duration::from_millis(500);

/// See the module. Clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    state: RwLock<HubState>,
    reached: watch::Sender<Revision>,
    /// Somebody waits for a revision that does not come.
    doubt: Notify,
}

/// What became of an item of the watch.
enum Followed {
    /// It was the next revision.
    On,
    /// It says nothing new.
    Same,
    /// Something before this revision is missing.
    Gap(Revision),
    /// The watch is over.
    Ended,
}

/// A revision that did not come in time.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("revision {wanted} has not been seen, the newest is {newest}")]
pub struct NotReached {
    /// What was waited for.
    pub wanted: Revision,
    /// What there is.
    pub newest: Revision,
}

/// A position that has left the ring: events after it are not known any more.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("events up to revision {floor} are gone")]
pub struct Left {
    /// Everything after this revision is known.
    pub floor: Revision,
}

/// Where a watch is in the events.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Position {
    number: u64,
    /// Everything up to this revision has been looked at.
    pub revision: Revision,
}

impl Hub {
    /// Lists the store. Nothing is followed until [`follow`](Hub::follow) runs.
    pub async fn start(store: &dyn Store, kinds: Vec<HubKind>) -> Result<Hub, muster_store::Error> {
        Hub::bounded(store, kinds, limits::RING_EVENTS).await
    }

    async fn bounded(store: &dyn Store, kinds: Vec<HubKind>, events: usize) -> Result<Hub, muster_store::Error> {
        let listing = store.list(&Prefix::new(""), Page::default()).await?;
        let bounds = Bounds {
            events,
            bytes: limits::RING_BYTES,
            fresh_events: limits::RING_FRESH_EVENTS,
            fresh_bytes: limits::RING_FRESH_BYTES,
        };
        let mut state = HubState::new(Kinds::new(kinds), Ring::new(listing.revision, bounds));
        state.begin(&listing.entries, listing.revision);
        Ok(Hub {
            shared: Arc::new(Shared {
                state: RwLock::new(state),
                reached: watch::Sender::new(listing.revision),
                doubt: Notify::new(),
            }),
        })
    }

    /// Follows the store, for ever.
    ///
    /// Where a watch over everything has no gaps ([`Store::gapless`]), each batch is of the next revision. A watch that loses, swaps or
    /// anticipates batches is caught by that: the hub then watches again from the last revision that it is sure of, and
    /// lists when that does not help.
    pub async fn follow(&self, store: Arc<dyn Store>) {
        let (mut pause, gapless) = (RETRY, store.gapless());
        loop {
            let mut stream = store.watch(&Prefix::new(""), self.revision());
            let mut fresh = true;
            loop {
                let followed = tokio::select! {
                    biased;
                    item = stream.next() => match item {
                        Some(item) => self.take(item, gapless),
                        None => break,
                    },
                    () = self.shared.doubt.notified() => self.look_behind(&*store, gapless).await,
                    () = tokio::time::sleep(LOOK_BEHIND) => self.look_behind(&*store, gapless).await,
                };
                match followed {
                    Followed::On => (fresh, pause) = (false, RETRY),
                    Followed::Same => (),
                    // The store may have lost it for this watch only.
                    Followed::Gap(_) if !fresh => break,
                    Followed::Gap(revision) => {
                        tracing::warn!(revision, "the store's watch has a gap; listing again");
                        self.relist(&*store, revision).await;
                    }
                    Followed::Ended => {
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(RETRY_MAX);
                        break;
                    }
                }
            }
        }
    }

    /// Takes in what the watch says, if it is what has to come next.
    fn take(&self, item: Result<WatchEvent, WatchError>, gapless: bool) -> Followed {
        let next = self.revision() + 1;
        match item {
            // A watch may repeat what it has said.
            Ok(WatchEvent::Batch { revision, .. } | WatchEvent::Progress(revision)) if revision < next => {
                Followed::Same
            }
            Ok(WatchEvent::Batch { revision, changes }) if revision == next || !gapless => {
                let touched = self.write().apply(revision, &changes);
                self.announce(revision, &touched);
                Followed::On
            }
            Ok(WatchEvent::Progress(revision)) if !gapless => {
                let mut state = self.write();
                state.revision = state.revision.max(revision);
                drop(state);
                self.announce(revision, &BTreeSet::new());
                Followed::On
            }
            Ok(WatchEvent::Batch { revision, .. } | WatchEvent::Progress(revision)) => Followed::Gap(revision),
            Err(WatchError::Compacted { compacted }) => {
                tracing::warn!(compacted, "the store forgot what the hub has not seen");
                Followed::Gap(compacted)
            }
            Err(WatchError::Store(error)) => {
                tracing::warn!(%error, "the watch on the store ended; watching again");
                Followed::Ended
            }
        }
    }

    /// Whether the store is ahead although the watch says nothing. A store with gaps has to see to that itself.
    async fn look_behind(&self, store: &dyn Store, gapless: bool) -> Followed {
        if !gapless {
            return Followed::Same;
        }
        match store.revision().await {
            Ok(newest) if newest > self.revision() => Followed::Gap(newest),
            Ok(_) | Err(_) => Followed::Same,
        }
    }

    /// Lists until the listing has at least `least`: what is shown never goes back.
    async fn relist(&self, store: &dyn Store, least: Revision) {
        let least = least.max(self.revision());
        loop {
            match store.list(&Prefix::new(""), Page::default()).await {
                Ok(listing) if listing.revision >= least => {
                    let touched = self.write().replace(&listing.entries, listing.revision);
                    return self.announce(listing.revision, &touched);
                }
                Ok(listing) => tracing::warn!(
                    revision = listing.revision,
                    least,
                    "the store listed an earlier state than it has told of; listing again"
                ),
                Err(error) => tracing::warn!(%error, "the store could not be listed"),
            }
            tokio::time::sleep(RETRY).await;
        }
    }

    fn announce(&self, revision: Revision, touched: &BTreeSet<KindId>) {
        // Whoever waits for the revision finds that the kinds have been touched by it.
        let state = self.read();
        for kind in touched {
            state.kinds.get(*kind).touched.send_replace(revision);
        }
        drop(state);
        // A listing or a progress may be of before what is shown already.
        self.shared
            .reached
            .send_modify(|reached| *reached = revision.max(*reached));
    }

    fn read(&self) -> RwLockReadGuard<'_, HubState> {
        self.shared.state.read().expect("nothing panics under the lock")
    }

    fn write(&self) -> std::sync::RwLockWriteGuard<'_, HubState> {
        self.shared.state.write().expect("nothing panics under the lock")
    }

    /// The newest revision that it shows.
    pub fn revision(&self) -> Revision {
        self.read().revision
    }

    /// Waits until it shows `revision`.
    pub async fn reach(&self, revision: Revision, patience: Duration) -> Result<(), NotReached> {
        let mut reached = self.shared.reached.subscribe();
        for wait in [patience.min(DOUBT), patience.saturating_sub(DOUBT)] {
            let waited = tokio::time::timeout(wait, reached.wait_for(|newest| *newest >= revision)).await;
            if let Ok(Ok(_)) = waited {
                return Ok(());
            }
            self.shared.doubt.notify_one();
        }
        Err(NotReached {
            wanted: revision,
            newest: self.revision(),
        })
    }

    /// The number of the kind whose keys begin so.
    pub fn number(&self, prefix: &str) -> KindId {
        self.write().kinds.at(prefix)
    }

    /// The numbers of all its kinds.
    pub fn kind_ids(&self) -> Vec<KindId> {
        self.read().kinds.iter().map(|(id, _)| id).collect()
    }

    /// What it knows of a kind.
    pub fn kind(&self, id: KindId) -> Arc<HubKind> {
        self.read().kinds.get(id).kind.clone()
    }

    /// The kind of that `plural.group`.
    pub fn find(&self, qualified: &str) -> Option<KindId> {
        let state = self.read();
        let found = state.kinds.iter().find(|(_, known)| known.kind.qualified == qualified);
        found.map(|(id, _)| id)
    }

    /// The object at `key`.
    pub fn get(&self, key: &Key) -> Option<Arc<Object>> {
        self.read().get(key.as_str()).cloned()
    }

    /// How many objects of a kind there are.
    pub fn count(&self, kind: KindId) -> usize {
        self.read().count(kind)
    }

    /// What is there now.
    pub fn list(&self, kind: KindId, filter: &Filter, part: &Part) -> Found {
        self.read().list(kind, filter, part)
    }

    /// What was there at `revision`, which it has reached.
    pub fn list_at(&self, kind: KindId, filter: &Filter, part: &Part, revision: Revision) -> Result<Found, Left> {
        let state = self.read();
        state.list_at(kind, filter, part, revision).ok_or(Left {
            floor: state.ring.floor(),
        })
    }

    /// What is there now, of several kinds, and where a watch goes on from there: nothing lies between.
    pub fn list_and_position(&self, kinds: &[KindId], filter: &Filter) -> (Vec<Found>, Position) {
        let state = self.read();
        let found = kinds.iter().map(|kind| state.list(*kind, filter, &Part::default()));
        let position = Position {
            number: state.ring.end(),
            revision: state.revision,
        };
        (found.collect(), position)
    }

    /// The position after `revision`. A revision that is yet to come: nothing up to it will be seen.
    pub fn position(&self, revision: Revision) -> Result<Position, Left> {
        let state = self.read();
        match state.ring.after(revision).filter(|_| state.leads_from(revision)) {
            Some(number) => Ok(Position { number, revision }),
            None => Err(state.left()),
        }
    }

    /// The position for whoever has been told of an event of this kind as of `revision`, and perhaps not of all of them: writes that have one
    /// revision reach a watch together, but its connection may break in between. If there are several, they are told again. `told_as`: as of
    /// which revision it tells of an event, if it does.
    pub fn resume(
        &self,
        revision: Revision,
        kind: KindId,
        told_as: impl Fn(&Event) -> Option<Revision>,
    ) -> Result<Position, Left> {
        let after = self.position(revision)?;
        let state = self.read();
        let first = revision.checked_sub(1).and_then(|before| state.ring.after(before));
        let Some((first, slots)) = first.and_then(|first| Some((first, state.ring.from(first)?))) else {
            return Ok(after);
        };
        let of_revision = (first..).zip(slots).take_while(|(_, slot)| slot.revision == revision);
        let of_kind = of_revision.filter(|(_, slot)| slot.kind == kind);
        let mut told = of_kind
            .filter(|(_, slot)| told_as(&state.event(slot)) == Some(revision))
            .map(|(number, _)| number);
        Ok(match (told.next(), told.next()) {
            (Some(number), Some(_)) => Position {
                number,
                revision: state.before(revision),
            },
            _ => after,
        })
    }

    /// Goes on from `position`, by about `most` events or [`limits::WATCH_BYTES`], and returns those of the kinds that are `wanted`, and whether there are more to look at. Events
    /// of one revision are not torn apart.
    pub fn advance(
        &self,
        position: &mut Position,
        wanted: impl Fn(KindId) -> bool,
        most: usize,
    ) -> Result<(Vec<Event>, bool), Left> {
        let state = self.read();
        // Somebody who had seen more than was here, before it was skipped.
        if !state.leads_from(position.revision) {
            return Err(state.left());
        }
        let slots = state.ring.from(position.number).ok_or_else(|| state.left())?;
        let (start, mut found, mut looked_at, mut bytes) = (position.revision, Vec::new(), 0, 0);
        for slot in slots {
            let enough = looked_at >= most || bytes >= limits::WATCH_BYTES;
            if enough && slot.revision != position.revision {
                return Ok((found, true));
            }
            if slot.revision > start && wanted(slot.kind) {
                let event = state.event(slot);
                bytes += event.size();
                found.push(event);
            }
            position.revision = position.revision.max(slot.revision);
            position.number += 1;
            looked_at += 1;
        }
        position.revision = position.revision.max(state.revision);
        Ok((found, false))
    }

    /// Changes when events of the kind come.
    pub fn touched(&self, kind: KindId) -> watch::Receiver<Revision> {
        self.read().kinds.get(kind).touched.subscribe()
    }

    /// Changes with every revision.
    pub fn reached(&self) -> watch::Receiver<Revision> {
        self.shared.reached.subscribe()
    }

    /// How many events and how many bytes the ring holds.
    pub fn ring_size(&self) -> (usize, usize) {
        let state = self.read();
        (state.ring.len(), state.ring.bytes())
    }
}

#[cfg(test)]
mod tests;
