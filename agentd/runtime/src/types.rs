//! The words that runtimes and their users share.

use std::collections::BTreeMap;
use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use serde::{Deserialize, Serialize};

/// The name of a container on this machine: `[a-zA-Z0-9][a-zA-Z0-9_.-]*`, at most 128 bytes.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ContainerId(String);

impl ContainerId {
    /// The id, when the text is one.
    pub fn new(text: impl Into<String>) -> Option<ContainerId> {
        let text = text.into();
        let first = text.bytes().next()?;
        let rest_ok = text
            .bytes()
            .all(|b| b.is_ascii_alphanumeric() || matches!(b, b'_' | b'.' | b'-'));
        (first.is_ascii_alphanumeric() && rest_ok && text.len() <= 128).then_some(ContainerId(text))
    }

    /// The text of the id.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for ContainerId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// Everything a container is made from. Equal specs make equal containers.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ContainerSpec {
    /// The command and its arguments; empty only when an image knows one. The first is looked up in the container's `PATH`.
    pub argv: Vec<String>,
    /// The whole environment.
    pub env: BTreeMap<String, String>,
    /// Where the command starts, inside the container. Without it, where the image says, or the sandbox directory.
    pub working_dir: Option<PathBuf>,
    /// Who the command runs as. Without it, who the image says, or root of the container (with no capability).
    pub user: Option<User>,
    /// What the command sees as `/`.
    pub rootfs: Rootfs,
    /// What is mounted besides.
    pub mounts: Vec<Mount>,
    /// Directories in memory, empty at first.
    #[serde(default)]
    pub memory: Vec<MemoryDirectory>,
    /// A file of the machine with further variables, `NAME=value` and a NUL each, which win over `env`: for what must not be written down
    /// elsewhere. It is read when the command is run.
    #[serde(default)]
    pub variables: Option<PathBuf>,
    /// The device nodes that are made and allowed; all others are denied.
    pub devices: Vec<DeviceNode>,
    /// What it may use.
    pub limits: Limits,
    /// Carried along and given back by [`crate::Runtime::list`].
    pub labels: BTreeMap<String, String>,
}

impl ContainerSpec {
    /// What every runtime refuses.
    ///
    /// # Errors
    /// [`Error::Invalid`]: no command, a word with a NUL in it, a path that is not absolute or climbs with `..`.
    pub fn check(&self) -> Result<(), Error> {
        let invalid = |what: &str| Err(Error::Invalid(what.to_owned()));
        let by_image = matches!(self.rootfs, Rootfs::Image { .. });
        if self.argv.first().map_or(!by_image, String::is_empty) {
            return invalid("there is no command");
        }
        let more: &[String] = match &self.rootfs {
            Rootfs::Image { args, .. } => args,
            Rootfs::Host | Rootfs::Directory(_) => &[],
        };
        if self
            .argv
            .iter()
            .chain(more)
            .chain(self.env.values())
            .any(|word| word.contains('\0'))
        {
            return invalid("a word of the command or of the environment contains a NUL byte");
        }
        if self
            .env
            .keys()
            .any(|name| name.is_empty() || name.contains(['=', '\0']))
        {
            return invalid("the name of a variable is empty or contains '='");
        }
        if self.labels.contains_key(LABEL_IMAGE) {
            return invalid("the label with the digest of its image is added to it, not asked for");
        }
        let rootfs = match &self.rootfs {
            Rootfs::Host | Rootfs::Image { .. } => None,
            Rootfs::Directory(path) => Some(path),
        };
        let mounts = self.mounts.iter().flat_map(|mount| [&mount.source, &mount.target]);
        let paths = mounts
            .chain(
                self.devices
                    .iter()
                    .flat_map(|device| [Some(&device.path), device.host.as_ref()])
                    .flatten(),
            )
            .chain(rootfs)
            .chain(self.memory.iter().map(|memory| &memory.target))
            .chain(&self.variables)
            .chain(&self.working_dir);
        for path in paths {
            let climbs = path.components().any(|part| part == std::path::Component::ParentDir);
            if !path.is_absolute() || climbs || path.to_str().is_none_or(|text| text.contains('\0')) {
                return invalid(&format!("{} is not an absolute path without '..'", path.display()));
            }
        }
        Ok(())
    }
}

/// What a container sees as `/`.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Rootfs {
    /// The machine's own root, read-only, with a writable sandbox directory and a private `/tmp`.
    Host,
    /// An unpacked image, shared and read-only underneath, with a private writable layer on top.
    Directory(PathBuf),
    /// An image that the runtime finds by its name, used like a directory. What the container does not say, the image does: its command,
    /// environment, working directory and user.
    Image {
        /// Its name.
        name: String,
        /// Follows `argv`. When that is empty these take the place of the image's own arguments.
        args: Vec<String>,
    },
}

