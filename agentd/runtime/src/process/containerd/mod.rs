//! Containers that containerd makes.
//!
//! containerd makes and removes containers and keeps their images; everything else is as in the process runtime, and done by the same code: each
//! container has a directory, which is the truth about it, and a shim of ours that looks after it. containerd's own shim starts that
//! one as the container's *logger* (`binary://`), so it is there before the container is and needs nobody afterwards. The first process of
//! the container is ours as well (`init/main.rs`); it waits for our shim's word to run the command, and tells it how the command ended.
//!
//! It promises what the process runtime promises, whatever is killed or stopped: agent, containerd, its shim, ours, or several of them.
//! While containerd is away, what runs goes on, is listed, started, stopped, logged, and its exit is known; only making and taking away
//! wait for it. A container that has exited costs no process: what containerd has of it is given back at once.
//!
//! What must never happen here: a call to containerd without a deadline, a namespace of containerd that is not ours, a container in it that this
//! state directory has not made.
//!
//! Tested by [`crate::conformance`] with a containerd of the test's own, with everything killed at will, and with a runc that fails and hangs.

mod bundle;
mod client;
mod config;
mod import;
mod kind;
mod logger;
mod make;
mod store;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use containerd_client::services::v1::ListContainersRequest;
use futures::stream::BoxStream;

use super::cgroup::Cgroup;
use super::directory::{ELSEWHERE, Held};
use super::shared::{Shared, lock, system};
use super::{ProcessRuntime, clock};
use crate::limits::{CONTAINERD_ANSWER, CONTAINERD_TIDY_AGAIN};
use crate::registry::{self, Order, Progress, PullError, Puller, Shelf};
use crate::{
    Container, ContainerId, ContainerSpec, Error, Exec, Exit, Guard, Isolation, LogChunk, LogQuery, Runtime, Session,
    State, Stop, Usage,
};
use client::Client;
use make::Daemon;

pub use config::{Config, NAMESPACE_DEFAULT, SOCKET_DEFAULT};
pub use import::{Store, Stored};

/// The runtime for containers that containerd makes.
pub struct ContainerdRuntime {
    kept: ProcessRuntime,
    daemon: Arc<Daemon>,
    version: Option<String>,
}

impl ContainerdRuntime {
    /// Opens the state directory. containerd need not be there yet. To be called inside of a tokio runtime.
    ///
    /// # Errors
    /// When containers cannot be isolated here; as [`ProcessRuntime::new`].
    pub fn new(config: Config) -> Result<ContainerdRuntime, Error> {
        let daemon = Arc::new(Daemon::new(&config)?);
        let kept = ProcessRuntime::with(config.base, Some(daemon.clone()))?;
        if kept.shared.hierarchies.is_none() {
            let why = kept.isolation().missing.remove("cgroups").unwrap_or_default();
            return Err(Error::Invalid(format!("the containerd runtime needs cgroups: {why}")));
        }
        daemon.provide_init(&kept.shared.config)?;
        let (shared, tidier) = (Arc::clone(&kept.shared), Arc::clone(&daemon));
        kept.shared.tasks().spawn(async move { tidy(&shared, &tidier).await });
        let version = None;
        Ok(ContainerdRuntime { kept, daemon, version })
    }

    /// As [`new`](ContainerdRuntime::new), and asks containerd for its version.
    ///
    /// # Errors
    /// As there; and when containerd does not answer and there is no container that could be looked after meanwhile.
    pub async fn open(config: Config) -> Result<ContainerdRuntime, Error> {
        let mut runtime = ContainerdRuntime::new(config)?;
        match (
            runtime.daemon.version(CONTAINERD_ANSWER).await,
            runtime.kept.shared.listed(),
        ) {
            (Ok(version), _) => runtime.version = Some(version),
            (Err(error), Ok(listed)) if listed.is_empty() => return Err(error),
            (Err(error), _) => {
                tracing::warn!(%error, "containerd is away; containers that are there are looked after meanwhile");
            }
        }
        Ok(runtime)
    }

    /// The version of containerd, if it was there when this was opened.
    pub fn version(&self) -> Option<&str> {
        self.version.as_deref()
    }

