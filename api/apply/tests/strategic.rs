//! Strategic merge patches, as the documents of Kubernetes tell them.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use muster_apply::Schema;
use muster_apply::strategic::{PatchError, patch};
use serde_json::{Value, json};

fn check(object: Value, change: Value, expect: Result<Value, PatchError>) {
    let text = json!({"type": "string"});
    let item = json!({"type": "object", "properties": {"name": text, "value": text, "args": {"type": "array", "items": text}}});
    let kind = json!({"type": "object", "properties": {
        "env": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item},
        "set": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
        "list": {"type": "array", "items": text},
        "data": {"type": "object", "additionalProperties": text},
        "strategy": {"type": "object", "properties": {"type": text, "rolling": text}},
    }});
    let schema = Schema::new(&kind, &json!({"type": "object", "properties": {}}));
    assert_eq!(patch(&schema, &object, &change), expect, "{change} on {object}");
}

#[test]
fn maps_merge_and_null_removes() {
    check(
        json!({"data": {"a": "1", "b": "2"}, "list": ["x"]}),
        json!({"data": {"b": null, "c": "3"}, "list": ["y"]}),
        Ok(json!({"data": {"a": "1", "c": "3"}, "list": ["y"]})),
    );
    check(
        json!({}),
        json!({"data": {"a": null, "b": "1"}}),
        Ok(json!({"data": {"b": "1"}})),
    );
}

#[test]
fn items_merge_by_their_keys() {
    let env = json!({"env": [{"name": "a", "value": "1", "args": ["x"]}, {"name": "b"}]});
    check(
        env.clone(),
        json!({"env": [{"name": "a", "value": "2"}, {"name": "c"}]}),
        Ok(json!({"env": [{"name": "a", "value": "2", "args": ["x"]}, {"name": "b"}, {"name": "c"}]})),
    );
    check(
        env.clone(),
        json!({"env": [{"name": "a", "$patch": "delete"}, {"name": "z", "$patch": "delete"}]}),
        Ok(json!({"env": [{"name": "b"}]})),
    );
    check(
        env.clone(),
        json!({"env": [{"name": "a", "$patch": "replace", "value": "3"}]}),
        Ok(json!({"env": [{"name": "a", "value": "3"}, {"name": "b"}]})),
    );
    check(
        env.clone(),
        json!({"env": [{"$patch": "replace"}, {"name": "z"}]}),
        Ok(json!({"env": [{"name": "z"}]})),
    );
    let no_key = PatchError::NoKey {
        field: "env".to_owned(),
        keys: "name".to_owned(),
    };
    check(env, json!({"env": [{"value": "1"}]}), Err(no_key));
}

#[test]
fn directives_do_not_end_up_in_the_object() {
    check(
        json!({"data": {"a": "1"}}),
        json!({"data": {"$patch": "replace", "b": "2"}}),
        Ok(json!({"data": {"b": "2"}})),
    );
    check(
        json!({"data": {"a": "1"}}),
        json!({"data": {"$patch": "delete"}}),
        Ok(json!({"data": {}})),
    );
    check(
        json!({"strategy": {"type": "Rolling", "rolling": "x"}}),
        json!({"strategy": {"$retainKeys": ["type"], "type": "Recreate"}}),
        Ok(json!({"strategy": {"type": "Recreate"}})),
    );
    check(
        json!({"set": ["a", "b", "c"]}),
        json!({"$deleteFromPrimitiveList/set": ["b"], "set": ["d"], "$setElementOrder/set": ["d", "c", "a"]}),
        Ok(json!({"set": ["d", "c", "a"]})),
    );
    check(
        json!({"env": [{"name": "a"}, {"name": "x"}, {"name": "b"}]}),
        json!({"$setElementOrder/env": [{"name": "b"}, {"name": "a"}]}),
        Ok(json!({"env": [{"name": "b"}, {"name": "a"}, {"name": "x"}]})),
    );
    check(
        json!({}),
        json!({"env": [{"name": "a", "$setElementOrder/args": []}], "$setElementOrder/env": [{"name": "a"}]}),
        Ok(json!({"env": [{"name": "a"}]})),
    );
    for wrong in [
        json!({"$patch": "other"}),
        json!({"$unknown": 1}),
        json!({"$retainKeys": 1}),
    ] {
        let object = json!({});
        let schema = Schema::new(&json!({"type": "object", "properties": {}}), &json!({}));
        assert!(
            matches!(patch(&schema, &object, &wrong), Err(PatchError::Directive { .. })),
            "{wrong}"
        );
    }
}

#[test]
fn items_of_sets_are_added_once() {
    check(
        json!({"set": ["a"]}),
        json!({"set": ["b", "a"]}),
        Ok(json!({"set": ["a", "b"]})),
    );
}
