//! Images in containerd's store: found by name, and unpacked into snapshots where that was not done yet.
//!
//! What an image says about itself is a stranger's: of its configuration only the command, environment, working directory and user are read, and
//! none of its labels goes anywhere.

use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};

use containerd_client::services::v1::snapshots::{
    CommitSnapshotRequest, PrepareSnapshotRequest, RemoveSnapshotRequest, StatSnapshotRequest, ViewSnapshotRequest,
};
use containerd_client::services::v1::{
    ApplyRequest, CreateRequest, DeleteRequest, GetImageRequest, Info, ReadContentRequest, UpdateRequest,
};
use containerd_client::types::{Descriptor, Mount};
use oci_spec::image::{ImageConfiguration, ImageIndex, ImageManifest};
use prost_types::{FieldMask, Timestamp};
use sha2::{Digest as _, Sha256};
use tonic::metadata::{Ascii, MetadataValue};

use super::super::clock;
use super::client::{Client, Failure, absent_is_done};
use crate::Error;
use crate::images::{self, Defaults};
use crate::limits::{CONTAINERD_LEASE, CONTAINERD_UNPACK_DEADLINE, IMAGE_DOCUMENT_BYTES, IMAGE_INDEXES, IMAGE_LAYERS};

/// Where names without a host are, for everybody else.
const HUB: &str = "docker.io";

/// Content that this label names is kept as long as the content that has it.
const KEEPS_SNAPSHOT: &str = "containerd.io/gc.ref.snapshot.";

/// An image that is in containerd's store.
pub(super) struct Found {
    /// Its name there.
    pub(super) name: String,
    /// The digest of its manifest for this machine.
    pub(super) digest: String,
    config: (String, Vec<u8>),
    layers: Vec<Layer>,
}

/// One layer of an image.
struct Layer {
    blob: Descriptor,
    /// The digest of what it unpacks to.
    diff_id: String,
    /// The name of the snapshot of this layer and all those below it.
    chain_id: String,
}

impl Found {
    /// The name of the snapshot that holds all layers; empty when there are none.
    pub(super) fn top(&self) -> &str {
        self.layers.last().map_or("", |layer| &layer.chain_id)
    }
}

/// Keeps what is made under it from being collected.
pub(super) struct Lease {
    pub(super) id: MetadataValue<Ascii>,
}

fn broken(name: &str, why: impl std::fmt::Display) -> Error {
    Error::Invalid(format!("the image {name}: {why}"))
}

/// A name that nobody else uses at this time.
pub(super) fn unique(what: &str) -> String {
    static COUNT: AtomicU64 = AtomicU64::new(0);
    let count = COUNT.fetch_add(1, Ordering::Relaxed);
    format!("muster-{what}-{}-{}-{count}", std::process::id(), clock::wall_ms())
}

/// The image of this name, or of the one that it is short for.
pub(super) async fn find(client: &Client, name: &str) -> Result<Option<Found>, Error> {
    let mut named = None;
    for name in [name.to_owned(), long_name(name)] {
        let mut images = client.services().images();
        let request = client.request(GetImageRequest { name });
        let got = client.call("looking for the image", images.get(request)).await;
        if let Some(image) = absent_is_done(got)?.and_then(|got| got.image) {
            named = Some(image);
            break;
        }
    }
    let Some(image) = named else { return Ok(None) };
    let name = image.name;
    let target = image.target.ok_or_else(|| broken(&name, "it points nowhere"))?;
    let (own, manifest) = manifest(client, &name, target).await?;
    let digest = manifest.config().digest().to_string();
    let config = read(client, &name, &digest).await?;
    let parsed: ImageConfiguration =
        serde_json::from_slice(&config).map_err(|error| broken(&name, format_args!("its configuration: {error}")))?;
    let diff_ids = parsed.rootfs().diff_ids();
    if diff_ids.len() != manifest.layers().len() || diff_ids.len() > IMAGE_LAYERS {
        let (blobs, diffs) = (manifest.layers().len(), diff_ids.len());
        let why = format!("it has {blobs} layers and {diffs} names for them; at most {IMAGE_LAYERS} are possible");
        return Err(broken(&name, why));
    }
    let chain = chain_ids(diff_ids);
    let layers = manifest.layers().iter().zip(diff_ids).zip(chain);
    let layers = layers.map(|((blob, diff_id), chain_id)| Layer {
        blob: Descriptor {
            media_type: blob.media_type().to_string(),
            digest: blob.digest().to_string(),
            size: i64::try_from(blob.size()).unwrap_or(i64::MAX),
            ..Descriptor::default()
        },
        diff_id: diff_id.clone(),
        chain_id,
    });
    Ok(Some(Found {
        name,
        digest: own,
        config: (digest, config),
        layers: layers.collect(),
    }))
}

/// What a name without a host is short for.
fn long_name(name: &str) -> String {
    match name.split_once('/') {
        Some((host, _)) if host.contains(['.', ':']) || host == "localhost" => name.to_owned(),
        Some(_) => format!("{HUB}/{name}"),
        None => format!("{HUB}/library/{name}"),
    }
}

