//! `mctl describe`: everything about an object, for people.

use jiff::Timestamp;
use serde_json::Value;

use crate::cli::DescribeArgs;
use crate::discovery::Resource;
use crate::failure::{Exit, Outcome};
use crate::manifest::diagnostic::clean;
use crate::owners::LAST_APPLIED;
use crate::session::{Session, Target, Terminal, query};
use crate::style::Style;
use crate::table;
use crate::{age, output};

use super::{agents, events, why};

/// Runs the command.
pub async fn run(session: &Session, args: DescribeArgs, terminal: &mut Terminal) -> Outcome {
    let catalogue = session.catalogue().await?;
    let targets = session.targets(&catalogue, &args.what)?;
    let mut exit = Exit::Done;
    let mut first = true;
    for target in &targets {
        let objects = match fetch(session, &args, target).await {
            Ok(objects) => objects,
            Err(error) if error.is_not_found() => {
                terminal.note(format!("error: {error}"));
                exit = Exit::Error;
                continue;
            }
            Err(error) => return Err(error.into()),
        };
        for object in objects {
            if !first {
                terminal.line("")?;
            }
            first = false;
            let mut text = describe(&object, age::now());
            text.push_str(&more(session, &target.resource, &object, terminal.out_style).await);
            terminal.text(text)?;
        }
    }
    if first && exit == Exit::Done {
        terminal.note("there are none");
    }
    Ok(exit)
}

async fn fetch(session: &Session, args: &DescribeArgs, target: &Target) -> Result<Vec<Value>, crate::rest::CallError> {
    if let Some(name) = &target.name {
        return Ok(vec![
            session
                .rest
                .get(&target.resource.object_path(&target.namespace, name))
                .await?,
        ]);
    }
    let namespace = (!args.selection.all_namespaces).then_some(target.namespace.as_str());
    let path = crate::rest::with_query(&target.resource.path(namespace), &query(&args.selection));
    let mut list = session.rest.get(&path).await?;
    let (kind, version) = (target.resource.kind.clone(), target.resource.api_version());
    let mut items = match list["items"].take() {
        Value::Array(items) => items,
        _ => Vec::new(),
    };
    for item in &mut items {
        item["kind"] = kind.clone().into();
        item["apiVersion"] = version.clone().into();
    }
    Ok(items)
}

/// What is not in the object itself: events, what an agent runs, why a task waits. What cannot be had is said.
async fn more(session: &Session, resource: &Resource, object: &Value, style: Style) -> String {
    let mut text = String::new();
    let ours = resource.group == muster_api::names::GROUP;
    if ours && resource.kind == "Agent" {
        text.push_str(
            &agents::describe(&session.rest, object)
                .await
                .unwrap_or_else(|error| format!("Tasks: {error}\n")),
        );
    }
    let pending = object["status"]["phase"]
        .as_str()
        .is_none_or(|phase| phase == "Pending");
    if ours && resource.kind == "Task" && pending {
        let name = object["metadata"]["name"].as_str().unwrap_or_default();
        let namespace = object["metadata"]["namespace"].as_str().unwrap_or_default();
        let answer = match why::ask(&session.rest, namespace, name).await {
            Ok(answer) => why::render(&answer, object, age::now(), style),
            Err(error) => format!("{error}\n"),
        };
        text.push_str(&format!("Why:\n{}", indent(&answer, 2)));
    }
    match events::about(&session.rest, object).await {
        Ok(found) if found.is_empty() => text.push_str("Events: none\n"),
        Ok(found) => {
            let rows = found.iter().map(|event| events::row(event, false, false)).collect();
            text.push_str(&format!(
                "Events:\n{}",
                indent(&table::align(&events::headings(false, false), rows, true), 2)
            ));
        }
        Err(error) => text.push_str(&format!("Events: {error}\n")),
    }
    text
}

/// The text, each line moved to the right.
pub fn indent(text: &str, by: usize) -> String {
    text.lines().map(|line| format!("{:by$}{line}\n", "")).collect()
}

