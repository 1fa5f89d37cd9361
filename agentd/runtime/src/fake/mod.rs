//! Containers in memory: a small real runtime with knobs.
//!
//! It promises what every [`Runtime`] promises (it passes [`crate::conformance`]) and costs nothing: no thread, no task, no
//! process. Time is tokio's, so paused time works; things that are due happen when somebody looks, in the order of their
//! times, so equal calls give equal histories. The machine is shared by all clones: a clone given to a "restarted" agent
//! finds the containers of the one before.
//!
//! What must never happen here: ambient time or randomness; a call that does not go through [`FakeRuntime::set_faults`].
//!
//! It counts ([`FakeRuntime::starts`]) and remembers ([`FakeRuntime::history`]), so that a test can say "never started twice"
//! over a whole run, containers that were removed included.

mod behaviour;
mod machine;
mod session;

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::StreamExt as _;
use futures::stream::{self, BoxStream};
use tokio::sync::watch;
use tokio::time::Instant;

use crate::limits::{CALL_DEADLINE, CREATE_DEADLINE, LIST_DEADLINE, REMOVE_DEADLINE};
use crate::{
    Container, ContainerId, ContainerSpec, Error, Exec, Exit, Guard, Isolation, LogChunk, LogQuery, Runtime, Session,
    Stop, Usage,
};

pub use behaviour::{Behaviour, Ending, Output};
use machine::Machine;
pub use machine::{Event, Happening};

/// A call of [`Runtime`], named for faults.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Call {
    /// [`Runtime::list`].
    List,
    /// [`Runtime::create`].
    Create,
    /// [`Runtime::start`].
    Start,
    /// [`Runtime::stop`].
    Stop,
    /// [`Runtime::remove`].
    Remove,
    /// [`Runtime::logs`].
    Logs,
    /// [`Runtime::exec`].
    Exec,
    /// [`Runtime::usage`].
    Usage,
}

/// How a call goes wrong.
#[derive(Clone, Debug)]
pub enum Fault {
    /// It does nothing and fails with this.
    Fail(Error),
    /// It does nothing, hangs, and fails when its deadline is over.
    Hang,
    /// It does its work, hangs, and fails when its deadline is over: the caller cannot tell it from [`Fault::Hang`].
    DoThenHang,
}

type Clock = Arc<dyn Fn() -> i64 + Send + Sync>;
type Behaviours = Arc<dyn Fn(&ContainerId, &ContainerSpec) -> Behaviour + Send + Sync>;
type Faults = Box<dyn FnMut(Call, Option<&ContainerId>) -> Option<Fault> + Send>;

/// The fake runtime; clones share one machine.
#[derive(Clone)]
pub struct FakeRuntime {
    shared: Arc<Shared>,
}

struct Shared {
    clock: Clock,
    /// When the machine was started.
    boot: Instant,
    inner: Mutex<Inner>,
    /// Rises with every change that did not come by the passing of time.
    version: watch::Sender<u64>,
}

struct Inner {
    machine: Machine,
    behaviours: Behaviours,
    faults: Faults,
    once: VecDeque<(Call, Fault)>,
    sessions: BTreeMap<ContainerId, usize>,
}

impl FakeRuntime {
    /// An empty machine. The clock gives milliseconds since the epoch; commands do what [`Behaviour::of`] says.
    pub fn new(clock: impl Fn() -> i64 + Send + Sync + 'static) -> FakeRuntime {
        let inner = Inner {
            machine: Machine::default(),
            behaviours: Arc::new(|_, spec| Behaviour::of(spec)),
            faults: Box::new(|_, _| None),
            once: VecDeque::new(),
            sessions: BTreeMap::new(),
        };
        FakeRuntime {
            shared: Arc::new(Shared {
                clock: Arc::new(clock),
                boot: Instant::now(),
                inner: Mutex::new(inner),
                version: watch::Sender::new(0),
            }),
        }
    }

    /// Containers started from now on do what this says.
    pub fn set_behaviours(
        &self,
        behaviours: impl Fn(&ContainerId, &ContainerSpec) -> Behaviour + Send + Sync + 'static,
    ) {
        self.inner().behaviours = Arc::new(behaviours);
    }

    /// Calls from now on go wrong when this says so.
    pub fn set_faults(&self, faults: impl FnMut(Call, Option<&ContainerId>) -> Option<Fault> + Send + 'static) {
        self.inner().faults = Box::new(faults);
    }

    /// The next such call goes wrong, once. Several of one call take turns.
    pub fn fault_once(&self, call: Call, fault: Fault) {
        self.inner().once.push_back((call, fault));
    }

    /// Ends a running container from outside, as a signal from another process does.
    pub fn kill(&self, id: &ContainerId, signal: i32) {
        self.change(|machine| {
            machine.end(id, |started_ms, finished_ms| {
                ended(None, Some(signal), started_ms, finished_ms)
            })
        });
    }

    /// Ends a running container with this exit code, whatever its behaviour is.
    pub fn exit(&self, id: &ContainerId, code: i32) {
        self.change(|machine| {
            machine.end(id, |started_ms, finished_ms| {
                ended(Some(code), None, started_ms, finished_ms)
            })
        });
    }

    /// The machine loses its power and comes back: what was created or ran has exited, nobody knows how.
    pub fn reboot(&self) {
        self.change(Machine::reboot);
    }

    /// A container is gone without a trace, as when someone deletes it by hand.
    pub fn vanish(&self, id: &ContainerId) {
        self.change(|machine| machine.vanish(id));
    }

    /// How often the command of a container of this id was run, removed ones included.
    pub fn starts(&self, id: &ContainerId) -> usize {
        self.change_silently(|machine| machine.starts(id))
    }