/// A numeric user.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct User {
    /// User id.
    pub uid: u32,
    /// Group id.
    pub gid: u32,
}

/// A bind mount.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Mount {
    /// On the machine.
    pub source: PathBuf,
    /// In the container.
    pub target: PathBuf,
    /// Whether the container may not write to it.
    pub read_only: bool,
}

/// A directory in memory. What is in it counts as memory of the container.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct MemoryDirectory {
    /// In the container.
    pub target: PathBuf,
    /// How large it may become; `None`: as large as the container's memory.
    pub bytes: Option<u64>,
}

/// A device node of the machine.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct DeviceNode {
    /// Its path in the container, below `/dev`.
    pub path: PathBuf,
    /// Its path on the machine, when it is another there.
    #[serde(default)]
    pub host: Option<PathBuf>,
}

impl DeviceNode {
    /// Its path on the machine.
    pub fn on_machine(&self) -> &std::path::Path {
        self.host.as_deref().unwrap_or(&self.path)
    }
}

/// What a container may use; `None` is no limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Limits {
    /// Thousandths of a CPU that it is weighed with when CPUs are short (cgroup shares or weight).
    pub cpu_request_milli: u64,
    /// Thousandths of a CPU that it may use at most (cgroup quota).
    pub cpu_limit_milli: Option<u64>,
    /// Bytes of memory, swap included; one more and it is killed.
    pub memory_bytes: Option<u64>,
    /// Processes and threads.
    pub pids: Option<u64>,
    /// Bytes of the log file before it is rotated; one rotated file is kept. Zero is
    /// [`LOG_BYTES_DEFAULT`](crate::limits::LOG_BYTES_DEFAULT).
    pub log_bytes: u64,
    /// How long it may run without anybody vouching for it, see [`crate::Guard`].
    #[serde(default)]
    pub fence: Option<Fence>,
}

/// When a container ends by itself, and how.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Fence {
    /// When nobody has vouched for so long.
    pub after: Duration,
    /// It is sent this signal.
    pub signal: i32,
    /// And after this, everything in it is killed.
    pub grace: Duration,
}

/// The [`Exit::error`] of a container that its fence has ended.
pub const FENCED: &str = "ended by its fence: nobody vouched for it any more";

/// Label of containers that run from an image: the digest of its manifest. Runtimes add it; nobody may ask for it.
pub const LABEL_IMAGE: &str = "muster.dev/image-digest";

/// The labels of a container, in one allocation that clones share: a runtime remembers tens of thousands of exited containers, and whoever
/// lists them keeps the list.
#[derive(Clone, Default, PartialEq, Eq)]
pub struct Labels(Arc<[u8]>);

impl Labels {
    /// Each as its length and its bytes; names and values in turn.
    fn texts(&self) -> impl Iterator<Item = &str> {
        let mut rest = &*self.0;
        std::iter::from_fn(move || {
            let (length, after) = rest.split_first_chunk()?;
            let (text, after) = after.split_at_checked(u32::from_le_bytes(*length) as usize)?;
            rest = after;
            std::str::from_utf8(text).ok()
        })
    }

    /// Names and values, in the order that they were given in.
    fn iter(&self) -> impl Iterator<Item = (&str, &str)> {
        let mut texts = self.texts();
        std::iter::from_fn(move || Some((texts.next()?, texts.next()?)))
    }

    /// The value of a label.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.iter().find(|(known, _)| *known == name).map(|(_, value)| value)
    }
}

impl fmt::Debug for Labels {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_map().entries(self.iter()).finish()
    }
}

impl<N: AsRef<str>, V: AsRef<str>> FromIterator<(N, V)> for Labels {
    fn from_iter<I: IntoIterator<Item = (N, V)>>(labels: I) -> Labels {
        let mut bytes = Vec::new();
        for (name, value) in labels {
            for text in [name.as_ref(), value.as_ref()] {
                let length = u32::try_from(text.len()).expect("a label is no 4 GiB");
                bytes.extend_from_slice(&length.to_le_bytes());
                bytes.extend_from_slice(text.as_bytes());
            }
        }
        Labels(bytes.into())
    }
}

/// A container as the runtime sees it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Container {
    /// Its id.
    pub id: ContainerId,
    /// Its labels.
    pub labels: Labels,
    /// How far it is.
    pub state: State,
}

/// How far a container is. Only moves down this list.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum State {
    /// Prepared; its command does not run yet.
    Created,
    /// Its command runs.
    Running {
        /// The first process, in the machine's pid namespace.
        pid: u32,
        /// Milliseconds since the epoch, by the machine's wall clock.
        started_ms: i64,
    },
    /// Everything in it has ended: no process and no device is held any more.
    Exited(Exit),
}

