//! What a value has, and in what two values differ.

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value};

use crate::element::{Element, Path};
use crate::schema::{Key, Schema, Type};
use crate::set::Set;

/// A value as its type sees it.
pub(crate) enum Form<'a> {
    /// As a whole.
    Whole,
    /// Entries. Null is a map without any.
    Map(Option<&'a Map<String, Value>>),
    /// Items that are told apart. Null is a list without any.
    List(&'a [Value]),
}

/// A value that does not fit its type is taken as a whole; that it does not fit is for others to say.
pub(crate) fn form<'a>(kind: &Type, value: &'a Value) -> Form<'a> {
    match (kind, value) {
        (Type::Map { .. } | Type::Deduced, Value::Object(map)) => Form::Map(Some(map)),
        (Type::Map { .. }, Value::Null) => Form::Map(None),
        (Type::Set | Type::List { .. }, Value::Array(items)) => Form::List(items),
        (Type::Set | Type::List { .. }, Value::Null) => Form::List(&[]),
        _ => Form::Whole,
    }
}

/// What tells an item from the others; by its place where nothing else does.
pub(crate) fn element(kind: &Type, index: usize, item: &Value) -> Element {
    match kind {
        Type::List { keys, .. } => Element::of_item(keys, item).unwrap_or(Element::Index(index)),
        _ => Element::of_value(item),
    }
}

/// The fields that an object has.
pub fn fields(schema: &Schema, object: &Value) -> Set {
    let mut set = below(&schema.root, object);
    set.set_member(false);
    set
}

fn below(kind: &Type, value: &Value) -> Set {
    let mut set = Set::new();
    match form(kind, value) {
        Form::Whole => set.set_member(true),
        Form::Map(map) => {
            for (name, value) in map.into_iter().flatten() {
                let (kind, declared) = kind.below(name);
                let mut branch = self::below(kind, value);
                let bare = value.is_null() || value.as_object().is_some_and(Map::is_empty);
                if bare || !declared {
                    branch.set_member(true);
                }
                set.graft(Element::field(name), branch);
            }
        }
        Form::List(items) => {
            for (index, item) in items.iter().enumerate() {
                let element = element(kind, index, item);
                let mut branch = match set.child(&element) {
                    // Of doubles nobody can say what is in which.
                    Some(_) => Set::new(),
                    None => self::below(kind.item(), item),
                };
                branch.set_member(true);
                set.graft(element, branch);
            }
        }
    }
    set
}

/// In what two objects differ.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Comparison {
    /// What is only in the new one, and every place that came with it.
    pub added: Set,
    /// What is in both, and different.
    pub modified: Set,
    /// What is only in the old one, and every place that went with it.
    pub removed: Set,
}

impl Comparison {
    /// Whether they are the same.
    pub fn is_same(&self) -> bool {
        self.added.is_empty() && self.modified.is_empty() && self.removed.is_empty()
    }

    /// What the new object has that the old one had not, or not so.
    pub fn written(&self) -> Set {
        self.added.clone().union(&self.modified)
    }

    /// Everything that is different.
    pub fn changed(&self) -> Set {
        self.written().union(&self.removed)
    }

    fn leaf(old: Option<&Value>, new: Option<&Value>) -> Comparison {
        let mut comparison = Comparison::default();
        match (old, new) {
            (None, Some(_)) => comparison.added = Set::here(),
            (Some(_), None) => comparison.removed = Set::here(),
            (Some(old), Some(new)) if old != new => comparison.modified = Set::here(),
            _ => {}
        }
        comparison
    }

    fn graft(&mut self, element: &Element, below: Comparison) {
        self.added.graft(element.clone(), below.added);
        self.modified.graft(element.clone(), below.modified);
        self.removed.graft(element.clone(), below.removed);
    }

    /// The same, for the parts that `keep` says.
    #[must_use]
    pub(crate) fn map(self, keep: impl Fn(Set) -> Set) -> Comparison {
        Comparison {
            added: keep(self.added),
            modified: keep(self.modified),
            removed: keep(self.removed),
        }
    }
}

/// In what two objects differ.
pub fn compare(schema: &Schema, old: &Value, new: &Value) -> Comparison {
    let mut comparison = differences(&schema.root, Some(old), Some(new));
    for set in [&mut comparison.added, &mut comparison.modified, &mut comparison.removed] {
        set.set_member(false);
    }
    comparison
}

