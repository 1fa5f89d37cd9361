//! The hub: everything that is in the store, in memory, as bytes, with the events that led there.
//!
//! It follows the store with one watch over everything, and serves every list and every watch of the API. It promises: what it
//! shows is always a prefix of the store's history; all changes of a revision appear at once; a watch sees every event after
//! its start, in order, or is told that it cannot; whoever waits for a revision sees it. What must never happen here: an await
//! under the lock, a queue per watcher. Tested through the routes, and by comparing a client's view with the store.

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
use tokio::sync::watch;

pub use kinds::{Filter, HubKind, KindId};
pub use object::{Object, encode};
pub use ring::Event;
pub use state::{Found, Part};

use crate::limits;
use ring::{Bounds, Ring};
use state::HubState;

/// How long the hub waits before it asks a store again that could not answer.
const RETRY: Duration = Duration::from_millis(100);

/// How long it waits at most, when the store keeps failing: longer would be noticed when it is back, shorter fills the log.
const RETRY_MAX: Duration = Duration::from_secs(1);

/// See the module. Clones are the same hub.
#[derive(Clone)]
pub struct Hub {
    shared: Arc<Shared>,
}

struct Shared {
    kinds: Vec<HubKind>,
    state: RwLock<HubState>,
    reached: watch::Sender<Revision>,
    touched: Vec<watch::Sender<Revision>>,
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
        let mut state = HubState::new(kinds.len(), Ring::new(listing.revision, bounds));
        state.begin(&kinds, &listing.entries, listing.revision);
        let touched = kinds.iter().map(|_| watch::Sender::new(listing.revision)).collect();
        Ok(Hub {
            shared: Arc::new(Shared {
                kinds,
                state: RwLock::new(state),
                reached: watch::Sender::new(listing.revision),
                touched,
            }),
        })
    }

    /// Follows the store, for ever.
    pub async fn follow(&self, store: Arc<dyn Store>) {
        let mut pause = RETRY;
        loop {
            let mut stream = store.watch(&Prefix::new(""), self.revision());
            while let Some(item) = stream.next().await {
                if item.is_ok() {
                    pause = RETRY;
                }
                match item {
                    // A watch may repeat what it has said.
                    Ok(WatchEvent::Batch { revision, .. }) if revision <= self.revision() => (),
                    Ok(WatchEvent::Batch { revision, changes }) => {
                        let touched = self.write().apply(&self.shared.kinds, revision, &changes);
                        self.announce(revision, &touched);
                    }
                    Ok(WatchEvent::Progress(revision)) => {
                        let mut state = self.write();
                        state.revision = state.revision.max(revision);
                        drop(state);
                        self.announce(revision, &BTreeSet::new());
                    }
                    Err(WatchError::Compacted { compacted }) => {
                        tracing::warn!(compacted, "the store forgot what the hub has not seen; listing again");
                        self.relist(&*store).await;
                    }
                    Err(WatchError::Store(error)) => {
                        tracing::warn!(%error, "the watch on the store ended; watching again");
                        tokio::time::sleep(pause).await;
                        pause = (2 * pause).min(RETRY_MAX);
                    }
                }
            }
        }
    }

    async fn relist(&self, store: &dyn Store) {
        match store.list(&Prefix::new(""), Page::default()).await {
            Ok(listing) => {
                let touched = self
                    .write()
                    .replace(&self.shared.kinds, &listing.entries, listing.revision);
                self.announce(listing.revision, &touched);
            }
            Err(error) => {
                tracing::warn!(%error, "the store could not be listed");
                tokio::time::sleep(RETRY).await;
            }
        }
    }

    fn announce(&self, revision: Revision, touched: &BTreeSet<KindId>) {
        // A listing or a progress may be of before what is shown already.
        self.shared
            .reached
            .send_modify(|reached| *reached = revision.max(*reached));
        for kind in touched {
            self.shared.touched[kind.index()].send_replace(revision);
        }
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
        let waited = tokio::time::timeout(patience, reached.wait_for(|newest| *newest >= revision)).await;
        match waited {
            Ok(Ok(_)) => Ok(()),
            Ok(Err(_)) | Err(_) => Err(NotReached {
                wanted: revision,
                newest: self.revision(),
            }),
        }
    }

    /// Its kinds.
    pub fn kinds(&self) -> &[HubKind] {
        &self.shared.kinds
    }

    /// What it knows of a kind.
    pub fn kind(&self, id: KindId) -> &HubKind {
        &self.shared.kinds[id.index()]
    }

    /// The kind of that `plural.group`.
    pub fn find(&self, qualified: &str) -> Option<KindId> {
        let index = self.shared.kinds.iter().position(|kind| kind.qualified == qualified)?;
        u16::try_from(index).ok().map(KindId)
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
        self.read().list(kind, self.kind(kind), filter, part)
    }

    /// What was there at `revision`, which it has reached.
    pub fn list_at(&self, kind: KindId, filter: &Filter, part: &Part, revision: Revision) -> Result<Found, Left> {
        let state = self.read();
        state.list_at(self.kind(kind), filter, part, revision).ok_or(Left {
            floor: state.ring.floor(),
        })
    }

    /// What is there now, of several kinds, and where a watch goes on from there: nothing lies between.
    pub fn list_and_position(&self, kinds: &[KindId], filter: &Filter) -> (Vec<Found>, Position) {
        let state = self.read();
        let found = kinds
            .iter()
            .map(|kind| state.list(*kind, self.kind(*kind), filter, &Part::default()));
        let position = Position {
            number: state.ring.end(),
            revision: state.revision,
        };
        (found.collect(), position)
    }

    /// The position after `revision`. A revision that is yet to come: nothing up to it will be seen.
    pub fn position(&self, revision: Revision) -> Result<Position, Left> {
        let state = self.read();
        match state.ring.after(revision) {
            Some(number) => Ok(Position { number, revision }),
            None => Err(Left {
                floor: state.ring.floor(),
            }),
        }
    }

    /// Goes on from `position`, by about `most` events or [`limits::WATCH_BYTES`], and returns those of `kinds`, and whether there are more to look at. Events
    /// of one revision are not torn apart.
    pub fn advance(&self, position: &mut Position, kinds: &[KindId], most: usize) -> Result<(Vec<Event>, bool), Left> {
        let state = self.read();
        let slots = state.ring.from(position.number).ok_or(Left {
            floor: state.ring.floor(),
        })?;
        let (start, mut found, mut looked_at, mut bytes) = (position.revision, Vec::new(), 0, 0);
        for slot in slots {
            let enough = looked_at >= most || bytes >= limits::WATCH_BYTES;
            if enough && slot.revision != position.revision {
                return Ok((found, true));
            }
            if slot.revision > start && kinds.contains(&slot.kind) {
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
        self.shared.touched[kind.index()].subscribe()
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
mod tests {
    use muster_store::{Compare, MemoryStore, Op, Txn};
    use serde_json::json;

    use super::*;
    use crate::resource::Resource;

    const NAMES: [&str; 3] = ["a", "b", "c"];

    fn config_maps() -> Resource {
        let found = crate::kinds::resources()
            .into_iter()
            .find(|resource| resource.plural == "configmaps");
        found.expect("config maps are served")
    }

    async fn write(store: &dyn Store, name: &str, on: bool) -> Revision {
        let key = crate::keys::object(&config_maps(), "d", name);
        let entry = store.get(&key).await.unwrap();
        let object = json!({"metadata": {"name": name, "labels": {"on": on.to_string()}}});
        let object = object.as_object().cloned().unwrap();
        let txn = Txn {
            compares: vec![Compare::modified(
                key.clone(),
                entry.map_or(0, |entry| entry.mod_revision),
            )],
            ops: vec![Op::put(key, encode("v1", "ConfigMap", object))],
        };
        store.commit(txn).await.unwrap()
    }

    async fn started(events: usize) -> (Arc<dyn Store>, Hub) {
        let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let hub = Hub::bounded(&*store, vec![HubKind::new(&config_maps())], events)
            .await
            .unwrap();
        let (following, source) = (hub.clone(), store.clone());
        tokio::spawn(async move { following.follow(source).await });
        (store, hub)
    }

    #[tokio::test(start_paused = true)]
    async fn who_is_too_slow_is_told_so() {
        let (store, hub) = started(4).await;
        let (_, mut slow) = hub.list_and_position(&[], &Filter::all(None));
        let mut quick = slow;
        let mut newest = 0;
        for _ in 0..5 {
            newest = write(&*store, "a", true).await;
            hub.reach(newest, Duration::from_secs(1)).await.unwrap();
            let (events, more) = hub.advance(&mut quick, &[KindId(0)], 10).unwrap();
            assert_eq!((events.len(), more, quick.revision), (1, false, newest));
        }
        assert_eq!(
            hub.advance(&mut slow, &[KindId(0)], 10).unwrap_err(),
            Left { floor: newest - 4 }
        );
        assert!(hub.position(newest - 4).is_ok() && hub.position(newest - 5).is_err());
    }

    #[tokio::test(start_paused = true)]
    async fn the_past_is_the_present_with_its_events_undone() {
        let (store, hub) = started(usize::MAX).await;
        let mut past = Vec::new();
        let mut state = std::collections::BTreeMap::new();
        for step in 0..30 {
            let name = NAMES[step % 3];
            let key = crate::keys::object(&config_maps(), "d", name);
            let revision = if step % 7 == 6 && state.contains_key(name) {
                let txn = Txn {
                    compares: vec![Compare::modified(key.clone(), state[name])],
                    ops: vec![Op::delete(key)],
                };
                state.remove(name);
                store.commit(txn).await.unwrap()
            } else {
                let revision = write(&*store, name, step % 2 == 0).await;
                state.insert(name, revision);
                revision
            };
            past.push((revision, state.clone()));
        }
        hub.reach(past.last().unwrap().0, Duration::from_secs(1)).await.unwrap();
        for (revision, state) in past {
            let found = hub
                .list_at(KindId(0), &Filter::all(Some("d")), &Part::default(), revision)
                .unwrap();
            let found: std::collections::BTreeMap<&str, Revision> = found
                .objects
                .iter()
                .map(|object| (object.name(), object.revision))
                .collect();
            assert_eq!(found, state, "at {revision}");
        }
    }

    #[tokio::test(start_paused = true)]
    async fn nobody_waits_for_ever() {
        let (store, hub) = started(4).await;
        let newest = write(&*store, "a", true).await;
        hub.reach(newest, Duration::from_secs(1)).await.unwrap();
        let error = hub.reach(newest + 1, Duration::from_secs(1)).await.unwrap_err();
        assert_eq!(
            error,
            NotReached {
                wanted: newest + 1,
                newest
            }
        );
    }
}