    /// Gives back what the runtime keeps on the machine while it has no container. Does nothing when there is one.
    pub fn close(&self) {
        self.kept.close();
        // What runc has made besides. Fails, as it should, while something is in it.
        for directory in make::left_by_runc(&self.daemon) {
            let _ = std::fs::remove_dir(directory);
        }
    }
}

/// Whether a containerd answers there within a time, and its version.
pub async fn answers(socket: &std::path::Path, patience: Duration) -> Option<String> {
    let client = client::Client::new(socket, NAMESPACE_DEFAULT).ok()?;
    kind::version(&client, patience).await.ok()
}

/// Takes away what containerd has of containers that have exited, or were never made completely, whenever something has changed.
async fn tidy(shared: &Arc<Shared>, daemon: &Daemon) {
    let mut version = shared.version.subscribe();
    version.mark_changed();
    let mut found = false;
    loop {
        let again = CONTAINERD_TIDY_AGAIN;
        if !found {
            // Once: containers without a directory come from a state directory that was lost before this.
            found = daemon
                .find_strays(shared)
                .await
                .inspect_err(|error| tracing::debug!(%error, "not looked for strays"))
                .is_ok();
        }
        version.mark_unchanged();
        let left = tidy_once(shared).await;
        if left || !found {
            // A change may come of what is missing, such as the end of a shim.
            let _ = tokio::time::timeout(again, version.changed()).await;
        } else if version.changed().await.is_err() {
            return;
        }
    }
}

/// Whether something is left that has to be taken away.
async fn tidy_once(shared: &Arc<Shared>) -> bool {
    let Ok(entries) = std::fs::read_dir(shared.config.state_dir.join("containers")) else {
        return true;
    };
    let ids = entries.flatten().filter(|entry| entry.path().join(ELSEWHERE).exists());
    let ids: BTreeSet<ContainerId> = ids
        .filter_map(|entry| ContainerId::new(entry.file_name().to_str()?))
        .collect();
    let mut left = false;
    for id in ids {
        let directory = shared.directory(&id);
        let _turn = shared.turn(&id).await;
        let done = match shared.inspect(directory.clone()).await {
            Ok(Some(Container {
                state: State::Exited(_),
                ..
            })) => shared.unmake(&id, &directory).await,
            Ok(Some(_)) => Ok(true),
            Ok(None) => match directory.lock_making() {
                Ok(Some(_making)) => shared.discard_whole(&id, &directory).await,
                // Another agent is making it.
                Ok(None) => Ok(false),
                Err(error) => Err(system("what was left half made", &error)),
            },
            Err(error) => Err(error),
        };
        if let Err(error) = &done {
            tracing::debug!(container = %id, %error, "what containerd has of it stays for now");
        }
        left |= !matches!(done, Ok(true));
    }
    left
}

/// Containers of ours whose directory is lost. Nobody knows what they were to do, and their shims hear nobody; they can be ended.
#[derive(Default)]
struct Strays(std::sync::Mutex<BTreeMap<ContainerId, Container>>);

impl Daemon {
    async fn find_strays(&self, shared: &Shared) -> Result<(), Error> {
        let request = self.client.request(ListContainersRequest {
            filters: vec![format!("labels.\"{}\"==\"{}\"", make::LABEL_OWNER, self.owner)],
        });
        let mut containers = self.client.containers();
        let listed = self.client.call("listing", containers.list(request)).await?;
        for container in listed.containers {
            let Some(id) = ContainerId::new(container.id).filter(|id| !shared.directory(id).path().exists()) else {
                continue;
            };
            match self.held(shared, &id) {
                Some(pid) => {
                    tracing::warn!(container = %id, "its directory is lost");
                    let labels = container
                        .labels
                        .into_iter()
                        .filter(|(name, _)| name != make::LABEL_OWNER);
                    let state = State::Running {
                        pid,
                        started_ms: container.created_at.map_or(0, |at| at.seconds * 1000),
                    };
                    let labels = labels.collect::<BTreeMap<_, _>>().into_iter().collect();
                    let stray = Container {
                        id: id.clone(),
                        labels,
                        state,
                    };
                    lock(&self.strays.0).insert(id, stray);
                    shared.changed();
                }
                None => super::maker::Maker::unmake(self, &id).await?,
            }
        }
        Ok(())
    }

