//! The agent's loop: it owns everything that is known, plans, and hands out jobs.
//!
//! It promises: every change of a container, of a task or of the session leads to a plan at once, no polling in between; while the runtime
//! works on a task nothing else is planned for it, and afterwards the containers are listed before it is planned again; what is said is
//! said until the API server shows it. What must never happen here: a decision (those are in [`crate::plan`]).

mod end;
mod given;
mod judge;

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use futures::stream::{BoxStream, Fuse};
use futures::{FutureExt as _, StreamExt as _};
use jiff::Timestamp;
use muster_api::env::Env;
use muster_api::v1::Task;
use muster_client::{Client, Error as CallError};
use muster_runtime::{Container, Runtime, State};
use tokio::sync::{Notify, Semaphore, mpsc, watch};
use tokio::task::{JoinError, JoinSet};
use tokio::time::{Instant, Interval, MissedTickBehavior, interval, sleep_until, timeout};
use tokio_util::sync::CancellationToken;

use crate::data_dir::DataDir;
use crate::devices::{self, DeviceSource};
use crate::executor::{self, Acted};
use crate::feed::Backoff;
use crate::limits::{
    NOTE_EVERY, REPORT_JOBS, REPORTS_MANY, RESYNC, ROUND_REST_MAX, ROUND_SHARE, RUNTIME_DEADLINE, RUNTIME_JOBS,
};
use crate::orphans::Orphans;
use crate::plan::{self, Action, AgentPlan, Memory, PlanInput, Report, TaskKey};
use crate::pulls::{PullKey, Pulled, Pulling};
use crate::register::Health;
use crate::report::{self, Deferred};
use crate::session::Session;
use crate::sources::{Read, SourceKey, Sources};
use crate::spec;
use crate::trust::{Known, Trust};
use crate::view::{View, ViewEvent};
use crate::volumes::Places;

/// What the loop is made from.
pub(crate) struct Parts {
    pub(crate) name: String,
    pub(crate) boot_id: String,
    /// Not fenced.
    pub(crate) client: Client,
    pub(crate) data: DataDir,
    pub(crate) places: Arc<Places>,
    /// The clusters that have answered.
    pub(crate) clusters: watch::Receiver<BTreeSet<String>>,
    /// Where to say what keeps the agent from its work.
    pub(crate) health: watch::Sender<Health>,
    /// Has the tasks listed again.
    pub(crate) relist: Arc<Notify>,
    /// What an operator has confirmed.
    pub(crate) confirmed: watch::Receiver<Option<String>>,
    pub(crate) runtime: Arc<dyn Runtime>,
    pub(crate) devices: Arc<dyn DeviceSource>,
    pub(crate) env: Arc<dyn Env>,
    /// The session under which the Agent object is right.
    pub(crate) active: watch::Receiver<Option<Session>>,
    pub(crate) events: mpsc::Receiver<ViewEvent>,
    pub(crate) doubt: Arc<Notify>,
    pub(crate) stop: CancellationToken,
    pub(crate) stop_tasks: bool,
}

/// A job that has ended.
enum Done {
    Acted(String, Vec<Acted>),
    /// With the revision of the session under which it was said.
    Reported(TaskKey, u64, Box<Result<Option<Task>, CallError>>),
    /// Whether there is no task of this uid, and at which revision.
    Asked(String, Result<(bool, u64), CallError>),
    /// The highest revision seen when the server was asked where it is, and its answer.
    Looked(u64, Result<u64, CallError>),
    /// This was written down, or not.
    Noted(Known, std::io::Result<()>),
    /// What came of reading a Secret or ConfigMap.
    Read(SourceKey, Read),
    /// The uids of tasks whose directories an earlier process has left.
    Left(BTreeSet<String>),
}

/// A report that has to wait before it is tried again, unless the task changes.
struct Hold {
    until: Instant,
    backoff: Backoff,
}

