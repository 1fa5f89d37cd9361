//! Who wrote which revision.
//!
//! Every transaction of a request carries one more key: a note of who asked for it, under which fence. So history itself says who wrote
//! what, for writes, too, that land long after their request had failed, and nobody has to believe an answer.

use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_store::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Op, Page, Prefix, Revision, Store, Txn, WatchStream,
};
use serde::{Deserialize, Serialize};

/// Where the note is.
pub const NOTE: &str = "simulation/writer";

/// A request, as its writes are signed.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Writer {
    /// Each delivery of a request has its own.
    pub id: u64,
    /// The process that sent it: `controllers-0.3`.
    pub process: String,
    /// Method and path.
    pub request: String,
    /// `NAMESPACE/LEASE` and create revision of the fence that it carried.
    pub fence: Option<(String, Revision)>,
}

impl Writer {
    /// Whether a process of the controllers sent it.
    pub fn is_controllers(&self) -> bool {
        self.process.starts_with("controllers-")
    }

    /// The machine of the agent that sent it, if one did.
    pub fn machine(&self) -> Option<&str> {
        let (machine, _) = self.process.rsplit_once('.')?;
        machine.starts_with("machine-").then_some(machine)
    }
}

tokio::task_local! {
    /// The request that the running code answers.
    pub static WRITER: Writer;
}

/// A store that signs what is written to it.
pub struct Signed(pub Arc<dyn Store>);

#[async_trait]
impl Store for Signed {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.0.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.0.list(prefix, page).await
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, CommitError> {
        if !txn.ops.is_empty()
            && let Ok(note) = WRITER.try_with(|writer| serde_json::to_vec(writer).expect("a writer is plain data"))
        {
            txn.ops.push(Op::put(Key::new(NOTE), note));
        }
        self.0.commit(txn).await
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        self.0.watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.0.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
        self.0.compact(revision).await
    }

    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error> {
        self.0.grant(ttl).await
    }

    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError> {
        self.0.keep_alive(lease).await
    }

    async fn revoke(&self, lease: LeaseId) -> Result<(), Error> {
        self.0.revoke(lease).await
    }
}
