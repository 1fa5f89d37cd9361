//! Where an image comes from: a directory, or an archive of one, read in place.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek as _, SeekFrom};
use std::path::{Component, Path, PathBuf};

use sha2::{Digest as _, Sha256};

use super::packed::{Packed, unpacked};
use super::{ImageError, failed, invalid};
use crate::limits::{IMAGE_BYTES, IMAGE_DOCUMENT_BYTES, IMAGE_FILES};

/// Files by their names.
pub(super) enum Source {
    Directory(PathBuf),
    /// Where each file's bytes are: offset and length.
    Archive(File, BTreeMap<String, (u64, u64)>),
}

impl Source {
    /// Opens a directory or an archive. A compressed archive is unpacked to `scratch` first, so that it can be read in any order.
    pub(super) fn open(path: &Path, scratch: &Path) -> Result<Source, ImageError> {
        let failed = |error| failed(format!("reading {}", path.display()))(error);
        if path.is_dir() {
            return Ok(Source::Directory(path.to_owned()));
        }
        let mut file = File::open(path).map_err(failed)?;
        let (packed, _) = Packed::look(&mut file).map_err(failed)?;
        file.rewind().map_err(failed)?;
        if packed != Packed::No {
            let whole = scratch.join("archive");
            let mut plain = File::options()
                .read(true)
                .write(true)
                .create_new(true)
                .open(&whole)
                .map_err(failed)?;
            let mut reader = unpacked(file).map_err(failed)?.take(IMAGE_BYTES + 1);
            let copied = io::copy(&mut reader, &mut plain).map_err(failed)?;
            if copied > IMAGE_BYTES {
                return Err(too_large());
            }
            file = plain;
            file.rewind().map_err(failed)?;
        }
        let index = index(&file).map_err(|error| {
            let why = format!("{} is neither a directory nor a tar archive: {error}", path.display());
            invalid(format!(
                "{why}. Give an OCI layout, or what `docker save` or `skopeo copy … oci-archive:` writes"
            ))
        })?;
        Ok(Source::Archive(file, index))
    }

    /// The bytes of a file; `None`: there is none of that name.
    pub(super) fn read(&self, name: &str) -> Result<Option<Box<dyn Read + '_>>, ImageError> {
        let failed = |error| failed(format!("reading {name}"))(error);
        match self {
            Source::Directory(root) => {
                let plain = Path::new(name)
                    .components()
                    .all(|part| matches!(part, Component::Normal(_)));
                match plain.then(|| File::open(root.join(name))) {
                    None => Ok(None),
                    Some(Err(error)) if error.kind() == io::ErrorKind::NotFound => Ok(None),
                    Some(file) => Ok(Some(Box::new(file.map_err(failed)?))),
                }
            }
            Source::Archive(file, index) => {
                let Some((offset, length)) = index.get(name) else {
                    return Ok(None);
                };
                let mut file = file;
                file.seek(SeekFrom::Start(*offset)).map_err(failed)?;
                Ok(Some(Box::new(file.take(*length))))
            }
        }
    }

    /// A whole small file.
    pub(super) fn document(&self, name: &str) -> Result<Option<Vec<u8>>, ImageError> {
        let Some(reader) = self.read(name)? else {
            return Ok(None);
        };
        let mut bytes = Vec::new();
        let mut reader = reader.take(IMAGE_DOCUMENT_BYTES + 1);
        reader
            .read_to_end(&mut bytes)
            .map_err(failed(format!("reading {name}")))?;
        if bytes.len() as u64 > IMAGE_DOCUMENT_BYTES {
            return Err(invalid(format!("{name} is larger than {IMAGE_DOCUMENT_BYTES} bytes")));
        }
        Ok(Some(bytes))
    }
}

fn index(file: &File) -> io::Result<BTreeMap<String, (u64, u64)>> {
    let mut index = BTreeMap::new();
    let mut archive = tar::Archive::new(file);
    for entry in archive.entries_with_seek()? {
        let entry = entry?;
        if !entry.header().entry_type().is_file() {
            continue;
        }
        let name = entry.path()?.to_string_lossy().trim_start_matches("./").to_owned();
        index.insert(name, (entry.raw_file_position(), entry.size()));
        if index.len() > IMAGE_FILES {
            return Err(io::Error::other("it has too many files"));
        }
    }
    Ok(index)
}

pub(super) fn too_large() -> ImageError {
    invalid(format!("the image is larger than {} GiB", IMAGE_BYTES >> 30))
}

/// Passes bytes on and remembers their digest.
pub(super) struct Digested<R> {
    inner: R,
    hash: Sha256,
}

impl<R: Read> Digested<R> {
    pub(super) fn new(inner: R) -> Digested<R> {
        Digested {
            inner,
            hash: Sha256::new(),
        }
    }

    /// The digest of what was read.
    pub(super) fn digest(self) -> String {
        digest_text(self.hash)
    }

    /// Reads the rest, and says whether all of it had this digest.
    pub(super) fn verify(mut self, digest: &str, what: &str) -> Result<(), ImageError> {
        io::copy(&mut self, &mut io::sink()).map_err(failed(format!("reading {what}")))?;
        let found = digest_text(self.hash);
        if found == digest {
            return Ok(());
        }
        Err(invalid(format!(
            "{what} is damaged: its digest is {found} and should be {digest}"
        )))
    }
}

impl<R: Read> Read for Digested<R> {
    fn read(&mut self, block: &mut [u8]) -> io::Result<usize> {
        let read = self.inner.read(block)?;
        self.hash.update(&block[..read]);
        Ok(read)
    }
}

pub(crate) fn digest(bytes: &[u8]) -> String {
    digest_text(Sha256::new_with_prefix(bytes))
}

pub(crate) fn digest_text(hash: Sha256) -> String {
    let hex: String = hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect();
    format!("sha256:{hex}")
}