fn differences(kind: &Type, old: Option<&Value>, new: Option<&Value>) -> Comparison {
    if old == new {
        return Comparison::default();
    }
    let forms = (old.map(|old| form(kind, old)), new.map(|new| form(kind, new)));
    let mut comparison = match forms {
        (None | Some(Form::Map(_)), None | Some(Form::Map(_))) => maps(kind, old, new),
        (None | Some(Form::List(_)), None | Some(Form::List(_))) => lists(kind, old, new),
        _ => return Comparison::leaf(old, new),
    };
    let Some(comparison) = &mut comparison else {
        return Comparison::leaf(old, new);
    };
    comparison.added.set_member(old.is_none());
    comparison.removed.set_member(new.is_none());
    std::mem::take(comparison)
}

/// `None`: there is nothing in either.
fn maps(kind: &Type, old: Option<&Value>, new: Option<&Value>) -> Option<Comparison> {
    let empty = Map::new();
    let old = old.and_then(Value::as_object).unwrap_or(&empty);
    let new = new.and_then(Value::as_object).unwrap_or(&empty);
    if old.is_empty() && new.is_empty() {
        return None;
    }
    let mut comparison = Comparison::default();
    for (name, value) in old {
        let below = differences(kind.below(name).0, Some(value), new.get(name));
        comparison.graft(&Element::field(name), below);
    }
    for (name, value) in new.iter().filter(|(name, _)| !old.contains_key(*name)) {
        let below = differences(kind.below(name).0, None, Some(value));
        comparison.graft(&Element::field(name), below);
    }
    Some(comparison)
}

/// `None`: there is nothing in either.
fn lists(kind: &Type, old: Option<&Value>, new: Option<&Value>) -> Option<Comparison> {
    let (old, new) = (by_element(kind, old), by_element(kind, new));
    if old.is_empty() && new.is_empty() {
        return None;
    }
    let mut comparison = Comparison::default();
    let elements: BTreeSet<&Element> = old.keys().chain(new.keys()).collect();
    for element in elements {
        let none = Vec::new();
        let (old, new) = (old.get(element).unwrap_or(&none), new.get(element).unwrap_or(&none));
        let below = match (old.as_slice(), new.as_slice()) {
            ([], [one]) => differences(kind.item(), None, Some(one)),
            ([one], []) => differences(kind.item(), Some(one), None),
            ([old], [new]) => differences(kind.item(), Some(old), Some(new)),
            (old, new) => {
                // Of doubles nobody can say which is which.
                let one = |items: &[&Value]| (!items.is_empty()).then(|| Value::from(items.len()));
                match (one(old), one(new)) {
                    (Some(_), Some(_)) if old == new => Comparison::default(),
                    (Some(_), Some(_)) => Comparison::leaf(Some(&Value::Null), Some(&Value::Bool(true))),
                    (old, new) => Comparison::leaf(old.as_ref(), new.as_ref()),
                }
            }
        };
        comparison.graft(element, below);
    }
    Some(comparison)
}

fn by_element<'a>(kind: &Type, list: Option<&'a Value>) -> BTreeMap<Element, Vec<&'a Value>> {
    let mut items: BTreeMap<Element, Vec<&Value>> = BTreeMap::new();
    for (index, item) in list.and_then(Value::as_array).into_iter().flatten().enumerate() {
        items.entry(element(kind, index, item)).or_default().push(item);
    }
    items
}

/// Something that an object to be applied must not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// Where.
    pub path: Path,
    /// What.
    pub message: String,
}

/// What is wrong with an object that is to be applied: items of a list that cannot be told apart.
pub fn problems(schema: &Schema, object: &Value) -> Vec<Problem> {
    let mut found = Vec::new();
    look(&schema.root, object, &mut Path::default(), &mut found);
    found
}

fn look(kind: &Type, value: &Value, path: &mut Path, found: &mut Vec<Problem>) {
    match form(kind, value) {
        Form::Whole => {}
        Form::Map(map) => {
            for (name, value) in map.into_iter().flatten() {
                path.0.push(Element::field(name));
                look(kind.below(name).0, value, path, found);
                path.0.pop();
            }
        }
        Form::List(items) => {
            let mut seen = BTreeSet::new();
            for (index, item) in items.iter().enumerate() {
                let element = element(kind, index, item);
                if let (Type::List { keys, .. }, Element::Index(_)) = (kind, &element) {
                    let names: Vec<&str> = keys.iter().map(|key: &Key| &*key.name).collect();
                    let message = format!(
                        "element {index}: associative list with keys has an element that omits key field {:?} (and doesn't have default value)",
                        names.join(", ")
                    );
                    found.push(Problem {
                        path: path.clone(),
                        message,
                    });
                }
                path.0.push(element.clone());
                if seen.insert(element) {
                    look(kind.item(), item, path, found);
                } else {
                    let message = format!("duplicate entries for key {}", path.0.last().expect("just pushed"));
                    found.push(Problem {
                        path: path.clone(),
                        message,
                    });
                }
                path.0.pop();
            }
        }
    }
}