    /// A living process of a container.
    fn held(&self, shared: &Shared, id: &ContainerId) -> Option<u32> {
        let cgroup = Cgroup::new(
            shared.hierarchies.clone()?,
            &format!("{}/{id}", shared.config.cgroup_parent),
        );
        let pids = cgroup.processes().ok()?;
        pids.first().map(|pid| pid.unsigned_abs())
    }

    /// Ends a stray: at once, for there is nobody who could wait for its grace.
    async fn end_stray(&self, shared: &Shared, id: &ContainerId) -> Result<(), Error> {
        super::maker::Maker::unmake(self, id).await?;
        let why = "lost: the directory with all that was known of it is gone";
        if let Some(stray) = lock(&self.strays.0).get_mut(id) {
            stray.state = State::Exited(Exit::never_ran(clock::wall_ms(), why));
        }
        shared.changed();
        Ok(())
    }

    fn stray(&self, id: &ContainerId) -> Option<Container> {
        lock(&self.strays.0).get(id).cloned()
    }
}

#[async_trait]
impl Runtime for ContainerdRuntime {
    fn isolation(&self) -> Isolation {
        self.kept.isolation()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        let mut listed = self.kept.list().await?;
        let known: BTreeSet<ContainerId> = listed.iter().map(|container| container.id.clone()).collect();
        let strays = lock(&self.daemon.strays.0);
        listed.extend(strays.values().filter(|stray| !known.contains(&stray.id)).cloned());
        listed.sort_by(|a, b| a.id.cmp(&b.id));
        Ok(listed)
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        match self.daemon.stray(id) {
            Some(_) => Err(Error::Conflict(id.clone())),
            None => self.kept.create(id, spec).await,
        }
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        match self.daemon.stray(id) {
            Some(_) => Ok(()),
            None => self.kept.start(id).await,
        }
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        match self.daemon.stray(id) {
            Some(_) => self.daemon.end_stray(&self.kept.shared, id).await,
            None => self.kept.stop(id, stop).await,
        }
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        match self.daemon.stray(id).map(|stray| stray.state) {
            Some(State::Exited(_)) => {
                lock(&self.daemon.strays.0).remove(id);
                Ok(())
            }
            Some(_) => Err(Error::Running(id.clone())),
            None => self.kept.remove(id).await,
        }
    }

    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        self.kept.logs(id, query).await
    }

    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        self.kept.exec(id, exec).await
    }

    async fn usage(&self, ids: &[ContainerId]) -> Result<Usage, Error> {
        self.kept.usage(ids).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        self.kept.changes()
    }

    fn puller(&self) -> Option<Arc<dyn Puller>> {
        Some(Arc::new(IntoContainerd {
            shared: Arc::clone(&self.kept.shared),
            client: self.daemon.client.clone(),
        }))
    }

    fn guard(&self) -> Option<&dyn Guard> {
        self.kept.guard()
    }
}

/// Fetches images into the store of containerd.
struct IntoContainerd {
    shared: Arc<Shared>,
    client: Client,
}

#[async_trait]
impl Puller for IntoContainerd {
    async fn pull(&self, order: &Order, progress: &Progress) -> Result<(), PullError> {
        let config = &self.shared.config;
        let store = Store::of(self.client.clone());
        registry::pull(&config.registries, &config.pulls(), order, progress, &store).await
    }

    fn forget(&self, order: &Order) {
        registry::forget(&self.shared.config.pulls(), order);
    }
}

fn not_pulled(error: Error) -> PullError {
    match error {
        Error::Invalid(why) => PullError::Damaged(why),
        error => PullError::later(error.to_string()),
    }
}

#[async_trait]
impl Shelf for Store {
    async fn has(&self, image: &str) -> bool {
        self.finds(image).await.is_ok_and(|found| found)
    }

    async fn reuse(&self, image: &str, digest: &str) -> Result<bool, PullError> {
        self.point(image, digest).await.map_err(not_pulled)
    }

    async fn take(&self, layout: &std::path::Path, image: &str, digest: &str) -> Result<(), PullError> {
        let kept = self.keep(layout, image, digest).await;
        kept.map(drop).map_err(not_pulled)
    }
}

/// The plan of a container that containerd makes.
fn plan(cgroup: String, spec: &ContainerSpec) -> Held {
    Held::Contained {
        cgroup,
        command: spec.argv.first().cloned().unwrap_or_default(),
        cwd: super::prepare::working_dir(spec),
    }
}
