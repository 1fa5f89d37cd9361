//! From an OCI layout, or an archive of one or of `docker save`, to an unpacked image.

use std::fs;
use std::io::Read;
use std::path::Path;

use oci_spec::image::{Arch, Descriptor, ImageConfiguration, ImageIndex, ImageManifest, Os};
use serde::Deserialize;

use super::packed::unpacked;
use super::source::{Digested, Source, digest, too_large};
use super::unpack::Unpacker;
use super::{About, ImageError, Images, config, failed, invalid, is_image, name_of};
use crate::limits::{IMAGE_BYTES, IMAGE_INDEXES, IMAGE_LAYERS};

/// The annotation by which a layout names what is in it.
const REF_NAME: &str = "org.opencontainers.image.ref.name";

/// What an import has made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Imported {
    /// The digest of the manifest; `None`: `docker save` writes none.
    pub digest: Option<String>,
    /// Files, directories and links.
    pub files: usize,
    /// Bytes, as the archives of the layers have them.
    pub bytes: u64,
    /// Device nodes and the like, which are left out.
    pub skipped: usize,
}

/// `manifest.json` of `docker save`.
#[derive(Deserialize)]
#[serde(rename_all = "PascalCase")]
struct Saved {
    config: String,
    #[serde(default)]
    repo_tags: Option<Vec<String>>,
    layers: Vec<String>,
}

/// What has to be unpacked.
pub(super) struct Contents {
    /// Its digest and what it is; `docker save` writes none.
    pub(super) manifest: Option<(String, Manifest)>,
    pub(super) config: Vec<u8>,
    /// By their names in the source, with the digest of the blob if there is one.
    pub(super) layers: Vec<(String, Option<String>)>,
}

/// A manifest as it is, and what it says that it is.
pub(super) struct Manifest {
    pub(super) media_type: String,
    pub(super) bytes: Vec<u8>,
}

impl Images {
    /// Unpacks the image at `path` under a name. `digest`: what its manifest must have.
    ///
    /// # Errors
    /// [`ImageError::Invalid`], when it is not an image, is damaged, hostile or too large, or the name is taken. Nothing is left of it then.
    pub fn import(&self, path: &Path, name: &str, digest: Option<&str>) -> Result<Imported, ImageError> {
        self.bring(path, name, digest, false)
    }

    /// Unpacks the image of this digest, which came from a registry, and lets the name mean it. Nothing happens to who runs from what the name
    /// meant before.
    ///
    /// # Errors
    /// As [`import`](Images::import).
    pub(crate) fn keep(&self, layout: &Path, name: &str, digest: &str) -> Result<(), ImageError> {
        let own = name_of(name, digest);
        match self.bring(layout, &own, Some(digest), true) {
            // Another agent with the same directory of images has been faster.
            Err(_) if self.find(&own).is_ok() => {}
            brought => drop(brought?),
        }
        self.point(name, &own)
    }

    fn bring(&self, path: &Path, name: &str, digest: Option<&str>, fetched: bool) -> Result<Imported, ImageError> {
        let target = self.directory(name)?;
        if is_image(&target) {
            return Err(invalid(format!(
                "the image {name} is here already; tasks may run from it. Delete it first: mctl image delete {name} --images {}",
                self.root().display()
            )));
        }
        if target.exists() {
            return Err(invalid(format!(
                "there are images below {}; choose another name",
                target.display()
            )));
        }
        let staging = self.stage()?;
        let imported = self.unpack(path, name, digest, &staging).and_then(|imported| {
            let about = About {
                digest: imported.digest.clone(),
                bytes: imported.bytes,
                fetched,
            };
            about.write(&staging.join("image"))?;
            let parent = target.parent().unwrap_or(self.root());
            fs::create_dir_all(parent).map_err(failed(format!("making {}", parent.display())))?;
            let whole = staging.join("image");
            fs::rename(&whole, &target).map_err(failed(format!("naming it {}", target.display())))?;
            Ok(imported)
        });
        // Whatever became of it; what cannot be deleted now is only space.
        let _ = fs::remove_dir_all(&staging);
        imported
    }

