//! Transactions whose compares say what it means when they do not hold.

use muster_store::{CommitError, Compare, Entry, LeaseId, Op, Revision, Txn};
use tokio::time::Instant;

use crate::error::{ApiError, Result};
use crate::limits;
use crate::state::State;

/// What a compare protects.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Guard {
    /// The writer holds this lease still.
    Fence(String),
    /// The object that is written is what was read.
    Subject,
    /// The namespace is there and open.
    Namespace,
    /// Another object is what was read.
    Other(String),
    /// The kind is defined as it was.
    Definition,
    /// The agent has neither given anything out nor got anything back.
    Ledger,
}

/// See the module.
#[derive(Clone, Debug, Default)]
pub struct GuardedTxn {
    txn: Txn,
    guards: Vec<Guard>,
}

/// What became of a transaction.
#[derive(Clone, Debug)]
pub enum Outcome {
    /// It happened, at this revision, and the hub shows it.
    Done(Revision),
    /// It did not: these guards failed.
    Lost(Vec<Guard>),
}

impl GuardedTxn {
    /// Nothing yet.
    pub fn new() -> GuardedTxn {
        GuardedTxn::default()
    }

    /// Adds a compare. The same one twice is one.
    pub fn compare(&mut self, compare: Compare, guard: Guard) {
        if !self.txn.compares.contains(&compare) {
            self.txn.compares.push(compare);
            self.guards.push(guard);
        }
    }

    /// Adds a write. A later write of the same key takes the place of the earlier one.
    pub fn write(&mut self, op: Op) {
        match self.txn.ops.iter_mut().find(|known| known.key() == op.key()) {
            Some(known) => *known = op,
            None => self.txn.ops.push(op),
        }
    }

    /// Notes that an agent gave something out or got something back.
    pub fn touch(&mut self, agent: &str) {
        // The content does not matter; the revision of the write does.
        self.write(Op::put(crate::keys::ledger(agent), &b"{}"[..]));
    }

    /// Nobody has taken or given back the name of a kind in this group since `revision`; and now somebody does.
    pub(super) fn claim_names(&mut self, group: &str, revision: Revision) {
        let key = crate::keys::names(group);
        let guard = Guard::Other(key.to_string());
        self.compare(Compare::not_modified_after(key.clone(), revision), guard);
        self.write(Op::put(key, &b"{}"[..]));
    }

    /// The transaction itself.
    pub fn txn(&self) -> &Txn {
        &self.txn
    }
}

impl State {
    /// Commits, and waits until the hub shows it. A fence that does not hold is an error; other guards are the caller's to
    /// understand.
    pub(crate) async fn commit(&self, guarded: GuardedTxn) -> Result<Outcome> {
        let GuardedTxn { txn, guards } = guarded;
        let began = Instant::now();
        let committed = self.store.commit(txn.clone()).await;
        let stored = began.elapsed();
        let revision = match committed {
            Ok(revision) => revision,
            Err(CommitError::Conflict { current }) => return self.lost(&txn, guards, &current).await,
            Err(CommitError::TooLarge(why)) => {
                return Err(ApiError::too_large(format!("the write is too large: {why}")));
            }
            Err(CommitError::LeaseNotFound(LeaseId(_))) => {
                return Err(ApiError::unavailable(
                    "the lease ended before the object could be written under it",
                ));
            }
            Err(CommitError::Unknown(why)) => match self.landed(&txn).await {
                Ok(Some(revision)) => revision,
                // It may be under way still, so it must not be called a failure.
                Ok(None) => return Err(unknown(&why)),
                Err(error) => return Err(unknown(&format!("{why}; nor could be read what became of it: {error}"))),
            },
            Err(CommitError::Store(error)) => return Err(error.into()),
        };
        self.hub
            .reach(revision, limits::WRITE_WAIT)
            .await
            .map_err(|error| ApiError::timeout(format!("the write has happened, but cannot be read yet: {error}")))?;
        self.metrics.write(stored, began.elapsed().saturating_sub(stored));
        Ok(Outcome::Done(revision))
    }

    async fn lost(&self, txn: &Txn, guards: Vec<Guard>, current: &[Option<Entry>]) -> Result<Outcome> {
        let compared = txn.compares.iter().zip(guards).zip(current);
        let failed = compared.filter(|((compare, _), entry)| !compare.holds(entry.as_ref()));
        let failed: Vec<Guard> = failed.map(|((_, guard), _)| guard).collect();
        if let Some(Guard::Fence(lease)) = failed.iter().find(|guard| matches!(guard, Guard::Fence(_))) {
            return Err(ApiError::fenced(lease));
        }
        // Whoever tries again shall not see what it saw this time.
        let newest = self.store.revision().await?;
        let reached = self.hub.reach(newest, limits::READ_WAIT).await;
        reached.map_err(|error| ApiError::unavailable(error.to_string()))?;
        if failed.contains(&Guard::Definition) {
            let message = "the definition of the kind has changed while the object was written; nothing was; try again";
            return Err(ApiError::too_many_requests(message, 1));
        }
        Ok(Outcome::Lost(failed))
    }

    /// Whether a transaction that the store did not acknowledge has happened: every object that it puts is there as it was put
    /// (unique by uid or by what changed), every key that it deletes is gone. Ledgers and the like say nothing, their content is always the same.
    async fn landed(&self, txn: &Txn) -> std::result::Result<Option<Revision>, muster_store::Error> {
        let mut revision = None;
        for op in txn.ops.iter().filter(|op| !crate::keys::is_ledger(op.key())) {
            let entry = self.store.get(op.key()).await?;
            let at = match (op, entry) {
                (Op::Put { value, .. }, Some(entry)) if entry.value == *value => entry.mod_revision,
                (Op::Delete { .. }, None) => self.store.revision().await?,
                _ => return Ok(None),
            };
            revision = revision.max(Some(at));
        }
        Ok(revision)
    }
}

/// 504: nobody can say now whether the write has happened.
fn unknown(why: &str) -> ApiError {
    ApiError::timeout(format!(
        "whether the write has happened is not known: {why}; read the object before you try again"
    ))
}
