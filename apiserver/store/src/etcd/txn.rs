//! Transactions: how they are written for etcd, and what the answers mean.
//!
//! Every one also compares and writes a slot, which makes it one that can be sent again, and reads the slot with everything that was
//! compared when it fails. How it travels is in `envelopes`. A slot is as good as the record of the cluster: an etcd that lacks the one lacks the other.

use std::sync::Arc;

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare as EtcdCompare, CompareOp, PutOptions, Txn as EtcdTxn, TxnOp};
use tokio::time::Instant;

use super::Shared;
use super::layout;
use super::members::{DEADLINE, Sent, Trouble, kv};
use super::slots::{Fate, Found, Slot};
use crate::types::{CommitError, Compare, Error, LeaseId, Op, Revision, Test, Txn};

/// What etcd takes by default (`--max-request-bytes`), less what it adds itself: an id, and lengths.
const REQUEST_BYTES: usize = 1_572_864 - 1_024;
/// What an operation or a compare adds to its key and value: tags, lengths, numbers and nesting, at most.
const FRAME: usize = 48;
/// The longest name of a slot below the cluster's prefix.
const SLOT_BYTES: usize = 100;

impl Shared {
    pub(super) async fn commit(self: &Arc<Self>, txn: Txn) -> Result<Revision, CommitError> {
        self.check()?;
        let bytes = self.request_bytes(&txn);
        if bytes > REQUEST_BYTES {
            return Err(CommitError::TooLarge(format!(
                "{bytes} bytes on their way to etcd, which takes {REQUEST_BYTES}"
            )));
        }
        let end = Instant::now() + DEADLINE;
        let puts = txn.ops.iter().any(|op| matches!(op, Op::Put { .. }));
        if txn.ops.is_empty() || (txn.compares.is_empty() && !puts) {
            return self.commit_once(&txn, end).await;
        }
        loop {
            let slot = self.slot(end).await.map_err(CommitError::from);
            let committed = match slot {
                Ok(slot) => self.commit_with(&txn, bytes, slot, end).await,
                Err(error) => Err(error),
            };
            match committed {
                Ok(Some(revision)) => return Ok(revision),
                Ok(None) => {}
                // There is no room for a slot, but for deletions there has to be.
                Err(CommitError::Store(Error::Full(_))) if !puts => return self.commit_once(&txn, end).await,
                Err(error) => return Err(error),
            }
        }
    }

    /// Commits without a slot, so it is sent once: what writes nothing, or deletes only.
    async fn commit_once(&self, txn: &Txn, end: Instant) -> Result<Revision, CommitError> {
        let known = self.newest();
        let mut compares = vec![self.own_record()];
        compares.extend(self.compares(txn));
        let mut reads = vec![TxnOp::get(self.layout.uid(), None)];
        reads.extend(self.reads(txn));
        let request = EtcdTxn::new().when(compares).and_then(self.ops(txn)).or_else(reads);
        let sent = self
            .members
            .send(end.saturating_duration_since(Instant::now()), |client| {
                let request = request.clone();
                async move { kv(&client).txn(request).await }
            });
        let answer = match sent.await {
            Ok(answer) => answer.0,
            Err(trouble) => return Err(failure(trouble, txn)),
        };
        if answer.succeeded {
            return self.happened(answer, known);
        }
        let mut parts = answer.responses.into_iter().filter_map(|part| part.response);
        self.header(answer.header)?;
        let record = parts.next().and_then(first_found);
        self.compare_record(record.as_ref())?;
        Err(self.conflict(parts))
    }

