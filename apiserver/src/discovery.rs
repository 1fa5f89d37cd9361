//! Which kinds there are, in the three dialects of Kubernetes' discovery, and the version.
//!
//! Both the old documents (one for each group and version) and the aggregated ones (`v2` and `v2beta1`, which differ in their name
//! only) are made from the same [`Resource`]s. Tested below.

use std::collections::BTreeMap;

use serde_json::{Value, json};

use crate::documents::{Form, Media};
use crate::resource::{Resource, Subresource};

/// The version that clients see: that of Kubernetes whose dialect is spoken, and ours. Kubectl's dispatcher picks the client
/// by its minor number.
pub const GIT_VERSION: &str = concat!("v1.32.0+muster.", env!("CARGO_PKG_VERSION"));

/// Every document but OpenAPI, by path.
pub(crate) fn documents(resources: &[Resource]) -> BTreeMap<String, Vec<Form>> {
    let mut documents = BTreeMap::new();
    let plain = |body: Value| vec![Form::json(Media::Json, &body)];
    documents.insert("/version".to_owned(), plain(version()));

    let groups = group_versions(resources);
    for (group, versions) in &groups {
        let base = if group.is_empty() {
            "/api".to_owned()
        } else {
            format!("/apis/{group}")
        };
        for version in versions {
            let list = plain(resource_list(resources, group, version));
            documents.insert(format!("{base}/{version}"), list);
        }
        if !group.is_empty() {
            documents.insert(base, plain(api_group(group, versions, true)));
        }
    }
    let core = json!({
        "kind": "APIVersions",
        "apiVersion": "v1",
        "versions": groups.get("").cloned().unwrap_or_default(),
        "serverAddressByClientCIDRs": [],
    });
    documents.insert("/api".to_owned(), forms(core, resources, &|group| group.is_empty()));
    let named = groups.iter().filter(|(group, _)| !group.is_empty());
    let list = json!({
        "kind": "APIGroupList",
        "apiVersion": "v1",
        "groups": named.map(|(group, versions)| api_group(group, versions, false)).collect::<Vec<_>>(),
    });
    documents.insert("/apis".to_owned(), forms(list, resources, &|group| !group.is_empty()));

    let mut paths: Vec<String> = documents.keys().cloned().collect();
    paths.extend(
        [
            "/healthz",
            "/livez",
            "/metrics",
            "/openapi/v2",
            "/openapi/v3",
            "/readyz",
        ]
        .map(str::to_owned),
    );
    paths.extend(
        [
            "/muster/v1/plan",
            "/muster/v1/usage",
            "/muster/v1/watch",
            "/muster/v1/why",
        ]
        .map(str::to_owned),
    );
    paths.sort();
    documents.insert("/".to_owned(), plain(json!({ "paths": paths })));
    documents
}

fn version() -> Value {
    json!({
        "major": "1",
        "minor": "32",
        "gitVersion": GIT_VERSION,
        "gitCommit": "",
        "gitTreeState": "clean",
        "buildDate": "1970-01-01T00:00:00Z",
        "goVersion": "none",
        "compiler": "rustc",
        "platform": format!("{}/{}", std::env::consts::OS, platform()),
    })
}

/// The machine's kind in the words of Go, which clients know.
fn platform() -> &'static str {
    match std::env::consts::ARCH {
        "x86_64" => "amd64",
        "aarch64" => "arm64",
        other => other,
    }
}

fn group_versions(resources: &[Resource]) -> BTreeMap<String, Vec<String>> {
    let mut groups: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for resource in resources {
        let versions = groups.entry(resource.group.clone()).or_default();
        if !versions.contains(&resource.version) {
            versions.push(resource.version.clone());
        }
    }
    groups
}

fn api_group(group: &str, versions: &[String], alone: bool) -> Value {
    let version = |version: &String| json!({"groupVersion": format!("{group}/{version}"), "version": version});
    let mut value = json!({
        "name": group,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    });
    if alone {
        value["kind"] = json!("APIGroup");
        value["apiVersion"] = json!("v1");
    }
    value
}

fn resource_list(resources: &[Resource], group: &str, version: &str) -> Value {
    let mut list = Vec::new();
    for resource in resources
        .iter()
        .filter(|resource| resource.group == group && resource.version == version)
    {
        let mut value = json!({
            "name": resource.plural,
            "singularName": resource.singular,
            "namespaced": resource.namespaced,
            "kind": resource.kind,
            "verbs": resource.verbs,
        });
        if !resource.short_names.is_empty() {
            value["shortNames"] = json!(resource.short_names);
        }
        if !resource.categories.is_empty() {
            value["categories"] = json!(resource.categories);
        }
        list.push(value);
        for Subresource {
            name,
            response: (response_group, response_version, kind),
            verbs,
        } in &resource.subresources
        {
            let mut value = json!({
                "name": format!("{}/{name}", resource.plural),
                "singularName": "",
                "namespaced": resource.namespaced,
                "kind": kind,
                "verbs": verbs,
            });
            if response_group != group || response_version != version {
                value["group"] = json!(response_group);
                value["version"] = json!(response_version);
            }
            list.push(value);
        }
    }
    let group_version = if group.is_empty() {
        version.to_owned()
    } else {
        format!("{group}/{version}")
    };
    json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": list})
}

/// The plain document, and the aggregated ones of the groups that are wanted.
fn forms(plain: Value, resources: &[Resource], wanted: &dyn Fn(&str) -> bool) -> Vec<Form> {
    let mut forms = vec![Form::json(Media::Json, &plain)];
    for version in ["v2", "v2beta1"] {
        forms.push(Form::json(
            Media::Aggregated(version),
            &aggregated(version, resources, wanted),
        ));
    }
    forms
}

