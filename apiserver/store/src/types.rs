//! The words that stores and their users share.

use std::borrow::Borrow;
use std::fmt;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::stream::BoxStream;

/// One step of the store's history. Zero is before the first commit.
pub type Revision = u64;

/// The name of a lease, chosen by the store; never used twice by one store.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct LeaseId(pub u64);

/// A key: UTF-8, levels separated by `/`, ordered by bytes.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Key(Arc<str>);

impl Key {
    /// A key from its text.
    pub fn new(text: impl Into<Arc<str>>) -> Key {
        Key(text.into())
    }

    /// The text of the key.
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Debug::fmt(&*self.0, f)
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

impl Borrow<str> for Key {
    fn borrow(&self) -> &str {
        &self.0
    }
}

/// A beginning that keys share; the empty prefix is the whole store.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Prefix(Arc<str>);

impl Prefix {
    /// A prefix from its text.
    pub fn new(text: impl Into<Arc<str>>) -> Prefix {
        Prefix(text.into())
    }

    /// The text of the prefix.
    pub fn as_str(&self) -> &str {
        &self.0
    }

    /// Whether `key` lies under this prefix.
    pub fn contains(&self, key: &Key) -> bool {
        key.as_str().starts_with(&*self.0)
    }
}

/// A key with its value and the revisions that made it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Where the value is.
    pub key: Key,
    /// The value.
    pub value: Bytes,
    /// The revision at which the key came into being; a key deleted and made again has a new one.
    pub create_revision: Revision,
    /// The revision of the last write to the key.
    pub mod_revision: Revision,
    /// The lease that the key lives under.
    pub lease: Option<LeaseId>,
}

/// Which part of a listing is wanted.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Page {
    /// Start behind this key.
    pub after: Option<Key>,
    /// At most this many entries; without it, all.
    pub limit: Option<usize>,
}

/// Entries in key order, all as of one revision.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Listing {
    /// The entries.
    pub entries: Vec<Entry>,
    /// The store's revision when they were read.
    pub revision: Revision,
    /// Whether the limit left entries out.
    pub more: bool,
}

/// What has to hold for a key when a transaction commits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    /// The key looked at.
    pub key: Key,
    /// What has to hold.
    pub test: Test,
}

/// A condition on one key. An absent key has revisions of zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Test {
    /// The key was made at exactly this revision; zero: it does not exist.
    Created(Revision),
    /// The key was last written at exactly this revision; zero: it does not exist.
    Modified(Revision),
    /// The key was not written after this revision; true of an absent key.
    NotModifiedAfter(Revision),
}

impl Compare {
    /// `key` must not exist.
    pub fn absent(key: Key) -> Compare {
        Compare {
            key,
            test: Test::Created(0),
        }
    }

    /// `key` must have been made at exactly `revision`.
    pub fn created(key: Key, revision: Revision) -> Compare {
        Compare {
            key,
            test: Test::Created(revision),
        }
    }

    /// `key` must have been last written at exactly `revision`.
    pub fn modified(key: Key, revision: Revision) -> Compare {
        Compare {
            key,
            test: Test::Modified(revision),
        }
    }

    /// `key` must not have been written after `revision`.
    pub fn not_modified_after(key: Key, revision: Revision) -> Compare {
        Compare {
            key,
            test: Test::NotModifiedAfter(revision),
        }
    }

    /// Whether the condition holds for what is at the key.
    pub fn holds(&self, current: Option<&Entry>) -> bool {
        let (created, modified) = current.map_or((0, 0), |entry| (entry.create_revision, entry.mod_revision));
        match self.test {
            Test::Created(revision) => created == revision,
            Test::Modified(revision) => modified == revision,
            Test::NotModifiedAfter(revision) => modified <= revision,
        }
    }
}

/// One write of a transaction.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    /// Sets the value. The key then lives under `lease`, or under none.
    Put {
        /// Where.
        key: Key,
        /// What. Kept as it is, not copied: a slice of a larger buffer keeps all of that in memory.
        value: Bytes,
        /// The lease whose end deletes the key.
        lease: Option<LeaseId>,
    },
    /// Removes the key.
    Delete {
        /// Which.
        key: Key,
    },
}

