//! The directory of a container: everything known about it, on disk, so that neither the agent nor the shim has to stay alive for it.
//!
//! | file | written by | holds |
//! |---|---|---|
//! | `spec` | agent, first | the [`ContainerSpec`], labels included, and the digest of the image as one more |
//! | `plan` | agent | what the shim has to do ([`Plan`]) |
//! | `bundle/config.json` | agent | the OCI spec, when isolated |
//! | `lock` | shim | locked while the shim lives |
//! | `control` | shim | its socket |
//! | `start` | shim | the socket through which the first process is told to run the command; gone when it was |
//! | `shim.log` | shim | what went wrong with it |
//! | `status` | shim | the first process, and since when the command runs ([`Status`]) |
//! | `log`, `log.1` | shim | see [`super::logs`] |
//! | `init/` | agent, shim | in a container of containerd: its first process, and the socket that this calls the shim by |
//! | `elsewhere` | agent | there while containerd has something that belongs to the container |
//! | `making` | agent | locked while it has containerd make the container |
//! | `exit` | shim, or the agent when the shim was lost | the [`Exit`]; there when everything has ended |
//! | `sandbox/`, `tmp/`, `upper/`, `work/` | the container | its files |
//!
//! Files appear whole: they are written under another name and renamed. The lock is a POSIX record lock: the kernel drops it with the
//! process whatever way that ends, children do not inherit it, and it does not survive a restart of the machine; so "locked" means
//! "its shim lives", without pid files that could name somebody else.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::fd::AsFd as _;
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use nix::fcntl::{FcntlArg, fcntl};
use nix::libc;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Serialize};

use super::shim::Watched;
use crate::{ContainerSpec, Exit, LABEL_IMAGE, Labels};

/// An empty directory next to those of all containers: where each, in a mount namespace of its own, puts its root directory together.
pub(super) const ROOT: &str = "root";
/// The directory with the first process of a container of containerd.
pub(super) const INIT: &str = "init";
/// The socket in it.
pub(super) const INIT_SOCKET: &str = "shim";
/// There while containerd has something that belongs to the container.
pub(super) const ELSEWHERE: &str = "elsewhere";

/// What a shim has to do.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) struct Plan {
    /// How the command is held.
    pub(super) isolation: Held,
    /// See [`crate::Limits::log_bytes`].
    pub(super) log_bytes: u64,
    /// See [`crate::Limits::fence`].
    #[serde(default)]
    pub(super) watched: Option<Watched>,
}

/// How a command is held.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub(super) enum Held {
    /// In namespaces and a cgroup, from the bundle.
    Isolated {
        /// Absolute in every hierarchy.
        cgroup: String,
        /// Where the command starts, inside.
        cwd: PathBuf,
        /// Symbolic links to make in the root directory: name and target.
        links: Vec<(PathBuf, PathBuf)>,
        /// The read-only directory to put below the root; without one, the root holds mount points and links only.
        image: Option<PathBuf>,
        /// Whether the container has a file of variables.
        #[serde(default)]
        variables: bool,
    },
    /// By containerd, in a container that is told what to run by its first process.
    Contained {
        /// Absolute in every hierarchy.
        cgroup: String,
        /// The first word of the command, for messages.
        command: String,
        /// Where the command starts, inside.
        cwd: PathBuf,
    },
    /// As a plain process.
    Plain {
        /// The command.
        argv: Vec<String>,
        /// `NAME=value`.
        env: Vec<String>,
        /// Where it starts.
        cwd: PathBuf,
        /// A file of more variables.
        #[serde(default)]
        variables: Option<PathBuf>,
        /// User and group, when not the agent's.
        user: Option<(u32, u32)>,
    },
}

/// How far a living shim is.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct Status {
    /// The first process, or the shim itself while there is none.
    pub(super) pid: u32,
    /// Since when the command runs; written before it is run, so that it is never run twice.
    pub(super) started_ms: Option<i64>,
}

/// The directory of one container.
#[derive(Clone, Debug)]
pub(super) struct Directory(PathBuf);