/// The object itself.
pub fn describe(object: &Value, now: Timestamp) -> String {
    let metadata = &object["metadata"];
    let plain = |value: &Value| clean(value.as_str().unwrap_or("-"));
    let mut head: Vec<(String, String)> = vec![("Name".to_owned(), plain(&metadata["name"]))];
    if metadata["namespace"].is_string() {
        head.push(("Namespace".to_owned(), plain(&metadata["namespace"])));
    }
    head.push((
        "Kind".to_owned(),
        format!("{} ({})", plain(&object["kind"]), plain(&object["apiVersion"])),
    ));
    let listed = |map: &Value| -> Vec<String> {
        let pairs = output::pairs(map).into_iter().filter(|(key, _)| key != LAST_APPLIED);
        pairs.map(|(key, value)| clean(&format!("{key}={value}"))).collect()
    };
    for (name, field) in [("Labels", "labels"), ("Annotations", "annotations")] {
        let pairs = listed(&metadata[field]);
        if !pairs.is_empty() {
            head.push((name.to_owned(), pairs.join(", ")));
        }
    }
    if let Some(ago) = age::since(&metadata["creationTimestamp"], now) {
        head.push((
            "Created".to_owned(),
            format!("{} ({ago} ago)", plain(&metadata["creationTimestamp"])),
        ));
    }
    if let Some(ago) = age::since(&metadata["deletionTimestamp"], now) {
        let waits: Vec<String> = metadata["finalizers"]
            .as_array()
            .into_iter()
            .flatten()
            .map(plain)
            .collect();
        head.push((
            "Deleting".to_owned(),
            format!("since {ago}, waits for {}", waits.join(", ")),
        ));
    }
    let mut text = fields(&head);
    let sections = object.as_object().into_iter().flatten();
    let secret = object["apiVersion"] == "v1" && object["kind"] == "Secret";
    for (key, value) in sections.filter(|(key, _)| !matches!(key.as_str(), "apiVersion" | "kind" | "metadata")) {
        match value {
            Value::Object(data) if secret && key == "data" => text.push_str(&section(key, &sizes(data), 0)),
            _ => text.push_str(&section(key, value, 0)),
        }
    }
    text
}

/// How long each value of a secret is, in place of the value.
fn sizes(data: &serde_json::Map<String, Value>) -> Value {
    let bytes = |value: &Value| {
        let text = value.as_str().unwrap_or_default();
        text.trim_end_matches('=').len() * 3 / 4
    };
    let sizes = data
        .iter()
        .map(|(key, value)| (key.clone(), format!("{} bytes", bytes(value)).into()));
    Value::Object(sizes.collect())
}

fn fields(pairs: &[(String, String)]) -> String {
    let width = pairs.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0) + 1;
    pairs
        .iter()
        .map(|(name, value)| format!("{:<width$} {value}\n", format!("{name}:")))
        .collect()
}

/// `workingDir` as `Working dir`.
fn title(key: &str) -> String {
    let mut text = String::new();
    let letters: Vec<char> = key.chars().collect();
    for (index, letter) in letters.iter().enumerate() {
        let before = index.checked_sub(1).and_then(|before| letters.get(before));
        if index == 0 {
            text.extend(letter.to_uppercase());
        } else if letter.is_uppercase() && before.is_some_and(|before| before.is_lowercase()) {
            let acronym = letters.get(index + 1).is_none_or(|next| next.is_uppercase());
            text.push(' ');
            text.extend(if acronym {
                vec![*letter]
            } else {
                letter.to_lowercase().collect()
            });
        } else {
            text.push(*letter);
        }
    }
    text
}

/// Of interest to programs only.
const GENERATION: &str = "observedGeneration";

fn scalar(value: &Value) -> Option<String> {
    match value {
        Value::Null => Some("-".to_owned()),
        Value::String(text) => Some(clean(text)),
        Value::Bool(_) | Value::Number(_) => Some(value.to_string()),
        Value::Array(items) => {
            let items: Option<Vec<String>> = items
                .iter()
                .map(|item| (!item.is_array() && !item.is_object()).then(|| scalar(item)).flatten())
                .collect();
            let items = items?;
            let quoted = |item: String| {
                if item.is_empty() || item.contains([' ', ',']) {
                    format!("{item:?}")
                } else {
                    item
                }
            };
            Some(items.into_iter().map(quoted).collect::<Vec<_>>().join(" "))
        }
        Value::Object(_) => None,
    }
}