    fn unpack(&self, path: &Path, name: &str, wanted: Option<&str>, staging: &Path) -> Result<Imported, ImageError> {
        let source = Source::open(path, staging)?;
        let contents = contents(&source, name)?;
        contents.expect(wanted)?;
        let image = staging.join("image");
        let rootfs = image.join("rootfs");
        fs::create_dir_all(&rootfs).map_err(failed("making the image"))?;
        let mut unpacker = Unpacker::new(&rootfs)?;
        let parsed: ImageConfiguration = serde_json::from_slice(&contents.config)
            .map_err(|error| invalid(format!("the configuration of the image: {error}")))?;
        let diff_ids = parsed.rootfs().diff_ids();
        if diff_ids.len() != contents.layers.len() || contents.layers.len() > IMAGE_LAYERS {
            return Err(invalid(format!(
                "the image has {} layers and {} names for them; at most {IMAGE_LAYERS} are possible",
                contents.layers.len(),
                diff_ids.len()
            )));
        }
        for ((layer, digest), diff_id) in contents.layers.iter().zip(diff_ids) {
            self::layer(&source, layer, digest.as_deref(), diff_id, &mut unpacker)?;
        }
        // Now, so that an image that cannot be run is noticed here.
        config::of_image(&contents.config, std::slice::from_ref(&rootfs))?;
        fs::write(image.join("image.json"), &contents.config).map_err(failed("writing the configuration"))?;
        Ok(Imported {
            digest: contents.manifest.map(|(digest, _)| digest),
            files: unpacker.files(),
            bytes: unpacker.bytes(),
            skipped: unpacker.skipped(),
        })
    }
}

impl Contents {
    /// Refuses a manifest that is not the one that was asked for.
    pub(super) fn expect(&self, wanted: Option<&str>) -> Result<(), ImageError> {
        let found = self.manifest.as_ref().map(|(digest, _)| digest.as_str());
        match wanted {
            Some(wanted) if found != Some(wanted) => {
                let found = found.unwrap_or("none: it is an archive of `docker save`");
                Err(invalid(format!(
                    "the digest of the image is {found}, and {wanted} was asked for"
                )))
            }
            _ => Ok(()),
        }
    }
}

/// Unpacks one layer: the digest of its blob, and of what it unpacks to, must be right.
fn layer(
    source: &Source,
    name: &str,
    digest: Option<&str>,
    diff_id: &str,
    unpacker: &mut Unpacker,
) -> Result<(), ImageError> {
    let missing = || invalid(format!("the layer {name} is missing"));
    let mut blob = Digested::new(source.read(name)?.ok_or_else(missing)?);
    let what = format!("the layer {name}");
    let left = IMAGE_BYTES.saturating_sub(unpacker.bytes());
    let plain = unpacked(&mut blob).map_err(failed(format!("reading {name}")))?;
    let mut plain = Digested::new(plain.take(left + 1));
    unpacker.layer(&mut plain)?;
    plain.verify(diff_id, &format!("{what}, unpacked,"))?;
    if unpacker.bytes() > IMAGE_BYTES {
        return Err(too_large());
    }
    digest.map_or(Ok(()), |digest| blob.verify(digest, &what))
}

pub(super) fn contents(source: &Source, name: &str) -> Result<Contents, ImageError> {
    if let Some(index) = source.document("index.json")? {
        return layout(source, &index, name);
    }
    let Some(saved) = source.document("manifest.json")? else {
        return Err(invalid(
            "it has neither an index.json (an OCI layout) nor a manifest.json (`docker save`)",
        ));
    };
    let saved: Vec<Saved> =
        serde_json::from_slice(&saved).map_err(|error| invalid(format!("manifest.json: {error}")))?;
    let tagged = |image: &&Saved| image.repo_tags.iter().flatten().any(|tag| tag == name);
    let image = match saved.as_slice() {
        [one] => one,
        many => many.iter().find(tagged).ok_or_else(|| {
            invalid(format!(
                "it holds {} images and none is tagged {name}; save one",
                many.len()
            ))
        })?,
    };
    let config = source.document(&image.config)?;
    Ok(Contents {
        manifest: None,
        config: config.ok_or_else(|| invalid(format!("{} is missing", image.config)))?,
        layers: image.layers.iter().map(|layer| (layer.clone(), None)).collect(),
    })
}

