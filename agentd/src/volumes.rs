//! The directories of tasks on this machine: where they are, and how they are made and taken away.
//!
//! | below | holds | goes |
//! |---|---|---|
//! | memory: `UID/ATTEMPT/` | files out of Secrets and ConfigMaps, and variables that must not be written down | with the task, or when its container could not be made |
//! | data directory: `volumes/UID/` | empty directories | with the task |
//! | data directory: `shared/NAMESPACE/` | directories that tasks share | never |
//!
//! It promises: what is secret is on a file system in memory ([`Places::memory`]) or nowhere; files appear whole, in their directory, before
//! the container does, and do not change; nobody but root and the task comes to them. What must never happen here: a path out of a task's
//! words that is not one of these or below what the agent was told to allow.
//!
//! Tested by making and removing them, and with containers by the tests of whole agents.

use std::collections::BTreeSet;
use std::fmt;
use std::fs::{self, DirBuilder, OpenOptions, Permissions};
use std::io::{self, Write as _};
use std::os::unix::fs::{
    DirBuilderExt as _, FileTypeExt as _, MetadataExt as _, OpenOptionsExt as _, PermissionsExt as _, chown,
};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use clap::Args;
use muster_api::v1::HostPathType;
use muster_runtime::{ContainerId, Error, User};
use nix::sys::statfs::{TMPFS_MAGIC, statfs};
use nix::unistd::geteuid;
use sha2::{Digest as _, Sha256};

/// The file of variables, in a directory of its own.
pub const VARIABLES: &str = "variables";

/// What whoever starts an agent says about the machine's own directories.
#[derive(Clone, Debug, Default, Args)]
pub struct VolumeArgs {
    /// Directories of the machine that tasks may see parts of (`hostPath` volumes). Default: none.
    #[arg(long = "allow-host-path", value_name = "DIRECTORY", value_delimiter = ',')]
    pub allow_host_paths: Vec<PathBuf>,
}

/// Where the directories of tasks are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Places {
    /// On a file system in memory; `None`: there is none here, or tasks are only simulated.
    pub memory: Option<PathBuf>,
    /// On disk; `None`: nothing is kept.
    pub disk: Option<PathBuf>,
    /// What of the machine tasks may see; real paths.
    pub allowed: Vec<PathBuf>,
}

/// Bytes that may be secret; their text never shows in a log.
#[derive(Clone, PartialEq, Eq)]
pub struct Content(Arc<[u8]>);

impl Content {
    /// The bytes.
    pub fn bytes(&self) -> &[u8] {
        &self.0
    }
}

impl From<Vec<u8>> for Content {
    fn from(bytes: Vec<u8>) -> Content {
        Content(bytes.into())
    }
}

impl fmt::Debug for Content {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{} bytes", self.0.len())
    }
}

/// A file to be made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct NewFile {
    /// Below its directory; no part of it is `..`.
    pub path: PathBuf,
    /// Its permissions.
    pub mode: u32,
    /// What is in it.
    pub content: Content,
}

/// What has to be there before a container is made.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Make {
    /// A directory in memory with exactly these files.
    Files {
        /// Where.
        at: PathBuf,
        /// What is in it.
        files: Vec<NewFile>,
        /// Whose they are; `None`: root's.
        owner: Option<User>,
    },
    /// A directory that everybody who sees it may write to.
    Directory(PathBuf),
    /// Something of the machine, which is only looked at.
    Host {
        /// Where.
        at: PathBuf,
        /// What it has to be.
        kind: HostPathType,
    },
}

impl VolumeArgs {
    /// The places of an agent with this data directory.
    ///
    /// # Errors
    /// A directory that is to be allowed is none.
    pub fn places(&self, data_dir: &Path) -> io::Result<Places> {
        let real = |path: &PathBuf| {
            let named = |error: io::Error| io::Error::new(error.kind(), format!("{}: {error}", path.display()));
            let real = path.canonicalize().map_err(named)?;
            if real.is_dir() {
                Ok(real)
            } else {
                Err(named(io::ErrorKind::NotADirectory.into()))
            }
        };
        let disk = std::path::absolute(data_dir)?;
        Ok(Places {
            memory: memory_for(&disk),
            allowed: self.allow_host_paths.iter().map(real).collect::<io::Result<_>>()?,
            disk: Some(disk),
        })
    }
}

