//! Questions to the API server that the view does not answer.

use http::Method;
use kube::api::ListParams;
use kube::core::Request;
use muster_client::{Call, Client, Error};
use serde::Deserialize;

use crate::plan::TaskKey;

#[derive(Deserialize)]
struct List {
    metadata: Meta,
    items: Vec<Item>,
}

#[derive(Deserialize)]
struct Item {
    metadata: Meta,
}

#[derive(Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Meta {
    uid: String,
    resource_version: String,
}

async fn list(client: &Client, path: &str, params: &ListParams) -> Result<(Vec<String>, u64), Error> {
    let request = Request::new(path).list(params);
    let path = request
        .expect("names of objects make valid selectors")
        .uri()
        .to_string();
    let list: List = client.call(Call::new(Method::GET, path, "a list")).await?;
    let revision = list.metadata.resource_version.parse();
    let revision = revision.map_err(|source| Error::Decode {
        what: "the revision of a list",
        source: Box::new(source),
    })?;
    Ok((list.items.into_iter().map(|item| item.metadata.uid).collect(), revision))
}

/// The revision that the server is at. A list is never older than the store.
pub async fn revision(client: &Client) -> Result<u64, Error> {
    let params = ListParams::default().limit(1);
    let (_, revision) = list(client, "/apis/muster.dev/v1/agents", &params).await?;
    Ok(revision)
}

/// Whether there is no such task, and the revision at which that holds.
pub async fn is_absent(client: &Client, key: &TaskKey, uid: &str) -> Result<(bool, u64), Error> {
    let path = format!("/apis/muster.dev/v1/namespaces/{}/tasks", key.namespace);
    let params = ListParams::default().fields(&format!("metadata.name={}", key.name));
    let (uids, revision) = list(client, &path, &params).await?;
    Ok((!uids.iter().any(|there| there == uid), revision))
}
