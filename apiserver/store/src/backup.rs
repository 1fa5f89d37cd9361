//! A cluster in one file.
//!
//! The file holds every entry that lives under no lease, as of one revision. It is the same whatever the store: what was saved
//! from one can be restored into another, and that is how a cluster moves into etcd. It says which cluster it is of, when it
//! was taken and how much is in it, and ends with a SHA-256 of everything before, which is checked before anything is written.
//!
//! Revisions do not travel: a restored entry has a new one. But versions that clients keep, tokens of leaders and the revisions
//! that plans were made at must never fit what comes later, so the new store begins [`AHEAD`] of the old one
//! ([`Header::start`]). Leases do not travel either: nobody could have kept them alive.
//!
//! What must never happen here: half a cluster that looks like a whole one. A restore begins by writing [`UNFINISHED`] and ends
//! by removing it; servers refuse a store that has it, and a restore into one starts over. Tested below and in
//! `tests/backup.rs`, between all stores.
//!
//! | what | bytes |
//! |---|---|
//! | `MUSTER-BACKUP\n`, version 1 | 14, 4 |
//! | UID, revision, time in milliseconds since 1970, number of entries | 16, 8, 8, 8 |
//! | each entry: length of key, length of value, key, value | 4, 4, … |
//! | SHA-256 of all that | 32 |
//!
//! Numbers are big endian.

use std::io::{self, Read, Seek, SeekFrom, Write};

use bytes::Bytes;
use sha2::{Digest, Sha256};

use crate::types::{CommitError, Compare, Entry, Error, Key, LIMITS, Op, Page, Prefix, Revision, Txn};
use crate::{Store, types::Listing};

const MAGIC: &[u8; 14] = b"MUSTER-BACKUP\n";
const VERSION: u32 = 1;

/// How far the revisions of a restored cluster begin above those of its backup: more than the old cluster can have had after
/// the backup was taken (a thousand writes a second for eleven days), little enough to be done nine billion times.
pub const AHEAD: u64 = 1_000_000_000;

/// The key that a store has while something is restored into it.
pub const UNFINISHED: &str = "restore/unfinished";

/// Entries of one transaction of a restore: half of what it may hold, so that none is near a limit.
const BATCH: usize = LIMITS.txn_ops / 2;
/// Their bytes.
const BATCH_BYTES: usize = LIMITS.txn_bytes / 2;
/// No key is longer.
const KEY_BYTES_MAX: usize = 64 << 10;

/// What a backup says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Header {
    /// The UID of the cluster.
    pub uid: u128,
    /// The revision that it shows.
    pub revision: Revision,
    /// When it was taken, in milliseconds since 1970.
    pub taken_ms: u64,
    /// How many entries it holds.
    pub entries: u64,
}

impl Header {
    /// The revision that a store has to begin after to take this in.
    pub fn start(&self) -> Revision {
        self.revision.saturating_add(AHEAD)
    }
}

