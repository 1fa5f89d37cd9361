//! What the calls of a process runtime share, and how they look at containers: always on the disk, never in memory.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::watch;
use tokio::task::JoinSet;

use super::cgroup::Hierarchies;
use super::config::Config;
use super::directory::Directory;
use super::exec::Counts;
use super::lost;
use super::maker::Maker;
use super::shims::Shims;
use crate::{Container, ContainerId, Error, Isolation, State};

/// What all calls share.
pub(super) struct Shared {
    pub(super) config: Config,
    pub(super) shims: Shims,
    /// `None`: as plain processes.
    pub(super) hierarchies: Option<Hierarchies>,
    pub(super) isolation: Isolation,
    /// Who makes containers; `None`: their shims.
    pub(super) maker: Option<Arc<dyn Maker>>,
    /// Rises when anything may have changed.
    pub(super) version: watch::Sender<u64>,
    pub(super) watched: Mutex<BTreeSet<ContainerId>>,
    /// Held while a lost container is settled.
    pub(super) settling: Mutex<()>,
    /// One for each living shim, and calls that go on to their end.
    pub(super) tasks: Mutex<JoinSet<()>>,
    /// Of each container that a call works on; two calls on one container take turns.
    pub(super) busy: Mutex<BTreeMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
    /// Containers that were seen to have exited, so that a list reads each of them once.
    pub(super) exited: Mutex<BTreeMap<ContainerId, Exited>>,
    /// How many sessions each container has.
    pub(super) sessions: Counts,
}

/// A container that has exited: it does not change any more. True as long as its exit is in the same file.
pub(super) struct Exited {
    file: (u64, i64, i64),
    container: Container,
}

impl Shared {
    pub(super) fn directory(&self, id: &ContainerId) -> Directory {
        Directory::at(self.config.state_dir.join("containers").join(id.as_str()))
    }

