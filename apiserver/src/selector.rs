//! Label and field selectors.
//!
//! Parsed once per request, then matched against what the hub extracted when it took the object in. Label selectors follow
//! Kubernetes' grammar, field selectors are equalities. Tested below.

use std::fmt;

use crate::error::{ApiError, Result};

/// A label selector: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LabelSelector(Vec<Requirement>);

#[derive(Clone, Debug, PartialEq, Eq)]
struct Requirement {
    key: String,
    test: LabelTest,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum LabelTest {
    Exists,
    Absent,
    In(Vec<String>),
    NotIn(Vec<String>),
}

impl LabelSelector {
    /// Reads `k`, `!k`, `k=v`, `k==v`, `k!=v`, `k in (a,b)`, `k notin (a,b)`, joined by commas.
    pub fn parse(text: &str) -> Result<LabelSelector> {
        let parts =
            split_outside_parentheses(text).ok_or_else(|| malformed("label", text, "parentheses don't match"))?;
        let parts = parts.into_iter().map(str::trim).filter(|part| !part.is_empty());
        parts
            .map(|part| requirement(part).map_err(|why| malformed("label", text, &why)))
            .collect::<Result<Vec<_>>>()
            .map(LabelSelector)
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// Whether the labels do; `value` gives the value of a label.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> Option<&'a str>) -> bool {
        self.0.iter().all(|requirement| {
            let value = value(&requirement.key);
            let listed = |values: &[String]| value.is_some_and(|value| values.iter().any(|known| known == value));
            match &requirement.test {
                LabelTest::Exists => value.is_some(),
                LabelTest::Absent => value.is_none(),
                LabelTest::In(values) => listed(values),
                LabelTest::NotIn(values) => !listed(values),
            }
        })
    }
}

fn malformed(what: &str, text: &str, why: &str) -> ApiError {
    ApiError::bad_request(format!("unable to parse {what} selector {text:?}: {why}"))
}

fn split_outside_parentheses(text: &str) -> Option<Vec<&str>> {
    let (mut parts, mut start, mut inside) = (Vec::new(), 0, false);
    for (index, character) in text.char_indices() {
        match character {
            '(' if inside => return None,
            '(' => inside = true,
            ')' if !inside => return None,
            ')' => inside = false,
            ',' if !inside => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => (),
        }
    }
    parts.push(&text[start..]);
    (!inside).then_some(parts)
}

fn requirement(part: &str) -> Result<Requirement, String> {
    let (key, test) = if let Some(key) = part.strip_prefix('!') {
        (key.trim(), LabelTest::Absent)
    } else if let Some((key, set)) = part.split_once('(') {
        let set = set.strip_suffix(')').ok_or("text after the closing parenthesis")?;
        let values: Vec<String> = set.split(',').map(|value| value.trim().to_owned()).collect();
        match key.trim().rsplit_once(char::is_whitespace) {
            Some((key, "in")) => (key.trim(), LabelTest::In(values)),
            Some((key, "notin")) => (key.trim(), LabelTest::NotIn(values)),
            _ => return Err("expected `in` or `notin` before the parenthesis".to_owned()),
        }
    } else if let Some((key, value)) = part.split_once("!=") {
        (key.trim(), LabelTest::NotIn(vec![value.trim().to_owned()]))
    } else if let Some((key, value)) = part.split_once("==").or_else(|| part.split_once('=')) {
        (key.trim(), LabelTest::In(vec![value.trim().to_owned()]))
    } else {
        (part, LabelTest::Exists)
    };
    if let Some(problem) = muster_api::names::qualified_name_problem(key) {
        return Err(format!("{key:?} is not the key of a label: {problem}"));
    }
    if let LabelTest::In(values) | LabelTest::NotIn(values) = &test {
        for value in values {
            if let Some(problem) = muster_api::names::label_value_problem(value) {
                return Err(format!("{value:?} is not the value of a label: {problem}"));
            }
        }
    }
    Ok(Requirement {
        key: key.to_owned(),
        test,
    })
}

/// A field selector: every requirement must hold.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector(Vec<FieldRequirement>);

/// A requirement of a [`FieldSelector`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FieldRequirement {
    /// The path of the field.
    pub field: String,
    /// What it is compared with.
    pub value: String,
    /// Whether it must be equal, or must not.
    pub equal: bool,
}

