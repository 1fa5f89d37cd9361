//! Graphs of owners and what they own, against a model of what the server does with finalizers.

use std::collections::BTreeMap;

use muster_api::wire::{ChangeKind, WatchChange};
use proptest::prelude::*;
use serde_json::{Value, json};

use super::super::testing::now;
use super::*;
use crate::runtime::Id;

/// How a deletion is asked for.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Policy {
    Foreground,
    Background,
    Orphan,
}

/// The server, as far as deletions go: widgets by name, in namespace `d`.
#[derive(Clone, Debug, Default)]
struct Model {
    objects: BTreeMap<String, Value>,
    revision: u64,
    /// Names in the order in which they went.
    gone: Vec<String>,
    /// What lost an owner's name by being told so.
    cut: BTreeSet<(String, String)>,
}

fn uid(name: &str) -> String {
    format!("uid-{name}")
}

fn reference(owner: &str, block: bool) -> Value {
    json!({
        "apiVersion": "example.org/v1", "kind": "Widget", "name": owner, "uid": uid(owner), "blockOwnerDeletion": block,
    })
}

impl Model {
    fn add(&mut self, name: &str, owners: &[(&str, bool)]) {
        self.revision += 1;
        let owners: Vec<Value> = owners.iter().map(|(owner, block)| reference(owner, *block)).collect();
        let metadata = json!({
            "name": name, "namespace": "d", "uid": uid(name), "resourceVersion": self.revision.to_string(),
            "ownerReferences": owners,
        });
        let object = json!({ "apiVersion": "example.org/v1", "kind": "Widget", "metadata": metadata });
        self.objects.insert(name.to_owned(), object);
    }

    fn finalizers(object: &Value) -> Vec<String> {
        let items = object["metadata"]["finalizers"].as_array().into_iter().flatten();
        items.filter_map(|item| item.as_str().map(str::to_owned)).collect()
    }

    fn delete(&mut self, name: &str, policy: Option<Policy>) {
        let Some(object) = self.objects.get_mut(name) else {
            return;
        };
        let mut finalizers = Model::finalizers(object);
        if let Some(policy) = policy {
            finalizers.retain(|name| name != FINALIZER_FOREGROUND && name != FINALIZER_ORPHAN);
            match policy {
                Policy::Foreground => finalizers.push(FINALIZER_FOREGROUND.to_owned()),
                Policy::Orphan => finalizers.push(FINALIZER_ORPHAN.to_owned()),
                Policy::Background => {}
            }
        }
        object["metadata"]["finalizers"] = json!(finalizers);
        object["metadata"]["deletionTimestamp"] = json!(now().to_string());
        self.settle(name);
    }

    fn settle(&mut self, name: &str) {
        self.revision += 1;
        let Some(object) = self.objects.get_mut(name) else {
            return;
        };
        object["metadata"]["resourceVersion"] = json!(self.revision.to_string());
        let deleting = !object["metadata"]["deletionTimestamp"].is_null();
        if deleting && Model::finalizers(object).is_empty() {
            self.objects.remove(name);
            self.gone.push(name.to_owned());
        }
    }

    fn current(&self, id: &Id, version: &str) -> bool {
        let object = self.objects.get(&*id.name);
        object.is_some_and(|object| object["metadata"]["resourceVersion"] == version)
    }

    /// Does what a plan says. Every absent owner is held against the model.
    fn apply(&mut self, action: Action) {
        match action {
            Action::IfAbsent { owners, action, .. } => {
                for owner in owners {
                    let found = self.objects.get(&owner.name);
                    let there = found.is_some_and(|object| object["metadata"]["uid"] == owner.uid.as_str());
                    assert!(!there, "{} is there", owner.name);
                }
                self.apply(*action);
            }
            Action::Patch { id, body, .. } => {
                let version = body["metadata"]["resourceVersion"].as_str().expect("a version");
                assert!(self.current(&id, version), "the state that was looked at");
                let name = id.name.to_string();
                let object = self.objects.get_mut(&name).expect("it is current");
                for field in ["ownerReferences", "finalizers"] {
                    if let Some(value) = body["metadata"].get(field) {
                        object["metadata"][field] = value.clone();
                    }
                }
                self.settle(&name);
            }
            Action::Delete {
                id, version, policy, ..
            } => {
                assert!(
                    self.current(&id, &version.expect("a version")),
                    "the state that was looked at"
                );
                self.delete(&id.name, policy.map(|Propagation::Foreground| Policy::Foreground));
            }
            other => panic!("unexpected {other:?}"),
        }
    }

