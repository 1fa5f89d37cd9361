//! What kind of containerd it is.

use std::time::Duration;

use containerd_client::services::v1::PluginsRequest;

use super::client::Client;
use crate::Error;

/// Snapshotters, the better first.
const SNAPSHOTTERS: [&str; 2] = ["overlayfs", "native"];

/// The version of a containerd.
pub(super) async fn version(client: &Client, patience: Duration) -> Result<String, Error> {
    let mut services = client.services().version();
    let call = client
        .call_within("asking for its version", patience, services.version(client.request(())))
        .await;
    let version = call?.version;
    // Debian adds to it.
    Ok(version
        .split(['~', '+'])
        .next()
        .unwrap_or_default()
        .trim_start_matches('v')
        .to_owned())
}

/// The best snapshotter that works here.
pub(super) async fn snapshotter(client: &Client) -> Result<String, Error> {
    let mut introspection = client.services().introspection();
    let request = client.request(PluginsRequest {
        filters: vec!["type==io.containerd.snapshotter.v1".to_owned()],
    });
    let found = client
        .call("looking for snapshotters", introspection.plugins(request))
        .await?;
    let works = |name: &&&str| {
        let mut plugins = found.plugins.iter();
        plugins.any(|plugin| plugin.id == ***name && plugin.init_err.is_none())
    };
    let first = SNAPSHOTTERS.iter().find(works);
    first.map(|name| (*name).to_owned()).ok_or_else(|| Error::System {
        context: "containerd".to_owned(),
        message: format!("none of its snapshotters works here: {}", SNAPSHOTTERS.join(", ")),
    })
}
