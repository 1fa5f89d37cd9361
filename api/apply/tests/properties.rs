//! What holds for all objects, all sets and all writers.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use std::collections::BTreeMap;

use muster_apply::{Element, Managed, Path, Schema, Set, Writer, compare, fields, merge, prune};
use proptest::prelude::*;
use serde_json::{Map, Value, json};

fn schema() -> Schema {
    let text = json!({"type": "string"});
    let item = json!({"type": "object", "properties": {"name": text, "x": text, "y": text}});
    let kind = json!({"type": "object", "properties": {"spec": {"type": "object", "properties": {
        "a": text, "b": text,
        "list": {"type": "array", "items": text},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
        "items": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item},
        "map": {"type": "object", "additionalProperties": text},
        "sub": {"type": "object", "properties": {"p": text, "q": text}},
        "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
    }}}});
    Schema::new(&kind, &json!({"type": "object", "properties": {}}))
}

fn word() -> impl Strategy<Value = Value> {
    prop_oneof!["[uvw]".prop_map(Value::from)]
}

fn map_of(names: &'static [&'static str]) -> impl Strategy<Value = Value> {
    prop::collection::vec(prop::option::of(word()), names.len()).prop_map(move |values| {
        let pairs = names
            .iter()
            .zip(values)
            .filter_map(|(name, value)| Some(((*name).to_owned(), value?)));
        Value::Object(pairs.collect::<Map<_, _>>())
    })
}

/// Never empty: an empty list with items of their own owners says nothing.
fn distinct() -> impl Strategy<Value = Vec<&'static str>> {
    prop::sample::subsequence(vec!["i", "j", "k"], 1..=3).prop_shuffle()
}

fn items() -> impl Strategy<Value = Value> {
    (distinct(), prop::collection::vec(map_of(&["x", "y"]), 3)).prop_map(|(names, bodies)| {
        let items = names.into_iter().zip(bodies).map(|(name, mut body)| {
            body["name"] = json!(name);
            body
        });
        items.collect()
    })
}

/// An object as anybody could write it.
fn object() -> impl Strategy<Value = Value> {
    let optional = |strategy: BoxedStrategy<Value>| prop::option::of(strategy);
    let parts = (
        map_of(&["a", "b"]),
        optional(prop::collection::vec(word(), 0..3).prop_map(Value::from).boxed()),
        optional(
            distinct()
                .prop_map(|names| names.into_iter().map(Value::from).collect())
                .boxed(),
        ),
        optional(items().boxed()),
        optional(map_of(&["m", "n"]).boxed()),
        optional(map_of(&["p", "q"]).boxed()),
        optional(map_of(&["f", "g"]).boxed()),
    );
    parts.prop_map(|(mut spec, list, set, items, map, sub, free)| {
        let parts = [
            ("list", list),
            ("set", set),
            ("items", items),
            ("map", map),
            ("sub", sub),
            ("free", free),
        ];
        for (name, value) in parts {
            if let Some(value) = value {
                spec[name] = value;
            }
        }
        json!({ "spec": spec })
    })
}

fn paths() -> impl Strategy<Value = Set> {
    let element = "[abc]".prop_map(|name| Element::field(&name));
    let path = prop::collection::vec(element, 1..4).prop_map(Path);
    prop::collection::vec(path, 0..6).prop_map(|paths| paths.into_iter().collect())
}

/// Lists with keys and sets by item, so that only what differs otherwise differs.
fn unordered(value: &Value) -> Value {
    match value {
        Value::Object(map) => Value::Object(
            map.iter()
                .map(|(name, value)| {
                    let mut value = unordered(value);
                    if let Value::Array(items) = &mut value
                        && name != "list"
                    {
                        items.sort_by_key(Value::to_string);
                    }
                    (name.clone(), value)
                })
                .collect(),
        ),
        Value::Array(items) => items.iter().map(unordered).collect(),
        other => other.clone(),
    }
}

fn writer(manager: &str) -> Writer<'_> {
    Writer {
        manager,
        api_version: "v1",
        subresource: "",
        has_status: false,
        time: "2026-01-01T00:00:00Z",
    }
}

#[derive(Clone, Debug)]
enum Write {
    Apply(usize, Value),
    Update(usize, Value),
}

