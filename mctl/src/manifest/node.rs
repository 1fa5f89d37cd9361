//! The tree of a document: every node knows where it stands in the file.

use std::sync::Arc;

use serde_json::{Map, Number, Value};

use super::limits;

/// A place in a file. Lines and columns count from 1, columns in characters.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Span {
    /// The line.
    pub line: usize,
    /// The column.
    pub column: usize,
    /// How many characters of the line, at least one.
    pub length: usize,
}

/// A node, with everything below it.
#[derive(Debug)]
pub struct Node {
    /// Where it stands.
    pub span: Span,
    /// What it is.
    pub value: NodeValue,
    /// How much it weighs with everything below it: one for each node, with each alias counted as often as it is used, and one
    /// for each [`limits::NODE_BYTES`] of text.
    pub size: usize,
    /// How deep it is: 1 for a scalar.
    pub depth: usize,
}

/// What a node is.
#[derive(Debug)]
pub enum NodeValue {
    /// Nothing, `~` or `null`.
    Null,
    /// A boolean, with the word that it was written as.
    Bool(bool, String),
    /// A number, with the text that it was written as; without a value where JSON has none (`.inf`, `1e999`).
    Number(Option<Number>, String),
    /// Text.
    String(String),
    /// A list.
    Sequence(Vec<Arc<Node>>),
    /// A map, in the order of the file.
    Mapping(Vec<Entry>),
}

/// An entry of a map.
#[derive(Clone, Debug)]
pub struct Entry {
    /// The key.
    pub key: String,
    /// Where the key stands.
    pub key_span: Span,
    /// The value.
    pub value: Arc<Node>,
}

impl Node {
    /// A node of what has been read, which knows its size and depth.
    pub fn new(span: Span, value: NodeValue) -> Node {
        let children = |nodes: &mut dyn Iterator<Item = &Arc<Node>>| {
            nodes.fold((0usize, 0usize), |(size, depth), node| {
                (size.saturating_add(node.size), depth.max(node.depth))
            })
        };
        let (size, depth) = match &value {
            NodeValue::Sequence(items) => children(&mut items.iter()),
            NodeValue::Mapping(entries) => children(&mut entries.iter().map(|entry| &entry.value)),
            NodeValue::Null | NodeValue::Bool(..) | NodeValue::Number(..) | NodeValue::String(_) => (0, 0),
        };
        let mut node = Node {
            span,
            value,
            size,
            depth: depth + 1,
        };
        node.size = node.size.saturating_add(node.weight());
        node
    }

    /// How much it weighs without what is below it.
    pub fn weight(&self) -> usize {
        match &self.value {
            NodeValue::String(text) => 1 + text.len() / limits::NODE_BYTES,
            NodeValue::Mapping(entries) => {
                1 + entries
                    .iter()
                    .map(|entry| entry.key.len() / limits::NODE_BYTES)
                    .sum::<usize>()
            }
            NodeValue::Null | NodeValue::Bool(..) | NodeValue::Number(..) | NodeValue::Sequence(_) => 1,
        }
    }

    /// The entry `key` of a map.
    pub fn entry(&self, key: &str) -> Option<&Entry> {
        self.entries().iter().find(|entry| entry.key == key)
    }

    /// The value of the entry `key` of a map.
    pub fn get(&self, key: &str) -> Option<&Arc<Node>> {
        self.entry(key).map(|entry| &entry.value)
    }

    /// The text, if it is one.
    pub fn as_str(&self) -> Option<&str> {
        match &self.value {
            NodeValue::String(text) => Some(text),
            _ => None,
        }
    }

    /// The entries, if it is a map.
    pub fn entries(&self) -> &[Entry] {
        match &self.value {
            NodeValue::Mapping(entries) => entries,
            _ => &[],
        }
    }

    /// The items, if it is a list.
    pub fn items(&self) -> &[Arc<Node>] {
        match &self.value {
            NodeValue::Sequence(items) => items,
            _ => &[],
        }
    }

    /// Whether nothing stands there.
    pub fn is_null(&self) -> bool {
        matches!(self.value, NodeValue::Null)
    }

