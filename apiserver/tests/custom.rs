//! Kinds that are defined by objects: served at once and everywhere, held to their schema, changed while they live, and gone with their
//! objects.

#![allow(clippy::unwrap_used, reason = "tests may panic")]

mod common;

use std::sync::Arc;

use common::*;
use muster_store::{MemoryStore, Store};
use serde_json::{Value, json};

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn schema() -> Value {
    json!({
        "type": "object",
        "description": "A thing with a size.",
        "required": ["spec"],
        "properties": {
            "spec": {
                "type": "object",
                "required": ["color"],
                "properties": {
                    "color": {"type": "string", "enum": ["red", "blue"], "description": "What it looks like."},
                    "size": {"type": "integer", "format": "int32", "minimum": 1, "maximum": 10, "default": 3},
                    "replicas": {"type": "integer", "default": 1},
                    "port": {"x-kubernetes-int-or-string": true, "anyOf": [{"type": "integer"}, {"type": "string"}]},
                    "code": {"type": "string", "pattern": "^[a-z]+$", "maxLength": 4},
                    "free": {"type": "object", "x-kubernetes-preserve-unknown-fields": true},
                    "inner": {"type": "object", "x-kubernetes-embedded-resource": true, "x-kubernetes-preserve-unknown-fields": true},
                    "parts": {
                        "type": "array",
                        "x-kubernetes-list-type": "map",
                        "x-kubernetes-list-map-keys": ["name"],
                        "items": {
                            "type": "object",
                            "required": ["name"],
                            "properties": {"name": {"type": "string"}, "weight": {"type": "integer"}},
                        },
                    },
                },
            },
            "status": {
                "type": "object",
                "properties": {"phase": {"type": "string"}, "replicas": {"type": "integer"}, "selector": {"type": "string"}},
            },
        },
    })
}

fn version(name: &str, storage: bool, schema: Value) -> Value {
    json!({
        "name": name,
        "served": true,
        "storage": storage,
        "schema": {"openAPIV3Schema": schema},
        "subresources": {
            "status": {},
            "scale": {"specReplicasPath": ".spec.replicas", "statusReplicasPath": ".status.replicas", "labelSelectorPath": ".status.selector"},
        },
        "additionalPrinterColumns": [{"name": "Color", "type": "string", "jsonPath": ".spec.color"}],
        "selectableFields": [{"jsonPath": ".spec.color"}],
    })
}

fn definition() -> Value {
    json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"},
        "spec": {
            "group": "example.com",
            "scope": "Namespaced",
            "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wg"], "categories": ["all"]},
            "versions": [version("v1", true, schema())],
        },
    })
}

fn widget(name: &str, spec: Value) -> Value {
    json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": name}, "spec": spec})
}

fn condition(definition: &Value, kind: &str) -> String {
    let conditions = definition["status"]["conditions"].as_array().unwrap();
    let found = conditions.iter().find(|condition| condition["type"] == kind);
    found
        .map(|condition| format!("{} {}", condition["status"], condition["reason"]).replace('"', ""))
        .unwrap_or_default()
}

fn fields(answer: &Answer) -> Vec<String> {
    let causes = answer.json["details"]["causes"].as_array().cloned().unwrap_or_default();
    causes
        .iter()
        .map(|cause| {
            format!(
                "{}: {}",
                cause["field"].as_str().unwrap_or_default(),
                cause["message"].as_str().unwrap()
            )
        })
        .collect()
}

