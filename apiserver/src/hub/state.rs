//! The hub's state: what is there now, what happened lately, and the indexes.
//!
//! Synchronous and without clock; the hub puts a lock around it. Every change goes through [`HubState::apply`], one call for each
//! revision, so that nobody sees half of one.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::sync::Arc;

use muster_store::{Change, Entry, Key, Revision};

use super::Left;
use super::kinds::{Filter, HubKind, KindId, Kinds};
use super::object::Object;
use super::ring::{Event, Number, Ring, Slot};
use crate::keys;

/// The objects that a list asked for.
#[derive(Debug)]
pub struct Found {
    /// In the order of their keys.
    pub objects: Vec<Arc<Object>>,
    /// As of this revision.
    pub revision: Revision,
    /// How many more there are; `None`: none. Unknown counts as zero.
    pub more: Option<usize>,
}

/// Which part of a list is wanted.
#[derive(Clone, Debug, Default)]
pub struct Part {
    /// Begin behind the object of this key.
    pub after: Option<Key>,
    /// So many at most.
    pub limit: Option<usize>,
}

/// An object, and the event that brought it.
#[derive(Debug)]
struct Held {
    object: Arc<Object>,
    event: Number,
}

#[derive(Debug)]
pub(super) struct HubState {
    objects: BTreeMap<Key, Held>,
    index: BTreeMap<(KindId, usize, Box<str>), BTreeSet<Key>>,
    pub(super) kinds: Kinds,
    counts: BTreeMap<KindId, usize>,
    pub(super) ring: Ring,
    /// Lists of the past are exact from here on.
    exact_from: Revision,
    /// Between which revisions, both excluded, it does not know what was there: the store was listed anew, and what came and went in between is in
    /// no event.
    skipped: Vec<(Revision, Revision)>,
    pub(super) revision: Revision,
}

impl HubState {
    pub(super) fn new(kinds: Kinds, ring: Ring) -> HubState {
        HubState {
            objects: BTreeMap::new(),
            index: BTreeMap::new(),
            kinds,
            counts: BTreeMap::new(),
            ring,
            exact_from: 0,
            skipped: Vec::new(),
            revision: 0,
        }
    }

    pub(super) fn get(&self, key: &str) -> Option<&Arc<Object>> {
        self.objects.get(key).map(|held| &held.object)
    }

    /// The event of a slot of the ring.
    pub(super) fn event(&self, slot: &Slot) -> Event {
        self.ring.event(slot, &|key| self.get(key.as_str()))
    }

    pub(super) fn count(&self, kind: KindId) -> usize {
        self.counts.get(&kind).copied().unwrap_or(0)
    }

    /// Everything as of `revision`, as the store listed it, in place of what was there. Differences become events of that one
    /// revision; returns the kinds they touch.
    pub(super) fn replace(&mut self, entries: &[Entry], revision: Revision) -> BTreeSet<KindId> {
        let mut changes: Vec<Change> = entries
            .iter()
            .filter(|entry| self.get(entry.key.as_str()).map(|object| object.revision) != Some(entry.mod_revision))
            .map(|entry| Change {
                key: entry.key.clone(),
                current: Some(entry.clone()),
            })
            .collect();
        let listed: BTreeSet<&str> = entries.iter().map(|entry| entry.key.as_str()).collect();
        let gone = self.objects.keys().filter(|key| !listed.contains(key.as_str()));
        changes.extend(gone.map(|key| Change {
            key: key.clone(),
            current: None,
        }));
        // Versions rise on every watch, deletions last: they carry the revision of the listing.
        changes.sort_by_key(|change| change.current.as_ref().map_or(revision, |entry| entry.mod_revision));
        self.exact_from = revision;
        if revision > self.revision + 1 {
            self.skipped.push((self.revision, revision));
            let floor = self.ring.floor();
            self.skipped.retain(|(_, to)| *to > floor);
        }
        self.apply(revision, &changes)
    }

    /// Begins with what the store listed; there is no past.
    pub(super) fn begin(&mut self, entries: &[Entry], revision: Revision) {
        self.replace(entries, revision);
        self.ring.clear(revision);
        self.skipped.clear();
    }

    /// All changes of one revision; returns the kinds they touch.
    pub(super) fn apply(&mut self, revision: Revision, changes: &[Change]) -> BTreeSet<KindId> {
        let mut touched = BTreeSet::new();
        for change in changes {
            let Some(id) = self.kinds.of(&change.key) else {
                continue;
            };
            let kind = self.kinds.get(id).kind.clone();
            let current = change.current.as_ref().and_then(|entry| {
                let object = Object::new(id, &kind, entry);
                if object.is_none() {
                    tracing::error!(key = %change.key, "what the store holds here is no object");
                }
                object.map(Arc::new)
            });
            let held = self.objects.get(&change.key);
            if held.is_none() && current.is_none() {
                continue;
            }
            let (before, last) = held.map(|held| (held.object.clone(), held.event)).unzip();
            self.reindex(id, &kind, before.as_deref(), current.as_deref());
            touched.insert(id);
            let event = Event {
                revision,
                before,
                current: current.clone(),
            };
            let event = self.ring.push(event, last);
            match current {
                Some(object) => self.objects.insert(object.key.clone(), Held { object, event }),
                None => self.objects.remove(&change.key),
            };
        }
        self.ring.trim();
        self.revision = self.revision.max(revision);
        touched
    }

