//! Where the value of a cell is: the part of JSONPath that columns use.
//!
//! Fields (`.a`, `.a\.b`, `['a.b']`), items (`[0]`, `[-1]`, `[*]`) and filters by equality (`[?(@.type=="Ready")]`). A cell may also be
//! the first of several paths that is there (`.a|.b`), a count of entries (`#.a #.b`), a text made from paths (`{.a}/{.b}`), or what a view makes
//! of the object (`@pod.status`).

use serde_json::Value;

/// Where the value of a cell comes from.
#[derive(Debug)]
pub(super) enum Cell {
    /// The first of these that is there.
    First(Vec<Path>),
    /// How many entries these have together.
    Count(Vec<Path>),
    /// Texts and values in turn.
    Text(Vec<(String, Option<Path>)>),
    /// What code makes of the object.
    Made(fn(&Value) -> Value),
}

/// A way into an object.
#[derive(Debug, PartialEq)]
pub(super) struct Path(Vec<Step>);

#[derive(Debug, PartialEq)]
enum Step {
    Field(String),
    Item(i64),
    All,
    Where { path: Path, equals: Value },
}

impl Cell {
    /// Reads the description. What cannot be understood selects nothing.
    pub(super) fn parse(text: &str) -> Cell {
        let text = text.trim();
        if let Some(made) = text.strip_prefix('@').and_then(crate::views::cell) {
            return Cell::Made(made);
        }
        if text.starts_with('#') {
            return Cell::Count(
                text.split_whitespace()
                    .map(|part| Path::parse(part.trim_start_matches('#')))
                    .collect(),
            );
        }
        if !text.contains('{') {
            // A bar may stand inside of a filter; the alternatives of ours have none then.
            let alternatives = if text.contains("[?") {
                vec![text]
            } else {
                text.split('|').collect()
            };
            return Cell::First(alternatives.into_iter().map(Path::parse).collect());
        }
        let mut parts = Vec::new();
        let mut rest = text;
        while let Some((before, behind)) = rest.split_once('{') {
            let (path, after) = behind.split_once('}').unwrap_or((behind, ""));
            parts.push((before.to_owned(), Some(Path::parse(path))));
            rest = after;
        }
        parts.push((rest.to_owned(), None));
        Cell::Text(parts)
    }

    /// The value for the object; `None` when it is not there.
    pub(super) fn read(&self, object: &Value) -> Option<Value> {
        match self {
            Cell::Made(cell) => Some(cell(object)),
            Cell::First(paths) => paths.iter().find_map(|path| path.read(object)),
            Cell::Count(paths) => {
                let count = |path: &Path| match path.read(object) {
                    Some(Value::Array(list)) => list.len(),
                    Some(Value::Object(map)) => map.len(),
                    _ => 0,
                };
                Some(Value::from(paths.iter().map(count).sum::<usize>()))
            }
            Cell::Text(parts) => {
                let shown = |(before, path): &(String, Option<Path>)| {
                    let value = path.as_ref().and_then(|path| path.read(object));
                    format!("{before}{}", value.as_ref().map_or_else(String::new, super::path::text))
                };
                Some(Value::String(parts.iter().map(shown).collect()))
            }
        }
    }
}

impl Path {
    fn parse(text: &str) -> Path {
        let mut steps = Vec::new();
        let mut rest = text.trim().trim_start_matches('$');
        while !rest.is_empty() {
            if let Some(behind) = rest.strip_prefix('[') {
                let end = closing(behind);
                steps.extend(bracket(&behind[..end]));
                rest = behind.get(end + 1..).unwrap_or_default();
            } else {
                let behind = rest.strip_prefix('.').unwrap_or(rest);
                let (name, end) = field(behind);
                if !name.is_empty() {
                    steps.push(Step::Field(name));
                }
                // A path that makes no way forward would be read for ever.
                rest = if end == 0 && behind.len() == rest.len() {
                    ""
                } else {
                    &behind[end..]
                };
            }
        }
        Path(steps)
    }

    /// The value there. Several, when the path names several, are a list; one of them is that one.
    fn read(&self, value: &Value) -> Option<Value> {
        let mut found = vec![value];
        for step in &self.0 {
            found = found.into_iter().flat_map(|value| step.below(value)).collect();
        }
        found.retain(|value| !value.is_null());
        match found.as_slice() {
            [] => None,
            [one] => Some((*one).clone()),
            several => Some(Value::Array(several.iter().map(|value| (*value).clone()).collect())),
        }
    }
}

impl Step {
    fn below<'a>(&self, value: &'a Value) -> Vec<&'a Value> {
        match self {
            Step::Field(name) => value.get(name).into_iter().collect(),
            Step::Item(index) => {
                let list = value.as_array();
                let index = list.and_then(|list| match usize::try_from(*index) {
                    Ok(index) => Some(index),
                    Err(_) => list.len().checked_sub(usize::try_from(index.unsigned_abs()).ok()?),
                });
                index.and_then(|index| value.get(index)).into_iter().collect()
            }
            Step::All => match value {
                Value::Array(list) => list.iter().collect(),
                Value::Object(map) => map.values().collect(),
                _ => Vec::new(),
            },
            Step::Where { path, equals } => {
                let items = value.as_array().into_iter().flatten();
                items.filter(|item| path.read(item).as_ref() == Some(equals)).collect()
            }
        }
    }
}

/// The name at the beginning, and where it ends; a backslash takes the next character as it is.
fn field(text: &str) -> (String, usize) {
    let mut name = String::new();
    let mut characters = text.char_indices();
    while let Some((at, character)) = characters.next() {
        match character {
            '.' | '[' => return (name, at),
            '\\' => name.extend(characters.next().map(|(_, escaped)| escaped)),
            other => name.push(other),
        }
    }
    (name, text.len())
}

/// Where the bracket that is open before `text` closes.
fn closing(text: &str) -> usize {
    let mut depth = 0usize;
    let mut quote = None;
    for (at, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), character) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, '[') => depth += 1,
            (None, ']') if depth == 0 => return at,
            (None, ']') => depth -= 1,
            (None, _) => {}
        }
    }
    text.len()
}

fn bracket(text: &str) -> Option<Step> {
    let text = text.trim();
    if text == "*" {
        return Some(Step::All);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        let (path, value) = filter.split_once("==")?;
        let equals = match unquoted(value.trim()) {
            Some(text) => Value::String(text.to_owned()),
            None => serde_json::from_str(value.trim()).ok()?,
        };
        return Some(Step::Where {
            path: Path::parse(path.trim().trim_start_matches('@')),
            equals,
        });
    }
    match unquoted(text) {
        Some(name) => Some(Step::Field(name.to_owned())),
        None => text.parse().ok().map(Step::Item),
    }
}

fn unquoted(text: &str) -> Option<&str> {
    let inner = |quote: char| text.strip_prefix(quote)?.strip_suffix(quote);
    inner('"').or_else(|| inner('\''))
}

/// A value as text: a list is its items with commas between them.
pub(super) fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Array(list) => list.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
