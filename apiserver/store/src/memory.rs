//! A store without a disk: for tests, simulations and clusters that nobody will miss.
//!
//! Everything the trait promises but survival. It has no threads and no tasks: leases end when anyone looks, and every
//! watch that waits looks when the next lease is due. So it runs on a single-threaded runtime with paused time, and the
//! same calls in the same order give the same revisions, lease ids and events.

use std::sync::{Arc, Mutex, MutexGuard};
use std::time::Duration;

use async_trait::async_trait;
use tokio::sync::watch as signal;
use tokio::time::Instant;

use crate::core::{Batch, Core};
use crate::history::{Bounds, History};
use crate::types::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Txn, WatchError, WatchStream,
};
use crate::{Revision, Store, watch};

/// The history that is kept without anyone asking for more or less: 64 Ki revisions are eleven minutes at 100 writes a
/// second; 16 MiB are 10,000 values of 1.5 KB, of which the current ones are shared. What is older counts as compacted.
const BOUNDS: Bounds = Bounds {
    revisions: 64 * 1024,
    bytes: 16 << 20,
};

/// See the module.
#[derive(Clone)]
pub struct MemoryStore {
    shared: Arc<Shared>,
}

struct Shared {
    inner: Mutex<Inner>,
    wake: signal::Sender<()>,
}

struct Inner {
    core: Core,
    history: History,
}

impl MemoryStore {
    /// An empty store at revision zero.
    pub fn new() -> MemoryStore {
        let inner = Inner {
            core: Core::default(),
            history: History::new(0, BOUNDS),
        };
        MemoryStore {
            shared: Arc::new(Shared {
                inner: Mutex::new(inner),
                wake: signal::Sender::new(()),
            }),
        }
    }
}

impl Default for MemoryStore {
    fn default() -> MemoryStore {
        MemoryStore::new()
    }
}

impl Shared {
    /// The state as of now: leases whose time is over have ended.
    fn now(&self) -> MutexGuard<'_, Inner> {
        let mut inner = self.inner.lock().expect("no one panics while holding the state");
        let now = Instant::now();
        while let Some((_, batch)) = inner.core.expire(now) {
            self.record(&mut inner, batch);
        }
        inner
    }

    fn record(&self, inner: &mut Inner, batch: Option<Batch>) {
        if let Some(batch) = batch {
            inner.history.push(Arc::new(batch));
            self.wake.send_replace(());
        }
    }
}

#[async_trait]
impl watch::Source for Shared {
    async fn since(self: Arc<Self>, after: Revision) -> Result<Vec<Arc<Batch>>, WatchError> {
        let inner = self.now();
        inner.history.since(after).ok_or(WatchError::Compacted {
            compacted: inner.history.floor(),
        })
    }

    fn next_deadline(&self) -> Option<Instant> {
        self.now().core.leases().next_deadline()
    }
}

#[async_trait]
impl Store for MemoryStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        Ok(self.shared.now().core.entries().get(key).cloned())
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        let inner = self.shared.now();
        Ok(inner.core.entries().list(prefix, &page, inner.core.revision()))
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        let mut inner = self.shared.now();
        let batch = inner.core.commit(txn)?;
        self.shared.record(&mut inner, batch);
        Ok(inner.core.revision())
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        watch::stream(&self.shared, self.shared.wake.subscribe(), prefix.clone(), after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        Ok(self.shared.now().core.revision())
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        let mut inner = self.shared.now();
        let newest = inner.core.revision();
        if revision > newest {
            return Err(Error::Fatal(format!(
                "cannot forget revision {revision}: the store is at {newest}"
            )));
        }
        inner.history.forget(revision);
        Ok(())
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        let lease = self.shared.now().core.grant(ttl, Instant::now());
        // Watches that wait have to know the new deadline.
        self.shared.wake.send_replace(());
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.shared.now().core.keep_alive(lease, Instant::now())
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        let mut inner = self.shared.now();
        let batch = inner.core.revoke(lease);
        self.shared.record(&mut inner, batch);
        Ok(())
    }
}
