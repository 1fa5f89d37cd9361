//! Events: one store, shown as core/v1 and as events.k8s.io/v1.
//!
//! They are stored in the form of core/v1. The two forms have the same content under different names.

use serde_json::{Map, Value};

use super::{Strategy, metadata};

/// A field of events.k8s.io/v1, and what it is called in core/v1.
const NAMES: [(&str, &str); 7] = [
    ("regarding", "involvedObject"),
    ("note", "message"),
    ("reportingController", "reportingComponent"),
    ("deprecatedSource", "source"),
    ("deprecatedFirstTimestamp", "firstTimestamp"),
    ("deprecatedLastTimestamp", "lastTimestamp"),
    ("deprecatedCount", "count"),
];

pub(super) struct Events;

impl Strategy for Events {
    fn notes_system(&self) -> bool {
        false
    }

    fn counts_generations(&self) -> bool {
        false
    }

    fn unconditional_update(&self) -> bool {
        true
    }

    fn may_own(&self, _: &Value) -> bool {
        false
    }
}

fn rename(event: Value, names: impl Fn(&str) -> Option<&'static str>, api_version: &str) -> Value {
    let Value::Object(map) = event else {
        return event;
    };
    let renamed = map.into_iter().map(|(key, value)| {
        let key = names(&key).map_or(key, str::to_owned);
        (key, value)
    });
    let mut renamed: Map<String, Value> = renamed.collect();
    renamed.insert("apiVersion".to_owned(), Value::String(api_version.to_owned()));
    Value::Object(renamed)
}

/// The form of core/v1.
pub(super) fn to_core(event: Value) -> Value {
    let name = |key: &str| NAMES.iter().find(|(new, _)| *new == key).map(|(_, core)| *core);
    rename(event, name, "v1")
}

/// The form of events.k8s.io/v1.
pub(super) fn from_core(event: Value) -> Value {
    let name = |key: &str| NAMES.iter().find(|(_, core)| *core == key).map(|(new, _)| *new);
    rename(event, name, "events.k8s.io/v1")
}

/// The path in core/v1 of a field of events.k8s.io/v1.
pub(super) fn core_field(path: &str) -> String {
    let (first, rest) = path.split_once('.').unwrap_or((path, ""));
    let first = NAMES
        .iter()
        .find(|(new, _)| *new == first)
        .map_or(first, |(_, core)| core);
    if rest.is_empty() {
        first.to_owned()
    } else {
        format!("{first}.{rest}")
    }
}

/// When the event was last seen, by its own word.
pub(crate) fn last_seen(event: &Value) -> Option<muster_api::Timestamp> {
    let series = event.pointer("/series/lastObservedTime").and_then(Value::as_str);
    let field = |name: &str| event[name].as_str();
    let texts = [
        series,
        field("lastTimestamp"),
        field("eventTime"),
        Some(metadata::text(event, "creationTimestamp")),
    ];
    texts.into_iter().flatten().filter_map(|text| text.parse().ok()).max()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn the_two_views_show_the_same() {
        let core = json!({
            "apiVersion": "v1", "kind": "Event", "metadata": {"name": "e"}, "involvedObject": {"kind": "Task"},
            "message": "m", "reportingComponent": "c", "source": {"component": "s"}, "count": 3, "reason": "r", "type": "Normal",
            "firstTimestamp": "2024-01-01T00:00:00Z", "lastTimestamp": "2024-01-01T00:00:01Z", "series": {"count": 2},
        });
        let new = from_core(core.clone());
        assert_eq!(new["apiVersion"], "events.k8s.io/v1");
        assert_eq!(
            (&new["regarding"]["kind"], &new["note"], &new["deprecatedCount"]),
            (&json!("Task"), &json!("m"), &json!(3))
        );
        assert_eq!(to_core(new), core);
        assert_eq!(core_field("regarding.name"), "involvedObject.name");
        assert_eq!(core_field("reason"), "reason");
    }
}
