//! Parts of objects, by the templates of kubectl: text with `{.path[0].key}`, `{range .items[*]}…{end}`, `{"\n"}` in it.
//!
//! Paths know `.key`, `['key']`, `[0]`, `[-1]`, `[1:3]`, `[*]`, `..key` and filters as `[?(@.type=="Ready")]`. A bare path without braces
//! is a template of that path. What a path does not find prints as nothing.

use serde_json::Value;

/// A template, read.
#[derive(Clone, Debug, PartialEq)]
pub struct Template(Vec<Part>);

#[derive(Clone, Debug, PartialEq)]
enum Part {
    Text(String),
    Path(Vec<Step>),
    Range(Vec<Step>, Vec<Part>),
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Key(String),
    Index(i64),
    Slice(Option<i64>, Option<i64>),
    All,
    Below(String),
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    path: Vec<Step>,
    test: Option<(Comparison, Value)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    More,
    AtMost,
    AtLeast,
}

impl Template {
    /// Reads a template.
    pub fn parse(text: &str) -> Result<Template, String> {
        let bare = !text.contains('{') && (text.starts_with(['.', '[', '$']) || !text.is_empty());
        let text = match bare {
            true if text.starts_with(['.', '[', '$']) => format!("{{{text}}}"),
            true => format!("{{.{text}}}"),
            false => text.to_owned(),
        };
        let mut reader = Reader { rest: &text };
        let parts = reader.parts(false)?;
        Ok(Template(parts))
    }

    /// What the template makes of a value.
    pub fn render(&self, value: &Value) -> String {
        let mut text = String::new();
        render(&self.0, value, &mut text);
        text
    }

    /// Everything that the paths of the template find.
    pub fn find<'v>(&self, value: &'v Value) -> Vec<&'v Value> {
        let paths = self.0.iter().filter_map(|part| match part {
            Part::Path(steps) => Some(walk(steps, value)),
            Part::Text(_) | Part::Range(..) => None,
        });
        paths.flatten().collect()
    }
}

fn render(parts: &[Part], current: &Value, text: &mut String) {
    for part in parts {
        match part {
            Part::Text(plain) => text.push_str(plain),
            Part::Path(steps) => {
                let found: Vec<String> = walk(steps, current).into_iter().map(show).collect();
                text.push_str(&found.join(" "));
            }
            Part::Range(steps, inner) => walk(steps, current)
                .into_iter()
                .for_each(|item| render(inner, item, text)),
        }
    }
}

fn show(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        other => other.to_string(),
    }
}

fn walk<'v>(steps: &[Step], value: &'v Value) -> Vec<&'v Value> {
    let mut found = vec![value];
    for step in steps {
        found = found.into_iter().flat_map(|value| take(step, value)).collect();
    }
    found
}

fn take<'v>(step: &Step, value: &'v Value) -> Vec<&'v Value> {
    let children = || -> Vec<&'v Value> {
        match value {
            Value::Array(items) => items.iter().collect(),
            Value::Object(map) => map.values().collect(),
            _ => Vec::new(),
        }
    };
    match step {
        Step::Key(key) => value.get(key).into_iter().collect(),
        Step::All => children(),
        Step::Filter(filter) => children().into_iter().filter(|child| filter.holds(child)).collect(),
        Step::Below(key) => {
            let here = value.get(key).into_iter();
            here.chain(children().into_iter().flat_map(|child| take(step, child)))
                .collect()
        }
        Step::Index(index) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            position(*index, items.len())
                .and_then(|index| items.get(index))
                .into_iter()
                .collect()
        }
        Step::Slice(from, to) => {
            let items = value.as_array().map_or(&[][..], Vec::as_slice);
            let bound = |bound: Option<i64>, default| {
                bound
                    .map_or(default, |at| position(at, items.len()).unwrap_or(0))
                    .min(items.len())
            };
            let (from, to) = (bound(*from, 0), bound(*to, items.len()));
            items.get(from..to.max(from)).unwrap_or_default().iter().collect()
        }
    }
}

fn position(index: i64, length: usize) -> Option<usize> {
    if index >= 0 {
        usize::try_from(index).ok()
    } else {
        length.checked_sub(usize::try_from(index.unsigned_abs()).ok()?)
    }
}

impl Filter {
    fn holds(&self, value: &Value) -> bool {
        let found = walk(&self.path, value);
        let Some((comparison, wanted)) = &self.test else {
            return !found.is_empty();
        };
        let Some(found) = found.first() else {
            return *comparison == Comparison::NotEqual;
        };
        let order = match (found.as_f64(), wanted.as_f64()) {
            (Some(a), Some(b)) => a.partial_cmp(&b),
            _ => show(found).partial_cmp(&show(wanted)),
        };
        use std::cmp::Ordering::{Equal, Greater, Less};
        match comparison {
            Comparison::Equal => order == Some(Equal),
            Comparison::NotEqual => order != Some(Equal),
            Comparison::Less => order == Some(Less),
            Comparison::More => order == Some(Greater),
            Comparison::AtMost => matches!(order, Some(Less | Equal)),
            Comparison::AtLeast => matches!(order, Some(Greater | Equal)),
        }
    }
}