    /// What it is, in words.
    pub fn kind(&self) -> &'static str {
        match self.value {
            NodeValue::Null => "nothing",
            NodeValue::Bool(..) => "a boolean",
            NodeValue::Number(Some(ref number), _) if number.is_f64() => "a number with a fraction",
            NodeValue::Number(..) => "a number",
            NodeValue::String(_) => "text",
            NodeValue::Sequence(_) => "a list",
            NodeValue::Mapping(_) => "a map",
        }
    }

    /// The value as JSON. A number that JSON cannot hold becomes its text.
    pub fn to_json(&self) -> Value {
        match &self.value {
            NodeValue::Null => Value::Null,
            NodeValue::Bool(value, _) => Value::Bool(*value),
            NodeValue::Number(Some(number), _) => Value::Number(number.clone()),
            NodeValue::Number(None, text) => Value::String(text.clone()),
            NodeValue::String(text) => Value::String(text.clone()),
            NodeValue::Sequence(items) => items.iter().map(|item| item.to_json()).collect(),
            NodeValue::Mapping(entries) => {
                let pairs = entries.iter().map(|entry| (entry.key.clone(), entry.value.to_json()));
                Value::Object(pairs.collect::<Map<_, _>>())
            }
        }
    }

    /// Where the field of this path stands; the nearest field above it that is there, when it is not.
    ///
    /// For an entry of a map that is its value when it is a scalar, and its key otherwise.
    pub fn locate(&self, path: &str) -> Place {
        let mut place = Place {
            span: self.span,
            key: None,
            exact: true,
        };
        let mut node = self;
        for step in steps(path) {
            let index = step.parse::<usize>().ok();
            let below = match &node.value {
                NodeValue::Sequence(items) => match index {
                    Some(index) => items.get(index),
                    None => items.iter().find(|item| item.is_item(&step)),
                }
                .map(|item| (item, None)),
                _ => node.entry(&step).map(|entry| (&entry.value, Some(entry.key_span))),
            };
            let Some((value, key)) = below else {
                place.exact = false;
                return place;
            };
            let scalar = !matches!(
                value.value,
                NodeValue::Sequence(_) | NodeValue::Mapping(_) | NodeValue::Null
            );
            place.span = if scalar { value.span } else { key.unwrap_or(value.span) };
            place.key = key;
            node = value;
        }
        place
    }
}

impl Node {
    /// Whether this is the item of a list that `name="a",port=1` or `="a"` means.
    fn is_item(&self, step: &str) -> bool {
        let same =
            |node: &Node, text: &str| serde_json::from_str(text).is_ok_and(|value: Value| value == node.to_json());
        match step.strip_prefix('=') {
            Some(text) => same(self, text),
            None => {
                let pairs = step.split(',').map(|pair| pair.split_once('=').unwrap_or((pair, "")));
                // A key that the manifest leaves out has its default.
                let known = pairs.filter_map(|(key, text)| Some((self.get(key)?, text)));
                let mut same = known.map(|(value, text)| same(value.as_ref(), text)).peekable();
                same.peek().is_some() && same.all(|same| same)
            }
        }
    }
}

/// Where a field stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Its value, or its key.
    pub span: Span,
    /// Its key.
    pub key: Option<Span>,
    /// Whether the field itself is there, and not only one above it.
    pub exact: bool,
}

/// The steps of a path such as `spec.env[1].name` or `metadata.labels[app.kubernetes.io/name]`; a leading dot is allowed.
fn steps(path: &str) -> Vec<String> {
    let mut steps = Vec::new();
    let mut rest = path.trim_start_matches('.');
    while !rest.is_empty() {
        if let Some(inner) = rest.strip_prefix('[') {
            let (step, behind) = inner.split_once(']').unwrap_or((inner, ""));
            let step = if step.contains('=') {
                step
            } else {
                step.trim_matches(['"', '\''])
            };
            steps.push(step.to_owned());
            rest = behind.strip_prefix('.').unwrap_or(behind);
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(rest[..end].to_owned());
            rest = rest[end..].strip_prefix('.').unwrap_or(&rest[end..]);
        }
    }
    steps
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_split_into_steps() {
        assert_eq!(steps("spec.env[1].name"), ["spec", "env", "1", "name"]);
        assert_eq!(steps(".metadata.labels[app.x/y]"), ["metadata", "labels", "app.x/y"]);
        assert_eq!(steps("metadata.annotations[\"a\"]"), ["metadata", "annotations", "a"]);
        assert_eq!(
            steps(".spec.env[name=\"A\"].value"),
            ["spec", "env", "name=\"A\"", "value"]
        );
        assert_eq!(steps(""), Vec::<String>::new());
    }
}
