//! What only the types know: quantities, spans of time, ports, and the rules between fields.
//!
//! The very code that the API server runs is run here, so that a mistake is found before anything is sent.

use muster_api::v1::{Agent, Framework, Quota, Task};
use muster_api::validation::Violation;
use serde::de::DeserializeOwned;
use serde_json::Value;

use super::diagnostic::{Code, Diagnostic};
use super::document::Context;
use super::node::Node;

/// The most values that are read past in one object.
const RETRIES_MAX: usize = 30;

/// Adds what is wrong with the object by its type.
pub(super) fn check(context: &mut Context<'_>, node: &Node, kind: &str, object: &Value) {
    match kind {
        "Task" => check_as::<Task>(context, node, object, Task::validate),
        "Agent" => check_as::<Agent>(context, node, object, Agent::validate),
        "Framework" => check_as::<Framework>(context, node, object, Framework::validate),
        "Quota" => check_as::<Quota>(context, node, object, Quota::validate),
        _ => {}
    }
}

fn check_as<T: DeserializeOwned>(
    context: &mut Context<'_>,
    node: &Node,
    object: &Value,
    validate: fn(&T) -> Vec<Violation>,
) {
    let mut object = object.clone();
    if let Some(fields) = object.as_object_mut() {
        fields.remove("status");
        // Its names and texts are checked elsewhere; the wrong type of a label must not hide what is wrong with the spec.
        let name = fields
            .get("metadata")
            .and_then(|metadata| metadata["name"].as_str())
            .unwrap_or_default()
            .to_owned();
        fields.insert(
            "metadata".to_owned(),
            serde_json::json!({"name": name, "namespace": "default"}),
        );
    }
    for _ in 0..RETRIES_MAX {
        let error = match serde_path_to_error::deserialize::<_, T>(&object) {
            Ok(typed) => {
                if !context.has_mistakes_below("spec") {
                    let violations = validate(&typed);
                    violations
                        .into_iter()
                        .filter(|violation| violation.field != "metadata.name")
                        .for_each(|violation| {
                            let reason = format!("{:?}", violation.reason);
                            context.add(
                                refused(context, node, &reason, &violation.field, &violation.message),
                                &violation.field,
                            );
                        });
                }
                return;
            }
            Err(error) => error,
        };
        let mut path = error.path().to_string();
        if path == "." {
            path.clear();
        }
        let message = error.inner().to_string();
        let missing = message
            .strip_prefix("missing field `")
            .and_then(|rest| rest.split_once('`'));
        if let Some((field, _)) = missing {
            path = if path.is_empty() {
                field.to_owned()
            } else {
                format!("{path}.{field}")
            };
        }
        if !context.has_mistakes_below(&path) && !context.has_mistakes_above(&path) {
            let place = node.locate(&path);
            let title = format!("invalid value for `{path}`");
            let diagnostic =
                Diagnostic::new(Code::InvalidValue, context.source, Some(place.span), title).label(in_words(&message));
            context.add(diagnostic, &path);
        }
        if !remove(&mut object, &path) {
            return;
        }
    }
}

/// What the types say, without the names of the types.
fn in_words(message: &str) -> String {
    if message.contains("untagged enum PortItem") {
        return "ports are numbers from 1 to 65535, or ranges such as \"31000-31001\"".to_owned();
    }
    message.split(" at line ").next().unwrap_or(message).to_owned()
}

/// A cause, of the server's or of the same rules run here, at the place of its field.
pub(super) fn refused(context: &Context<'_>, node: &Node, reason: &str, field: &str, message: &str) -> Diagnostic {
    let place = node.locate(field);
    let field = field.trim_start_matches('.');
    let why = message.split_once(": ").map_or(message, |(_, why)| why);
    let value_less = |text: &str| -> String {
        // `Invalid value: "0.5": why`: the value is to be seen in the excerpt.
        match text.strip_prefix('"').and_then(|rest| rest.split_once("\": ")) {
            Some((_, why)) => why.to_owned(),
            None => text.to_owned(),
        }
    };
    let (code, title, label) = match reason {
        "FieldValueRequired" => (Code::Missing, format!("`{field}` is missing"), why.to_owned()),
        "FieldValueForbidden" => (
            Code::InvalidValue,
            format!("`{field}` may not be set so"),
            why.to_owned(),
        ),
        "FieldValueDuplicate" => (Code::InvalidValue, format!("`{field}` is there twice"), why.to_owned()),
        "FieldValueTooLong" | "FieldValueTooMany" => (Code::Limit, format!("`{field}` is too long"), why.to_owned()),
        "FieldValueInvalid" | "FieldValueNotSupported" => (
            Code::InvalidValue,
            format!("invalid value for `{field}`"),
            value_less(why),
        ),
        "FieldValueTypeInvalid" => (Code::WrongType, format!("wrong type for `{field}`"), value_less(why)),
        _ => (Code::Refused, format!("`{field}` was refused"), message.to_owned()),
    };
    let label = if label == "Required value" {
        String::new()
    } else {
        label
    };
    Diagnostic::new(code, context.source, Some(place.span), title).label(label)
}

/// Takes a field out; `false` when it is not there.
fn remove(object: &mut Value, path: &str) -> bool {
    let pointer = path.replace(['.', '['], "/").replace(']', "");
    let Some((parent, last)) = pointer.rsplit_once('/') else {
        return false;
    };
    match object.pointer_mut(&format!("/{parent}")) {
        Some(Value::Object(fields)) => fields.remove(last).is_some(),
        Some(Value::Array(items)) => match last.parse::<usize>() {
            // The positions of the other items must stay what they are.
            Ok(index) if index + 1 == items.len() => items.pop().is_some(),
            _ => false,
        },
        _ => false,
    }
}