/// The names of the snapshots of layers: each of the digests of itself and of all below it.
fn chain_ids(diff_ids: &[String]) -> Vec<String> {
    let chain = diff_ids.iter().scan(None::<String>, |below, diff_id| {
        let id = match below {
            None => diff_id.clone(),
            Some(below) => {
                let hash = Sha256::digest(format!("{below} {diff_id}"));
                let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
                format!("sha256:{hex}")
            }
        };
        *below = Some(id.clone());
        Some(id)
    });
    chain.collect()
}

async fn manifest(client: &Client, name: &str, mut target: Descriptor) -> Result<(String, ImageManifest), Error> {
    for _ in 0..=IMAGE_INDEXES {
        let bytes = read(client, name, &target.digest).await?;
        let is_index = target.media_type.contains("index") || target.media_type.contains("list");
        if !is_index {
            let manifest = serde_json::from_slice(&bytes);
            let manifest = manifest.map_err(|error| broken(name, format_args!("its manifest: {error}")))?;
            return Ok((target.digest, manifest));
        }
        let index: ImageIndex =
            serde_json::from_slice(&bytes).map_err(|error| broken(name, format_args!("its index: {error}")))?;
        let chosen = images::choose(&index, name).map_err(|error| broken(name, error))?;
        target.digest = chosen.digest().to_string();
        target.media_type = chosen.media_type().to_string();
    }
    Err(broken(name, "its indexes point to each other"))
}

/// A whole small document.
async fn read(client: &Client, name: &str, digest: &str) -> Result<Vec<u8>, Error> {
    let mut content = client.services().content();
    let request = client.request(ReadContentRequest {
        digest: digest.to_owned(),
        offset: 0,
        size: 0,
    });
    let reading = async {
        let mut stream = content.read(request).await?.into_inner();
        let mut bytes = Vec::new();
        while let Some(part) = stream.message().await? {
            bytes.extend_from_slice(&part.data);
            if bytes.len() as u64 > IMAGE_DOCUMENT_BYTES {
                return Err(tonic::Status::out_of_range(format!(
                    "larger than {IMAGE_DOCUMENT_BYTES} bytes"
                )));
            }
        }
        Ok(tonic::Response::new(bytes))
    };
    match client.call("reading the image", reading).await {
        Err(Failure::Absent(_)) => Err(broken(
            name,
            format_args!("containerd does not have {digest} of it; import it again"),
        )),
        other => Ok(other?),
    }
}

/// What the image says where a container does not. Names of users are looked up in the image.
pub(super) async fn defaults(client: &Client, snapshotter: &str, image: &Found) -> Result<Defaults, Error> {
    let (_, config) = &image.config;
    if let Ok(defaults) = images::of_image(config, &[]) {
        return Ok(defaults);
    }
    let key = unique("look");
    let lease = lease(client).await?;
    let mut snapshots = client.services().snapshots();
    let view = client.leased(
        &lease.id,
        ViewSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: image.top().to_owned(),
            ..ViewSnapshotRequest::default()
        },
    );
    let mounts = client
        .call("looking into the image", snapshots.view(view))
        .await?
        .mounts;
    let config = config.clone();
    let found = tokio::task::spawn_blocking(move || images::of_image(&config, &layers_of(&mounts))).await;
    release(client, lease).await;
    match found {
        Ok(Ok(defaults)) => Ok(defaults),
        Ok(Err(error)) => Err(broken(&image.name, error)),
        Err(error) => Err(broken(&image.name, error)),
    }
}

/// The directories that a mount shows, the uppermost first.
fn layers_of(mounts: &[Mount]) -> Vec<PathBuf> {
    let Some(mount) = mounts.first() else { return Vec::new() };
    if mount.r#type != "overlay" {
        return vec![PathBuf::from(&mount.source)];
    }
    let lower = mount.options.iter().find_map(|option| option.strip_prefix("lowerdir="));
    lower.unwrap_or_default().split(':').map(PathBuf::from).collect()
}

/// A lease that ends by itself when nobody releases it.
pub(super) async fn lease(client: &Client) -> Result<Lease, Error> {
    let expires =
        std::time::UNIX_EPOCH + std::time::Duration::from_millis(clock::wall_ms().unsigned_abs()) + CONTAINERD_LEASE;
    let request = client.request(CreateRequest {
        id: unique("lease"),
        labels: [(
            "containerd.io/gc.expire".to_owned(),
            Timestamp::from(expires).to_string(),
        )]
        .into(),
    });
    let mut leases = client.services().leases();
    let made = client.call("taking a lease", leases.create(request)).await?;
    let id = made.lease.map(|lease| lease.id).unwrap_or_default();
    let id = id.parse().map_err(|_| Error::Invalid(format!("the lease {id:?}")))?;
    Ok(Lease { id })
}

/// Lets what was not made to stay be collected.
pub(super) async fn release(client: &Client, lease: Lease) {
    let request = client.request(DeleteRequest {
        id: lease.id.to_str().unwrap_or_default().to_owned(),
        sync: false,
    });
    let mut leases = client.services().leases();
    // It ends by itself.
    let _ = client.call("releasing a lease", leases.delete(request)).await;
}