/// A lock that is held until it is dropped.
#[derive(Debug)]
pub(super) struct Locked(#[expect(dead_code, reason = "closing the file is what unlocks")] File);

impl Directory {
    pub(super) fn at(path: PathBuf) -> Directory {
        Directory(path)
    }

    pub(super) fn path(&self) -> &Path {
        &self.0
    }

    pub(super) fn join(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }

    /// Makes it. Other users cannot list it; they can pass, because a plain command of another user has its sandbox below. Files in it are
    /// closed to them.
    pub(super) fn make(&self) -> io::Result<()> {
        fs::DirBuilder::new().recursive(true).mode(0o711).create(&self.0)
    }

    /// Makes a directory in it, open to these permissions whatever the umask.
    pub(super) fn make_inner(&self, name: &str, mode: u32) -> io::Result<PathBuf> {
        let path = self.join(name);
        fs::create_dir_all(&path)?;
        fs::set_permissions(&path, fs::Permissions::from_mode(mode))?;
        Ok(path)
    }

    /// What was asked for.
    pub(super) fn spec(&self) -> io::Result<Option<ContainerSpec>> {
        let described: Option<ContainerSpec> = self.read("spec")?;
        Ok(described.map(|mut spec| {
            spec.labels.remove(LABEL_IMAGE);
            spec
        }))
    }

    /// The labels that were asked for, and those that came of it.
    pub(super) fn labels(&self) -> io::Result<Option<Labels>> {
        let described: Option<ContainerSpec> = self.read("spec")?;
        Ok(described.map(|spec| spec.labels.into_iter().collect()))
    }

    /// Writes down what was asked for, and the digest of its image.
    pub(super) fn describe(&self, asked: &ContainerSpec, digest: Option<String>) -> io::Result<()> {
        let mut described = asked.clone();
        described
            .labels
            .extend(digest.map(|digest| (LABEL_IMAGE.to_owned(), digest)));
        self.write("spec", &described)
    }

    pub(super) fn plan(&self) -> io::Result<Option<Plan>> {
        self.read("plan")
    }

    pub(super) fn status(&self) -> io::Result<Option<Status>> {
        self.read("status")
    }

    pub(super) fn exit(&self) -> io::Result<Option<Exit>> {
        self.read("exit")
    }

    /// Which file holds the exit: its number, and when it was made. A file is never written twice, so equal ones hold equal exits.
    pub(super) fn exit_file(&self) -> io::Result<(u64, i64, i64)> {
        let meta = fs::metadata(self.join("exit"))?;
        Ok((meta.ino(), meta.ctime(), meta.ctime_nsec()))
    }

    /// Writes a file whole. An exit is the one thing that a crash of the machine may not take back once it was seen, so it is synced; the
    /// others are only needed while the machine runs.
    pub(super) fn write(&self, name: &str, value: &impl Serialize) -> io::Result<()> {
        let (new, path) = (self.join(&format!("{name}.new")), self.join(name));
        let mut file = OpenOptions::new()
            .create(true)
            .write(true)
            .truncate(true)
            .mode(0o600)
            .open(&new)?;
        file.write_all(&serde_json::to_vec(value).map_err(io::Error::other)?)?;
        if name == "exit" {
            file.sync_all()?;
        }
        fs::rename(new, path)?;
        if name == "exit" {
            File::open(&self.0)?.sync_all()?;
        }
        Ok(())
    }

    fn read<T: DeserializeOwned>(&self, name: &str) -> io::Result<Option<T>> {
        match fs::read(self.join(name)) {
            Ok(bytes) => {
                let value = serde_json::from_slice(&bytes);
                value
                    .map(Some)
                    .map_err(|error| io::Error::other(format!("{}: {error}", self.join(name).display())))
            }
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// Locks it for a shim, unless it is locked. The lock is that of the directory that has this path now: one that was moved away in between
    /// is not locked.
    pub(super) fn lock(&self) -> io::Result<Option<Locked>> {
        let file = self.lock_file()?;
        if !locked(fcntl(file.as_fd(), FcntlArg::F_SETLK(&whole_file())))? {
            return Ok(None);
        }
        let (ours, there) = (file.metadata()?, fs::metadata(self.join("lock")));
        let same = there.is_ok_and(|there| (there.dev(), there.ino()) == (ours.dev(), ours.ino()));
        Ok(same.then_some(Locked(file)))
    }

    /// Locks it against shims, unless one lives: what an agent does before it moves a directory away. This lock is the open file's, not the
    /// process's, which would lose it whenever another thread looks at [`Directory::shim`].
    pub(super) fn lock_out_shims(&self) -> io::Result<Option<Locked>> {
        let file = self.lock_file()?;
        Ok(locked(fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file())))?.then_some(Locked(file)))
    }

    /// Locks it for whoever has it made elsewhere, or takes away what was left half made; `None`: somebody is at it.
    pub(super) fn lock_making(&self) -> io::Result<Option<Locked>> {
        let file = self.file_to_lock("making")?;
        Ok(locked(fcntl(file.as_fd(), FcntlArg::F_OFD_SETLK(&whole_file())))?.then_some(Locked(file)))
    }

    fn lock_file(&self) -> io::Result<File> {
        self.file_to_lock("lock")
    }

    fn file_to_lock(&self, name: &str) -> io::Result<File> {
        OpenOptions::new()
            .create(true)
            .truncate(false)
            .write(true)
            .mode(0o600)
            .open(self.join(name))
    }

    /// The shim that holds the lock.
    pub(super) fn shim(&self) -> io::Result<Option<u32>> {
        let file = match OpenOptions::new().write(true).open(self.join("lock")) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(None),
            file => file?,
        };
        let mut lock = whole_file();
        fcntl(file.as_fd(), FcntlArg::F_GETLK(&mut lock))?;
        Ok((i32::from(lock.l_type) != libc::F_UNLCK).then(|| u32::try_from(lock.l_pid).unwrap_or(0)))
    }
}

