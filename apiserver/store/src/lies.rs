//! A store that breaks its promises, as etcd has in one version or another, by a plan that a seed decides.
//!
//! [`FaultStore`](crate::FaultStore) is as bad as a store may be; this one is worse than that. Each lie is a bug that a release of etcd
//! had (its changelog is the source): watches that lose, swap, rewind or anticipate events, reads that are stale after a pause, leases
//! that end early or live on, keepalives that are answered for a lease that is gone. Whoever reads a store through it must notice or not
//! depend on it. What it never does: a transaction that is not atomic, or that happens although a compare does not hold. With
//! [`Lies::none`] it passes the conformance suite.

use std::collections::{BTreeSet, VecDeque};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use crate::types::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Txn, WatchError, WatchEvent,
    WatchStream,
};
use crate::{Revision, Store};

/// How probable each lie is, from 0 (never) to 1 (always).
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Lies {
    /// A watch loses a batch (etcd before 3.4.31, after compaction).
    pub watch_lost: f64,
    /// A watch gives two batches in the wrong order.
    pub watch_swapped: f64,
    /// A watch goes back in time: the last few batches come again, the oldest first (etcd before 3.4.25).
    pub watch_rewound: f64,
    /// A watch claims progress up to a batch before it gives the batch (etcd before 3.4.25).
    pub watch_anticipated: f64,
    /// A read is answered from an earlier state (etcd before 3.4.42, after the process was stopped).
    pub stale_read: f64,
    /// With a commit, some lease ends although it was kept alive (etcd before 3.4.31, by a deposed leader).
    pub lease_revoked: f64,
    /// A lease lives up to three times as long as it should (a new leader arms every lease anew).
    pub lease_outlives: f64,
    /// A lease that is gone is said to have been kept alive (etcd before 3.4.38).
    pub keep_alive_of_the_dead: f64,
}

impl Lies {
    /// The truth.
    pub fn none() -> Lies {
        Lies::default()
    }
}

/// See the module.
pub struct LyingStore {
    inner: Arc<dyn Store>,
    plan: Arc<Plan>,
}

struct Plan {
    state: Mutex<State>,
}

struct State {
    lies: Lies,
    random: StdRng,
    told: u64,
    leases: BTreeSet<LeaseId>,
    /// Everything, as of some time ago; what stale reads are answered from.
    past: Option<Listing>,
}

/// How many batches a rewound watch repeats.
const REWIND: usize = 3;
/// How often the past is remembered anew: one commit in so many.
const REMEMBER: u32 = 8;

const LOCKED: &str = "no one panics while holding the plan";

impl LyingStore {
    /// `inner` with lies that `seed` places.
    pub fn new(inner: Arc<dyn Store>, seed: u64, lies: Lies) -> LyingStore {
        let state = State {
            lies,
            random: StdRng::seed_from_u64(seed ^ 0x11e5),
            told: 0,
            leases: BTreeSet::new(),
            past: None,
        };
        LyingStore {
            inner,
            plan: Arc::new(Plan {
                state: Mutex::new(state),
            }),
        }
    }

    /// Changes what is lied about from now on, in open watches too.
    pub fn set_lies(&self, lies: Lies) {
        let mut state = self.plan.lock();
        state.lies = lies;
        state.past = None;
    }

    /// How many lies were told.
    pub fn told(&self) -> u64 {
        self.plan.lock().told
    }

    /// The past, if this read is answered from it.
    fn past(&self) -> Option<Listing> {
        self.plan
            .draw(|lies| lies.stale_read)
            .then(|| self.plan.lock().past.clone())
            .flatten()
    }

    async fn after_commit(&self) {
        let remember = {
            let mut state = self.plan.lock();
            state.lies.stale_read > 0.0 && state.random.random_ratio(1, REMEMBER)
        };
        if remember && let Ok(listing) = self.inner.list(&Prefix::new(""), Page::default()).await {
            self.plan.lock().past = Some(listing);
        }
        if self.plan.draw(|lies| lies.lease_revoked)
            && let Some(lease) = self.plan.some_lease()
        {
            // Whether it can be revoked or is gone already makes no difference to a lie.
            let _ = self.inner.revoke(lease).await;
        }
    }
}

