//! The hub on stores that forget, lag and lie.

use std::sync::LazyLock;

use muster_store::{Compare, Lies, LyingStore, MemoryStore, Op, Txn};
use serde_json::json;

use super::*;
use crate::resource::Resource;

const NAMES: [&str; 3] = ["a", "b", "c"];

/// Made once: its schema is compiled.
fn config_maps() -> &'static Resource {
    static FOUND: LazyLock<Resource> = LazyLock::new(|| {
        let mut all = crate::kinds::resources().into_iter();
        let found = all.find(|resource| resource.plural == "configmaps");
        found.expect("config maps are served")
    });
    &FOUND
}

async fn write(store: &dyn Store, name: &str, on: bool) -> Revision {
    let key = crate::keys::object(config_maps(), "d", name);
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
    let hub = Hub::bounded(&*store, vec![HubKind::new(config_maps())], events)
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
        let (events, more) = hub.advance(&mut quick, |kind| kind == KindId(0), 10).unwrap();
        assert_eq!((events.len(), more, quick.revision), (1, false, newest));
    }
    assert_eq!(
        hub.advance(&mut slow, |kind| kind == KindId(0), 10).unwrap_err(),
        Left { floor: newest - 4 }
    );
    assert!(hub.position(newest - 4).is_ok() && hub.position(newest - 5).is_err());
}

#[tokio::test(start_paused = true)]
async fn a_watch_that_loses_and_swaps_is_found_out() {
    for seed in 0..20 {
        let lies = Lies {
            watch_lost: 0.2,
            watch_swapped: 0.2,
            watch_rewound: 0.2,
            watch_anticipated: 0.2,
            stale_read: 0.2,
            ..Lies::none()
        };
        let truth: Arc<dyn Store> = Arc::new(MemoryStore::new());
        let lying: Arc<dyn Store> = Arc::new(LyingStore::new(truth.clone(), seed, lies));
        let hub = Hub::bounded(&*lying, vec![HubKind::new(config_maps())], 1000)
            .await
            .unwrap();
        let (following, source) = (hub.clone(), lying.clone());
        tokio::spawn(async move { following.follow(source).await });
        let mut newest = 0;
        for step in 0..40 {
            let name = NAMES[step % 3];
            if step % 5 == 4 {
                let key = crate::keys::object(config_maps(), "d", name);
                let txn = Txn {
                    compares: vec![Compare::absent(Key::new("nothing"))],
                    ops: vec![Op::delete(key)],
                };
                newest = lying.commit(txn).await.unwrap();
            } else {
                newest = write(&*truth, name, step % 2 == 0).await;
            }
        }
        hub.reach(newest, Duration::from_secs(30)).await.unwrap();
        let found = hub.list(KindId(0), &Filter::all(Some("d")), &Part::default());
        let shown: Vec<_> = found
            .objects
            .iter()
            .map(|object| (&object.key, object.revision))
            .collect();
        let stored = truth.list(&Prefix::new(""), Page::default()).await.unwrap().entries;
        let stored: Vec<_> = stored.iter().map(|entry| (&entry.key, entry.mod_revision)).collect();
        assert_eq!(shown, stored, "seed {seed}");
    }
}