    fn change(name: &str, before: Option<&Value>, after: Option<&Value>) -> Option<WatchChange> {
        let (kind, object) = match (before, after) {
            (before, Some(after)) if before != Some(after) => (ChangeKind::Modified, after.clone()),
            (Some(before), None) => (ChangeKind::Deleted, before.clone()),
            _ => return None,
        };
        assert_eq!(object["metadata"]["name"], name);
        Some(WatchChange {
            resource: "widgets.example.org".to_owned(),
            kind,
            object,
        })
    }

    /// Collects until nothing is woken any more; `order` says which of the woken is looked at next. What is woken by nothing is never
    /// looked at, as in the runtime.
    fn collect(&mut self, order: &[usize]) {
        let mut view = View::default();
        let mut woken: BTreeSet<Key> = BTreeSet::new();
        let mut known: BTreeMap<String, Value> = BTreeMap::new();
        for step in 0..10_000 {
            let names: BTreeSet<String> = known.keys().chain(self.objects.keys()).cloned().collect();
            let changes = names
                .iter()
                .filter_map(|name| Model::change(name, known.get(name), self.objects.get(name)));
            let changes: Vec<Change> = changes.filter_map(|change| view.apply(change)).collect();
            known = self.objects.clone();
            for change in &changes {
                woken.extend(Garbage.keys(change, &view));
            }
            let pick = order.get(step % order.len().max(1)).copied().unwrap_or(0);
            let Some(key) = woken.iter().nth(pick % woken.len().max(1)).cloned() else {
                return;
            };
            woken.remove(&key);
            let plan = Garbage.plan(&key, &view, &Context::at(now()));
            let writes = plan.writes.len();
            for write in plan.writes {
                if let Action::Patch { id, body, .. } = &write.action
                    && body["metadata"].get("ownerReferences").is_some()
                {
                    self.cut.insert((id.name.to_string(), key.id.name.to_string()));
                }
                self.apply(write.action);
            }
            if writes > 0 {
                // The driver waits for its own writes, and what they change wakes what it has to.
                continue;
            }
        }
        panic!("it does not end");
    }

    fn names(&self) -> Vec<&str> {
        self.objects.keys().map(String::as_str).collect()
    }
}

#[track_caller]
fn check(objects: &[(&str, &[(&str, bool)])], delete: (&str, Policy), left: &[&str], gone: &[&str]) {
    let mut model = Model::default();
    for (name, owners) in objects {
        model.add(name, owners);
    }
    model.delete(delete.0, Some(delete.1));
    model.collect(&[0]);
    assert_eq!(model.names(), left);
    assert_eq!(model.gone, gone);
}

const CHAIN: [(&str, &[(&str, bool)]); 3] = [("a", &[]), ("b", &[("a", true)]), ("c", &[("b", true)])];

#[test]
fn in_the_background_the_owner_goes_first() {
    check(&CHAIN, ("a", Policy::Background), &[], &["a", "b", "c"]);
}

#[test]
fn in_the_foreground_the_owner_goes_last() {
    check(&CHAIN, ("a", Policy::Foreground), &[], &["c", "b", "a"]);
}

#[test]
fn what_does_not_block_is_not_waited_for() {
    let objects: [(&str, &[(&str, bool)]); 2] = [("a", &[]), ("b", &[("a", false)])];
    check(&objects, ("a", Policy::Foreground), &[], &["a", "b"]);
}