pub(crate) struct Agent {
    parts: Parts,
    changes: Fuse<BoxStream<'static, ()>>,
    device_changes: Option<watch::Receiver<u64>>,
    resync: Interval,
    view: View,
    containers: Vec<Container>,
    /// Whether the containers may be different from what was listed.
    stale: bool,
    /// Whether there ever was a session: until then nothing is known to be ours.
    joined: bool,
    memory: Memory,
    orphans: Orphans,
    busy: BTreeSet<String>,
    reporting: BTreeSet<TaskKey>,
    holds: BTreeMap<TaskKey, Hold>,
    deferred: Deferred,
    /// The session that is known to be gone.
    fenced: Option<u64>,
    jobs: JoinSet<Done>,
    /// Apart from the jobs: nothing waits for them.
    pulls: Pulling,
    sources: Sources,
    /// The uids of tasks that have directories here.
    given: BTreeSet<String>,
    runtime_slots: Arc<Semaphore>,
    report_slots: Arc<Semaphore>,
    list_backoff: Backoff,
    wake: Option<Instant>,
    /// Until when the next round waits: rounds take a small part of the time, however many tasks there are.
    rest: Instant,
    /// When everything has to be stopped at the latest, once it has to be stopped.
    draining: Option<Instant>,
    problems: BTreeSet<String>,
    idle: bool,
    trust: Trust,
    /// When the server is asked where it is; `None`: it is being asked.
    look_at: Option<Instant>,
    /// What is written down, and when to write again; `None`: it is being written.
    noted: (Known, Option<Instant>),
}

impl Agent {
    pub(crate) fn new(parts: Parts) -> Agent {
        let mut resync = interval(RESYNC);
        resync.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let known = parts.data.read();
        Agent {
            changes: parts.runtime.changes().fuse(),
            device_changes: parts.devices.changes(),
            resync,
            view: View::after(known.highest),
            trust: Trust::new(known.clone()),
            look_at: Some(Instant::now() + RESYNC),
            noted: (known, Some(Instant::now())),
            containers: Vec::new(),
            stale: true,
            joined: false,
            memory: Memory::default(),
            orphans: Orphans::default(),
            busy: BTreeSet::new(),
            reporting: BTreeSet::new(),
            holds: BTreeMap::new(),
            deferred: Deferred::default(),
            fenced: None,
            jobs: JoinSet::new(),
            pulls: Pulling::new(parts.runtime.puller()),
            sources: Sources::default(),
            given: BTreeSet::new(),
            runtime_slots: Arc::new(Semaphore::new(RUNTIME_JOBS)),
            report_slots: Arc::new(Semaphore::new(REPORT_JOBS)),
            list_backoff: Backoff::new(),
            wake: None,
            rest: Instant::now(),
            draining: None,
            problems: BTreeSet::new(),
            idle: false,
            parts,
        }
    }

    /// Runs until it is told to stop, and, if so configured, until nothing is left of its tasks.
    ///
    /// # Errors
    /// When a job panicked.
    pub(crate) async fn run(mut self) -> Result<(), JoinError> {
        let stop = self.parts.stop.clone();
        self.look_for_directories();
        loop {
            tokio::select! {
                biased;
                () = stop.cancelled(), if self.draining.is_none() => {
                    if !self.parts.stop_tasks {
                        break;
                    }
                    self.draining = Some(Instant::now() + self.drain_patience());
                    self.stale = true;
                }
                Some(done) = self.jobs.join_next(), if !self.jobs.is_empty() => self.done(done?),
                pulled = self.pulls.next() => self.pulled(pulled?),
                changed = self.parts.active.changed() => {
                    if changed.is_err() {
                        break;
                    }
                }
                event = self.parts.events.recv() => match event {
                    Some(event) => self.seen(event),
                    None => break,
                },
                Ok(()) = self.parts.clusters.changed() => {}
                Ok(()) = self.parts.confirmed.changed() => {}
                () = devices::changed(&mut self.device_changes) => {}
                Some(()) = self.changes.next() => self.stale = true,
                _ = self.resync.tick() => self.resync(),
                () = until(self.wake) => {}
            }
            while let Some(done) = self.jobs.try_join_next() {
                self.done(done?);
            }
            while let Ok(event) = self.parts.events.try_recv() {
                self.seen(event);
            }
            self.joined |= self.parts.active.borrow_and_update().is_some();
            let now = Instant::now();
            if now < self.rest {
                self.wake = Some(self.wake.map_or(self.rest, |wake| wake.min(self.rest)));
                continue;
            }
            if self.joined && self.view.is_listed() {
                self.round().await;
                self.rest = now + rest(now.elapsed());
            }
            if self.drained() {
                break;
            }
        }
        self.finish().await
    }