/// A field: in one line when it is simple, as a table when it is a list of simple maps, indented otherwise.
fn section(key: &str, value: &Value, depth: usize) -> String {
    let name = title(key);
    if let Some(text) = scalar(value) {
        return indent(&format!("{name}: {text}"), depth);
    }
    let below = match value {
        Value::Object(map) => {
            let shown = || map.iter().filter(|(key, _)| *key != GENERATION);
            let simple: Vec<(String, String)> = shown()
                .filter_map(|(key, value)| Some((title(key), scalar(value)?)))
                .collect();
            let nested = shown().filter(|(_, value)| scalar(value).is_none());
            indent(&fields(&simple), 2) + &nested.map(|(key, value)| section(key, value, 2)).collect::<String>()
        }
        Value::Array(items) => indent(&list(items), 2),
        _ => String::new(),
    };
    indent(&format!("{name}:\n{below}"), depth)
}

/// A list of maps: a table when all of their fields are simple.
fn list(items: &[Value]) -> String {
    let mut keys: Vec<&String> = Vec::new();
    let mut simple = true;
    for item in items {
        let Some(map) = item.as_object() else {
            simple = false;
            break;
        };
        simple &= map.values().all(|value| scalar(value).is_some());
        keys.extend(
            map.keys()
                .filter(|key| *key != GENERATION && !keys.contains(key))
                .collect::<Vec<_>>(),
        );
    }
    if !simple {
        let blocks = items.iter().map(|item| match item {
            Value::Object(map) => map
                .iter()
                .map(|(key, value)| section(key, value, 0))
                .collect::<String>(),
            other => format!("{}\n", scalar(other).unwrap_or_else(|| other.to_string())),
        });
        return blocks.collect::<Vec<_>>().join("\n");
    }
    // What identifies an item comes first, what is long comes last.
    let rank = |key: &str| match key {
        "number" | "name" | "type" | "uuid" | "attribute" => 0,
        "status" | "operator" | "value" | "model" => 1,
        "message" => 3,
        _ => 2,
    };
    keys.sort_by_key(|key| rank(key));
    let headings: Vec<String> = keys.iter().map(|key| title(key).to_uppercase()).collect();
    let row = |item: &Value| {
        keys.iter()
            .map(|key| {
                scalar(&item[key.as_str()])
                    .filter(|text| !text.is_empty())
                    .unwrap_or_else(|| "-".to_owned())
            })
            .collect()
    };
    table::align(&headings, items.iter().map(row).collect(), true)
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_task_is_described_for_people() {
        let object = json!({
            "apiVersion": "muster.dev/v1",
            "kind": "Task",
            "metadata": {
                "name": "hello", "namespace": "default", "uid": "u", "labels": {"app": "x"},
                "annotations": {LAST_APPLIED: "{}", "note": "hi"}, "creationTimestamp": "2026-01-01T10:00:00Z",
            },
            "spec": {
                "command": ["sh", "-c", "echo hello"], "framework": "default", "priority": 0, "workingDir": "/tmp",
                "resources": {"cpus": "0.1", "memory": "32Mi"}, "env": [{"name": "A", "value": "b c"}, {"name": "LONGER", "value": ""}],
            },
            "status": {
                "phase": "Failed", "bootID": "b", "exitCode": 3, "message": "ended\nwith 3",
                "attempts": [{"number": 1, "startedAt": "2026-01-01T10:00:01Z", "exitCode": 3}, {"number": 2, "signal": 9, "oomKilled": true}],
                "conditions": [{"type": "Ready", "status": "False", "reason": "NonZeroExit", "message": "", "lastTransitionTime": "2026-01-01T10:00:02Z"}],
            },
        });
        insta::assert_snapshot!(describe(&object, "2026-01-01T10:04:12Z".parse().expect("time")));
    }

    #[test]
    fn names_of_fields_become_titles() {
        assert_eq!(title("workingDir"), "Working dir");
        assert_eq!(title("bootID"), "Boot ID");
        assert_eq!(title("cpus"), "Cpus");
    }
}
