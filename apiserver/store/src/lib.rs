//! Bytes and revisions.
//!
//! A [`Store`] is an ordered map from keys to bytes in which every committed transaction gets the next revision. It knows
//! no kinds. It promises: transactions are atomic and compare before they write; a commit that returned survives a crash
//! (of a durable store); revisions rise and are never used twice, across restarts too; a watch yields every change after
//! its start in revision order, all changes of one revision together; keys under a lease vanish together when it ends.
//!
//! What must never happen here: an unconditional write, or the name of a kind. The promises are written down once, as
//! executable cases, in [`conformance`], and every store passes them.

pub mod backup;
pub mod conformance;
mod core;
pub mod embedded;
pub mod etcd;
pub mod fault;
mod history;
mod leases;
pub mod lies;
mod memory;
pub mod sealed;
#[cfg(feature = "testing")]
pub mod testing;
mod types;
mod watch;

use std::time::Duration;

use async_trait::async_trait;

pub use embedded::EmbeddedStore;
pub use etcd::{EtcdConfig, EtcdStore, EtcdTls};
pub use fault::{FaultStore, Faults};
pub use lies::{Lies, LyingStore};
pub use memory::MemoryStore;
pub use sealed::{Keyring, SealError, SealedStore};
pub use types::{
    Change, CommitError, Compare, Entry, Error, Key, LIMITS, LeaseError, LeaseId, Limits, Listing, Op, Page, Prefix,
    Revision, Test, Txn, WatchError, WatchEvent, WatchStream,
};

/// Where the control plane keeps its state. One of the four seams.
///
/// Every method may fail with an [`Error`] that says whether trying again can help.
#[async_trait]
pub trait Store: Send + Sync + 'static {
    /// The entry at `key`, from a state no older than the last acknowledged commit.
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error>;

    /// The entries under `prefix` in key order, and the revision that they were read at.
    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error>;

    /// Checks every compare and then does every put and delete, atomically, at one new revision, which is returned. Transactions that are
    /// committed at the same time may share it, if they have no keys in common.
    ///
    /// A transaction without operations writes nothing and returns the current revision. Deleting an absent key is not
    /// an error; to write a key twice, or the empty key, is ([`Error::Fatal`]). A transaction whose compares all hold and
    /// whose deletes all hit nothing still takes no revision.
    async fn commit(&self, txn: Txn) -> Result<Revision, CommitError>;

    /// Everything under `prefix` that was committed after revision `after`, in order, for ever.
    ///
    /// The stream ends after its first error. A start that has been compacted away yields [`WatchError::Compacted`].
    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream;

    /// Whether a watch over everything has a batch for every revision, so that a reader may take a revision that is missing for one that was
    /// lost. Not where others write, too.
    fn gapless(&self) -> bool {
        true
    }

    /// The revision of the last commit, or a later one: in a store that others use too, revisions pass that change nothing here.
    async fn revision(&self) -> Result<Revision, Error>;

    /// Forgets history up to and including `revision`; current values stay. Watches may then only start at or after it.
    /// What is forgotten already may be forgotten again; a revision that has not been yet is [`Error::Fatal`].
    async fn compact(&self, revision: Revision) -> Result<(), Error>;

    /// A new lease that ends `ttl` after its last [`keep_alive`](Store::keep_alive), or later: stores have their own shortest
    /// lease, and some count whole seconds. Holders go by the `ttl` that they asked for.
    async fn grant(&self, ttl: Duration) -> Result<LeaseId, Error>;

    /// Restarts the lease's clock. Writes nothing and takes no revision. Success is a hint: who must know that a key under the
    /// lease is still there compares it in a transaction.
    async fn keep_alive(&self, lease: LeaseId) -> Result<(), LeaseError>;

    /// Ends the lease now: its keys are deleted at one new revision. A lease that is gone already is not an error.
    async fn revoke(&self, lease: LeaseId) -> Result<(), Error>;
}
