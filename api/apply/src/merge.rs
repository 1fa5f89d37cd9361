//! Laying one object over another, and taking out what nobody wants any more.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::element::Element;
use crate::schema::{Schema, Type};
use crate::set::Set;
use crate::value::{Form, element, form};

/// `live` with everything that `config` says.
///
/// Where both say something, `config` wins; what only `live` has stays. Items of lists that only `live` has keep their places, those
/// that both have come in the order of `config`, and new ones where `config` has them among those.
pub fn merge(schema: &Schema, live: &Value, config: &Value) -> Value {
    over(&schema.root, live, config)
}

fn over(kind: &Type, live: &Value, config: &Value) -> Value {
    match (form(kind, live), form(kind, config)) {
        (Form::Map(live_map), Form::Map(config_map)) => {
            let empty = Map::new();
            let (below, above) = (live_map.unwrap_or(&empty), config_map.unwrap_or(&empty));
            if below.is_empty() && above.is_empty() {
                return config.clone();
            }
            let mut merged = below.clone();
            for (name, value) in above {
                let value = match below.get(name) {
                    Some(live) => over(kind.below(name).0, live, value),
                    None => value.clone(),
                };
                merged.insert(name.clone(), value);
            }
            Value::Object(merged)
        }
        (Form::List(live_items), Form::List(config_items)) => {
            if live_items.is_empty() && config_items.is_empty() {
                return config.clone();
            }
            Value::Array(lists(kind, live_items, config_items))
        }
        _ => config.clone(),
    }
}

fn lists(kind: &Type, live: &[Value], config: &[Value]) -> Vec<Value> {
    let elements = |items: &[Value]| -> Vec<Element> {
        let items = items.iter().enumerate();
        items.map(|(index, item)| element(kind, index, item)).collect()
    };
    let (ours, theirs) = (elements(live), elements(config));
    let place: BTreeMap<&Element, usize> = theirs.iter().zip(0..).collect();
    let mut first: BTreeMap<&Element, usize> = BTreeMap::new();
    for (index, element) in ours.iter().enumerate() {
        first.entry(element).or_insert(index);
    }
    let item = |index: usize| match first.get(&theirs[index]) {
        Some(known) => over(kind.item(), &live[*known], &config[index]),
        None => config[index].clone(),
    };
    let (mut merged, mut next) = (Vec::with_capacity(live.len() + config.len()), 0);
    for (index, element) in ours.iter().enumerate() {
        let Some(place) = place.get(element) else {
            merged.push(live[index].clone());
            continue;
        };
        // One that both have comes when it is the next such in the order of `config`, with the new ones before it.
        let shared = (next..theirs.len()).find(|index| first.contains_key(&theirs[*index]));
        if shared == Some(*place) {
            merged.extend((next..=*place).map(item));
            next = place + 1;
        }
    }
    merged.extend((next..theirs.len()).map(item));
    merged
}

/// Takes out of `object` what is in `last` and neither owned by anybody nor above something that is.
///
/// `last` is what an applier said before, `owned` what all owners want now, that applier's new opinion included. Of metadata stays what nobody
/// ever owned: the control plane notes things there (finalizers, annotations) without owning them, and they are not the applier's to lose.
pub fn prune(schema: &Schema, object: &Value, last: &Set, owned: &Set) -> Value {
    let mut rest = taken(&schema.root, object, last, Some(owned), &[]);
    let metadata = Element::field("metadata");
    if let (Some(last), Value::Object(before), Value::Object(rest)) = (last.child(&metadata), object, &mut rest)
        && let Some(before) = before.get("metadata")
    {
        let (kind, _) = schema.root.below("metadata");
        rest.insert(
            "metadata".to_owned(),
            unowned_kept(kind, before, last, owned.child(&metadata)),
        );
    }
    rest
}

/// Takes out what is in `last` and nobody owns, field by field: a map goes only when nothing is left of it.
fn unowned_kept(kind: &Type, value: &Value, last: &Set, owned: Option<&Set>) -> Value {
    let (Form::Map(Some(map)), _) = (form(kind, value), value) else {
        return taken(kind, value, last, owned, &[]);
    };
    let mut rest = Map::new();
    for (name, value) in map {
        let element = Element::field(name);
        let (kind, _) = kind.below(name);
        let owned = owned.and_then(|owned| owned.child(&element));
        let kept = match last.child(&element) {
            None => value.clone(),
            Some(last) if last.has_children() => {
                let kept = unowned_kept(kind, value, last, owned);
                let empty = kept.as_object().is_some_and(Map::is_empty) || kept.as_array().is_some_and(Vec::is_empty);
                if empty && owned.is_none() {
                    continue;
                }
                kept
            }
            Some(_) if owned.is_none() => continue,
            Some(_) => value.clone(),
        };
        rest.insert(name.clone(), kept);
    }
    Value::Object(rest)
}

/// `keys` are the fields that tell an item from others; they stay as long as it does.
fn taken(kind: &Type, value: &Value, last: &Set, owned: Option<&Set>, keys: &[&str]) -> Value {
    if !last.has_children() {
        return value.clone();
    }
    match (form(kind, value), value) {
        (Form::Map(Some(map)), _) => {
            let mut rest = Map::new();
            for (name, value) in map {
                let element = Element::field(name);
                let (kind, declared) = kind.below(name);
                let Some(last) = last.child(&element).filter(|_| !keys.contains(&name.as_str())) else {
                    rest.insert(name.clone(), value.clone());
                    continue;
                };
                let owned = owned.and_then(|owned| owned.child(&element));
                // A declared field has no owner of its own; it goes when nobody owns anything below.
                if owned.is_some() || !(last.is_member() || declared) {
                    rest.insert(name.clone(), taken(kind, value, last, owned, &[]));
                }
            }
            Value::Object(rest)
        }
        (Form::List(_), Value::Array(items)) => {
            let keys: Vec<&str> = match kind {
                Type::List { keys, .. } => keys.iter().map(|key| &*key.name).collect(),
                _ => Vec::new(),
            };
            let mut rest = Vec::new();
            for (index, item) in items.iter().enumerate() {
                let element = element(kind, index, item);
                let Some(last) = last.child(&element) else {
                    rest.push(item.clone());
                    continue;
                };
                let owned = owned.and_then(|owned| owned.child(&element));
                if owned.is_some() || !last.is_member() {
                    rest.push(taken(kind.item(), item, last, owned, &keys));
                }
            }
            Value::Array(rest)
        }
        _ => value.clone(),
    }
}
