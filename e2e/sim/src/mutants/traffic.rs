//! Bugs of controllers, agents and frameworks, in what they send and how they read what comes.

use bytes::Bytes;
use http::request::Parts;
use http::{Method, Response, header};
use muster_api::names::HEADER_FENCE;
use serde_json::{Value, json};

use super::Mutant;

fn is_controllers(node: &str) -> bool {
    node.starts_with("controllers-")
}

fn is_agent(node: &str) -> bool {
    node.starts_with("machine-")
}

/// The answer that a process with this bug takes for given.
pub fn answered_without_asking(
    mutant: Mutant,
    node: &str,
    parts: &Parts,
    body: &Bytes,
) -> Option<Response<axum::body::Body>> {
    let path = parts.uri.path();
    let answer = match mutant {
        Mutant::RenewalsTakenForGranted if path.ends_with("/renew") => "{}",
        Mutant::UnknownTakenForFailed if path.contains("/agents/") && settles(path, body) => {
            r#"{"resourceVersion":"1"}"#
        }
        _ => return None,
    };
    is_controllers(node).then(|| Response::new(axum::body::Body::from(answer)))
}

/// Whether this is the write of an agent's offers that changes none.
fn settles(path: &str, body: &Bytes) -> bool {
    let request: Option<Value> = serde_json::from_slice(body).ok();
    path.ends_with("/offers")
        && request.is_some_and(|request| request["create"].is_null() && request["delete"].is_null())
}

/// The request as a process with this bug sends it.
pub fn request(mutant: Mutant, node: &str, parts: &mut Parts, body: &mut Bytes) {
    let deletes = parts.method == Method::DELETE;
    let lease = parts.uri.path().contains("/leases/");
    match mutant {
        Mutant::SuccessorsLeaseReleased if is_controllers(node) && deletes && lease => {
            parts.headers.remove(HEADER_FENCE);
            *body = Bytes::new();
        }
        Mutant::NameForUid | Mutant::ReportedByName if is_agent(node) => change(body, |value| {
            if let Some(metadata) = value.get_mut("metadata").and_then(Value::as_object_mut) {
                metadata.remove("uid");
                if mutant == Mutant::ReportedByName && parts.method == Method::PATCH {
                    metadata.remove("resourceVersion");
                }
            }
        }),
        Mutant::RetriedWithoutKey => change(body, |value| {
            if let Some(request) = value.as_object_mut() {
                request.remove("idempotencyKey");
            }
        }),
        _ => {}
    }
    if body.is_empty() {
        parts.headers.remove(header::CONTENT_LENGTH);
    }
}

/// The answer, or a part of a watch, as a process with this bug reads it.
pub fn answer(mutant: Mutant, node: &str, bytes: Bytes) -> Bytes {
    match mutant {
        Mutant::NameForUid if is_agent(node) => lines(&bytes, named_for_uid),
        Mutant::KilledOnCacheMiss if is_agent(node) => lines(&bytes, forget_one),
        Mutant::QuotaForgotten if is_controllers(node) => lines(&bytes, |line| {
            changes(line, |change| {
                (change["resource"] != "quotas.muster.dev").then_some(change)
            });
        }),
        Mutant::EndsForgotten if is_controllers(node) => lines(&bytes, |line| changes(line, unended)),
        Mutant::RefusalsForgotten if is_controllers(node) => lines(&bytes, |line| changes(line, unrefused)),
        Mutant::RevisionsTorn if is_controllers(node) => lines(&bytes, |line| {
            if line["type"] == "BATCH"
                && let Some(changes) = line["changes"].as_array_mut()
            {
                changes.truncate(1);
            }
        }),
        _ => bytes,
    }
}

fn change(body: &mut Bytes, change: impl FnOnce(&mut Value)) {
    if let Ok(mut value) = serde_json::from_slice::<Value>(body) {
        change(&mut value);
        *body = value.to_string().into();
    }
}

/// Every JSON document of a text, changed; what is none stays.
fn lines(bytes: &Bytes, change: impl Fn(&mut Value)) -> Bytes {
    let mut out = Vec::with_capacity(bytes.len());
    for line in bytes.split_inclusive(|byte| *byte == b'\n') {
        match serde_json::from_slice::<Value>(line) {
            Ok(mut value) => {
                change(&mut value);
                out.extend_from_slice(value.to_string().as_bytes());
                out.push(b'\n');
            }
            Err(_) => out.extend_from_slice(line),
        }
    }
    out.into()
}

/// The changes of a line of the ordered watch, each changed or left out.
fn changes(line: &mut Value, each: impl Fn(Value) -> Option<Value>) {
    if let Some(changes) = line["changes"].as_array_mut() {
        *changes = std::mem::take(changes).into_iter().filter_map(each).collect();
    }
}

fn unended(mut change: Value) -> Option<Value> {
    let ended = ["Finished", "Failed", "Killed", "Error", "Dropped"];
    let phase = change.pointer("/object/status/phase").and_then(Value::as_str);
    let task = change["resource"] == "tasks.muster.dev";
    if task && phase.is_some_and(|phase| ended.contains(&phase)) && change["object"]["status"]["agent"].is_string() {
        change["object"]["status"]["phase"] = json!("Running");
    }
    Some(change)
}

fn unrefused(mut change: Value) -> Option<Value> {
    if change["resource"] == "offers.muster.dev" && change["object"]["status"]["phase"] == "Declined" {
        change["type"] = json!("DELETED");
    }
    Some(change)
}

/// A list of tasks without its last one that lives.
fn forget_one(value: &mut Value) {
    if value["kind"] != "TaskList" {
        return;
    }
    if let Some(items) = value["items"].as_array_mut() {
        let living = items.iter().rposition(|item| item["status"]["phase"] == "Running");
        living.map(|index| items.remove(index));
    }
}

/// Makes every uid of a task the same for the same name.
fn named_for_uid(value: &mut Value) {
    match value {
        Value::Object(map) => {
            let task = map.get("kind").and_then(Value::as_str) == Some("Task");
            if task && let Some(metadata) = map.get_mut("metadata").and_then(Value::as_object_mut) {
                let name = metadata.get("name").and_then(Value::as_str).unwrap_or_default();
                let uid = format!("00000000-0000-4000-8000-{:0>12}", name.trim_start_matches('t'));
                metadata.insert("uid".to_owned(), uid.into());
            }
            map.values_mut().for_each(named_for_uid);
        }
        Value::Array(items) => items.iter_mut().for_each(named_for_uid),
        _ => {}
    }
}
