//! The walk over one object.

use std::collections::BTreeSet;
use std::fmt;
use std::sync::LazyLock;

use muster_api::validation::{Reason, Violation};
use serde_json::{Map, Value};

use super::{Bounds, Kind, ListKind, Node, Schema, SchemaOutcome, UnknownField, compile, suggest};
use crate::resource::Resource;

/// So many problems of each kind are named at most; whoever has more wants to start over, and the answer stays small.
const PROBLEMS_MAX: usize = 100;

static METADATA: LazyLock<Node> = LazyLock::new(|| {
    compile::node(&crate::kinds::metadata_rules(), "metadata").expect("the type of metadata has a structural schema")
});

/// Fills in the defaults of `object`, takes out what the kind's schema does not know, and says what is wrong.
///
/// Metadata is held against the fields that metadata has in every kind.
pub fn check(resource: &Resource, object: &mut Value) -> SchemaOutcome {
    let mut walk = Walk {
        outcome: SchemaOutcome::default(),
        scratch: false,
    };
    walk.node(resource.compiled.root(), object, &Path::ROOT, Some(&METADATA));
    walk.outcome
}

/// The way to a place in a schema: keywords, and under `properties` the name.
pub(crate) type Place = Vec<(&'static str, Option<String>)>;

impl Schema {
    /// The defaults that are not of the shape of their own places, with what is wrong with them.
    pub(crate) fn wrong_defaults(&self) -> Vec<(Place, String)> {
        let mut found = Vec::new();
        wrong_defaults(&self.root, &mut Vec::new(), &mut found);
        found
    }
}

fn wrong_defaults(node: &Node, place: &mut Place, found: &mut Vec<(Place, String)>) {
    if let Some(default) = &node.default {
        let mut walk = Walk {
            outcome: SchemaOutcome::default(),
            scratch: false,
        };
        walk.node(node, &mut default.clone(), &Path::ROOT, None);
        let unknown = walk
            .outcome
            .unknown
            .first()
            .map(|unknown| format!("unknown field \"{}\"", unknown.path));
        let wrong = walk
            .outcome
            .violations
            .first()
            .map(|violation| violation.message.clone());
        found.extend(wrong.or(unknown).map(|problem| (place.clone(), problem)));
    }
    let properties = node
        .properties
        .iter()
        .map(|(name, below)| ("properties", Some(name.to_string()), below));
    let items = node.items.iter().map(|below| ("items", None, &**below));
    let entries = node
        .entries
        .iter()
        .map(|below| ("additionalProperties", None, &**below));
    for (keyword, name, below) in properties.chain(items).chain(entries) {
        place.push((keyword, name));
        wrong_defaults(below, place, found);
        place.pop();
    }
}

/// The way down to a place, written out only when there is something to say about it.
struct Path<'a> {
    above: Option<&'a Path<'a>>,
    step: Step<'a>,
}

enum Step<'a> {
    Root,
    Field(&'a str),
    Entry(&'a str),
    Item(usize),
}

impl Path<'_> {
    const ROOT: Path<'static> = Path {
        above: None,
        step: Step::Root,
    };
}

impl<'a> Path<'a> {
    fn to(&'a self, step: Step<'a>) -> Path<'a> {
        Path {
            above: Some(self),
            step,
        }
    }
}

impl fmt::Display for Path<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(above) = self.above {
            above.fmt(f)?;
        }
        match self.step {
            Step::Root => Ok(()),
            Step::Field(name) if matches!(self.above, Some(Path { step: Step::Root, .. })) => f.write_str(name),
            Step::Field(name) => write!(f, ".{name}"),
            Step::Entry(key) => write!(f, "[{key}]"),
            Step::Item(index) => write!(f, "[{index}]"),
        }
    }
}

struct Walk {
    outcome: SchemaOutcome,
    /// Only whether there are violations matters.
    scratch: bool,
}

impl Walk {
    fn say(&mut self, reason: Reason, path: &Path<'_>, message: impl FnOnce(&str) -> String) {
        if self.outcome.violations.len() < PROBLEMS_MAX {
            let field = if self.scratch { String::new() } else { path.to_string() };
            let message = message(&field);
            self.outcome.violations.push(Violation { reason, field, message });
        }
    }

    fn node(&mut self, node: &Node, value: &mut Value, path: &Path<'_>, metadata: Option<&Node>) {
        if value.is_null() && node.nullable {
            return;
        }
        if !self.kind(node, value, path) {
            return;
        }
        match value {
            Value::Object(map) => self.object(node, map, path, metadata),
            Value::Array(list) => self.list(node, list, path),
            Value::String(_) | Value::Number(_) | Value::Bool(_) | Value::Null => self.scalar(node, value, path),
        }
        if let Some(bounds) = &node.bounds {
            self.bounds(bounds, value, path);
        }
    }

