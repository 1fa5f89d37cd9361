//! A store that fails as stores do, by a plan that a seed decides.
//!
//! Wraps any store and adds what networks, disks and other people do to its answers: calls that fail before or after they
//! took effect or that take effect long after they failed, delays, watches that break or repeat themselves, leases that
//! end early, history that goes. What it must never do is break a promise of [`Store`]: reads stay linearizable, a
//! conflict is a real one, changes stay in order (with [`Faults::watch_repeat`], as etcd before 3.4.24, batches may come
//! twice). With [`Faults::none`] it passes the conformance suite; with faults, `conformance::under_faults`.
//!
//! All delays are tokio's, so they cost nothing under paused time; on a single-threaded runtime the same seed and the
//! same calls give the same faults.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};
use tokio::task::JoinSet;
use tokio::time::sleep;

use crate::types::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Txn, WatchError, WatchEvent,
    WatchStream,
};
use crate::{Revision, Store};

/// How probable each fault is, from 0 (never) to 1 (always).
#[derive(Clone, Debug, PartialEq)]
pub struct Faults {
    /// A call, or the start of a watch, fails and has had no effect. At 1 the store is cut off.
    pub unavailable_before: f64,
    /// A call that writes fails although it has had its effect.
    pub unavailable_after: f64,
    /// A commit fails and is tried all the same, up to ten times [`delay_max`](Faults::delay_max) later.
    pub late_commit: f64,
    /// A call, its answer, or an item of a watch comes late.
    pub delay: f64,
    /// By at most this much.
    pub delay_max: Duration,
    /// A watch breaks where the next item should have come.
    pub watch_cut: f64,
    /// A watch gives a batch a second time, right after the first.
    pub watch_repeat: f64,
    /// A lease ends when its holder keeps it alive; half of the holders are told that all went well.
    pub lease_lost: f64,
    /// All history is forgotten after a commit.
    pub compaction: f64,
}

impl Faults {
    /// No faults at all.
    pub const fn none() -> Faults {
        Faults {
            unavailable_before: 0.0,
            unavailable_after: 0.0,
            late_commit: 0.0,
            delay: 0.0,
            delay_max: Duration::ZERO,
            watch_cut: 0.0,
            watch_repeat: 0.0,
            lease_lost: 0.0,
            compaction: 0.0,
        }
    }
}

/// How many faults of each kind there have been.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Injected {
    /// See [`Faults::unavailable_before`].
    pub unavailable_before: u64,
    /// See [`Faults::unavailable_after`].
    pub unavailable_after: u64,
    /// See [`Faults::late_commit`].
    pub late_commits: u64,
    /// See [`Faults::delay`].
    pub delays: u64,
    /// See [`Faults::watch_cut`].
    pub watch_cuts: u64,
    /// See [`Faults::watch_repeat`].
    pub watch_repeats: u64,
    /// See [`Faults::lease_lost`].
    pub leases_lost: u64,
    /// See [`Faults::compaction`].
    pub compactions: u64,
}

/// See the module.
pub struct FaultStore {
    inner: Arc<dyn Store>,
    plan: Arc<Plan>,
    /// Commits that will happen after their callers were told that they failed; dropped with the store.
    late: Mutex<JoinSet<()>>,
}

struct Plan {
    state: Mutex<State>,
}

struct State {
    faults: Faults,
    random: StdRng,
    injected: Injected,
}

impl FaultStore {
    /// `inner` with faults that `seed` places.
    pub fn new(inner: Arc<dyn Store>, seed: u64, faults: Faults) -> FaultStore {
        let state = State {
            faults,
            random: StdRng::seed_from_u64(seed),
            injected: Injected::default(),
        };
        FaultStore {
            inner,
            plan: Arc::new(Plan {
                state: Mutex::new(state),
            }),
            late: Mutex::default(),
        }
    }

    /// Changes what may go wrong from now on, for open watches too. Late commits that are under way still happen.
    pub fn set_faults(&self, faults: Faults) {
        self.plan.lock().faults = faults;
    }

    /// What has gone wrong so far.
    pub fn injected(&self) -> Injected {
        self.plan.lock().injected
    }

    /// Waits until every late commit has happened.
    pub async fn settle(&self) {
        let mut late = std::mem::take(&mut *self.late.lock().expect(LOCKED));
        while late.join_next().await.is_some() {}
    }

    async fn commit_late(&self, txn: Txn) -> CommitError {
        let inner = Arc::clone(&self.inner);
        let wait = self.plan.pause() * 10;
        self.late.lock().expect(LOCKED).spawn(async move {
            sleep(wait).await;
            // Nobody waits for the answer any more.
            let _ = inner.commit(txn).await;
        });
        CommitError::Unknown("injected: no answer in time".to_owned())
    }
}