#[tokio::test(start_paused = true)]
async fn a_kind_is_served_as_soon_as_it_is_defined() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.get(WIDGETS).await.expect(404);
    let made = admin.post(DEFINITIONS, &definition()).await.expect(201).json;
    assert_eq!(condition(&made, "Established"), "True InitialNamesAccepted");
    assert_eq!(condition(&made, "NamesAccepted"), "True NoConflicts");
    assert_eq!(made["spec"]["names"]["singular"], "widget");
    assert_eq!(made["status"]["acceptedNames"]["listKind"], "WidgetList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));

    let made = admin
        .post(
            WIDGETS,
            &widget("a", json!({"color": "red", "bogus": 1, "free": {"x": 1}})),
        )
        .await
        .expect(201);
    assert_eq!(
        made.json["spec"],
        json!({"color": "red", "size": 3, "replicas": 1, "free": {"x": 1}})
    );
    assert_eq!(made.headers["warning"], "299 - \"unknown field \\\"spec.bogus\\\"\"");
    assert_eq!(made.json["metadata"]["generation"], 1);
    let list = admin.get("/apis/example.com/v1/widgets").await.expect(200).json;
    assert_eq!(
        (&list["kind"], &list["items"][0]["apiVersion"]),
        (&json!("WidgetList"), &json!("example.com/v1"))
    );

    let groups = admin.get("/apis").await.expect(200).json;
    assert!(
        groups["groups"]
            .as_array()
            .unwrap()
            .iter()
            .any(|group| group["name"] == "example.com")
    );
    let resources = admin.get("/apis/example.com/v1").await.expect(200).json;
    let names: Vec<&Value> = resources["resources"]
        .as_array()
        .unwrap()
        .iter()
        .map(|resource| &resource["name"])
        .collect();
    assert_eq!(names, ["widgets", "widgets/status", "widgets/scale"]);
    let v2 = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";
    let aggregated = admin.clone().with("accept", v2).get("/apis").await.expect(200);
    assert!(aggregated.json.to_string().contains("\"wg\""));
    let openapi = admin.get("/openapi/v3/apis/example.com/v1").await.expect(200).json;
    assert_eq!(
        openapi.pointer("/components/schemas/com.example.v1.Widget/properties/spec/properties/color/description"),
        Some(&json!("What it looks like."))
    );
    assert!(admin.get("/openapi/v2").await.expect(200).json["definitions"]["com.example.v1.Widget"].is_object());
    let table = admin
        .with("accept", "application/json;as=Table;v=v1;g=meta.k8s.io")
        .get(WIDGETS)
        .await
        .expect(200)
        .json;
    assert_eq!(table["rows"][0]["cells"], json!(["a", "red"]));
}

