//! The state machine of the stores that Muster brings along: transactions and leases in, batches of changes out.
//!
//! Pure and synchronous: time is handed in, nothing is written anywhere, and the same calls give the same batches. What
//! must never happen here: a revision without a change, a change without a revision, or two batches with one revision.
//! Tested by the conformance suite through every store, and by comparison with a naive model (`tests/model.rs`).

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;
use std::time::Duration;

use tokio::time::Instant;

use crate::leases::Leases;
use crate::types::{Change, CommitError, Entry, Error, Key, LIMITS, LeaseError, LeaseId, Listing, Op, Page, Prefix};
use crate::{Revision, Txn, WatchEvent};

/// Everything that happened at one revision; never empty, in the order of the keys.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Batch {
    pub(crate) revision: Revision,
    pub(crate) changes: Vec<Change>,
}

/// What a change costs in memory besides the bytes of its key and value: the `Change` itself (about 100 bytes), the
/// headers of the allocations of key and value, and its share of the batch.
const CHANGE_OVERHEAD: usize = 200;

impl Batch {
    /// About how many bytes of memory the batch keeps alive, if nobody else holds its values.
    pub(crate) fn cost(&self) -> usize {
        let bytes = |change: &Change| change.key.as_str().len() + change.current.as_ref().map_or(0, |e| e.value.len());
        self.changes.iter().map(|change| CHANGE_OVERHEAD + bytes(change)).sum()
    }

    /// The part of the batch that lies under `prefix`.
    pub(crate) fn under(&self, prefix: &Prefix) -> Option<WatchEvent> {
        let start = self
            .changes
            .partition_point(|change| change.key.as_str() < prefix.as_str());
        let changes: Vec<Change> = self.changes[start..]
            .iter()
            .take_while(|change| prefix.contains(&change.key))
            .cloned()
            .collect();
        if changes.is_empty() {
            None
        } else {
            Some(WatchEvent::Batch {
                revision: self.revision,
                changes,
            })
        }
    }
}

/// The current entries.
#[derive(Clone, Debug, Default)]
pub(crate) struct Entries(BTreeMap<Key, Entry>);

impl Entries {
    pub(crate) fn get(&self, key: &Key) -> Option<&Entry> {
        self.0.get(key)
    }

    pub(crate) fn iter(&self) -> impl Iterator<Item = &Entry> {
        self.0.values()
    }

    /// Puts a change into effect and returns what was there before.
    pub(crate) fn install(&mut self, change: &Change) -> Option<Entry> {
        match &change.current {
            Some(entry) => self.0.insert(change.key.clone(), entry.clone()),
            None => self.0.remove(&change.key),
        }
    }

    /// One page; `revision` is what these entries are at.
    pub(crate) fn list(&self, prefix: &Prefix, page: &Page, revision: Revision) -> Listing {
        let start = match &page.after {
            Some(after) if after.as_str() >= prefix.as_str() => Bound::Excluded(after.as_str()),
            _ => Bound::Included(prefix.as_str()),
        };
        let mut rest = self
            .0
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(_, entry)| entry)
            .take_while(|entry| prefix.contains(&entry.key));
        let limit = page.limit.unwrap_or(usize::MAX);
        let entries = rest.by_ref().take(limit).cloned().collect();
        Listing {
            entries,
            revision,
            more: rest.next().is_some(),
        }
    }
}

/// Entries, leases and the revision: all that decides what a transaction does.
#[derive(Debug, Default)]
pub(crate) struct Core {
    entries: Entries,
    leases: Leases,
    revision: Revision,
}

impl Core {
    /// A core as it was left, every lease with its full time before it.
    pub(crate) fn restore(entries: Entries, leases: Leases, revision: Revision) -> Result<Core, Error> {
        let mut core = Core {
            entries,
            leases,
            revision,
        };
        for entry in core.entries.iter() {
            if let Some(lease) = entry.lease
                && !core.leases.attach(lease, entry.key.clone())
            {
                return Err(Error::Fatal(format!(
                    "key {} lives under lease {}, which is unknown",
                    entry.key, lease.0
                )));
            }
        }
        Ok(core)
    }

    pub(crate) fn entries(&self) -> &Entries {
        &self.entries
    }

