//! Files from one place to another, as a tar archive in between: out of containers and into them, by both ends.
//!
//! One end packs, the other unpacks; either is the user's machine or a process that has entered a container (with the rights of its command, see
//! [`crate::exec`]). Neither trusts the other. It promises: nothing is ever written outside of the place that was named, whatever the archive says
//! and whatever links are there already; a file appears under its name when it is whole, so what breaks off leaves no half file
//! under it; modes (without set-user-id and the like) and times are kept. Only files, directories and symbolic links are copied.
//!
//! Names go through the kernel with the rule to be kept: below the place, over no link ([`nix::fcntl::openat2`]). In a container the path that
//! was named is resolved with its root as the root, and never through `/proc`'s magic links. What must never happen here: a name
//! of an archive, or of a directory that somebody else can write, used in any other way.

mod pack;
mod unpack;

use std::fs::File;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};

use nix::fcntl::{OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::Mode;

use crate::exec::Ended;
use crate::limits::{COPY_BYTES, COPY_FILES};

pub use pack::pack;
pub use unpack::unpack;

/// Why a copy broke off.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// The machine refused.
    #[error("{}: {source}", path.display())]
    Io {
        /// What.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// It is no file, directory or link.
    #[error("{} is {what}; only files, directories and symbolic links can be copied", path.display())]
    Unsuitable {
        /// What.
        path: PathBuf,
        /// What it is.
        what: &'static str,
    },
    /// It became shorter on the way.
    #[error("{} has become shorter while it was read; try again when nobody writes to it", .0.display())]
    Changed(PathBuf),
    /// The archive has a name that no honest one has.
    #[error("the archive has the name {0:?}, which leads out of the place that it is for; nothing of it was written")]
    Name(String),
    /// The archive breaks off or is none.
    #[error("the archive broke off or is damaged: {0}")]
    Archive(#[source] io::Error),
    /// The archive is empty.
    #[error("nothing came")]
    Nothing,
    /// It is more than may be.
    #[error("too much for one copy: at most {COPY_BYTES} bytes and {COPY_FILES} files")]
    TooMuch,
}

/// What was copied.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Copied {
    /// Files, directories and links.
    pub files: usize,
    /// Of the files.
    pub bytes: u64,
    /// What was left out, with the reason; at most [`NOTES`] of them.
    pub left_out: Vec<String>,
}

/// How many things that were left out are told.
pub const NOTES: usize = 20;

impl Copied {
    fn count(&mut self, bytes: u64) -> Result<(), CopyError> {
        self.files += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        if self.files > COPY_FILES || self.bytes > COPY_BYTES {
            return Err(CopyError::TooMuch);
        }
        Ok(())
    }

    fn leave_out(&mut self, path: &Path, why: &str) {
        if self.left_out.len() < NOTES {
            self.left_out.push(format!("{} is left out: {why}", path.display()));
        }
    }
}

/// How the path that was named is found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// By the user of this machine, who may name what he likes.
    Here,
    /// In the container that this process has entered: below its root, and not through what `/proc` shows of processes.
    Container,
}

impl Place {
    fn open(self, path: &Path, flags: OFlag) -> io::Result<OwnedFd> {
        let how = OpenHow::new().flags(never_waiting(flags));
        let how = match self {
            Place::Here => how,
            Place::Container => how.resolve(ResolveFlag::RESOLVE_NO_MAGICLINKS),
        };
        Ok(openat2(nix::fcntl::AT_FDCWD, path, how)?)
    }

    /// Whether links that lead out of the copy may be made: to whoever made the archive its container is everything.
    fn takes_every_link(self) -> bool {
        self == Place::Container
    }
}

/// The kernel refuses these for what is only looked at.
fn never_waiting(flags: OFlag) -> OFlag {
    let flags = flags | OFlag::O_CLOEXEC;
    if flags.contains(OFlag::O_PATH) {
        flags
    } else {
        flags | OFlag::O_NOCTTY | OFlag::O_NONBLOCK
    }
}

/// Opens something in a directory that is open: one name, and not over a link.
fn open_in(directory: impl AsFd, name: &Path, flags: OFlag, mode: u32) -> io::Result<OwnedFd> {
    let how = OpenHow::new()
        .flags(never_waiting(flags) | OFlag::O_NOFOLLOW)
        .mode(Mode::from_bits_truncate(mode))
        .resolve(ResolveFlag::RESOLVE_BENEATH | ResolveFlag::RESOLVE_NO_SYMLINKS);
    Ok(openat2(directory, name, how)?)
}

fn at(path: &Path) -> impl FnOnce(io::Error) -> CopyError + use<> {
    let path = path.to_owned();
    move |source| CopyError::Io { path, source }
}

/// Packs to standard output; for a process that has entered a container.
pub(crate) fn pack_to_end(path: &Path) -> Ended {
    let stdout = io::stdout().as_fd().try_clone_to_owned();
    ended(
        stdout
            .map_err(at(path))
            .and_then(|out| pack(Place::Container, path, File::from(out))),
    )
}

/// Unpacks from standard input; for a process that has entered a container.
pub(crate) fn unpack_to_end(path: &Path) -> Ended {
    let stdin = io::stdin().as_fd().try_clone_to_owned();
    ended(
        stdin
            .map_err(at(path))
            .and_then(|archive| unpack(Place::Container, path, File::from(archive))),
    )
}

fn ended(copied: Result<Copied, CopyError>) -> Ended {
    match copied {
        Ok(copied) => {
            for note in &copied.left_out {
                eprintln!("{note}");
            }
            Ended::with(0)
        }
        Err(error) => Ended::because(1, error.to_string()),
    }
}

#[cfg(test)]
mod tests;