#[tokio::test(start_paused = true)]
async fn every_server_serves_what_one_was_told() {
    let store: Arc<dyn Store> = Arc::new(MemoryStore::new());
    let (one, two) = (Server::on(store.clone()).await, Server::on(store).await);
    two.admin().get(WIDGETS).await.expect(404);
    one.admin().post(DEFINITIONS, &definition()).await.expect(201);
    two.admin()
        .post(WIDGETS, &widget("a", json!({"color": "red"})))
        .await
        .expect(201);
    // A write is held against the newest definition, whoever knows it.
    let mut stricter = one
        .admin()
        .get(&format!("{DEFINITIONS}/widgets.example.com"))
        .await
        .expect(200)
        .json;
    stricter["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["properties"]["color"]["enum"] =
        json!(["blue"]);
    one.admin()
        .put(&format!("{DEFINITIONS}/widgets.example.com"), &stricter)
        .await
        .expect(200);
    let answer = two.admin().post(WIDGETS, &widget("b", json!({"color": "red"}))).await;
    assert!([422, 429].contains(&answer.code.as_u16()), "{}", answer.json);
    let restarted = Server::on(one.store.clone()).await;
    let kept = restarted.admin().get(&format!("{WIDGETS}/a")).await.expect(200).json;
    assert_eq!(kept["spec"]["color"], "red");
}

#[tokio::test(start_paused = true)]
async fn objects_are_held_to_the_schema_in_kubernetes_words() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let check = async |spec: Value, expect: &[&str]| {
        let answer = admin.post(WIDGETS, &widget("w", spec)).await.expect(422);
        assert_eq!(fields(&answer), expect);
    };
    check(json!({}), &["spec.color: Required value"]).await;
    check(
        json!({"color": "green"}),
        &["spec.color: Unsupported value: \"green\": supported values: \"red\", \"blue\""],
    )
    .await;
    check(
        json!({"color": "red", "size": 11, "code": "TOOLONG", "port": true}),
        &[
            "spec.code: Too long: may not be more than 4 bytes",
            "spec.code: Invalid value: \"TOOLONG\": spec.code in body should match '^[a-z]+$'",
            "spec.port: Invalid value: \"boolean\": spec.port in body must be of type integer,string: \"boolean\"",
            "spec.size: Invalid value: 11: spec.size in body should be less than or equal to 10",
        ],
    )
    .await;
    check(
        json!({"color": "red", "inner": {"kind": "X"}}),
        &["spec.inner.apiVersion: Required value: must not be empty"],
    )
    .await;
    check(
        json!({"color": "red", "parts": [{"name": "a"}, {"name": "a"}]}),
        &["spec.parts[1]: Duplicate value: {\"name\":\"a\"}"],
    )
    .await;
    let strict = admin
        .post(
            &format!("{WIDGETS}?fieldValidation=Strict"),
            &widget("w", json!({"color": "red", "colour": 1})),
        )
        .await
        .expect(400);
    assert!(
        strict
            .message()
            .contains("strict decoding error: unknown field \"spec.colour\""),
        "{}",
        strict.message()
    );
    for port in [json!(80), json!("http")] {
        let made = admin
            .post(WIDGETS, &widget("", json!({"color": "red", "port": port})))
            .await;
        assert_eq!(made.code, 422, "a name is needed");
    }
    admin
        .post(
            WIDGETS,
            &widget(
                "w",
                json!({"color": "red", "port": "http", "inner": {"apiVersion": "v1", "kind": "X", "a": 1}}),
            ),
        )
        .await
        .expect(201);

    // Status is written by itself, and is held to the schema too.
    let path = format!("{WIDGETS}/w/status");
    let answer = admin.merge(&path, &json!({"status": {"phase": 7}})).await.expect(422);
    assert_eq!(
        fields(&answer),
        ["status.phase: Invalid value: \"integer\": status.phase in body must be of type string: \"integer\""]
    );
    let written = admin
        .merge(&path, &json!({"status": {"phase": "Fine"}, "spec": {"color": "blue"}}))
        .await
        .expect(200)
        .json;
    assert_eq!(
        (
            &written["status"]["phase"],
            &written["spec"]["color"],
            &written["metadata"]["generation"]
        ),
        (&json!("Fine"), &json!("red"), &json!(1))
    );
    let written = admin
        .merge(
            &format!("{WIDGETS}/w"),
            &json!({"status": {"phase": "Gone"}, "spec": {"color": "blue"}}),
        )
        .await
        .expect(200)
        .json;
    assert_eq!(
        (&written["status"]["phase"], &written["metadata"]["generation"]),
        (&json!("Fine"), &json!(2))
    );
    let mut stale = written.clone();
    stale["metadata"].as_object_mut().unwrap().remove("resourceVersion");
    admin.put(&format!("{WIDGETS}/w"), &stale).await.expect(422);
}

#[tokio::test(start_paused = true)]
async fn what_is_applied_is_merged_by_the_schemas_keys() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let apply = async |manager: &str, spec: Value| {
        let client = admin.clone().with("content-type", "application/apply-patch+yaml");
        client
            .send(
                "PATCH",
                &format!("{WIDGETS}/w?fieldManager={manager}"),
                widget("w", spec).to_string(),
            )
            .await
    };
    apply("one", json!({"color": "red", "parts": [{"name": "a", "weight": 1}]}))
        .await
        .expect(201);
    let both = apply("two", json!({"parts": [{"name": "b"}]})).await.expect(200).json;
    assert_eq!(
        both["spec"]["parts"],
        json!([{"name": "a", "weight": 1}, {"name": "b"}])
    );
    apply("two", json!({"color": "blue"})).await.expect(409);
    let one = apply("one", json!({"color": "red"})).await.expect(200).json;
    assert_eq!(one["spec"]["parts"], json!([{"name": "b"}]));
}

