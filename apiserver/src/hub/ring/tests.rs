use std::collections::BTreeMap;

use muster_store::{Change, Entry};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::*;
use crate::hub::kinds::{Filter, HubKind, Kinds};
use crate::hub::object;
use crate::hub::state::{HubState, Part};
use crate::kinds;

const UNBOUNDED: Bounds = Bounds {
    events: usize::MAX,
    bytes: usize::MAX,
    fresh_events: usize::MAX,
    fresh_bytes: usize::MAX,
};

fn config_maps() -> HubKind {
    let resources = kinds::resources().into_iter();
    let found = resources.into_iter().find(|resource| resource.plural == "configmaps");
    HubKind::new(&found.expect("config maps are served"))
}

fn key(name: usize) -> Key {
    Key::new(format!("objects/core/configmaps/d/n{name}"))
}

/// Some text: different seeds have hardly anything in common.
fn text(seed: u64, length: usize) -> String {
    let mut state = seed.wrapping_mul(0x9e37_79b9_7f4a_7c15) | 1;
    let letter = |_| {
        state ^= state << 13;
        state ^= state >> 7;
        state ^= state << 17;
        char::from(b'a' + (state % 26) as u8)
    };
    (0..length).map(letter).collect()
}

/// The version of an object that was written at `revision`: one part of it stays, one is as it says.
fn entry(name: usize, created: Revision, revision: Revision, (seed, length): (u64, usize)) -> Entry {
    let object = json!({
        "metadata": {"name": format!("n{name}"), "labels": {"at": revision.to_string()}},
        "data": {"changes": text(seed, length), "stays": text(name as u64, 600)},
    });
    Entry {
        key: key(name),
        value: object::encode("v1", "ConfigMap", object.as_object().cloned().unwrap()),
        create_revision: created,
        mod_revision: revision,
        lease: None,
    }
}

fn now(_: &Key) -> Option<&'static Arc<Object>> {
    None
}

fn pushed(ring: &mut Ring, revision: Revision, count: usize) {
    for name in 0..count {
        let entry = entry(name, revision, revision, (0, 0));
        let before = Object::new(KindId(0), &config_maps(), &entry).map(Arc::new);
        let event = Event {
            revision,
            before,
            current: None,
        };
        ring.push(event, None);
    }
    ring.trim();
}

#[test]
fn whole_revisions_leave_and_positions_with_them() {
    let mut ring = Ring::new(10, Bounds { events: 4, ..UNBOUNDED });
    let start = ring.end();
    assert_eq!((ring.after(10), ring.after(9)), (Some(start), None));
    pushed(&mut ring, 11, 2);
    pushed(&mut ring, 12, 1);
    pushed(&mut ring, 13, 1);
    assert_eq!(ring.from(start).map(Iterator::count), Some(4));
    assert_eq!(ring.after(11), Some(start + 2));
    pushed(&mut ring, 14, 1);
    assert_eq!(
        (ring.len(), ring.floor()),
        (3, 11),
        "both events of revision 11 have left"
    );
    assert!(ring.from(start).is_none() && ring.from(start + 1).is_none());
    assert_eq!((ring.after(10), ring.after(11)), (None, Some(start + 2)));
    assert_eq!(ring.from(ring.end()).map(Iterator::count), Some(0));
    assert!(ring.from(ring.end() + 1).is_none());
}

#[test]
fn bytes_are_bounded_too() {
    for fresh_events in [0, usize::MAX] {
        let unbounded = Bounds {
            fresh_events,
            ..UNBOUNDED
        };
        let mut ring = Ring::new(0, unbounded);
        pushed(&mut ring, 1, 1);
        let one = ring.bytes();
        let bytes = 3 * one + one / 2;
        let mut ring = Ring::new(0, Bounds { bytes, ..unbounded });
        for revision in 1..=9 {
            pushed(&mut ring, revision, 1);
        }
        assert_eq!((ring.len(), ring.floor()), (3, 6));
        assert!(ring.bytes() <= bytes);
        pushed(&mut ring, 11, 5);
        assert_eq!(
            (ring.len(), ring.bytes(), ring.fresh_bytes, ring.floor()),
            (0, 0, 0, 11),
            "one revision that is too much is not kept at all"
        );
    }
}

#[test]
fn what_was_superseded_takes_a_fraction_of_its_text() {
    let bounds = Bounds {
        fresh_events: 0,
        ..UNBOUNDED
    };
    let mut state = HubState::new(Kinds::new(vec![config_maps()]), Ring::new(0, bounds));
    for revision in 1..=1_000 {
        let entry = entry(0, 1, revision, (revision, 20));
        let change = Change {
            key: entry.key.clone(),
            current: Some(entry),
        };
        state.apply(revision, &[change]);
    }
    let size = state.get(key(0).as_str()).unwrap().size();
    let each = state.ring.bytes() / 1_000 - SLOT_OVERHEAD;
    assert!(6 * each < size, "{each} bytes for each version of {size}");
    let slots = state.ring.from(1).unwrap();
    let revisions = slots.map(|slot| state.event(slot).before.map_or(0, |before| before.revision));
    assert!(revisions.eq(0..1_000), "however many versions came later");
}

