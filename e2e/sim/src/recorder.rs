//! A store that remembers its whole history, also what it was told to forget, and has each revision checked in the moment it comes to be.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use muster_api::env::Env;
use muster_store::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, MemoryStore, Page, Prefix, Revision, Store, Txn,
    WatchEvent, WatchStream,
};

use crate::env::SimEnv;
use crate::invariants::Checker;

/// See the module.
pub struct Recorder {
    store: MemoryStore,
    env: Arc<SimEnv>,
    history: Mutex<WatchStream>,
    checker: Mutex<Checker>,
}

impl Recorder {
    /// Records what happens to the store from now on.
    pub fn new(store: MemoryStore, env: Arc<SimEnv>) -> Recorder {
        let history = store.watch(&Prefix::new(""), 0);
        Recorder {
            store,
            env,
            history: Mutex::new(history),
            checker: Mutex::default(),
        }
    }

    /// What is known of the history so far.
    pub fn checker(&self) -> MutexGuard<'_, Checker> {
        self.checker.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Has everything checked that happened since the last call.
    pub fn listen(&self) {
        let mut history = self.history.lock().unwrap_or_else(PoisonError::into_inner);
        self.checker().tick(self.env.now(), self.env.latest());
        // Whoever commits may have used up its turn; history is read all the same.
        while let Some(event) = tokio::task::unconstrained(history.next()).now_or_never() {
            let event = event.expect("a watch does not end");
            match event.expect("history is read before it is forgotten") {
                WatchEvent::Batch { revision, changes } => self.checker().apply(revision, &changes),
                WatchEvent::Progress(_) => {}
            }
        }
    }
}

#[async_trait]
impl Store for Recorder {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.store.list(prefix, page).await
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        // Leases whose time is over end first.
        self.store.revision().await?;
        self.listen();
        let result = self.store.commit(txn).await;
        self.listen();
        result
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        self.store.watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.listen();
        self.store.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.store.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.store.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.store.revoke(lease).await
    }
}
