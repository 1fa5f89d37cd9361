//! Containers on this machine, without a daemon.
//!
//! Each container has a directory ([`directory`]) and a shim ([`shim_main`]): this executable again, which makes the container with
//! libcontainer, holds its output and writes down its exit. The runtime itself keeps nothing that matters: it reads directories and talks
//! to shims, so any number of agents can come and go.
//!
//! It promises what [`Runtime`] promises, whatever is killed in between: the agent (the shim goes on), the shim (what it held is killed
//! and its exit says so), the machine (nothing is locked after a restart). Where nothing can be isolated, commands run as plain processes
//! and [`Runtime::isolation`] says what is missing and why.
//!
//! What must never happen here: a process, a mount or a cgroup touched that is not below [`Config::state_dir`] or
//! [`Config::cgroup_parent`].
//!
//! Tested by [`crate::conformance`] in both ways of holding a command, and by `tests/process` with everything killed and from inside
//! of containers.

mod cgroup;
mod clock;
mod control;
mod directory;
mod host;
mod init;
mod logs;
mod lost;
mod prepare;
mod shim;
mod sys;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::fs;
use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::watch;
use tokio::task::JoinSet;

use crate::limits::{CALL_DEADLINE, CREATE_DEADLINE, LIST_DEADLINE, REMOVE_DEADLINE};
use crate::{Container, ContainerId, ContainerSpec, Error, Isolation, LogChunk, LogQuery, Runtime, State, Stop};
use cgroup::Hierarchies;
use control::{Created, LINE_MAX, Reply, Request};
use directory::Directory;

pub use shim::shim_main;

/// How often something is looked at that cannot announce itself: a shim that another agent has just begun.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How to run this executable as a shim. It is run with the directory of a container as last argument and has to call [`shim_main`].
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ShimCommand {
    /// The executable.
    pub program: PathBuf,
    /// What makes it a shim.
    pub args: Vec<OsString>,
}

impl Default for ShimCommand {
    /// The running executable, also after its file was replaced, with the hidden subcommand `shim`.
    fn default() -> ShimCommand {
        ShimCommand {
            program: "/proc/self/exe".into(),
            args: vec!["shim".into()],
        }
    }
}

/// How commands are held.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Isolate {
    /// Isolated where that is possible, as plain processes elsewhere.
    Auto,
    /// As plain processes.
    Plain,
}

/// What a [`ProcessRuntime`] has to know.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    /// Where containers are kept. One runtime's own; containers found there are its containers.
    pub state_dir: PathBuf,
    /// The shim.
    pub shim: ShimCommand,
    /// Files and directories of the machine that no container of [`crate::Rootfs::Host`] may see, besides those known anyway.
    pub hidden: Vec<PathBuf>,
    /// The cgroup below which those of containers are, absolute in every hierarchy; must not be shared by two state directories.
    pub cgroup_parent: String,
    /// How commands are held.
    pub isolate: Isolate,
}

impl Config {
    /// The usual configuration for a state directory; the cgroup is named after it.
    pub fn new(state_dir: impl Into<PathBuf>) -> Config {
        let state_dir = state_dir.into();
        // FNV-1a: names only have to differ between the few state directories of one machine.
        let name = state_dir.as_os_str().as_encoded_bytes();
        let hash = name.iter().fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
            (hash ^ u64::from(*byte)).wrapping_mul(0x100_0000_01b3)
        });
        Config {
            cgroup_parent: format!("/muster/{hash:016x}"),
            state_dir,
            shim: ShimCommand::default(),
            hidden: Vec::new(),
            isolate: Isolate::Auto,
        }
    }
}

/// The runtime for commands on this machine.
pub struct ProcessRuntime {
    shared: Arc<Shared>,
    /// One for each living shim, and one for each shim of ours to be reaped.
    tasks: Mutex<JoinSet<()>>,
}

struct Shared {
    config: Config,
    /// `None`: as plain processes.
    hierarchies: Option<Hierarchies>,
    isolation: Isolation,
    /// Rises when anything may have changed.
    version: watch::Sender<u64>,
    watched: Mutex<BTreeSet<ContainerId>>,
    /// Held while a lost container is settled.
    settling: Mutex<()>,
    /// Of each container that a call works on; two calls on one container take turns.
    busy: Mutex<BTreeMap<ContainerId, Arc<tokio::sync::Mutex<()>>>>,
}