    fn done(&mut self, done: Done) {
        match done {
            Done::Acted(uid, acted) => {
                let now = self.parts.env.now();
                for (action, answer) in &acted {
                    self.memory.acted(action, answer, now);
                }
                self.busy.remove(&uid);
                self.stale = true;
            }
            Done::Reported(key, session, answer) => {
                self.reporting.remove(&key);
                self.reported(key, session, *answer);
            }
            Done::Asked(uid, answer) => {
                let counts = |(_, revision): &(bool, u64)| *revision >= self.view.highest();
                let absent = answer.ok().filter(counts).map(|(absent, _)| absent);
                self.orphans.answered(&uid, absent, Instant::now());
            }
            Done::Looked(highest, answer) => {
                self.look_at = Some(Instant::now() + RESYNC);
                match answer {
                    Ok(revision) => {
                        let token = || self.parts.env.uid().to_string();
                        self.trust.looked(revision, highest, token);
                        if revision < highest && !self.view.regressed() {
                            // A watch from a revision that does not exist any more only waits for it.
                            self.parts.relist.notify_one();
                        }
                    }
                    Err(error) => tracing::warn!(%error, "the API server does not say where it is"),
                }
            }
            Done::Read(key, read) => {
                if let Err(error) = &read {
                    tracing::warn!(%key, error, "cannot be read");
                }
                self.sources.came(key, read, self.parts.env.now());
            }
            Done::Left(uids) => self.given.extend(uids),
            Done::Noted(known, answer) => {
                if let Err(error) = &answer {
                    tracing::warn!(%error, "what is known of the cluster is not written down");
                } else {
                    self.noted.0 = known;
                }
                self.noted.1 = Some(Instant::now() + NOTE_EVERY);
            }
        }
    }

    fn pulled(&mut self, (key, pulled): (PullKey, Pulled)) {
        if let Some(ids) = self.pulls.ended(&key, pulled, self.parts.env.now()) {
            self.memory.image_is_here(&key.image, ids);
        }
    }

    fn reported(&mut self, key: TaskKey, session: u64, answer: Result<Option<Task>, CallError>) {
        match answer {
            Ok(Some(task)) => {
                self.holds.remove(&key);
                self.view.acknowledged(task);
                return;
            }
            // Let go of: the watch will say so. Until then there is nothing to say.
            Ok(None) => {}
            Err(CallError::Fenced(_)) => {
                tracing::warn!(task = %key, "the session is gone; nothing is said until there is another");
                // The answer may come when there is another session already, which it says nothing about.
                self.fenced = self.fenced.max(Some(session));
                self.parts.doubt.notify_one();
                return;
            }
            Err(error @ (CallError::Conflict(_) | CallError::NotFound(_))) => {
                tracing::debug!(task = %key, %error, "the task has changed; looked at again");
            }
            Err(error) => tracing::warn!(task = %key, %error, "a status was not taken"),
        }
        let mut backoff = self.holds.remove(&key).map_or_else(Backoff::new, |hold| hold.backoff);
        let until = Instant::now() + backoff.next();
        self.holds.insert(key, Hold { until, backoff });
    }

    fn seen(&mut self, event: ViewEvent) {
        match self.view.apply(event) {
            // What is new may be what a report waited for.
            Some(key) if self.view.contains(&key) => {
                if let Some(hold) = self.holds.get_mut(&key) {
                    hold.until = Instant::now();
                }
            }
            Some(key) => drop(self.holds.remove(&key)),
            None => self.holds.retain(|key, _| self.view.contains(key)),
        }
    }

    /// Lists if something may have changed, plans, and hands out what is to be done.
    async fn round(&mut self) {
        self.wake = None;
        if self.stale && !self.list().await {
            return;
        }
        let now = Instant::now();
        let wall = self.parts.env.now();
        let session = self.parts.active.borrow().clone();
        let session = session.filter(|session| self.fenced != Some(session.fence.revision));
        let trusted = self.judge(now);
        if !trusted && self.draining.is_none() {
            // Nothing that the server says now counts, and nothing that is said to it would.
            self.idle = false;
            self.wake = self.look_at.filter(|at| *at > now);
            return;
        }
        let session = session.filter(|_| trusted);
        let disk = self.parts.health.borrow().disk.clone();
        self.parts.devices.held(self.held());
        let orphans = self.orphans.look(&self.view, &self.containers, now);
        self.ask(now);
        let plan = plan::plan(&PlanInput {
            agent: &self.parts.name,
            tasks: self.view.tasks(),
            ended: self.view.ended(),
            containers: &self.containers,
            devices: self.parts.devices.as_ref(),
            now: wall,
            may_start: session.is_some(),
            disk: disk.as_deref(),
            boot_id: &self.parts.boot_id,
            can_fence: self.parts.runtime.guard().is_some(),
            draining: self.draining.is_some(),
            busy: &self.busy,
            orphans: &orphans,
            memory: &self.memory,
            pulls: self.pulls.look(wall),
            sources: self.sources.known(),
            places: &self.parts.places,
        });
        self.idle = plan.actions.is_empty() && (plan.reports.is_empty() || session.is_none()) && self.jobs.is_empty();
        self.wake = [
            self.orphans.next(now),
            self.look_at,
            self.draining,
            plan.wake.map(|at| instant(at, wall, now)),
        ]
        .into_iter()
        .flatten()
        .min();
        self.carry_out(plan, session, now);
        self.clear();
    }

