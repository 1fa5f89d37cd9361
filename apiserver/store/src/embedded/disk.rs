//! The tables of the file, and the only code that reads and writes them.
//!
//! | table | key | value |
//! |---|---|---|
//! | `kv` | key | current entry |
//! | `log` | revision | every change of that revision; no gaps between `compacted` and `revision` |
//! | `leases` | lease | ttl in milliseconds |
//! | `meta` | `format`, `revision`, `compacted`, `next_lease` | a number |
//! | `identity` | `uid` | the name of the store, given when it was made |
//!
//! One [`Group`] is one transaction of the database and one fsync.

use std::collections::{BTreeMap, VecDeque};
use std::fs::{File, OpenOptions};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use redb::{
    Builder, Database, DatabaseError, ReadTransaction, ReadableDatabase, ReadableTable, ReadableTableMetadata,
    StorageError, TableDefinition,
};

use super::codec;
use crate::Revision;
use crate::core::{Batch, Entries};
use crate::history::Bounds;
use crate::types::{Change, Entry, Error, Key, LeaseId};

const KV: TableDefinition<&str, &[u8]> = TableDefinition::new("kv");
const LOG: TableDefinition<u64, &[u8]> = TableDefinition::new("log");
const LEASES: TableDefinition<u64, u64> = TableDefinition::new("leases");
const META: TableDefinition<&str, u64> = TableDefinition::new("meta");
const IDENTITY: TableDefinition<&str, u128> = TableDefinition::new("identity");

/// The layout of the tables.
const FORMAT: u64 = 1;

/// A watch that reads old history from disk takes at most about this much at once.
const READ_BYTES: usize = 4 << 20;

/// What a file held when it was opened.
pub(super) struct Loaded {
    pub(super) uid: u128,
    pub(super) entries: Entries,
    pub(super) leases: Vec<(LeaseId, Duration)>,
    pub(super) next_lease: u64,
    pub(super) revision: Revision,
    pub(super) compacted: Revision,
    pub(super) tail: VecDeque<Arc<Batch>>,
}

/// What one transaction of the database writes.
#[derive(Default)]
pub(super) struct Group {
    pub(super) batches: Vec<Arc<Batch>>,
    /// Leases granted (with their ttl) and ended.
    pub(super) leases: BTreeMap<LeaseId, Option<Duration>>,
    pub(super) next_lease: u64,
    /// Set if history is to be forgotten, up to and including this.
    pub(super) compact: Option<Revision>,
}

impl Group {
    pub(super) fn is_empty(&self) -> bool {
        self.batches.is_empty() && self.leases.is_empty() && self.compact.is_none()
    }
}

/// Opens the file, and makes it, for its owner's eyes only, if it does not exist.
pub(super) fn open(path: &Path, cache_bytes: usize) -> Result<Database, Error> {
    let failed = |what: &str, error: &dyn std::fmt::Display| {
        Error::Fatal(format!("cannot {what} the store {}: {error}", path.display()))
    };
    let file = OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .open(path);
    let file = file.map_err(|error| failed("open", &error))?;
    // The name of a new file survives a power cut only when its directory was synced.
    let directory = path
        .parent()
        .filter(|parent| !parent.as_os_str().is_empty())
        .unwrap_or(Path::new("."));
    File::open(directory)
        .and_then(|directory| directory.sync_all())
        .map_err(|error| failed("sync", &error))?;
    Builder::new()
        .set_cache_size(cache_bytes)
        .create_file(file)
        .map_err(|error| match error {
            DatabaseError::DatabaseAlreadyOpen => Error::Fatal(format!(
                "the store {} is in use by another process: stop that one, or use another data directory",
                path.display()
            )),
            DatabaseError::Storage(StorageError::Io(error)) if error.kind() == std::io::ErrorKind::InvalidData => {
                Error::Fatal(format!("{} is not a store of Muster: {error}", path.display()))
            }
            error => failed("open", &error),
        })
}

/// Reads everything that has to be in memory; a new file is given its tables, its `uid` and its first revision before.
pub(super) fn load(database: &Database, uid: u128, start: Revision, bounds: Bounds) -> Result<Loaded, Error> {
    initialize(database, uid, start).map_err(broken)?;
    let read = database.begin_read().map_err(broken)?;
    let meta = |name: &str| number(&read, name);
    let format = meta("format")?;
    if format != FORMAT {
        return Err(Error::Fatal(format!(
            "the store has format {format}, this Muster reads format {FORMAT}"
        )));
    }
    let (revision, compacted) = (meta("revision")?, meta("compacted")?);
    let log = read.open_table(LOG).map_err(broken)?;
    let records = log.len().map_err(broken)?;
    if compacted.checked_add(records) != Some(revision) {
        return Err(damaged(format!(
            "{records} log records between revisions {compacted} and {revision}"
        )));
    }
    let entries = load_entries(&read)?;
    let tail = load_tail(&log, revision, &entries, bounds)?;
    let mut leases = Vec::new();
    for item in read.open_table(LEASES).map_err(broken)?.iter().map_err(broken)? {
        let (id, ttl) = item.map_err(broken)?;
        leases.push((LeaseId(id.value()), Duration::from_millis(ttl.value())));
    }
    let identity = read.open_table(IDENTITY).map_err(broken)?;
    let uid = identity
        .get("uid")
        .map_err(broken)?
        .ok_or_else(|| damaged("it has no uid".to_owned()))?
        .value();
    Ok(Loaded {
        uid,
        entries,
        leases,
        next_lease: meta("next_lease")?,
        revision,
        compacted,
        tail,
    })
}

