//! Containers, without tasks.
//!
//! A [`Runtime`] makes, starts, stops, lists and removes containers on one machine. It promises: [`Runtime::create`] and
//! every other call are idempotent by container id; [`Runtime::list`] is the whole truth after a restart of the caller,
//! exit codes of the time in between included; a container outlives its caller; every call has a deadline of its own.
//!
//! What must never happen here: the name of a task, a clock that decides policy, a container touched that this runtime
//! did not make. The promises are written down once, as executable cases, in [`conformance`].

pub mod conformance;
pub mod copy;
pub mod exec;
pub mod fake;
pub mod images;
pub mod limits;
mod percent;
pub mod process;
pub mod registry;
pub mod spec;
mod types;

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::stream::BoxStream;

pub use exec::{Exec, Session};
pub use fake::FakeRuntime;
pub use images::Images;
pub use process::ProcessRuntime;
pub use process::containerd::{self, ContainerdRuntime};
pub use types::{
    Container, ContainerId, ContainerSpec, DeviceNode, Error, Exit, FENCED, Fence, Isolation, LABEL_IMAGE, Labels,
    Limits, LogChunk, LogLine, LogPosition, LogQuery, MemoryDirectory, Mount, Rootfs, State, Stop, Stream, Usage, Used,
    User,
};

/// Ends containers by itself, without whoever asked for them: for those whose caller may lose the right to have them run and not notice,
/// because it hangs or is gone.
pub trait Guard: Send + Sync {
    /// The time since the machine was started, suspension included, by the clock that fences count with.
    fn now(&self) -> Duration;

    /// Vouches for all containers up to that time, which must have been [now](Guard::now) when the right to have them run was asked for. A
    /// container with a [`Fence`] cannot be made before anybody has.
    fn vouch(&self, at: Duration) -> Result<(), Error>;
}

/// Runs containers. One of the four seams.
#[async_trait]
pub trait Runtime: Send + Sync + 'static {
    /// What this runtime isolates here, and what not and why; shown on the Agent.
    fn isolation(&self) -> Isolation;

    /// Every container of this runtime, in the order of their ids: the only source of truth after a restart.
    async fn list(&self) -> Result<Vec<Container>, Error>;

    /// Prepares a container without running its command. Creating what exists with an equal spec does nothing;
    /// with another spec it is [`Error::Conflict`].
    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error>;

    /// Runs the command of a created container. Starting what runs or has exited does nothing.
    async fn start(&self, id: &ContainerId) -> Result<(), Error>;

    /// Begins to stop the container: sends the signal, and kills everything in it when the grace is over. Returns when the
    /// signal is sent, not when the container has exited. Stopping what has exited does nothing; stopping what was only
    /// created makes it exit.
    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error>;

    /// Removes an exited container with its sandbox and logs. Removing what does not exist does nothing; removing what
    /// runs is [`Error::Running`].
    async fn remove(&self, id: &ContainerId) -> Result<(), Error>;

    /// The part of a container's output that the query asks for, at most one chunk; an empty chunk means nothing there yet.
    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error>;

    /// Enters a running container and does something in it, with streams: as the container's user, in its directory, with its environment, in
    /// its namespaces and its cgroup, and with no right that its command does not have. A command that cannot be run is no error but the
    /// end of the session, with the exit code of a shell. See [`Session`] for how it ends.
    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error>;

    /// What these containers have used so far, those of them that run, and the whole machine. A runtime that counts nothing says nothing.
    async fn usage(&self, _ids: &[ContainerId]) -> Result<Usage, Error> {
        Ok(Usage::default())
    }

    /// Wakes its reader when any container may have changed state. May say too much, never too little; carries no data:
    /// the reader lists again.
    fn changes(&self) -> BoxStream<'static, ()>;

    /// What fetches images that are not here; `None`: nothing does, so they have to be imported.
    fn puller(&self) -> Option<Arc<dyn registry::Puller>> {
        None
    }

    /// What ends containers that have a [`Limits::fence`]; `None`: nothing does, so none may be made.
    fn guard(&self) -> Option<&dyn Guard> {
        None
    }
}