#[test]
fn orphans_stay_and_forget_their_owner() {
    let mut model = Model::default();
    for (name, owners) in CHAIN {
        model.add(name, owners);
    }
    model.delete("a", Some(Policy::Orphan));
    model.collect(&[0]);
    assert_eq!(model.names(), ["b", "c"]);
    assert_eq!(model.objects["b"]["metadata"]["ownerReferences"], json!([]));
    assert_eq!(model.objects["c"]["metadata"]["ownerReferences"][0]["name"], "b");
}

#[test]
fn one_owner_that_lives_is_enough_and_the_others_are_forgotten() {
    for policy in [Policy::Foreground, Policy::Background] {
        let mut model = Model::default();
        model.add("a", &[]);
        model.add("b", &[]);
        model.add("c", &[("a", true), ("b", true)]);
        model.delete("a", Some(policy));
        model.collect(&[0]);
        assert_eq!(model.names(), ["b", "c"], "{policy:?}");
        let owners = &model.objects["c"]["metadata"]["ownerReferences"];
        assert_eq!(owners, &json!([reference("b", true)]), "{policy:?}");
    }
}

#[test]
fn a_name_that_was_given_again_is_no_owner() {
    let mut model = Model::default();
    model.add("a", &[]);
    model.add("b", &[("a", true)]);
    model.objects.get_mut("a").expect("a")["metadata"]["uid"] = json!("another");
    model.collect(&[0]);
    assert_eq!(model.names(), ["a"]);
}

#[test]
fn what_waits_for_itself_in_a_circle_goes_nevertheless() {
    let circle: [(&str, &[(&str, bool)]); 3] = [("a", &[("c", true)]), ("b", &[("a", true)]), ("c", &[("b", true)])];
    let mut model = Model::default();
    for (name, owners) in circle {
        model.add(name, owners);
    }
    model.delete("a", Some(Policy::Foreground));
    model.collect(&[0]);
    assert_eq!(model.names(), Vec::<&str>::new());
    check(&[("a", &[("a", true)])], ("a", Policy::Foreground), &[], &["a"]);
}

#[test]
fn an_owner_in_another_namespace_is_none_and_one_without_namespace_is() {
    let mut view = View::default();
    let mut put = |resource: &str, kind: &str, namespace: Value, name: &str, owners: Value| {
        let object = json!({
            "apiVersion": "example.org/v1", "kind": kind,
            "metadata": {
                "name": name, "namespace": namespace, "uid": uid(name), "resourceVersion": "1", "ownerReferences": owners,
            },
        });
        let change = WatchChange {
            resource: resource.to_owned(),
            kind: ChangeKind::Added,
            object,
        };
        view.apply(change).expect("it is read").key()
    };
    put("widgets.example.org", "Widget", json!("other"), "a", json!([]));
    let far = put(
        "widgets.example.org",
        "Widget",
        json!("d"),
        "b",
        json!([reference("a", true)]),
    );
    put("fleets.example.org", "Fleet", json!(null), "f", json!([]));
    let mut fleet = reference("f", true);
    fleet["kind"] = json!("Fleet");
    fleet["apiVersion"] = json!("example.org/v7");
    let wide = put("widgets.example.org", "Widget", json!("d"), "w", json!([fleet]));
    let plan = Garbage.plan(&far, &view, &Context::at(now()));
    let [write] = plan.writes.as_slice() else {
        panic!("{plan:?}")
    };
    let Action::IfAbsent {
        owners,
        namespace,
        action,
    } = &write.action
    else {
        panic!("{write:?}")
    };
    assert_eq!((owners[0].name.as_str(), namespace.as_str()), ("a", "d"));
    assert!(matches!(&**action, Action::Delete { id, .. } if &*id.name == "b"));
    assert_eq!(Garbage.plan(&wide, &view, &Context::at(now())), Plan::default());
}

