//! What an agent keeps on disk besides its containers and its claim: what it knows of its cluster. Not used by simulated agents.

use std::fmt;
use std::fs::{self, File};
use std::io::{self, Write as _};
use std::path::{Path, PathBuf};

use crate::trust::Known;

/// With less free space than this nothing new is begun: a container's directory, its logs' first bytes, and room for what runs to go on.
const BYTES_LOW: u64 = 64 << 20;
/// With fewer free files than this nothing new is begun: a container has about twenty.
const FILES_LOW: u64 = 256;

const FILE: &str = "cluster";

/// The data directory; without a path nothing is kept and there is always room.
#[derive(Clone, Debug, Default)]
pub struct DataDir {
    path: Option<PathBuf>,
}

impl DataDir {
    /// A directory that is this process's own.
    pub fn at(path: impl Into<PathBuf>) -> DataDir {
        DataDir {
            path: Some(path.into()),
        }
    }

    /// Whether anything is kept.
    pub fn is_kept(&self) -> bool {
        self.path.is_some()
    }

    /// What is remembered. What cannot be read is not; that is logged, and the agent learns it anew.
    pub fn read(&self) -> Known {
        let Some(path) = self.path.as_ref().map(|path| path.join(FILE)) else {
            return Known::default();
        };
        let known = match fs::read(&path) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Known::default(),
            Err(error) => Err(error),
            Ok(bytes) => serde_json::from_slice(&bytes).map_err(io::Error::other),
        };
        known.unwrap_or_else(|error| {
            tracing::error!(path = %path.display(), %error, "what was known of the cluster cannot be read; it is learnt anew");
            Known::default()
        })
    }

    /// Remembers, durably. Blocks.
    pub fn write(&self, known: &Known) -> io::Result<()> {
        let Some(path) = &self.path else { return Ok(()) };
        let new = path.join("cluster.new");
        let mut file = File::create(&new)?;
        file.write_all(&serde_json::to_vec(known)?)?;
        file.sync_all()?;
        fs::rename(new, path.join(FILE))?;
        File::open(path)?.sync_all()
    }

    /// Why nothing new can be begun, if the disk is full.
    pub fn pressure(&self) -> Option<String> {
        self.path.as_deref().and_then(pressure)
    }
}

/// What is free on the disk of a directory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Room {
    /// For others than root.
    pub bytes: u64,
    /// Of the whole, in hundredths.
    pub percent: u64,
    /// How many files more there can be, where their number is fixed.
    pub files: Option<u64>,
}

impl Room {
    /// That of a directory, or of the nearest that is there and in which it would be made.
    ///
    /// # Errors
    /// The kernel does not say.
    pub fn of(path: &Path) -> io::Result<Room> {
        let there = path.ancestors().find(|path| path.exists()).unwrap_or(Path::new("."));
        let disk = nix::sys::statvfs::statvfs(there)?;
        Ok(Room {
            bytes: disk.blocks_available().saturating_mul(disk.fragment_size()),
            percent: disk.blocks_available().saturating_mul(100) / disk.blocks().max(1),
            files: (disk.files() > 0).then(|| disk.files_available()),
        })
    }

    /// Whether there is so little that nothing new is begun.
    pub fn is_low(&self) -> bool {
        self.bytes < BYTES_LOW || self.files.is_some_and(|files| files < FILES_LOW)
    }
}

impl fmt::Display for Room {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} MiB", self.bytes >> 20)?;
        self.files.map_or(Ok(()), |files| write!(f, " and {files} files"))
    }
}

fn pressure(path: &Path) -> Option<String> {
    // Not being told is no reason to refuse.
    let room = Room::of(path).ok().filter(Room::is_low)?;
    Some(format!(
        "the disk of {} is full: {room} are free; make room there, then tasks are started again",
        path.display()
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_known_outlives_the_process() {
        let temp = tempfile::tempdir().expect("a directory");
        let data = DataDir::at(temp.path());
        assert_eq!(data.read(), Known::default());
        let known = Known {
            cluster: "c1".to_owned(),
            highest: 7,
            quarantine: Some("t".to_owned()),
        };
        data.write(&known).expect("written");
        assert_eq!(DataDir::at(temp.path()).read(), known);
        fs::write(temp.path().join(FILE), "{").expect("written");
        assert_eq!(data.read(), Known::default(), "a damaged file does not stop the agent");
        assert_eq!(DataDir::default().read(), Known::default());
    }

    #[test]
    fn an_ordinary_disk_has_room() {
        let temp = tempfile::tempdir().expect("a directory");
        assert_eq!(DataDir::at(temp.path()).pressure(), None);
        assert_eq!(DataDir::default().pressure(), None);
    }
}
