//! Comparing a tree with a structural schema, as the API server will: unknown fields, wrong types, missing fields.

use serde_json::Value;

use super::diagnostic::{Code, Diagnostic};
use super::document::Context;
use super::node::{Entry, Node, NodeValue, Span};
use super::suggest::nearest;

/// Adds what is wrong with `node` by `schema`; `path` is where it is in the object, `key` where its key stands.
pub(super) fn check(context: &mut Context<'_>, node: &Node, schema: &Value, path: &str, key: Span) {
    let flag = |name: &str| schema[name].as_bool() == Some(true);
    if node.is_null() {
        if !flag("nullable") {
            let title = format!("`{path}` has no value");
            context
                .add(Diagnostic::new(Code::WrongType, context.source, Some(key), title), path)
                .help
                .push("give it one, or leave the field out".to_owned());
        }
        return;
    }
    if flag("x-kubernetes-int-or-string") {
        if !matches!(node.value, NodeValue::String(_) | NodeValue::Number(..)) {
            wrong_type(context, node, path, "a quantity, such as 2, 500m or 64Mi");
        }
        return;
    }
    let fits = match schema["type"].as_str() {
        Some("string") => matches!(node.value, NodeValue::String(_)),
        Some("boolean") => matches!(node.value, NodeValue::Bool(..)),
        Some("integer") => matches!(&node.value, NodeValue::Number(Some(number), _) if !number.is_f64()),
        Some("number") => matches!(node.value, NodeValue::Number(Some(_), _)),
        Some("array") => matches!(node.value, NodeValue::Sequence(_)),
        Some("object") => matches!(node.value, NodeValue::Mapping(_)),
        _ => true,
    };
    if !fits {
        return wrong_type(context, node, path, expected(schema));
    }
    check_words(context, node, schema, path);
    check_range(context, node, schema, path);
    for (index, item) in node.items().iter().enumerate() {
        check(context, item, &schema["items"], &format!("{path}[{index}]"), item.span);
    }
    if matches!(node.value, NodeValue::Mapping(_)) {
        check_map(context, node, schema, path, key);
    }
}

fn expected(schema: &Value) -> &'static str {
    match schema["type"].as_str() {
        Some("string") if !schema["enum"].is_null() => "one of a few words",
        Some("string") => "text",
        Some("boolean") => "true or false",
        Some("integer") => "a whole number",
        Some("number") => "a number",
        Some("array") => "a list",
        _ => "a map",
    }
}

fn wrong_type(context: &mut Context<'_>, node: &Node, path: &str, expected: &str) {
    let title = format!("`{path}` must be {expected}, not {}", node.kind());
    let raw = match &node.value {
        NodeValue::Bool(_, raw) | NodeValue::Number(_, raw) => raw.clone(),
        _ => String::new(),
    };
    let text = node.as_str().unwrap_or_default();
    let help = match (&node.value, expected) {
        (NodeValue::Bool(..), "text") => Some(format!("YAML reads `{raw}` as a boolean; write \"{raw}\" in quotes")),
        (NodeValue::Number(..), "text") => Some(format!("YAML reads `{raw}` as a number; write \"{raw}\" in quotes")),
        (NodeValue::String(_), "a whole number") if text.parse::<i64>().is_ok() => {
            Some("write it without quotes".to_owned())
        }
        (NodeValue::String(_), "true or false") if matches!(text, "true" | "false") => {
            Some("write it without quotes".to_owned())
        }
        (NodeValue::String(_), "a list") => {
            Some("write it in brackets, or each item in a line that begins with `- `".to_owned())
        }
        (NodeValue::Mapping(_), "a list") => {
            Some("put `- ` before its first field to make it the first item of a list".to_owned())
        }
        (NodeValue::Mapping(_), _) if node.entries().is_empty() => {
            Some("a text that begins with `{` needs quotes".to_owned())
        }
        _ => None,
    };
    let mut diagnostic = Diagnostic::new(Code::WrongType, context.source, Some(node.span), title);
    diagnostic.help.extend(help);
    context.add(diagnostic, path);
}

fn check_words(context: &mut Context<'_>, node: &Node, schema: &Value, path: &str) {
    let (Some(text), Some(known)) = (node.as_str(), schema["enum"].as_array()) else {
        return;
    };
    let known: Vec<&str> = known.iter().filter_map(Value::as_str).collect();
    if !known.contains(&text) {
        let title = format!("`{path}` cannot be `{text}`");
        let diagnostic = Diagnostic::new(Code::InvalidValue, context.source, Some(node.span), title)
            .suggest(nearest(text, known.iter().copied()))
            .help(format!("one of: {}", known.join(", ")));
        context.add(diagnostic, path);
    }
}

fn check_range(context: &mut Context<'_>, node: &Node, schema: &Value, path: &str) {
    let NodeValue::Number(Some(number), raw) = &node.value else {
        return;
    };
    let most = match schema["format"].as_str() {
        Some("int32") => Some(f64::from(i32::MAX)),
        Some("uint32") => Some(f64::from(u32::MAX)),
        Some("uint16") => Some(f64::from(u16::MAX)),
        _ => schema["maximum"].as_f64(),
    };
    let least = match schema["format"].as_str() {
        Some("int32") => Some(f64::from(i32::MIN)),
        _ => schema["minimum"].as_f64(),
    };
    let value = number.as_f64().unwrap_or(f64::MAX);
    let problem = match (least, most) {
        (Some(least), _) if value < least => Some(format!("must be at least {least}")),
        (_, Some(most)) if value > most => Some(format!("must be at most {most}")),
        _ => None,
    };
    if let Some(problem) = problem {
        let title = format!("`{path}` cannot be `{raw}`");
        context.add(
            Diagnostic::new(Code::InvalidValue, context.source, Some(node.span), title).label(problem),
            path,
        );
    }
}

