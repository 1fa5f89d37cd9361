//! Planted bugs. Each must be caught by the invariants within a few hundred seeds, or the simulation proves nothing.
//!
//! Mutants live at the seams, so that no production code knows of them: in front of the store, compares are taken out of
//! transactions; in front of an agent, identities are falsified.

use std::str::FromStr;
use std::sync::Arc;
use std::time::Duration;

use async_trait::async_trait;
use muster_store::{
    CommitError, Entry, Error, Key, LeaseError, LeaseId, Listing, Page, Prefix, Revision, Store, Test, Txn, WatchStream,
};

/// A planted bug.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mutant {
    /// Fences are not compared: a deposed leader's late write lands.
    DropFence,
    /// The ledger is not compared: offers are made from a view that missed something.
    DropLedger,
    /// Offers are not compared when they are accepted: the same offer is spent twice.
    AcceptTwice,
    /// Agents know tasks by name instead of uid: a new task of an old name is taken for the old one.
    NameForUid,
    /// Tasks are not compared when their status is written: a late report brings a terminal task back.
    TerminalResurrected,
}

/// All of them.
pub const MUTANTS: [Mutant; 5] = [
    Mutant::DropFence,
    Mutant::DropLedger,
    Mutant::AcceptTwice,
    Mutant::NameForUid,
    Mutant::TerminalResurrected,
];

impl FromStr for Mutant {
    type Err = String;

    fn from_str(text: &str) -> Result<Mutant, String> {
        let known = MUTANTS.into_iter().find(|mutant| format!("{mutant:?}") == text);
        known.ok_or_else(|| format!("no mutant {text}; there are {MUTANTS:?}"))
    }
}

impl Mutant {
    /// Whether this bug forgets a compare.
    fn forgets(self, key: &Key, test: Test) -> bool {
        let under = |prefix: &str| key.as_str().starts_with(prefix);
        match self {
            Mutant::DropFence => {
                under("objects/coordination.k8s.io/leases/") && matches!(test, Test::Created(at) if at > 0)
            }
            Mutant::DropLedger => under("ledger/"),
            Mutant::AcceptTwice => under("objects/muster.dev/offers/") && matches!(test, Test::Modified(_)),
            Mutant::TerminalResurrected => under("objects/muster.dev/tasks/") && matches!(test, Test::Modified(_)),
            Mutant::NameForUid => false,
        }
    }
}

/// A store whose clients forget some compares.
pub struct MutantStore {
    store: Arc<dyn Store>,
    mutant: Mutant,
}

impl MutantStore {
    /// The store as the mutant uses it.
    pub fn new(store: Arc<dyn Store>, mutant: Mutant) -> MutantStore {
        MutantStore { store, mutant }
    }
}

#[async_trait]
impl Store for MutantStore {
    async fn get(&self, key: &Key) -> Result<Option<Entry>, Error> {
        self.store.get(key).await
    }

    async fn list(&self, prefix: &Prefix, page: Page) -> Result<Listing, Error> {
        self.store.list(prefix, page).await
    }

    async fn commit(&self, mut txn: Txn) -> Result<Revision, CommitError> {
        let before = txn.compares.len();
        txn.compares
            .retain(|compare| !self.mutant.forgets(&compare.key, compare.test));
        match self.store.commit(txn).await {
            // The caller counts the compares that it sent; a conflict among fewer would be misread.
            Err(CommitError::Conflict { mut current }) => {
                current.resize(before, None);
                Err(CommitError::Conflict { current })
            }
            other => other,
        }
    }

    fn watch(&self, prefix: &Prefix, after: Revision) -> WatchStream {
        self.store.watch(prefix, after)
    }

    async fn revision(&self) -> Result<Revision, Error> {
        self.store.revision().await
    }

    async fn compact(&self, revision: Revision) -> Result<(), Error> {
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
