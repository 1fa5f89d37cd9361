//! `mctl events`: what happened, oldest first.

use std::collections::BTreeSet;

use futures::StreamExt as _;
use serde_json::Value;

use crate::age;
use crate::cli::EventsArgs;
use crate::discovery::Resource;
use crate::failure::{Exit, Failure, Outcome};
use crate::manifest::diagnostic::clean;
use crate::output;
use crate::rest::{CallError, JSON, Rest, with_query};
use crate::session::{Session, Terminal};
use crate::table::{self, Widths};

/// The kind of events.
pub fn resource() -> Resource {
    Resource {
        version: "v1".to_owned(),
        plural: "events".to_owned(),
        singular: "event".to_owned(),
        kind: "Event".to_owned(),
        namespaced: true,
        ..Resource::default()
    }
}

/// The time of an event's last occurrence.
fn time(event: &Value) -> &str {
    let times = [
        &event["series"]["lastObservedTime"],
        &event["lastTimestamp"],
        &event["eventTime"],
        &event["metadata"]["creationTimestamp"],
    ];
    times.into_iter().find_map(Value::as_str).unwrap_or_default()
}

/// The events about an object, oldest first.
pub async fn about(rest: &Rest, object: &Value) -> Result<Vec<Value>, CallError> {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let metadata = &object["metadata"];
    let selector = format!(
        "involvedObject.name={},involvedObject.kind={}",
        text(&metadata["name"]),
        text(&object["kind"])
    );
    let namespace = metadata["namespace"].as_str().unwrap_or("default");
    let list = rest
        .get(&with_query(
            &resource().path(Some(namespace)),
            &[("fieldSelector", &selector)],
        ))
        .await?;
    let uid = text(&metadata["uid"]);
    let mut events = sorted(&list);
    events.retain(|event| {
        event["involvedObject"]["uid"]
            .as_str()
            .is_none_or(|of| of.is_empty() || of == uid)
    });
    Ok(events)
}

fn sorted(list: &Value) -> Vec<Value> {
    let mut events = list["items"].as_array().cloned().unwrap_or_default();
    events.sort_by(|a, b| time(a).cmp(time(b)));
    events
}

/// A row: age, type, reason, object, message.
pub fn row(event: &Value, with_namespace: bool, with_object: bool) -> Vec<String> {
    let text = |value: &Value| clean(value.as_str().unwrap_or("-"));
    let mut row = Vec::new();
    if with_namespace {
        row.push(text(&event["metadata"]["namespace"]));
    }
    let last = age::since(&Value::String(time(event).to_owned()), age::now()).unwrap_or_else(|| "-".to_owned());
    let count = event["series"]["count"]
        .as_i64()
        .or(event["count"].as_i64())
        .unwrap_or(1);
    row.push(if count > 1 { format!("{last} (x{count})") } else { last });
    row.extend([text(&event["type"]), text(&event["reason"])]);
    if with_object {
        let object = &event["involvedObject"];
        row.push(format!(
            "{}/{}",
            text(&object["kind"]).to_lowercase(),
            text(&object["name"])
        ));
    }
    row.push(text(&event["message"]));
    row
}

/// The headings of [`row`].
pub fn headings(with_namespace: bool, with_object: bool) -> Vec<String> {
    let namespace = with_namespace.then_some("NAMESPACE");
    let object = with_object.then_some("OBJECT");
    let all = namespace
        .into_iter()
        .chain(["LAST SEEN", "TYPE", "REASON"])
        .chain(object)
        .chain(["MESSAGE"]);
    all.map(str::to_owned).collect()
}

/// Runs the command.
pub async fn run(session: &Session, args: EventsArgs, terminal: &mut Terminal) -> Outcome {
    let mut selector = Vec::new();
    if let Some(about) = &args.about {
        let (kind, name) = about
            .split_once('/')
            .ok_or_else(|| Failure::new(format!("--for {about}: write KIND/NAME")))?;
        let catalogue = session.catalogue().await?;
        selector.push(format!("involvedObject.kind={}", catalogue.find(kind)?.kind));
        selector.push(format!("involvedObject.name={name}"));
    }
    let selector = selector.join(",");
    let namespace = (!args.all_namespaces).then_some(session.namespace.as_str());
    let path = resource().path(namespace);
    let mut parameters: Vec<(&str, &str)> = Vec::new();
    if !selector.is_empty() {
        parameters.push(("fieldSelector", &selector));
    }
    let list = session.rest.get(&with_query(&path, &parameters)).await?;
    let wanted =
        |event: &Value| args.types.is_empty() || args.types.iter().any(|known| event["type"].as_str() == Some(known));
    let mut events = sorted(&list);
    events.retain(wanted);
    match args.output.as_deref() {
        None => {}
        Some("yaml") => return terminal.text(output::yaml(&output::list(events))).map(|()| Exit::Done),
        Some("json") => {
            return terminal
                .text(output::pretty(&output::list(events)))
                .map(|()| Exit::Done);
        }
        Some(other) => return Err(Failure::new(format!("-o {other}: there are yaml and json"))),
    }
    if events.is_empty() && !args.watch {
        terminal.note("there are no events");
        return Ok(Exit::Done);
    }
    let rows: Vec<Vec<String>> = events
        .iter()
        .map(|event| row(event, args.all_namespaces, true))
        .collect();
    let headings = headings(args.all_namespaces, true);
    let mut widths = Widths::default();
    widths.fit(&headings);
    rows.iter().for_each(|row| widths.fit(row));
    terminal.text(table::align(&headings, rows, true))?;
    if !args.watch {
        return Ok(Exit::Done);
    }
    let revision = list["metadata"]["resourceVersion"].as_str().unwrap_or("0").to_owned();
    parameters.extend([("watch", "true"), ("resourceVersion", revision.as_str())]);
    let mut lines = session.rest.lines(&with_query(&path, &parameters), JSON).await?;
    let mut seen = BTreeSet::new();
    while let Some(line) = lines.next().await {
        let event: Value = serde_json::from_str(&line?).map_err(|error| Failure::new(error.to_string()))?;
        let object = &event["object"];
        if matches!(event["type"].as_str(), Some("ADDED" | "MODIFIED")) && wanted(object) {
            let row = row(object, args.all_namespaces, true);
            let key = (object["metadata"]["uid"].to_string(), time(object).to_owned());
            if seen.insert(key) {
                widths.fit(&row);
                terminal.text(widths.line(&row))?;
            }
        }
    }
    Err(Failure::new("the server ended the watch"))
}
