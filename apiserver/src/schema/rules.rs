//! Rules between fields: the expressions in `x-kubernetes-validations`, in CEL.
//!
//! A rule sees the value at its place as `self`, and as `oldSelf` the one that was there before, where that is known: items of
//! lists are found again by their keys, and those of lists without keys are not. The language and Kubernetes' functions are a
//! library's; what is here is which value a rule sees, what it may cost, and the words that it is reported in.
//!
//! It promises that no rule runs for long, whatever it and the object are: before one runs, its steps are estimated from its words, from
//! how deep its loops lie in each other and from the longest list that it can meet, and an object whose rules would cost more than
//! [`limits::RULE_STEPS`] is refused. Tested below.

mod cost;

use std::collections::BTreeMap;

use kube_cel::{CompiledSchema, compile_schema, validate_compiled};
use muster_api::validation::{Reason, Violation};
use serde_json::{Map, Value};

use cost::{Cost, Size, measure};

use super::Schema;
use super::compile::{SchemaError, wrong};
use crate::limits;

const RULES: &str = "x-kubernetes-validations";

/// The rules at a place and below.
#[derive(Debug, Default)]
pub(super) struct Branch {
    own: Option<Own>,
    properties: BTreeMap<Box<str>, Branch>,
    items: Option<Box<Branch>>,
    /// What items are told apart by; none: they have no past.
    keys: Vec<Box<str>>,
    entries: Option<Box<Branch>>,
}

/// The rules of one place.
#[derive(Debug)]
struct Own {
    /// Its schema, without the rules of other places.
    compiled: CompiledSchema,
    /// Its type.
    kind: String,
    /// Whether a rule asks for what was there before.
    looks_back: bool,
    costs: Vec<Cost>,
}

/// The rules in a schema; `None`: it has none.
pub(super) fn compile(schema: &Value) -> Result<Option<Branch>, SchemaError> {
    let mut branch = Branch::default();
    if schema.get(RULES).is_some() {
        let problems = problems(schema, true);
        if let Some((index, field, problem)) = problems.first() {
            return Err(wrong(&format!("{RULES}[{index}].{field}"), problem.clone()));
        }
        branch.own = Some(own(schema));
    }
    for (name, below) in schema["properties"].as_object().into_iter().flatten() {
        if let Some(below) = compile(below)? {
            branch.properties.insert(name.as_str().into(), below);
        }
    }
    let single = |below: &Value| match below {
        Value::Object(_) => Ok(compile(below)?.map(Box::new)),
        _ => Ok(None),
    };
    branch.items = single(&schema["items"])?;
    branch.entries = single(&schema["additionalProperties"])?;
    if schema["x-kubernetes-list-type"] == "map" {
        let keys = schema["x-kubernetes-list-map-keys"].as_array().into_iter().flatten();
        branch.keys = keys.filter_map(Value::as_str).map(Box::from).collect();
    }
    let nothing =
        branch.own.is_none() && branch.properties.is_empty() && branch.items.is_none() && branch.entries.is_none();
    Ok((!nothing).then_some(branch))
}

fn own(schema: &Value) -> Own {
    let mut alone = schema.clone();
    strip(&mut alone, true);
    let compiled = compile_schema(&alone);
    let rules = compiled.validations.iter().filter_map(|rule| rule.as_ref().ok());
    let looks_back = rules.clone().any(|rule| rule.is_transition_rule);
    let costs = rules.map(|rule| {
        let message = rule
            .message_program
            .as_ref()
            .map(|message| measure(&message.expression().expr));
        let mut cost = measure(&rule.program.expression().expr);
        if let Some(message) = message {
            cost.add(&message);
        }
        cost
    });
    Own {
        costs: costs.collect(),
        looks_back,
        kind: schema["type"].as_str().unwrap_or("object").to_owned(),
        compiled,
    }
}

