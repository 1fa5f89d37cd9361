//! Layers onto a directory, whoever has made them.
//!
//! Every path is opened by the kernel as if the directory were the root (`RESOLVE_IN_ROOT`), so a symbolic link of one entry cannot lead the
//! next one out. Names with `..` and absolute names end the import: no honest archive has them. What must never happen here: a path
//! used that was not opened so.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fs::{self, File};
use std::io::{self, Read};
use std::os::fd::{AsFd as _, AsRawFd as _, OwnedFd};
use std::os::unix::ffi::{OsStrExt as _, OsStringExt as _};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AtFlags, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FchmodatFlags, Mode, UtimensatFlags, fchmodat, mkdirat, utimensat};
use nix::sys::time::TimeSpec;
use nix::unistd::{Gid, Uid, fchownat, geteuid, linkat, symlinkat};
use tar::{Entry, EntryType, Header};

use super::{ImageError, failed, invalid};
use crate::limits::IMAGE_FILES;

/// Marks a file of a lower layer as deleted.
const WHITEOUT: &[u8] = b".wh.";
/// Marks a directory of a lower layer as emptied.
const OPAQUE: &[u8] = b".wh..wh..opq";

/// Unpacks layers, lowest first.
pub(super) struct Unpacker {
    root: OwnedFd,
    files: usize,
    bytes: u64,
    skipped: usize,
    /// What this layer has brought: what it empties is only what others have.
    fresh: BTreeSet<PathBuf>,
}

/// A place in the image: an opened directory, and a plain name in it.
struct Place {
    parent: OwnedFd,
    name: OsString,
}

impl Place {
    /// A path to it by the opened directory, for calls that take only paths. The name itself is not followed by any of them.
    fn path(&self) -> PathBuf {
        PathBuf::from(format!("/proc/self/fd/{}", self.parent.as_raw_fd())).join(&self.name)
    }

    /// Removes what is there, whatever it is.
    fn clear(&self) -> io::Result<()> {
        let path = self.path();
        match fs::symlink_metadata(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error),
            Ok(meta) if meta.is_dir() => fs::remove_dir_all(path),
            Ok(_) => fs::remove_file(path),
        }
    }
}

impl Unpacker {
    pub(super) fn new(root: &Path) -> Result<Unpacker, ImageError> {
        let root = File::open(root).map_err(failed(format!("opening {}", root.display())))?;
        Ok(Unpacker {
            root: root.into(),
            files: 0,
            bytes: 0,
            skipped: 0,
            fresh: BTreeSet::new(),
        })
    }

    pub(super) fn files(&self) -> usize {
        self.files
    }

    pub(super) fn bytes(&self) -> u64 {
        self.bytes
    }

    pub(super) fn skipped(&self) -> usize {
        self.skipped
    }

    /// Unpacks one layer.
    pub(super) fn layer(&mut self, archive: &mut dyn Read) -> Result<(), ImageError> {
        self.fresh.clear();
        let mut archive = tar::Archive::new(archive);
        for entry in archive.entries().map_err(failed("reading a layer"))? {
            let mut entry = entry.map_err(failed("reading a layer"))?;
            let path = PathBuf::from(OsString::from_vec(entry.path_bytes().into_owned()));
            self.files += 1;
            if self.files > IMAGE_FILES {
                return Err(invalid(format!("the image has more than {IMAGE_FILES} files")));
            }
            let parts = parts(&path)?;
            self.entry(&mut entry, &parts).map_err(|error| match error {
                ImageError::Io { source, .. } => failed(format!("unpacking {}", path.display()))(source),
                error => error,
            })?;
        }
        Ok(())
    }

    fn entry(&mut self, entry: &mut Entry<'_, impl Read>, parts: &[OsString]) -> Result<(), ImageError> {
        let io = failed("unpacking");
        let Some((name, parents)) = parts.split_last() else {
            // The root itself.
            return Ok(());
        };
        if name.as_bytes().starts_with(WHITEOUT) {
            return self.whiteout(parents, name);
        }
        let place = self.place(parents, name).map_err(io)?;
        let header = entry.header().clone();
        let kind = header.entry_type();
        let made = match kind {
            EntryType::Directory => directory(&place),
            EntryType::Regular | EntryType::Continuous => self.regular(entry, &place),
            EntryType::Symlink => symlink(entry, &place),
            EntryType::Link => return self.link(entry, &place, parts),
            _ => {
                self.skipped += 1;
                return Ok(());
            }
        };
        made.map_err(failed("unpacking"))?;
        own(&header, &place).map_err(failed("unpacking"))?;
        self.fresh.insert(parts.iter().collect());
        Ok(())
    }

    /// Opens the directory of a path, and makes what is missing of it.
    fn place(&self, parents: &[OsString], name: &OsStr) -> io::Result<Place> {
        let mut path = PathBuf::new();
        let mut parent = self.open(Path::new("."))?;
        for part in parents {
            path.push(part);
            parent = match self.open(&path) {
                Err(error) if error.kind() == io::ErrorKind::NotFound => {
                    mkdirat(parent.as_fd(), part.as_os_str(), Mode::from_bits_truncate(0o755))?;
                    self.open(&path)?
                }
                opened => opened?,
            };
        }
        Ok(Place {
            parent,
            name: name.to_owned(),
        })
    }

    /// Opens a directory as a container would: nothing leads out.
    fn open(&self, path: &Path) -> io::Result<OwnedFd> {
        let how = OpenHow::new()
            .flags(OFlag::O_PATH | OFlag::O_DIRECTORY | OFlag::O_CLOEXEC)
            .resolve(ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS);
        Ok(openat2(self.root.as_fd(), path, how)?)
    }