impl Op {
    /// Sets `key` to `value`, under no lease.
    pub fn put(key: Key, value: impl Into<Bytes>) -> Op {
        Op::Put {
            key,
            value: value.into(),
            lease: None,
        }
    }

    /// Removes `key`.
    pub fn delete(key: Key) -> Op {
        Op::Delete { key }
    }

    /// The key that is written.
    pub fn key(&self) -> &Key {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// Compares, then writes. No key may be written twice.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    /// What has to hold.
    pub compares: Vec<Compare>,
    /// What is then done.
    pub ops: Vec<Op>,
}

/// What became of one key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Change {
    /// Which key.
    pub key: Key,
    /// Its new entry; `None`: it was deleted.
    pub current: Option<Entry>,
}

/// An item of a watch.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum WatchEvent {
    /// All changes of one revision under the prefix, in the order of the keys. Never empty.
    Batch {
        /// The revision.
        revision: Revision,
        /// What changed at it.
        changes: Vec<Change>,
    },
    /// Everything up to this revision has been sent.
    Progress(Revision),
}

/// The items of a watch; ends after its first error.
pub type WatchStream = BoxStream<'static, Result<WatchEvent, WatchError>>;

/// Why a store could not answer.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    /// The store cannot be reached or did not answer in time. Of a transaction nothing was written, and nothing will be
    /// ([`CommitError::Unknown`] is when that is not sure); a lease may have been made or ended. Trying again can help.
    #[error("store unavailable: {0}")]
    Unavailable(String),
    /// The store has no room: it takes nothing new until somebody makes some. Nothing was written; deletions still are.
    #[error("store full: {0}")]
    Full(String),
    /// The store is damaged or misused; trying again does not help.
    #[error("store failed: {0}")]
    Fatal(String),
}

impl Error {
    /// Whether the same call may succeed later.
    pub fn is_retryable(&self) -> bool {
        match self {
            Error::Unavailable(_) => true,
            Error::Full(_) | Error::Fatal(_) => false,
        }
    }
}

/// Why a transaction was not committed.
#[derive(Clone, Debug, thiserror::Error)]
pub enum CommitError {
    /// A compare did not hold; nothing was written. One item per compare: what is at its key now.
    #[error("a compare of the transaction did not hold")]
    Conflict {
        /// The entries at the compared keys, in the order of the compares.
        current: Vec<Option<Entry>>,
    },
    /// The transaction is over a limit of the store; nothing was written.
    #[error("transaction too large: {0}")]
    TooLarge(String),
    /// A put names a lease that does not exist (any more); nothing was written.
    #[error("lease {} not found", .0.0)]
    LeaseNotFound(LeaseId),
    /// There was no answer in time: it may have happened, or may happen yet. Whoever tries again must look first.
    #[error("the store did not answer in time, the transaction may have happened: {0}")]
    Unknown(String),
    /// The store failed; nothing was written.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why a lease was not kept alive.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LeaseError {
    /// The lease ended; its keys are gone.
    #[error("lease {} is gone", .0.0)]
    Gone(LeaseId),
    /// The store failed; whether the lease lives is unknown.
    #[error(transparent)]
    Store(#[from] Error),
}

/// Why a watch ended.
#[derive(Clone, Debug, thiserror::Error)]
pub enum WatchError {
    /// The start lies in forgotten history: list again and watch from there.
    #[error("history up to revision {compacted} is gone")]
    Compacted {
        /// History is complete only after this revision.
        compacted: Revision,
    },
    /// The store failed, or the reader was too slow; watch again from the last revision seen.
    #[error(transparent)]
    Store(#[from] Error),
}

/// The limits that every store respects, so that a transaction that one takes, all take.
///
/// They are etcd's defaults (`--max-txn-ops` 128, `--max-request-bytes` 1.5 MiB), less one compare that the store needs itself and
/// some room for its own framing.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Operations, and likewise compares, in one transaction.
    pub txn_ops: usize,
    /// Bytes of keys and values in one transaction.
    pub txn_bytes: usize,
    /// The shortest lease that is granted; shorter wishes are raised to it.
    pub lease_min: Duration,
}

/// See [`Limits`].
pub const LIMITS: Limits = Limits {
    txn_ops: 127,
    txn_bytes: 1_500_000,
    lease_min: Duration::from_millis(100),
};
