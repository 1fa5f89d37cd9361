use std::time::Duration;

use muster_api::v1::Task;
use serde_json::json;

use super::*;
use crate::kinds;
use crate::resource::Resource;

fn kind(name: &str) -> Resource {
    kinds::resources()
        .into_iter()
        .find(|resource| resource.kind == name)
        .expect("a kind that is served")
}

/// What the walk says about a task: the violations as `path: message`, then the unknown fields as `?path (suggestion)`.
fn problems(mut object: Value) -> Vec<String> {
    let outcome = check(&kind("Task"), &mut object);
    let violations = outcome
        .violations
        .iter()
        .map(|violation| format!("{}: {}", violation.field, violation.message));
    let unknown = outcome.unknown.iter().map(|unknown| match &unknown.suggestion {
        Some(suggestion) => format!("?{} ({suggestion})", unknown.path),
        None => format!("?{}", unknown.path),
    });
    violations.chain(unknown).collect()
}

fn with_spec(more: Value) -> Value {
    let mut spec = json!({"command": ["true"]});
    spec.as_object_mut().unwrap().extend(more.as_object().unwrap().clone());
    json!({"apiVersion": "muster.dev/v1", "kind": "Task", "metadata": {"name": "t"}, "spec": spec})
}

#[test]
fn a_right_task_passes_and_gets_its_defaults() {
    let mut task = with_spec(
        json!({"resources": {"cpus": "0.5", "gpus": 1, "ports": ["31000-31001"]}, "volumes": [{"mountPath": "/a", "emptyDir": {}}]}),
    );
    let outcome = check(&kind("Task"), &mut task);
    assert_eq!(outcome, SchemaOutcome::default());
    assert_eq!(task["spec"]["framework"], "default");
    assert_eq!(task["spec"]["priority"], 0);
    assert_eq!(task["spec"]["restartPolicy"], "Never");
    assert_eq!(
        task["spec"]["volumes"][0]["emptyDir"]["medium"], "Disk",
        "defaults are filled in at every depth"
    );
    assert_eq!(task["spec"]["resources"]["ports"], json!(["31000-31001"]));
    let again = task.clone();
    check(&kind("Task"), &mut task);
    assert_eq!(task, again, "a second walk changes nothing");
    typed::<Task>(&task).unwrap();
}

#[test]
fn unknown_fields_are_taken_out_and_named_with_what_was_meant() {
    let mut task = with_spec(json!({"resources": {"memmory": "64Mi"}, "bogusAndFarAway": 1, "Command": []}));
    task["metadata"]["lables"] = json!({});
    task["metadata"]["labels"] = json!({"any": "thing"});
    assert_eq!(
        problems(task.clone()),
        [
            "?metadata.lables (labels)",
            "?spec.Command (command)",
            "?spec.bogusAndFarAway",
            "?spec.resources.memmory (memory)"
        ]
    );
    check(&kind("Task"), &mut task);
    assert_eq!(task["spec"]["resources"], json!({}));
    assert_eq!(task["metadata"], json!({"name": "t", "labels": {"any": "thing"}}));
}

#[test]
fn wrong_types_are_told_in_the_words_of_kubernetes() {
    let task = with_spec(
        json!({"command": "sh", "priority": "high", "env": [{"name": 7}], "resources": [], "user": {"uid": 1.5}}),
    );
    assert_eq!(
        problems(task),
        [
            "spec.command: Invalid value: \"string\": spec.command in body must be of type array: \"string\"",
            "spec.env[0].name: Invalid value: \"integer\": spec.env[0].name in body must be of type string: \"integer\"",
            "spec.priority: Invalid value: \"string\": spec.priority in body must be of type integer: \"string\"",
            "spec.resources: Invalid value: \"array\": spec.resources in body must be of type object: \"array\"",
            "spec.user.uid: Invalid value: \"number\": spec.user.uid in body must be of type integer: \"number\"",
        ]
    );
    assert_eq!(
        check(&kind("Task"), &mut json!([])).violations[0].reason,
        Reason::FieldValueTypeInvalid
    );
    assert_eq!(problems(with_spec(json!({"metadata": 1}))), ["?spec.metadata"]);
}

