//! Who owns what after which writes: the cases that Kubernetes' own tests and documents tell.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

use muster_apply::{Managed, Path, Schema, Set, UPDATERS_MAX, Writer, conflict_message, problems};
use serde_json::{Value, json};

fn schema() -> Schema {
    let text = json!({"type": "string"});
    let number = json!({"type": "integer"});
    let item = json!({
        "type": "object",
        "properties": {"name": text, "port": {"type": "integer", "default": 80}, "value": text, "more": number},
    });
    let kind = json!({"type": "object", "properties": {
        "apiVersion": text, "kind": text,
        "spec": {"type": "object", "properties": {
            "a": number, "b": number, "text": text,
            "command": {"type": "array", "items": text},
            "roles": {"type": "array", "x-kubernetes-list-type": "set", "items": text},
            "env": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name"], "items": item},
            "ports": {"type": "array", "x-kubernetes-list-type": "map", "x-kubernetes-list-map-keys": ["name", "port"], "items": item},
            "labels": {"type": "object", "additionalProperties": text},
            "limits": {"type": "object", "properties": {"cpus": text, "memory": text}},
            "selector": {"type": "object", "x-kubernetes-map-type": "atomic", "additionalProperties": text},
            "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
        }},
        "status": {"type": "object", "properties": {"phase": text, "n": number}},
    }});
    let metadata = json!({"type": "object", "properties": {
        "name": text, "namespace": text, "uid": text,
        "labels": {"type": "object", "additionalProperties": text},
        "annotations": {"type": "object", "additionalProperties": text},
    }});
    Schema::new(&kind, &metadata)
}

/// An object and its owners, with a clock that ticks at each write.
struct Store {
    schema: Schema,
    object: Value,
    managed: Managed,
    writes: u32,
}

impl Store {
    fn new() -> Store {
        Store {
            schema: schema(),
            object: json!({}),
            managed: Managed::default(),
            writes: 0,
        }
    }

    fn apply_at(&mut self, manager: &str, subresource: &str, config: &Value, force: bool) -> Result<(), String> {
        let time = self.tick();
        let writer = writer(manager, subresource, &time);
        let managed = self.managed.clone();
        let applied = managed.apply(&self.schema, &self.object, config, &writer, force);
        let applied = applied.map_err(|conflicts| conflict_message(&conflicts))?;
        (self.object, self.managed) = (applied.object, applied.managed);
        Ok(())
    }

    fn apply(&mut self, manager: &str, spec: Value) -> Result<(), String> {
        self.apply_at(manager, "", &json!({"spec": spec}), false)
    }

    #[track_caller]
    fn applied(mut self, manager: &str, spec: Value) -> Store {
        self.apply(manager, spec).unwrap();
        self
    }

    #[track_caller]
    fn forced(mut self, manager: &str, spec: Value) -> Store {
        self.apply_at(manager, "", &json!({"spec": spec}), true).unwrap();
        self
    }

    fn updated(mut self, manager: &str, change: impl FnOnce(&mut Value)) -> Store {
        let time = self.tick();
        let mut object = self.object.clone();
        change(&mut object);
        let managed = std::mem::take(&mut self.managed);
        self.managed = managed.update(&self.schema, &self.object, &object, &writer(manager, "", &time), true);
        self.object = object;
        self
    }

    fn tick(&mut self) -> String {
        self.writes += 1;
        format!("2026-01-01T00:00:{:02}Z", self.writes)
    }

    #[track_caller]
    fn has(self, spec: Value) -> Store {
        assert_eq!(self.object["spec"], spec);
        self
    }

    #[track_caller]
    fn owned(self, manager: &str, paths: &[&str]) -> Store {
        let owned = self.managed.entries().iter().filter(|entry| entry.manager == manager);
        let owned: Vec<String> = owned
            .flat_map(|entry| entry.fields.paths())
            .map(|path| path.to_string())
            .collect();
        assert_eq!(owned, paths, "{manager}: {}", self.managed.encode());
        self
    }
}