fn check_map(context: &mut Context<'_>, node: &Node, schema: &Value, path: &str, key: Span) {
    let properties = schema["properties"].as_object();
    let additional = &schema["additionalProperties"];
    let open =
        schema["x-kubernetes-preserve-unknown-fields"].as_bool() == Some(true) || additional.as_bool() == Some(true);
    for entry in node.entries() {
        let below = join(path, &entry.key, properties.is_none());
        match properties.and_then(|properties| properties.get(&entry.key)) {
            Some(schema) => check(context, &entry.value, schema, &below, entry.key_span),
            None if additional.is_object() => check(context, &entry.value, additional, &below, entry.key_span),
            None if open || properties.is_none() => {}
            None => unknown(context, entry, schema, &below),
        }
    }
    let required = schema["required"]
        .as_array()
        .into_iter()
        .flatten()
        .filter_map(Value::as_str);
    // A misspelt field is one mistake, not two.
    let misspelt = |name: &str| {
        let unknown = |entry: &&Entry| properties.is_some_and(|properties| !properties.contains_key(&entry.key));
        node.entries()
            .iter()
            .filter(unknown)
            .any(|entry| nearest(&entry.key, [name]).is_some())
    };
    for name in required.filter(|name| node.get(name).is_none() && !misspelt(name)) {
        let below = join(path, name, false);
        let span = if path.is_empty() { node.span } else { key };
        let title = format!("`{below}` is missing");
        let about = schema["properties"][name]["description"].as_str();
        let mut diagnostic = Diagnostic::new(Code::Missing, context.source, Some(span), title);
        diagnostic
            .help
            .extend(about.map(|about| format!("{name}: {}", first_sentence(about))));
        context.add(diagnostic, &below);
    }
}

/// The path of what is below; keys of free maps stand in brackets, as in the API server's own paths.
fn join(path: &str, key: &str, free: bool) -> String {
    match (path.is_empty(), free) {
        (true, _) => key.to_owned(),
        (false, true) => format!("{path}[{key}]"),
        (false, false) => format!("{path}.{key}"),
    }
}

fn first_sentence(text: &str) -> &str {
    text.split_inclusive(". ").next().unwrap_or(text).trim_end()
}

fn unknown(context: &mut Context<'_>, entry: &Entry, schema: &Value, path: &str) {
    let known: Vec<&str> = schema["properties"]
        .as_object()
        .into_iter()
        .flatten()
        .map(|(name, _)| name.as_str())
        .collect();
    let guess = nearest(&entry.key, known.iter().copied());
    let mut diagnostic = Diagnostic::new(
        Code::UnknownField,
        context.source,
        Some(entry.key_span),
        format!("unknown field `{path}`"),
    );
    let place = elsewhere(context.schema, &entry.key);
    if entry.key.contains(':') {
        diagnostic = diagnostic.label("a space is missing after the colon");
    } else if let Some(hint) = foreign(path) {
        diagnostic = diagnostic.label(hint);
    } else if let Some(place) = place.filter(|place| guess.is_none() || place.starts_with(RESOURCES)) {
        diagnostic = diagnostic.label(format!("there is a `{place}`; is this indented as it should be?"));
        diagnostic.suggestion = Some(place);
    } else {
        diagnostic = diagnostic.suggest(guess);
    }
    let fields: Vec<&str> = known.iter().copied().filter(|name| *name != "status").collect();
    context.add(diagnostic.help(format!("fields here: {}", fields.join(", "))), path);
}

/// Where fields are most often looked for one level too high.
const RESOURCES: &str = "spec.resources.";

/// What to do about fields that other systems have in this place.
fn foreign(path: &str) -> Option<&'static str> {
    Some(match path {
        "spec.containers" | "spec.template" | "spec.initContainers" => {
            "a Task is one command: write it as `spec.command`"
        }
        "spec.resources.requests" => "what is asked for stands directly under `spec.resources`",
        "spec.resources.limits" => "limits stand under `spec.limits`, beside `spec.resources`",
        "spec.resources.nvidia.com/gpu" => "write `gpus`",
        "spec.nodeSelector" | "spec.affinity" => {
            "write `spec.constraints`, such as [{attribute: zone, operator: In, values: [a]}]"
        }
        "spec.replicas" => "a Task is one placement; create one Task for each",
        "spec.tolerations" | "spec.volumes" | "spec.healthCheck" | "spec.fetch" => "this release does not have it",
        "spec.activeDeadlineSeconds" => "write `spec.deadline`, such as 1h",
        "spec.terminationGracePeriodSeconds" => "write `spec.kill.gracePeriod`, such as 5s",
        "spec.backoffLimit" => "write `spec.maxRetries`",
        _ => return None,
    })
}

/// Where else the schema has a field of this name: below `spec.resources`, or in one place only.
fn elsewhere(schema: &Value, name: &str) -> Option<String> {
    fn find(schema: &Value, path: &str, name: &str, found: &mut Vec<String>) {
        for (key, below) in schema["properties"].as_object().into_iter().flatten() {
            if path.is_empty() && key == "status" {
                continue;
            }
            let place = join(path, key, false);
            if key == name {
                found.push(place.clone());
            }
            find(below, &place, name, found);
        }
    }
    let mut found = Vec::new();
    find(schema, "", name, &mut found);
    let resource = found.iter().position(|place| place.starts_with(RESOURCES));
    match resource {
        Some(index) => Some(found.swap_remove(index)),
        None if found.len() == 1 => found.pop(),
        None => None,
    }
}