#[test]
fn what_is_missing_out_of_range_or_there_twice_is_told() {
    assert_eq!(problems(json!({"metadata": {}})), ["spec: Required value"]);
    assert_eq!(
        problems(json!({"spec": {"user": {}}})),
        ["spec.user.uid: Required value"]
    );
    let task = with_spec(json!({
        "restartPolicy": "never",
        "priority": 3_000_000_000_u64,
        "maxRetries": -1,
        "env": [{"name": "A", "value": "1"}, {"name": "B"}, {"name": "A", "value": "2"}],
    }));
    assert_eq!(
        problems(task),
        [
            "spec.env[2]: Duplicate value: {\"name\":\"A\"}",
            "spec.maxRetries: Invalid value: -1: spec.maxRetries in body must be of type a whole number, zero or more: -1",
            "spec.maxRetries: Invalid value: -1: spec.maxRetries in body should be greater than or equal to 0",
            "spec.priority: Invalid value: 3000000000: spec.priority in body must be of type int32: 3000000000",
            "spec.restartPolicy: Unsupported value: \"never\": supported values: \"Never\", \"OnFailure\", \"Always\"; did you \
             mean \"Never\"?",
        ]
    );
    let mut framework = json!({"spec": {"roles": ["a", "b", "a"]}});
    let outcome = check(&kind("Framework"), &mut framework);
    assert_eq!(outcome.violations[0].message, "Duplicate value: \"a\"");
    assert_eq!(outcome.violations[0].reason, Reason::FieldValueDuplicate);
}

#[test]
fn null_stands_for_a_field_that_is_not_there() {
    let mut task =
        with_spec(json!({"priority": null, "user": {"uid": null}, "role": null, "resources": {"cpus": null}}));
    task["metadata"]["creationTimestamp"] = Value::Null;
    assert_eq!(problems(task.clone()), ["spec.user.uid: Required value"]);
    check(&kind("Task"), &mut task);
    assert_eq!(task["spec"]["priority"], 0, "the default comes in its place");
    assert_eq!(task["spec"]["role"], Value::Null, "where null is allowed it stays");
    assert_eq!(task["spec"]["resources"], json!({}));
    assert_eq!(task["metadata"], json!({"name": "t"}));
    assert_eq!(
        problems(with_spec(json!({"args": [null]}))).len(),
        1,
        "but not as an item of a list"
    );
}

#[test]
fn conditions_must_be_whole() {
    let mut task = with_spec(json!({}));
    task["status"] = json!({"conditions": [{"type": "Ready", "status": "True"}], "startedAt": "yesterday"});
    assert_eq!(
        problems(task),
        [
            "status.conditions[0].lastTransitionTime: Required value",
            "status.conditions[0].message: Required value",
            "status.conditions[0].reason: Required value",
            "status.startedAt: Invalid value: \"yesterday\": status.startedAt in body must be of type date-time: \"yesterday\"",
        ]
    );
}

#[test]
fn whatever_passes_is_read_by_its_type_or_told_with_its_path() {
    let mut task = with_spec(json!({"priority": 2.0, "resources": {"cpus": "0.0001"}}));
    assert_eq!(check(&kind("Task"), &mut task), SchemaOutcome::default());
    assert_eq!(
        task["spec"]["priority"],
        json!(2),
        "a whole number stays one however it is written"
    );
    let violation = typed::<Task>(&task).unwrap_err();
    assert_eq!(violation.field, "spec.resources.cpus");
    assert!(
        violation
            .message
            .starts_with("Invalid value: \"0.0001\": `0.0001` has more than three"),
        "{violation:?}"
    );
    let violation = typed::<Task>(&with_spec(json!({"kill": {"gracePeriod": "5 seconds"}}))).unwrap_err();
    assert_eq!(violation.field, "spec.kill.gracePeriod");
}

