//! Every bound of this crate in one place, with its arithmetic.

use std::time::Duration;

/// Attempts that a status keeps: what the description of `status.attempts` promises.
pub const ATTEMPTS_MAX: usize = 10;

/// Containers that a task keeps: the latest, and the one before for `logs --previous`.
pub const CONTAINERS_KEPT: usize = 2;

/// Processes and threads of one task: four times what a data loader of 1,024 workers makes, and an eighth of the kernel's usual 32,768
/// for the whole machine.
pub const PIDS_MAX: u64 = 4096;

/// The first wait before a command is run again; each further one is twice as long.
pub const BACKOFF_FIRST: Duration = Duration::from_secs(1);
/// The longest wait before a command is run again.
pub const BACKOFF_MAX: Duration = Duration::from_secs(60);
/// A run that lasted this long was fine: the next wait is the first again.
pub const BACKOFF_RESET: Duration = Duration::from_secs(10 * 60);

/// How many retries `OnFailure` has when the task does not say.
pub const RETRIES_ON_FAILURE: u32 = 3;

/// How long a task has to end after the stop signal when it does not say; Kubernetes has 30 s, Mesos 5 s.
pub const GRACE_DEFAULT: Duration = Duration::from_secs(5);
/// How long after the grace a container that still runs is stopped again, with SIGKILL. The runtime kills by itself when the grace is
/// over, so this is for a runtime that forgot.
pub const STOP_AGAIN: Duration = Duration::from_secs(10);

/// How long the runtime may refuse to prepare or start a task that never ran until the task is given back. Longer than a full disk
/// takes to be noticed by a person, shorter than a scheduler should wait for a broken machine.
pub const START_PATIENCE: Duration = Duration::from_secs(5 * 60);

/// How long a container's task must be missing from a view without gaps before the API server is asked for it, and again after its first
/// answer: long enough for a server that came back wrong to be noticed.
pub const ORPHAN_PATIENCE: Duration = Duration::from_secs(30);

/// How long after the API server showed a lower revision than before it is asked once more.
pub const LOOK_AGAIN: Duration = Duration::from_secs(1);

/// How often what is known of the cluster is written down at most: an fsync every so often costs nothing.
pub const NOTE_EVERY: Duration = Duration::from_secs(10);

/// How often it is looked whether an operator has confirmed what the API server says.
pub const CONFIRMATION_EVERY: Duration = Duration::from_secs(5);

/// How often everything is looked at again although nothing seems to have happened.
pub const RESYNC: Duration = Duration::from_secs(30);

/// Tasks that the runtime works on at a time. Making a container is about 10 ms of one CPU; eight keep a small machine busy without
/// starving what runs on it.
pub const RUNTIME_JOBS: usize = 8;

/// Rounds of listing and planning take one part in so many of the time. A round is some microseconds for each container, exited ones
/// included: with a hundred it takes less than a millisecond and nobody notices the pause; with ten thousand it would otherwise keep a CPU
/// busy for as long as anything happens.
pub const ROUND_SHARE: u32 = 8;
/// The longest pause between rounds: what a status may be late.
pub const ROUND_REST_MAX: Duration = Duration::from_millis(100);

/// Status writes under way at a time. A write takes a few milliseconds, so sixteen are some thousands a second.
pub const REPORT_JOBS: usize = 16;

/// With more reports than this under way and to be made, reports that a task runs now wait for [`RUNNING_PATIENCE`]: as many as can be under
/// way at a time, so only when others would have to wait for them.
pub const REPORTS_MANY: usize = REPORT_JOBS;
/// How late it may be said that a task runs: not noticed by a person among so many, and longer than a small task.
pub const RUNNING_PATIENCE: Duration = Duration::from_millis(200);

/// Images that come from registries at a time: a line and a disk are busy with one; a second goes on while the first is unpacked.
pub const PULL_JOBS: usize = 2;
/// How long one try to fetch an image may take: 40 GiB at 12 MiB a second. What has come is not lost.
pub const PULL_DEADLINE: Duration = Duration::from_secs(3600);
/// The first wait after an image could not be fetched; each further one is twice as long, up to [`PULL_RETRY_MAX`].
pub const PULL_RETRY_FIRST: Duration = Duration::from_secs(2);
/// The longest wait, unless the registry asks for a longer one.
pub const PULL_RETRY_MAX: Duration = Duration::from_secs(60);
/// How long a task waits for an image that could not be fetched until it is given back: a registry that is restarted, or a person who is called
/// to it.
pub const PULL_PATIENCE: Duration = Duration::from_secs(15 * 60);
/// How often a status says how far an image is: one write for every task that waits for it.
pub const PULL_TOLD_EVERY: Duration = Duration::from_secs(2);

/// How old what was read of a Secret or ConfigMap may be when an attempt gets it: a hundred tasks of one accept read it once.
pub const SOURCE_FRESH: Duration = Duration::from_secs(10);
/// The first wait until one that is not there is looked for again; each further one is twice as long, up to [`SOURCE_RETRY_MAX`].
pub const SOURCE_RETRY_FIRST: Duration = Duration::from_secs(1);
/// The longest wait: what somebody who has just created it still has the patience for.
pub const SOURCE_RETRY_MAX: Duration = Duration::from_secs(15);
/// Bytes of the variables of a task, names included: half of what Linux takes, as for the command line.
pub const VARIABLES_BYTES: usize = 1 << 20;
/// Variables of a task that come from elsewhere: a quarter of what the first process of a container has room for.
pub const VARIABLES_MAX: usize = 4096;