struct Reader<'a> {
    rest: &'a str,
}

impl Reader<'_> {
    fn parts(&mut self, inside: bool) -> Result<Vec<Part>, String> {
        let mut parts = Vec::new();
        loop {
            let Some(open) = self.rest.find('{') else {
                if inside {
                    return Err("`{range …}` has no `{end}`".to_owned());
                }
                if !self.rest.is_empty() {
                    parts.push(Part::Text(std::mem::take(&mut self.rest).to_owned()));
                }
                return Ok(parts);
            };
            if open > 0 {
                parts.push(Part::Text(self.rest[..open].to_owned()));
            }
            self.rest = &self.rest[open + 1..];
            let inner = self.braces()?;
            let inner = inner.trim();
            if inner == "end" {
                return if inside {
                    Ok(parts)
                } else {
                    Err("`{end}` has no `{range …}`".to_owned())
                };
            } else if let Some(path) = inner.strip_prefix("range ") {
                let steps = steps(path.trim())?;
                let body = self.parts(true)?;
                parts.push(Part::Range(steps, body));
            } else if inner.starts_with(['"', '\'']) {
                parts.push(Part::Text(quoted(inner)?));
            } else {
                parts.push(Part::Path(steps(inner)?));
            }
        }
    }

    /// What stands up to the closing brace, which is not one in quotes.
    fn braces(&mut self) -> Result<String, String> {
        let mut quote = None;
        let mut escaped = false;
        for (index, character) in self.rest.char_indices() {
            match (quote, character) {
                (Some(_), _) if escaped => escaped = false,
                (Some(_), '\\') => escaped = true,
                (Some(open), character) if open == character => quote = None,
                (None, '"' | '\'') => quote = Some(character),
                (None, '}') => {
                    let inner = self.rest[..index].to_owned();
                    self.rest = &self.rest[index + 1..];
                    return Ok(inner);
                }
                _ => {}
            }
        }
        Err("a `{` is not closed".to_owned())
    }
}

fn quoted(text: &str) -> Result<String, String> {
    let quote = text.chars().next().unwrap_or('"');
    let inner = text
        .strip_prefix(quote)
        .and_then(|rest| rest.strip_suffix(quote))
        .ok_or_else(|| format!("{text}: a quote is not closed"))?;
    let mut plain = String::new();
    let mut characters = inner.chars();
    while let Some(character) = characters.next() {
        match (character, character == '\\') {
            (_, true) => match characters.next() {
                Some('n') => plain.push('\n'),
                Some('t') => plain.push('\t'),
                Some('r') => plain.push('\r'),
                Some(other) => plain.push(other),
                None => return Err(format!("{text}: a backslash stands at the end")),
            },
            (other, false) => plain.push(other),
        }
    }
    Ok(plain)
}

fn steps(text: &str) -> Result<Vec<Step>, String> {
    let mut rest = text.strip_prefix(['$', '@']).unwrap_or(text);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if let Some(below) = rest.strip_prefix("..") {
            let (key, behind) = key(below)?;
            steps.push(Step::Below(key));
            rest = behind;
        } else if let Some(field) = rest.strip_prefix('.') {
            if field.is_empty() || field.starts_with('[') {
                rest = field;
                continue;
            }
            let (key, behind) = key(field)?;
            steps.push(if key == "*" { Step::All } else { Step::Key(key) });
            rest = behind;
        } else if rest.starts_with('[') {
            let (inner, behind) = brackets(rest)?;
            steps.push(bracket(inner)?);
            rest = behind;
        } else {
            return Err(format!("`{rest}` is no path; one looks like .spec.resources.cpus"));
        }
    }
    Ok(steps)
}

/// A key up to the next `.` or `[`; a backslash takes the next character as it is.
fn key(text: &str) -> Result<(String, &str), String> {
    let mut key = String::new();
    let mut characters = text.char_indices();
    while let Some((index, character)) = characters.next() {
        match character {
            '\\' => key.extend(characters.next().map(|(_, character)| character)),
            '.' | '[' => {
                return if key.is_empty() {
                    Err(format!("`{text}`: a name is missing"))
                } else {
                    Ok((key, &text[index..]))
                };
            }
            character => key.push(character),
        }
    }
    if key.is_empty() {
        Err("a name is missing at the end of the path".to_owned())
    } else {
        Ok((key, ""))
    }
}

