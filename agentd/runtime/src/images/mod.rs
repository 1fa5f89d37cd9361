//! Images of this machine: unpacked directories below one root, by name.
//!
//! The image `registry/team/app:1` is the directory `registry/team/app:1`: `rootfs/`, and beside it either `image.json`, the image's
//! configuration as OCI has it (what [`Images::import`] leaves), or `config.json`, that of a runtime bundle (what umoci or `runc spec` leave). A
//! directory appears whole: it is unpacked under another name and renamed.
//!
//! An image that came from a registry is the directory `registry/team/app@sha256:…`, of the digest of its manifest, and the name by which it was
//! fetched is a symbolic link to it: so a name can mean another image from one moment to the next, and who runs from the old one keeps it.
//!
//! It promises: no name and no archive reads or writes a path outside of the root; what was imported is what its digests say. What must
//! never happen here: an image changed while somebody runs from it. Tested by hostile archives, and by the process runtime.

mod blobs;
mod config;
mod import;
mod packed;
mod source;
mod unpack;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt as _, symlink};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};

pub(crate) use blobs::{Blob, Blobs};
pub use config::Defaults;
pub(crate) use config::of_image;
pub use import::Imported;
pub(crate) use import::choose;
pub(crate) use source::{digest, digest_text};

/// How many names a message lists.
const SHOWN_MAX: usize = 20;

/// The file with what is known of an image besides what it says itself.
const ABOUT: &str = "about.json";

/// Where unpacking happens, and what is being deleted; not the name of an image.
const STAGING: &str = ".staging";

/// How deep names nest: more parts than any name of 255 characters that people write.
const DEPTH_MAX: usize = 32;

/// The images below one directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Images {
    root: PathBuf,
}

/// An image that is here.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Image {
    /// The directory that a container sees as `/`.
    pub rootfs: PathBuf,
    /// What holds where a container does not say otherwise.
    pub defaults: Defaults,
    /// The digest of its manifest, if it had one.
    pub digest: Option<String>,
}

/// What is known of an image besides what it says itself; beside it, in [`ABOUT`].
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
struct About {
    /// The digest of its manifest.
    digest: Option<String>,
    /// Bytes of its files.
    bytes: u64,
    /// Whether it came from a registry, so that it can come again.
    fetched: bool,
}

impl About {
    fn read(image: &Path) -> About {
        let bytes = fs::read(image.join(ABOUT)).unwrap_or_default();
        serde_json::from_slice(&bytes).unwrap_or_default()
    }

    fn write(&self, image: &Path) -> Result<(), ImageError> {
        let text = serde_json::to_vec(self).expect("it is plain data");
        fs::write(image.join(ABOUT), text).map_err(failed("writing what is known of the image"))
    }
}

/// The name of the image of this digest in the repository of a name.
fn name_of(name: &str, digest: &str) -> String {
    let name = name.split_once('@').map_or(name, |(name, _)| name);
    let path = name.rsplit_once(':').filter(|(_, tag)| !tag.contains('/'));
    format!("{}@{digest}", path.map_or(name, |(path, _)| path))
}

/// What went wrong with an image.
#[derive(Debug, thiserror::Error)]
pub enum ImageError {
    /// It is not here.
    #[error("{0}")]
    NotFound(String),
    /// It cannot be what it says it is; trying again does not help.
    #[error("{0}")]
    Invalid(String),
    /// The machine refused.
    #[error("{context}: {source}")]
    Io {
        /// What was being done.
        context: String,
        /// What the machine said.
        source: io::Error,
    },
}

fn invalid(text: impl Into<String>) -> ImageError {
    ImageError::Invalid(text.into())
}

fn failed(context: impl Into<String>) -> impl FnOnce(io::Error) -> ImageError {
    let context = context.into();
    move |source| ImageError::Io { context, source }
}

impl Images {
    /// The images below this directory, which need not exist yet.
    pub fn new(root: impl Into<PathBuf>) -> Images {
        Images { root: root.into() }
    }

    /// The directory.
    pub fn root(&self) -> &Path {
        &self.root
    }