#[tokio::test(start_paused = true)]
async fn versions_differ_in_name_and_shape_only() {
    let server = Server::new().await;
    let admin = server.admin();
    let mut both = definition();
    let mut second = schema();
    second["properties"]["spec"]["properties"]["weight"] = json!({"type": "integer", "default": 7});
    second["properties"]["spec"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("size");
    both["spec"]["versions"] = json!([version("v1", true, schema()), version("v2", false, second)]);
    admin.post(DEFINITIONS, &both).await.expect(201);
    admin
        .post(WIDGETS, &widget("w", json!({"color": "red"})))
        .await
        .expect(201);
    let newer = WIDGETS.replace("/v1/", "/v2/");
    let shown = admin.get(&format!("{newer}/w")).await.expect(200).json;
    assert_eq!(shown["apiVersion"], "example.com/v2");
    assert_eq!(shown["spec"], json!({"color": "red", "replicas": 1, "weight": 7}));
    let list = admin.get(&newer).await.expect(200).json;
    assert_eq!(
        (&list["apiVersion"], &list["items"][0]["spec"]["weight"]),
        (&json!("example.com/v2"), &json!(7))
    );
    let mut watch = admin.watch(&format!("{newer}?watch=1")).await;
    assert_eq!(watch.next().await.unwrap()["object"]["apiVersion"], "example.com/v2");
    let groups = admin.get("/apis/example.com").await.expect(200).json;
    assert_eq!(groups["preferredVersion"]["version"], "v2");

    // Another version is stored from now on; a write that changes nothing else moves an object over.
    both["spec"]["versions"][0]["storage"] = json!(false);
    both["spec"]["versions"][1]["storage"] = json!(true);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let changed = admin
        .merge(&path, &json!({"spec": {"versions": both["spec"]["versions"]}}))
        .await
        .expect(200)
        .json;
    assert_eq!(changed["status"]["storedVersions"], json!(["v1", "v2"]));
    let before = admin.get(&format!("{WIDGETS}/w")).await.expect(200).json;
    let after = admin.merge(&format!("{WIDGETS}/w"), &json!({})).await.expect(200).json;
    assert_ne!(
        before["metadata"]["resourceVersion"],
        after["metadata"]["resourceVersion"]
    );
    let again = admin.merge(&format!("{WIDGETS}/w"), &json!({})).await.expect(200).json;
    assert_eq!(
        again["metadata"]["resourceVersion"],
        after["metadata"]["resourceVersion"]
    );
    let migrated = admin
        .merge(
            &format!("{path}/status"),
            &json!({"status": {"storedVersions": ["v2"]}}),
        )
        .await
        .expect(200)
        .json;
    assert_eq!(migrated["status"]["storedVersions"], json!(["v2"]));
    let only = json!({"spec": {"versions": [both["spec"]["versions"][1]]}});
    admin.merge(&path, &only).await.expect(200);
    admin.get(&format!("{WIDGETS}/w")).await.expect(404);
    admin.get(&format!("{newer}/w")).await.expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_schema_changes_while_its_objects_live() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let made = admin
        .post(WIDGETS, &widget("w", json!({"color": "red", "size": 4})))
        .await
        .expect(201)
        .json;
    let revision = made["metadata"]["resourceVersion"].as_str().unwrap();
    let mut changed = schema();
    changed["properties"]["spec"]["properties"]["shape"] = json!({"type": "string", "default": "round"});
    changed["properties"]["spec"]["properties"]
        .as_object_mut()
        .unwrap()
        .remove("size");
    let patch = json!({"spec": {"versions": [version("v1", true, changed)]}});
    admin
        .merge(&format!("{DEFINITIONS}/widgets.example.com"), &patch)
        .await
        .expect(200);
    let shown = admin.get(&format!("{WIDGETS}/w")).await.expect(200).json;
    assert_eq!(shown["spec"], json!({"color": "red", "replicas": 1, "shape": "round"}));
    assert_eq!(shown["metadata"]["resourceVersion"], revision);
    let past = admin
        .get(&format!(
            "{WIDGETS}?resourceVersion={revision}&resourceVersionMatch=Exact&limit=5"
        ))
        .await
        .expect(200)
        .json;
    assert_eq!(past["items"][0]["spec"]["shape"], "round");
    let openapi = admin
        .get("/openapi/v3/apis/example.com/v1")
        .await
        .expect(200)
        .json
        .to_string();
    assert!(openapi.contains("\"shape\""));
}

#[tokio::test(start_paused = true)]
async fn a_definition_goes_with_its_objects() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    admin
        .post(WIDGETS, &widget("free", json!({"color": "red"})))
        .await
        .expect(201);
    let mut held = widget("held", json!({"color": "red"}));
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    admin.post(WIDGETS, &held).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let kept = admin
        .merge(&path, &json!({"metadata": {"finalizers": null}}))
        .await
        .expect(200)
        .json;
    assert_eq!(
        kept["metadata"]["finalizers"],
        json!(["customresourcecleanup.apiextensions.k8s.io"])
    );
    let going = admin.delete(&path).await.expect(200).json;
    assert_eq!(condition(&going, "Terminating"), "True InstanceDeletionInProgress");
    let answer = admin
        .post(WIDGETS, &widget("late", json!({"color": "red"})))
        .await
        .expect(405);
    assert!(answer.message().contains("terminating"), "{}", answer.message());
    let gone = async |path: String| {
        for _ in 0..200 {
            if admin.get(&path).await.code == 404 {
                return true;
            }
            tokio::time::sleep(std::time::Duration::from_millis(50)).await;
        }
        false
    };
    assert!(gone(format!("{WIDGETS}/free")).await);
    admin.get(&path).await.expect(200);
    admin
        .merge(&format!("{WIDGETS}/held"), &json!({"metadata": {"finalizers": []}}))
        .await
        .expect(200);
    assert!(gone(path.clone()).await);
    admin.get(WIDGETS).await.expect(404);
    admin.get("/apis/example.com").await.expect(404);
    // Under the same name it begins anew.
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    assert_eq!(admin.get(WIDGETS).await.expect(200).json["items"], json!([]));
}

