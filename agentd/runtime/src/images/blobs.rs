//! An image as the documents and archives it consists of, for a store that keeps those.
//!
//! `docker save` writes no manifest; then one is made up, of the layers as they are.

use std::io::{self, Read};
use std::path::Path;

use serde_json::json;

use super::import::{Contents, contents};
use super::packed::Packed;
use super::source::{Digested, Source, digest};
use super::{ImageError, failed, invalid};
use crate::limits::{IMAGE_BYTES, IMAGE_LAYERS};

const MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
const CONFIG: &str = "application/vnd.oci.image.config.v1+json";
const LAYER: &str = "application/vnd.oci.image.layer.v1.tar";

/// One of them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Blob {
    /// The digest of its bytes.
    pub(crate) digest: String,
    /// How many they are.
    pub(crate) size: u64,
    name: String,
}

/// An image that was opened.
pub(crate) struct Blobs {
    source: Source,
    /// Its layers, the lowest first.
    pub(crate) layers: Vec<Blob>,
    /// The digest of its configuration, and that.
    pub(crate) config: (String, Vec<u8>),
    /// The digest of its manifest, and that.
    pub(crate) manifest: (String, Vec<u8>),
    /// What its manifest is.
    pub(crate) media_type: String,
}

impl Blobs {
    /// Opens the image at `path`; among several, the one of this name. `wanted`: the digest that its manifest must have. Compressed archives
    /// are unpacked into `scratch`.
    ///
    /// # Errors
    /// When it is none, or is not the one that was asked for. What its layers hold is not looked at.
    pub(crate) fn open(path: &Path, name: &str, wanted: Option<&str>, scratch: &Path) -> Result<Blobs, ImageError> {
        let source = Source::open(path, scratch)?;
        let contents = contents(&source, name)?;
        contents.expect(wanted)?;
        if contents.layers.len() > IMAGE_LAYERS {
            let layers = contents.layers.len();
            return Err(invalid(format!(
                "the image has {layers} layers; at most {IMAGE_LAYERS} are possible"
            )));
        }
        let (mut layers, mut kinds, mut bytes) = (Vec::new(), Vec::new(), 0);
        for (name, known) in &contents.layers {
            let (blob, packed) = measure(&source, name, known.as_deref())?;
            bytes += blob.size;
            if bytes > IMAGE_BYTES {
                return Err(super::source::too_large());
            }
            kinds.push(match packed {
                Packed::No => LAYER.to_owned(),
                Packed::Gzip => format!("{LAYER}+gzip"),
                Packed::Zstd => format!("{LAYER}+zstd"),
            });
            layers.push(blob);
        }
        let Contents { manifest, config, .. } = contents;
        let config = (digest(&config), config);
        let (manifest, media_type) = match manifest {
            Some((digest, manifest)) => ((digest, manifest.bytes), manifest.media_type),
            None => {
                let made = made_up(&config, &layers, &kinds);
                ((digest(&made), made), MANIFEST.to_owned())
            }
        };
        Ok(Blobs {
            source,
            layers,
            config,
            manifest,
            media_type,
        })
    }

    /// The bytes of a layer.
    pub(crate) fn read(&self, layer: &Blob) -> Result<Box<dyn Read + '_>, ImageError> {
        open(&self.source, &layer.name)
    }
}

fn open<'a>(source: &'a Source, name: &str) -> Result<Box<dyn Read + 'a>, ImageError> {
    let found = source.read(name)?;
    found.ok_or_else(|| invalid(format!("the layer {name} is missing")))
}

/// Finds out what is not known of a layer, and how it is compressed.
fn measure(source: &Source, name: &str, known: Option<&str>) -> Result<(Blob, Packed), ImageError> {
    let failed = |error| failed(format!("reading {name}"))(error);
    let (packed, _) = Packed::look(&mut open(source, name)?).map_err(failed)?;
    let mut digested = Digested::new(open(source, name)?);
    let size = io::copy(&mut digested, &mut io::sink()).map_err(failed)?;
    let found = digested.digest();
    if known.is_some_and(|known| known != found) {
        return Err(invalid(format!("the layer {name} is damaged: its digest is {found}")));
    }
    let blob = Blob {
        digest: found,
        size,
        name: name.to_owned(),
    };
    Ok((blob, packed))
}

fn made_up(config: &(String, Vec<u8>), layers: &[Blob], kinds: &[String]) -> Vec<u8> {
    let layers = layers.iter().zip(kinds);
    let layers = layers.map(|(blob, kind)| json!({ "mediaType": kind, "digest": blob.digest, "size": blob.size }));
    let manifest = json!({
        "schemaVersion": 2,
        "mediaType": MANIFEST,
        "config": { "mediaType": CONFIG, "digest": config.0, "size": config.1.len() },
        "layers": layers.collect::<Vec<_>>(),
    });
    manifest.to_string().into_bytes()
}
