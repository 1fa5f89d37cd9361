//! The kinds of `metrics.k8s.io`: what agents and tasks use, as NodeMetrics and PodMetrics. Nothing of them is stored.

use std::sync::Arc;

use serde_json::{Value, json};

use super::{compile, tidy};
use crate::resource::{Column, Resource};

/// What agents use.
pub(super) fn nodes() -> Resource {
    let fields = json!({ "usage": resources("What the machine uses, by resource.") });
    let about = "What an agent's machine uses, on average over the window. Read from the agent when it is asked for.";
    kind(("NodeMetrics", "nodes", "node"), false, about, fields)
}

/// What tasks use.
pub(super) fn pods() -> Resource {
    let container = json!({
        "type": "object",
        "description": "The container of the task.",
        "required": ["name", "usage"],
        "properties": {
            "name": {"type": "string", "description": "The name of the container."},
            "usage": resources("What it uses, by resource."),
        },
    });
    let fields = json!({ "containers": {"type": "array", "description": "The containers.", "items": container} });
    let about = "What a task that runs uses, on average over the window. Read from its agent when it is asked for.";
    kind(("PodMetrics", "pods", "pod"), true, about, fields)
}

fn resources(description: &str) -> Value {
    json!({"type": "object", "description": description, "additionalProperties": {"type": "string"}})
}

fn kind((kind, plural, singular): (&str, &str, &str), namespaced: bool, about: &str, fields: Value) -> Resource {
    let mut schema = json!({
        "type": "object",
        "description": about,
        "properties": {
            "apiVersion": {"type": "string"},
            "kind": {"type": "string"},
            "metadata": {"type": "object"},
            "timestamp": {"type": "string", "format": "date-time", "description": "When it was measured."},
            "window": {"type": "string", "description": "Over which time the CPUs are an average."},
        },
    });
    for (name, field) in fields.as_object().into_iter().flatten() {
        schema["properties"][name] = field.clone();
    }
    let schema = tidy(schema);
    let column = |name: &str, kind: &str, json_path: &str| Column {
        name: name.to_owned(),
        kind: kind.to_owned(),
        format: String::new(),
        description: String::new(),
        json_path: json_path.to_owned(),
        priority: 0,
    };
    Resource {
        group: "metrics.k8s.io".to_owned(),
        version: "v1beta1".to_owned(),
        kind: kind.to_owned(),
        plural: plural.to_owned(),
        singular: singular.to_owned(),
        short_names: Vec::new(),
        categories: Vec::new(),
        namespaced,
        verbs: vec!["get", "list"],
        subresources: Vec::new(),
        compiled: compile(&schema),
        schema: Arc::new(schema),
        columns: vec![
            column("Window", "string", ".window"),
            column("Measured", "date", ".timestamp"),
        ],
        scale: None,
        selectable: Vec::new(),
    }
}
