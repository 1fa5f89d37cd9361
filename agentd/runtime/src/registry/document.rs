//! The documents of an image: which manifest is meant, and what it consists of.

use std::collections::BTreeMap;
use std::path::Path;

use nix::sys::statvfs::statvfs;
use oci_spec::image::{ImageIndex, ImageManifest};
use serde::Deserialize;
use serde_json::json;

use super::PullError;
use super::blob::Blob;
use super::http::Session;
use crate::images::{self, digest};
use crate::limits::{IMAGE_BYTES, IMAGE_DOCUMENT_BYTES, IMAGE_INDEXES, IMAGE_LAYERS};

/// What is understood, the first being the best.
const ACCEPT: &str = "application/vnd.oci.image.index.v1+json, application/vnd.oci.image.manifest.v1+json, \
    application/vnd.docker.distribution.manifest.list.v2+json, application/vnd.docker.distribution.manifest.v2+json";

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";

/// What an image consists of.
pub(super) struct Documents {
    manifest: Vec<u8>,
    media_type: String,
    /// Configuration and layers, each once.
    pub(super) blobs: Vec<Blob>,
}

/// As much as every manifest and index has.
#[derive(Deserialize)]
struct Any {
    #[serde(rename = "schemaVersion")]
    version: u64,
    #[serde(rename = "mediaType")]
    media_type: Option<String>,
    manifests: Option<serde_json::Value>,
}

fn damaged(session: &Session, why: impl std::fmt::Display) -> PullError {
    PullError::Damaged(format!(
        "{} has an image that cannot be used: {why}",
        session.remote.registry
    ))
}

impl Documents {
    /// Asks for the manifest: of several, that for this machine.
    pub(super) async fn fetch(session: &Session) -> Result<Documents, PullError> {
        let mut reference = session.remote.reference.clone();
        let mut wanted = session.remote.digest().map(str::to_owned);
        for _ in 0..=IMAGE_INDEXES {
            let response = session.get(&format!("manifests/{reference}"), ACCEPT, 0).await?;
            let bytes = session.whole(response, IMAGE_DOCUMENT_BYTES).await?;
            let found = digest(&bytes);
            if let Some(wanted) = wanted.filter(|wanted| *wanted != found) {
                let why = format!("the manifest {wanted} is damaged: its digest is {found}");
                return Err(damaged(session, why));
            }
            let any: Any = serde_json::from_slice(&bytes)
                .map_err(|error| damaged(session, format_args!("{reference} is no manifest: {error}")))?;
            if any.version != 2 {
                let why = format!("its manifest is of version {}, which is not read any more", any.version);
                return Err(damaged(session, why));
            }
            if any.manifests.is_none() {
                let media_type = any.media_type.unwrap_or_else(|| MANIFEST.to_owned());
                return Documents::of(session, bytes, media_type);
            }
            let index: ImageIndex =
                serde_json::from_slice(&bytes).map_err(|error| damaged(session, format_args!("its index: {error}")))?;
            let chosen = images::choose(&index, &reference).map_err(|error| damaged(session, error))?;
            reference = chosen.digest().to_string();
            wanted = Some(reference.clone());
        }
        Err(damaged(session, "its indexes point to each other"))
    }

    fn of(session: &Session, manifest: Vec<u8>, media_type: String) -> Result<Documents, PullError> {
        let parsed: ImageManifest = serde_json::from_slice(&manifest)
            .map_err(|error| damaged(session, format_args!("its manifest: {error}")))?;
        if parsed.layers().len() > IMAGE_LAYERS {
            let layers = parsed.layers().len();
            return Err(damaged(
                session,
                format_args!("it has {layers} layers; at most {IMAGE_LAYERS} are possible"),
            ));
        }
        if parsed.config().size() > IMAGE_DOCUMENT_BYTES {
            return Err(damaged(
                session,
                format_args!("its configuration is larger than {IMAGE_DOCUMENT_BYTES} bytes"),
            ));
        }
        let mut blobs = BTreeMap::new();
        for descriptor in [parsed.config()].into_iter().chain(parsed.layers()) {
            let blob = Blob::new(descriptor.digest().as_ref(), descriptor.size());
            let blob = blob.ok_or_else(|| {
                damaged(
                    session,
                    format_args!("the digest {} is none of sha256", descriptor.digest()),
                )
            })?;
            blobs.insert(blob.digest(), blob);
        }
        let documents = Documents {
            manifest,
            media_type,
            blobs: blobs.into_values().collect(),
        };
        if documents.bytes() > IMAGE_BYTES {
            return Err(damaged(
                session,
                format_args!("it is larger than {} GiB", IMAGE_BYTES >> 30),
            ));
        }
        Ok(documents)
    }

    /// The digest of the manifest.
    pub(super) fn digest(&self) -> String {
        digest(&self.manifest)
    }

    /// Bytes of everything that is fetched.
    pub(super) fn bytes(&self) -> u64 {
        self.blobs.iter().fold(0, |sum, blob| sum.saturating_add(blob.size))
    }

    /// Makes the directories of the layout, when there is room for the image.
    pub(super) async fn prepare(&self, layout: &Path) -> Result<(), PullError> {
        for name in ["blobs/sha256", "parts"] {
            let path = layout.join(name);
            // For nobody but its owner: an image may be nobody else's business.
            let mut directory = tokio::fs::DirBuilder::new();
            let made = directory.recursive(true).mode(0o700).create(&path).await;
            made.map_err(|error| PullError::disk(&path, &error))?;
        }
        let here = self.blobs.iter().map(|blob| blob.here(layout)).sum();
        let free = statvfs(layout).map_err(|error| PullError::disk(layout, &error.into()))?;
        let free = free.blocks_available().saturating_mul(free.fragment_size());
        let missing = self.bytes().saturating_sub(here);
        if missing > free {
            let mib = |bytes: u64| bytes >> 20;
            return Err(PullError::Disk(format!(
                "no space left on device: {} MiB of the image are missing, and {} are free at {}",
                mib(missing),
                mib(free),
                layout.display()
            )));
        }
        Ok(())
    }

    /// Makes the directory an OCI layout: the blobs are there.
    pub(super) async fn finish(&self, layout: &Path) -> Result<(), PullError> {
        let digest = self.digest();
        let descriptor = json!({ "mediaType": self.media_type, "digest": digest, "size": self.manifest.len() });
        let index = json!({ "schemaVersion": 2, "manifests": [descriptor] }).to_string();
        let blob = digest.replacen(':', "/", 1);
        for (path, bytes) in [
            (layout.join("blobs").join(blob), self.manifest.as_slice()),
            (layout.join("index.json"), index.as_bytes()),
        ] {
            tokio::fs::write(&path, bytes)
                .await
                .map_err(|error| PullError::disk(&path, &error))?;
        }
        Ok(())
    }
}