impl FieldSelector {
    /// Reads `path=value`, `path==value`, `path!=value`, joined by commas. A backslash before `,`, `=` or a backslash makes it part
    /// of the value.
    pub fn parse(text: &str) -> Result<FieldSelector> {
        let mut requirements = Vec::new();
        for part in split_unescaped(text) {
            let part = part.trim();
            if part.is_empty() {
                continue;
            }
            let index = part
                .find('=')
                .ok_or_else(|| malformed("field", text, "expected path=value"))?;
            let (left, right) = (&part[..index], &part[index + 1..]);
            let (field, equal) = match left.strip_suffix('!') {
                Some(field) => (field, false),
                None => (left, true),
            };
            let value = right.strip_prefix('=').filter(|_| equal).unwrap_or(right);
            requirements.push(FieldRequirement {
                field: field.trim().to_owned(),
                value: unescape(value.trim()),
                equal,
            });
        }
        Ok(FieldSelector(requirements))
    }

    /// Whether nothing is asked for.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The requirements.
    pub fn requirements(&self) -> &[FieldRequirement] {
        &self.0
    }

    /// The requirements, to be rewritten.
    pub fn requirements_mut(&mut self) -> &mut [FieldRequirement] {
        &mut self.0
    }

    /// The same with other requirements in the place of each.
    pub fn rewritten(self, each: impl FnMut(FieldRequirement) -> Vec<FieldRequirement>) -> FieldSelector {
        FieldSelector(self.0.into_iter().flat_map(each).collect())
    }

    /// Refuses a field that `known` does not know.
    pub fn check(&self, known: impl Fn(&str) -> bool) -> Result<()> {
        match self.0.iter().find(|requirement| !known(&requirement.field)) {
            None => Ok(()),
            Some(unknown) => {
                let message = format!("field label not supported: {}", unknown.field);
                Err(ApiError::bad_request(message))
            }
        }
    }

    /// Whether the fields do; `value` gives the text of a field, empty where there is none.
    pub fn matches<'a>(&self, value: impl Fn(&str) -> &'a str) -> bool {
        self.0
            .iter()
            .all(|requirement| (value(&requirement.field) == requirement.value) == requirement.equal)
    }
}

fn split_unescaped(text: &str) -> Vec<&str> {
    let (mut parts, mut start, mut escaped) = (Vec::new(), 0, false);
    for (index, character) in text.char_indices() {
        match character {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                parts.push(&text[start..index]);
                start = index + 1;
            }
            _ => (),
        }
    }
    parts.push(&text[start..]);
    parts
}

fn unescape(text: &str) -> String {
    let (mut plain, mut escaped) = (String::with_capacity(text.len()), false);
    for character in text.chars() {
        if character == '\\' && !escaped {
            escaped = true;
        } else {
            escaped = false;
            plain.push(character);
        }
    }
    plain
}

impl fmt::Display for FieldRequirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}{}{}", self.field, if self.equal { "=" } else { "!=" }, self.value)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(selector: &str, labels: &[(&str, &str)], expect: bool) {
        let parsed = LabelSelector::parse(selector).expect(selector);
        let value = |key: &str| labels.iter().find(|(known, _)| *known == key).map(|(_, value)| *value);
        assert_eq!(parsed.matches(value), expect, "{selector} on {labels:?}");
    }

    #[test]
    fn label_selectors_follow_the_grammar_of_kubernetes() {
        let labels = [("app", "web"), ("x.y/tier", "front")];
        for selector in [
            "",
            "app",
            "app=web",
            "app==web",
            "app = web",
            "app in (db, web)",
            "app notin (db),x.y/tier",
            "!other",
            "other!=1",
            "other notin (a)",
            "app,x.y/tier=front",
        ] {
            check(selector, &labels, true);
        }
        for selector in [
            "other",
            "!app",
            "app=db",
            "app!=web",
            "app in (db)",
            "app notin (web,db)",
            "app,other",
            "app=",
        ] {
            check(selector, &labels, false);
        }
        for selector in [
            "app in (a",
            "app (a)",
            "a b",
            "=x",
            "app in (a) b",
            "!",
            "a=b c",
            "app in ((a)",
        ] {
            assert!(LabelSelector::parse(selector).is_err(), "{selector}");
        }
    }

    #[test]
    fn field_selectors_are_equalities() {
        let parsed = FieldSelector::parse("spec.framework=a,status.phase!=Running,reason==x\\,y").expect("well-formed");
        let field = |name: &str| match name {
            "spec.framework" => "a",
            "reason" => "x,y",
            _ => "",
        };
        assert!(parsed.matches(field));
        assert!(parsed.check(|name| name != "reason").is_err());
        assert!(FieldSelector::parse("spec.framework").is_err());
        assert!(FieldSelector::parse("").expect("empty").is_empty());
    }
}
