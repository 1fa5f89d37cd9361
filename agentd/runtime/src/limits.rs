//! Every bound of this crate in one place, with its arithmetic. Nothing here is tuned per machine.

use std::time::Duration;

/// How long [`create`](crate::Runtime::create) may take. A start of the shim takes 15 ms on an idle machine and was seen to take
/// 350 ms with eight others on two cores; a hundred at once on the same machine make 4 s; twice that, and some.
pub const CREATE_DEADLINE: Duration = Duration::from_secs(20);

/// How long [`start`](crate::Runtime::start), [`stop`](crate::Runtime::stop) and [`logs`](crate::Runtime::logs) may take: one message to
/// a waiting shim, or one chunk from a local disk. Milliseconds, unless the machine thrashes.
pub const CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`list`](crate::Runtime::list) may take: it reads three small files per container (about 0.1 ms), 1,000 containers make 0.1 s,
/// and may have to kill what a lost shim left behind ([`KILL_DEADLINE`]).
pub const LIST_DEADLINE: Duration = Duration::from_secs(30);

/// How long [`remove`](crate::Runtime::remove) may take: it waits for the shim to finish its cleaning (milliseconds) and deletes the sandbox,
/// which can hold many files: at some 50,000 files a second on a local disk, a million files.
pub const REMOVE_DEADLINE: Duration = Duration::from_secs(30);

/// How long everything in a container may take to be gone after SIGKILL before that is reported. A process that a driver holds in the
/// kernel cannot be killed sooner; it is tried again for ever, this only bounds one try.
pub const KILL_DEADLINE: Duration = Duration::from_secs(10);

/// The most bytes of output in one [`LogChunk`](crate::LogChunk): four fit in the smallest body limit on the way (1 MiB).
pub const LOG_CHUNK_BYTES: usize = 256 * 1024;

/// The most bytes of one line of output before it is cut in two: a chunk holds at least sixteen.
pub const LOG_LINE_BYTES: usize = 16 * 1024;

/// How large a log file may grow when [`Limits::log_bytes`](crate::Limits::log_bytes) says nothing (zero). With the rotated one, a container
/// has 20 MiB at most; a thousand containers 20 GiB.
pub const LOG_BYTES_DEFAULT: u64 = 10 * 1024 * 1024;

/// The smallest size at which a log is rotated: two lines of the greatest length. Less than that is raised to it.
pub const LOG_BYTES_MIN: u64 = 2 * LOG_LINE_BYTES as u64;

/// Where a command is looked for when its environment has no `PATH`.
pub const PATH_DEFAULT: &str = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// The most bytes of one image, unpacked: the largest images of machine learning are some 40 GiB.
pub const IMAGE_BYTES: u64 = 128 << 30;

/// The most files, directories and links of one image: large ones have half a million.
pub const IMAGE_FILES: usize = 4_000_000;

/// The most layers of one image: overlay file systems, which made this bound, take 128.
pub const IMAGE_LAYERS: usize = 128;

/// The most bytes of a manifest or a configuration: what registries take.
pub const IMAGE_DOCUMENT_BYTES: u64 = 4 << 20;

/// The largest window of a zstd frame that is unpacked, and so the memory that this takes: what `zstd --ultra` may use, and what its own
/// decoder takes unless it is told otherwise.
pub const ZSTD_WINDOW: u64 = 128 << 20;

/// How long a registry may keep one waiting for an answer, or for more of it.
pub const PULL_SILENCE: Duration = Duration::from_secs(30);

/// Parts of one image that come at a time: more than one, because a registry may be slow to begin; few, because the line is shared.
pub const PULL_BLOBS: usize = 3;

/// How often a connection that ended while it brought something is made again at once.
pub const PULL_RESUMES: usize = 10;

/// How often an answer may point elsewhere: registries point to a store of objects, which may point to a place of its own.
pub const PULL_REDIRECTS: usize = 5;

/// The longest time for which a registry is left alone because it said so.
pub const PULL_AFTER_MAX: Duration = Duration::from_secs(600);

/// How long what has come of an image is kept when nobody goes on with it.
pub const PULL_KEPT: Duration = Duration::from_secs(24 * 3600);

/// How long one call to containerd may take. Those that run a program (runc, twice, and a shim) took 40 ms on an idle machine and 0.5 s with
/// eight others on two cores; a hundred at once make 5 s. Within [`CREATE_DEADLINE`] there is time for the three calls of a start that hangs.
pub const CONTAINERD_CALL_DEADLINE: Duration = Duration::from_secs(10);

/// How long [`create`](crate::Runtime::create) may take when containerd makes the container: four of its calls, and that many again to
/// clean up what came of a failure.
pub const CONTAINERD_CREATE_DEADLINE: Duration = Duration::from_secs(40);

/// How long containerd may take to say its version when the runtime is opened: an answer takes a millisecond.
pub const CONTAINERD_ANSWER: Duration = Duration::from_secs(5);

/// How long after a failure it is tried again to take away what containerd has of containers that have exited.
pub const CONTAINERD_TIDY_AGAIN: Duration = Duration::from_secs(5);

/// How long one layer may take to be unpacked by containerd: 10 GiB at 50 MiB a second.
pub const CONTAINERD_UNPACK_DEADLINE: Duration = Duration::from_secs(200);

/// How long containerd keeps what is being imported or unpacked when nobody says that it is done: longer than the largest image takes.
pub const CONTAINERD_LEASE: Duration = Duration::from_secs(24 * 3600);

/// An index of images may point to an index, so often.
pub const IMAGE_INDEXES: usize = 4;

/// How much of an image is sent to containerd at once: a quarter of the message that it takes.
pub const IMAGE_WRITE_BYTES: usize = 1 << 20;

/// So many pieces of an image are read ahead: the disk and containerd each have one, and one waits.
pub const IMAGE_WRITES: usize = 3;

/// The most bytes of the words of one command in a container: a quarter of what one argument of a program may have, and half of what the head
/// of a request may.
pub const EXEC_BYTES: usize = 32 * 1024;

/// The longest message between an agent and a session: the words of a command, each byte of which JSON may write as six, and some: less than
/// what a socket holds (208 KiB).
pub const EXEC_MESSAGE_BYTES: usize = 6 * EXEC_BYTES + 8 * 1024;

/// Sessions in one container at a time. Each is two processes of the machine and some megabytes of its memory: people need a few, and a loop
/// gone wild has to end before the machine does.
pub const EXEC_SESSIONS: usize = 32;

/// How long what runs in a session has to end after its client has gone: to save a file, not to finish the work.
pub const EXEC_GRACE: Duration = Duration::from_secs(2);

/// How long a session may take to connect to a port of its own container: a listener takes a connection at once.
pub const CONNECT_DEADLINE: Duration = Duration::from_secs(5);

/// The most bytes of the files of one copy: as the largest image.
pub const COPY_BYTES: u64 = 128 << 30;

/// The most files, directories and links of one copy: as the largest image.
pub const COPY_FILES: usize = 4_000_000;

/// How deep directories of one copy may be: each costs an open descriptor, of which a process has a thousand.
pub const COPY_DEPTH: usize = 200;