const LOCKED: &str = "no one panics while holding the plan";

impl Plan {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCKED)
    }

    /// Whether it happens now.
    fn draw(&self, probability: impl Fn(&Faults) -> f64, count: impl Fn(&mut Injected) -> &mut u64) -> bool {
        let mut state = self.lock();
        let probability = probability(&state.faults);
        let hit = probability > 0.0 && state.random.random_bool(probability.min(1.0));
        if hit {
            *count(&mut state.injected) += 1;
        }
        hit
    }

    fn pause(&self) -> Duration {
        let mut state = self.lock();
        let most = state.faults.delay_max;
        most.mul_f64(state.random.random())
    }

    async fn delay(&self) {
        if self.draw(|faults| faults.delay, |injected| &mut injected.delays) {
            sleep(self.pause()).await;
        }
    }

    async fn before(&self) -> Result<(), Error> {
        self.delay().await;
        if self.draw(
            |faults| faults.unavailable_before,
            |injected| &mut injected.unavailable_before,
        ) {
            return Err(Error::Unavailable("injected: the call did not arrive".to_owned()));
        }
        Ok(())
    }

    async fn after(&self) -> Result<(), Error> {
        self.delay().await;
        if self.draw(
            |faults| faults.unavailable_after,
            |injected| &mut injected.unavailable_after,
        ) {
            return Err(Error::Unavailable("injected: the answer was lost".to_owned()));
        }
        Ok(())
    }
}

#[async_trait]
impl Store for FaultStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.plan.before().await?;
        self.inner.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.plan.before().await?;
        self.inner.list(prefix, page).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        self.plan.before().await?;
        if self
            .plan
            .draw(|faults| faults.late_commit, |injected| &mut injected.late_commits)
        {
            return Err(self.commit_late(txn).await);
        }
        let result = self.inner.commit(txn).await;
        if self
            .plan
            .draw(|faults| faults.compaction, |injected| &mut injected.compactions)
        {
            self.inner.compact(self.inner.revision().await?).await?;
        }
        let heard = self.plan.after().await;
        heard.map_err(|error| CommitError::Unknown(error.to_string()))?;
        result
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        let watch = FaultyWatch {
            inner: self.inner.watch(prefix, after),
            plan: Arc::clone(&self.plan),
            again: None,
            started: false,
            ended: false,
        };
        stream::unfold(watch, FaultyWatch::next).boxed()
    }

    fn gapless(&self) -> bool {
        self.inner.gapless()
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.plan.before().await?;
        self.inner.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.plan.before().await?;
        self.inner.compact(revision).await?;
        self.plan.after().await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.plan.before().await?;
        let lease = self.inner.grant(ttl).await?;
        self.plan.after().await?;
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.plan.before().await?;
        let result = if self
            .plan
            .draw(|faults| faults.lease_lost, |injected| &mut injected.leases_lost)
        {
            let told = self.plan.lock().random.random_bool(0.5);
            self.inner.revoke(lease).await?;
            if told { Err(LeaseError::Gone(lease)) } else { Ok(()) }
        } else {
            self.inner.keep_alive(lease).await
        };
        self.plan.after().await?;
        result
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.plan.before().await?;
        self.inner.revoke(lease).await?;
        self.plan.after().await
    }
}

struct FaultyWatch {
    inner: WatchStream,
    plan: Arc<Plan>,
    again: Option<WatchEvent>,
    started: bool,
    ended: bool,
}

impl FaultyWatch {
    async fn next(mut self) -> Option<(Result<WatchEvent, WatchError>, FaultyWatch)> {
        if self.ended {
            return None;
        }
        if !std::mem::replace(&mut self.started, true)
            && let Err(error) = self.plan.before().await
        {
            self.ended = true;
            return Some((Err(error.into()), self));
        }
        if let Some(event) = self.again.take() {
            return Some((Ok(event), self));
        }
        let item = self.inner.next().await?;
        self.plan.delay().await;
        if self
            .plan
            .draw(|faults| faults.watch_cut, |injected| &mut injected.watch_cuts)
        {
            self.ended = true;
            let error = Error::Unavailable("injected: the watch broke".to_owned());
            return Some((Err(error.into()), self));
        }
        if let Ok(event @ WatchEvent::Batch { .. }) = &item
            && self
                .plan
                .draw(|faults| faults.watch_repeat, |injected| &mut injected.watch_repeats)
        {
            self.again = Some(event.clone());
        }
        Some((item, self))
    }
}
