//! An archive into files.

use std::ffi::{OsStr, OsString};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd as _, OwnedFd};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, renameat};
use nix::sys::stat::{Mode, SFlag, fchmod, fstatat, futimens, mkdirat};
use nix::sys::time::TimeSpec;
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};
use tar::{Archive, Entry, EntryType};

use super::{Copied, CopyError, Place, at, open_in};
use crate::limits::COPY_DEPTH;

/// Puts what is in an archive to a path: into a directory that is there, under the name that it has in the archive; otherwise under
/// the name that was given, in a directory that must be there.
///
/// # Errors
/// [`CopyError`]; files that were whole by then stay.
pub fn unpack(place: Place, target: &Path, archive: impl Read) -> Result<Copied, CopyError> {
    let mut archive = Archive::new(archive);
    let mut unpacker = None;
    for entry in archive.entries().map_err(CopyError::Archive)? {
        let entry = entry.map_err(CopyError::Archive)?;
        let name = PathBuf::from(OsStr::from_bytes(&entry.path_bytes()).to_owned());
        let parts = parts(&name)?;
        let unpacker = match &mut unpacker {
            Some(unpacker) => unpacker,
            none => none.insert(Unpacker::begin(place, target, parts[0])?),
        };
        unpacker.entry(entry, &parts)?;
    }
    unpacker.ok_or(CopyError::Nothing)?.finish()
}

/// The parts of a name, of which there is at least one.
fn parts(name: &Path) -> Result<Vec<&OsStr>, CopyError> {
    let wrong = || CopyError::Name(name.to_string_lossy().into_owned());
    let parts: Vec<&OsStr> = name
        .components()
        .map(|part| match part {
            Component::Normal(part) => Ok(part),
            _ => Err(wrong()),
        })
        .collect::<Result<_, _>>()?;
    if parts.is_empty() || parts.len() > COPY_DEPTH + 1 {
        return Err(wrong());
    }
    Ok(parts)
}

struct Unpacker {
    place: Place,
    /// Where the copy is put.
    base: OwnedFd,
    /// What the first part of every name of the archive is.
    theirs: OsString,
    /// What it is here.
    ours: OsString,
    copied: Copied,
    /// Modes and times of directories, which are set last: writing into one changes its time, and its mode may forbid it.
    directories: Vec<(PathBuf, Mode, TimeSpec)>,
}

impl Unpacker {
    fn begin(place: Place, target: &Path, theirs: &OsStr) -> Result<Unpacker, CopyError> {
        let directory = OFlag::O_PATH | OFlag::O_DIRECTORY;
        let (base, ours) = match place.open(target, directory) {
            Ok(base) => (base, theirs.to_owned()),
            Err(error) => {
                let named = !target.as_os_str().as_bytes().ends_with(b"/");
                let Some(name) = target.file_name().filter(|_| named) else {
                    return Err(at(target)(error));
                };
                let parent = match target.parent() {
                    Some(parent) if parent != Path::new("") => parent,
                    _ => Path::new("."),
                };
                (place.open(parent, directory).map_err(at(parent))?, name.to_owned())
            }
        };
        Ok(Unpacker {
            place,
            base,
            theirs: theirs.to_owned(),
            ours,
            copied: Copied::default(),
            directories: Vec::new(),
        })
    }

    fn entry(&mut self, entry: Entry<'_, impl Read>, parts: &[&OsStr]) -> Result<(), CopyError> {
        if parts[0] != self.theirs {
            let name: PathBuf = parts.iter().collect();
            return Err(CopyError::Name(name.to_string_lossy().into_owned()));
        }
        let path: PathBuf = std::iter::once(self.ours.as_os_str())
            .chain(parts[1..].iter().copied())
            .collect();
        self.copied.count(entry.size())?;
        let parent = match path.parent().filter(|parent| *parent != Path::new("")) {
            None => self.base.try_clone().map_err(at(&path))?,
            Some(parent) => open_in(&self.base, parent, OFlag::O_PATH | OFlag::O_DIRECTORY, 0).map_err(at(parent))?,
        };
        let header = entry.header();
        let mode = Mode::from_bits_truncate(header.mode().map_err(CopyError::Archive)? & 0o777);
        let seconds = i64::try_from(header.mtime().map_err(CopyError::Archive)?).unwrap_or(0);
        let time = TimeSpec::new(seconds, 0);
        let name = Path::new(parts.last().filter(|_| parts.len() > 1).copied().unwrap_or(&self.ours)).to_owned();
        match header.entry_type() {
            EntryType::Directory => {
                make_directory(&parent, &name).map_err(at(&path))?;
                self.directories.push((path, mode, time));
                Ok(())
            }
            EntryType::Regular | EntryType::Continuous => file(&parent, &name, entry, mode, time, &path),
            EntryType::Symlink => self.link(&parent, &name, &entry, &path, parts.len()),
            _ => {
                self.copied
                    .leave_out(&path, "it is no file, directory or symbolic link");
                Ok(())
            }
        }
    }