    /// Whether the value is of the type; says so when not.
    fn kind(&mut self, node: &Node, value: &mut Value, path: &Path<'_>) -> bool {
        let fits = match node.kind {
            Kind::Any => !value.is_null() || node.preserve,
            Kind::Object => value.is_object(),
            Kind::Array => value.is_array(),
            Kind::String => value.is_string(),
            Kind::Boolean => value.is_boolean(),
            Kind::Number => value.is_number(),
            Kind::Integer => whole(value),
            Kind::IntOrString => value.is_string() || value.is_number(),
        };
        if !fits {
            let (expected, found) = (node.kind.name(), kind_name(value));
            self.say(Reason::FieldValueTypeInvalid, path, |field| {
                format!("Invalid value: \"{found}\": {field} in body must be of type {expected}: \"{found}\"")
            });
        }
        fits
    }

    fn object(&mut self, node: &Node, map: &mut Map<String, Value>, path: &Path<'_>, metadata: Option<&Node>) {
        if !node.preserve && node.entries.is_none() && !self.scratch {
            self.prune(node, map, path);
        }
        for (name, below) in &node.properties {
            let name = &**name;
            if map.get(name).is_some_and(|value| value.is_null() && !below.nullable) {
                map.remove(name);
            }
            if let Some(default) = &below.default
                && !map.contains_key(name)
            {
                map.insert(name.to_owned(), default.clone());
            }
            if let Some(value) = map.get_mut(name) {
                let metadata = if node.embedded { Some(&*METADATA) } else { metadata };
                let below = metadata.filter(|_| name == "metadata").unwrap_or(below);
                self.node(below, value, &path.to(Step::Field(name)), None);
            }
        }
        if let Some(entries) = &node.entries {
            if !entries.nullable {
                map.retain(|name, value| !value.is_null() || node.properties.contains_key(name.as_str()));
            }
            for (key, value) in map
                .iter_mut()
                .filter(|(key, _)| !node.properties.contains_key(key.as_str()))
            {
                self.node(entries, value, &path.to(Step::Entry(key)), None);
            }
        }
        let names: &[&str] = if node.embedded && !self.scratch {
            &["apiVersion", "kind"]
        } else {
            &[]
        };
        for name in names {
            if map.get(*name).and_then(Value::as_str).is_none_or(str::is_empty) {
                self.say(Reason::FieldValueRequired, &path.to(Step::Field(name)), |_| {
                    "Required value: must not be empty".to_owned()
                });
            }
        }
        for name in &node.required {
            if !map.contains_key(&**name) {
                self.say(Reason::FieldValueRequired, &path.to(Step::Field(name)), |_| {
                    "Required value".to_owned()
                });
            }
        }
    }

    fn prune(&mut self, node: &Node, map: &mut Map<String, Value>, path: &Path<'_>) {
        if map.keys().all(|name| node.properties.contains_key(name.as_str())) {
            return;
        }
        let outcome = &mut self.outcome;
        map.retain(|name, _| {
            let known = node.properties.contains_key(name.as_str());
            if !known && outcome.unknown.len() < PROBLEMS_MAX {
                let suggestion = suggest(name, node.properties.keys().map(|known| &**known));
                outcome.unknown.push(UnknownField {
                    path: path.to(Step::Field(name)).to_string(),
                    suggestion: suggestion.map(str::to_owned),
                });
            }
            known
        });
    }

    fn list(&mut self, node: &Node, list: &mut [Value], path: &Path<'_>) {
        if let Some(items) = &node.items {
            for (index, item) in list.iter_mut().enumerate() {
                self.node(items, item, &path.to(Step::Item(index)), None);
            }
        }
        if list.len() < 2 || node.list == ListKind::Atomic {
            return;
        }
        let mut seen = BTreeSet::new();
        for (index, item) in list.iter().enumerate() {
            let identity = match &node.list {
                ListKind::Atomic => return,
                ListKind::Set => item.to_string(),
                ListKind::Map(keys) => {
                    let part = |key: &str| item.get(key).map(|value| (key.to_owned(), value.clone()));
                    Value::Object(keys.iter().filter_map(|key| part(key)).collect()).to_string()
                }
            };
            if seen.contains(&identity) {
                self.say(Reason::FieldValueDuplicate, &path.to(Step::Item(index)), |_| {
                    format!("Duplicate value: {identity}")
                });
            }
            seen.insert(identity);
        }
    }

    fn scalar(&mut self, node: &Node, value: &Value, path: &Path<'_>) {
        if !node.options.is_empty() && !node.options.contains(value) {
            self.say(Reason::FieldValueNotSupported, path, |_| {
                let known: Vec<String> = node
                    .options
                    .iter()
                    .filter(|option| !option.is_null())
                    .map(shown)
                    .collect();
                let names = node.options.iter().filter_map(Value::as_str);
                let meant = value.as_str().and_then(|text| suggest(text, names));
                let hint = meant.map_or_else(String::new, |meant| format!("; did you mean \"{meant}\"?"));
                format!(
                    "Unsupported value: {}: supported values: {}{hint}",
                    shown(value),
                    known.join(", ")
                )
            });
        }
        let Some(format) = node.format else { return };
        if !format.fits(value) {
            let name = format.name();
            self.say(Reason::FieldValueInvalid, path, |field| {
                format!(
                    "Invalid value: {0}: {field} in body must be of type {name}: {0}",
                    shown(value)
                )
            });
        }
    }