/// How a container ended.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exit {
    /// The exit code of the command; `None` when a signal ended it or it never ran.
    pub code: Option<i32>,
    /// The signal that ended it.
    pub signal: Option<i32>,
    /// Whether the memory limit was hit and something was killed for it.
    pub oom_killed: bool,
    /// Milliseconds since the epoch; `None` when the command never ran.
    pub started_ms: Option<i64>,
    /// Milliseconds since the epoch.
    pub finished_ms: i64,
    /// Why the command could not be run, or why its exit is not known; empty otherwise.
    pub error: Option<String>,
}

impl Exit {
    /// The end of a container whose command did not run, or whose end nobody saw.
    pub fn never_ran(finished_ms: i64, error: impl Into<String>) -> Exit {
        Exit {
            code: None,
            signal: None,
            oom_killed: false,
            started_ms: None,
            finished_ms,
            error: Some(error.into()),
        }
    }
}

/// How to stop a container.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Stop {
    /// Sent to the first process, at once; a number of `signal(7)`.
    pub signal: i32,
    /// After this, everything in the container is killed.
    pub grace: Duration,
}

/// Which output.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// What of a container's output is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LogQuery {
    /// Where the last chunk ended; without it, the beginning (or what `tail` and `since_ms` say).
    pub after: Option<LogPosition>,
    /// Only the last lines, this many; looked at only without `after`.
    pub tail: Option<usize>,
    /// Only what was written at or after this time, milliseconds since the epoch.
    pub since_ms: Option<i64>,
}

/// A place in a container's output; survives rotation and restarts of the reader. Opaque text to others.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(transparent)]
pub struct LogPosition(pub String);

/// Some lines of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogChunk {
    /// The lines, oldest first: when, which stream, and the bytes with their newline (a last line may lack it).
    pub lines: Vec<LogLine>,
    /// Where this chunk ends.
    pub position: LogPosition,
    /// Whether this is the end: the container has exited and all its output has been read.
    pub end: bool,
}

/// One line of output.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LogLine {
    /// Milliseconds since the epoch at which it was read from the container.
    pub time_ms: i64,
    /// Which stream.
    pub stream: Stream,
    /// Its bytes.
    pub bytes: Vec<u8>,
}

/// What has been used so far.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// By the whole machine, with what is not this runtime's.
    pub machine: Used,
    /// By containers that run.
    pub containers: BTreeMap<ContainerId, Used>,
}

/// What something has used so far; `None`: nobody counts it.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Used {
    /// CPU time. It never falls.
    pub cpu: Option<Duration>,
    /// Bytes of memory now, without files that were not used for a while.
    pub memory_bytes: Option<u64>,
    /// Bytes of memory that it may have; `None`: all that there is.
    pub memory_limit_bytes: Option<u64>,
    /// Processes and threads now.
    pub pids: Option<u64>,
    /// Processes that were killed for memory.
    pub oom_kills: Option<u64>,
}

/// What a runtime isolates, each part with the reason when it does not.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Isolation {
    /// For each missing part (`namespaces`, `cgroups`, `seccomp`, `devices`, …) why it is missing. Empty: all is isolated.
    pub missing: BTreeMap<String, String>,
}

/// Why a runtime could not do it.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// There is no such container.
    #[error("container {0} not found")]
    NotFound(ContainerId),
    /// A container of this id exists and was made from another spec.
    #[error("container {0} exists with another spec")]
    Conflict(ContainerId),
    /// The container runs, so it cannot be removed.
    #[error("container {0} is running")]
    Running(ContainerId),
    /// The container does not run, so it cannot be entered.
    #[error("container {0} does not run")]
    NotRunning(ContainerId),
    /// There are as many as may be; trying again can help.
    #[error("container {id} has {most} sessions, which is the most: end one of them")]
    TooMany {
        /// Of which container.
        id: ContainerId,
        /// How many there may be.
        most: usize,
    },
    /// The runtime has no image of this name; says where it looked and what to do.
    #[error("{0}")]
    ImageNotFound(String),
    /// The spec cannot be made real; trying again does not help.
    #[error("invalid container: {0}")]
    Invalid(String),
    /// The call took too long; whether it happened is unknown: list before trying again.
    #[error("{call} did not finish within {deadline:?}")]
    Deadline {
        /// Which call.
        call: &'static str,
        /// How long it had.
        deadline: Duration,
    },
    /// The machine refused; trying again can help.
    #[error("{context}: {message}")]
    System {
        /// What was being done.
        context: String,
        /// What the machine said.
        message: String,
    },
}