    fn reindex(&mut self, id: KindId, kind: &HubKind, before: Option<&Object>, current: Option<&Object>) {
        let count = self.counts.entry(id).or_default();
        *count += usize::from(current.is_some());
        *count -= usize::from(before.is_some());
        for field in &kind.indexed {
            let old = before
                .map(|object| object.field(*field))
                .filter(|text| !text.is_empty());
            let new = current
                .map(|object| object.field(*field))
                .filter(|text| !text.is_empty());
            if old == new {
                continue;
            }
            if let (Some(object), Some(old)) = (before, old) {
                let place = (id, *field, old.into());
                if let Some(keys) = self.index.get_mut(&place) {
                    keys.remove(&object.key);
                    if keys.is_empty() {
                        self.index.remove(&place);
                    }
                }
            }
            if let (Some(object), Some(new)) = (current, new) {
                let place = (id, *field, new.into());
                self.index.entry(place).or_default().insert(object.key.clone());
            }
        }
    }

    /// What is said of a position that is not there any more.
    pub(super) fn left(&self) -> Left {
        let skipped = self.skipped.last().map_or(0, |(_, to)| *to);
        Left {
            floor: self.ring.floor().max(skipped),
        }
    }

    /// Whether the events after `revision` lead from what was there then to what is there now. Not from within what was skipped: somebody who
    /// was shown an object by another server would not hear of its end.
    pub(super) fn leads_from(&self, revision: Revision) -> bool {
        let within = |(from, to): &(Revision, Revision)| *from < revision && revision < *to;
        !self.skipped.iter().any(within)
    }

    /// The last revision before this one that events lead from.
    pub(super) fn before(&self, revision: Revision) -> Revision {
        let skip = self.skipped.iter().find(|(_, to)| *to == revision);
        skip.map_or(revision.saturating_sub(1), |(from, _)| *from)
    }

    /// What is there now.
    pub(super) fn list(&self, id: KindId, filter: &Filter, part: &Part) -> Found {
        let kind = &*self.kinds.get(id).kind;
        let prefix = prefix(kind, filter);
        let start = part.after.as_ref().map(Key::as_str);
        let behind = |key: &str| start.is_none_or(|start| key > start);
        let found: Box<dyn Iterator<Item = &Arc<Object>>> = if let Some((field, value)) = filter.lookup(kind) {
            let keys = self.index.get(&(id, field, value.into()));
            let keys = keys.into_iter().flatten().filter(move |key| behind(key.as_str()));
            Box::new(keys.filter_map(|key| self.get(key.as_str())))
        } else if let (Some(name), Some(_)) = (filter.name(), filter.namespace()) {
            let key = format!("{prefix}{name}");
            let object = self.get(&key);
            Box::new(object.into_iter().filter(move |object| behind(object.key.as_str())))
        } else {
            let range = match start {
                Some(start) if start >= prefix.as_str() => (Bound::Excluded(start), Bound::Unbounded),
                _ => (Bound::Included(prefix.as_str()), Bound::Unbounded),
            };
            let range = self.objects.range::<str, _>(range);
            let end = prefix.clone();
            Box::new(
                range
                    .take_while(move |(key, _)| key.as_str().starts_with(&end))
                    .map(|(_, held)| &held.object),
            )
        };
        page(
            found.filter(|object| filter.matches(object)).cloned(),
            filter,
            part,
            self.revision,
        )
    }

    /// What was there at `revision`; `None`: not known any more.
    pub(super) fn list_at(&self, id: KindId, filter: &Filter, part: &Part, revision: Revision) -> Option<Found> {
        if revision < self.exact_from {
            return None;
        }
        let prefix = prefix(&self.kinds.get(id).kind, filter);
        let start = part.after.as_ref().map(Key::as_str);
        let wanted = |key: &str| key.starts_with(&prefix) && start.is_none_or(|start| key > start);
        let later = self.ring.from(self.ring.after(revision)?)?;
        let mut undone: BTreeMap<&str, Option<Arc<Object>>> = BTreeMap::new();
        for slot in later.filter(|slot| wanted(slot.key.as_str())) {
            // The first event after the revision knows what was there.
            let before = || self.ring.before(slot, &|key| self.get(key.as_str()));
            undone.entry(slot.key.as_str()).or_insert_with(before);
        }
        let range = self
            .objects
            .range::<str, _>((Bound::Included(prefix.as_str()), Bound::Unbounded));
        let present = range.take_while(|(key, _)| key.as_str().starts_with(&prefix));
        let mut objects: Vec<&Arc<Object>> = present
            .filter(|(key, _)| wanted(key.as_str()) && !undone.contains_key(key.as_str()))
            .map(|(_, held)| &held.object)
            .chain(undone.values().flatten())
            .collect();
        objects.sort_by(|a, b| a.key.cmp(&b.key));
        let selected = objects.into_iter().filter(|object| filter.matches(object));
        Some(page(selected.cloned(), filter, part, revision))
    }
}

fn prefix(kind: &HubKind, filter: &Filter) -> String {
    match filter.namespace() {
        None => kind.prefix.clone(),
        Some("") => format!("{}{}/", kind.prefix, keys::NO_NAMESPACE),
        Some(namespace) => format!("{}{namespace}/", kind.prefix),
    }
}

fn page(wanted: impl Iterator<Item = Arc<Object>>, filter: &Filter, part: &Part, revision: Revision) -> Found {
    let mut wanted = wanted;
    let limit = part.limit.unwrap_or(usize::MAX);
    let objects = wanted.by_ref().take(limit).collect();
    // Counting what selectors select would mean to look at everything, for a number that is a hint.
    let more = wanted
        .next()
        .map(|_| if filter.is_selective() { 0 } else { 1 + wanted.count() });
    Found {
        objects,
        revision,
        more,
    }
}