    fn bounds(&mut self, bounds: &Bounds, value: &Value, path: &Path<'_>) {
        let mut problems = Vec::new();
        if let Some(number) = value.as_f64() {
            problems.extend(number_problem(bounds, number));
        }
        if let Some(text) = value.as_str() {
            let length = text.chars().count();
            if bounds.max_length.is_some_and(|most| length > most) {
                let most = bounds.max_length.unwrap_or_default();
                self.say(Reason::FieldValueTooLong, path, |_| {
                    format!("Too long: may not be more than {most} bytes")
                });
            }
            if let Some(least) = bounds.min_length.filter(|least| length < *least) {
                problems.push(format!("should be at least {least} chars long"));
            }
            if let Some(pattern) = bounds.pattern.as_ref().filter(|pattern| !pattern.is_match(text)) {
                problems.push(format!("should match '{pattern}'"));
            }
        }
        if let Some(list) = value.as_array() {
            if let Some(most) = bounds.max_items.filter(|most| list.len() > *most) {
                let message = format!("Too many: {}: must have at most {most} items", list.len());
                self.say(Reason::FieldValueTooLong, path, |_| message);
            }
            if let Some(least) = bounds.min_items.filter(|least| list.len() < *least) {
                problems.push(format!("should have at least {least} items"));
            }
        }
        if let Some(map) = value.as_object() {
            if let Some(most) = bounds.max_properties.filter(|most| map.len() > *most) {
                let message = format!("Too many: {}: must have at most {most} items", map.len());
                self.say(Reason::FieldValueTooLong, path, |_| message);
            }
            if let Some(least) = bounds.min_properties.filter(|least| map.len() < *least) {
                problems.push(format!("should have at least {least} properties"));
            }
        }
        problems.extend(logic_problem(bounds, value));
        for problem in problems {
            let shown = shown(value);
            let say = |field: &str| format!("Invalid value: {shown}: {field} in body {problem}");
            self.say(Reason::FieldValueInvalid, path, say);
        }
    }
}

fn number_problem(bounds: &Bounds, number: f64) -> Option<String> {
    // Within what a division of doubles rounds off.
    let multiple = |of: f64| ((number / of).round() - number / of).abs() < 1e-9;
    if let Some(of) = bounds.multiple_of.filter(|of| !multiple(*of)) {
        return Some(format!("should be a multiple of {of}"));
    }
    let low = bounds
        .minimum
        .filter(|least| number < *least || (bounds.exclusive_minimum && number == *least));
    let high = bounds
        .maximum
        .filter(|most| number > *most || (bounds.exclusive_maximum && number == *most));
    if let Some(least) = low {
        let or_equal = if bounds.exclusive_minimum { "" } else { " or equal to" };
        return Some(format!("should be greater than{or_equal} {least}"));
    }
    high.map(|most| {
        let or_equal = if bounds.exclusive_maximum { "" } else { " or equal to" };
        format!("should be less than{or_equal} {most}")
    })
}

fn logic_problem(bounds: &Bounds, value: &Value) -> Option<String> {
    let holds = |node: &Node| {
        let mut walk = Walk {
            outcome: SchemaOutcome::default(),
            scratch: true,
        };
        walk.node(node, &mut value.clone(), &Path::ROOT, None);
        walk.outcome.violations.is_empty()
    };
    if !bounds.all_of.iter().all(holds) {
        return Some("must validate all the schemas (allOf)".to_owned());
    }
    if !bounds.any_of.is_empty() && !bounds.any_of.iter().any(holds) {
        return Some("must validate at least one schema (anyOf)".to_owned());
    }
    if !bounds.one_of.is_empty() && bounds.one_of.iter().filter(|node| holds(node)).count() != 1 {
        return Some("must validate one and only one schema (oneOf)".to_owned());
    }
    bounds
        .not
        .as_ref()
        .filter(|node| holds(node))
        .map(|_| "must not validate the schema (not)".to_owned())
}

/// Whether the value is a whole number; one written as `2.0` becomes `2`.
fn whole(value: &mut Value) -> bool {
    if value.is_i64() || value.is_u64() {
        return true;
    }
    // Up to here, every whole number of a double is exact.
    const EXACT: f64 = 9_007_199_254_740_992.0;
    match value.as_f64() {
        Some(number) if number.fract() == 0.0 && number.abs() <= EXACT => {
            *value = Value::from(number as i64);
            true
        }
        _ => false,
    }
}

fn kind_name(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(number) if number.is_f64() => "number",
        Value::Number(_) => "integer",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

/// A scalar as it is shown in messages; whatever is longer is cut, and of lists and objects only their type is told.
pub(super) fn shown(value: &Value) -> String {
    match value {
        Value::String(text) if text.chars().count() > 128 => {
            Value::String(text.chars().take(128).chain("…".chars()).collect()).to_string()
        }
        Value::Array(_) | Value::Object(_) => format!("\"{}\"", kind_name(value)),
        scalar => scalar.to_string(),
    }
}