fn writer<'a>(manager: &'a str, subresource: &'a str, time: &'a str) -> Writer<'a> {
    Writer {
        manager,
        api_version: "v1",
        subresource,
        has_status: true,
        time,
    }
}

#[test]
fn applying_makes_the_object_and_owns_what_it_says() {
    let config = json!({
        "apiVersion": "v1", "kind": "X", "metadata": {"name": "x", "labels": {"l": "1"}},
        "spec": {"a": 1, "env": [{"name": "A", "value": "v"}]}, "status": {"phase": "P"},
    });
    let mut store = Store::new();
    store.apply_at("m", "", &config, false).unwrap();
    assert_eq!(store.object["status"], Value::Null);
    assert_eq!(
        store.managed.encode(),
        json!([{
            "manager": "m", "operation": "Apply", "apiVersion": "v1", "time": "2026-01-01T00:00:01Z", "fieldsType": "FieldsV1",
            "fieldsV1": {
                "f:metadata": {"f:labels": {"f:l": {}}},
                "f:spec": {"f:a": {}, "f:env": {"k:{\"name\":\"A\"}": {".": {}, "f:name": {}, "f:value": {}}}},
            },
        }])
    );
    let (object, managed) = (store.object.clone(), store.managed.clone());
    store.apply_at("m", "", &config, false).unwrap();
    assert_eq!(
        (store.object, store.managed),
        (object, managed),
        "the same again changes nothing, times included"
    );
}

#[test]
fn what_another_owns_is_a_conflict_unless_it_is_the_same_or_forced() {
    let mut store = Store::new().applied("a", json!({"a": 1, "b": 1}));
    let message = store.apply("b", json!({"a": 2})).unwrap_err();
    assert_eq!(message, "Apply failed with 1 conflict: conflict with \"a\": .spec.a");
    let message = store.apply("b", json!({"a": 2, "b": 2})).unwrap_err();
    assert_eq!(
        message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.a\n- .spec.b"
    );
    let store = store
        .applied("b", json!({"a": 1}))
        .owned("a", &[".spec.a", ".spec.b"])
        .owned("b", &[".spec.a"])
        .forced("b", json!({"a": 2}))
        .owned("a", &[".spec.b"])
        .forced("b", json!({"a": 2, "b": 3}));
    let store = store.owned("a", &[]).has(json!({"a": 2, "b": 3}));
    assert_eq!(store.managed.entries().len(), 1, "who owns nothing is not there");
}

#[test]
fn what_nobody_wants_any_more_goes() {
    Store::new()
        .applied("a", json!({"a": 1, "limits": {"cpus": "1", "memory": "1"}}))
        .applied("b", json!({"a": 1}))
        .applied("a", json!({"limits": {"cpus": "1"}}))
        .has(json!({"a": 1, "limits": {"cpus": "1"}}))
        .applied("a", json!({"b": 1}))
        .has(json!({"a": 1, "b": 1}))
        .applied("b", json!({}))
        .has(json!({"b": 1}))
        .owned("b", &[".spec"]);
}

#[test]
fn who_changes_a_field_takes_it() {
    let mut store = Store::new()
        .applied("a", json!({"a": 1, "b": 1}))
        .updated("c", |object| object["spec"]["a"] = json!(2))
        .owned("a", &[".spec.b"])
        .owned("c", &[".spec.a"]);
    let message = store.apply("a", json!({"a": 1, "b": 1})).unwrap_err();
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"c\" using v1: .spec.a"
    );
    store
        .applied("a", json!({"b": 1}))
        .has(json!({"a": 2, "b": 1}))
        .owned("c", &[".spec.a"]);
}

#[test]
fn who_removes_a_field_owns_nothing_by_it() {
    Store::new()
        .applied("a", json!({"a": 1, "b": 1}))
        .updated("c", |object| drop(object["spec"].as_object_mut().unwrap().remove("a")))
        .owned("a", &[".spec.b"])
        .owned("c", &[]);
}