#[tokio::test(start_paused = true)]
async fn names_belong_to_whoever_came_first() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let mut other = definition();
    other["metadata"]["name"] = json!("wagons.example.com");
    other["spec"]["names"] = json!({"plural": "wagons", "kind": "Wagon", "shortNames": ["wg"]});
    let refused = admin.post(DEFINITIONS, &other).await.expect(201).json;
    assert_eq!(condition(&refused, "NamesAccepted"), "False ShortNamesConflict");
    assert_eq!(condition(&refused, "Established"), "False NotAccepted");
    let wagons = WIDGETS.replace("widgets", "wagons");
    admin.get(&wagons).await.expect(404);
    admin
        .delete(&format!("{DEFINITIONS}/widgets.example.com"))
        .await
        .expect(200);
    for _ in 0..200 {
        if admin.get(&wagons).await.code == 200 {
            return;
        }
        tokio::time::sleep(std::time::Duration::from_millis(50)).await;
    }
    panic!("the name was not given");
}

#[tokio::test(start_paused = true)]
async fn fields_of_a_definition_select() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let mut watch = admin
        .watch(&format!("{WIDGETS}?watch=1&fieldSelector=spec.color%3Dblue"))
        .await;
    for (name, color) in [("a", "red"), ("b", "blue")] {
        admin
            .post(WIDGETS, &widget(name, json!({"color": color})))
            .await
            .expect(201);
    }
    let blue = admin
        .get(&format!("{WIDGETS}?fieldSelector=spec.color%3Dblue"))
        .await
        .expect(200)
        .json;
    assert_eq!(blue["items"].as_array().unwrap().len(), 1);
    assert!(watch.event().await.starts_with("ADDED b@"));
    admin
        .merge(&format!("{WIDGETS}/b"), &json!({"spec": {"color": "red"}}))
        .await
        .expect(200);
    assert!(watch.event().await.starts_with("DELETED b@"));
    let answer = admin
        .get(&format!("{WIDGETS}?fieldSelector=spec.size%3D3"))
        .await
        .expect(400);
    assert!(
        answer.message().contains("field label not supported"),
        "{}",
        answer.message()
    );
}