/// Where the agent of a data directory may keep secrets: the first of the usual places that is in memory.
fn memory_for(data_dir: &Path) -> Option<PathBuf> {
    let uid = geteuid();
    let own = if uid.is_root() {
        PathBuf::from("/run")
    } else {
        PathBuf::from(format!("/run/user/{uid}"))
    };
    let in_memory = |path: &PathBuf| statfs(path).is_ok_and(|found| found.filesystem_type() == TMPFS_MAGIC);
    let parent = [own, PathBuf::from("/dev/shm")].into_iter().find(in_memory)?;
    let name = Sha256::digest(data_dir.as_os_str().as_encoded_bytes());
    let name: String = name[..8].iter().map(|byte| format!("{byte:02x}")).collect();
    Some(parent.join(format!("muster-{uid}-{name}")))
}

impl Places {
    /// The directory of an attempt in memory.
    pub fn attempt(&self, uid: &str, attempt: u32) -> Option<PathBuf> {
        Some(self.memory.as_ref()?.join(uid).join(attempt.to_string()))
    }

    /// An empty directory of a task: that of its volume of this number.
    pub fn empty(&self, uid: &str, index: usize) -> Option<PathBuf> {
        Some(self.disk.as_ref()?.join("volumes").join(uid).join(index.to_string()))
    }

    /// A directory that the tasks of a namespace share.
    pub fn shared(&self, namespace: &str, name: &str) -> Option<PathBuf> {
        Some(self.disk.as_ref()?.join("shared").join(namespace).join(name))
    }

    /// Whether tasks may see that of the machine.
    pub fn allows(&self, path: &Path) -> bool {
        self.allowed.iter().any(|allowed| path.starts_with(allowed))
    }

    /// The uids of tasks that have something here. Blocks.
    pub fn found(&self) -> BTreeSet<String> {
        let roots = [self.memory.clone(), self.disk.as_ref().map(|disk| disk.join("volumes"))];
        let entries = roots.into_iter().flatten().filter_map(|root| fs::read_dir(root).ok());
        let names = entries.flatten().flatten().map(|entry| entry.file_name());
        names.filter_map(|name| name.into_string().ok()).collect()
    }

    /// Removes what goes with a task. Blocks.
    pub fn remove(&self, uid: &str) {
        let roots = [self.memory.clone(), self.disk.as_ref().map(|disk| disk.join("volumes"))];
        for path in roots.into_iter().flatten().map(|root| root.join(uid)) {
            remove(&path);
        }
    }

    /// Removes what was made in memory for a container that was not made after all. Blocks.
    pub fn unmake(&self, id: &ContainerId) {
        let attempt = id.as_str().rsplit_once('-');
        let attempt = attempt.and_then(|(uid, attempt)| self.attempt(uid, attempt.parse().ok()?));
        if let Some(path) = attempt {
            remove(&path);
        }
    }
}

fn remove(path: &Path) {
    match fs::remove_dir_all(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => {
            tracing::warn!(path = %path.display(), %error, "a directory of a task cannot be removed");
        }
        _ => {}
    }
}

/// Makes everything; what is there already stays as it is. Blocks.
///
/// # Errors
/// [`Error::Invalid`]: something of the machine is not what the task says. [`Error::System`]: the machine refused.
pub fn make(what: &[Make]) -> Result<(), Error> {
    what.iter().try_for_each(|one| match one {
        Make::Files { at, files, owner } => files_at(at, files, *owner).map_err(|error| system(at, &error)),
        Make::Directory(at) => directory_at(at).map_err(|error| system(at, &error)),
        Make::Host { at, kind } => host_at(at, *kind),
    })
}

fn system(at: &Path, error: &io::Error) -> Error {
    Error::System {
        context: format!("making {}", at.display()),
        message: error.to_string(),
    }
}

/// A directory that only its owner comes to, with those above it as far as they are not there.
fn closed(path: &Path) -> io::Result<()> {
    DirBuilder::new().recursive(true).mode(0o700).create(path)
}

