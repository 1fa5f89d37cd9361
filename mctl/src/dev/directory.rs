//! Where a cluster on this machine keeps what it knows.

use std::env;
use std::fs::{File, OpenOptions};
use std::io::{Read as _, Seek as _, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use muster_apiserver::files;
use nix::errno::Errno;
use nix::fcntl::{Flock, FlockArg};

use crate::failure::{Failure, Outcome};

/// A data directory, which is this process's own as long as this lives.
#[derive(Debug)]
pub(crate) struct Directory {
    path: PathBuf,
    _lock: Flock<File>,
}

/// The directory of a name below the user's data directory.
pub(crate) fn default(name: &str) -> Outcome<PathBuf> {
    let set = |name: &str| env::var_os(name).filter(|value| !value.is_empty()).map(PathBuf::from);
    let base = set("XDG_DATA_HOME").or_else(|| set("HOME").map(|home| home.join(".local/share")));
    base.map(|base| base.join(name)).ok_or_else(|| {
        Failure::new("neither HOME nor XDG_DATA_HOME is set; say where to keep the data with --data-dir")
    })
}

impl Directory {
    /// Makes the directory if need be and takes it.
    pub(crate) fn take(path: &Path) -> Outcome<Directory> {
        let failed = |error: std::io::Error| Failure::new(format!("{}: {error}", path.display()));
        files::private_directory(path).map_err(failed)?;
        let path = path.canonicalize().map_err(failed)?;
        let file = path.join("lock");
        let mut options = OpenOptions::new();
        let options = options.read(true).write(true).create(true).truncate(false).mode(0o600);
        let open = options.open(&file).map_err(failed)?;
        let mut lock = Flock::lock(open, FlockArg::LockExclusiveNonblock).map_err(|(mut held, errno)| match errno {
            Errno::EWOULDBLOCK => {
                let mut holder = String::new();
                // Without the number the sentence is still true.
                let _ = held.read_to_string(&mut holder);
                let holder = holder
                    .trim()
                    .parse::<u32>()
                    .map(|pid| format!(" (process {pid})"))
                    .unwrap_or_default();
                Failure::new(format!(
                    "another cluster{holder} uses {}; stop it first, or choose another directory with --data-dir",
                    path.display()
                ))
            }
            errno => Failure::new(format!("{}: {errno}", file.display())),
        })?;
        let written = lock
            .set_len(0)
            .and_then(|()| lock.rewind())
            .and_then(|()| lock.write_all(format!("{}\n", std::process::id()).as_bytes()));
        written.map_err(|error| Failure::new(format!("{}: {error}", file.display())))?;
        Ok(Directory { path, _lock: lock })
    }

    /// The directory.
    pub(crate) fn path(&self) -> &Path {
        &self.path
    }

    /// Something in it.
    pub(crate) fn join(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_directory_is_taken_by_one_cluster_at_a_time() {
        let directory = tempfile::tempdir().expect("directory");
        let path = directory.path().join("deep/data");
        let first = Directory::take(&path).expect("free");
        let failure = Directory::take(&path).expect_err("taken").to_string();
        assert!(
            failure.contains(&format!("(process {})", std::process::id())),
            "{failure}"
        );
        drop(first);
        Directory::take(&path).expect("free again");
    }
}
