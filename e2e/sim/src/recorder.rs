//! A store that remembers its whole history, also what it was told to forget.

use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use async_trait::async_trait;
use futures::{FutureExt, StreamExt};
use muster_store::{
    Change, CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, MemoryStore, Page, Prefix, Revision, Store,
    Txn, WatchEvent, WatchStream,
};

/// See the module.
pub struct Recorder {
    store: MemoryStore,
    tape: Mutex<Tape>,
}

struct Tape {
    history: WatchStream,
    batches: Vec<(Revision, Vec<Change>)>,
}

impl Recorder {
    /// Records what happens to the store from now on.
    pub fn new(store: MemoryStore) -> Recorder {
        let history = store.watch(&Prefix::new(""), 0);
        Recorder {
            store,
            tape: Mutex::new(Tape {
                history,
                batches: Vec::new(),
            }),
        }
    }

    /// Everything that happened since the last call, revision by revision.
    pub fn take(&self) -> Vec<(Revision, Vec<Change>)> {
        let mut tape = self.tape.lock().unwrap_or_else(PoisonError::into_inner);
        tape.listen();
        std::mem::take(&mut tape.batches)
    }
}

impl Tape {
    fn listen(&mut self) {
        while let Some(event) = self.history.next().now_or_never() {
            match event
                .expect("a watch does not end")
                .expect("history is read before it is forgotten")
            {
                WatchEvent::Batch { revision, changes } => self.batches.push((revision, changes)),
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
        self.store.commit(txn).await
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        self.store.watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.tape.lock().unwrap_or_else(PoisonError::into_inner).listen();
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