/// Makes the files in another directory and gives it its name at last.
fn files_at(at: &Path, files: &[NewFile], owner: Option<User>) -> io::Result<()> {
    if at.exists() {
        return Ok(());
    }
    let above = at.parent().unwrap_or(at);
    closed(above)?;
    // Others may write to what is in memory on every machine: what is on the way must not be theirs to exchange.
    let own = [0, geteuid().as_raw()];
    for path in above.ancestors() {
        if !own.contains(&fs::symlink_metadata(path)?.uid()) {
            return Err(io::Error::other(format!("{} is somebody else's", path.display())));
        }
    }
    let in_memory = statfs(above).map(|found| found.filesystem_type() == TMPFS_MAGIC)?;
    if !in_memory {
        return Err(io::Error::other("it is not in memory"));
    }
    let mut new = at.as_os_str().to_owned();
    new.push(".new");
    let new = PathBuf::from(new);
    remove(&new);
    let owned = |path: &Path| match owner.filter(|_| geteuid().is_root()) {
        Some(user) => chown(path, Some(user.uid), Some(user.gid)),
        None => Ok(()),
    };
    let directory = |path: &Path| {
        DirBuilder::new().mode(0o755).create(path)?;
        fs::set_permissions(path, Permissions::from_mode(0o755))?;
        owned(path)
    };
    directory(&new)?;
    for file in files {
        let path = new.join(&file.path);
        let missing: Vec<&Path> = path.ancestors().skip(1).take_while(|path| !path.exists()).collect();
        missing.into_iter().rev().try_for_each(directory)?;
        let mut open = OpenOptions::new()
            .create_new(true)
            .write(true)
            .mode(0o600)
            .open(&path)?;
        open.write_all(file.content.bytes())?;
        open.set_permissions(Permissions::from_mode(file.mode))?;
        owned(&path)?;
    }
    fs::rename(new, at)
}

fn directory_at(at: &Path) -> io::Result<()> {
    closed(at.parent().unwrap_or(at))?;
    match fs::create_dir(at) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        made => made.and_then(|()| fs::set_permissions(at, Permissions::from_mode(0o777))),
    }
}