#[tokio::test(start_paused = true)]
async fn a_definition_that_cannot_be_is_refused_with_the_place() {
    let server = Server::new().await;
    let admin = server.admin();
    let check = async |pointer: &str, value: Value, expect: &str| {
        let mut wrong = definition();
        *wrong.pointer_mut(pointer).unwrap() = value;
        let answer = admin.post(DEFINITIONS, &wrong).await.expect(422);
        let said = fields(&answer);
        assert!(said.iter().any(|said| said.starts_with(expect)), "{expect}\n{said:#?}");
    };
    let root = "/spec/versions/0/schema/openAPIV3Schema";
    let path = "spec.versions[0].schema.openAPIV3Schema";
    let color = format!("{root}/properties/spec/properties/color");
    let color_path = format!("{path}.properties[spec].properties[color]");
    check(
        "/metadata/name",
        json!("x.example.com"),
        "metadata.name: Invalid value: \"x.example.com\": must be spec.names.plural+\".\"+spec.group",
    )
    .await;
    check(
        "/spec/group",
        json!("example"),
        "spec.group: Invalid value: \"example\": should be a domain",
    )
    .await;
    check("/spec/group", json!("muster.dev"), "spec.group: Forbidden").await;
    check(
        "/spec/scope",
        json!("Global"),
        "spec.scope: Unsupported value: \"Global\"",
    )
    .await;
    check("/spec/versions", json!([]), "spec.versions: Required value").await;
    check(
        "/spec/versions/0/storage",
        json!(false),
        "spec.versions: Invalid value: \"0\": must have exactly one version",
    )
    .await;
    check(
        "/spec/versions/0/schema",
        json!({}),
        &format!("{path}: Required value: schemas are required"),
    )
    .await;
    check(
        root,
        json!({"type": "array", "items": {"type": "string"}}),
        &format!("{path}.type: Invalid value: \"array\": must be object at the root"),
    )
    .await;
    check(
        &color,
        json!({}),
        &format!("{color_path}.type: Required value: must not be empty for specified object fields"),
    )
    .await;
    check(
        &color,
        json!({"type": "string", "$ref": "#/x"}),
        &format!("{color_path}.$ref: Forbidden"),
    )
    .await;
    check(
        &color,
        json!({"type": "array"}),
        &format!("{color_path}.items: Required value: must be specified"),
    )
    .await;
    check(
        &color,
        json!({"type": "array", "items": {"type": "string"}, "uniqueItems": true}),
        &format!("{color_path}.uniqueItems: Forbidden"),
    )
    .await;
    check(
        &color,
        json!({"type": "object", "properties": {}, "additionalProperties": {"type": "string"}}),
        &format!("{color_path}.additionalProperties: Forbidden"),
    )
    .await;
    check(
        &color,
        json!({"type": "string", "anyOf": [{"type": "string"}]}),
        &format!("{color_path}.anyOf[0].type: Forbidden: must be empty to be structural"),
    )
    .await;
    check(
        &color,
        json!({"type": "object", "properties": {}, "not": {"properties": {"a": {}}}}),
        &format!("{color_path}.not.properties[a]: Required value"),
    )
    .await;
    check(
        &color,
        json!({"type": "string", "default": 7}),
        &format!("{color_path}.default: Invalid value"),
    )
    .await;
    check(&color, json!({"type": "string", "pattern": "("}), path).await;
    check(
        "/spec/versions/0/selectableFields",
        json!([{"jsonPath": ".spec.free"}]),
        "spec.versions[0].selectableFields[0].jsonPath: Invalid value",
    )
    .await;
    check(
        "/spec/versions/0/subresources",
        json!({"scale": {"specReplicasPath": ".a", "statusReplicasPath": ".status.b"}}),
        "spec.versions[0].subresources.scale.specReplicasPath: Invalid value",
    )
    .await;
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    let path = format!("{DEFINITIONS}/widgets.example.com");
    let answer = admin
        .merge(&path, &json!({"spec": {"scope": "Cluster"}}))
        .await
        .expect(422);
    assert_eq!(
        fields(&answer),
        ["spec.scope: Invalid value: \"Cluster\": field is immutable"]
    );
    let jo = server.jo();
    jo.post(DEFINITIONS, &definition()).await.expect(403);
    jo.post(WIDGETS, &widget("w", json!({"color": "red"})))
        .await
        .expect(201);
}

