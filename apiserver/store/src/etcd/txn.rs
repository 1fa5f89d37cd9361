//! Transactions: how they are written for etcd, and what the answers mean.
//!
//! Every one also compares the record of the cluster, and reads it with everything that was compared when it fails.

use etcd_client::proto::{PbKeyValue, PbTxnOpResponse, PbTxnResponse};
use etcd_client::{Compare as EtcdCompare, CompareOp, PutOptions, Txn as EtcdTxn, TxnOp};

use super::Shared;
use super::layout;
use super::members::{DEADLINE, Trouble, kv};
use crate::types::{CommitError, Compare, Error, LeaseId, Op, Revision, Test, Txn};

/// What etcd takes by default (`--max-request-bytes`), less what it adds itself: an id, and lengths.
const REQUEST_BYTES: usize = 1_572_864 - 1_024;
/// What an operation or a compare adds to its key and value: tags, lengths, numbers and nesting, at most.
const FRAME: usize = 48;

impl Shared {
    pub(super) async fn commit(&self, txn: Txn) -> Result<Revision, CommitError> {
        self.check()?;
        let bytes = self.request_bytes(&txn);
        if bytes > REQUEST_BYTES {
            return Err(CommitError::TooLarge(format!(
                "{bytes} bytes on their way to etcd, which takes {REQUEST_BYTES}"
            )));
        }
        let lease = txn.ops.iter().find_map(|op| match op {
            Op::Put { lease, .. } => *lease,
            Op::Delete { .. } => None,
        });
        let known = self.newest();
        let request = self.request(&txn);
        let sent = self.members.send(DEADLINE, |client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        });
        let answer = match (sent.await, lease) {
            (Ok(answer), _) => answer.0,
            (Err(Trouble::NoLease), Some(lease)) => return Err(CommitError::LeaseNotFound(lease)),
            (Err(Trouble::TooLarge(why)), _) => return Err(CommitError::TooLarge(why)),
            (Err(trouble), _) => return Err(Error::from(trouble).into()),
        };
        self.outcome(answer, known)
    }

    /// Writes the mark: an event that comes after everything that was there before. Returns its revision.
    pub(super) async fn mark(&self) -> Result<Revision, Error> {
        self.check()?;
        let known = self.newest();
        let request = EtcdTxn::new()
            .when([self.own_record()])
            .and_then([TxnOp::put(self.layout.mark(), "", None)])
            .or_else([TxnOp::get(self.layout.uid(), None)]);
        let sent = self.members.send(DEADLINE, |client| {
            let request = request.clone();
            async move { kv(&client).txn(request).await }
        });
        match self.outcome(sent.await?.0, known) {
            Ok(revision) => Ok(revision),
            Err(CommitError::Store(error)) => Err(error),
            Err(other) => Err(Error::Fatal(other.to_string())),
        }
    }

    /// The cluster's record is the one that it was.
    pub(super) fn own_record(&self) -> EtcdCompare {
        EtcdCompare::create_revision(self.layout.uid(), CompareOp::Equal, self.identity.created)
    }

    fn request(&self, txn: &Txn) -> EtcdTxn {
        let mut compares = vec![self.own_record()];
        compares.extend(txn.compares.iter().map(|compare| self.compare(compare)));
        let mut reads = vec![TxnOp::get(self.layout.uid(), None)];
        let keys = txn
            .compares
            .iter()
            .map(|compare| self.layout.place(compare.key.as_str()));
        reads.extend(keys.map(|key| TxnOp::get(key, None)));
        let ops: Vec<TxnOp> = txn.ops.iter().map(|op| self.op(op)).collect();
        EtcdTxn::new().when(compares).and_then(ops).or_else(reads)
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
        ops.sum::<usize>() + compares.sum::<usize>() + 2 * place("")
    }

    /// What an answer means. `known` is the newest revision that was known when the transaction was sent.
    fn outcome(&self, answer: PbTxnResponse, known: Revision) -> Result<Revision, CommitError> {
        let revision = self.header(answer.header)?;
        let parts = answer.responses.into_iter().filter_map(|part| part.response);
        if answer.succeeded {
            let wrote = parts.into_iter().any(|part| match part {
                PbTxnOpResponse::ResponsePut(_) => true,
                PbTxnOpResponse::ResponseDeleteRange(deleted) => deleted.deleted > 0,
                PbTxnOpResponse::ResponseRange(_) | PbTxnOpResponse::ResponseTxn(_) => false,
            });
            if wrote && revision <= known {
                return Err(self
                    .fail(format!(
                        "etcd's history has become shorter: a new write has revision {revision}, but {known} was there before; it was \
                         restored from a backup, or lost data. Stop all servers, check the etcd, and start them again"
                    ))
                    .into());
            }
            return Ok(revision);
        }
        let mut found = parts.map(|part| match part {
            PbTxnOpResponse::ResponseRange(range) => range.kvs.into_iter().next(),
            _ => None,
        });
        let record: Option<PbKeyValue> = found.next().flatten();
        self.compare_record(record.as_ref())?;
        let current = found.map(|found| found.and_then(|found| self.layout.entry(found)));
        Err(CommitError::Conflict {
            current: current.collect(),
        })
    }
}