/// How long one request to the API server may take before it counts as failed.
pub const REQUEST_DEADLINE: Duration = Duration::from_secs(10);

/// How long one job of the runtime may take in all: the sum of the runtime's own deadlines for create and start, and some.
pub const RUNTIME_DEADLINE: Duration = Duration::from_secs(60);

/// The first wait after a failed request, job or connection; doubles up to [`RETRY_MAX`].
pub const RETRY_FIRST: Duration = Duration::from_millis(200);
/// The longest wait after a failed request, job or connection.
pub const RETRY_MAX: Duration = Duration::from_secs(10);

/// How long one watch lasts before it is opened anew from where it was. It bounds how long a connection that died without a word goes
/// unnoticed.
pub const WATCH_TIMEOUT: Duration = Duration::from_secs(60);

/// Events of the view that may wait for the agent's loop; more keep the connection waiting. A hundred tasks of one accept fit twice.
pub const VIEW_EVENTS: usize = 256;

/// How long an agent that was told to stop waits for what it has begun.
pub const SHUTDOWN_PATIENCE: Duration = Duration::from_secs(5);

/// Connections to the node server at a time: each follows one log, most of the time idle.
pub const SERVER_CONNECTIONS: usize = 256;

/// How long a peer of the node server may take for its TLS handshake, and for the head of a request.
pub const HANDSHAKE_DEADLINE: Duration = Duration::from_secs(10);

/// How often a followed log is looked at while its container runs: output makes no event.
pub const FOLLOW_INTERVAL: Duration = Duration::from_millis(100);

/// Connections to the listener of the metrics at a time: a few that gather them, and a person.
pub const PLAIN_CONNECTIONS: usize = 16;
/// How long one of them lasts.
pub const PLAIN_DEADLINE: Duration = Duration::from_secs(300);

/// How often what tasks use is measured: often enough for somebody who looks, seldom enough that a thousand tasks (0.2 s of one CPU) are two
/// hundredths of one.
pub const USAGE_EVERY: Duration = Duration::from_secs(10);
/// How long after the first measurement the second is made.
pub const USAGE_FIRST: Duration = Duration::from_secs(1);
/// How long one measurement may take.
pub const USAGE_DEADLINE: Duration = Duration::from_secs(5);
/// Measurements that are older are not told: three in a row have failed.
pub const USAGE_LATE: Duration = Duration::from_secs(35);
/// Tasks of one agent that are told of: a line of 400 bytes each in an answer of 8 MiB at most, and more than run on any machine.
pub const TASKS_MEASURED: usize = 5_000;
/// Readings of GPUs that are older are not told: the driver hangs. They are made every other second.
pub const READINGS_LATE: Duration = Duration::from_secs(10);

/// The largest file of a device's vendor that is read: a node with a hundred devices of ten nodes each takes a tenth of it.
pub const CDI_FILE_BYTES: u64 = 1 << 20;

/// Streams into containers at a time, of all containers: each holds one connection and some processes.
pub const STREAMS_MAX: usize = 256;

/// How much of a command's output goes into one message: as much as half a pipe.
pub const STREAM_BLOCK: usize = 32 * 1024;

/// Messages that may wait for a peer, of one stream: 256 KiB; then its command waits.
pub const STREAM_QUEUE: usize = 8;

/// The longest message that is taken from a peer: thirty times what clients send.
pub const STREAM_MESSAGE: usize = 1 << 20;

/// How often a peer is asked whether it is there. What is written to a connection that is gone says so, the second time; nothing else does while
/// a command does not read what it was sent.
pub const STREAM_ALIVE: Duration = Duration::from_secs(5);

/// How long a peer may say nothing, not even that it is there: longer than a client that was stopped to do something else.
pub const STREAM_SILENCE: Duration = Duration::from_secs(15 * 60);

/// How long the two ends have to close a connection.
pub const STREAM_FAREWELL: Duration = Duration::from_secs(5);

/// Connections to ports at a time, of all containers: each holds one connection more, and at worst 200 KiB.
pub const FORWARDS_MAX: usize = 512;
/// Of one container: a page with all its parts open in ten browsers; a task that is asked for more leaves room for others.
pub const FORWARDS_OF_ONE: usize = 128;
/// Of those that are being made: each is two processes for some milliseconds, and a quarter of the sessions that a container may have.
pub const FORWARDS_ENTERING: usize = 8;
/// Of one WebSocket, as ports of a client that has them all in one.
pub const FORWARD_PORTS: usize = 16;
/// How much of what comes from a port goes into one message.
pub const FORWARD_BLOCK: usize = 16 * 1024;
/// Messages that may wait for a peer, of one WebSocket: 64 KiB; then what is in the container waits.
pub const FORWARD_QUEUE: usize = 4;

/// How long it is not looked whether a container runs that has connections to its ports: looking is listing all containers.
pub const FORWARD_LOOK: Duration = Duration::from_secs(1);
