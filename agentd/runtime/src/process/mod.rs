//! Containers on this machine, without a daemon.
//!
//! Each container has a directory (module `directory`) and a shim ([`shim_main`]): this executable again, which makes the container with
//! libcontainer, holds its output and writes down its exit. Shims are forked from a server, which is this executable once more. The
//! runtime itself keeps nothing that matters: it reads directories and talks to shims, so any number of agents can come and go.
//!
//! It promises what [`Runtime`] promises, whatever is killed in between: the agent (the shim goes on), the server of shims (so do they, and
//! there is another one), the shim (what it held is killed and its exit says so), the machine (nothing is locked after a restart). Where
//! nothing can be isolated, commands run as plain processes and [`Runtime::isolation`] says what is missing and why.
//!
//! What must never happen here: a process, a mount or a cgroup touched that is not below [`Config::state_dir`] or
//! [`Config::cgroup_parent`].
//!
//! Tested by [`crate::conformance`] in both ways of holding a command, and by `tests/runtime` with everything killed and from inside
//! of containers.

mod cgroup;
mod clock;
mod config;
pub mod containerd;
mod control;
mod directory;
mod exec;
mod filter;
mod guard;
mod host;
mod init;
mod logs;
mod lost;
mod maker;
mod prepare;
mod pull;
mod shared;
mod shim;
mod shims;
mod sys;
mod unmake;
mod usage;
mod variables;

use std::fs;
use std::future::Future;
use std::io;
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, BufReader};
use tokio::sync::{oneshot, watch};
use tokio::task::JoinSet;

use crate::limits::{CALL_DEADLINE, CONTAINERD_CREATE_DEADLINE, CREATE_DEADLINE, LIST_DEADLINE, REMOVE_DEADLINE};
use crate::registry::{self, Puller};
use crate::{
    Container, ContainerId, ContainerSpec, Error, Exec, Guard, Isolation, LogChunk, LogQuery, Runtime, Session, State,
    Stop, Usage,
};
use control::{Created, LINE_MAX, Reply, Request};
use directory::{Directory, ROOT};
use maker::Maker;
use pull::IntoDirectory;
use shared::{Listed, Shared, blocking, lock, system, within};
use shims::{Asked, Shims};

pub use config::{Config, Isolate, ShimCommand};
pub use filter::seccomp_program;
pub use shim::shim_main;

/// How often something is looked at that cannot announce itself: a shim that another agent has just begun.
const LOOK_AGAIN: Duration = Duration::from_millis(5);

/// How often a container is begun anew when the server of shims has ended before it made a shim.
const SERVERS_TRIED: usize = 3;

/// What became of a shim that was asked for.
enum Made {
    /// It has created its container.
    Created,
    /// Another one is at it, or was.
    Elsewhere,
    /// There was none: the server ended before it made one.
    Nothing,
}

/// The runtime for commands on this machine.
pub struct ProcessRuntime {
    shared: Arc<Shared>,
}

impl ProcessRuntime {
    /// Opens the state directory; makes it when there is none. Needs a tokio runtime with I/O and time from its first call on.
    ///
    /// # Errors
    /// When the state directory cannot be made or read.
    pub fn new(config: Config) -> Result<ProcessRuntime, Error> {
        ProcessRuntime::with(config, None)
    }