    /// Where an image of this name is, if it is here. Names are made of plain file names; an image does not lie inside of another one.
    fn directory(&self, name: &str) -> Result<PathBuf, ImageError> {
        let plain = |part: &str| !part.is_empty() && !part.starts_with('.') && !part.contains('\0');
        if !name.split('/').all(plain) || name.split('/').count() > DEPTH_MAX {
            return Err(invalid(format!("`{name}` is not the name of an image")));
        }
        let directory = self.root.join(name);
        let above = directory.ancestors().skip(1).take_while(|above| *above != self.root);
        if let Some(image) = above.into_iter().find(|above| is_image(above)) {
            return Err(invalid(format!(
                "`{name}` would lie inside of the image {}",
                image.display()
            )));
        }
        Ok(directory)
    }

    /// The image of this name.
    ///
    /// # Errors
    /// [`ImageError::NotFound`] says what is here instead and how to import it; others, when its configuration cannot be read.
    pub fn find(&self, name: &str) -> Result<Image, ImageError> {
        let directory = self.directory(name)?;
        if !is_image(&directory) {
            return Err(ImageError::NotFound(self.absent(name)));
        }
        let rootfs = directory.join("rootfs");
        let defaults = config::read(&directory, &rootfs)?;
        let digest = About::read(&directory).digest;
        Ok(Image {
            rootfs,
            defaults,
            digest,
        })
    }

    /// Lets a name mean the image of this digest, if that is here.
    ///
    /// # Errors
    /// When the machine refuses, or somebody runs from an image that was imported under the name.
    pub(crate) fn reuse(&self, name: &str, digest: &str) -> Result<bool, ImageError> {
        let own = name_of(name, digest);
        // Also one that was imported under the name, if it is the same.
        let same = self
            .find(name)
            .is_ok_and(|image| image.digest.as_deref() == Some(digest));
        if same {
            return Ok(true);
        }
        if !is_image(&self.directory(&own)?) {
            return Ok(false);
        }
        self.point(name, &own).map(|()| true)
    }

    /// Lets a name mean the image that has another name of the same repository.
    fn point(&self, name: &str, own: &str) -> Result<(), ImageError> {
        if name == own {
            return Ok(());
        }
        let link = self.directory(name)?;
        let image = self.directory(own)?;
        let target = image.file_name().unwrap_or_default();
        if fs::read_link(&link).is_ok_and(|found| found.as_os_str() == target) {
            return Ok(());
        }
        let failed = |error| failed(format!("naming the image {}", link.display()))(error);
        let staging = self.stage()?;
        let pointed = (|| {
            if fs::symlink_metadata(&link).is_ok_and(|found| found.is_dir()) {
                self.replace(&link, &staging)?;
            }
            let new = staging.join("link");
            symlink(target, &new).map_err(failed)?;
            fs::rename(&new, &link).map_err(failed)
        })();
        let _ = fs::remove_dir_all(&staging);
        pointed
    }

    /// Takes away what was imported under a name that means something else from now on.
    fn replace(&self, imported: &Path, staging: &Path) -> Result<(), ImageError> {
        if let Some(pid) = user_of(&imported.join("rootfs")) {
            return Err(invalid(format!(
                "{} was imported, is not what the registry has now, and is in use (by process {pid}); end its tasks first",
                imported.display()
            )));
        }
        fs::rename(imported, staging.join("replaced")).map_err(failed(format!("replacing {}", imported.display())))
    }

    fn absent(&self, name: &str) -> String {
        let names = self.list().unwrap_or_default();
        let more = names.len().saturating_sub(SHOWN_MAX);
        let here = match names.get(..SHOWN_MAX.min(names.len())).unwrap_or_default() {
            [] => "no image is there".to_owned(),
            names if more == 0 => format!("there are: {}", names.join(", ")),
            names => format!("there are: {} and {more} more", names.join(", ")),
        };
        let root = self.root.display();
        format!(
            "the image {name} is not in {root}; {here}. Import it on the machine of the agent: \
             mctl image import PATH --tag {name} --images {root}"
        )
    }

    /// The names of all images, sorted.
    ///
    /// # Errors
    /// When the directory exists and cannot be read.
    pub fn list(&self) -> Result<Vec<String>, ImageError> {
        let mut names = Vec::new();
        self.collect(&self.root, 0, &mut names)
            .map_err(failed(format!("reading {}", self.root.display())))?;
        names.sort();
        Ok(names)
    }

