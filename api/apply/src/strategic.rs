//! Strategic merge patches: merge patches that know lists whose items have keys.
//!
//! Lists with keys are merged by item, sets by value, other lists are replaced. Directives in the patch say what cannot be said by
//! merging: `$patch: replace | delete | merge` on an object or an item, `$retainKeys` for the fields that stay of an object,
//! `$deleteFromPrimitiveList/FIELD` for items of a set, and `$setElementOrder/FIELD` for the order that the sender sees.
//! Null takes a field out.
//!
//! What must never happen here: a directive that ends up in the object.

use std::collections::BTreeMap;

use serde_json::{Map, Value};

use crate::schema::{Schema, Type};
use crate::value::{element, form};
use crate::{Element, value::Form};

/// Why a patch cannot be done.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// A directive says something that is not known.
    #[error("invalid value for special key `{directive}`: {found}")]
    Directive {
        /// The directive.
        directive: String,
        /// What it says.
        found: String,
    },
    /// An item lacks the keys that tell which it is.
    #[error("{field}: an item of the patch does not contain the merge key {keys}")]
    NoKey {
        /// The list.
        field: String,
        /// Its keys.
        keys: String,
    },
    /// What is patched is of another type.
    #[error("{field}: the patch has a list where the object has none")]
    NotAList {
        /// The field.
        field: String,
    },
}

const PATCH: &str = "$patch";
const RETAIN: &str = "$retainKeys";
const DELETE: &str = "$deleteFromPrimitiveList/";
const ORDER: &str = "$setElementOrder/";

/// The object with the changes.
pub fn patch(schema: &Schema, object: &Value, patch: &Value) -> Result<Value, PatchError> {
    let Some(patch) = patch.as_object() else {
        return Ok(patch.clone());
    };
    let object = object.as_object().cloned().unwrap_or_default();
    Ok(Value::Object(maps(&schema.root, object, patch)?))
}

fn directive(map: &Map<String, Value>) -> Result<&str, PatchError> {
    match map.get(PATCH) {
        None => Ok("merge"),
        Some(Value::String(word)) if ["merge", "replace", "delete"].contains(&word.as_str()) => Ok(word),
        Some(other) => Err(PatchError::Directive {
            directive: PATCH.to_owned(),
            found: other.to_string(),
        }),
    }
}

fn maps(kind: &Type, object: Map<String, Value>, patch: &Map<String, Value>) -> Result<Map<String, Value>, PatchError> {
    let mut object = match directive(patch)? {
        "delete" => return Ok(Map::new()),
        "replace" => {
            let rest = patch.iter().filter(|(name, _)| *name != PATCH);
            return Ok(rest.map(|(name, value)| (name.clone(), plain(value))).collect());
        }
        _ => object,
    };
    if let Some(retained) = patch.get(RETAIN) {
        let names = texts(RETAIN, retained)?;
        object.retain(|name, _| names.contains(&name.as_str()));
    }
    for (name, value) in patch.iter().filter(|(name, _)| !name.starts_with('$')) {
        if value.is_null() {
            object.remove(name);
            continue;
        }
        let (kind, _) = kind.below(name);
        let order = patch.get(&format!("{ORDER}{name}"));
        let value = match (form(kind, value), value, object.remove(name)) {
            (_, Value::Object(patch), Some(Value::Object(below))) if *kind != Type::Whole => {
                Value::Object(maps(kind, below, patch)?)
            }
            (Form::List(patch), _, below) => Value::Array(lists(kind, name, below, patch, order)?),
            _ => plain(value),
        };
        object.insert(name.clone(), value);
    }
    for (name, value) in patch {
        if let Some(field) = name.strip_prefix(DELETE) {
            let gone = value.as_array().ok_or_else(|| wrong(name, value))?;
            if let Some(Value::Array(items)) = object.get_mut(field) {
                items.retain(|item| !gone.contains(item));
            }
        } else if let Some(field) = name.strip_prefix(ORDER)
            && !patch.contains_key(field)
            && let Some(Value::Array(items)) = object.get_mut(field)
        {
            let order = value.as_array().ok_or_else(|| wrong(name, value))?;
            *items = ordered(kind.below(field).0, std::mem::take(items), order);
        } else if name.starts_with('$') && name != PATCH && name != RETAIN && !name.starts_with(ORDER) {
            return Err(wrong(name, value));
        }
    }
    Ok(object)
}