    fn regular(&mut self, entry: &mut Entry<'_, impl Read>, place: &Place) -> io::Result<()> {
        place.clear()?;
        let mut file = File::options().write(true).create_new(true).open(place.path())?;
        self.bytes += io::copy(entry, &mut file)?;
        Ok(())
    }

    /// Another name of a file that is there already.
    fn link(&mut self, entry: &Entry<'_, impl Read>, place: &Place, parts: &[OsString]) -> Result<(), ImageError> {
        let bytes = entry.link_name_bytes().unwrap_or_default().into_owned();
        let target = PathBuf::from(OsString::from_vec(bytes));
        let target = self::parts(&target)?;
        let Some((name, parents)) = target.split_last() else {
            return Err(invalid("a link to the root of the image"));
        };
        let linked = || -> io::Result<()> {
            let of: PathBuf = parents.iter().collect();
            let of = self.open(if parents.is_empty() { Path::new(".") } else { &of })?;
            place.clear()?;
            linkat(
                of.as_fd(),
                name.as_os_str(),
                place.parent.as_fd(),
                place.name.as_os_str(),
                AtFlags::empty(),
            )?;
            Ok(())
        };
        linked().map_err(failed("unpacking"))?;
        self.fresh.insert(parts.iter().collect());
        Ok(())
    }

    /// Takes away what lower layers have brought.
    fn whiteout(&mut self, parents: &[OsString], name: &OsStr) -> Result<(), ImageError> {
        let above: PathBuf = parents.iter().collect();
        let opened = self.open(if parents.is_empty() { Path::new(".") } else { &above });
        // What is not there is gone.
        let Ok(parent) = opened else { return Ok(()) };
        if name.as_bytes() == OPAQUE {
            return self.empty(&parent, &above).map_err(failed("unpacking"));
        }
        let name = OsStr::from_bytes(&name.as_bytes()[WHITEOUT.len()..]).to_owned();
        if parts(Path::new(&name))?.len() != 1 {
            return Err(invalid("it deletes a file without a name"));
        }
        Place { parent, name }.clear().map_err(failed("unpacking"))
    }

    fn empty(&self, directory: &OwnedFd, path: &Path) -> io::Result<()> {
        for entry in fs::read_dir(format!("/proc/self/fd/{}", directory.as_raw_fd()))? {
            let name = entry?.file_name();
            let inner = path.join(&name);
            // Something in it may be new although it was not named itself; the rest of it goes all the same.
            let fresh = self.fresh.range(inner.clone()..).next();
            let parent = directory.try_clone()?;
            let place = Place { parent, name };
            if !fresh.is_some_and(|fresh| fresh.starts_with(&inner)) {
                place.clear()?;
            } else if fs::symlink_metadata(place.path())?.is_dir() {
                self.empty(&self.open(&inner)?, &inner)?;
            }
        }
        Ok(())
    }
}

/// The parts of a path that stays where it begins.
fn parts(path: &Path) -> Result<Vec<OsString>, ImageError> {
    let mut parts = Vec::new();
    for part in path.components() {
        match part {
            Component::Normal(part) if !part.as_bytes().contains(&0) => parts.push(part.to_owned()),
            Component::CurDir => {}
            _ => {
                return Err(invalid(format!(
                    "the archive is hostile or broken: {} leaves the image",
                    path.display()
                )));
            }
        }
    }
    Ok(parts)
}

fn directory(place: &Place) -> io::Result<()> {
    if !fs::symlink_metadata(place.path()).is_ok_and(|meta| meta.is_dir()) {
        place.clear()?;
        mkdirat(
            place.parent.as_fd(),
            place.name.as_os_str(),
            Mode::from_bits_truncate(0o755),
        )?;
    }
    Ok(())
}

/// Wherever it points to: it is followed in containers only, whose root is the image.
fn symlink(entry: &Entry<'_, impl Read>, place: &Place) -> io::Result<()> {
    let target = entry.link_name_bytes().unwrap_or_default().into_owned();
    place.clear()?;
    symlinkat(OsStr::from_bytes(&target), place.parent.as_fd(), place.name.as_os_str())?;
    Ok(())
}

/// Owner, permissions and time. In this order: a change of the owner takes set-user-id bits away.
fn own(header: &Header, place: &Place) -> io::Result<()> {
    let (parent, name) = (place.parent.as_fd(), place.name.as_os_str());
    if geteuid().is_root() {
        let id = |id: io::Result<u64>| u32::try_from(id?).map_err(io::Error::other);
        let (uid, gid) = (id(header.uid())?, id(header.gid())?);
        let owner = (Some(Uid::from_raw(uid)), Some(Gid::from_raw(gid)));
        fchownat(parent, name, owner.0, owner.1, AtFlags::AT_SYMLINK_NOFOLLOW)?;
    }
    if header.entry_type() != EntryType::Symlink {
        let mode = Mode::from_bits_truncate(header.mode()? & 0o7777);
        fchmodat(parent, name, mode, FchmodatFlags::FollowSymlink)?;
    }
    let seconds = header
        .mtime()
        .ok()
        .and_then(|seconds| i64::try_from(seconds).ok())
        .unwrap_or(0);
    let time = TimeSpec::new(seconds, 0);
    Ok(utimensat(parent, name, &time, &time, UtimensatFlags::NoFollowSymlink)?)
}