    /// Commits with a slot; `None`: the slot is gone, and nothing was written.
    async fn commit_with(
        self: &Arc<Self>,
        txn: &Txn,
        bytes: usize,
        slot: Slot,
        end: Instant,
    ) -> Result<Option<Revision>, CommitError> {
        let known = self.newest();
        let mut compares = vec![slot.unmoved()];
        compares.extend(self.compares(txn));
        let mut ops = self.ops(txn);
        ops.push(slot.mark());
        let mut reads = vec![slot.read()];
        reads.extend(self.reads(txn));
        let request = EtcdTxn::new().when(compares).and_then(ops).or_else(reads);
        let Sent { answer, alone } = self.deliver(txn, request, bytes, end).await;
        let answer = match answer {
            Ok(answer) => answer,
            Err(trouble) => {
                let failed = failure(trouble, txn);
                return match &failed {
                    // Nothing can be found out any more, and the slot is not used again.
                    CommitError::Unknown(_) => Err(failed),
                    _ => self.give_up(slot, alone, failed, end).await.map(Some),
                };
            }
        };
        let revision = answer.header.as_ref().map_or(0, |header| header.revision);
        if answer.succeeded {
            self.slots.give_back(slot, revision);
            return self.happened(answer, known).map(Some);
        }
        self.header(answer.header)?;
        let mut parts = answer.responses.into_iter().filter_map(|part| part.response);
        match slot.found(parts.next().as_ref()) {
            Found::Unmoved => {
                let conflict = self.conflict(parts);
                self.give_up(slot, alone, conflict, end).await.map(Some)
            }
            // An earlier attempt has.
            Found::Moved(at) => {
                self.slots.give_back(slot, at);
                Ok(Some(self.layout.revision(at)))
            }
            Found::Gone | Found::Sealed(_) => {
                self.recognise().await?;
                self.slots.removed(&slot);
                Ok(None)
            }
        }
    }

    /// Tells a failure, after it is sure that it will remain one. `alone`: nothing is under way that could still change that.
    async fn give_up(
        &self,
        slot: Slot,
        alone: bool,
        failed: CommitError,
        end: Instant,
    ) -> Result<Revision, CommitError> {
        if alone {
            let revision = slot.revision;
            self.slots.give_back(slot, revision);
            return Err(failed);
        }
        match self.seal(&slot, end).await {
            Ok((fate, at)) => {
                self.slots.give_back(slot, at);
                match fate {
                    Fate::Happened(at) => Ok(self.layout.revision(at)),
                    Fate::Never => Err(failed),
                }
            }
            Err(trouble) => Err(CommitError::Unknown(Error::from(trouble).to_string())),
        }
    }

