//! What was wrong before and was not touched is let be: a schema that became stricter must not keep anybody from writing the rest of
//! an object, as its labels.

use muster_api::validation::{Reason, Violation};
use serde_json::Value;

/// Whether the violation is about something that is the same in `old`: its place, or any place around it but the whole object.
pub(crate) fn is_inherited(violation: &Violation, object: &Value, old: &Value) -> bool {
    let Some(mut steps) = steps(&violation.field) else {
        return false;
    };
    if violation.reason == Reason::FieldValueRequired {
        // What is not there cannot be the same; whoever lacks it can.
        steps.pop();
    }
    let (mut now, mut before) = (object, old);
    for step in steps {
        (now, before) = match (step.of(now), step.of(before)) {
            (Some(now), Some(before)) => (now, before),
            _ => return false,
        };
        if now == before {
            return true;
        }
    }
    false
}

enum Step<'a> {
    Name(&'a str),
    /// An index of a list, or a key of a map.
    Bracket(&'a str),
}

impl Step<'_> {
    fn of<'v>(&self, value: &'v Value) -> Option<&'v Value> {
        match self {
            Step::Name(name) => value.get(name),
            Step::Bracket(key) if value.is_array() => value.get(key.parse::<usize>().ok()?),
            Step::Bracket(key) => value.get(key),
        }
    }
}

/// The steps of a path such as `spec.parts[1].name`; `None`: it is none.
fn steps(path: &str) -> Option<Vec<Step<'_>>> {
    let (mut steps, mut rest) = (Vec::new(), path);
    while !rest.is_empty() {
        if let Some(behind) = rest.strip_prefix('[') {
            let (key, behind) = behind.split_once(']')?;
            steps.push(Step::Bracket(key));
            rest = behind;
        } else {
            let name = rest.strip_prefix('.').unwrap_or(rest);
            let end = name.find(['.', '[']).unwrap_or(name.len());
            if end == 0 {
                return None;
            }
            steps.push(Step::Name(&name[..end]));
            rest = &name[end..];
        }
    }
    (!steps.is_empty()).then_some(steps)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn what_was_not_touched_is_let_be() {
        let old = json!({"spec": {"a": 1, "list": [{"b": 1}, {"b": 2}], "map": {"k": "v"}, "rest": 1}});
        let new = json!({"spec": {"a": 1, "list": [{"b": 1}, {"b": 3}], "map": {"k": "w"}, "rest": 2}});
        let check = |reason: Reason, field: &str, expect: bool| {
            let violation = Violation {
                reason,
                field: field.to_owned(),
                message: String::new(),
            };
            assert_eq!(is_inherited(&violation, &new, &old), expect, "{field}");
        };
        check(Reason::FieldValueInvalid, "spec.a", true);
        check(Reason::FieldValueInvalid, "spec.rest", false);
        check(Reason::FieldValueInvalid, "spec.list[0].b", true);
        check(Reason::FieldValueInvalid, "spec.list[1].b", false);
        check(Reason::FieldValueRequired, "spec.list[0].c", true);
        check(Reason::FieldValueRequired, "spec.list[1].c", false);
        check(Reason::FieldValueRequired, "spec.c", false);
        check(Reason::FieldValueInvalid, "spec.map[k]", false);
        for field in ["", "spec.none", "spec..a", "spec.map[k"] {
            check(Reason::FieldValueInvalid, field, false);
        }
    }
}