/// Why something was not saved or restored.
#[derive(Debug, thiserror::Error)]
pub enum BackupError {
    /// The file cannot be read or written.
    #[error("the backup cannot be read or written")]
    File(#[from] io::Error),
    /// It is something else.
    #[error("this is no backup of Muster")]
    Foreign,
    /// It is of a newer Muster.
    #[error(
        "the backup has version {0}, this Muster reads version {VERSION}; use the one that wrote it, or a newer one"
    )]
    Version(u32),
    /// It is not what was written.
    #[error("the backup is damaged: {0}; use another one")]
    Damaged(String),
    /// The store has something in it.
    #[error("the store is not empty (it has {0}); restore into a new directory or prefix")]
    NotEmpty(Key),
    /// The revisions of the store would come again.
    #[error(
        "the store is at revision {found}, and has to be beyond {needed}, so that no old version or token fits it; make a new one"
    )]
    Behind {
        /// What it is at.
        found: Revision,
        /// What it must be beyond.
        needed: Revision,
    },
    /// The store holds half a cluster.
    #[error("the store holds a restore that was not finished; restore into it again")]
    Unfinished,
    /// The store did not do its part.
    #[error("the store cannot be used")]
    Store(#[from] Error),
    /// An entry could not be written.
    #[error("an entry cannot be written")]
    Commit(#[from] CommitError),
}

/// Whether a restore into the store has begun and not ended.
pub async fn is_unfinished(store: &dyn Store) -> Result<bool, Error> {
    Ok(store.get(&Key::new(UNFINISHED)).await?.is_some())
}

/// Writes everything that is in `store` now, at one revision. Writes of others go on; they are in it or not, never half. All
/// entries are in memory meanwhile. Blocks while it writes.
pub async fn save(store: &dyn Store, uid: u128, taken_ms: u64, writer: impl Write) -> Result<Header, BackupError> {
    let Listing { entries, revision, .. } = store.list(&Prefix::new(""), Page::default()).await?;
    let unfinished = Key::new(UNFINISHED);
    if entries.iter().any(|entry| entry.key == unfinished) {
        return Err(BackupError::Unfinished);
    }
    let kept: Vec<&Entry> = entries.iter().filter(|entry| entry.lease.is_none()).collect();
    let header = Header {
        uid,
        revision,
        taken_ms,
        entries: kept.len() as u64,
    };
    let mut out = Summed::new(io::BufWriter::new(writer));
    out.write_all(MAGIC)?;
    out.write_all(&VERSION.to_be_bytes())?;
    out.write_all(&header.uid.to_be_bytes())?;
    for number in [header.revision, header.taken_ms, header.entries] {
        out.write_all(&number.to_be_bytes())?;
    }
    for entry in kept {
        let key = entry.key.as_str().as_bytes();
        for length in [key.len(), entry.value.len()] {
            let length = u32::try_from(length).map_err(|_| io::Error::other("an entry of more than 4 GiB"))?;
            out.write_all(&length.to_be_bytes())?;
        }
        out.write_all(key)?;
        out.write_all(&entry.value)?;
    }
    let sum = out.sum.finalize();
    out.inner.write_all(&sum)?;
    out.inner.flush()?;
    Ok(header)
}

/// Reads the whole file, checks it, and says what it is.
pub fn inspect(reader: impl Read) -> Result<Header, BackupError> {
    read(reader, |_, _| ())
}

/// What becomes of an entry on its way into a store.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It goes in with this value.
    Keep(Bytes),
    /// It stays out.
    Drop,
}

/// Checks the file, and puts what is in it into `store`, which has to be empty (a restore that was not finished counts as empty)
/// and to have begun at [`Header::start`]. `fate` says what becomes of each entry. Returns how many were written.
pub async fn restore(
    mut reader: impl Read + Seek,
    store: &dyn Store,
    mut fate: impl FnMut(&Key, Bytes) -> Fate,
) -> Result<u64, BackupError> {
    reader.seek(SeekFrom::Start(0))?;
    let mut entries = Vec::new();
    let header = read(&mut reader, |key, value| entries.push((key, value)))?;
    let found = store.revision().await?;
    if found < header.start() {
        let needed = header.start();
        return Err(BackupError::Behind { found, needed });
    }
    clear(store).await?;
    let kept = entries.into_iter().filter_map(|(key, value)| match fate(&key, value) {
        Fate::Keep(value) => Some((key, value)),
        Fate::Drop => None,
    });
    let (mut batch, mut bytes, mut count) = (Vec::new(), 0, 0);
    for (key, value) in kept {
        let size = key.as_str().len() + value.len();
        if batch.len() == BATCH || (bytes + size > BATCH_BYTES && !batch.is_empty()) {
            create(store, std::mem::take(&mut batch)).await?;
            bytes = 0;
        }
        batch.push((key, value));
        bytes += size;
        count += 1;
    }
    create(store, batch).await?;
    let unfinished = Key::new(UNFINISHED);
    let mark = store.get(&unfinished).await?.map_or(0, |entry| entry.mod_revision);
    let txn = Txn {
        compares: vec![Compare::modified(unfinished.clone(), mark)],
        ops: vec![Op::delete(unfinished)],
    };
    store.commit(txn).await?;
    Ok(count)
}