#[test]
fn kubernetes_own_kinds_are_checked_too() {
    let mut map = json!({"metadata": {"name": "m"}, "data": {"a": "1", "b": 2}, "binaryData": {"c": "%%"}, "dada": {}});
    let outcome = check(&kind("ConfigMap"), &mut map);
    let fields: Vec<&str> = outcome
        .violations
        .iter()
        .map(|violation| violation.field.as_str())
        .collect();
    assert_eq!(fields, ["binaryData[c]", "data[b]"]);
    assert_eq!(outcome.unknown[0].suggestion.as_deref(), Some("data"));

    let mut lease = json!({"metadata": {"name": "l"}, "spec": {"leaseDurationSeconds": 15, "renewTime": "2026-01-01T00:00:00.000000Z"}});
    assert_eq!(check(&kind("Lease"), &mut lease), SchemaOutcome::default());
}

#[test]
fn a_keyword_that_is_not_enforced_is_refused() {
    let error = |schema: Value| Schema::compile(&schema).unwrap_err().to_string();
    let property = |schema: Value| json!({"type": "object", "properties": {"a": schema}});
    assert_eq!(
        error(json!({"type": "string"})),
        "schema at ``: the top must be of type object"
    );
    assert_eq!(
        error(property(json!({"$ref": "#/x"}))),
        "schema at `.a`: the keyword `$ref` is not enforced here"
    );
    assert_eq!(
        error(property(json!({"type": "text"}))),
        "schema at `.a`: `text` is not a type"
    );
}

#[test]
fn every_bound_is_enforced() {
    let schema = json!({"type": "object", "properties": {
        "text": {"type": "string", "minLength": 2, "maxLength": 3, "pattern": "^[a-z]*$"},
        "list": {"type": "array", "minItems": 1, "maxItems": 2, "items": {"type": "boolean"}},
        "number": {"type": "number", "minimum": 0, "exclusiveMinimum": true, "maximum": 1},
        "any": {"x-kubernetes-preserve-unknown-fields": true},
        "one": {"type": "object", "properties": {"a": {"type": "string"}, "b": {"type": "string"}},
                "oneOf": [{"required": ["a"]}, {"required": ["b"]}]},
    }});
    let mut resource = kind("Task");
    resource.compiled = std::sync::Arc::new(Schema::compile(&schema).unwrap());
    let count = |object: Value| check(&resource, &mut object.clone()).violations.len();
    for fine in [
        json!({"text": "ab", "list": [true], "number": 1, "any": {"x": [null]}, "one": {"a": ""}}),
        json!({"number": 0.5, "any": 7}),
    ] {
        assert_eq!(count(fine.clone()), 0, "{fine}");
    }
    for wrong in [
        json!({"text": "a"}),
        json!({"text": "abcd"}),
        json!({"text": "A1"}),
        json!({"list": []}),
        json!({"list": [true, true, false]}),
        json!({"list": [1]}),
        json!({"number": 0}),
        json!({"number": 1.1}),
        json!({"one": {}}),
        json!({"one": {"a": "", "b": ""}}),
    ] {
        assert_eq!(count(wrong.clone()), 1, "{wrong}");
    }
}

#[test]
fn problems_are_bounded() {
    let many: serde_json::Map<String, Value> = (0..1000).map(|index| (format!("unknown{index}"), json!(1))).collect();
    let outcome = check(&kind("Task"), &mut with_spec(Value::Object(many)));
    assert_eq!(outcome.unknown.len(), 100);
    let outcome = check(&kind("Task"), &mut with_spec(json!({"args": vec![1; 1000]})));
    assert_eq!(outcome.violations.len(), 100);
}

#[test]
fn a_walk_is_quick() {
    let env: Vec<Value> = (0..12)
        .map(|index| json!({"name": format!("VARIABLE_{index}"), "value": "some value of it"}))
        .collect();
    let task = with_spec(json!({"env": env, "resources": {"cpus": 1, "memory": "64Mi"}, "args": ["a", "b", "c"]}));
    assert!((700..1500).contains(&task.to_string().len()));
    let resource = kind("Task");
    let started = tokio::time::Instant::now();
    let rounds = 2000;
    for _ in 0..rounds {
        assert!(check(&resource, &mut task.clone()).violations.is_empty());
    }
    let each = started.elapsed() / rounds;
    println!("{each:?} for each walk over a task of {} bytes", task.to_string().len());
    // Ten times what an optimised build takes, and unoptimised, on a busy machine: this only catches another order of growth.
    assert!(each < Duration::from_millis(2), "{each:?}");
}