    /// Writes the mark: an event that comes after everything that was there before. Returns its revision. Written twice, it is still true.
    pub(super) async fn mark(&self) -> Result<Revision, Error> {
        self.check()?;
        let known = self.newest();
        let request = EtcdTxn::new()
            .when([self.own_record()])
            .and_then([TxnOp::put(self.layout.mark(), "", None)])
            .or_else([TxnOp::get(self.layout.uid(), None)]);
        let sent = self.members.ask(DEADLINE, |client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        });
        let answer = sent.await?.0;
        if !answer.succeeded {
            self.header(answer.header)?;
            let record = answer
                .responses
                .into_iter()
                .find_map(|part| first_found(part.response?));
            self.compare_record(record.as_ref())?;
            return Err(Error::Unavailable("etcd: no mark could be written".to_owned()));
        }
        match self.happened(answer, known) {
            Ok(revision) => Ok(revision),
            Err(CommitError::Store(error)) => Err(error),
            Err(other) => Err(Error::Fatal(other.to_string())),
        }
    }

    /// The cluster's record is the one that it was.
    pub(super) fn own_record(&self) -> EtcdCompare {
        EtcdCompare::create_revision(self.layout.uid(), CompareOp::Equal, self.identity.created)
    }

    fn compares(&self, txn: &Txn) -> impl Iterator<Item = EtcdCompare> {
        txn.compares.iter().map(|compare| self.compare(compare))
    }

    /// What is read if a compare does not hold.
    fn reads(&self, txn: &Txn) -> impl Iterator<Item = TxnOp> {
        let keys = txn.compares.iter().map(|compare| compare.key.as_str());
        keys.map(|key| TxnOp::get(self.layout.place(key), None))
    }

    fn ops(&self, txn: &Txn) -> Vec<TxnOp> {
        txn.ops.iter().map(|op| self.op(op)).collect()
    }

    fn compare(&self, compare: &Compare) -> EtcdCompare {
        let key = self.layout.place(compare.key.as_str());
        match compare.test {
            Test::Created(revision) => {
                EtcdCompare::create_revision(key, CompareOp::Equal, self.layout.exactly(revision))
            }
            Test::Modified(revision) => EtcdCompare::mod_revision(key, CompareOp::Equal, self.layout.exactly(revision)),
            Test::NotModifiedAfter(revision) => {
                // Zero, the revision of an absent key, is never after anything.
                EtcdCompare::mod_revision(key, CompareOp::Less, self.layout.number(revision).saturating_add(1))
            }
        }
    }

    fn op(&self, op: &Op) -> TxnOp {
        match op {
            Op::Put { key, value, lease } => {
                let lease = lease.map_or(0, |LeaseId(id)| layout::number(id));
                let options = PutOptions::new().with_lease(lease);
                TxnOp::put(self.layout.place(key.as_str()), value.to_vec(), Some(options))
            }
            Op::Delete { key } => TxnOp::delete(self.layout.place(key.as_str()), None),
        }
    }

    /// What the transaction takes in etcd's log, at most.
    fn request_bytes(&self, txn: &Txn) -> usize {
        let place = |key: &str| self.layout.place("").len() + key.len() + FRAME;
        let ops = txn.ops.iter().map(|op| match op {
            Op::Put { key, value, .. } => place(key.as_str()) + value.len(),
            Op::Delete { key } => place(key.as_str()),
        });
        // Each is compared, and read if it fails.
        let compares = txn.compares.iter().map(|compare| 2 * place(compare.key.as_str()));
        ops.sum::<usize>() + compares.sum::<usize>() + 3 * (place("") + SLOT_BYTES)
    }

    /// What a good answer means. `known` is the newest revision that was known when the transaction was sent.
    fn happened(&self, answer: PbTxnResponse, known: Revision) -> Result<Revision, CommitError> {
        let revision = self.header(answer.header)?;
        let wrote = answer.responses.into_iter().any(|part| match part.response {
            Some(PbTxnOpResponse::ResponsePut(_)) => true,
            Some(PbTxnOpResponse::ResponseDeleteRange(deleted)) => deleted.deleted > 0,
            Some(PbTxnOpResponse::ResponseRange(_) | PbTxnOpResponse::ResponseTxn(_)) | None => false,
        });
        if wrote && revision <= known {
            return Err(self
                .fail(format!(
                    "etcd's history has become shorter: a new write has revision {revision}, but {known} was there before; it was \
                     restored from a backup, or lost data. Stop all servers, check the etcd, and start them again"
                ))
                .into());
        }
        Ok(revision)
    }

    /// What was found at the compared keys.
    fn conflict(&self, found: impl Iterator<Item = PbTxnOpResponse>) -> CommitError {
        let current = found.map(|part| first_found(part).and_then(|entry| self.layout.entry(entry)));
        CommitError::Conflict {
            current: current.collect(),
        }
    }
}

fn first_found(part: PbTxnOpResponse) -> Option<PbKeyValue> {
    match part {
        PbTxnOpResponse::ResponseRange(range) => range.kvs.into_iter().next(),
        _ => None,
    }
}

/// What it means for a transaction that there is no good answer.
fn failure(trouble: Trouble, txn: &Txn) -> CommitError {
    let lease = txn.ops.iter().find_map(|op| match op {
        Op::Put { lease, .. } => *lease,
        Op::Delete { .. } => None,
    });
    match (trouble, lease) {
        (Trouble::NoLease, Some(lease)) => CommitError::LeaseNotFound(lease),
        (Trouble::TooLarge(why), _) => CommitError::TooLarge(why),
        (Trouble::Lost(why), _) => CommitError::Unknown(format!("etcd: {why}")),
        (trouble, _) => Error::from(trouble).into(),
    }
}