fn brackets(text: &str) -> Result<(&str, &str), String> {
    let mut quote = None;
    let mut depth = 0;
    for (index, character) in text.char_indices() {
        match (quote, character) {
            (Some(open), character) if open == character => quote = None,
            (Some(_), _) => {}
            (None, '"' | '\'') => quote = Some(character),
            (None, '[') => depth += 1,
            (None, ']') => {
                depth -= 1;
                if depth == 0 {
                    return Ok((&text[1..index], &text[index + 1..]));
                }
            }
            _ => {}
        }
    }
    Err(format!("`{text}`: a `[` is not closed"))
}

fn bracket(inner: &str) -> Result<Step, String> {
    let inner = inner.trim();
    let number = |text: &str| {
        text.trim()
            .parse::<i64>()
            .map_err(|_| format!("`[{inner}]`: `{text}` is no number"))
    };
    if inner == "*" {
        Ok(Step::All)
    } else if inner.starts_with(['"', '\'']) {
        quoted(inner).map(Step::Key)
    } else if let Some(test) = inner.strip_prefix("?(").and_then(|rest| rest.strip_suffix(')')) {
        filter(test).map(|filter| Step::Filter(Box::new(filter)))
    } else if let Some((from, to)) = inner.split_once(':') {
        let bound = |text: &str| {
            if text.trim().is_empty() {
                Ok(None)
            } else {
                number(text).map(Some)
            }
        };
        Ok(Step::Slice(bound(from)?, bound(to)?))
    } else {
        number(inner).map(Step::Index)
    }
}

fn filter(test: &str) -> Result<Filter, String> {
    let signs = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::AtMost),
        (">=", Comparison::AtLeast),
        ("<", Comparison::Less),
        (">", Comparison::More),
    ];
    let found = signs
        .iter()
        .filter_map(|(sign, comparison)| test.find(sign).map(|at| (at, *sign, *comparison)));
    let Some((at, sign, comparison)) = found.min_by_key(|(at, sign, _)| (*at, std::cmp::Reverse(sign.len()))) else {
        return Ok(Filter {
            path: steps(test.trim())?,
            test: None,
        });
    };
    let wanted = test[at + sign.len()..].trim();
    let wanted = if wanted.starts_with(['"', '\'']) {
        Value::String(quoted(wanted)?)
    } else {
        serde_json::from_str(wanted).map_err(|_| format!("`{wanted}` is no value; a text needs quotes"))?
    };
    Ok(Filter {
        path: steps(test[..at].trim())?,
        test: Some((comparison, wanted)),
    })
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[track_caller]
    fn check(template: &str, expect: &str) {
        let value = json!({
            "metadata": {"name": "a", "labels": {"app.x/y": "z"}},
            "spec": {"n": 2, "list": [1, 2, 3], "yes": true, "map": {"b": 1}},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Stalled", "status": "False"}]},
            "items": [{"name": "x", "n": 1}, {"name": "y", "n": 2}],
        });
        let rendered = Template::parse(template).map(|template| template.render(&value));
        assert_eq!(rendered.as_deref(), Ok(expect), "{template}");
    }

    #[test]
    fn templates_are_filled_in() {
        for (template, expect) in [
            ("{.metadata.name}", "a"),
            (".metadata.name", "a"),
            ("metadata.name", "a"),
            ("{$.metadata.name}", "a"),
            ("{.metadata.labels.app\\.x/y}", "z"),
            ("{.metadata.labels['app.x/y']}", "z"),
            ("{.spec.list[0]}-{.spec.list[-1]}", "1-3"),
            ("{.spec.list[1:]}", "2 3"),
            ("{.spec.list[:-1]}", "1 2"),
            ("{.spec.list[*]}", "1 2 3"),
            ("{.spec.map}", "{\"b\":1}"),
            ("{.spec.yes}{.spec.nothing}", "true"),
            ("{.status.conditions[?(@.type==\"Ready\")].status}", "True"),
            ("{.status.conditions[?(@.type!='Ready')].status}", "False"),
            ("{.items[?(@.n>1)].name}", "y"),
            ("{.items[?(@.n>=1)].name}", "x y"),
            ("{.items[?(@.missing)].name}", ""),
            ("{range .items[*]}{.name}={.n}{\"\\n\"}{end}", "x=1\ny=2\n"),
            ("{..name}", "x y a"),
            ("name: {.metadata.name}\n", "name: a\n"),
            ("{.a.b.c[5].d}", ""),
        ] {
            check(template, expect);
        }
    }

    #[test]
    fn bad_templates_are_refused() {
        for template in [
            "{.a",
            "{.a[}",
            "{range .a}",
            "{end}",
            "{.a[x]}",
            "{\"x}",
            "{.a..}",
            "{.a[?(@.b==c)]}",
        ] {
            assert!(Template::parse(template).is_err(), "{template}");
        }
    }
}
