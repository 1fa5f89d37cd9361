//! Images of this machine: unpacked directories below one root, by name.
//!
//! The image `registry/team/app:1` is the directory `registry/team/app:1`: `rootfs/`, and beside it either `image.json`, the image's
//! configuration as OCI has it (what [`Images::import`] leaves), or `config.json`, that of a runtime bundle (what umoci or `runc spec` leave). A
//! directory appears whole: it is unpacked under another name and renamed.
//!
//! It promises: no name and no archive reads or writes a path outside of the root; what was imported is what its digests say. What must
//! never happen here: an image changed while somebody runs from it. Tested by hostile archives, and by the process runtime.

mod blobs;
mod config;
mod import;
mod source;
mod unpack;

#[cfg(test)]
mod tests;

use std::fs;
use std::io;
use std::os::unix::fs::DirBuilderExt as _;
use std::path::{Path, PathBuf};

pub(crate) use blobs::{Blob, Blobs};
pub use config::Defaults;
pub(crate) use config::of_image;
pub use import::Imported;
pub(crate) use import::choose;
pub(crate) use source::{digest, digest_text};

/// How many names a message lists.
const SHOWN_MAX: usize = 20;

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
        Ok(Image { rootfs, defaults })
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
            if hidden || !entry.file_type()?.is_dir() {
                continue;
            }
            let path = entry.path();
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
        let staging = self.stage()?;
        let gone = staging.join("deleted");
        fs::rename(&directory, &gone).map_err(failed(format!("deleting {}", directory.display())))?;
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