    fn collect(&self, directory: &Path, depth: usize, names: &mut Vec<String>) -> io::Result<()> {
        let entries = match fs::read_dir(directory) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            entries => entries?,
        };
        for entry in entries {
            let entry = entry?;
            let hidden = entry.file_name().as_encoded_bytes().starts_with(b".");
            let (path, kind) = (entry.path(), entry.file_type()?);
            // Another name of an image. No other link is followed.
            let named = kind.is_symlink() && is_image(&path);
            if hidden || !(kind.is_dir() || named) {
                continue;
            }
            if is_image(&path) {
                let name = path.strip_prefix(&self.root).unwrap_or(&path);
                names.push(name.to_string_lossy().into_owned());
            } else if depth < DEPTH_MAX {
                self.collect(&path, depth + 1, names)?;
            }
        }
        Ok(())
    }

    /// Deletes an image.
    ///
    /// # Errors
    /// [`ImageError::NotFound`]; [`ImageError::Invalid`] while a container runs from it.
    pub fn delete(&self, name: &str) -> Result<(), ImageError> {
        let directory = self.directory(name)?;
        if !is_image(&directory) {
            return Err(ImageError::NotFound(self.absent(name)));
        }
        if let Some(pid) = user_of(&directory.join("rootfs")) {
            return Err(invalid(format!(
                "the image {name} is in use (by process {pid}); end its tasks first"
            )));
        }
        // With its last name goes the image, and with the image go all its names.
        let image = directory
            .canonicalize()
            .map_err(failed(format!("deleting {}", directory.display())))?;
        let names = names_of(&image);
        let staging = self.stage()?;
        let gone = staging.join("deleted");
        let fail = || failed(format!("deleting {}", directory.display()));
        let linked = fs::symlink_metadata(&directory).is_ok_and(|found| found.is_symlink());
        if linked && names.len() > 1 {
            fs::remove_file(&directory).map_err(fail())?;
        } else {
            // First the names: without its image a name is nothing, and an image without a name can still be deleted.
            for name in names {
                fs::remove_file(name).map_err(fail())?;
            }
            fs::rename(&image, &gone).map_err(fail())?;
        }
        // What is left of the name goes as far as nothing else is in it.
        for above in directory.ancestors().skip(1).take_while(|above| *above != self.root) {
            if fs::remove_dir(above).is_err() {
                break;
            }
        }
        fs::remove_dir_all(&staging).map_err(failed(format!("deleting {}", staging.display())))
    }

    /// A new directory that nobody else uses, on the same file system. For nobody but its owner: an image may hold set-user-id files.
    fn stage(&self) -> Result<PathBuf, ImageError> {
        let failed = |error: io::Error| failed(format!("making {}", self.root.display()))(error);
        let make = |path: &Path, parents: bool| fs::DirBuilder::new().recursive(parents).mode(0o700).create(path);
        make(&self.root.join(STAGING), true).map_err(failed)?;
        for number in 0_u64.. {
            let path = self.root.join(STAGING).join(format!("{}-{number}", std::process::id()));
            match make(&path, false) {
                Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {}
                made => return made.map(|()| path).map_err(failed),
            }
        }
        unreachable!("there are more numbers than directories")
    }
}

fn is_image(directory: &Path) -> bool {
    directory.join("rootfs").is_dir()
        && ["image.json", "config.json"]
            .iter()
            .any(|name| directory.join(name).is_file())
}

/// The links to an image that are its names besides its own.
fn names_of(image: &Path) -> Vec<PathBuf> {
    let beside = image.parent().and_then(|parent| fs::read_dir(parent).ok());
    let links = beside.into_iter().flatten().flatten().map(|entry| entry.path());
    let ours = |link: &PathBuf| fs::read_link(link).is_ok_and(|target| Some(target.as_os_str()) == image.file_name());
    links.filter(ours).collect()
}

/// A process that has this directory below an overlay.
fn user_of(rootfs: &Path) -> Option<u32> {
    let rootfs = rootfs.canonicalize().ok()?;
    let option = format!("lowerdir={},", rootfs.to_str()?);
    let pids = fs::read_dir("/proc").ok()?.flatten();
    let mut pids = pids.filter_map(|entry| entry.file_name().to_str()?.parse::<u32>().ok());
    pids.find(|pid| {
        fs::read_to_string(format!("/proc/{pid}/mountinfo")).is_ok_and(|mounts| unescape(&mounts).contains(&option))
    })
}

/// How mount options show what `mount_image` has escaped, and what the kernel escapes itself.
fn unescape(mounts: &str) -> String {
    mounts.replace("\\134", "\\").replace("\\:", ":").replace("\\040", " ")
}