fn initialize(database: &Database, uid: u128, start: Revision) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        if meta.is_empty()? {
            for (name, value) in [
                ("format", FORMAT),
                ("revision", start),
                ("compacted", start),
                ("next_lease", 1),
            ] {
                meta.insert(name, value)?;
            }
            txn.open_table(IDENTITY)?.insert("uid", uid)?;
            txn.open_table(KV)?;
            txn.open_table(LOG)?;
            txn.open_table(LEASES)?;
        } else {
            drop(meta);
            txn.abort()?;
            return Ok(());
        }
    }
    txn.commit()?;
    Ok(())
}

fn number(read: &ReadTransaction, name: &str) -> Result<u64, Error> {
    let meta = read.open_table(META).map_err(broken)?;
    let value = meta.get(name).map_err(broken)?;
    value
        .map(|value| value.value())
        .ok_or_else(|| damaged(format!("{name} is missing")))
}

fn load_entries(read: &ReadTransaction) -> Result<Entries, Error> {
    let mut entries = Entries::default();
    for item in read.open_table(KV).map_err(broken)?.iter().map_err(broken)? {
        let (key, value) = item.map_err(broken)?;
        let entry = codec::decode_entry(key.value(), value.value())
            .map_err(|error| damaged(format!("the entry {} is {error}", key.value())))?;
        entries.install(&Change {
            key: entry.key.clone(),
            current: Some(entry),
        });
    }
    Ok(entries)
}

/// The newest records that fit into the bounds. Values that are current are shared with the entries.
fn load_tail(
    log: &impl ReadableTable<u64, &'static [u8]>,
    revision: Revision,
    entries: &Entries,
    bounds: Bounds,
) -> Result<VecDeque<Arc<Batch>>, Error> {
    let mut tail = VecDeque::new();
    let mut bytes = 0;
    let mut expected = revision;
    for item in log.iter().map_err(broken)?.rev().take(bounds.revisions) {
        let (at, record) = item.map_err(broken)?;
        let mut batch = decode(at.value(), record.value(), expected)?;
        bytes += batch.cost();
        if bytes > bounds.bytes && !tail.is_empty() {
            break;
        }
        for entry in batch.changes.iter_mut().filter_map(|change| change.current.as_mut()) {
            share(entry, entries);
        }
        tail.push_front(Arc::new(batch));
        expected -= 1;
    }
    Ok(tail)
}

fn share(entry: &mut Entry, entries: &Entries) {
    if let Some(current) = entries.get(&entry.key)
        && current.mod_revision == entry.mod_revision
    {
        *entry = current.clone();
    }
}

fn decode(at: Revision, record: &[u8], expected: Revision) -> Result<Batch, Error> {
    if at != expected {
        return Err(damaged(format!("revision {expected} is missing from its log")));
    }
    codec::decode_batch(at, record).map_err(|error| damaged(format!("the log record of revision {at} is {error}")))
}

/// Up to `count` batches after revision `after`; `None`: that part of the log is gone.
pub(super) fn read_log(database: &Database, after: Revision, count: u64) -> Result<Option<Vec<Arc<Batch>>>, Error> {
    let read = database.begin_read().map_err(broken)?;
    if number(&read, "compacted")? > after {
        return Ok(None);
    }
    let log = read.open_table(LOG).map_err(broken)?;
    let mut batches = Vec::new();
    let mut bytes = 0;
    for item in log.range(after + 1..=after.saturating_add(count)).map_err(broken)? {
        let (at, record) = item.map_err(broken)?;
        bytes += record.value().len();
        batches.push(Arc::new(decode(
            at.value(),
            record.value(),
            after + 1 + batches.len() as u64,
        )?));
        if bytes > READ_BYTES {
            break;
        }
    }
    Ok(Some(batches))
}

/// Writes a group. When this returns, it is on disk.
pub(super) fn write(database: &Database, group: &Group) -> Result<(), redb::Error> {
    let txn = database.begin_write()?;
    {
        let mut meta = txn.open_table(META)?;
        if let Some(last) = group.batches.last() {
            let mut log = txn.open_table(LOG)?;
            // A key that was written several times in the group is written once to its table.
            let mut newest: BTreeMap<&Key, Option<&Entry>> = BTreeMap::new();
            for batch in &group.batches {
                log.insert(batch.revision, codec::encode_batch(batch).as_slice())?;
                newest.extend(
                    batch
                        .changes
                        .iter()
                        .map(|change| (&change.key, change.current.as_ref())),
                );
            }
            let mut kv = txn.open_table(KV)?;
            for (key, entry) in newest {
                match entry {
                    Some(entry) => kv.insert(key.as_str(), codec::encode_entry(entry).as_slice())?,
                    None => kv.remove(key.as_str())?,
                };
            }
            meta.insert("revision", last.revision)?;
        }
        if !group.leases.is_empty() {
            let mut leases = txn.open_table(LEASES)?;
            for (id, ttl) in &group.leases {
                match ttl {
                    Some(ttl) => leases.insert(id.0, u64::try_from(ttl.as_millis()).unwrap_or(u64::MAX))?,
                    None => leases.remove(id.0)?,
                };
            }
            meta.insert("next_lease", group.next_lease)?;
        }
        if let Some(compacted) = group.compact {
            txn.open_table(LOG)?.retain_in(..=compacted, |_, _| false)?;
            meta.insert("compacted", compacted)?;
        }
    }
    txn.commit()?;
    Ok(())
}

fn broken(error: impl Into<redb::Error>) -> Error {
    Error::Fatal(format!("the store's file cannot be read: {}", error.into()))
}

fn damaged(what: String) -> Error {
    Error::Fatal(format!("the store's file is damaged: {what}; restore it from a backup"))
}
