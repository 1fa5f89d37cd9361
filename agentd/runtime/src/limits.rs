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