/// Leaves of a schema what says which type a value is of, and at its top the rules.
fn strip(schema: &mut Value, top: bool) {
    let Value::Object(map) = schema else { return };
    map.retain(|name, _| {
        let types = [
            "type",
            "format",
            "properties",
            "items",
            "additionalProperties",
            "x-kubernetes-int-or-string",
            "x-kubernetes-embedded-resource",
            "x-kubernetes-preserve-unknown-fields",
        ];
        types.contains(&name.as_str()) || (top && name == RULES)
    });
    let properties = map.get_mut("properties").and_then(Value::as_object_mut);
    properties
        .into_iter()
        .flat_map(Map::values_mut)
        .for_each(|below| strip(below, false));
    for name in ["items", "additionalProperties"] {
        map.get_mut(name).into_iter().for_each(|below| strip(below, false));
    }
}

/// What is wrong with the rules of one place: the number of the rule, its field, and why. `tracked`: whether it is known what was there
/// before.
pub(crate) fn problems(schema: &Value, tracked: bool) -> Vec<(usize, &'static str, String)> {
    let mut found = Vec::new();
    let Some(rules) = schema.get(RULES) else { return found };
    let rules = rules.as_array().map(Vec::as_slice).unwrap_or_default();
    if rules.len() > limits::RULES {
        return vec![(
            0,
            "rule",
            format!("there are {} rules here, at most {} may be", rules.len(), limits::RULES),
        )];
    }
    for (index, rule) in rules.iter().enumerate() {
        let text = |field: &str| rule[field].as_str().unwrap_or_default();
        if text("rule").trim().is_empty() {
            found.push((index, "rule", "rule is not specified".to_owned()));
            continue;
        }
        let reasons = [
            "",
            "FieldValueInvalid",
            "FieldValueForbidden",
            "FieldValueRequired",
            "FieldValueDuplicate",
        ];
        if !reasons.contains(&text("reason")) {
            found.push((index, "reason", format!("must be one of {}", reasons[1..].join(", "))));
        }
        for field in ["rule", "messageExpression"] {
            if !text(field).is_empty() {
                found.extend(expression_problem(text(field), tracked).map(|problem| (index, field, problem)));
            }
        }
    }
    found
}

fn expression_problem(text: &str, tracked: bool) -> Option<String> {
    if text.chars().count() > limits::RULE_CHARS {
        return Some(format!("a rule may have at most {} characters", limits::RULE_CHARS));
    }
    if depth(text) > limits::RULE_DEPTH || text.matches('?').count() > limits::RULE_CONDITIONALS {
        let (brackets, conditionals) = (limits::RULE_DEPTH, limits::RULE_CONDITIONALS);
        return Some(format!(
            "a rule may have {brackets} brackets in each other and {conditionals} conditionals at most"
        ));
    }
    // Parsing recurses, too, with what has no brackets. What it makes of it is given back only when it is known not to be deep.
    let parsed = std::thread::scope(|scope| {
        let thread = std::thread::Builder::new().stack_size(PARSER_STACK);
        thread
            .spawn_scoped(scope, || parsing_problem(text, tracked))?
            .join()
            .map_err(|_| std::io::Error::other("the parser gave up"))
    });
    parsed.unwrap_or_else(|error| Some(format!("compilation failed: {error}")))
}

/// Enough for the longest rule, whatever it is.
const PARSER_STACK: usize = 64 << 20;

fn parsing_problem(text: &str, tracked: bool) -> Option<String> {
    let program = match kube_cel::cel::Program::compile(text) {
        Ok(program) => program,
        Err(error) => return Some(format!("compilation failed: {}", error.to_string().trim())),
    };
    let cost = measure(&program.expression().expr);
    if cost.levels > limits::RULE_LEVELS {
        return Some(format!(
            "expressions may lie {} deep in each other at most",
            limits::RULE_LEVELS
        ));
    }
    if let Some(unknown) = cost.unknown {
        return Some(format!("compilation failed: undeclared reference to '{unknown}'"));
    }
    let looks_back = program.references().has_variable("oldSelf");
    let why = "oldSelf cannot be used on the uncorrelatable portion of the schema: items of a list have a past only if its \
               x-kubernetes-list-type is map";
    (looks_back && !tracked).then(|| why.to_owned())
}