#[tokio::test(start_paused = true)]
async fn the_past_is_the_present_with_its_events_undone() {
    let (store, hub) = started(usize::MAX).await;
    let mut past = Vec::new();
    let mut state = std::collections::BTreeMap::new();
    for step in 0..30 {
        let name = NAMES[step % 3];
        let key = crate::keys::object(config_maps(), "d", name);
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

#[tokio::test(start_paused = true)]
async fn a_revision_that_may_have_been_torn_is_told_again() {
    let (store, hub) = started(100).await;
    let alone = write(&*store, "a", true).await;
    let object = |name| {
        let object = json!({"metadata": {"name": name, "labels": {"on": "true"}}});
        let key = crate::keys::object(config_maps(), "d", name);
        Op::put(key, encode("v1", "ConfigMap", object.as_object().cloned().unwrap()))
    };
    let txn = Txn {
        compares: vec![Compare::absent(Key::new("nothing"))],
        ops: vec![object("b"), object("c")],
    };
    let both = store.commit(txn).await.unwrap();
    hub.reach(both, Duration::from_secs(1)).await.unwrap();
    let told = |revision, wanted: &dyn Fn(&Event) -> bool| {
        let told_as = |event: &Event| wanted(event).then_some(event.revision);
        let mut position = hub.resume(revision, KindId(0), told_as).unwrap();
        let (events, _) = hub.advance(&mut position, |kind| kind == KindId(0), 10).unwrap();
        assert_eq!(position.revision, both);
        let names = events.iter().map(|event| event.object().name().to_owned());
        names.collect::<Vec<_>>()
    };
    assert_eq!(told(alone, &|_| true), ["b", "c"]);
    assert_eq!(told(both, &|_| true), ["b", "c"]);
    // Who waits for one of them has seen it.
    assert!(told(both, &|event| event.object().name() == "b").is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_came_and_went_while_the_hub_was_behind_is_not_kept_from_who_saw_it_elsewhere() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let behind = write(&*store, "a", true).await;
    let hub = Hub::bounded(&*store, vec![HubKind::new(config_maps())], 100)
        .await
        .unwrap();
    // Another server shows it, then it goes; the history in between is forgotten before this one looks again.
    let shown = write(&*store, "b", true).await;
    let seen_there = hub.position(shown).unwrap();
    let txn = Txn {
        compares: vec![Compare::modified(crate::keys::object(config_maps(), "d", "b"), shown)],
        ops: vec![Op::delete(crate::keys::object(config_maps(), "d", "b"))],
    };
    let gone = store.commit(txn).await.unwrap();
    store.compact(gone).await.unwrap();
    let (following, source) = (hub.clone(), store.clone());
    tokio::spawn(async move { following.follow(source).await });
    hub.reach(gone, Duration::from_secs(30)).await.unwrap();
    let advance = |mut position| hub.advance(&mut position, |kind| kind == KindId(0), 10);
    assert_eq!(hub.position(shown), Err(Left { floor: gone }));
    assert_eq!(advance(seen_there).unwrap_err(), Left { floor: gone });
    // Who saw what this hub had seen, and who saw what it sees now, hear everything.
    assert!(advance(hub.position(behind).unwrap()).unwrap().0.is_empty());
    assert!(advance(hub.position(gone).unwrap()).unwrap().0.is_empty());
}

#[tokio::test(start_paused = true)]
async fn what_a_new_listing_found_gone_is_told_again_to_who_may_have_seen_half_of_it() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let mut newest = 0;
    for name in ["a", "b", "c"] {
        newest = write(&*store, name, true).await;
    }
    let hub = Hub::bounded(&*store, vec![HubKind::new(config_maps())], 100)
        .await
        .unwrap();
    for name in ["a", "b"] {
        let key = crate::keys::object(config_maps(), "d", name);
        let txn = Txn {
            compares: vec![Compare::not_modified_after(key.clone(), newest)],
            ops: vec![Op::delete(key)],
        };
        store.commit(txn).await.unwrap();
    }
    let listed = write(&*store, "d", true).await;
    store.compact(listed).await.unwrap();
    let (following, source) = (hub.clone(), store.clone());
    tokio::spawn(async move { following.follow(source).await });
    hub.reach(listed, Duration::from_secs(30)).await.unwrap();
    let again = |told_as: &dyn Fn(&Event) -> Option<Revision>| {
        let mut position = hub.resume(listed, KindId(0), told_as).unwrap();
        let (events, more) = hub.advance(&mut position, |kind| kind == KindId(0), 10).unwrap();
        assert!(!more && position.revision == listed);
        let names = events.iter().map(|event| event.object().name().to_owned());
        names.collect::<BTreeSet<_>>()
    };
    let all = again(&|event| Some(event.revision));
    assert_eq!(all, ["a", "b", "d"].map(str::to_owned).into());
    // Who is told of one thing as of that revision has heard it.
    assert!(again(&|event| event.current.as_ref().map(|object| object.revision)).is_empty());
}