fn wrong(directive: &str, found: &Value) -> PatchError {
    PatchError::Directive {
        directive: directive.to_owned(),
        found: found.to_string(),
    }
}

fn texts<'a>(directive: &str, value: &'a Value) -> Result<Vec<&'a str>, PatchError> {
    let list = value.as_array().ok_or_else(|| wrong(directive, value))?;
    let texts = list
        .iter()
        .map(|item| item.as_str().ok_or_else(|| wrong(directive, value)));
    texts.collect()
}

/// A value that nothing is merged with, without directives and nulls.
fn plain(value: &Value) -> Value {
    match value {
        Value::Object(map) => {
            let kept = map
                .iter()
                .filter(|(name, value)| !name.starts_with('$') && !value.is_null());
            Value::Object(kept.map(|(name, value)| (name.clone(), plain(value))).collect())
        }
        Value::Array(items) => {
            let kept = items
                .iter()
                .filter(|item| item.get(PATCH).is_none_or(|word| word == "merge"));
            Value::Array(kept.map(plain).collect())
        }
        other => other.clone(),
    }
}

fn lists(
    kind: &Type,
    name: &str,
    below: Option<Value>,
    patch: &[Value],
    order: Option<&Value>,
) -> Result<Vec<Value>, PatchError> {
    let mut items = match below {
        None | Some(Value::Null) => Vec::new(),
        Some(Value::Array(items)) => items,
        Some(_) => return Err(PatchError::NotAList { field: name.to_owned() }),
    };
    // An item that is nothing but this directive speaks of the list.
    let whole = |item: &&Value| item[PATCH] == "replace" && item.as_object().is_some_and(|item| item.len() == 1);
    if patch.iter().any(|item| whole(&item)) {
        return Ok(patch.iter().filter(|item| !whole(item)).map(plain).collect());
    }
    for change in patch {
        let word = change.as_object().map_or(Ok("merge"), directive)?;
        let element = element(kind, 0, change);
        if let (Type::List { keys, .. }, Element::Index(_)) = (kind, &element) {
            let keys: Vec<&str> = keys.iter().map(|key| &*key.name).collect();
            return Err(PatchError::NoKey {
                field: name.to_owned(),
                keys: keys.join(", "),
            });
        }
        let known = items.iter().position(|item| self::element(kind, 0, item) == element);
        match (known, word) {
            (Some(_), "delete") => items.retain(|item| self::element(kind, 0, item) != element),
            (None, "delete") => {}
            (Some(known), "merge") => {
                if let (Some(change), Some(item)) = (change.as_object(), items[known].as_object()) {
                    items[known] = Value::Object(maps(kind.item(), item.clone(), change)?);
                }
            }
            (Some(known), _) => items[known] = plain(change),
            (None, _) => items.push(plain(change)),
        }
    }
    match order {
        Some(Value::Array(order)) => Ok(ordered(kind, items, order)),
        Some(other) => Err(wrong(&format!("{ORDER}{name}"), other)),
        None => Ok(items),
    }
}

/// Brings items into the order that the sender gave. Those that it does not know stay behind what they came after.
fn ordered(kind: &Type, items: Vec<Value>, order: &[Value]) -> Vec<Value> {
    let place: BTreeMap<Element, usize> = order.iter().map(|item| element(kind, 0, item)).zip(0..).collect();
    let mut known: Vec<(usize, Value)> = Vec::new();
    // What stays behind each of the known ones; 0: before all.
    let mut behind: BTreeMap<Option<usize>, Vec<Value>> = BTreeMap::new();
    let mut last = None;
    for item in items {
        match place.get(&element(kind, 0, &item)) {
            Some(place) => {
                last = Some(*place);
                known.push((*place, item));
            }
            None => behind.entry(last).or_default().push(item),
        }
    }
    known.sort_by_key(|(place, _)| *place);
    let mut sorted = behind.remove(&None).unwrap_or_default();
    for (place, item) in known {
        sorted.push(item);
        sorted.append(&mut behind.remove(&Some(place)).unwrap_or_default());
    }
    sorted
}