fn aggregated(version: &str, resources: &[Resource], wanted: &dyn Fn(&str) -> bool) -> Value {
    let groups = group_versions(resources);
    let items = groups
        .iter()
        .filter(|(group, _)| wanted(group))
        .map(|(group, versions)| {
            let versions = versions.iter().map(|version| {
                let own = resources
                    .iter()
                    .filter(|resource| resource.group == *group && resource.version == *version);
                let list: Vec<Value> = own.map(aggregated_resource).collect();
                json!({"version": version, "freshness": "Current", "resources": list})
            });
            let metadata = if group.is_empty() {
                json!({})
            } else {
                json!({"name": group})
            };
            json!({"metadata": metadata, "versions": versions.collect::<Vec<_>>()})
        });
    json!({
        "kind": "APIGroupDiscoveryList",
        "apiVersion": format!("apidiscovery.k8s.io/{version}"),
        "metadata": {},
        "items": items.collect::<Vec<_>>(),
    })
}

fn aggregated_resource(resource: &Resource) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let subresources: Vec<Value> = resource
        .subresources
        .iter()
        .map(|subresource| {
            let (group, version, name) = &subresource.response;
            json!({
                "subresource": subresource.name,
                "responseKind": kind(group, version, name),
                "verbs": subresource.verbs,
            })
        })
        .collect();
    let mut value = json!({
        "resource": resource.plural,
        "responseKind": kind(&resource.group, &resource.version, &resource.kind),
        "scope": if resource.namespaced { "Namespaced" } else { "Cluster" },
        "singularResource": resource.singular,
        "verbs": resource.verbs,
    });
    if !resource.short_names.is_empty() {
        value["shortNames"] = json!(resource.short_names);
    }
    if !resource.categories.is_empty() {
        value["categories"] = json!(resource.categories);
    }
    if !subresources.is_empty() {
        value["subresources"] = json!(subresources);
    }
    value
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::documents::tests::{V2, get};

    async fn json(target: &str) -> Value {
        serde_json::from_slice(&get(target, &[]).await.2).unwrap()
    }

    fn names(list: &Value) -> Vec<&str> {
        list.as_array()
            .unwrap()
            .iter()
            .map(|item| item["name"].as_str().unwrap())
            .collect()
    }

    #[tokio::test]
    async fn every_group_and_kind_is_found_step_by_step() {
        assert_eq!(json("/api/").await["versions"], json!(["v1"]));
        assert_eq!(
            names(&json("/apis/").await["groups"]),
            [
                "apiextensions.k8s.io",
                "authentication.k8s.io",
                "authorization.k8s.io",
                "coordination.k8s.io",
                "events.k8s.io",
                "metrics.k8s.io",
                "muster.dev",
                "rbac.authorization.k8s.io"
            ]
        );
        let group = json("/apis/muster.dev/").await;
        assert_eq!(group["kind"], "APIGroup");
        assert_eq!(group["preferredVersion"]["groupVersion"], "muster.dev/v1");
        let core = json("/api/v1/").await;
        assert_eq!(
            names(&core["resources"]),
            [
                "configmaps",
                "events",
                "namespaces",
                "namespaces/status",
                "namespaces/finalize",
                "nodes",
                "pods",
                "pods/log",
                "pods/eviction",
                "secrets",
                "serviceaccounts",
                "serviceaccounts/token"
            ]
        );
        assert_eq!(core["groupVersion"], "v1");
        let list = json("/apis/muster.dev/v1").await;
        let all = names(&list["resources"]);
        for name in [
            "agents",
            "agents/offers",
            "offers/accept",
            "offers/decline",
            "tasks",
            "tasks/log",
            "tasks/status",
        ] {
            assert!(all.contains(&name), "{name}");
        }
        let tasks = &list["resources"][all.iter().position(|name| *name == "tasks").unwrap()];
        assert_eq!(tasks["singularName"], "task");
        assert_eq!(tasks["shortNames"], json!(["tk"]));
        assert_eq!(tasks["categories"], json!(["muster", "all"]));
        assert_eq!(tasks["namespaced"], true);
        assert!(
            json("/").await["paths"]
                .as_array()
                .unwrap()
                .contains(&json!("/apis/muster.dev/v1"))
        );
    }

    #[tokio::test]
    async fn aggregated_discovery_says_the_same_at_once() {
        let aggregated =
            |target| async move { serde_json::from_slice::<Value>(&get(target, &[("accept", V2)]).await.2).unwrap() };
        let core = aggregated("/api").await;
        assert_eq!(core["items"].as_array().unwrap().len(), 1);
        assert_eq!(
            core["items"][0]["versions"][0]["resources"][0]["resource"],
            "configmaps"
        );
        let named = aggregated("/apis").await;
        let items = named["items"].as_array().unwrap();
        let muster = items
            .iter()
            .find(|item| item["metadata"]["name"] == "muster.dev")
            .unwrap();
        assert_eq!(muster["versions"][0]["freshness"], "Current");
        let resources = muster["versions"][0]["resources"].as_array().unwrap();
        let tasks = resources
            .iter()
            .find(|resource| resource["resource"] == "tasks")
            .unwrap();
        assert_eq!(tasks["scope"], "Namespaced");
        assert_eq!(
            tasks["responseKind"],
            json!({"group": "muster.dev", "version": "v1", "kind": "Task"})
        );
        assert_eq!(tasks["subresources"][0]["subresource"], "status");
    }

    #[tokio::test]
    async fn the_version_reads_as_one_of_kubernetes() {
        let version = json("/version/").await;
        assert_eq!(version["minor"], "32");
        assert!(version["gitVersion"].as_str().unwrap().starts_with("v1.32.0+muster."));
        assert!(version.as_object().unwrap().values().all(Value::is_string));
    }
}