/// How deep brackets lie in each other; those in texts count too.
fn depth(text: &str) -> usize {
    let (mut depth, mut most) = (0usize, 0);
    for character in text.chars() {
        match character {
            '(' | '[' | '{' => depth += 1,
            ')' | ']' | '}' => depth = depth.saturating_sub(1),
            _ => (),
        }
        most = most.max(depth);
    }
    most
}

impl Schema {
    /// What the rules say against an object that has the shape of the schema; `old` is what it was, if it was there.
    pub(crate) fn judge(&self, object: &Value, old: Option<&Value>) -> Vec<Violation> {
        let mut judge = Judge {
            left: limits::RULE_STEPS,
            spent: false,
            found: Vec::new(),
        };
        if let Some(rules) = &self.rules {
            judge.visit(rules, object, old, "");
        }
        judge.found
    }
}

struct Judge {
    /// Steps.
    left: u64,
    /// Whether they were not enough.
    spent: bool,
    found: Vec<Violation>,
}

impl Judge {
    fn visit(&mut self, branch: &Branch, value: &Value, old: Option<&Value>, path: &str) {
        if self.spent || value.is_null() {
            return;
        }
        let old = old.filter(|old| !old.is_null());
        if let Some(own) = &branch.own {
            self.own(own, value, old, path);
        }
        if let Value::Object(map) = value {
            for (name, below) in &branch.properties {
                let was = old.and_then(|old| old.get(&**name));
                if let Some(value) = map.get(&**name) {
                    self.visit(below, value, was, &join(path, name));
                }
            }
            for (name, value) in map.iter().filter(|_| branch.entries.is_some()) {
                if let Some(below) = branch
                    .entries
                    .as_ref()
                    .filter(|_| !branch.properties.contains_key(name.as_str()))
                {
                    self.visit(
                        below,
                        value,
                        old.and_then(|old| old.get(name)),
                        &format!("{path}[{name}]"),
                    );
                }
            }
        }
        if let (Some(below), Value::Array(list)) = (&branch.items, value) {
            for (index, item) in list.iter().enumerate() {
                let was = old.and_then(|old| before(branch, old, item));
                self.visit(below, item, was, &format!("{path}[{index}]"));
            }
        }
    }

    fn own(&mut self, own: &Own, value: &Value, old: Option<&Value>, path: &str) {
        // What was not touched was let in once; rules may have become stricter since.
        if !own.looks_back && old == Some(value) {
            return;
        }
        let mut size = Size::of(value);
        if let Some(old) = old {
            size.add(old);
        }
        for cost in &own.costs {
            let (steps, bytes) = cost.of(size);
            if steps > self.left || bytes > limits::RULE_BYTES {
                self.spent = true;
                let why = "validation failed due to running out of cost budget, no further validation rules will be run: the object is too \
                           large for the rules of its kind";
                return self.say(Reason::FieldValueForbidden, path, format!("Forbidden: {why}"));
            }
            self.left -= steps;
        }
        let Err(errors) = validate_compiled(&own.compiled, value, old) else {
            return;
        };
        for error in errors {
            let field = match error.field_path.as_str() {
                "" => path.to_owned(),
                below => join(path, below.trim_start_matches('.')),
            };
            let (detail, kind) = (error.message.trim(), &own.kind);
            let (reason, message) = match error.reason.as_deref() {
                Some("FieldValueForbidden") => (Reason::FieldValueForbidden, format!("Forbidden: {detail}")),
                Some("FieldValueRequired") => (Reason::FieldValueRequired, format!("Required value: {detail}")),
                Some("FieldValueDuplicate") => (Reason::FieldValueDuplicate, format!("Duplicate value: \"{kind}\"")),
                _ => (
                    Reason::FieldValueInvalid,
                    format!("Invalid value: \"{kind}\": {detail}"),
                ),
            };
            self.say(reason, &field, message);
        }
    }

    fn say(&mut self, reason: Reason, field: &str, message: String) {
        self.found.push(Violation {
            reason,
            field: field.to_owned(),
            message,
        });
    }
}