/// Unpacks an image, as far as that was not done yet.
pub(super) async fn unpack(client: &Client, snapshotter: &str, image: &Found) -> Result<(), Error> {
    if image.layers.is_empty() || is_unpacked(client, snapshotter, image.top()).await? {
        return Ok(());
    }
    let lease = lease(client).await?;
    let unpacked = unpack_all(client, snapshotter, image, &lease).await;
    release(client, lease).await;
    unpacked
}

async fn unpack_all(client: &Client, snapshotter: &str, image: &Found, lease: &Lease) -> Result<(), Error> {
    let mut below = "";
    for layer in &image.layers {
        if !is_unpacked(client, snapshotter, &layer.chain_id).await? {
            unpack_layer(client, snapshotter, image, lease, (below, layer)).await?;
        }
        below = &layer.chain_id;
    }
    // From now on the snapshots are kept as long as the image is.
    let label = format!("{KEEPS_SNAPSHOT}{snapshotter}");
    let request = client.request(UpdateRequest {
        info: Some(Info {
            digest: image.config.0.clone(),
            labels: [(label.clone(), below.to_owned())].into(),
            ..Info::default()
        }),
        update_mask: Some(FieldMask {
            paths: vec![format!("labels.{label}")],
        }),
    });
    let mut content = client.services().content();
    client.call("keeping the image", content.update(request)).await?;
    Ok(())
}

async fn is_unpacked(client: &Client, snapshotter: &str, chain_id: &str) -> Result<bool, Error> {
    let request = client.request(StatSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key: chain_id.to_owned(),
    });
    let mut snapshots = client.services().snapshots();
    let found = client
        .call("looking for the unpacked image", snapshots.stat(request))
        .await;
    Ok(absent_is_done(found)?.is_some())
}

async fn unpack_layer(
    client: &Client,
    snapshotter: &str,
    image: &Found,
    lease: &Lease,
    (below, layer): (&str, &Layer),
) -> Result<(), Error> {
    let mut snapshots = client.services().snapshots();
    let key = unique("unpack");
    let prepare = client.leased(
        &lease.id,
        PrepareSnapshotRequest {
            snapshotter: snapshotter.to_owned(),
            key: key.clone(),
            parent: below.to_owned(),
            ..PrepareSnapshotRequest::default()
        },
    );
    let prepared = client.call("preparing to unpack", snapshots.prepare(prepare)).await?;
    let apply = client.leased(
        &lease.id,
        ApplyRequest {
            diff: Some(layer.blob.clone()),
            mounts: prepared.mounts,
            ..ApplyRequest::default()
        },
    );
    let mut diff = client.services().diff();
    let applied = client.call_within("unpacking the image", CONTAINERD_UNPACK_DEADLINE, diff.apply(apply));
    let right = match applied.await {
        Ok(applied) => match applied.applied.map(|applied| applied.digest) {
            Some(found) if found == layer.diff_id => Ok(()),
            found => Err(broken(
                &image.name,
                format_args!(
                    "the layer {} unpacks to {}, and should to {}",
                    layer.blob.digest,
                    found.unwrap_or_default(),
                    layer.diff_id
                ),
            )),
        },
        Err(failure) => Err(failure.into()),
    };
    let named = match right {
        Ok(()) => {
            let commit = client.leased(
                &lease.id,
                CommitSnapshotRequest {
                    snapshotter: snapshotter.to_owned(),
                    name: layer.chain_id.clone(),
                    key: key.clone(),
                    ..CommitSnapshotRequest::default()
                },
            );
            match client
                .call("keeping the unpacked layer", snapshots.commit(commit))
                .await
            {
                Ok(_) => return Ok(()),
                // Somebody else has unpacked the same.
                Err(Failure::Taken(_)) => Ok(()),
                Err(failure) => Err(failure.into()),
            }
        }
        Err(error) => Err(error),
    };
    let remove = client.request(RemoveSnapshotRequest {
        snapshotter: snapshotter.to_owned(),
        key,
    });
    // What stays is collected with the lease.
    let _ = client
        .call("removing what was unpacked", snapshots.remove(remove))
        .await;
    named
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_without_a_host_are_short() {
        for (name, long) in [
            ("busybox:1", "docker.io/library/busybox:1"),
            ("team/app:1", "docker.io/team/app:1"),
            ("localhost/app:1", "localhost/app:1"),
            ("registry:5000/app:1", "registry:5000/app:1"),
            ("ghcr.io/a/b:1", "ghcr.io/a/b:1"),
        ] {
            assert_eq!(long_name(name), long);
        }
    }

    #[test]
    fn a_chain_begins_with_its_first_layer() {
        assert_eq!(chain_ids(&[]), Vec::<String>::new());
        let chain = chain_ids(&["sha256:a".to_owned(), "sha256:b".to_owned()]);
        assert_eq!(chain[0], "sha256:a");
        let hex: String = Sha256::digest("sha256:a sha256:b")
            .iter()
            .map(|byte| format!("{byte:02x}"))
            .collect();
        assert_eq!(chain[1], format!("sha256:{hex}"));
    }
}
