//! Files into an archive.

use std::ffi::{OsStr, OsString};
use std::fs::{self, File, Metadata};
use std::io::{self, BufWriter, Read, Write};
use std::os::fd::{AsRawFd as _, OwnedFd};
use std::os::unix::fs::{FileTypeExt as _, MetadataExt as _};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{AtFlags, OFlag, readlinkat};
use nix::sys::stat::{SFlag, fstatat};
use tar::{Builder, EntryType, Header};

use super::{Copied, CopyError, Place, at, open_in};
use crate::limits::COPY_DEPTH;

/// As much as a pipe holds.
const BLOCK: usize = 64 * 1024;

/// Writes what is at a path as an archive, under its last name; a link at that place is followed, further ones are copied as links.
///
/// # Errors
/// [`CopyError`]; what was written until then is no whole archive.
pub fn pack(place: Place, path: &Path, out: impl Write) -> Result<Copied, CopyError> {
    // Looked at before it is opened to be read: opening a device can do something.
    let looked = File::from(place.open(path, OFlag::O_PATH).map_err(at(path))?);
    suitable(path, &looked.metadata().map_err(at(path))?)?;
    let top = File::from(place.open(path, OFlag::O_RDONLY).map_err(at(path))?);
    let meta = top.metadata().map_err(at(path))?;
    suitable(path, &meta)?;
    let name = path.file_name().unwrap_or(OsStr::new("root"));
    let mut packer = Packer {
        archive: Builder::new(BufWriter::with_capacity(BLOCK, out)),
        copied: Copied::default(),
    };
    packer.item(top, &meta, Path::new(name), 0)?;
    packer
        .archive
        .into_inner()
        .and_then(|mut out| out.flush())
        .map_err(CopyError::Archive)?;
    Ok(packer.copied)
}

fn suitable(path: &Path, meta: &Metadata) -> Result<(), CopyError> {
    let kind = meta.file_type();
    let what = if kind.is_file() || kind.is_dir() {
        return Ok(());
    } else if kind.is_fifo() {
        "a pipe"
    } else if kind.is_socket() {
        "a socket"
    } else {
        "a device"
    };
    Err(CopyError::Unsuitable {
        path: path.to_owned(),
        what,
    })
}

struct Packer<W: Write> {
    archive: Builder<W>,
    copied: Copied,
}

impl<W: Write> Packer<W> {
    /// A file or a directory that is open.
    fn item(&mut self, item: File, meta: &Metadata, name: &Path, depth: usize) -> Result<(), CopyError> {
        let mut header = Header::new_gnu();
        header.set_mode(meta.mode() & 0o777);
        header.set_mtime(u64::try_from(meta.mtime()).unwrap_or(0));
        if meta.is_dir() {
            header.set_entry_type(EntryType::Directory);
            header.set_size(0);
            self.copied.count(0)?;
            self.archive
                .append_data(&mut header, name, io::empty())
                .map_err(CopyError::Archive)?;
            return self.inside(item, name, depth);
        }
        header.set_entry_type(EntryType::Regular);
        // What is there now: were it to grow for ever, the copy would never end.
        header.set_size(meta.len());
        self.copied.count(meta.len())?;
        let mut exactly = Exactly {
            file: item,
            left: meta.len(),
        };
        let written = self.archive.append_data(&mut header, name, &mut exactly);
        match written {
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => Err(CopyError::Changed(name.to_owned())),
            other => other.map_err(CopyError::Archive),
        }
    }

    fn inside(&mut self, directory: File, name: &Path, depth: usize) -> Result<(), CopyError> {
        if depth >= COPY_DEPTH {
            self.copied.leave_out(name, "directories are too deep here");
            return Ok(());
        }
        let directory = OwnedFd::from(directory);
        // The kernel's own link to what is open here: nobody else can put anything in its place.
        let opened = PathBuf::from(format!("/proc/self/fd/{}", directory.as_raw_fd()));
        let listed = fs::read_dir(opened).and_then(|entries| {
            let names = entries.map(|entry| entry.map(|entry| entry.file_name()));
            names.collect::<io::Result<Vec<OsString>>>()
        });
        let mut names = listed.map_err(at(name))?;
        names.sort();
        for below in names {
            self.entry(&directory, Path::new(&below), &name.join(&below), depth)?;
        }
        Ok(())
    }

    fn entry(&mut self, directory: &OwnedFd, below: &Path, name: &Path, depth: usize) -> Result<(), CopyError> {
        let stat = match fstatat(directory, below, AtFlags::AT_SYMLINK_NOFOLLOW) {
            // It was there a moment ago.
            Err(Errno::ENOENT) => return Ok(()),
            stat => stat.map_err(|error| at(name)(error.into()))?,
        };
        match SFlag::from_bits_truncate(stat.st_mode) & SFlag::S_IFMT {
            SFlag::S_IFLNK => {
                let target = readlinkat(directory, below).map_err(|error| at(name)(error.into()))?;
                let mut header = Header::new_gnu();
                header.set_entry_type(EntryType::Symlink);
                header.set_mode(0o777);
                header.set_size(0);
                header.set_mtime(u64::try_from(stat.st_mtime).unwrap_or(0));
                self.copied.count(0)?;
                self.archive
                    .append_link(&mut header, name, target)
                    .map_err(CopyError::Archive)
            }
            SFlag::S_IFREG | SFlag::S_IFDIR => {
                let item = File::from(open_in(directory, below, OFlag::O_RDONLY, 0).map_err(at(name))?);
                let meta = item.metadata().map_err(at(name))?;
                match suitable(name, &meta) {
                    Ok(()) => self.item(item, &meta, name, depth + 1),
                    Err(_) => Ok(()),
                }
            }
            _ => {
                self.copied.leave_out(name, "it is no file, directory or symbolic link");
                Ok(())
            }
        }
    }
}

/// So many bytes of a file: fewer are an error, more are left.
struct Exactly {
    file: File,
    left: u64,
}

impl Read for Exactly {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let most = usize::try_from(self.left).map_or(buffer.len(), |left| left.min(buffer.len()));
        if most == 0 {
            return Ok(0);
        }
        match self.file.read(&mut buffer[..most])? {
            0 => Err(io::ErrorKind::UnexpectedEof.into()),
            read => {
                self.left -= read as u64;
                Ok(read)
            }
        }
    }
}