#[tokio::test(start_paused = true)]
async fn rules_hold_for_everything_that_is_written() {
    let server = Server::new().await;
    let admin = server.admin();
    let mut ruled = definition();
    let spec = &mut ruled["spec"]["versions"][0]["schema"]["openAPIV3Schema"]["properties"]["spec"];
    spec["x-kubernetes-validations"] = json!([
        {"rule": "self.replicas <= self.size", "message": "no more replicas than size", "fieldPath": ".replicas"},
        {"rule": "self.color == oldSelf.color", "messageExpression": "'was ' + oldSelf.color"},
    ]);
    admin.post(DEFINITIONS, &ruled).await.expect(201);
    let answer = admin
        .post(WIDGETS, &widget("w", json!({"color": "red", "replicas": 4})))
        .await
        .expect(422);
    assert_eq!(
        fields(&answer),
        ["spec.replicas: Invalid value: \"object\": no more replicas than size"]
    );
    admin
        .post(WIDGETS, &widget("w", json!({"color": "red", "replicas": 2})))
        .await
        .expect(201);
    let path = format!("{WIDGETS}/w");
    let answer = admin
        .merge(&path, &json!({"spec": {"color": "blue"}}))
        .await
        .expect(422);
    assert_eq!(fields(&answer), ["spec: Invalid value: \"object\": was red"]);
    admin
        .merge(&format!("{path}/status"), &json!({"status": {"phase": "Fine"}}))
        .await
        .expect(200);
    let wrong = json!([{"rule": "self.replicas <= nothing"}]);
    let patch = |rules: &Value| {
        let mut versions = ruled["spec"]["versions"].clone();
        versions[0]["schema"]["openAPIV3Schema"]["properties"]["spec"]["x-kubernetes-validations"] = rules.clone();
        json!({"spec": {"versions": versions}})
    };
    let answer = admin
        .merge(&format!("{DEFINITIONS}/widgets.example.com"), &patch(&wrong))
        .await
        .expect(422);
    assert_eq!(
        fields(&answer),
        [
            "spec.versions[0].schema.openAPIV3Schema.properties[spec].x-kubernetes-validations[0].rule: Invalid value: \
          \"self.replicas <= nothing\": compilation failed: undeclared reference to 'nothing'"
        ]
    );
    admin
        .merge(&format!("{DEFINITIONS}/widgets.example.com"), &patch(&json!([])))
        .await
        .expect(200);
    admin
        .merge(&path, &json!({"spec": {"color": "blue"}}))
        .await
        .expect(200);
}

#[tokio::test(start_paused = true)]
async fn a_scale_is_a_view_of_the_object() {
    let server = Server::new().await;
    let admin = server.admin();
    admin.post(DEFINITIONS, &definition()).await.expect(201);
    admin
        .post(WIDGETS, &widget("w", json!({"color": "red", "replicas": 2})))
        .await
        .expect(201);
    let path = format!("{WIDGETS}/w/scale");
    admin
        .merge(
            &format!("{WIDGETS}/w/status"),
            &json!({"status": {"replicas": 1, "selector": "app=w"}}),
        )
        .await
        .expect(200);
    let scale = admin.get(&path).await.expect(200).json;
    assert_eq!(
        (&scale["kind"], &scale["apiVersion"]),
        (&json!("Scale"), &json!("autoscaling/v1"))
    );
    assert_eq!(
        (&scale["spec"], &scale["status"]),
        (&json!({"replicas": 2}), &json!({"replicas": 1, "selector": "app=w"}))
    );
    let patched = admin
        .merge(&path, &json!({"spec": {"replicas": 5}}))
        .await
        .expect(200)
        .json;
    assert_eq!(patched["spec"]["replicas"], 5);
    admin.put(&path, &scale).await.expect(409);
    let mut newer = patched.clone();
    newer["spec"]["replicas"] = json!(3);
    admin.put(&path, &newer).await.expect(200);
    let object = admin.get(&format!("{WIDGETS}/w")).await.expect(200).json;
    assert_eq!(
        (&object["spec"]["replicas"], &object["metadata"]["generation"]),
        (&json!(3), &json!(3))
    );
    let refused = admin.merge(&path, &json!({"spec": {"replicas": -1}})).await.expect(422);
    assert_eq!(
        fields(&refused),
        ["spec.replicas: Invalid value: \"-1\": must be a whole number, zero or more"]
    );
    let tested = json!([{"op": "test", "path": "/spec/replicas", "value": 7}, {"op": "replace", "path": "/spec/replicas", "value": 8}]);
    admin.json_patch(&path, &tested).await.expect(422);
    admin.delete(&path).await.expect(405);
    admin.get(&format!("{WIDGETS}/none/scale")).await.expect(404);
}