/// So many objects, who owns whom and blocks, who is deleted how, and in what order is looked at them.
#[derive(Clone, Debug)]
struct Story {
    owners: Vec<Vec<(usize, bool)>>,
    deletions: Vec<(usize, Policy)>,
    order: Vec<usize>,
}

fn stories(circles: bool) -> impl Strategy<Value = Story> {
    let policy = prop_oneof![Just(Policy::Foreground), Just(Policy::Background), Just(Policy::Orphan)];
    (2usize..9).prop_flat_map(move |count| {
        let owners = prop::collection::vec((0..count, any::<bool>()), 0..3);
        let all = prop::collection::vec(owners, count);
        let deletions = prop::collection::vec((0..count, policy.clone()), 1..4);
        let order = prop::collection::vec(0usize..8, 1..40);
        (all, deletions, order).prop_map(move |(mut owners, deletions, order)| {
            for (index, owners) in owners.iter_mut().enumerate() {
                owners.retain(|(owner, _)| circles || *owner < index);
                owners.sort_unstable();
                owners.dedup_by_key(|(owner, _)| *owner);
            }
            Story {
                owners,
                deletions,
                order,
            }
        })
    })
}

fn name(index: usize) -> String {
    format!("o{index}")
}

fn played(story: &Story) -> Model {
    let mut model = Model::default();
    let names: Vec<String> = (0..story.owners.len()).map(name).collect();
    for (index, owners) in story.owners.iter().enumerate() {
        let owners: Vec<(&str, bool)> = owners
            .iter()
            .map(|(owner, block)| (names[*owner].as_str(), *block))
            .collect();
        model.add(&names[index], &owners);
    }
    for (index, policy) in &story.deletions {
        model.delete(&names[*index], Some(*policy));
    }
    model.collect(&story.order);
    model
}

proptest! {
    #[test]
    fn collecting_ends_with_nothing_that_waits_or_lacks_its_owners(story in stories(true)) {
        let model = played(&story);
        for object in model.objects.values() {
            prop_assert!(object["metadata"]["deletionTimestamp"].is_null(), "{object} waits");
            let owners = object["metadata"]["ownerReferences"].as_array().cloned().unwrap_or_default();
            let lives = |owner: &Value| model.objects.contains_key(owner["name"].as_str().unwrap_or_default());
            prop_assert!(owners.iter().all(lives), "{object}");
        }
    }

    #[test]
    fn nothing_goes_that_was_not_deleted_and_has_an_owner_left_or_never_had_one(story in stories(true)) {
        let model = played(&story);
        for gone in &model.gone {
            let index: usize = gone[1..].parse().expect("a number");
            let asked = story.deletions.iter().any(|(deleted, _)| *deleted == index);
            let owners = &story.owners[index];
            let left = owners.iter().any(|(owner, _)| {
                let forgotten = model.cut.contains(&(gone.clone(), name(*owner)));
                model.objects.contains_key(&name(*owner)) && !forgotten
            });
            prop_assert!(asked || (!owners.is_empty() && !left), "{gone} should be there");
        }
    }

    #[test]
    fn a_foreground_deletion_ends_after_what_blocks_it(story in stories(false)) {
        let model = played(&story);
        let mut last: BTreeMap<usize, Policy> = BTreeMap::new();
        for (index, policy) in &story.deletions {
            // Whoever is gone is not deleted again.
            if last.get(index) != Some(&Policy::Background) {
                last.insert(*index, *policy);
            }
        }
        let place = |index: usize| model.gone.iter().position(|gone| *gone == name(index));
        for (index, owners) in story.owners.iter().enumerate() {
            for (owner, block) in owners {
                let foreground = last.get(owner) == Some(&Policy::Foreground);
                let alone = owners.len() == 1 && !last.contains_key(&index);
                if *block && foreground && alone {
                    prop_assert!(place(index) < place(*owner), "{:?}", model.gone);
                    prop_assert!(place(index).is_some(), "{:?}", model.gone);
                }
            }
        }
    }
}