    fn with(config: Config, maker: Option<Arc<dyn Maker>>) -> Result<ProcessRuntime, Error> {
        let failed = |error: io::Error| system(&format!("state directory {}", config.state_dir.display()), &error);
        Directory::at(config.state_dir.join("containers"))
            .make()
            .map_err(failed)?;
        for name in ["trash", ROOT] {
            Directory::at(config.state_dir.join(name)).make().map_err(failed)?;
        }
        let state_dir = config.state_dir.canonicalize().map_err(failed)?;
        let config = Config { state_dir, ..config };
        prepare::empty_trash(&config.state_dir);
        registry::forget_old(&config.pulls());
        let (hierarchies, isolation) = prepare::isolation(&config);
        let shims = Shims::new(config.shim.clone(), config.state_dir.join("shims.log"));
        // A maker begins shims in a way of its own.
        if maker.is_none()
            && let Err(error) = shims.begin()
        {
            tracing::warn!(%error, "shims cannot be made now; tried again with the first container");
        }
        let shared = Shared {
            config,
            shims,
            hierarchies,
            isolation,
            maker,
            version: watch::Sender::new(0),
            watched: Mutex::default(),
            settling: Mutex::default(),
            tasks: Mutex::new(JoinSet::new()),
            busy: Mutex::default(),
            exited: Mutex::default(),
            sessions: Arc::default(),
        };
        Ok(ProcessRuntime {
            shared: Arc::new(shared),
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
}

impl ProcessRuntime {
    /// Does work that must not stop halfway when nobody waits for it any more: it would leave the disk to the next call while it is still
    /// being written by this one. The next call on the container waits for its turn.
    async fn to_its_end(
        &self,
        call: &'static str,
        deadline: Duration,
        work: impl Future<Output = Result<(), Error>> + Send + 'static,
    ) -> Result<(), Error> {
        let (tell, told) = oneshot::channel();
        self.shared.tasks().spawn(async move {
            // Whoever asked may have given up.
            let _ = tell.send(work.await);
        });
        let gone = |_| Error::System {
            context: call.to_owned(),
            message: "the call was ended".to_owned(),
        };
        within(call, deadline, async { told.await.map_err(gone)? }).await
    }
}

impl Drop for ProcessRuntime {
    /// Lets go of shims and of calls that nobody waits for any more, as when the agent ends.
    fn drop(&mut self) {
        self.shared.tasks().abort_all();
    }
}

impl Shared {
    fn tasks(&self) -> MutexGuard<'_, JoinSet<()>> {
        let mut tasks = lock(&self.tasks);
        while tasks.try_join_next().is_some() {}
        tasks
    }

    /// Has the shim of a container watched from now on, if it lives.
    async fn watch(self: &Arc<Self>, id: &ContainerId) {
        if !lock(&self.watched).insert(id.clone()) {
            return;
        }
        let directory = self.directory(id);
        let mut stream = match control::connect(&directory).await {
            Ok(stream) => stream,
            Err(_) => {
                lock(&self.watched).remove(id);
                return;
            }
        };
        let (shared, id) = (Arc::clone(self), id.clone());
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

    /// Has a shim made, and waits until it says what became of its container.
    async fn spawn(self: &Arc<Self>, directory: &Directory) -> Result<Made, Error> {
        let failed = |error: io::Error| system("starting the shim", &error);
        let Some(Asked { said, server }) = self.shims.ask(directory.path()).map_err(failed)? else {
            return Ok(Made::Nothing);
        };
        let mut line = Vec::new();
        let mut said = BufReader::new(said.take(LINE_MAX as u64));
        tokio::select! {
            biased;
            read = said.read_until(b'\n', &mut line) => drop(read.map_err(failed)?),
            () = server.ended() => {
                // A shim that was made goes on, and holds the lock. Without one, what was said last may be in the pipe.
                while tokio::time::timeout(LOOK_AGAIN, said.read_until(b'\n', &mut line)).await.is_err()
                    && directory.shim().map_err(failed)?.is_some()
                {}
            }
        }
        let message = match serde_json::from_slice(&line) {
            Ok(Created::Ok) => return Ok(Made::Created),
            Ok(Created::Taken) => return Ok(Made::Elsewhere),
            Ok(Created::Failed(message)) => message,
            Err(_) => match fs::read_to_string(directory.join("shim.log")) {
                Ok(errors) if !server.has_ended() => format!("the shim has ended: {}", errors.trim()),
                _ => return Ok(Made::Nothing),
            },
        };
        Err(Error::System {
            context: "creating the container".to_owned(),
            message,
        })
    }

    /// That no shim was made is no failure, unless it happens again and again.
    fn no_shim(&self, tried: usize) -> Result<(), Error> {
        if tried < SERVERS_TRIED {
            return Ok(());
        }
        Err(Error::System {
            context: "creating the container".to_owned(),
            message: format!("the server of shims has ended: {}", self.shims.errors().trim()),
        })
    }

    /// Whether the container exists with this spec, once nobody is making it any more.
    async fn exists(
        self: &Arc<Self>,
        directory: &Directory,
        id: &ContainerId,
        spec: &ContainerSpec,
    ) -> Result<bool, Error> {
        loop {
            let there = self.inspect(directory.clone()).await?;
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

    /// Has a shim make the container.
    async fn have_made(
        self: &Arc<Self>,
        directory: &Directory,
        id: &ContainerId,
        spec: &ContainerSpec,
    ) -> Result<Made, Error> {
        let (shared, whole, known) = (Arc::clone(self), directory.clone(), (id.clone(), spec.clone()));
        let prepared = blocking("preparing the container", move || {
            prepare::prepare(&shared.config, shared.hierarchies.as_ref(), &whole, &known.0, &known.1)
        });
        prepared.await?;
        self.spawn(directory).await
    }

    async fn create_now(self: &Arc<Self>, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        let directory = self.directory(id);
        let _turn = self.turn(id).await;
        let mut tried = 0;
        // Until it is there: another agent, or one that has died, may be making it, and the server of shims may end.
        while !self.exists(&directory, id, spec).await? {
            if !self.discard_whole(id, &directory).await? {
                continue;
            }
            let made = match &self.maker {
                Some(maker) => maker.make(self, &directory, id, spec).await.map(|()| Made::Created),
                None => self.have_made(&directory, id, spec).await,
            };
            let failed = match made {
                Ok(Made::Created) => break,
                Ok(Made::Elsewhere) => continue,
                Ok(Made::Nothing) => {
                    tried += 1;
                    self.no_shim(tried)
                }
                Err(error) => Err(error),
            };
            if let Err(error) = failed {
                if let Err(error) = self.give_up(id, &directory).await {
                    // The next call on this container finds it.
                    tracing::warn!(container = %id, %error, "what was made of it stays for now");
                }
                return Err(error);
            }
        }
        self.watch(id).await;
        self.changed();
        Ok(())
    }

    /// Asks the shim of a container, when it lives. Otherwise the container has ended, and there is nothing to do.
    async fn ask(self: &Arc<Self>, id: &ContainerId, request: Request) -> Result<(), Error> {
        let directory = self.directory(id);
        let _turn = self.turn(id).await;
        self.watch(id).await;
        let reply = control::ask(&directory, request).await;
        self.changed();
        let error = match reply {
            Ok(Reply::Ok) => return Ok(()),
            Ok(Reply::Failed(message)) => {
                return Err(Error::System {
                    context: "the shim".to_owned(),
                    message,
                });
            }
            Err(error) => error,
        };
        // It may have ended, and that was all that was wanted.
        match self.inspect(directory).await? {
            None => Err(Error::NotFound(id.clone())),
            Some(Container {
                state: State::Exited(_),
                ..
            }) => Ok(()),
            Some(_) => Err(system("asking the shim", &error)),
        }
    }

    async fn remove_now(self: &Arc<Self>, id: &ContainerId) -> Result<(), Error> {
        let directory = self.directory(id);
        let _turn = self.turn(id).await;
        match self.inspect(directory.clone()).await? {
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
        while !self.discard_whole(id, &directory).await? {
            tokio::time::sleep(LOOK_AGAIN).await;
        }
        self.changed();
        Ok(())
    }

    async fn list_now(self: &Arc<Self>) -> Result<Vec<Container>, Error> {
        let shared = Arc::clone(self);
        let listed = blocking("listing", move || shared.listed()).await?;
        // First watched, then looked at: a change in between is announced.
        for listed in &listed {
            if let Listed::Look(id) = listed {
                self.watch(id).await;
            }
        }
        let shared = Arc::clone(self);
        blocking("listing", move || shared.inspect_all(listed)).await
    }
}

#[async_trait]
impl Runtime for ProcessRuntime {
    fn isolation(&self) -> Isolation {
        self.shared.isolation.clone()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        within("list", LIST_DEADLINE, self.shared.list_now()).await
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        spec.check()?;
        let (shared, id, spec) = (Arc::clone(&self.shared), id.clone(), spec.clone());
        let deadline = if shared.maker.is_some() {
            CONTAINERD_CREATE_DEADLINE
        } else {
            CREATE_DEADLINE
        };
        self.to_its_end("create", deadline, async move { shared.create_now(&id, &spec).await })
            .await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        within("start", CALL_DEADLINE, self.shared.ask(id, Request::Start)).await
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        let grace_ms = u64::try_from(stop.grace.as_millis()).unwrap_or(u64::MAX);
        within(
            "stop",
            CALL_DEADLINE,
            self.shared.ask(
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
        let (shared, id) = (Arc::clone(&self.shared), id.clone());
        self.to_its_end("remove", REMOVE_DEADLINE, async move { shared.remove_now(&id).await })
            .await
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

    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        self.shared.exec(id, exec).await
    }

    async fn usage(&self, ids: &[ContainerId]) -> Result<Usage, Error> {
        within("usage", CALL_DEADLINE, self.shared.usage(ids)).await
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

    fn puller(&self) -> Option<Arc<dyn Puller>> {
        // A plain process runs from no image.
        self.shared.hierarchies.as_ref()?;
        Some(Arc::new(IntoDirectory(Arc::clone(&self.shared))))
    }

    fn guard(&self) -> Option<&dyn Guard> {
        Some(self)
    }
}