    pub(super) fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    pub(super) async fn turn(&self, id: &ContainerId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut busy = lock(&self.busy);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(id.clone()).or_default())
        };
        turn.lock_owned().await
    }

    /// The containers that there are, in the order of their ids, with what is known of them without reading anything.
    pub(super) fn listed(&self) -> Result<Vec<Listed>, Error> {
        let failed = |error: io::Error| system("listing", &error);
        let mut ids = BTreeSet::new();
        for entry in fs::read_dir(self.config.state_dir.join("containers")).map_err(failed)? {
            ids.extend(
                entry
                    .map_err(failed)?
                    .file_name()
                    .into_string()
                    .ok()
                    .and_then(ContainerId::new),
            );
        }
        lock(&self.exited).retain(|id, _| ids.contains(id));
        let listed = |id| self.exited(&id).map_or(Listed::Look(id), Listed::Exited);
        Ok(ids.into_iter().map(listed).collect())
    }

    pub(super) async fn inspect(self: &Arc<Self>, directory: Directory) -> Result<Option<Container>, Error> {
        let shared = Arc::clone(self);
        blocking("looking at a container", move || shared.inspect_now(&directory)).await
    }

    /// The container in a directory; `None` when none was created there (completely).
    pub(super) fn inspect_now(&self, directory: &Directory) -> Result<Option<Container>, Error> {
        let failed = |error: io::Error| system(&format!("container {}", directory.path().display()), &error);
        let id = directory
            .path()
            .file_name()
            .and_then(|name| ContainerId::new(name.to_str()?));
        let (Some(id), Some(labels)) = (id, directory.labels().map_err(failed)?) else {
            return Ok(None);
        };
        let container = |state| Some(Container { id, labels, state });
        if let Some(exit) = directory.exit().map_err(failed)? {
            return Ok(container(State::Exited(exit)));
        }
        let shim = directory.shim().map_err(failed)?;
        let Some(status) = directory.status().map_err(failed)? else {
            return Ok(None);
        };
        if shim.is_none() {
            let _one = lock(&self.settling);
            // It may have ended properly between the two looks, or another caller has settled it.
            let exit = directory.exit().map_err(failed)?;
            let exit = exit.map_or_else(
                || lost::settle(directory, self.hierarchies.as_ref()),
                |exit| Ok(Some(exit)),
            );
            if let Some(exit) = exit.map_err(failed)? {
                return Ok(container(State::Exited(exit)));
            }
            // What it held is still dying.
        }
        Ok(container(match status.started_ms {
            None => State::Created,
            Some(started_ms) => State::Running {
                pid: status.pid,
                started_ms,
            },
        }))
    }

    /// The container, when it is known to have exited. Costs one look at the disk: another agent may have removed it, and made it anew.
    pub(super) fn exited(&self, id: &ContainerId) -> Option<Container> {
        let exited = lock(&self.exited);
        let known = exited.get(id)?;
        (self.directory(id).exit_file().ok()? == known.file).then(|| known.container.clone())
    }

    /// All containers, in the order of their ids.
    pub(super) fn inspect_all(self: &Arc<Self>, listed: Vec<Listed>) -> Result<Vec<Container>, Error> {
        let mut containers = Vec::with_capacity(listed.len());
        for listed in listed {
            let id = match listed {
                Listed::Exited(container) => {
                    containers.push(container);
                    continue;
                }
                Listed::Look(id) => id,
            };
            let directory = self.directory(&id);
            // Before the container is looked at: what is in the file then cannot be older.
            let file = directory.exit_file().ok();
            let Some(container) = self.inspect_now(&directory)? else {
                continue;
            };
            if let (Some(file), State::Exited(_)) = (file, &container.state) {
                let container = container.clone();
                lock(&self.exited).insert(id, Exited { file, container });
            }
            containers.push(container);
        }
        Ok(containers)
    }

    /// Removes the directory of a container, in one step for whoever lists. False: a shim lives there, so it stays.
    pub(super) fn discard(&self, directory: &Directory) -> Result<bool, Error> {
        let failed = |error: io::Error| system(&format!("removing {}", directory.path().display()), &error);
        // Held until the directory is gone: a shim that was begun by an agent that has died may come late.
        let _lock = match directory.lock_out_shims() {
            Ok(None) => return Ok(false),
            Ok(Some(lock)) => lock,
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(true),
            Err(error) => return Err(failed(error)),
        };
        // After a proper exit there are no processes, but there may be a cgroup: its shim may have been killed before the last step.
        if self.hierarchies.is_some() || directory.exit().map_err(failed)?.is_none() {
            lost::end(directory, self.hierarchies.as_ref()).map_err(failed)?;
        }
        let trash = self.config.state_dir.join("trash");
        let name = directory.path().file_name().unwrap_or_default();
        // A name that an earlier removal did not finish is taken.
        let place = (0_u64..)
            .map(|n| trash.join(format!("{}.{n}", name.display())))
            .find(|place| !place.exists());
        let place = place.expect("there are more numbers than files");
        fs::rename(directory.path(), &place).map_err(failed)?;
        match fs::remove_dir_all(place) {
            // Another agent empties the trash.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(true),
        }
    }
}

/// A container in a list.
pub(super) enum Listed {
    /// It was seen before, and has exited.
    Exited(Container),
    /// It has to be looked at.
    Look(ContainerId),
}

pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

pub(super) fn system(context: &str, error: &io::Error) -> Error {
    Error::System {
        context: context.to_owned(),
        message: error.to_string(),
    }
}

/// Does work that blocks on the disk.
pub(super) async fn blocking<T: Send + 'static>(
    what: &'static str,
    work: impl FnOnce() -> Result<T, Error> + Send + 'static,
) -> Result<T, Error> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| {
        Err(Error::System {
            context: what.to_owned(),
            message: error.to_string(),
        })
    })
}

/// Gives up on work that takes too long.
pub(super) async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or(Err(Error::Deadline { call, deadline }))
}
