//! The API as OpenAPI documents, which `kubectl explain`, `create` and `apply` read before they write.
//!
//! Version 3 is one JSON document for each group and version, named with its hash by an index, so that clients keep it for ever.
//! Version 2 is one document for everything, as JSON and in the protobuf form that older clients insist on. All are made from the
//! [`Resource`]s: the same schemas that are enforced. What must never happen here: a field that is documented and not known, or the
//! reverse. Tested below against the golden document `manifests/openapi/muster.dev-v1.json`, and with kubectl.

mod operations;
mod proto;
mod schemas;
mod v2;

use std::collections::{BTreeMap, BTreeSet};

use serde_json::{Map, Value, json};

use crate::documents::{Form, Media, tag_of};
use crate::resource::Resource;

/// Every document, by path.
pub(crate) fn documents(resources: &[Resource]) -> BTreeMap<String, Vec<Form>> {
    let mut documents = BTreeMap::new();
    let mut index = Map::new();
    let versions: BTreeSet<(&str, &str)> = resources
        .iter()
        .map(|resource| (resource.group.as_str(), resource.version.as_str()))
        .collect();
    for (group, version) in versions {
        let name = if group.is_empty() {
            format!("api/{version}")
        } else {
            format!("apis/{group}/{version}")
        };
        let path = format!("/openapi/v3/{name}");
        let forms = vec![Form::json(Media::Json, &v3(resources, group, version))];
        index.insert(
            name,
            json!({"serverRelativeURL": format!("{path}?hash={}", tag_of(&forms))}),
        );
        documents.insert(path, forms);
    }
    documents.insert(
        "/openapi/v3".to_owned(),
        vec![Form::json(Media::Json, &json!({ "paths": index }))],
    );

    let document = v2::document(resources);
    let protobuf = Form::new(Media::OpenApiV2, proto::document(&document));
    documents.insert(
        "/openapi/v2".to_owned(),
        vec![Form::json(Media::Json, &document), protobuf],
    );
    documents
}

/// The version 3 document of one group and version.
pub fn v3(resources: &[Resource], group: &str, version: &str) -> Value {
    let own: Vec<&Resource> = resources
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
        .collect();
    let mut paths: BTreeMap<String, Map<String, Value>> = BTreeMap::new();
    let mut definitions = schemas::common();
    for resource in &own {
        definitions.append(&mut schemas::of(resource));
        for (path, operation) in operations::of(resource) {
            let item = paths.entry(path).or_default();
            item.insert(operation.method.to_owned(), operation.v3());
        }
    }
    json!({
        "openapi": "3.0.0",
        "info": {"title": "Muster", "version": version},
        "paths": paths,
        "components": {"schemas": definitions},
    })
}

#[cfg(test)]
mod tests {
    use http::StatusCode;

    use super::*;
    use crate::documents::tests::get;
    use crate::kinds;

    async fn json(target: &str) -> Value {
        serde_json::from_slice(&get(target, &[]).await.2).unwrap()
    }

    /// Every `$ref` in the document.
    fn references(value: &Value, found: &mut BTreeSet<String>) {
        match value {
            Value::Object(map) => {
                if let Some(reference) = map.get("$ref").and_then(Value::as_str) {
                    found.insert(reference.to_owned());
                }
                map.values().for_each(|value| references(value, found));
            }
            Value::Array(list) => list.iter().for_each(|value| references(value, found)),
            _ => {}
        }
    }

    #[tokio::test]
    async fn the_index_leads_to_documents_that_may_be_kept() {
        let index = json("/openapi/v3").await;
        let paths = index["paths"].as_object().unwrap();
        let names: Vec<&String> = paths.keys().collect();
        assert_eq!(
            names,
            [
                "api/v1",
                "apis/apiextensions.k8s.io/v1",
                "apis/authentication.k8s.io/v1",
                "apis/authorization.k8s.io/v1",
                "apis/coordination.k8s.io/v1",
                "apis/events.k8s.io/v1",
                "apis/metrics.k8s.io/v1beta1",
                "apis/muster.dev/v1",
                "apis/rbac.authorization.k8s.io/v1"
            ]
        );
        for place in paths.values() {
            let (status, headers, body) = get(place["serverRelativeURL"].as_str().unwrap(), &[]).await;
            assert_eq!(status, StatusCode::OK);
            assert_eq!(headers["cache-control"], "public, immutable");
            assert_eq!(serde_json::from_slice::<Value>(&body).unwrap()["openapi"], "3.0.0");
        }
        let (status, headers, _) = get("/openapi/v3/apis/muster.dev/v1?hash=OLD", &[]).await;
        assert_eq!(status, StatusCode::MOVED_PERMANENTLY);
        assert_eq!(
            headers["location"],
            paths["apis/muster.dev/v1"]["serverRelativeURL"].as_str().unwrap()
        );
        let (_, headers, _) = get("/openapi/v3/apis/muster.dev/v1", &[]).await;
        assert_eq!(headers["cache-control"], "no-cache, private");
    }

    #[tokio::test]
    async fn nothing_refers_to_what_is_not_there() {
        for target in ["/openapi/v3/api/v1", "/openapi/v3/apis/muster.dev/v1", "/openapi/v2"] {
            let document = json(target).await;
            let mut found = BTreeSet::new();
            references(&document, &mut found);
            assert!(!found.is_empty(), "{target}");
            for reference in found {
                let pointer = reference.strip_prefix('#').unwrap();
                assert!(document.pointer(pointer).is_some(), "{target}: {reference}");
            }
        }
    }

    #[tokio::test]
    async fn patches_say_what_clients_look_for() {
        let document = json("/openapi/v3/apis/muster.dev/v1").await;
        let patch = &document["paths"]["/apis/muster.dev/v1/namespaces/{namespace}/tasks/{name}"]["patch"];
        let names: Vec<&str> = patch["parameters"]
            .as_array()
            .unwrap()
            .iter()
            .map(|parameter| parameter["name"].as_str().unwrap())
            .collect();
        for name in ["dryRun", "fieldManager", "fieldValidation"] {
            assert!(names.contains(&name), "{name}");
        }
        let kind = json!({"group": "muster.dev", "version": "v1", "kind": "Task"});
        assert_eq!(patch["x-kubernetes-group-version-kind"], kind);
        assert_eq!(patch["x-kubernetes-action"], "patch");
        let schema = &document["components"]["schemas"]["dev.muster.v1.Task"];
        assert_eq!(schema["x-kubernetes-group-version-kind"], json!([kind]));
        let offers = &document["paths"]["/apis/muster.dev/v1/namespaces/{namespace}/offers/{name}"];
        assert!(offers.get("patch").is_none(), "what is not allowed is not described");
    }

    #[test]
    fn the_golden_document_is_up_to_date() {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../manifests/openapi/muster.dev-v1.json");
        let document = v3(
            &kinds::resources(),
            muster_api::names::GROUP,
            muster_api::names::VERSION,
        );
        let text = format!("{}\n", serde_json::to_string_pretty(&document).unwrap());
        if std::env::var_os("MUSTER_UPDATE_GOLDEN").is_some() {
            std::fs::write(path, &text).unwrap();
        }
        let golden = std::fs::read_to_string(path).unwrap_or_default();
        assert!(
            golden == text,
            "the API has changed; look at the difference after: MUSTER_UPDATE_GOLDEN=1 cargo test -p muster-apiserver golden"
        );
    }
}