fn locked(result: nix::Result<i32>) -> io::Result<bool> {
    match result {
        Ok(_) => Ok(true),
        Err(nix::Error::EAGAIN | nix::Error::EACCES) => Ok(false),
        Err(error) => Err(error.into()),
    }
}

fn whole_file() -> libc::flock {
    libc::flock {
        l_type: libc::F_WRLCK as libc::c_short,
        l_whence: libc::SEEK_SET as libc::c_short,
        l_start: 0,
        l_len: 0,
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn files_that_do_not_exist_are_nothing_and_broken_ones_are_errors() {
        let temp = tempfile::tempdir().expect("a directory");
        let directory = Directory::at(temp.path().to_owned());
        assert_eq!(directory.exit().expect("read"), None);
        let exit = Exit::never_ran(5, "why");
        directory.write("exit", &exit).expect("written");
        assert_eq!(directory.exit().expect("read"), Some(exit));
        fs::write(directory.join("exit"), "{").expect("written");
        assert!(directory.exit().is_err());
    }

    #[test]
    fn agent_and_agent_lock_each_other_out() {
        let temp = tempfile::tempdir().expect("a directory");
        let directory = Directory::at(temp.path().to_owned());
        let held = directory.lock_out_shims().expect("asked").expect("free");
        assert!(directory.lock_out_shims().expect("asked").is_none());
        assert!(directory.lock().expect("asked").is_none(), "nor can a shim begin");
        assert!(directory.shim().expect("asked").is_some());
        drop(held);
        assert!(directory.lock_out_shims().expect("asked").is_some());
    }

    #[test]
    fn directory_without_a_lock_has_no_shim() {
        let temp = tempfile::tempdir().expect("a directory");
        let directory = Directory::at(temp.path().to_owned());
        assert_eq!(directory.shim().expect("asked"), None);
        fs::write(directory.join("lock"), "").expect("written");
        assert_eq!(directory.shim().expect("asked"), None);
    }
}
