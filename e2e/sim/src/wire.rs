//! An API server's way to the store: it can be cut, in either direction, and its server can be stopped.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use futures::{StreamExt, stream};
use muster_store::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Revision, Store, Txn, WatchEvent,
    WatchStream,
};
use tokio::time::timeout;

use crate::gate::Gate;
use crate::network::Network;
use crate::sieve::{Harm, Place};

/// What the store is called in the network.
pub const STORE: &str = "store";

/// How long a server waits for a store that does not answer.
const PATIENCE: Duration = Duration::from_secs(3);

/// See the module.
#[derive(Clone)]
pub struct Wire {
    /// The store at its other end.
    pub store: Arc<dyn Store>,
    /// The name of the server in the network.
    pub server: String,
    /// Whether the server runs.
    pub gate: Gate,
    /// Whether the wire is whole.
    pub network: Arc<Network>,
}

impl Wire {
    async fn ask(&self) -> Result<(), Error> {
        self.gate.pass().await;
        self.cross(&self.server, STORE, "the call did not arrive").await
    }

    async fn answer(&self) -> Result<(), Error> {
        self.cross(STORE, &self.server, "no answer came").await?;
        self.gate.pass().await;
        Ok(())
    }

    async fn cross(&self, from: &str, to: &str, what: &str) -> Result<(), Error> {
        let crossed = timeout(PATIENCE, self.network.cross(from, to)).await;
        crossed.map_err(|_| Error::Unavailable(format!("partition: {what}")))
    }
}

/// The same watch, but the sieve may take an event out, or give it after the next one.
fn harmed(items: WatchStream, network: Arc<Network>) -> WatchStream {
    let Some(sieve) = network.sieve() else { return items };
    let kept = items.scan(None, move |late, item| {
        let harm = matches!(item, Ok(WatchEvent::Batch { .. }))
            .then(|| sieve.pass(Place::Hub))
            .flatten();
        let now = match harm {
            Some(Harm::EventLost) => Vec::new(),
            Some(_) => {
                *late = Some(item);
                Vec::new()
            }
            None => [Some(item), late.take()].into_iter().flatten().collect(),
        };
        futures::future::ready(Some(stream::iter(now)))
    });
    kept.flatten().boxed()
}

#[async_trait]
impl Store for Wire {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.ask().await?;
        let got = self.store.get(key).await?;
        self.answer().await?;
        Ok(got)
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.ask().await?;
        let listing = self.store.list(prefix, page).await?;
        self.answer().await?;
        Ok(listing)
    }

    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        self.ask().await?;
        let result = self.store.commit(txn).await;
        self.answer().await?;
        result
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        let wire = self.clone();
        let opening = {
            let (wire, prefix) = (self.clone(), prefix.clone());
            async move {
                match wire.ask().await {
                    Ok(()) => wire.store.watch(&prefix, after),
                    Err(error) => stream::iter([Err(error.into())]).boxed(),
                }
            }
        };
        let items = harmed(stream::once(opening).flatten().boxed(), self.network.clone());
        let arrived = items.then(move |item| {
            let wire = wire.clone();
            async move {
                wire.network.cross(STORE, &wire.server).await;
                wire.gate.pass().await;
                item
            }
        });
        arrived.boxed()
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.ask().await?;
        let revision = self.store.revision().await?;
        self.answer().await?;
        Ok(revision)
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.ask().await?;
        self.store.compact(revision).await?;
        self.answer().await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.ask().await?;
        let lease = self.store.grant(ttl).await?;
        self.answer().await?;
        Ok(lease)
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.ask().await?;
        let result = self.store.keep_alive(lease).await;
        self.answer().await?;
        result
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.ask().await?;
        self.store.revoke(lease).await?;
        self.answer().await
    }
}