fn writes() -> impl Strategy<Value = Vec<Write>> {
    let write = (any::<bool>(), 0..3usize, object()).prop_map(|(apply, who, object)| {
        if apply {
            Write::Apply(who, object)
        } else {
            Write::Update(who, object)
        }
    });
    prop::collection::vec(write, 0..6)
}

const NAMES: [&str; 3] = ["one", "two", "three"];

fn run(writes: &[Write]) -> (Value, Managed) {
    let schema = schema();
    let (mut live, mut managed) = (json!({}), Managed::default());
    for write in writes {
        match write {
            Write::Apply(who, config) => {
                let applied = managed
                    .apply(&schema, &live, config, &writer(NAMES[*who]), true)
                    .unwrap();
                (live, managed) = (applied.object, applied.managed);
            }
            Write::Update(who, object) => {
                managed = managed.update(&schema, &live, object, &writer(NAMES[*who]), true);
                live = object.clone();
            }
        }
    }
    (live, managed)
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::with_cases(256) })]

    #[test]
    fn sets_obey_the_laws_of_sets(a in paths(), b in paths(), c in paths()) {
        prop_assert_eq!(a.clone().union(&b), b.clone().union(&a));
        prop_assert_eq!(a.intersection(&b), b.intersection(&a));
        prop_assert_eq!(a.clone().union(&b).union(&c), a.clone().union(&b.clone().union(&c)));
        prop_assert_eq!(a.intersection(&b.clone().union(&c)), a.intersection(&b).union(&a.intersection(&c)));
        prop_assert_eq!(a.clone().difference(&b).union(&a.intersection(&b)), a.clone());
        prop_assert!(a.clone().difference(&b).intersection(&b).is_empty());
        prop_assert_eq!(a.len() + b.len(), a.clone().union(&b).len() + a.intersection(&b).len());
        let read = Set::from_json(&a.to_json()).unwrap();
        prop_assert_eq!(&read, &a);
        prop_assert_eq!(a.paths().into_iter().collect::<Set>(), a);
    }

    #[test]
    fn an_object_merged_with_itself_is_itself(object in object(), other in object()) {
        let schema = schema();
        prop_assert!(compare(&schema, &object, &object).is_same());
        prop_assert_eq!(merge(&schema, &object, &object), object.clone());
        let merged = merge(&schema, &object, &other);
        prop_assert_eq!(merge(&schema, &merged, &other), merged.clone());
        let (had, said) = (fields(&schema, &object), fields(&schema, &other));
        let lost = had.union(&said).difference(&fields(&schema, &merged)).paths();
        // Only that a map was empty is lost where something came into it.
        let empty = |path: &Path| matches!(path.0.last(), Some(Element::Field(name)) if ["map", "sub", "free", "spec"].contains(&&**name));
        prop_assert!(lost.iter().all(empty), "{:?}", lost);
    }

    #[test]
    fn only_what_differs_is_changed(old in object(), new in object()) {
        let comparison = compare(&schema(), &old, &new);
        prop_assert_eq!(comparison.is_same(), unordered(&old) == unordered(&new));
        let back = compare(&schema(), &new, &old);
        prop_assert_eq!(&comparison.added, &back.removed);
        prop_assert_eq!(&comparison.modified, &back.modified);
        prop_assert!(comparison.added.intersection(&comparison.removed).is_empty());
    }

    #[test]
    fn pruning_takes_only_what_was_said_and_nobody_owns(object in object(), last in object(), owned in object()) {
        let schema = schema();
        let (last, owned) = (fields(&schema, &last), fields(&schema, &owned));
        let pruned = prune(&schema, &object, &last, &owned);
        let (before, after) = (fields(&schema, &object), fields(&schema, &pruned));
        let gone = before.difference(&after);
        prop_assert!(gone.intersection(&owned).is_empty(), "{:?}", gone.intersection(&owned).paths());
        prop_assert_eq!(prune(&schema, &object, &Set::new(), &owned), object);
    }

    #[test]
    fn applying_again_changes_nothing(writes in writes(), config in object(), who in 0..3usize) {
        let (live, managed) = run(&writes);
        let apply = |live: &Value, managed: Managed| managed.apply(&schema(), live, &config, &writer(NAMES[who]), true).unwrap();
        let once = apply(&live, managed);
        let twice = apply(&once.object, once.managed.clone());
        prop_assert_eq!(twice, once);
    }

    #[test]
    fn who_applied_has_what_it_said(writes in writes(), config in object()) {
        let (live, managed) = run(&writes);
        let schema = schema();
        let applied = managed.apply(&schema, &live, &config, &writer("me"), true).unwrap();
        prop_assert_eq!(merge(&schema, &applied.object, &config), applied.object.clone());
        let said = fields(&schema, &config);
        let mine = applied.managed.entries().iter().find(|entry| entry.manager == "me");
        prop_assert_eq!(mine.map(|mine| mine.fields.clone()).unwrap_or_default(), said);
    }

    #[test]
    fn what_all_appliers_give_up_disappears(configs in prop::collection::vec(object(), 1..4)) {
        let mut writes: Vec<Write> = configs.into_iter().enumerate().map(|(who, config)| Write::Apply(who, config)).collect();
        let count = writes.len();
        writes.extend((0..count).map(|who| Write::Apply(who, json!({}))));
        let (live, managed) = run(&writes);
        prop_assert_eq!(fields(&schema(), &live), Set::new(), "{}", live);
        prop_assert!(managed.is_empty());
    }

    #[test]
    fn the_order_of_those_who_agree_does_not_matter(whole in object(), parts in prop::collection::vec(prop::bits::u8::ANY, 3)) {
        // Each applies some fields of one object, so that nobody disagrees with anybody.
        let part = |bits: u8| {
            let spec = whole["spec"].as_object().unwrap().iter().zip(0..);
            let kept = spec.filter(|(_, index)| bits & (1 << (index % 8)) != 0);
            json!({"spec": kept.map(|((name, value), _)| (name.clone(), value.clone())).collect::<Map<_, _>>()})
        };
        let apply = |order: [usize; 3]| {
            let writes: Vec<Write> = order.iter().map(|who| Write::Apply(*who, part(parts[*who]))).collect();
            let (live, managed) = run(&writes);
            let owners: BTreeMap<String, Set> = managed.entries().iter().map(|entry| (entry.manager.clone(), entry.fields.clone())).collect();
            (unordered(&live), owners)
        };
        prop_assert_eq!(apply([0, 1, 2]), apply([2, 0, 1]));
        prop_assert_eq!(apply([0, 1, 2]), apply([1, 2, 0]));
    }

    #[test]
    fn owners_own_only_what_is_there(writes in writes()) {
        let (live, managed) = run(&writes);
        let all = compare(&schema(), &json!({}), &live).added;
        for entry in managed.entries() {
            for path in entry.fields.paths() {
                let mut node = Some(&all);
                for element in &path.0 {
                    node = node.and_then(|node| node.child(element));
                }
prop_assert!(node.is_some(), "{} owns {}, which is not there", entry.manager, path);
            }
        }
    }

    #[test]
    fn nothing_that_a_client_sends_makes_it_panic(object in any_json(), config in any_json(), managed in any_json()) {
        let schema = schema();
        let owners = Managed::decode(&managed).unwrap_or_default();
        let _ = owners.clone().apply(&schema, &object, &config, &writer("x"), true);
        let _ = owners.update(&schema, &object, &config, &writer("x"), true);
        let _ = muster_apply::strategic::patch(&schema, &object, &config);
        let _ = muster_apply::problems(&schema, &config);
    }
}

fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<f64>().prop_map(Value::from),
        "[a-z$]{0,3}".prop_map(Value::from),
    ];
    let name = prop_oneof![
        Just("spec".to_owned()),
        Just("items".to_owned()),
        Just("set".to_owned()),
        Just("map".to_owned()),
        Just("name".to_owned()),
        Just("metadata".to_owned()),
        Just("$patch".to_owned()),
        Just("$setElementOrder/items".to_owned()),
        Just("fieldsV1".to_owned()),
        Just(".".to_owned()),
        Just("f:a".to_owned()),
        Just("k:{\"name\":1}".to_owned()),
        "[a-z]{1,2}",
    ];
    leaf.prop_recursive(4, 24, 4, move |inner| {
        prop_oneof![
            prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
            prop::collection::btree_map(name.clone(), inner, 0..4).prop_map(|map| map.into_iter().collect()),
        ]
    })
}