fn layout(source: &Source, index: &[u8], name: &str) -> Result<Contents, ImageError> {
    let mut index: ImageIndex =
        serde_json::from_slice(index).map_err(|error| invalid(format!("index.json: {error}")))?;
    let mut depth = 0;
    let descriptor = loop {
        let chosen = choose(&index, name)?;
        let is_index =
            chosen.media_type().to_string().contains("index") || chosen.media_type().to_string().contains("list");
        if !is_index {
            break chosen;
        }
        depth += 1;
        if depth > IMAGE_INDEXES {
            return Err(invalid("its indexes point to each other"));
        }
        index = serde_json::from_slice(&blob(source, &chosen)?)
            .map_err(|error| invalid(format!("the index {}: {error}", chosen.digest())))?;
    };
    let bytes = blob(source, &descriptor)?;
    let manifest: ImageManifest = serde_json::from_slice(&bytes)
        .map_err(|error| invalid(format!("the manifest {}: {error}", descriptor.digest())))?;
    let layers = manifest.layers().iter().map(|layer| {
        let digest = layer.digest().to_string();
        Ok((blob_name(&digest)?, Some(digest)))
    });
    let known = Manifest {
        media_type: descriptor.media_type().to_string(),
        bytes,
    };
    Ok(Contents {
        manifest: Some((descriptor.digest().to_string(), known)),
        config: blob(source, manifest.config())?,
        layers: layers.collect::<Result<_, ImageError>>()?,
    })
}

/// The image for this machine; among several, the one that is named so.
pub(crate) fn choose(index: &ImageIndex, name: &str) -> Result<Descriptor, ImageError> {
    let here = |descriptor: &&Descriptor| {
        let platform = descriptor.platform().as_ref();
        platform.is_none_or(|platform| *platform.os() == Os::Linux && *platform.architecture() == Arch::default())
    };
    let fitting: Vec<&Descriptor> = index.manifests().iter().filter(here).collect();
    let named = |descriptor: &&&Descriptor| {
        let annotation = descriptor
            .annotations()
            .as_ref()
            .and_then(|annotations| annotations.get(REF_NAME));
        annotation.is_some_and(|found| found == name || name.rsplit_once(':').is_some_and(|(_, tag)| found == tag))
    };
    match fitting.as_slice() {
        [] => Err(invalid(format!("it has no image for linux/{}", Arch::default()))),
        [one] => Ok((*one).clone()),
        many => {
            let found = many.iter().find(named);
            let found =
                found.ok_or_else(|| invalid(format!("it holds {} images, none of them named {name}", many.len())));
            found.map(|found| (*found).clone())
        }
    }
}

fn blob_name(digest: &str) -> Result<String, ImageError> {
    match digest.split_once(':') {
        Some(("sha256", hex)) if hex.len() == 64 && hex.bytes().all(|b| b.is_ascii_hexdigit()) => {
            Ok(format!("blobs/sha256/{hex}"))
        }
        _ => Err(invalid(format!("the digest {digest} is none of sha256"))),
    }
}

fn blob(source: &Source, descriptor: &Descriptor) -> Result<Vec<u8>, ImageError> {
    let wanted = descriptor.digest().to_string();
    let name = blob_name(&wanted)?;
    let bytes = source
        .document(&name)?
        .ok_or_else(|| invalid(format!("{name} is missing")))?;
    match digest(&bytes) {
        found if found == wanted => Ok(bytes),
        found => Err(invalid(format!("{name} is damaged: its digest is {found}"))),
    }
}