    pub(crate) fn leases(&self) -> &Leases {
        &self.leases
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// Checks and then does a transaction. `None`: it held, and there was nothing to do.
    pub(crate) fn commit(&mut self, txn: Txn) -> Result<Option<Batch>, CommitError> {
        check_shape(&txn)?;
        if !txn
            .compares
            .iter()
            .all(|compare| compare.holds(self.entries.get(&compare.key)))
        {
            let current = txn
                .compares
                .iter()
                .map(|compare| self.entries.get(&compare.key).cloned())
                .collect();
            return Err(CommitError::Conflict { current });
        }
        for op in &txn.ops {
            if let Op::Put { lease: Some(lease), .. } = op
                && !self.leases.contains(*lease)
            {
                return Err(CommitError::LeaseNotFound(*lease));
            }
        }
        let revision = self.revision + 1;
        let changes = txn.ops.into_iter().filter_map(|op| self.change(op, revision)).collect();
        Ok(self.advance(changes))
    }

    /// A new lease. Takes no revision.
    pub(crate) fn grant(&mut self, ttl: Duration, now: Instant) -> LeaseId {
        self.leases.grant(ttl, now)
    }

    /// Restarts the clock of a lease.
    pub(crate) fn keep_alive(&mut self, lease: LeaseId, now: Instant) -> Result<(), LeaseError> {
        if self.leases.keep_alive(lease, now) {
            Ok(())
        } else {
            Err(LeaseError::Gone(lease))
        }
    }

    /// Ends a lease; its keys go at one revision.
    pub(crate) fn revoke(&mut self, lease: LeaseId) -> Option<Batch> {
        let keys = self.leases.remove(lease)?;
        self.advance(keys.into_iter().map(|key| Change { key, current: None }).collect())
    }

    /// Ends one lease whose time is over, if there is one. To be called until it returns `None`.
    pub(crate) fn expire(&mut self, now: Instant) -> Option<(LeaseId, Option<Batch>)> {
        let lease = self.leases.due(now)?;
        Some((lease, self.revoke(lease)))
    }

    /// What the write does at `revision`; `None`: nothing, because the key to delete does not exist.
    fn change(&self, op: Op, revision: Revision) -> Option<Change> {
        match op {
            Op::Put { key, value, lease } => {
                let existing = self.entries.get(&key);
                // The key that is there already is taken, so that map, entry and log share one allocation.
                let (key, create_revision) = existing.map_or((key, revision), |e| (e.key.clone(), e.create_revision));
                let entry = Entry {
                    key: key.clone(),
                    value,
                    create_revision,
                    mod_revision: revision,
                    lease,
                };
                Some(Change {
                    key,
                    current: Some(entry),
                })
            }
            Op::Delete { key } => self.entries.get(&key).map(|entry| Change {
                key: entry.key.clone(),
                current: None,
            }),
        }
    }

    fn advance(&mut self, mut changes: Vec<Change>) -> Option<Batch> {
        if changes.is_empty() {
            return None;
        }
        changes.sort_by(|a, b| a.key.cmp(&b.key));
        changes.shrink_to_fit();
        self.revision += 1;
        for change in &changes {
            let before = self.entries.install(change);
            if let Some(lease) = before.and_then(|entry| entry.lease) {
                self.leases.detach(lease, &change.key);
            }
            if let Some(lease) = change.current.as_ref().and_then(|entry| entry.lease) {
                let attached = self.leases.attach(lease, change.key.clone());
                assert!(attached, "leases are checked before the first change");
            }
        }
        Some(Batch {
            revision: self.revision,
            changes,
        })
    }
}

/// What every store refuses without looking at its state.
pub(crate) fn check_shape(txn: &Txn) -> Result<(), CommitError> {
    let count = txn.ops.len().max(txn.compares.len());
    if count > LIMITS.txn_ops {
        return Err(CommitError::TooLarge(format!(
            "{count} operations or compares, {} are allowed; split it",
            LIMITS.txn_ops
        )));
    }
    let op_bytes = |op: &Op| match op {
        Op::Put { key, value, .. } => key.as_str().len() + value.len(),
        Op::Delete { key } => key.as_str().len(),
    };
    let bytes = txn.ops.iter().map(op_bytes).sum::<usize>()
        + txn
            .compares
            .iter()
            .map(|compare| compare.key.as_str().len())
            .sum::<usize>();
    if bytes > LIMITS.txn_bytes {
        return Err(CommitError::TooLarge(format!(
            "{bytes} bytes, {} are allowed",
            LIMITS.txn_bytes
        )));
    }
    let mut written = BTreeSet::new();
    for op in &txn.ops {
        if op.key().as_str().is_empty() {
            return Err(Error::Fatal("a transaction writes the empty key".to_owned()).into());
        }
        if !written.insert(op.key()) {
            return Err(Error::Fatal(format!("a transaction writes the key {} twice", op.key())).into());
        }
    }
    Ok(())
}