    fn link(
        &mut self,
        parent: &OwnedFd,
        name: &Path,
        entry: &Entry<'_, impl Read>,
        path: &Path,
        depth: usize,
    ) -> Result<(), CopyError> {
        let target = entry.link_name_bytes().unwrap_or_default();
        let target = Path::new(OsStr::from_bytes(&target));
        if !self.place.takes_every_link() && leads_out(target, depth) {
            let why = format!("it is a symbolic link to {}, outside of the copy", target.display());
            self.copied.leave_out(path, &why);
            return Ok(());
        }
        let part = Part::new(parent, name);
        symlinkat(target, parent, part.name.as_path()).map_err(|error| at(path)(error.into()))?;
        part.rename(name).map_err(at(path))
    }

    fn finish(self) -> Result<Copied, CopyError> {
        // From the inside out.
        for (path, mode, time) in self.directories.iter().rev() {
            let directory = open_in(&self.base, path, OFlag::O_RDONLY | OFlag::O_DIRECTORY, 0).map_err(at(path))?;
            fchmod(&directory, *mode)
                .and_then(|()| futimens(&directory, time, time))
                .map_err(|error| at(path)(error.into()))?;
        }
        Ok(self.copied)
    }
}

/// Whether a link at this depth (1: the copy itself) leads out of the copy, or might: upwards from what may be a link itself.
fn leads_out(target: &Path, depth: usize) -> bool {
    let up = target
        .components()
        .take_while(|part| *part == Component::ParentDir)
        .count();
    let rest = target.components().skip(up);
    // The directory that it is in is this far below the copy's own.
    depth < 2 + up
        || rest
            .into_iter()
            .any(|part| !matches!(part, Component::Normal(_) | Component::CurDir))
}

fn make_directory(parent: &OwnedFd, name: &Path) -> io::Result<()> {
    // Open to whoever copies until its own mode is set.
    match mkdirat(parent, name, Mode::S_IRWXU) {
        Err(Errno::EEXIST) => {
            let stat = fstatat(parent, name, AtFlags::AT_SYMLINK_NOFOLLOW)?;
            if SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT == SFlag::S_IFDIR {
                Ok(())
            } else {
                Err(Errno::ENOTDIR.into())
            }
        }
        other => Ok(other?),
    }
}

/// A file under a name of its own, until it is whole. Gone when it never is.
struct Part<'a> {
    parent: &'a OwnedFd,
    name: PathBuf,
    whole: bool,
}

impl<'a> Part<'a> {
    fn new(parent: &'a OwnedFd, name: &Path) -> Part<'a> {
        // Not longer than a name may be, and told apart from those of other copies.
        let short: String = name.to_string_lossy().chars().take(40).collect();
        Part {
            parent,
            name: PathBuf::from(format!(".{short}.{}.part", std::process::id())),
            whole: false,
        }
    }

    fn rename(mut self, to: &Path) -> io::Result<()> {
        renameat(self.parent, self.name.as_path(), self.parent, to)?;
        self.whole = true;
        Ok(())
    }
}

impl Drop for Part<'_> {
    fn drop(&mut self) {
        if !self.whole {
            let _ = unlinkat(self.parent, self.name.as_path(), UnlinkatFlags::NoRemoveDir);
        }
    }
}

fn file(
    parent: &OwnedFd,
    name: &Path,
    mut entry: Entry<'_, impl Read>,
    mode: Mode,
    time: TimeSpec,
    path: &Path,
) -> Result<(), CopyError> {
    let part = Part::new(parent, name);
    let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL;
    let make = || open_in(parent, &part.name, flags, 0o600);
    let made = match make() {
        // Left by one that was killed, whose number this process has now.
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => {
            unlinkat(parent, part.name.as_path(), UnlinkatFlags::NoRemoveDir)
                .map_err(|error| at(path)(error.into()))?;
            make()
        }
        made => made,
    };
    let mut to = File::from(made.map_err(at(path))?);
    let size = entry.size();
    let mut block = vec![0; 64 * 1024];
    let mut written = 0_u64;
    loop {
        let read = match entry.read(&mut block) {
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            read => read.map_err(CopyError::Archive)?,
        };
        if read == 0 {
            break;
        }
        io::Write::write_all(&mut to, &block[..read]).map_err(at(path))?;
        written += read as u64;
    }
    if written != size {
        return Err(CopyError::Archive(io::ErrorKind::UnexpectedEof.into()));
    }
    fchmod(to.as_fd(), mode)
        .and_then(|()| futimens(to.as_fd(), &time, &time))
        .map_err(|error| at(path)(error.into()))?;
    drop(to);
    part.rename(name).map_err(at(path))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn links_that_stay_in_the_copy_are_told_from_those_that_leave_it() {
        // `copy/a/link`: its directory is one below the copy.
        for (target, depth, out) in [
            ("b", 2, false),
            ("../x", 3, false),
            ("../../x", 3, true),
            ("a/../../x", 2, true),
            ("a/../x", 3, true),
            ("./a/b", 2, false),
            ("/etc/passwd", 2, true),
            ("..", 2, true),
            ("x", 1, true),
        ] {
            assert_eq!(leads_out(Path::new(target), depth), out, "{target} at {depth}");
        }
    }
}