    /// Everything that happened, in order; removed containers included.
    pub fn history(&self) -> Vec<Event> {
        self.change_silently(|machine| machine.history().to_vec())
    }

    /// The same, without the first so many.
    pub fn history_after(&self, seen: usize) -> Vec<Event> {
        self.change_silently(|machine| machine.history()[seen..].to_vec())
    }

    fn inner(&self) -> MutexGuard<'_, Inner> {
        self.shared.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Lets everything happen that is due, then does this.
    fn change_silently<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        let wall_ms = (self.shared.clock)();
        let mut inner = self.inner();
        inner.machine.settle(Instant::now(), wall_ms);
        change(&mut inner.machine)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Machine) -> T) -> T {
        let out = self.change_silently(change);
        self.shared.version.send_modify(|version| *version += 1);
        out
    }

    fn fault(&self, call: Call, id: Option<&ContainerId>) -> Option<Fault> {
        let mut inner = self.inner();
        match inner.once.iter().position(|(of, _)| *of == call) {
            Some(at) => inner.once.remove(at).map(|(_, fault)| fault),
            None => (inner.faults)(call, id),
        }
    }

    /// Does a call, with whatever fault is due for it.
    async fn call<T>(
        &self,
        call: Call,
        id: Option<&ContainerId>,
        work: impl FnOnce(&FakeRuntime) -> Result<T, Error> + Send,
    ) -> Result<T, Error> {
        match self.fault(call, id) {
            None => return work(self),
            Some(Fault::Fail(error)) => return Err(error),
            Some(Fault::Hang) => {}
            Some(Fault::DoThenHang) => drop(work(self)),
        }
        let (call, deadline) = match call {
            Call::List => ("list", LIST_DEADLINE),
            Call::Create => ("create", CREATE_DEADLINE),
            Call::Start => ("start", CALL_DEADLINE),
            Call::Stop => ("stop", CALL_DEADLINE),
            Call::Remove => ("remove", REMOVE_DEADLINE),
            Call::Logs => ("logs", CALL_DEADLINE),
            Call::Exec => ("exec", CALL_DEADLINE),
            Call::Usage => ("usage", CALL_DEADLINE),
        };
        tokio::time::sleep(deadline).await;
        Err(Error::Deadline { call, deadline })
    }
}

fn ended(code: Option<i32>, signal: Option<i32>, started_ms: i64, finished_ms: i64) -> Exit {
    Exit {
        code,
        signal,
        oom_killed: false,
        started_ms: Some(started_ms),
        finished_ms,
        error: None,
    }
}

#[async_trait]
impl Runtime for FakeRuntime {
    fn isolation(&self) -> Isolation {
        Isolation::default()
    }

    async fn list(&self) -> Result<Vec<Container>, Error> {
        self.call(Call::List, None, |fake| {
            Ok(fake.change_silently(|machine| machine.list()))
        })
        .await
    }

    async fn create(&self, id: &ContainerId, spec: &ContainerSpec) -> Result<(), Error> {
        self.call(Call::Create, Some(id), |fake| {
            fake.change(|machine| machine.create(id, spec))
        })
        .await
    }

    async fn start(&self, id: &ContainerId) -> Result<(), Error> {
        self.call(Call::Start, Some(id), |fake| {
            let behaviours = Arc::clone(&fake.inner().behaviours);
            fake.change(|machine| machine.start(id, |spec| behaviours(id, spec)))
        })
        .await
    }

    async fn stop(&self, id: &ContainerId, stop: Stop) -> Result<(), Error> {
        self.call(Call::Stop, Some(id), |fake| {
            fake.change(|machine| machine.stop(id, stop))
        })
        .await
    }

    async fn remove(&self, id: &ContainerId) -> Result<(), Error> {
        self.call(Call::Remove, Some(id), |fake| fake.change(|machine| machine.remove(id)))
            .await
    }

    async fn logs(&self, id: &ContainerId, query: &LogQuery) -> Result<LogChunk, Error> {
        self.call(Call::Logs, Some(id), |fake| {
            fake.change_silently(|machine| machine.logs(id, query))
        })
        .await
    }

    async fn exec(&self, id: &ContainerId, exec: &Exec) -> Result<Session, Error> {
        self.call(Call::Exec, Some(id), |fake| session::begin(fake, id, exec))
            .await
    }

    async fn usage(&self, ids: &[ContainerId]) -> Result<Usage, Error> {
        self.call(Call::Usage, None, |fake| {
            Ok(fake.change_silently(|machine| machine.usage(ids)))
        })
        .await
    }

    fn changes(&self) -> BoxStream<'static, ()> {
        let fake = self.clone();
        let version = self.shared.version.subscribe();
        stream::unfold((fake, version), |(fake, mut version)| async move {
            // What time brings is not announced by anyone, so sleep until the next thing that is due.
            let due = fake.change_silently(|machine| machine.due());
            let timer = async {
                match due {
                    Some(due) => tokio::time::sleep_until(due).await,
                    None => std::future::pending().await,
                }
            };
            tokio::select! {
                biased;
                changed = version.changed() => changed.ok()?,
                () = timer => {}
            }
            Some(((), (fake, version)))
        })
        .boxed()
    }

    fn guard(&self) -> Option<&dyn Guard> {
        Some(self)
    }
}

impl Guard for FakeRuntime {
    fn now(&self) -> Duration {
        self.shared.boot.elapsed()
    }

    fn vouch(&self, at: Duration) -> Result<(), Error> {
        self.change_silently(|machine| machine.vouch(self.shared.boot + at));
        Ok(())
    }
}

#[cfg(test)]
mod tests;