impl ProcessRuntime {
    /// Opens the state directory; makes it when there is none. Needs a tokio runtime with I/O and time from its first call on.
    ///
    /// # Errors
    /// When the state directory cannot be made or read.
    pub fn new(config: Config) -> Result<ProcessRuntime, Error> {
        let failed = |error: io::Error| system(&format!("state directory {}", config.state_dir.display()), &error);
        Directory::at(config.state_dir.join("containers"))
            .make()
            .map_err(failed)?;
        Directory::at(config.state_dir.join("trash")).make().map_err(failed)?;
        let state_dir = config.state_dir.canonicalize().map_err(failed)?;
        let config = Config { state_dir, ..config };
        prepare::empty_trash(&config.state_dir);
        let (hierarchies, isolation) = prepare::isolation(&config);
        let shared = Shared {
            config,
            hierarchies,
            isolation,
            version: watch::Sender::new(0),
            watched: Mutex::default(),
            settling: Mutex::default(),
            busy: Mutex::default(),
        };
        Ok(ProcessRuntime {
            shared: Arc::new(shared),
            tasks: Mutex::new(JoinSet::new()),
        })
    }

    /// Gives back what the runtime keeps on the machine while it has no container: the cgroup that theirs were in. Does nothing when there
    /// is one.
    pub fn close(&self) {
        let containers = fs::read_dir(self.shared.config.state_dir.join("containers"));
        if let (Some(hierarchies), Ok(mut containers)) = (&self.shared.hierarchies, containers)
            && containers.next().is_none()
        {
            // Fails when a cgroup that is not ours is in it; then it is not ours to remove.
            let _ = cgroup::Cgroup::new(hierarchies.clone(), &self.shared.config.cgroup_parent).remove();
        }
    }

    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut tasks = self.tasks.lock().unwrap_or_else(PoisonError::into_inner);
        while tasks.try_join_next().is_some() {}
        tasks
    }

    /// Has the shim of a container watched from now on, if it lives.
    async fn watch(&self, id: &ContainerId) {
        if !lock(&self.shared.watched).insert(id.clone()) {
            return;
        }
        let directory = self.shared.directory(id);
        let mut stream = match control::connect(&directory).await {
            Ok(stream) => stream,
            Err(_) => {
                lock(&self.shared.watched).remove(id);
                return;
            }
        };
        let (shared, id) = (Arc::clone(&self.shared), id.clone());
        self.tasks().spawn(async move {
            let mut block = [0; 16];
            let asked = tokio::io::AsyncWriteExt::write_all(&mut stream, &control::encode(&Request::Watch)).await;
            while asked.is_ok() && matches!(stream.read(&mut block).await, Ok(1..)) {
                shared.changed();
            }
            lock(&shared.watched).remove(&id);
            shared.changed();
        });
    }

    /// Runs a shim, and waits until it says that its container is created.
    async fn spawn(&self, directory: &Directory) -> Result<(), Error> {
        let failed = |error: io::Error| system("starting the shim", &error);
        let errors = fs::File::create(directory.join("shim.log")).map_err(failed)?;
        let shim = &self.shared.config.shim;
        let mut command = tokio::process::Command::new(&shim.program);
        command
            .args(&shim.args)
            .arg(directory.path())
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(errors);
        command.kill_on_drop(false);
        let mut child = command.spawn().map_err(failed)?;
        let stdout = child.stdout.take().expect("its output was asked to be a pipe");
        let shared = Arc::clone(&self.shared);
        self.tasks().spawn(async move {
            // Only to reap it.
            let _ = child.wait().await;
            shared.changed();
        });
        // Not to its end: the first process of the container keeps it open until it runs the command.
        let mut line = Vec::new();
        let mut stdout = BufReader::new(stdout.take(LINE_MAX as u64));
        stdout.read_until(b'\n', &mut line).await.map_err(failed)?;
        let message = match serde_json::from_slice(&line) {
            Ok(Created::Ok) => return Ok(()),
            Ok(Created::Failed(message)) => message,
            Err(_) => fs::read_to_string(directory.join("shim.log"))
                .unwrap_or_default()
                .trim()
                .to_owned(),
        };
        Err(Error::System {
            context: "creating the container".to_owned(),
            message,
        })
    }

    /// Whether the container exists with this spec, once nobody is making it any more.
    async fn exists(&self, directory: &Directory, id: &ContainerId, spec: &ContainerSpec) -> Result<bool, Error> {
        loop {
            let there = self.shared.inspect(directory.clone()).await?;
            let found = directory.spec().map_err(|error| system("reading the spec", &error))?;
            match (there, found) {
                (Some(_), Some(found)) if found == *spec => return Ok(true),
                (Some(_), _) => return Err(Error::Conflict(id.clone())),
                (None, _) => {}
            }
            // An agent that has died, or another one, may have begun to make it: its shim goes on.
            if directory
                .shim()
                .map_err(|error| system("reading the lock", &error))?
                .is_none()
            {
                return Ok(false);
            }
            tokio::time::sleep(LOOK_AGAIN).await;
        }
    }

    async fn create_now(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        let directory = self.shared.directory(id);
        let _turn = self.shared.turn(id).await;
        if self.exists(&directory, id, spec).await? {
            return Ok(());
        }
        let (shared, whole, known) = (Arc::clone(&self.shared), directory.clone(), (id.clone(), spec.clone()));
        let prepared = blocking("preparing the container", move || {
            shared.discard(whole.path())?;
            prepare::prepare(&shared.config, shared.hierarchies.as_ref(), &whole, &known.0, &known.1)
        });
        let made = match prepared.await {
            Ok(()) => self.spawn(&directory).await,
            failed => failed,
        };
        if let Err(error) = made {
            let shared = Arc::clone(&self.shared);
            blocking("removing what was prepared", move || shared.discard(directory.path())).await?;
            return Err(error);
        }
        self.watch(id).await;
        self.shared.changed();
        Ok(())
    }

    /// Asks the shim of a container, when it lives. Otherwise the container has ended, and there is nothing to do.
    async fn ask(&self, id: &ContainerId, request: Request) -> Result<(), Error> {
        let directory = self.shared.directory(id);
        let _turn = self.shared.turn(id).await;
        match self.shared.inspect(directory.clone()).await? {
            None => return Err(Error::NotFound(id.clone())),
            Some(Container {
                state: State::Exited(_),
                ..
            }) => return Ok(()),
            Some(_) => {}
        }
        self.watch(id).await;
        let reply = control::ask(&directory, request).await;
        self.shared.changed();
        match reply {
            Ok(Reply::Ok) => Ok(()),
            Ok(Reply::Failed(message)) => Err(Error::System {
                context: "the shim".to_owned(),
                message,
            }),
            // It may have ended in between, and that was all that was wanted.
            Err(error) => match self.shared.inspect(directory).await? {
                Some(Container {
                    state: State::Exited(_),
                    ..
                }) => Ok(()),
                _ => Err(system("asking the shim", &error)),
            },
        }
    }

    async fn remove_now(&self, id: &ContainerId) -> Result<(), Error> {
        let directory = self.shared.directory(id);
        let _turn = self.shared.turn(id).await;
        match self.shared.inspect(directory.clone()).await? {
            Some(Container {
                state: State::Exited(_),
                ..
            }) => {}
            Some(_) => return Err(Error::Running(id.clone())),
            None if directory
                .shim()
                .map_err(|error| system("reading the lock", &error))?
                .is_some() =>
            {
                return Err(Error::Running(id.clone()));
            }
            None => {}
        }
        // The shim cleans up after it has written the exit.
        while directory
            .shim()
            .map_err(|error| system("reading the lock", &error))?
            .is_some()
        {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        let shared = Arc::clone(&self.shared);
        blocking("removing the container", move || shared.discard(directory.path())).await?;
        self.shared.changed();
        Ok(())
    }

    async fn list_now(&self) -> Result<Vec<Container>, Error> {
        let shared = Arc::clone(&self.shared);
        let ids = blocking("listing", move || shared.ids()).await?;
        // First watched, then looked at: a change in between is announced.
        for id in &ids {
            self.watch(id).await;
        }
        let shared = Arc::clone(&self.shared);
        blocking("listing", move || {
            let containers = ids.into_iter().map(|id| shared.inspect_now(&shared.directory(&id)));
            containers.filter_map(Result::transpose).collect()
        })
        .await
    }
}