#[test]
fn items_with_keys_have_owners_of_their_own() {
    let x = json!({"name": "x", "value": "1"});
    let y = json!({"name": "y"});
    Store::new()
        .applied("a", json!({"env": [x]}))
        .applied("b", json!({"env": [y]}))
        .has(json!({"env": [x, y]}))
        .applied("a", json!({}))
        .has(json!({"env": [y]}));
    Store::new()
        .applied("a", json!({"env": [x, y]}))
        .updated("b", |object| object["spec"]["env"][0]["value"] = json!("2"))
        .owned("b", &[r#".spec.env[name="x"].value"#])
        .applied("a", json!({}))
        .has(json!({"env": [{"name": "x", "value": "2"}]}));
    let ports = json!([{"name": "x"}, {"name": "x", "port": 81}]);
    Store::new()
        .applied("a", json!({"ports": ports}))
        .applied("b", json!({"ports": [{"name": "x", "port": 80, "value": "v"}]}))
        .has(json!({"ports": [{"name": "x", "port": 80, "value": "v"}, {"name": "x", "port": 81}]}));
}

#[test]
fn wholes_belong_to_one() {
    let mut store = Store::new().applied("a", json!({"command": ["x"], "selector": {"l": "1"}}));
    let message = store
        .apply("b", json!({"command": ["x", "y"], "selector": {"m": "1"}}))
        .unwrap_err();
    assert_eq!(
        message,
        "Apply failed with 2 conflicts: conflicts with \"a\":\n- .spec.command\n- .spec.selector"
    );
    store
        .applied("b", json!({"command": ["x"]}))
        .owned("b", &[".spec.command"]);
}

#[test]
fn items_of_sets_are_wanted_by_many() {
    Store::new()
        .applied("a", json!({"roles": ["1", "2"]}))
        .applied("b", json!({"roles": ["2", "3"]}))
        .has(json!({"roles": ["1", "2", "3"]}))
        .applied("a", json!({"roles": ["1"]}))
        .has(json!({"roles": ["1", "2", "3"]}))
        .applied("b", json!({"roles": ["3"]}))
        .has(json!({"roles": ["1", "3"]}));
}

#[test]
fn an_empty_map_is_owned_and_what_is_in_it_stays() {
    Store::new()
        .applied("a", json!({"labels": {"x": "1"}}))
        .applied("b", json!({"labels": {}}))
        .owned("b", &[".spec.labels"])
        .has(json!({"labels": {"x": "1"}}))
        .applied("a", json!({}))
        .has(json!({"labels": {}}));
}

#[test]
fn null_is_an_opinion() {
    Store::new()
        .applied("a", json!({"text": null}))
        .owned("a", &[".spec.text"])
        .has(json!({"text": null}));
}

#[test]
fn what_is_not_declared_is_merged_by_its_looks() {
    Store::new()
        .applied("a", json!({"free": {"m": {"x": 1}, "l": [1]}}))
        .applied("b", json!({"free": {"m": {"y": 1}}}))
        .has(json!({"free": {"m": {"x": 1, "y": 1}, "l": [1]}}))
        .forced("b", json!({"free": {"l": [2]}}))
        .has(json!({"free": {"m": {"x": 1}, "l": [2]}}));
}

#[test]
fn the_order_of_items_is_the_appliers() {
    let items = |names: &str| -> Value { names.chars().map(|name| json!({"name": name.to_string()})).collect() };
    for (live, config, expect) in [
        ("abc", "ca", "bca"),
        ("abc", "nc", "abnc"),
        ("ab", "xayb", "xayb"),
        ("a", "xy", "axy"),
        ("abcd", "dcba", "dcba"),
    ] {
        Store::new()
            .updated("u", |object| *object = json!({"spec": {"env": items(live)}}))
            .applied("a", json!({"env": items(config)}))
            .has(json!({"env": items(expect)}));
    }
}

#[test]
fn what_was_there_before_the_first_apply_belongs_to_somebody() {
    let mut store = Store::new();
    store.object = json!({"metadata": {"name": "x"}, "spec": {"a": 1, "b": 2}});
    let message = store.apply("a", json!({"a": 3})).unwrap_err();
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"before-first-apply\" using v1: .spec.a"
    );
    store = store.applied("a", json!({"a": 1}));
    store
        .owned("before-first-apply", &[".spec", ".spec.a", ".spec.b"])
        .owned("a", &[".spec.a"]);
}

#[test]
fn an_object_without_owners_stays_so_until_somebody_applies() {
    let mut store = Store::new();
    store.object = json!({"spec": {"a": 1}});
    let store = store.updated("u", |object| object["spec"]["a"] = json!(2));
    assert!(store.managed.is_empty());
}

#[test]
fn the_status_is_owned_through_its_subresource() {
    let mut store = Store::new().applied("a", json!({"a": 1}));
    let config = json!({"metadata": {"name": "x", "labels": {"l": "1"}}, "spec": {"a": 7}, "status": {"phase": "P"}});
    store.apply_at("a", "status", &config, false).unwrap();
    assert_eq!(
        store.object,
        json!({"spec": {"a": 1}, "status": {"phase": "P"}, "metadata": {"name": "x"}})
    );
    let entries = store.managed.entries();
    assert_eq!(entries.len(), 2, "one for the object and one for the status");
    assert_eq!(entries[1].subresource, "status");
    let message = store
        .apply_at("b", "status", &json!({"status": {"phase": "Q"}}), false)
        .unwrap_err();
    assert_eq!(
        message,
        "Apply failed with 1 conflict: conflict with \"a\" with subresource \"status\": .status.phase"
    );
    store.apply_at("a", "", &json!({"spec": {"a": 1}}), false).unwrap();
    assert_eq!(store.object["status"]["phase"], "P");
}

#[test]
fn who_is_not_noted_takes_and_owns_nothing() {
    let store = Store::new().applied("a", json!({"a": 1, "b": 1}));
    let mut object = store.object.clone();
    object["spec"]["a"] = json!(2);
    let writer = writer("system", "", "2026-01-01T00:01:00Z");
    let managed = store
        .managed
        .clone()
        .update(&store.schema, &store.object, &object, &writer, false);
    assert_eq!(managed.entries().len(), 1);
    assert!(!managed.entries()[0].fields.contains(&Path::of_fields(&["spec", "a"])));
}

#[test]
fn old_updaters_become_one() {
    let mut store = Store::new().applied("a", json!({"b": 1}));
    for number in 0..14 {
        store = store.updated(&format!("u{number:02}"), |object| {
            object["spec"]["labels"][format!("l{number}")] = json!("x");
        });
    }
    let names: Vec<&str> = store
        .managed
        .entries()
        .iter()
        .map(|entry| entry.manager.as_str())
        .collect();
    assert_eq!(names.len(), UPDATERS_MAX + 1);
    assert_eq!(names[..3], ["a", "ancient-changes", "u05"]);
    let owned = store
        .managed
        .entries()
        .iter()
        .fold(Set::new(), |all, entry| all.union(&entry.fields));
    assert_eq!(owned.len(), 1 + 1 + 14, "nothing is lost: b, the map and its entries");
}

#[test]
fn who_comes_from_client_side_apply_need_not_fight() {
    let last = json!({"spec": {"a": 1, "b": 2}}).to_string();
    let annotations = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    let made = || {
        Store::new().updated("kubectl-client-side-apply", |object| {
            *object = json!({"metadata": {"annotations": annotations}, "spec": {"a": 1, "b": 2, "text": "x"}});
        })
    };
    let mut store = made().applied("kubectl", json!({"a": 5, "b": 2}));
    assert_eq!(store.object["spec"]["a"], 5);
    let note = store.object["metadata"]["annotations"]["kubectl.kubernetes.io/last-applied-configuration"].clone();
    assert_eq!(note, "{\"spec\":{\"a\":5,\"b\":2}}\n", "the way back stays open");
    let message = store.apply("kubectl", json!({"a": 5, "text": "y"})).unwrap_err();
    assert!(message.ends_with("using v1: .spec.text"), "{message}");
    assert!(
        made().apply("other", json!({"a": 5})).is_err(),
        "only kubectl comes from there"
    );
}

#[test]
fn items_that_cannot_be_told_apart_are_a_problem() {
    let found = |spec: Value| -> Vec<String> {
        let found = problems(&schema(), &json!({"spec": spec}));
        found
            .iter()
            .map(|problem| format!("{}: {}", problem.path, problem.message))
            .collect()
    };
    assert_eq!(
        found(json!({"env": [{"name": "x"}, {"name": "x"}], "roles": ["a", "a"]})),
        [
            r#".spec.env[name="x"]: duplicate entries for key [name="x"]"#,
            r#".spec.roles[="a"]: duplicate entries for key [="a"]"#,
        ]
    );
    assert!(found(json!({"env": [{"value": "x"}]}))[0].contains("omits key field \"name\""));
    assert!(found(json!({"env": [{"name": "x"}], "command": ["a", "a"], "ports": [{"name": "x"}]})).is_empty());
}

#[test]
fn owners_are_read_and_written() {
    let text = json!([{"manager": "m", "operation": "Update", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": {"f:a": {}}}]);
    let managed = Managed::decode(&text).unwrap();
    assert_eq!(managed.encode(), text);
    assert_eq!(Managed::decode(&Value::Null).unwrap(), Managed::default());
    for wrong in [
        json!({}),
        json!([1]),
        json!([{"operation": "Other", "fieldsType": "FieldsV1"}]),
        json!([{"operation": "Apply", "fieldsType": "V2"}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "fieldsV1": {"x": {}}}]),
        json!([{"operation": "Apply", "fieldsType": "FieldsV1", "manager": 1}]),
    ] {
        assert!(Managed::decode(&wrong).is_err(), "{wrong}");
    }
}

#[test]
fn what_became_a_whole_is_owned_as_a_whole() {
    let mut store = Store::new();
    store.object = json!({"spec": {"command": ["x"], "roles": ["r"]}});
    let fields = json!({"f:spec": {"f:command": {"v:\"x\"": {}}}});
    let entry =
        json!({"manager": "a", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
    store.managed = Managed::decode(&json!([entry])).unwrap();
    store.applied("b", json!({"a": 1})).owned("a", &[".spec.command"]);
}

#[test]
fn what_nobody_owns_of_metadata_outlives_the_last_label_of_an_applier() {
    let mut store = Store::new();
    let labelled = json!({"metadata": {"labels": {"mine": "1"}}, "spec": {"limits": {"cpus": "1"}}});
    store.apply_at("a", "", &labelled, false).unwrap();
    // The control plane notes things, and owns nothing.
    store.object["metadata"]["labels"]["system"] = json!("x");
    store.object["metadata"]["annotations"] = json!({"system": "y"});
    store.object["spec"]["limits"]["memory"] = json!("1Gi");
    store.apply_at("a", "", &json!({"spec": {"a": 1}}), false).unwrap();
    let expected = json!({"labels": {"system": "x"}, "annotations": {"system": "y"}});
    assert_eq!(store.object["metadata"], expected);
    assert_eq!(
        store.object["spec"],
        json!({"a": 1}),
        "a default goes with what it was filled into"
    );
    let mut alone = Store::new();
    alone.apply_at("a", "", &labelled, false).unwrap();
    alone.apply_at("a", "", &json!({"spec": {"a": 1}}), false).unwrap();
    assert!(alone.object["metadata"]["labels"].is_null(), "{}", alone.object);
}