/// Looks at something of the machine. No part of its path may be a symbolic link: that could lead out of what is allowed.
fn host_at(at: &Path, kind: HostPathType) -> Result<(), Error> {
    let invalid = |why: String| Error::Invalid(format!("hostPath {}: {why}", at.display()));
    let there = at.ancestors().find(|path| fs::symlink_metadata(path).is_ok());
    let straight = there.is_some_and(|there| there.canonicalize().is_ok_and(|real| real == there));
    if !straight {
        return Err(invalid(
            "a part of it is a symbolic link; name what it leads to".to_owned(),
        ));
    }
    if kind == HostPathType::DirectoryOrCreate {
        fs::create_dir_all(at).map_err(|error| system(at, &error))?;
    }
    let found = fs::symlink_metadata(at).map_err(|error| invalid(error.to_string()))?;
    let kinds = found.file_type();
    let (fits, what) = match kind {
        HostPathType::Directory | HostPathType::DirectoryOrCreate => (kinds.is_dir(), "directory"),
        HostPathType::File => (kinds.is_file(), "file"),
        HostPathType::Socket => (kinds.is_socket(), "socket"),
    };
    if fits {
        Ok(())
    } else {
        Err(invalid(format!("it is no {what}")))
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::symlink;

    use super::*;

    fn file(path: &str, mode: u32, content: &str) -> NewFile {
        NewFile {
            path: path.into(),
            mode,
            content: content.as_bytes().to_vec().into(),
        }
    }

    /// Places below a directory in memory.
    fn places() -> (tempfile::TempDir, Places) {
        let temp = tempfile::tempdir_in("/dev/shm").expect("every Linux has it");
        let places = Places {
            memory: Some(temp.path().join("memory")),
            disk: Some(temp.path().join("disk")),
            allowed: Vec::new(),
        };
        (temp, places)
    }

    #[test]
    fn files_appear_whole_closed_to_others_and_do_not_change() {
        let (_temp, places) = places();
        let at = places.attempt("u1", 1).expect("in memory").join("0");
        let make_with = |content: &str| {
            let files = vec![file("a/b/key", 0o400, content), file("all", 0o644, "x")];
            let (at, owner) = (at.clone(), None);
            make(&[Make::Files { at, files, owner }])
        };
        // What a process left that died half way.
        closed(&at.with_file_name("0.new").join("a")).expect("made");
        make_with("s3cret").expect("made");
        make_with("other").expect("nothing to do");
        assert_eq!(fs::read_to_string(at.join("a/b/key")).expect("read"), "s3cret");
        let mode = |path: &Path| fs::metadata(path).expect("there").mode() & 0o777;
        assert_eq!((mode(&at.join("a/b/key")), mode(&at.join("all"))), (0o400, 0o644));
        assert_eq!((mode(&at.join("a")), mode(&at)), (0o755, 0o755));
        assert_eq!(mode(places.memory.as_deref().expect("in memory")), 0o700);
        assert_eq!(fs::read_dir(at.parent().expect("above")).expect("read").count(), 1);
    }

    #[test]
    fn what_is_secret_is_not_written_to_a_disk() {
        let temp = tempfile::tempdir_in(env!("CARGO_MANIFEST_DIR")).expect("a directory");
        let at = temp.path().join("m/0");
        let files = vec![file("key", 0o400, "s3cret")];
        let made = make(&[Make::Files { at, files, owner: None }]);
        let on_disk = statfs(temp.path()).expect("a disk").filesystem_type() != TMPFS_MAGIC;
        assert!(on_disk, "the sources are on a disk");
        assert!(
            matches!(&made, Err(Error::System { message, .. }) if message.contains("not in memory")),
            "{made:?}"
        );
        assert!(!temp.path().join("m/0").exists());
    }

    #[test]
    fn what_goes_with_a_task_goes_and_what_is_shared_stays() {
        let (_temp, places) = places();
        let at = places.attempt("u1", 2).expect("in memory").join("0");
        let shared = places.shared("default", "cache").expect("on disk");
        let empty = places.empty("u1", 1).expect("on disk");
        let wanted = [
            Make::Files {
                at: at.clone(),
                files: vec![file("key", 0o400, "x")],
                owner: None,
            },
            Make::Directory(shared.clone()),
            Make::Directory(empty.clone()),
        ];
        make(&wanted).expect("made");
        make(&wanted).expect("twice");
        assert_eq!(fs::metadata(&empty).expect("there").mode() & 0o777, 0o777);
        assert_eq!(places.found(), ["u1".to_owned()].into());
        places.unmake(&ContainerId::new("u1-2").expect("an id"));
        assert!(!at.exists() && empty.exists());
        places.remove("u1");
        assert!(!empty.exists() && shared.exists());
        assert!(places.found().is_empty());
        places.remove("u1");
    }

    #[test]
    fn a_path_of_the_machine_has_no_link_in_it_and_is_what_it_has_to_be() {
        let (temp, _) = places();
        let base = temp.path().canonicalize().expect("real");
        fs::create_dir(base.join("dir")).expect("made");
        fs::write(base.join("file"), "").expect("written");
        symlink("/etc", base.join("out")).expect("linked");
        symlink(base.join("dir"), base.join("in")).expect("linked");
        let check = |path: &str, kind| {
            make(&[Make::Host {
                at: base.join(path),
                kind,
            }])
        };
        use HostPathType::{Directory, DirectoryOrCreate, File, Socket};
        for (path, kind, fine) in [
            ("dir", Directory, true),
            ("file", File, true),
            ("dir/new/er", DirectoryOrCreate, true),
            ("file", Directory, false),
            ("dir", File, false),
            ("file", Socket, false),
            ("none", Directory, false),
            ("out", Directory, false),
            ("out/passwd", File, false),
            ("out/new", DirectoryOrCreate, false),
            ("in", Directory, false),
        ] {
            let made = check(path, kind);
            assert_eq!(made.is_ok(), fine, "{path} {kind:?} {made:?}");
            assert!(made.is_ok() || matches!(made, Err(Error::Invalid(_))), "{made:?}");
        }
        assert!(!Path::new("/etc/new").exists());
    }

    #[test]
    fn only_what_is_allowed_is_seen() {
        let places = Places {
            allowed: vec!["/data/sets".into()],
            ..Places::default()
        };
        assert!(places.allows(Path::new("/data/sets/a")) && places.allows(Path::new("/data/sets")));
        assert!(!places.allows(Path::new("/data/setsx")) && !places.allows(Path::new("/data")));
        assert!(!Places::default().allows(Path::new("/")));
        let none = VolumeArgs {
            allow_host_paths: vec!["/no/such".into()],
        };
        assert!(none.places(Path::new("/")).is_err());
    }
}