impl Shared {
    fn directory(&self, id: &ContainerId) -> Directory {
        Directory::at(self.config.state_dir.join("containers").join(id.as_str()))
    }

    fn changed(&self) {
        self.version.send_modify(|version| *version += 1);
    }

    async fn turn(&self, id: &ContainerId) -> tokio::sync::OwnedMutexGuard<()> {
        let turn = {
            let mut busy = lock(&self.busy);
            busy.retain(|_, turn| Arc::strong_count(turn) > 1);
            Arc::clone(busy.entry(id.clone()).or_default())
        };
        turn.lock_owned().await
    }

    fn ids(&self) -> Result<Vec<ContainerId>, Error> {
        let failed = |error: io::Error| system("listing", &error);
        let mut ids = Vec::new();
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
        ids.sort();
        Ok(ids)
    }

    async fn inspect(self: &Arc<Self>, directory: Directory) -> Result<Option<Container>, Error> {
        let shared = Arc::clone(self);
        blocking("looking at a container", move || shared.inspect_now(&directory)).await
    }

    /// The container in a directory; `None` when none was created there (completely).
    fn inspect_now(&self, directory: &Directory) -> Result<Option<Container>, Error> {
        let failed = |error: io::Error| system(&format!("container {}", directory.path().display()), &error);
        let id = directory
            .path()
            .file_name()
            .and_then(|name| ContainerId::new(name.to_str()?));
        let (Some(id), Some(spec)) = (id, directory.spec().map_err(failed)?) else {
            return Ok(None);
        };
        let container = |state| {
            Some(Container {
                id,
                labels: spec.labels,
                state,
            })
        };
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

    /// Removes the directory of a container, in one step for whoever lists.
    fn discard(&self, directory: &Path) -> Result<(), Error> {
        let failed = |error: io::Error| system(&format!("removing {}", directory.display()), &error);
        let trash = self.config.state_dir.join("trash");
        let name = directory.file_name().unwrap_or_default();
        // A name that an earlier removal did not finish is taken.
        let place = (0_u64..)
            .map(|n| trash.join(format!("{}.{n}", name.display())))
            .find(|place| !place.exists());
        let place = place.expect("there are more numbers than files");
        match fs::rename(directory, &place) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            renamed => renamed.map_err(failed)?,
        }
        match fs::remove_dir_all(place) {
            // Another agent empties the trash.
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(failed(error)),
            _ => Ok(()),
        }
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

fn system(context: &str, error: &io::Error) -> Error {
    Error::System {
        context: context.to_owned(),
        message: error.to_string(),
    }
}

/// Does work that blocks on the disk.
async fn blocking<T: Send + 'static>(
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

async fn within<T>(
    call: &'static str,
    deadline: Duration,
    work: impl Future<Output = Result<T, Error>>,
) -> Result<T, Error> {
    tokio::time::timeout(deadline, work)
        .await
        .unwrap_or(Err(Error::Deadline { call, deadline }))
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn isolation(&self) -> Isolation {
        self.shared.isolation.clone()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        within("list", LIST_DEADLINE, self.list_now()).await
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        spec.check()?;
        within("create", CREATE_DEADLINE, self.create_now(id, spec)).await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        within("start", CALL_DEADLINE, self.ask(id, Request::Start)).await
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        let grace_ms = u64::try_from(stop.grace.as_millis()).unwrap_or(u64::MAX);
        within(
            "stop",
            CALL_DEADLINE,
            self.ask(
                id,
                Request::Stop {
                    signal: stop.signal,
                    grace_ms,
                },
            ),
        )
        .await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        within("remove", REMOVE_DEADLINE, self.remove_now(id)).await
    }

    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        let (shared, directory, query, id) = (
            Arc::clone(&self.shared),
            self.shared.directory(id),
            query.clone(),
            id.clone(),
        );
        let read = blocking("reading the log", move || {
            // Asked before the log is read, so that its end is the end.
            let state = shared.inspect_now(&directory)?.ok_or(Error::NotFound(id))?.state;
            logs::read(directory.path(), &query, matches!(state, State::Exited(_)))
        });
        within("logs", CALL_DEADLINE, read).await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let mut version = self.shared.version.subscribe();
        // Containers of before are watched from the first list on, so the first thing to do is to list.
        version.mark_changed();
        stream::unfold(version, |mut version| async move {
            version.changed().await.ok()?;
            Some(((), version))
        })
        .boxed()
    }
}