/// What an object was, whole.
type Plain = Option<(Revision, Revision, Value, String)>;

fn plain(object: Option<&Arc<Object>>) -> Plain {
    object.map(|object| {
        let label = object.label("at").unwrap_or_default().to_owned();
        (object.revision, object.created, object.json(), label)
    })
}

#[derive(Clone, Debug)]
struct Write {
    name: usize,
    /// What is written, `None` deletes.
    value: Option<(u64, usize)>,
}

fn writes() -> impl Strategy<Value = Vec<Vec<Write>>> {
    let length = prop_oneof![40 => 0..200_usize, 1 => Just(40_000), 1 => Just(70_000)];
    let value = proptest::option::weighted(0.85, (0..50_u64, length));
    let write = (0..4_usize, value).prop_map(|(name, value)| Write { name, value });
    proptest::collection::vec(proptest::collection::vec(write, 1..3), 1..60)
}

fn bounds() -> impl Strategy<Value = Bounds> {
    let fresh_events = prop_oneof![Just(0), 0..8_usize, Just(usize::MAX)];
    let events = prop_oneof![1..40_usize, Just(usize::MAX)];
    let bytes = prop_oneof![2_000..60_000_usize, Just(usize::MAX)];
    let fresh_bytes = prop_oneof![0..8_000_usize, Just(usize::MAX)];
    (events, bytes, fresh_events, fresh_bytes).prop_map(|(events, bytes, fresh_events, fresh_bytes)| Bounds {
        events,
        bytes,
        fresh_events,
        fresh_bytes,
    })
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 24, ..ProptestConfig::default() })]

    /// Whatever was written, whatever is packed, whatever has left: what is read from any start is what was pushed, and a list of any
    /// past is what was there.
    #[test]
    fn history_is_told_as_it_was(history in writes(), bounds in bounds()) {
        let kinds = [config_maps()];
        let mut state = HubState::new(Kinds::new(kinds.to_vec()), Ring::new(0, bounds));
        let mut objects: BTreeMap<usize, Arc<Object>> = BTreeMap::new();
        let mut events: Vec<(Revision, Plain, Plain)> = Vec::new();
        let mut pasts: Vec<BTreeMap<String, Plain>> = vec![BTreeMap::new()];
        for (index, batch) in history.into_iter().enumerate() {
            let revision = index as u64 + 1;
            let batch: BTreeMap<usize, Option<(u64, usize)>> =
                batch.into_iter().map(|write| (write.name, write.value)).collect();
            let mut changes = Vec::new();
            for (name, value) in batch {
                let before = objects.remove(&name);
                let created = before.as_ref().map_or(revision, |object| object.created);
                let current = value.map(|value| entry(name, created, revision, value));
                let object = current.as_ref().and_then(|entry| Object::new(KindId(0), &kinds[0], entry)).map(Arc::new);
                if before.is_some() || object.is_some() {
                    events.push((revision, plain(before.as_ref()), plain(object.as_ref())));
                }
                objects.extend(object.map(|object| (name, object)));
                changes.push(Change { key: key(name), current });
            }
            pasts.push(objects.values().map(|object| (object.name().to_owned(), plain(Some(object)))).collect());
            state.apply(revision, &changes);
        }
        prop_assert!(state.ring.len() <= bounds.events && state.ring.bytes() <= bounds.bytes);
        let costs: usize = state.ring.slots.iter().map(Slot::cost).sum();
        prop_assert_eq!(costs, state.ring.bytes());
        for (revision, past) in pasts.iter().enumerate() {
            let revision = revision as u64;
            let Some(number) = state.ring.after(revision) else {
                prop_assert!(revision < state.ring.floor());
                continue;
            };
            let told = state.ring.from(number).unwrap().map(|slot| {
                let event = state.event(slot);
                (event.revision, plain(event.before.as_ref()), plain(event.current.as_ref()))
            });
            let expected = events.iter().filter(|(at, _, _)| *at > revision).cloned();
            prop_assert!(told.eq(expected), "the events after {}", revision);
            let found = state.list_at(KindId(0), &Filter::all(None), &Part::default(), revision).unwrap();
            let found = found.objects.iter().map(|object| (object.name().to_owned(), plain(Some(object))));
            prop_assert!(found.eq(past.clone()), "the list at {}", revision);
        }
    }
}

#[test]
fn nothing_that_was_packed_keeps_an_object_alive() {
    let bounds = Bounds {
        fresh_events: 1,
        ..UNBOUNDED
    };
    let mut state = HubState::new(Kinds::new(vec![config_maps()]), Ring::new(0, bounds));
    let mut versions = Vec::new();
    for revision in 1..=5 {
        let entry = entry(0, 1, revision, (revision, 20));
        let change = Change {
            key: entry.key.clone(),
            current: Some(entry),
        };
        state.apply(revision, &[change]);
        versions.push(Arc::downgrade(state.get(key(0).as_str()).unwrap()));
    }
    let alive: Vec<bool> = versions.iter().map(|version| version.upgrade().is_some()).collect();
    assert_eq!(
        alive,
        [false, false, false, true, true],
        "what came last, and what it found"
    );
    assert!(state.ring.before(state.ring.slots.front().unwrap(), &now).is_none());
}