fn join(path: &str, name: &str) -> String {
    match (path, name.starts_with('[')) {
        ("", _) => name.to_owned(),
        (path, true) => format!("{path}{name}"),
        (path, false) => format!("{path}.{name}"),
    }
}

/// The item of `old` with the keys of this one.
fn before<'a>(branch: &Branch, old: &'a Value, item: &Value) -> Option<&'a Value> {
    let same = |other: &&Value| branch.keys.iter().all(|key| other.get(&**key) == item.get(&**key));
    let items = old.as_array().filter(|_| !branch.keys.is_empty())?;
    items.iter().find(same)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn schema(rules: Value) -> Value {
        let item = json!({
            "type": "object",
            "properties": {"name": {"type": "string"}, "weight": {"type": "integer"}},
            "x-kubernetes-validations": [{"rule": "self.weight >= oldSelf.weight", "message": "may only grow"}],
        });
        json!({
            "type": "object",
            "properties": {
                "spec": {
                    "type": "object",
                    "properties": {
                        "least": {"type": "integer"},
                        "most": {"type": "integer"},
                        "since": {"type": "string", "format": "date-time"},
                        "names": {"type": "array", "items": {"type": "string"}},
                        "parts": {
                            "type": "array",
                            "x-kubernetes-list-type": "map",
                            "x-kubernetes-list-map-keys": ["name"],
                            "items": item,
                        },
                        "sizes": {"type": "object", "additionalProperties": {"type": "integer", "x-kubernetes-validations": [{"rule": "self < 10"}]}},
                    },
                    "x-kubernetes-validations": rules,
                },
            },
        })
    }

    fn check(rules: Value, spec: Value, old: Option<Value>, expect: &[&str]) {
        let schema = Schema::compile(&schema(rules)).expect("it compiles");
        let whole = |spec: Value| json!({"spec": spec});
        let found = schema.judge(&whole(spec), old.map(whole).as_ref());
        let said: Vec<String> = found
            .iter()
            .map(|one| format!("{}: {}", one.field, one.message))
            .collect();
        assert_eq!(said, expect);
    }

    #[test]
    fn rules_are_said_in_their_own_words() {
        let rules = json!([
            {"rule": "self.least <= self.most", "message": "least must not be more than most", "fieldPath": ".least"},
            {"rule": "self.most < 100", "messageExpression": "'most is ' + string(self.most)"},
            {"rule": "!has(self.names) || self.names.all(name, name.startsWith('x'))", "reason": "FieldValueForbidden"},
        ]);
        check(
            rules.clone(),
            json!({"least": 1, "most": 2, "names": ["x1"]}),
            None,
            &[],
        );
        check(
            rules,
            json!({"least": 200, "most": 101, "names": ["y"]}),
            None,
            &[
                "spec.least: Invalid value: \"object\": least must not be more than most",
                "spec: Invalid value: \"object\": most is 101",
                "spec: Forbidden: failed rule: !has(self.names) || self.names.all(name, name.startsWith('x'))",
            ],
        );
    }

    #[test]
    fn what_was_there_is_found_by_keys() {
        let part = |name: &str, weight: i64| json!({"name": name, "weight": weight});
        let old = json!({"parts": [part("a", 5), part("b", 1)]});
        check(
            json!([]),
            json!({"parts": [part("b", 1), part("a", 6), part("c", 0)]}),
            Some(old.clone()),
            &[],
        );
        check(
            json!([]),
            json!({"parts": [part("b", 1), part("a", 4)]}),
            Some(old.clone()),
            &["spec.parts[1]: Invalid value: \"object\": may only grow"],
        );
        check(json!([]), json!({"parts": [part("a", 0)]}), None, &[]);
        let fixed = json!([{"rule": "self.most == oldSelf.most", "message": "is immutable"}]);
        check(fixed.clone(), json!({"most": 1}), None, &[]);
        check(
            fixed,
            json!({"most": 1}),
            Some(json!({"most": 2})),
            &["spec: Invalid value: \"object\": is immutable"],
        );
    }

    #[test]
    fn values_have_the_types_that_their_schema_says() {
        let rules = json!([{"rule": "!has(self.since) || self.since < timestamp('2030-01-01T00:00:00Z')", "message": "too late"}]);
        check(rules.clone(), json!({"since": "2029-12-31T23:00:00Z"}), None, &[]);
        check(
            rules,
            json!({"since": "2031-01-01T00:00:00Z"}),
            None,
            &["spec: Invalid value: \"object\": too late"],
        );
        check(
            json!([]),
            json!({"sizes": {"a": 1, "b": 10}}),
            None,
            &["spec.sizes[b]: Invalid value: \"integer\": failed rule: self < 10"],
        );
    }

    #[test]
    fn a_rule_that_cannot_be_is_refused() {
        let said = |rule: Value, tracked: bool| {
            let schema = json!({"type": "object", "x-kubernetes-validations": [rule]});
            let problems = problems(&schema, tracked);
            problems
                .first()
                .map(|(_, field, problem)| format!("{field}: {problem}"))
                .unwrap_or_default()
        };
        assert_eq!(said(json!({"rule": "self.x == oldSelf.x"}), true), "");
        assert_eq!(
            said(
                json!({"rule": "self.a.exists_one(x, x > 1) && type(self.b) == string"}),
                true
            ),
            ""
        );
        assert_eq!(said(json!({"rule": " "}), true), "rule: rule is not specified");
        assert!(said(json!({"rule": "self.x =="}), true).starts_with("rule: compilation failed: "));
        assert_eq!(
            said(json!({"rule": "object.x == 1"}), true),
            "rule: compilation failed: undeclared reference to 'object'"
        );
        assert_eq!(
            said(json!({"rule": "lists.range(1000000000).size() > 1"}), true)
                .split(':')
                .next(),
            Some("rule")
        );
        assert!(said(json!({"rule": "true", "messageExpression": "self +"}), true).starts_with("messageExpression: "));
        assert!(said(json!({"rule": "true", "reason": "Whatever"}), true).starts_with("reason: must be one of"));
        assert!(said(json!({"rule": "self == oldSelf"}), false).starts_with("rule: oldSelf cannot be used"));
    }

    #[test]
    fn what_lies_deep_in_itself_is_refused_or_read() {
        let read = |rule: String| {
            let schema = json!({"type": "object", "x-kubernetes-validations": [{"rule": rule}]});
            problems(&schema, true).is_empty()
        };
        let wrapped =
            |open: &str, count: usize, close: &str| format!("{}true{}", open.repeat(count), close.repeat(count));
        assert!(read(wrapped("(", 32, ")")));
        assert!(!read(wrapped("(", 33, ")")) && !read(wrapped("[", 2000, "]")));
        assert!(read(wrapped("true ? false : ", 32, "")) && !read(wrapped("true ? false : ", 33, "")));
        assert!(read(format!("self{} == 1", ".a".repeat(90))) && !read(format!("self{} == 1", ".a".repeat(2000))));
        // Whatever becomes of these, they are answered.
        let _ = (
            read(wrapped("!", 4000, "")),
            read(format!("true{}", " && true".repeat(500))),
            read(format!("1{} > 1", " + 1".repeat(1000))),
        );
        assert!(!read("x".repeat(5000)));
    }

    #[test]
    fn no_rule_runs_for_long() {
        let rules = json!([{"rule": "self.names.all(a, self.names.all(b, self.names.all(c, a + b + c != 'x')))"}]);
        check(rules.clone(), json!({"names": vec!["a"; 5]}), None, &[]);
        let schema = Schema::compile(&schema(rules)).expect("it compiles");
        let found = schema.judge(&json!({"spec": {"names": vec!["a"; 2000]}}), None);
        assert_eq!(found.len(), 1);
        assert!(
            found[0]
                .message
                .starts_with("Forbidden: validation failed due to running out of cost budget")
        );
        let large = json!({"spec": {"names": ["a".repeat(200_000), "b".repeat(200_000)]}});
        let multiplies = Schema::compile(&self::schema(
            json!([{"rule": "self.names[0].replace('a', self.names[1]).size() > 0"}]),
        ));
        assert_eq!(multiplies.expect("it compiles").judge(&large, None).len(), 1);
    }
}