/// Makes sure that the store holds nothing but the mark of a restore.
async fn clear(store: &dyn Store) -> Result<(), BackupError> {
    let unfinished = Key::new(UNFINISHED);
    if store.get(&unfinished).await?.is_none() {
        let page = Page {
            after: None,
            limit: Some(1),
        };
        if let Some(entry) = store.list(&Prefix::new(""), page).await?.entries.into_iter().next() {
            return Err(BackupError::NotEmpty(entry.key));
        }
        return create(store, vec![(unfinished, Bytes::new())]).await;
    }
    let listing = store.list(&Prefix::new(""), Page::default()).await?;
    let left: Vec<&Entry> = listing.entries.iter().filter(|entry| entry.key != unfinished).collect();
    for some in left.chunks(BATCH) {
        let compares = some
            .iter()
            .map(|entry| Compare::modified(entry.key.clone(), entry.mod_revision));
        let txn = Txn {
            compares: compares.collect(),
            ops: some.iter().map(|entry| Op::delete(entry.key.clone())).collect(),
        };
        store.commit(txn).await?;
    }
    Ok(())
}

async fn create(store: &dyn Store, entries: Vec<(Key, Bytes)>) -> Result<(), BackupError> {
    let txn = Txn {
        compares: entries.iter().map(|(key, _)| Compare::absent(key.clone())).collect(),
        ops: entries.into_iter().map(|(key, value)| Op::put(key, value)).collect(),
    };
    store.commit(txn).await?;
    Ok(())
}

/// Reads and checks a whole file.
fn read(reader: impl Read, mut entry: impl FnMut(Key, Bytes)) -> Result<Header, BackupError> {
    let mut input = Summed::new(io::BufReader::new(reader));
    if input.bytes::<14>().map_err(|_| BackupError::Foreign)? != *MAGIC {
        return Err(BackupError::Foreign);
    }
    let version = u32::from_be_bytes(input.bytes()?);
    if version != VERSION {
        return Err(BackupError::Version(version));
    }
    let uid = u128::from_be_bytes(input.bytes()?);
    let [revision, taken_ms, entries] = [
        u64::from_be_bytes(input.bytes()?),
        u64::from_be_bytes(input.bytes()?),
        u64::from_be_bytes(input.bytes()?),
    ];
    for _ in 0..entries {
        let [key, value] = [u32::from_be_bytes(input.bytes()?), u32::from_be_bytes(input.bytes()?)];
        let (key, value) = (key as usize, value as usize);
        if key > KEY_BYTES_MAX || value > LIMITS.txn_bytes {
            return Err(BackupError::Damaged(format!("an entry of {key} and {value} bytes")));
        }
        let key = String::from_utf8(input.take(key)?);
        let key = key.map_err(|_| BackupError::Damaged("a key that is no text".to_owned()))?;
        let value = input.take(value)?;
        entry(Key::new(key), value.into());
    }
    let sum = input.sum.clone().finalize();
    if input.bytes::<32>()? != *sum {
        return Err(BackupError::Damaged(
            "its checksum is not that of its content".to_owned(),
        ));
    }
    if input.inner.read(&mut [0])? != 0 {
        return Err(BackupError::Damaged("there is something after its end".to_owned()));
    }
    Ok(Header {
        uid,
        revision,
        taken_ms,
        entries,
    })
}

/// Something read or written, and the sum of all that went through.
struct Summed<T> {
    inner: T,
    sum: Sha256,
}

impl<T> Summed<T> {
    fn new(inner: T) -> Summed<T> {
        Summed {
            inner,
            sum: Sha256::new(),
        }
    }
}

impl<W: Write> Summed<W> {
    fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.sum.update(bytes);
        self.inner.write_all(bytes)
    }
}

impl<R: Read> Summed<R> {
    fn fill(&mut self, bytes: &mut [u8]) -> Result<(), BackupError> {
        self.inner.read_exact(bytes).map_err(|error| match error.kind() {
            io::ErrorKind::UnexpectedEof => BackupError::Damaged("it ends too early".to_owned()),
            _ => error.into(),
        })?;
        self.sum.update(bytes);
        Ok(())
    }

    fn bytes<const N: usize>(&mut self) -> Result<[u8; N], BackupError> {
        let mut bytes = [0; N];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }

    fn take(&mut self, count: usize) -> Result<Vec<u8>, BackupError> {
        let mut bytes = vec![0; count];
        self.fill(&mut bytes)?;
        Ok(bytes)
    }
}