impl Plan {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().expect(LOCKED)
    }

    fn draw(&self, probability: impl Fn(&Lies) -> f64) -> bool {
        let mut state = self.lock();
        let probability = probability(&state.lies);
        let hit = probability > 0.0 && state.random.random_bool(probability.min(1.0));
        state.told += u64::from(hit);
        hit
    }

    fn some_lease(&self) -> Option<LeaseId> {
        let mut state = self.lock();
        let count = state.leases.len();
        let index = if count == 0 {
            return None;
        } else {
            state.random.random_range(0..count)
        };
        let lease = state.leases.iter().nth(index).copied()?;
        state.leases.remove(&lease);
        Some(lease)
    }
}

#[async_trait]
impl Store for LyingStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        match self.past() {
            Some(past) => Ok(past.entries.into_iter().find(|entry| entry.key == *key)),
            None => self.inner.get(key).await,
        }
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        let Some(past) = self.past() else {
            return self.inner.list(prefix, page).await;
        };
        let behind = |key: &Key| page.after.as_ref().is_none_or(|after| key > after);
        let mut entries: Vec<Entry> = past.entries;
        entries.retain(|entry| prefix.contains(&entry.key) && behind(&entry.key));
        let limit = page.limit.unwrap_or(usize::MAX);
        let more = entries.len() > limit;
        entries.truncate(limit);
        Ok(Listing {
            entries,
            revision: past.revision,
            more,
        })
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let revision = self.inner.commit(txn).await?;
        self.after_commit().await;
        Ok(revision)
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        let watch = LyingWatch {
            inner: self.inner.watch(prefix, after),
            plan: Arc::clone(&self.plan),
            next: VecDeque::new(),
            given: VecDeque::new(),
        };
        stream::unfold(watch, LyingWatch::next).boxed()
    }

    fn gapless(&self) -> bool {
        self.inner.gapless()
    }

    async fn revision(&self) -> Result<Revision, Error> {
        match self.past() {
            Some(past) => Ok(past.revision),
            None => self.inner.revision().await,
        }
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.inner.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let longer = self.plan.draw(|lies| lies.lease_outlives);
        let factor = if longer {
            self.plan.lock().random.random_range(1.0..3.0)
        } else {
            1.0
        };
        let lease = self.inner.grant(ttl.mul_f64(factor)).await?;
        self.plan.lock().leases.insert(lease);
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        match self.inner.keep_alive(lease).await {
            Err(LeaseError::Gone(_)) if self.plan.draw(|lies| lies.keep_alive_of_the_dead) => Ok(()),
            other => other,
        }
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.inner.revoke(lease).await
    }
}

type Item = Result<WatchEvent, WatchError>;

struct LyingWatch {
    inner: WatchStream,
    plan: Arc<Plan>,
    /// What is given before anything else is read.
    next: VecDeque<Item>,
    /// What was given last.
    given: VecDeque<WatchEvent>,
}

impl LyingWatch {
    async fn next(mut self) -> Option<(Item, LyingWatch)> {
        loop {
            if let Some(item) = self.next.pop_front() {
                return Some((item, self));
            }
            let item = self.inner.next().await?;
            let Ok(WatchEvent::Batch { revision, .. }) = &item else {
                return Some((item, self));
            };
            let revision = *revision;
            if self.plan.draw(|lies| lies.watch_lost) {
                continue;
            }
            if self.plan.draw(|lies| lies.watch_swapped) {
                // Nothing follows for now: then it is only late.
                let after = self.inner.next().await?;
                self.next.push_back(after);
                self.next.push_back(item);
                continue;
            }
            if self.plan.draw(|lies| lies.watch_rewound) {
                self.next.extend(self.given.iter().cloned().map(Ok));
            }
            if self.plan.draw(|lies| lies.watch_anticipated) {
                self.next.push_back(Ok(WatchEvent::Progress(revision)));
            }
            if let Ok(event) = &item {
                self.given.push_back(event.clone());
                if self.given.len() > REWIND {
                    self.given.pop_front();
                }
            }
            self.next.push_back(item);
        }
    }
}