    /// The devices of containers that live.
    fn held(&self) -> BTreeSet<String> {
        let alive = self
            .containers
            .iter()
            .filter(|container| !matches!(container.state, State::Exited(_)));
        alive.flat_map(spec::devices).map(str::to_owned).collect()
    }

    /// Whether the list is good.
    async fn list(&mut self) -> bool {
        self.stale = false;
        let listed = timeout(RUNTIME_DEADLINE, self.parts.runtime.list()).await;
        match listed {
            Ok(Ok(containers)) => {
                self.memory.listed(&containers, self.view.uids());
                self.containers = containers;
                self.list_backoff = Backoff::new();
                return true;
            }
            Ok(Err(error)) => tracing::warn!(%error, "the containers cannot be listed"),
            Err(_) => tracing::warn!("the containers cannot be listed in time"),
        }
        self.stale = true;
        self.wake = Some(Instant::now() + self.list_backoff.next());
        false
    }

    fn carry_out(&mut self, plan: AgentPlan, session: Option<Session>, now: Instant) {
        for problem in plan.problems {
            if !self.problems.contains(&problem) {
                tracing::warn!(problem, "left alone");
                self.problems.insert(problem);
            }
        }
        for (uid, actions) in plan.actions {
            self.busy.insert(uid.clone());
            let made = |action: &Action| matches!(action, Action::Create { makes, .. } if !makes.is_empty());
            if actions.iter().any(made) {
                self.given.insert(uid.clone());
            }
            let (runtime, slots) = (Arc::clone(&self.parts.runtime), Arc::clone(&self.runtime_slots));
            let places = Arc::clone(&self.parts.places);
            self.jobs
                .spawn(async move { Done::Acted(uid, executor::act(runtime, places, slots, actions).await) });
        }
        self.read(&plan.sources);
        self.pulls.want(&plan.images, self.parts.env.now());
        let Some(session) = session else {
            return;
        };
        let many = self.reporting.len() + plan.reports.len() > REPORTS_MANY;
        self.deferred.keep(&plan.reports);
        for (key, report) in plan.reports {
            if self.reporting.contains(&key) {
                continue;
            }
            if many && let Some(until) = self.deferred.until(&key, &report, now) {
                self.wake = Some(self.wake.map_or(until, |wake| wake.min(until)));
                continue;
            }
            match self.holds.get(&key) {
                Some(hold) if hold.until > now => {
                    self.wake = Some(self.wake.map_or(hold.until, |wake| wake.min(hold.until)));
                    continue;
                }
                _ => {}
            }
            self.say(key, report, &session);
        }
    }

    fn say(&mut self, key: TaskKey, report: Report, session: &Session) {
        let (client, slots) = (session.client.clone(), Arc::clone(&self.report_slots));
        let saying = match report {
            Report::Status(status) => {
                let Some(task) = self.view.tasks().get(&key).cloned() else {
                    return;
                };
                tracing::info!(task = %key, phase = %status.phase, reason = ?status.reason, "says");
                report::say(client, slots, task, status).boxed()
            }
            Report::Release => {
                let Some(task) = self.view.ended().get(&key).cloned() else {
                    return;
                };
                report::release(client, slots, key.clone(), task).boxed()
            }
        };
        self.reporting.insert(key.clone());
        let session = session.fence.revision;
        self.jobs
            .spawn(async move { Done::Reported(key, session, Box::new(saying.await)) });
    }
}

/// How long after its start a round that took this long is followed by the next.
fn rest(took: Duration) -> Duration {
    (took * ROUND_SHARE).min(ROUND_REST_MAX)
}

/// When the wall clock will show this, if nobody changes it; never the present, so that a clock that rounds makes no busy loop.
fn instant(at: Timestamp, wall: Timestamp, now: Instant) -> Instant {
    let wait = Duration::try_from(at.duration_since(wall)).unwrap_or_default();
    now + wait.clamp(Duration::from_millis(1), RESYNC)
}

async fn until(at: Option<Instant>) {
    match at {
        Some(at) => sleep_until(at).await,
        None => std::future::pending().await,
    }
}
