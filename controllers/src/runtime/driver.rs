//! The one loop that every planner runs in.
//!
//! Wait for a key, take the view, plan, let the executor write, wait until the view has reached what was written, next. So a
//! key is never planned from a view that lacks the planner's own writes, however long that takes. All decisions are in planners and all I/O is in the
//! executor; here is only the order of things.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use muster_api::env::Env;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;
use tracing::Instrument;

use super::executor::{Executor, Outcome};
use super::feed::{Feed, Subscriber};
use super::object::Change;
use super::plan::{Context, Plan, Planner};
use super::queue::Queue;
use super::view::View;

/// So many keys are planned from one view and written together.
const BATCH: usize = 32;

/// The grain of tokio's timers.
const GRAIN: Duration = Duration::from_millis(1);

/// Plans that take longer than this are made less often: planning takes at most half of the time then.
const PLANNING_LONG: Duration = Duration::from_millis(10);

/// A plan that took longer than this is waited for as if it had taken this.
const PLANNING_MAX: Duration = Duration::from_millis(250);

/// How long the view may take to reach what was written; then the watch starts anew.
const BARRIER_MAX: Duration = Duration::from_secs(5);

/// The clock of a term.
#[derive(Clone)]
pub struct Clock {
    env: Arc<dyn Env>,
    began: Instant,
    term: Timestamp,
}

impl Clock {
    /// A term begins.
    pub fn begin(env: Arc<dyn Env>) -> Clock {
        Clock {
            term: env.now(),
            began: Instant::now(),
            env,
        }
    }

    fn context(&self) -> Context {
        let elapsed = SignedDuration::try_from(self.began.elapsed()).unwrap_or(SignedDuration::MAX);
        Context {
            now: self.env.now(),
            steady: self.term.checked_add(elapsed).unwrap_or(Timestamp::MAX),
            term: self.term,
            failures: 0,
        }
    }
}

/// Why a driver ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It was told to.
    Cancelled,
    /// Somebody else leads now.
    Fenced,
}

struct Waker<P: Planner> {
    planner: Arc<P>,
    queue: Arc<Queue<P::Key>>,
}

impl<P: Planner> Subscriber for Waker<P> {
    fn changed(&self, changes: &[Change], view: &View) {
        for change in changes {
            for key in self.planner.keys(change, view) {
                self.queue.wake(key);
            }
        }
    }
}

/// Runs a planner until it is cancelled or fenced.
pub async fn drive<P: Planner>(
    planner: P,
    feed: Arc<Feed>,
    executor: Executor,
    clock: Clock,
    cancel: CancellationToken,
) -> Ended {
    let planner = Arc::new(planner);
    let queue = Arc::new(Queue::new(P::COALESCE));
    let waker = Waker {
        planner: planner.clone(),
        queue: queue.clone(),
    };
    let _subscription = feed.subscribe(Arc::new(waker));
    let driver = Driver {
        planner,
        queue,
        feed,
        executor,
        clock,
    };
    tokio::select! {
        biased;
        () = cancel.cancelled() => Ended::Cancelled,
        ended = driver.run() => ended,
    }
}

struct Driver<P: Planner> {
    planner: Arc<P>,
    queue: Arc<Queue<P::Key>>,
    feed: Arc<Feed>,
    executor: Executor,
    clock: Clock,
}

/// What became of the plan of one key.
#[derive(Default)]
struct Fate {
    failed: bool,
    outdated: bool,
    after: Option<Duration>,
}

impl<P: Planner> Driver<P> {
    async fn run(self) -> Ended {
        loop {
            let keys = self.queue.next(BATCH).await;
            let view = self.feed.view();
            let span = tracing::debug_span!("plan", planner = P::NAME, keys = keys.len(), revision = view.revision);
            if self.round(keys, view).instrument(span).await == Some(Ended::Fenced) {
                return Ended::Fenced;
            }
            // Plans without writes never wait; let the others have their turn.
            tokio::task::yield_now().await;
        }
    }

    async fn round(&self, keys: Vec<P::Key>, view: View) -> Option<Ended> {
        let context = self.clock.context();
        let started = Instant::now();
        let mut writes = Vec::new();
        let mut owners = Vec::new();
        for (index, key) in keys.iter().enumerate() {
            let failures = self.queue.failures(key);
            let plan = self.planner.plan(key, &view, &Context { failures, ..context });
            self.take_note(key, &plan, context.now);
            owners.extend(std::iter::repeat_n(index, plan.writes.len()));
            writes.extend(plan.writes);
        }
        drop(view);
        let planning = started.elapsed();
        let outcomes = self.executor.apply(writes).await;
        let mut fates: Vec<Fate> = keys.iter().map(|_| Fate::default()).collect();
        let mut highest = 0;
        for (owner, outcome) in owners.into_iter().zip(outcomes) {
            let fate = &mut fates[owner];
            match outcome {
                Outcome::Done(revision) => highest = highest.max(revision.unwrap_or_default()),
                Outcome::Skipped(error) => {
                    tracing::debug!(%error, "skipped");
                    fate.outdated = true;
                }
                Outcome::Kept(why) => {
                    tracing::debug!(why, planner = P::NAME, "kept");
                    fate.outdated = true;
                }
                Outcome::Fenced => return Some(Ended::Fenced),
                Outcome::Later { error, settled } => {
                    tracing::debug!(%error, "later");
                    highest = highest.max(settled.unwrap_or_default());
                    fate.failed = true;
                    if let muster_client::Error::Retryable { after, .. } = error {
                        fate.after = fate.after.max(after);
                    }
                }
                Outcome::Refused(error) => {
                    tracing::warn!(%error, planner = P::NAME, "refused");
                    fate.failed = true;
                }
            }
        }
        for (key, fate) in keys.into_iter().zip(fates) {
            if fate.failed {
                self.queue.failed(key, fate.after);
            } else if fate.outdated {
                self.queue.outdated(key);
            } else {
                self.queue.succeeded(&key);
            }
        }
        self.barrier(highest).await;
        if planning > PLANNING_LONG {
            // The larger the cluster, the more changes go into one plan.
            tokio::time::sleep_until(started + planning.min(PLANNING_MAX) * 2).await;
        }
        None
    }

    fn take_note(&self, key: &P::Key, plan: &Plan, now: Timestamp) {
        for line in &plan.report {
            tracing::debug!(?key, "{line}");
        }
        if !plan.writes.is_empty() {
            tracing::debug!(?key, writes = plan.writes.len(), "planned");
        }
        if let Some(wake) = plan.wake {
            // A clock that says "now" again would be asked again at once.
            let wait = Duration::try_from(wake.duration_since(now)).unwrap_or_default();
            self.queue.wake_at(key.clone(), Instant::now() + wait.max(GRAIN));
        }
    }

    async fn barrier(&self, revision: u64) {
        if revision == 0 {
            return;
        }
        while tokio::time::timeout(BARRIER_MAX, self.feed.reached(revision))
            .await
            .is_err()
        {
            tracing::warn!(
                revision,
                planner = P::NAME,
                "the view does not reach what was written; watching anew"
            );
            self.feed.resync();
        }
    }
}
